"""All layers of a displacement plane on the chip: one GPU program per pair of images, which writes two numbers.

A plane of a network without strides, pools and branches meets nothing but its own displacement on
its way from the pixels to the last layer. `planes` evaluates it layer by layer, and each layer
reads and writes the memory of the GPU; here one Pallas program keeps the two planes (nngp and ntk)
in registers through all layers and adds up what a pooled head needs of them.

A window along an axis is a product with a banded matrix of small counts, one matrix for each
displacement, which also leaves out the terms that cross the border of an image. In float32 the
plane is split into three bfloat16 parts that add up to it exactly, so that the products run on
tensor cores and only their sums are rounded.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from lazynet.covariance.chains import Chain, Pointed, Swept
from lazynet.covariance.pairing import Lanes
from lazynet.covariance.pointwise import Covariance
from lazynet.covariance.repeats import repetitions
from lazynet.covariance.windows import Size, Taps, live, together

__all__ = ["available", "fits", "sum_over_pairs"]

SMALLEST = 16
LARGEST = 32
"""Sides of the square that a program works on: tensor cores need 16, and larger planes do not fit the registers."""

WARPS = 2
"""Of 32 threads, for each program: more spend their time on exchanging planes, one has too few registers."""

CHUNKS = 32
"""Programs that share the displacements of a pair of images: enough for a GPU even if there are few pairs."""


def available() -> bool:
    """Whether this jax compiles the program: from 0.7 on, as long as Pallas has Triton (deprecated in jax 0.12)."""
    return (
        jax.__version_info__ >= (0, 7)
        and importlib.util.find_spec("jax.experimental.pallas.triton") is not None
    )


def fits(chain: Chain | None, canvas: Size) -> bool:
    """Whether there is a program for these layers: no strides, no branches, float32, at most 32 pixels a side.

    The program holds no arrays of its own: layers whose scales are arrays (to be differentiated)
    are not for it.
    """
    if chain is None or max(canvas) > LARGEST or chain.images[0].dtype != jnp.float32:
        return False
    windows = [step for step in chain.steps if isinstance(step, Swept)]
    simple = all(isinstance(step, Pointed | Swept) for step in chain.steps)
    if not simple or any(step.window.strides != (1, 1) for step in windows):
        return False
    filled = all(step.window.periodic_on(step.shape, canvas) for step in windows)
    return filled and all(key is not None for key, _ in _keys(chain.steps))


def sum_over_pairs(
    chain: Chain,
    shape: Size,
    canvas: Size,
    lanes: Lanes,
    *,
    same: bool = False,
    interpret: bool = False,
) -> Covariance:
    """`sum_{p, p'} S[p, p']` of each pair of images, `[groups, lanes]`, for the nngp and the ntk.

    Args:
        chain: Steps from the pixels to the last layer.
        shape: Of the images after the last step.
        canvas: On which displacements are cyclic.
        lanes: Which images meet.
        same: Whether to leave out the displacement zero, which has exact values.
        interpret: Whether to run the program step by step on any device, to test it.
    """
    plan = _plan(chain.steps, shape, canvas)
    first = _stacked(chain.images[0], plan, 0)
    second = _stacked(chain.images[1], plan, 1)
    who = _who_meets(lanes, chain.images)
    channels = chain.images[0].shape[-1]
    out = _call(plan, channels, first, _wrapped(second, plan), who, same, interpret)
    nngp, ntk = jnp.sum(out, axis=-1).reshape(2, lanes.groups, -1)
    return Covariance(nngp, ntk if plan.trained else None)


class _Plan(NamedTuple):
    """What a program is made of, known when it is compiled.

    Attributes:
        segments: Steps and how often they are repeated: a loop keeps the program short enough for
            the GPU's cache.
        with_sides: Steps that need something of the variances of each set, and how many arrays.
        tables: Banded matrices `[table, displacement, to, from]`.
        numbers: For the size and both axes of a window on a shape, the tables of rows and columns.
        inside: Masks `[axis, displacement, position]` of pairs of positions inside the images.
        canvas, side: Of displacements, and of the square that holds the canvas.
        trained: Whether there is an ntk.
    """

    segments: tuple[tuple[tuple[Pointed | Swept, ...], int], ...]
    with_sides: dict[Pointed, int]
    tables: np.ndarray
    numbers: dict[Swept, tuple[int, int]]
    inside: np.ndarray
    canvas: Size
    side: int
    trained: bool


def _plan(steps, shape, canvas):
    # Triton works on arrays whose sides are powers of two.
    side = max(SMALLEST, 1 << (max(canvas) - 1).bit_length())
    tables = {}
    numbers = {}
    for step in steps:
        if isinstance(step, Pointed) or step in numbers:
            continue
        axes = []
        for taps, count in zip(together(step.window, step.shape, canvas), canvas, strict=True):
            table = _banded(taps, count, side)
            # Most layers have the same windows, and each table is stored once.
            number, _ = tables.setdefault(table.tobytes(), (len(tables), table))
            axes.append(number)
        numbers[step] = tuple(axes)
    stacked = [table for _, table in tables.values()] or [np.zeros((side, side, side), np.uint8)]
    inside = np.zeros((2, side, side), bool)
    for axis, (n, count) in enumerate(zip(shape, canvas, strict=True)):
        inside[axis, :count, :count] = live(n, count)
    keys = _keys(steps)
    segments = []
    start = 0
    for length, times in repetitions([key for key, _ in keys]):
        segments.append((tuple(steps[start : start + length]), times))
        start += length * times
    trained = bool(keys) and keys[-1][1]
    with_sides = _with_sides(steps)
    return _Plan(
        tuple(segments), with_sides, np.stack(stacked), numbers, inside, canvas, side, trained
    )


def _keys(steps):
    """What each step computes, equal for steps that compute the same, and whether an ntk follows.

    None stands for what is computed with arrays, or by Python.
    """
    keys = []
    trained = False
    for step in steps:
        key, after = (step, trained) if isinstance(step, Swept) else _key(step.op, trained)
        keys.append((None if key is None else (trained, key), after))
        trained = after
    return keys


def _key(op, trained):
    one = jax.ShapeDtypeStruct((), jnp.float32)

    def pair(q1, q2, nngp, ntk):
        return op.pair(op.side(q1), op.side(q2), nngp, ntk, None)[:2]

    closed, out = jax.make_jaxpr(pair, return_shape=True)(one, one, one, one if trained else None)
    # Equal programs differ in the addresses of the functions in them.
    text = re.sub("0x[0-9a-f]+", "", str(closed))
    # What calls back to Python is no program of a GPU, and its text does not tell what is called.
    is_whole = not closed.consts and "callback" not in text
    return text if is_whole else None, out[1] is not None


def _with_sides(steps):
    one = jax.ShapeDtypeStruct((), jnp.float32)
    counts = {}
    for step in steps:
        if isinstance(step, Pointed):
            counts[step] = len(jax.eval_shape(step.op.side, one))
    return {step: count for step, count in counts.items() if count}


def _banded(taps: Taps, count: int, side: int) -> np.ndarray:
    """Matrices `[displacement, to, from]` of a sum over windows along one axis."""
    table = np.zeros((side, side, side), np.uint8)
    to = np.arange(count)
    for t, masks in enumerate(taps.masks[:, 0]):
        source = to + t - taps.before
        if taps.wrap:
            source = source % count
        inside = (0 <= source) & (source < count)
        # A window wider than a periodic image meets a position several times.
        table[:count, to[inside], source[inside]] += masks[:, inside]
    return table


def _who_meets(lanes, images):
    """Numbers of the images in each lane, `[groups * lanes]` each."""
    numbers = [jnp.arange(len(x), dtype=jnp.int32) for x in images]
    select = jax.vmap(
        lambda g: jnp.broadcast_arrays(lanes.first(numbers[0], g), lanes.second(numbers[1], g))
    )
    return [index.ravel() for index in select(jnp.arange(lanes.groups))]


def _stacked(images, plan, which):
    """Pixels and what steps need of variances, `[array, n, side, side]`; beyond the images zeros or their border."""
    sides = []
    for step in plan.with_sides:
        sides += step.op.beside(step.before[which])
    channels = jnp.transpose(images, (3, 1, 2, 0))
    arrays = [_squared(channel, plan.side, "constant") for channel in channels]
    # Copies of the border: what is computed beyond it is masked by a product, and must be finite.
    arrays += [_squared(side, plan.side, "edge") for side in sides]
    return jnp.transpose(jnp.stack(arrays), (0, 3, 1, 2))


def _squared(a, side, mode):
    return jnp.pad(a, [*((0, side - n) for n in a.shape[:2]), (0, 0)], mode=mode)


def _wrapped(a, plan):
    """The same arrays repeated cyclically: the part that starts at a displacement holds each position's partner."""
    height, width = plan.canvas
    rows = np.arange(height + plan.side) % height
    columns = np.arange(width + plan.side) % width
    return a[:, :, rows[:, None], columns[None, :]]


