"""Several runs together: what they were configured to do differently, and their numbers in one table and one figure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness import catalog, facts, store

__all__ = [
    "Run",
    "differences",
    "differing_fields",
    "draw",
    "figure_path",
    "load",
    "series",
    "show",
]

# Of `loss/width=8/alpha=1` the first axis: the curve `loss/alpha=1 against width` at 8.
POINT = re.compile(r"^(?P<before>.*?)(?P<name>[A-Za-z_]+)=(?P<value>[-+.0-9einf]+)(?P<after>/.*)?$")
PANELS = 6
_MISSING = object()


class Run(NamedTuple):
    """A finished run: its folder, configuration and summary."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]


def load(folders: Sequence[Path]) -> list[Run]:
    """Finished runs of one experiment.

    Raises:
        ValueError: If there are fewer than two, one is not finished, or they belong to different
            experiments.
    """
    for folder in folders:
        if not (folder / "DONE").exists():
            raise ValueError(
                f"{folder} is not the folder of a finished run (no file DONE): finish it, or leave it out."
            )
    if len({folder.resolve() for folder in folders}) < 2:
        raise ValueError(
            f"compare got {len(folders)} run(s), expected at least two different folders of finished runs."
        )
    runs = [
        Run(f, store.read_json(f / "config.json"), store.read_json(f / "summary.json"))
        for f in folders
    ]
    names = sorted({catalog.current(run.config["experiment"]) for run in runs})
    if len(names) > 1:
        raise ValueError(
            f"compare got runs of {', '.join(names)}: expected at least two of one experiment."
        )
    return runs


def differences(runs: Sequence[Run]) -> list[str]:
    """A label for each run: the fields in which the configurations differ."""
    fields = differing_fields(runs)
    labels = []
    for run in runs:
        config = _flat(run.config)
        values = [f"{field}={config.get(field)}" for field in fields]
        # Runs may have one configuration, on two machines for instance.
        labels.append(", ".join(values) or run.folder.name)
    return labels


def differing_fields(runs: Sequence[Run]) -> list[str]:
    """The fields in which the configurations differ."""
    configs = [_flat(run.config) for run in runs]
    # A field that some runs lack, as those of an earlier version, is a difference.
    fields = dict.fromkeys(field for config in configs for field in config)
    return [
        field
        for field in fields
        if any(config.get(field, _MISSING) != configs[0].get(field, _MISSING) for config in configs)
    ]


def series(summary: dict[str, Any]) -> dict[str, dict[float, float]]:
    """Curves of a flat summary: entries `quantity/x=value` as points of `quantity against x`, if there are several."""
    curves: dict[str, dict[float, float]] = {}
    for key, number in summary.items():
        match = POINT.match(key)
        if match and facts.is_measured(key, number):
            # Words of the letters e, i, n and f look like numbers to `POINT`.
            try:
                x = float(match["value"])
            except ValueError:
                continue
            name = f"{match['before'].rstrip('/')}{match['after'] or ''} against {match['name']}"
            curves.setdefault(name, {})[x] = float(number)
    return {name: points for name, points in curves.items() if len(points) > 1}


def show(runs: Sequence[Run], console) -> None:
    """Prints the numbers that all runs have, one column for each run."""
    from rich.table import Table

    table = Table(runs[0].config["experiment"], box=None)
    for label in differences(runs):
        table.add_column(label)
    for key in runs[0].summary:
        values = [run.summary.get(key) for run in runs]
        if all(facts.is_measured(key, value) for value in values):
            table.add_row(key, *(f"{value:.4g}" for value in values))
    console.print(table)


def figure_path(out: Path) -> Path:
    """The file of the figure: `out`, or in it if it is a folder.

    Raises:
        ValueError: If its ending is no format of figures.
    """
    from matplotlib.figure import Figure

    path = out.expanduser()
    path = path / "compare.png" if path.is_dir() else path
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in ("", *formats):
        raise ValueError(
            f"--out got {out}, expected a file that ends with .{', .'.join(sorted(formats))}."
        )
    return path


def draw(runs: Sequence[Run], path: Path) -> bool:
    """Draws the curves that all runs share, at most six; returns whether there were any."""
    from matplotlib.figure import Figure

    from lazynet import plots

    curves = [series(run.summary) for run in runs]
    shared = set.intersection(*(set(of_run) for of_run in curves))
    names = [name for name in curves[0] if name in shared and "_std" not in name][:PANELS]
    if not names:
        return False
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for name, ax in zip(names, axes, strict=False):
        quantity, _, x = name.partition(" against ")
        positive = True
        for label, own in zip(differences(runs), curves, strict=True):
            # The linearized network, at infinity, has no place on the axis.
            points = sorted((a, b) for a, b in own[name].items() if a != float("inf"))
            ax.plot(*zip(*points, strict=True), "o-", ms=3, label=label)
            positive = positive and min(a for a, _ in points) > 0
        ax.set(xlabel=x, ylabel=quantity, xscale="log" if positive else "linear")
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    axes[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)
    return True


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat
