"""Kernels of one entry of the outputs for each example, as of its label: a choice is an input like any other."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from lazynet import guards
from lazynet.kernels.empirical.arguments import Examples
from lazynet.signatures import Inputs, flat
from lazynet.typing import Apply, Array, Params


def chosen_entries(
    function: Apply, x1: Examples, x2: Examples | None, outputs: Any
) -> tuple[Apply, Examples, Examples | None]:
    """The function of examples and of numbers of entries, and these beside the examples.

    Raises:
        TypeError: They are no whole numbers.
        ValueError: There is one set of them for two sets of examples.
    """
    pair = outputs if isinstance(outputs, tuple) else (outputs, None)
    if len(pair) != 2 or (pair[1] is None) != (x2 is None):
        raise ValueError(
            f"outputs got {'one set' if pair[1] is None else 'two sets'} of entries, expected as many as there are "
            "sets of examples: (outputs1, outputs2) for x1 and x2."
        )
    # Only the type of the examples matters here: it says that the function takes several inputs.
    chosen = flat(_Entries(function), Inputs())  # pyright: ignore[reportArgumentType]
    first = Inputs(x1, _entries(pair[0]))
    return chosen, first, None if x2 is None else Inputs(x2, _entries(pair[1]))


def _entries(numbers: Any) -> Array:
    found = jnp.asarray(guards.array("outputs", numbers))
    if not jnp.issubdtype(found.dtype, jnp.integer) or not found.ndim:
        raise TypeError(
            f"outputs has dtype {found.dtype} and shape {found.shape}, expected numbers of entries [n, ...], or one of "
            "full, trace, sum, diagonal."
        )
    return found


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
