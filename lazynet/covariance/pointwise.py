"""What the engine computes, an NNGP and perhaps an NTK, and the rules that map each pair of positions by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lazynet.covariance.small_angles import Opening
from lazynet.typing import Array

__all__ = ["Covariance", "Pointwise", "nothing", "total"]


class Covariance(NamedTuple):
    """The two kernels of one layer, of whatever pairs of inputs or positions.

    Attributes:
        nngp: E[z z'].
        ntk: Tangent kernel of all layers so far; None before the first trained weights.

    Example:
        >>> Covariance(jnp.array(2.0), None).map(jnp.sqrt).ntk is None
        True
    """

    nngp: Array
    ntk: Array | None

    def map(self, function: Callable[[Array], Any]) -> Covariance:
        """A function of both; an NTK that there is not stays None."""
        return Covariance(function(self.nngp), None if self.ntk is None else function(self.ntk))


def nothing(q: Array) -> tuple[Array, ...]:
    """What a pair needs of the variances of one input, where it needs nothing.

    Example:
        >>> nothing(jnp.ones(2))
        ()
    """
    return ()


class Pointwise(NamedTuple):
    """A rule that maps each pair of positions by itself.

    Attributes:
        side: `side(q) -> tuple of arrays`, what a pair needs of the variances of one input.
        pair: `pair(side1, side2, nngp, ntk, opening) -> (nngp, ntk, opening)`; see `Dual` for the
            opening.
        diagonal: `diagonal(nngp, ntk) -> (nngp, ntk)`, the same for an input with itself.
    """

    side: Callable[[Array], tuple[Array, ...]]
    pair: Callable[..., tuple[Array, Array | None, Array | Opening | None]]
    diagonal: Callable[..., tuple[Array, Array | None]]

    def beside(self, moments: Callable[[], Covariance]) -> tuple[Array, ...]:
        """What a pair needs of one set.

        Moments that nothing needs are not computed: after pools they take as long as a row of the kernel.
        """
        return () if self.side is nothing else self.side(moments().nngp)

    def exact(self, own: Covariance) -> Covariance:
        """What becomes of the covariances of inputs with themselves."""
        return Covariance(*self.diagonal(*own))


def total(kernels: Sequence[Covariance]) -> Covariance:
    """The kernels of a sum of independent functions: they add, and an NTK that there is not adds nothing.

    Example:
        >>> one = Covariance(jnp.ones(()), None)
        >>> float(total([one, one]).nngp)
        2.0
    """
    trained = [k.ntk for k in kernels if k.ntk is not None]
    nngp = functools.reduce(jnp.add, [k.nngp for k in kernels])
    return Covariance(nngp, functools.reduce(jnp.add, trained) if trained else None)
