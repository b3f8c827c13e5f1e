"""How fast networks approach their infinite-width limits: kernels, training and the law of the outputs.

    python -m experiments run width_convergence                    # about two minutes
    python -m experiments run width_convergence --preset smoke     # about 40 seconds

Fully connected networks in the NTK parameterization, width m in every hidden layer. Expected slopes
in m:

    | relative error of the empirical NTK, 1, 2, 3 hidden ReLU layers        | -1/2          |
    | ... of depth 1 against the kernel of depth 2 (negative control)        | 0             |
    | training of 2 hidden tanh layers, 100 steps of a fixed learning rate:  |               |
    |   relative change of the input and of the output weights               | -1/2          |
    |   relative change of the hidden weights                                | -1            |
    |   relative change of the NTK                                           | about -1      |
    |   distance of all weights from their start                             | 0             |
    |   distance from the weights of the linearized network                  | -1/2          |
    |   distance from the outputs of the linearized network                  | about -1      |
    | law of the outputs at initialization, 1 hidden ReLU layer:             |               |
    |   excess kurtosis (15/m exactly)                                       | -1            |
    |   relative covariance of the squares of two outputs (5/m exactly)      | -1            |

Where lecture notes state o(1/m) for the distance to the weights of the linearized network, it is
m^(-1/2) in this parameterization. The slopes of the change of the NTK and of the output gap depend
on the training time: the fact is the interval from -1.15 to -0.45.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import lazynet as ln
from experiments.harness import panels
from experiments.harness.bounds import Count, Positive, Values
from experiments.harness.facts import close, power_law
from experiments.shared.flows import descent_direction

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers"]


@dataclass(frozen=True)
class Config:
    """Widths and draws of the three parts, and the problem.

    Attributes:
        depths: Hidden layers of the kernels.
        widths: Widths of the kernels.
        seeds: Draws of the kernels.
        inputs: Dimension of the inputs.
        examples: Training examples.
        training_widths: Widths of the trained networks.
        training_seeds: Draws of the trained networks.
        learning_rate: Of gradient descent.
        steps: Steps of gradient descent.
        output_widths: Widths whose outputs are compared with a Gaussian.
        networks: Networks whose outputs are drawn.
        outputs: Outputs of each.
        precision: Of the computation.
    """

    depths: Annotated[tuple[Count, ...], Values(1, increasing=True)] = (1, 2, 3)
    widths: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (32, 64, 128, 256, 512, 1024)
    seeds: Count = 30
    inputs: Count = 8
    examples: Count = 12
    training_widths: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (
        32,
        64,
        128,
        256,
        512,
    )
    training_seeds: Count = 8
    learning_rate: Positive = 1.0
    steps: Count = 100
    output_widths: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (8, 16, 32, 64, 128)
    networks: Count = 40_000
    outputs: Count = 16
    precision: Literal["float32", "float64"] = "float64"


PRESETS = {
    "smoke": Config(
        widths=(32, 128, 512),
        training_widths=(32, 96, 288),
        training_seeds=5,
        output_widths=(8, 24, 72),
        networks=10_000,
    ),
    "laptop": Config(),
}

CHUNK = 1000
"""Networks whose outputs are drawn at a time."""

CONTROL = "ntk_error/depth=1_against_2"
"""Kernels of depth 1 against the limit of depth 2."""

ITEMS = {"0_Dense": "input", "2_Dense": "hidden", "4_Dense": "output"}


TITLE = "slopes in the width, kernels of {seeds} seeds"


def measure(config: Config, store) -> dict[str, Any]:
    """Errors of kernels, how far training moves each part, and the law of the outputs."""
    with store.status("empirical kernels"):
        errors = kernel_errors(config)
    with store.status("training"):
        movement = _movement(config)
    with store.status("outputs"):
        law = _law_of_outputs(config)
    widths = {
        "widths": config.widths,
        "training_widths": config.training_widths,
        "output_widths": config.output_widths,
    }
    return widths | errors | movement | law


def numbers(config: Config, arrays) -> dict[str, Any]:
    """The number of draws of the kernels."""
    return {"seeds": config.seeds}


def facts(config: Config, arrays):
    """Slopes of the three parts, and the two constants that are known exactly."""
    for depth in config.depths:
        name = f"ntk_error/depth={depth}"
        yield power_law(name, config.widths, arrays[name], -0.5, 0.1)
    if CONTROL in arrays:
        yield power_law(CONTROL, config.widths, arrays[CONTROL], 0, 0.1)
    expected = {
        "weight_change/input": (-0.5, 0.12),
        "weight_change/hidden": (-1, 0.15),
        "weight_change/output": (-0.5, 0.12),
        "weight_drift": (0, 0.1),
        "weight_gap": (-0.5, 0.15),
    }
    for name, (slope, tolerance) in expected.items():
        yield power_law(name, config.training_widths, arrays[name], slope, tolerance)
    for name in ("ntk_change", "output_gap"):
        bounds = {"at_least": -1.15, "at_most": -0.45}
        yield power_law(name, config.training_widths, arrays[name], **bounds)
    for name, exact in (("excess_kurtosis", 15.0), ("squares_covariance", 5.0)):
        yield power_law(name, config.output_widths, arrays[name], -1, 0.15)
        # Exact at every width: the mean over widths has less noise.
        constant = np.mean(arrays[name] * config.output_widths)
        yield close(f"{name}_times_width", constant, exact, 0.1 * exact)


def draw(config: Config, arrays):
    """Errors of kernels, changes by training, and deviations of the outputs from a Gaussian."""
    kernels = {f"depth {depth}": arrays[f"ntk_error/depth={depth}"] for depth in config.depths}
    moved = {
        r"input weights $\Delta W/W$": arrays["weight_change/input"],
        r"hidden weights $\Delta W/W$": arrays["weight_change/hidden"],
        r"output weights $\Delta W/W$": arrays["weight_change/output"],
        r"NTK $\Delta\Theta/\Theta$": arrays["ntk_change"],
    }
    laws = {
        "excess kurtosis": arrays["excess_kurtosis"],
        "covariance of squares": arrays["squares_covariance"],
    }
    return panels.figure([
        panels.Panel("empirical against analytic NTK", config.widths, kernels, "width $m$", "relative error"),
        panels.Panel(f"training, {config.steps} steps", config.training_widths, moved, "width $m$", "relative change"),
        panels.Panel("outputs at initialization", config.output_widths, laws, "width $m$", "deviation from the limit"),
    ])  # fmt: skip


def kernel_errors(config: Config) -> dict[str, np.ndarray]:
    """Relative errors of the empirical NTK for every depth and in the negative control, `[seeds, widths]`."""
    x = _inputs(config, config.examples)
    columns: dict[str, list] = {}
    for depth in config.depths:
        # The limit does not depend on the width of the model that it is computed from.
        limit = ln.kernels.analytic_kernel(_relu_network(1, depth), x).ntk
        wrong = ln.kernels.analytic_kernel(_relu_network(1, 2), x).ntk
        for width in config.widths:
            model = _relu_network(width, depth)
            kernels = []
            for seed in range(config.seeds):
                params0 = model.init(jax.random.fold_in(jax.random.key(1), seed), x)
                kernels.append(ln.empirical.empirical_ntk(model.apply, params0, x, outputs="trace"))
            errors = _distances(kernels, limit)
            columns.setdefault(f"ntk_error/depth={depth}", []).append(errors)
            if depth == 1:
                columns.setdefault(CONTROL, []).append(_distances(kernels, wrong))
    return {name: np.array(rows).T for name, rows in columns.items()}


def _relu_network(width, depth):
    return ln.zoo.mlp((width,) * depth, 1)


def _distances(kernels, limit):
    return [float(ln.diagnostics.kernel_distance(kernel, limit)) for kernel in kernels]


def _inputs(config, count):
    return jax.random.normal(jax.random.key(0), (count, config.inputs), jnp.dtype(config.precision))


def _movement(config):
    """How far training moves each part, `[seeds, widths]`."""
    x = _inputs(config, config.examples)
    y = jax.random.normal(jax.random.key(2), (config.examples, 1), x.dtype)
    seeds = jnp.arange(config.training_seeds)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(3)))(seeds)
    columns = []
    for width in config.training_widths:
        model = ln.zoo.mlp((width, width), 1, activation=ln.elementwise(jnp.tanh), W_std=1.0)
        params0 = jax.vmap(lambda key, model=model: model.init(key, x))(keys)
        train_all = jax.jit(jax.vmap(partial(_train, config, model, ln.Data(x, y))))
        columns.append(jax.device_get(train_all(params0)))
    return jax.tree.map(lambda *of_widths: np.stack(of_widths, axis=1), *columns)


def _train(config, model, data, params0):
    """Gradient descent on the network and on its linearization side by side."""
    network = model.apply
    # In w itself, and not in a displacement, as both start at params0.
    tangent = ln.linearize(model.apply, params0)

    def stepped(function, w):
        slope = descent_direction(lambda w: ln.mse(function(w, data.x), data.y), w)
        return ln.trees.add_scaled(w, config.learning_rate, slope)

    def advance(state, _):
        w = stepped(network, state[0])
        v = stepped(tangent, state[1])
        return (w, v), {
            "weight_drift": ln.trees.norm(ln.trees.subtract(w, params0)),
            "weight_gap": ln.trees.norm(ln.trees.subtract(w, v)),
            "output_gap": jnp.sqrt(jnp.mean((network(w, data.x) - tangent(v, data.x)) ** 2)),
        }

    (params, _), curves = jax.lax.scan(advance, (params0, params0), length=config.steps)
    ntk0 = ln.empirical_ntk(model.apply, params0, data.x, outputs="trace")
    ntk = ln.empirical_ntk(model.apply, params, data.x, outputs="trace")
    drift = ln.diagnostics.layer_drift(params, params0)
    layers = {f"weight_change/{item}": drift[path] for path, item in ITEMS.items()}
    return (
        jax.tree.map(jnp.max, curves)
        | layers
        | {"ntk_change": ln.diagnostics.kernel_distance(ntk, ntk0)}
    )


def _law_of_outputs(config):
    """Excess kurtosis of an output, and the relative covariance of the squares of two outputs, `[widths]`."""
    x = _inputs(config, 1)
    laws: dict[str, list] = {name: [] for name in LAWS}
    for width in config.output_widths:
        outputs = _draw_outputs(config, width, x)
        for name, law in LAWS.items():
            laws[name].append(law(outputs))
    return {name: np.array(values) for name, values in laws.items()}


def _draw_outputs(config, width, x):
    """Outputs of many independent networks at one input, `[networks, outputs]`."""
    # All outputs of a network have one law, and all pairs one covariance: each is a sample.
    model = ln.serial(ln.Dense(width), ln.Relu(), ln.Dense(config.outputs))

    def draw(key):
        return model.apply(model.init(key, x), x)[0]

    chunks = math.ceil(config.networks / CHUNK)
    keys = jax.random.split(jax.random.key(4), (chunks, CHUNK))
    # `map` over chunks of a `vmap`: all networks at once would take their weights' memory.
    outputs = jax.jit(lambda keys: jax.lax.map(jax.vmap(draw), keys))(keys)
    return np.asarray(outputs).reshape(-1, config.outputs)[: config.networks]


def excess_kurtosis(outputs: np.ndarray) -> float:
    """`E f^4 / (E f^2)^2 - 3`, zero for a Gaussian."""
    return float(np.mean(outputs**4) / np.mean(outputs**2) ** 2 - 3)


def squares_covariance(outputs: np.ndarray) -> float:
    """`E f_a^2 f_b^2 / (E f^2)^2 - 1` over pairs a != b of outputs, zero if they are independent."""
    squares = outputs**2
    k = outputs.shape[1]
    # sum_{a != b} f_a^2 f_b^2 = (sum_a f_a^2)^2 - sum_a f_a^4.
    pairs = (squares.sum(1) ** 2 - (squares**2).sum(1)) / (k * (k - 1))
    return float(np.mean(pairs) / np.mean(squares) ** 2 - 1)


LAWS = {"excess_kurtosis": excess_kurtosis, "squares_covariance": squares_covariance}
