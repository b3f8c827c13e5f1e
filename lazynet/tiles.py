"""Matrices of any size, tile by tile: over devices and processes, into memory or into resumable files."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import mmap
import os
import re
import tokenize
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from lazynet.files import given_path, naming, remove_dead, unfinished

__all__ = [
    "Store",
    "assemble",
    "checked_when_read",
    "digest",
    "open_store",
    "reserved",
    "tile_advice",
    "tiles",
]

BROKEN_HEADER = ValueError, TypeError, SyntaxError, KeyError, tokenize.TokenError
"""What NumPy raises where the header of a `.npy` file is damaged."""

ATTEMPTS = 10
"""How often a folder is made again that another host took for that of a dead process."""

Tile = tuple[range, range]
Mirror = Mapping[str, tuple[int, ...]]


class Store(NamedTuple):
    """Where tiles go.

    Attributes:
        matrices: The named matrices `[n1, n2, ...]`, or packed ones `[tiles, side, width, ...]`, in
            memory or mapped to files, which are read-only.
        done: For each tile the checksum of what was written, 0 for a tile that is missing.
        packed: Whether every tile is one piece, one after the other, filled up with zeros.

    Example:
        >>> Store({"ntk": np.zeros((4, 4))}, np.zeros(3, np.uint32)).matrices["ntk"].shape
        (4, 4)
    """

    matrices: Mapping[str, np.ndarray]
    done: np.ndarray
    packed: bool = False


def tiles(n1: int, n2: int, side: int, *, symmetric: bool, width: int | None = None) -> list[Tile]:
    """Tiles of `side` rows and `width` columns (`side` by default) that cover `[n1, n2]`, or its upper triangle.

    Example:
        >>> tiles(3, 3, 2, symmetric=True)
        [(range(0, 2), range(0, 2)), (range(0, 2), range(2, 3)), (range(2, 3), range(2, 3))]
    """
    width = width or side
    starts = [(i, j) for i in range(0, n1, side) for j in range(i if symmetric else 0, n2, width)]
    return [(range(i, min(i + side, n1)), range(j, min(j + width, n2))) for i, j in starts]


def digest(*arrays: Any) -> str:
    """A name for the shapes, dtypes and values of arrays, for the manifest of a store.

    Example:
        >>> digest(np.zeros(2)) == digest(np.zeros(2)) != digest(np.zeros(2, np.float32))
        True
    """
    name = hashlib.sha256()
    for array in map(np.asarray, arrays):
        name.update(f"{array.shape} {array.dtype}".encode())
        name.update(_bytes(array))
    return name.hexdigest()


def reserved(compiled: Any) -> int:
    """Bytes that a compiled program takes beside its arguments, by the compiler's account; 0 where it gives none.

    Example:
        >>> import jax
        >>> reserved(jax.jit(lambda x: x + 1).lower(1.0).compile()) < 1000
        True
    """
    report = compiled.memory_analysis()
    return 0 if report is None else report.temp_size_in_bytes + report.output_size_in_bytes


def assemble(
    compute: Callable[[Any, Tile], Mapping[str, Any]],
    every: list[Tile],
    store: Store,
    *,
    mirror: Mirror | None,
    progress: bool = False,
    check: Callable[[Mapping[str, Any]], None] = lambda blocks: None,
) -> Mapping[str, np.ndarray]:
    """Computes the tiles that are missing and puts them, and with `mirror` their mirror images, into the store.

    Tiles that are found are compared with their checksums after the missing ones are computed, so
    that a run that was killed goes on at once, and computed again where they differ. Packed ones
    are not read here: `checked_when_read` compares each of them when it is first read.

    With files, each process takes every `jax.process_count()`-th tile; in memory, which processes
    do not share, each takes all. Each device of a process computes one tile at a time while the
    last one is written; several devices have a thread each, without which those of a CPU would wait
    for each other.

    Args:
        compute: `compute(device, tile) -> {name: block}` on that device; it need not wait for the
            result. A block may be larger than its tile, whose first rows and columns then count.
        every: All tiles.
        store: Where the tiles go.
        mirror: For a symmetric matrix, the order of axes that turns a block into its mirror image,
            for each name.
        progress: Whether to show a progress bar with the time left.
        check: Called with the blocks of each tile computed, raises an error for those that are not
            to be written.

    Returns:
        The matrices of the store; maps of files are read-only, since what is written into them is
        in the file.

    Example:
        >>> store = open_store(None, {"k": (3, 3)}, np.float64, count=3, identity={})
        >>> compute = lambda device, tile: {"k": np.add.outer(*map(np.asarray, tile)) * 1.0}
        >>> assemble(compute, tiles(3, 3, 2, symmetric=True), store, mirror={"k": (1, 0)})["k"][0].tolist()
        [0.0, 1.0, 2.0]
    """
    devices = jax.local_devices()
    shared = any(isinstance(matrix, np.memmap) for matrix in store.matrices.values())
    first, turns = (jax.process_index(), jax.process_count()) if shared else (0, 1)
    own = range(first, len(every), turns)
    found = [index for index in own if store.done[index]]
    missing = [index for index in own if not store.done[index]]
    side = max(len(rows) for rows, _ in every)

    def compute_tile(device, index):
        return compute(device, every[index])

    def fill(indices):
        # A finished store may be one that this process must not write.
        target = _for_writing(store) if indices else store
        with tile_advice(side):
            for index, blocks in _dealt(compute_tile, indices, devices):
                check(blocks)
                _write(target, every, index, blocks, mirror)
                advance()

    with _bar(len(own), len(found), progress) as advance:
        # What is missing at once; what an earlier run left is compared with its checksums afterwards.
        fill(missing)
        if not store.packed:
            fill([index for index in found if not _intact(store, every, index, mirror, check)])
    if turns > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("lazynet: all tiles are written")
    return store.matrices


@contextlib.contextmanager
def tile_advice(side: int) -> Iterator[None]:
    """Turns what XLA says of a device without memory into the tile that has a chance.

    Results must be waited for in the block: XLA computes later, and ends the process if a result
    that failed is read.

    Args:
        side: Of the tiles computed in the block.

    Raises:
        MemoryError: A tile did not fit.

    Example:
        >>> with tile_advice(64):
        ...     raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.")
        Traceback (most recent call last):
        ...
        MemoryError: a tile of side 64 does not fit the memory of the device (... 4096 bytes.): pass tile=32, which ...
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)):
            raise
        reason = str(error).splitlines()[0]
        way_out = "use smaller inputs"
        if side > 1:
            way_out = f"pass tile={side // 2}, which takes a quarter of it"
        raise MemoryError(
            f"a tile of side {side} does not fit the memory of the device ({reason}): {way_out}."
        ) from error


