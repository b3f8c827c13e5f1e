"""Openings of the angles between vectors, in sums without cancellation.

Correlations near one are all stored as one, and half of the digits of an angle are lost; those of
an `Opening`, 1 - cos t and 1 + cos t, are not. They are half the squared distances between two
directions and between one and the other's opposite: of inputs they are taken from differences and
sums of their entries, and of a sum of independent vectors from the shares that each has in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float

from lazynet.covariance.duals import rectifier_side
from lazynet.covariance.small_angles import Opening, remainder
from lazynet.typing import Array

__all__ = ["between", "known_where", "mean_square", "opening_of", "opening_of_sum"]

FEW = 16
"""Entries up to which differences cost no more than a product of matrices."""

NEAR = 1 / 200
"""Openings for which a cosine has too few digits: half of them, at an angle of a tenth."""

MANY = 32
"""One of so many rows with such pairs: from there on another product of matrices costs less than differences."""

BLOCK = 64
"""Entries added up together: two short sums lose fewer digits than a long one."""


def mean_square(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    """`|x|^2 / d`.

    Example:
        >>> mean_square(jnp.array([[3.0, 1.0]])).tolist()
        [5.0]
    """
    return _short_sums(x * x) / x.shape[-1]


def opening_of(cosine: Float[Array, "*n"]) -> Opening:
    """The opening of an angle of which nothing better is known than its cosine.

    Example:
        >>> [float(a) for a in opening_of(jnp.array(0.5))]
        [0.5, 1.5]
    """
    return Opening(_positive(1 - cosine), _positive(1 + cosine))


def known_where(
    known: Bool[Array, "*n"], opening: Opening, cosine: Float[Array, "*n"] | float
) -> Opening:
    """An opening where it is known, and elsewhere that of an angle with this cosine.

    Example:
        >>> float(known_where(jnp.array(False), opening_of(jnp.array(1.0)), 0.0).u)
        1.0
    """
    u, rest = opening
    u = jnp.where(known, u, 1 - cosine)
    return Opening(u, None if rest is None else jnp.where(known, rest, 1 + cosine))


def opening_of_sum(parts: Sequence[tuple[Array, Array, Opening | None]]) -> Opening:
    """The opening of sums of independent vectors, `1 - cos = sum_b (w_b - w_b')^2 / 2 + w_b w_b' u_b`.

    Args:
        parts: For each b, the shares w_b and w_b' in the norms of both sums (the squares of each
            add up to one), and the opening between the vectors; None where they are equal.

    Example:
        >>> share = jnp.array(0.5**0.5)
        >>> right = opening_of(jnp.array(0.0))
        >>> round(float(opening_of_sum([(share, share, right), (share, share, None)]).u), 6)
        0.5
    """
    acute = all(opening is None or opening.rest is None for _, _, opening in parts)
    spread = [(w1 - w2) ** 2 / 2 for w1, w2, _ in parts]
    near = [w1 * w2 * opening.u for w1, w2, opening in parts if opening is not None]
    u = functools.reduce(jnp.add, spread + near)
    if acute:
        return Opening(u, None)
    far = [w1 * w2 * (2.0 if opening is None else remainder(opening)) for w1, w2, opening in parts]
    return Opening(u, functools.reduce(jnp.add, spread + far))


def between(
    x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"], *, same: bool = False
) -> tuple[Float[Array, "n1 n2"], Opening]:
    """Covariances `x1 x2^T / d` and openings of inputs; a right angle where one of the two vanishes.

    Args:
        x1: Inputs.
        x2: Other inputs.
        same: Whether they are `x1`; the diagonal is then not used.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [1.0, 1e-3]])
        >>> round(float(between(x, x)[1].u[0, 1]) / 5e-7, 4)
        1.0
    """
    if x1.shape[-1] > FEW:
        return _refined(x1, x2, same)
    direction1 = _direction(x1)
    direction2 = _direction(x2)
    columns = range(x1.shape[-1])
    products = [x1[:, i, None] * x2[None, :, i] for i in columns]
    steps = [(direction1[:, i, None] - direction2[None, :, i]) ** 2 for i in columns]
    sums = [(direction1[:, i, None] + direction2[None, :, i]) ** 2 for i in columns]
    nngp, near, far = (functools.reduce(jnp.add, terms) for terms in (products, steps, sums))
    known = jnp.any(x1 != 0, axis=-1)[:, None] & jnp.any(x2 != 0, axis=-1)[None, :]
    return nngp / len(columns), known_where(known, Opening(near / 2, far / 2), 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _refined(x1, x2, same):
    """By a product of matrices, and from differences in rows with pairs that it cannot tell apart."""
    nngp, opening = _product(x1, x2)
    near = (opening.u < NEAR) | (opening.rest < NEAR)  # pyright: ignore[reportOptionalOperand]
    if same:
        near = near & ~jnp.eye(len(x1), dtype=bool)

    def refined(x1, x2, opening, near):
        many = jnp.sum(jnp.any(near, axis=1)) > len(x1) // MANY
        opening, near = lax.cond(
            many, _centered_product, lambda x1, x2, *known: known, x1, x2, opening, near
        )
        return _with_differences(x1, x2, opening, near)

    opening = lax.cond(
        jnp.any(near), refined, lambda x1, x2, opening, near: opening, x1, x2, opening, near
    )
    return nngp, opening


@_refined.defjvp
def _refined_jvp(same, primals, tangents):
    # Differences have the same derivative, and conditions in a loop are slow backwards.
    _, changes = jax.jvp(_product, primals, tangents)
    return _refined(*primals, same), changes


def _product(x1, x2):
    """Covariances and openings, as precise as cosines are."""
    nngp = jnp.matmul(x1, x2.T, precision="highest") / x1.shape[-1]
    _, inverse1 = rectifier_side(mean_square(x1))
    _, inverse2 = rectifier_side(mean_square(x2))
    return nngp, opening_of(nngp * (inverse1[:, None] * inverse2[None, :]))


def _centered_product(x1, x2, opening, near):
    """Openings of inputs around a far center, and which of them have too few digits still.

    Distances between directions do not depend on the origin, and the digits that a product loses
    are those of the norms.
    """
    direction1 = _direction(x1)
    direction2 = _direction(x2)
    center = jnp.mean(direction2, axis=0)[None, :]
    centered1 = direction1 - center
    centered2 = direction2 - center
    # 1 - <a, b> = |a - b|^2 / 2 = |a - c|^2 / 2 + |b - c|^2 / 2 - <a - c, b - c> for unit vectors.
    size1 = _short_sums(centered1 * centered1) / 2
    size2 = _short_sums(centered2 * centered2) / 2
    sizes = size1[:, None] + size2[None, :]
    u = sizes - jnp.matmul(centered1, centered2.T, precision="highest")
    u = jnp.where(near, jnp.maximum(u, 0), opening.u)
    # Rounded directions put eps / sqrt(u) into u in any case, relative to it; the product puts eps
    # sizes / u, which stays within 1 / sqrt(NEAR) of that.
    few_digits = (u < NEAR * sizes**2) | (opening.rest < NEAR)
    return Opening(u, opening.rest), near & few_digits


def _with_differences(x1, x2, opening, rough):
    """Openings, the rough ones among them from differences and sums of directions."""
    direction2 = _direction(x2)

    def differences(direction, opening, rough):
        near = _short_sums((direction2 - direction[None, :]) ** 2) / 2
        far = _short_sums((direction2 + direction[None, :]) ** 2) / 2
        return Opening(jnp.where(rough, near, opening.u), jnp.where(rough, far, opening.rest))

    def row(values):
        known = lambda direction, opening, rough: opening  # noqa: E731
        return lax.cond(jnp.any(values[2]), differences, known, *values)

    return lax.map(row, (_direction(x1), opening, rough))


def _positive(x):
    """`max(x, 0)` with the derivative of x: what rounding alone makes negative has one."""
    return x - lax.stop_gradient(jnp.minimum(x, 0))


def _short_sums(x):
    """Sums over the last axis: first of every 64th entry, whole vector registers at a time."""
    n, d = x.shape
    padded = jnp.pad(x, ((0, 0), (0, -d % BLOCK)))
    return jnp.sum(jnp.sum(padded.reshape(n, -1, BLOCK), axis=1), axis=1)


def _direction(x):
    _, inverse = rectifier_side(mean_square(x))
    return x * (inverse / x.shape[-1] ** 0.5)[:, None]
