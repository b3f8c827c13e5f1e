"""Steps between two pools as passes over planes: which maps follow which window, and where planes are kept.

The steps between two windows are one map, so that a pass reads and writes each plane once. Branches
keep the plane that they start from until the last of them has read it, and sums of branches are
made while the last one is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax

from lazynet.covariance.chains import Joined, Pointed, Pooled, Step, Swept
from lazynet.covariance.elementary import Elementary, Unsupported, elementary
from lazynet.covariance.windows import Size, Window

__all__ = ["PIXELS", "Pass", "Plane", "Walk"]

ALONE = Window((1, 1), (1, 1), "VALID")
"""The window of a pass that sums over none."""

PIXELS = -1
"""The register of a pass that reads no plane."""


class Plane(NamedTuple):
    """Where a plane is, and of what: shape of the images, strides so far, whether there is an ntk."""

    register: int
    shape: Size
    strides: Size
    trained: bool


class Pass(NamedTuple):
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
    source: Plane
    target: Plane
    extra: Plane | None
    steps: tuple[Pointed, ...]
    map: Elementary
    arrays: int


_Group = tuple[Window | None, tuple[Pointed, ...]] | Joined
"""A window (None for the pixels) with the steps after it, or branches."""


class Walk:
    """Passes along steps, and the registers of their planes."""

    def __init__(
        self, steps: Sequence[Step], start: Plane, channels: int, dtype: Any, *, cyclic: bool
    ):
        self.channels = channels
        self.dtype = dtype
        self.cyclic = cyclic
        self.passes: list[Pass] = []
        self.start = start
        self.used = set() if start.register == PIXELS else {start.register}
        self.registers = len(self.used)
        self.end = self.through(steps, start, keep=False)

    def through(
        self, steps: Sequence[Step], plane: Plane, *, keep: bool, extra: Plane | None = None
    ) -> Plane:
        """The plane after steps, plus an extra one; the first one is kept where it is asked to be."""
        groups = _grouped(steps, start=plane.register == PIXELS)
        # What is added is added by the last pass: branches that end in none get one.
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

    def join(self, branches: Sequence[Sequence[Step]], plane: Plane, *, keep: bool) -> Plane:
        """The sum of what branches make of a plane."""
        untouched = [branch for branch in branches if not branch]
        if len(untouched) > 1:
            raise Unsupported("a plane that is added to itself")
        total = plane if untouched else None
        rest = [branch for branch in branches if branch]
        for number, branch in enumerate(rest):
            still = keep or number < len(rest) - 1 or total is plane
            result = self.through(branch, plane, keep=still, extra=total)
            # The sum so far has been read into the result, and its register is free.
            if total is not None and (total is not plane or not keep):
                self.used.discard(total.register)
            total = result
        return cast(Plane, total)

    def add(self, window, steps, source, extra, *, keep):
        """One more pass; the plane that it writes."""
        mapped, arrays, trained = self.mapped(window, steps, source, extra)
        shape = source.shape if window is None else window.out(source.shape)
        down, right = (1, 1) if window is None else window.strides
        strides = source.strides[0] * down, source.strides[1] * right
        # A periodic window needs the first rows again at the last ones: they must not be
        # overwritten.
        in_place = not keep and (not self.cyclic or window == ALONE) and source.register != PIXELS
        register = source.register if in_place else self.free()
        target = Plane(register, shape, strides, trained)
        self.passes.append(Pass(window, source, target, extra, steps, mapped, arrays))
        if not keep and not in_place:
            self.used.discard(source.register)
        return target

    def free(self) -> int:
        """A register that holds no plane."""
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
            # Passes add up, and the mean over a window is a part of the map.
            nngp, ntk = own[0] / size, own[1] / size if len(own) > 1 else None
            at = channels
            for step, count in zip(steps, counts, strict=True):
                sides = tuple(first[at : at + count]), tuple(second[at : at + count])
                nngp, ntk, _ = step.op.pair(*sides, nngp, ntk, None)
                at += count
            if added:
                nngp = nngp + added[0]
                if len(added) > 1:
                    ntk = added[1] if ntk is None else ntk + added[1]
            # Known once the steps are traced.
            trained[:] = [ntk is not None]
            return [nngp] if ntk is None else [nngp, ntk]

        more = 0 if extra is None else 1 + extra.trained
        found = elementary(numbers, 2 * arrays + planes + more, self.dtype)
        return found, arrays, trained[0]


def _grouped(steps, *, start):
    """Windows (None for the pixels) with the pointwise steps after them, and steps that join branches."""
    if any(isinstance(step, Pooled) for step in steps):
        raise Unsupported("pools in branches")
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
