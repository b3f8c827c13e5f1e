"""Gram matrices of any size, tile by tile: over devices and processes, into memory or into resumable files."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lazynet.records import Gram

__all__ = ["Store", "assemble", "open_store", "tiles"]

Tile = tuple[range, range]


class Store(NamedTuple):
    """Where tiles go.

    Attributes:
        gram: The matrices, in memory or mapped to files.
        done: One byte for each tile: whether it is finished.
    """

    gram: Gram
    done: np.ndarray


def tiles(n1: int, n2: int, side: int, *, symmetric: bool) -> list[Tile]:
    """Square tiles that cover `[n1, n2]`, or its upper triangle.

    Example:
        >>> tiles(3, 3, 2, symmetric=True)
        [(range(0, 2), range(0, 2)), (range(0, 2), range(2, 3)), (range(2, 3), range(2, 3))]
    """
    starts = [(i, j) for i in range(0, n1, side) for j in range(i if symmetric else 0, n2, side)]
    return [(range(i, min(i + side, n1)), range(j, min(j + side, n2))) for i, j in starts]


def assemble(
    compute: Callable[[Any, Tile], Gram], every: list[Tile], store: Store, *, symmetric: bool, progress: bool
) -> Gram:
    """Computes the tiles that are missing and puts them, and with `symmetric` their transposes, into the store.

    Each process takes every `jax.process_count()`-th tile, each of its devices one tile at a time.

    Args:
        compute: `compute(device, tile) -> Gram` on that device; it need not wait for the result.
        every: All tiles.
        store: Where the tiles go.
        symmetric: Whether a tile also gives its mirror image.
        progress: Whether to show a progress bar with the time left.
    """
    devices = jax.local_devices()
    queue: collections.deque[tuple[int, Gram]] = collections.deque()
    mine = range(jax.process_index(), len(every), jax.process_count())
    missing = [index for index in mine if not store.done[index]]
    with _bar(len(missing), progress) as advance:
        for turn, index in enumerate(missing):
            queue.append((index, compute(devices[turn % len(devices)], every[index])))
            if len(queue) > len(devices):
                _write(store, every, *queue.popleft(), symmetric)
                advance()
        while queue:
            _write(store, every, *queue.popleft(), symmetric)
            advance()
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("lazynet: all tiles are written")
    return store.gram


def open_store(
    folder: str | os.PathLike | None, shape: tuple[int, int], dtype: Any, count: int, identity: dict
) -> Store:
    """A store in memory, or one in a folder that a killed run left and that is continued.

    The folder holds `nngp.npy`, `ntk.npy`, `done.npy` and `manifest.json`. It appears complete or not at all, and a
    tile counts as done only after all of it was written, so a run may be killed at any moment.

    Args:
        folder: Path, or None for memory.
        shape: Of the matrices.
        dtype: Of the matrices.
        count: Number of tiles.
        identity: What the kernel depends on (digests of the network and the inputs, the tile).

    Raises:
        ValueError: If the folder belongs to another kernel, naming the entries that differ.
    """
    if folder is None:
        return Store(Gram(*(np.empty(shape, dtype) for _ in range(2))), np.zeros(count, np.uint8))
    folder = Path(folder)
    if not folder.exists():
        _create(folder, shape, dtype, count, identity)
    _check(folder, identity)
    nngp, ntk, done = (np.lib.format.open_memmap(folder / f"{name}.npy", mode="r+") for name in ("nngp", "ntk", "done"))
    return Store(Gram(nngp, ntk), done)


def _create(folder, shape, dtype, count, identity):
    """Makes the folder under another name and renames it: of several processes one succeeds."""
    made = folder.with_name(f"{folder.name}.{os.getpid()}.{jax.process_index()}.tmp")
    made.mkdir(parents=True)
    for name, size, kind in (("nngp", shape, dtype), ("ntk", shape, dtype), ("done", (count,), np.uint8)):
        np.lib.format.open_memmap(made / f"{name}.npy", mode="w+", dtype=kind, shape=size).flush()
    (made / "manifest.json").write_text(json.dumps(identity, indent=1))
    try:
        made.rename(folder)
    except OSError:
        shutil.rmtree(made)
        if not folder.exists():
            raise


def _check(folder, identity):
    try:
        found = json.loads((folder / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"store={str(folder)!r} is not a kernel store (no readable manifest.json): choose a new folder."
        ) from error
    differing = sorted(key for key in {*found, *identity} if found.get(key) != identity.get(key))
    if differing:
        raise ValueError(
            f"store={str(folder)!r} belongs to another kernel: {', '.join(differing)} differ; choose a new "
            "folder, or delete this one to start again."
        )


def _write(store, every, index, block, symmetric):
    rows, columns = every[index]
    for matrix, values in zip(store.gram, block, strict=True):
        values = np.asarray(values)[: len(rows), : len(columns)]
        matrix[rows.start : rows.stop, columns.start : columns.stop] = values
        if symmetric:
            matrix[columns.start : columns.stop, rows.start : rows.stop] = values.T
        _flush(matrix)
    store.done[index] = 1
    _flush(store.done)


def _flush(array):
    if isinstance(array, np.memmap):
        array.flush()


@contextlib.contextmanager
def _bar(total, progress) -> Iterator[Callable[[], None]]:
    if not progress:
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task("kernel tiles", total=total)
        yield lambda: bar.advance(task)
