"""Population loss of SGD on fresh samples against the scale of initialization: a sharp transition to a plateau.

    python -m experiments run population_sgd                 # 17 scales, 10 trials: about 8 minutes
    python -m experiments run population_sgd --preset smoke  # 4 scales, 2 trials: about a minute

Figure 2 (b) of the paper: inputs on the unit sphere of R^100, fresh batches of 200 at every step, a
teacher of 3 ReLU neurons divided by 200 (as in the authors' code), a doubled student of m = 50 with
output 1/m sum_j a_j max(0, <w_j, x>) and weights of standard deviation tau; 20,000 steps of size
min(0.25/tau^2, 25), times m, and times d for the hidden weights (factors that the gradients of the
authors' code leave out). All scales of a trial see the same batches, which is six times cheaper
than batches of their own. Reported is the mean loss of the last 2,000 batches.

Expected, divided by the largest value over tau: below 0.02 for tau <= 0.1, between 0.2 and 0.35 at
0.2, 0.7 to 0.85 at 0.316, above 0.9 from 0.5 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from matplotlib.figure import Figure
from rich.table import Table

from experiments.harness import panels
from experiments.harness.bounds import Count, Even, Positive, Values
from experiments.harness.facts import within
from experiments.shared.students import (
    Student,
    Weights,
    doubled,
    draw_normal,
    draw_teacher,
    gradients,
    on_sphere,
    relu_net,
    step,
)
from lazynet import guards

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

SCALES = (
    0.01,
    0.02,
    0.04,
    *(float(f"{10.0**exponent:.4g}") for exponent in np.arange(-10, 1) / 10),
    2.0,
    4.0,
    8.0,
)
TEACHER_DIVISOR = 200
"""Of the outputs of the teacher: the batch size of the paper, whatever that of a run is."""

# Two scales, each with the digits of both presets.
BOUNDS = {0.2: (0.2, 0.35), 0.1995: (0.2, 0.35), 0.316: (0.7, 0.85), 0.3162: (0.7, 0.85)}


@dataclass(frozen=True)
class Config:
    """Scales, trials, sizes and training.

    Attributes:
        taus: Standard deviations of the first weights.
        trials: Number of draws.
        d: Dimension of the inputs.
        width: Hidden units of the student, half of them doubled.
        teacher: Hidden units of the teacher.
        batch_size: Fresh samples of a step.
        steps: Steps of SGD.
        last: Steps at the end whose losses are averaged.
        precision: Of the computation.
    """

    taus: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = SCALES
    trials: Count = 10
    d: Count = 100
    width: Even = 50
    teacher: Count = 3
    batch_size: Count = 200
    steps: Count = 20_000
    last: Count = 2_000
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses averages over more steps than there are."""
        guards.count(f"{prefix}last", self.last, at_most=self.steps)


PRESETS = {
    "smoke": Config(taus=(0.1, 0.2, 0.316, 1.0), trials=2),
    "laptop": Config(),
    "paper": Config(),
}


TITLE = "population loss against scale, mean of {trials} trials"


