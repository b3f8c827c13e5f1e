"""Spectra of kernels that are too large to decompose, or even to form: all that is needed is the product `v -> K v`.

A kernel is a symmetric matrix (an array, which may be memory-mapped) or a function of vectors of a
given shape, such as that of `empirical.ntk_vector_product`. Everything rests on Lanczos'
tridiagonalization with full orthogonalization. It is matfree's where its compiled loop is fast: for
arrays on the device, and for functions that JAX can trace. Convolutions are an order of magnitude
slower inside a compiled loop on a CPU, and arrays of NumPy would have to be copied to the device;
for these the same recursion runs on the host in float64, around one product at a time.

Random vectors make the estimates random: each comes with its standard error. For kernels that fit
in memory, `diagnostics.kernel_spectrum` is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax.tree_util import Partial
from jaxtyping import Float

from lazynet import guards
from lazynet.linalg import (
    blocked_product,
    check_symmetric,
    kernel_matrix,
    lanczos,
    power_of_two,
    ritz_values,
)
from lazynet.programs import PerFunction
from lazynet.trees import as_partial
from lazynet.typing import Array, ArrayLike, Key

__all__ = [
    "Estimate",
    "SpectralDensity",
    "effective_dimension",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]

KernelLike = Float[ArrayLike, "..."] | Callable[[Any], Any]
Shape = tuple[int, ...]


class Estimate(NamedTuple):
    """A random estimate and its standard deviation over keys, itself estimated.

    Attributes:
        value: Unbiased estimate.
        standard_error: Standard error of the value; 0 where it is exact.

    Example:
        >>> Estimate(value=3.0, standard_error=0.0).value
        3.0
    """

    value: Any
    standard_error: Any


class SpectralDensity(NamedTuple):
    """Distribution of the eigenvalues of a kernel, each with the weight 1/m, m their number.

    Attributes:
        nodes: Ritz values of each random vector: eigenvalues, where the spectrum is sparse, or
            points between them.
        weights: Their weights; those of a vector add up to 1, and `sum_i weights f(nodes)`
            estimates `tr f(K) / m`.
        eigenvalues: Evenly spaced in the logarithm, from the smallest positive node to the largest.
        density: Fraction of eigenvalues per decade around `eigenvalues`, smoothed.

    Example:
        >>> SpectralDensity(np.ones((1, 1)), np.ones((1, 1)), np.ones(1), np.ones(1)).weights.sum()
        np.float64(1.0)
    """

    nodes: Float[np.ndarray, "p s"]
    weights: Float[np.ndarray, "p s"]
    eigenvalues: Float[np.ndarray, " g"]
    density: Float[np.ndarray, " g"]


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
    operator = _operator(kernel, shape)
    start = np.asarray(guards.numbers("key", jax.random.normal(key, (operator.size,))), np.float64)
    values, _ = _ritz(operator, start, steps)
    return values[::-1][:count]


def trace(
    kernel: KernelLike, *, key: Key[Array, ""], shape: Shape | None = None, probes: int = 30
) -> Estimate:
    """Trace `tr K` of a product by Hutch++: exact on a random subspace, `mean g' K g` over signs g in its complement.

    Tangent kernels have a few eigenvalues that carry most of the trace; the subspace takes them out
    of the variance, which Hutchinson's plain estimator suffers from. The trace of an array is the
    sum of its diagonal.

    Args:
        kernel: Symmetric K, an array or a product.
        key: Draws the subspace and the signs.
        shape: Shape of the vectors that a product takes.
        probes: Products with K, at least 6: a third each for the subspace, the trace on it, and the
            complement.

    Raises:
        ValueError: If the kernel is not square, symmetric and finite, a product has no shape, or
            probes is below 6.

    Example:
        >>> round(trace(lambda v: v.sum() * jnp.ones(50), key=jax.random.key(0), shape=(50,)).value, 6)
        50.0

    Source: Meyer, Musco, Musco and Woodruff (2021), Hutch++: optimal stochastic trace estimation.
    """
    probes = guards.count("probes", probes, at_least=6)
    operator = _operator(kernel, shape)
    if operator.matrix is not None:
        return Estimate(float(np.sum(np.diagonal(operator.matrix), dtype=np.float64)), 0.0)
    for_basis, for_signs = jax.random.split(key)
    basis, _ = np.linalg.qr(
        _products(operator, _signs(for_basis, min(probes // 3, operator.size), operator.size))
    )
    inside = np.sum(basis * _products(operator, basis))
    signs = _signs(for_signs, probes - 2 * (probes // 3), operator.size)
    outside = signs - basis @ (basis.T @ signs)
    return _mean(inside + np.sum(outside * _products(operator, outside), axis=0))


def spectral_density(
    kernel: KernelLike,
    *,
    key: Key[Array, ""],
    shape: Shape | None = None,
    steps: int = 40,
    probes: int = 10,
    width: float = 0.1,
    points: int = 200,
) -> SpectralDensity:
    """Density of eigenvalues `rho(x) = 1/m sum_i delta(x - lambda_i)` by stochastic Lanczos quadrature.

    Each random vector gives a quadrature rule: its Ritz values, weighted by their squared overlaps
    with the vector. The density is that of the logarithm to base 10, since tangent kernels span
    many decades; nodes that are not positive count at the smallest positive one.

    Args:
        kernel: Symmetric positive semi-definite K, an array or a product.
        key: Draws the vectors.
        shape: Shape of the vectors that a product takes.
        steps: Products with K for each vector: as many nodes.
        probes: Number of vectors.
        width: Standard deviation of the smoothing Gaussian, in decades.
        points: Number of points of the density.

    Raises:
        ValueError: If the kernel is not square, symmetric and finite, a product has no shape, or a
            number is below 1.

    Example:
        >>> density = spectral_density(np.diag([1.0, 1.0, 100.0, 100.0]), key=jax.random.key(0))
        >>> density.nodes[0].round(6).tolist(), density.weights[0].round(6).tolist()
        ([1.0, 100.0], [0.5, 0.5])

    Source: Lin, Saad and Yang (2016), approximating spectral densities of large matrices.
    """
    steps = guards.count("steps", steps)
    probes = guards.count("probes", probes)
    points = guards.count("points", points)
    width = guards.number("width", width, above=0, fix="it counts decades")
    nodes, weights = _quadratures(_operator(kernel, shape), key, steps, probes)
    smallest = nodes[nodes > 1e-15 * nodes.max()].min(initial=nodes.max())
    logarithms = np.log10(np.maximum(nodes, smallest))
    grid = np.linspace(logarithms.min() - 3 * width, logarithms.max() + 3 * width, points)
    bumps = np.exp(-(((grid[:, None, None] - logarithms) / width) ** 2) / 2) / (
        np.sqrt(2 * np.pi) * width
    )
    return SpectralDensity(
        nodes, weights, 10**grid, np.einsum("gps,ps->g", bumps, weights) / len(weights)
    )


def effective_dimension(
    kernel: KernelLike,
    ridge: float | int | Float[ArrayLike, " r"],
    *,
    key: Key[Array, ""],
    shape: Shape | None = None,
    steps: int = 40,
    probes: int = 10,
) -> Estimate:
    """Effective dimension `tr K (K + ridge I)^{-1}`: how many directions a kernel regression with this ridge fits.

    By stochastic Lanczos quadrature; one run serves all ridges. Its Gauss rule is an upper bound,
    the Gauss-Radau rule with a node at zero a lower one: the value is between them, and half their
    distance is added to the standard error. The smaller the ridge beside the largest eigenvalue,
    the more steps it takes until that is negligible.

    Args:
        kernel: Symmetric positive semi-definite K, an array or a product.
        ridge: One ridge or an axis of ridges, all > 0.
        key: Draws the vectors.
        shape: Shape of the vectors that a product takes.
        steps: Products with K for each vector.
        probes: Number of vectors, at least 2 for a standard error.

    Returns:
        The value, and its standard error over keys plus the bound of the error of the quadrature.

    Raises:
        ValueError: If the kernel is not square, symmetric and finite, a product has no shape, or a
            number is out of range.

    Example:
        >>> value, error = effective_dimension(np.diag([9.0, 9.0, 0.0]), 1.0, key=jax.random.key(0))
        >>> round(value, 6), round(error, 6)
        (1.8, 0.0)

    Source: Golub and Meurant (2010), Matrices, moments and quadrature, section 6.2, for the bounds.
    """
    steps = guards.count("steps", steps)
    probes = guards.count("probes", probes, at_least=2)
    ridges = guards.numbers("ridge", ridge)
    if not ridges.size:
        raise ValueError(
            f"ridge of shape {ridges.shape}, expected one number or an axis of them, not empty."
        )
    for value in ridges.ravel():
        guards.number(
            "ridge", value, above=0, fix="without one the effective dimension is the rank"
        )
    ridges = np.asarray(ridges, np.float64)
    operator = _operator(kernel, shape)
    bounds = []
    for signs in _signs(key, probes, operator.size).T:
        rule = _tridiagonal(operator, signs, steps)
        bounds.append(
            [
                _fitted(ritz_values(*each), ridges)
                for each in (rule, _with_node_at_zero(operator, *rule))
            ]
        )
    upper, lower = operator.size * np.swapaxes(bounds, 0, 1)
    value, error = _mean((upper + lower) / 2, ridges.shape)
    gap = np.abs(upper - lower).mean(axis=0).reshape(ridges.shape) / 2
    return Estimate(value, error + (gap if ridges.ndim else float(gap)))


def _fitted(rule, ridges):
    """`sum_i weights nodes / (nodes + ridge)` of a quadrature rule, for each ridge."""
    nodes = np.maximum(rule[0], 0.0)[:, None]
    weights = rule[1][:, None]
    return np.sum(weights * nodes / (nodes + ridges.ravel()), axis=0)


def _with_node_at_zero(operator, diagonal, beside):
    """Lanczos' matrix with its last entry such that zero, or what is below all Ritz values, is an eigenvalue.

    `a + b^2 e' (T - a)^{-1} e`, T the matrix without its last row and column, b the entry beside. A
    recursion that has exhausted its space is exact as it is.
    """
    values, _ = ritz_values(diagonal, beside)
    if len(values) < len(diagonal) or len(values) == operator.size:
        return diagonal, beside
    node = np.zeros_like(diagonal)
    node[:-1] = diagonal[:-1]
    if len(diagonal) > 1:
        scale = power_of_two(np.abs(diagonal).max())
        inner, vectors = scipy.linalg.eigh_tridiagonal(diagonal[:-1] / scale, beside[:-1] / scale)
        lowest = min(0.0, 2 * inner[0]) - np.finfo(np.float64).eps
        node[-1] = scale * (
            lowest + (beside[-1] / scale) ** 2 * np.sum(vectors[-1] ** 2 / (inner - lowest))
        )
    return node, beside


class _Operator(NamedTuple):
    """A symmetric matrix of the given size, as a product of flat float64 vectors on the host.

    `compiled` is a product of flat vectors for matfree's compiled loop, None where that does not
    work or is slow.
    """

    size: int
    product: Callable[[np.ndarray], np.ndarray]
    compiled: Partial | None
    matrix: np.ndarray | None


def _operator(kernel, shape) -> _Operator:
    if callable(kernel):
        return _operator_of_product(kernel, shape)
    guards.concrete("spectra of a kernel", kernel)
    matrix = kernel_matrix(kernel)
    check_symmetric(matrix)
    compiled = Partial(_times, jnp.asarray(matrix)) if isinstance(kernel, jax.Array) else None
    return _Operator(
        len(matrix), lambda v: blocked_product(matrix, v[:, None])[:, 0], compiled, matrix
    )


def _operator_of_product(kernel, shape) -> _Operator:
    if shape is None:
        raise ValueError(
            "kernel is a product without shape, expected that of the vectors it takes, for instance (n, k)."
        )
    shape = tuple(
        guards.count("shape", size) for size in ([shape] if isinstance(shape, int) else shape)
    )

    def product(v):
        image = kernel(jnp.asarray(v.reshape(shape), jnp.result_type(float)))
        guards.concrete("spectra of a product", image)
        image = np.asarray(image, np.float64).ravel()
        if image.shape != v.shape or not np.isfinite(image).all():
            raise ValueError(
                f"kernel times a vector of shape {shape} has {image.size} entries, {np.sum(~np.isfinite(image))} of "
                f"them not finite, expected {v.size} finite ones: check the shape, the parameters and the inputs."
            )
        return image

    compiled = Partial(_Flat(shape), as_partial(kernel)) if _loops_fast(kernel, shape) else None
    return _Operator(int(np.prod(shape)), product, compiled, None)


@dataclasses.dataclass(frozen=True)
class _Flat:
    """A product of vectors of a shape as one of flat vectors; equal shapes compare equal and share compilations."""

    shape: Shape

    def __call__(self, product, v):
        return product(v.reshape(self.shape)).ravel().astype(v.dtype)


def _times(matrix, v):
    return jnp.matmul(matrix, v.astype(matrix.dtype), precision="highest").astype(v.dtype)


def _loops_fast(kernel, shape) -> bool:
    """Whether JAX can trace the product and compile it inside a loop without loss."""
    try:
        program = str(jax.make_jaxpr(kernel)(jax.ShapeDtypeStruct(shape, jnp.result_type(float))))
    except jax.errors.JAXTypeError:
        return False
    return jax.default_backend() != "cpu" or "conv_general_dilated" not in program


def _ritz(operator: _Operator, start, steps):
    """Ritz values in ascending order, and their squared overlaps with the start."""
    return ritz_values(*_tridiagonal(operator, start, steps))


def _tridiagonal(operator: _Operator, start, steps):
    """Lanczos' matrix, its diagonal and the entries beside it."""
    steps = min(steps, operator.size)
    if operator.compiled is None:
        return lanczos(operator.product, start, steps)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        parts = _matfree_tridiagonal(
            operator.compiled, jnp.asarray(start, jnp.result_type(float)), steps
        )
    diagonal, beside, scale = (np.asarray(part, np.float64) for part in parts)
    return diagonal * scale, beside * scale


