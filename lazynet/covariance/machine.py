"""Machine code for planes: loops over rows and columns whose innermost values are vectors, one number for each lane.

The code is written as the text of LLVM's language, with vectors in it: what a compiler would have to
find out by itself (which loops can be vectors, which arrays overlap) is said. It is made of passes.
A pass reads a plane, sums over a window, maps each sum together with what each image knows of
itself, and writes a plane:

- Sums along a row are kept for as many rows as the window is high, one buffer for each row modulo
  the height. An output row is the sum of all buffers, in whatever order, so a plane is overwritten
  while it is read and stays in the first levels of the cache.
- Rows beyond the plane are zeros (or, for periodic images, the rows at the other end), and so are
  the columns beside it, which are written before a row is read.

Which pass comes when, on which shapes and with which constants, is a table that the code reads:
networks of any depth with the same kinds of layers share one piece of machine code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lazynet.covariance.elementary import Elementary
from lazynet.covariance.instructions import Code
from lazynet.covariance.machine_pools import load, pool
from lazynet.covariance.windows import Size

__all__ = ["FIELDS", "ITEM", "LOAD", "PASSES", "POOL", "TOTAL", "Kind", "module"]

FIELDS = (
    "kind source target extra height width out_height out_width rows columns out_rows out_columns "
    "before_rows before_columns cyclic first second constants tall wide down right"
).split()
"""Numbers of a pass in the table: its kind, the planes that it reads and writes, the images' shapes before and after
it, how far one displacement moves there, rows above and columns beside an image that windows reach, where the
images' own arrays and the constants are, and of pools the window and its strides."""

TOTAL, LOAD, POOL, PASSES = range(4)
"""Numbers of kinds: of the pass that adds up the last plane, of the two that exchange planes with the stages before and
after (`machine_pools`), and of the first other one."""

ITEM = "dy", "dx", "first", "out"
"""Numbers of a plane: its displacement, where the arrays of its first image start, and which sum it belongs to."""


class Kind(NamedTuple):
    """What a pass does.

    Attributes:
        size, strides: Of its window; None for the first pass, which reads no plane.
        wraps: Whether its window is periodic.
        cyclic: Whether images are: displacements go around, and planes have the size of images.
        planes: How many planes it reads (nngp, ntk).
        extra: How many planes are added to the result.
        arrays: How many arrays of each image it reads.
        map: From those of the first image, of the second, the means over windows, and what is
            added; its constants are all zero.
    """

    size: Size | None
    strides: Size
    wraps: bool
    cyclic: bool
    planes: int
    extra: int
    arrays: int
    map: Elementary


def module(kinds: Sequence[Kind], dtype: np.dtype, lanes: int, *, shared: bool) -> str:
    """The text of a module with `run`, which takes planes through passes and adds up what comes out.

    Args:
        kinds: Of passes.
        dtype: Of the planes.
        lanes: Of a vector.
        shared: Whether all lanes have one and the same first image, whose arrays are then numbers.
    """
    code = Code("double" if dtype == np.float64 else "float", lanes)
    for number, kind in enumerate(kinds):
        code.function(f"pass_{number}", PASS, lambda kind=kind: _pass(code, kind, shared))
    code.function("total", f"{PASS}, double %weight, ptr %sums", lambda: _total(code))
    for name, write in (("load", load), ("pool", pool)):
        code.function(
            name, f"{PASS}, ptr %store, ptr %places", lambda write=write: write(code, _step(code))
        )
    code.function("run", RUN, lambda: _run(code, len(kinds)), visible=True)
    return code.text()


PASS = (
    "ptr %step, i64 %dy, i64 %dx, ptr %planes, ptr %rows, ptr %first, ptr %second, ptr %constants, "
    "i64 %pitch, i64 %size"
)
RUN = (
    "ptr %table, i64 %steps, ptr %constants, ptr %items, ptr %weights, i64 %count, i64 %together, "
    "ptr %first, ptr %second, ptr %rows, ptr %planes, i64 %registers, i64 %pitch, i64 %size, "
    "ptr %source, ptr %source_places, ptr %sink, ptr %sink_places, ptr %sums"
)


def _step(code):
    """The numbers of a pass."""
    return {field: code.number("%step", n) for n, field in enumerate(FIELDS)}


