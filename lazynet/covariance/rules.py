"""The infinite-width rule of every layer, from the state of its inputs to that of its outputs."""

from __future__ import annotations

from collections.abc import Callable

from jax import lax

from lazynet.covariance.duals import Dual
from lazynet.covariance.state import Kernel, Pointwise
from lazynet.typing import Array

__all__ = ["activation_rule", "affine", "dense_rule", "layer_norm_rule"]

Rule = Callable[[Kernel], Kernel]
Scale = float | Array


def activation_rule(name: str, dual: Dual) -> Rule:
    """`Sigma' = E[phi phi]`, `Theta' = Theta E[phi' phi']`.

    Raises:
        ValueError: When applied, if the pre-activations are not Gaussian.
    """

    def pair(side1, side2, nngp, ntk, gap):
        value, slope, gap = dual.pair(side1, side2, nngp, gap)
        return value, ntk * slope, gap

    def diagonal(nngp, ntk):
        value, slope = dual.diagonal(nngp)
        return value, ntk * slope

    def rule(k: Kernel) -> Kernel:
        _check_gaussian(name, k)
        return k.pointwise(Pointwise(dual.side, pair, diagonal), gaussian=False, fresh=False)

    return rule


def dense_rule(features: int, W_std: Scale, b_std: Scale | None, scheme: tuple[int, int] | None) -> Rule:
    """`Sigma' = W^2 Sigma + b^2`, `Theta' = W^2 Theta + Sigma'` (see `affine` for the standard parameterization)."""

    def rule(k: Kernel) -> Kernel:
        if not k.vectors:
            raise ValueError("Dense got images, expected vectors: put Flatten() or GlobalAvgPool() before it.")
        return affine(k, k.features, W_std, b_std, scheme).replace(features=features)

    return rule


def affine(k: Kernel, fan_in: int, W_std: Scale, b_std: Scale | None, scheme: tuple[int, int] | None) -> Kernel:
    """The state after fresh weights and biases on features that were averaged over `fan_in` inputs.

    In the standard parameterization `Theta' = fan_in/s_in Sigma + W^2 Theta (+ 1 with biases)`.
    """
    W2, b2 = W_std**2, 0.0 if b_std is None else b_std**2
    lift = W2 if scheme is None else fan_in / scheme[0]
    offset = b2 if scheme is None else float(b_std is not None)

    def diagonal(nngp, ntk):
        return W2 * nngp + b2, W2 * ntk + lift * nngp + offset

    def pair(side1, side2, nngp, ntk, gap):
        return *diagonal(nngp, ntk), None if gap is None else W2 * gap

    return k.pointwise(Pointwise(lambda q: (), pair, diagonal), gaussian=True, fresh=True)


def layer_norm_rule(eps: float) -> Rule:
    """`Sigma' = Sigma / sqrt((q + eps)(q' + eps))` and the same factor for Theta, with variances q and q'."""

    def side(q):
        return (lax.rsqrt(q + eps),)

    def pair(side1, side2, nngp, ntk, gap):
        scale = side1[0] * side2[0]
        return nngp * scale, ntk * scale, None

    def diagonal(nngp, ntk):
        return nngp / (nngp + eps), ntk / (nngp + eps)

    def rule(k: Kernel) -> Kernel:
        _check_gaussian("LayerNorm", k)
        return k.pointwise(Pointwise(side, pair, diagonal))

    return rule


def _check_gaussian(name: str, k: Kernel) -> None:
    if not k.gaussian:
        raise ValueError(f"{name} got activations that are not Gaussian in the infinite-width limit, expected "
                         f"pre-activations: put a Dense or Conv directly before {name}.")
