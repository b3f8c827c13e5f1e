"""Rows of log-log panels with fitted power laws, the figures of the theory experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Panel", "band", "draw", "save"]


class Panel(NamedTuple):
    """Quantities `[x]` or `[seeds, x]` against x, with labels, and the range of the fits (all of x by default)."""

    title: str
    x: Sequence[float]
    quantities: Mapping[str, Any]
    xlabel: str
    ylabel: str
    fit_range: tuple[float, float] | None = None


def save(panels: Sequence[Panel], path: Path) -> None:
    """Draws the panels beside each other into a file."""
    from matplotlib.figure import Figure

    from lazynet import plots

    figure = Figure(figsize=(4.5 * len(panels), 4.2), layout="constrained")
    for panel, ax in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(panel, ax)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)


def draw(panel: Panel, ax) -> None:
    """Draws one panel; a few abscissas are their own ticks."""
    from lazynet import plots

    plots.plot_power_law(
        panel.x,
        panel.quantities,
        fit_range=panel.fit_range,
        xlabel=panel.xlabel,
        ylabel=panel.ylabel,
        ax=ax,
    )
    ax.set_title(panel.title, fontsize=11)
    if len(panel.x) < 8:
        ax.set_xticks(panel.x, [f"{value:g}" for value in panel.x])
        ax.set_xticks([], minor=True)


def band(ax, x: Sequence[float], values, label: str) -> None:
    """Draws the mean of values `[trials, x]` with a band of one standard deviation."""
    mean = values.mean(axis=0)
    std = values.std(axis=0)
    (line,) = ax.plot(x, mean, "o-", ms=3, label=label)
    ax.fill_between(x, mean - std, mean + std, color=line.get_color(), alpha=0.2, lw=0)
