"""What an infinite-width rule transforms: covariances between two sets of inputs, and variances within each."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.covariance.duals import rectifier_side
from lazynet.covariance.openings import (
    between,
    known_where,
    mean_square,
    opening_of,
    opening_of_sum,
)
from lazynet.covariance.pairing import Lanes, all_pairs, each_with_itself
from lazynet.covariance.planes import Moments, Planes, source
from lazynet.covariance.pointwise import Covariance, Pointwise, nothing, total
from lazynet.covariance.readouts import mean_over_pairs, mean_over_positions, variances
from lazynet.covariance.small_angles import Opening, safe_sqrt
from lazynet.covariance.windows import Window, moving_mean
from lazynet.typing import Array

__all__ = ["Kernel", "Pointwise", "Side", "Vectors", "input_kernel"]


class Vectors(NamedTuple):
    """Covariances of vectors, `[n1, n2]`.

    Attributes:
        nngp: E[z(x1) z(x2)] per feature.
        ntk: Tangent kernel of all layers so far.
        opening: Of the angle between z(x1) and z(x2), which stays accurate for inputs that almost
            agree, where the correlation itself is stored as one; None where it is not known.
        spread: `spread(a1, a2)` lays `[n1]` and `[n2]` out so that they broadcast over pairs.
    """

    nngp: Array
    ntk: Array | None
    opening: Opening | None
    spread: Callable[[Array, Array], tuple[Array, Array]]

    def pointwise(
        self, op: Pointwise, before: Sequence[Moments], after: Sequence[Moments]
    ) -> Vectors:
        """Maps each pair, with both sets' moments before and after it."""
        first, second = (op.beside(moments) for moments in before)
        spread = [self.spread(a, b) for a, b in zip(first, second, strict=True)]
        rows = [row for row, _ in spread]
        columns = [column for _, column in spread]
        nngp, ntk, opening = op.pair(rows, columns, self.nngp, self.ntk, self.opening)
        if opening is None and self.opening is not None:
            # What the rule does not say of its angle follows from the cosine, with the digits it
            # has.
            norms = [rectifier_side(moments().nngp) for moments in after]
            row, column = self.spread(norms[0][1], norms[1][1])
            opening = opening_of(nngp * (row * column))
        return self._replace(nngp=nngp, ntk=ntk, opening=opening)

    def add(self, others: Sequence[Vectors], moments: Sequence[Sequence[Moments]]) -> Vectors:
        """Covariances of a sum of independent vectors, with both sets' moments of each of them."""
        every = [self, *others]
        nngp, ntk = total([Covariance(v.nngp, v.ntk) for v in every])
        return self._replace(nngp=nngp, ntk=ntk, opening=self._opening_of_sum(every, nngp, moments))

    def _opening_of_sum(self, every, nngp, moments):
        if any(v.opening is None for v in every):
            return None
        first = []
        second = []
        for moments1, moments2 in moments:
            first.append(moments1().nngp)
            second.append(moments2().nngp)
        _, inverse1 = rectifier_side(cast("Array", sum(first)))
        _, inverse2 = rectifier_side(cast("Array", sum(second)))
        parts = []
        for v, q1, q2 in zip(every, first, second, strict=True):
            # What a branch contributes to the norm of the sum, |z_b| / |z|.
            share1 = safe_sqrt(q1) * inverse1
            share2 = safe_sqrt(q2) * inverse2
            parts.append((*self.spread(share1, share2), v.opening))
        row, column = self.spread(inverse1, inverse2)
        return known_where(row * column > 0, opening_of_sum(parts), 0.0)


