"""Products of a kernel with random vectors, once for all that is asked of it.

Tangent kernels have a few eigenvalues that carry most of their norm. A subspace takes them in,
exactly, and Gaussian vectors in its complement see what is left (Hutch++). Vectors of a common
length are uniform on a sphere: the variance of a quadratic form is `2d/(d+2) |A - tr A/d|_F^2`.

XTrace, which leaves one vector after the other out of the subspace, is more accurate with as many
products, by 0.1 to 0.9 of the error for eigenvalues `1/i`, `1/i^2` and `0.8^i`, but the errors that
it tells are too small: over keys, z has a spread of 1.4 to 1.9 for 30 products, here of 1.0 to 1.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.kernels.spectra.errors import gradient, nonzero, scatter, symmetrized
from lazynet.kernels.spectra.operators import (
    KernelLike,
    Operator,
    Shape,
    centered_operator,
    gaussians,
    operator_of,
    products,
)
from lazynet.kernels.spectra.records import Estimate
from lazynet.linalg import power_of_two
from lazynet.typing import Array, Key


class Sketch(NamedTuple):
    """Products of one or two kernels with a basis Q of a subspace and with random vectors beside it.

    Attributes:
        operators: The kernels as products; centered, if that was asked for.
        basis: Q, orthonormal columns.
        on_basis: `K Q / scale` of each kernel.
        draws: Gaussian vectors g, scaled such that their parts outside of Q have the length
            `sqrt(m - q)`; none if Q is everything.
        on_rest: `K (I - Q Q') g / scale` of each kernel.
        scale: A power of two close to the largest product.
        centered: Whether means over examples are taken off on both sides.

    Example:
        >>> parts = sketch(lambda v: 2 * v, key=jax.random.key(0), shape=(50,), probes=12)
        >>> parts.basis.shape, parts.draws.shape
        ((50, 3), (50, 6))
    """

    operators: tuple[Operator, ...]
    basis: Float[np.ndarray, "m q"]
    on_basis: tuple[Float[np.ndarray, "m q"], ...]
    draws: Float[np.ndarray, "m p"]
    on_rest: tuple[Float[np.ndarray, "m p"], ...]
    scale: float
    centered: bool

    def rest(self) -> Float[np.ndarray, "m p"]:
        """`(I - Q Q') g`."""
        return self.draws - self.basis @ (self.basis.T @ self.draws)

    def moments(self, power: int, of: Callable[[Any, Any], Any]) -> Estimate:
        """A function of `tr K` and `tr K^2`, homogeneous of the given power in K."""
        (image,) = self.on_basis
        (rest,) = self.on_rest
        inside = [np.sum(self.basis * image), np.sum(image**2)]
        forms = [symmetrized(self.rest().T @ rest), rest.T @ rest]
        return self.estimate(power, of, inside, forms)

    def layout(self) -> tuple[int, int]:
        """Rows of the kernel, and examples."""
        return self.operators[0].size, self.operators[0].examples

    def alignment(self, columns: Float[np.ndarray, "m c"], size: float) -> Estimate:
        """`<K, Y Y'> / (|K|_F size)`, the numerator exact."""
        inner = np.sum(columns * products(self.operators[0], columns)) / self.scale
        return self.moments(0, lambda trace, square: inner / size / np.sqrt(nonzero(square)))

    def diagonal(self) -> Estimate:
        """The diagonal of K: exact on Q, a slope for each row outside of it."""
        (image,) = self.on_basis
        (rest,) = self.on_rest
        # With P = Q Q': K = P K + K P - P K P + (1 - P) K (1 - P), of which Q sees all but the
        # last.
        inner = self.basis.T @ image
        inside = np.sum(self.basis * (2 * image - self.basis @ inner), axis=1)
        p = self.draws.shape[1]
        if p == 0:
            return Estimate(inside * self.scale, np.zeros_like(inside))
        residual = rest - self.basis @ (self.basis.T @ rest)
        energy = np.sum(self.draws**2, axis=1)
        slope = np.sum(self.draws * residual, axis=1) / energy
        noise = np.sum((residual - slope[:, None] * self.draws) ** 2, axis=1) / (p - 1)
        return Estimate((inside + slope) * self.scale, np.sqrt(noise / energy) * self.scale)

    def estimate(self, power: int, of: Callable, inside: list, forms: list) -> Estimate:
        """A function of traces, each the part inside of Q and the mean of a quadratic form outside.

        Args:
            power: Of the scale that the value has.
            of: An analytic function of the traces; its derivative is taken by a complex step.
            inside: The trace of each matrix A on Q.
            forms: `g' A g'` between all vectors, of each matrix.
        """
        p = self.draws.shape[1]
        outside = [np.trace(form) / max(p, 1) for form in forms]
        traces = np.add(inside, outside)
        value = float(np.real(of(*traces))) * self.scale**power
        if p == 0:
            return Estimate(value, 0.0)
        d = len(self.basis) - self.basis.shape[1]
        rest = self.rest()
        # Of vectors of one length, the mean of the eigenvalues outside of Q has no part in the error.
        flat = rest.T @ rest / d
        deviations = [form - mean * flat for form, mean in zip(forms, outside, strict=True)]
        error = np.sqrt(d / (d + 2)) * scatter(gradient(of, traces), deviations)
        return Estimate(value, float(error) * self.scale**power)


def sketch(
    *kernels: KernelLike,
    key: Key[Array, ""],
    shape: Shape | None = None,
    probes: int = 30,
    centered: bool = False,
) -> Sketch:
    """Products of a kernel for `trace`, `diagonal`, `frobenius_norm`, `effective_rank`, `target_alignment` at once.

    Each of these functions takes a kernel and makes a sketch of its own, or takes this one. Of a
    kernel with `m` rows it holds `3 probes / 2` vectors of size m: nothing of size `m^2`,
    and nothing of the size of Jacobians.

    Args:
        *kernels: Symmetric K, an array or a product; two of them for what `cka` and
            `kernel_distances` do.
        key: Draws the vectors.
        shape: Shape of the vectors that a product takes, examples first.
        probes: Products with each kernel, at least 6: half of them for the subspace, half for what
            is outside of it.
        centered: Whether to take `H K H` with `H = I - 11'/n` over the examples.

    Raises:
        ValueError: If a kernel is not square, symmetric and finite, a product has no shape, kernels
            differ in size, or probes is below 6.

    Example:
        >>> parts = sketch(np.diag([3.0, 4.0]), key=jax.random.key(0))
        >>> parts.basis.shape, parts.draws.shape  # a small kernel is seen as a whole
        ((2, 2), (2, 0))

    Source: Meyer, Musco, Musco and Woodruff (2021), Hutch++, for the two parts; Epperly, Tropp and
    Webber (2024), XTrace, for vectors of one length.
    """
    probes = guards.count("probes", probes, at_least=6)
    centered = guards.flag("centered", centered)
    operators = tuple(operator_of(kernel, shape) for kernel in kernels)
    sizes = {operator.size for operator in operators}
    if len(operators) not in (1, 2) or len(sizes) != 1:
        raise ValueError(
            f"kernels of sizes {sorted(sizes)}, {len(operators)} of them, expected one, or two on the same examples "
            "and outputs."
        )
    operators = tuple(map(centered_operator, operators)) if centered else operators
    (size,) = sizes
    for_basis, for_draws = jax.random.split(key)
    # Half of the products with each kernel find the subspace and see what it does there.
    columns = probes // (2 + 2 * len(operators))
    # As many products as there are rows tell everything.
    if size <= probes:
        basis = np.eye(size)
    else:
        start = gaussians(for_basis, columns, size)
        images = [products(operator, start) for operator in operators]
        basis = _orthonormal(np.concatenate(images, axis=1))
    # What is left of the products: `columns` made the basis, and each of its vectors takes one.
    count = 0 if basis.shape[1] == size else probes - (1 + len(operators)) * columns
    draws = gaussians(for_draws, count, size)
    rest = draws - basis @ (basis.T @ draws)
    # Of one length in the complement: their spread would add to the variance of every trace.
    factors = np.sqrt(size - basis.shape[1]) / np.linalg.norm(rest, axis=0)
    on_basis = [products(operator, basis) for operator in operators]
    on_rest = [products(operator, rest * factors) for operator in operators]
    scale = power_of_two(max(np.abs(images).max(initial=0) for images in (*on_basis, *on_rest)))
    return Sketch(
        operators,
        basis,
        tuple(images / scale for images in on_basis),
        draws * factors,
        tuple(images / scale for images in on_rest),
        scale,
        centered,
    )


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """A basis of the columns, as many vectors as there are: where these depend on each other, any."""
    basis, _ = np.linalg.qr(columns / power_of_two(np.abs(columns).max()))
    return basis
