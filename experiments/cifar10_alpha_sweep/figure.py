"""Figures of `cifar10_alpha_sweep`: accuracy and stability against alpha, the linearized model at the right."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from experiments.shared.training import curve_of
from lazynet import plots

__all__ = ["against_alpha", "against_epochs"]

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


def against_alpha(summary: dict) -> Figure:
    """Two panels that share the scale alpha: what is learned, and what stays as it was."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, summary, ACCURACIES, "accuracy (%)")
    _panel(right, summary, STABILITIES, "unchanged on test images (%)")
    figure.suptitle(f"{summary['network']}: {summary['data']}", fontsize=11)
    return figure


def against_epochs(config, arrays) -> Figure:
    """Two panels, train and test accuracy against epochs, with a curve for every alpha."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    steps_per_epoch = config.data.n_train // config.train.batch_size
    styles = plots.curve_styles(len(config.alphas))
    for ax, part in ((left, "train"), (right, "test")):
        for style, alpha in zip(styles, sorted(config.alphas), strict=True):
            curve = curve_of(arrays, f"alpha={alpha:g}")
            name = r"$\infty$ (linearized)" if math.isinf(alpha) else f"{alpha:g}"
            accuracy = 100 * np.asarray(curve.metrics[f"{part}_accuracy"])
            label = rf"$\alpha$ = {name}"
            ax.plot(curve.step / steps_per_epoch, accuracy, label=label, **style)
        ax.set(xlabel="epochs", ylabel=f"{part} accuracy (%)")
        ax.grid(True, color="0.9", linewidth=0.6)
    left.legend(fontsize="small", frameon=False)
    figure.suptitle(f"VGG-11, width {config.network.width:g}: {config.data.title}", fontsize=11)
    return figure


def _panel(ax, summary, quantities, ylabel):
    alphas = [float(key.split("=")[1]) for key in summary if key.startswith("precision/alpha=")]
    place = _places(alphas)
    styles = plots.curve_styles(len(quantities))
    for style, (name, label) in zip(styles, quantities.items(), strict=True):
        keys = {alpha: f"{name}/alpha={alpha:g}" for alpha in sorted(alphas)}
        points = {alpha: summary[key] for alpha, key in keys.items() if key in summary}
        finite = [a for a in points if math.isfinite(a)]
        # Curves have a marker at every point here, since there are few.
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
    first = math.floor(math.log10(min(finite)))
    last = math.floor(math.log10(max(finite)))
    decades = 10.0 ** np.arange(first, last + 1)
    names = [f"$10^{{{round(math.log10(decade))}}}$" for decade in decades]
    if math.inf in place:
        # In the middle, on a logarithmic axis, of the factor 30 that `_places` leaves.
        gap = place[math.inf] / 30**0.5
        ax.axvline(gap, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        decades = [*decades, place[math.inf]]
        names = [*names, "∞\n(linearized)"]
    ax.set_xticks(decades, names)
    ax.set_xticks([], minor=True)
    ax.set_xlim(min(place.values()) / 2, max(place.values()) * 3)
