"""How many examples and parameters at a time: tiles whose arrays fit a stated number of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lazynet.kernels.empirical.arguments import Examples, count_examples, one_example
from lazynet.kernels.empirical.contraction import Features, contract, features
from lazynet.kernels.empirical.jacobians import (
    Names,
    Outputs,
    example_jacobian,
    loops,
    vmapped_jacobian,
)
from lazynet.kernels.empirical.layerwise import layer_features, layer_names
from lazynet.tiles import reserved
from lazynet.trees import is_traced
from lazynet.typing import Apply, Params

MEMORY = 2**32
"""Default budget in bytes."""


class Plan(NamedTuple):
    """`tile` examples of each side and one group of parameters are held at a time."""

    tile: int
    groups: tuple[Names, ...]


def plan(
    function: Apply,
    params: Params,
    x: Examples,
    names: Names,
    outputs: Outputs,
    memory: int,
    tile: int | None,
) -> Plan:
    """The largest tile, of examples first and of parameters where one example is too much, that fits the memory.

    A first guess counts the features of rows and columns and a copy of them; the compiler's account
    of the programs decides (unless the call is traced).
    """
    sizes = _sizes(function, params, x, names, outputs)
    # For the features of rows and of columns, and for a copy of each.
    share = memory // 4
    n = count_examples(x)
    side = tile or min(n, max(1, share // sum(sizes.values())))
    while True:
        side = min(side, n)
        groups = _groups(sizes, share // side)
        needed = _needed(function, params, x, side, groups, outputs)
        if needed <= memory:
            return Plan(side, groups)
        if tile is None and side > 1:
            # In proportion, since most of it grows with the side, and by one at least, so that it
            # ends.
            side = max(1, min(side - 1, side * memory // needed))
        # Every parameter is a group by itself: there is nothing left to divide.
        elif len(groups) == len(sizes):
            raise ValueError(_message(sizes, side, needed, memory, tile))
        else:
            # Less than the largest group takes, which is then divided: the same ones would else
            # come again.
            largest = max(_total(sizes, group) for group in groups)
            share = min(share * memory // needed, side * (largest - 1))


def peak_bytes(function: Apply, params: Params, x: Examples, names: Names, outputs: Outputs) -> int:
    """Bytes held while the kernel of x with as many other examples is computed, by the compiler's account.

    Counted are the features of both sides, what the programs need beside them and the block of the
    kernel; parameters and inputs are not.
    """
    shapes = _shapes(function, params, x, names, outputs)
    held = _bytes(shapes)
    known = layer_names(function, names)
    rest = tuple(name for name in names if name not in known)
    made = []
    if known:
        by_layers = layer_features.lower(function, params, x, known, outputs).compile()
        made.append(reserved(by_layers))
    if rest and loops(function, params, x):
        first = jax.tree.map(lambda leaf: leaf[0], x)
        by_example = example_jacobian.lower(function, params, first, rest, outputs).compile()
        # The Jacobians of all examples are there twice while they are stacked.
        made.append(reserved(by_example) + 2 * _bytes({name: shapes[name] for name in rest}))
    elif rest:
        at_once = vmapped_jacobian.lower(function, params, x, rest, outputs).compile()
        made.append(reserved(at_once))
    contracted = reserved(contract.lower(shapes, shapes, outputs).compile())
    # Beside the features of rows: what makes those of columns, or both while they are contracted.
    return held + max(sum(made), held + contracted)


def entry_shape(
    function: Apply, params: Params, x: Examples, names: Names, outputs: Outputs
) -> jax.ShapeDtypeStruct:
    """The kernel of one example with itself, as a shape."""
    shapes = _shapes(function, params, one_example(x), names, outputs)
    return jax.eval_shape(lambda own: contract(own, own, outputs), shapes)


def _needed(
    function: Apply,
    params: Params,
    x: Examples,
    side: int,
    groups: tuple[Names, ...],
    outputs: Outputs,
) -> int:
    # Nothing can be compiled for values of an outer transformation: the first guess counts.
    if is_traced((function, params, x)):
        return 0
    tile = jax.tree.map(lambda leaf: jnp.asarray(leaf[:side]), x)
    return max(peak_bytes(function, params, tile, group, outputs) for group in groups)


def _shapes(function: Apply, params: Params, x: Any, names: Names, outputs: Outputs) -> Features:
    """Abstract features; x may be made of `jax.ShapeDtypeStruct`."""
    return jax.eval_shape(lambda examples: features(function, params, examples, names, outputs), x)


def _sizes(
    function: Apply, params: Params, x: Examples, names: Names, outputs: Outputs
) -> dict[str, int]:
    """Bytes of each leaf's features of one example."""
    shapes = _shapes(function, params, one_example(x), names, outputs)
    # Leaves without entries have no bytes, and the sum of all sizes is divided by.
    return {name: max(1, _bytes(shapes[name])) for name in names}


def _groups(sizes: dict[str, int], limit: int) -> tuple[Names, ...]:
    """Consecutive leaves whose sizes add up to at most the limit, or single leaves."""
    groups: list[list[str]] = []
    for name, size in sizes.items():
        if groups and _total(sizes, groups[-1]) + size <= limit:
            groups[-1].append(name)
        else:
            groups.append([name])
    return tuple(tuple(group) for group in groups)


def _total(sizes: dict[str, int], group: Sequence[str]) -> int:
    return sum(sizes[name] for name in group)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _message(sizes: dict[str, int], side: int, needed: int, memory: int, tile: int | None) -> str:
    largest = max(sizes, key=lambda name: sizes[name])
    ways = "allow more" if side == 1 or tile is None else "pass a smaller tile, allow more"
    return (
        f"{side} example(s) and one parameter at a time need {needed:,} bytes (the largest is {largest!r}, "
        f"{sizes[largest]:,} bytes of derivatives of one example), memory={memory:,}: {ways}, ask for outputs='sum', "
        "or use ntk_vector_product, which holds no Jacobian."
    )
