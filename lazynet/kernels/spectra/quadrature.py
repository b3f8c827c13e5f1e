"""Density of the eigenvalues and effective dimension by stochastic Lanczos quadrature."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from lazynet import guards
from lazynet.kernels.spectra.operators import (
    KernelLike,
    Operator,
    Shape,
    operator_of,
    ritz,
    signs,
    tridiagonal,
)
from lazynet.kernels.spectra.records import Estimate
from lazynet.linalg import power_of_two, ritz_values
from lazynet.typing import Array, ArrayLike, Key


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
        >>> import jax
        >>> density = spectral_density(np.diag([1.0, 1.0, 100.0, 100.0]), key=jax.random.key(0))
        >>> density.nodes[0].round(6).tolist(), density.weights[0].round(6).tolist()
        ([1.0, 100.0], [0.5, 0.5])

    Source: Lin, Saad and Yang (2016), approximating spectral densities of large matrices.
    """
    steps = guards.count("steps", steps)
    probes = guards.count("probes", probes)
    points = guards.count("points", points)
    width = guards.number("width", width, above=0, fix="it counts decades")
    nodes, weights = _quadratures(operator_of(kernel, shape, loops=True), key, steps, probes)
    # Ritz values of null directions are rounding, of either sign, and have no logarithm.
    smallest = nodes[nodes > 1e-15 * nodes.max()].min(initial=nodes.max())
    logarithms = np.log10(np.maximum(nodes, smallest))
    grid = np.linspace(logarithms.min() - 3 * width, logarithms.max() + 3 * width, points)
    bumps = np.exp(-(((grid[:, None, None] - logarithms) / width) ** 2) / 2)
    bumps = bumps / (np.sqrt(2 * np.pi) * width)
    density = np.einsum("gps,ps->g", bumps, weights) / len(weights)
    return SpectralDensity(nodes, weights, 10**grid, density)


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
        >>> import jax
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
    operator = operator_of(kernel, shape, loops=True)
    bounds = []
    for start in signs(key, probes, operator.size).T:
        # The even derivatives of x / (x + ridge) are negative and the odd ones positive: Gauss' rule
        # is an upper bound, and Radau's, with a node at the lower end, is a lower one.
        gauss = tridiagonal(operator, start, steps)
        radau = _with_node_at_zero(operator, *gauss)
        bounds.append([_fitted(ritz_values(*rule), ridges) for rule in (gauss, radau)])
    # `[probes, 2, ridges]`: a vector of signs has the squared length m, and its weights sum to one.
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
        # Below all Ritz values, which rounding may make negative: the resolvent has no pole then.
        lowest = min(0.0, 2 * inner[0]) - np.finfo(np.float64).eps
        resolvent = np.sum(vectors[-1] ** 2 / (inner - lowest))
        node[-1] = scale * (lowest + (beside[-1] / scale) ** 2 * resolvent)
    return node, beside


def _quadratures(operator: Operator, key, steps, probes):
    """Nodes and weights of each random vector, `[p, s]`, filled up with weight 0 to the same number of nodes."""
    rules = [ritz(operator, start, steps) for start in signs(key, probes, operator.size).T]
    longest = max(len(values) for values, _ in rules)
    nodes = [np.pad(values, (0, longest - len(values)), "edge") for values, _ in rules]
    weights = [np.pad(overlaps, (0, longest - len(overlaps))) for _, overlaps in rules]
    return np.stack(nodes), np.stack(weights)


def _mean(values, shape=()):
    """Mean over the first axis and its standard error."""
    scale = power_of_two(np.abs(values).max())  # squares of large values would overflow
    values = values / scale
    mean = values.mean(axis=0) * scale
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values)) * scale
    if not shape:
        return Estimate(float(mean.item()), float(error.item()))
    return Estimate(mean.reshape(shape), error.reshape(shape))