def _call(plan, channels, first, second, who, same, interpret):
    pairs = len(who[0])
    each = -(-math.prod(plan.canvas) // CHUNKS)
    tables = [jnp.asarray(plan.tables, jnp.bfloat16), jnp.asarray(plan.inside, first.dtype)]
    compiler_params = None
    if not interpret:
        from jax.experimental.pallas import triton

        compiler_params = triton.CompilerParams(num_warps=WARPS, num_stages=1)
    return pl.pallas_call(
        functools.partial(_kernel, plan, channels, each, same),
        grid=(pairs, CHUNKS),
        out_shape=jax.ShapeDtypeStruct((2, pairs, CHUNKS), first.dtype),
        interpret=interpret,
        compiler_params=compiler_params,
    )(*who, first, second, *tables)


def _kernel(plan, channels, each, same, who1, who2, first, second, tables, inside, out):
    pair = pl.program_id(0)
    chunk = pl.program_id(1)
    i = who1[pair]
    j = who2[pair]
    height, width = plan.canvas

    def add(step, total):
        at = chunk * each + step
        # the last chunk may go beyond the last displacement, and must not read there
        p = jnp.minimum(at // width, height - 1)
        q = at % width

        def read_first(n):
            return first[n, i]

        def read_second(n):
            return second[n, j, pl.ds(p, plan.side), pl.ds(q, plan.side)]

        rows = [tables[t, p] for t in range(len(plan.tables))]
        columns = [tables[t, q] for t in range(len(plan.tables))]
        planes = _through(plan, channels, read_first, read_second, rows, columns)
        # What is beyond the last displacement does not count, and the displacement zero may have exact values.
        wanted = (at < height * width) & (at >= int(same))
        mask = jnp.where(wanted, inside[0, p][:, None] * inside[1, q][None, :], 0)
        return tuple(
            old if a is None else old + jnp.sum(a * mask)
            for old, a in zip(total, planes, strict=True)
        )

    zero = jnp.zeros((), out.dtype)
    for k, value in enumerate(lax.fori_loop(0, each, add, (zero, zero))):
        out[k, pair, chunk] = value


def _through(plan, channels, read_first, read_second, rows, columns):
    """The planes `(nngp, ntk)` of one displacement after all steps."""

    def product(channel):
        return math.prod(read(channel) for read in (read_first, read_second))

    planes = (sum(map(product, range(channels))) / channels, None)
    done = channels  # arrays read so far: pixels come first, then what each step needs of variances
    for steps, times in plan.segments:
        needed = sum(plan.with_sides.get(step, 0) for step in steps)

        def segment(t, planes, steps=steps, done=done, needed=needed):
            n = done + t * needed
            for step in steps:
                if isinstance(step, Swept):
                    planes = tuple(
                        None if a is None else _swept(a, step, plan, rows, columns) for a in planes
                    )
                    continue
                count = plan.with_sides.get(step, 0)
                side1 = tuple(read_first(n + k) for k in range(count))
                side2 = tuple(read_second(n + k) for k in range(count))
                planes = step.op.pair(side1, side2, *planes, None)[:2]
                n = n + count
            return planes

        planes = segment(0, planes) if times == 1 else lax.fori_loop(0, times, segment, planes)
        done += times * needed
    return planes


def _swept(a, step, plan, rows, columns):
    """`rows a columns^T / size` with matrices of counts: 0, 1, or more where a periodic window goes around the image.

    Each product is exact; its half keeps the compiler from adding the three in the tensor cores,
    which truncate.
    """
    row_table, column_table = plan.numbers[step]
    down = sum(
        jnp.dot(rows[row_table], part, preferred_element_type=jnp.float32) / 2 for part in _parts(a)
    )
    # a columns^T: the second axis of both is summed over
    last_axes = (((1,), (1,)), ((), ()))
    across = sum(
        lax.dot_general(part, columns[column_table], last_axes, preferred_element_type=jnp.float32)
        / 2
        for part in _parts(down)
    )
    return across * (4 / math.prod(step.window.size))


def _parts(a):
    """Three bfloat16 arrays whose sum is `a`."""
    # 3 x 8 binary digits are the 24 of float32, and each remainder is exact.
    parts = []
    for _ in range(3):
        parts.append(a.astype(jnp.bfloat16))
        a = a - parts[-1].astype(a.dtype)
    return parts
