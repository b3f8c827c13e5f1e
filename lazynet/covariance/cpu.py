"""All layers of a displacement plane in the cache of a processor: one compiled program, pairs of images side by side.

`planes` leaves the loops to XLA, which writes a plane to memory and reads it back at each layer, in
lanes that are the images of one set. Here lanes are pairs of images, any pairs, a vector register of
them at a time; a few displacements are taken through all layers together, so that their planes and
what the images bring along to a layer stay in the second level of the cache; and planes shrink with
the displacement, since no position beyond an image is computed.

The program is written by `machine` and compiled by LLVM, in about a tenth of a second, when llvmlite
is installed: `pip install lazynet-jax[cpu]`. Without it `planes` computes the same.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from lazynet.covariance.machine import ITEM, Kind, module
from lazynet.covariance.plans import Plan

__all__ = ["available", "reserved", "sum_over_pairs"]

REGISTER = 64
"""Bytes of a vector, and the step to which arrays of vectors are aligned; smaller registers take several."""

CACHED = 2**20
"""Bytes of planes that are taken through the layers together, half of a second level of the cache."""

PARTS = 8
"""Into which the planes of a block are divided, to be shared by threads; sums do not depend on how many there are."""

SMALL = 60_000
"""Vectors that are taken through a pass in about the time in which threads are asked and answer, a millisecond."""

KEPT = 64
"""Programs that stay in memory."""

WASTE = {True: 3.0, False: 1.1}
"""How many more lanes than there are pairs may be filled where that spares gathering the arrays of the first images:
for equal positions alone, and for all displacements, beside which gathering costs little."""

OLDEST = 0, 45
"""Version of llvmlite."""

SWITCH = "LAZYNET_COMPILED_PLANES"
"""Environment variable that turns the program off where it is 0."""


def available() -> bool:
    """Whether kernels of images on this machine are computed by the program.

    Example:
        >>> import jax
        >>> jax.default_backend() == "cpu" or not available()
        True
    """
    wanted = os.environ.get(SWITCH, "1") != "0"
    return wanted and jax.default_backend() == "cpu" and _installed()


def reserved(plan: Plan) -> int:
    """Bytes that the program takes on all cores beside its arguments."""
    stores = {stage.sink for stage in plan.stages if stage.sink is not None}
    stored = sum(store.size for store in stores)
    return _cores() * ((2 * plan.numbers + stored) * REGISTER + 2 * CACHED)


def sum_over_pairs(
    plan: Plan, first: np.ndarray, second: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """`sum_{p, p'} S[p, p']` over the displacements of a plan, `[2, pairs]` for the nngp and the ntk, in float64.

    Args:
        plan: From `plans.planned`.
        first: What the images of the first set bring along, `[numbers, n1]`.
        second: The same for the second set.
        rows: Images of the first set in each pair.
        columns: Those of the second set.
    """
    lanes = REGISTER // plan.dtype.itemsize
    images = first.shape[1]
    # Pairs (block of second images, first image) that occur.
    meeting = np.unique(columns // lanes * images + rows)
    filled = np.stack(np.divmod(meeting, images))
    with ThreadPoolExecutor(_cores()) as threads:
        if lanes * filled.shape[1] > WASTE[plan.zero] * len(rows):
            return _by_pairs(threads, plan, first, second, rows, columns, lanes)
        return _by_rows(threads, plan, first, second, filled, lanes)[:, rows, columns]


def _by_pairs(threads, plan, first, second, rows, columns, lanes):
    """Lanes are any pairs: both sides are gathered."""
    count = len(rows)
    run = _compiled(plan.kinds, plan.dtype, lanes, shared=False)
    blocks = [
        np.minimum(np.arange(start, start + lanes), count - 1) for start in range(0, count, lanes)
    ]

    def sides(block):
        return _gathered(first, rows[block]), _gathered(second, columns[block])

    items = [_items(stage, np.zeros(1, int), 0) for stage in plan.stages]
    # Threads take whole blocks of pairs where their planes cannot be shared out: stages wait for
    # each other, or there are fewer planes than parts.
    if len(plan.stages) > 1 or len(items[0].table) < PARTS:
        spread = map if _is_small(plan, len(blocks)) else threads.map
        sums = spread(lambda block: _through_stages(run, plan, items, *sides(block)), blocks)
    else:
        sums = [_shared_out(threads, run, plan, items[0], *sides(block), 1) for block in blocks]
    by_block = np.array([*sums]).reshape(-1, 2, lanes)
    by_pair = np.moveaxis(by_block, 1, 0).reshape(2, -1)
    return by_pair[:, :count]


def _by_rows(threads, plan, first, second, filled, lanes):
    """Lanes are images of the second set, and the first image is the same in all of them: `[2, n1, n2]`.

    Of each block of second images `filled` has the first images that any of them meets.
    """
    numbers, count = first.shape
    run = _compiled(plan.kinds, plan.dtype, lanes, shared=True)
    # One image after the other: the code takes what it needs from where an image starts.
    images = np.ascontiguousarray(first.T)
    sums = []
    for number in range(-(-second.shape[1] // lanes)):
        block = np.minimum(number * lanes + np.arange(lanes), second.shape[1] - 1)
        side = _gathered(second, block)
        meeting = filled[1, filled[0] == number]
        if len(plan.stages) == 1:
            items = _items(plan.stages[0], meeting, numbers)
            sums.append(_shared_out(threads, run, plan, items, images, side, count))
        else:
            sums.append(_one_by_one(threads, run, plan, images, meeting, side))
    return np.concatenate(sums, axis=-1).swapaxes(0, 1)


def _one_by_one(threads, run, plan, images, meeting, side):
    """Sums `[n1, 2, lanes]` of some of the first images, each of which goes through all stages by itself."""
    items = [_items(stage, np.zeros(1, int), 0) for stage in plan.stages]
    sums = np.zeros((len(images), 2, side.shape[1]))
    spread = map if _is_small(plan, len(meeting)) else threads.map
    through = spread(lambda image: _through_stages(run, plan, items, images[image], side), meeting)
    for image, found in zip(meeting, through, strict=True):
        sums[image] = found[0]
    return sums


class _Items(NamedTuple):
    """Planes to be taken through the passes of a stage, `[planes, ITEM]`, and how often each of them counts."""

    table: np.ndarray
    weights: np.ndarray

    def part(self, number: int) -> _Items:
        """One of the parts."""
        bounds = np.linspace(0, len(self.table), PARTS + 1).astype(int)
        chosen = slice(bounds[number], bounds[number + 1])
        return _Items(self.table[chosen], self.weights[chosen])


def _items(stage, images, numbers):
    """All displacements of some first images."""
    count = len(stage.displacements)
    table = np.zeros((len(images), count, len(ITEM)), np.int64)
    table[..., :2] = stage.displacements
    table[..., 2] = numbers * images[:, None]
    table[..., 3] = images[:, None]
    return _Items(table.reshape(-1, len(ITEM)), np.tile(stage.weights, len(images)))


def _shared_out(threads: Executor, run, plan, items, first, second, outputs):
    """Sums `[outputs, 2, lanes]` of the items of the only stage, of which threads take parts."""
    (stage,) = plan.stages

    def through(part):
        return _through(run, plan, stage, part, first, second, outputs, {})

    blocks = len(items.table) // max(len(stage.displacements), 1)
    if _is_small(plan, blocks):
        return through(items)
    parts = [items.part(number) for number in range(PARTS)]
    # As many parts on any machine, so that sums are rounded alike.
    return np.sum([*threads.map(through, parts)], axis=0)


def _is_small(plan: Plan, blocks: int) -> bool:
    """Whether threads would take longer to ask than blocks of pairs to be computed."""
    vectors = sum(
        len(stage.displacements) * len(stage.table) * math.prod(stage.shape)
        for stage in plan.stages
    )
    return blocks * vectors < SMALL


def _through_stages(run, plan, items, first, second):
    """Sums `[1, 2, lanes]` after all stages, with the sums of pools between them."""
    lanes = second.shape[1]
    stores = {
        stage.sink: _aligned((stage.sink.size, lanes), plan.dtype)
        for stage in plan.stages
        if stage.sink is not None
    }
    sums = [
        _through(run, plan, stage, planes, first, second, 1, stores)
        for stage, planes in zip(plan.stages, items, strict=True)
    ]
    return sums[-1]


def _through(run, plan, stage, items, first, second, outputs, stores):
    """Sums `[outputs, 2, lanes]` of items, if they are not added to those of a pool."""
    lanes = second.shape[1]
    sums = _aligned((outputs, 2, lanes), np.dtype(np.float64))
    if not len(items.table):
        return sums
    (height, width), (tall, wide) = stage.shape, stage.reach
    pitch = width + 2 * (wide - 1)
    # rows of planes, and those of sums over windows and a row of zeros
    size = max(height, max(tall, stage.pooled) + 1) * pitch
    bytes_of_planes = stage.registers * 2 * size * REGISTER
    together = int(np.clip(CACHED // bytes_of_planes, 1, len(items.table)))
    row_buffers = _aligned((2 * size + wide, lanes), plan.dtype)
    planes = _aligned((together * stage.registers * 2 * size + wide, lanes), plan.dtype)
    run(
        _address(stage.table),
        len(stage.table),
        _address(plan.constants),
        _address(items.table),
        _address(items.weights),
        len(items.table),
        together,
        _address(first),
        _address(second),
        _address(
            row_buffers[pitch + wide - 1 :]
        ),  # after a row of zeros, and columns beside the first
        _address(planes[wide - 1 :]),
        2 * stage.registers,
        pitch,
        size,
        *_exchanged(stores, stage.source),
        *_exchanged(stores, stage.sink),
        _address(sums),
    )
    return sums


def _exchanged(stores, store):
    """The planes between two stages, and where they are."""
    return (0, 0) if store is None else (_address(stores[store]), _address(store.places))


def _gathered(a, index):
    """The images of the lanes, `[numbers, lanes]`."""
    lanes = _aligned((len(a), len(index)), a.dtype)
    return np.take(a, index, axis=1, out=lanes, mode="clip")


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Zeros that start where vectors may."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + REGISTER, np.uint8)
    start = -memory.ctypes.data % REGISTER
    return memory[start : start + size].view(dtype).reshape(shape)


def _address(a: np.ndarray) -> int:
    return a.ctypes.data


@functools.cache
def _installed():
    """Whether there is a compiler that reads the text of `machine`, in which pointers have no types."""
    if importlib.util.find_spec("llvmlite") is None:
        return False
    found = importlib.metadata.version("llvmlite").split(".")[:2]
    return tuple(map(int, found)) >= OLDEST


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor(llvm):
    """Name and features of the processor."""
    features = llvm.get_host_cpu_features().flatten()
    # LLVM halves vectors on processors that once slowed down for whole ones
    whole = ",-prefer-256-bit" if "+avx512f" in features else ""
    return llvm.get_host_cpu_name(), features + whole


_compiling = threading.Lock()


@functools.lru_cache(KEPT)
def _compiled(kinds: tuple[Kind, ...], dtype: np.dtype, lanes: int, *, shared: bool):
    """The function `run` of a module, as machine code for this processor.

    Programs are known by what they are written from: to write one takes longer than hundreds of small kernels.
    """
    import llvmlite.binding as llvm

    text = module(kinds, dtype, lanes, shared=shared)

    with _compiling:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        name, features = _processor(llvm)
        target = llvm.Target.from_default_triple()
        machine = target.create_target_machine(cpu=name, features=features, opt=3)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
        engine.finalize_object()
        address = engine.get_function_address("run")
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    arguments = (
        [pointer, integer, pointer, pointer, pointer, integer, integer]
        + [pointer] * 4
        + [integer] * 3
        + [pointer] * 5
    )
    # While it runs ctypes lets go of the interpreter's lock, and threads run side by side.
    run = ctypes.CFUNCTYPE(None, *arguments)(address)
    run.engine = engine  # pyright: ignore[reportAttributeAccessIssue]  # which owns the code
    return run
