"""NTK, mean-field and muP scalings are values of alpha: how far each layer moves, against the width.

    python -m experiments run coordinate_check                    # about 1 minute
    python -m experiments run coordinate_check --preset smoke     # about 20 seconds

Networks with two hidden layers of width m in the NTK parameterization, trained for a few steps as
f = alpha (h(w) - h(w0)) at alpha = m^-r, with one learning rate of u = alpha (w - w0) for all
widths and all r. Expected slopes in m of the change of an entry of each layer:

    | r    | hidden layers | outputs f | scaling                                        |
    | -1/2 | -1            | 0         | lazier than NTK scaling                        |
    | 0    | -1/2          | 0         | NTK: features stop moving                      |
    | 1/4  | -1/4          | 0         | between                                        |
    | 1/2  | 0             | 0         | muP, mean field: features move at every width  |

that is r - 1/2 for hidden layers, and 0 for outputs: alpha decides on what is learned, not on how
fast. The relative change of the tangent kernel has the slope r - 1 up to r = 0: units move by
m^(r - 1/2), with random signs, over which the kernel takes the mean. At r = 1/2 it is above -1/2,
the slope of such a mean. Negative control: in the standard parameterization at one learning rate
outputs move by a power of the width after a single step (slope 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import lazynet as ln
from experiments.harness import panels
from experiments.harness.bounds import Count, Number, Positive, Values
from experiments.harness.facts import power_law

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers"]


@dataclass(frozen=True)
class Config:
    """Widths, exponents of alpha, number of draws, and the training.

    Attributes:
        widths: Widths of both hidden layers.
        exponents: Values of r in alpha = width^-r.
        seeds: Number of draws.
        inputs: Dimension of the inputs.
        examples: Training examples.
        steps: Steps of gradient descent.
        learning_rate: Of u, the same for all widths and exponents.
        precision: Of the computation.
    """

    widths: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (64, 128, 256, 512, 1024)
    exponents: Annotated[tuple[Annotated[float, Number(above=-1, below=1)], ...], Values(1)] = (
        -0.5,
        0.0,
        0.25,
        0.5,
    )
    seeds: Count = 8
    inputs: Count = 16
    examples: Count = 32
    steps: Count = 10
    learning_rate: Positive = 1.0
    # At r = -1/2 the kernel changes by about m^(-3/2), 3e-5 at the largest width.
    precision: Literal["float32", "float64"] = "float64"


PRESETS = {"smoke": Config(widths=(64, 256, 1024), seeds=4), "laptop": Config()}

LAYERS = {"0_Dense": "first hidden layer", "2_Dense": "second hidden layer"}

TITLE = "change of an entry of each layer, mean over {seeds} seeds"


def measure(config: Config, store) -> dict[str, Any]:
    """Changes of layers, outputs and kernels, `[seeds, widths]`, each as `name/r=exponent`, and of the control."""
    columns: dict[str, list] = {}
    for width in store.track(config.widths, "training"):
        models = {scheme: network(width, scheme) for scheme in ("ntk", "standard")}
        draws = [measure_one(config, models, width, seed) for seed in range(config.seeds)]
        for name in draws[0]:
            columns.setdefault(name, []).append([float(draw[name]) for draw in draws])
    return {"width": config.widths} | {name: np.array(rows).T for name, rows in columns.items()}


def numbers(config: Config, arrays) -> dict[str, Any]:
    """The number of draws."""
    return {"seeds": config.seeds}


def facts(config: Config, arrays):
    """Slopes of hidden layers, outputs and kernels for each exponent, and of the control."""
    for r in config.exponents:
        for layer in LAYERS:
            name = f"{layer}/r={r:g}"
            yield power_law(name, config.widths, arrays[name], r - 0.5, 0.1)
        yield power_law(f"outputs/r={r:g}", config.widths, arrays[f"outputs/r={r:g}"], 0, 0.1)
        name = f"ntk_change/r={r:g}"
        if r <= 0:
            yield power_law(name, config.widths, arrays[name], r - 1, 0.3)
        elif r == 0.5:
            yield power_law(name, config.widths, arrays[name], at_least=-0.4)
    yield power_law("outputs/standard", config.widths, arrays["outputs/standard"], 1, 0.2)


def draw(config: Config, arrays):
    """Changes of the layers against the width, a curve for each exponent."""
    drawn = []
    titles = LAYERS | {"outputs": "outputs"}
    for layer, title in titles.items():
        curves = {
            # `0.0 - r` and not `-r`, which is shown as -0 at r = 0.
            rf"$\alpha=m^{{{0.0 - r:g}}}$": arrays[f"{layer}/r={r:g}"]
            for r in config.exponents
        }
        drawn.append(panels.Panel(title, config.widths, curves, "width $m$", "rms change"))
    figure = panels.figure(drawn)
    for ax in figure.axes:
        # Room for the legend below the curves and their errors.
        ax.set_ylim(bottom=ax.get_ylim()[0] / 20)
        ax.get_legend().set_loc("lower left")
    return figure


def measure_one(
    config: Config, models: dict[str, ln.Model], width: int, seed: int
) -> dict[str, Any]:
    """One draw of inputs, targets and weights, trained at every alpha, and one step of the control."""
    data = problem(config, jax.random.key(seed))
    key = jax.random.fold_in(jax.random.key(seed), 1)
    measured: dict[str, Any] = {}
    params0 = models["ntk"].init(key, data.x)
    for r in config.exponents:
        f = ln.lazy(models["ntk"].apply, params0, width**-r)
        u = descended(f, f.start(), data, config.learning_rate, config.steps)
        moved = changes(models["ntk"], ln.weights(f, u), params0, data)
        # f starts at zero: its size is its change.
        moved["outputs"] = jnp.sqrt(jnp.mean(f(u, data.x) ** 2))
        measured |= {f"{name}/r={r:g}": value for name, value in moved.items()}
    standard = models["standard"]
    params0 = standard.init(key, data.x)
    # So small that the step stays in the linear range of the widest network.
    rate = 1e-3 * config.learning_rate / config.widths[-1]
    params = descended(standard.apply, params0, data, rate, 1)
    moved = ln.diagnostics.coordinate_check(standard, params, params0, data.x)
    # The last layer, whose entries are the outputs.
    return measured | {"outputs/standard": moved["4_Dense"]}


def changes(model: ln.Model, params: Any, params0: Any, data: ln.Data) -> dict[str, Any]:
    """Of the hidden layers, and of the tangent kernel."""
    moved = ln.diagnostics.coordinate_check(model, params, params0, data.x)
    ntk = ln.empirical_ntk(model.apply, params, data.x, outputs="trace")
    ntk0 = ln.empirical_ntk(model.apply, params0, data.x, outputs="trace")
    found = {layer: moved[layer] for layer in LAYERS}
    return found | {"ntk_change": ln.diagnostics.kernel_distance(ntk, ntk0)}


def descended(apply: Any, params: Any, data: ln.Data, rate: float, steps: int) -> Any:
    """Gradient descent on the square loss."""
    goal = ln.objective(apply, ln.mse)
    settings = {"key": jax.random.key(0), "save_at": [0, steps], "learning_rate": rate}
    return ln.train(goal, params, data, ln.sgd(), **settings).params


def network(width: int, parameterization: Literal["ntk", "standard"]) -> ln.Model:
    """Two hidden layers of tanh units."""
    hidden = [ln.Dense(width, parameterization=parameterization) for _ in range(2)]
    tanh = ln.elementwise(jnp.tanh)
    last = ln.Dense(1, parameterization=parameterization)
    return ln.serial(hidden[0], tanh, hidden[1], tanh, last)


def problem(config: Config, key: jax.Array) -> ln.Data:
    """Gaussian inputs, and signs of one coordinate as targets."""
    x = jax.random.normal(key, (config.examples, config.inputs), jnp.dtype(config.precision))
    return ln.Data(x, jnp.sign(x[:, :1]))
