"""Data sets that scikit-learn ships with, so that nothing has to be downloaded."""

from __future__ import annotations

import importlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazynet import guards
from lazynet.datasets.labels import one_hot
from lazynet.datasets.sampling import balanced_indices, round_robin
from lazynet.records import Data

__all__ = ["digits", "tabular"]

TABLES = ("breast_cancer", "digits", "iris", "wine")
DIGITS_MAX = 16
DIGITS_TRAIN = 1000


def digits(n_train: int = 1000, n_test: int = 797, *, seed: int = 0) -> tuple[Data, Data]:
    """The 1,797 handwritten digits of scikit-learn: x `[n, 64]` is the 8 x 8 image divided by 16, y `[n, 10]` one-hot.

    Classes are balanced in the training set, and in the test set as long as every digit lasts, 1,740
    in all. Training sets of one seed are nested, and up to `n_train=1000` the default test set stays the
    same, so that learning curves share it. `x.reshape(-1, 8, 8, 1)` gives images.

    Args:
        n_train: Number of training examples, at most 1740 (174 of each digit).
        n_test: Number of test examples, at most 1797 - n_train.
        seed: Of the draw.

    Raises:
        TypeError: A number of examples or the seed is no integer.
        ValueError: The two sets do not fit into 1,797 images, or a digit is too rare for a balanced
            training set.

    Example:
        >>> train, test = digits(500)
        >>> train.x.shape, test.y.shape, train.y.sum(axis=0).tolist()[:3]
        ((500, 64), (797, 10), [50.0, 50.0, 50.0])
    """
    n_train = guards.count("n_train", n_train)
    n_test = guards.count("n_test", n_test)
    x, labels = _load("digits")
    total = len(labels)
    if n_train + n_test > total:
        raise ValueError(f"n_train + n_test = {n_train} + {n_test}, expected at most {total}")
    kept = balanced_indices(labels, 10, n_train, seed=seed)
    # Behind 1,000 examples, however many are trained on: smaller training sets share a test set.
    start = max(n_train, min(DIGITS_TRAIN, total - n_test))
    held_out = round_robin(labels, 10, seed=seed)[start : start + n_test]
    y = one_hot(labels, 10)
    return Data(x[kept] / DIGITS_MAX, y[kept]), Data(x[held_out] / DIGITS_MAX, y[held_out])


def tabular(name: str, *, seed: int = 0, test_fraction: float = 0.25) -> tuple[Data, Data]:
    """A table of scikit-learn: x `[n, columns]` in its own units, y `[n, classes]` one-hot, a stratified split.

    The columns have different units: `standardize(train, test, scale="feature")` before training.

    Args:
        name: "iris" (150 x 4, 3 classes), "wine" (178 x 13, 3), "breast_cancer" (569 x 30, 2) or
            "digits" (1797 x 64, 10).
        seed: Of the split.
        test_fraction: Share of the examples in the test set, each class contributing its share.

    Raises:
        TypeError: The fraction is no number, or the seed no integer.
        ValueError: Unknown name, or a fraction that is not inside (0, 1) or leaves no example of a
            class.

    Example:
        >>> train, test = tabular("iris")
        >>> train.x.shape, test.x.shape, train.y.shape
        ((112, 4), (38, 4), (112, 3))
    """
    from sklearn.model_selection import train_test_split

    test_fraction = guards.number("test_fraction", test_fraction, above=0, below=1)
    seed = guards.count("seed", seed, at_least=0, at_most=2**32 - 1)
    x, labels = _load(name)
    y = one_hot(labels, int(labels.max()) + 1)
    indices = np.arange(len(labels))
    try:
        train, test = train_test_split(
            indices, test_size=test_fraction, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise ValueError(
            f"test_fraction got {test_fraction}, expected one that leaves every class: {error}"
        ) from error
    return Data(x[train], y[train]), Data(x[test], y[test])


def _load(name: str) -> tuple[np.ndarray, np.ndarray]:
    if name not in TABLES:
        raise ValueError(f"unknown data set {name!r}, expected one of {', '.join(TABLES)}")
    loader: Any = getattr(importlib.import_module("sklearn.datasets"), f"load_{name}")
    x, labels = loader(return_X_y=True)
    return x.astype(jnp.result_type(float)), labels
