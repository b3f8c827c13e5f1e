"""Figures of `lazy_vs_standard`: training curves, laziness against alpha, and stability of the gates."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from experiments.lazy_vs_standard import fitted_alphas
from experiments.shared.training import curve_of
from lazynet import plots

__all__ = ["draw"]

RATES = {
    "param_drift": "weight drift",
    "ntk_change": "NTK change",
    "linearization_gap": "gap to linearized",
}


def draw(config, arrays, summary: dict) -> dict[str, Figure]:
    """The figures by name; slopes and gates only where there are some."""
    drawn = {"training_curves": _curves(config, arrays, summary)}
    if any(summary[f"slope/{name}"] is not None for name in RATES):
        drawn["laziness_against_alpha"] = _rates(config, arrays, summary)
    if any(name.startswith("stability/") for name in summary):
        drawn["relu_stability"] = _stability(config, arrays, summary)
    return drawn


def _curves(config, arrays, summary):
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = {}
    for alpha in config.alphas:
        cells = [f"seed={seed}/alpha={alpha:g}" for seed in range(config.seeds)]
        name = r"$\infty$ (linearized)" if math.isinf(alpha) else f"{alpha:g}"
        curves[rf"$\alpha$ = {name}"] = [curve_of(arrays, cell) for cell in cells]
    if "kernel_data" in arrays:
        curves["width ∞ (kernel flow)"] = [curve_of(arrays, "kernel")]
    plots.plot_trajectories(curves, "train_loss", ax=left)
    plots.plot_trajectories(curves, "test_accuracy", ax=right)
    left.get_legend().remove()
    figure.suptitle(summary["data"], fontsize=11)
    return figure


def _rates(config, arrays, summary):
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    alphas = [alpha for alpha in config.alphas if math.isfinite(alpha)]
    quantities = {}
    for name, label in RATES.items():
        if summary[f"slope/{name}"] is not None:
            quantities[label] = _finals(config, arrays, alphas, name)
    fitted = fitted_alphas(config)
    ax = plots.plot_power_law(
        alphas,
        quantities,
        fit_range=(min(fitted), max(fitted)),
        ylabel="relative change after training",
        ax=figure.subplots(),
    )
    ax.set_title(summary["data"], fontsize=11)
    return figure


def _stability(config, arrays, summary):
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    ax = figure.subplots()
    finite = [alpha for alpha in config.alphas if math.isfinite(alpha)]
    alphas = [alpha for alpha in finite if f"stability/alpha={alpha:g}" in summary]
    unstable = 1 - _finals(config, arrays, alphas, "stability")
    style = plots.curve_styles(1)[0]
    spread = unstable.std(0, ddof=1) if config.seeds > 1 else None
    ax.errorbar(alphas, unstable.mean(0), spread, capsize=2, label="ReLU gates, test set", **style)
    ax.set(xscale="log", yscale="log", xlabel=r"scale $\alpha$")
    ax.set_ylabel("fraction of gates that changed sign")
    ax.set_title(summary["data"], fontsize=11)
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def _finals(config, arrays, alphas, name) -> np.ndarray:
    """A number of the end of every training, `[seeds, alphas]`, nan where there is none."""
    cells = [f"seed={s}/alpha={a:g}" for s in range(config.seeds) for a in alphas]
    values = [arrays.get(f"{cell}/final/{name}", np.nan) for cell in cells]
    return np.reshape(values, (config.seeds, len(alphas)))
