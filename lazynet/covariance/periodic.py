"""Periodic windows on images that do not fill their canvas: the covariance of every pair of positions at once.

Planes are cyclic on a canvas of one size, so an image that is periodic with another one (because it
was cropped, or its size is no multiple of the strides) has no planes of its own. All pairs of
positions `[h, w, h, w, lanes]` are then written out once, which needs the memory that planes avoid,
and read as planes again.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazynet.covariance.windows import Size, Window
from lazynet.typing import Array

__all__ = ["apart_everywhere", "as_pairs", "as_plane", "together_everywhere"]


def as_pairs(planes: Array, shape: Size) -> Array:
    """All planes `[P, Q, H, W, lanes]` of a canvas as pairs of positions `[h, w, h, w, lanes]` of images of a shape.

    Example:
        >>> as_pairs(jnp.arange(4.0).reshape(2, 1, 2, 1, 1), (2, 1)).reshape(2, 2).tolist()
        [[0.0, 2.0], [3.0, 1.0]]
    """
    h, w = shape
    height, width = planes.shape[:2]
    # The pair (i, j), (k, m) is at position (i, j) of the plane of displacement (k - i, m - j).
    i, j, k, m = np.ix_(*map(np.arange, (h, w, h, w)))
    return planes[(k - i) % height, (m - j) % width, i, j]


def as_plane(pairs: Array, p: Any, q: Any, canvas: Size) -> Array:
    """The plane of a displacement on a canvas; pairs of positions outside the images repeat the border."""
    height, width = pairs.shape[:2]
    # The dtype of displacements in loops, to which they are added under strict promotion, too.
    i = np.arange(canvas[0], dtype=np.int32)
    j = np.arange(canvas[1], dtype=np.int32)
    rows = np.minimum(i, height - 1)
    columns = np.minimum(j, width - 1)
    below = jnp.minimum((i + p) % canvas[0], height - 1)
    right = jnp.minimum((j + q) % canvas[1], width - 1)
    return pairs[rows[:, None], columns[None, :], below[:, None], right[None, :]]


def together_everywhere(pairs: Array, window: Window) -> Array:
    """`1/k sum_d S[s p + d, s p' + d]` for periodic images."""
    rows, columns = _positions((pairs.shape[0], pairs.shape[1]), window)
    moved = [pairs[np.ix_(i, j, i, j)] for i in rows for j in columns]
    return functools.reduce(jnp.add, moved) / math.prod(window.size)


def apart_everywhere(pairs: Array, window: Window, scale: float) -> Array:
    """`scale^2 sum_{d, d'} S[s p + d, s p' + d']` for periodic images."""
    positions = _positions((pairs.shape[0], pairs.shape[1]), window)
    # Rows and columns of the first partner, then of the second.
    for axis in range(4):
        taps = positions[axis % 2]
        pairs = functools.reduce(jnp.add, [jnp.take(pairs, tap, axis) for tap in taps])
    return scale**2 * pairs


def _positions(shape: Size, window: Window) -> list[list[np.ndarray]]:
    """For each axis and each tap of the window, the position it reads for every output."""
    positions = []
    for axis, (n, out) in enumerate(zip(shape, window.out(shape), strict=True)):
        first = window.strides[axis] * np.arange(out) - window.before(shape)[axis]
        positions.append([(first + tap) % n for tap in range(window.size[axis])])
    return positions
