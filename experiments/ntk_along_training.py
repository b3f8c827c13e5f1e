"""The tangent kernel along standard training: it predicts the velocity of the outputs, slows down, and learns.

    python -m experiments run ntk_along_training --set data.root=DIR                 # about 20 CPU minutes
    python -m experiments run ntk_along_training --preset smoke                      # digits, about 40 CPU seconds
    python -m experiments run ntk_along_training --preset paper --set data.root=DIR  # VGG-11, meant for a GPU

A network is trained by minibatches with momentum (alpha = 1), on the square loss and on
cross-entropy. At checkpoints:

- the velocity of all outputs under gradient flow, `dF/dt = -Theta_t grad l(F)` with l the mean
  loss, on training and on test examples, is compared with what one step of full-batch gradient
  descent of size eta does. Expected: the relative error falls like eta (slope 1 within 0.15), for
  both losses, whatever the training has done to the kernel. With `--set network.activation=relu`
  gates flip one by one, with either sign, and it falls like eta^(1/2) (0.50 and 0.54 for a small
  CNN). The negative control takes the initial kernel instead of the current one: an error that no
  step makes small;
- the kernel's velocity `|Theta_(t+1) - Theta_t| / |Theta_t|` per unit of time, on the training
  examples and averaged over outputs. Expected: it falls along training, by more than a factor of 2
  from the first two checkpoints to the last two;
- kernel regression with Theta_t, beside the network itself. Expected: close to interpolation (a
  ridge of 1e-4 of the mean diagonal), the last kernel classifies better than the first one,
  although regression with it is as linear: on 2,000 images of CIFAR-10 (JPEG) 43.2 % (square loss)
  and 44.9 % (cross-entropy) against 40.8 %. Networks of other sizes have given the opposite: the
  comparison is reported, and no fact is made of it. Beside it stand ridges chosen for each kernel,
  on one half of the test examples for the other half and the reverse, and not by leaving training
  examples out, because the later kernels have seen their labels.

Training and velocities are in float64, the kernels in float32.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

import lazynet as ln
from experiments import lazy_vs_standard
from experiments.harness import panels
from experiments.harness.bounds import Positive, Seed, Values
from experiments.harness.facts import power_law, within
from experiments.harness.progress import bar
from experiments.harness.store import load_checkpoint, part, save_checkpoint
from experiments.lazy_vs_standard import NetworkConfig, TrainConfig, cells
from experiments.shared.data import DataConfig
from experiments.shared.training import LOSSES, curve_of, named
from lazynet import datasets, diagnostics, dynamics, empirical, guards, plots, trees
from lazynet.losses import Objective
from lazynet.records import Data, Trajectory
from lazynet.training.checkpoints import curve_arrays

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers", "report"]

PARTS = ("train", "test")
RIDGES = 10.0 ** np.arange(-4, 2)
"""Ridges of the regressions, relative to the mean of the kernel's diagonal; the smallest one nearly interpolates."""


@dataclass(frozen=True)
class Config:
    """Data, network and training as in `lazy_vs_standard`; sizes of the steps over the largest stable one.

    Attributes:
        data: Examples.
        network: Architecture.
        train: Training, with at least 4 records.
        losses: Losses, one training each.
        fractions: Sizes of the steps over the largest stable one.
        seed: Of weights and batches.
        precision: Of the computation.
    """

    data: DataConfig = field(
        default_factory=lambda: DataConfig("cifar10", n_train=2000, n_test=1000)
    )
    network: NetworkConfig = NetworkConfig(
        "cnn", (16, 32, 32), (2, 2, 1), activation="gelu", b_std=0.0
    )
    train: TrainConfig = TrainConfig(batch_size=50, epochs=60, lr_fraction=0.4, records=7)
    losses: Annotated[tuple[Literal["mse", "cross_entropy"], ...], Values()] = (
        "mse",
        "cross_entropy",
    )
    fractions: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (1e-3, 1e-2, 1e-1)
    seed: Seed = 0
    # Velocities are differences of outputs over steps of 1e-3 of the stable one.
    precision: Literal["float32", "float64"] = "float64"

    def check(self, prefix: str) -> None:
        """Refuses trainings that cannot run, or have too few records."""
        guards.count(f"{prefix}train.records", self.train.records, at_least=4)
        for loss in self.losses:
            _problem(self, loss).check(prefix)


