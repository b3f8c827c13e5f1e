"""Numbers of one kernel that follow from its trace, its Frobenius norm and single products."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.kernels.spectra.errors import nonzero
from lazynet.kernels.spectra.one_sided import OneSided
from lazynet.kernels.spectra.operators import (
    KernelLike,
    Shape,
    matrix_of,
)
from lazynet.kernels.spectra.records import Estimate
from lazynet.kernels.spectra.sketches import Sketch, sketch
from lazynet.linalg import power_of_two
from lazynet.typing import Array, ArrayLike, Key

Sketched = KernelLike | Sketch | OneSided
"""A kernel, or what was made of its products already."""


def trace(
    kernel: Sketched,
    *,
    key: Key[Array, ""] | None = None,
    shape: Shape | None = None,
    probes: int = 30,
) -> Estimate:
    """Trace `tr K`: exact on a random subspace, the mean of `g' K g` over vectors g in its complement (Hutch++).

    Tangent kernels have a few eigenvalues that carry most of the trace; the subspace takes them out
    of the variance, which Hutchinson's plain estimator suffers from. The trace of an array is the
    sum of its diagonal.

    Args:
        kernel: Symmetric K, an array, a product, or a sketch of one.
        key: Draws the vectors; of a sketch they are drawn.
        shape: Shape of the vectors that a product takes.
        probes: Products with K, at least 6: half of them for the subspace.

    Raises:
        ValueError: If the kernel is not square, symmetric and finite, a product has no shape or no
            key, or probes is below 6.

    Example:
        >>> import jax
        >>> round(trace(lambda v: v.sum() * np.ones(50), key=jax.random.key(0), shape=(50,)).value, 4)
        50.0

    Source: Meyer, Musco, Musco and Woodruff (2021), Hutch++: optimal stochastic trace estimation.
    """
    probes = guards.count("probes", probes, at_least=6)
    if not callable(kernel) and not isinstance(kernel, Sketch | OneSided):
        return Estimate(float(np.sum(np.diagonal(matrix_of(kernel)), dtype=np.float64)), 0.0)
    parts = sketched(kernel, key, shape, probes)
    return parts.moments(1, lambda trace, square: trace)


def frobenius_norm(
    kernel: Sketched,
    *,
    key: Key[Array, ""] | None = None,
    shape: Shape | None = None,
    probes: int = 30,
) -> Estimate:
    """Frobenius norm `|K|_F = (tr K^2)^{1/2}`, from `|K Q|_F^2` on a subspace and `mean |K g|^2` outside of it.

    Products add: `lambda v: product(v) - product0(v)` is the difference of two kernels.

    Args:
        kernel: Symmetric K, an array, a product, or a sketch of one.
        key: Draws the vectors; of a sketch they are drawn.
        shape: Shape of the vectors that a product takes.
        probes: Products with K, at least 6.

    Raises:
        ValueError: As `trace`.

    Example:
        >>> import jax
        >>> value, error = frobenius_norm(np.diag([3.0, 4.0]), key=jax.random.key(0))
        >>> round(value, 9), error
        (5.0, 0.0)
    """
    parts = sketched(kernel, key, shape, probes)
    return parts.moments(1, lambda trace, square: np.sqrt(square))


def effective_rank(
    kernel: Sketched,
    *,
    key: Key[Array, ""] | None = None,
    shape: Shape | None = None,
    probes: int = 30,
) -> Estimate:
    """Participation ratio `(tr K)^2 / tr K^2`, between 1 and the rank: `effective_rank` of `kernel_spectrum`.

    Args:
        kernel: Symmetric positive semi-definite K, an array, a product, or a sketch of one.
        key: Draws the vectors; of a sketch they are drawn.
        shape: Shape of the vectors that a product takes.
        probes: Products with K, at least 6.

    Raises:
        ValueError: As `trace`, or if the kernel is zero.

    Example:
        >>> import jax
        >>> round(effective_rank(np.eye(3), key=jax.random.key(0)).value, 9)
        3.0
    """
    parts = sketched(kernel, key, shape, probes)
    return parts.moments(0, lambda trace, square: trace**2 / nonzero(square))


def target_alignment(
    kernel: Sketched,
    y: Float[ArrayLike, "n k"],
    *,
    key: Key[Array, ""] | None = None,
    shape: Shape | None = None,
    probes: int = 30,
    centered: bool = False,
) -> Estimate:
    """Kernel-target alignment `<K, y y'>_F / (|K|_F |y y'|_F)`, `diagnostics.target_alignment` without the matrix.

    The numerator is exact, by one product for the targets, or one for each output where outputs
    decouple.

    Args:
        kernel: Symmetric K, an array, a product, or a sketch of one. A product on all outputs is
            compared with the products of all pairs of outputs, one on `[n]` with `sum_a y_a y_a'`.
        y: Targets, `[n, k]`.
        key: Draws the vectors; of a sketch they are drawn.
        shape: Shape of the vectors that a product takes.
        probes: Products with K for its norm, at least 6.
        centered: Whether to subtract means over examples from K, on both sides, and from y.

    Raises:
        ValueError: As `trace`, if y does not fit the kernel, if one is zero (constant, if
            centered), or if a sketch is centered and `centered` is not, or the reverse.

    Example:
        >>> import jax
        >>> y = np.array([[1.0], [-1.0]])
        >>> round(target_alignment(np.eye(2), y, key=jax.random.key(0)).value, 6)
        0.707107
    """
    if not isinstance(kernel, Sketch | OneSided):
        parts = sketched(kernel, key, shape, probes, centered)
    else:
        parts = kernel
    if parts.centered != centered:
        raise ValueError(
            f"centered got {centered}, expected {parts.centered} as in the sketch: make another one for it."
        )
    columns, size = _targets(y, *parts.layout(), centered)
    return parts.alignment(columns, size)


def diagonal(
    kernel: Sketched,
    *,
    key: Key[Array, ""] | None = None,
    shape: Shape | None = None,
    probes: int = 30,
) -> Estimate:
    """The diagonal `K_ii`, one for each example and output: the squared norms of gradients of a tangent kernel.

    Exact on a random subspace; outside of it, each entry is the slope of `(K g)_i` against `g_i`,
    of which all other entries of the row are the noise: with many examples that is more than the
    entry, and of a tangent kernel `forward_sketch` gives every entry with the relative error
    `sqrt(2 / probes)`. The diagonal of an array is read.

    Args:
        kernel: Symmetric K, an array, a product, or a sketch of one.
        key: Draws the vectors; of a sketch they are drawn.
        shape: Shape of the vectors that a product takes.
        probes: Products with K, at least 6. The error of an entry is that of a regression with
            `probes / 2 - 1` degrees of freedom.

    Returns:
        Arrays `[m]`, ordered by (example, output).

    Raises:
        ValueError: As `trace`, or for products with J' alone, which see no single entry.

    Example:
        >>> diagonal(np.diag([3.0, 4.0])).value.tolist()
        [3.0, 4.0]

    Source: Bekas, Kokiopoulou and Saad (2007), an estimator for the diagonal of a matrix.
    """
    if not callable(kernel) and not isinstance(kernel, Sketch | OneSided):
        entries = np.diagonal(matrix_of(kernel)).astype(np.float64)
        return Estimate(entries, np.zeros_like(entries))
    return sketched(kernel, key, shape, probes).diagonal()


def sketched(
    kernel: Sketched, key: Any, shape: Any, probes: int, centered: bool = False
) -> Sketch | OneSided:
    """The sketch, made if it is not there."""
    if isinstance(kernel, Sketch | OneSided):
        return kernel
    if key is None:
        raise ValueError(
            "key got None, expected a random key: only a sketch, and the trace and diagonal of an array, need none."
        )
    return sketch(kernel, key=key, shape=shape, probes=probes, centered=centered)


def _targets(
    y: Any, size: int, examples: int, centered: bool
) -> tuple[Float[np.ndarray, "m c"], float]:
    """Targets as columns that the kernel acts on, of a size around one, and `|Y Y'|_F`."""
    targets = np.asarray(guards.numbers("y", y), np.float64)
    guards.finite("y", targets)
    if targets.ndim != 2 or len(targets) != examples or size not in (targets.size, examples):
        raise ValueError(
            f"y of shape {targets.shape} with a kernel of {size} rows for {examples} examples, expected [n, k] with as "
            "many rows as examples: outputs of the kernel, or any number where it has one."
        )
    # The alignment does not depend on their scale, and fourth powers may overflow.
    targets = targets / power_of_two(np.abs(targets).max())
    size_before = np.linalg.norm(targets)
    if centered:
        targets = targets - targets.mean(axis=0)
    if np.linalg.norm(targets) <= 1e-14 * size_before:
        raise ValueError("y is zero, or constant over the examples, expected targets that vary.")
    columns = targets.reshape(size, -1)
    # `|Y Y'|_F = |Y' Y|_F`, of which the second is small.
    return columns, float(np.linalg.norm(columns.T @ columns))
