"""The figure: accuracies, laziness, a sum of two tasks, and one task removed."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.harness import panels
from experiments.tangent_fine_tuning.arithmetic import MODELS, TASKS

__all__ = ["figure"]

WIDTH = 0.38


def figure(config, arrays, starts, names) -> Figure:
    """Four panels beside each other."""
    drawn = Figure(figsize=(17.5, 4.6), layout="constrained")
    accuracy, laziness, sums, removed = drawn.subplots(1, 4, width_ratios=(1.4, 1.1, 1, 1))
    _bars(
        accuracy,
        {
            start: [100 * float(arrays[f"{start}/{name}/accuracy"]) for name in names]
            for start in starts
        },
        names,
    )
    accuracy.set(ylabel="accuracy on new classes (%)")
    measures = {
        "kappa, all": "all weights/kappa",
        "kappa, LoRA": "LoRA/kappa",
        "NTK change, all": "all weights/ntk_change",
        "NTK change, LoRA": "LoRA/ntk_change",
        "gap to linearized": "gap_to_linearized",
    }
    measures = {label: entry for label, entry in measures.items() if f"random/{entry}" in arrays}
    values = {
        start: [float(arrays[f"{start}/{entry}"]) for entry in measures.values()]
        for start in starts
    }
    _bars(laziness, values, list(measures))
    laziness.set(yscale="log", ylabel="smaller is lazier")
    laziness.yaxis.set_minor_formatter(NullFormatter())
    for i, model in enumerate(MODELS):
        for j, task in enumerate(TASKS):
            look = {"color": f"C{j}", "ls": ("-", "--")[i]}
            curve = 100 * arrays[f"{model}/sums"][:, j]
            sums.plot(config.scales, curve, marker="o", ms=3, label=f"{model}, {task}", **look)
            sums.axhline(100 * float(arrays[f"{model}/alone/{task}"]), lw=0.8, alpha=0.6, **look)
    sums.set(xlabel="scale of the sum (level lines: alone)", ylabel="accuracy on the task (%)")
    labels = [f"{what}\n{task.split()[0]}" for what in ("both", "removed") for task in TASKS]
    heights = {
        model: [
            100 * float(arrays[f"{model}/{what}/{task}"])
            for what in ("both", "removed")
            for task in TASKS
        ]
        for model in MODELS
    }
    _bars(removed, heights, labels)
    titles = ("fine-tuning", "laziness", "two tasks added", "two classes removed")
    for ax, title in zip((accuracy, laziness, sums, removed), titles, strict=True):
        panels.finish(ax, title)
    drawn.suptitle(f"{config.data.title}, {config.few} images of five new classes", fontsize=11)
    return drawn


def _bars(ax, values, labels):
    """Bars of two kinds beside each other."""
    places = np.arange(len(labels))
    for i, (name, heights) in enumerate(values.items()):
        ax.bar(places + (i - 0.5) * WIDTH, heights, WIDTH, label=name)
    ax.set_xticks(places, labels, rotation=35, ha="right")
    ax.set_axisbelow(True)
    ax.margins(y=0.25)  # room for the legend
