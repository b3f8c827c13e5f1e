"""Class labels as rows of targets."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from lazynet import guards
from lazynet.records import Data
from lazynet.typing import ArrayLike

__all__ = ["center_targets", "one_hot", "one_hot_centered"]

ROW_SUM_TOLERANCE = 1e-3


def one_hot(
    labels: Shaped[ArrayLike, "..."] | list[Any], classes: int, dtype: Any = None
) -> Float[np.ndarray, "n k"]:
    """Targets `y[i, c] = 1` where `c = labels[i]` and 0 elsewhere.

    Args:
        labels: Integers from 0 to `classes - 1`, `[n]`.
        classes: Number of classes k.
        dtype: Of the targets; JAX's default floating-point dtype if None.

    Raises:
        TypeError: The labels are not integers.
        ValueError: The labels are not one-dimensional, or one of them is no class.

    Example:
        >>> one_hot([2, 0], 3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    checked = check_labels(_as_array(labels), guards.count("classes", classes))
    return np.eye(classes, dtype=jnp.result_type(float) if dtype is None else dtype)[checked]


def one_hot_centered(
    labels: Shaped[ArrayLike, "..."] | list[Any], classes: int, dtype: Any = None
) -> Float[np.ndarray, "n k"]:
    """Targets `y[i, c] = 1 - 1/k` where `c = labels[i]` and `-1/k` elsewhere.

    A network whose output starts at zero then starts at the mean of the targets, as kernel
    regression without an offset assumes.

    Raises:
        TypeError: The labels are not integers, or the dtype is not floating point.
        ValueError: The labels are not one-dimensional, or one of them is no class.

    Example:
        >>> one_hot_centered([1], 4).tolist()
        [[-0.25, 0.75, -0.25, -0.25]]
    """
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype is {np.dtype(dtype)}, expected floating point: 1/k is no integer.")
    return one_hot(labels, classes, dtype) - _uniform(classes, dtype)


def center_targets(data: Data) -> Data:
    """Data with `y - 1/k` for one-hot targets `y` of k classes; integers become floating point.

    Raises:
        TypeError: The targets are no array of real numbers.
        ValueError: The targets are not `[n, k]` with k >= 2 and finite, or a row does not sum to 1,
            for instance because it was centered already.

    Example:
        >>> center_targets(Data(np.ones((1, 2)), np.array([[0.0, 1.0]]))).y.tolist()
        [[-0.5, 0.5]]
    """
    guards.data("data", data)
    y = np.asarray(guards.real("y", data.y))
    if y.ndim != 2 or y.shape[1] < 2:
        raise ValueError(
            f"targets have shape {y.shape}, expected [n, k] with k >= 2: use one_hot(labels, classes)"
        )
    guards.finite("y", y)
    sums = y.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > ROW_SUM_TOLERANCE)
    if wrong.size:
        raise ValueError(
            f"target row {wrong[0]} sums to {sums[wrong[0]]:.4g}, expected 1 as in one-hot rows: center the targets "
            "once, and only for classification"
        )
    return data._replace(y=y - _uniform(y.shape[1], y.dtype))


def check_labels(labels: Shaped[np.ndarray, "..."], classes: int) -> Shaped[np.ndarray, " n"]:
    """The labels themselves, once they are known to be `[n]` integers in [0, classes)."""
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}, expected [n]: pass labels.reshape(-1)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"labels have dtype {labels.dtype}, expected integers: pass labels.astype(int)"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} of {labels.size} labels are out of range, first labels[{wrong[0]}] = {labels[wrong[0]]}: "
            f"expected integers from 0 to {classes - 1}; count the classes or renumber the labels from 0"
        )
    return labels


def _as_array(labels: Any) -> np.ndarray:
    # np.asarray would drop a mask, and take a sparse matrix for one object: both are refused.
    if hasattr(labels, "mask") or hasattr(labels, "toarray"):
        guards.array("labels", labels)
    try:
        return np.asarray(labels)
    except ValueError as error:
        raise ValueError(f"labels are no array ({error}), expected [n] integers") from None


def _uniform(classes: int, dtype: Any) -> np.ndarray:
    return np.asarray(1.0 / classes, dtype=jnp.result_type(float) if dtype is None else dtype)
