"""The infinite-width rule of every layer, from the state of its inputs to that of its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from lazynet.covariance.duals import Dual, rectifier_side
from lazynet.covariance.general.positions import Positions
from lazynet.covariance.openings import known_where, opening_of_sum
from lazynet.covariance.pointwise import nothing
from lazynet.covariance.small_angles import safe_sqrt
from lazynet.covariance.state import Kernel, Pointwise
from lazynet.covariance.windows import Window
from lazynet.typing import Array

__all__ = [
    "activation_rule",
    "affine",
    "concat_rule",
    "conv_rule",
    "dense_rule",
    "flatten_rule",
    "global_pool_rule",
    "layer_norm_rule",
    "pool_rule",
]

State = Kernel | Positions
"""Planes and vectors, or all pairs of positions: rules are the same."""

Rule = Callable[[Any], Any]
Scale = float | int | Array


def activation_rule(name: str, dual: Dual) -> Rule:
    """`Sigma' = E[phi phi]`, `Theta' = Theta E[phi' phi']`.

    Raises:
        ValueError: When applied, if the pre-activations are not Gaussian.
    """

    def diagonal(nngp, ntk):
        value, slope = dual.diagonal(nngp)
        return value, _times(ntk, slope)

    def rule(k: State) -> State:
        def pair(side1, side2, nngp, ntk, opening):
            value, slope, after = dual.pair(side1, side2, nngp, opening, k.positive)
            return value, _times(ntk, slope), after

        _check_gaussian(name, k)
        op = Pointwise(dual.side, pair, diagonal)
        return k.pointwise(op, gaussian=False, positive=dual.positive)

    return rule


def dense_rule(
    features: int,
    W_std: Scale,
    b_std: Scale | None,
    scheme: tuple[int, int] | None,
    *,
    any_rank: bool = False,
) -> Rule:
    """`Sigma' = W^2 Sigma + b^2`, `Theta' = W^2 Theta + Sigma'` (see `affine` for the standard parameterization)."""

    def rule(k: State) -> State:
        if not k.vectors and not any_rank:
            raise ValueError(
                "Dense got images, expected vectors: put Flatten() or GlobalAvgPool() before it."
            )
        return affine(k, k.features, W_std, b_std, scheme).replace(features=features)

    return rule


def affine(
    k: State, fan_in: int, W_std: Scale, b_std: Scale | None, scheme: tuple[int, int] | None
) -> State:
    """The state after fresh weights and biases on features that were averaged over `fan_in` inputs.

    In the standard parameterization `Theta' = fan_in/s_in Sigma + W^2 Theta (+ 1 with biases)`.
    Weights that are not trained leave `Theta' = W^2 Theta`.
    """
    W2 = W_std**2
    b2 = 0.0 if b_std is None else b_std**2

    def diagonal(nngp, ntk):
        new = W2 * nngp + b2
        if not k.trained:
            return new, _times(ntk, W2)
        own = new if scheme is None else fan_in / scheme[0] * nngp + float(b_std is not None)
        return new, own if ntk is None else W2 * ntk + own

    def shares(q):
        """What weights and biases contribute to the direction of an input."""
        variance = W2 * q + b2
        _, inverse = rectifier_side(variance)
        # Beside a variance that left the dtype a bias has no share: the kernel is infinite, not NaN.
        weight = jnp.where(jnp.isinf(variance), 1.0, W_std * safe_sqrt(q) * inverse)
        return weight, b_std * inverse, inverse  # pyright: ignore[reportOptionalOperand]

    def pair(side1, side2, nngp, ntk, opening):
        new, own = diagonal(nngp, ntk)
        # Weights alone leave the angle as it is.
        if b_std is None or opening is None:
            return new, own, opening
        (weight1, bias1, inverse1), (weight2, bias2, inverse2) = side1, side2
        after = opening_of_sum([(weight1, weight2, opening), (bias1, bias2, None)])
        # A vanishing input has no angle whose derivative one could follow.
        cosine = new * (inverse1 * inverse2)
        return new, own, known_where(weight1 * weight2 != 0, after, cosine)

    known = isinstance(k, Kernel) and k.opening is not None
    # Without openings to follow, variances need not be computed (`Pointwise.beside`).
    side = shares if known and b_std is not None else nothing
    return k.pointwise(Pointwise(side, pair, diagonal), gaussian=True, fresh=True)


def layer_norm_rule(eps: float) -> Rule:
    """`Sigma' = Sigma / sqrt((q + eps)(q' + eps))` and the same factor for Theta, with variances q and q'."""

    def side(q):
        return (lax.rsqrt(q + eps),)

    def pair(side1, side2, nngp, ntk, opening):
        scale = side1[0] * side2[0]
        # Lengths change, the angle does not.
        return nngp * scale, _times(ntk, scale), opening

    def diagonal(nngp, ntk):
        return nngp / (nngp + eps), _times(ntk, 1 / (nngp + eps))

    def rule(k: State) -> State:
        _check_gaussian("LayerNorm", k)
        return k.pointwise(Pointwise(side, pair, diagonal))

    return rule


