"""What the inputs of a kernel of infinitely wide networks must be, and the dtype in which it is computed."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lazynet import guards
from lazynet.models.model import Model


def checked_inputs(model: Any, x1: Any, x2: Any) -> tuple[Any, Any]:
    """The inputs in the dtype in which their kernel is computed."""
    if not isinstance(model, Model):
        raise TypeError(
            f"model got {type(model).__name__} {model!r:.60}, expected a Model: build one, as in "
            "ln.serial(ln.Dense(512), ln.Relu(), ln.Dense(1))."
        )
    sets = {name: guards.array(name, x) for name, x in (("x1", x1), ("x2", x2)) if x is not None}
    _check_shapes(*(x.shape for x in sets.values()))
    for name, x in sets.items():
        guards.floating(name, x)
        guards.finite(name, x)
    x1, *rest = _in_one_dtype(sets)
    return x1, rest[0] if rest else None


def _in_one_dtype(sets: dict[str, Any]) -> list[Any]:
    """All inputs in float64 if one of them is and jax has it, else in float32."""
    is_wide = max(x.dtype.itemsize for x in sets.values()) > 4
    dtype = jax.dtypes.canonicalize_dtype(np.float64 if is_wide else np.float32)
    converted = []
    for name, x in sets.items():
        if x.dtype != dtype:
            # What leaves float32 is refused below, with the way out, instead of a warning of NumPy.
            with np.errstate(over="ignore"):
                x = x.astype(dtype)
            guards.finite(
                name, x, f"values exceed {dtype}: scale the inputs, or enable jax_enable_x64"
            )
        converted.append(x)
    return converted


def _check_shapes(shape: tuple[int, ...], other: tuple[int, ...] | None = None) -> None:
    other = shape if other is None else other
    if len(shape) < 2 or shape[1:] != other[1:] or 0 in (*shape, *other):
        raise ValueError(
            f"got inputs of shapes {shape} and {other}, expected two sets of vectors [n, features] or "
            "images [n, h, w, c] (or of other dimensions) of one size, not empty."
        )
