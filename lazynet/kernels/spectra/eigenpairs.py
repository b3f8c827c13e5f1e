"""Largest eigenvalues and eigenvectors by Lanczos' iteration, and eigenvectors at other inputs (Nyström)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.kernels.spectra.operators import (
    KernelLike,
    Shape,
    gaussians,
    operator_of,
    ritz,
    vector_shape,
)
from lazynet.linalg import blocked_product, lanczos_basis, ritz_vectors
from lazynet.typing import Array, ArrayLike, Key


class Eigenpairs(NamedTuple):
    """Eigenvalues and eigenvectors of the top of a spectrum.

    Attributes:
        values: In descending order.
        vectors: One a column, of length one, rows ordered by (example, output).
        residuals: `|K v - lambda v|` of each: an eigenvalue of K is at most so far.

    Example:
        >>> Eigenpairs(np.ones(1), np.ones((1, 1)), np.zeros(1)).values.tolist()
        [1.0]
    """

    values: Float[np.ndarray, " c"]
    vectors: Float[np.ndarray, "m c"]
    residuals: Float[np.ndarray, " c"]


@runtime_checkable
class HasEigenvectors(Protocol):
    """What has eigenvalues and eigenvectors: `Eigenpairs`, or a `Spectrum` with its vectors."""

    @property
    def values(self) -> np.ndarray:
        """In descending order."""
        ...

    @property
    def vectors(self) -> np.ndarray | None:
        """One a column."""
        ...


def top_eigenvalues(
    kernel: KernelLike,
    count: int,
    *,
    key: Key[Array, ""],
    shape: Shape | None = None,
    steps: int | None = None,
) -> Float[np.ndarray, " c"]:
    """The largest eigenvalues of K in descending order: the largest Ritz values of one Lanczos iteration.

    They converge from below, the outermost first. A repeated eigenvalue is found once: of a kernel
    whose outputs decouple, pass the `[n, n]` kernel, not the product on all outputs.

    Args:
        kernel: Symmetric K, an array or a product.
        count: Number of eigenvalues.
        key: Draws the start.
        shape: Shape of the vectors that a product takes, for instance `(n, k)`.
        steps: Products with K; None for `3 count + 20`.

    Returns:
        At most `count` values, fewer if K has fewer distinct eigenvalues.

    Raises:
        ValueError: If the kernel is not square, symmetric and finite, a product has no shape, or a
            number is below 1.

    Example:
        >>> top_eigenvalues(np.diag([1.0, 5.0, 3.0]), 2, key=jax.random.key(0)).round(9).tolist()
        [5.0, 3.0]
    """
    count = guards.count("count", count)
    steps = 3 * count + 20 if steps is None else guards.count("steps", steps)
    operator = operator_of(kernel, shape, loops=True)
    start = gaussians(key, 1, operator.size)[:, 0]
    values, _ = ritz(operator, start, steps)
    return values[::-1][:count]


def top_eigenpairs(
    kernel: KernelLike,
    count: int,
    *,
    key: Key[Array, ""],
    shape: Shape | None = None,
    steps: int | None = None,
) -> Eigenpairs:
    """The largest eigenvalues of K with their eigenvectors, `K v_i = lambda_i v_i`, and how well that holds.

    As `top_eigenvalues`, with the vectors of the iteration, `steps` of the size of the kernel. The
    vectors of close eigenvalues converge later than the values: look at the residuals beside the
    gaps.

    Args:
        kernel: Symmetric K, an array or a product.
        count: Number of pairs.
        key: Draws the start.
        shape: Shape of the vectors that a product takes, for instance `(n, k)`.
        steps: Products with K; None for `3 count + 20`.

    Raises:
        ValueError: As `top_eigenvalues`.

    Example:
        >>> pairs = top_eigenpairs(np.diag([1.0, 5.0, 3.0]), 1, key=jax.random.key(0))
        >>> np.abs(pairs.vectors[:, 0]).round(6).tolist()
        [0.0, 1.0, 0.0]
    """
    count = guards.count("count", count)
    steps = 3 * count + 20 if steps is None else guards.count("steps", steps)
    operator = operator_of(kernel, shape)
    start = gaussians(key, 1, operator.size)[:, 0]
    # On the host always: the compiled loop keeps no basis.
    diagonal, beside, basis = lanczos_basis(operator.product, start, min(steps, operator.size))
    values, vectors, residuals = ritz_vectors(diagonal, beside)
    chosen = np.argsort(values)[::-1][:count]
    # Fewer than the steps where the Krylov space was exhausted before.
    columns = basis[: len(vectors)].T @ vectors[:, chosen]
    return Eigenpairs(values[chosen], columns, residuals[chosen])


def extend_eigenvectors(
    cross: Float[ArrayLike, "..."] | Callable[[Any], Any],
    pairs: HasEigenvectors,
    count: int | None = None,
    *,
    shape: Shape | None = None,
) -> Float[np.ndarray, "m2 c"]:
    """Eigenvectors at other inputs, `phi_i(x) = K(x, X) v_i / lambda_i` (Nyström), which at X are the `v_i`.

    Args:
        cross: K(x, X), an array `[n2, n]` or `[n2, n, k, k]`, or a product such as
            `ntk_vector_product(apply, params, x, X)`.
        pairs: Eigenpairs of K(X, X): from `top_eigenpairs`, or from
            `diagnostics.kernel_spectrum(kernel, vectors=True)`.
        count: How many of them; None for all.
        shape: Shape of the vectors that a product takes, on the examples X.

    Returns:
        One a column, rows ordered by (example, output).

    Raises:
        ValueError: If an eigenvalue is not above rounding, which would be divided by, there are no
            vectors, or the shapes do not fit.

    Example:
        >>> kernel = np.array([[2.0, 1.0], [1.0, 2.0]])
        >>> pairs = top_eigenpairs(kernel, 2, key=jax.random.key(0))
        >>> np.allclose(extend_eigenvectors(kernel, pairs), pairs.vectors)
        True

    Source: Williams and Seeger (2001), using the Nyström method to speed up kernel machines.
    """
    if pairs.vectors is None:
        raise ValueError("pairs have no vectors: take kernel_spectrum(kernel, vectors=True).")
    count = len(pairs.values) if count is None else guards.count("count", count)
    values = pairs.values[:count]
    vectors = pairs.vectors[:, :count]
    rounding = 1e-12 * float(np.abs(pairs.values).max())
    if not (values > rounding).all():
        kept = int(np.argmin(values > rounding))
        raise ValueError(
            f"count got {count}, expected at most {kept}: the eigenvalue {values[kept]:.3g} beside "
            f"{pairs.values[0]:.3g} is rounding, and an eigenvector at other inputs is divided by it."
        )
    if not callable(cross):
        return blocked_product(cross, vectors) / values
    shape = vector_shape(shape)
    columns = []
    for vector in vectors.T:
        image = cross(jax.numpy.asarray(vector.reshape(shape), jax.numpy.result_type(float)))
        columns.append(guards.numbers("cross", image).astype(np.float64).ravel())
    return np.stack(columns, axis=1) / values