def conv_rule(
    features: int, window: Any, W_std: Scale, b_std: Scale | None, scheme: tuple[int, int] | None
) -> Rule:
    """`Sigma'[p, p'] = W^2/k sum_d Sigma[s p + d, s p' + d] + b^2`, `Theta' = W^2/k sum_d Theta[...] + Sigma'`."""

    def rule(k: State) -> State:
        _check_images("Conv", k)
        fan_in = math.prod(window.size) * k.features
        return affine(k.window(window), fan_in, W_std, b_std, scheme).replace(features=features)

    return rule


def pool_rule(name: str, window: Window, divisor: int) -> Rule:
    """`Sigma'[p, p'] = 1/divisor^2 sum_{d, d'} Sigma[s p + d, s p' + d']`, and the same for Theta."""

    def rule(k: State) -> State:
        _check_images(name, k)
        return k.pool(window, 1 / divisor)

    return rule


def global_pool_rule(name: str, *, mean: bool) -> Rule:
    """`Sigma' = 1/(h w)^2 sum_{p, p'} Sigma[p, p']` (or without the division), and the same for Theta."""

    def rule(k: State) -> State:
        _check_images(name, k)
        return k.average(1.0) if mean else k.total()

    return rule


def flatten_rule(k: State) -> State:
    """`Sigma' = 1/(h w) sum_p Sigma[p, p]`, and the same for Theta; vectors stay as they are."""
    return k if k.vectors else k.flatten().replace(features=k.features * math.prod(k.shape))


def concat_rule(kernels: Sequence[Any]) -> State:
    """`Sigma' = sum_b c_b Sigma_b / sum_b c_b` for branches of c_b features side by side, and the same for Theta."""
    features = sum(k.features for k in kernels)
    weighted = [
        k.pointwise(_scaling(k.features / features), gaussian=True, fresh=True) for k in kernels
    ]
    total = type(weighted[0]).sum_independent(weighted, [""] * len(kernels))
    fresh = all(k.fresh for k in kernels)
    return total.replace(features=features, gaussian=False, fresh=fresh)


def _scaling(factor):
    def pair(side1, side2, nngp, ntk, opening):
        return factor * nngp, _times(ntk, factor), opening

    return Pointwise(nothing, pair, lambda nngp, ntk: (factor * nngp, _times(ntk, factor)))


def _times(ntk, factor):
    return None if ntk is None else ntk * factor


def _check_images(name: str, k: State) -> None:
    if k.vectors:
        raise ValueError(
            f"{name} got vectors, expected images [n, h, w, c]: put {name} before Flatten() or a global pool."
        )


def _check_gaussian(name: str, k: State) -> None:
    if not k.gaussian:
        raise ValueError(
            f"{name} got activations that are not Gaussian in the infinite-width limit, expected "
            f"pre-activations: put a Dense or Conv directly before {name}."
        )
