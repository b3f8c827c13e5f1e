"""Tables that the code of `machine` reads, a row for each pass, and the arrays that images bring along to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp

from lazynet.covariance.chains import Pooled
from lazynet.covariance.elementary import Elementary
from lazynet.covariance.machine import FIELDS, LOAD, PASSES, POOL, TOTAL, Kind
from lazynet.covariance.passes import Pass, Plane, Walk
from lazynet.typing import Array

__all__ = ["Tables"]


class Tables:
    """Writes rows, and keeps the different passes, their constants and the arrays, one after the other."""

    def __init__(self, images: tuple[Array, Array], *, cyclic: bool):
        self.images = images
        self.cyclic = cyclic
        self.kinds: list[Kind] = []
        self.constants: list[float] = []
        self.arrays: tuple[list[Array], list[Array]] = ([], [])
        self.sizes = [0, 0]

    def passes(self, walk: Walk) -> list[list[int]]:
        """The rows of a walk."""
        return [self._pass(done, walk.end) for done in walk.passes]

    def total(self, end: Plane) -> list[int]:
        """The row that adds up the last plane."""
        return _row(kind=TOTAL, cyclic=int(self.cyclic), **_read(end, end))

    def pool(self, pool: Pooled, end: Plane) -> list[int]:
        """The row that adds the last plane to the sums of a pool."""
        (tall, wide), (down, right), _ = pool.window
        height, width = pool.window.out(pool.shape)
        before_rows, before_columns = pool.window.before(pool.shape)
        return _row(
            kind=POOL,
            out_height=height,
            out_width=width,
            before_rows=before_rows,
            before_columns=before_columns,
            tall=tall,
            wide=wide,
            down=down,
            right=right,
            **_read(end, end),
        )

    def load(self, pool: Pooled, walk: Walk) -> list[int]:
        """The row that reads the first plane from the sums of a pool."""
        row = _row(kind=LOAD, constants=len(self.constants), **_read(walk.start, walk.end))
        self.constants.append(pool.scale**2)
        return row

    def own(self, pool: Pooled, end: Plane) -> list[int]:
        """The row that writes the last plane before a pool at equal positions, of images that meet themselves."""
        moments = [] if pool.own is None else [a for a in pool.own() if a is not None]
        count = len(moments)
        # Values are there already, beside the first image: a map that returns its inputs.
        copied = Elementary(2 * count, (), tuple(range(count)), ())
        kind = Kind(None, (1, 1), False, False, 0, 0, count, copied)
        row = _row(**self._begun(kind), **_written(end, end))
        self._bring(0, moments)
        return row

    def _pass(self, done: Pass, end: Plane) -> list[int]:
        window, extra = done.window, done.extra
        kind = Kind(
            None if window is None else window.size,
            (1, 1) if window is None else window.strides,
            self.cyclic and window is not None and window.size != (1, 1),
            self.cyclic,
            0 if window is None else 1 + done.source.trained,
            0 if extra is None else 1 + extra.trained,
            done.arrays,
            # Numbers stand beside: kinds that differ in them alone share their machine code.
            done.map._replace(constants=(0.0,) * len(done.map.constants)),
        )
        before = (0, 0) if window is None else window.before(done.source.shape)
        row = _row(
            extra=0 if extra is None else 2 * extra.register,
            before_rows=before[0],
            before_columns=before[1],
            cyclic=int(self.cyclic),
            **self._begun(kind),
            **_read(done.source, end),
            **_written(done.target, end),
        )
        self.constants += done.map.constants
        for which in (0, 1):
            pixels = jnp.transpose(self.images[which], (3, 1, 2, 0))
            arrays = list(pixels) if window is None else []
            for step in done.steps:
                arrays += step.op.beside(step.before[which])
            self._bring(which, arrays)
        return row

    def _begun(self, kind: Kind) -> dict[str, int]:
        """The number of a kind, and where its constants and arrays will be."""
        if kind not in self.kinds:
            self.kinds.append(kind)
        number = PASSES + self.kinds.index(kind)
        first, second = self.sizes
        return dict(kind=number, constants=len(self.constants), first=first, second=second)

    def _bring(self, which: int, arrays: Sequence[Array]) -> None:
        """One more array of each image of a set."""
        for a in arrays:
            # Cyclic shifts of a doubled array are parts of it, without a seam.
            copied = jnp.tile(a, (2, 2, 1)) if self.cyclic and which == 1 else a
            self.arrays[which].append(copied.reshape(-1, a.shape[-1]))
            self.sizes[which] += math.prod(copied.shape[:2])


def _read(plane: Plane, end: Plane) -> dict[str, int]:
    """A plane that is read, and how far it moves for a displacement at the end."""
    rows, columns = _moves(plane, end)
    height, width = plane.shape
    # A register holds two planes, nngp and ntk. Pixels have none, and nothing is read.
    source = 2 * max(plane.register, 0)
    return dict(source=source, height=height, width=width, rows=rows, columns=columns)


def _written(plane: Plane, end: Plane) -> dict[str, int]:
    rows, columns = _moves(plane, end)
    height, width = plane.shape
    return dict(
        target=2 * plane.register,
        out_height=height,
        out_width=width,
        out_rows=rows,
        out_columns=columns,
    )


def _moves(plane, end):
    return [n // m for n, m in zip(end.strides, plane.strides, strict=True)]


def _row(**numbers: int) -> list[int]:
    return [numbers.get(field, 0) for field in FIELDS]
