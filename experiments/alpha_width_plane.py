"""The plane of alpha and the width: one network at every scale and width, up to both limits.

    python -m experiments run alpha_width_plane                    # about 5 minutes
    python -m experiments run alpha_width_plane --preset smoke     # some seconds

Perceptrons with two hidden layers classify digits by full-batch gradient descent with momentum on
`lazy(apply, params0, alpha)`, for every width and every alpha, the linearized model (alpha = inf)
and the infinitely wide network (the exact descent of its kernel, for which alpha drops out)
included. Learning rate (0.1 of the largest stable one of the infinitely wide network) and number of
steps are the same everywhere.

Expected: the distance to the linearized model of the same initialization falls along every row from
alpha = 1 on, like 1/alpha in the end for a smooth activation, and along every column as the width
grows; the distance of the linearized model to the infinitely wide network falls with the width,
about like 1/sqrt(width); small alpha, where features are learned, gives the best test accuracy at
every width but the largest ones.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import lazynet as ln
from experiments.harness import bounds, facts, store
from experiments.harness.bounds import Count, Momentum, Positive, Scale, Values
from experiments.harness.progress import over_devices
from lazynet import datasets, dynamics, guards, zoo
from lazynet.records import Data

__all__ = ["PRESETS", "Config", "run", "show"]

MEASURES = ("accuracy", "to_linearized", "to_kernel")


@dataclass(frozen=True)
class Config:
    """Widths, scales, numbers of examples and of draws, and the training.

    Attributes:
        widths: Widths of the hidden layers.
        alphas: Scales, the last one inf.
        activation: Of the hidden layers.
        seeds: Number of draws.
        n_train: Training digits.
        n_test: Test digits.
        steps: Steps of training.
        lr_fraction: Learning rate over the largest stable one.
        momentum: Heavy-ball momentum.
        precision: Of the computation.
    """

    widths: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (8, 16, 32, 64, 128, 256)
    alphas: Annotated[tuple[Scale, ...], Values(3, increasing=True)] = (
        0.1,
        0.3,
        1.0,
        3.0,
        10.0,
        100.0,
        1000.0,
        math.inf,
    )
    activation: Literal["relu", "erf"] = "erf"
    seeds: Count = 4
    n_train: Count = 150
    n_test: Count = 500
    steps: Count = 600
    lr_fraction: Positive = 0.1
    momentum: Momentum = 0.9
    precision: Literal["float32", "float64"] = "float64"

    def check(self, prefix: str) -> None:
        """Refuses scales that do not end with the linearized model, and more digits than there are."""
        if self.alphas[-1] != math.inf:
            raise ValueError(f"{prefix}alphas got {self.alphas}, expected inf as the last one.")
        guards.count(f"{prefix}n_test", self.n_test, at_most=1797 - min(self.n_train, 1796))


PRESETS = {
    "smoke": Config(
        widths=(8, 32), alphas=(0.1, 1.0, 10.0, 100.0, math.inf), seeds=2, n_train=60, steps=150
    ),
    "laptop": Config(),
}


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Trains what is not stored yet, draws the plane and returns the flat summary."""
    bounds.check(config)
    train, test = load_data(config)
    limit, rate = infinite_width(config, train, test)
    cells = [(width, alpha) for width in reversed(config.widths) for alpha in config.alphas]
    outputs = over_devices(partial(_stored, config, folder, train, test, rate), cells, console)
    measured = measure(config, outputs, limit, test)
    store.save_arrays(
        folder / "measured.npz", {"width": config.widths, "alpha": config.alphas, **measured}
    )
    accuracy = float(ln.accuracy(jnp.asarray(limit), test.y))
    _draw(config, measured, accuracy, folder / "figures" / "alpha_width_plane.png")
    return _summary(config, measured, accuracy)