def _dealt(compute, indices, devices) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Results in the order of the indices, the next one of each device under way while the last is used."""
    queue: collections.deque[tuple[int, Callable[[], Mapping[str, Any]]]] = collections.deque()
    with contextlib.ExitStack() as stack:
        threads = []
        if len(devices) > 1:
            threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in devices]

        def start(place, index):
            if threads:
                return threads[place].submit(_finished, compute, devices[place], index).result
            blocks = compute(devices[place], index)
            return lambda: jax.block_until_ready(blocks)

        for turn, index in enumerate(indices):
            queue.append((index, start(turn % len(devices), index)))
            # One tile more than devices: each has its next one under way while a result is written.
            if len(queue) > len(devices):
                index, result = queue.popleft()
                yield index, result()
        for index, result in queue:
            yield index, result()


def _finished(compute, device, index):
    return jax.block_until_ready(compute(device, index))


def open_store(
    folder: str | os.PathLike | None,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Any,
    count: int,
    identity: dict,
    *,
    packed: bool = False,
) -> Store:
    """A store in memory, or one in a folder that a killed run left and that is continued.

    The folder holds `<name>.npy` for each matrix, `done.npy` and `manifest.json`. It appears
    complete or not at all, and a tile counts as done only after all of it was written, so a run may
    be killed at any moment. A tile whose values do not have the checksum they were written with is
    computed again. What a process that was killed while it made the folder left beside it is
    removed. A finished store needs no permission to write.

    Args:
        folder: Path, or None for memory.
        shapes: Of each matrix.
        dtype: Of the matrices.
        count: Number of tiles.
        identity: What the kernel depends on (digests of the network and the inputs, the tile).
        packed: Whether the shapes are those of packed matrices.

    Raises:
        TypeError: If `.npy` files have no such dtype.
        ValueError: If the folder belongs to another kernel, naming the entries that differ, or
            lacks a file.

    Example:
        >>> open_store(None, {"ntk": (2, 2)}, np.float32, count=1, identity={}).done.tolist()
        [0]
    """
    if folder is None:
        matrices = {name: np.empty(shape, dtype) for name, shape in shapes.items()}
        return Store(matrices, np.zeros(count, np.uint32), packed)
    folder = given_path("store", folder)
    if np.dtype(dtype).kind not in "biufc":
        raise TypeError(
            f"a store of {np.dtype(dtype)} was asked for, which .npy files do not know, expected a dtype of NumPy: "
            "convert inputs and parameters, as in x.astype(jnp.float32)."
        )
    remove_dead(folder)
    if not folder.exists():
        files = {name: (shape, dtype) for name, shape in shapes.items()}
        _create(folder, {**files, "done": ((count,), np.uint32)}, json.dumps(identity, indent=1))
    _check(folder, identity)
    matrices = {
        name: _mapped(folder / f"{name}.npy", shape, dtype) for name, shape in shapes.items()
    }
    return Store(matrices, _mapped(folder / "done.npy", (count,), np.uint32), packed)


def checked_when_read(store: Store) -> Callable[[int], None]:
    """A function that compares a packed tile with its checksum when it is first called with its number.

    A damaged tile counts as missing from then on, as far as this process may write.

    Args:
        store: With packed matrices, all of whose tiles are there.

    Raises:
        ValueError: By the function, if the tile is damaged.

    Example:
        >>> store = open_store(None, {"k": (1, 2, 2)}, np.float64, count=1, identity={}, packed=True)
        >>> _ = assemble(lambda *_: {"k": np.ones((2, 2))}, [(range(2), range(2))], store, mirror=None)
        >>> checked_when_read(store)(0)
        >>> store.matrices["k"][0, 1, 1] = 2.0
        >>> checked_when_read(store)(0)
        Traceback (most recent call last):
        ...
        ValueError: tile 0 of a store in memory is damaged, its values are not those that were written: ...
    """
    known = np.zeros(len(store.done), bool)

    def check(index: int) -> None:
        if known[index]:
            return
        if not _has_checksum(store, index, _packed_checksum(store, index)):
            with contextlib.suppress(OSError):
                _for_writing(store).done[index] = 0
            place = getattr(store.done, "filename", None)
            folder = "a store in memory" if place is None else repr(str(os.path.dirname(place)))
            raise ValueError(
                f"tile {index} of {folder} is damaged, its values are not those that were written: ask for the kernel "
                "with the same store again, which computes this tile again."
            )
        known[index] = True

    return check


def _create(folder, files, manifest):
    """Makes the folder under another name and renames it: of several threads and processes one succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        try:
            with unfinished(folder) as made:
                for name, (shape, dtype) in files.items():
                    with naming(folder / f"{name}.npy"):
                        _allocate(made / f"{name}.npy", shape, dtype)
                (made / "manifest.json").write_text(manifest)
                made.rename(folder)
        except OSError as error:
            taken_for_dead = isinstance(error, FileNotFoundError) and attempt + 1 < ATTEMPTS
            # Renaming fails if another process was first, whose folder is then used.
            if not (folder.exists() or taken_for_dead):
                raise
        if folder.exists():
            return


