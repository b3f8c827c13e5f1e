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
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import lazynet as ln
from experiments.harness import bounds, facts
from experiments.harness.bounds import Count, Positive, Values
from experiments.shared.flows import descent_direction

__all__ = ["PRESETS", "Config", "run", "show"]


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


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Trains all widths, scales and seeds, draws the figure and returns the facts."""
    from rich.progress import track

    from experiments.harness.store import save_arrays

    bounds.check(config)
    cells = [(variant, width) for variant in VARIANTS for width in config.widths]
    results = {
        cell: measure(config, cell[1], cell[0])
        for cell in track(
            cells, "widths", console=console, transient=True, disable=not console.is_terminal
        )
    }
    measured = {
        f"{name}/{variant}": np.stack([results[variant, width][name] for width in config.widths])
        for variant in VARIANTS
        for name in ("drift", "ntk_change", "loss", "steps")
    }
    save_arrays(
        folder / "measured.npz", {"width": config.widths, "scale": config.scales, **measured}
    )
    _draw(config, measured, folder / "figures" / "crossover.png")
    return facts.summarize(list(_facts(config, measured))) | {"seeds": config.seeds}


def show(summary: dict[str, Any], console) -> None:
    """Prints the table of facts."""
    facts.show(
        summary, console, f"collapse on sqrt(width) alpha, mean over {summary['seeds']} seeds"
    )


def _facts(config, measured):
    scales = np.asarray(config.scales)
    lazy = scales >= LAZY_FROM
    features = scales <= FEATURES_TO
    for variant in VARIANTS:
        drift, change = (measured[f"{name}/{variant}"].mean(1) for name in ("drift", "ntk_change"))
        same = features if variant == "centered" else slice(None)
        yield facts.within(
            f"last_loss/{variant}", measured[f"loss/{variant}"].max(), at_most=config.loss
        )
        yield facts.within(f"spread_over_widths/drift/{variant}", _spread(drift), at_most=0.10)
        yield facts.within(
            f"spread_over_widths/ntk_change/{variant}", _spread(change[:, same]), at_most=0.15
        )
        yield facts.power_law(f"drift/{variant}", scales[lazy], drift[:, lazy], -1, 0.05)
        for width, of_width in zip(config.widths, change, strict=True):
            yield facts.within(
                f"crossover/{variant}/width={width}",
                _crossing(scales, of_width),
                at_least=0.5,
                at_most=2,
            )
    yield facts.power_law(
        "ntk_change/symmetrized",
        scales[lazy],
        measured["ntk_change/symmetrized"].mean(1)[:, lazy],
        -2,
        0.1,
    )
    largest = measured["ntk_change/centered"][:, :, -1].T
    yield facts.power_law(
        f"ntk_change_against_width/s={scales[-1]:g}/centered", config.widths, largest, -0.5, 0.25
    )


def _spread(values):
    """The largest relative difference between widths, over the scales."""
    return float(np.max((values.max(0) - values.min(0)) / values.mean(0)))


def _crossing(scales, change):
    """The scale at which the change passes through one, interpolated in the logarithms; nan if it does not."""
    after = int(np.argmax(change < 1))
    if not 0 < after < len(scales):
        return math.nan
    x, y = (np.log(values[after - 1 : after + 1]) for values in (scales, change))
    return float(np.exp(x[0] - y[0] * (x[1] - x[0]) / (y[1] - y[0])))


def measure(config: Config, width: int, variant: str) -> dict[str, np.ndarray]:
    """Relative drift and kernel change after training, the last loss and the number of steps, `[seeds, scales]`."""
    model = network(config, width, variant)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(config.seeds))
    data = jax.vmap(partial(_problem, config))(keys)
    params0 = jax.vmap(lambda key, x: model.init(jax.random.fold_in(key, 1), x))(keys, data.x)
    over_scales = jax.vmap(partial(_train, config, model), in_axes=(None, None, 0))
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
        rate = config.learning_rate * len(data.x) / _ntk_trace(model, ln.weights(lazy, u), data.x)
        for _ in range(INNER):
            u = ln.trees.add_scaled(u, rate, descent_direction(objective, u))
        return u, step + INNER

    ntk0 = _ntk(model, params0, data.x)
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
    layers = ln.Dense(width, W_std=math.sqrt(config.inputs)), ln.elementwise(jnp.tanh), ln.Dense(1)
    return ln.symmetrize(ln.serial(*layers)) if variant == "symmetrized" else ln.serial(*layers)


def _problem(config, key):
    key_x, key_y = jax.random.split(jax.random.fold_in(key, 0))
    dtype = jnp.dtype(config.precision)
    x = jax.random.normal(key_x, (config.examples, config.inputs), dtype)
    y = jax.random.rademacher(key_y, (config.examples, 1), dtype)
    return ln.Data(x / jnp.linalg.norm(x, axis=1, keepdims=True), y)


def _draw(config, measured, path):
    from matplotlib.figure import Figure

    from lazynet import plots

    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    labels = {
        "drift": r"relative drift $\|w-w_0\|/\|w_0\|$",
        "ntk_change": "relative change of the NTK",
    }
    drawn = (("drift", "centered"), ("ntk_change", "centered"), ("ntk_change", "symmetrized"))
    for (name, variant), ax in zip(drawn, axes, strict=True):
        values = measured[f"{name}/{variant}"]
        for style, width, of_width in zip(
            plots.curve_styles(len(values)), config.widths, values, strict=True
        ):
            bars = of_width.std(0, ddof=1) if config.seeds > 1 else None
            ax.errorbar(
                config.scales,
                of_width.mean(0),
                bars,
                capsize=2,
                label=f"width {width}",
                **style | {"markevery": None},
            )
        ax.set(xscale="log", yscale="log", xlabel=r"$\sqrt{h}\,\alpha$ ($h$: width)")
        ax.set_ylabel(labels[name])
        ax.set_title("doubled" if variant == "symmetrized" else variant, fontsize=11)
        ax.axhline(1, color="0.6", linewidth=0.8)
        ax.grid(True, color="0.88", linewidth=0.6)
        ax.legend(fontsize="small", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)
