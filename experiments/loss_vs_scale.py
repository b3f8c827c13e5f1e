"""Test loss against the scale of initialization: lazy students generalize worse.

    python -m experiments run loss_vs_scale                 # 33 scales, 10 trials: about 12 minutes
    python -m experiments run loss_vs_scale --preset smoke  # 3 scales, 3 trials: about half a minute

Figure 1 (c) of the paper: inputs on the unit sphere of R^100, 1,000 training and 1,000 test
examples, a teacher of 3 ReLU neurons, a doubled student of 50 with standard normal weights times
tau; 10,000 steps of gradient descent of size min(10, 0.1 / tau^2). The network is 2-homogeneous, so
this is training at alpha = tau^2, which the code does.

Expected: the mean test loss at tau = 1 is 25 to 60 times that at tau = 0.01; from tau = 0.75 to 10
it is flat within 5 %; weight drift and the share of ReLU gates that changed both fall like 1/tau^2
from tau = 1 to 4 (beyond, few gates are left to count).
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
from experiments.harness.bounds import Count, Even, Positive, Values
from experiments.harness.facts import power_law, within
from experiments.shared.students import (
    Student,
    Weights,
    descend,
    doubled,
    draw_examples,
    draw_normal,
    draw_teacher,
    measurements,
)

__all__ = [
    "HOST_DEVICES",
    "PRESETS",
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

# Four digits: names of cells keep six, so that each scale is found again.
SCALES = tuple(float(f"{10.0**exponent:.4g}") for exponent in np.arange(-22, 11) / 10)


@dataclass(frozen=True)
class Config:
    """Scales, trials, sizes and training.

    Attributes:
        taus: Standard deviations of the first weights.
        trials: Number of draws.
        d: Dimension of the inputs.
        n: Training examples, and test examples.
        width: Hidden units of the student, half of them doubled.
        teacher: Hidden units of the teacher.
        steps: Steps of gradient descent.
        looks: Times at which the test loss is looked at.
        precision: Of the computation.
    """

    taus: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = SCALES
    trials: Count = 10
    d: Count = 100
    n: Count = 1000
    width: Even = 50
    teacher: Count = 3
    steps: Count = 10_000
    looks: Count = 100
    precision: Literal["float32", "float64"] = "float32"


PRESETS = {"smoke": Config(taus=(0.01, 1.0, 10.0), trials=3), "laptop": Config(), "paper": Config()}


TITLE = "test loss against scale, mean of {trials} trials"
MEASURES = ("test_loss", "best_test_loss", "train_loss", "stability", "drift")


def measure(config: Config, store) -> dict[str, Any]:
    """Losses, stability of the gates and drift at the end of training, `[trials, scales]`."""

    def cell(trial_tau):
        trial, tau = trial_tau
        name = f"trial={trial},tau={tau:g}"
        return store.read(name) or store.write(name, train(config, trial, (tau,)))

    trials = range(config.trials)
    cells = store.spread(cell, list(itertools.product(trials, config.taus)))
    arrays: dict[str, Any] = {"tau": config.taus}
    for name in MEASURES:
        values = [of_cell[name][0] for of_cell in cells.values()]
        arrays[name] = np.reshape(values, (config.trials, len(config.taus)))
    return arrays


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Means over trials, and the standard deviation of the test loss."""
    summary: dict[str, Any] = {"trials": config.trials}
    for i, tau in enumerate(config.taus):
        for name in MEASURES:
            summary[f"{name}/tau={tau:g}"] = float(arrays[name][:, i].mean())
        if config.trials > 1:
            deviation = float(arrays["test_loss"][:, i].std(ddof=1))
            summary[f"test_loss_std/tau={tau:g}"] = deviation
    return summary


