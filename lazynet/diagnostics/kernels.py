"""Comparisons of kernels with each other and with targets, and their spectra.

Kernels are `[n, n]`, or full empirical kernels `[n, n, k, k]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from lazynet import guards, trees
from lazynet.linalg import eigh, kernel_matrix
from lazynet.trees import is_traced
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


def kernel_distance(
    kernel: Num[ArrayLike, "..."], kernel0: Num[ArrayLike, "..."]
) -> Float[Scalar, ""]:
    """Relative change `|K - K0|_F / |K0|_F`.

    Args:
        kernel: K.
        kernel0: K0.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If the shapes differ, or if they have no entries.

    Example:
        >>> float(kernel_distance(1.5 * jnp.eye(2), jnp.eye(2)))
        0.5

    Source: Chizat, Oyallon and Bach (2019), theorem 2.2, for its rate 1/alpha.
    """
    kernel, kernel0 = _same_shape(kernel=kernel, kernel0=kernel0)
    return trees.norm(kernel - kernel0) / trees.norm(kernel0)


def kernel_cosine_distance(
    kernel: Num[ArrayLike, "..."], kernel0: Num[ArrayLike, "..."]
) -> Float[Scalar, ""]:
    """Rotation of a kernel `1 - <K, K0>_F / (|K|_F |K0|_F)`, blind to its size.

    Computed as `|K/|K| - K0/|K0||^2 / 2`, which keeps its digits when the kernels are close.

    Args:
        kernel: K.
        kernel0: K0.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If the shapes differ, if they have no entries, or if one is zero.

    Example:
        >>> float(kernel_cosine_distance(jnp.diag(jnp.array([1.0, 0.0])), jnp.diag(jnp.array([0.0, 1.0]))))
        1.0

    Source: Fort et al. (2020), where it is called the kernel distance.
    """
    kernel, kernel0 = _same_shape(kernel=kernel, kernel0=kernel0)
    return jnp.sum((_unit("kernel", kernel) - _unit("kernel0", kernel0)) ** 2) / 2


def kernel_velocity(
    kernels: Sequence[Num[ArrayLike, "..."]] | Num[ArrayLike, "..."],
    times: Num[ArrayLike, "..."] | Sequence[float | int],
) -> Float[Array, " pairs"]:
    """Speed of rotation `S(K_i, K_{i+1}) / (t_{i+1} - t_i)`, with S the cosine distance.

    Args:
        kernels: The s kernels of a training run, `[n1, n2]` or `[n1, n2, k, k]`.
        times: Their times.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If there are not as many times as kernels, if the times do not increase, or if
            the kernels have different shapes or are zero.

    Example:
        >>> kernels = [jnp.diag(jnp.array([1.0, 0.0])), jnp.diag(jnp.array([0.0, 1.0]))]
        >>> kernel_velocity(kernels, jnp.array([0.0, 2.0])).tolist()
        [0.5]

    Source: Fort et al. (2020), kernel velocity.
    """
    times = guards.vector("times", times, at_least=0)
    kernels = list(kernels if isinstance(kernels, Sequence) else guards.array("kernels", kernels))
    if len(kernels) != len(times) or len(times) < 2:
        raise ValueError(
            f"{len(kernels)} kernels and {len(times)} times, expected as many of each, at least 2."
        )
    for i, kernel in enumerate(kernels):
        if guards.array(f"kernels[{i}]", kernel).ndim not in (2, 4):
            raise ValueError(
                f"kernels[{i}] has shape {kernel.shape}, expected [n1, n2] or [n1, n2, k, k]."
            )
    elapsed = np.diff(times)
    if not (np.isfinite(times).all() and (elapsed > 0).all()):
        raise ValueError(f"times {times} do not increase: sort the kernels by time.")
    pairs = zip(kernels[:-1], kernels[1:], strict=True)
    distances = jnp.stack([kernel_cosine_distance(after, before) for before, after in pairs])
    return distances / jnp.asarray(elapsed, distances.dtype)


def cka(
    kernel1: Num[ArrayLike, "..."], kernel2: Num[ArrayLike, "..."], *, centered: bool = True
) -> Float[Scalar, ""]:
    """Centered kernel alignment `<H K1 H, H K2 H>_F / (|H K1 H|_F |H K2 H|_F)`, with `H = I - 11'/n`.

    Args:
        kernel1: K1: of features `F F'`, or a tangent kernel.
        kernel2: K2 on the same examples.
        centered: Whether to apply H; without it, this is one minus the cosine distance.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If the kernels are not square, have different shapes or are zero; centered, if
            there is one example or a kernel is constant, so that nothing is left.

    Example:
        >>> x = jnp.array([[0.0], [1.0], [3.0]])
        >>> round(float(cka(x @ x.T, 5.0 * (x + 1.0) @ (x + 1.0).T)), 6)
        1.0

    Source: Kornblith et al. (2019), centered kernel alignment with the linear HSIC.
    """
    kernel1, kernel2 = _same_shape(kernel1=kernel1, kernel2=kernel2)
    for name, kernel in (("kernel1", kernel1), ("kernel2", kernel2)):
        _check_square(name, kernel.shape)
    return _inner(_unit("kernel1", kernel1, centered), _unit("kernel2", kernel2, centered))


def target_alignment(
    kernel: Num[ArrayLike, "..."], y: Num[ArrayLike, "..."], *, centered: bool = False
) -> Float[Scalar, ""]:
    """Kernel-target alignment `<K, y y'>_F / (|K|_F |y y'|_F)`, which is `y'Ky / (|y|^2 |K|_F)` for one output.

    At most 1, reached by K = y y': the larger, the earlier gradient descent fits y. A full kernel
    is compared with the products of all pairs of outputs, an `[n, n]` one with `sum_a y_a y_a'`.

    Args:
        kernel: K, `[n, n]` or `[n, n, k, k]`; `empirical_ntk(..., where=...)` gives that of one
            layer.
        y: Targets, `[n, k]`.
        centered: Whether to subtract means over examples from K (on both sides) and from y, without
            which a constant part of both dominates the alignment of one-hot targets.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If the kernel is not square, if y does not fit it, or if one is zero (constant,
            if centered).

    Example:
        >>> y = jnp.array([[1.0], [-1.0]])
        >>> round(float(target_alignment(y @ y.T, y)), 6), round(float(target_alignment(jnp.eye(2), y)), 6)
        (1.0, 0.707107)

    Source: Cristianini et al. (2001), alignment; Cortes, Mohri and Rostamizadeh (2012), its
    centered form.
    """
    matrix = trees.widened(jnp.asarray(guards.real("kernel", kernel)))
    targets = trees.widened(jnp.asarray(guards.real("y", y)))
    _check_targets(matrix.shape, targets.shape)
    # y y' of centered y is H y y' H: centering y does the same to it as H on both sides.
    matrix = _unit("kernel", matrix, centered)
    targets = _unit("y", targets, centered, axes=(0,))
    if matrix.ndim == 4:
        return jnp.einsum("ijab,ia,jb->", matrix, targets, targets, precision="highest")
    of_targets = jnp.matmul(targets, targets.T, precision="highest")
    return _inner(matrix, of_targets) / trees.norm(of_targets)


class Spectrum(NamedTuple):
    """Eigenvalues of a kernel and what they say about training with it.

    Attributes:
        values: Eigenvalues in descending order; the mode i of full-batch descent decays at the rate
            `values[i] / n`.
        condition: `lambda_max / lambda_min`; infinite if the smallest is zero up to rounding.
        effective_rank: Participation ratio `(sum lambda)^2 / sum lambda^2`, between 1 and the size
            of the kernel.
        label_energy: Fraction `|v_i' y|^2 / |y|^2` of the targets in each mode, same order; None
            without targets.
        vectors: Eigenvectors, one a column in the same order, rows ordered by (example, output);
            None if they were not asked for.

    Example:
        >>> kernel_spectrum(np.eye(3)).effective_rank
        3.0
    """

    values: Float[np.ndarray, " m"]
    condition: float
    effective_rank: float
    label_energy: Float[np.ndarray, " m"] | None
    vectors: Float[np.ndarray, "m m"] | None = None


def kernel_spectrum(
    kernel: Num[ArrayLike, "..."],
    y: Num[ArrayLike, "..."] | None = None,
    *,
    vectors: bool = False,
) -> Spectrum:
    """Eigenvalues `K v_i = lambda_i v_i`, their condition and effective rank, and the energy of targets in the modes.

    Args:
        kernel: K, `[n, n]` or `[n, n, k, k]`, whose eigenvectors have one entry for each example
            and output.
        y: Targets, `[n, k]`.
        vectors: Whether to keep the eigenvectors, which `spectra.extend_eigenvectors` takes to
            other inputs.

    Returns:
        NumPy arrays in float64.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If the kernel is not square, finite and symmetric, if y does not fit, or if one
            of them is zero.

    Example:
        >>> spectrum = kernel_spectrum(np.diag([1.0, 4.0]), np.array([[3.0], [4.0]]))
        >>> spectrum.values.tolist(), spectrum.condition, spectrum.label_energy.round(2).tolist()
        ([4.0, 1.0], 4.0, [0.64, 0.36])
    """
    _check_square("kernel", guards.real("kernel", kernel).shape)
    if y is not None:
        _check_targets(kernel.shape, guards.real("y", y).shape)
        guards.finite("y", y)
    keep = guards.flag("vectors", vectors)
    is_floating = jnp.issubdtype(kernel.dtype, jnp.floating)
    # Whole numbers are exact in float64, which JAX may not have.
    exact = kernel if is_floating else np.asarray(kernel, np.float64)
    values, modes, tolerance = eigh(kernel_matrix(exact))
    values = values[::-1]
    modes = modes[:, ::-1]
    largest = np.abs(values).max()
    if largest == 0:
        raise ValueError("kernel is zero, expected one with a spectrum.")
    condition = float(values[0] / values[-1]) if values[-1] > tolerance else math.inf
    # Ratios, because the squares of eigenvalues can leave the range of float64.
    relative = values / largest
    effective_rank = float(relative.sum() ** 2 / (relative**2).sum())
    energy = None if y is None else _label_energy(modes, y, kernel.ndim)
    return Spectrum(values, condition, effective_rank, energy, modes if keep else None)


def _label_energy(vectors: np.ndarray, y: ArrayLike, ndim: int) -> np.ndarray:
    # Modes of a full kernel have an entry for each (example, output): y is one column.
    targets = np.asarray(y, np.float64).reshape(-1, 1) if ndim == 4 else np.asarray(y, np.float64)
    largest = np.abs(targets).max()
    if largest == 0:
        raise ValueError("y is zero, expected targets with an energy.")
    targets = targets / largest
    return ((vectors.T @ targets) ** 2).sum(1) / (targets**2).sum()


def _unit(
    name: str, values: Array, centered: bool = False, axes: tuple[int, ...] = (0, 1)
) -> Array:
    """`A / |A|_F`, of A without its means over the axes if centered; refused where only rounding is left of A."""
    # A power of two changes no digit, and squares stay in the range of the dtype.
    values = values / trees.power_of_two(values)
    rest = values
    for axis in axes if centered else ():
        rest = rest - jnp.mean(rest, axis=axis, keepdims=True)
    size = trees.norm(rest)
    # Of a constant, centering leaves the rounding of its mean.
    rounding = 10 * float(jnp.finfo(values.dtype).eps) * trees.norm(values) if centered else 0.0
    if not is_traced(size) and size <= rounding:
        what = "constant over the examples: centered, nothing is left of it" if centered else "zero"
        raise ValueError(f"{name} is {what}, expected one that varies.")
    return rest / size


def _inner(a: ArrayLike, b: ArrayLike) -> Array:
    return jnp.vdot(jnp.ravel(a), jnp.ravel(b), precision="highest")


def _same_shape(**kernels: ArrayLike) -> list[Array]:
    """The two kernels as floating point on the device, float32 at least."""
    arrays = [jnp.asarray(guards.real(name, kernel)) for name, kernel in kernels.items()]
    found = trees.widened(arrays)
    shapes = [kernel.shape for kernel in found]
    if shapes[0] != shapes[1] or 0 in shapes[0]:
        raise ValueError(
            f"kernels of shapes {shapes[0]} and {shapes[1]}, expected the same, not empty: take both on the "
            "same examples and with the same outputs."
        )
    return found


def _check_square(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 4) or shape[0] != shape[1] or shape[2:3] != shape[3:] or 0 in shape:
        raise ValueError(
            f"{name} has shape {shape}, expected [n, n] or [n, n, k, k] of the same examples."
        )


def _check_targets(kernel: tuple[int, ...], y: tuple[int, ...]) -> None:
    _check_square("kernel", kernel)
    if len(y) != 2 or y[0] != kernel[0] or y[1] == 0 or (len(kernel) == 4 and y[1] != kernel[2]):
        raise ValueError(
            f"kernel of shape {kernel} with targets of shape {y}, expected [n, n] or [n, n, k, k] with [n, k]."
        )
