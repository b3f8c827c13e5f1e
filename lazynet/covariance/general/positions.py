"""Covariances of all pairs of positions: what a rule transforms where planes do not suffice."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lazynet.covariance.general.arrays import (
    check_memory,
    conjugated,
    conjugated_alone,
    covariance,
    equal_entries,
    equal_positions,
    with_equal_entries,
)
from lazynet.covariance.general.families import (
    Transposed,
    families,
    moved_apart,
    moved_together,
    window_mask,
)
from lazynet.covariance.pointwise import Pointwise
from lazynet.covariance.state import check_independent
from lazynet.covariance.windows import Window
from lazynet.typing import Array

__all__ = ["BeyondPlanes", "Positions", "position_kernel"]

Axes = list[tuple[int, ...]]
Masks = tuple[Array | None, Array | None]
Layer = Callable[[Array, int], Array]


class BeyondPlanes(ValueError):
    """A layer has a rule for covariances of all pairs of positions only; callers begin again with those."""


@dataclasses.dataclass(frozen=True)
class Positions:
    """State of one layer, for positions of any shape (none for vectors).

    Attributes:
        nngp: `[n1, n2, *shape, *shape]`, E[z_p(x1) z_p'(x2)] per feature; `[n1, n2, *shape]` if
            `diagonal`.
        ntk: The tangent kernel of all layers so far, of the same shape; None if no weights are
            trained.
        own: Covariances of each set, `[n, *shape, *shape]` of each example with itself, or `[n, n,
            *shape, *shape]` if `whole`; one and the same array twice if both sets are one.
        features: Number of features of the finite network here.
        masks: For each set, which positions `[n, *shape]` are missing; None for none.
        diagonal: Whether only equal positions are kept.
        whole: Whether `own` has pairs of examples.
        same: Whether both sets are one, and what an example has with itself is exact.
        gaussian: See `lazynet.covariance.state.Kernel`.
        fresh: See there.
        positive: See there.
        trained: See there.
        context: What layers are told from outside, by name (`pattern`, `memory`, `equal`).
    """

    nngp: Array
    ntk: Array | None
    own: tuple[Array, Array]
    features: int
    masks: Masks = (None, None)
    diagonal: bool = False
    whole: bool = False
    same: bool = False
    gaussian: bool = False
    fresh: bool = False
    positive: bool = False
    trained: bool = True
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the positions."""
        rank = self.nngp.ndim - 2
        return self.nngp.shape[2 : 2 + (rank if self.diagonal else rank // 2)]

    @property
    def vectors(self) -> bool:
        """Whether there is one position only, without an axis."""
        return not self.shape

    @property
    def variances(self) -> tuple[Array, Array]:
        """Variances `[n, *shape]` of each set."""
        return self._each_set(lambda i: self._alone(self.own[i]))

    def replace(self, **changes) -> Positions:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def pointwise(self, op: Pointwise, **changes) -> Positions:
        """Maps each pair of positions by itself; entries of an example with itself by the exact formulas."""
        variances = self.variances
        sides = self._each_set(lambda i: op.side(variances[i]))
        nngp, ntk = self._paired(op, sides, self.nngp, self.ntk, batch=2)
        # With itself an entry has correlation one, which rounded products miss.
        if self.same:
            exact = op.diagonal(
                *(equal_entries(a, 2, self.diagonal) for a in (self.nngp, self.ntk))
            )
            nngp = with_equal_entries(nngp, exact[0], 2, self.diagonal)
            ntk = with_equal_entries(ntk, exact[1], 2, self.diagonal)

        def alone(i):
            exact, _ = op.diagonal(variances[i], None)
            if self.diagonal and not self.whole:
                return exact
            batch = 2 if self.whole else 1
            values, _ = self._paired(op, [sides[i]] * 2, self.own[i], None, batch)
            return with_equal_entries(values, exact, batch, self.diagonal)

        own = self._each_set(alone)
        return self.replace(nngp=nngp, ntk=ntk, own=own, **changes).masked(self.masks)

    def window(self, window: Window | Transposed) -> Positions:
        """Means over windows that move together at both positions, `1/k sum_k A_k S A_k'`."""
        maps = families(window, self.shape)
        scale = 1 / math.prod(window.size)
        # Maps that add several positions need covariances between them.
        if any(family.index.shape[-1] > 1 for family in maps):
            self.check_pairs("a periodic transposed convolution")
        moved = self.mapped(lambda a, axes: scale * moved_together(a, maps, axes))
        return moved.masked(self.each_mask(lambda mask, _: window_mask(mask, window)))

    def pool(self, window: Window, scale: float) -> Positions:
        """Sums over windows that move apart, times `scale` for each of the two."""
        self.check_pairs("a pool")
        maps = families(window, self.shape)
        moved = self.mapped(lambda a, axes: scale**2 * moved_apart(a, maps, axes))
        return moved.masked(self.each_mask(lambda mask, _: window_mask(mask, window)))

    def flatten(self) -> Positions:
        """Vectors of all positions: the mean over equal positions."""

        def mean(values, axes):
            # The first axis of positions comes after all those of examples.
            lead = axes[0][0]
            equal = values if self.diagonal else equal_positions(values, lead)
            return jnp.mean(equal, axis=tuple(range(lead, equal.ndim)))

        flat = self.mapped(mean).replace(masks=self.each_mask(_all_missing))
        return flat.replace(diagonal=False, gaussian=False)

    def average(self, scale: float) -> Positions:
        """Vectors of the mean over the positions that are there, times `scale`."""
        size = math.prod(self.shape)
        # At least one, for examples of which nothing is there.
        counts = self.each_mask(lambda mask, _: jnp.maximum(jnp.sum(~mask, _inner(mask)), 1))

        def mean(x, i):
            total = scale * jnp.sum(x, axis=tuple(range(1, x.ndim - 1)))
            count = counts[i]
            return total / size if count is None else total / count[:, None].astype(x.dtype)

        return self.transported("a global pool", mean, _all_missing)

    def total(self) -> Positions:
        """Vectors of the sum over positions."""
        return self.transported(
            "a global pool", lambda x, i: jnp.sum(x, tuple(range(1, x.ndim - 1))), _all_missing
        )

    def without_nngp(self) -> Positions:
        """The same tangent kernel for outputs that vanish at initialization."""
        own = self._each_set(lambda i: jnp.zeros_like(self.own[i]))
        return self.replace(nngp=jnp.zeros_like(self.nngp), own=own)

    def without_ntk(self) -> Positions:
        """The same covariances for a function that weights so far do not move to first order."""
        return self.replace(ntk=None)

    def mapped(self, function: Callable[[Array, Axes], Array]) -> Positions:
        """A function of each array of covariances and the axes of its positions, in pairs (alone if `diagonal`)."""
        rank = len(self.shape)

        def of(values, batch):
            if values is None:
                return None
            axes = [(batch + i, batch + rank + i)[: 1 if self.diagonal else 2] for i in range(rank)]
            return function(values, axes)

        own = self._each_set(lambda i: of(self.own[i], 2 if self.whole else 1))
        return self.replace(nngp=of(self.nngp, 2), ntk=of(self.ntk, 2), own=own).checked()

    def transported(self, name: str, layer: Layer, missing: Layer) -> Positions:
        """`A S A'` for a layer without weights, whose own function `layer(x, set)` on `[n, *shape, c]` is A.

        Covariances are its inputs, with what they are covariances with as channels. `missing(mask,
        set)` says which of the outputs are missing.
        """
        self.check_pairs(name)

        def cross(values, i, j):
            return conjugated(values, self.shape, lambda x: layer(x, i), lambda x: layer(x, j))

        def alone(i):
            if self.whole:
                return cross(self.own[i], i, i)
            return conjugated_alone(self.own[i], self.shape, lambda x: layer(x, i))

        k = self.replace(
            nngp=cross(self.nngp, 0, 1),
            ntk=None if self.ntk is None else cross(self.ntk, 0, 1),
            own=self._each_set(alone),
        )
        return k.checked().masked(self.each_mask(missing))

    @staticmethod
    def sum_independent(kernels: Sequence[Positions], paths: Sequence[str]) -> Positions:
        """Covariances of a sum of independent branches: they add.

        Raises:
            ValueError: As for planes, and if shapes differ.
        """
        fresh = check_independent(kernels, paths)
        shapes = {k.nngp.shape for k in kernels}
        if len(shapes) > 1:
            raise ValueError(
                f"a sum got branches of shapes {sorted(shapes)}, expected equal ones: give all the same strides and "
                "padding."
            )
        tangents = [k.ntk for k in kernels if k.ntk is not None]
        head = kernels[0]
        return head.replace(
            nngp=_sum([k.nngp for k in kernels]),
            ntk=_sum(tangents) if tangents else None,
            own=head._each_set(lambda i: _sum([k.own[i] for k in kernels])),
            masks=joint_masks(kernels),
            fresh=fresh,
            positive=all(k.positive for k in kernels),
        )

    def each_mask(self, function: Callable[[Array, int], Array]) -> Masks:
        """A function of the mask of each set that has one."""
        first, second = (m if m is None else function(m, i) for i, m in enumerate(self.masks))
        return first, second

    def masked(self, masks: Masks) -> Positions:
        """The state with these masks, and zeros where a position of either partner is missing."""
        if masks[0] is None and masks[1] is None:
            return self
        keep = self._each_set(
            lambda i: jnp.ones(self.variances[i].shape, bool) if masks[i] is None else ~masks[i]
        )
        zeroed = self.with_sides(keep, lambda a, rows, columns: jnp.where(rows & columns, a, 0))
        return zeroed.replace(masks=masks)

    def with_sides(self, sides: Sequence[Array], op: Callable[..., Array]) -> Positions:
        """`op(covariances, rows, columns)` with an array `[n, *shape]` of each set laid out along pairs."""

        def laid(values, i, j, batch):
            if values is None:
                return None
            return op(values, self._spread(sides[i], 0, batch), self._spread(sides[j], 1, batch))

        return self.replace(
            nngp=laid(self.nngp, 0, 1, 2),
            ntk=laid(self.ntk, 0, 1, 2),
            own=self._each_set(lambda i: laid(self.own[i], i, i, 2 if self.whole else 1)),
        )

    def with_equal_scaled(self, factor: float) -> Positions:
        """What an example has with itself at equal positions, times a factor; between the sets if they are equal."""

        def scaled(values, batch, factor):
            if values is None:
                return None
            equal = factor * equal_entries(values, batch, self.diagonal)
            return with_equal_entries(values, equal, batch, self.diagonal)

        batch = 2 if self.whole else 1
        k = self.replace(own=self._each_set(lambda i: scaled(self.own[i], batch, factor)))
        # Perhaps known in the program only: then equal pairs are scaled, by one if sets differ.
        alike = self.same or self.context.get("equal", False)
        if alike is False or self.nngp.shape[0] != self.nngp.shape[1]:
            return k
        across = jnp.where(alike, factor, 1.0).astype(self.nngp.dtype)
        return k.replace(nngp=scaled(self.nngp, 2, across), ntk=scaled(self.ntk, 2, across))

    def of_examples(self, chosen: Any) -> Positions:
        """The covariances of some of the examples."""
        own = self._each_set(
            lambda i: self.own[i][chosen][:, chosen] if self.whole else self.own[i][chosen]
        )
        return self.replace(
            nngp=self.nngp[chosen][:, chosen],
            ntk=None if self.ntk is None else self.ntk[chosen][:, chosen],
            own=own,
            masks=self.each_mask(lambda mask, _: mask[chosen]),
        )

    def checked(self) -> Positions:
        """Itself, unless the covariances take more memory than they may."""
        check_memory(self.nngp.shape, self.nngp.dtype.itemsize, self.context)
        return self

    def check_pairs(self, name: str) -> None:
        """Refuses equal positions alone for a layer that needs pairs of positions."""
        if self.diagonal:
            raise ValueError(
                f"{name} got covariances of equal positions, expected those of all pairs, which it mixes: compute "
                "them with diagonal_spatial=False."
            )

    def _each_set(self, function) -> tuple[Any, Any]:
        """A function of the number of each set, once if both are one."""
        first = function(0)
        # By identity: one set is one array twice, and stays so.
        return first, first if self.own[0] is self.own[1] else function(1)

    def _alone(self, values):
        """What covariances within a set say of each position of each example by itself."""
        return equal_entries(values, 2 if self.whole else 1, self.diagonal)

    def _paired(self, op, sides, nngp, ntk, batch):
        rows = [self._spread(a, 0, batch) for a in sides[0]]
        columns = [self._spread(a, 1, batch) for a in sides[1]]
        return op.pair(rows, columns, nngp, ntk, None)[:2]

    def _spread(self, a, place, batch):
        """`[n, *shape]` laid out along the axes of the first or of the second partner of pairs."""
        n = a.shape[0]
        positions = a.shape[1:]
        blank = (1,) * len(positions)
        examples = (n,) if batch == 1 else ((n, 1), (1, n))[place]
        if not self.diagonal:
            positions = (*positions, *blank) if place == 0 else (*blank, *positions)
        return a.reshape(*examples, *positions)


def position_kernel(
    x1: Array,
    x2: Array | None = None,
    *,
    masks: Masks = (None, None),
    diagonal: bool = False,
    whole: bool = False,
    **context: Any,
) -> Positions:
    """Covariances `x1 x2^T / c` of inputs `[n, *shape, c]`, with no tangents yet.

    Args:
        x1: Inputs.
        x2: The second set; None for the first.
        masks: Missing positions `[n, *shape]` of each set, where inputs are zero.
        diagonal: Whether to keep equal positions only.
        whole: Whether to keep pairs of examples within each set.
        **context: What layers are told.

    Raises:
        ValueError: If the covariances take more than `memory`.

    Example:
        >>> position_kernel(jnp.ones((2, 5, 3))).nngp.shape
        (2, 2, 5, 5)
    """
    other = x1 if x2 is None else x2
    positions = x1.shape[1:-1] if diagonal else (*x1.shape[1:-1], *other.shape[1:-1])
    # Before anything is computed.
    check_memory((len(x1), len(other), *positions), x1.dtype.itemsize, context)
    first = covariance(x1, x1, whole, diagonal)
    return Positions(
        nngp=covariance(x1, other, True, diagonal),
        ntk=None,
        own=(first, first if x2 is None else covariance(x2, x2, whole, diagonal)),
        features=x1.shape[-1],
        masks=masks,
        diagonal=diagonal,
        whole=whole,
        same=x2 is None,
        context=context,
    )


def _all_missing(mask, _=0):
    return jnp.all(mask, _inner(mask))


def _inner(mask):
    return tuple(range(1, mask.ndim))


def joint_masks(kernels: Sequence[Positions]) -> Masks:
    """What is missing in every branch; None if one branch has all.

    Example:
        >>> joint_masks([position_kernel(jnp.ones((2, 3)))])
        (None, None)
    """

    def joint(masks):
        missing = any(mask is None for mask in masks)
        return None if missing else functools.reduce(jnp.logical_and, masks)

    first = joint([k.masks[0] for k in kernels])
    second = joint([k.masks[1] for k in kernels])
    return first, second


def _sum(values):
    return functools.reduce(jnp.add, values)
