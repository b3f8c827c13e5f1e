"""What an infinite-width rule transforms: covariances between two sets of inputs, and variances within each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.covariance.heads import mean_over_pairs, mean_over_positions, variances
from lazynet.covariance.lanes import Lanes, all_pairs, each_with_itself
from lazynet.covariance.planes import Planes, source, total
from lazynet.covariance.windows import Window, moving_mean
from lazynet.typing import Array

__all__ = ["Kernel", "Moments", "Pointwise", "Side", "Vectors", "input_kernel"]


class Moments(NamedTuple):
    """Variances of each input with itself, position by position: `[n]` for vectors, `[h, w, n]` for images.

    `ntk` is None before the first trained weights.
    """

    nngp: Array
    ntk: Array | None


class Pointwise(NamedTuple):
    """A rule that maps each pair of positions by itself.

    Attributes:
        side: `side(q) -> tuple of arrays`, what a pair needs of the variances of one input.
        pair: `pair(side1, side2, nngp, ntk, gap) -> (nngp, ntk, gap)`; see `Dual` for the squared distance `gap`.
        diagonal: `diagonal(nngp, ntk) -> (nngp, ntk)`, the same for an input with itself.
    """

    side: Callable[[Array], tuple[Array, ...]]
    pair: Callable[..., tuple[Array, Array | None, Array | None]]
    diagonal: Callable[..., tuple[Array, Array | None]]


class Vectors(NamedTuple):
    """Covariances of vectors, `[n1, n2]`.

    Attributes:
        nngp: E[z(x1) z(x2)] per feature.
        ntk: Tangent kernel of all layers so far.
        gap: E[(z(x1) - z(x2))^2], which stays accurate for inputs that almost agree; None where it is not known.
        spread: `spread(a1, a2)` lays `[n1]` and `[n2]` out so that they broadcast over pairs.
    """

    nngp: Array
    ntk: Array | None
    gap: Array | None
    spread: Callable[[Array, Array], tuple[Array, Array]]

    def pointwise(self, op: Pointwise, before: Sequence[Callable], after: Sequence[Callable]) -> Vectors:
        """Maps each pair, with both sets' moments `before() -> Moments` and after it."""
        sides = [op.side(moments().nngp) for moments in before]
        rows_columns = [self.spread(a, b) for a, b in zip(*sides, strict=True)]
        rows, columns = ([pair[i] for pair in rows_columns] for i in (0, 1))
        nngp, ntk, gap = op.pair(rows, columns, self.nngp, self.ntk, self.gap)
        if gap is None and self.gap is not None:
            row, column = self.spread(after[0]().nngp, after[1]().nngp)
            gap = row + column - 2 * nngp
        return self._replace(nngp=nngp, ntk=ntk, gap=gap)

    def add(self, others: Sequence[Vectors]) -> Vectors:
        """Covariances of a sum of independent vectors."""
        every = [self, *others]
        gap = None if any(v.gap is None for v in every) else total([v.gap for v in every])
        return self._replace(nngp=total([v.nngp for v in every]), ntk=total([v.ntk for v in every]), gap=gap)


