"""A chain as passes over planes: which maps follow which window, where planes are kept, and what images bring along.

The steps between two windows are one map, so that a pass reads and writes each plane once. Branches
keep the plane that they start from until the last of them has read it, and sums of branches are
made while the last one is written.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.covariance.chains import Chain, Joined, Pointed, Step, Swept, walked
from lazynet.covariance.elementary import Elementary, Unsupported, elementary
from lazynet.covariance.machine import FIELDS, Kind
from lazynet.covariance.windows import Size, Window
from lazynet.typing import Array

__all__ = ["Plan", "planned"]

ALONE = Window((1, 1), (1, 1), "VALID")
"""The window of a pass that sums over none."""

PIXELS = -1
"""The register of a pass that reads no plane."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is known of a chain before its images are.

    Attributes:
        dtype: Of the planes.
        kinds: The different passes.
        table: A row of `machine.FIELDS` for each pass.
        constants: Of all passes.
        registers: How many pairs of planes (nngp, ntk) are kept at a time.
        shape: Of the images before the first pass, the largest.
        reach: Height and width of the largest window.
        displacements: Between the images after the last pass, `[d, 2]`.
        weights: How often each of them counts, `[d]`.
        trained: Whether there is an ntk.
        numbers: How many numbers each image brings along.
        zero: Whether the displacement is zero alone.
    """

    dtype: np.dtype
    kinds: tuple[Kind, ...]
    table: np.ndarray
    constants: np.ndarray
    registers: int
    shape: Size
    reach: Size
    displacements: np.ndarray
    weights: np.ndarray
    trained: bool
    numbers: int
    zero: bool


def planned(
    chain: Chain, *, zero: bool = False, same: bool = False
) -> tuple[Plan, tuple[Array, Array]]:
    """The plan of a chain, and what the images of both sets bring along, `[numbers, n]` each.

    Args:
        chain: Steps from the pixels to a layer.
        zero: Whether only equal positions are asked for.
        same: Whether each image meets itself: equal positions, whose values are exact, are left
            out, and so is one of two opposite displacements.

    Raises:
        Unsupported: If there is no such program: periodic windows beside others, or on images that
            they do not fill, or maps that are not elementary.
    """
    walk = _Walk(chain)
    layout = _Layout(chain.images, walk)
    end = walk.end
    displacements, weights = _displacements(end.shape, walk.cyclic, zero=zero, same=same)
    windows = [done.window.size for done in walk.passes if done.window]
    plan = Plan(
        np.dtype(chain.images[0].dtype),
        tuple(layout.kinds),
        np.array([*layout.table, layout.total()], np.int64),
        np.array(layout.constants or [0.0], chain.images[0].dtype),
        walk.registers,
        walk.start.shape,
        (max([1, *(s[0] for s in windows)]), max([1, *(s[1] for s in windows)])),
        displacements,
        weights,
        end.trained,
        max(layout.sizes),
        zero,
    )
    return plan, (jnp.concatenate(layout.arrays[0]), jnp.concatenate(layout.arrays[1]))


class _Plane(NamedTuple):
    """Where a plane is, and of what: shape of the images, strides so far, whether there is an ntk."""

    register: int
    shape: Size
    strides: Size
    trained: bool


class _Pass(NamedTuple):
    """A window and the map after it, from one plane to another.

    Attributes:
        window: Of the sums; None if pixels are multiplied.
        source, target: What is read and written.
        extra: A plane that is added; None for none.
        steps: Pointwise steps, in order.
        map: Of the arrays of both images, the sums, and what is added.
        arrays: How many arrays each image has here.
    """

    window: Window | None
    source: _Plane
    target: _Plane
    extra: _Plane | None
    steps: tuple[Pointed, ...]
    map: Elementary
    arrays: int


_Group = tuple[Window | None, tuple[Pointed, ...]] | Joined
"""A window (None for the pixels) with the steps after it, or branches."""


class _Walk:
    """Passes along a chain, and the registers of their planes."""

    def __init__(self, chain):
        pixels = chain.images[0]
        self.channels = pixels.shape[-1]
        self.dtype = pixels.dtype
        self.cyclic = _is_cyclic(chain.steps)
        self.passes: list[_Pass] = []
        self.used: set[int] = set()
        self.registers = 0
        self.start = _Plane(PIXELS, (pixels.shape[1], pixels.shape[2]), (1, 1), False)
        self.end = self.through(chain.steps, self.start, keep=False)

    def through(
        self, steps: Sequence[Step], plane: _Plane, *, keep: bool, extra: _Plane | None = None
    ) -> _Plane:
        """The plane after steps, plus an extra one; the first one is kept where it is asked to be."""
        groups = _grouped(steps, start=plane.register == PIXELS)
        if extra is not None and (not groups or isinstance(groups[-1], Joined)):
            groups.append((ALONE, ()))
        for number, group in enumerate(groups):
            kept = keep and number == 0
            if isinstance(group, Joined):
                plane = self.join(group.branches, plane, keep=kept)
            else:
                added = extra if number == len(groups) - 1 else None
                window, after = group
                plane = self.add(window, after, plane, added, keep=kept)
        return plane

    def join(self, branches: Sequence[Sequence[Step]], plane: _Plane, *, keep: bool) -> _Plane:
        """The sum of what branches make of a plane."""
        untouched = [branch for branch in branches if not branch]
        if len(untouched) > 1:
            raise Unsupported("a plane that is added to itself")
        total = plane if untouched else None
        rest = [branch for branch in branches if branch]
        for number, branch in enumerate(rest):
            still = keep or number < len(rest) - 1 or total is plane
            result = self.through(branch, plane, keep=still, extra=total)
            if total is not None and (total is not plane or not keep):
                self.used.discard(total.register)
            total = result
        return cast(_Plane, total)

    def add(self, window, steps, source, extra, *, keep):
        """One more pass; the plane that it writes."""
        mapped, arrays, trained = self.mapped(window, steps, source, extra)
        shape = source.shape if window is None else window.out(source.shape)
        down, right = (1, 1) if window is None else window.strides
        strides = source.strides[0] * down, source.strides[1] * right
        in_place = not keep and (not self.cyclic or window == ALONE) and source.register != PIXELS
        register = source.register if in_place else self.free()
        target = _Plane(register, shape, strides, trained)
        self.passes.append(_Pass(window, source, target, extra, steps, mapped, arrays))
        if not keep and not in_place:
            self.used.discard(source.register)
        return target

    def free(self):
        register = min(set(range(len(self.used) + 1)) - self.used)
        self.used.add(register)
        self.registers = max(self.registers, register + 1)
        return register

    def mapped(self, window, steps, source, extra):
        """The map of a pass, how many arrays each image brings along, and whether there is an ntk after it."""
        one = jax.ShapeDtypeStruct((), self.dtype)
        counts = [len(jax.eval_shape(step.op.side, one)) for step in steps]
        channels = self.channels if window is None else 0
        arrays = channels + sum(counts)
        planes = 0 if window is None else 1 + source.trained
        size = 1 if window is None else math.prod(window.size)
        trained = []

        def numbers(*values):
            first, second, rest = values[:arrays], values[arrays : 2 * arrays], values[2 * arrays :]
            own, added = rest[:planes], rest[planes:]
            if window is None:
                products = [first[k] * second[k] for k in range(channels)]
                own = [sum(products[1:], products[0]) / channels]
            nngp, ntk = own[0] / size, own[1] / size if len(own) > 1 else None
            at = channels
            for step, count in zip(steps, counts, strict=True):
                sides = tuple(first[at : at + count]), tuple(second[at : at + count])
                nngp, ntk, _ = step.op.pair(*sides, nngp, ntk, None)
                at += count
            if added:
                nngp = nngp + added[0]
                ntk = added[1] if ntk is None and len(added) > 1 else ntk
                ntk = ntk + added[1] if ntk is not None and len(added) > 1 else ntk
            trained[:] = [ntk is not None]
            return [nngp] if ntk is None else [nngp, ntk]

        more = 0 if extra is None else 1 + extra.trained
        found = elementary(numbers, 2 * arrays + planes + more, self.dtype)
        return found, arrays, trained[0]


class _Layout:
    """The table of passes, and the arrays that images bring along, one after the other."""

    def __init__(self, images, walk):
        self.images = images
        self.total_strides = walk.end.strides
        self.cyclic = walk.cyclic
        self.end = walk.end
        self.kinds: list[Kind] = []
        self.table: list[list[int]] = []
        self.constants: list[float] = []
        self.arrays: tuple[list[Array], list[Array]] = ([], [])
        self.sizes = [0, 0]
        for done in walk.passes:
            self.add(done)

    def add(self, done):
        """One more pass."""
        extra = 0 if done.extra is None else 1 + done.extra.trained
        zeros = done.map._replace(constants=(0.0,) * len(done.map.constants))
        window = done.window
        planes = 0 if window is None else 1 + done.source.trained
        kind = Kind(
            None if window is None else window.size,
            (1, 1) if window is None else window.strides,
            self.cyclic and window is not None and window.size != (1, 1),
            self.cyclic,
            planes,
            extra,
            done.arrays,
            zeros,
        )
        if kind not in self.kinds:
            self.kinds.append(kind)
        numbers = self.places(done.source) | {
            "kind": self.kinds.index(kind),
            "target": 2 * done.target.register,
            "extra": 0 if done.extra is None else 2 * done.extra.register,
            "first": self.sizes[0],
            "second": self.sizes[1],
            "constants": len(self.constants),
        }
        after = self.places(done.target)
        numbers |= {f"out_{name}": after[name] for name in ("height", "width", "rows", "columns")}
        before = (0, 0) if window is None else window.before(done.source.shape)
        numbers |= {"before_rows": before[0], "before_columns": before[1]}
        self.table.append([numbers[field] for field in FIELDS])
        self.constants += done.map.constants
        self.bring(done)

    def places(self, plane):
        """Numbers of a plane that is read."""
        rows, columns = (n // m for n, m in zip(self.total_strides, plane.strides, strict=True))
        height, width = plane.shape
        return {
            "source": 2 * max(plane.register, 0),
            "height": height,
            "width": width,
            "rows": rows,
            "columns": columns,
            "cyclic": int(self.cyclic),
        }

    def total(self):
        """The row of the pass that adds up the last plane."""
        numbers = dict.fromkeys(FIELDS, 0) | self.places(self.end) | {"kind": len(self.kinds)}
        return [numbers[field] for field in FIELDS]

    def bring(self, done):
        """The arrays of both sets for a pass."""
        for which in (0, 1):
            pixels = jnp.transpose(self.images[which], (3, 1, 2, 0))
            arrays = list(pixels) if done.window is None else []
            for step in done.steps:
                arrays += step.op.side(step.before[which]().nngp)
            for a in arrays:
                copied = jnp.tile(a, (2, 2, 1)) if self.cyclic and which == 1 else a
                self.arrays[which].append(copied.reshape(-1, a.shape[-1]))
                self.sizes[which] += math.prod(copied.shape[:2])


def _grouped(steps, *, start):
    """Windows (None for the pixels) with the pointwise steps after them, and steps that join branches."""
    groups: list[_Group] = []
    window, points = (None, []) if start else (ALONE, [])
    is_open = start
    for step in steps:
        if isinstance(step, Pointed):
            points.append(step)
            is_open = True
            continue
        if is_open:
            groups.append((window, tuple(points)))
        is_open = isinstance(step, Swept)
        window, points = (step.window if isinstance(step, Swept) else ALONE), []
        if isinstance(step, Joined):
            groups.append(step)
    if is_open:
        groups.append((window, tuple(points)))
    return groups


def _is_cyclic(steps):
    """Whether images are periodic in all windows (of more than one position)."""
    swept = [step for step in walked(steps) if isinstance(step, Swept)]
    kinds = {step.window.padding == "CIRCULAR" for step in swept if step.window.size != (1, 1)}
    filled = [
        step.window.periodic_on(step.shape, step.window.out(step.shape))
        or step.window.size == (1, 1)
        for step in swept
    ]
    if len(kinds) > 1 or not all(filled):
        raise Unsupported("periodic windows beside others, or on images that they do not fill")
    return True in kinds


def _displacements(shape, cyclic, *, zero, same):
    if zero:
        return np.zeros((1, 2), np.int64), np.ones(1)
    ranges = [np.arange(0 if cyclic else 1 - n, n) for n in shape]
    every = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 2).astype(np.int64)
    if not same:
        return every, np.ones(len(every))
    down, right = every.T
    if cyclic:
        kept = (down != 0) | (right != 0)
        return every[kept], np.ones(int(kept.sum()))
    kept = (down > 0) | ((down == 0) & (right > 0))
    return every[kept], np.full(int(kept.sum()), 2.0)
