"""Duals of polynomials, and of powers that are cut at zero, whose covariances are polynomials of covariances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazynet.covariance.duals import Dual, rectifier_side
from lazynet.covariance.small_angles import (
    Opening,
    angle,
    angle_of,
    safe_sqrt,
    squared_sine,
)
from lazynet.typing import Array

__all__ = ["hermite_coefficients", "horner", "polynomial_dual", "rectified_power_dual", "sign_dual"]


def polynomial_dual(coefficients: Sequence[float | int]) -> Dual:
    """Dual of `phi(x) = sum_k c_k x^k`: `E[phi phi] = sum_l m_l(q) m_l(q') s^l / l!`, with `m_l = E[phi^(l)]`.

    The moments m_l are polynomials of the variance; E[phi' phi'] is the same sum for the derivative,
    whose moments are m_{l+1}. Nothing is divided by a norm, so that vanishing inputs are no special
    case.

    Example:
        >>> value, slope = polynomial_dual((0.0, 0.0, 1.0)).diagonal(jnp.array(2.0))
        >>> float(value), float(slope)
        (12.0, 8.0)

    Source: Price (1958).
    """
    orders = range(len(coefficients))
    moments = [_moment_coefficients(coefficients, order) for order in orders]

    def side(q):
        return tuple(horner(moment, q) for moment in moments)

    def pair(side1, side2, s, opening, acute):
        # Taylor's series at s = 0, where z and z' are independent: by Price's theorem the derivative
        # of order l is there m_l(q) m_l(q').
        products = [a * b for a, b in zip(side1, side2, strict=True)]
        value = [product / math.factorial(order) for order, product in enumerate(products)]
        slope = [product / math.factorial(order) for order, product in enumerate(products[1:])]
        return horner(value, s), horner(slope, s), None

    def diagonal(q):
        return pair(side(q), side(q), q, None, False)[:2]

    return Dual(side, pair, diagonal)


def hermite_coefficients(degree: int) -> list[float]:
    """Coefficients of the normalized Hermite polynomial `He_d / sqrt(d!)`, from the constant on.

    Example:
        >>> [round(c, 6) for c in hermite_coefficients(2)]
        [-0.707107, 0.0, 0.707107]
    """
    powers = np.polynomial.hermite_e.herme2poly([0] * degree + [1])
    return [float(c) / math.sqrt(math.factorial(degree)) for c in powers]


def rectified_power_dual(degree: int) -> Dual:
    """Dual of `phi(x) = x^n` for x >= 0 and 0 below: `E[phi phi] = (|x| |x'|)^n m_nn(t)` at the angle t.

    The moments `m_ab = E[z_+^a z'_+^b]` of unit normal variables follow from Stein's lemma: `m_ab =
    (b - 1) m_{a, b-2} + a cos(t) m_{a-1, b-1}`. Since phi' = n x^(n-1), `E[phi' phi'] = n^2 (|x|
    |x'|)^(n-1) m_{n-1, n-1}`, and 0 for a step, whose derivative vanishes where it exists. A step is 1
    at a vanishing input.

    Example:
        >>> value, slope = rectified_power_dual(2).diagonal(jnp.array(2.0))
        >>> float(value), float(slope)
        (6.0, 4.0)

    Source: Cho and Saul (2009), kernels of order n.
    """

    def pair(side1, side2, s, opening, acute):
        if opening is None:
            u = 1 - s * (side1[1] * side2[1])
            theta = angle(u, False)
            sine = safe_sqrt(u * (2 - u))
        else:
            u = opening.u
            theta = angle_of(opening)
            sine = safe_sqrt(squared_sine(opening))
        norms = side1[0] * side2[0]
        value = norms**degree * _cut_moment(degree, degree, theta, 1 - u, sine)
        if degree == 0:
            beside = jnp.where(side2[0] > 0, 0.5, 1.0)
            value = jnp.where(side1[0] > 0, jnp.where(side2[0] > 0, value, 0.5), beside)
            return value, jnp.zeros_like(value), None
        scale = degree**2 * norms ** (degree - 1)
        slope = scale * _cut_moment(degree - 1, degree - 1, theta, 1 - u, sine)
        return value, slope, None

    def diagonal(q):
        value = _double_factorial(2 * degree - 1) / 2 * q**degree
        if degree == 0:
            return jnp.where(q > 0, value, 1), jnp.zeros_like(q)
        return value, degree**2 * _double_factorial(2 * degree - 3) / 2 * q ** (degree - 1)

    return Dual(rectifier_side, pair, diagonal, positive=True)


def sign_dual() -> Dual:
    """Dual of `phi(x) = sign(x)`: `E[phi phi] = 1 - 2 t / pi` at the angle t; no gradient passes.

    Example:
        >>> value, slope = sign_dual().diagonal(jnp.array([2.0, 0.0]))
        >>> value.tolist(), slope.tolist()
        ([1.0, 0.0], [0.0, 0.0])
    """

    def pair(side1, side2, s, opening, acute):
        if opening is None:
            theta = angle(1 - s * (side1[1] * side2[1]), acute)
            value = 1 - 2 / math.pi * theta
            return value, jnp.zeros_like(value), None
        theta = angle_of(opening)
        # 1 - cos of the new angle, which a correlation of 1 - 2 t / pi would round.
        after = 2 / math.pi * theta
        return 1 - after, jnp.zeros_like(after), Opening(after, 2 - after)

    def diagonal(q):
        return jnp.where(q > 0, jnp.ones_like(q), 0), jnp.zeros_like(q)

    return Dual(rectifier_side, pair, diagonal)


def _moment_coefficients(coefficients, order):
    """E[phi^(l)(z)] as a polynomial of the variance: c_{l+2i} (l + 2i)! / (2^i i!) q^i."""
    return [
        c * math.factorial(order + 2 * i) / (2**i * math.factorial(i))
        for i, c in enumerate(coefficients[order::2])
    ]


def horner(coefficients: Sequence[Any], x: Array) -> Array:
    """The polynomial `sum_k c_k x^k`, by Horner's rule.

    Example:
        >>> float(horner((1.0, 0.0, 2.0), jnp.array(3.0)))
        19.0
    """
    value = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


def _cut_moment(a, b, theta, cosine, sine) -> Array:
    """`E[z_+^a z'_+^b]` for a + b even and the angle theta."""
    a, b = sorted((a, b))
    if (a, b) == (0, 0):
        return (math.pi - theta) / (2 * math.pi)
    if (a, b) == (1, 1):
        return (sine + (math.pi - theta) * cosine) / (2 * math.pi)
    # the derivative of a step is what z' sees of the edge of z
    edge = sine ** (b - 1) * _half_moment(b - 1) / math.sqrt(2 * math.pi)
    other = edge if a == 0 else a * _cut_moment(a - 1, b - 1, theta, cosine, sine)
    return (b - 1) * _cut_moment(a, b - 2, theta, cosine, sine) + cosine * other


def _half_moment(k):
    """`E[z_+^k]` of a unit normal variable."""
    return 2 ** (k / 2 - 1) * math.gamma((k + 1) / 2) / math.sqrt(math.pi)


def _double_factorial(n):
    return math.prod(range(n, 0, -2))
