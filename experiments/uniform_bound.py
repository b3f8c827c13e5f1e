"""Lazy training for all times: the explicit constants of the convergence theorems, as inequalities.

    python -m experiments run uniform_bound                    # about a minute
    python -m experiments run uniform_bound --preset smoke     # about 25 seconds

h(w, x) = 1/sqrt m sum_j s_j tanh(w_j . x) with fixed signs s and trained input weights, centered,
has the Lipschitz constant Lip(Dh) = max|tanh''| max|x|^2 / sqrt m, |.| being the norm of the
empirical measure, for which the risk R(f) = |f - y|^2 / 2 is 1-smooth and 1-strongly convex. With
sigma the smallest singular value of Dh(w0),

Theorem 2.4 (more weights than examples; 8 examples in 10 dimensions): C0 = sigma^3 / (32 |Dh|
Lip(Dh)); for every alpha > alpha0 = |y| / C0 and every t >= 0,

    |f(t) - y| <= |y| exp(-sigma^2 t / 4),  |w - w0| <= 8 |Dh| |y| / (sigma^2 alpha),  |w - w0| <= sigma / (2 Lip(Dh)).

Expected: the bounds hold at alpha0 and 10 alpha0 (ratios below 1); the measured rate is near
sigma^2, 4 times the guaranteed one, and alpha0 is pessimistic by far: the bound already holds at
alpha = 1. The largest distances over all times fall with slopes -1 (weights to w0), -1 (outputs to
the linearized ones) and near -2 (weights to the linearized ones; the theorem has log(alpha) /
alpha^2). The negative control is alpha = 0.01, where alpha h cannot reach y, and the bound fails.

More examples than weights, the under-parametrized case (one unit with 3 weights, 30 examples): the
flow converges exponentially to a minimizer. Expected: the logarithm of |f(t) - f(inf)| falls
linearly, at the smallest eigenvalue of the Hessian of the loss at the limit (within 5 %), the
gradient vanishes (below 1e-8), and the rate tends to that of the linearized model, sigma^2, with
slope -1 in alpha: it is up to 27 % off at alpha = 10, as the residual at the minimum does not
vanish.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from matplotlib.figure import Figure

import lazynet as ln
from experiments.harness import panels
from experiments.harness.bounds import Count, Positive, Values
from experiments.harness.facts import close, power_law, within
from experiments.shared.data import unit_rows
from experiments.shared.flows import descent_direction, integrate
from lazynet import plots

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers", "report"]


@dataclass(frozen=True)
class Config:
    """Sizes of both problems, the scales, and the horizon in units of the slowest time 1 / sigma^2.

    Attributes:
        widths: Numbers of weights of the first problem.
        seeds: Number of draws.
        inputs: Dimension of the inputs.
        examples: Training examples of the first problem.
        multiples: Scales over the smallest one of the theorem.
        alphas: Scales of the fitted slopes.
        control: Scale at which the bound does not hold.
        horizon: In units of the slowest time.
        steps: Steps of the integration.
        few_units: Hidden units of the second problem.
        few_inputs: Dimension of its inputs.
        many_examples: Its training examples.
        many_alphas: Its scales.
        many_horizon: Its horizon.
        many_steps: Its steps.
        precision: Of the computation.
    """

    widths: Annotated[tuple[Count, ...], Values(1, increasing=True)] = (100, 1000, 10_000)
    seeds: Count = 5
    inputs: Count = 10
    examples: Count = 8
    multiples: Annotated[tuple[Positive, ...], Values(1, increasing=True)] = (1.0, 10.0)
    alphas: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (10.0, 30.0, 100.0, 300.0)
    control: Positive = 0.01
    horizon: Positive = 12.0
    steps: Count = 400
    few_units: Count = 1
    few_inputs: Count = 3
    many_examples: Count = 30
    many_alphas: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (10.0, 100.0, 1000.0)
    many_horizon: Positive = 25.0
    many_steps: Count = 1000
    # Distances to the limit are followed down to 1e-7 of the first, and gradients to 1e-8.
    precision: Literal["float32", "float64"] = "float64"


PRESETS = {"smoke": Config(widths=(100, 1000), seeds=4), "laptop": Config()}

# tanh'' = -2 tanh (1 - tanh^2) is largest where tanh^2 = 1/3.
LIP_OF_SLOPE = 4 / 3**1.5
"""The largest |tanh''|."""


class Problem(NamedTuple):
    """One draw of data and weights, for all seeds stacked: x `[n, d]`, y `[n, 1]`, weights `[d, m]`, signs `[m]`."""

    x: jax.Array
    y: jax.Array
    params0: jax.Array
    signs: jax.Array


class Constants(NamedTuple):
    """Singular values of Dh(w0), the bound of Lip(Dh), the norm of y, and alpha0, each `[seeds]`."""

    smallest: np.ndarray
    largest: np.ndarray
    lip: np.ndarray
    target: np.ndarray

    @property
    def alpha0(self) -> np.ndarray:
        """The scale from which on theorem 2.4 guarantees convergence."""
        return self.target * 32 * self.largest * self.lip / self.smallest**3


TITLE = "convergence for all times, worst of {seeds} seeds"

CURVES = ("error", "weight_drift", "weight_gap", "output_gap", "time")


def measure(config: Config, store) -> dict[str, Any]:
    """Curves `[seeds, alphas, time]` at alpha0 and its multiples, over the sweep and far below; and the second case."""
    arrays: dict[str, Any] = {}
    for width in store.track(config.widths, "many weights"):
        problem, constants = _draw_problem(config, width, config.inputs, config.examples)
        arrays |= _named(f"width={width}", constants._asdict())
        alphas = constants.alpha0[:, None] * np.array(config.multiples)
        arrays |= _flow_all(config, problem, constants, alphas, f"width={width}")
        # Slopes and the control need one network only.
        if width == config.widths[0]:
            alphas = np.tile(config.alphas, (config.seeds, 1))
            arrays |= _flow_all(config, problem, constants, alphas, "sweep")
            alphas = np.tile([1.0, config.control], (config.seeds, 1))
            arrays |= _flow_all(config, problem, constants, alphas, "below")
    with store.status("many examples"):
        return arrays | _many_examples(config)


def numbers(config: Config, arrays) -> dict[str, Any]:
    """The number of draws, and the smallest scale of the theorem for every width."""
    summary: dict[str, Any] = {"seeds": config.seeds}
    for width in config.widths:
        constants = _constants(arrays, f"width={width}")
        summary[f"alpha0/width={width}"] = float(constants.alpha0.mean())
    return summary


def report(summary):
    """The thresholds."""
    for key, value in summary.items():
        if key.startswith("alpha0/"):
            yield f"{key.removeprefix('alpha0/')}: alpha0 = {value:.4g}, mean over seeds"


def facts(config: Config, arrays):
    """The bounds from alpha0 on and where they fail, the rates in alpha, and the limit with more examples."""
    for width in config.widths:
        yield from _bounds(config, arrays, f"width={width}")
    for name, bounds in {
        "weight_drift": {"expected": -1, "tolerance": 0.02},
        "output_gap": {"expected": -1, "tolerance": 0.05},
        "weight_gap": {"at_least": -2.1, "at_most": -1.8},
    }.items():
        largest = arrays[f"sweep/{name}"].max(2)
        yield power_law(f"{name}/all_times", config.alphas, largest, **bounds)
    constants = _constants(arrays, f"width={config.widths[0]}")
    ratio = _error_over_bound(arrays, "below", constants)
    yield within("error_over_bound/alpha=1", ratio[:, 0].max(), at_most=1.0)
    yield within(f"error_over_bound/alpha={config.control:g}", ratio[:, 1].min(), at_least=1.0)
    yield from _limits(config, arrays)


def draw(config: Config, arrays):
    """The error beside its bound, the largest distances against alpha, and the second case."""
    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for width, style in zip(config.widths, plots.curve_styles(len(config.widths)), strict=True):
        constants = _constants(arrays, f"width={width}")
        time = arrays[f"width={width}/time"][0] * constants.smallest[0] ** 2
        error = arrays[f"width={width}/error"][0, 0] / constants.target[0]
        left.plot(time, error, label=f"measured, $m={width}$", **style)
    bound = {"color": "0.4", "linestyle": "--", "label": r"bound $e^{-\sigma^2t/4}$"}
    left.plot(time, np.exp(-time / 4), **bound)
    left.set(yscale="log", ylabel="relative training error", ylim=(1e-6, 2))
    names = {
        "weight_drift": r"$\|w-w_0\|$",
        "output_gap": "output gap",
        "weight_gap": r"$\|w-\bar w\|$",
    }
    largest = {label: arrays[f"sweep/{name}"].max(2) for name, label in names.items()}
    title = f"all times, $m={config.widths[0]}$"
    ylabel = r"largest value over $t\geq 0$"
    panels.draw(panels.Panel(title, config.alphas, largest, r"scale $\alpha$", ylabel), middle)
    styles = plots.curve_styles(len(config.many_alphas))
    curves = arrays["many/distance"][0]
    for alpha, distance, style in zip(config.many_alphas, curves, styles, strict=True):
        right.plot(arrays["many/scaled_time"][0], distance, label=rf"$\alpha={alpha:g}$", **style)
    right.set(yscale="log", ylabel=r"$|f(t)-f(\infty)|$", ylim=(1e-9, None))
    for ax, title in ((left, r"theorem 2.4 at $\alpha_0$"), (right, "more examples than weights")):
        ax.set_xlabel(r"time $\sigma^2 t$")
        panels.finish(ax, title)
    return figure


def _named(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _constants(arrays, variant: str) -> Constants:
    return Constants(*(arrays[f"{variant}/{name}"] for name in Constants._fields))


def _draw_problem(config, units, inputs, examples):
    """Unit inputs, targets and weights from N(0, 1), random signs; and the constants of the theorem."""
    dtype = jnp.dtype(config.precision)

    def one(seed):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), seed), 4)
        directions = jax.random.normal(keys[0], (examples, inputs), dtype)
        x = unit_rows(directions)
        y = jax.random.normal(keys[1], (examples, 1), dtype)
        params0 = jax.random.normal(keys[2], (inputs, units), dtype)
        signs = jax.random.rademacher(keys[3], (units,), dtype)
        return Problem(x, y, params0, signs)

    problem = jax.vmap(one)(jnp.arange(config.seeds))
    singular = np.asarray(_singular_values(problem))
    # D^2h has one block |tanh''| x x' / sqrt m for each unit: its norm is that of the largest block.
    longest = np.asarray(jnp.sum(problem.x**2, axis=2).max(1))
    lip = LIP_OF_SLOPE * longest / math.sqrt(units)
    target = np.asarray(jnp.sqrt(jnp.mean(problem.y**2, axis=(1, 2))))
    return problem, Constants(singular[:, 0], singular[:, -1], lip, target)


def _outputs(signs, params, x):
    return jnp.tanh(x @ params) @ signs[:, None] / math.sqrt(len(signs))


@jax.jit
@jax.vmap
def _singular_values(problem):
    """Singular values of Dh, in increasing order, from the norm of weights to that of the empirical measure."""
    n = len(problem.x)
    derivative = jax.jacobian(_outputs, argnums=1)
    jacobian = derivative(problem.signs, problem.params0, problem.x).reshape(n, -1)
    # Of the two products the small one has no zeros that the large one adds.
    short = jacobian if n < jacobian.shape[1] else jacobian.T
    # Over n: the empirical measure gives every example the weight 1/n.
    gram = jnp.matmul(short, short.T, precision="highest") / n
    return jnp.sqrt(jnp.linalg.eigvalsh(gram))


def _flow_all(config, problem, constants, alphas, variant):
    """The curves until `horizon / sigma^2`."""
    seen = _until(config.horizon, config.steps, problem, constants, alphas)
    return _named(variant, {name: seen[name] for name in CURVES})


def _until(horizon, steps, problem, constants, alphas):
    """All that is seen of the flows until `horizon / sigma^2`, with the times `[seeds, time]`."""
    # Every seed has a time of its own, and as many steps as the others.
    ends = horizon / constants.smallest**2
    seen = _flows(steps, problem, jnp.asarray(ends / steps), jnp.asarray(alphas))
    time = ends[:, None] * np.linspace(0, 1, steps + 1)
    return {name: np.asarray(values) for name, values in seen.items()} | {"time": time}


@partial(jax.jit, static_argnames="steps")
def _flows(steps, problem, step, alphas):
    over_alphas = jax.vmap(partial(_flow, steps), in_axes=(None, None, 0))
    return jax.vmap(over_alphas)(problem, step, alphas)


def _flow(steps, problem, step, alpha):
    """The lazy and the linearized flow side by side: outputs, error, distances, and the last gradient and weights."""
    x = problem.x
    y = problem.y
    # Signs are traced under `vmap`: in a Partial they are a leaf of the function.
    apply = Partial(_outputs, problem.signs)
    lazy = ln.lazy(apply, problem.params0, alpha)
    tangent = ln.lazy(apply, problem.params0, math.inf)

    def field(state):
        functions = lazy, tangent
        return tuple(
            descent_direction(lambda u, f=f: ln.mse(f(u, x), y), u)
            for f, u in zip(functions, state, strict=True)
        )

    def observe(state):
        u, v = state
        outputs = lazy(u, x)
        return {
            "outputs": outputs[:, 0],
            "error": _norm(outputs - y),
            "weight_drift": ln.trees.norm(u) / alpha,
            "weight_gap": ln.trees.norm(u - v) / alpha,
            "output_gap": _norm(outputs - tangent(v, x)),
        }

    zeros = jnp.zeros_like(problem.params0)
    (u, v), seen = integrate(field, (zeros, zeros), step=step, steps=steps, observe=observe)
    return seen | {"last": u, "gradient": ln.trees.norm(field((u, v))[0])}


@jax.jit
def _curvatures(problem, u, alphas):
    return jax.vmap(jax.vmap(_curvature, in_axes=(None, 0, 0)))(problem, u, alphas)


def _curvature(problem, u, alpha):
    """Smallest eigenvalue of the Hessian of the loss, in the variable u of the lazy function."""
    lazy = ln.lazy(Partial(_outputs, problem.signs), problem.params0, alpha)
    # A Hessian of few weights, as one matrix.
    flat, unravel = ravel_pytree(u)
    hessian = jax.hessian(lambda flat: ln.mse(lazy(unravel(flat), problem.x), problem.y))(flat)
    return jnp.linalg.eigvalsh(hessian)[0]


def _norm(values):
    return jnp.sqrt(jnp.mean(values**2))


def _bounds(config, arrays, variant):
    """Theorem 2.4 from alpha0 on: the worst ratio of each quantity to its bound, and the measured rate."""
    constants = _constants(arrays, variant)
    sigma2 = constants.smallest**2
    alphas = constants.alpha0[:, None] * np.array(config.multiples)
    # Ratios of |w - w0| to 8 |Dh| |y| / (sigma^2 alpha) and to sigma / (2 Lip(Dh)).
    drift = arrays[f"{variant}/weight_drift"].max(2)
    distance = drift * alphas * (sigma2 / (8 * constants.largest * constants.target))[:, None]
    radius = drift * (2 * constants.lip / constants.smallest)[:, None]
    ratio = _error_over_bound(arrays, variant, constants)
    yield within(f"error_over_bound/{variant}", ratio.max(), at_most=1.0)
    yield within(f"drift_over_bound/{variant}", distance.max(), at_most=1.0)
    yield within(f"drift_over_radius/{variant}", radius.max(), at_most=1.0)
    rates = []
    for time, errors in zip(arrays[f"{variant}/time"], arrays[f"{variant}/error"], strict=True):
        rates.append([_late_rate(time, error) for error in errors])
    relative = np.array(rates) / sigma2[:, None]
    limits = {"at_least": 0.25, "at_most": 1.2}
    yield within(f"smallest_rate_over_sigma2/{variant}", relative.min(), **limits)
    yield within(f"largest_rate_over_sigma2/{variant}", relative.max(), **limits)


def _error_over_bound(arrays, variant, constants):
    """The largest ratio of the error to `|y| exp(-sigma^2 t / 4)` after the start, `[seeds, alphas]`."""
    rate = constants.smallest[:, None] ** 2 / 4
    decay = np.exp(-rate * arrays[f"{variant}/time"])
    guaranteed = constants.target[:, None] * decay
    ratios = arrays[f"{variant}/error"] / guaranteed[:, None]
    # At time 0 both are |y|.
    return ratios[:, :, 1:].max(2)


def _late_rate(time, error):
    """Rate of the exponential decay in the second half of the time."""
    # Before, directions of larger singular values still decay faster.
    late = slice(len(time) // 2, None)
    return -np.polyfit(time[late], np.log(error[late]), 1)[0]


def _many_examples(config):
    """More examples than weights: distances to the limit, curvatures and gradients there, `[seeds, alphas]`."""
    problem, constants = _draw_problem(
        config, config.few_units, config.few_inputs, config.many_examples
    )
    alphas = np.tile(config.many_alphas, (config.seeds, 1))
    seen = _until(config.many_horizon, config.many_steps, problem, constants, alphas)
    outputs = seen["outputs"]
    tangent_rate = constants.smallest**2
    many = {
        "distance": np.sqrt(np.mean((outputs - outputs[:, :, -1:]) ** 2, axis=3)),
        "time": seen["time"],
        "scaled_time": seen["time"] * tangent_rate[:, None],
        "curvature": _curvatures(problem, jnp.asarray(seen["last"]), jnp.asarray(alphas)),
        "gradient": seen["gradient"],
        "tangent_rate": tangent_rate,
    }
    return _named("many", many)


def _limits(config, arrays):
    """The rates of convergence are the curvature at the limit, and tend to that of the linearized model."""
    fits = []
    for time, distances in zip(arrays["many/time"], arrays["many/distance"], strict=True):
        fits.append([_window_fit(time, distance) for distance in distances])
    # `[seeds, alphas, 2]` to two of `[seeds, alphas]`.
    rate, deviation = np.moveaxis(np.array(fits), -1, 0)
    worst = _worst(rate / arrays["many/curvature"])
    for alpha, ratio in zip(config.many_alphas, worst, strict=True):
        yield close(f"rate_over_curvature/alpha={alpha:g}", ratio, 1, 0.05)
    change = np.abs(rate / arrays["many/tangent_rate"][:, None] - 1)
    yield power_law("rate_change", config.many_alphas, change, -1, 0.1)
    yield within("log_distance_off_line", deviation.max(), at_most=0.05)
    yield within("last_gradient", arrays["many/gradient"].max(), at_most=1e-8)


def _window_fit(time, distance):
    """Rate of decay between 1e-4 and 1e-7 of the initial distance, and how far the logarithm is off the line."""
    # Above it other directions are left, below it the limit itself is known to rounding only.
    window = (distance < 1e-4 * distance[0]) & (distance > 1e-7 * distance[0])
    slope, intercept = np.polyfit(time[window], np.log(distance[window]), 1)
    off = np.abs(np.log(distance[window]) - intercept - slope * time[window])
    return -slope, off.max()


def _worst(ratio):
    """Of each column the entry furthest from one."""
    return ratio[np.abs(ratio - 1).argmax(0), np.arange(ratio.shape[1])]
