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

import itertools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from experiments.harness import panels
from experiments.harness.bounds import Count, Values
from experiments.harness.facts import within
from experiments.shared.students import (
    Student,
    Weights,
    descend,
    draw_examples,
    draw_normal,
    draw_teacher,
    measurements,
)

__all__ = [
    "HOST_DEVICES",
    "PRESETS",
    "SCALINGS",
    "TITLE",
    "Config",
    "draw",
    "facts",
    "measure",
    "numbers",
    "report",
]

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


TITLE = "test loss against width, {trials} trials"


def measure(config: Config, store) -> dict[str, Any]:
    """Losses, stability of the gates and drift at the end of training, `[trials, widths, scalings]`."""

    def cell(width_trial):
        width, trial = width_trial
        name = f"trial={trial},m={width}"
        return store.read(name) or store.write(name, train(config, trial, width))

    # The longest ones first: devices that are done take what is left.
    widest_first = list(itertools.product(reversed(config.widths), range(config.trials)))
    cells = store.spread(cell, widest_first)
    arrays: dict[str, Any] = {"width": config.widths}
    for name in MEASURES:
        arrays[name] = np.zeros((config.trials, len(config.widths), len(SCALINGS)))
        for (width, trial), of_cell in cells.items():
            # Cells come widest first; each has both scalings, `[2]`.
            arrays[name][trial, config.widths.index(width)] = of_cell[name]
    return arrays


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Means over trials, and the standard deviation of the test loss."""
    summary: dict[str, Any] = {"trials": config.trials}
    for i, width in enumerate(config.widths):
        for j, scaling in enumerate(SCALINGS):
            cell = f"m={width}/scaling={scaling}"
            for name in MEASURES:
                summary[f"{name}/{cell}"] = float(arrays[name][:, i, j].mean())
            if config.trials > 1:
                deviation = float(arrays["test_loss"][:, i, j].std(ddof=1))
                summary[f"test_loss_std/{cell}"] = deviation
    return summary


def facts(config: Config, arrays):
    """Where the minimum is, and how far lazy students are behind."""
    loss = arrays["test_loss"].mean(0)
    if config.trials >= ENOUGH_TRIALS:
        for scaling, best in zip(SCALINGS, np.argmin(loss, axis=0), strict=True):
            name = f"width_of_the_minimum/scaling={scaling}"
            limits = {"at_least": config.teacher, "at_most": 4 * config.teacher}
            yield within(name, config.widths[best], **limits)
    for width, (lazy, feature) in zip(config.widths, loss, strict=True):
        if width >= 64:
            yield within(f"ratio/m={width}", lazy / feature, at_least=2)
    lazy, feature = arrays["stability"][:, -1].mean(0)
    yield within(f"stability/gain/m={config.widths[-1]}", lazy - feature, at_least=0.05)


def report(summary):
    """One row for each width."""
    table = Table("m", box=None)
    for scaling in SCALINGS:
        table.add_column(f"test loss\n{LABELS[scaling]}", no_wrap=True)
        table.add_column(f"gates as at\nstart %, {LABELS[scaling]}", no_wrap=True)
    prefix = "drift/m="
    cells = [key.removeprefix(prefix) for key in summary if key.startswith(prefix)]
    for width in dict.fromkeys(cell.partition("/")[0] for cell in cells):
        row = []
        for scaling in SCALINGS:
            cell = f"m={width}/scaling={scaling}"
            deviation = summary.get(f"test_loss_std/{cell}", 0)
            row.append(f"{summary[f'test_loss/{cell}']:.3g} ± {deviation:.2g}")
            row.append(f"{100 * summary[f'stability/{cell}']:.0f}")
        table.add_row(width, *row)
    yield table


def draw(config: Config, arrays):
    """Test loss and stability of the gates against the width, for both scalings."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for j, scaling in enumerate(SCALINGS):
        label = f"scaling {LABELS[scaling]}"
        panels.band(left, config.widths, arrays["test_loss"][:, :, j], label)
        right.plot(config.widths, arrays["stability"][:, :, j].mean(0), "o-", ms=3, label=label)
    left.axvline(config.teacher, color="0.6", ls=":", label="width of the teacher")
    left.set(xscale="log", xlabel="width m", ylabel="test loss", ylim=(0, None))
    right.set(xscale="log", xlabel="width m", ylim=(0.5, 1))
    right.set_ylabel("share of ReLU gates as at initialization")
    left.legend()
    right.legend()
    return figure


def train(config: Config, trial: int, width: int) -> dict[str, np.ndarray]:
    """One trial at one width with both scalings, which share data and initial weights: each entry is `[2]`."""
    start, data = draw_trial(config, trial, width)
    alpha = jnp.asarray([width**-0.5, width**-1.0])
    # The rates 1 and 0.05 m of the weights w are alpha^2 times that on u = alpha (w - w0).
    rate = alpha**2 * jnp.asarray([1.0, 0.05 * width])
    # The offset alpha keeps alpha h(w0), which is not zero here.
    student = Student(start, alpha, rate, alpha)
    u = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape)), start)
    u = descend(student, u, *data[:2], config.steps)
    return {name: np.asarray(value) for name, value in measurements(student, u, *data).items()}


def draw_trial(config: Config, trial: int, width: int) -> tuple[Weights, tuple]:
    """Initial weights, and training and test data, which all widths of a trial share."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), trial), 6)
    teacher = draw_teacher(keys[:2], config.teacher, config.d, TARGET_FACTOR)
    examples = draw_examples(keys[4:], teacher, config.n, config.n)
    return draw_normal(keys[2:4], width, config.d), examples
