"""What recipes for planes are asked for: which images meet, on which canvas, and at which displacements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.covariance.windows import Size
from lazynet.typing import Array

__all__ = ["Lanes", "Request", "all_pairs", "each_with_itself", "ring"]


class Lanes(NamedTuple):
    """Which images of two sets meet: lane l of group g pairs `first(x1, g)[..., l]` with `second(x2, g)[..., l]`."""

    groups: int
    first: Callable[[Array, Any], Array]
    second: Callable[[Array, Any], Array]


def all_pairs(n: int) -> Lanes:
    """One group for each of the n images of the first set, which meets all images of the second.

    Example:
        >>> all_pairs(3).groups
        3
    """
    return Lanes(n, lambda a, g: lax.dynamic_slice_in_dim(a, g, 1, -1), lambda a, g: a)


def each_with_itself() -> Lanes:
    """One group, in which image i meets image i.

    Example:
        >>> each_with_itself().groups
        1
    """
    return Lanes(1, lambda a, g: a, lambda a, g: a)


def ring(n: int) -> Lanes:
    """Groups in which image i meets image i + g + 1 modulo n: every pair of different images once, for x1 = x2.

    For even n the last group has every pair twice.

    Example:
        >>> ring(4).second(jnp.arange(4), 0).tolist()
        [1, 2, 3, 0]
    """
    return Lanes(n // 2, lambda a, g: a, lambda a, g: jnp.roll(a, -1 - g, axis=-1))


class Request(NamedTuple):
    """What a recipe is asked for.

    Attributes:
        canvas: Canvas of the planes.
        first, second: Selection of lanes from arrays of each set.
        dtype: Of the planes.
        same: Whether each lane pairs an image with itself, so that d = 0 has exact values.
        single: Whether one displacement only will be asked for.
        zero: Whether that is the displacement zero.
        step: Displacements here in units of the displacements of the loop.
        memo: Recipes that have been prepared already.
        tables: Masks `[C, C]` of which the recipes need a row for each displacement. Rows are read
            before the branch of `guarded` is entered: inside, they would be fused into the
            innermost loops.
    """

    canvas: Size
    first: Callable[[Array], Array]
    second: Callable[[Array], Array]
    dtype: Any
    same: bool = False
    single: bool = False
    zero: bool = False
    step: Size = (1, 1)
    memo: dict = {}
    tables: dict = {}

    def new_loop(self, **changes) -> Request:
        """The same request for a loop over displacements of its own."""
        return self._replace(step=(1, 1), memo={}, tables={}, **changes)

    def finer(self, strides: Size) -> Request:
        """The request that a layer with strides makes to its input."""
        step = self.step[0] * strides[0], self.step[1] * strides[1]
        return self._replace(
            canvas=(self.canvas[0] * strides[0], self.canvas[1] * strides[1]), step=step
        )

    def mask(self, axis: int, table: np.ndarray) -> Any:
        """Asks for rows of a table: a key into `done`; None if nothing is masked, False if everything is."""
        if table.all() or not table.any():
            return None if table.all() else False
        key = axis, self.step[axis], table.tobytes()
        self.tables[key] = table
        return key

    def rows(self, p: Any, q: Any) -> dict:
        """Rows of all tables for one displacement of the loop, in the dtype of the images."""
        return {
            key: _row(table.astype(self.dtype), key[1] * (p, q)[key[0]])
            for key, table in self.tables.items()
        }


def _row(table, index):
    return (
        table[index]
        if isinstance(index, int)
        else lax.dynamic_index_in_dim(jnp.asarray(table), index, keepdims=False)
    )
