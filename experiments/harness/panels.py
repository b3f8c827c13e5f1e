"""Rows of log-log panels with fitted power laws, the figures of the theory experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from lazynet import plots

__all__ = ["Panel", "band", "draw", "finish", "figure"]


class Panel(NamedTuple):
    """Quantities `[x]` or `[seeds, x]` against x, with labels, and the range of the fits (all of x by default)."""

    title: str
    x: Sequence[float]
    quantities: Mapping[str, Any]
    xlabel: str
    ylabel: str
    fit_range: tuple[float, float] | None = None


def figure(panels: Sequence[Panel]) -> Figure:
    """The panels beside each other."""
    drawn = Figure(figsize=(4.5 * len(panels), 4.2), layout="constrained")
    for panel, ax in zip(panels, drawn.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(panel, ax)
    return drawn


def draw(panel: Panel, ax) -> None:
    """Draws one panel; a few abscissas are their own ticks."""
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


def finish(ax, title: str = "") -> None:
    """Gives axes a title, a pale grid and a legend without a frame."""
    ax.set_title(title, fontsize=11)
    ax.grid(True, color="0.88", linewidth=0.6)
    ax.legend(fontsize="small", frameon=False)
