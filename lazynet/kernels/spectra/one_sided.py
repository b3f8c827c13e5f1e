"""Kernels from forward derivatives alone, or from backward ones alone.

Gaussian directions u of the weights give features `a = J u` of the outputs with `E a a' = K`;
Gaussian vectors g on the outputs give gradients `b = J' g` with `E <b_i, b_j>^2 = tr K^2` for
`i != j`. Neither can take a subspace out of the variance, which is why products with both are more
accurate where they exist: the relative error of a norm is of the order of `1 / sqrt(probes)`. What
has one derivative only: loops of unknown length have no backward one, functions with a backward
pass of their own (`custom_vjp`, as fused attention) no forward one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lazynet import guards, trees
from lazynet.kernels.empirical.arguments import (
    Examples,
    canonical,
    check_no_statistics,
    check_outputs,
    count_examples,
)
from lazynet.kernels.empirical.products import pulled_back, pushed_forward
from lazynet.kernels.spectra.errors import gradient, nonzero, scatter, without_diagonal
from lazynet.kernels.spectra.operators import gaussians, without_means
from lazynet.kernels.spectra.records import Estimate
from lazynet.parameters import Where
from lazynet.programs import shape_of
from lazynet.signatures import Output, flat
from lazynet.typing import Apply, Array, Key, Params


class OneSided(NamedTuple):
    """Inner products of features `J u`, or of gradients `J' g`, that stand for a kernel.

    Attributes:
        gram: Inner products between all of them.
        features: `J u`, rows ordered by (example, output); None of gradients.
        vectors: g; None of features.
        energy: `v -> v' K v`.
        size: Rows of the kernel.
        examples: Number of examples.
        centered: Whether means over examples are taken off.

    Example:
        >>> linear = lambda w, x: x @ w
        >>> forward_sketch(linear, jnp.ones((3, 1)), jnp.eye(3), key=jax.random.key(0), probes=5).gram.shape
        (5, 5)
    """

    gram: Float[np.ndarray, "p p"]
    features: Float[np.ndarray, "m p"] | None
    vectors: Float[np.ndarray, "m p"] | None
    energy: Callable[[np.ndarray], float]
    size: int
    examples: int
    centered: bool

    def layout(self) -> tuple[int, int]:
        """Rows of the kernel, and examples."""
        return self.size, self.examples

    def moments(self, power: int, of: Callable[[Any, Any], Any]) -> Estimate:
        """A function of `tr K` and `tr K^2`."""
        trace = Term(float(np.mean(np.diagonal(self.gram))), self.gram)
        return of_terms(of, [trace, square_term(self.gram)])

    def alignment(self, columns: Float[np.ndarray, "m c"], size: float) -> Estimate:
        """`<K, Y Y'> / (|K|_F size)`; the numerator is exact with backward derivatives."""
        square = square_term(self.gram)
        if self.features is None:
            # Exact, with no part in the scatter of the draws.
            inner = Term(sum(map(self.energy, columns.T)), np.zeros_like(self.gram))
        else:
            overlaps = columns.T @ self.features
            inner = Term(float(np.mean(np.sum(overlaps**2, axis=0))), overlaps.T @ overlaps)
        return of_terms(lambda a, b: a / size / np.sqrt(nonzero(b)), [inner, square])

    def diagonal(self) -> Estimate:
        """Means of squared features."""
        if self.features is None:
            raise ValueError(
                "a sketch of gradients has no diagonal, expected one of features: take forward_sketch."
            )
        # `E a_i^2 = K_ii`, and squares of Gaussians have the variance `2 K_ii^2`.
        squares = self.features**2
        p = squares.shape[1]
        return Estimate(squares.mean(axis=1), squares.mean(axis=1) * np.sqrt(2 / p))


def forward_sketch(
    apply: Apply,
    params: Params,
    x: Examples,
    *,
    key: Key[Array, ""],
    probes: int = 100,
    centered: bool = False,
    output: Output = None,
    where: Where | None = None,
    tile: int | None = None,
) -> OneSided:
    """A tangent kernel by features `a = J u`, u Gaussian directions of the weights: forward derivatives alone.

    Pass it to `trace`, `diagonal`, `frobenius_norm`, `effective_rank`, `target_alignment`, and two
    of them to `cka` and `kernel_distances`, in the place of a kernel. The same key for two weights
    of one network makes their difference more accurate. It holds `probes` vectors of the size of
    the outputs.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Where to take the derivative.
        x: Examples.
        key: Draws the directions.
        probes: Their number, at least 3; relative errors are of the order of `1 / sqrt(probes)`.
        centered: Whether to take `H K H` with `H = I - 11'/n` over the examples.
        output: Which of the outputs of apply, by `select`.
        where: Which parameters to differentiate, as in `empirical_ntk`.
        tile: Examples that are looked at together; None for all of them.

    Raises:
        TypeError: If inputs or parameters are no arrays of numbers.
        ValueError: If there are no examples or they are not finite, `params` holds running averages
            of flax, or probes is below 3.

    Example:
        >>> linear = lambda w, x: x @ w
        >>> features = forward_sketch(linear, jnp.ones((1, 1)), jnp.ones((9, 1)), key=jax.random.key(0))
        >>> features.features.shape
        (9, 100)
    """
    probes, function, params, x, shape = _checked(apply, params, x, probes, output, where)
    weights, _ = trees.differentiable(params)
    columns = []
    for probe in jax.random.split(key, probes):
        keys = jax.random.split(probe, len(weights))
        pairs = zip(keys, weights, strict=True)
        direction = [jax.random.normal(k, w.shape, w.dtype) for k, w in pairs]
        image = pushed_forward(function, params, x, direction, tile)
        columns.append(np.asarray(image, np.float64).ravel())
    features = np.stack(columns, axis=1)
    n = count_examples(x)
    if centered:
        features = without_means(features, n)
    gram = features.T @ features

    def energy(v: np.ndarray) -> float:
        # `E (v' J u)^2 = v' K v`.
        return float(np.mean((v @ features) ** 2))

    return OneSided(gram, features, None, energy, len(features), n, centered)


def backward_sketch(
    apply: Apply,
    params: Params,
    x: Examples,
    *,
    key: Key[Array, ""],
    probes: int = 30,
    centered: bool = False,
    output: Output = None,
    where: Where | None = None,
    tile: int | None = None,
) -> OneSided:
    """A tangent kernel by gradients `b = J' g`, g Gaussian vectors on the outputs: backward derivatives alone.

    As `forward_sketch`, but without a diagonal; two of them can be compared if they were made with
    the same key. It holds `probes` gradients while it is made, and inner products afterwards.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Where to take the derivative.
        x: Examples.
        key: Draws the vectors.
        probes: Their number, at least 3; relative errors are of the order of `1 / sqrt(probes)`.
        centered: Whether to take `H K H` with `H = I - 11'/n` over the examples.
        output: Which of the outputs of apply, by `select`.
        where: Which parameters to differentiate, as in `empirical_ntk`.
        tile: Examples that are looked at together; None for all of them.

    Raises:
        TypeError: If inputs or parameters are no arrays of numbers.
        ValueError: If there are no examples or they are not finite, `params` holds running averages
            of flax, or probes is below 3.

    Example:
        >>> linear = lambda w, x: x @ w
        >>> gradients = backward_sketch(linear, jnp.ones((1, 1)), jnp.ones((9, 1)), key=jax.random.key(0))
        >>> gradients.gram.shape
        (30, 30)
    """
    probes, function, params, x, shape = _checked(apply, params, x, probes, output, where)
    n = count_examples(x)

    def pulled(v: np.ndarray) -> list[np.ndarray]:
        on_outputs = jnp.asarray(v.reshape(shape.shape), shape.dtype)
        return [np.asarray(leaf) for leaf in pulled_back(function, params, x, on_outputs, tile)]

    def energy(v: np.ndarray) -> float:
        # `|J' v|^2 = v' K v`, without an error.
        return float(sum(np.vdot(leaf, leaf) for leaf in pulled(v)))

    vectors = gaussians(key, probes, int(np.prod(shape.shape)))
    if centered:
        vectors = without_means(vectors, n)
    # Filled in place: gradients in a list would be held once more while they are stacked.
    rows = [np.empty((probes, leaf.size), leaf.dtype) for leaf in trees.differentiable(params)[0]]
    for i, v in enumerate(vectors.T):
        for row, leaf in zip(rows, pulled(v), strict=True):
            row[i] = leaf.ravel()
    gram = np.sum([(row @ row.T).astype(np.float64) for row in rows], axis=0)
    return OneSided(gram, None, vectors, energy, len(vectors), n, centered)


class Term(NamedTuple):
    """An estimate of a trace, and what it owes to each pair of draws, for its error.

    Attributes:
        value: The estimate.
        form: `g_i' A g_j`, where the value changes by the mean of `g_i' A g_i - tr A` with the
            draws.

    Example:
        >>> Term(1.0, np.eye(2)).value
        1.0
    """

    value: float
    form: Float[np.ndarray, "p p"]


def square_term(inner: Float[np.ndarray, "p p"]) -> Term:
    """`tr K1 K2` by the mean of `<a_i, b_j>^2` over different draws.

    Example:
        >>> square_term(np.array([[9.0, 2.0, 2.0], [2.0, 9.0, 2.0], [2.0, 2.0, 9.0]])).value
        4.0
    """
    p = len(inner)
    pairs = without_diagonal(inner)
    # For i != j, means over the p - 2 third draws k, of <a_i, b_k> <a_j, b_k> and the other way.
    form = (pairs @ pairs.T + pairs.T @ pairs) / (p - 2)
    return Term(float(np.sum(pairs**2)) / (p * (p - 1)), form)


def inner_term(first: Float[np.ndarray, "p p"], second: Float[np.ndarray, "p p"]) -> Term:
    """`tr K1 K2` by the mean of `(g_i' K1 g_j) (g_i' K2 g_j)` over different draws.

    Example:
        >>> inner_term(2 * np.ones((3, 3)), 3 * np.ones((3, 3))).value
        6.0
    """
    p = len(first)
    a = without_diagonal(first)
    b = without_diagonal(second)
    return Term(float(np.sum(a * b)) / (p * (p - 1)), (a @ b + b @ a) / (p - 2))


def of_terms(of: Callable, terms: list[Term]) -> Estimate:
    """An analytic function of the terms and its standard error."""
    values = np.array([term.value for term in terms])
    error = scatter(gradient(of, values), [term.form for term in terms])
    return Estimate(float(np.real(of(*values))), error)


def _checked(
    apply: Apply, params: Params, x: Examples, probes: int, output: Output, where: Where | None
) -> tuple[int, Apply, Params, Examples, Any]:
    """The number of probes, the arguments in one form, and the shape of the outputs."""
    probes = guards.count("probes", probes, at_least=3)
    function, params, x, _ = canonical(flat(apply, x, output), params, x, name="x", where=where)
    check_no_statistics(params)
    shape = shape_of(function, params, x)
    check_outputs(shape, count_examples(x))
    return probes, function, params, x, shape
