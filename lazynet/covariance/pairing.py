"""What recipes for planes are asked for: which images meet, on which canvas, and at which displacements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.covariance.pointwise import Covariance
from lazynet.covariance.windows import Size
from lazynet.typing import Array

__all__ = [
    "Displacement",
    "Lanes",
    "Request",
    "all_pairs",
    "each_with_itself",
    "pairs_in_lanes",
    "ring",
]


class Lanes(NamedTuple):
    """Which images of two sets meet: lane l of group g pairs `first(x1, g)[..., l]` with `second(x2, g)[..., l]`.

    Attributes:
        groups: How many.
        first, second: Selections of lanes.
        elsewhere: What takes planes through the layers for heads of networks, if these lanes do not
            (`tasks`).
    """

    groups: int
    first: Callable[[Array, Any], Array]
    second: Callable[[Array, Any], Array]
    elsewhere: Callable[..., Covariance] | None = None


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


def pairs_in_lanes(rows: np.ndarray, columns: np.ndarray) -> Lanes:
    """Groups in which image `rows[g, l]` of the first set meets image `columns[g, l]` of the second one.

    Example:
        >>> pairs_in_lanes(np.array([[0, 0, 1]]), np.array([[1, 2, 2]])).second(jnp.arange(3), 0).tolist()
        [1, 2, 2]
    """

    def chosen(table):
        numbers = jnp.asarray(table, jnp.int32)
        # Numbers are in range, and the default mode would compare each of them.
        return lambda a, g: jnp.take(a, numbers[g], axis=-1, mode="clip")

    return Lanes(len(rows), chosen(rows), chosen(columns))


def ring(n: int) -> Lanes:
    """Groups in which image i meets image i + g + 1 modulo n: every pair of different images once, for x1 = x2.

    For even n the last group has every pair twice.

    Example:
        >>> ring(4).second(jnp.arange(4), 0).tolist()
        [1, 2, 3, 0]
    """
    return Lanes(n // 2, lambda a, g: a, lambda a, g: jnp.roll(a, -1 - g, axis=-1))


@dataclasses.dataclass(frozen=True, eq=False)
class Displacement:
    """The displacement at which a recipe is evaluated.

    Attributes:
        p, q: Rows and columns by which the positions of the second images are ahead.
        rows: For each mask that recipes asked for, its row at this displacement of the loop.
        values: What layers have evaluated to here: branches that share a layer evaluate it once.
    """

    p: Any
    q: Any
    rows: dict[Hashable, Any]
    values: dict[Hashable, Any] = dataclasses.field(default_factory=dict)

    def fresh(self) -> Displacement:
        """The same place before anything is evaluated: what one trace has found must not reach another one."""
        return Displacement(self.p, self.q, self.rows)

    def finer(self, strides: Size) -> Displacement:
        """The same place in units of the positions before windows of these strides."""
        return Displacement(strides[0] * self.p, strides[1] * self.q, self.rows, self.values)

    def mask(self, key: Hashable) -> Any:
        """The row of a mask by the key that `Request.mask` gave for it; None and False stay what they are."""
        return self.rows.get(key, key)


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What a recipe is asked for.

    Attributes:
        canvas: Canvas of the planes.
        first, second: Selection of lanes from arrays of each set.
        dtype: Of the planes.
        same: Whether each lane pairs an image with itself, so that d = 0 has exact values.
        single: Whether one displacement only will be asked for.
        zero: Whether that is the displacement zero.
        step: Displacements here in units of the displacements of the loop.
        prepared: Recipes that have been prepared already, for all requests of one loop.
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
    prepared: dict[Hashable, Any] = dataclasses.field(default_factory=dict)
    tables: dict[tuple[int, int, bytes], np.ndarray] = dataclasses.field(default_factory=dict)

    def new_loop(self, **changes) -> Request:
        """The same request for a loop over displacements of its own."""
        return dataclasses.replace(self, step=(1, 1), prepared={}, tables={}, **changes)

    def finer(self, strides: Size) -> Request:
        """The request that a layer with strides makes to its input."""
        canvas = self.canvas[0] * strides[0], self.canvas[1] * strides[1]
        step = self.step[0] * strides[0], self.step[1] * strides[1]
        return dataclasses.replace(self, canvas=canvas, step=step)

    def mask(self, axis: int, table: np.ndarray) -> Hashable:
        """Asks for rows of a table: a key to them; None if nothing is masked, False if everything is."""
        if table.all():
            return None
        if not table.any():
            return False
        # By its contents: layers with equal windows share one table, and one row of it in the loop.
        key = axis, self.step[axis], table.tobytes()
        self.tables[key] = table
        return key

    def at(self, p: Any, q: Any) -> Displacement:
        """A displacement of the loop, with the rows of all tables in the dtype of the images."""
        rows = {}
        for key, table in self.tables.items():
            axis, step, _ = key
            index = step * (p, q)[axis]
            table = table.astype(self.dtype)
            if isinstance(index, int):
                rows[key] = table[index]
            else:
                rows[key] = lax.dynamic_index_in_dim(jnp.asarray(table), index, keepdims=False)
        return Displacement(p, q, rows)
