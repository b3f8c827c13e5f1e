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
import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.table import Table

import lazynet as ln
from experiments.harness.bounds import Count, Momentum, Positive, Scale, Values
from experiments.harness.facts import power_law, within
from lazynet import datasets, dynamics, guards, zoo
from lazynet.records import Data

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers", "report"]

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


TITLE = "the plane of alpha and the width, mean of {seeds} seeds"


def measure(config: Config, store) -> dict[str, Any]:
    """Accuracy and distances to both limits, `[seeds, widths, alphas]`, and the accuracy of the kernel."""
    train, test = load_data(config)
    limit, rate = infinite_width(config, train, test)

    def cell(width_alpha):
        width, alpha = width_alpha
        name = f"width={width},alpha={alpha:g}"
        stored = store.read(name)
        if stored is None:
            outputs = train_cell(config, train, test, rate, width, alpha)
            stored = store.write(name, {"outputs": outputs})
        return stored["outputs"]

    # The longest ones first: devices that are done take what is left.
    widest_first = list(itertools.product(reversed(config.widths), config.alphas))
    outputs = store.spread(cell, widest_first)
    kernel = {"kernel_accuracy": ln.accuracy(jnp.asarray(limit), test.y)}
    axes = {"width": config.widths, "alpha": config.alphas}
    return axes | distances(config, outputs, limit, test) | kernel


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Means over seeds at every point of the plane; a distance to what diverged is left out."""
    summary: dict[str, Any] = {"seeds": config.seeds}
    summary["accuracy/kernel"] = float(arrays["kernel_accuracy"])
    for name in MEASURES:
        for i, width in enumerate(config.widths):
            for j, alpha in enumerate(config.alphas):
                mean = float(arrays[name][:, i, j].mean())
                # JSON has neither nan nor infinity.
                if math.isfinite(mean):
                    summary[f"{name}/width={width}/alpha={alpha:g}"] = mean
    return summary


def facts(config: Config, arrays):
    """Networks become linear along rows and columns, and linearized ones become the kernel along columns."""
    gap = arrays["to_linearized"].mean(0)
    # Below alpha = 1 the weights move so far that the distance to the linearized model saturates.
    from_one = gap[:, np.asarray(config.alphas) >= 1]
    if from_one.shape[1] > 1:
        growth = (from_one[:, 1:] / from_one[:, :-1]).max()
        yield within("rows/largest ratio of neighbors", growth, at_most=1)
    if 1.0 in config.alphas:
        one = config.alphas.index(1.0)
        narrowing = gap[-1, one] / gap[0, one]
        yield within("columns/widest over narrowest at alpha=1", narrowing, at_most=0.7)
    lazy = [alpha for alpha in config.alphas if 10 <= alpha < math.inf]
    if len(lazy) > 1 and config.activation == "erf":
        columns = [config.alphas.index(alpha) for alpha in lazy]
        for i, width in enumerate(config.widths):
            values = arrays["to_linearized"][:, i][:, columns]
            yield power_law(f"to_linearized/width={width}", lazy, values, -1, 0.15)
    if len(config.widths) > 3:
        linearized = arrays["to_kernel"][:, :, -1]
        yield power_law("to_kernel/alpha=inf", config.widths[1:], linearized[:, 1:], -0.5, 0.15)
        narrowest, *_, widest = linearized.mean(0)
        yield within("to_kernel/widest", widest, at_most=narrowest / 2)


def report(summary):
    """The plane of test accuracies."""
    names = [key.removeprefix("accuracy/") for key in summary if key.startswith("accuracy/width=")]
    alphas = list(dict.fromkeys(name.split("/")[1] for name in names))
    titles = [alpha.removeprefix("alpha=") for alpha in alphas]
    table = Table("width", *titles, box=None, title="test accuracy % by alpha")
    for width in dict.fromkeys(name.split("/")[0] for name in names):
        row = [f"{100 * summary[f'accuracy/{width}/{alpha}']:.1f}" for alpha in alphas]
        table.add_row(width.removeprefix("width="), *row)
    table.add_row("inf", *[""] * (len(alphas) - 1), f"{100 * summary['accuracy/kernel']:.1f}")
    yield table


def draw(config: Config, arrays):
    """Three maps of the plane."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    titles = {
        "accuracy": "test accuracy, %",
        "to_linearized": "distance to the linearized model",
        "to_kernel": "distance to the infinitely wide network",
    }
    for ax, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        values = arrays[name].mean(0)
        if name == "accuracy":
            # Alpha drops out at infinite width: one number fills the row.
            kernel = np.full(len(config.alphas), float(arrays["kernel_accuracy"]))
            values = 100 * np.vstack([values, kernel])
            image = ax.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        else:
            # The linearized model is at distance zero from itself, which has no logarithm.
            positive = np.where((values > 0) & np.isfinite(values), values, np.nan)
            # Where all networks diverged there is no range of colors either.
            diverged = np.isnan(positive).all()
            norm = None if diverged else LogNorm(np.nanmin(positive), np.nanmax(positive))
            image = ax.imshow(positive, origin="lower", aspect="auto", norm=norm)
        _label(ax, config, values, name, image.norm)
        ax.set_title(title, fontsize=11)
        figure.colorbar(image, ax=ax, pad=0.02)
    return figure


