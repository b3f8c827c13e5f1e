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
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import bounds, facts
from experiments.harness.bounds import Count, Even, Positive, Seed, Values
from experiments.shared.students import (
    Student,
    Weights,
    descend,
    doubled,
    draw_examples,
    draw_teacher,
    measure,
    on_sphere,
)

__all__ = ["PRESETS", "Config", "run", "show"]


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


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Trains both students, draws their neurons and returns the facts."""
    from experiments.harness.store import save_arrays

    bounds.check(config)
    with console.status("two students"):
        case = _case(config)
        paths = {tau: _train(config, case, tau) for tau in config.taus}
    arrays = {
        f"{name}/tau={tau:g}": value for tau, path in paths.items() for name, value in path.items()
    }
    save_arrays(folder / "trajectories.npz", arrays | {"teacher": case["teacher"].hidden})
    _draw(config, case, paths, folder / "figures" / "trajectories_2d.png")
    return facts.summarize(list(_facts(config, case, paths)))


def show(summary: dict[str, Any], console) -> None:
    """Prints the table of facts."""
    facts.show(summary, console, "neurons in the plane, not lazy and lazy")


def _case(config) -> dict[str, Any]:
    """Teacher, data and initial student; the teacher's neurons have unit norm and random signs."""
    keys = jax.random.split(jax.random.key(config.seed), 6)
    teacher = draw_teacher(keys[:2], config.teacher, 2)
    half = config.width // 2
    start = Weights(
        on_sphere(keys[2], half, 2).T, jax.random.uniform(keys[3], (half,), jnp.result_type(float))
    )
    return {
        "teacher": teacher,
        "start": doubled(start),
        "data": draw_examples(keys[4:], teacher, config.n_train, config.n_test),
    }


def _train(config, case, tau) -> dict[str, np.ndarray]:
    """Weights at log-spaced steps, in units of the initial scale, and the measurements at the end."""
    alpha = jnp.full((1,), tau**2)
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
    last = measure(student, u, *case["data"])
    return {
        "hidden": np.stack([tau * w.hidden for w in path]),
        "out": np.stack([tau * w.out for w in path]),
        **{name: np.asarray(value[0]) for name, value in last.items()},
    }


def _facts(config, case, paths):
    moving, lazy = config.taus
    feature = paths[moving]
    yield facts.within(f"drift/tau={moving:g}", feature["drift"], at_least=1.0)
    yield facts.within(f"drift/tau={lazy:g}", paths[lazy]["drift"], at_most=0.1)
    yield facts.within(
        f"aligned_mass/tau={moving:g}", _aligned(feature, case["teacher"]), at_least=0.5
    )
    yield facts.within("aligned_mass/gain", _gain(feature, case), at_least=0.2)
    yield facts.within(f"train_loss/tau={moving:g}", feature["train_loss"], at_most=1e-3)
    yield facts.within(
        "stability/gain", paths[lazy]["stability"] - feature["stability"], at_least=0.0
    )


def _gain(path, case):
    first = {"hidden": path["hidden"][:1], "out": path["out"][:1]}
    return _aligned(path, case["teacher"]) - _aligned(first, case["teacher"])


def _aligned(path, teacher) -> float:
    """Share of the mass |a_j| |w_j| that points to within 10 degrees of a neuron of the teacher of the same sign."""
    w = path["hidden"][-1]
    a = path["out"][-1]
    mass = np.abs(a) * np.linalg.norm(w, axis=1)
    cosine = w @ np.asarray(teacher.hidden).T / np.linalg.norm(w, axis=1, keepdims=True)
    same = np.sign(a)[:, None] == np.sign(np.asarray(teacher.out))[None]
    near = np.any(same & (cosine > np.cos(np.deg2rad(DEGREES))), axis=1)
    return float(mass[near].sum() / mass.sum())


def _draw(config, case, paths, file) -> None:
    from matplotlib.figure import Figure

    from lazynet import plots

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    for tau, ax in zip(config.taus, figure.subplots(1, 2), strict=True):
        moved = paths[tau]["out"][:, :, None] * paths[tau]["hidden"]
        signs = np.sign(paths[tau]["out"][-1])
        for j, sign in enumerate(signs):
            color = "C3" if sign > 0 else "C0"
            ax.plot(*moved[:, j].T, color=color, lw=1)
            ax.plot(*moved[-1, j], "o", color=color, ms=4)
        for w, s in zip(*map(np.asarray, case["teacher"]), strict=True):
            reach = 1.05 * np.abs(moved).max()
            ax.plot(
                [0, reach * s * w[0]], [0, reach * s * w[1]], ":", color="C3" if s > 0 else "C0"
            )
        ax.set(
            title=f"tau = {tau:g} (alpha = {tau**2:g})",
            xlabel="$a_j w_{j,1}$",
            ylabel="$a_j w_{j,2}$",
            aspect="equal",
        )
    figure.suptitle(
        "paths of the neurons $a_j w_j$; dotted: directions of the teacher; red: positive output weight",
        fontsize=10,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, file)
