"""One call that says whether a network trains lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from lazynet import trees
from lazynet.diagnostics.curvature import kappa
from lazynet.diagnostics.displacement import linearization_gap, ntk_change
from lazynet.empirical import estimate_max_learning_rate
from lazynet.lazy import center
from lazynet.losses import as_partial, mse
from lazynet.records import Data
from lazynet.typing import Apply, Array, Key, Params

__all__ = ["Laziness", "is_lazy"]

THRESHOLDS = {"kappa": 1.0, "ntk_change": 0.1, "linearization_gap": 0.05}
"""Largest values of a lazy network. Kappa bounds the other two loosely: wide smooth networks reach a gap of 0.003 with
a kappa of 0.4, so that only a kappa above 1 speaks against laziness by itself."""


class Laziness(NamedTuple):
    """The three symptoms of laziness, each small for a lazy network, and the verdict.

    Attributes:
        kappa: `|h - y| |D^2h| / |Dh|^2` at initialization.
        ntk_change: Relative change of the tangent kernel after the steps.
        linearization_gap: Rms distance of the outputs from their linearization after the steps, relative to the change
            of the linearized outputs.
        verdict: Whether all three are below their thresholds.
        thresholds: The thresholds.
        learning_rate: Learning rate of the steps.

    Example:
        >>> Laziness(0.01, 0.02, 0.01, True, THRESHOLDS, 0.1).verdict
        True
    """

    kappa: float
    ntk_change: float
    linearization_gap: float
    verdict: bool
    thresholds: Mapping[str, float]
    learning_rate: float


def is_lazy(
    apply: Apply,
    params: Params,
    data: Data,
    *,
    key: Key[Array, ""] | None = None,
    steps: int = 20,
    learning_rate: float | None = None,
    thresholds: Mapping[str, float] = THRESHOLDS,
) -> Laziness:
    """Whether training on the square loss moves the network along its tangent: kappa, kernel change and gap all small.

    The kernel change and the gap are measured after a few steps of full-batch gradient descent, which is cheaper than a
    training run and shows its beginning: a network that is lazy here can still leave its tangent later.

    Args:
        apply: Model, or a `lazy` function.
        params: Initial parameters (zeros for a `lazy` function).
        data: A few hundred examples.
        key: Draws where the iterations for the norms start; None for a fixed draw, since they converge to the same
            norms from almost every start.
        steps: Number of gradient steps.
        learning_rate: Learning rate of the steps; None for half of the largest stable one.
        thresholds: Largest kappa, ntk_change and linearization_gap that count as lazy.

    Raises:
        ValueError: If `steps` is below 1.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (8, 3))
        >>> linear = lambda w, x: x @ w
        >>> is_lazy(linear, jnp.zeros((3, 1)), Data(x, x[:, :1])).verdict
        True

    Source: Chizat, Oyallon and Bach (2019), kappa and theorem 2.2; the thresholds are ours.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1: nothing moves without a step.")
    function, keys = as_partial(apply), jax.random.split(jax.random.key(0) if key is None else key, 3)
    if learning_rate is None:
        learning_rate = estimate_max_learning_rate(function, params, data.x, key=keys[0]) / 2
    trained = params
    for _ in range(steps):
        trained = _step(function, trained, data, learning_rate)
    measured = {
        "kappa": kappa(function, params, data, key=keys[1]),
        "ntk_change": float(ntk_change(function, trained, params, data.x, key=keys[2])),
        "linearization_gap": float(linearization_gap(center(function, params), trained, params, data.x)),
    }
    verdict = all(measured[name] <= limit for name, limit in thresholds.items())
    return Laziness(**measured, verdict=verdict, thresholds=dict(thresholds), learning_rate=float(learning_rate))


@jax.jit
def _step(function: Partial, params: Params, data: Data, learning_rate: float | Array) -> Params:
    gradient = jax.grad(lambda w: mse(function(w, data.x), jnp.asarray(data.y)))(params)
    return trees.add_scaled(params, -jnp.asarray(learning_rate), gradient)
