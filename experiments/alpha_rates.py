"""How fast training becomes linear: distances to initialization and to the tangent model against alpha.

    python -m experiments run alpha_rates                    # about 20 seconds
    python -m experiments run alpha_rates --preset smoke     # about 15 seconds

Theorem 2.2 of Chizat, Oyallon and Bach (2019): on a finite horizon T, gradient flow w(t) on
(1/alpha^2) R(alpha h) from h(w0) = 0 stays within O(1/alpha) of w0, within O(1/alpha^2) of the
linearized flow, and its outputs within O(1/alpha). A two-layer tanh network (20 units, 10 examples
on the sphere in 3 dimensions) fits random labels until T = 10, at alpha = 10, 30, 100, 300, for
several draws of data and weights. Expected slopes in alpha (largest values over t <= T):

    |                                 | centered h(w) - h(w0) | symmetrized (doubled) | h(w0) != 0     |
    | drift |w - w0|                  | -1                    | -1                    | about 0        |
    | distance to linearized weights  | -2                    | -2                    | about 0        |
    | distance of the outputs         | -1                    | -2                    | +1             |
    | relative change of the NTK at T | -1                    | -2                    | about 0        |

The last column is the negative control: without h(w0) = 0 nothing becomes lazy. The constant of the
drift is explicit,
|w - w0| <= (1/alpha) sqrt(T R(alpha h(w0))), and is checked as an inequality. The lecture's O(1/alpha) for outputs is
sharp for the centered model only: doubling cancels the second-order term of the expansion, which
gives 1/alpha^2.
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
from experiments.harness.facts import power_law, within
from experiments.shared.data import unit_rows
from experiments.shared.flows import descent_direction, integrate

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers"]


@dataclass(frozen=True)
class Config:
    """Size of the problem, horizon and scales.

    Attributes:
        alphas: Scales, at least two of them above `fit_from`.
        fit_from: Smallest alpha of the fitted slopes.
        seeds: Number of draws.
        width: Hidden units.
        inputs: Dimension of the inputs.
        examples: Training examples.
        time: Horizon of the flow.
        steps: Steps of the integration.
        precision: Of the computation.
    """

    alphas: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (
        1.0,
        3.0,
        10.0,
        30.0,
        100.0,
        300.0,
        1000.0,
    )
    fit_from: Positive = 10.0
    seeds: Count = 20
    width: Count = 20
    inputs: Count = 3
    examples: Count = 10
    time: Positive = 10.0
    steps: Count = 1000
    # In float32 alpha [h(w0 + u/alpha) - h(w0)] loses three of seven digits at alpha = 1000, where
    # the gap of the outputs of the symmetrized network is of order 1e-6.
    precision: Literal["float32", "float64"] = "float64"

    def check(self, prefix: str) -> None:
        """Refuses scales of which no slope can be fitted."""
        if sum(alpha >= self.fit_from for alpha in self.alphas) < 2:
            raise ValueError(
                f"{prefix}fit_from got {self.fit_from}, expected at most the second largest of {prefix}alphas."
            )


PRESETS = {
    "smoke": Config(alphas=(10.0, 30.0, 100.0, 300.0), seeds=8, steps=200),
    "laptop": Config(),
}

VARIANTS = ("centered", "symmetrized", "not_centered")
EXPECTED = {
    "weight_drift": {"centered": (-1, 0.02), "symmetrized": (-1, 0.02), "not_centered": (0, 0.1)},
    "weight_gap": {"centered": (-2, 0.05), "symmetrized": (-2, 0.05), "not_centered": (0, 0.1)},
    "output_gap": {"centered": (-1, 0.05), "symmetrized": (-2, 0.05), "not_centered": (1, 0.1)},
    "test_output_gap": {"centered": (-1, 0.1), "symmetrized": (-2, 0.1)},
    "ntk_change": {"centered": (-1, 0.05), "symmetrized": (-2, 0.05), "not_centered": (0, 0.1)},
}


TITLE = "slopes in alpha, mean over {seeds} seeds"


def measure(config: Config, store) -> dict[str, Any]:
    """The distances of `EXPECTED` and the drift over its bound, `[seeds, alphas]`, each as `variant/name`."""
    arrays: dict[str, Any] = {"alpha": config.alphas}
    with store.status("gradient flows"):
        for variant in VARIANTS:
            for name, values in measure_variant(config, variant).items():
                arrays[f"{variant}/{name}"] = values
    return arrays


def numbers(config: Config, arrays) -> dict[str, Any]:
    """The number of draws."""
    return {"seeds": config.seeds}


def facts(config: Config, arrays):
    """Slopes of all distances, and the explicit constant of the drift."""
    fitted = np.asarray(config.alphas) >= config.fit_from
    alphas = np.asarray(config.alphas)[fitted]
    for quantity, variants in EXPECTED.items():
        for variant, (slope, tolerance) in variants.items():
            values = arrays[f"{variant}/{quantity}"][:, fitted]
            yield power_law(f"{quantity}/{variant}", alphas, values, slope, tolerance)
    for variant in VARIANTS:
        worst = arrays[f"{variant}/drift_over_bound"].max()
        yield within(f"drift_over_bound/{variant}", worst, at_most=1.0)


def draw(config: Config, arrays):
    """A panel for each variant."""
    titles = {
        "centered": r"centered, $h(w)-h(w_0)$",
        "symmetrized": "symmetrized (doubled)",
        "not_centered": r"negative control, $h(w_0)\neq 0$",
    }
    names = {
        "weight_drift": r"$\|w-w_0\|$",
        "weight_gap": r"$\|w-\bar w\|$",
        "output_gap": "output gap (rms)",
        "ntk_change": "NTK change, relative",
    }
    ylabel = f"largest value over $t\\leq{config.time:g}$"
    fitted = (config.fit_from, max(config.alphas))
    drawn = []
    for variant, title in titles.items():
        curves = {label: arrays[f"{variant}/{name}"] for name, label in names.items()}
        drawn.append(panels.Panel(title, config.alphas, curves, r"scale $\alpha$", ylabel, fitted))
    return panels.figure(drawn)


def measure_variant(config: Config, variant: str) -> dict[str, np.ndarray]:
    """The distances of one variant, for all draws and scales at once."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(config.seeds))
    x, x_test, y = jax.vmap(partial(_problem, config))(keys)
    model = network(config, symmetrized=variant == "symmetrized")
    params0 = jax.vmap(lambda key, x: model.init(jax.random.fold_in(key, 1), x))(keys, x)
    # What `lazy` subtracts is added again: the negative control starts at alpha h(w0).
    offset = jax.vmap(model.apply)(params0, x) * float(variant == "not_centered")
    alphas = jnp.asarray(config.alphas, config.precision)
    flow = partial(_flow, config, model)
    # Draws of data and weights are shared by all scales: alpha alone differs, `[seeds, alphas]`.
    over_alphas = jax.vmap(flow, in_axes=(*[None] * 5, 0))
    over_seeds = jax.jit(jax.vmap(over_alphas, in_axes=(*[0] * 5, None)))
    return jax.tree.map(np.asarray, over_seeds(params0, offset, x, x_test, y, alphas))


