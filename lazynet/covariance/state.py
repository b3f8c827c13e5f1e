"""What an infinite-width rule transforms: covariances between two sets of inputs, and variances within each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.typing import Array

__all__ = ["Kernel", "Moments", "Pointwise", "Side", "Vectors", "input_kernel"]


class Moments(NamedTuple):
    """Variances of each input with itself, position by position: `[n]` for vectors, `[n, h, w]` for images."""

    nngp: Array
    ntk: Array


class Pointwise(NamedTuple):
    """A rule that maps each pair of positions by itself.

    Attributes:
        side: `side(q) -> tuple of arrays`, what a pair needs of the variances of one input.
        pair: `pair(side1, side2, nngp, ntk, gap) -> (nngp, ntk, gap)`; see `Dual` for the squared distance `gap`.
        diagonal: `diagonal(nngp, ntk) -> (nngp, ntk)`, the same for an input with itself.
    """

    side: Callable[[Array], tuple[Array, ...]]
    pair: Callable[..., tuple[Array, Array, Array | None]]
    diagonal: Callable[[Array, Array], tuple[Array, Array]]


class Vectors(NamedTuple):
    """Covariances of vectors, `[n1, n2]`.

    Attributes:
        nngp: E[z(x1) z(x2)] per feature.
        ntk: Tangent kernel of all layers so far.
        gap: E[(z(x1) - z(x2))^2], which stays accurate for inputs that almost agree; None where it is not known.
    """

    nngp: Array
    ntk: Array
    gap: Array | None

    def pointwise(self, op: Pointwise, sides: tuple[Any, Any], before: Any, after: Any) -> Vectors:
        """Maps each pair; `sides`, `before` and `after` are functions that compute what they name when called."""
        rows, columns = (_expanded(side(), axis) for side, axis in zip(sides, (1, 0), strict=True))
        nngp, ntk, gap = op.pair(rows, columns, self.nngp, self.ntk, self.gap)
        if gap is None and self.gap is not None:
            gap = after[0]().nngp[:, None] + after[1]().nngp[None, :] - 2 * nngp
        return Vectors(nngp, ntk, gap)

    def add(self, others: Sequence[Vectors]) -> Vectors:
        """Covariances of a sum of independent vectors."""
        every = [self, *others]
        nngp, ntk = (functools.reduce(jnp.add, [getattr(v, name) for v in every]) for name in ("nngp", "ntk"))
        return Vectors(nngp, ntk, None if any(v.gap is None for v in every) else sum(v.gap for v in every))


class Side(NamedTuple):
    """One set of inputs.

    Attributes:
        moments: `moments() -> Moments`, computed when first asked for.
        pairs: For images, the covariances between the positions of each input (see `planes`); None for vectors.
    """

    moments: Callable[[], Moments]
    pairs: Any = None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """State of one layer in the infinite-width limit.

    Attributes:
        cross: Covariances between the two sets: `Vectors`, or `Planes` for images.
        first, second: The two sets by themselves: variances come from here and are never read off a rounded matrix.
        features: Number of features of the finite network here (what `parameterization="standard"` depends on).
        gaussian: Whether the activations are Gaussian in the limit (after Dense or Conv, before a nonlinearity).
        fresh: Whether the last weights are this branch's own, so that sums with other branches are independent.
    """

    cross: Any
    first: Side
    second: Side
    features: int
    gaussian: bool = False
    fresh: bool = False

    @property
    def nngp(self) -> Array:
        """Covariances `[n1, n2]` of vectors."""
        return self.cross.nngp

    @property
    def ntk(self) -> Array:
        """Tangent kernel `[n1, n2]` of vectors."""
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
        before = self.first.moments, self.second.moments
        after = tuple(once(lambda m=m: Moments(*op.diagonal(*m()))) for m in before)
        sides = tuple(once(lambda m=m: op.side(m().nngp)) for m in before)
        new = [Side(after[i], own.pairs and own.pairs.pointwise(op, (sides[i],) * 2, before[i], after[i]))
               for i, own in enumerate((self.first, self.second))]
        return self.replace(cross=self.cross.pointwise(op, sides, before, after), first=new[0], second=new[1], **changes)

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
        )


def input_kernel(x1: Array, x2: Array) -> Kernel:
    """Covariances of the inputs `x1 x2^T / d`, with no tangents yet.

    Example:
        >>> input_kernel(jnp.eye(2), jnp.eye(2)).nngp.tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    d = x1.shape[-1]
    wide1, wide2 = (x.astype(jax.dtypes.canonicalize_dtype(np.float64)) for x in (x1, x2))
    q1, q2 = (jnp.sum(x * x, axis=-1) / d for x in (wide1, wide2))
    nngp = jnp.matmul(wide1, wide2.T, precision="highest") / d
    gap = (q1[:, None] + q2[None, :] - 2 * nngp).astype(x1.dtype)
    first, second = (Moments(q.astype(x1.dtype), jnp.zeros(q.shape, x1.dtype)) for q in (q1, q2))
    cross = Vectors(nngp.astype(x1.dtype), jnp.zeros(nngp.shape, x1.dtype), gap)
    return Kernel(cross, Side(lambda: first), Side(lambda: second), features=d)


def once(compute: Callable[[], Any]) -> Callable[[], Any]:
    """The same function, which computes at its first call only.

    Example:
        >>> value = once(lambda: [])
        >>> value() is value()
        True
    """
    return functools.cache(compute)


def _expanded(side, axis):
    return tuple(jnp.expand_dims(array, axis) for array in side)


def _sum_sides(sides):
    moments = once(lambda: Moments(*(functools.reduce(jnp.add, parts) for parts in zip(*(s.moments() for s in sides)))))
    return Side(moments, sides[0].pairs and sides[0].pairs.add([s.pairs for s in sides[1:]]))
