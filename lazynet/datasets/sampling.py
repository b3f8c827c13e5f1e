"""Class-balanced draws of examples."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from lazynet import guards
from lazynet.records import Data

__all__ = ["balanced_subset"]


def balanced_subset(data: Data, n: int, *, seed: int) -> Data:
    """Draws n examples without replacement, `|count(class a) - count(class b)| <= 1` for all classes a and b.

    Small training sets drawn without balance differ by their class counts as much as by anything
    else. For one seed the draws are nested: the 100 examples of `n=100` are the first 100 of
    `n=1000`.

    Args:
        data: Examples with one target column per class; the class of a row is its largest target.
        n: Number of examples.
        seed: Of the draw.

    Raises:
        TypeError: n or the seed is no integer, inputs are no array, or targets no array of real
            numbers.
        ValueError: n is not positive, there is one target column, targets are not finite, or a
            class has too few examples.

    Example:
        >>> data = Data(np.arange(6.0)[:, None], np.eye(2)[[0, 0, 0, 0, 1, 1]])
        >>> balanced_subset(data, 4, seed=0).y.sum(axis=0).tolist()
        [2.0, 2.0]
    """
    guards.data("data", data)
    y = guards.numbers("y", data.y)
    guards.same_length(x=guards.array("x", data.x), y=y)
    if y.ndim != 2 or y.shape[1] < 2:
        raise ValueError(
            f"targets have shape {y.shape}, expected [n, k] with k >= 2: use one_hot(labels, classes)"
        )
    guards.finite("y", y)
    kept = balanced_indices(y.argmax(axis=1), y.shape[1], n, seed=seed)
    return Data(np.asarray(data.x)[kept], y[kept])


def balanced_indices(
    labels: Int[np.ndarray, " n"], classes: int, n: int, *, seed: int
) -> Int[np.ndarray, " m"]:
    """Indices of `n` examples whose class counts differ by at most 1, in a random order of rounds over the classes."""
    n = guards.count("n", n)
    kept = round_robin(labels, classes, seed=seed)[:n]
    counts = np.bincount(labels[kept], minlength=classes)
    if len(kept) < n or counts.max() - counts.min() > 1:
        available = np.bincount(labels, minlength=classes)
        raise ValueError(
            f"n = {n} balanced examples asked for, but class {available.argmin()} has only {available.min()} of "
            f"{len(labels)}: ask for at most {classes * available.min()}"
        )
    return kept


def round_robin(labels: Int[np.ndarray, " n"], classes: int, *, seed: int) -> Int[np.ndarray, " n"]:
    """All indices, one of each class per round, so that any contiguous part is balanced until a class has run out."""
    seed = guards.count("seed", seed, at_least=0)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    # The place of each example's class in a random order of classes.
    turn = rng.permutation(classes)[labels[shuffled]]
    by_class = np.argsort(turn, kind="stable")
    # Sorted by class, the rank of an example within its class is its place less the class's start.
    starts = np.searchsorted(turn[by_class], turn[by_class])
    rounds = np.empty_like(shuffled)
    rounds[by_class] = np.arange(len(labels)) - starts
    # The last key counts most: by round, and within a round by turn.
    return shuffled[np.lexsort((turn, rounds))]
