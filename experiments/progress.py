"""Progress bars with the time left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    track,
)

__all__ = ["advancing", "bar", "over_devices"]


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
    from experiments.students import spread

    done = spread(compute, cells)
    shown = track(
        done, "trials", len(cells), console=console, transient=True, disable=not console.is_terminal
    )
    return dict(zip(cells, shown, strict=True))
