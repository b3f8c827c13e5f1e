"""Planes of pooled images: sums over windows that move apart, from the finer planes that they sum over.

With e the move of one window against the other, the pooled plane of displacement D sums the finer
planes of s D + e, e = 1-k..k-1 along each axis, over the positions that both windows share. Either
the few finer planes of one pooled plane are asked for (pulled), or each finer plane is evaluated
once and added to all pooled planes that it is part of (pushed), which are then stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.covariance.loops import cut, fold, guarded, written, zeros
from lazynet.covariance.pairing import Displacement, Request
from lazynet.covariance.pointwise import Covariance
from lazynet.covariance.windows import Size, Taps, Window, apart, padded, slide, summed
from lazynet.typing import Array

__all__ = ["pulled", "pushed"]

Plane = Callable[[Displacement], Covariance]


def pulled(below: Plane, fine: Request, window: Window, shape: Size, scale: float) -> Plane:
    """A pooled plane from the finer planes that it sums over, one for each move of the windows."""
    canvas, taps = _apart(window, shape, fine.canvas)

    def plane(at):
        pooled_at = at.p, at.q

        def part(e, like=None):
            moved = zip(pooled_at, window.strides, e, fine.canvas, strict=True)
            # s D + e, cyclically; masks count the moves from e = 1 - k on.
            row, column = ((s * d + x + 2 * c) % c for d, s, x, c in moved)
            masks = [
                tap.at(x + tap.size - 1, d) for tap, x, d in zip(taps, e, pooled_at, strict=True)
            ]
            finer = fine.at(row, column)

            def pooled():
                return below(finer.fresh()).map(lambda a: slide(a, taps, masks, canvas))

            return guarded(pooled, row, like)

        nothing = zeros(lambda: part(jnp.zeros(2, jnp.int32)))
        moves = jnp.asarray(_moves(window), jnp.int32)

        def add(total, e):
            return jax.tree.map(jnp.add, total, part(e, nothing)), None

        total, _ = lax.scan(add, nothing, moves)
        return total.map(lambda a: a * scale**2)

    return plane


def pushed(
    below: Plane, fine: Request, window: Window, shape: Size, scale: float, *, zero: bool
) -> Plane:
    """All pooled planes at once (or the one of displacement zero): each finer plane is evaluated once.

    Along each axis a finer plane belongs to a few pooled ones. They are found by loops, rows before
    columns, so that the program does not grow with the window.
    """
    canvas, taps = _apart(window, shape, fine.canvas)
    kept = (1, 1) if zero else canvas
    # e = d - s D: one D further is a move less by the stride, and if D = 0 alone is kept, all moves
    # that lead to it are a canvas of the finer planes apart.
    periods = [
        tap.stride * count // own for tap, count, own in zip(taps, canvas, kept, strict=True)
    ]
    rows, columns = map(_Axis, taps, canvas, periods)
    nothing = zeros(lambda: below(fine.at(0, 0)))

    def add(stored, p, q):
        at = fine.at(p, q)
        planes = guarded(lambda: below(at.fresh()), p, nothing)
        planes = planes.map(lambda a: padded(a, taps, canvas))

        def add_row(stored, i):
            row, shared_rows = rows.part(p, i)
            strips = planes.map(lambda a: rows.sum(a, shared_rows, 0))

            def add_column(stored, j):
                column, shared_columns = columns.part(q, j)
                sums = strips.map(lambda a: columns.sum(a, shared_columns, 1))
                place = row % kept[0], column % kept[1]
                return jax.tree.map(lambda a, b: _accumulated(a, b, place), stored, sums), None

            return lax.scan(add_column, stored, columns.numbers)[0], None

        return lax.scan(add_row, stored, rows.numbers)[0]

    start = nothing.map(lambda a: jnp.zeros((*kept, *canvas, a.shape[-1]), a.dtype))
    stored = fold(add, start, fine.canvas).map(lambda a: a * scale**2)

    def plane(at):
        place = (0, 0, 0, 0, 0) if zero else (at.p, at.q, 0, 0, 0)
        return stored.map(lambda a: cut(a, place, (1, 1, *a.shape[2:]))[0, 0])

    return plane


class _Axis(NamedTuple):
    """Along one axis, the pooled planes that a finer one belongs to.

    Attributes:
        taps: Terms of the sums.
        count: Size of the canvas.
        period: Of the moves that lead from one finer displacement to pooled ones that are kept.
    """

    taps: Taps
    count: int
    period: int

    @property
    def numbers(self) -> Array:
        """Numbers of the pooled planes."""
        return jnp.arange(-(-(2 * self.taps.size - 1) // self.period), dtype=jnp.int32)

    def part(self, d: Any, number: Any) -> tuple[Any, Array]:
        """One pooled displacement of a finer one, and masks `[k, C]` of the positions that its windows share."""
        last = 2 * self.taps.size - 1
        # Counted from e = 1 - k on, and such that d - e is a multiple of the stride.
        move = (d + self.taps.size - 1) % self.period + number * self.period
        at = (d - move + self.taps.size - 1) // self.taps.stride % self.count
        # the moves beyond the last one share nothing
        table = np.pad(self.taps.masks, [(0, 0), (0, 1), (0, 0), (0, 0)])
        masks = cut(
            jnp.asarray(table),
            (0, jnp.minimum(move, last), at, 0),
            (self.taps.size, 1, 1, self.count),
        )
        return at, masks[:, 0, 0]

    def sum(self, x: Array, masks: Array, axis: int) -> Array:
        """The sum of a padded array over the positions that are shared."""
        return summed(x, self.taps, list(masks), self.count, axis)


def _apart(window, shape, fine):
    canvas = fine[0] // window.strides[0], fine[1] // window.strides[1]
    return canvas, apart(window, shape, canvas)


def _moves(window):
    """Moves `(e, f)` of one window against the other, of which they share something."""
    height, width = window.size
    return [(e, f) for e in range(1 - height, height) for f in range(1 - width, width)]


def _accumulated(total, value, at):
    start = (*at, 0, 0, 0)
    before = cut(total, start, (1, 1, *value.shape))
    return written(total, before + value[None, None], start)