@partial(PerFunction, static_argnames="steps")
def _matfree_tridiagonal(product, start, steps):
    """Lanczos' matrix of the product divided by a power of two, without which float32 overflows at 1e19."""
    from matfree import decomp

    start = start / jnp.linalg.norm(start)
    first = jnp.max(jnp.abs(product(start)))
    is_number = jnp.isfinite(first) & (first > 0)
    scale = jnp.ldexp(jnp.ones_like(first), jnp.frexp(jnp.where(is_number, first, 0.5))[1])
    iterate = decomp.tridiag_sym(steps, materialize=False)
    diagonal, beside = iterate(lambda v, f: f(v) / scale, start, product).J_small
    return diagonal, beside, scale


def _quadratures(operator: _Operator, key, steps, probes):
    """Nodes and weights of each random vector, `[p, s]`, filled up with weight 0 to the same number of nodes."""
    rules = [_ritz(operator, signs, steps) for signs in _signs(key, probes, operator.size).T]
    longest = max(len(values) for values, _ in rules)
    nodes = [np.pad(values, (0, longest - len(values)), "edge") for values, _ in rules]
    weights = [np.pad(overlaps, (0, longest - len(overlaps))) for _, overlaps in rules]
    return np.stack(nodes), np.stack(weights)


def _signs(key, count, size):
    return np.asarray(
        guards.numbers("key", jax.random.rademacher(key, (size, count), jnp.int8)), np.float64
    )


def _products(operator: _Operator, columns):
    if operator.matrix is not None:
        return blocked_product(operator.matrix, columns)
    return np.stack([operator.product(column) for column in columns.T], axis=1)


def _mean(values, shape=()):
    """Mean over the first axis and its standard error."""
    scale = power_of_two(np.abs(values).max())
    values = values / scale
    parts = values.mean(axis=0) * scale, values.std(axis=0, ddof=1) / np.sqrt(len(values)) * scale
    return Estimate(*(part.reshape(shape) if shape else float(part.item()) for part in parts))
