"""Two kernels compared without forming either: how alike they are, and how far one has moved from the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lazynet.kernels.spectra.errors import nonzero, symmetrized
from lazynet.kernels.spectra.one_sided import OneSided, Term, inner_term, of_terms, square_term
from lazynet.kernels.spectra.operators import KernelLike, Shape
from lazynet.kernels.spectra.records import Estimate
from lazynet.kernels.spectra.sketches import Sketch, sketch
from lazynet.typing import Array, Key


class Distances(NamedTuple):
    """How far one kernel is from another.

    Attributes:
        relative: `|K - K0|_F / |K0|_F`, `diagnostics.kernel_distance`.
        cosine: `1 - <K, K0>_F / (|K|_F |K0|_F)`, `diagnostics.kernel_cosine_distance`.

    Example:
        >>> Distances(Estimate(0.5, 0.0), Estimate(0.1, 0.0)).relative.value
        0.5
    """

    relative: Estimate
    cosine: Estimate


def kernel_distances(
    kernel: KernelLike | OneSided,
    kernel0: KernelLike | OneSided,
    *,
    key: Key[Array, ""] | None = None,
    shape: Shape | None = None,
    probes: int = 30,
) -> Distances:
    """Relative and cosine distance of two kernels, `|K - K0|_F / |K0|_F` and `1 - <K, K0>_F / (|K|_F |K0|_F)`.

    Along training, one call for each snapshot with the same key. Both kernels see the same vectors,
    and the norm of the difference is that of differences of products: it keeps its digits when
    kernels are close, down to the rounding of the products. Of forward sketches it is not: a square
    that comes out negative counts as 0, with the root of its error.

    Args:
        kernel: Symmetric K, an array, a product, or a one-sided sketch.
        kernel0: K0, of the same kind.
        key: Draws the vectors.
        shape: Shape of the vectors that products take.
        probes: Products with each kernel, at least 6.

    Raises:
        ValueError: If a kernel is not square, symmetric and finite, or zero, a product has no
            shape, they differ in size, or sketches cannot be compared.

    Example:
        >>> import jax
        >>> near, _ = kernel_distances(1.5 * np.eye(2), np.eye(2), key=jax.random.key(0))
        >>> round(near.value, 9), near.standard_error
        (0.5, 0.0)
    """
    moments = _pair(kernel, kernel0, key, shape, probes, centered=False)
    squared = moments.estimate(lambda a, b, c, d: d / nonzero(b))
    relative = Estimate(0.0, math.sqrt(squared.standard_error))
    # Of forward sketches of close kernels the estimate |A|^2 + |B|^2 - 2 <A, B> may be negative.
    if squared.value > 0:
        relative = moments.estimate(lambda a, b, c, d: np.sqrt(d / b))
    return Distances(relative, moments.estimate(_cosine_distance))


def cka(
    kernel1: KernelLike | OneSided,
    kernel2: KernelLike | OneSided,
    *,
    key: Key[Array, ""] | None = None,
    shape: Shape | None = None,
    probes: int = 30,
    centered: bool = True,
) -> Estimate:
    """Centered kernel alignment `<H K1 H, H K2 H>_F / (|H K1 H|_F |H K2 H|_F)`, `diagnostics.cka` without the matrices.

    Args:
        kernel1: Symmetric K1, an array, a product, or a one-sided sketch.
        kernel2: K2, of the same kind, on the same examples and with the same outputs.
        key: Draws the vectors.
        shape: Shape of the vectors that products take, examples first.
        probes: Products with each kernel, at least 6.
        centered: Whether to apply `H = I - 11'/n`.

    Raises:
        ValueError: As `kernel_distances`, or if sketches were centered and this is not, or the
            reverse.

    Example:
        >>> import jax
        >>> x = np.array([[0.0], [1.0], [3.0]])
        >>> round(cka(x @ x.T, 5.0 * (x + 1.0) @ (x + 1.0).T, key=jax.random.key(0)).value, 6)
        1.0

    Source: Kornblith et al. (2019), centered kernel alignment with the linear HSIC.
    """
    value, error = _pair(kernel1, kernel2, key, shape, probes, centered).estimate(_cosine_distance)
    return Estimate(1 - value, error)


def _cosine_distance(a: Any, b: Any, c: Any, d: Any) -> Any:
    """`1 - c / sqrt(ab)` with `d = a + b - 2c`, which keeps its digits where c is close to a and b."""
    return (d - (np.sqrt(a) - np.sqrt(b)) ** 2) / (2 * np.sqrt(nonzero(a) * nonzero(b)))


class _Pair(NamedTuple):
    """`tr K^2`, `tr K0^2`, `tr K K0` and `tr (K - K0)^2` of two kernels."""

    sketch: Sketch | None
    terms: list[Term]

    def estimate(self, of: Callable) -> Estimate:
        """A function of these four that does not depend on the scale."""
        if self.sketch is None:
            return of_terms(of, self.terms)
        inside = [float(np.sum(a * b)) for a, b in self._products(*self.sketch.on_basis)]
        forms = [symmetrized(a.T @ b) for a, b in self._products(*self.sketch.on_rest)]
        return self.sketch.estimate(0, of, inside, forms)

    @staticmethod
    def _products(first: np.ndarray, second: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        # The change has an estimate of its own: |A|^2 + |B|^2 - 2 <A, B> would cancel where they
        # agree.
        change = first - second
        return [(first, first), (second, second), (first, second), (change, change)]


def _pair(kernel: Any, kernel0: Any, key: Any, shape: Any, probes: int, centered: bool) -> _Pair:
    one_sided = [isinstance(k, OneSided) for k in (kernel, kernel0)]
    if all(one_sided):
        return _Pair(None, _between(kernel, kernel0, centered))
    if any(one_sided) or key is None:
        raise ValueError(
            f"kernels of types {type(kernel).__name__} and {type(kernel0).__name__} with key {key}, expected two "
            "kernels and a key, or two one-sided sketches."
        )
    both = sketch(kernel, kernel0, key=key, shape=shape, probes=probes, centered=centered)
    return _Pair(both, [])


def _between(first: OneSided, second: OneSided, centered: bool) -> list[Term]:
    """The four terms from pairs of draws."""
    alike = first.layout() == second.layout() and first.gram.shape == second.gram.shape
    if not alike or not first.centered == second.centered == centered:
        raise ValueError(
            f"sketches of {first.layout()} and {second.layout()} (rows, examples), centered {first.centered} and "
            f"{second.centered}, expected the same for both, as many probes, and centered={centered}."
        )
    a = square_term(first.gram)
    b = square_term(second.gram)
    if first.features is not None and second.features is not None:
        across = square_term(first.features.T @ second.features)
        # |A - B|^2 = |A|^2 + |B|^2 - 2 <A, B>
        change = Term(a.value + b.value - 2 * across.value, a.form + b.form - 2 * across.form)
        return [a, b, across, change]
    left, right = first.vectors, second.vectors
    if left is None or right is None or not np.array_equal(left, right):
        raise ValueError(
            "sketches of gradients by different vectors, or one of features, expected two of a kind: make both with "
            "the same key."
        )
    return [a, b, inner_term(first.gram, second.gram), square_term(first.gram - second.gram)]
