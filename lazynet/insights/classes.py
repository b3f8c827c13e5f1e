"""How far classes are apart, by depth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lazynet import guards
from lazynet.insights.activations import checked
from lazynet.insights.bounds import checked_labels
from lazynet.linalg import solve_psd
from lazynet.typing import ArrayLike

__all__ = ["Separability", "local_support_vectors", "separability"]

Features = dict[str, Float[ArrayLike, "n _"]]


class Separability(NamedTuple):
    """Accuracies of simple classifiers on features, and the ratio of distances.

    Attributes:
        nearest_neighbor: Test accuracy of the nearest training example's class.
        nearest_mean: That of the nearest mean of a class.
        ridge: That of ridge regression of one-hot labels.
        distances: Within-class over between-class distance of training examples, `mean_i |x_i -
            m_y(i)|^2 / mean_c |m_c - m|^2`.

    Example:
        >>> Separability(1.0, 1.0, 1.0, 0.1).ridge
        1.0
    """

    nearest_neighbor: float
    nearest_mean: float
    ridge: float
    distances: float


def separability(
    features: Features,
    labels: Int[ArrayLike, " n"],
    test_features: dict[str, Float[ArrayLike, "m _"]],
    test_labels: Int[ArrayLike, " m"],
    *,
    ridge: float | int = 1e-3,
) -> dict[str, Separability]:
    """Accuracy of the nearest neighbor, the nearest mean and ridge regression, and the ratio of distances, by depth.

    Args:
        features: Activations of training examples by path.
        labels: Their classes, each with two examples at least.
        test_features: Activations of test examples at the same paths.
        test_labels: Their classes.
        ridge: Ridge relative to the mean squared norm of centered features.

    Raises:
        ValueError: If layers have different numbers of examples, paths differ, or a class has one
            example only.
        TypeError: If an argument is no array of numbers.

    Example:
        >>> x, y = np.array([[0.0], [0.1], [1.0], [1.1]]), np.array([0, 0, 1, 1])
        >>> separability({"input": x}, y, {"input": x}, y)["input"].nearest_mean
        1.0

    Source: Oyallon (2017), Building a regular decision boundary with deep networks, section 4.
    """
    ridge = guards.number("ridge", ridge, above=0)
    train = checked("features", features, at_least=2)
    test = checked("test_features", test_features)
    if list(train) != list(test):
        raise ValueError(
            f"test_features has the paths {list(test)}, expected {list(train)}: take both of one network."
        )
    y = checked_labels(labels, len(next(iter(train.values()))))
    y_test = checked_labels(test_labels, len(next(iter(test.values()))), name="test_labels")
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        raise ValueError(
            f"labels has {dict(zip(classes.tolist(), counts.tolist(), strict=True))} examples of each class, expected "
            "two classes with two examples each at least: take more examples."
        )
    return {
        path: _separability(train[path], y, test[path], y_test, classes, ridge) for path in train
    }


def local_support_vectors(
    features: Features, labels: Int[ArrayLike, " n"], k: int
) -> dict[str, Int[np.ndarray, " k"]]:
    """How many examples the votes of their 1, ..., j nearest neighbors all put into a wrong class, for j up to k.

    An example stays with j neighbors if it was there with j - 1 and more than half of the j are of
    another class: it lies on a boundary that is complicated at the scale of j neighbors. A network
    that separates classes has ever fewer of them with depth.

    Args:
        features: Activations by path.
        labels: Classes.
        k: Largest number of neighbors.

    Returns:
        Numbers of examples `[k]` by path, which never increase with j.

    Raises:
        ValueError: If layers have different numbers of examples, or k others than itself are not
            there.
        TypeError: If an argument is no array of numbers.

    Example:
        >>> x, y = np.array([[0.0], [0.1], [0.2], [1.0]]), np.array([0, 1, 0, 0])
        >>> local_support_vectors({"input": x}, y, 2)["input"].tolist()
        [3, 1]

    Source: After Oyallon (2017), Building a regular decision boundary with deep networks, section 4.
    """
    arrays = checked("features", features, at_least=2)
    n = len(next(iter(arrays.values())))
    y = checked_labels(labels, n)
    k = guards.count("k", k, at_most=n - 1, fix="an example has so many neighbors")
    return {path: _support(array, y, k) for path, array in arrays.items()}


def _separability(train, y, test, y_test, classes, ridge):
    # Distances do not depend on the origin, and as differences of norms lose fewer digits near it.
    mean = train.mean(axis=0)
    train = train - mean
    test = test - mean
    neighbors = y[_distances(test, train).argmin(axis=1)]
    means = np.stack([train[y == c].mean(axis=0) for c in classes])
    nearest = classes[_distances(test, means).argmin(axis=1)]
    targets = (y[:, None] == classes).astype(float)
    gram = train @ train.T
    # Features that are all equal have a Gram matrix of zeros, which needs some ridge, too.
    weight = ridge * max(float(np.trace(gram)) / len(gram), np.finfo(float).tiny)
    weights = solve_psd(gram, targets - targets.mean(axis=0), ridge=weight * len(gram))
    # The dual form of ridge regression, `w = X' (X X' + n r I)^{-1} Y`.
    scores = test @ (train.T @ weights) + targets.mean(axis=0)
    within = np.square(train - means[np.searchsorted(classes, y)]).sum(axis=1).mean()
    between = np.square(means).sum(axis=1).mean()
    ratio = float(within / between) if between > 0 else float("inf")
    found = neighbors, nearest, classes[scores.argmax(axis=1)]
    by_neighbor, by_mean, by_ridge = (float(np.mean(each == y_test)) for each in found)
    return Separability(by_neighbor, by_mean, by_ridge, ratio)


def _support(features, y, k):
    """Of how many examples all votes of up to j neighbors are wrong, `[k]`."""
    # Distances do not depend on the origin, and as differences of norms lose fewer digits near it.
    features = features - features.mean(axis=0)
    distances = _distances(features, features)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    wrong = np.cumsum(y[order] != y[:, None], axis=1)
    outvoted = 2 * wrong > np.arange(1, k + 1)
    return np.logical_and.accumulate(outvoted, axis=1).sum(axis=0)


def _distances(a, b):
    """Squared distances, from differences of norms and products."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.maximum(squares, 0.0)