class Side(NamedTuple):
    """One set of inputs.

    Attributes:
        moments: `moments() -> Moments`, computed when first asked for.
        pairs: For images, the covariances between the positions of each input; None for vectors.
    """

    moments: Callable[[], Moments]
    pairs: Planes | None = None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """State of one layer in the infinite-width limit.

    Attributes:
        cross: Covariances between the two sets: `Vectors`, or `Planes` for images.
        first, second: The two sets by themselves: variances come from here and are never read off a rounded matrix.
        lanes: Which images of the two sets meet.
        features: Number of features of the finite network here (what `parameterization="standard"` depends on).
        gaussian: Whether the activations are Gaussian in the limit (after Dense or Conv, before a nonlinearity).
        fresh: Whether the last weights are this branch's own, so that sums with other branches are independent.
        positive: Whether no covariance can be negative.
        trained: Whether new weights add to the tangent kernel.
    """

    cross: Any
    first: Side
    second: Side
    features: int
    lanes: Lanes
    gaussian: bool = False
    fresh: bool = False
    positive: bool = False
    trained: bool = True

    @property
    def nngp(self) -> Array:
        """Covariances `[n1, n2]` of vectors."""
        return self.cross.nngp

    @property
    def ntk(self) -> Array | None:
        """Tangent kernel `[n1, n2]` of vectors; None if no weights are trained."""
        return self.cross.ntk

    @property
    def vectors(self) -> bool:
        """Whether the activations are vectors (and not images)."""
        return isinstance(self.cross, Vectors)

    def replace(self, **changes) -> Kernel:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def pointwise(self, op: Pointwise, **changes) -> Kernel:
        """The state after a rule that maps each pair of positions by itself."""
        moments = self.first.moments, self.second.moments
        after = [once(lambda m=m: Moments(*op.diagonal(*m()))) for m in moments]
        first, second = (
            Side(after[i], own.pairs and own.pairs.pointwise(op, [moments[i]] * 2, [after[i]] * 2))
            for i, own in enumerate((self.first, self.second))
        )
        return self.replace(cross=self.cross.pointwise(op, moments, after), first=first, second=second, **changes)

    def window(self, window: Window) -> Kernel:
        """The state after means over windows that move together at both positions."""

        def side(own):
            moments = once(lambda: Moments(*_each(lambda a: moving_mean(a, window), own.moments())))
            return Side(moments, own.pairs.window(window))

        return self.replace(cross=self.cross.window(window), first=side(self.first), second=side(self.second))

    def pool(self, window: Window, scale: float) -> Kernel:
        """The state after sums over windows that move apart, times `scale` for each of the two."""

        def side(own):
            pairs = own.pairs.pool(window, scale)
            return Side(once(lambda: Moments(*variances(pairs))), pairs)

        return self.replace(cross=self.cross.pool(window, scale), first=side(self.first), second=side(self.second))

    def flatten(self) -> Kernel:
        """Vectors of all positions: the mean over equal positions."""

        def side(own):
            return Side(once(lambda: Moments(*_each(lambda a: jnp.mean(a, axis=(0, 1)), own.moments()))))

        cross = self._vectors(mean_over_positions(self.cross, self.lanes))
        return self.replace(cross=cross, first=side(self.first), second=side(self.second), gaussian=False, fresh=False)

    def average(self, scale: float) -> Kernel:
        """Vectors of the mean over positions, times `scale`: the mean over all pairs of positions."""

        def scaled(pair):
            return _each(lambda a: scale**2 * a, pair)

        def side(own):
            pooled = once(lambda: scaled(mean_over_pairs(own.pairs, each_with_itself(), same=True)))
            return Side(once(lambda: Moments(*_each(lambda a: a[0], pooled()))))

        cross = self._vectors(scaled(mean_over_pairs(self.cross, self.lanes)))
        return self.replace(cross=cross, first=side(self.first), second=side(self.second))

    def _vectors(self, pair):
        def spread(a1, a2):
            groups, (_, first, second) = jnp.arange(self.lanes.groups), self.lanes
            return jax.vmap(lambda g: first(a1, g))(groups), jax.vmap(lambda g: second(a2, g))(groups)

        return Vectors(*pair, gap=None, spread=spread)

    def without_nngp(self) -> Kernel:
        """The same tangent kernel for outputs that vanish at initialization."""

        def pair(side1, side2, nngp, ntk, gap):
            return jnp.zeros_like(nngp), ntk, None if gap is None else jnp.zeros_like(gap)

        return self.pointwise(Pointwise(lambda q: (), pair, lambda nngp, ntk: (jnp.zeros_like(nngp), ntk)))

    @staticmethod
    def sum_independent(kernels: Sequence[Kernel], paths: Sequence[str]) -> Kernel:
        """Covariances of a sum of independent branches: they add.

        Raises:
            ValueError: If more than one branch does not end in fresh weights, or one is not Gaussian.
        """
        stale = [path for k, path in zip(kernels, paths, strict=True) if not k.fresh]
        rough = [path for k, path in zip(kernels, paths, strict=True) if not k.gaussian]
        if rough or len(stale) > 1:
            raise ValueError(
                f"branches {rough or stale} do not end in a fresh Dense or Conv: their sum has no closed-form limit; "
                "end every branch in Dense or Conv (one shortcut of a Gaussian pre-activation is allowed)."
            )
        head, tail = kernels[0], kernels[1:]
        return head.replace(
            cross=head.cross.add([k.cross for k in tail]),
            first=_sum_sides([k.first for k in kernels]),
            second=_sum_sides([k.second for k in kernels]),
            fresh=not stale,
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
    return (_vectors if x1.ndim == 2 else _images)(x1, x2, lanes or all_pairs(len(x1)))


def _vectors(x1, x2, lanes):
    d = x1.shape[-1]
    wide1, wide2 = (x.astype(jax.dtypes.canonicalize_dtype(np.float64)) for x in (x1, x2))
    q1, q2 = (jnp.sum(x * x, axis=-1) / d for x in (wide1, wide2))
    nngp = jnp.matmul(wide1, wide2.T, precision="highest") / d
    gap = (q1[:, None] + q2[None, :] - 2 * nngp).astype(x1.dtype)
    first, second = (Side(lambda q=q: Moments(q.astype(x1.dtype), None)) for q in (q1, q2))
    cross = Vectors(nngp.astype(x1.dtype), None, gap, lambda a1, a2: (a1[:, None], a2[None, :]))
    return Kernel(cross, first, second, features=d, lanes=lanes)


def _images(x1, x2, lanes):
    def side(x):
        variance = jnp.transpose(jnp.mean(x * x, axis=-1), (1, 2, 0))
        return Side(lambda: Moments(variance, None), source(x, x))

    return Kernel(source(x1, x2), side(x1), side(x2), features=x1.shape[-1], lanes=lanes)


def once(compute: Callable[[], Any]) -> Callable[[], Any]:
    """The same function, which computes at its first call only.

    Example:
        >>> value = once(lambda: [])
        >>> value() is value()
        True
    """
    return functools.cache(compute)


def _each(function, parts) -> Any:
    """The function of every part that is not None."""
    return [a if a is None else function(a) for a in parts]


def _sum_sides(sides):
    moments = once(lambda: Moments(*(total(parts) for parts in zip(*(s.moments() for s in sides), strict=True))))
    return Side(moments, sides[0].pairs and sides[0].pairs.add([s.pairs for s in sides[1:]]))
