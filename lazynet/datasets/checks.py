"""What training assumes of its data, checked once on the host."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from lazynet import guards
from lazynet.records import Data
from lazynet.typing import ArrayLike

__all__ = ["check_data"]


def check_data(data: Data, name: str = "data") -> None:
    """Refuses data unless x is `[n, *inputs]`, y is `[n, k]`, both finite everywhere and y floating point.

    A NaN in one image makes every weight NaN one step later: the cause is far from the symptom, so
    it is looked for before the first step. Integer and boolean inputs are tokens or masks, and the
    model's to take or to refuse; bytes and integer images are a forgotten conversion. Reads all
    values, so it is not for use inside `jax.jit`.

    Args:
        data: Inputs and targets.
        name: How messages call the data, for instance "train".

    Raises:
        TypeError: No arrays, inputs that are bytes, integer images or complex, targets that are not
            floating point.
        ValueError: Wrong rank, different numbers of examples, no examples, or NaN or infinity
            somewhere.

    Example:
        >>> check_data(Data(np.ones((2, 3)), np.zeros((2, 1))))
        >>> check_data(Data(np.ones((2, 3)), np.array([[0.0], [np.nan]])), "train")
        Traceback (most recent call last):
        ...
        ValueError: train.y has 1 NaN and 0 infinite of 2 values, first at [1, 0]: remove or repair ...
    """
    guards.data(name, data)
    several = (
        "give the model one array, which it takes apart inside"
        if isinstance(data.x, (dict, tuple))
        else ""
    )
    x = guards.array(f"{name}.x", data.x, several)
    y = guards.array(f"{name}.y", data.y)
    _check_shapes(x, y, name)
    is_token = jnp.issubdtype(x.dtype, jnp.integer) and x.dtype != np.uint8 and x.ndim != 4
    if not is_token and x.dtype != bool:
        fix = (
            "x.astype(float) / 255 for images, x.astype(np.int32) for tokens"
            if x.dtype == np.uint8
            else None
        )
        guards.floating(f"{name}.x", x, fix)
    guards.floating(
        f"{name}.y", y, "one_hot(labels, classes) for classes, y.astype(float) for a regression"
    )
    guards.finite(f"{name}.x", x)
    guards.finite(f"{name}.y", y)


def _check_shapes(x: ArrayLike, y: ArrayLike, name: str) -> None:
    if x.ndim < 2:
        raise ValueError(
            f"{name}.x has shape {x.shape}, expected [n, *inputs]: use x[:, None] for scalar inputs"
        )
    if y.ndim != 2:
        fix = "use y[:, None] for a scalar regression, one_hot(labels, classes) for classes"
        raise ValueError(f"{name}.y has shape {y.shape}, expected [n, k]: {fix}")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"{name} has {len(x)} inputs and {len(y)} targets, expected the same number, at least one"
        )