PRESETS = {
    "smoke": Config(
        data=DataConfig("digits", n_train=200, n_test=400),
        network=NetworkConfig("mlp", (16, 16), activation="gelu"),
        train=TrainConfig(batch_size=50, epochs=100, lr_fraction=0.2, records=6),
    ),
    "laptop": Config(),
    "paper": Config(
        data=DataConfig("cifar10", n_train=5000, n_test=5000),
        network=NetworkConfig("vgg11", b_std=0.0),
        train=TrainConfig(batch_size=100, epochs=70, lr_fraction=0.4, records=12),
    ),
}


class Setting(NamedTuple):
    """What all checkpoints of one loss share; `rate` is the largest stable learning rate of the initial kernel."""

    loss: str
    model: ln.Model
    params0: Any
    objective: Objective
    train: Data
    test: Data
    rate: float


TITLE = "{title}"
WORDS = {"mse": "square loss", "cross_entropy": "cross-entropy"}


def measure(config: Config, store) -> dict[str, Any]:
    """Curves of the trainings, and what was measured at every checkpoint, as `loss=mse/...`."""
    model = cells.build(_problem(config, "mse"))
    arrays: dict[str, Any] = {}
    for loss in config.losses:
        setting = _setting(config, loss, model)
        states = part(store.folder / "states" / f"loss={loss}")
        curve = _train(config, setting, states, store.console)
        arrays |= named(f"loss={loss}", curve_arrays(curve))
        checkpoints = _measure_all(config, setting, curve, states, store)
        for name in checkpoints[0]:
            # Kept in the cells alone: `[n, n]` at every checkpoint is large.
            if name != "kernel":
                values = [checkpoint[name] for checkpoint in checkpoints]
                arrays[f"loss={loss}/{name}"] = np.stack(values)
        kernels = [checkpoint["kernel"] for checkpoint in checkpoints]
        velocities, distances = _kernel_path(curve, kernels)
        arrays[f"loss={loss}/kernel_velocity"] = velocities
        arrays[f"loss={loss}/kernel_distance"] = distances
    return arrays


def numbers(config: Config, arrays) -> dict[str, Any]:
    """What was measured at every checkpoint."""
    summary: dict[str, Any] = {}
    for loss in config.losses:
        curve = curve_of(arrays, f"loss={loss}")
        columns = {
            "time": curve.time,
            "velocity_error_train": arrays[f"loss={loss}/error/train"][:, 0],
            "velocity_error_test": arrays[f"loss={loss}/error/test"][:, 0],
            "kernel_velocity": arrays[f"loss={loss}/kernel_velocity"],
            "kernel_distance": arrays[f"loss={loss}/kernel_distance"],
            "test_accuracy_kernel": arrays[f"loss={loss}/accuracy"],
            "test_accuracy_kernel_tuned": arrays[f"loss={loss}/accuracy_tuned"],
            "test_accuracy_network": curve.metrics["test_accuracy"],
        }
        for i, step in enumerate(curve.step.tolist()):
            for name, values in columns.items():
                # No velocity leads away from the last kernel.
                known = i < len(values)
                summary[f"{name}/loss={loss}/step={step}"] = float(values[i]) if known else None
    title = f"{config.data.title}, {config.data.n_train} training examples, {config.network.name}"
    return summary | {"title": title}


def facts(config: Config, arrays):
    """The kernel predicts velocities, the initial one does not; it slows down, and regression with it gains."""
    for loss in config.losses:
        for split in PARTS:
            errors = arrays[f"loss={loss}/error/{split}"]
            name = f"velocity_error_{split}/{loss}"
            yield power_law(name, config.fractions, errors[:, :-1], **_expected_slope(config))
            yield within(f"largest_{name}", errors[:, 0].max(), at_most=0.01)
            yield within(f"control_{name}", errors[-1, -1], at_least=0.1)
        first, *_, last = arrays[f"loss={loss}/kernel_velocity"]
        yield within(f"kernel_velocity_last_over_first/{loss}", last / first, at_most=0.5)
        first, *_, last = arrays[f"loss={loss}/accuracy"]
        yield within(f"gain_of_nearly_interpolating_regression/{loss}", last - first, at_least=0.0)