class Side(NamedTuple):
    """Sets of inputs by themselves.

    Attributes:
        moments: `moments() -> Covariance`, the variances of each input with itself, position by
            position: `[n]` for vectors, `[h, w, n]` for images. Computed when first asked for.
        pairs: For images, the covariances between the positions of each input; None for vectors.
    """

    moments: Moments
    pairs: Planes | None = None

    @property
    def planes(self) -> Planes:
        """The covariances between the positions of images."""
        return cast(Planes, self.pairs)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """State of one layer in the infinite-width limit.

    Attributes:
        cross: Covariances between the two sets: `Vectors`, or `Planes` for images.
        own: Both sets by themselves, one after the other (or the one set that is both): variances
            come from here and are never read off a rounded matrix.
        parts: Where the two sets are in `own`.
        lanes: Which images of the two sets meet.
        features: Number of features of the finite network here (what `parameterization="standard"`
            depends on).
        gaussian: Whether the activations are Gaussian in the limit (after Dense or Conv, before a
            nonlinearity).
        fresh: Whether there are weights since the last fork, which are this branch's own: what it
            computes is independent of other branches.
        positive: Whether no covariance can be negative.
        trained: Whether new weights add to the tangent kernel.
    """

    cross: Vectors | Planes
    own: Side
    parts: tuple[slice, slice]
    features: int
    lanes: Lanes
    gaussian: bool = False
    fresh: bool = False
    positive: bool = False
    trained: bool = True

    @property
    def nngp(self) -> Array:
        """Covariances `[n1, n2]` of vectors."""
        return cast(Vectors, self.cross).nngp

    @property
    def ntk(self) -> Array | None:
        """Tangent kernel `[n1, n2]` of vectors; None if no weights are trained."""
        return cast(Vectors, self.cross).ntk

    @property
    def opening(self) -> Opening | None:
        """Openings between vectors; None where they are not known, as those of images."""
        return self.cross.opening if isinstance(self.cross, Vectors) else None

    @property
    def planes(self) -> Planes:
        """Covariances between the positions of images of the two sets."""
        return cast(Planes, self.cross)

    @property
    def first(self) -> Side:
        """The first set by itself."""
        return Side(self._moments()[0], self.own.pairs)

    @property
    def vectors(self) -> bool:
        """Whether the activations are vectors (and not images)."""
        return isinstance(self.cross, Vectors)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the positions; none for vectors."""
        return () if self.vectors else self.planes.shape

    def replace(self, **changes) -> Kernel:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def pointwise(self, op: Pointwise, **changes) -> Kernel:
        """The state after a rule that maps each pair of positions by itself."""
        before = self.own.moments
        own = once(lambda: op.exact(before()))
        after = self.replace(own=Side(own), **changes)
        pairs = self.own.pairs and self.own.pairs.pointwise(op, [before] * 2, [own] * 2)
        cross = self.cross.pointwise(op, self._moments(), after._moments())
        return after.replace(cross=cross, own=Side(own, pairs))

    def _moments(self) -> list[Moments]:
        """The moments of the two sets; one and the same function if they are one set."""
        first, second = self.parts
        whole = self.own.moments
        if first == second:
            return [whole] * 2
        return [
            once(lambda: whole().map(lambda a: a[..., first])),
            once(lambda: whole().map(lambda a: a[..., second])),
        ]

    def window(self, window: Window) -> Kernel:
        """The state after means over windows that move together at both positions."""
        before = self.own.moments
        moments = once(lambda: before().map(lambda a: moving_mean(a, window)))
        own = Side(moments, self.own.planes.window(window))
        return self.replace(cross=self.planes.window(window), own=own)

    def pool(self, window: Window, scale: float) -> Kernel:
        """The state after sums over windows that move apart, times `scale` for each of the two."""
        pairs = self.own.planes.pool(window, scale, self.own.moments)
        own = Side(once(lambda: variances(pairs, self.lanes.elsewhere)), pairs)
        return self.replace(cross=self.planes.pool(window, scale), own=own)

    def flatten(self) -> Kernel:
        """Vectors of all positions: the mean over equal positions."""
        before = self.own.moments
        own = Side(once(lambda: before().map(lambda a: jnp.mean(a, axis=(0, 1)))))
        return self.replace(cross=self._flat(), own=own, gaussian=False)

    def _flat(self):
        chain = self.planes.chain
        if chain is None or chain.steps:
            return self._vectors(mean_over_positions(self.planes, self.lanes))
        # Inputs are vectors by themselves, and their openings are known.
        x1, x2 = chain.images
        flat1 = x1.reshape(len(x1), -1)
        flat2 = flat1 if x1 is x2 else x2.reshape(len(x2), -1)
        pairs = between(flat1, flat2, same=x1 is x2)
        vectors = self._vectors(Covariance(pairs[0], None))
        rows, columns = vectors.spread(jnp.arange(len(x1)), jnp.arange(len(x2)))
        nngp, opening = jax.tree.map(lambda a: a[rows, columns], pairs)
        return vectors._replace(nngp=nngp, opening=opening)

    def average(self, scale: float) -> Kernel:
        """Vectors of the mean over positions, times `scale`: the mean over all pairs of positions."""
        pairs = self.own.planes

        def own():
            each = each_with_itself()._replace(elsewhere=self.lanes.elsewhere)
            pooled = mean_over_pairs(pairs, each, same=True)
            return pooled.map(lambda a: (scale**2 * a)[0])

        cross = mean_over_pairs(self.planes, self.lanes).map(lambda a: scale**2 * a)
        return self.replace(cross=self._vectors(cross), own=Side(once(own)))

    def total(self) -> Kernel:
        """Vectors of the sum over positions."""
        return self.average(float(math.prod(self.shape)))

    def _vectors(self, pooled: Covariance) -> Vectors:
        groups = jnp.arange(self.lanes.groups)

        def spread(a1, a2):
            rows = jax.vmap(lambda g: self.lanes.first(a1, g))(groups)
            columns = jax.vmap(lambda g: self.lanes.second(a2, g))(groups)
            return rows, columns

        return Vectors(*pooled, opening=None, spread=spread)

    def without_nngp(self) -> Kernel:
        """The same tangent kernel for outputs that vanish at initialization."""

        def pair(side1, side2, nngp, ntk, opening):
            return jnp.zeros_like(nngp), ntk, opening and opening_of(jnp.zeros_like(nngp))

        return self.pointwise(
            Pointwise(nothing, pair, lambda nngp, ntk: (jnp.zeros_like(nngp), ntk))
        )

    def without_ntk(self) -> Kernel:
        """The same covariances for a function that weights so far do not move to first order."""
        # Inputs stay inputs, whose openings are known.
        if self.own.moments().ntk is None:
            return self

        def pair(side1, side2, nngp, ntk, opening):
            return nngp, None, opening

        return self.pointwise(Pointwise(nothing, pair, lambda nngp, ntk: (nngp, None)))

    @staticmethod
    def sum_independent(kernels: Sequence[Kernel], paths: Sequence[str]) -> Kernel:
        """Covariances of a sum of independent branches: they add.

        Raises:
            ValueError: If more than one branch does not end in fresh weights, or one is not
                Gaussian.
        """
        fresh = check_independent(kernels, paths)
        return kernels[0].replace(
            cross=_sum_crosses(kernels),
            own=_sum_sides([k.own for k in kernels]),
            fresh=fresh,
            positive=all(k.positive for k in kernels),
        )


def input_kernel(x1: Array, x2: Array, lanes: Lanes | None = None) -> Kernel:
    """Covariances of the inputs `x1 x2^T / d` (d features or channels), with no tangents yet.

    Args:
        x1: Vectors `[n, d]` or images `[n, h, w, d]`.
        x2: The second set of inputs.
        lanes: Which images meet; all pairs by default.

    Example:
        >>> input_kernel(jnp.eye(2), jnp.eye(2)).nngp.tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    lanes = lanes or all_pairs(len(x1))
    return _vectors(x1, x2, lanes) if x1.ndim == 2 else _images(x1, x2, lanes)


