"""What training assumes of its data, checked once on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import guards
from lazynet.records import Data
from lazynet.signatures import Inputs
from lazynet.typing import ArrayLike

__all__ = ["check_data"]


def check_data(data: Data, name: str = "data", *, labels: bool = False) -> None:
    """Refuses data unless x is `[n, *inputs]`, y is `[n, k]`, both finite everywhere and y floating point.

    A NaN in one image makes every weight NaN one step later: the cause is far from the symptom, so
    it is looked for before the first step. Integer and boolean inputs are tokens or masks, and the
    model's to take or to refuse; bytes and integer images are a forgotten conversion. Reads all
    values, so it is not for use inside `jax.jit`.

    Args:
        data: Inputs, also in a tree, and targets.
        name: How messages call the data, for instance "train".
        labels: Whether targets are labels, whole numbers `[n, ...]`.

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
    is_tree = isinstance(data.x, (dict, tuple, Inputs))
    paths = jax.tree_util.tree_leaves_with_path(data.x) if is_tree else [((), data.x)]
    places = {f"{name}.x{jax.tree_util.keystr(path)}": leaf for path, leaf in paths}
    if not places:
        raise ValueError(f"{name}.x got {data.x!r}, expected arrays [n, *inputs].")
    for place, x in places.items():
        # of several arrays one may have no other axis than that of the examples
        array = guards.array(place, x)
        if array.ndim < (1 if is_tree else 2):
            raise ValueError(
                f"{place} has shape {array.shape}, expected [n, *inputs]: use x[:, None] for scalar inputs"
            )
    y = guards.array(f"{name}.y", data.y)
    _check_targets(y, name, labels)
    for place, x in places.items():
        if len(x) != len(y) or len(x) == 0:
            found = place.removeprefix(f"{name}.x")
            raise ValueError(
                f"{name} has {len(x)} inputs{f' {found}' if found else ''} and {len(y)} targets, expected the same "
                "number, at least one"
            )
        _check_numbers(x, place)
    if not labels:
        guards.floating(
            f"{name}.y", y, "one_hot(labels, classes) for classes, y.astype(float) for a regression"
        )
    guards.finite(f"{name}.x", data.x)
    guards.finite(f"{name}.y", y)


def _check_targets(y: ArrayLike, name: str, labels: bool) -> None:
    if labels:
        if not jnp.issubdtype(y.dtype, jnp.signedinteger) or y.ndim < 1:
            raise ValueError(
                f"{name}.y has shape {y.shape} and dtype {y.dtype}, expected labels [n, ...], whole numbers, negative "
                "where there is nothing to predict: use y.astype(np.int32)."
            )
    elif y.ndim != 2:
        fix = "use y[:, None] for a scalar regression, one_hot(labels, classes) for classes"
        raise ValueError(f"{name}.y has shape {y.shape}, expected [n, k]: {fix}")


def _check_numbers(x: ArrayLike, place: str) -> None:
    """Floating point, tokens or a mask; bytes and whole numbers in images are a forgotten conversion."""
    # Whole numbers with four axes are images [n, h, w, c] that nobody has converted.
    is_token = jnp.issubdtype(x.dtype, jnp.integer) and x.dtype != np.uint8 and x.ndim != 4
    if is_token or x.dtype == bool:
        return
    fix = (
        "x.astype(float) / 255 for images, x.astype(np.int32) for tokens"
        if x.dtype == np.uint8
        else None
    )
    guards.floating(place, x, fix)
