"""Functions of numbers by additions, products, divisions and comparisons, for processors that have no others.

Each is the function of the same name in JAX, to a few roundings of the dtype, for all numbers:
infinite ones too, and what is not a number stays that.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from lazynet.typing import Array

__all__ = ["EXPANSIONS", "arctangent", "exponential", "power_of_two", "sign"]

# Chebyshev fits on 0 <= w <= 1 of atan(sqrt w) / sqrt w; maximal errors 3e-9 (single) and 5e-18 (double).
ARCTANGENT_SINGLE = (
    0.99999999716054546,
    -0.33333276291982551,
    0.19998075281148714,
    -0.14260016082820905,
    0.10932341501303093,
    -0.083497249683016017,
    0.05708955593030619,
    -0.030351864785781171,
    0.010487649254949306,
    -0.0017011700640685972,
)
ARCTANGENT_DOUBLE = (
    0.99999999999999999,
    -0.33333333333332858,
    0.19999999999929947,
    -0.14285714281592692,
    0.11111110982087125,
    -0.090909066056568988,
    0.0769227555520563,
    -0.066663711877210981,
    0.058803420024015431,
    -0.052527255573225748,
    0.047197239923211123,
    -0.042125723963855324,
    0.036510813527210351,
    -0.029700717736234232,
    0.021740213830758133,
    -0.013674139288399478,
    0.0070386462029898132,
    -0.0028047655531701315,
    0.00080336041816260264,
    -0.00014617088163625013,
    1.2631178430477426e-5,
)


@jax.jit
def power_of_two(k: Array) -> Array:
    """`2^k` of an integer in the range of exponents: the one operation here that works on the bits of a number.

    Example:
        >>> float(power_of_two(jnp.array(-3.0)))
        0.125
    """
    return jnp.ldexp(jnp.ones_like(k), k.astype(jnp.int32))


def exponential(x: Array) -> Array:
    """`exp x = 2^k exp r` with `k = round(x / log 2)` and the Taylor polynomial of the rest, |r| <= log(2) / 2.

    Example:
        >>> round(float(exponential(jnp.array(1.0))), 6), float(exponential(jnp.array(-jnp.inf)))
        (2.718282, 0.0)
    """
    info = jnp.finfo(x.dtype)
    double = x.dtype == jnp.float64
    # Beyond these the value is zero or infinite.
    lowest = (info.minexp - info.nmant - 2) * math.log(2)
    largest = (info.maxexp + 0.5) * math.log(2)
    x = jnp.minimum(largest, jnp.maximum(lowest, x))
    # Numbers of this size have no fractions: adding it rounds, for exponents of both signs.
    unit = jnp.asarray(1.5 * 2.0**info.nmant, x.dtype)
    k = (x * (1 / math.log(2)) + unit) - unit
    # log 2 in two parts, of which the first has so few digits that its products are exact.
    digits = 2.0 ** (32 if double else 12)
    coarse = round(math.log(2) * digits) / digits
    r = x - k * coarse - k * _LOG2_REST[digits]
    value = jnp.full_like(x, 1 / math.factorial(13 if double else 7))
    for power in range(12 if double else 6, -1, -1):
        value = value * r + 1 / math.factorial(power)
    # Two factors, each in the range of exponents where their product may not be.
    half = (k * 0.5 + unit) - unit
    return value * power_of_two(half) * power_of_two(k - half)


_LOG2_REST = {2.0**32: -4.2009150726810847e-11, 2.0**12: 3.1946184945309417e-5}
"""`log 2` less its first binary digits, by the inverse of the last one."""


def arctangent(y: Array, x: Array) -> Array:
    """`atan2(y, x)`, the angle of the point (x, y), by that of the smaller to the larger coordinate.

    Example:
        >>> round(float(arctangent(jnp.array(1.0), jnp.array(-1.0))), 6)
        2.356194
    """
    width = jnp.abs(x)
    height = jnp.abs(y)
    larger = jnp.where(height > width, height, width)
    smaller = jnp.where(height > width, width, height)
    ratio = smaller / jnp.where(larger == 0, 1, larger)
    # of two infinite coordinates
    ratio = jnp.where((smaller == jnp.inf) & (larger == jnp.inf), 1, ratio)
    w = ratio * ratio
    coefficients = ARCTANGENT_DOUBLE if x.dtype == jnp.float64 else ARCTANGENT_SINGLE
    value = jnp.full_like(w, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * w + coefficient
    value = value * ratio
    value = jnp.where(height > width, math.pi / 2 - value, value)
    value = jnp.where(x < 0, math.pi - value, value)
    return jnp.where(y < 0, -value, value)


def sign(x: Array) -> Array:
    """-1, 0 or 1, and NaN of NaN.

    Example:
        >>> sign(jnp.array([-2.0, 0.0, 3.0])).tolist()
        [-1.0, 0.0, 1.0]
    """
    return jnp.where(x > 0, 1, jnp.where(x < 0, -1, x))


EXPANSIONS = {"exp": exponential, "atan2": arctangent, "sign": sign}
"""Primitives of JAX, and the functions above that they are."""
