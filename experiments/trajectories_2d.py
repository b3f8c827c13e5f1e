"""Neurons of a two-layer ReLU network in the plane: they align with the teacher, or they hardly move.

    python -m experiments run trajectories_2d                    # about 10 seconds
    python -m experiments run trajectories_2d --preset smoke     # about 5 seconds

Figure 1 (a, b) of the paper. Inputs on the unit circle, a teacher of 3 neurons, a student of 16
(doubled, so that it starts at zero), scaled by tau at initialization; gradient descent on 1/(2n)
sum (f - y)^2. The network is 2-homogeneous, so scaling all weights by tau is training at alpha =
tau^2. Expected: at tau = 0.1 the neurons that gain mass end up in the directions of the teacher's
(the share of mass within 10 degrees of one exceeds one half), and the weights move by several times
their initial size; at tau = 2 the relative drift stays below 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.harness.bounds import Count, Even, Positive, Seed, Values
from experiments.harness.facts import within
from experiments.shared.students import (
    Student,
    Weights,
    descend,
    doubled,
    draw_examples,
    draw_teacher,
    measurements,
    on_sphere,
)

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure"]


@dataclass(frozen=True)
class Config:
    """Scales and training.

    Attributes:
        taus: Standard deviations of the first weights of both students, the smaller first.
        width: Hidden units of the students, half of them doubled.
        teacher: Hidden units of the teacher.
        n_train: Training examples.
        n_test: Test examples.
        steps: Steps of gradient descent.
        step_size: Of gradient descent.
        iterates: Positions that are drawn.
        seed: Of the draw.
        precision: Of the computation.
    """

    taus: Annotated[tuple[Positive, Positive], Values(2, increasing=True)] = (0.1, 2.0)
    width: Even = 16
    teacher: Count = 3
    n_train: Count = 15
    n_test: Count = 20
    steps: Count = 100_000
    step_size: Positive = 0.005
    iterates: Count = 100
    seed: Seed = 1
    precision: Literal["float32", "float64"] = "float64"


PRESETS = {"smoke": Config(), "laptop": Config(), "paper": Config()}
DEGREES = 10.0


TITLE = "neurons in the plane, not lazy and lazy"


def measure(config: Config, store) -> dict[str, Any]:
    """The teacher, the paths of both students as `hidden/tau=...`, and what they have come to."""
    arrays: dict[str, Any] = {}
    with store.status("two students"):
        case = _case(config)
        for tau in config.taus:
            for name, values in _train(config, case, tau).items():
                arrays[f"{name}/tau={tau:g}"] = values
    teacher = case["teacher"]
    return arrays | {"teacher": teacher.hidden, "teacher_signs": jnp.sign(teacher.out)}


def facts(config: Config, arrays):
    """One student moves towards the teacher's directions, the other hardly moves."""
    moving, lazy = (f"tau={tau:g}" for tau in config.taus)
    aligned = _aligned(arrays, moving, -1)
    yield within(f"drift/{moving}", arrays[f"drift/{moving}"], at_least=1.0)
    yield within(f"drift/{lazy}", arrays[f"drift/{lazy}"], at_most=0.1)
    yield within(f"aligned_mass/{moving}", aligned, at_least=0.5)
    yield within("aligned_mass/gain", aligned - _aligned(arrays, moving, 0), at_least=0.2)
    yield within(f"train_loss/{moving}", arrays[f"train_loss/{moving}"], at_most=1e-3)
    gain = arrays[f"stability/{lazy}"] - arrays[f"stability/{moving}"]
    yield within("stability/gain", gain, at_least=0.0)


def draw(config: Config, arrays):
    """Paths of the neurons in the plane, a panel for each student."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    for tau, ax in zip(config.taus, figure.subplots(1, 2), strict=True):
        out = arrays[f"out/tau={tau:g}"]
        # Since a max(0, <w, x>) = sign(a) max(0, <|a| w, x>), a w and the sign are all of a neuron.
        moved = out[:, :, None] * arrays[f"hidden/tau={tau:g}"]
        for j, sign in enumerate(np.sign(out[-1])):
            color = "C3" if sign > 0 else "C0"
            ax.plot(*moved[:, j].T, color=color, lw=1)
            ax.plot(*moved[-1, j], "o", color=color, ms=4)
        reach = 1.05 * np.abs(moved).max()
        for w, s in zip(arrays["teacher"], arrays["teacher_signs"], strict=True):
            end = reach * s * w
            ax.plot([0, end[0]], [0, end[1]], ":", color="C3" if s > 0 else "C0")
        title = f"tau = {tau:g} (alpha = {tau**2:g})"
        ax.set(title=title, xlabel="$a_j w_{j,1}$", ylabel="$a_j w_{j,2}$", aspect="equal")
    figure.suptitle(
        "paths of the neurons $a_j w_j$; dotted: directions of the teacher; red: positive output weight",
        fontsize=10,
    )
    return figure


def _case(config) -> dict[str, Any]:
    """Teacher, data and initial student; the teacher's neurons have unit norm and random signs."""
    keys = jax.random.split(jax.random.key(config.seed), 6)
    teacher = draw_teacher(keys[:2], config.teacher, 2)
    half = config.width // 2
    # Positive outputs of one half, which the doubled half has negated.
    out = jax.random.uniform(keys[3], (half,), jnp.result_type(float))
    start = Weights(on_sphere(keys[2], half, 2).T, out)
    return {
        "teacher": teacher,
        "start": doubled(start),
        "data": draw_examples(keys[4:], teacher, config.n_train, config.n_test),
    }


def _train(config, case, tau) -> dict[str, np.ndarray]:
    """Weights at log-spaced steps, in units of the initial scale, and the measurements at the end."""
    alpha = jnp.full((1,), tau**2)
    # A step of size s on the weights tau v is one of s tau^2 on u = alpha (v - v0).
    student = Student(case["start"], alpha, alpha * config.step_size, jnp.zeros(1))
    x, y, *_ = case["data"]
    saves = np.unique(np.geomspace(1, config.steps, config.iterates).round().astype(int))
    u = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape)), student.start)
    done = 0
    path = [student.start]
    for save in saves:
        u = descend(student, u, x, y, save - done)
        done = save
        path.append(jax.tree.map(lambda w0, leaf: w0 + leaf[0] / tau**2, student.start, u))
    last = measurements(student, u, *case["data"])
    return {
        "hidden": np.stack([tau * w.hidden for w in path]),
        "out": np.stack([tau * w.out for w in path]),
        **{name: np.asarray(value[0]) for name, value in last.items()},
    }


def _aligned(arrays, student: str, i: int) -> float:
    """Share of the mass |a_j| |w_j| at record i within 10 degrees of a neuron of the teacher of the same sign."""
    w = arrays[f"hidden/{student}"][i]
    a = arrays[f"out/{student}"][i]
    norms = np.linalg.norm(w, axis=1)
    mass = np.abs(a) * norms
    # The teacher's neurons have unit norm.
    cosine = w @ arrays["teacher"].T / norms[:, None]
    same = np.sign(a)[:, None] == arrays["teacher_signs"][None]
    near = np.any(same & (cosine > np.cos(np.deg2rad(DEGREES))), axis=1)
    return float(mass[near].sum() / mass.sum())
