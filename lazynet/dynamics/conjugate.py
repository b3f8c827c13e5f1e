"""Kernel regression where no decomposition fits: conjugate gradient with a pivoted-Cholesky preconditioner.

The kernel is only multiplied with vectors, in float64 by blocks of rows, so that a float32 or
memory-mapped kernel is never copied. The partial Cholesky factor is computed here and not by
matfree, whose version wants the kernel on the device and in one dtype; here it reads one row of the
kernel for each unit of its rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Float

from lazynet import guards
from lazynet.dynamics.checks import check_finite_kernel, check_kernel, check_targets, targets
from lazynet.linalg import (
    blocked_product,
    check_symmetric,
    checked_ridge,
    columns_of,
    kernel_matrix,
)
from lazynet.records import Data
from lazynet.typing import ArrayLike

Product = Callable[[Any], Any]


class ConjugateGradient(NamedTuple):
    """A regression by conjugate gradient and what it took.

    Attributes:
        predictions: `f(x) = K(x, X) a` at the inputs wanted.
        coefficients: Dual coefficients `a = (K + ridge I)^{-1} y`.
        iterations: Products with the kernel, those of the preconditioner not counted.
        residual: `max |y - (K + ridge I) a| / |y|` over the right-hand sides, computed afresh from
            the solution.

    Example:
        >>> ConjugateGradient(np.zeros((1, 1)), np.zeros((2, 1)), 3, 1e-12).iterations
        3
    """

    predictions: Float[np.ndarray, "m k"]
    coefficients: Float[np.ndarray, "n k"]
    iterations: int
    residual: float


class _System(NamedTuple):
    """`K + ridge I` on columns of length `size`, whatever form the kernel has."""

    product: Callable[[np.ndarray], np.ndarray]
    row: Callable[[int], np.ndarray]
    diagonal: np.ndarray
    ridge: float


def conjugate_gradient_regression(
    kernel: Float[ArrayLike, "..."] | Product,
    data: Data,
    *,
    cross: Float[ArrayLike, "..."] | Product,
    ridge: float | int,
    rank: int = 100,
    rtol: float = 1e-10,
    max_iterations: int = 1000,
    diagonal: Float[ArrayLike, "n *k"] | None = None,
) -> ConjugateGradient:
    """Predictions `K(x, X) (K(X, X) + ridge I)^{-1} y` by preconditioned conjugate gradient: memory of K and a bit.

    The same as `kernel_regression` with one ridge, for kernels from some 10,000 examples on. An
    iteration costs one product with the kernel for all outputs together. The preconditioner `L L' +
    (ridge + e) I`, L the pivoted Cholesky factor of K of the given rank and e the mean of the
    diagonal of `K - L L'`, takes the large eigenvalues out of the way: with e in it, a ridge far
    below the bulk of the spectrum costs no further iterations.

    Args:
        kernel: Kernel of the training inputs as an array, also memory-mapped, `[n, n]` or `[n, n,
            k, k]`, in any floating-point dtype; or a symmetric product `v -> K v`, such as that of
            `ntk_vector_product`.
        data: Training examples; only the targets are used.
        cross: Kernel between the inputs wanted and the training inputs, or the product with it.
        ridge: Absolute ridge >= 0; with 0, a kernel that is singular up to rounding does not
            converge.
        rank: Rank of the preconditioner, 0 for none: it holds 16 rank n bytes and reads as many
            rows of the kernel. Of a product, every row costs one product.
        rtol: Residual at which to stop, relative to the norm of the targets, output by output.
        max_iterations: Products with the kernel after which to give up.
        diagonal: Diagonal of K where that is a product: `[n]` if it acts on columns `[n, c]` of any
            number (outputs decouple), `[n, k]` if it acts on outputs `[n, k]`.

    Returns:
        Predictions, dual coefficients, iterations and residual.

    Raises:
        ValueError: If shapes do not fit, the kernel is not symmetric or not finite, a number is out
            of range, or a product has no diagonal.
        RuntimeError: If the residual does not reach `rtol`, naming the one that it reached.

    Example:
        >>> data = Data(x=np.zeros((2, 1)), y=np.array([[1.0], [3.0]]))
        >>> fit = conjugate_gradient_regression(np.eye(2), data, cross=np.eye(2), ridge=1.0)
        >>> fit.predictions.round(12).tolist(), fit.iterations
        ([[0.5], [1.5]], 1)

    Source: Gardner et al. (2018), GPyTorch, for the pivoted-Cholesky preconditioner (with e = 0).
    """
    guards.concrete("conjugate_gradient_regression", kernel, targets(data), cross, ridge, diagonal)
    ridge = checked_ridge(ridge)
    rank = guards.count("rank", rank, at_least=0)
    rtol = guards.number("rtol", rtol, above=0, below=1)
    max_iterations = guards.count("max_iterations", max_iterations)
    y, _ = check_targets(kernel, data.y, None)
    if not callable(cross):
        check_kernel("cross", cross, len(np.atleast_1d(guards.numbers("cross", cross))), *y.shape)
        check_finite_kernel("cross", cross)
    system, columns = _system(kernel, y, ridge, diagonal)
    precondition = _preconditioner(system, min(rank, len(columns)))
    solution, iterations, residual = _solve(system, precondition, columns, rtol, max_iterations)
    if not residual <= rtol:
        raise RuntimeError(
            f"conjugate gradient reached a residual of {residual:.3g} after {iterations} iterations, expected "
            f"{rtol:g} or less: raise the rank ({rank}), the ridge ({ridge:g}) or max_iterations, or accept a larger "
            "rtol."
        )
    coefficients = solution.reshape(y.shape)
    return ConjugateGradient(
        _predictions(cross, coefficients, y.shape), coefficients, iterations, residual
    )


def _system(kernel, y, ridge, diagonal):
    """The linear system, and the targets as its columns: one for each output, or one of all outputs."""
    if callable(kernel):
        shape = None if diagonal is None else guards.numbers("diagonal", diagonal).shape
        if shape not in (y.shape[:1], y.shape):
            raise ValueError(
                f"diagonal of shape {shape}, expected {y.shape[:1]} for a product that acts on columns, or {y.shape} "
                "for one that acts on outputs: a product needs the diagonal of its kernel."
            )
        guards.finite("diagonal", diagonal, "evaluate the kernel at finite parameters and inputs")
        return _system_of_product(kernel, y, ridge, np.asarray(diagonal, np.float64))
    check_symmetric(kernel_matrix(kernel))
    array = np.asarray(kernel)
    outputs = array.shape[2] if array.ndim == 4 else 1
    entries = array.diagonal() if array.ndim == 2 else np.einsum("iiaa->ia", array).ravel()

    def row(i):
        return np.asarray(
            kernel_matrix(array[i // outputs : i // outputs + 1])[i % outputs], np.float64
        )

    columns = columns_of(y, array.ndim)
    return _System(
        lambda v: blocked_product(array, v), row, np.asarray(entries, np.float64), ridge
    ), columns


def _system_of_product(product, y, ridge, diagonal):
    shape = (len(y), -1) if diagonal.ndim == 1 else y.shape

    def on_columns(v):
        image = product(jnp.asarray(v.reshape(shape), jnp.result_type(float)))
        guards.concrete("conjugate_gradient_regression", image)
        return np.asarray(image, np.float64).reshape(v.shape)

    def row(i):
        return on_columns(np.eye(1, diagonal.size, i).T)[:, 0]

    columns = y if diagonal.ndim == 1 else y.reshape(-1, 1)
    return _System(on_columns, row, diagonal.ravel(), ridge), columns


def _pivoted_cholesky(diagonal, row, rank):
    """Rows of L' with `K - L L'` small, by elimination of the largest remaining diagonal entry, and what remains."""
    rest = diagonal.copy()
    factor = np.zeros((rank, len(diagonal)))
    for i in range(rank):
        pivot = int(rest.argmax())
        if rest[pivot] <= np.finfo(np.float64).eps * len(diagonal) * diagonal.max():
            return factor[:i], rest
        factor[i] = (row(pivot) - factor[:i, pivot] @ factor[:i]) / np.sqrt(rest[pivot])
        rest -= factor[i] ** 2
        rest[pivot] = 0.0
    return factor, rest


def _preconditioner(system: _System, rank):
    """`v -> shift (L L' + shift I)^{-1} v = v - U (s^2 / (s^2 + shift)) U' v`, with L = U s V'."""
    factor, rest = _pivoted_cholesky(system.diagonal, system.row, rank)
    if not len(factor):
        return lambda v: v
    factors = scipy.linalg.qr(factor.T, mode="economic", overwrite_a=True, check_finite=False)
    basis, triangle = (np.asarray(part) for part in factors)
    del factor
    rotation, scales, _ = np.linalg.svd(triangle)
    shift = max(system.ridge + rest.mean(), np.finfo(np.float64).eps * scales[0] ** 2)
    shrink = scales**2 / (scales**2 + shift)
    return lambda v: v - basis @ (rotation @ (shrink[:, None] * (rotation.T @ (basis.T @ v))))


def _solve(system: _System, precondition, y, rtol, max_iterations):
    """Solution, iterations and true residual; the iteration starts again where its own residual has drifted off.

    Columns are scaled to entries of size 1 and back: squares of targets of size 1e-200 are zero.
    """
    scale = np.abs(y).max(axis=0)
    scale[scale == 0] = 1.0
    y = y / scale
    size = np.linalg.norm(y, axis=0)
    size[size == 0] = 1.0
    solution = np.zeros_like(y)
    iterations = 0
    residual = y.copy()
    reached = np.inf
    while iterations < max_iterations:
        step, used = _iterate(
            system, precondition, residual, rtol / 2 * size, max_iterations - iterations
        )
        solution = solution + step
        iterations = iterations + used
        residual = y - system.product(solution) - system.ridge * solution
        before = reached
        reached = float((np.linalg.norm(residual, axis=0) / size).max())
        if not rtol < reached < before / 2:
            break
    return solution * scale, iterations, reached


def _iterate(system: _System, precondition, residual, target, max_iterations):
    """Conjugate gradient for all columns side by side; a column that has converged stands still."""
    solution = np.zeros_like(residual)
    conditioned = precondition(residual)
    direction = conditioned
    inner = _dots(residual, conditioned)
    for iteration in range(max_iterations):
        active = np.linalg.norm(residual, axis=0) > target
        if not active.any():
            return solution, iteration
        image = system.product(direction) + system.ridge * direction
        length = _ratio(inner, _dots(direction, image), active)
        solution += length * direction
        residual = residual - length * image
        conditioned = precondition(residual)
        before = inner
        inner = _dots(residual, conditioned)
        direction = conditioned + _ratio(inner, before, active) * direction
    return solution, max_iterations


def _dots(a, b):
    return np.einsum("ic,ic->c", a, b)


def _ratio(numerator, denominator, active):
    usable = active & (denominator != 0)
    return np.where(usable, numerator, 0.0) / np.where(usable, denominator, 1.0)


def _predictions(cross, coefficients, shape):
    if callable(cross):
        return np.asarray(cross(jnp.asarray(coefficients, jnp.result_type(float))), np.float64)
    columns = columns_of(coefficients, np.ndim(cross))
    return blocked_product(cross, columns).reshape(-1, shape[1])
