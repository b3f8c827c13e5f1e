"""Test loss against width: with the output scale 1/sqrt m wide students become lazy, with 1/m they do not.

    python -m experiments run loss_vs_width                 # 13 widths, 2 scalings, 10 trials: about 30 minutes
    python -m experiments run loss_vs_width --preset smoke  # 2 widths, fewer steps: about half a minute

Figure 2 (a) of the paper: the task of `loss_vs_scale` with targets times 100; students of m
ReLU neurons with standard normal weights, not doubled, whose output is alpha(m) sum_j a_j max(0,
<w_j, x>) with alpha = 1/sqrt m or 1/m; 25,000 steps of gradient descent with learning rate 1 for
1/sqrt m and 0.05 m for 1/m. (The steps in the authors' code are 1/m and 0.05/m, because its
gradients leave out the output factor.)

Expected: the smallest test loss just above the teacher's width of 3; from m = 64 on, 1/m at least
two times lower than 1/sqrt m, which climbs with the width and keeps more and more of its gates
(about 0.9 at m = 512, against 0.6).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import bounds, facts, panels, store
from experiments.harness.bounds import Count, Values
from experiments.harness.progress import over_devices
from experiments.shared.students import (
    Student,
    Weights,
    descend,
    draw_examples,
    draw_normal,
    draw_teacher,
    measure,
)

__all__ = ["HOST_DEVICES", "PRESETS", "SCALINGS", "Config", "run", "show"]

HOST_DEVICES = True
"""Every core of a CPU is a device of its own, and trains trials by itself."""

SCALINGS = ("inv_sqrt", "inv")
LABELS = {"inv_sqrt": "1/sqrt m", "inv": "1/m"}
TARGET_FACTOR = 100.0
ENOUGH_TRIALS = 5
"""Trials from which on the mean over them has its minimum where it should: some get stuck near the teacher's width."""
MEASURES = ("test_loss", "train_loss", "stability", "drift")


@dataclass(frozen=True)
class Config:
    """Widths, trials, sizes and training.

    Attributes:
        widths: Hidden units of the students.
        trials: Number of draws.
        d: Dimension of the inputs.
        n: Training examples, and test examples.
        teacher: Hidden units of the teacher.
        steps: Steps of gradient descent.
        precision: Of the computation.
    """

    widths: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (
        2,
        3,
        4,
        6,
        8,
        12,
        16,
        24,
        32,
        64,
        128,
        256,
        512,
    )
    trials: Count = 10
    d: Count = 100
    n: Count = 1000
    teacher: Count = 3
    steps: Count = 25_000
    precision: Literal["float32", "float64"] = "float32"


