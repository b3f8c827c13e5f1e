"""Figure of `scattering_cifar10`: accuracy against the number of training images."""

from __future__ import annotations

from matplotlib.figure import Figure

from lazynet import plots

__all__ = ["draw"]


def draw(config, summary: dict) -> Figure:
    """One curve for each head, with the standard deviation over draws as error bars."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    ax = figure.subplots()
    heads = summary["heads"]
    for style, head in zip(plots.curve_styles(len(heads)), heads, strict=True):
        sizes = [int(n) for n in summary["sizes"] if f"accuracy/{head}/n={n}" in summary]
        mean = [100 * summary[f"accuracy/{head}/n={n}"] for n in sizes]
        spread = [100 * summary.get(f"accuracy_std/{head}/n={n}", 0.0) for n in sizes]
        settings = style | {"markevery": None, "capsize": 2.5, "label": _label(config, head)}
        ax.errorbar(sizes, mean, spread, **settings)
    sizes = [int(n) for n in summary["sizes"]]
    ax.set(xscale="log", xlabel="training images $n$", ylabel="test accuracy (%)")
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
    ax.set_xticks([], minor=True)
    ax.set_title(f"heads on scattering coefficients: {summary['data']}", fontsize=11)
    ax.grid(True, color="0.88", linewidth=0.6)
    ax.legend(fontsize="x-small", frameon=False, ncols=2)
    return figure


def _label(config, head: str) -> str:
    names = {
        "pixels/ridge": "pixels, linear",
        "pixels/ntk": "pixels, NTK",
        "ridge": "linear, ridge",
        "logistic": "linear, logistic",
        "rbf": "RBF kernel",
        "ntk": "NTK (infinite width)",
    }
    alpha = head.partition("=")[2].replace("inf", r"$\infty$ (linearized)")
    return names.get(head, rf"perceptron {config.mlp.width}, $\alpha$ = {alpha}")