def _pass(code, kind, shared):
    step = _step(code)
    source, target, extra = (code.plane(step[n]) for n in ("source", "target", "extra"))
    shape = [step["out_height"], step["out_width"]]
    moves = [code.times("%dy", step["out_rows"]), code.times("%dx", step["out_columns"])]
    height, width = (code.shared(n, d, kind.cyclic) for n, d in zip(shape, moves, strict=True))
    # Rows of the plane begin at row max(0, -dy) of the first image and max(0, dy) of the second,
    # columns likewise.
    sides = [
        _Side(code, "%first", step["first"], shape, [code.times(d, -1) for d in moves], 1, shared),
        _Side(code, "%second", step["second"], shape, moves, 2 if kind.cyclic else 1, False),
    ]
    constants = [
        code.spread(code.scalar("%constants", code.plus(step["constants"], k)))
        for k in range(len(kind.map.constants))
    ]
    window = None if kind.size is None else _Window(code, kind, step, source)
    with code.loop("0", height) as i:
        row = None if window is None else window.row(i, width)
        own = [side.row(i) for side in sides]
        written, added = (code.address(plane, code.times(i, "%pitch")) for plane in (target, extra))
        with code.loop("0", width) as j:
            inputs = [
                side.load(start, j, n)
                for side, start in zip(sides, own, strict=True)
                for n in range(kind.arrays)
            ]
            inputs += [] if row is None else row(j)
            inputs += [code.load(code.address(code.other(added, n), j)) for n in range(kind.extra)]
            for n, value in enumerate(_mapped(code, kind.map, inputs, constants)):
                code.store(value, code.address(code.other(written, n), j))


class _Side:
    """Arrays of one of the two images, from the position that is the first in the plane."""

    def __init__(self, code, pointer, offset, shape, moves, copies, shared):
        height, width = shape
        self.code = code
        self.address = code.place if shared else code.address
        self.shared = shared
        self.pitch = code.times(width, copies)
        self.size = code.times(self.pitch, code.times(height, copies))
        rows, columns = (code.largest("0", move) for move in moves)
        start = code.plus(offset, code.plus(code.times(rows, self.pitch), columns))
        self.start = self.address(pointer, start)

    def row(self, i):
        return self.address(self.start, self.code.times(i, self.pitch))

    def load(self, row, j, n):
        at = self.code.plus(j, self.code.times(n, self.size))
        if self.shared:
            return self.code.spread(self.code.scalar(row, at))
        return self.code.load(self.code.address(row, at))


class _Window:
    """Sums over windows of the planes of a source, row by row."""

    def __init__(self, code, kind, step, source):
        self.code = code
        self.kind = kind
        self.source = source
        self.before = step["before_rows"], step["before_columns"]
        moves = code.times("%dy", step["rows"]), code.times("%dx", step["columns"])
        shape = step["height"], step["width"]
        self.shape = [code.shared(n, d, kind.cyclic) for n, d in zip(shape, moves, strict=True)]

    def row(self, i, width):
        """Sums of the output row i, as a function of the column."""
        code = self.code
        tall = self.kind.size[0]
        down, right = self.kind.strides
        if self.kind.size == (1, 1):
            start = code.address(self.source, code.times(code.times(i, down), "%pitch"))
            return lambda j: self._loaded(start, code.times(j, right))
        top = code.minus(code.times(i, down), self.before[0])
        # Rows that the window above has seen too are summed already; the first window finds none.
        known = code.choose(code.compare("eq", i, "0"), "0", str(max(tall - down, 0)))
        with code.loop(code.plus(top, known), code.plus(top, tall)) as row:
            self._sum_along(row, width)
        slots = [self._slot(n) for n in range(tall)]

        def sums(j):
            terms = [self._loaded(slot, j) for slot in slots]
            return [code.sum(each) for each in zip(*terms, strict=True)]

        return sums

    def _sum_along(self, row, width):
        """Sums along a row of the source, into the buffer of that row."""
        code = self.code
        (tall, wide), (_, right), (height, columns) = self.kind.size, self.kind.strides, self.shape
        if self.kind.wraps:
            around = code.plus(row, code.times(height, tall))
            at = code.set(f"urem i64 {around}, {height}")
            start = code.address(self.source, code.times(at, "%pitch"))
        else:
            inside = code.compare("ult", row, height)  # negative ones are large
            start = code.address(self.source, code.times(row, "%pitch"))
            zeros = self._slot(-1)  # the row before those of sums
            start = code.set(f"select i1 {inside}, ptr {start}, ptr {zeros}")
        # What lies beside the columns, just before it is read: rows are far enough apart for that.
        for k in range(1, wide):
            for n in range(self.kind.planes):
                line = code.other(start, n)
                left, beyond = str(-k), code.plus(columns, k - 1)
                ends = (code.minus(columns, k), str(k - 1)) if self.kind.wraps else (None, None)
                for to, end in zip((left, beyond), ends, strict=True):
                    value = "zeroinitializer" if end is None else code.load(code.address(line, end))
                    code.store(value, code.address(line, to))
        slot = self._slot(code.set(f"urem i64 {code.plus(row, self.before[0])}, {tall}"))
        with code.loop("0", width) as j:
            first = code.minus(code.times(j, right), self.before[1])
            terms = [self._loaded(start, code.plus(first, t)) for t in range(wide)]
            for n, each in enumerate(zip(*terms, strict=True)):
                code.store(code.sum(each), code.address(code.other(slot, n), j))

    def _loaded(self, start, j):
        return [
            self.code.load(self.code.address(self.code.other(start, n), j))
            for n in range(self.kind.planes)
        ]

    def _slot(self, n):
        return self.code.address("%rows", self.code.times(n, "%pitch"))


