"""The mean-field scale 1/m: a wide network converges to a nonlinear limit, and never becomes lazy.

    python -m experiments run mean_field                    # about 30 seconds
    python -m experiments run mean_field --preset smoke     # about 20 seconds

h(x) = 1/m sum_j b_j tanh(a_j . x) with all weights from N(0, 1), trained by gradient descent with
the learning rate m times a constant, is an average over neurons. Expected: outputs on test points
fluctuate around those of a very wide network with slope -1/2 in m, before training and after any
fixed number of steps, while the change of the tangent kernel tends to a constant that is not zero:
its slope is near 0, and at the largest width of the fit it is within 15 % of that of the reference.
With 1/sqrt m and a constant learning rate, the negative control, it falls with the width.

The fluctuation is measured on test points: after convergence on the training points, interpolation
hides it there.
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
from experiments.harness.bounds import Count, Natural, Positive, Values
from experiments.harness.facts import close, power_law, within
from experiments.shared.flows import descent_direction

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers"]


@dataclass(frozen=True)
class Config:
    """Widths, that of the reference, number of draws, and the training.

    Attributes:
        widths: Widths of the hidden layer.
        reference_width: Width that stands for the limit.
        seeds: Number of draws.
        inputs: Dimension of the inputs.
        examples: Training examples.
        test_examples: Test examples.
        steps: Steps at which outputs are compared.
        learning_rate: In the units of the mean-field scaling.
        precision: Of the computation.
    """

    widths: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (64, 128, 256, 512, 1024)
    reference_width: Count = 32_768
    seeds: Count = 20
    inputs: Count = 8
    examples: Count = 12
    test_examples: Count = 50
    steps: Annotated[tuple[Natural, ...], Values(1, increasing=True)] = (0, 20, 300)
    learning_rate: Positive = 1.0
    precision: Literal["float32", "float64"] = "float64"


PRESETS = {
    "smoke": Config(widths=(64, 256, 1024), reference_width=16_384, seeds=16),
    "laptop": Config(),
}

SCALES = {"mean_field": 0.5, "ntk": 0.0}
"""The outputs are those of the NTK parameterization divided by this power of the width."""


TITLE = "slopes in the width, mean over {seeds} seeds"


def measure(config: Config, store) -> dict[str, Any]:
    """Distances to the reference and changes of the kernel, `[seeds, widths]`."""
    arrays: dict[str, Any] = {"width": config.widths}
    with store.status("training"):
        data, x_test = _problem(config)
        limit = _train_all(
            config, config.reference_width, "mean_field", data, x_test, stream=2, seeds=1
        )
        for scale in SCALES:
            trained = [
                _train_all(config, width, scale, data, x_test, stream=1, seeds=config.seeds)
                for width in config.widths
            ]
            for name in ("ntk_change", "train_loss"):
                columns = [of_width[name] for of_width in trained]
                arrays[f"{name}/{scale}"] = np.stack(columns, axis=1)
            if scale == "mean_field":
                outputs = np.stack([of_width["outputs"] for of_width in trained])
                # `[widths, seeds, steps, m]` less the reference `[1, steps, m]`, m test points.
                distance = np.sqrt(np.mean((outputs - limit["outputs"]) ** 2, axis=3))
                for i, step in enumerate(config.steps):
                    arrays[f"fluctuation/step={step}"] = distance[:, :, i].T
    return arrays | {"ntk_change/reference": limit["ntk_change"][0]}


def numbers(config: Config, arrays) -> dict[str, Any]:
    """The number of draws."""
    return {"seeds": config.seeds}


def facts(config: Config, arrays):
    """Slopes of the fluctuations, and a change of the kernel that stays, beside the control."""
    for step in config.steps:
        name = f"fluctuation/step={step}"
        yield power_law(name, config.widths, arrays[name], -0.5, 0.1)
    change = arrays["ntk_change/mean_field"]
    limit = arrays["ntk_change/reference"]
    yield power_law("ntk_change/mean_field", config.widths, change, 0, 0.15)
    widest = change[:, -1].mean()
    yield close("ntk_change_of_the_widest_over_reference", widest / limit, 1, 0.15)
    yield within("ntk_change_of_the_reference", limit, at_least=0.3)
    control = arrays["ntk_change/ntk"]
    yield power_law("ntk_change/ntk", config.widths, control, at_least=-1.15, at_most=-0.35)


def draw(config: Config, arrays):
    """Distances to the limit, and changes of the kernel, against the width."""
    distances = {f"after {step} steps": arrays[f"fluctuation/step={step}"] for step in config.steps}
    changes = {
        r"mean field, $1/m$": arrays["ntk_change/mean_field"],
        r"control, $1/\sqrt{m}$": arrays["ntk_change/ntk"],
    }
    xlabel = "width $m$"
    ylabels = ("rms difference of test outputs", "relative change of the NTK")
    last = f"after {config.steps[-1]} steps"
    return panels.figure(
        [
            panels.Panel("distance to the limit", config.widths, distances, xlabel, ylabels[0]),
            panels.Panel(last, config.widths, changes, xlabel, ylabels[1]),
        ]
    )


def _problem(config):
    """Training inputs and targets, and test inputs: one problem for all widths and seeds."""
    dtype = jnp.dtype(config.precision)
    key, key_test, key_y = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(key, (config.examples, config.inputs), dtype)
    x_test = jax.random.normal(key_test, (config.test_examples, config.inputs), dtype)
    y = jax.random.normal(key_y, (config.examples, 1), dtype)
    return ln.Data(x, y), x_test


def _train_all(config, width, scale, data, x_test, *, stream, seeds):
    """The trainings of several seeds; the reference has a stream of its own, for it is no larger copy of one."""
    first = jax.random.key(stream)
    keys = jax.vmap(lambda i: jax.random.fold_in(first, i))(jnp.arange(seeds))
    power = SCALES[scale]
    model = ln.serial(
        # Undoes the 1 / sqrt(inputs) of the NTK parameterization.
        ln.Dense(width, W_std=math.sqrt(config.inputs)),
        ln.elementwise(jnp.tanh),
        ln.Dense(1, W_std=width**-power),
    )
    params0 = jax.vmap(lambda key: model.init(key, data.x))(keys)
    # The output factor m^-power makes the kernel smaller by m^(-2 power).
    rate = config.learning_rate * width ** (2 * power)
    results = jax.jit(jax.vmap(partial(_train, config, model, rate, data, x_test)))(params0)
    return jax.tree.map(np.asarray, results)


def _train(config, model, rate, data, x_test, params0):
    """Gradient descent from one draw: test outputs after the steps of the configuration, and the kernel's change."""

    def advance(params, _):
        slope = descent_direction(lambda w: ln.mse(model.apply(w, data.x), data.y), params)
        return ln.trees.add_scaled(params, rate, slope), None

    params = params0
    done = 0
    outputs = []
    # A scan for each stretch, since outputs are taken in between.
    for step in config.steps:
        params, _ = jax.lax.scan(advance, params, length=step - done)
        outputs.append(model.apply(params, x_test)[:, 0])
        done = step
    ntk0 = ln.empirical_ntk(model.apply, params0, data.x, outputs="trace")
    ntk = ln.empirical_ntk(model.apply, params, data.x, outputs="trace")
    return {
        "outputs": jnp.stack(outputs),
        "ntk_change": ln.diagnostics.kernel_distance(ntk, ntk0),
        "train_loss": ln.mse(model.apply(params, data.x), data.y),
    }
