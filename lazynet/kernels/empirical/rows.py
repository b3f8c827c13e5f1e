"""Rows of blocks of an empirical kernel: on one device, or over devices and processes into a resumable store."""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.kernels.empirical import contraction
from lazynet.kernels.empirical.arguments import Examples, count_examples, one_example
from lazynet.kernels.empirical.contraction import MIRROR, contract, features, symmetric
from lazynet.kernels.empirical.jacobians import Outputs
from lazynet.kernels.empirical.memory import Plan, entry_shape
from lazynet.programs import fingerprint
from lazynet.tiles import assemble, digest, open_store, tiles
from lazynet.typing import Apply, Array, Params


def in_memory(
    function: Apply,
    params: Params,
    x1: Examples,
    x2: Examples | None,
    chosen: Plan,
    outputs: Outputs,
) -> Array:
    """The kernel on the device of its inputs."""
    own = split(x1, chosen.tile)
    if x2 is not None:
        other = split(x2, chosen.tile)
        return concatenated([row(function, params, part, other, chosen, outputs) for part in own])
    rows: list[list[Array]] = []
    for i, part in enumerate(own):
        upper = row(function, params, part, own[i:], chosen, outputs, diagonal=True)
        # What is left of the diagonal are mirror images of the rows above.
        rows.append([above[i].transpose(MIRROR[outputs]) for above in rows] + upper)
    return concatenated(rows)


def row(
    function: Apply,
    params: Params,
    own: Examples,
    others: list[Examples],
    chosen: Plan,
    outputs: Outputs,
    diagonal: bool = False,
) -> list[Array]:
    """Blocks of the kernel of `own` with every other tile; the first is symmetric where it is `own` itself."""
    totals: list[Array] = []
    for group in chosen.groups:
        rows = features(function, params, own, group, outputs)
        for j, other in enumerate(others):
            if diagonal and j == 0:
                columns = rows
            else:
                columns = features(function, params, other, group, outputs)
            block = contract(rows, columns, outputs)
            if j < len(totals):
                totals[j] = totals[j] + block
            else:
                totals.append(block)
            # Calls are queued: without waiting, features of many tiles would be held at once.
            if len(others) > 1 or len(chosen.groups) > 1:
                jax.block_until_ready(block)
    return [symmetric(totals[0], outputs), *totals[1:]] if diagonal else totals


def in_store(
    function: Apply,
    params: Params,
    x1: Examples,
    x2: Examples | None,
    chosen: Plan,
    outputs: Outputs,
    memory: int,
    store: str | os.PathLike | None,
    progress: bool,
) -> np.ndarray:
    """The kernel on the host or in files; a tile of it is a row of blocks, in which a Jacobian is computed once."""
    one = jax.tree.map(np.asarray, x1)
    two = one if x2 is None else jax.tree.map(np.asarray, x2)
    n1 = count_examples(one)
    n2 = count_examples(two)
    block = entry_shape(function, params, one, sum(chosen.groups, ()), outputs)
    shape = (n1, n2, *block.shape[2:])
    entry = block.size * block.dtype.itemsize
    # As many blocks of a row as fit the memory together: they are there at once.
    blocks = max(1, memory // (chosen.tile**2 * entry))
    every = tiles(n1, n2, chosen.tile, width=blocks * chosen.tile, symmetric=x2 is None)
    identity = {}
    if store is not None:
        columns = None if x2 is None else two
        identity = _identity(function, params, one, columns, chosen, outputs)
    target = open_store(store, {"ntk": shape}, block.dtype, len(every), identity)
    # Weights go to each device once, not with every strip.
    placed = functools.cache(lambda device: jax.device_put((function, params), device))

    def compute(device, strip):
        own = jax.device_put(_part(one, strip[0]), device)
        others = split(jax.device_put(_part(two, strip[1]), device), chosen.tile)
        diagonal = x2 is None and strip[0].start == strip[1].start
        here, weights = placed(device)
        blocks = row(here, weights, own, others, chosen, outputs, diagonal=diagonal)
        return {"ntk": concatenated([blocks])}

    mirror = {"ntk": MIRROR[outputs]} if x2 is None else None
    return assemble(compute, every, target, mirror=mirror, progress=progress)["ntk"]


def split(x: Examples, tile: int) -> list[Examples]:
    """Slices of at most `tile` examples; their starts are operands, so that equal sizes share a compilation."""
    n = count_examples(x)

    def part(start: int) -> Examples:
        size = min(tile, n - start)
        return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), x)

    return [part(start) for start in range(0, n, tile)]


@jax.jit
def concatenated(rows: list[list[Array]]) -> Array:
    """The kernel of its blocks."""
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows], axis=0)


def _part(x: Examples, rows: range) -> Examples:
    return jax.tree.map(lambda leaf: leaf[rows.start : rows.stop], x)


def _identity(
    function: Apply,
    params: Params,
    x1: Examples,
    x2: Examples | None,
    chosen: Plan,
    outputs: Outputs,
) -> dict[str, Any]:
    """What a stored kernel depends on; the function is known by the program of its derivatives and by its arrays."""
    return {
        "kernel": "empirical_ntk",
        "network": _derivatives(function, params, x1, chosen, outputs),
        "params": digest(*_values((function, params))),
        "x1": digest(*_values(x1)),
        "x2": None if x2 is None else digest(*_values(x2)),
        "outputs": outputs,
        "parameters": [list(group) for group in chosen.groups],
        "tile": chosen.tile,
    }


def _derivatives(
    function: Apply, params: Params, x: Examples, chosen: Plan, outputs: Outputs
) -> str:
    """A name for the program of the features of one example, and for the arrays that it closes over.

    Functions with equal outputs may have other derivatives: a gradient that is stopped, a rule of
    one's own.
    """

    def computed(function, params, x):
        return [
            contraction.features(function, params, x, group, outputs) for group in chosen.groups
        ]

    return fingerprint(jax.jit(computed).trace(function, params, one_example(x)))


def _values(tree: Any) -> list[Any]:
    """Leaves as arrays of numbers, keys by what they hold."""
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    return [
        jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        for a in leaves
    ]
