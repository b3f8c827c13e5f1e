"""Kernels of one entry of the outputs for each example, as of its label: a choice is an input like any other."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from lazynet import guards
from lazynet.kernels.empirical.arguments import (
    Examples,
    canonical,
    check_outputs,
    count_examples,
)
from lazynet.programs import shape_of
from lazynet.signatures import Inputs, flat
from lazynet.trees import is_traced
from lazynet.typing import Apply, Array, Params


def chosen_entries(
    function: Apply, params: Params, x1: Examples, x2: Examples | None, outputs: Any
) -> tuple[Apply, Examples, Examples | None]:
    """The function of examples and of numbers of entries, and these beside the examples.

    Raises:
        TypeError: They are no whole numbers.
        ValueError: There is one set of them for two sets of examples, or one of them is beyond the
            last axis of the outputs.
    """
    pair = outputs if isinstance(outputs, tuple) else (outputs, None)
    if len(pair) != 2 or (pair[1] is None) != (x2 is None):
        raise ValueError(
            f"outputs got {'one set' if pair[1] is None else 'two sets'} of entries, expected as many as there are "
            "sets of examples: (outputs1, outputs2) for x1 and x2."
        )
    numbers = [None if each is None else _entries(each) for each in pair]
    for each in numbers:
        if each is not None and not is_traced(each):
            _check_range(each, *canonical(function, params, x1)[:3])
    # Only the type of the examples matters here: it says that the function takes several inputs.
    chosen = flat(_Entries(function), Inputs())  # pyright: ignore[reportArgumentType]
    return chosen, Inputs(x1, numbers[0]), None if x2 is None else Inputs(x2, numbers[1])


def _entries(numbers: Any) -> Array:
    found = jnp.asarray(guards.array("outputs", numbers))
    if not jnp.issubdtype(found.dtype, jnp.integer) or not found.ndim:
        raise TypeError(
            f"outputs has dtype {found.dtype} and shape {found.shape}, expected numbers of entries [n, ...], or one of "
            "full, trace, sum, diagonal."
        )
    return found


def _check_range(numbers: Array, function: Apply, params: Params, x: Examples) -> None:
    h = shape_of(function, params, x)
    check_outputs(h, count_examples(x))
    values = np.asarray(numbers)
    # A gradient there would be zero, and negative numbers would count from the end.
    if h.ndim > 1 and not ((values >= 0) & (values < h.shape[-1])).all():
        raise ValueError(
            f"outputs got entries from {values.min()} to {values.max()}, expected 0 to {h.shape[-1] - 1}, those of "
            f"the last axis of the outputs of apply, {h.shape}: count classes from 0, and leave out what has no label."
        )


@partial(register_dataclass, data_fields=("apply",), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class _Entries:
    """`h_i[..., e_i]`."""

    apply: Apply

    def __call__(self, params: Params, x: Examples, entries: Array) -> Array:
        h = self.apply(params, x)
        if entries.shape != h.shape[:-1]:
            raise ValueError(
                f"outputs has shape {entries.shape}, expected {h.shape[:-1]}, one entry along the last axis of the "
                f"outputs of apply, {h.shape}."
            )
        return jnp.take_along_axis(h, entries[..., None], axis=-1)[..., 0].reshape(len(h), -1)
