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

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import bounds, facts, panels, store
from experiments.harness.bounds import Count, Even, Positive, Values
from experiments.harness.progress import over_devices
from experiments.shared.students import (
    Student,
    Weights,
    descend,
    doubled,
    draw_examples,
    draw_normal,
    draw_teacher,
    measure,
)

__all__ = ["HOST_DEVICES", "PRESETS", "Config", "run", "show"]

HOST_DEVICES = True
"""Every core of a CPU is a device of its own, and trains trials by itself."""

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


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Trains what is not stored yet, draws the figure and returns the flat summary."""
    bounds.check(config)
    cells = [(trial, tau) for trial in range(config.trials) for tau in config.taus]
    results = over_devices(partial(_stored, config, folder), cells, console)
    measured = {
        name: np.stack(
            [
                [results[trial, tau][name][0] for tau in config.taus]
                for trial in range(config.trials)
            ]
        )
        for name in ("test_loss", "best_test_loss", "train_loss", "stability", "drift")
    }
    store.save_arrays(folder / "measured.npz", {"tau": config.taus, **measured})
    _draw(config, measured, folder / "figures" / "loss_vs_scale.png")
    return _summary(config, measured)


def show(summary: dict[str, Any], console) -> None:
    """Prints the curve and the table of facts."""
    from rich.table import Table

    table = Table(
        "tau", "test loss x 1000", "best x 1000", "gates as at start %", "drift", box=None
    )
    for tau in [
        key.removeprefix("test_loss/tau=") for key in summary if key.startswith("test_loss/tau=")
    ]:
        cells = [
            f"{1000 * summary[f'{name}/tau={tau}']:.3g}" for name in ("test_loss", "best_test_loss")
        ]
        cells[0] += f" ± {1000 * summary[f'test_loss_std/tau={tau}']:.2g}"
        table.add_row(
            tau,
            *cells,
            f"{100 * summary[f'stability/tau={tau}']:.2f}",
            f"{summary[f'drift/tau={tau}']:.2g}",
        )
    console.print(table)
    facts.show(summary, console, f"test loss against scale, mean of {summary['trials']} trials")


def _stored(config, folder, cell) -> dict[str, np.ndarray]:
    trial, tau = cell
    path = folder / "cells" / f"trial={trial},tau={tau:g}.npz"
    return store.stored_arrays(path, lambda: train(config, trial, (tau,)))


def train(config: Config, trial: int, taus: tuple[float, ...]) -> dict[str, np.ndarray]:
    """One trial at several scales, which share data and the initial directions."""
    start, data = draw(config, trial)
    alpha = jnp.asarray(taus) ** 2
    student = Student(start, alpha, jnp.minimum(10 * alpha, 0.1), jnp.zeros_like(alpha))
    u = jax.tree.map(lambda leaf: jnp.zeros((len(taus), *leaf.shape)), start)
    best = jnp.full(len(taus), jnp.inf)
    done = 0
    last = {}
    for look in np.linspace(0, config.steps, config.looks + 1).round().astype(int):
        u = descend(student, u, *data[:2], look - done)
        done = look
        last = measure(student, u, *data)
        best = jnp.minimum(best, last["test_loss"])
    return {
        "best_test_loss": np.asarray(best),
        **{name: np.asarray(value) for name, value in last.items()},
    }


def draw(config: Config, trial: int) -> tuple[Weights, tuple]:
    """Initial weights at scale 1, and training and test data of a trial."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), trial), 6)
    teacher = draw_teacher(keys[:2], config.teacher, config.d)
    start = doubled(draw_normal(keys[2:4], config.width // 2, config.d))
    return start, draw_examples(keys[4:], teacher, config.n, config.n)


def _summary(config, measured) -> dict[str, Any]:
    summary: dict[str, Any] = {"trials": config.trials}
    for i, tau in enumerate(config.taus):
        for name, values in measured.items():
            summary[f"{name}/tau={tau:g}"] = float(values[:, i].mean())
        if config.trials > 1:
            summary[f"test_loss_std/tau={tau:g}"] = float(measured["test_loss"][:, i].std(ddof=1))
    return summary | facts.summarize(list(_facts(config, measured)))


def _facts(config, measured):
    taus = np.asarray(config.taus)
    loss = measured["test_loss"].mean(0)
    at = {f"{tau:g}": value for tau, value in zip(taus, loss, strict=True)}
    if {"1", "0.01"} <= set(at):
        yield facts.within("ratio/tau=1/tau=0.01", at["1"] / at["0.01"], at_least=25, at_most=60)
    flat = (taus >= 0.75) & (taus <= 10)
    if flat.sum() > 1:
        plateau = loss[flat]
        yield facts.within(
            "plateau/spread", np.abs(plateau / plateau.mean() - 1).max(), at_most=0.05
        )
    middle = (taus >= 1) & (taus <= 4.1)
    if middle.sum() > 2:
        for name, values in (("drift", measured["drift"]), ("flipped", 1 - measured["stability"])):
            yield facts.power_law(name, taus[middle], values[:, middle], -2, 0.1)
    wide = taus >= 1
    if middle.sum() <= 2 and wide.sum() > 1:
        yield facts.power_law("drift", taus[wide], measured["drift"][:, wide], -2, 0.15)


def _draw(config, measured, file) -> None:
    from matplotlib.figure import Figure

    from lazynet import plots

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in (
        ("test_loss", "end of training"),
        ("best_test_loss", "best throughout training"),
    ):
        panels.band(left, config.taus, 1000 * measured[name], label)
    left.set(
        xscale="log",
        xlabel="scale of initialization tau",
        ylabel="test loss x 1000",
        ylim=(0, None),
    )
    left.legend()
    for name, values in (
        ("relative weight drift", measured["drift"]),
        ("gates changed", 1 - measured["stability"]),
    ):
        right.plot(config.taus, values.mean(0), "o-", ms=3, label=name)
    right.set(xscale="log", yscale="log", xlabel="scale of initialization tau", ylabel="fraction")
    right.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, file)