def _vectors(x1, x2, lanes):
    widest = jax.dtypes.canonicalize_dtype(np.float64)
    wide1 = x1.astype(widest)
    wide2 = x2.astype(widest)
    # each set by itself, also where both are one: other sums round differently, and tiles are to
    # agree with the whole
    variance = jnp.concatenate([mean_square(wide1), mean_square(wide2)]).astype(x1.dtype)
    own = Side(lambda: Covariance(variance, None))
    pairs = between(wide1, wide2, same=x1 is x2)
    nngp, opening = jax.tree.map(lambda a: a.astype(x1.dtype), pairs)
    cross = Vectors(nngp, None, opening, lambda a1, a2: (a1[:, None], a2[None, :]))
    return Kernel(cross, own, _halves(x1, x2), features=x1.shape[-1], lanes=lanes)


def _images(x1, x2, lanes):
    # both sets in one array: what is done to each by itself is then one program, not two
    both = x1 if x1 is x2 else jnp.concatenate([x1, x2])
    parts = _WHOLE if x1 is x2 else _halves(x1, x2)
    variance = jnp.transpose(jnp.mean(both * both, axis=-1), (1, 2, 0))
    own = Side(lambda: Covariance(variance, None), source(both, both))
    return Kernel(source(x1, x2), own, parts, features=x1.shape[-1], lanes=lanes)


_WHOLE = slice(None), slice(None)


def _halves(x1, x2):
    return slice(0, len(x1)), slice(len(x1), len(x1) + len(x2))


def once(compute: Callable[[], Any]) -> Callable[[], Any]:
    """The same function, which computes at its first call only.

    Example:
        >>> value = once(lambda: [])
        >>> value() is value()
        True
    """
    return functools.cache(compute)


def check_independent(kernels: Sequence[Any], paths: Sequence[str]) -> bool:
    """Whether all branches of a sum end in fresh weights, of which one branch at most may do without.

    Raises:
        ValueError: If more than one branch does not end in fresh weights, or one is not Gaussian.

    Example:
        >>> k = input_kernel(jnp.eye(2), jnp.eye(2)).replace(gaussian=True, fresh=True)
        >>> check_independent([k, k.replace(fresh=False)], ["body", "shortcut"])
        False
    """
    stale = [path for k, path in zip(kernels, paths, strict=True) if not k.fresh]
    rough = [path for k, path in zip(kernels, paths, strict=True) if not k.gaussian]
    if rough or len(stale) > 1:
        raise ValueError(
            f"branches {rough or stale} do not end in a fresh Dense or Conv: their sum has no closed-form limit; "
            "end every branch in Dense or Conv (one shortcut of a Gaussian pre-activation is allowed)."
        )
    return not stale


def _sum_crosses(kernels):
    head, *tail = [k.cross for k in kernels]
    if isinstance(head, Planes):
        return head.add(tail)
    return head.add(tail, [k._moments() for k in kernels])


def _sum_sides(sides: Sequence[Side]) -> Side:
    moments = once(lambda: total([side.moments() for side in sides]))
    pairs = sides[0].pairs and sides[0].pairs.add([side.planes for side in sides[1:]])
    return Side(moments, pairs)
