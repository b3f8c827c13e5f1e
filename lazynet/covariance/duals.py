"""Duals of activations: E[phi(z) phi(z')] and E[phi'(z) phi'(z')] for Gaussian pairs (z, z').

A dual is written once, for numbers, and serves matrices of vectors and planes of pixels alike. What
depends on one input alone (a norm, say) is computed by `side` once per input; `pair` combines two
sides with their covariance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from lazynet.covariance.small_angles import (
    Opening,
    angle,
    angle_of,
    remainder,
    safe_sqrt,
    segment,
    squared_sine,
)
from lazynet.trees import is_traced
from lazynet.typing import Array

__all__ = [
    "Dual",
    "attainable",
    "erf_dual",
    "free_variance",
    "gelu_dual",
    "gelu_pair",
    "noisy",
    "noisy_angle",
    "rbf_dual",
    "rectifier_dual",
    "rectifier_side",
    "sine_dual",
]

Scale = float | int | Array


class Dual(NamedTuple):
    """The infinite-width limit of one activation.

    Attributes:
        side: `side(q) -> tuple of arrays`, what a pair needs of the variance q of one of its
            inputs.
        pair: `pair(side1, side2, covariance, opening, acute) -> (E[phi phi], E[phi' phi'], new
            opening)`, with the `Opening` of their angle, which knows what the covariance has
            rounded away (None where it is not known; a new one of None is left to the difference),
            and `acute` if covariances are known not to be negative.
        diagonal: `diagonal(q) -> (E[phi^2], E[phi'^2])`, the same at correlation one.
        positive: Whether phi >= 0, so that no covariance is negative afterwards.
    """

    side: Callable[[Array], tuple[Array, ...]]
    pair: Callable[..., tuple[Array, Array, Array | Opening | None]]
    diagonal: Callable[[Array], tuple[Array, Array]]
    positive: bool = False


def rectifier_dual(a: Scale, b: Scale) -> Dual:
    """Dual of `phi(x) = a min(x, 0) + b max(x, 0)`: `E[phi phi] = h s + g |x| |x'| (sin t - t cos t)`.

    `E[phi' phi'] = h - g t`, where t is the angle, h = (a^2 + b^2)/2 and g = (a - b)^2/(2 pi). At a
    vanishing input the derivative counts as (a + b)/2, as in `jnp.maximum`.

    Example:
        >>> value, slope = rectifier_dual(0.0, 1.0).diagonal(jnp.array(2.0))
        >>> float(value), float(slope)
        (1.0, 0.5)

    Source: Cho and Saul (2009), kernels of order 0 and 1.
    """
    half = (a**2 + b**2) / 2
    bend = (a - b) ** 2 / (2 * math.pi)

    def pair(side1, side2, s, opening, acute):
        (norm1, inverse1), (norm2, inverse2) = side1, side2
        if opening is None:
            u = 1 - s * (inverse1 * inverse2)
            curved = bend * (norm1 * norm2) * segment(u, acute)
            return half * s + curved, half - bend * angle(u, acute), None
        theta = angle_of(opening)
        # E[phi^2] = half |x|^2, so that E[phi phi] over half |x| |x'| is the cosine of the new angle.
        after = narrowed(opening)
        # Of a vanishing input only the covariance has a derivative that one could follow.
        norms = norm1 * norm2
        value = half * jnp.where(norms > 0, norms * (1 - after.u), s)
        return value, half - bend * theta, after

    # (a + b)^2 / (a^2 + b^2): what is left of the opening between opposite inputs
    widest = 2 - math.pi * bend / half if is_traced(half) or half else 2.0
    share = (2 - widest) / math.pi

    def narrowed(opening):
        """`u - bend/half (sin t - t cos t)`, of positive terms for opposite inputs too."""
        u, rest = opening
        if rest is None:
            return Opening(u - share * segment(u, True), None)
        # With s = pi - t: segment(t) = segment(s) + pi cos s, and share pi = 2 - widest.
        obtuse = rest < u
        small = share * segment(jnp.where(obtuse, rest, u), True)
        after = jnp.where(obtuse, widest + (1 - widest) * rest - small, u - small)
        if positive:
            return Opening(after, None)
        return Opening(
            after, jnp.where(obtuse, 2 - widest + (widest - 1) * rest + small, 2 - after)
        )

    positive = not is_traced((a, b)) and bool(a <= 0 <= b)

    def diagonal(q):
        return half * q, jnp.where(q > 0, half, (a + b) ** 2 / 4)

    return Dual(rectifier_side, pair, diagonal, positive)


def rectifier_side(q: Array) -> tuple[Array, Array]:
    """Norm `sqrt q` and its inverse, which is zero for a vanishing input.

    Example:
        >>> [a.tolist() for a in rectifier_side(jnp.array([4.0, 0.0]))]
        [[2.0, 0.0], [0.5, 0.0]]
    """
    norm = safe_sqrt(q)
    return norm, jnp.where(q > 0, 1 / jnp.where(q > 0, norm, 1), 0)


def erf_dual(a: Scale, b: Scale, c: Scale) -> Dual:
    """Dual of `phi(x) = a erf(b x) + c`: `E[phi phi] = a^2 (2/pi) asin(2 S / sqrt((1 + 2 Q)(1 + 2 Q'))) + c^2`.

    Here S, Q and Q' are the covariance and the variances times b^2.

    Example:
        >>> round(float(erf_dual(1.0, 1.0, 0.0).diagonal(jnp.array(0.5))[0]), 6)
        0.333333

    Source: Williams (1997), equation 11.
    """

    def side(q):
        return noisy(2 * b**2 * q)

    def pair(side1, side2, s, opening, acute):
        cosine, sine = noisy_angle(side1, side2, 2 * b**2 * s, opening)
        # asin c = atan2(c, sqrt(1 - c^2)), of which both are known where c alone is rounded to one.
        value = a**2 * (2 / math.pi) * jnp.arctan2(cosine, sine) + c**2
        return value, (4 / math.pi) * (a * b) ** 2 * (side1[0] * side2[0]) / sine, None

    def diagonal(q):
        # At s = q the cosine is q / (1 + q) and the sine sqrt(1 + 2 q) / (1 + q).
        q = 2 * b**2 * q
        root = jnp.sqrt(1 + 2 * q)
        value = a**2 * (2 / math.pi) * jnp.arctan2(q, root) + c**2
        return value, (4 / math.pi) * (a * b) ** 2 / root

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

    def pair(side1, side2, s, opening, acute):
        return (*gelu_pair(side1, side2, s, opening), None)

    def diagonal(q):
        return gelu_pair(noisy(q), noisy(q), q)

    return Dual(noisy, pair, diagonal)


def sine_dual(a: Scale, b: Scale, c: Scale) -> Dual:
    """Dual of `phi(x) = a sin(b x + c)`: `E[phi phi] = a^2/2 (exp(-b^2 gap/2) - cos(2 c) exp(-b^2 (gap/2 + 2 s)))`.

    Example:
        >>> value, slope = sine_dual(1.0, 1.0, 0.0).diagonal(jnp.array(0.0))
        >>> float(value), float(slope)
        (0.0, 1.0)
    """

    # sin x sin y = (cos(x - y) - cos(x + y)) / 2, and E cos(g + c) = exp(-v / 2) cos c for g ~ N(0, v).
    def both(gap, reach):
        near = jnp.exp(-(b**2) * _positive(gap) / 2)
        far = jnp.exp(-(b**2) * _positive(reach) / 2) * jnp.cos(2 * jnp.asarray(c, gap.dtype))
        return a**2 / 2 * (near - far), (a * b) ** 2 / 2 * (near + far)

    def pair(side1, side2, s, opening, acute):
        return (*both(*_square_distances(side1, side2, s, opening)), None)

    return Dual(_with_norm, pair, lambda q: both(jnp.zeros_like(q), 4 * q))


def rbf_dual(gamma: Scale) -> Dual:
    """Dual of `phi(x) = sqrt 2 sin(sqrt(2 gamma) x + pi/4)`: `E[phi phi] = exp(-gamma gap)`, an RBF kernel.

    Example:
        >>> value, slope = rbf_dual(0.5).diagonal(jnp.array(3.0))
        >>> float(value), float(slope)
        (1.0, 1.0)
    """

    def pair(side1, side2, s, opening, acute):
        gap = _positive(_square_distances(side1, side2, s, opening)[0])
        value = jnp.exp(-gamma * gap)
        # E[phi^2] = 1: what is missing from it is 1 - cos of the new angle.
        return value, 2 * gamma * value, Opening(-jnp.expm1(-gamma * gap), None)

    def diagonal(q):
        return jnp.ones_like(q), 2 * gamma * jnp.ones_like(q)

    return Dual(_with_norm, pair, diagonal, positive=True)


def noisy(q: Array) -> tuple[Array, Array, Array]:
    """What `noisy_angle` needs of a variance q: `1 / sqrt(1 + q)`, `q / (1 + q)` and `sqrt q`.

    Example:
        >>> [round(float(a), 3) for a in noisy(jnp.array(3.0))]
        [0.5, 0.75, 1.732]
    """
    shrink = 1 / jnp.sqrt(1 + q)
    return shrink, q * shrink**2, safe_sqrt(q)


def noisy_angle(
    side1: Sequence[Array], side2: Sequence[Array], s: Array, opening: Opening | None = None
) -> tuple[Array, Array]:
    """Cosine and sine of the angle between z + e and z' + e', with independent noise e and e' of variance one.

    `1 - cos^2` would round to zero or below for large variances; `sin^2 = r^2 + r'^2 t + (t t' -
    cos^2)` does not, with r^2 = 1 / (1 + q) and t = q / (1 + q), since covariances beyond sqrt(q
    q'), which rounding alone makes, are cut: from layer to layer they would grow. With the opening
    of z and z' the last term is t t' times the squared sine of their angle.

    Example:
        >>> side = noisy(jnp.array(1.0))
        >>> [round(float(a), 3) for a in noisy_angle(side, side, jnp.array(1.0))]
        [0.5, 0.866]
    """
    (shrink1, part1, norm1), (shrink2, part2, norm2) = side1, side2
    cosine = attainable(s, norm1 * norm2) * (shrink1 * shrink2)
    product = part1 * part2
    if opening is None:
        free = jnp.maximum(product - cosine**2, 0)
    else:
        free = product * squared_sine(opening)
    return cosine, jnp.sqrt(shrink1**2 + shrink2**2 * part1 + free)


def attainable(s: Array, bound: Array) -> Array:
    """The covariance nearest to s of at most `bound` in absolute value; at equality the derivative is that of s.

    Example:
        >>> float(attainable(jnp.array(-2.0), jnp.array(1.0)))
        -1.0
    """
    return jnp.where(jnp.abs(s) > bound, jnp.sign(s) * bound, s)


def gelu_pair(
    side1: Sequence[Array], side2: Sequence[Array], s: Array, opening: Opening | None = None
) -> tuple[Array, Array]:
    """`E[phi phi]` and `E[phi' phi']` of Gelu from sides of `noisy`, in terms that do not overflow before q does.

    Example:
        >>> value, slope = gelu_pair(noisy(jnp.array(0.0)), noisy(jnp.array(1.0)), jnp.array(0.0))
        >>> float(value), round(float(slope), 3)
        (0.0, 0.25)
    """
    cosine, sine = noisy_angle(side1, side2, s, opening)
    (shrink1, part1, norm1), (shrink2, part2, norm2) = side1, side2
    shrink = shrink1 * shrink2
    half_plane = 0.25 + jnp.arctan2(cosine, sine) / (2 * math.pi)
    # sqrt D = sine / (r r'), and 1 / ((1 + q)(1 + q')) = (r r')^2, r and r' being what shrinks.
    tails = shrink * cosine**2 / sine + part1 / shrink1 * (part2 / shrink2) * sine
    # 1 - t t' of large variances, which would be a difference of equal numbers.
    rest = shrink1**2 + shrink2**2 * part1
    bracket = (shrink / sine) ** 2 + shrink**2 + rest
    value = attainable(s, norm1 * norm2) * half_plane + tails / (2 * math.pi)
    # E[phi' phi'] = d/ds E[phi phi] (Price's theorem).
    return value, half_plane + cosine / sine * bracket / (2 * math.pi)


def free_variance(
    side1: Sequence[Array], side2: Sequence[Array], s: Array, opening: Opening | None
) -> Array:
    """`q q' - s^2` from sides that begin with variances; rounding alone makes it negative.

    Example:
        >>> float(free_variance((jnp.array(2.0),), (jnp.array(2.0),), jnp.array(1.0), None))
        3.0
    """
    product = side1[0] * side2[0]
    if opening is None:
        return jnp.maximum(product - s**2, 0)
    return product * squared_sine(opening)


def _square_distances(side1, side2, s, opening):
    """`E[(z - z')^2]` and `E[(z + z')^2]` from sides of `_with_norm`."""
    (q1, norm1), (q2, norm2) = side1, side2
    if opening is None:
        gap = q1 + q2 - 2 * s
        return gap, gap + 4 * s
    # |z - z'|^2 = (|z| - |z'|)^2 + 2 |z| |z'| (1 - cos t): q + q' - 2 s would cancel for neighbors.
    radial = (norm1 - norm2) ** 2
    product = 2 * (norm1 * norm2)
    return radial + product * opening.u, radial + product * remainder(opening)


def _with_norm(q):
    return q, safe_sqrt(q)


def _positive(x):
    """`max(x, 0)`, of something that rounding alone makes negative: exponentials of it would grow layer by layer."""
    return jnp.where(x < 0, 0, x)
