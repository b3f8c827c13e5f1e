"""Ridge regression whose ridge is chosen on the training set, by leaving one example out at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lazynet import datasets, dynamics
from lazynet.records import Data

__all__ = ["accuracy", "chosen", "left_out_accuracies", "of_features"]


def accuracy(outputs: Any, y: Any) -> float:
    """Share of the rows whose largest output is at the largest target."""
    return float(np.mean(np.argmax(outputs, axis=1) == np.argmax(y, axis=1)))


def left_out_accuracies(kernel: Any, data: Data, ridges: Sequence[float]) -> list[float]:
    """Accuracy of the predictions of every example from all others, for each ridge."""
    # All ridges at once, `[ridges, n, k]`, from one eigendecomposition.
    left_out = dynamics.leave_one_out(kernel, data, ridge=np.asarray(ridges))
    return [accuracy(outputs, data.y) for outputs in left_out]


def chosen(ridges: Sequence[float], best: int) -> dict[str, Any]:
    """The ridge that was chosen, and whether it is at an edge, so that a longer grid may have a better one."""
    return {"ridge": float(ridges[best]), "at_edge": best in (0, len(ridges) - 1)}


def of_features(train: Data, test: Data, ridges: tuple[float, ...]) -> dict[str, Any]:
    """Ridge regression on one-hot targets minus 1/k; the ridge has the best leave-one-out accuracy.

    Features are centered and scaled by one number, and joined by a constant. Ridges are relative to
    the mean eigenvalue, and `left_out = y - (y - f) / (1 - h)`, h the leverages, is exact. All of
    this is in the space of the features, which is smaller than that of the examples.
    """
    train, test = datasets.standardize(train, test)
    x, y = _with_constant(train)
    x_test, y_test = _with_constant(test)
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0)
    scores = x @ vectors
    # In the eigenvectors of X'X a ridge is a weight for each: one decomposition serves all of them.
    shrunk = [1 / (values + ridge * values.mean()) for ridge in ridges]
    hits = [accuracy(_left_out(scores, y, weights), y) for weights in shrunk]
    best = int(np.argmax(hits))
    solution = vectors @ (shrunk[best][:, None] * (scores.T @ y))
    return {
        "train_accuracy": accuracy(x @ solution, y),
        "test_accuracy": accuracy(x_test @ solution, y_test),
        **chosen(ridges, best),
    }


def _left_out(scores, y, weights):
    fitted = scores @ (weights[:, None] * (scores.T @ y))
    # h_i = x_i' (X'X + ridge)^{-1} x_i in the eigenvectors of X'X.
    leverages = np.square(scores) @ weights
    return y - (y - fitted) / (1 - leverages)[:, None]


def _with_constant(data: Data) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(data.x, np.float64)
    y = np.asarray(datasets.center_targets(data).y, np.float64)
    return np.column_stack([x, np.ones(len(x))]), y