PRESETS = {
    "smoke": Config(widths=(8, 64), trials=2, steps=5_000),
    "laptop": Config(),
    "paper": Config(),
}


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Trains what is not stored yet, draws the figure and returns the flat summary."""
    bounds.check(config)
    cells = [(trial, width) for width in reversed(config.widths) for trial in range(config.trials)]
    results = over_devices(partial(_stored, config, folder), cells, console)
    measured = {
        name: np.stack(
            [
                [results[trial, width][name] for width in config.widths]
                for trial in range(config.trials)
            ]
        )
        for name in MEASURES
    }
    store.save_arrays(folder / "measured.npz", {"width": config.widths, **measured})
    _draw(config, measured, folder / "figures" / "loss_vs_width.png")
    return _summary(config, measured)


def show(summary: dict[str, Any], console) -> None:
    """Prints the curves and the table of facts."""
    from rich.table import Table

    table = Table("m", box=None)
    for scaling in SCALINGS:
        table.add_column(f"test loss\n{LABELS[scaling]}", no_wrap=True)
        table.add_column(f"gates as at\nstart %, {LABELS[scaling]}", no_wrap=True)
    widths = [
        key.split("m=")[1].split("/")[0]
        for key in summary
        if key.endswith("scaling=inv") and "test_loss/" in key
    ]
    for width in widths:
        row = []
        for scaling in SCALINGS:
            cell = f"m={width}/scaling={scaling}"
            deviation = (
                f" ± {summary[f'test_loss_std/{cell}']:.2g}"
                if f"test_loss_std/{cell}" in summary
                else ""
            )
            row += [
                f"{summary[f'test_loss/{cell}']:.3g}{deviation}",
                f"{100 * summary[f'stability/{cell}']:.0f}",
            ]
        table.add_row(width, *row)
    console.print(table)
    facts.show(summary, console, f"test loss against width, {summary['trials']} trials")


def _stored(config, folder, cell) -> dict[str, np.ndarray]:
    trial, width = cell
    path = folder / "cells" / f"trial={trial},m={width}.npz"
    return store.stored_arrays(path, lambda: train(config, trial, width))


def train(config: Config, trial: int, width: int) -> dict[str, np.ndarray]:
    """One trial at one width with both scalings, which share data and initial weights: each entry is `[2]`."""
    start, data = draw(config, trial, width)
    alpha = jnp.asarray([width**-0.5, width**-1.0])
    student = Student(start, alpha, alpha**2 * jnp.asarray([1.0, 0.05 * width]), alpha)
    u = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape)), start)
    u = descend(student, u, *data[:2], config.steps)
    return {name: np.asarray(value) for name, value in measure(student, u, *data).items()}


def draw(config: Config, trial: int, width: int) -> tuple[Weights, tuple]:
    """Initial weights, and training and test data, which all widths of a trial share."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), trial), 6)
    teacher = draw_teacher(keys[:2], config.teacher, config.d, TARGET_FACTOR)
    return draw_normal(keys[2:4], width, config.d), draw_examples(
        keys[4:], teacher, config.n, config.n
    )


def _summary(config, measured) -> dict[str, Any]:
    summary: dict[str, Any] = {"trials": config.trials}
    for i, width in enumerate(config.widths):
        for j, scaling in enumerate(SCALINGS):
            cell = f"m={width}/scaling={scaling}"
            for name, values in measured.items():
                summary[f"{name}/{cell}"] = float(values[:, i, j].mean())
            if config.trials > 1:
                summary[f"test_loss_std/{cell}"] = float(measured["test_loss"][:, i, j].std(ddof=1))
    return summary | facts.summarize(list(_facts(config, measured)))


def _facts(config, measured):
    loss = measured["test_loss"].mean(0)
    widths = np.asarray(config.widths)
    for scaling, curve in (
        zip(SCALINGS, loss.T, strict=True) if config.trials >= ENOUGH_TRIALS else ()
    ):
        best = widths[int(np.argmin(curve))]
        yield facts.within(
            f"width_of_the_minimum/scaling={scaling}",
            best,
            at_least=config.teacher,
            at_most=4 * config.teacher,
        )
    for width, (lazy, feature) in zip(widths, loss, strict=True):
        if width >= 64:
            yield facts.within(f"ratio/m={width}", lazy / feature, at_least=2)
    last = measured["stability"][:, -1].mean(0)
    yield facts.within(f"stability/gain/m={widths[-1]}", last[0] - last[1], at_least=0.05)


def _draw(config, measured, file) -> None:
    from matplotlib.figure import Figure

    from lazynet import plots

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for j, scaling in enumerate(SCALINGS):
        panels.band(
            left, config.widths, measured["test_loss"][:, :, j], f"scaling {LABELS[scaling]}"
        )
        right.plot(
            config.widths,
            measured["stability"][:, :, j].mean(0),
            "o-",
            ms=3,
            label=f"scaling {LABELS[scaling]}",
        )
    left.axvline(config.teacher, color="0.6", ls=":", label="width of the teacher")
    left.set(xscale="log", xlabel="width m", ylabel="test loss", ylim=(0, None))
    right.set(
        xscale="log",
        xlabel="width m",
        ylabel="share of ReLU gates as at initialization",
        ylim=(0.5, 1),
    )
    left.legend()
    right.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, file)
