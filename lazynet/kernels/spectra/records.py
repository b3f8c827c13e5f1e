"""What the estimators return."""

from __future__ import annotations

from typing import Any, NamedTuple


class Estimate(NamedTuple):
    """A random estimate and its standard deviation over keys, itself estimated.

    Attributes:
        value: Unbiased estimate.
        standard_error: Standard error of the value; 0 where it is exact.

    Example:
        >>> Estimate(value=3.0, standard_error=0.0).value
        3.0
    """

    value: Any
    standard_error: Any
