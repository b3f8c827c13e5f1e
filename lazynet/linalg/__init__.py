"""Dense linear algebra of kernel matrices: always float64, with rank and sign decided in one place.

The condition number of a neural kernel easily exceeds 1e7, more than float32 resolves. Eigenvalues
and solves are therefore computed in float64 whatever the kernel's dtype: on the accelerator, if
there is one and x64 is enabled, else by NumPy on the host, whose LAPACK is faster on a CPU than
that of `jax.numpy` (eigenvalues alone several times). Results are NumPy arrays on the host.

Kernels too large for a decomposition are read in blocks of rows (`blocked_product`,
`check_symmetric`, `check_positive`): they may be float32 or memory-mapped, and are never copied as a whole.

Two tolerances:

- rank: eigenvalues below the rounding that the kernel has (`rank_tolerance`), and which no ridge
  lifts above it, are noise around zero: inverses leave them out. Every solver takes another
  tolerance as an argument;
- sign: eigenvalues down to `-NEGATIVE_LIMIT` times the largest one are rounding noise of the kernel
  computation and are moved to zero, which gives the nearest positive semi-definite matrix, unless a
  ridge lifts them. A more negative one means that the matrix is no kernel.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Float

from lazynet import guards
from lazynet.linalg.krylov import (
    lanczos,
    lanczos_basis,
    power_of_two,
    ritz_values,
    ritz_vectors,
)
from lazynet.typing import ArrayLike

__all__ = [
    "ASYMMETRY_LIMIT",
    "NEGATIVE_LIMIT",
    "Eigen",
    "blocked_product",
    "check_digits",
    "check_positive",
    "check_symmetric",
    "eigh",
    "kernel_matrix",
    "lanczos",
    "lanczos_basis",
    "largest_eigenvalue",
    "power_of_two",
    "psd_eigh",
    "rank_tolerance",
    "ridge_eigh",
    "ritz_values",
    "ritz_vectors",
    "solve_psd",
    "spectrum_tolerance",
    "symmetric",
]

ASYMMETRY_LIMIT = 1e-4
"""Largest `max |A - A'| / max |A|` that counts as rounding."""

NEGATIVE_LIMIT = 1e-3
"""Largest `-lambda_min / lambda_max` that counts as rounding (TF32 contractions come close to it)."""

PRODUCTS = 12
"""Products with a kernel from which the sign of its eigenvalues is judged where it is not decomposed."""

BLOCK_BYTES = 2**23
"""Size of a block of rows in float64."""


class Eigen(NamedTuple):
    """Eigendecomposition `A = V diag(lambda) V'` of a symmetric matrix.

    Attributes:
        values: Eigenvalues in ascending order.
        vectors: Orthonormal eigenvectors, one a column.
        tolerance: Eigenvalues below it are indistinguishable from zero.

    Example:
        >>> eigh(np.diag([2.0, 1.0])).values.tolist()
        [1.0, 2.0]
    """

    values: Float[np.ndarray, " m"]
    vectors: Float[np.ndarray, "m m"]
    tolerance: float

    def shifted(self, ridge: float | int) -> Eigen:
        """The decomposition of `A + ridge I`, none of whose eigenvalues is in doubt if the ridge reaches the tolerance.

        A ridge of twice the most negative eigenvalue makes A definite as it is; below that, A
        stands for the nearest positive semi-definite matrix.
        """
        lifts_all = ridge >= -2 * self.values[0]
        values = self.values if lifts_all else np.maximum(self.values, 0.0)
        tolerance = 0.0 if ridge >= self.tolerance else self.tolerance
        return Eigen(values + ridge, self.vectors, tolerance)

    def inverse_values(self, ridge: float | int = 0.0) -> Float[np.ndarray, " m"]:
        """`1 / (lambda + ridge)`, and 0 in null directions: the eigenvalues of the pseudo-inverse."""
        values, _, tolerance = self.shifted(ridge)
        # With a tolerance of 0 an eigenvalue may still be 0.
        null = (values < tolerance) | (values == 0)
        return np.where(null, 0.0, 1.0 / np.where(null, 1.0, values))

    def regular_inverse_values(
        self, ridge: float | int = 0.0, *, fix: str
    ) -> Float[np.ndarray, " m"]:
        """`1 / (lambda + ridge)` of a kernel without null directions; another one is refused, with the way out."""
        inverse = self.inverse_values(ridge)
        if not inverse.all():
            raise ValueError(
                f"kernel + ridge is singular: lambda_min = {self.values[0]:.3g} with ridge = {ridge:g} is below the "
                f"rounding {self.tolerance:.3g} of the kernel: {fix}."
            )
        return inverse


def rank_tolerance(matrix: Float[ArrayLike, "m1 m2"], smallest: float | int = 0.0) -> float:
    """Rounding of a kernel, `max(4 eps max|K| sqrt(m), -2 lambda_min)`, with eps of the dtype it was computed in.

    A symmetric matrix of independent errors of size s has the norm `2 s sqrt(m)`: entries are taken
    to have lost two units in the last place. Where a kernel has lost more, a negative eigenvalue
    says so.

    Args:
        matrix: Symmetric K, in the dtype in which it was computed; integers are exact to float64.
        smallest: `lambda_min` where it is known.

    Example:
        >>> bool(rank_tolerance(np.ones((4, 4), np.float32)) == 8 * np.finfo(np.float32).eps)
        True
    """
    array = guards.numbers("matrix", matrix)
    size = max(float(array.max()), -float(array.min()))
    return _rounding(array, size, smallest)


def spectrum_tolerance(values: Float[ArrayLike, "n"]) -> float:
    """Rounding of a kernel of which only the eigenvalues are known, `rank_tolerance` with the mean diagonal for max|K|.

    It is the same for kernels of equal diagonals, such as those of inputs on a sphere.

    Args:
        values: All eigenvalues, in any order and in the dtype in which they were computed.

    Example:
        >>> spectrum_tolerance(np.array([3.0, 0.0, -1e-9]))
        2e-09
    """
    array = guards.numbers("values", values)
    return _rounding(array, float(array.mean()), float(array.min()))


def _rounding(array, size, smallest):
    return max(4 * _epsilon(array) * size * len(array) ** 0.5, -2 * float(smallest))


def kernel_matrix(kernel: Float[ArrayLike, "n1 n2 ..."]) -> Float[np.ndarray, "m1 m2"]:
    """A kernel as a matrix: `[n1, n2]` as it is, `[n1, n2, k, k]` as `[n1 k, n2 k]`, rows ordered (example, output).

    Args:
        kernel: `[n1, n2]` where outputs decouple, or the full empirical kernel.

    Returns:
        The matrix on the host, in the dtype of the kernel.

    Raises:
        ValueError: If the shape is neither.

    Example:
        >>> kernel_matrix(np.ones((2, 3, 5, 5))).shape
        (10, 15)
    """
    array = guards.numbers("kernel", kernel)
    is_full = array.ndim == 4 and array.shape[2] == array.shape[3]
    if array.ndim != 2 and not is_full:
        raise ValueError(
            f"kernel of shape {array.shape}, expected [n1, n2], or [n1, n2, k, k] for the full empirical "
            'kernel (empirical_ntk with outputs="trace" or "full").'
        )
    return unfolded(array)


def unfolded(kernel: Any) -> Any:
    """`kernel_matrix` of an array of NumPy or JAX, also a traced one, whose shape is known to be right.

    Example:
        >>> unfolded(jnp.ones((2, 3, 5, 5))).shape
        (10, 15)
    """
    if kernel.ndim == 2:
        return kernel
    n1, n2, k, _ = kernel.shape
    # [n1, k, n2, k]: example before output in rows and in columns.
    return kernel.transpose(0, 2, 1, 3).reshape(n1 * k, n2 * k)


def columns_of(outputs: Any, ndim: int) -> Any:
    """Outputs `[n, k]` as the columns that `kernel_matrix` of a kernel with `ndim` axes acts on.

    They are one for each output if outputs decouple, `[n, n2]`, and one of all of them for the full
    kernel.

    Example:
        >>> columns_of(np.ones((3, 2)), 2).shape, columns_of(np.ones((3, 2)), 4).shape
        ((3, 2), (6, 1))
    """
    return outputs if ndim == 2 else outputs.reshape(-1, 1)


def symmetric(matrix: Float[ArrayLike, "m1 m2"]) -> Float[np.ndarray, "m m"]:
    """`(A + A')/2` in float64, after checking that A is square, finite and symmetric up to rounding.

    Args:
        matrix: A, of any floating-point dtype.

    Raises:
        ValueError: If A is not square, not finite, or its largest asymmetry exceeds
            `ASYMMETRY_LIMIT * max |A|`.

    Example:
        >>> symmetric(np.array([[1.0, 2.0], [2.0, 5.0]])).tolist()
        [[1.0, 2.0], [2.0, 5.0]]
    """
    check_symmetric(matrix)
    array = np.asarray(matrix, np.float64)
    return (array + array.T) / 2


def check_symmetric(matrix: Float[ArrayLike, "m1 m2"]) -> None:
    """Refuses A unless it is square, finite and symmetric up to rounding, reading it in square blocks.

    Args:
        matrix: A, of any floating-point dtype, also memory-mapped.

    Raises:
        ValueError: If A is not square, not finite, or its largest asymmetry exceeds
            `ASYMMETRY_LIMIT * max |A|`.

    Example:
        >>> check_symmetric(np.eye(2))
    """
    array = guards.numbers("matrix", matrix)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(
            f"matrix of shape {array.shape}, expected [m, m] with m >= 1: pass the kernel of one set of "
            "inputs with itself."
        )
    size = 0.0
    asymmetry = 0.0
    # Squares, since columns alone are scattered in memory; four of them are a block of rows.
    side = max(1, math.isqrt(BLOCK_BYTES // 32))
    starts = range(0, len(array), side)
    for i in starts:
        for j in starts[i // side :]:
            rows = slice(i, i + side)
            columns = slice(j, j + side)
            block = np.asarray(array[rows, columns], np.float64)
            mirrored = np.asarray(array[columns, rows], np.float64).T
            # np.maximum keeps NaN.
            largest = float(np.maximum(np.abs(block).max(), np.abs(mirrored).max()))
            if not np.isfinite(largest):
                blocks = row_blocks(*array.shape)
                count = sum(np.sum(~np.isfinite(array[block])) for block in blocks)
                raise ValueError(
                    f"matrix has {count} entries that are not finite, expected none: check the "
                    "inputs of the kernel for NaN, and deep float32 kernels for overflow."
                )
            size = max(size, largest)
            asymmetry = max(asymmetry, np.abs(block - mirrored).max())
    if asymmetry > ASYMMETRY_LIMIT * size:
        raise ValueError(
            f"matrix is not symmetric: its largest asymmetry is {asymmetry:.3g}, expected at most "
            f"{ASYMMETRY_LIMIT:g} of its largest entry {size:.3g}: pass the kernel of one set of inputs "
            "with itself, or symmetrize it by (A + A.T) / 2 if you know why it is not."
        )


def check_positive(matrix: Float[ArrayLike, "m1 m2"]) -> None:
    """`check_symmetric`, and refuses A of which few products show an eigenvalue below `-NEGATIVE_LIMIT lambda_max`.

    Lanczos' eigenvalues lie between those of A: what is refused is no kernel. A negative eigenvalue
    barely beyond the limit may pass, where `psd_eigh` at the cost of a decomposition sees all.

    Args:
        matrix: A, of any floating-point dtype, also memory-mapped.

    Raises:
        ValueError: If A is not square, finite and symmetric, or has such an eigenvalue.

    Example:
        >>> check_positive(np.eye(2))
    """
    check_symmetric(matrix)

    def product(v):
        return blocked_product(matrix, v[:, None])[:, 0]

    start = np.random.default_rng(0).normal(size=len(matrix))
    steps = min(PRODUCTS, len(matrix))
    values, _ = ritz_values(*lanczos(product, start, steps))
    _check_sign(values[0], values[-1])


def row_blocks(rows: int, columns: int) -> list[slice]:
    """Consecutive ranges of rows, each `BLOCK_BYTES` in float64.

    Example:
        >>> row_blocks(5, BLOCK_BYTES // 16)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, BLOCK_BYTES // (8 * max(columns, 1)))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def blocked_product(
    kernel: Float[ArrayLike, "n1 n2 ..."], columns: Float[np.ndarray, "m2 c"]
) -> Float[np.ndarray, "m1 c"]:
    """`A V` in float64 for a kernel A of any dtype, converted one block of rows at a time.

    Args:
        kernel: A as a matrix `[n1, n2]`, or the full empirical kernel `[n1, n2, k, k]`; may be
            memory-mapped.
        columns: V, with `n2` or `n2 k` rows.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If an argument is no array of real numbers.

    Example:
        >>> blocked_product(np.eye(2, dtype=np.float32), np.ones((2, 3))).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    array = guards.numbers("kernel", kernel)
    columns = guards.numbers("columns", columns)
    across = kernel_matrix(array[:0]).shape[1]
    if columns.ndim not in (1, 2) or len(columns) != across:
        raise ValueError(
            f"columns of shape {columns.shape}, expected [{across}, c] for a kernel of shape {array.shape}: one row "
            "for every column of the kernel as a matrix."
        )
    products = [np.empty((0, *columns.shape[1:]))]
    for rows in row_blocks(len(array), array.size // max(len(array), 1)):
        block = np.asarray(kernel_matrix(array[rows]), np.float64)
        products.append(block @ columns)
    return np.concatenate(products)


def eigh(matrix: Float[ArrayLike, "m1 m2"], *, tolerance: float | int | None = None) -> Eigen:
    """Eigendecomposition `A = V diag(lambda) V'` in float64, eigenvalues ascending.

    One decomposition serves every time of a kernel flow and every ridge of a regression.

    Args:
        matrix: Symmetric A, of any floating-point dtype.
        tolerance: Size below which an eigenvalue counts as zero; None for the rounding of A
            (`rank_tolerance`).

    Raises:
        ValueError: If A is not square, finite and symmetric, or the tolerance is negative.
        TypeError: If A is no array of real numbers.

    Example:
        >>> values, vectors, tolerance = eigh(np.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> values.round(12).tolist()
        [1.0, 3.0]
    """
    array = symmetric(matrix)
    if _on_accelerator():
        values, vectors = map(np.asarray, jnp.linalg.eigh(jnp.asarray(array)))
    else:
        values, vectors = np.linalg.eigh(array)
    return Eigen(values, vectors, checked_tolerance(tolerance, matrix, values[0]))


def psd_eigh(matrix: Float[ArrayLike, "m1 m2"], *, tolerance: float | int | None = None) -> Eigen:
    """`eigh` of a positive semi-definite matrix: slightly negative eigenvalues are moved to zero.

    The result is the decomposition of the nearest positive semi-definite matrix, so that no mode of
    a kernel flow grows because of rounding. Eigenvectors are kept: a null direction still moves, at
    the constant rate of its limit.

    Args:
        matrix: Symmetric A, of any floating-point dtype.
        tolerance: Size below which an eigenvalue counts as zero; None for the rounding of A.

    Raises:
        ValueError: If A is not square, finite and symmetric, or `lambda_min < -NEGATIVE_LIMIT *
            lambda_max`.

    Example:
        >>> psd_eigh(np.diag([1.0, -1e-9])).values.tolist()
        [0.0, 1.0]
    """
    eigen = eigh(matrix, tolerance=tolerance)
    _check_sign(eigen.values[0], eigen.values[-1])
    return eigen._replace(values=np.maximum(eigen.values, 0.0))


def ridge_eigh(
    matrix: Float[ArrayLike, "m1 m2"], ridge: float | int, *, tolerance: float | int | None = None
) -> Eigen:
    """`eigh` for inverses of `A + r I` with `r >= ridge`: negative eigenvalues stay, for a large ridge to lift.

    Args:
        matrix: Symmetric A, of any floating-point dtype.
        ridge: The smallest ridge with which `inverse_values` will be asked for.
        tolerance: Size below which an eigenvalue of `A + r I` counts as zero; None for the rounding
            of A.

    Raises:
        ValueError: If A is not square, finite and symmetric, is not positive semi-definite and no
            ridge lifts it, or has half precision and digits too few for the ridge; if the ridge is
            negative.

    Example:
        >>> ridge_eigh(np.diag([1.0, -1e-9]), 1.0).inverse_values(1.0).round(6).tolist()
        [1.0, 0.5]
    """
    ridge = checked_ridge(ridge)
    eigen = eigh(matrix, tolerance=tolerance)
    if ridge < -2 * eigen.values[0]:
        _check_sign(eigen.values[0], eigen.values[-1])
    if tolerance is None:
        check_digits(matrix, eigen, ridge)
    return eigen


def check_digits(matrix: Float[ArrayLike, "m1 m2"], eigen: Eigen, ridge: float | int) -> None:
    """Refuses to leave out directions of a kernel in half precision: its rounding is a good part of the kernel.

    Raises:
        ValueError: If the matrix is bfloat16 or float16, and an eigenvalue with the ridge is below
            the tolerance.

    Example:
        >>> check_digits(np.eye(2, dtype=np.float16), eigh(np.eye(2, dtype=np.float16)), 0.0)
    """
    dtype = guards.numbers("matrix", matrix).dtype
    is_half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 2
    if is_half and not eigen.inverse_values(ridge).all():
        raise ValueError(
            f"kernel of dtype {dtype} has eigenvalues + ridge = {ridge:g} below its rounding {eigen.tolerance:.3g}, "
            "expected none: compute the kernel in float32 (x.astype(jnp.float32)), or pass a ridge of the rounding."
        )


def _check_sign(smallest: float, largest: float) -> None:
    if smallest < -NEGATIVE_LIMIT * max(largest, 0.0):
        raise ValueError(
            f"matrix is not positive semi-definite: lambda_min = {smallest:.3g} against lambda_max = "
            f"{largest:.3g}, expected at least -{NEGATIVE_LIMIT:g} lambda_max: compute the kernel in "
            'float64 or with precision="highest", or add a ridge to its diagonal.'
        )


def largest_eigenvalue(matrix: Float[ArrayLike, "m1 m2"]) -> float:
    """`lambda_max(A)` in float64: what bounds the learning rate.

    Args:
        matrix: Symmetric A, of any floating-point dtype.

    Raises:
        ValueError: If A is not square, finite and symmetric.

    Example:
        >>> largest_eigenvalue(np.diag([1.0, 3.0]))
        3.0
    """
    array = symmetric(matrix)
    if _on_accelerator():
        return float(jnp.linalg.eigvalsh(jnp.asarray(array))[-1])
    return float(np.linalg.eigvalsh(array)[-1])


def solve_psd(
    matrix: Float[ArrayLike, "m1 m2"],
    rhs: Float[ArrayLike, "m ..."],
    *,
    ridge: float | int,
    tolerance: float | int | None = None,
) -> Float[np.ndarray, "m ..."]:
    """`(A + ridge I)^{-1} b` in float64: by Cholesky where no eigenvalue is in doubt, else as `ridge_eigh` inverts it.

    Two Cholesky factors take about a fifth of the time of an eigendecomposition, which serves every
    ridge. The first one proves what `Eigen.inverse_values` asks of the eigenvalues: that a ridge
    above the tolerance is twice the most negative one, or that a smaller ridge lifts all of them
    above the tolerance.

    Args:
        matrix: Symmetric positive semi-definite A.
        rhs: b, one or several right-hand sides.
        ridge: Added to the diagonal, >= 0, in the units of A.
        tolerance: Size below which an eigenvalue of `A + ridge I` counts as zero; None for the
            rounding of A.

    Raises:
        ValueError: If A is not square, finite, symmetric and positive semi-definite, the ridge is
            negative, or b does not fit or is not finite.

    Example:
        >>> solve_psd(np.array([[2.0, 0.0], [0.0, 4.0]]), np.array([2.0, 2.0]), ridge=0.0).round(12).tolist()
        [1.0, 0.5]
        >>> solve_psd(np.ones((2, 2)), np.array([2.0, 2.0]), ridge=0.0).round(12).tolist()
        [1.0, 1.0]
    """
    ridge = checked_ridge(ridge)
    array = symmetric(matrix)
    columns = np.asarray(guards.numbers("rhs", rhs), np.float64)
    if columns.ndim == 0 or len(columns) != len(array):
        raise ValueError(
            f"rhs of shape {columns.shape}, expected {len(array)} rows like the matrix."
        )
    guards.finite("rhs", columns)
    flat = columns.reshape(len(columns), -1)
    rounding = checked_tolerance(tolerance, matrix)
    # A factor of the matrix with less than the ridge says that no eigenvalue with it is in doubt.
    less = ridge / 2 if ridge >= rounding else ridge - rounding
    # Cholesky's algorithm ends for definite matrices only: a test of all eigenvalues.
    if _factor(array, less) is not None:
        return scipy.linalg.cho_solve((_factor(array, ridge), True), flat).reshape(columns.shape)
    eigen = ridge_eigh(matrix, ridge, tolerance=tolerance)
    solved = eigen.vectors @ (eigen.inverse_values(ridge)[:, None] * (eigen.vectors.T @ flat))
    return solved.reshape(columns.shape)


def _factor(array, shift):
    """Lower Cholesky factor of the matrix plus a multiple of the identity, None if that is not definite."""
    shifted = array.copy()
    shifted[np.diag_indices_from(shifted)] += shift
    try:
        # The transpose of a symmetric matrix in C order is one in Fortran order, which is not copied.
        factor, _ = scipy.linalg.cho_factor(
            shifted.T, lower=True, overwrite_a=True, check_finite=False
        )
        return factor
    except scipy.linalg.LinAlgError:
        return None


def checked_ridge(ridge: float | int | ArrayLike, name: str = "ridge") -> float:
    """A ridge as a float, after refusing one that is negative or not finite.

    Example:
        >>> checked_ridge(1)
        1.0
    """
    return guards.number(
        name, ridge, at_least=0, fix="it is added to the diagonal, in the units of the kernel"
    )


def checked_tolerance(
    tolerance: float | int | None, matrix: ArrayLike, smallest: float | int = 0.0
) -> float:
    """A tolerance as a float, the rounding of the matrix where it is None.

    Example:
        >>> checked_tolerance(1, np.eye(2)), checked_tolerance(None, np.eye(2), -1.0)
        (1.0, 2.0)
    """
    if tolerance is None:
        return rank_tolerance(matrix, smallest)
    return guards.number(
        "tolerance", tolerance, at_least=0, fix="None takes the rounding of the kernel"
    )


def _on_accelerator() -> bool:
    return jnp.result_type(float) == jnp.float64 and jax.default_backend() != "cpu"


def _epsilon(matrix) -> float:
    """Machine epsilon of the dtype in which the matrix was computed, float64 for integers."""
    is_floating = jnp.issubdtype(matrix.dtype, jnp.floating)
    return float(jnp.finfo(matrix.dtype if is_floating else np.float64).eps)
