"""Rates of decay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Num

from lazynet import guards
from lazynet.typing import ArrayLike

__all__ = ["fit_slope"]


def fit_slope(
    x: Num[ArrayLike, "..."] | Sequence[float | int],
    y: Num[ArrayLike, "..."] | Sequence[float | int],
) -> float:
    """Exponent p of `y = c x^p`, by least squares on `log y = log c + p log x`.

    Args:
        x: Scales, such as alphas or widths.
        y: Measurements at these scales.

    Raises:
        TypeError: If x or y are no lists or vectors of numbers.
        ValueError: If the lengths differ, if there are fewer than two points, if a value is not
            positive and finite, or if all x are equal.

    Example:
        >>> round(fit_slope([1.0, 10.0, 100.0], [3.0, 0.3, 0.03]), 6)
        -1.0
    """
    points = guards.vector("x", x), guards.vector("y", y)
    if points[0].shape != points[1].shape or points[0].size < 2:
        raise ValueError(
            f"x and y have shapes {points[0].shape} and {points[1].shape}, expected the same [s], s >= 2."
        )
    for name, values in zip("xy", points, strict=True):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(
                f"{name} is {values}, expected positive finite values: leave out alpha = inf and zeros."
            )
    if np.ptp(np.log(points[0])) == 0:
        raise ValueError(
            f"x is {points[0]}, expected at least two different values: one scale has no slope."
        )
    slope, _ = np.polyfit(np.log(points[0]), np.log(points[1]), 1)
    return float(slope)
