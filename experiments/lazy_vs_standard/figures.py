"""Figures of `lazy_vs_standard`: training curves, laziness against alpha, and stability of the gates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lazynet import plots

__all__ = ["draw"]

RATES = {
    "param_drift": "weight drift",
    "ntk_change": "NTK change",
    "linearization_gap": "gap to linearized",
}


def draw(config, cells: dict, kernel, summary: dict, folder: Path) -> None:
    """Writes all figures into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plots.save(_curves(config, cells, kernel, summary), folder / "training_curves.png")
    if any(summary[f"slope/{name}"] is not None for name in RATES):
        plots.save(_rates(config, cells, summary), folder / "laziness_against_alpha.png")
    if any(name.startswith("stability/") for name in summary):
        plots.save(_stability(config, cells, summary), folder / "relu_stability.png")


def _curves(config, cells, kernel, summary):
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = {
        rf"$\alpha$ = {_alpha(a)}": [cells[seed, a]["curve"] for seed in range(config.seeds)]
        for a in config.alphas
    }
    if kernel is not None:
        curves["width ∞ (kernel flow)"] = [kernel]
    plots.plot_trajectories(curves, "train_loss", ax=left)
    plots.plot_trajectories(curves, "test_accuracy", ax=right)
    left.get_legend().remove()
    figure.suptitle(summary["data"], fontsize=11)
    return figure


def _rates(config, cells, summary):
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    alphas = _finite(config)
    quantities = {
        label: np.array(
            [
                [cells[seed, a]["final"].get(name, np.nan) for a in alphas]
                for seed in range(config.seeds)
            ]
        )
        for name, label in RATES.items()
        if summary[f"slope/{name}"] is not None
    }
    fitted = [a for a in alphas if 10 <= a <= (1000 if config.precision == "float64" else 100)]
    ax = plots.plot_power_law(
        alphas, quantities, fit_range=(min(fitted), max(fitted)), ylabel="relative change after training",
        ax=figure.subplots(),
    )  # fmt: skip
    ax.set_title(summary["data"], fontsize=11)
    return figure


def _stability(config, cells, summary):
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    ax = figure.subplots()
    alphas = [a for a in _finite(config) if f"stability/alpha={a:g}" in summary]
    unstable = 1 - np.array(
        [[cells[seed, a]["final"]["stability"] for a in alphas] for seed in range(config.seeds)]
    )
    style = plots.curve_styles(1)[0]
    spread = unstable.std(0, ddof=1) if config.seeds > 1 else None
    ax.errorbar(alphas, unstable.mean(0), spread, capsize=2, label="ReLU gates, test set", **style)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel=r"scale $\alpha$",
        ylabel="fraction of gates that changed sign",
    )
    ax.set_title(summary["data"], fontsize=11)
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def _finite(config):
    return [alpha for alpha in config.alphas if math.isfinite(alpha)]


def _alpha(value):
    return r"$\infty$ (linearized)" if math.isinf(value) else f"{value:g}"
