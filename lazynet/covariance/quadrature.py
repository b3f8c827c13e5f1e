"""Gauss-Hermite quadrature of E[f(z) g(z')], differentiable at every correlation."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.covariance.angles import safe_sqrt
from lazynet.covariance.duals import Dual
from lazynet.typing import Array

__all__ = ["quadrature_dual"]

Function = Callable[[Array], Array]


def quadrature_dual(fn: Function, degree: int) -> Dual:
    """Dual of `phi = fn` by quadrature with `degree` nodes per axis.

    Example:
        >>> value, slope = quadrature_dual(lambda x: x**2, 8).diagonal(jnp.array(2.0))
        >>> round(float(value), 4), round(float(slope), 4)
        (12.0, 8.0)
    """
    slope = _derivative(fn)
    values, slopes = _expectation(fn, fn, degree), _expectation(slope, slope, degree)
    squares, squared_slopes = _mean(lambda x: fn(x) ** 2, degree), _mean(lambda x: slope(x) ** 2, degree)

    def pair(side1, side2, s, gap, acute):
        q1, q2, s = jnp.broadcast_arrays(side1[0], side2[0], s)
        return values(q1, q2, s), slopes(q1, q2, s), None

    return Dual(lambda q: (q,), pair, lambda q: (squares(q), squared_slopes(q)))


def _expectation(f, g, degree):
    """`E[f(z) g(z')]` as a function of (q, q', s); its derivatives are again expectations (Price's theorem)."""

    @jax.custom_jvp
    def expectation(q1, q2, s):
        norm1, norm2 = safe_sqrt(q1), safe_sqrt(q2)
        product = norm1 * norm2
        rho = jnp.clip(jnp.where(product > 0, s / jnp.where(product > 0, product, 1), 0), -1, 1)
        even, odd = jnp.sqrt((1 + rho) / 2), jnp.sqrt((1 - rho) / 2)
        return _sum_nodes(lambda x, y: f(norm1 * (even * x + odd * y)) * g(norm2 * (even * x - odd * y)), degree, s)

    @expectation.defjvp
    def expectation_jvp(primals, tangents):
        df, dg = _derivative(f), _derivative(g)
        along_s = _expectation(df, dg, degree)(*primals)
        along_q1 = _expectation(_derivative(df), g, degree)(*primals) / 2
        along_q2 = _expectation(f, _derivative(dg), degree)(*primals) / 2
        dq1, dq2, ds = tangents
        return expectation(*primals), along_q1 * dq1 + along_q2 * dq2 + along_s * ds

    return expectation


def _mean(h, degree) -> Callable[[Array], Array]:
    """`E[h(z)]` as a function of the variance; its derivative is E[h''(z)]/2."""

    @jax.custom_jvp
    def mean(q):
        nodes, weights = _nodes(degree, q.dtype)
        terms = (w * h(safe_sqrt(q) * x) for x, w in zip(nodes, weights, strict=True))
        return sum(terms, jnp.zeros_like(q))

    @mean.defjvp
    def mean_jvp(primals, tangents):
        return mean(*primals), _mean(_derivative(_derivative(h)), degree)(*primals) / 2 * tangents[0]

    return mean


def _sum_nodes(integrand, degree, like):
    """Weighted sum over a grid of nodes, one pair at a time: memory does not grow with `degree`."""
    nodes, weights = (jnp.asarray(values) for values in _nodes(degree, like.dtype))

    def body(i, total):
        x, y = nodes[i // degree], nodes[i % degree]
        return total + weights[i // degree] * weights[i % degree] * integrand(x, y)

    return jax.lax.fori_loop(0, degree**2, body, jnp.zeros_like(like))


def _nodes(degree, dtype):
    """Nodes and weights for a standard normal variable."""
    nodes, weights = np.polynomial.hermite.hermgauss(degree)
    return (math.sqrt(2.0) * nodes).astype(dtype), (weights / math.sqrt(math.pi)).astype(dtype)


def _derivative(f):
    return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
