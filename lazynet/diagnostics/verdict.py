"""One call that says whether a network trains lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lazynet import guards, trees
from lazynet.diagnostics.curvature import kappa
from lazynet.diagnostics.displacement import linearization_gap, ntk_change
from lazynet.kernels.empirical import estimate_max_learning_rate
from lazynet.lazy import center, check_displacement, lazy_below, lazy_part
from lazynet.losses import mse
from lazynet.models.low_rank import merged
from lazynet.parameters import Where
from lazynet.programs import PerFunction
from lazynet.records import Data
from lazynet.signatures import OfWeights, Output, flat, real_weights, with_constants
from lazynet.trees import as_partial
from lazynet.typing import Apply, Array, Key, Params

__all__ = ["Laziness", "is_lazy"]

THRESHOLDS = {"kappa": 1.0, "ntk_change": 0.1, "linearization_gap": 0.05}
"""Largest values of a lazy network. Kappa bounds the other two loosely: wide smooth networks reach a gap of 0.003 with
a kappa of 0.4, so that only a kappa above 1 speaks against laziness by itself."""


ROUNDINGS = 10
"""The least way of the weights, in units of their rounding: it leaves the gap an error of a few percent."""


class Laziness(NamedTuple):
    """The three symptoms of laziness, each small for a lazy network, and the verdict.

    Attributes:
        kappa: `|h - y| |D^2h| / |Dh|^2` at initialization.
        ntk_change: Relative change of the tangent kernel after the steps.
        linearization_gap: Rms distance of the outputs from their linearization after the steps,
            relative to the change of the linearized outputs.
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
    learning_rate: float | int | None = None,
    iterations: int = 5,
    restarts: int = 1,
    thresholds: Mapping[str, float] = THRESHOLDS,
    output: Output = None,
    where: Where | None = None,
) -> Laziness:
    """Whether training on the square loss moves the network along its tangent: kappa, kernel change and gap all small.

    The kernel change and the gap are measured after a few steps of full-batch gradient descent,
    which is cheaper than a training run and shows its beginning: a network that is lazy here can
    still leave its tangent later.

    The cost is that of about 150 gradients of the loss over all of `data`: 80 for the kernel
    change, `steps` for the training, and `(6 restarts + 4) iterations` for the norms.

    Args:
        apply: Model, or a `lazy` function.
        params: Initial parameters (zeros for a `lazy` function).
        data: A few hundred examples.
        key: Draws where the iterations for the norms start; None for a fixed draw, since they
            converge to the same norms from almost every start.
        steps: Number of gradient steps.
        learning_rate: Learning rate of the steps; None for half of the largest stable one.
        iterations: Products for the norms of the differential, rounds for that of the second
            derivative. Norms approach their values from below: with 20 rounds and 3 restarts kappa
            is a few percent larger.
        restarts: Starts for the norm of the second derivative.
        thresholds: Largest kappa, ntk_change and linearization_gap that count as lazy.
        output: Which of the outputs of apply, by `select`; those of data.y.
        where: Which parameters are trained, as in `train`.

    Raises:
        TypeError: If `params` has leaves that are not floating point.
        ValueError: If there is no verdict: `apply` mixes the examples of a batch, the weights did
            not move beyond rounding, the targets do not have the shape of the outputs, the
            differential is zero, something is not finite, or a number is out of its bounds.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (8, 3))
        >>> linear = lambda w, x: x @ w
        >>> is_lazy(linear, jnp.zeros((3, 1)), Data(x, x[:, :1])).verdict
        True

    Source: Chizat, Oyallon and Bach (2019), kappa and theorem 2.2; the thresholds are ours.
    """
    steps = guards.count("steps", steps, fix="nothing moves without a step")
    thresholds = _checked_thresholds(thresholds)
    guards.weights("params", params)
    check_displacement(as_partial(apply), params)
    function, weights = real_weights(flat(apply, data.x, output), params, where)
    keys = jax.random.split(jax.random.key(0) if key is None else key, 3)
    rounds: dict[str, Any] = {"iterations": iterations, "restarts": restarts}
    measured = {"kappa": kappa(function, weights, data, key=keys[1], **rounds)}
    if learning_rate is None:
        largest = estimate_max_learning_rate(
            function, weights, data.x, key=keys[0], iterations=iterations
        )
        # n / lambda_max, at which a linear model fits its leading mode in one step.
        learning_rate = largest / 2
    rate = guards.rate(learning_rate)
    trained = weights
    for _ in range(steps):
        trained = _step(function, trained, data, rate)
    _check_moved(function, trained, weights)
    measured["ntk_change"] = float(ntk_change(function, trained, weights, data.x, key=keys[2]))
    # Centered: relative to how far outputs have moved, and not to their size.
    gap = linearization_gap(center(function, weights), trained, weights, data.x)
    measured["linearization_gap"] = float(gap)
    verdict = all(measured[name] <= limit for name, limit in thresholds.items())
    return Laziness(**measured, verdict=verdict, thresholds=thresholds, learning_rate=rate)


def _checked_thresholds(thresholds: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(thresholds, Mapping) or not set(thresholds) <= set(THRESHOLDS):
        raise ValueError(
            f"thresholds got {thresholds!r}, expected a dictionary of some of {', '.join(THRESHOLDS)}."
        )
    for name, limit in thresholds.items():
        guards.number(f"thresholds[{name!r}]", limit, at_least=0, or_inf=True)
    return dict(thresholds)


def _check_moved(function: Apply, params: Params, params0: Params) -> None:
    """Refuses weights whose way is of the size of their rounding, which kernel change and gap would measure."""
    whole = function.apply if isinstance(function, OfWeights) else function
    inner = lazy_below(whole)
    # the tangent model has weights that stand still: its variable counts
    if inner is not None and not inner.is_tangent:
        u = with_constants(params, function)
        u0 = with_constants(params0, function)
        if lazy_part(whole) is None:
            u = merged(u)
            u0 = merged(u0)
        _, params = real_weights(None, inner.weights(u))
        _, params0 = real_weights(None, inner.weights(u0))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params0)}
    rounding = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    way = float(trees.norm(trees.subtract(params, params0)))
    size = float(trees.norm(params0))
    if way <= ROUNDINGS * rounding * size:
        raise ValueError(
            f"is_lazy moved weights of norm {size:.2g} by {way:.2g}, expected at least {ROUNDINGS} times their "
            "rounding: take a larger learning_rate, more steps, float64 or a smaller alpha; where the gradient is "
            "zero there is nothing to learn."
        )


@PerFunction
def _step(function: Apply, params: Params, data: Data, learning_rate: float | Array) -> Params:
    gradient = jax.grad(lambda w: mse(function(w, data.x), jnp.asarray(data.y)))(params)
    return trees.add_scaled(params, -jnp.asarray(learning_rate), gradient)
