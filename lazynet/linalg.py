"""Dense linear algebra of kernel matrices: always float64, with rank and sign decided in one place.

The condition number of a neural kernel easily exceeds 1e7, more than float32 resolves. Eigenvalues and solves are
therefore computed in float64 whatever the kernel's dtype: by `jax.numpy` (on the accelerator, if there is one) when
x64 is enabled, by NumPy on the host when it is not. Results are NumPy arrays on the host.

Two tolerances, relative to the largest eigenvalue:

- rank: eigenvalues up to `m * eps` of the *input* dtype (m the matrix size) are rounding noise around zero;
- sign: eigenvalues down to `-NEGATIVE_LIMIT` are rounding noise of the kernel computation and are moved to zero,
  which gives the nearest positive semi-definite matrix. A more negative one means that the matrix is no kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float

from lazynet.typing import ArrayLike

__all__ = [
    "ASYMMETRY_LIMIT",
    "NEGATIVE_LIMIT",
    "Eigen",
    "eigh",
    "kernel_matrix",
    "largest_eigenvalue",
    "psd_eigh",
    "solve_psd",
    "symmetric",
]

ASYMMETRY_LIMIT = 1e-4
"""Largest `max |A - A'| / max |A|` that counts as rounding."""

NEGATIVE_LIMIT = 1e-3
"""Largest `-lambda_min / lambda_max` that counts as rounding (TF32 contractions come close to it)."""


class Eigen(NamedTuple):
    """Eigendecomposition `A = V diag(lambda) V'` of a symmetric matrix.

    Attributes:
        values: Eigenvalues in ascending order.
        vectors: Orthonormal eigenvectors, one a column.
        tolerance: Eigenvalues up to this size are indistinguishable from zero.

    Example:
        >>> eigh(np.diag([2.0, 1.0])).values.tolist()
        [1.0, 2.0]
    """

    values: Float[np.ndarray, " m"]
    vectors: Float[np.ndarray, "m m"]
    tolerance: float

    def inverse_values(self, ridge: float | int = 0.0) -> Float[np.ndarray, " m"]:
        """`1 / (lambda + ridge)`, and 0 in null directions: the eigenvalues of the pseudo-inverse."""
        shifted = self.values + ridge
        null = shifted <= self.tolerance
        return np.where(null, 0.0, 1.0 / np.where(null, 1.0, shifted))


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
    array = np.asarray(kernel)
    if array.ndim == 2:
        return array
    if array.ndim != 4 or array.shape[2] != array.shape[3]:
        raise ValueError(
            f"kernel of shape {array.shape}, expected [n1, n2], or [n1, n2, k, k] for the full empirical "
            'kernel (empirical_ntk with outputs="trace" or "full").'
        )
    n1, n2, k, _ = array.shape
    return array.transpose(0, 2, 1, 3).reshape(n1 * k, n2 * k)


def symmetric(matrix: Float[ArrayLike, "m1 m2"]) -> Float[np.ndarray, "m m"]:
    """`(A + A')/2` in float64, after checking that A is square, finite and symmetric up to rounding.

    Args:
        matrix: A, of any floating-point dtype.

    Raises:
        ValueError: If A is not square, not finite, or its largest asymmetry exceeds `ASYMMETRY_LIMIT * max |A|`.

    Example:
        >>> symmetric(np.array([[1.0, 2.0], [2.0, 5.0]])).tolist()
        [[1.0, 2.0], [2.0, 5.0]]
    """
    array = np.asarray(matrix, np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(
            f"matrix of shape {array.shape}, expected [m, m] with m >= 1: pass the kernel of one set of "
            "inputs with itself."
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"matrix has {np.sum(~np.isfinite(array))} entries that are not finite, expected none: "
            "check the inputs of the kernel for NaN, and deep float32 kernels for overflow."
        )
    asymmetry, size = np.abs(array - array.T).max(), np.abs(array).max()
    if asymmetry > ASYMMETRY_LIMIT * size:
        raise ValueError(
            f"matrix is not symmetric: its largest asymmetry is {asymmetry:.3g}, expected at most "
            f"{ASYMMETRY_LIMIT:g} of its largest entry {size:.3g}: pass the kernel of one set of inputs "
            "with itself, or symmetrize it by (A + A.T) / 2 if you know why it is not."
        )
    return (array + array.T) / 2


def eigh(matrix: Float[ArrayLike, "m1 m2"]) -> Eigen:
    """Eigendecomposition `A = V diag(lambda) V'` in float64, eigenvalues ascending.

    One decomposition serves every time of a kernel flow and every ridge of a regression.

    Args:
        matrix: Symmetric A, of any floating-point dtype.

    Returns:
        Eigenvalues, eigenvectors and the rank tolerance `m eps lambda_max`, eps that of the dtype of A.

    Raises:
        ValueError: If A is not square, finite and symmetric.

    Example:
        >>> values, vectors, tolerance = eigh(np.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> values.round(12).tolist()
        [1.0, 3.0]
    """
    array = symmetric(matrix)
    if _float64_enabled():
        values, vectors = map(np.asarray, jnp.linalg.eigh(jnp.asarray(array)))
    else:
        values, vectors = np.linalg.eigh(array)
    return Eigen(values, vectors, len(array) * _epsilon(matrix) * float(np.abs(values).max()))


def psd_eigh(matrix: Float[ArrayLike, "m1 m2"]) -> Eigen:
    """`eigh` of a positive semi-definite matrix: slightly negative eigenvalues are moved to zero.

    The result is the decomposition of the nearest positive semi-definite matrix, so that no mode of a kernel flow
    grows because of rounding. Eigenvectors are kept: a null direction still moves, at the constant rate of its limit.

    Args:
        matrix: Symmetric A, of any floating-point dtype.

    Raises:
        ValueError: If A is not square, finite and symmetric, or `lambda_min < -NEGATIVE_LIMIT * lambda_max`.

    Example:
        >>> psd_eigh(np.diag([1.0, -1e-9])).values.tolist()
        [0.0, 1.0]
    """
    eigen = eigh(matrix)
    smallest, largest = eigen.values[0], eigen.values[-1]
    if smallest < -NEGATIVE_LIMIT * max(largest, 0.0):
        raise ValueError(
            f"matrix is not positive semi-definite: lambda_min = {smallest:.3g} against lambda_max = "
            f"{largest:.3g}, expected at least -{NEGATIVE_LIMIT:g} lambda_max: compute the kernel in "
            'float64 or with precision="highest", or add a ridge to its diagonal.'
        )
    return eigen._replace(values=np.maximum(eigen.values, 0.0))


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
    values = jnp.linalg.eigvalsh(jnp.asarray(array)) if _float64_enabled() else np.linalg.eigvalsh(array)
    return float(values[-1])


def solve_psd(
    matrix: Float[ArrayLike, "m1 m2"], rhs: Float[ArrayLike, "m ..."], *, ridge: float | int
) -> Float[np.ndarray, "m ..."]:
    """`(A + ridge I)^{-1} b` in float64 by Cholesky, on the host.

    Much faster than an eigendecomposition when there is one ridge and A + ridge I is positive definite. The ridge is
    absolute and never chosen silently.

    Args:
        matrix: Symmetric positive semi-definite A.
        rhs: b, one or several right-hand sides.
        ridge: Added to the diagonal, >= 0, in the units of A.

    Raises:
        ValueError: If A is not square, finite and symmetric, the ridge is negative, b does not fit, or A + ridge I is
            not positive definite up to rounding.

    Example:
        >>> solve_psd(np.array([[2.0, 0.0], [0.0, 4.0]]), np.array([2.0, 2.0]), ridge=0.0).round(12).tolist()
        [1.0, 0.5]
    """
    check_ridge(ridge)
    shifted = symmetric(matrix) + ridge * np.eye(len(matrix))
    columns = np.asarray(rhs, np.float64)
    if columns.ndim == 0 or len(columns) != len(shifted):
        raise ValueError(f"rhs of shape {columns.shape}, expected {len(shifted)} rows like the matrix.")
    try:
        factor, _ = scipy.linalg.cho_factor(shifted, lower=True)
        definite = np.diag(factor).min() ** 2 > len(shifted) * _epsilon(matrix) * np.diag(shifted).max()
    except scipy.linalg.LinAlgError:
        definite = False
    if not definite:
        smallest = np.linalg.eigvalsh(shifted)[0]
        raise ValueError(
            f"matrix + ridge is not definite: lambda_min = {smallest:.3g} with ridge = {ridge:g}, "
            "expected a positive one above rounding: pass a larger ridge (duplicate inputs make a kernel "
            "singular), or use psd_eigh, whose pseudo-inverse is the limit of a vanishing ridge."
        )
    return scipy.linalg.cho_solve((factor, True), columns)


def check_ridge(ridge: float | int) -> None:
    """Refuses a ridge that is negative or not finite.

    Example:
        >>> check_ridge(0.1)
    """
    if not (np.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge = {ridge}, expected a finite number >= 0, in the units of the kernel.")


def _float64_enabled() -> bool:
    return jnp.result_type(float) == jnp.float64


def _epsilon(matrix) -> float:
    """Machine epsilon of the dtype in which the matrix was computed, float64 for integers."""
    dtype = np.asarray(matrix).dtype
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else float(np.finfo(np.float64).eps)
