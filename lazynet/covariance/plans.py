"""A chain as stages of passes, one after each pool: which planes each of them takes, and what images bring along.

Windows that move together never mix displacements, so that the planes of a stage go through all of
its passes one by one. A pool mixes them: it is the end of a stage, and the next one starts when the
sums that it needs are complete.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from lazynet.covariance.chains import Chain, Pooled, Step, Swept, walked
from lazynet.covariance.elementary import Unsupported
from lazynet.covariance.machine import Kind
from lazynet.covariance.passes import PIXELS, Plane, Walk
from lazynet.covariance.tables import Tables
from lazynet.covariance.windows import Size
from lazynet.typing import Array

__all__ = ["Plan", "Stage", "Store", "planned"]


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
    """Where the planes between two stages are.

    Attributes:
        places: `[2 h - 1, 2 w - 1]`, the first vector of the plane of each displacement; -1 where
            it is not needed.
        size: Vectors of all planes.
    """

    places: np.ndarray
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """Passes through which planes are taken one by one.

    Attributes:
        table: A row of `machine.FIELDS` for each pass.
        registers: How many pairs of planes (nngp, ntk) are kept at a time.
        shape: Of the images before the first pass, the largest.
        reach: Height and width of the largest window.
        displacements: Between the images after the last pass, `[d, 2]`.
        weights: How often each of them counts, `[d]`.
        source: The planes that are read; None for those of pixels.
        sink: The sums of a pool that planes are added to; None if they are all added up.
    """

    table: np.ndarray
    registers: int
    shape: Size
    reach: Size
    displacements: np.ndarray
    weights: np.ndarray
    source: Store | None
    sink: Store | None

    @property
    def pooled(self) -> int:
        """Height of the images of sums."""
        return 0 if self.sink is None else (len(self.sink.places) + 1) // 2


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is known of a chain before its images are.

    Attributes:
        dtype: Of the planes.
        kinds: The different passes.
        constants: Of all passes.
        stages: In order.
        trained: Whether there is an ntk.
        numbers: How many numbers each image brings along.
        zero: Whether the displacement is zero alone.
    """

    dtype: np.dtype
    kinds: tuple[Kind, ...]
    constants: np.ndarray
    stages: tuple[Stage, ...]
    trained: bool
    numbers: int
    zero: bool


def planned(
    chain: Chain, *, zero: bool = False, same: bool = False
) -> tuple[Plan, tuple[Array, Array]]:
    """The plan of a chain, and what the images of both sets bring along, `[numbers, n]` each.

    Args:
        chain: Steps from the pixels to a layer.
        zero: Whether only equal positions are asked for.
        same: Whether each image meets itself: equal positions, whose values are exact, are left
            out (or brought along, where they are pooled), and so is one of two opposite
            displacements.

    Raises:
        Unsupported: If there is no such program: periodic windows beside others, beside pools, or
            on images that they do not fill, pools in branches, or maps that are not elementary.
    """
    walks, pools = _walks(chain)
    tables = Tables(chain.images, cyclic=walks[0].cyclic)
    end = walks[-1].end
    displacements, weights = _displacements(end.shape, tables.cyclic, zero=zero, same=same)
    stages = []
    sink, final = None, tables.total(end)
    # From the end to the pixels: a stage has the planes that the next one needs.
    for number, walk in reversed([*enumerate(walks)]):
        moves = displacements * walk.end.strides
        source = _store(pools[number - 1], moves) if number else None
        start = [tables.load(pools[number - 1], walk)] if number else []
        rows = [*start, *tables.passes(walk), final]
        stages.append(_stage(walk, rows, displacements, weights, source, sink))
        if not number:
            break
        pool, before = pools[number - 1], walks[number - 1]
        sink, final = source, tables.pool(pool, before.end)
        displacements = _summed_by(pool, moves)
        if same:
            # Exact moments of equal positions do not come out of the planes: a stage of its own
            # pools them.
            equal = ~displacements.any(axis=1)
            rows = [tables.own(pool, before.end), final]
            stages.append(_stage(before, rows, displacements[equal], np.ones(1), None, sink))
            displacements = displacements[~equal]
        weights = np.ones(len(displacements))
    plan = Plan(
        np.dtype(chain.images[0].dtype),
        tuple(tables.kinds),
        np.array(tables.constants or [0.0], chain.images[0].dtype),
        tuple(reversed(stages)),
        end.trained,
        max(tables.sizes),
        zero,
    )
    return plan, (jnp.concatenate(tables.arrays[0]), jnp.concatenate(tables.arrays[1]))


