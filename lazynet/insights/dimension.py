"""Of how many dimensions features are, and what that costs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from lazynet import guards
from lazynet.insights.activations import checked
from lazynet.typing import ArrayLike

__all__ = ["Dimension", "intrinsic_dimension", "nearest_neighbor_error"]


class Dimension(NamedTuple):
    """Intrinsic dimension by two nearest neighbors.

    Attributes:
        value: Slope of the fit.
        likelihood: Estimate of maximum likelihood.
        standard_error: Of that one, for independent examples.

    Example:
        >>> Dimension(2.0, 2.1, 0.1).value
        2.0
    """

    value: float
    likelihood: float
    standard_error: float


def intrinsic_dimension(
    features: dict[str, Float[ArrayLike, "n d"]], *, discard: float | int = 0.1
) -> dict[str, Dimension]:
    """Dimension d of the set on which features lie, by depth, from `P(r2/r1 > m) = m^{-d}`, r1 and r2 to two neighbors.

    The ratio of the distances to the second and the first nearest neighbor depends on the dimension
    alone where the density is constant around them. The slope of `-log(1 - F(m))` against log m
    through the origin leaves out the largest ratios, where it is not.

    Args:
        features: Activations by path, without examples that are equal (they are left out).
        discard: Share of the largest ratios that the fit leaves out.

    Raises:
        ValueError: If there are fewer than three different examples, the two neighbors of all are
            equally far, or `discard` is not in [0, 1).
        TypeError: If an argument is no array of numbers.

    Example:
        >>> line = np.random.default_rng(0).uniform(size=(500, 1)) * np.array([[1.0, 2.0, 3.0]])
        >>> bool(abs(intrinsic_dimension({"line": line})["line"].value - 1) < 0.1)
        True

    Source: Facco, d'Errico, Rodriguez and Laio (2017), Estimating the intrinsic dimension of
        datasets by a minimal neighborhood information.
    """
    discard = guards.number("discard", discard, at_least=0, below=1)
    arrays = checked("features", features, at_least=3)
    return {path: _dimension(path, array, discard) for path, array in arrays.items()}


def nearest_neighbor_error(
    x: Float[ArrayLike, "n d"],
    y: Float[ArrayLike, " n"],
    x_test: Float[ArrayLike, "m d"],
    y_test: Float[ArrayLike, " m"],
) -> float:
    """Mean error of the nearest neighbor, which goes as n^{-1/D} for Lipschitz functions on [0, 1]^D.

    The curse of dimensionality: without more than a Lipschitz constant, halving the error takes 2^D
    times as many examples.

    Args:
        x: Training inputs.
        y: Their values.
        x_test: Test inputs.
        y_test: Their values.

    Raises:
        ValueError: If lengths or dimensions differ, or something is not finite.
        TypeError: If an argument is no array of numbers.

    Example:
        >>> x = np.array([[0.0], [1.0]])
        >>> nearest_neighbor_error(x, x[:, 0], np.array([[0.25]]), np.array([0.25]))
        0.25
    """
    from scipy.spatial import KDTree

    given = {"x": x, "y": y, "x_test": x_test, "y_test": y_test}
    values = {}
    for name, array in given.items():
        values[name] = np.asarray(guards.numbers(name, array), np.float64)
        guards.finite(name, values[name])
    for inputs, targets in (("x", "y"), ("x_test", "y_test")):
        shape = values[inputs].shape
        if len(shape) != 2 or values[targets].shape != shape[:1] or not shape[0]:
            raise ValueError(
                f"{inputs} has shape {shape} and {targets} {values[targets].shape}, expected [n, d] and [n], not empty."
            )
    if values["x"].shape[1] != values["x_test"].shape[1]:
        raise ValueError(
            f"x_test has {values['x_test'].shape[1]} dimensions, expected {values['x'].shape[1]} as x."
        )
    _, nearest = KDTree(values["x"]).query(values["x_test"])
    return float(np.abs(values["y"][nearest] - values["y_test"]).mean())


def _dimension(path, array, discard):
    # Copies are neighbors at distance zero, whose ratio is infinite.
    array = np.unique(array, axis=0)
    if len(array) < 3:
        raise ValueError(
            f"features[{path!r}] has {len(array)} different examples, expected three at least: two neighbors each."
        )
    distances = scipy.spatial.distance.cdist(array, array)
    first, second = np.partition(distances, 2, axis=1)[:, 1:3].T
    ratios = np.sort(np.log(second / first))
    n = len(ratios)
    # log(r2/r1) has an exponential distribution of rate d, hence a line of slope d and a mean of 1/d.
    kept = slice(0, max(2, int((1 - discard) * n)))
    if not ratios[kept].any():
        raise ValueError(
            f"features[{path!r}] have both neighbors at the same distance, expected different distances: equidistant "
            "points have no dimension by their ratios."
        )
    # F = i / (n + 1) stays below one, where -log(1 - F) is infinite.
    heights = -np.log1p(-np.arange(1, n + 1)[kept] / (n + 1))
    slope = float(ratios[kept] @ heights / (ratios[kept] @ ratios[kept]))
    # n / sum has the expectation d n / (n - 1): this one has no bias.
    likelihood = (n - 1) / float(ratios.sum())
    return Dimension(slope, likelihood, likelihood / np.sqrt(n))
