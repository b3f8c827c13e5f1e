"""Quadrature of E[f(z) g(z')] with as many nodes as the variances ask for, differentiable at every correlation.

Nodes are evenly spaced on both axes of a pair of independent normal variables: for a smooth
function such sums converge as fast as any, and no table of nodes is needed. How many it takes is
found while the program runs, from E[f(z)^2] and E[f'(z)^2] beside much finer sums; where the finest
grid is not enough the result is NaN, because a compiled program cannot raise an error. Functions
with kinks are for `pieces`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.covariance.duals import Dual
from lazynet.covariance.small_angles import safe_sqrt
from lazynet.typing import Array

__all__ = ["derivative", "even_mean", "quadrature_dual", "shortfall", "squared", "tolerance"]

Function = Callable[..., Array]
"""`f(x, *constants)`; the constants are what a function captured of the values that a transformation is tracing."""

LEVELS = (24, 48, 96, 192, 384)
"""Nodes per axis to choose from."""

FINE = 1536
"""Nodes of the sums that a grid is compared with."""

FAR = 12.0
"""Standard deviations that those cover."""

CONSTANTS = 32
"""Traced values that a function may use."""

BLOCK = 64
"""Nodes added up together: two short sums lose fewer digits than a long one."""


def tolerance(dtype: Any) -> float:
    """Relative error of E[f^2] and E[f'^2] up to which a grid is enough: 1e-9, or 4e-6 in single precision.

    Example:
        >>> tolerance(jnp.float64)
        1e-09
    """
    return 1e-9 if dtype == jnp.float64 else 4e-6


def quadrature_dual(fn: Callable[[Array], Array], degree: int | None = None) -> Dual:
    """Dual of a smooth `phi = fn`, to `tolerance` or NaN.

    Args:
        fn: Function of each entry. It may use values that a transformation is tracing.
        degree: The least number of nodes per axis.

    Example:
        >>> value, slope = quadrature_dual(lambda x: x**2).diagonal(jnp.array(2.0))
        >>> round(float(value), 4), round(float(slope), 4)
        (12.0, 8.0)
    """
    levels = LEVELS if degree is None else (degree, *(n for n in LEVELS if n > degree))
    counts = np.array([*levels, levels[-1]])

    def side(q):
        # The square of a sign function is smooth, and of a kink at zero the grid sees one half
        # exactly, since it is symmetric; the sums with x, of the function and of its derivative,
        # show both.
        slope = derivative(fn)
        squares = [
            squared(fn),
            squared(lambda x: fn(x) + x),
            squared(slope),
            squared(lambda x: slope(x) + x),
        ]
        exact = [even_mean(h, q, FINE, FAR) for h in squares]
        missed = shortfall(
            exact, len(levels), lambda i: [even_mean(h, q, jnp.asarray(counts)[i]) for h in squares]
        )
        # All grids agree on 0 where a narrow function lies between two of their nodes.
        near = jnp.linspace(-4, 4, FINE, dtype=q.dtype)
        unseen = [
            (q > 1) & (mean == 0) & jnp.any(h(near) != 0)
            for h, mean in zip(squares, exact, strict=True)
        ]
        return q, jnp.where(jnp.any(jnp.stack(unseen), axis=0), len(levels), missed)

    def pair(side1, side2, s, opening, acute):
        q1, q2, s = jnp.broadcast_arrays(side1[0], side2[0], s)
        f, constants = jax.closure_convert(fn, s)
        _check_constants(constants)
        failed = jnp.maximum(jnp.max(side1[1]), jnp.max(side2[1])).astype(int)
        # An argument of its own: the number of nodes depends on data, and its derivative is zero.
        nodes = jnp.asarray(counts, s.dtype)[failed]
        sums = [_expectation(h, h)(nodes, q1, q2, s, *constants) for h in (f, derivative(f))]
        value, slope = (jnp.where(failed == len(levels), jnp.nan, total) for total in sums)
        return value, slope, None

    def diagonal(q):
        f, constants = jax.closure_convert(fn, jnp.zeros((*q.shape, BLOCK), q.dtype))
        _check_constants(constants)
        unknown = side(q)[1] == len(levels)
        value, slope = (_moment(squared(h))(q, *constants) for h in (f, derivative(f)))
        return jnp.where(unknown, jnp.nan, value), jnp.where(unknown, jnp.nan, slope)

    return Dual(side, pair, diagonal)


def shortfall(exact: Sequence[Array], rules: int, means: Callable[[Any], Sequence[Array]]) -> Array:
    """How many of the first rules, `means(i)`, miss one of the exact values by more than the tolerance, entry by entry.

    Example:
        >>> int(shortfall([jnp.array(1.0)], 3, lambda i: [jnp.array([0.5, 0.9, 1.0])[i]]))
        2
    """

    def check(i, state):
        missed, total = state
        errors = [
            jnp.abs(mean - value) / tolerance(value.dtype)
            for value, mean in zip(exact, means(i), strict=True)
        ]
        close = [error <= jnp.abs(value) for value, error in zip(exact, errors, strict=True)]
        missed = missed & ~jnp.all(jnp.stack(close), axis=0)
        return missed, total + missed.astype(total.dtype)

    shape = exact[0].shape
    dtype = exact[0].dtype
    missed, total = jax.lax.fori_loop(
        0, rules, check, (jnp.ones(shape, bool), jnp.zeros(shape, dtype))
    )
    return jax.lax.stop_gradient(total)


def even_mean(
    h: Callable[[Array], Array], q: Array, nodes: Any, radius: float | None = None
) -> Array:
    """`E[h(z)]` by so many even nodes, block by block.

    Example:
        >>> round(float(even_mean(jnp.square, jnp.array(2.0), 24)), 5)
        2.0
    """
    norm = safe_sqrt(q)[..., None]
    inside = jnp.arange(BLOCK).reshape((1,) * q.ndim + (BLOCK,))

    def add_block(k, total):
        i = BLOCK * k + inside
        x, w = _node(i, nodes, q.dtype, radius)
        return total + jnp.sum(jnp.where(i < nodes, w * h(norm * x), 0), axis=-1)

    return jax.lax.fori_loop(0, -(-nodes // BLOCK), add_block, jnp.zeros_like(q))


def derivative(f: Function) -> Function:
    """`f'` in the first argument."""
    return lambda x, *constants: jax.jvp(lambda x: f(x, *constants), (x,), (jnp.ones_like(x),))[1]


def squared(h: Function) -> Function:
    """`h^2`.

    Example:
        >>> float(squared(jnp.negative)(3.0))
        9.0
    """
    return lambda x, *constants: h(x, *constants) ** 2


def _expectation(f: Function, g: Function):
    """`E[f(z) g(z')]` of (nodes, q, q', s, *constants); its derivatives are again expectations (Price's theorem)."""

    @jax.custom_jvp
    def expectation(nodes, q1, q2, s, *constants):
        norm1 = safe_sqrt(q1)
        norm2 = safe_sqrt(q2)
        product = norm1 * norm2
        rho = jnp.clip(jnp.where(product > 0, s / jnp.where(product > 0, product, 1), 0), -1, 1)
        # even x +- odd y have variance one and correlation even^2 - odd^2 = rho, for independent
        # normal x and y.
        even = jnp.sqrt((1 + rho) / 2)
        odd = jnp.sqrt((1 - rho) / 2)
        count = nodes.astype(int)
        zero = jnp.zeros_like(s)

        def add_node(j, total, along):
            y, w = _node(j, count, s.dtype)
            z1 = norm1 * (along + odd * y)
            z2 = norm2 * (along - odd * y)
            return total + w * f(z1, *constants) * g(z2, *constants)

        def add_row(i, total):
            x, w = _node(i, count, s.dtype)
            row = jax.lax.fori_loop(0, count, lambda j, row: add_node(j, row, even * x), zero)
            return total + w * row

        return jax.lax.fori_loop(0, count, add_row, zero)

    @expectation.defjvp
    def expectation_jvp(primals, tangents):
        # Price: d/ds E[f g] = E[f' g'], and d/dq E[f g] = E[f'' g] / 2.
        df = derivative(f)
        dg = derivative(g)
        along_s = _expectation(df, dg)(*primals)
        along_q1 = _expectation(derivative(df), g)(*primals) / 2
        along_q2 = _expectation(f, derivative(dg))(*primals) / 2
        _, dq1, dq2, ds, *changes = tangents
        change = along_q1 * dq1 + along_q2 * dq2 + along_s * ds
        for k, direction, size in _directions(changes):
            first = _expectation(_along(f, k, direction), g)(*primals)
            second = _expectation(f, _along(g, k, direction))(*primals)
            change = change + (first + second) * size
        return expectation(*primals), change

    return expectation


def _moment(h: Function):
    """`E[h(z)]` of (q, *constants); its derivative in the variance is E[h''(z)]/2."""

    @jax.custom_jvp
    def moment(q, *constants):
        return even_mean(lambda x: h(x, *constants), q, FINE, FAR)

    @moment.defjvp
    def moment_jvp(primals, tangents):
        dq, *changes = tangents
        change = _moment(derivative(derivative(h)))(*primals) / 2 * dq
        for k, direction, size in _directions(changes):
            change = change + _moment(_along(h, k, direction))(*primals) * size
        return moment(*primals), change

    return moment


def _directions(changes):
    """Unit vectors of the constants one by one: `(which constant, unit vector, the change along it)`."""
    for k, change in enumerate(changes):
        for entry in np.ndindex(change.shape):
            unit = np.zeros(change.shape, change.dtype)
            unit[entry] = 1
            yield k, unit, change[entry]


def _along(f, k, direction):
    """Derivative of f in its constant k."""

    def along(x, *constants):
        varied = lambda c: f(x, *constants[:k], c, *constants[k + 1 :])  # noqa: E731
        return jax.jvp(varied, (constants[k],), (jnp.asarray(direction),))[1]

    return along


def _node(i, nodes, dtype, radius=None):
    """Node i of an even grid and its normal weight; beyond lie 1e-15 (double) or 2e-9 (single) of the whole."""
    reach = radius or (8.0 if dtype == jnp.float64 else 6.0)
    # The trapezoidal rule without its halves at the ends, where the density is rounding.
    step = jnp.asarray(2 * reach, dtype) / jnp.asarray(nodes - 1, dtype)
    x = jnp.asarray(i, dtype) * step - reach
    return x, step * jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _check_constants(constants):
    size = sum(constant.size for constant in constants)
    if size > CONSTANTS:
        raise ValueError(
            f"elementwise got a function of {size} traced values, expected at most {CONSTANTS}: each of them costs a "
            "quadrature; pass the others as constants from outside of jit and grad."
        )
