"""What windows of neural-tangents' layers have beyond the edges of images."""

from __future__ import annotations

import enum

from lazynet.dropin.masks import Bool, Diagonal

__all__ = ["MIXES", "Padding"]

MIXES = Diagonal(input=Bool.NO)
"""Of a layer that needs covariances of different positions."""


class Padding(enum.Enum):
    """What is beyond the edges: zeros, nothing (outputs shrink), or the opposite side.

    Example:
        >>> Padding("SAME").name
        'SAME'
    """

    CIRCULAR = "CIRCULAR"
    SAME = "SAME"
    VALID = "VALID"
