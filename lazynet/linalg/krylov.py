"""Lanczos' iteration: what products with a symmetric matrix tell about its eigenvalues."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy
from jaxtyping import Float


def lanczos(
    product: Callable[[np.ndarray], np.ndarray], start: Float[np.ndarray, " m"], steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lanczos' tridiagonal matrix `Q' A Q` on the Krylov space of a vector, by one product `v -> A v` a step.

    On the host in float64, orthogonalized twice against all vectors before. Products are scaled by
    a power of two close to the first one, which changes no digit: squares of entries beyond 1e154
    would overflow.

    Args:
        product: `v -> A v`, for symmetric A.
        start: Vector of the space.
        steps: Number of products.

    Returns:
        Its diagonal `[steps]` and the entries beside it `[steps - 1]`, for `ritz_values`.

    Example:
        >>> diagonal, beside = lanczos(lambda v: np.array([1.0, 3.0]) * v, np.ones(2), 2)
        >>> diagonal.round(6).tolist(), beside.round(6).tolist()
        ([2.0, 2.0], [1.0])

    Source: Golub and Van Loan, Matrix computations, 4th edition, section 10.1.
    """
    diagonal, beside, _ = lanczos_basis(product, start, steps)
    return diagonal, beside[:-1]


def lanczos_basis(
    product: Callable[[np.ndarray], np.ndarray], start: Float[np.ndarray, " m"], steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lanczos' tridiagonal matrix, and the vectors Q of the Krylov space as rows.

    Args:
        product: `v -> A v`, for symmetric A.
        start: Vector of the space.
        steps: Number of products.

    Returns:
        Its diagonal `[steps]`, the entries beside it `[steps]`, of which the last one is what the
        next product would bring, and Q `[steps, m]`.

    Example:
        >>> _, beside, basis = lanczos_basis(lambda v: np.array([1.0, 3.0]) * v, np.ones(2), 2)
        >>> np.allclose(basis @ basis.T, np.eye(2)), beside[-1] < 1e-12
        (True, np.True_)
    """
    q = start / np.linalg.norm(start)
    basis = np.zeros((steps, start.size))
    diagonal = np.zeros(steps)
    beside = np.zeros(steps)
    scale = 1.0
    for i in range(steps):
        basis[i] = q
        q = product(q)
        # One scale for all products: the recursion is that of A / scale.
        scale = power_of_two(np.abs(q).max()) if i == 0 else scale
        q = q / scale
        diagonal[i] = basis[i] @ q
        # Against all earlier vectors, and twice: the first pass leaves its own rounding.
        for _ in range(2):
            q = q - basis[: i + 1].T @ (basis[: i + 1] @ q)
        beside[i] = np.linalg.norm(q)
        # The Krylov space is exhausted: what follows stays zero.
        if beside[i] == 0:
            break
        q = q / beside[i]
    return diagonal * scale, beside * scale, basis


def power_of_two(size: float) -> float:
    """The power of two just above a size, and 1 for zero and for what is not finite.

    Example:
        >>> power_of_two(5.0), power_of_two(0.0)
        (8.0, 1.0)
    """
    is_number = np.isfinite(size) and size > 0
    return float(np.ldexp(1.0, min(int(np.frexp(size)[1]), 1023))) if is_number else 1.0


def ritz_values(
    diagonal: Float[np.ndarray, " s"], beside: Float[np.ndarray, " r"]
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of Lanczos' matrix in ascending order, and their squared overlaps with its first vector.

    What comes after the recursion has exhausted the space that it can reach is left out.

    Raises:
        ValueError: If the first product was not finite.

    Example:
        >>> values, overlaps = ritz_values(np.array([2.0, 2.0]), np.array([1.0]))
        >>> values.round(6).tolist(), overlaps.round(6).tolist()
        ([1.0, 3.0], [0.5, 0.5])
    """
    values, vectors, _ = ritz_vectors(diagonal, np.append(beside, 0.0))
    return values, vectors[0] ** 2


def ritz_vectors(
    diagonal: Float[np.ndarray, " s"], beside: Float[np.ndarray, " s"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues of Lanczos' matrix in ascending order, its eigenvectors as columns, and `|A v - lambda v|`.

    Args:
        diagonal: Of the matrix.
        beside: Entries beside it, and at the end what comes next.

    Raises:
        ValueError: If the first product was not finite.

    Example:
        >>> values, vectors, residuals = ritz_vectors(np.array([2.0, 2.0]), np.array([1.0, 0.0]))
        >>> values.round(6).tolist(), residuals.tolist()
        ([1.0, 3.0], [0.0, 0.0])
    """
    if not np.isfinite(diagonal[0]):
        raise ValueError(
            "kernel times a vector is not finite: check the parameters and the inputs."
        )
    scale = power_of_two(np.abs(diagonal[np.isfinite(diagonal)]).max())
    inner = beside[:-1]
    rounding = 4 * np.finfo(np.float64).eps * len(diagonal) * scale
    # Where the entry beside is rounding, the Krylov space is exhausted, and what follows is noise.
    going_on = np.isfinite(inner) & (np.abs(inner) > rounding)
    length = len(inner) if going_on.all() else int(going_on.argmin())
    matrix = diagonal[: length + 1] / scale, inner[:length] / scale
    values, vectors = scipy.linalg.eigh_tridiagonal(*matrix)
    # A Q = Q T + b q e_last': for T s = lambda s, Q s misses by b times the last entry of s.
    return values * scale, vectors, np.abs(beside[length] * vectors[-1])