def show(summary: dict[str, Any], console) -> None:
    """Prints the plane of test accuracies and the table of facts."""
    from rich.table import Table

    names = [key.removeprefix("accuracy/") for key in summary if key.startswith("accuracy/width=")]
    alphas = list(dict.fromkeys(name.split("/")[1] for name in names))
    table = Table(
        "width",
        *(alpha.removeprefix("alpha=") for alpha in alphas),
        box=None,
        title="test accuracy % by alpha",
    )
    for width in dict.fromkeys(name.split("/")[0] for name in names):
        table.add_row(
            width.removeprefix("width="),
            *(f"{100 * summary[f'accuracy/{width}/{alpha}']:.1f}" for alpha in alphas),
        )
    table.add_row("inf", *[""] * (len(alphas) - 1), f"{100 * summary['accuracy/kernel']:.1f}")
    console.print(table)
    facts.show(
        summary, console, f"the plane of alpha and the width, mean of {summary['seeds']} seeds"
    )


def load_data(config: Config) -> tuple[Data, Data]:
    """Digits, standardized by the training set, with centered targets."""
    parts = datasets.standardize(
        *datasets.digits(config.n_train, config.n_test), center="feature", scale="global"
    )
    dtype = jnp.dtype(config.precision)
    return tuple(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), datasets.center_targets(part))
        for part in parts
    )


@functools.cache
def build(config: Config, width: int) -> ln.Model:
    """The perceptron of a width, one model for all alphas: another one would be compiled anew."""
    activation = {"relu": ln.Relu, "erf": ln.Erf}[config.activation]()
    return zoo.mlp((width, width), 10, activation=activation, b_std=0.1)


def infinite_width(config: Config, train: Data, test: Data) -> tuple[np.ndarray, float]:
    """Test outputs of the infinitely wide network after the same steps, and the learning rate of all networks."""
    model = build(config, 1)
    ntk = ln.analytic_kernel(model, train.x).ntk
    cross = ln.analytic_kernel(model, test.x, train.x).ntk
    rate = config.lr_fraction * dynamics.max_learning_rate(ntk, momentum=config.momentum)
    settings = dict(learning_rate=rate, momentum=config.momentum, save_at=[config.steps])
    solution = dynamics.solve_descent(ntk, train.y, **settings)
    return np.asarray(dynamics.kernel_outputs(cross, solution.coefficients))[-1], rate


def train_cell(
    config: Config, train: Data, test: Data, rate: float, width: int, alpha: float
) -> np.ndarray:
    """Test outputs `[seeds, m, 10]` of the networks of one width at one alpha."""
    model = build(config, width)
    outputs = []
    for key in jax.random.split(jax.random.key(0), config.seeds):
        function = ln.lazy(model.apply, model.init(key, train.x), alpha)
        settings = dict(key=key, save_at=[config.steps], learning_rate=rate)
        curve = ln.train(
            ln.objective(function, ln.mse), None, train, ln.sgd(config.momentum), **settings
        )
        outputs.append(np.asarray(_evaluate(function, curve.params, test.x)))
    return np.stack(outputs)


@jax.jit
def _evaluate(function, u, x):
    return function(u, x)


def measure(config: Config, outputs: dict, limit: np.ndarray, test: Data) -> dict[str, np.ndarray]:
    """Test accuracy, and rms distances to the linearized model and to the infinitely wide network, `[seeds, w, a]`."""
    labels = np.asarray(test.y).argmax(-1)
    shape = (config.seeds, len(config.widths), len(config.alphas))
    measured = {name: np.zeros(shape) for name in MEASURES}
    for i, width in enumerate(config.widths):
        for j, alpha in enumerate(config.alphas):
            f = outputs[width, alpha]
            linearized = outputs[width, math.inf]
            measured["accuracy"][:, i, j] = np.mean(f.argmax(-1) == labels, axis=1)
            measured["to_linearized"][:, i, j] = _distances(f, linearized)
            measured["to_kernel"][:, i, j] = _distances(f, np.broadcast_to(limit, f.shape))
    return measured


