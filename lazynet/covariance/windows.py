"""Sums over sliding windows of a plane of position pairs, with the terms that leave an image masked out."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.typing import Array, ArrayLike

__all__ = [
    "Taps",
    "Window",
    "apart",
    "live",
    "masked",
    "moving_mean",
    "padded",
    "slide",
    "summed",
    "together",
]

Size = tuple[int, int]
Mask = ArrayLike | bool | None


class Window(NamedTuple):
    """Size, strides and padding of a sliding window over `[h, w]`."""

    size: Size
    strides: Size
    padding: Literal["SAME", "VALID", "CIRCULAR"]

    def before(self, shape: Size) -> Size:
        """Padded rows above and columns to the left."""
        if self.padding == "VALID":
            return 0, 0
        (top, _), (left, _) = lax.padtype_to_pads(shape, self.size, self.strides, "SAME")
        return int(top), int(left)

    def out(self, shape: Size) -> Size:
        """Shape of the outputs for images of a shape.

        Example:
            >>> Window((3, 3), (2, 2), "SAME").out((7, 8)), Window((3, 3), (1, 1), "VALID").out((7, 8))
            ((4, 4), (5, 6))
        """
        if self.padding == "VALID":
            height, width = (
                (n - k) // s + 1 for n, k, s in zip(shape, self.size, self.strides, strict=True)
            )
        else:
            height, width = (-(-n // s) for n, s in zip(shape, self.strides, strict=True))
        return height, width

    def tiles(self, shape: Size) -> bool:
        """Whether each position of images of a shape lies in exactly one window.

        Example:
            >>> Window((2, 2), (2, 2), "SAME").tiles((4, 6)), Window((2, 2), (2, 2), "VALID").tiles((5, 4))
            (True, False)
        """
        return self.size == self.strides and all(
            n % k == 0 for n, k in zip(shape, self.size, strict=True)
        )

    def periodic_on(self, shape: Size, canvas: Size) -> bool:
        """Whether the images fill the canvas that outputs on `canvas` come from, as periodic images must.

        Example:
            >>> Window((3, 3), (2, 2), "CIRCULAR").periodic_on((8, 8), (4, 4))
            True
        """
        filled = all(n == s * c for n, s, c in zip(shape, self.strides, canvas, strict=True))
        return filled or self.padding != "CIRCULAR"


class Taps(NamedTuple):
    """Terms of a sum along one axis: the sum at I is `sum_t masks[t][..., P, I] x[stride I + t - before]`.

    Attributes:
        masks: `[k, e, C, C]` with e the move of one window against the other and P the displacement
            at the output; terms from beyond the canvas are zero anyway.
        stride, before, size: Of the window along this axis.
        wrap: Whether images are periodic.
    """

    masks: np.ndarray
    stride: int
    before: int
    size: int
    wrap: bool

    def at(self, *index: Any) -> list[Mask]:
        """The mask of each term at one displacement: None if nothing is left out, False if everything is."""
        return [_entry(mask, index) for mask in self.masks]


def together(window: Window, shape: Size, canvas: Size) -> list[Taps]:
    """Terms of windows that move together at both positions, for each axis."""
    return [_taps(window, shape, canvas, axis, [(0,)] * window.size[axis]) for axis in (0, 1)]


def apart(window: Window, shape: Size, canvas: Size) -> list[Taps]:
    """Terms of windows that move apart by e = -k+1..k-1 (the first index of the masks, from zero), for each axis."""
    return [
        _taps(window, shape, canvas, axis, [range(1 - k, k)] * k)
        for axis, k in enumerate(window.size)
    ]


def slide(x: Array, taps: list[Taps], masks: list[list[Mask]], canvas: Size) -> Array:
    """Sum over windows of the first two axes, `[fine, fine, lanes]` to `[*canvas, lanes]`.

    Both axes are padded at once and summed one after the other: this is the form that XLA's CPU
    backend compiles to vector code (padding each axis by itself is ten times slower).
    """
    x = padded(x, taps, canvas)
    for axis in (0, 1):
        x = summed(x, taps[axis], masks[axis], canvas[axis], axis)
    return x


def padded(x: Array, taps: list[Taps], canvas: Size) -> Array:
    """`x` with as many rows and columns around it as sums over windows read."""
    widths = [
        (t.before, max(t.stride * (c - 1) + t.size - t.before - n, 0))
        for t, c, n in zip(taps, canvas, x.shape[:2], strict=True)
    ]
    if any(t.wrap for t in taps):
        return jnp.pad(x, [*widths, (0, 0)], mode="wrap")
    return lax.pad(x, jnp.zeros((), x.dtype), [(*width, 0) for width in widths] + [(0, 0, 0)])


def summed(x: Array, taps: Taps, masks: Sequence[Mask], count: int, axis: int) -> Array:
    """Sum over windows of a padded array along one axis, of which `count` outputs are kept."""
    stride = taps.stride
    stop = stride * (count - 1) + 1
    terms = []
    for t, mask in enumerate(masks):
        if mask is not False:
            term = lax.slice_in_dim(x, t, t + stop, stride, axis)
            terms.append(masked(term, mask, axis))
    return functools.reduce(jnp.add, terms)


def moving_mean(variances: Array, window: Window) -> Array:
    """Means over windows of `[h, w, n]`, `1/k sum_d q[s p + d]`, with zeros around the images.

    Example:
        >>> moving_mean(jnp.ones((2, 2, 1)), Window((1, 2), (1, 1), "VALID")).shape
        (2, 1, 1)
    """
    shape = variances.shape[0], variances.shape[1]
    wrap = window.padding == "CIRCULAR"
    before = window.before(shape)
    # For sizes and strides alone: padding and masks are those of the next lines.
    taps = together(window._replace(padding="VALID"), shape, (1, 1))
    taps = [
        t._replace(masks=np.ones((t.size, 1), bool), before=b, wrap=wrap)
        for t, b in zip(taps, before, strict=True)
    ]
    # At equal positions nothing is masked: what stands beyond the border is zero, or the other end.
    sums = slide(variances, taps, [t.at(0) for t in taps], window.out(shape))
    return sums / math.prod(window.size)


def live(n: int, canvas: int) -> np.ndarray:
    """Mask `[displacement, position]` of the pairs of positions that both lie inside images of size n.

    Example:
        >>> live(2, 3).astype(int).tolist()
        [[1, 1, 0], [1, 0, 0], [0, 1, 0]]
    """
    index = np.arange(canvas)
    return (index[None, :] < n) & ((index[None, :] + index[:, None]) % canvas < n)


def masked(x: Array, mask: Mask, axis: int) -> Array:
    """`x` times a mask along one of its first two axes.

    Example:
        >>> masked(jnp.ones((2, 1, 1)), np.array([True, False]), 0).ravel().tolist()
        [1.0, 0.0]
    """
    if mask is None:
        return x
    other_axes = (1, 2) if axis == 0 else (0, 2)
    return x * jnp.expand_dims(jnp.asarray(mask, x.dtype), other_axes)


def _taps(window, shape, canvas, axis, moves):
    """Terms along one axis, `moves[t]` being the moves of the other window at which term t is asked for."""
    n = shape[axis]
    count = canvas[axis]
    size = window.size[axis]
    stride = window.strides[axis]
    before = window.before(shape)[axis]
    out = window.out(shape)[axis]
    wrap = window.padding == "CIRCULAR"
    index = np.arange(count)
    partner = (index[None, :] + index[:, None]) % count

    def position(t):
        return stride * index + t - before

    def inside(t):
        """Whether term t of the window at each output lies in the window and in the image."""
        fits = (0 <= t < size) & (index < out)
        return fits if wrap else fits & (0 <= position(t)) & (position(t) < n)

    masks = []
    for t, at_term in enumerate(moves):
        # Zeros stand beyond the canvas: a term from there is nothing, whether masked or not, and a
        # mask that is true everywhere costs nothing.
        is_zero = (position(t) < 0) | (position(t) >= count * stride)
        first = inside(t)[None, :]
        masks.append([(first & inside(t + e)[partner]) | (is_zero & (not wrap)) for e in at_term])
    return Taps(np.array(masks), stride, before, size, wrap)


def _entry(mask, index):
    """`mask[index]` of which some indices may be traced; None where all is true, False where nothing is."""
    for i in index:
        known = isinstance(mask, np.ndarray)
        if known and mask.all():
            return None
        if known and not mask.any():
            return False
        if known and isinstance(i, int):
            mask = mask[i]
        else:
            mask = lax.dynamic_index_in_dim(jnp.asarray(mask), i, keepdims=False)
    return mask
