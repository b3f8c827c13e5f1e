"""Duals of activations: E[phi(z) phi(z')] and E[phi'(z) phi'(z')] for Gaussian pairs (z, z').

A dual is written once, for numbers, and serves matrices of vectors and planes of pixels alike. What depends on one
input alone (a norm, say) is computed by `side` once per input; `pair` combines two sides with their covariance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from lazynet.covariance.angles import angle, safe_sqrt, segment
from lazynet.typing import Array

__all__ = ["Dual", "erf_dual", "gelu_dual", "rbf_dual", "rectifier_dual", "sine_dual"]


class Dual(NamedTuple):
    """The infinite-width limit of one activation.

    Attributes:
        side: `side(q) -> tuple of arrays`, what a pair needs of the variance q of one of its inputs.
        pair: `pair(side1, side2, covariance, gap, acute) -> (E[phi phi], E[phi' phi'], new gap)`, with the squared
            distance `gap = q1 + q2 - 2 covariance` known to better relative precision than that difference (the new
            gap is None where the difference is as good), and `acute` if covariances are known not to be negative.
        diagonal: `diagonal(q) -> (E[phi^2], E[phi'^2])`, the same at correlation one.
        positive: Whether phi >= 0, so that no covariance is negative afterwards.
    """

    side: Callable[[Array], tuple[Array, ...]]
    pair: Callable[..., tuple[Array, Array, Array | None]]
    diagonal: Callable[[Array], tuple[Array, Array]]
    positive: bool = False


def rectifier_dual(a: float, b: float) -> Dual:
    """Dual of `phi(x) = a min(x, 0) + b max(x, 0)`: `E[phi phi] = h s + g |x| |x'| (sin t - t cos t)`.

    `E[phi' phi'] = h - g t`, where t is the angle, h = (a^2 + b^2)/2 and g = (a - b)^2/(2 pi). At a vanishing input the
    derivative counts as (a + b)/2, as in `jnp.maximum`.

    Example:
        >>> value, slope = rectifier_dual(0.0, 1.0).diagonal(jnp.array(2.0))
        >>> float(value), float(slope)
        (1.0, 0.5)

    Source: Cho and Saul (2009), kernels of order 0 and 1.
    """
    half, bend = (a**2 + b**2) / 2, (a - b) ** 2 / (2 * math.pi)

    def side(q):
        norm = safe_sqrt(q)
        return norm, jnp.where(q > 0, 1 / jnp.where(q > 0, norm, 1), 0)

    def pair(side1, side2, s, gap, acute):
        (norm1, inverse1), (norm2, inverse2) = side1, side2
        u = 1 - s * (inverse1 * inverse2) if gap is None else _opening(side1, side2, s, gap)
        curved = bend * (norm1 * norm2) * segment(u, acute)
        return half * s + curved, half - bend * angle(u, acute), None if gap is None else half * gap - 2 * curved

    def diagonal(q):
        return half * q, jnp.where(q > 0, half, (a + b) ** 2 / 4)

    return Dual(side, pair, diagonal, positive=a <= 0 <= b)


def erf_dual(a: float, b: float, c: float) -> Dual:
    """Dual of `phi(x) = a erf(b x) + c`: `E[phi phi] = a^2 (2/pi) asin(2 S / sqrt((1 + 2 Q)(1 + 2 Q'))) + c^2`.

    Here S, Q and Q' are the covariance and the variances times b^2.

    Example:
        >>> round(float(erf_dual(1.0, 1.0, 0.0).diagonal(jnp.array(0.5))[0]), 6)
        0.333333

    Source: Williams (1997), equation 11.
    """

    def side(q):
        return (1 + 2 * b**2 * q,)

    def pair(side1, side2, s, gap, acute):
        s = 2 * b**2 * s
        root = jnp.sqrt(side1[0] * side2[0] - s * s)
        return a**2 * (2 / math.pi) * jnp.arctan2(s, root) + c**2, (4 / math.pi) * (a * b) ** 2 / root, None

    def diagonal(q):
        q = 2 * b**2 * q
        root = jnp.sqrt(1 + 2 * q)
        return a**2 * (2 / math.pi) * jnp.arctan2(q, root) + c**2, (4 / math.pi) * (a * b) ** 2 / root

    return Dual(side, pair, diagonal)


def gelu_dual() -> Dual:
    """Dual of `phi(x) = x P(N(0, 1) <= x)`, with `D = (1 + q)(1 + q') - s^2`.

    `E[phi phi] = s/4 + s atan(s / sqrt D)/(2 pi) + (s^2 + q q' D)/(2 pi (1 + q)(1 + q') sqrt D)`.

    Example:
        >>> value, slope = gelu_dual().diagonal(jnp.array(0.0))
        >>> float(value), float(slope)
        (0.0, 0.25)

    Source: Tsuchida, Pearce, van der Heide, Roosta and Gallagher (2020), for E[phi phi].
    """

    def side(q):
        return (q,)

    def pair(side1, side2, s, gap, acute):
        variances, plus = side1[0] * side2[0], (1 + side1[0]) * (1 + side2[0])
        return (*_gelu(s, variances, plus, plus - s * s), None)

    def diagonal(q):
        return _gelu(q, q * q, (1 + q) ** 2, 1 + 2 * q)

    return Dual(side, pair, diagonal)


def sine_dual(a: float, b: float, c: float) -> Dual:
    """Dual of `phi(x) = a sin(b x + c)`: `E[phi phi] = a^2/2 (exp(-b^2 gap/2) - cos(2 c) exp(-b^2 (gap/2 + 2 s)))`.

    Example:
        >>> value, slope = sine_dual(1.0, 1.0, 0.0).diagonal(jnp.array(0.0))
        >>> float(value), float(slope)
        (0.0, 1.0)
    """

    def side(q):
        return (q,)

    def both(s, gap):
        near, far = jnp.exp(-(b**2) * gap / 2), jnp.exp(-(b**2) * (gap / 2 + 2 * s)) * math.cos(2 * c)
        return a**2 / 2 * (near - far), (a * b) ** 2 / 2 * (near + far)

    def pair(side1, side2, s, gap, acute):
        return (*both(s, _difference(side1, side2, s) if gap is None else gap), None)

    return Dual(side, pair, lambda q: both(q, jnp.zeros_like(q)))


def rbf_dual(gamma: float) -> Dual:
    """Dual of `phi(x) = sqrt 2 sin(sqrt(2 gamma) x + pi/4)`: `E[phi phi] = exp(-gamma gap)`, an RBF kernel.

    Example:
        >>> value, slope = rbf_dual(0.5).diagonal(jnp.array(3.0))
        >>> float(value), float(slope)
        (1.0, 1.0)
    """

    def side(q):
        return (q,)

    def pair(side1, side2, s, gap, acute):
        gap = _difference(side1, side2, s) if gap is None else gap
        value = jnp.exp(-gamma * gap)
        return value, 2 * gamma * value, -2 * jnp.expm1(-gamma * gap)

    return Dual(side, pair, lambda q: (jnp.ones_like(q), jnp.full_like(q, 2 * gamma)), positive=True)


def _opening(side1, side2, s, gap):
    """1 - cos(angle); 1 (a right angle) if one of the two vanishes.

    From the squared distance, which knows small angles, unless the norms differ by more than a factor of 2.6: the
    distance then hardly knows of the smaller vector, and the covariance is better.
    """
    (norm1, inverse1), (norm2, inverse2) = side1, side2
    inverse, square = inverse1 * inverse2, (norm1 - norm2) ** 2
    near = square <= norm1 * norm2
    return jnp.where(inverse > 0, jnp.where(near, (gap - square) * inverse / 2, 1 - s * inverse), 1)


def _difference(side1, side2, s):
    return side1[0] + side2[0] - 2 * s


def _gelu(s, variances, plus, determinant):
    root = jnp.sqrt(determinant)
    half_plane = 0.25 + jnp.arctan2(s, root) / (2 * math.pi)
    value = s * half_plane + (s * s + variances * determinant) / (2 * math.pi * plus * root)
    slope = half_plane + s / root * (1 / determinant + (1 - variances) / plus + 1) / (2 * math.pi)
    return value, slope
