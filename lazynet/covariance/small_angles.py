"""Angles between almost parallel vectors: functions of u = 1 - cos(angle) without cancellation at u = 0."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lazynet.typing import Array

__all__ = [
    "Opening",
    "angle",
    "angle_of",
    "remainder",
    "safe_sqrt",
    "segment",
    "squared_sine",
]

# Chebyshev fits on 0 <= u <= 1 of acos(1 - u) / u^(1/2) and (sin t - t cos t) / u^(3/2) with t =
# acos(1 - u); maximal errors 3e-8 and 2e-8 (single), 3e-17 and 7e-18 (double).
ANGLE_SINGLE = (
    1.4142135464083157,
    0.11785316670023775,
    0.026474482500567433,
    0.0082167309626384398,
    0.0014788598231931452,
    0.0033384170110533712,
    -0.0019906429602384128,
    0.0012117377698107651,
)
ANGLE_DOUBLE = (
    1.4142135623730951,
    0.11785113019774604,
    0.026516504295916167,
    0.0078918166870961977,
    0.0026854115429505864,
    0.00098869370645919837,
    0.00038370003612568147,
    0.00015250797182385684,
    7.2870682571377915e-5,
    -7.185800992367848e-6,
    0.00010871230018361807,
    -0.00020499919349473681,
    0.00034809874714982453,
    -0.00043000945159494794,
    0.00040068828185893021,
    -0.00026884644677358589,
    0.00012425167869548127,
    -3.5378354952821868e-5,
    4.7975410330206166e-6,
)
SEGMENT_SINGLE = (
    0.94280905241473178,
    0.04713939470348821,
    0.0075927172597073725,
    0.0016582847055392795,
    0.00074226197525146648,
    -0.00017620035502475994,
    0.0002344713665398918,
)
SEGMENT_DOUBLE = (
    0.94280904158206336,
    0.047140452079105775,
    0.0075761440838619546,
    0.0017537370683686701,
    0.0004882560753931928,
    0.00015211419937221639,
    5.1094254514834673e-5,
    1.8349126840897055e-5,
    5.8367286472422903e-6,
    5.4657880681018368e-6,
    -6.1128606173822412e-6,
    1.3534533881674908e-5,
    -1.7948915243682661e-5,
    1.8519148835413641e-5,
    -1.3478121029305757e-5,
    6.7650531546790449e-6,
    -2.0764150855087165e-6,
    3.0658986785827734e-7,
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def angle(u: Float[Array, "*n"], acute: bool = False) -> Float[Array, "*n"]:
    """Angle `t = acos(1 - u)`, to full relative precision near u = 0; values outside [0, 2] are clipped.

    Where all angles are known to be acute, u <= 1, saying so saves a quarter of the work of a
    rectifier.

    The derivative 1/sin(t) is infinite at u = 0 and u = 2: it is set to zero there, so that
    gradients of kernels stay finite at equal inputs.

    Example:
        >>> round(float(angle(jnp.array(1.0))), 6)
        1.570796
    """
    # acos(1 - u) = pi - acos(u - 1): the fit is needed for acute angles only.
    v = _folded(u, acute)
    t = jnp.sqrt(v) * _polynomial(v, ANGLE_SINGLE, ANGLE_DOUBLE)
    return t if acute else jnp.where(u > 1, math.pi - t, t)


@angle.defjvp
def _angle_jvp(acute, primals, tangents):
    (u,), (du,) = primals, tangents
    sine = safe_sqrt(u * (2 - u))
    # Angles of a few roundings are those of equal vectors, of which the sides round differently.
    apart = sine > 4 * jnp.finfo(u.dtype).eps
    return angle(u, acute), jnp.where(apart, du / jnp.where(apart, sine, 1), 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def segment(u: Float[Array, "*n"], acute: bool = False) -> Float[Array, "*n"]:
    """Segment function `sin t - t cos t` of the angle t = acos(1 - u); its derivative in u is t.

    It is what the arc-cosine kernel adds to a linear one: for ReLU, E[phi phi'] = s/2 + |x| |x'|
    segment(u) / (2 pi).

    Example:
        >>> round(float(segment(jnp.array(2.0))), 6)
        3.141593
    """
    # With t = acos(1 - u) the two terms of sin t - t cos t = O(t^3) agree in all digits but a few
    # at small t, hence a fit of the difference. At pi - t it is larger by pi cos t = pi (1 - v).
    v = _folded(u, acute)
    small = v * jnp.sqrt(v) * _polynomial(v, SEGMENT_SINGLE, SEGMENT_DOUBLE)
    return small if acute else jnp.where(u > 1, small + math.pi * (1 - v), small)


@segment.defjvp
def _segment_jvp(acute, primals, tangents):
    # d(sin t - t cos t) = t sin t dt = t du: nothing is divided by the sine, which vanishes at both ends.
    (u,), (du,) = primals, tangents
    return segment(u, acute), angle(u, acute) * du


class Opening(NamedTuple):
    """An angle t by `1 - cos t` and `1 + cos t`, of which cos t has lost the digits where one of them is small.

    Attributes:
        u: 1 - cos t.
        rest: 1 + cos t; None where angles are known to be acute, and it cannot be small.
    """

    u: Array
    rest: Array | None


def remainder(opening: Opening) -> Array:
    """`1 + cos t`.

    Example:
        >>> float(remainder(Opening(jnp.array(0.5), None)))
        1.5
    """
    return 2 - opening.u if opening.rest is None else opening.rest


def squared_sine(opening: Opening) -> Array:
    """`sin^2 t = (1 - cos t)(1 + cos t)`.

    Example:
        >>> float(squared_sine(Opening(jnp.array(0.5), jnp.array(1.5))))
        0.75
    """
    return opening.u * remainder(opening)


def angle_of(opening: Opening) -> Array:
    """The angle t.

    Example:
        >>> round(float(angle_of(Opening(jnp.array(2.0), jnp.array(0.0)))), 6)
        3.141593
    """
    u, rest = opening
    if rest is None:
        return angle(u, True)
    # Of an obtuse angle 1 + cos t is the small one, and 1 - cos(pi - t).
    obtuse = rest < u
    t = angle(jnp.where(obtuse, rest, u), True)
    return jnp.where(obtuse, math.pi - t, t)


def safe_sqrt(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Square root of `max(x, 0)` whose derivative at zero is zero instead of infinite.

    Example:
        >>> float(jax.grad(safe_sqrt)(0.0))
        0.0
    """
    # The inner one too: backwards, the branch that is not taken is multiplied by zero, and the
    # derivative 1 / (2 sqrt 0) of a root at zero makes NaN of it.
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _folded(u, acute):
    return jnp.maximum(u if acute else jnp.minimum(u, 2 - u), 0)


def _polynomial(v, single, double):
    """Horner's rule, from the highest power on."""
    coefficients = double if v.dtype == jnp.float64 else single
    value = jnp.full_like(v, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * v + coefficient
    return value