def load_data(config: Config) -> tuple[Data, Data]:
    """Digits, standardized by the training set, with centered targets."""
    digits = datasets.digits(config.n_train, config.n_test)
    train, test = datasets.standardize(*digits, center="feature", scale="global")
    return _prepared(config, train), _prepared(config, test)


def _prepared(config: Config, data: Data) -> Data:
    """Centered targets, in the precision of the configuration."""
    x, y = datasets.center_targets(data)
    dtype = jnp.dtype(config.precision)
    return Data(jnp.asarray(x, dtype), jnp.asarray(y, dtype))


@functools.cache
def build(config: Config, width: int) -> ln.Model:
    """The perceptron of a width, one model for all alphas: another one would be compiled anew."""
    activation = {"relu": ln.Relu, "erf": ln.Erf}[config.activation]()
    return zoo.mlp((width, width), 10, activation=activation, b_std=0.1)


def infinite_width(config: Config, train: Data, test: Data) -> tuple[np.ndarray, float]:
    """Test outputs of the infinitely wide network after the same steps, and the learning rate of all networks."""
    # The limit does not depend on the width of the model that it is computed from.
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
    optimizer = ln.sgd(config.momentum)
    # The same keys at every alpha: distances are to the linearized model of the same first weights.
    for key in jax.random.split(jax.random.key(0), config.seeds):
        function = ln.lazy(model.apply, model.init(key, train.x), alpha)
        goal = ln.objective(function, ln.mse)
        settings = dict(key=key, save_at=[config.steps], learning_rate=rate)
        curve = ln.train(goal, None, train, optimizer, **settings)
        outputs.append(np.asarray(_evaluate(function, curve.params, test.x)))
    return np.stack(outputs)


# The function is a pytree with alpha and w0 as leaves: all finite alphas are one program.
@jax.jit
def _evaluate(function, u, x):
    return function(u, x)


def distances(
    config: Config, outputs: dict, limit: np.ndarray, test: Data
) -> dict[str, np.ndarray]:
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


def _label(ax, config, values, name, norm) -> None:
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:.0f}" if name == "accuracy" else _short(value)
        color = "black" if norm(value) > 0.6 else "white"
        ax.text(j, i, text, ha="center", va="center", fontsize=8, color=color)
    rows = [*map(str, config.widths), *(["inf"] if name == "accuracy" else [])]
    ax.set(xlabel="alpha", ylabel="width", yticks=range(len(rows)), yticklabels=rows)
    ax.set_xticks(range(len(config.alphas)), [f"{alpha:g}" for alpha in config.alphas])


def _short(value) -> str:
    return f"{value:.1g}" if value >= 0.01 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