def _walks(chain):
    """Passes through the steps before the first pool, between two, and after the last one; and the pools."""
    pieces: list[list[Step]] = [[]]
    pools = []
    for step in chain.steps:
        if isinstance(step, Pooled):
            pools.append(step)
            pieces.append([])
        else:
            pieces[-1].append(step)
    pixels = chain.images[0]
    cyclic = _is_cyclic(chain.steps)
    plane = Plane(PIXELS, (pixels.shape[1], pixels.shape[2]), (1, 1), False)
    walks = []
    for number, piece in enumerate(pieces):
        if number:
            end = walks[-1].end
            plane = Plane(0, pools[number - 1].window.out(end.shape), (1, 1), end.trained)
        walks.append(Walk(piece, plane, pixels.shape[-1], pixels.dtype, cyclic=cyclic))
    return walks, pools


def _stage(walk, rows, displacements, weights, source, sink):
    windows = [done.window.size for done in walk.passes if done.window]
    height, width = zip((1, 1), *windows, strict=True)
    reach = max(height), max(width)
    table = np.array(rows, np.int64)
    shape = walk.start.shape
    return Stage(
        table,
        walk.registers,
        shape,
        reach,
        displacements,
        weights[: len(displacements)],
        source,
        sink,
    )


def _store(pool, displacements):
    """Where the sums of a pool at some displacements are."""
    height, width = pool.window.out(pool.shape)
    down, right = displacements.T
    # Two planes, nngp and ntk, of the positions that both images share.
    sizes = 2 * (height - np.abs(down)) * (width - np.abs(right))
    places = np.full((2 * height - 1, 2 * width - 1), -1, np.int64)
    places[down + height - 1, right + width - 1] = np.cumsum(sizes) - sizes
    return Store(places, int(sizes.sum()))


def _summed_by(pool, displacements):
    """The displacements `s D + e`, |e| < k, that a pool sums at some displacements D."""
    (height, width), (tall, wide) = pool.shape, pool.window.size
    down, right = (displacements * pool.window.strides).T
    needed = np.zeros((2 * height - 1, 2 * width - 1), bool)
    for e in range(1 - tall, tall):
        for f in range(1 - wide, wide):
            inside = (abs(down + e) < height) & (abs(right + f) < width)
            needed[(down + e + height - 1)[inside], (right + f + width - 1)[inside]] = True
    return np.argwhere(needed) - (height - 1, width - 1)


def _is_cyclic(steps):
    """Whether images are periodic in all windows (of more than one position)."""
    swept = [step for step in walked(steps) if isinstance(step, Swept)]
    pooled = [step for step in walked(steps) if isinstance(step, Pooled)]
    kinds = {step.window.padding == "CIRCULAR" for step in swept if step.window.size != (1, 1)}
    filled = [
        step.window.periodic_on(step.shape, step.window.out(step.shape))
        or step.window.size == (1, 1)
        for step in swept
    ]
    if len(kinds) > 1 or not all(filled):
        raise Unsupported("periodic windows beside others, or on images that they do not fill")
    periodic = True in kinds
    if pooled and (periodic or any(step.window.padding == "CIRCULAR" for step in pooled)):
        raise Unsupported("pools of periodic images")
    return periodic


def _displacements(shape, cyclic, *, zero, same):
    if zero:
        return np.zeros((1, 2), np.int64), np.ones(1)
    ranges = [np.arange(0 if cyclic else 1 - n, n) for n in shape]
    every = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 2).astype(np.int64)
    if not same:
        return every, np.ones(len(every))
    down, right = every.T
    if cyclic:
        kept = (down != 0) | (right != 0)
        return every[kept], np.ones(int(kept.sum()))
    # S of an image with itself is symmetric in p and p': one of d and -d, twice.
    kept = (down > 0) | ((down == 0) & (right > 0))
    return every[kept], np.full(int(kept.sum()), 2.0)
