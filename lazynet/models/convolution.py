"""The convolution of images with filters, also of images with few channels or smaller than the filters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.typing import Array

__all__ = ["convolve", "dimension_numbers"]

FEW_PRODUCTS = 64
"""Products of channels and features up to which four columns are convolved at once; two up to four times as many."""


def convolve(x: Array, W: Array, strides: Sequence[int], pads: Sequence[tuple[int, int]]) -> Array:
    """Convolution `z_p = sum_d x_{p + d} W_d` of `[n, *positions, c]` with `[*taps, c, features]`, x being 0 outside.

    Along an axis where the image is shorter than the filters, as 2x2 pixels at the end of a VGG,
    most taps see zeros alone, and XLA has no fast convolution on a CPU. There it is a product with a
    matrix on positions: a seventh of XLA's time at 64 channels, a fiftieth at 512.

    With few channels, as between an image of three colours and the first features, XLA's time on a
    CPU is that of gathering patches. There one filter sees several columns, and gives the outputs
    of all of them as its features: half of the time at 3 channels and 4 to 16 features.

    Args:
        x: Images, channels last.
        W: Filters.
        strides: Along each axis of positions.
        pads: Zeros before and after each axis of positions.

    Example:
        >>> x = jnp.arange(1.0, 4.0).reshape(1, 3, 1)
        >>> convolve(x, jnp.ones((3, 1, 1)), (1,), [(1, 1)])[0, :, 0].tolist()
        [3.0, 6.0, 5.0]
    """
    positions = x.shape[1:-1]
    # Reached from `_with_matrix`, when every axis has become part of the channels.
    if not positions:
        return x @ W
    # the last axis first: it is beside the channels already
    for axis in reversed(range(len(positions))):
        if positions[axis] < W.shape[axis]:
            return _with_matrix(x, W, strides, pads, axis)
    columns = _columns_at_once(x, W, strides, pads)
    if columns > 1:
        return _with_wide_filters(x, W, strides, pads, columns)
    return _convolution(x, W, strides, pads)


def dimension_numbers(axes: int) -> tuple[str, str, str]:
    """JAX's names for the axes of inputs, filters and outputs, channels last.

    Example:
        >>> dimension_numbers(2)
        ('NABC', 'ABIO', 'NABC')
    """
    positions = "ABDEFG"[:axes]
    return f"N{positions}C", f"{positions}IO", f"N{positions}C"


def _convolution(x, W, strides, pads):
    numbers = dimension_numbers(len(strides))
    return lax.conv_general_dilated(x, W, strides, pads, dimension_numbers=numbers)


def _columns_at_once(x, W, strides, pads):
    """How many outputs beside each other, along the last axis of positions, are cheapest together."""
    # Windows that are further apart share less of a patch, or nothing.
    if strides[-1] > 1:
        return 1
    products = W.shape[-2] * W.shape[-1]
    # Columns share most of their patch, for which they multiply by zeros what only another one sees.
    columns = 1
    if products <= 4 * FEW_PRODUCTS:
        columns = 4 if products <= FEW_PRODUCTS else 2
    outputs = x.shape[-2] + sum(pads[-1]) - W.shape[-3] + 1
    # A divisor of the outputs, so that no column is computed and thrown away.
    return math.gcd(columns, outputs)


def _with_wide_filters(x, W, strides, pads, columns):
    """The same in steps of several columns, with filters that see and give all of them."""
    # A patch of columns + taps - 1 holds the windows of all its columns.
    taps = W.shape[-3]
    M = _matrices(W, _seen(columns + taps - 1, taps, 1, (0, 0)), W.ndim - 3)
    # [..., p, c, q f]: outputs at the columns q are features of one wide filter.
    filters = M.reshape(*M.shape[:-2], -1)
    # Zeros before and after stay: the first patch begins where the first window does.
    z = _convolution(x, filters, (*strides[:-1], columns), pads)
    return z.reshape(*z.shape[:-2], z.shape[-2] * columns, W.shape[-1])


def _matrices(W, seen, axis):
    """The filters as matrices `[..., p, c, q, f]` from position and channel to position and feature, along one axis."""
    # Entries of W are only moved (the other factor is 0 or 1): TF32 would round them on the way.
    return jnp.einsum(
        "pqt,t...cf->...pcqf",
        jnp.asarray(seen, W.dtype),
        jnp.moveaxis(W, axis, 0),
        precision="highest",
    )


def _with_matrix(x, W, strides, pads, axis):
    """The same with `z_q = sum_p x_p M_pq` along one axis, whose positions become a part of the channels."""
    positions = x.shape[1 + axis]
    features = W.shape[-1]
    M = _matrices(W, _seen(positions, W.shape[axis], strides[axis], pads[axis]), axis)
    # [*other taps, p c, q f], the filters of a convolution along the other axes.
    M = M.reshape(*M.shape[:-4], positions * x.shape[-1], -1)
    x = jnp.moveaxis(x, 1 + axis, -2)
    x = x.reshape(*x.shape[:-2], -1)
    # Along the other axes it is a convolution again, whose channels are pairs of position and
    # channel.
    others = [other for other in range(len(strides)) if other != axis]
    z = convolve(x, M, [strides[other] for other in others], [pads[other] for other in others])
    z = z.reshape(*z.shape[:-1], -1, features)
    return jnp.moveaxis(z, -2, 1 + axis)


def _seen(positions, taps, stride, pad):
    """Whether tap t of the filter at output q sees position p, as `[p, q, t]`, along one axis."""
    before, after = pad
    outputs = max(0, (positions + before + after - taps) // stride + 1)
    p = np.arange(positions)[:, None, None]
    q = np.arange(outputs)[:, None]
    t = np.arange(taps)
    return p == q * stride + t - before
