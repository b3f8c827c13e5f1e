"""Progress bars with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    track,
)

__all__ = ["advancing", "bar", "over_devices", "spread"]


def bar(console, unit: str, width: int = 20) -> Progress:
    """A bar whose description takes `width` columns, counting in units."""
    columns = (
        TextColumn(f"{{task.description:>{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
    )
    return Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=2)


def advancing(progress: Progress, task: TaskID, done: int) -> Callable[[int], None]:
    """A function of a step that shows `done + step` as completed."""
    return lambda step: progress.update(task, completed=done + step)


def over_devices(compute: Callable[[Any], Any], cells: Sequence[Any], console) -> dict[Any, Any]:
    """`{cell: compute(cell)}`, as many at a time as there are devices, with a bar on a terminal."""
    done = spread(compute, cells)
    shown = track(
        done, "trials", len(cells), console=console, transient=True, disable=not console.is_terminal
    )
    return dict(zip(cells, shown, strict=True))


def spread(compute: Callable[[Any], Any], cells: Iterable[Any]) -> Iterator[Any]:
    """`compute(cell)` for every cell, as many at a time as there are devices, in the order of the cells."""
    devices = jax.local_devices()

    # Threads, not processes: XLA computes without Python's lock, and compiled programs are shared.
    def on(turn_cell):
        turn, cell = turn_cell
        with jax.default_device(devices[turn % len(devices)]):
            return compute(cell)

    pool = ThreadPoolExecutor(len(devices))
    try:
        yield from pool.map(on, enumerate(cells))
    # At once also after Ctrl-C, which main() then says before it waits for what is running.
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