def _allocate(path, shape, dtype):
    """A file of zeros that has its space on the disk: to write to one without on a full disk would end the process."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _check(folder, identity):
    try:
        found = dict(json.loads((folder / "manifest.json").read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"store={str(folder)!r} is not a kernel store (no readable manifest.json): choose a new folder."
        ) from error
    differing = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
    if differing:
        raise ValueError(
            f"store={str(folder)!r} belongs to another kernel: {', '.join(differing)} differ; choose a new "
            "folder, or delete this one to start again."
        )


def _mapped(path, shape, dtype):
    try:
        with naming(path):
            array = np.lib.format.open_memmap(path, mode="r")
    except (FileNotFoundError, *BROKEN_HEADER) as error:
        raise ValueError(
            f"{str(path)!r} is missing, damaged or cut off ({error}): delete its folder to start again."
        ) from error
    if (array.shape, array.dtype, array.flags.c_contiguous) != (shape, np.dtype(dtype), True):
        raise ValueError(
            f"{str(path)!r} has shape {array.shape} and dtype {array.dtype}, expected {shape} and {np.dtype(dtype)}: "
            "delete its folder to start again."
        )
    return array


def _for_writing(store):
    """The same matrices, mapped for writing where they are files; those that users get stay read-only."""
    if not isinstance(store.done, np.memmap):
        return store
    matrices = {name: _writable(matrix) for name, matrix in store.matrices.items()}
    return Store(matrices, _writable(store.done), store.packed)


def _writable(matrix):
    with naming(matrix.filename):
        return np.lib.format.open_memmap(matrix.filename, mode="r+")


def _write(store, every, index, blocks, mirror):
    rows, columns = every[index]
    for name, matrix in store.matrices.items():
        values = np.asarray(blocks[name])[: len(rows), : len(columns)]
        if store.packed:
            matrix[index, : len(rows), : len(columns)] = values
            _flush(matrix, range(index, index + 1))
            continue
        matrix[rows.start : rows.stop, columns.start : columns.stop] = values
        _flush(matrix, rows)
        if mirror is not None:
            mirrored = values.transpose(mirror[name])
            matrix[columns.start : columns.stop, rows.start : rows.stop] = mirrored
            _flush(matrix, columns)
    # Last, so that a tile counts once all of its values are on the disk.
    store.done[index] = _checksum(store, every, index, mirror)
    _flush(store.done, range(index, index + 1))


def _intact(store, every, index, mirror, check):
    """Whether a tile found has the values that were written, which are checked as those computed are."""
    if not _has_checksum(store, index, _checksum(store, every, index, mirror)):
        return False
    rows, columns = every[index]
    part = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
    check({name: matrix[part] for name, matrix in store.matrices.items()})
    return True


def _has_checksum(store, index, checksum):
    return store.done[index] != 0 and store.done[index] == checksum


def _checksum(store, every, index, mirror):
    """A number other than 0 that depends on every value of a tile and of its mirror image."""
    if store.packed:
        return _packed_checksum(store, index)
    value = 0
    rows, columns = every[index]
    parts = [(rows, columns)]
    if mirror is not None:
        parts.append((columns, rows))
    for rows, columns in parts:
        for matrix in store.matrices.values():
            block = matrix[rows.start : rows.stop, columns.start : columns.stop]
            # Goes on from the checksum of the parts before.
            value = zlib.crc32(_bytes(block), value)
    # 0 stands for a missing tile.
    return value or 1


def _packed_checksum(store, index):
    value = 0
    for matrix in store.matrices.values():
        value = zlib.crc32(_bytes(matrix[index]), value)
    return value or 1


def _bytes(array):
    """The bytes of an array in its order of rows, without a copy where they are in that order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _flush(array, rows):
    """Brings the rows of a mapped file to the disk, and the pages of the file that they begin and end in."""
    if not isinstance(array, np.memmap):
        return
    # NumPy maps a file from a multiple of the granularity on, and flushing begins at a page.
    start = array.offset % mmap.ALLOCATIONGRANULARITY + rows.start * array.strides[0]
    stop = start + len(rows) * array.strides[0]
    start -= start % mmap.PAGESIZE
    array.base.flush(start, min(stop, len(array.base)) - start)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue, reportOptionalMemberAccess]


@contextlib.contextmanager
def _bar(total, found, progress) -> Iterator[Callable[[], None]]:
    if not progress:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("kernel", BarColumn(), MofNCompleteColumn(), "tiles", TimeRemainingColumn())
    with Progress(*columns, refresh_per_second=2, speed_estimate_period=300) as bar:
        task = bar.add_task("kernel", total=total, completed=found)
        yield lambda: bar.advance(task)