def _mapped(code, map, inputs, constants):
    values = dict(enumerate(inputs)) | {-1 - k: value for k, value in enumerate(constants)}
    for n, (name, operands) in enumerate(map.operations, map.inputs):
        # Of a constant and a value the value alone can be NaN, and a comparison that fails keeps
        # it: LLVM's own maximum looks for NaN and signed zeros on both sides.
        quick = name in ("max", "min") and operands[0] < 0
        write = code.bounded if quick else code.elementary
        values[n] = write(name, [values[k] for k in operands])
    return [values[n] for n in map.outputs]


def _total(code):
    """Adds the sum over the planes, times a weight, to the sums of all displacements."""
    step = _step(code)
    moves = [code.times("%dy", step["rows"]), code.times("%dx", step["columns"])]
    shape = [step["height"], step["width"]]
    shared = [code.shared(n, d, False) for n, d in zip(shape, moves, strict=True)]
    periodic = code.compare("ne", step["cyclic"], "0")
    height, width = (code.choose(periodic, n, own) for n, own in zip(shape, shared, strict=True))
    # A plane is added up in its own dtype, down its columns and then across; planes in doubles.
    for n in range(2):
        plane = code.other(code.plane(step["source"]), n)
        with code.loop("0", width) as j:
            code.store("zeroinitializer", code.address("%rows", j))
        with code.loop("0", height) as i:
            row = code.address(plane, code.times(i, "%pitch"))
            with code.loop("0", width) as j:
                sums = code.address("%rows", j)
                code.store(code.sum([code.load(sums), code.load(code.address(row, j))]), sums)
        with code.loop("1", width) as j:
            terms = [code.load(code.address("%rows", k)) for k in ("0", j)]
            code.store(code.sum(terms), code.address("%rows", "0"))
        code.add_weighted(code.load("%rows"), code.address("%sums", str(n), wide=True))


def _run(code, kinds):
    with code.loop("0", "%count", "%together") as start:
        group = code.smallest(code.minus("%count", start), "%together")
        # All planes of a group take a step before the next one, whose arrays of the images they
        # share.
        with code.loop("0", "%steps") as at:
            step = code.word("%table", code.times(at, len(FIELDS)))
            kind = code.number(step, 0)
            with code.loop("0", group) as g:
                number = code.plus(start, g)
                item = [
                    code.number("%items", code.plus(code.times(number, len(ITEM)), field))
                    for field in range(len(ITEM))
                ]
                dy, dx, image, out = item
                first = code.place("%first", image)
                sums = code.address("%sums", code.times(out, 2), wide=True)
                planes = code.address("%planes", code.times(code.times(g, "%registers"), "%size"))
                weight = code.double("%weights", number)
                passed = (
                    f"ptr {step}, i64 {dy}, i64 {dx}, ptr {planes}, ptr %rows, ptr {first}, "
                    "ptr %second, ptr %constants, i64 %pitch, i64 %size"
                )
                calls = [
                    f"call void @total({passed}, double {weight}, ptr {sums})",
                    f"call void @load({passed}, ptr %source, ptr %source_places)",
                    f"call void @pool({passed}, ptr %sink, ptr %sink_places)",
                ]
                calls += [f"call void @pass_{k}({passed})" for k in range(kinds)]
                code.switch(kind, calls)
