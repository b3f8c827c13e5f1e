"""Rates of decay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lazynet.typing import ArrayLike

__all__ = ["fit_slope"]


def fit_slope(x: Float[ArrayLike, " s"] | Sequence[float], y: Float[ArrayLike, " s"] | Sequence[float]) -> float:
    """Exponent p of `y = c x^p`, by least squares on `log y = log c + p log x`.

    Args:
        x: Scales, such as alphas or widths.
        y: Measurements at these scales.

    Raises:
        ValueError: If the lengths differ, if there are fewer than two points, or if a value is not positive and finite.

    Example:
        >>> round(fit_slope([1.0, 10.0, 100.0], [3.0, 0.3, 0.03]), 6)
        -1.0
    """
    points = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if points[0].shape != points[1].shape or points[0].ndim != 1 or points[0].size < 2:
        raise ValueError(f"x and y have shapes {points[0].shape} and {points[1].shape}, expected the same [s], s >= 2.")
    for name, values in zip("xy", points, strict=True):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"{name} is {values}, expected positive finite values: leave out alpha = inf and zeros.")
    slope, _ = np.polyfit(np.log(points[0]), np.log(points[1]), 1)
    return float(slope)
