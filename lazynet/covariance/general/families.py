"""How windows act on positions: along each axis a family of sparse linear maps, one for each tap.

A layer with weights sums over the taps of its window, `z_q = sum_k W_k x_{i(k, q)}`; tap k is the map
`(A_k x)_q = sum_m weight[k, q, m] x[index[k, q, m]]`. Covariances of its outputs are `sum_k A_k S
A_k'`, those of a mean over windows `A S A'` with `A = sum_k A_k`. Windows are boxes, so the maps of
several axes are products, and lists for one axis at a time are enough.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.covariance.windows import Window
from lazynet.typing import Array

__all__ = ["Family", "Transposed", "families", "moved_apart", "moved_together", "window_mask"]

Padding = Literal["SAME", "VALID", "CIRCULAR"]


class Transposed(NamedTuple):
    """Size, strides and padding of a transposed convolution: its input is spread by the strides."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding


class Family(NamedTuple):
    """Sparse linear maps along one axis, `(A_k x)_q = sum_m weight[k, q, m] x[index[k, q, m]]`."""

    index: np.ndarray
    weight: np.ndarray


def families(window: Window | Transposed, shape: tuple[int, ...]) -> list[Family]:
    """The maps of a window along each axis of positions of a shape.

    Example:
        >>> (family,) = families(Window((3,), (1,), "SAME"), (2,))
        >>> family.index[..., 0].tolist(), family.weight[..., 0].tolist()
        ([[1, 0], [0, 1], [1, 0]], [[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    """
    along = _spread if isinstance(window, Transposed) else _slid
    return [
        along(n, k, s, window.padding)
        for n, k, s in zip(shape, window.size, window.strides, strict=True)
    ]


def moved_together(values: Array, maps: list[Family], axes: list[tuple[int, ...]]) -> Array:
    """`sum_k A_k S A_k'` along each axis: the same tap at both positions (squared for equal positions alone)."""
    for family, own in zip(maps, axes, strict=True):
        power = 2 // len(own)
        terms = []
        for index, weight in zip(family.index, family.weight**power, strict=True):
            term = values
            for axis in own:
                term = _combined(term, index, weight, axis)
            terms.append(term)
        values = sum(terms[1:], terms[0])
    return values


def moved_apart(values: Array, maps: list[Family], axes: list[tuple[int, ...]]) -> Array:
    """`A S A'` with `A = sum_k A_k` along each axis: any tap at either position."""
    for family, own in zip(maps, axes, strict=True):
        # All taps are entries of one map.
        taps, outputs, entries = family.index.shape
        index = np.moveaxis(family.index, 0, 1).reshape(outputs, taps * entries)
        weight = np.moveaxis(family.weight, 0, 1).reshape(outputs, taps * entries)
        for axis in own:
            values = _combined(values, index, weight, axis)
    return values


def window_mask(mask: Array, window: Window | Transposed) -> Array:
    """Masked outputs of masked inputs `[n, *positions]`: the middle of a window decides, or any spread input."""
    for axis, family in enumerate(families(window, mask.shape[1:]), start=1):
        if isinstance(window, Transposed):
            gathered = [
                _combined(mask.astype(float), index, weight, axis)
                for index, weight in zip(family.index, family.weight, strict=True)
            ]
            mask = sum(gathered[1:], gathered[0]) > 0
        else:
            middle = family.index[(len(family.index) - 1) // 2, :, 0]
            mask = jnp.take(mask, middle, axis=axis)
    return mask


def _combined(values, index, weight, axis):
    """`sum_m weight[q, m] values[index[q, m]]` along an axis."""
    total = jnp.zeros((), values.dtype)
    for entry, scale in zip(index.T, weight.T, strict=True):
        term = jnp.take(values, entry, axis=axis)
        if not np.all(scale == 1):
            shape = [1] * term.ndim
            shape[axis] = len(scale)
            term = term * jnp.asarray(scale.reshape(shape), values.dtype)
        total = total + term
    return total


def _slid(n, size, stride, padding):
    """A window of so many taps that slides over n positions."""
    before = 0
    count = (n - size) // stride + 1
    if padding != "VALID":
        ((before, _),) = lax.padtype_to_pads((n,), (size,), (stride,), "SAME")
        count = -(-n // stride)
    # The position that tap k of output q reads; beyond the edges it is any, of weight zero.
    source = stride * np.arange(count)[None, :] + np.arange(size)[:, None] - before
    inside = (source >= 0) & (source < n) | (padding == "CIRCULAR")
    return Family((source % n)[..., None], inside.astype(float)[..., None])


def _spread(n, size, stride, padding):
    """A window over n positions that are `stride` apart with nothing between: a transposed convolution."""
    length, before = _transposed_length(n, size, stride, padding)
    # In the image that is spread, of which only each `stride`-th position holds an input.
    source = np.arange(length)[None, :] + np.arange(size)[:, None] - before
    inside = (source >= 0) & (source % stride == 0) & (source // stride < n)
    index = np.where(inside, source // stride, 0)
    if padding != "CIRCULAR":
        return Family(index[..., None], inside.astype(float)[..., None])
    # what a periodic image leaves on one side comes in on the other
    outputs = n * stride
    turns = -(-length // outputs)
    start = (length - outputs) // 2 + np.arange(outputs)[:, None]
    folded = start + outputs * np.arange(-turns, turns + 1)[None, :]
    exists = (folded >= 0) & (folded < length)
    folded = np.where(exists, folded, 0)
    return Family(index[:, folded], (inside[:, folded] & exists).astype(float))


def _transposed_length(n, size, stride, padding):
    """Number of outputs, before a periodic one is folded, and of zeros before the first input."""
    # As `lax.conv_transpose` pads.
    if padding == "SAME":
        before = size - 1 if stride > size - 1 else -(-(size + stride - 2) // 2)
        return n * stride, before
    return n * stride + max(size - stride, 0), size - 1