def report(summary):
    """One row for each checkpoint."""
    table = Table("loss, step", *(title for title, _ in COLUMNS.values()), box=None)
    for checkpoint in [key.removeprefix("time/") for key in summary if key.startswith("time/")]:
        row = []
        for name, (_, style) in COLUMNS.items():
            value = summary[f"{name}/{checkpoint}"]
            row.append("-" if value is None else format(value, style))
        table.add_row(checkpoint.replace("loss=", "").replace("/step=", ", "), *row)
    yield table


def draw(config: Config, arrays):
    """Errors of the predicted velocities, the path of the kernel, and accuracies."""
    figure = Figure(figsize=(14.5, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    errors = {}
    for loss in config.losses:
        for split in PARTS:
            errors[f"{WORDS[loss]}, {split}"] = arrays[f"loss={loss}/error/{split}"][:, :-1]
    title = "predicted velocity, all checkpoints"
    xlabel = r"step $\eta\,/\,\eta_{\max}$"
    ylabel = "relative error of the velocity"
    panels.draw(panels.Panel(title, config.fractions, errors, xlabel, ylabel), left)
    for style, loss in zip(plots.curve_styles(len(config.losses)), config.losses, strict=True):
        _draw_kernel_path(middle, arrays, loss, style)
    styles = plots.curve_styles(2 * len(config.losses))
    for i, loss in enumerate(config.losses):
        _draw_accuracies(right, arrays, loss, *styles[2 * i : 2 * i + 2])
    for ax, title in ((middle, "kernel on training examples"), (right, "test accuracy")):
        ax.set(xscale="log", xlabel=r"gradient-flow time $t$")
        ax.set_title(title, fontsize=11)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    middle.set(yscale="log", ylabel="relative change: per unit of time, and in all")
    right.set(ylabel="accuracy in %")
    return figure


COLUMNS = {
    "time": ("time", ".4g"),
    "velocity_error_train": ("velocity\nerror, train", ".1e"),
    "velocity_error_test": ("velocity\nerror, test", ".1e"),
    "kernel_velocity": ("kernel\nvelocity", ".2g"),
    "kernel_distance": ("distance\nfrom start", ".3f"),
    "test_accuracy_kernel": ("kernel\nacc.", ".1%"),
    "test_accuracy_kernel_tuned": ("best\nridge", ".1%"),
    "test_accuracy_network": ("network\nacc.", ".1%"),
}


def predicted_velocity(
    objective: Objective, params: Any, data: Data, x: Any, at: Any = None
) -> jax.Array:
    """`dF/dt = -Theta(x, X) grad l(F(X))` under gradient flow from `params`; the kernel at `at`, by default there."""
    slope = _output_gradient(objective, params, data)
    weights = params if at is None else at
    # The loss is a mean over n examples: its gradient in the outputs holds the 1/n of the flow.
    return -empirical.ntk_vector_product(objective.apply, weights, x, data.x)(slope)


@jax.jit
def stepped_velocity(
    objective: Objective, params: Any, data: Data, x: Any, rate: float | jax.Array
) -> jax.Array:
    """`(F(w - eta grad R(w)) - F(w)) / eta`: the same velocity from one step of gradient descent."""
    gradient = jax.grad(objective.value)(params, data)
    moved = trees.add_scaled(params, -jnp.asarray(rate), gradient)
    change = objective.apply(moved, x) - objective.apply(params, x)
    return change / jnp.asarray(rate, change.dtype)


@jax.jit
def _output_gradient(objective, params, data):
    return jax.grad(objective.loss)(objective.apply(params, data.x), data.y)


def _problem(config: Config, loss: str) -> lazy_vs_standard.Config:
    parts = {name: getattr(config, name) for name in ("data", "network", "train", "precision")}
    # Kernels here are those of all test examples.
    return lazy_vs_standard.Config(loss=loss, ntk_examples=config.data.n_test, **parts)


def _setting(config: Config, loss: str, model: ln.Model) -> Setting:
    problem = _problem(config, loss)
    train, test = cells.load_data(problem)
    keys = [jax.random.fold_in(jax.random.key(config.seed), i) for i in range(2)]
    params0 = jax.jit(model.init)(keys[0], train.x)
    # Without momentum, as the steps that measure velocities have none.
    rate = empirical.estimate_max_learning_rate(model.apply, params0, train.x[:250], key=keys[1])
    objective = ln.objective(ln.lazy(model.apply, params0, 1.0), LOSSES[loss])
    return Setting(loss, model, params0, objective, train, test, rate)


def _train(config: Config, setting: Setting, folder: Path, console) -> Trajectory:
    """The training curve; the state at each checkpoint is stored, and a killed training goes on from the last one."""
    plan = config.train
    optimizer = ln.sgd(plan.momentum)
    save_at = ln.log_spaced(plan.epochs * (len(setting.train.x) // plan.batch_size), plan.records)
    # States are kept at every checkpoint, since the kernels are computed from them.
    done = [step for step in save_at if _state_path(folder, step).exists()]
    resume = _load_state(setting, _state_path(folder, done[-1]), optimizer) if done else None
    if resume is not None and done[-1] == save_at[-1]:
        return resume[1]
    with bar(console, "steps") as progress:
        task = progress.add_task(folder.name, total=save_at[-1])

        def on_save(state, curve):
            progress.update(task, completed=state.step)
            save_checkpoint(_state_path(folder, state.step), state, curve)

        # Momentum m allows a rate that is 1 + m times as large.
        return ln.train(
            setting.objective,
            None,
            setting.train,
            optimizer,
            key=jax.random.fold_in(jax.random.key(config.seed), 2),
            save_at=save_at,
            learning_rate=plan.lr_fraction * setting.rate * (1 + plan.momentum),
            batch_size=plan.batch_size,
            test=setting.test,
            on_save=on_save,
            resume=resume,
        )


def _state_path(folder: Path, step: int) -> Path:
    return part(folder / f"step={step}.npz")


def _load_state(setting: Setting, path: Path, optimizer) -> tuple[ln.TrainState, Trajectory]:
    zeros = trees.zeros_like(setting.params0)
    return load_checkpoint(path, ln.TrainState(0, 0.0, zeros, optimizer.init(zeros)))


def _measure_all(config, setting, curve, states, store) -> list[dict[str, np.ndarray]]:
    """The measurements at every checkpoint, each from the store or made now."""
    optimizer = ln.sgd(config.train.momentum)
    loss = setting.loss
    measured = []
    for step in store.track(curve.step.tolist(), f"checkpoints, {loss}"):
        name = f"loss={loss},step={step}"
        checkpoint = store.read(name)
        if checkpoint is None:
            state = _state_path(states, step)
            checkpoint = store.write(name, _measure(config, setting, state, optimizer))
        measured.append(checkpoint)
    return measured


def _measure(config: Config, setting: Setting, path: Path, optimizer) -> dict[str, Any]:
    """Errors of velocities for every step size, the control's for the smallest, the kernel, and its accuracy."""
    u = _load_state(setting, path, optimizer)[0].params
    errors = {
        "error/train": _errors(config, setting, u, setting.train.x),
        "error/test": _errors(config, setting, u, setting.test.x),
    }
    # Velocities are differences of close outputs; kernels, for which float32 is enough, are cheaper in it.
    everything = (ln.weights(setting.objective.apply, u), setting.train.x, setting.test.x)
    weights, x, x_test = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), everything)
    kernel = empirical.empirical_ntk(setting.model.apply, weights, x, outputs="trace")
    cross = empirical.empirical_ntk(setting.model.apply, weights, x_test, x, outputs="trace")
    hits = _hits(kernel, cross, setting.train, setting.test)
    return errors | {"kernel": kernel, "accuracy": hits[0].mean(), "accuracy_tuned": _tuned(hits)}


def _errors(config: Config, setting: Setting, u, x) -> np.ndarray:
    """Relative errors of the predicted velocity at x, of the smallest step first, and last that of the control."""
    goal = setting.objective
    predicted = predicted_velocity(goal, u, setting.train, x)
    # The displacement is zero at w0: this is the control, with the first kernel.
    initial = predicted_velocity(goal, u, setting.train, x, at=trees.zeros_like(u))
    rates = [fraction * setting.rate for fraction in config.fractions]
    actual = [stepped_velocity(goal, u, setting.train, x, rate) for rate in rates]
    errors = [_relative(predicted, velocity) for velocity in actual]
    return np.array([*errors, _relative(initial, actual[0])])


def _relative(predicted, actual) -> float:
    return float(jnp.linalg.norm(predicted - actual) / jnp.linalg.norm(actual))


def _hits(kernel, cross, train: Data, test: Data) -> np.ndarray:
    """Which test examples regression on centered one-hot targets classifies, for every ridge, `[r, m]`."""
    # Targets of cross-entropy are not centered; regression is the same for both losses.
    labels = datasets.one_hot_centered(np.asarray(train.y).argmax(axis=1), train.y.shape[1])
    ridges = RIDGES * float(np.mean(np.diag(kernel)))
    outputs = dynamics.kernel_regression(kernel, Data(train.x, labels), cross=cross, ridge=ridges)
    return outputs.argmax(axis=2) == np.asarray(test.y).argmax(axis=1)


def _tuned(hits: np.ndarray) -> float:
    """Accuracy on each half of the test examples with the ridge that is best on the other half."""
    # Test examples come class by class in turn: every other one would be half of the classes.
    order = np.random.default_rng(0).permutation(hits.shape[1])
    # Each half chooses for the other: later kernels have seen the training labels.
    first = hits[:, order[::2]]
    second = hits[:, order[1::2]]
    on_first = first[second.mean(axis=1).argmax()].mean()
    on_second = second[first.mean(axis=1).argmax()].mean()
    return float(np.mean([on_first, on_second]))


def _kernel_path(curve: Trajectory, kernels) -> tuple[np.ndarray, np.ndarray]:
    """Velocities of the kernel from each checkpoint to the next, and distances of all from the first one."""
    distance = diagnostics.kernel_distance
    steps = [float(distance(b, a)) for a, b in itertools.pairwise(kernels)]
    distances = [float(distance(kernel, kernels[0])) for kernel in kernels]
    return np.array(steps) / np.diff(curve.time), np.array(distances)


def _expected_slope(config: Config) -> dict[str, float]:
    """One for smooth functions of the weights; one half where many gates flip, and one again where hardly any do."""
    smooth = config.network.activation != "relu" and config.network.name != "vgg11"
    return {"expected": 1.0, "tolerance": 0.15} if smooth else {"at_least": 0.35, "at_most": 1.15}


def _draw_kernel_path(ax, arrays, loss, style) -> None:
    """Velocities in the middle of their intervals, and thin lines for the distances from the first kernel."""
    time = arrays[f"loss={loss}/curve/time"]
    middles = (time[:-1] + time[1:]) / 2
    label = f"{WORDS[loss]}: velocity"
    ax.plot(middles, arrays[f"loss={loss}/kernel_velocity"], label=label, **style)
    thin = {**style, "linewidth": 0.8, "alpha": 0.6, "label": f"{WORDS[loss]}: distance"}
    ax.plot(time[1:], arrays[f"loss={loss}/kernel_distance"][1:], **thin)


def _draw_accuracies(ax, arrays, loss, of_network, of_kernel) -> None:
    """The network, and regression with the kernel: with the smallest ridge, and with the best one (thin lines)."""
    curve = curve_of(arrays, f"loss={loss}")
    # On a logarithmic axis the start stands left of the first step.
    time = np.where(curve.time > 0, curve.time, curve.time[1] / 3)
    word = WORDS[loss]
    ax.plot(time, 100 * curve.metrics["test_accuracy"], label=f"{word}: network", **of_network)
    drawn = {"accuracy": (r"$\Theta_t$", 1.5), "accuracy_tuned": (r"$\Theta_t$, best ridge", 0.7)}
    for name, (title, width) in drawn.items():
        settings = {**of_kernel, "linewidth": width, "label": f"{word}: {title}"}
        ax.plot(time, 100 * arrays[f"loss={loss}/{name}"], **settings)
