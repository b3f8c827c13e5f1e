"""Kernel regression where no decomposition fits: conjugate gradient with a randomly pivoted Cholesky preconditioner.

The kernel is only multiplied with vectors, in float64 by blocks, so that a float32 or memory-mapped
kernel is never copied: an iteration reads it once, for all outputs and all ridges. The partial
Cholesky factor is computed here and not by matfree, whose version wants the kernel on the device
and in one dtype; here it reads as many rows of the kernel as its rank, and a few more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Float

from lazynet import guards
from lazynet.dynamics.checks import (
    check_finite_kernel,
    check_kernel,
    check_kernel_shape,
    check_ridges,
    check_targets,
    targets,
)
from lazynet.linalg import (
    blocked_product,
    check_symmetric,
    columns_of,
    kernel_matrix,
)
from lazynet.records import Data
from lazynet.triangle import Triangle
from lazynet.typing import ArrayLike

Product = Callable[[Any], Any]

BLOCK = 250
"""Rows of the kernel that are read at a time for the preconditioner."""


class ConjugateGradient(NamedTuple):
    """A regression by conjugate gradient and what it took.

    Attributes:
        predictions: `f(x) = K(x, X) a` at the inputs wanted, with a leading axis if the ridge has one.
        coefficients: Dual coefficients `a = (K + ridge I)^{-1} y`, with the same axis.
        iterations: Products with the kernel, those of the preconditioner not counted.
        residual: `max |y - (K + ridge I) a| / |y|` over the outputs, computed afresh from the
            solution; one for each ridge if there is an axis of them.

    Example:
        >>> ConjugateGradient(np.zeros((1, 1)), np.zeros((2, 1)), 3, 1e-12).iterations
        3
    """

    predictions: Float[np.ndarray, "*r m k"]
    coefficients: Float[np.ndarray, "*r n k"]
    iterations: int
    residual: float | Float[np.ndarray, " r"]


class _System(NamedTuple):
    """A kernel K on columns of length `size`, whatever form it has; `rows` are those of some indices.

    `block` rows are asked for at a time.
    """

    product: Callable[[np.ndarray], np.ndarray]
    rows: Callable[[np.ndarray], np.ndarray]
    diagonal: np.ndarray
    block: int


class _Columns(NamedTuple):
    """Right-hand sides `[n, c]` solved side by side, each with its ridge and the size at which it has converged."""

    values: np.ndarray
    ridges: np.ndarray
    sizes: np.ndarray


def conjugate_gradient_regression(
    kernel: Float[ArrayLike, "..."] | Triangle | Product,
    data: Data,
    *,
    cross: Float[ArrayLike, "..."] | Product,
    ridge: float | int | Float[ArrayLike, "*r"],
    rank: int = 100,
    rtol: float = 1e-10,
    max_iterations: int = 1000,
    diagonal: Float[ArrayLike, "n *k"] | None = None,
    unconverged: Literal["raise", "return"] = "raise",
) -> ConjugateGradient:
    """Predictions `K(x, X) (K(X, X) + ridge I)^{-1} y` by preconditioned conjugate gradient: memory of K and a bit.

    The same as `kernel_regression`, for kernels from some 10,000 examples on, also in a file. An
    iteration costs one product with the kernel for all outputs and all ridges together; outputs that
    have converged drop out of it. The preconditioner `L L' + (ridge + e) I`, L the randomly pivoted
    Cholesky factor of K of the given rank and e the mean of the diagonal of `K - L L'`, takes the
    large eigenvalues out of the way: with e in it, a ridge far below the bulk of the spectrum costs
    no further iterations. One factor serves all ridges.

    Args:
        kernel: Kernel of the training inputs as an array, also memory-mapped, `[n, n]` or `[n, n,
            k, k]`, in any floating-point dtype; its `Triangle`, of which half is read; or a
            symmetric product `v -> K v`, such as that of `ntk_vector_product`.
        data: Training examples; only the targets are used.
        cross: Kernel between the inputs wanted and the training inputs, or the product with it.
        ridge: Absolute ridges >= 0, one or an axis of them; with 0, a kernel that is singular up to
            rounding does not converge.
        rank: Rank of the preconditioner, 0 for none: it holds 16 rank n bytes and reads somewhat
            more rows of the kernel. Of a product, every row costs one product.
        rtol: Residual at which to stop, relative to the norm of the targets, output by output.
        max_iterations: Products with the kernel after which to give up.
        diagonal: Diagonal of K where that is a product: `[n]` if it acts on columns `[n, c]` of any
            number (outputs decouple), `[n, k]` if it acts on outputs `[n, k]`.
        unconverged: Whether a residual that does not reach `rtol` raises an error, or is returned
            with what it belongs to.

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
        >>> path = conjugate_gradient_regression(np.eye(2), data, cross=np.eye(2), ridge=np.array([0.5, 1.0]))
        >>> path.predictions.shape, path.residual.shape
        ((2, 2, 1), (2,))

    Source: Diaz, Epperly, Frangella, Tropp and Webber (2023), arXiv 2304.12465, for the
    preconditioner (with e = 0).
    """
    guards.concrete("conjugate_gradient_regression", kernel, targets(data), cross, ridge, diagonal)
    ridges = check_ridges(ridge)
    rank = guards.count("rank", rank, at_least=0)
    rtol = guards.number("rtol", rtol, above=0, below=1)
    max_iterations = guards.count("max_iterations", max_iterations)
    if unconverged not in ("raise", "return"):
        raise ValueError(f"unconverged got {unconverged!r:.60}, expected 'raise' or 'return'.")
    y, _ = check_targets(None if isinstance(kernel, Triangle) else kernel, data.y, None)
    if not callable(cross):
        check_kernel("cross", cross, len(np.atleast_1d(guards.numbers("cross", cross))), *y.shape)
        check_finite_kernel("cross", cross)
    system, one_ridge = _system(kernel, y, diagonal)
    outputs = one_ridge.shape[1]
    # Columns by (ridge, output): one product with K serves all of them.
    columns = np.tile(one_ridge, len(ridges))
    precondition = _preconditioner(system, min(rank, len(columns)))
    solution, iterations, residuals = _solve(
        system, precondition, columns, np.repeat(ridges, outputs), rtol, max_iterations
    )
    residual = residuals.reshape(len(ridges), outputs).max(axis=1)
    worst = int(np.argmax(np.where(np.isnan(residual), np.inf, residual)))
    if not residual[worst] <= rtol and unconverged == "raise":
        raise RuntimeError(
            f"conjugate gradient reached a residual of {residual[worst]:.3g} after {iterations} iterations, expected "
            f"{rtol:g} or less: raise the rank ({rank}), the ridge ({ridges[worst]:g}) or max_iterations, or accept a "
            "larger rtol."
        )
    of_ridges = np.moveaxis(solution.reshape(-1, len(ridges), outputs), 1, 0)
    coefficients = of_ridges.reshape(len(ridges), *y.shape)
    predictions = _predictions(cross, coefficients)
    if np.ndim(ridge):
        return ConjugateGradient(predictions, coefficients, iterations, residual)
    return ConjugateGradient(predictions[0], coefficients[0], iterations, float(residual[0]))


def _system(kernel, y, diagonal):
    """The kernel, and the targets as its columns: one for each output, or one of all outputs."""
    if isinstance(kernel, Triangle):
        check_kernel_shape("kernel", kernel.shape, len(y), *y.shape)
        check_finite_kernel("kernel", kernel.blocks)
        rows = _in_double(kernel.__getitem__)
        entries = np.asarray(kernel.diagonal(), np.float64)
        return _System(kernel.__matmul__, rows, entries, BLOCK), y
    if callable(kernel):
        shape = None if diagonal is None else guards.numbers("diagonal", diagonal).shape
        if shape not in (y.shape[:1], y.shape):
            raise ValueError(
                f"diagonal of shape {shape}, expected {y.shape[:1]} for a product that acts on columns, or {y.shape} "
                "for one that acts on outputs: a product needs the diagonal of its kernel."
            )
        guards.finite("diagonal", diagonal, "evaluate the kernel at finite parameters and inputs")
        return _system_of_product(kernel, y, np.asarray(diagonal, np.float64))
    check_symmetric(kernel_matrix(kernel))
    array = np.asarray(kernel)
    entries = array.diagonal() if array.ndim == 2 else np.einsum("iiaa->ia", array).ravel()

    def rows_of(indices):
        if array.ndim == 2:
            return array[indices]
        examples, outputs = np.divmod(indices, array.shape[2])
        # Row (i, a) of the matrix is K[i, :, a, :]. Indices around a slice put their axis first,
        # so that this is [r, n, k].
        rows = array[examples, :, outputs, :]
        return rows.reshape(len(indices), -1)

    columns = columns_of(y, array.ndim)
    entries = np.asarray(entries, np.float64)
    system = _System(lambda v: blocked_product(array, v), _in_double(rows_of), entries, BLOCK)
    return system, columns


def _in_double(rows_of):
    return lambda indices: np.asarray(rows_of(indices), np.float64)


def _system_of_product(product, y, diagonal):
    acts_on_columns = diagonal.ndim == 1
    shape = (len(y), -1) if acts_on_columns else y.shape

    def on_columns(v):
        if v.shape[1] > 1 and not acts_on_columns:
            images = [on_columns(column[:, None]) for column in v.T]
            return np.concatenate(images, axis=1)
        image = product(jnp.asarray(v.reshape(shape), jnp.result_type(float)))
        guards.concrete("conjugate_gradient_regression", image)
        return np.asarray(image, np.float64).reshape(v.shape)

    def rows(indices):
        units = np.zeros((diagonal.size, len(indices)))
        units[indices, range(len(indices))] = 1.0
        return on_columns(units).T

    columns = y if acts_on_columns else y.reshape(-1, 1)
    # A row that is proposed and not accepted costs a product; one at a time is always accepted.
    return _System(on_columns, rows, diagonal.ravel(), 1), columns


def _randomly_pivoted_cholesky(system: _System, rank, seed=0):
    """Rows of L' with `K - L L'` small in trace, and the diagonal of what remains.

    A pivot is drawn with a probability proportional to the remaining diagonal. A block of pivots is
    proposed from one diagonal, and each is accepted with the share of its entry that the accepted
    ones before it have left, which gives the same distribution as drawing one at a time.

    Source: Chen, Epperly, Tropp and Webber (2025), arXiv 2207.06503, algorithm 1; Epperly, Tropp and
    Webber (2024), arXiv 2410.03969, for the blocks.
    """
    rng = np.random.default_rng(seed)  # the solution does not depend on the draw
    rest = np.maximum(system.diagonal, 0.0)
    # A pivot below this is rounding, by whose root its column would be divided.
    negligible = np.finfo(np.float64).eps * len(rest) * rest.max(initial=0.0)
    factor = np.zeros((rank, len(rest)))
    size = 0
    # Early pivots reject most of a large block, whose diagonal they halve.
    block = min(system.block, max(1, rank // 4))
    while size < rank:
        rest[rest <= negligible] = 0.0
        if not rest.any():
            break
        count = min(block, rank - size)
        proposed = rng.choice(len(rest), count, p=rest / rest.sum())
        known = factor[:size]
        rows = system.rows(proposed) - known[:, proposed].T @ known
        accepted, triangle = _accepted(rows[:, proposed], rest[proposed], negligible, rng)
        if not accepted:
            break
        pivots = proposed[accepted]
        new = scipy.linalg.solve_triangular(triangle, rows[accepted], lower=True)
        factor[size : size + len(pivots)] = new
        size += len(pivots)
        rest = np.maximum(rest - np.sum(new**2, axis=0), 0.0)
        # What rounding leaves on a pivot must not draw it again.
        rest[pivots] = 0.0
    return factor[:size], rest


def _accepted(block, entries, negligible, rng):
    """The proposals accepted, and the Cholesky factor of their block."""
    remaining = (block + block.T) / 2
    accepted = []
    columns = []
    for i, entry in enumerate(entries):
        left = remaining[i, i]
        # Rejection: drawn with a probability like `entry`, it should have been like `left`.
        if left <= negligible or rng.random() * entry >= left:
            continue
        column = remaining[:, i] / np.sqrt(left)
        remaining = remaining - np.outer(column, column)
        accepted.append(i)
        columns.append(column)
    # The column of a pivot is zero at the pivots before it, up to rounding.
    triangle = np.array([column[accepted] for column in columns]).T
    return accepted, np.tril(triangle)


def _preconditioner(system: _System, rank):
    """`(v, ridges) -> shift (L L' + shift I)^{-1} v = v - U (s^2 / (s^2 + shift)) U' v`, with L = U s V'."""
    factor, rest = _randomly_pivoted_cholesky(system, rank)
    if not len(factor):
        return lambda v, ridges: v
    # L = Q R and R = W s V' give U = Q W: the SVD is one of a small matrix.
    factors = scipy.linalg.qr(factor.T, mode="economic", overwrite_a=True, check_finite=False)
    basis, triangle = (np.asarray(part) for part in factors)
    del factor
    rotation, scales, _ = np.linalg.svd(triangle)
    squares = scales[:, None] ** 2
    # With no ridge and nothing of K beside L L' the shift is zero: 0 / 0 where a square is, too.
    least = np.finfo(np.float64).eps * squares[0]

    def precondition(v, ridges):
        shifts = np.maximum(ridges + rest.mean(), least)
        inside = rotation.T @ (basis.T @ v)
        return v - basis @ (rotation @ (squares / (squares + shifts) * inside))

    return precondition


def _solve(system: _System, precondition, y, ridges, rtol, max_iterations):
    """Solution, iterations and true residuals; the iteration starts again where its own residual has drifted off.

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
    reached = np.full(y.shape[1], np.inf)
    while iterations < max_iterations:
        # Half of what is allowed: the residual of the recursion is not quite the true one.
        columns = _Columns(residual, ridges, rtol / 2 * size)
        step, used = _iterate(system, precondition, columns, max_iterations - iterations)
        solution = solution + step
        iterations = iterations + used
        residual = y - system.product(solution) - ridges * solution
        before = reached.max()
        reached = np.linalg.norm(residual, axis=0) / size
        # A start that does not halve the true residual has met the rounding of the products; a
        # comparison with NaN is false and ends it too.
        if not rtol < reached.max() < before / 2:
            break
    return solution * scale, iterations, reached


def _iterate(system: _System, precondition, columns: _Columns, max_iterations):
    """Conjugate gradient for all columns side by side; those that have converged are dropped."""
    solution = np.zeros_like(columns.values)
    residual, ridges, sizes = columns
    active = np.arange(len(sizes))
    direction = np.zeros_like(residual)
    inner = np.zeros(len(sizes))
    for iteration in range(max_iterations):
        # A column that became NaN is dropped as well; the caller sees it in the true residual.
        going = np.linalg.norm(residual, axis=0) > sizes
        if not going.any():
            return solution, iteration
        if not going.all():
            residual = residual[:, going]
            direction = direction[:, going]
            active = active[going]
            ridges = ridges[going]
            sizes = sizes[going]
            inner = inner[going]
        # Each column has lengths of its own; the product with K is one for all outputs and ridges.
        conditioned = precondition(residual, ridges)
        before = inner
        inner = _dots(residual, conditioned)
        # Fletcher-Reeves; at first `before` is zero, and with it the ratio.
        direction = conditioned + _ratio(inner, before) * direction
        image = system.product(direction) + ridges * direction
        length = _ratio(inner, _dots(direction, image))
        solution[:, active] += length * direction
        residual = residual - length * image
    return solution, max_iterations


def _dots(a, b):
    return np.einsum("ic,ic->c", a, b)


def _ratio(numerator, denominator):
    """The quotient, zero where a column has nothing left to divide by."""
    usable = denominator != 0
    return np.where(usable, numerator, 0.0) / np.where(usable, denominator, 1.0)


def _predictions(cross, coefficients):
    """Outputs `[r, m, k]` of dual coefficients `[r, n, k]`; the kernel is read once for all ridges."""
    ridges, _, outputs = coefficients.shape
    if callable(cross):
        images = [cross(jnp.asarray(each, jnp.result_type(float))) for each in coefficients]
        return np.asarray(images, np.float64)
    columns = [columns_of(each, np.ndim(cross)) for each in coefficients]
    predictions = blocked_product(cross, np.concatenate(columns, axis=1))
    by_ridge = predictions.reshape(len(predictions), ridges, columns[0].shape[1])
    of_ridges = np.moveaxis(by_ridge, 1, 0)
    return of_ridges.reshape(ridges, len(cross), outputs)
