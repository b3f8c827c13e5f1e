"""Duals of exponentials: of x, of x^2, with a wave, and the exponential of a correlation."""

from __future__ import annotations

import jax.numpy as jnp

from lazynet.covariance.duals import Dual, Scale, attainable, free_variance, rectifier_side
from lazynet.covariance.small_angles import Opening

__all__ = ["correlation_dual", "exponential_dual", "gabor_dual", "gaussian_dual"]


def exponential_dual(a: Scale, b: Scale) -> Dual:
    """Dual of `phi(x) = a exp(b x)`: `E[phi phi] = a^2 exp(b^2 (q + q' + 2 s) / 2)`.

    Example:
        >>> value, slope = exponential_dual(1.0, 2.0).diagonal(jnp.array(0.0))
        >>> float(value), float(slope)
        (1.0, 4.0)
    """

    def both(exponent):
        value = a**2 * jnp.exp(b**2 * exponent)
        return value, b**2 * value

    def pair(side1, side2, s, opening, acute):
        return (*both((side1[0] + side2[0]) / 2 + s), None)

    return Dual(lambda q: (q,), pair, lambda q: both(2 * q), positive=True)


def gaussian_dual(a: Scale, b: Scale) -> Dual:
    """Dual of `phi(x) = a exp(b x^2)`: `E[phi phi] = a^2 / sqrt D` and `E[phi' phi'] = 4 a^2 b^2 s / D^(3/2)`.

    Here `D = 1 - 2 b (q + q') + 4 b^2 (q q' - s^2)`, which must be positive: for b > 0 only small
    variances have a limit.

    Example:
        >>> value, slope = gaussian_dual(1.0, -1.0).diagonal(jnp.array(2.0))
        >>> round(float(value), 6), round(float(slope), 6)
        (0.333333, 0.296296)
    """

    def both(determinant, s):
        root = jnp.sqrt(determinant)
        return a**2 / root, 4 * (a * b) ** 2 * s / (determinant * root)

    def pair(side1, side2, s, opening, acute):
        total = side1[0] + side2[0]
        determinant = 1 - 2 * b * total + 4 * b**2 * free_variance(side1, side2, s, opening)
        # The integral is finite where both eigenvalues are positive, not where both are negative.
        determinant = jnp.where(b * total < 1, determinant, jnp.nan)
        return (*both(determinant, s), None)

    return Dual(lambda q: (q,), pair, lambda q: both(1 - 4 * b * q, q), positive=True)


def gabor_dual() -> Dual:
    """Dual of `phi(x) = exp(-x^2) sin(x)`: `E[phi phi] = (exp(-N_-/(2 D)) - exp(-N_+/(2 D))) / (2 sqrt D)`.

    With `p = q q' - s^2`: `N = q + q' + 4 p -/+ 2 s` and `D = 1 + 2 (q + q') + 4 p`. The slope is the
    derivative of this in s.

    Example:
        >>> value, slope = gabor_dual().diagonal(jnp.array(0.0))
        >>> float(value), float(slope)
        (0.0, 1.0)
    """

    def wave(sign, s, total, free):
        """`exp(-N/(2 D)) / sqrt D` for one of the two signs, and its derivative in s."""
        scale = 1 + 2 * total + 4 * free
        size = total + 4 * free - 2 * sign * s
        value = jnp.exp(-size / (2 * scale)) / jnp.sqrt(scale)
        # The derivative of the logarithm: of N, of D below it, and of 1 / sqrt D; D' = -8 s.
        change = (4 * s + sign) / scale - 4 * s * size / scale**2 + 4 * s / scale
        return value, value * change

    def both(s, total, free):
        near, far = wave(1, s, total, free), wave(-1, s, total, free)
        return (near[0] - far[0]) / 2, (near[1] - far[1]) / 2

    def pair(side1, side2, s, opening, acute):
        return (*both(s, side1[0] + side2[0], free_variance(side1, side2, s, opening)), None)

    return Dual(lambda q: (q,), pair, lambda q: both(q, 2 * q, jnp.zeros_like(q)))


def correlation_dual(gamma: Scale, shift: Scale) -> Dual:
    """The kernel `|x| |x'| exp(gamma (cos t + shift))` of a correlation cos t, behind which there is no function.

    Example:
        >>> value, slope = correlation_dual(1.0, -1.0).diagonal(jnp.array(3.0))
        >>> float(value), float(slope)
        (3.0, 1.0)

    Source: Shankar et al. (2020), "Neural kernels without tangents".
    """

    def pair(side1, side2, s, opening, acute):
        norms = side1[0] * side2[0]
        cosine = attainable(s, norms) * (side1[1] * side2[1])
        growth = jnp.exp(gamma * (cosine + shift))
        after = opening and Opening(-jnp.expm1(-gamma * opening.u), None)
        return norms * growth, gamma * growth, after

    def diagonal(q):
        growth = jnp.exp(gamma * (jnp.where(q > 0, 1.0, 0.0) + shift)).astype(q.dtype)
        return q * growth, gamma * growth

    return Dual(rectifier_side, pair, diagonal, positive=True)