def _flow(config, model, params0, offset, x, x_test, y, alpha):
    """Integrates the lazy flow and the linearized flow side by side; outputs start at alpha times the offset."""
    lazy = ln.lazy(model.apply, params0, alpha)
    tangent = ln.lazy(model.apply, params0, math.inf)

    def slope(function, u):
        return descent_direction(lambda u: ln.mse(alpha * offset + function(u, x), y), u)

    def field(state):
        return {"lazy": slope(lazy, state["lazy"]), "tangent": slope(tangent, state["tangent"])}

    def observe(state):
        u = state["lazy"]
        v = state["tangent"]
        return {
            "weight_drift": ln.trees.norm(u) / alpha,
            "weight_gap": ln.trees.norm(ln.trees.subtract(u, v)) / alpha,
            "output_gap": _rms(lazy(u, x) - tangent(v, x)),
            "test_output_gap": _rms(lazy(u, x_test) - tangent(v, x_test)),
        }

    zeros = ln.trees.zeros_like(params0)
    # One state for both flows, which are compared at the same times.
    state = {"lazy": zeros, "tangent": zeros}
    state, curves = integrate(
        field, state, step=config.time / config.steps, steps=config.steps, observe=observe
    )
    largest = jax.tree.map(jnp.max, curves)
    # Theorem 2.2: the length of the path is at most sqrt(T R(start)) / alpha.
    bound = jnp.sqrt(config.time * ln.mse(alpha * offset, y)) / alpha
    kernel = partial(ln.empirical.empirical_ntk, model.apply, x1=x, outputs="trace")
    ntk = kernel(ln.weights(lazy, state["lazy"]))
    change = ln.diagnostics.kernel_distance(ntk, kernel(params0))
    return {**largest, "ntk_change": change, "drift_over_bound": largest["weight_drift"] / bound}


def _problem(config, key):
    keys = jax.random.split(jax.random.fold_in(key, 0), 3)
    shape = (config.examples, config.inputs)
    dtype = jnp.dtype(config.precision)
    x = unit_rows(jax.random.normal(keys[0], shape, dtype))
    x_test = unit_rows(jax.random.normal(keys[1], shape, dtype))
    y = jax.random.normal(keys[2], (config.examples, 1), dtype)
    return x, x_test, y


def network(config: Config, *, symmetrized: bool) -> ln.Model:
    """`1/sqrt m sum_j b_j tanh(a_j . x)` with all weights from N(0, 1)."""
    # Undoes the 1 / sqrt(inputs) of the NTK parameterization.
    hidden = ln.Dense(config.width, W_std=math.sqrt(config.inputs))
    model = ln.serial(hidden, ln.elementwise(jnp.tanh), ln.Dense(1))
    return ln.symmetrize(model) if symmetrized else model


def _rms(values):
    return jnp.sqrt(jnp.mean(values**2))
