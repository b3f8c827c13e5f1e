"""Quadrature of E[f(z) g(z')] for functions with kinks: Gauss-Legendre sums between them.

`z` is integrated first to last and `z'` given z, both between the kinks. Given z, z' is normal of
mean `rho' z` and standard deviation tau; as a function of z its mean is smooth but turns, within a
few tau, where `rho' z` meets a kink: the outer integral is cut there too. Derivatives are those of
the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.covariance.duals import Dual, attainable
from lazynet.covariance.quadrature import derivative, shortfall, squared
from lazynet.covariance.small_angles import safe_sqrt
from lazynet.typing import Array

__all__ = ["piecewise_dual"]

LEVELS = (16, 64)
"""Nodes of each piece to choose from."""

FINE = 192
"""Nodes of the pieces that they are compared with."""

RADIUS = 8.0
"""Standard deviations that sums cover."""

FAR = 12.0
"""Standard deviations that those cover with which they are compared."""

TURN = 6.0
"""Widths tau on both sides of a kink of z' within which the mean given z turns."""


def piecewise_dual(
    fn: Callable[[Array], Array], kinks: Sequence[float | int], degree: int | None = None
) -> Dual:
    """Dual of a `phi = fn` that is smooth between kinks, to `quadrature.tolerance` or NaN.

    Args:
        fn: Function of each entry. It may use values that a transformation is tracing.
        kinks: Where it or its derivative jumps, in increasing order.
        degree: The least number of nodes of a piece.

    Example:
        >>> value, slope = piecewise_dual(jnp.abs, (0.0,)).diagonal(jnp.array(2.0))
        >>> round(float(value), 4), round(float(slope), 4)
        (2.0, 1.0)
    """
    levels = LEVELS if degree is None else (degree, *(n for n in LEVELS if n > degree))

    def side(q):
        squares = [squared(fn), squared(derivative(fn))]

        def moments(nodes):
            return [_mean(h, q, kinks, nodes) for h in squares]

        exact = moments(FINE)
        rules = [jnp.stack(each) for each in zip(*map(moments, levels), strict=True)]
        return q, shortfall(exact, len(levels), lambda i: [rule[i] for rule in rules])

    def pair(side1, side2, s, opening, acute):
        q1, q2, s = jnp.broadcast_arrays(side1[0], side2[0], s)
        failed = jnp.maximum(jnp.max(side1[1]), jnp.max(side2[1])).astype(int)
        sums = [lambda q1, q2, s, n=n: _products(fn, q1, q2, s, kinks, n) for n in levels]
        unknown = lambda q1, q2, s: (jnp.full_like(s, jnp.nan),) * 2  # noqa: E731
        return (*jax.lax.switch(failed, [*sums, unknown], q1, q2, s), None)

    def diagonal(q):
        unknown = side(q)[1] == len(levels)
        moments = [_mean(squared(h), q, kinks, FINE) for h in (fn, derivative(fn))]
        value, slope = (jnp.where(unknown, jnp.nan, moment) for moment in moments)
        return value, slope

    return Dual(side, pair, diagonal)


def _mean(h, q, kinks, nodes):
    """`E[h(z)]`."""
    norm = jnp.sqrt(_floored(q))
    cuts = [kink / norm for kink in kinks]
    radius = FAR if nodes == FINE else RADIUS
    return _sum_pieces(lambda x: h(norm * x), cuts, nodes, radius)


def _products(fn, q1, q2, s, kinks, nodes):
    """`E[f(z) f(z')]` and `E[f'(z) f'(z')]`."""
    q1 = _floored(q1)
    q2 = _floored(q2)
    norm1 = jnp.sqrt(q1)
    norm2 = jnp.sqrt(q2)
    rho = attainable(s, norm1 * norm2) / (norm1 * norm2)
    tiny = 1e-10 if s.dtype == jnp.float64 else 1e-6
    # (1 - rho)(1 + rho) keeps the digits that 1 - rho^2 loses near one; cuts are divided by tau,
    # which would be zero where z' is a multiple of z.
    tau = jnp.maximum(safe_sqrt((1 - rho) * (1 + rho)), tiny)
    both = lambda z: jnp.stack(jax.jvp(fn, (z,), (jnp.ones_like(z),)))  # noqa: E731

    def given(x):
        """The means of f(z') and f'(z') given z = norm1 x, times f(z) and f'(z)."""
        cuts = [(kink / norm2 - rho * x) / tau for kink in kinks]
        return both(norm1 * x) * _sum_pieces(
            lambda y: both(norm2 * (rho * x + tau * y)), cuts, nodes
        )

    steep = jnp.where(jnp.abs(rho) < tiny, tiny, rho)
    turns = [(kink / norm2 + move * tau) / steep for kink in kinks for move in (-TURN, 0, TURN)]
    # Where a smooth integrand is cut makes no difference: these cuts have no derivative.
    cuts = [kink / norm1 for kink in kinks] + [jax.lax.stop_gradient(turn) for turn in turns]
    value, slope = _sum_pieces(given, cuts, nodes)
    return value, slope


def _sum_pieces(h, cuts, nodes, radius=RADIUS):
    """`E[h(x)]` of a standard normal x by so many nodes in each piece between the cuts, zero and the ends."""
    every = jnp.broadcast_arrays(jnp.full_like(cuts[0], -radius), jnp.zeros_like(cuts[0]), *cuts)
    edges = jnp.sort(jnp.clip(jnp.stack([*every, -every[0]]), -radius, radius), axis=0)
    points, weights = np.polynomial.legendre.leggauss(nodes)
    points = jnp.asarray(points, edges.dtype)
    weights = jnp.asarray(weights, edges.dtype)

    # Recomputed backwards: what a node leaves behind would be stored for each of them.
    @jax.checkpoint
    def add_node(total, k):
        low = edges[k // nodes]
        high = edges[k // nodes + 1]
        half = (high - low) / 2
        x = (high + low) / 2 + half * points[k % nodes]
        values = h(x)
        density = weights[k % nodes] * half * jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        density = jnp.broadcast_to(density, values.shape)  # h may have several values at each x
        # A piece of no length may touch a point where h is not finite.
        return total + jnp.where(density > 0, density * values, 0), None

    zero = jax.eval_shape(h, edges[0])
    total = jnp.zeros(zero.shape, zero.dtype)
    return jax.lax.scan(add_node, total, jnp.arange((len(edges) - 1) * nodes))[0]


def _floored(q):
    """Variances of at least 1e-20: derivatives at vanishing inputs stay those of nearby ones."""
    return jnp.where(q < 1e-20, 1e-20, q)
