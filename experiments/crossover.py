"""From feature learning to lazy training: the product of alpha and the square root of the width decides.

    python -m experiments run crossover                    # about 40 seconds
    python -m experiments run crossover --preset smoke     # about 20 seconds

Two-layer tanh networks of width h in the NTK parameterization fit random signs with
f = alpha (h(w) - h(w0)), by gradient descent until the loss is 0.01 (it starts at 0.5). Expected,
with s = sqrt(h) alpha:

- the relative drift |w - w0| / |w0| at one s is the same for all widths (within 10 %), and falls
  like 1/s from 10 on;
- the relative change of the tangent kernel passes through 1 at s of order one, the crossover;
- doubled (symmetrized) networks: it is the same for all widths at every s (within 15 %), and falls
  like 1/s^2 from 10 on;
- centered networks: it is the same for all widths up to s = 1 only. Deep in the lazy regime its
  first-order term, an average over neurons of random sign, dominates: at s = 100 it still falls
  with the width, with a slope near -1/2.

The last line is the negative control: there alpha and the width do not enter by their product
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import lazynet as ln
from experiments.harness import panels
from experiments.harness.bounds import Count, Positive, Values
from experiments.harness.facts import power_law, within
from experiments.shared.data import unit_rows
from experiments.shared.flows import descent_direction
from lazynet import plots

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers"]


@dataclass(frozen=True)
class Config:
    """Widths, values of sqrt(width) alpha, number of draws, and the training.

    Attributes:
        widths: Widths of the hidden layer.
        scales: Values of sqrt(width) alpha.
        seeds: Number of draws.
        inputs: Dimension of the inputs.
        examples: Training examples.
        loss: Training loss at which training stops.
        learning_rate: Of the flow, over the trace of the kernel.
        max_steps: Steps after which training is given up.
        precision: Of the computation.
    """

    widths: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (64, 256, 1024)
    scales: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (
        0.1,
        0.3,
        1.0,
        3.0,
        10.0,
        30.0,
        100.0,
    )
    seeds: Count = 10
    inputs: Count = 16
    examples: Count = 8
    loss: Positive = 1e-2
    # Since tr >= lambda_max, it is at most a quarter of the bound 2 n / lambda_max.
    learning_rate: Positive = 0.5
    max_steps: Count = 100_000
    precision: Literal["float32", "float64"] = "float64"


PRESETS = {
    "smoke": Config(widths=(64, 512), scales=(0.1, 0.3, 1.0, 3.0, 10.0, 100.0), seeds=8),
    "laptop": Config(),
}

INNER = 5
"""Steps between two looks at the loss and at the size of the kernel, which sets the learning rate."""

VARIANTS = ("centered", "symmetrized")
LAZY_FROM = 10.0
FEATURES_TO = 1.0


TITLE = "collapse on sqrt(width) alpha, mean over {seeds} seeds"


def measure(config: Config, store) -> dict[str, Any]:
    """Drift, change of the kernel, last loss and steps, `[widths, seeds, scales]`, each as `name/variant`."""
    arrays: dict[str, Any] = {"width": config.widths, "scale": config.scales}
    for variant in VARIANTS:
        trained = [
            train_all(config, width, variant) for width in store.track(config.widths, variant)
        ]
        for name in trained[0]:
            arrays[f"{name}/{variant}"] = np.stack([of_width[name] for of_width in trained])
    return arrays


def numbers(config: Config, arrays) -> dict[str, Any]:
    """The number of draws."""
    return {"seeds": config.seeds}


def facts(config: Config, arrays):
    """Collapse on the product of alpha and the root of the width, where it holds and where it does not."""
    scales = np.asarray(config.scales)
    lazy = scales >= LAZY_FROM
    for variant in VARIANTS:
        drift = arrays[f"drift/{variant}"].mean(1)
        change = arrays[f"ntk_change/{variant}"].mean(1)
        # In the lazy regime the kernel of a centered network depends on alpha and the width, each by itself.
        same = scales <= FEATURES_TO if variant == "centered" else slice(None)
        last_loss = arrays[f"loss/{variant}"].max()
        yield within(f"last_loss/{variant}", last_loss, at_most=config.loss)
        yield within(f"spread_over_widths/drift/{variant}", _spread(drift), at_most=0.10)
        spread = _spread(change[:, same])
        yield within(f"spread_over_widths/ntk_change/{variant}", spread, at_most=0.15)
        yield power_law(f"drift/{variant}", scales[lazy], drift[:, lazy], -1, 0.05)
        for width, of_width in zip(config.widths, change, strict=True):
            name = f"crossover/{variant}/width={width}"
            yield within(name, _crossing(scales, of_width), at_least=0.5, at_most=2)
    change = arrays["ntk_change/symmetrized"].mean(1)[:, lazy]
    yield power_law("ntk_change/symmetrized", scales[lazy], change, -2, 0.1)
    # At the largest scale, `[seeds, widths]`.
    largest = arrays["ntk_change/centered"][:, :, -1].T
    name = f"ntk_change_against_width/s={scales[-1]:g}/centered"
    yield power_law(name, config.widths, largest, -0.5, 0.25)


def draw(config: Config, arrays):
    """Drift and change of the kernel against sqrt(h) alpha, a curve for each width."""
    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    labels = {
        "drift": r"relative drift $\|w-w_0\|/\|w_0\|$",
        "ntk_change": "relative change of the NTK",
    }
    drawn = (("drift", "centered"), ("ntk_change", "centered"), ("ntk_change", "symmetrized"))
    styles = plots.curve_styles(len(config.widths))
    for (name, variant), ax in zip(drawn, figure.subplots(1, 3), strict=True):
        values = arrays[f"{name}/{variant}"]
        for style, width, of_width in zip(styles, config.widths, values, strict=True):
            bars = of_width.std(0, ddof=1) if config.seeds > 1 else None
            settings = style | {"markevery": None, "capsize": 2, "label": f"width {width}"}
            ax.errorbar(config.scales, of_width.mean(0), bars, **settings)
        ax.axhline(1, color="0.6", linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel=r"$\sqrt{h}\,\alpha$ ($h$: width)")
        ax.set_ylabel(labels[name])
        panels.finish(ax, "doubled" if variant == "symmetrized" else variant)
    return figure


def _spread(values):
    """The largest relative difference between widths, over the scales."""
    return float(np.max((values.max(0) - values.min(0)) / values.mean(0)))


def _crossing(scales, change):
    """The scale at which the change passes through one, interpolated in the logarithms; nan if it does not."""
    # Zero where no scale is below one, or the first already is: nothing is crossed then.
    after = int(np.argmax(change < 1))
    if not 0 < after < len(scales):
        return math.nan
    around = slice(after - 1, after + 1)
    x = np.log(scales[around])
    y = np.log(change[around])
    slope = (y[1] - y[0]) / (x[1] - x[0])
    return float(np.exp(x[0] - y[0] / slope))


def train_all(config: Config, width: int, variant: str) -> dict[str, np.ndarray]:
    """Relative drift and kernel change after training, the last loss and the number of steps, `[seeds, scales]`."""
    model = network(config, width, variant)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(config.seeds))
    data = jax.vmap(partial(_problem, config))(keys)
    params0 = jax.vmap(lambda key, x: model.init(jax.random.fold_in(key, 1), x))(keys, data.x)
    over_scales = jax.vmap(partial(_train, config, model), in_axes=(None, None, 0))
    # The scale is s = sqrt(width) alpha, of which the curves of all widths should be one.
    alphas = jnp.asarray(config.scales, config.precision) / math.sqrt(width)
    results = jax.jit(jax.vmap(over_scales, in_axes=(0, 0, None)))(params0, data, alphas)
    return jax.tree.map(np.asarray, results)


def _train(config, model, params0, data, alpha):
    """Gradient descent on the lazy function with steps that follow the largest eigenvalue of its kernel."""
    lazy = ln.lazy(model.apply, params0, alpha)

    def objective(u):
        return ln.mse(lazy(u, data.x), data.y)

    def unfinished(state):
        return (objective(state[0]) > config.loss) & (state[1] < config.max_steps)

    def advance(state):
        u, step = state
        # Where features are learned the kernel grows manyfold, and a rate of the start diverges.
        # The kernel of f in u is that of h at the moved weights: df/du = Dh(w0 + u/alpha).
        trace = _ntk_trace(model, ln.weights(lazy, u), data.x)
        rate = config.learning_rate * len(data.x) / trace
        # The trace costs as much as several steps and changes little in a few of them.
        for _ in range(INNER):
            u = ln.trees.add_scaled(u, rate, descent_direction(objective, u))
        return u, step + INNER

    ntk0 = _ntk(model, params0, data.x)
    # Under `vmap` it runs until the slowest one is done; those that are done keep their state.
    u, steps = jax.lax.while_loop(unfinished, advance, (ln.trees.zeros_like(params0), 0))
    params = ln.weights(lazy, u)
    return {
        "drift": ln.trees.norm(u) / alpha / ln.trees.norm(params0),
        "ntk_change": ln.diagnostics.kernel_distance(_ntk(model, params, data.x), ntk0),
        "loss": objective(u),
        "steps": steps,
    }


def _ntk_trace(model, params, x):
    """The trace of the kernel, a bound of its largest eigenvalue: the squared norm of the Jacobian."""
    return ln.trees.norm(jax.jacrev(lambda w: model.apply(w, x))(params)) ** 2


def _ntk(model, params, x):
    return ln.empirical.empirical_ntk(model.apply, params, x, outputs="trace")


def network(config: Config, width: int, variant: str) -> ln.Model:
    """`1/sqrt h sum_j b_j tanh(a_j . x)` with all weights from N(0, 1), doubled or not."""
    # Undoes the 1 / sqrt(inputs) of the NTK parameterization.
    hidden = ln.Dense(width, W_std=math.sqrt(config.inputs))
    model = ln.serial(hidden, ln.elementwise(jnp.tanh), ln.Dense(1))
    return ln.symmetrize(model) if variant == "symmetrized" else model


def _problem(config, key):
    key_x, key_y = jax.random.split(jax.random.fold_in(key, 0))
    dtype = jnp.dtype(config.precision)
    x = jax.random.normal(key_x, (config.examples, config.inputs), dtype)
    y = jax.random.rademacher(key_y, (config.examples, 1), dtype)
    return ln.Data(unit_rows(x), y)