def _distances(f, reference):
    """`|f - g| / |g|` for each seed."""
    return np.sqrt(np.sum((f - reference) ** 2, axis=(1, 2)) / np.sum(reference**2, axis=(1, 2)))


def _stored(config, folder, train, test, rate, cell) -> np.ndarray:
    width, alpha = cell
    path = folder / "cells" / f"width={width},alpha={alpha:g}.npz"
    compute = partial(train_cell, config, train, test, rate, width, alpha)
    return store.stored_arrays(path, lambda: {"outputs": compute()})["outputs"]


def _summary(config, measured, kernel_accuracy) -> dict[str, Any]:
    summary: dict[str, Any] = {"seeds": config.seeds, "accuracy/kernel": kernel_accuracy}
    for name, values in measured.items():
        for (i, width), (j, alpha) in _pairs(config):
            summary[f"{name}/width={width}/alpha={alpha:g}"] = float(values[:, i, j].mean())
    return summary | facts.summarize(list(_facts(config, measured)))


def _pairs(config):
    return [
        (row, column) for row in enumerate(config.widths) for column in enumerate(config.alphas)
    ]


def _facts(config, measured):
    gap = measured["to_linearized"].mean(0)
    distance = measured["to_kernel"].mean(0)
    lazy = np.asarray([alpha for alpha in config.alphas if 10 <= alpha < math.inf])
    columns = [config.alphas.index(alpha) for alpha in lazy]
    from_one = gap[:, [i for i, alpha in enumerate(config.alphas) if alpha >= 1]]
    yield facts.within(
        "rows/largest ratio of neighbors", (from_one[:, 1:] / from_one[:, :-1]).max(), at_most=1
    )
    yield facts.within(
        "columns/widest over narrowest at alpha=1", _ratio(config, gap, 1.0), at_most=0.7
    )
    if len(lazy) > 1 and config.activation == "erf":
        for i, width in enumerate(config.widths):
            values = measured["to_linearized"][:, i][:, columns]
            yield facts.power_law(f"to_linearized/width={width}", lazy, values, -1, 0.15)
    if len(config.widths) > 3:
        yield facts.power_law(
            "to_kernel/alpha=inf", config.widths[1:], measured["to_kernel"][:, 1:, -1], -0.5, 0.15
        )
        yield facts.within("to_kernel/widest", distance[-1, -1], at_most=distance[0, -1] / 2)


def _ratio(config, values, alpha):
    column = config.alphas.index(alpha) if alpha in config.alphas else 0
    return values[-1, column] / values[0, column]


def _draw(config, measured, kernel_accuracy, file) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from lazynet import plots

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    titles = (
        "test accuracy, %",
        "distance to the linearized model",
        "distance to the infinitely wide network",
    )
    for ax, name, title in zip(figure.subplots(1, 3), MEASURES, titles, strict=True):
        values = measured[name].mean(0)
        if name == "accuracy":
            values = np.vstack([100 * values, np.full(len(config.alphas), 100 * kernel_accuracy)])
            image = ax.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        else:
            norm = LogNorm(*np.percentile(values[values > 0], [0, 100]))
            image = ax.imshow(
                np.where(values > 0, values, np.nan), origin="lower", aspect="auto", norm=norm
            )
        _label(ax, config, values, name, image.norm)
        ax.set_title(title, fontsize=11)
        figure.colorbar(image, ax=ax, pad=0.02)
    file.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, file)


def _label(ax, config, values, name, norm) -> None:
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:.0f}" if name == "accuracy" else _short(value)
        ax.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color="black" if norm(value) > 0.6 else "white",
        )
    rows = [*map(str, config.widths), *(["inf"] if name == "accuracy" else [])]
    ax.set(xlabel="alpha", ylabel="width", yticks=range(len(rows)), yticklabels=rows)
    ax.set_xticks(range(len(config.alphas)), [f"{alpha:g}" for alpha in config.alphas])


def _short(value) -> str:
    return f"{value:.1g}" if value >= 0.01 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
