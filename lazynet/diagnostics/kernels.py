"""Comparisons of kernels with each other and with targets, and their spectra.

Kernels are `[n, n]`, or full empirical kernels `[n, n, k, k]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lazynet.linalg import eigh, kernel_matrix
from lazynet.typing import Array, ArrayLike, Scalar

__all__ = [
    "Spectrum",
    "cka",
    "kernel_cosine_distance",
    "kernel_distance",
    "kernel_spectrum",
    "kernel_velocity",
    "target_alignment",
]


def kernel_distance(kernel: Float[ArrayLike, "..."], kernel0: Float[ArrayLike, "..."]) -> Float[Scalar, ""]:
    """Relative change `|K - K0|_F / |K0|_F`.

    Args:
        kernel: K.
        kernel0: K0.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> float(kernel_distance(1.5 * jnp.eye(2), jnp.eye(2)))
        0.5

    Source: Chizat, Oyallon and Bach (2019), theorem 2.2, for its rate 1/alpha.
    """
    _check_same_shape(kernel, kernel0)
    return _norm(jnp.asarray(kernel) - jnp.asarray(kernel0)) / _norm(kernel0)


def kernel_cosine_distance(kernel: Float[ArrayLike, "..."], kernel0: Float[ArrayLike, "..."]) -> Float[Scalar, ""]:
    """Rotation of a kernel `1 - <K, K0>_F / (|K|_F |K0|_F)`, blind to its size.

    Computed as `|K/|K| - K0/|K0||^2 / 2`, which keeps its digits when the kernels are close.

    Args:
        kernel: K.
        kernel0: K0.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> float(kernel_cosine_distance(jnp.diag(jnp.array([1.0, 0.0])), jnp.diag(jnp.array([0.0, 1.0]))))
        1.0

    Source: Fort et al. (2020), where it is called the kernel distance.
    """
    _check_same_shape(kernel, kernel0)
    return jnp.sum((kernel / _norm(kernel) - kernel0 / _norm(kernel0)) ** 2) / 2


def kernel_velocity(
    kernels: Sequence[Float[ArrayLike, "..."]] | Float[ArrayLike, "..."], times: Float[ArrayLike, " s"]
) -> Float[Array, " s-1"]:
    """Speed of rotation `S(K_i, K_{i+1}) / (t_{i+1} - t_i)`, with S the cosine distance.

    Args:
        kernels: The s kernels of a training run.
        times: Their times.

    Raises:
        ValueError: If there are not as many times as kernels, or if the times do not increase.

    Example:
        >>> kernels = [jnp.diag(jnp.array([1.0, 0.0])), jnp.diag(jnp.array([0.0, 1.0]))]
        >>> kernel_velocity(kernels, jnp.array([0.0, 2.0])).tolist()
        [0.5]

    Source: Fort et al. (2020), kernel velocity.
    """
    if len(kernels) != len(times) or len(times) < 2:
        raise ValueError(f"{len(kernels)} kernels and {len(times)} times, expected as many of each, at least 2.")
    elapsed = np.diff(np.asarray(times))
    if not (elapsed > 0).all():
        raise ValueError(f"times {np.asarray(times)} do not increase: sort the kernels by time.")
    pairs = zip(kernels[:-1], kernels[1:], strict=True)
    distances = jnp.stack([kernel_cosine_distance(after, before) for before, after in pairs])
    return distances / jnp.asarray(elapsed, distances.dtype)


def cka(
    kernel1: Float[ArrayLike, "n n *k"], kernel2: Float[ArrayLike, "n n *k"], *, centered: bool = True
) -> Float[Scalar, ""]:
    """Centered kernel alignment `<H K1 H, H K2 H>_F / (|H K1 H|_F |H K2 H|_F)`, with `H = I - 11'/n`.

    Args:
        kernel1: K1: of features `F F'`, or a tangent kernel.
        kernel2: K2 on the same examples.
        centered: Whether to apply H; without it, this is one minus the cosine distance.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [3.0]])
        >>> round(float(cka(x @ x.T, 5.0 * (x + 1.0) @ (x + 1.0).T)), 6)
        1.0

    Source: Kornblith et al. (2019), centered kernel alignment with the linear HSIC.
    """
    _check_same_shape(kernel1, kernel2)
    a, b = (_centered(kernel) if centered else jnp.asarray(kernel) for kernel in (kernel1, kernel2))
    return _inner(a, b) / (_norm(a) * _norm(b))


def target_alignment(
    kernel: Float[ArrayLike, "n n *kk"], y: Float[ArrayLike, "..."], *, centered: bool = False
) -> Float[Scalar, ""]:
    """Kernel-target alignment `<K, y y'>_F / (|K|_F |y y'|_F)`, which is `y'Ky / (|y|^2 |K|_F)` for one output.

    At most 1, reached by K = y y': the larger, the earlier gradient descent fits y. A full kernel is compared with the
    products of all pairs of outputs, an `[n, n]` one with `sum_a y_a y_a'`.

    Args:
        kernel: K, `[n, n]` or `[n, n, k, k]`; `empirical_ntk(..., where=...)` gives that of one layer.
        y: Targets, `[n, k]`.
        centered: Whether to subtract means over examples from K (on both sides) and from y, without which a constant
            part of both dominates the alignment of one-hot targets.

    Raises:
        ValueError: If y does not fit the kernel.

    Example:
        >>> y = jnp.array([[1.0], [-1.0]])
        >>> round(float(target_alignment(y @ y.T, y)), 6), round(float(target_alignment(jnp.eye(2), y)), 6)
        (1.0, 0.707107)

    Source: Cristianini et al. (2001), alignment; Cortes, Mohri and Rostamizadeh (2012), its centered form.
    """
    if kernel.ndim not in (2, 4) or y.ndim != 2 or kernel.shape[1::2] not in ((len(y),), y.shape):
        raise ValueError(
            f"kernel of shape {kernel.shape} with targets of shape {y.shape}, expected [n, n] or "
            "[n, n, k, k] with [n, k]."
        )
    if centered:
        kernel, y = _centered(kernel), y - jnp.mean(y, axis=0, keepdims=True)
    if kernel.ndim == 4:
        return jnp.einsum("ijab,ia,jb->", kernel, y, y, precision="highest") / (_norm(kernel) * _norm(y) ** 2)
    of_targets = jnp.matmul(y, y.T, precision="highest")
    return _inner(kernel, of_targets) / (_norm(kernel) * _norm(of_targets))


class Spectrum(NamedTuple):
    """Eigenvalues of a kernel and what they say about training with it.

    Attributes:
        values: Eigenvalues in descending order; the mode i of full-batch descent decays at the rate `values[i] / n`.
        condition: `lambda_max / lambda_min`; infinite if the smallest is zero up to rounding.
        effective_rank: Participation ratio `(sum lambda)^2 / sum lambda^2`, between 1 and the size of the kernel.
        label_energy: Fraction `|v_i' y|^2 / |y|^2` of the targets in each mode, same order; None without targets.

    Example:
        >>> kernel_spectrum(np.eye(3)).effective_rank
        3.0
    """

    values: Float[np.ndarray, " m"]
    condition: float
    effective_rank: float
    label_energy: Float[np.ndarray, " m"] | None


def kernel_spectrum(kernel: Float[ArrayLike, "n n *kk"], y: Float[ArrayLike, "..."] | None = None) -> Spectrum:
    """Eigenvalues `K v_i = lambda_i v_i`, their condition and effective rank, and the energy of targets in the modes.

    Args:
        kernel: K, `[n, n]` or `[n, n, k, k]`, whose eigenvectors have one entry for each example and output.
        y: Targets, `[n, k]`.

    Returns:
        NumPy arrays in float64.

    Raises:
        ValueError: If the kernel is not square, finite and symmetric, or if y does not fit.

    Example:
        >>> spectrum = kernel_spectrum(np.diag([1.0, 4.0]), np.array([[3.0], [4.0]]))
        >>> spectrum.values.tolist(), spectrum.condition, spectrum.label_energy.round(2).tolist()
        ([4.0, 1.0], 4.0, [0.64, 0.36])
    """
    values, vectors, tolerance = eigh(kernel_matrix(kernel))
    values, vectors = values[::-1], vectors[:, ::-1]
    condition = float(values[0] / values[-1]) if values[-1] > tolerance else math.inf
    effective_rank = float(values.sum() ** 2 / (values**2).sum())
    return Spectrum(values, condition, effective_rank, None if y is None else _label_energy(vectors, y, kernel.shape))


def _label_energy(vectors: np.ndarray, y: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    targets = np.asarray(y, np.float64).reshape(-1, 1) if len(shape) == 4 else np.asarray(y, np.float64)
    if len(targets) != len(vectors):
        raise ValueError(
            f"kernel of shape {shape} with targets of shape {y.shape}, expected [n, n] or [n, n, k, k] with [n, k]."
        )
    return ((vectors.T @ targets) ** 2).sum(1) / (targets**2).sum()


def _centered(kernel: ArrayLike) -> Array:
    rows, columns = jnp.mean(kernel, axis=0, keepdims=True), jnp.mean(kernel, axis=1, keepdims=True)
    return jnp.asarray(kernel) - rows - columns + jnp.mean(rows, axis=1, keepdims=True)


def _inner(a: ArrayLike, b: ArrayLike) -> Array:
    return jnp.vdot(jnp.ravel(a), jnp.ravel(b), precision="highest")


def _norm(a: ArrayLike) -> Array:
    return jnp.linalg.norm(jnp.ravel(a))


def _check_same_shape(kernel: ArrayLike, kernel0: ArrayLike) -> None:
    if kernel.shape != kernel0.shape:
        raise ValueError(
            f"kernels of shapes {kernel.shape} and {kernel0.shape}, expected the same: take both on the "
            "same examples and with the same outputs."
        )
