"""How lazy a two-layer network is at initialization: kappa against width, for three scales of the output.

    python -m experiments run kappa_width                    # about 40 seconds
    python -m experiments run kappa_width --preset smoke     # about 15 seconds

For h(x) = alpha(m) sum_j b_j phi(a_j . x) with m units, all weights from N(0, 1), and the square
loss,

    kappa = |h(w0) - y| |D^2 h(w0)| / |Dh(w0)|^2,      E kappa = O(m^(-1/2) + 1 / (m alpha(m))),

with operator norms over weights and the norm of the empirical measure over examples. The second
term is the time that it takes to fit y, the first comes from h(w0) != 0 and vanishes for the
doubled network. Expected slopes in m:

    | alpha(m)  | independent | doubled | regime     |
    | 1/sqrt m  | -1/2        | -1/2    | lazy       |
    | 1/m       | 0           | 0       | mean field |
    | 1         | -1/2        | -1      | lazy       |

1/m is the negative control: such a network does not become lazy however wide it is. |Dh| ~ alpha
sqrt m (slope 1/2 at alpha = 1) and |D^2 h| ~ alpha (slope 0) are measured too. Where lecture notes
print kappa with |Dh| instead of |Dh|^2, the square is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import lazynet as ln
from experiments.harness import panels
from experiments.harness.bounds import Count, Values
from experiments.harness.facts import power_law
from experiments.shared.data import unit_rows

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers"]


@dataclass(frozen=True)
class Config:
    """Widths, number of draws and the problem.

    Attributes:
        widths: Widths of the hidden layer.
        seeds: Number of draws.
        inputs: Dimension of the inputs.
        examples: Training examples.
        activation: Of the hidden layer.
        iterations: Power iterations of each norm.
        restarts: Starts of the norm of the Hessian.
        precision: Of the computation.
    """

    widths: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (
        64,
        128,
        256,
        512,
        1024,
        2048,
        4096,
    )
    seeds: Count = 10
    inputs: Count = 5
    examples: Count = 30
    activation: Literal["relu", "tanh"] = "relu"
    iterations: Count = 20
    restarts: Count = 3
    precision: Literal["float32", "float64"] = "float64"


PRESETS = {"smoke": Config(widths=(64, 256, 1024), seeds=6), "laptop": Config()}

SCALES = {"inv_sqrt": lambda m: m**-0.5, "inv": lambda m: 1.0 / m, "one": lambda m: 1.0}
INITS = ("iid", "doubled")
EXPECTED = {
    ("inv_sqrt", "iid"): (-0.5, 0.12),
    ("inv_sqrt", "doubled"): (-0.5, 0.12),
    ("inv", "iid"): (0, 0.15),
    ("inv", "doubled"): (0, 0.15),
    ("one", "iid"): (-0.5, 0.15),
    ("one", "doubled"): (-1, 0.15),
}


TITLE = "slopes in the width, {activation}, mean over {seeds} seeds"


def measure(config: Config, store) -> dict[str, Any]:
    """Kappa of each scale, and the norms of Dh and D^2 h for alpha = 1, `[seeds, widths]`, each as `name/init`."""
    columns: dict[str, list] = {}
    for width in store.track(config.widths, "kappa"):
        for init in INITS:
            model = network(config, width, init)
            keys = [jax.random.fold_in(jax.random.key(0), seed) for seed in range(config.seeds)]
            draws = [measure_one(config, model, width, key) for key in keys]
            for name in draws[0]:
                columns.setdefault(f"{name}/{init}", []).append([draw[name] for draw in draws])
    return {"width": config.widths} | {name: np.array(rows).T for name, rows in columns.items()}


def numbers(config: Config, arrays) -> dict[str, Any]:
    """The number of draws, and the activation."""
    return {"seeds": config.seeds, "activation": config.activation}


def facts(config: Config, arrays):
    """Slopes of kappa for every scale, with its control, and of both norms."""
    for (scale, init), (slope, tolerance) in EXPECTED.items():
        name = f"kappa/{scale}/{init}"
        yield power_law(name, config.widths, arrays[name], slope, tolerance)
    for init in INITS:
        for norm, slope in (("jacobian_norm", 0.5), ("hessian_norm", 0)):
            name = f"{norm}/{init}"
            yield power_law(name, config.widths, arrays[name], slope, 0.1)


def draw(config: Config, arrays):
    """Kappa against the width, independent and doubled."""
    labels = {
        "inv_sqrt": r"$\alpha(m)=1/\sqrt{m}$",
        "inv": r"$\alpha(m)=1/m$",
        "one": r"$\alpha(m)=1$",
    }
    titles = {"iid": "independent weights", "doubled": "doubled, $h(w_0)=0$"}
    ylabel = r"laziness $\kappa$ (lazy if $\ll 1$)"
    drawn = []
    for init in INITS:
        curves = {label: arrays[f"kappa/{scale}/{init}"] for scale, label in labels.items()}
        drawn.append(panels.Panel(titles[init], config.widths, curves, "width $m$", ylabel))
    return panels.figure(drawn)


def measure_one(config: Config, model: ln.Model, width: int, key: jax.Array) -> dict[str, float]:
    """One draw, with `lazynet.diagnostics.kappa` spelled out, as all scales share the norms of the derivatives."""
    data = problem(config, key)
    params0 = model.init(jax.random.fold_in(key, 1), data.x)
    # Streams of a draw: 0 for the problem, 1 for the weights, 2 for the power iterations.
    settings = {"key": jax.random.fold_in(key, 2), "iterations": config.iterations}
    # Norms of derivatives scale with the output: measured once, they serve all alpha(m).
    first = ln.diagnostics.jacobian_norm(model.apply, params0, data.x, **settings)
    second = ln.diagnostics.hessian_norm(
        model.apply, params0, data.x, restarts=config.restarts, **settings
    )
    outputs = np.asarray(model.apply(params0, data.x))
    y = np.asarray(data.y)
    # The network has the scale 1/sqrt m; alpha(m) = 1 is sqrt m times that.
    measured = {"jacobian_norm": first * width**0.5, "hessian_norm": second * width**0.5}
    for name, scale in SCALES.items():
        alpha = scale(width) * width**0.5
        # kappa = |alpha h - y| |alpha D^2h| / |alpha Dh|^2, with alpha taken out.
        distance = float(np.sqrt(np.mean((outputs - y / alpha) ** 2)))
        measured[f"kappa/{name}"] = distance * second / first**2
    return measured


def network(config: Config, width: int, init: str) -> ln.Model:
    """`1/sqrt m sum_j b_j phi(a_j . x)`: the scales alpha(m) multiply it by alpha(m) sqrt m."""
    activation = ln.Relu() if config.activation == "relu" else ln.elementwise(jnp.tanh)
    # Undoes the 1 / sqrt(inputs) of the NTK parameterization.
    hidden = ln.Dense(width, W_std=math.sqrt(config.inputs))
    model = ln.serial(hidden, activation, ln.Dense(1))
    return ln.symmetrize(model) if init == "doubled" else model


def problem(config: Config, key: jax.Array) -> ln.Data:
    """Unit inputs and targets from N(0, 1)."""
    key_x, key_y = jax.random.split(jax.random.fold_in(key, 0))
    dtype = jnp.dtype(config.precision)
    x = jax.random.normal(key_x, (config.examples, config.inputs), dtype)
    y = jax.random.normal(key_y, (config.examples, 1), dtype)
    return ln.Data(unit_rows(x), y)
