"""Covariances of images by displacement planes: E[z(x1)_p z(x2)_{p+d}] for one displacement d at a time.

A convolution sums over common shifts of both positions, so it never mixes displacements: one plane
can be taken through a whole stack of layers while it stays in the cache. `Planes` therefore holds
no array. It is a recipe that evaluates the plane of a displacement on demand, and what is demanded
decides the cost: a Flatten head asks for the plane d = 0 only, a pooled head for all of them, a
stride of two for every second one.

Layout. Displacements are cyclic on a canvas that is at least as large as the image: row i of x1
meets row (i + p) mod H of x2. A plane is `[H, W, lanes]`, lanes being pairs of images. Sums over
windows leave out the terms that would cross the border of either image (the seam of the cyclic
layout); pairs of positions outside the images hold numbers that are harmless and never used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.covariance.chains import Chain
from lazynet.covariance.loops import cut, fold, guarded, traced_once, zeros
from lazynet.covariance.pairing import Displacement, Request
from lazynet.covariance.periodic import apart_everywhere, as_pairs, as_plane, together_everywhere
from lazynet.covariance.pointwise import Covariance, Pointwise, total
from lazynet.covariance.regrouping import Plane, pulled, pushed
from lazynet.covariance.windows import Size, Window, live, masked, moving_mean, slide, together
from lazynet.typing import Array

__all__ = ["Planes", "source", "sum_over_pairs"]

MANY = 16
FEW = 32**2
"""Channels from which on products of matrices are cheaper than sums of products of numbers, and the positions up to
which all pairs of them fit the memory."""

Moments = Callable[[], Covariance]
"""Variances of the images of a set, position by position, computed when first asked for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Planes:
    """Recipe for covariances between positions of images.

    Attributes:
        shape: Height and width of the images.
        canvas: Smallest canvas on which all layers so far are exact.
        dtype: Of the planes.
        build: `build(request) -> plane(displacement)` prepares what does not depend on the
            displacement.
        needs: Functions whose values recipes use; they are called before any loop is entered.
        chain: The same recipe as a list of steps, which compiled programs take at once; None for
            many channels, and after a pool of one window.
        tiled: What was pooled last by windows that tile the images, so that pools of pools become
            one.
        covered: What was pooled last by one window that covers the images: all pairs of positions.
    """

    shape: Size
    canvas: Size
    dtype: Any
    build: Callable[[Request], Plane]
    needs: tuple[Callable[[], Any], ...] = ()
    chain: Chain | None = None
    tiled: _Tiled | None = None
    covered: _Covered | None = None

    def pointwise(
        self, op: Pointwise, before: Sequence[Moments], after: Sequence[Moments]
    ) -> Planes:
        """Maps each pair of positions by itself, with both sets' moments before and after it.

        Those after it are the exact results for d = 0 of an image with itself.
        """
        # A set that meets itself has one side, which is the first and the last.
        sides = [
            functools.cache(lambda moments=moments: op.beside(moments))
            for moments in dict.fromkeys(before)
        ]

        def build(request):
            below = self.build(request)
            canvas = request.canvas
            first = [_placed(request.first(a), canvas) for a in sides[0]()]
            second = [_doubled(_placed(request.second(a), canvas), request) for a in sides[-1]()]
            exact = after[0]().map(lambda a: _placed(a, canvas)) if request.same else None

            def plane(at):
                partners = [_shifted(a, at, request) for a in second]
                nngp, ntk, _ = op.pair(first, partners, *below(at), None)
                values = Covariance(nngp, ntk)
                return values if exact is None else _exact_at_zero(at, exact, values)

            return plane

        chain = self.chain and self.chain.pointwise(op, before)
        return self._then(self.shape, (1, 1), build, (*sides, *after), chain)

    def window(self, window: Window) -> Planes:
        """Means over windows that move together at both positions, `1/k sum_d S[s p + d, s p' + d]`."""

        def build(request):
            if not window.periodic_on(self.shape, request.canvas):
                if request.zero:
                    return _averaged_at_zero(self, request, window)
                return _rewritten(self, request, lambda pairs: together_everywhere(pairs, window))
            below = self.build(request.finer(window.strides))
            canvas = request.canvas
            size = math.prod(window.size)
            taps = together(window, self.shape, canvas)
            # Windows that move together have one move against each other, e = 0: `table[0]`.
            row_keys = [request.mask(0, table[0]) for table in taps[0].masks]
            column_keys = [request.mask(1, table[0]) for table in taps[1].masks]

            def plane(at):
                rows = [at.mask(key) for key in row_keys]
                columns = [at.mask(key) for key in column_keys]
                values = below(at.finer(window.strides))
                return values.map(lambda a: slide(a, taps, [rows, columns], canvas) / size)

            return plane

        chain = self.chain and self.chain.window(window, self.shape)
        return self._then(window.out(self.shape), window.strides, build, chain=chain)

    def pool(self, window: Window, scale: float, own: Moments | None = None) -> Planes:
        """Sums over windows that move apart, `scale^2 sum_{d, d'} S[s p + d, s p' + d']`.

        Images that meet themselves bring along their own moments before it, the exact results for d = 0.
        """
        if self.tiled is not None and window.tiles(self.shape):
            return self.tiled.pool(window, scale)
        if window.size == self.shape and window.out(self.shape) == (1, 1):
            return self._covered(scale)

        def build(request):
            if not window.periodic_on(self.shape, request.canvas):
                return _rewritten(
                    self, request, lambda pairs: apart_everywhere(pairs, window, scale)
                )
            # One pooled plane needs a finer plane for each move of one window against the other; all
            # pooled planes need every finer plane, and are evaluated by going through these once.
            moves = math.prod(2 * k - 1 for k in window.size)
            canvas = request.finer(window.strides).canvas
            pull = request.single and moves < math.prod(canvas)
            fine = request.new_loop(canvas=canvas, single=pull, zero=False)
            if pull:
                return pulled(self.build(fine), fine, window, self.shape, scale)
            return pushed(self.build(fine), fine, window, self.shape, scale, zero=request.zero)

        tiled = _Tiled(self, window, scale, own) if window.tiles(self.shape) else None
        chain = self.chain and self.chain.pool(window, self.shape, scale, own)
        return dataclasses.replace(
            self._then(window.out(self.shape), window.strides, build, chain=chain), tiled=tiled
        )

    def _covered(self, scale):
        """The pool of one window that covers the images."""

        def build(request):
            loop = request.new_loop(canvas=self.canvas, single=False, zero=False)
            pooled = sum_over_pairs(self, loop).map(lambda a: scale**2 * a[None, None])
            return lambda at: pooled

        return Planes(
            (1, 1), (1, 1), self.dtype, _shared(build), self.needs, covered=_Covered(self, scale)
        )

    def add(self, others: Sequence[Planes]) -> Planes:
        """Covariances of a sum of independent images."""
        every = [self, *others]

        def build(request):
            parts = [planes.build(request) for planes in every]

            return lambda at: total([part(at) for part in parts])

        canvas = (
            max(planes.canvas[0] for planes in every),
            max(planes.canvas[1] for planes in every),
        )
        needs = dict.fromkeys(function for planes in every for function in planes.needs)
        chain = self.chain and self.chain.join([planes.chain for planes in others])
        return Planes(self.shape, canvas, self.dtype, _shared(build), tuple(needs), chain)

    def _then(self, shape, strides, build, needs=(), chain=None):
        if min(shape) < 1:
            raise ValueError(
                f"a window does not fit an image of {self.shape}: use smaller windows or fewer of them."
            )
        # The canvas of a layer is `strides` times as large before it, and has to hold the one there.
        height, width = (
            max(n, -(-m // s)) for n, m, s in zip(shape, self.canvas, strides, strict=True)
        )
        needs = (*self.needs, *needs)
        return Planes(shape, (height, width), self.dtype, _shared(build), needs, chain)


class _Tiled(NamedTuple):
    """Images and the windows that tile them, whose sums are taken."""

    planes: Planes
    window: Window
    scale: float
    own: Moments | None

    def pool(self, window: Window, scale: float) -> Planes:
        """The pool of this pool, in one."""
        height, width = self.window.size
        rows, columns = window.size
        size = height * rows, width * columns
        return self.planes.pool(Window(size, size, "VALID"), scale * self.scale, self.own)


class _Covered(NamedTuple):
    """Images of which all positions are summed."""

    planes: Planes
    scale: float


def source(x1: Array, x2: Array) -> Planes:
    """Covariances of the inputs `[n, h, w, c]`: inner products of pixels divided by c."""
    if x1.shape[-1] > MANY and math.prod(x1.shape[1:3]) <= FEW:
        return _product(x1, x2)
    pixels = [jnp.transpose(x, (3, 1, 2, 0)) for x in (x1, x2)]

    def build(request):
        first = [_placed(request.first(a), request.canvas, zeros=True) for a in pixels[0]]
        second = [
            _doubled(_placed(request.second(a), request.canvas, zeros=True), request)
            for a in pixels[1]
        ]

        def plane(at):
            partners = [_shifted(b, at, request) for b in second]
            products = map(jnp.multiply, first, partners)
            return Covariance(functools.reduce(jnp.add, products) / len(first), None)

        return plane

    shape = (x1.shape[1], x1.shape[2])
    return Planes(shape, shape, x1.dtype, _shared(build), chain=Chain((x1, x2)))


def _product(x1, x2):
    """The same for many channels, as products of matrices: all pairs of positions are written out once.

    The plane of equal positions needs one product a position, for all pairs of images.
    """
    channels = x1.shape[-1]
    shape = (x1.shape[1], x1.shape[2])
    pixels = [jnp.transpose(x, (1, 2, 3, 0)) for x in (x1, x2)]
    numbers = [jnp.arange(len(x)) for x in (x1, x2)]

    @functools.cache
    def equal():
        return jnp.einsum("ijcn,ijcm->ijnm", *pixels, precision="highest") / channels

    def build(request):
        if request.same and request.zero:
            alone = jnp.sum(request.first(pixels[0]) * request.second(pixels[1]), axis=2) / channels
            return lambda at: Covariance(_placed(alone, request.canvas, zeros=True), None)
        if request.zero:
            # Lanes of the numbers of images are the pairs that meet, to be read off the products.
            lanes = equal()[..., request.first(numbers[0]), request.second(numbers[1])]
            return lambda at: Covariance(_placed(lanes, request.canvas, zeros=True), None)
        first = request.first(pixels[0])
        second = request.second(pixels[1])
        # One first image may meet all of the second set: its axis of length one is summed away.
        lanes = "n" if first.shape[-1] == second.shape[-1] else "m"
        pairs = jnp.einsum(f"ijc{lanes},klcn->ijkln", first, second, precision="highest") / channels
        return lambda at: Covariance(as_plane(pairs, at.p, at.q, request.canvas), None)

    return Planes(shape, shape, x1.dtype, _shared(build), (equal,))


def sum_over_pairs(planes: Planes, request: Request) -> Covariance:
    """`sum_{p, p'} S[p, p']` of each lane."""
    plane = planes.build(request)
    # Beyond an image stand numbers that are harmless but not zero: they are not to be added.
    keys = [request.mask(axis, live(planes.shape[axis], planes.canvas[axis])) for axis in (0, 1)]

    def inside(p, q, rows):
        at = Displacement(p, q, rows)
        row_mask, column_mask = map(at.mask, keys)
        return plane(at).map(lambda a: masked(masked(a, row_mask, 0), column_mask, 1))

    through_layers = traced_once(inside, request.tables)
    start = jnp.int32(0)
    nothing = zeros(lambda: through_layers(start, start, request.at(start, start).rows))

    def add(sums, p, q):
        # Outside of the guarded branch, see `Request.tables`.
        rows = request.at(p, q).rows
        values = guarded(lambda: through_layers(p, q, rows), p, nothing)
        return jax.tree.map(jnp.add, sums, values)

    return fold(add, nothing, planes.canvas).map(lambda a: jnp.sum(a, (0, 1)))


def _rewritten(planes, request, rule):
    """Planes of all pairs of positions after a rule, for periodic images that do not fill their canvas."""
    fine = request.new_loop(canvas=planes.canvas, single=False, zero=False)
    plane = planes.build(fine)
    height, width = planes.canvas

    def one(d):
        at = fine.at(d[0], d[1])
        return guarded(lambda: plane(at.fresh()), d[0])

    displacements = np.stack(
        np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1
    ).reshape(-1, 2)
    every = lax.map(one, jnp.asarray(displacements, jnp.int32))
    unfolded = every.map(lambda a: a.reshape(height, width, *a.shape[1:]))
    pairs = unfolded.map(lambda a: rule(as_pairs(a, planes.shape)))
    return lambda at: pairs.map(lambda a: as_plane(a, at.p, at.q, request.canvas))


def _averaged_at_zero(planes, request, window):
    """The plane of displacement zero alone: windows that move together need no other."""
    fine = request.new_loop(canvas=planes.canvas)
    height, width = planes.shape
    plane = planes.build(fine)
    means = plane(fine.at(0, 0)).map(lambda a: moving_mean(a[:height, :width], window))
    return lambda at: means.map(lambda a: _placed(a, request.canvas))


def _shared(build):
    """Prepares a recipe once per request and evaluates it once per displacement.

    Residual branches ask for the layers in front of them twice.
    """

    def prepared(request):
        key = build, request.canvas
        if key not in request.prepared:
            request.prepared[key] = once_per_displacement(build(request))
        return request.prepared[key]

    def once_per_displacement(plane):
        def value(at):
            if plane not in at.values:
                at.values[plane] = plane(at)
            return at.values[plane]

        return value

    return prepared


def _placed(a, canvas, *, zeros=False):
    """An array `[h, w, lanes]` on a canvas; beyond the image it holds zeros, or copies of the border."""
    width = [(0, canvas[0] - a.shape[0]), (0, canvas[1] - a.shape[1]), (0, 0)]
    return jnp.pad(a, width) if zeros else jnp.pad(a, width, mode="edge")


def _doubled(a, request):
    """An array repeated along both axes: its cyclic shifts are then parts of it, which need no gather."""
    return a if request.zero else jnp.tile(a, (2, 2, 1))


def _shifted(a, at, request):
    """The part of a doubled array that starts at a displacement: the partner of each position, cyclically."""
    return a if request.zero else cut(a, (at.p, at.q, 0), (*request.canvas, a.shape[-1]))


def _exact_at_zero(at, exact, values):
    """Each position with itself has correlation one, of which its own formulas know and rounded products do not."""
    if isinstance(at.p, int) and isinstance(at.q, int):
        return exact if at.p == at.q == 0 else values
    here = (at.p == 0) & (at.q == 0)
    return jax.tree.map(lambda a, b: jnp.where(here, a, b), exact, values)
