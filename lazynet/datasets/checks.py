"""What training assumes of its data, checked once on the host."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lazynet.records import Data
from lazynet.trees import check_finite

__all__ = ["check_data"]


def check_data(data: Data, name: str = "data") -> None:
    """Refuses data unless x is `[n, *inputs]`, y is `[n, k]`, both floating point and finite everywhere.

    A NaN in one image makes every weight NaN one step later: the cause is far from the symptom, so it is looked for
    before the first step. Reads all values, so it is not for use inside `jax.jit`.

    Args:
        data: Inputs and targets.
        name: How messages call the data, for instance "train".

    Raises:
        TypeError: Inputs or targets are not floating point.
        ValueError: Wrong rank, different numbers of examples, no examples, or NaN or infinity somewhere.

    Example:
        >>> check_data(Data(np.ones((2, 3)), np.zeros((2, 1))))
        >>> check_data(Data(np.ones((2, 3)), np.array([[0.0], [np.nan]])), "train")
        Traceback (most recent call last):
        ...
        ValueError: train.y has 1 NaN and 0 infinite of 2 values, first at [1, 0]: remove or repair ...
    """
    x, y = np.asarray(data.x), np.asarray(data.y)
    _check_shapes(x, y, name)
    check_floating(x, f"{name}.x")
    check_floating(y, f"{name}.y", "one_hot(labels, classes) for classes, y.astype(float) for a regression")
    check_finite(f"{name}.x", x)
    check_finite(f"{name}.y", y)


def check_floating(values: np.ndarray, label: str, fix: str | None = None) -> None:
    """Refuses integer, boolean, complex and object arrays, with the conversion that was forgotten."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        is_image = values.ndim == 4 or values.dtype == np.uint8
        forgotten = "x.astype(float) / 255" if is_image else "x.astype(float)"
        raise TypeError(f"{label} has dtype {values.dtype}, expected floating point: use {fix or forgotten}")


def _check_shapes(x: np.ndarray, y: np.ndarray, name: str) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name}.x has shape {x.shape}, expected [n, *inputs]: use x[:, None] for scalar inputs")
    if y.ndim != 2:
        fix = "use y[:, None] for a scalar regression, one_hot(labels, classes) for classes"
        raise ValueError(f"{name}.y has shape {y.shape}, expected [n, k]: {fix}")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{name} has {len(x)} inputs and {len(y)} targets, expected the same number, at least one")
