"""Figure of `cifar10_alpha_sweep`: accuracy and stability against alpha, the linearized model at the right."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lazynet import plots

__all__ = ["draw", "draw_epochs"]

ACCURACIES = {
    "train_accuracy": "train",
    "test_accuracy": "test",
    "gated_accuracy": "test, gates of $w_0$",
}
STABILITIES = {
    "stability": "ReLU gates",
    "pool_stability": "max-pool winners",
    "agreement": r"prediction of $\alpha = \infty$",
}


def draw(summary: dict, path: Path) -> None:
    """Two panels that share the scale alpha: what is learned, and what stays as it was."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, summary, ACCURACIES, "accuracy (%)")
    _panel(right, summary, STABILITIES, "unchanged on test images (%)")
    figure.suptitle(f"{summary['network']}: {summary['data']}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)


def draw_epochs(config, cells: dict[float, dict], path: Path) -> None:
    """Two panels, train and test accuracy against epochs, with a curve for every alpha."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for ax, part in zip(panels, ("train", "test"), strict=True):
        for style, (alpha, cell) in zip(
            plots.curve_styles(len(cells)), sorted(cells.items()), strict=True
        ):
            curve = cell["curve"]
            epochs = curve.step / (config.data.n_train // config.train.batch_size)
            name = r"$\infty$ (linearized)" if math.isinf(alpha) else f"{alpha:g}"
            accuracy = 100 * np.asarray(curve.metrics[f"{part}_accuracy"])
            ax.plot(epochs, accuracy, label=rf"$\alpha$ = {name}", **style)
        ax.set(xlabel="epochs", ylabel=f"{part} accuracy (%)")
        ax.grid(True, color="0.9", linewidth=0.6)
    panels[0].legend(fontsize="small", frameon=False)
    figure.suptitle(f"VGG-11, width {config.network.width:g}: {config.data.title}", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)


def _panel(ax, summary, quantities, ylabel):
    alphas = [float(key.split("=")[1]) for key in summary if key.startswith("precision/alpha=")]
    place = _places(alphas)
    for style, (name, label) in zip(
        plots.curve_styles(len(quantities)), quantities.items(), strict=True
    ):
        points = {
            a: summary[f"{name}/alpha={a:g}"]
            for a in sorted(alphas)
            if f"{name}/alpha={a:g}" in summary
        }
        finite = [a for a in points if math.isfinite(a)]
        style = style | {"markevery": None}
        ax.plot([place[a] for a in finite], [100 * points[a] for a in finite], label=label, **style)
        if math.inf in points:
            ax.plot(place[math.inf], 100 * points[math.inf], **style)
    ax.set(xscale="log", xlabel=r"scale $\alpha$", ylabel=ylabel)
    _name_scales(ax, place)
    ax.grid(True, color="0.9", linewidth=0.6)
    ax.legend(fontsize="small", frameon=False)


def _places(alphas):
    """Abscissas: infinity stands to the right of a gap."""
    finite = [a for a in alphas if math.isfinite(a)]
    return {a: a if math.isfinite(a) else 30 * max(finite, default=1.0) for a in alphas}


def _name_scales(ax, place):
    finite = [a for a in place if math.isfinite(a)] or [1.0]
    decades = 10.0 ** np.arange(
        math.floor(math.log10(min(finite))), math.floor(math.log10(max(finite))) + 1
    )
    names = [f"$10^{{{round(math.log10(decade))}}}$" for decade in decades]
    if math.inf in place:
        ax.axvline(
            place[math.inf] / 30**0.5, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0
        )
        decades = [*decades, place[math.inf]]
        names = [*names, "∞\n(linearized)"]
    ax.set_xticks(decades, names)
    ax.set_xticks([], minor=True)
    ax.set_xlim(min(place.values()) / 2, max(place.values()) * 3)
