"""The figure: accuracies, laziness, a sum of two tasks, and one task removed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from experiments.harness import panels
from experiments.tangent_fine_tuning.arithmetic import MODELS, TASKS

__all__ = ["figure"]

WIDTH = 0.38


def figure(config, arrays, starts, names) -> Figure:
    """Four panels beside each other."""
    drawn = Figure(figsize=(17.5, 4.6), layout="constrained")
    accuracy, laziness, sums, removed = drawn.subplots(1, 4, width_ratios=(1.4, 1.1, 1, 1))
    heights = {}
    for start in starts:
        heights[start] = [100 * float(arrays[f"{start}/{name}/accuracy"]) for name in names]
    _bars(accuracy, heights, names)
    accuracy.set(ylabel="accuracy on new classes (%)")
    _draw_laziness(arrays, laziness, starts)
    _draw_sums(config, arrays, sums)
    _draw_removed(arrays, removed)
    titles = ("fine-tuning", "laziness", "two tasks added", "two classes removed")
    for ax, title in zip((accuracy, laziness, sums, removed), titles, strict=True):
        panels.finish(ax, title)
    drawn.suptitle(f"{config.data.title}, {config.few} images of five new classes", fontsize=11)
    return drawn


def _draw_laziness(arrays, ax, starts):
    """Kappa, changes of kernels and the distance to the linearized model, of both starts."""
    measures = {
        "kappa, all": "all weights/kappa",
        "kappa, LoRA": "LoRA/kappa",
        "NTK change, all": "all weights/ntk_change",
        "NTK change, LoRA": "LoRA/ntk_change",
        "gap to linearized": "gap_to_linearized",
    }
    known = {label: entry for label, entry in measures.items() if f"random/{entry}" in arrays}
    values = {}
    for start in starts:
        values[start] = [float(arrays[f"{start}/{entry}"]) for entry in known.values()]
    _bars(ax, values, list(known))
    ax.set(yscale="log", ylabel="smaller is lazier")
    # Within a decade there is no major tick: minor ones are named then.
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def _draw_sums(config, arrays, ax):
    """Accuracy of the sum of two tasks against its scale, and of each task alone as a level line."""
    for i, model in enumerate(MODELS):
        for j, task in enumerate(TASKS):
            look = {"color": f"C{j}", "ls": ("-", "--")[i]}
            curve = 100 * arrays[f"{model}/sums"][:, j]
            ax.plot(config.scales, curve, marker="o", ms=3, label=f"{model}, {task}", **look)
            ax.axhline(100 * float(arrays[f"{model}/alone/{task}"]), lw=0.8, alpha=0.6, **look)
    ax.set(xlabel="scale of the sum (level lines: alone)", ylabel="accuracy on the task (%)")


def _draw_removed(arrays, ax):
    """Accuracy on each task of both, and of both without the first one."""
    cells = [(what, task) for what in ("both", "removed") for task in TASKS]
    heights = {}
    for model in MODELS:
        heights[model] = [100 * float(arrays[f"{model}/{what}/{task}"]) for what, task in cells]
    _bars(ax, heights, [f"{what}\n{task.split()[0]}" for what, task in cells])


def _bars(ax, values, labels):
    """Bars of two kinds beside each other."""
    places = np.arange(len(labels))
    for i, (name, heights) in enumerate(values.items()):
        ax.bar(places + (i - 0.5) * WIDTH, heights, WIDTH, label=name)
    ax.set_xticks(places, labels, rotation=35, ha="right")
    ax.set_axisbelow(True)
    # Room for the legend.
    ax.margins(y=0.25)
