"""Duals of tanh, softplus and SiLU, from the logistic function as a mixture of Gaussian ones.

`1 / (1 + e^-x) = sum_i w_i P(sigma_i e <= x)`, e ~ N(0, 1): the logistic distribution is a scale
mixture of normals. So tanh is a sum of error functions, softplus one of rectifiers of noisy inputs
and SiLU one of Gelus, whose duals have closed forms. The error is that of the mixture, for all
variances alike, while a grid of nodes would have to resolve the step of a function beside its
variance.

Source: Andrews and Mallows (1974), "Scale mixtures of normal distributions", section 4, for the
mixture.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lazynet.covariance.duals import Dual, gelu_pair, noisy, noisy_angle
from lazynet.covariance.small_angles import angle, segment

__all__ = ["silu_dual", "softplus_dual", "tanh_dual"]

# Pairs (sigma_i, w_i), fitted by least squares (single) and of Gauss quadrature in log sigma
# (double): errors of tanh and of its derivative below 2e-7 and 5e-7 (single), 2e-11 and 1e-10
# (double).
LOGISTIC_SINGLE = (
    (0.747211623, 0.00462465998),
    (0.980786132, 0.0747450779),
    (1.28385404, 0.266690897),
    (1.69687221, 0.367484784),
    (2.26365325, 0.229511904),
    (3.03274194, 0.0546421912),
    (4.12113454, 0.00230048623),
)
LOGISTIC_DOUBLE = (
    (0.48454342782243254, 5.6717623606058361e-08),
    (0.57247737991641201, 1.1750853675535585e-05),
    (0.67029867769311713, 0.00041894460510032475),
    (0.78556575197034728, 0.0051738547094386826),
    (0.92503353169969382, 0.029738539231379264),
    (1.0962762784318372, 0.094123257837537402),
    (1.3079523776547661, 0.18350968799971801),
    (1.5693532681947062, 0.2387839829810362),
    (1.8890855230854746, 0.21857929451814809),
    (2.2731665987468581, 0.14302791883567303),
    (2.7246229326552771, 0.06468896052291491),
    (3.2460551775852178, 0.018656565414027267),
    (3.8428283986045266, 0.0030446579707806521),
    (4.5269507606441977, 0.00023605828971209154),
    (5.3265732428223274, 6.4389223829673755e-06),
    (6.3235546980005326, 3.0590851952581473e-08),
)


def tanh_dual() -> Dual:
    """Dual of `phi(x) = tanh(x) = sum_i w_i erf(sqrt(2) x / sigma_i)`.

    Example:
        >>> value, slope = tanh_dual().diagonal(jnp.array(0.0))
        >>> float(value), round(float(slope), 5)
        (0.0, 1.0)
    """

    def term(side1, side2, s, opening, scale):
        cosine, sine = noisy_angle(side1, side2, s, opening)
        slope = (8 / math.pi) / scale * (side1[0] * side2[0]) / sine
        return (2 / math.pi) * jnp.arctan2(cosine, sine), slope

    return _mixture(term, gain=4.0)


def softplus_dual() -> Dual:
    """Dual of `phi(x) = log(1 + e^x) = sum_i w_i E[max(x + sigma_i e, 0)]`.

    Example:
        >>> value, slope = softplus_dual().diagonal(jnp.array(0.0))
        >>> round(float(value) ** 0.5, 5), round(float(slope), 5)
        (0.69315, 0.25)
    """

    def term(side1, side2, s, opening, scale):
        cosine, sine = noisy_angle(side1, side2, s, opening)
        # The arc-cosine kernel of x + sigma_i e, whose norm is sigma_i / r with r^2 = 1 / (1 + q).
        # 1 - cos = sin^2 / (1 + cos), without cancellation at acute angles.
        u = jnp.where(cosine > 0, sine**2 / (1 + jnp.abs(cosine)), 1 - cosine)
        norms = scale / (side1[0] * side2[0])
        value = scale * s / 2 + norms * (segment(u) / (2 * math.pi))
        return value, 0.5 - angle(u) / (2 * math.pi)

    return _mixture(term, positive=True)


def silu_dual() -> Dual:
    """Dual of `phi(x) = x / (1 + e^-x) = sum_i w_i x P(sigma_i e <= x)`.

    Example:
        >>> value, slope = silu_dual().diagonal(jnp.array(0.0))
        >>> float(value), round(float(slope), 5)
        (0.0, 0.25)
    """

    def term(side1, side2, s, opening, scale):
        value, slope = gelu_pair(side1, side2, s, opening)
        return scale * value, slope

    return _mixture(term)


def _mixture(term: Callable, gain: float = 1.0, *, positive: bool = False) -> Dual:
    """Dual of `phi = sum_i w_i phi_i`, `sum_ij w_i w_j term(side1, side2, s, opening, sigma_i sigma_j)`.

    Sides and covariance are those of the inputs times sqrt(gain) / sigma, which leaves the opening.
    """

    def both(q1, q2, s, opening=None):
        table = LOGISTIC_DOUBLE if s.dtype == jnp.float64 else LOGISTIC_SINGLE
        scales = jnp.asarray([scale for scale, _ in table], s.dtype)
        weights = jnp.asarray([weight for _, weight in table], s.dtype)
        sides = [noisy(q2 * (gain / scale**2)) for scale, _ in table]

        # One row of the table at a time: all at once would take minutes to compile.
        @jax.checkpoint
        def add_row(total, i):
            row = noisy(q1 * (gain / scales[i] ** 2))
            for column, (scale, weight) in zip(sides, table, strict=True):
                product = scales[i] * scale
                value, slope = term(row, column, s * (gain / product), opening, product)
                factor = weights[i] * weight
                total = total[0] + factor * value, total[1] + factor * slope
            return total, None

        zero = jnp.zeros_like(s)
        return jax.lax.scan(add_row, (zero, zero), jnp.arange(len(table)))[0]

    def pair(side1, side2, s, opening, acute):
        return (*both(*jnp.broadcast_arrays(side1[0], side2[0], s), opening), None)  # pyright: ignore[reportCallIssue]

    return Dual(lambda q: (q,), pair, lambda q: both(q, q, q), positive)
