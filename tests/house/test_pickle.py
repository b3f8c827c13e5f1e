"""Records survive pickling, deep copies and `tree.map`: joblib and multiprocessing send them between processes."""

from __future__ import annotations

import copy
import pickle

import faces
import jax
import numpy as np
import pytest


def records() -> dict[str, type]:
    """Every public class of named fields."""
    found = {}
    for module, own in faces.modules().items():
        for name in own.__all__:
            value = getattr(own, name)
            if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
                found[f"{module}.{name}"] = value
    return found


RECORDS = records()
FUNCTIONS = {"apply", "init", "trace", "kernel", "inverse", "loss"}


def filled(record: type) -> tuple:
    """A record of arrays, and of functions where its fields are functions."""
    return tuple.__new__(
        record, [np.abs if name in FUNCTIONS else np.arange(3.0) for name in record._fields]
    )


@pytest.mark.parametrize("name", sorted(RECORDS))
@pytest.mark.parametrize(
    "copied", [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy, copy.copy]
)
def test_a_record_comes_back_as_it_was(name, copied):
    value = filled(RECORDS[name])
    back = copied(value)
    assert type(back) is RECORDS[name]
    for found, expected in zip(back, value, strict=True):
        assert found is np.abs or np.array_equal(found, expected)


@pytest.mark.parametrize("name", sorted(set(RECORDS) - {"model.Model"}))
def test_a_record_is_a_tree_of_its_fields(name):
    value = filled(RECORDS[name])
    assert type(jax.tree.map(lambda leaf: leaf, value)) is RECORDS[name]
