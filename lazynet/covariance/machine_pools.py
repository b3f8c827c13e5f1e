"""Machine code of pools: sums over windows that move apart, added to the planes that the next stage reads.

With D the displacement of two windows and e how far their positions are apart inside of them, each
number of a plane of displacement d = s D + e belongs to one sum for each such D. Sums over the rows
of windows are made first, for all rows of sums at a displacement D along the first axis, then added
up along the columns, for each D along the second one.

The planes of sums are stored one after the other, each as large as two images share at its
displacement.
"""

from __future__ import annotations

from collections.abc import Mapping

from lazynet.covariance.instructions import Code, Number

__all__ = ["load", "pool"]


def load(code: Code, step: Mapping[str, Number]) -> None:
    """Copies a plane from the sums of a pool, times a constant."""
    moves = code.times("%dy", step["rows"]), code.times("%dx", step["columns"])
    height, width = (
        code.shared(step[name], d, False)
        for name, d in zip(("height", "width"), moves, strict=True)
    )
    place = _place(code, (step["height"], step["width"]), moves)
    scale = code.spread(code.scalar("%constants", step["constants"]))
    plane = code.plane(step["source"])
    for n in range(2):
        with code.loop("0", height) as i:
            row = code.plus(i, code.times(height, n))
            stored = code.address("%store", code.plus(place, code.times(row, width)))
            written = code.address(code.other(plane, n), code.times(i, "%pitch"))
            with code.loop("0", width) as j:
                value = code.elementary("mul", [code.load(code.address(stored, j)), scale])
                code.store(value, code.address(written, j))


def pool(code: Code, step: Mapping[str, Number]) -> None:
    """Adds a plane to all sums that it belongs to."""
    rows = _Axis(code, step, "%dy", "rows", "height", "before_rows", "tall", "down")
    columns = _Axis(code, step, "%dx", "columns", "width", "before_columns", "wide", "right")
    plane = code.plane(step["source"])
    with code.loop(rows.first, rows.beyond) as down:
        window = rows.at(down)
        for n in range(2):
            _sum_rows(code, code.other(plane, n), code.other("%rows", n), rows, columns, window)
        with code.loop(columns.first, columns.beyond) as right:
            place = _place(code, (rows.sums, columns.sums), (down, right))
            # the loop is entered once, or not at all for sums that nobody needs
            needed = code.choose(code.compare("sge", place, "0"), "1", "0")
            with code.loop("0", needed):
                _sum_columns(code, place, columns, window.count, columns.at(right))


def _sum_rows(code, plane, sums, rows, columns, window):
    """Sums over the rows of all windows, into buffers of which there is one for each row of sums."""
    with code.loop("0", window.count) as i:
        into = code.address(sums, code.times(i, "%pitch"))
        with code.loop("0", columns.shared) as j:
            code.store("zeroinitializer", code.address(into, j))
        start = code.plus(code.times(i, rows.stride), window.shift)
        first = code.largest("0", code.plus(start, window.first))
        beyond = code.smallest(rows.shared, code.plus(start, window.beyond))
        with code.loop(first, beyond) as row:
            read = code.address(plane, code.times(row, "%pitch"))
            with code.loop("0", columns.shared) as j:
                _add(code, code.address(into, j), code.address(read, j))


def _sum_columns(code, place, columns, height, window):
    """Adds the sums over rows, one column of the windows after the other."""
    with code.loop(window.first, window.beyond) as t:
        start = code.plus(window.shift, t)
        ends = code.minus("0", start), code.minus(columns.shared, start)
        first, beyond = (
            columns.divided(code.plus(end, code.minus(columns.stride, 1))) for end in ends
        )
        first = code.largest("0", first)
        beyond = code.smallest(window.count, beyond)
        for n in range(2):
            with code.loop("0", height) as i:
                row = code.plus(i, code.times(height, n))
                stored = code.address("%store", code.plus(place, code.times(row, window.count)))
                sums = code.address(code.other("%rows", n), code.times(i, "%pitch"))
                with code.loop(first, beyond) as j:
                    at = code.plus(start, code.times(j, columns.stride))
                    _add(code, code.address(stored, j), code.address(sums, at))


def _add(code, total, term):
    code.store(code.sum([code.load(total), code.load(term)]), total)


def _place(code, shape, displacement):
    """Where the plane of a displacement starts among those of images of a shape; -1 where it is not kept."""
    height, width = shape
    down, right = displacement
    row = code.plus(down, code.minus(height, 1))
    column = code.plus(right, code.minus(width, 1))
    columns = code.minus(code.times(width, 2), 1)
    return code.number("%places", code.plus(code.times(row, columns), column))


class _Axis:
    """Displacements of sums that a plane belongs to along one axis, from `first` to below `beyond`.

    Attributes:
        shared: Positions that two images share at the displacement of the plane.
        sums: Size of the image of sums.
        stride: Of the windows.
    """

    def __init__(self, code, step, move, unit, size, before, window, stride):
        self.code = code
        self.positions = step[size]
        self.sums = step[f"out_{size}"]
        self.before = step[before]
        self.window = step[window]
        self.stride = step[stride]
        self.move = code.times(move, step[unit])
        self.shared = code.shared(self.positions, self.move, False)
        # the largest e is k - 1, the smallest 1 - k
        lowest = self.divided(code.plus(code.minus(self.move, self.window), self.stride))
        highest = self.divided(code.plus(self.move, code.minus(self.window, 1)))
        self.first = code.largest(code.minus(1, self.sums), lowest)
        self.beyond = code.smallest(self.sums, code.plus(highest, 1))

    def divided(self, number):
        """A number divided by the stride, rounded down."""
        code = self.code
        # which make it positive
        periods = code.plus(code.times(self.positions, 2), self.window)
        positive = code.plus(number, code.times(periods, self.stride))
        return code.minus(code.set(f"udiv i64 {positive}, {self.stride}"), periods)

    def at(self, displacement):
        """Windows at a displacement of sums."""
        code = self.code
        apart = code.minus(self.move, code.times(displacement, self.stride))
        behind = code.minus("0", apart)
        # of the sums' and of the plane's first number
        start = code.times(code.largest("0", code.minus("0", displacement)), self.stride)
        passed = code.plus(self.before, code.largest("0", code.minus("0", self.move)))
        return _Windows(
            code.shared(self.sums, displacement, False),
            code.largest("0", behind),
            code.smallest(self.window, code.plus(self.window, behind)),
            code.minus(start, passed),
        )


class _Windows:
    """Windows along one axis at a displacement.

    Attributes:
        count: How many there are.
        first, beyond: Their positions whose partners are inside of the other window.
        shift: Where position zero of the first window is in the plane.
    """

    def __init__(self, count, first, beyond, shift):
        self.count = count
        self.first = first
        self.beyond = beyond
        self.shift = shift