def measure(config: Config, store) -> dict[str, Any]:
    """The mean loss of the last batches, `[trials, scales]`."""

    def cell(trial):
        name = f"trial={trial}"
        return store.read(name) or store.write(name, {"loss": train(config, trial)})

    cells = store.spread(cell, range(config.trials))
    return {"tau": config.taus, "loss": np.stack([of_cell["loss"] for of_cell in cells.values()])}


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Means and standard deviations over trials, and the losses over the largest of them."""
    summary: dict[str, Any] = {"trials": config.trials}
    loss = arrays["loss"]
    relative = loss.mean(0) / loss.mean(0).max()
    for i, tau in enumerate(config.taus):
        summary[f"test_loss/tau={tau:g}"] = float(loss[:, i].mean())
        summary[f"relative/tau={tau:g}"] = float(relative[i])
        if config.trials > 1:
            summary[f"test_loss_std/tau={tau:g}"] = float(loss[:, i].std(ddof=1))
    return summary


def facts(config: Config, arrays):
    """Nothing is left below, all of it above, and the transition lies between."""
    loss = arrays["loss"].mean(0)
    for tau, value in zip(config.taus, loss / loss.max(), strict=True):
        if tau <= 0.1:
            yield within(f"below/tau={tau:g}", value, at_most=0.02)
        elif tau in BOUNDS:
            low, high = BOUNDS[tau]
            yield within(f"transition/tau={tau:g}", value, at_least=low, at_most=high)
        elif tau >= 0.5:
            yield within(f"plateau/tau={tau:g}", value, at_least=0.9)


def report(summary):
    """One row for each scale."""
    table = Table("tau", "loss", "of the largest", box=None)
    prefix = "test_loss/tau="
    for tau in [key.removeprefix(prefix) for key in summary if key.startswith(prefix)]:
        deviation = summary.get(f"test_loss_std/tau={tau}", 0)
        loss = f"{summary[f'test_loss/tau={tau}']:.3g} ± {deviation:.2g}"
        table.add_row(tau, loss, f"{summary[f'relative/tau={tau}']:.3f}")
    yield table


def draw(config: Config, arrays):
    """The loss over its largest value against the scale."""
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    ax = figure.subplots()
    loss = arrays["loss"]
    label = f"mean ± std of {config.trials} trials"
    panels.band(ax, config.taus, loss / loss.mean(0).max(), label)
    ax.set(xscale="log", xlabel="scale of initialization tau", ylim=(0, None))
    ax.set_ylabel("population loss / its largest value")
    ax.legend()
    return figure


def train(config: Config, trial: int) -> np.ndarray:
    """Mean loss of the last batches at every scale, `[s]`."""
    start, teacher, key = draw_trial(config, trial)
    tau = jnp.asarray(config.taus)
    alpha = tau**2 / config.width
    # A step of `size m` on the weights tau v is one of `size alpha^2 m / tau^2 = size tau^2 / m` on u = alpha (v - v0).
    size = jnp.minimum(0.25 / tau**2, 25.0)
    rate = size * tau**2 / config.width
    student = Student(start, alpha, rate, jnp.zeros_like(tau), float(config.d))
    u = jax.tree.map(lambda leaf: jnp.zeros((len(config.taus), *leaf.shape)), start)
    averaged_from = config.steps - config.last
    # The bounds of the loop are traced: both stretches are one program, and one sum is dropped.
    u, _ = _descend(student, u, teacher, key, 0, averaged_from, config.batch_size)
    _, total = _descend(student, u, teacher, key, averaged_from, config.steps, config.batch_size)
    return np.asarray(total) / config.last


@partial(jax.jit, static_argnames="batch_size")
def _descend(student, u, teacher, key, first, stop, batch_size):
    """Steps `first` to `stop`, each on a batch of its own, and the sum of the batch losses before each step."""

    def body(i, carry):
        u, total = carry
        x = on_sphere(jax.random.fold_in(key, i), batch_size, student.start.hidden.shape[1])
        # One target for all scales, `[1, n]`, as they share the batch.
        y = relu_net(teacher, x)[None]
        residual, gradient = gradients(
            student, jnp.matmul(student.start.hidden, x, precision="highest"), u, x, y
        )
        # The batch is a new one: its loss before the step estimates that of the population.
        return step(student, u, gradient), total + jnp.mean(residual**2, axis=1) / 2

    return lax.fori_loop(first, stop, body, (u, jnp.zeros_like(student.alpha)))


def draw_trial(config: Config, trial: int) -> tuple[Weights, Weights, Any]:
    """Initial weights at scale 1, the teacher, and the key of the batches."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), trial), 5)
    teacher = draw_teacher(keys[:2], config.teacher, config.d, 1 / TEACHER_DIVISOR)
    return doubled(draw_normal(keys[2:4], config.width // 2, config.d)), teacher, keys[4]