def facts(config: Config, arrays):
    """The plateau of lazy training, the loss without it, and how drift and gates fall with the scale."""
    taus = np.asarray(config.taus)
    loss = arrays["test_loss"].mean(0)
    at = dict(zip((f"{tau:g}" for tau in taus), loss, strict=True))
    if {"1", "0.01"} <= set(at):
        yield within("ratio/tau=1/tau=0.01", at["1"] / at["0.01"], at_least=25, at_most=60)
    plateau = loss[(taus >= 0.75) & (taus <= 10)]
    if len(plateau) > 1:
        spread = np.abs(plateau / plateau.mean() - 1).max()
        yield within("plateau/spread", spread, at_most=0.05)
    drift = arrays["drift"]
    # Below, training is not lazy; above, few gates are left to count.
    middle = (taus >= 1) & (taus <= 4.1)
    wide = taus >= 1
    if middle.sum() > 2:
        flipped = 1 - arrays["stability"]
        yield power_law("drift", taus[middle], drift[:, middle], -2, 0.1)
        yield power_law("flipped", taus[middle], flipped[:, middle], -2, 0.1)
    elif wide.sum() > 1:
        yield power_law("drift", taus[wide], drift[:, wide], -2, 0.15)


def report(summary):
    """One row for each scale."""
    titles = ("tau", "test loss x 1000", "best x 1000", "gates as at start %", "drift")
    table = Table(*titles, box=None)
    prefix = "test_loss/tau="
    for tau in [key.removeprefix(prefix) for key in summary if key.startswith(prefix)]:
        loss = f"{1000 * summary[f'test_loss/tau={tau}']:.3g}"
        table.add_row(
            tau,
            f"{loss} ± {1000 * summary.get(f'test_loss_std/tau={tau}', 0):.2g}",
            f"{1000 * summary[f'best_test_loss/tau={tau}']:.3g}",
            f"{100 * summary[f'stability/tau={tau}']:.2f}",
            f"{summary[f'drift/tau={tau}']:.2g}",
        )
    yield table


def draw(config: Config, arrays):
    """Test losses against the scale, and drift and changed gates."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    panels.band(left, config.taus, 1000 * arrays["test_loss"], "end of training")
    panels.band(left, config.taus, 1000 * arrays["best_test_loss"], "best throughout training")
    left.set(xscale="log", ylabel="test loss x 1000", ylim=(0, None))
    right.plot(config.taus, arrays["drift"].mean(0), "o-", ms=3, label="relative weight drift")
    right.plot(config.taus, 1 - arrays["stability"].mean(0), "o-", ms=3, label="gates changed")
    right.set(xscale="log", yscale="log", ylabel="fraction")
    for ax in (left, right):
        ax.set_xlabel("scale of initialization tau")
        ax.legend()
    return figure


def train(config: Config, trial: int, taus: tuple[float, ...]) -> dict[str, np.ndarray]:
    """One trial at several scales, which share data and the initial directions."""
    start, data = draw_trial(config, trial)
    alpha = jnp.asarray(taus) ** 2
    # A step of size s on the weights tau v is one of s tau^2 on u = alpha (v - v0), which makes
    # min(10, 0.1 / tau^2) the smaller of 10 alpha and 0.1. The doubled student has no offset.
    student = Student(start, alpha, jnp.minimum(10 * alpha, 0.1), jnp.zeros_like(alpha))
    u = jax.tree.map(lambda leaf: jnp.zeros((len(taus), *leaf.shape)), start)
    best = jnp.full(len(taus), jnp.inf)
    done = 0
    last = {}
    for look in np.linspace(0, config.steps, config.looks + 1).round().astype(int):
        u = descend(student, u, *data[:2], look - done)
        done = look
        last = measurements(student, u, *data)
        best = jnp.minimum(best, last["test_loss"])
    return {
        "best_test_loss": np.asarray(best),
        **{name: np.asarray(value) for name, value in last.items()},
    }


def draw_trial(config: Config, trial: int) -> tuple[Weights, tuple]:
    """Initial weights at scale 1, and training and test data of a trial."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), trial), 6)
    teacher = draw_teacher(keys[:2], config.teacher, config.d)
    start = doubled(draw_normal(keys[2:4], config.width // 2, config.d))
    return start, draw_examples(keys[4:], teacher, config.n, config.n)
