"""The numbers of a run as one tidy table, a row a number, as data frames want them.

    python -m experiments compare RUN RUN --csv > table.csv
    pandas.read_csv("table.csv")

Rows of curves have a step and a time; rows of the summary, which are numbers of the end, have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness import facts
from experiments.harness.running import MEASURED
from experiments.harness.store import load_arrays, read_json

__all__ = ["Row", "curves", "rows"]

FORMERLY = "trajectory.npz"
"""The file in which earlier versions kept the curves of a run."""


class Row(NamedTuple):
    """A number: where on the axes it stands, what it is, its value, and the folder of its run."""

    alpha: str | None
    seed: str | None
    step: int | None
    time: float | None
    metric: str
    value: float
    run: str


def rows(folder: Path) -> Iterator[Row]:
    """Every number of a finished run: of its curves, then of its summary."""
    for curve, columns in curves(folder).items():
        steps = columns.pop("step")
        times = columns.pop("time")
        for metric, values in columns.items():
            alpha, seed, name = _placed(f"{metric}/{curve}")
            for step, time, value in zip(steps, times, values, strict=True):
                yield Row(alpha, seed, step, time, name, value, folder.name)
    for key, value in read_json(folder / "summary.json").items():
        if facts.is_measured(key, value):
            alpha, seed, name = _placed(key)
            yield Row(alpha, seed, None, None, name, value, folder.name)


def curves(folder: Path) -> dict[str, dict[str, Sequence[Any]]]:
    """The curves of a finished run by name, such as "seed=0/alpha=10", each with step, time and metrics."""
    # The present name first: of both files it is the one that is read.
    paths = [folder / name for name in (MEASURED, FORMERLY) if (folder / name).exists()]
    found: dict[str, dict[str, Sequence[Any]]] = {}
    for key, values in load_arrays(paths[0]).items() if paths else ():
        curve, _, column = key.partition("/curve/")
        if column and column != "diverged_at":
            found.setdefault(curve, {})[column.removeprefix("metrics/")] = values.tolist()
    return found


def _placed(key: str) -> tuple[str | None, str | None, str]:
    """Alpha and seed of a key such as "test_accuracy/alpha=10", and what is left of it."""
    parts = key.split("/")
    axes = dict(part.split("=", 1) for part in parts if part.startswith(("alpha=", "seed=")))
    rest = [part for part in parts if part.partition("=")[0] not in axes]
    return axes.get("alpha"), axes.get("seed"), "/".join(rest)
