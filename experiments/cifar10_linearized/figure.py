"""Figure of `cifar10_linearized`: test accuracy against the width, with what has no width as horizontal lines."""

from __future__ import annotations

from matplotlib.figure import Figure

from lazynet import plots

__all__ = ["draw"]

LINES = {"scattering": "scattering, linear", "patches": "random patches, linear"}


def draw(config, summary: dict) -> Figure:
    """Curves of the trained networks; the kernel, which sees fewer images, is in the table only."""
    figure = Figure(figsize=(8.2, 4.4), layout="constrained")
    ax = figure.subplots()
    styles = plots.curve_styles(len(config.kinds) + len(LINES))
    for style, kind in zip(styles, config.kinds, strict=False):
        names = {width: f"test_accuracy/{kind}/width={width:g}" for width in sorted(config.widths)}
        points = {width: 100 * summary[name] for width, name in names.items() if name in summary}
        settings = style | {"markevery": None, "label": f"{kind} network"}
        ax.plot(list(points), list(points.values()), **settings)
    for style, (row, label) in zip(styles[len(config.kinds) :], LINES.items(), strict=True):
        if row in summary["rows"]:
            accuracy = 100 * summary[f"test_accuracy/{row}"]
            ax.axhline(accuracy, label=label, color=style["color"], linestyle=style["linestyle"])
    ax.set(
        xscale="log", xlabel="width (factor of the channels of VGG-11)", ylabel="test accuracy (%)"
    )
    ax.set_xticks(sorted(config.widths), [f"{width:g}" for width in sorted(config.widths)])
    ax.set_xticks([], minor=True)
    ax.set_xlim(min(config.widths) / 1.3, max(config.widths) * 1.3)
    ax.set_title(f"{summary['data']}, {config.data.n_train:,} training images", fontsize=11)
    ax.grid(True, color="0.9", linewidth=0.6)
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure
