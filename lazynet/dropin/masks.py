"""neural-tangents' arrays with missing entries, and its bookkeeping of which covariances a layer needs."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Bool", "Diagonal", "MaskedArray", "unmask_fn"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskedArray:
    """Values of which some are missing.

    Attributes:
        masked_value: An array, or a tree of arrays.
        mask: Where values are missing, of a shape that broadcasts to that of the values.

    Example:
        >>> MaskedArray(jnp.ones(2), jnp.array([True, False])).mask.tolist()
        [True, False]
    """

    masked_value: Any
    mask: Any


class Bool(enum.IntEnum):
    """No, maybe or yes: whether covariances of equal positions are enough.

    Example:
        >>> Bool.MAYBE & Bool.YES
        <Bool.MAYBE: 1>
    """

    NO = 0
    MAYBE = 1
    YES = 2

    def __and__(self, other: Any) -> Bool:
        """The smaller of both."""
        return Bool(min(self, other))

    __rand__ = __and__


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """What a layer, or a network, needs of the covariances of different positions.

    Attributes:
        input: Whether the layer can do with equal positions: yes, no, or if the others are zero.
        output: Whether what follows can do with them: yes from here on, perhaps, or no.

    Example:
        >>> bool(Diagonal() >> Diagonal(output=Bool.YES))
        True
    """

    input: Bool = Bool.YES
    output: Bool = Bool.NO

    def __rshift__(self, other: Diagonal) -> Diagonal:
        """The needs of `self` and then `other`."""
        # What follows has no positions any more.
        if self.output == Bool.YES:
            return self
        allowed = self.input & other.input
        if self.output == Bool.NO and other.input < Bool.YES:
            allowed = Bool.NO
        if self.output > Bool.NO and other.input > Bool.NO:
            allowed = self.input
        return Diagonal(allowed, other.output)

    def __lshift__(self, other: Diagonal) -> Diagonal:
        """The needs of `other` and then `self`."""
        return other >> self

    def __and__(self, other: Diagonal) -> Diagonal:
        """The needs of both side by side."""
        return Diagonal(self.input & other.input, self.output & other.output)

    __rand__ = __and__

    def __bool__(self) -> bool:
        """Whether equal positions are enough."""
        return self.input == Bool.YES and self.output > Bool.NO


def unmask_fn(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose masked outputs are arrays, with zeros where they are missing.

    Args:
        fn: A function with outputs that are arrays or `MaskedArray`.

    Example:
        >>> unmask_fn(lambda: MaskedArray(jnp.ones(2), jnp.array([True, False])))().tolist()
        [0.0, 1.0]
    """

    @functools.wraps(fn)
    def unmasked(*args: Any, **kwargs: Any) -> Any:
        outputs = fn(*args, **kwargs)
        return jax.tree.map(lambda leaf: parts(leaf)[0], outputs, is_leaf=is_masked)

    return unmasked


def is_masked(value: Any) -> bool:
    """Whether an array with missing entries.

    Example:
        >>> is_masked(jnp.ones(2))
        False
    """
    return isinstance(value, MaskedArray)


def parts(x: Any) -> tuple[Any, Any]:
    """Values, zero where they are missing, and the mask; None for none.

    Example:
        >>> parts(jnp.ones(2))[1] is None
        True
    """
    if not is_masked(x):
        return x, None
    values, mask = x.masked_value, x.mask
    return (values if mask is None else jnp.where(mask, jnp.zeros((), values.dtype), values)), mask


def whole(values: Any, mask: Any) -> Any:
    """The array, with its mask if there is one.

    Example:
        >>> whole(1.0, None)
        1.0
    """
    return values if mask is None else MaskedArray(values, mask)


def with_constant(x: Any, constant: Any) -> Any:
    """An array of which the entries that equal a constant, perhaps NaN, are missing.

    Example:
        >>> with_constant(jnp.array([1.0, 7.0]), 7.0).mask.tolist()
        [False, True]
    """
    if constant is None or x is None or is_masked(x):
        return x
    if not hasattr(x, "shape"):
        raise TypeError(f"got {type(x).__name__}, expected an array: mask_constant is for arrays.")
    x = jnp.asarray(x)
    # NaN equals nothing, not even itself.
    mask = jnp.where(jnp.isnan(constant), jnp.isnan(x), x == jnp.asarray(constant, x.dtype))
    return MaskedArray(jnp.where(mask, jnp.zeros((), x.dtype), x), mask)


def missing_positions(mask: Any, batch: int, channel: int) -> Any:
    """Which positions `[n, *shape]` have no channel left; None for a mask that is None.

    Example:
        >>> missing_positions(jnp.array([[True, False]]), 0, 1).tolist()
        [False]
    """
    return None if mask is None else jnp.all(jnp.moveaxis(mask, (batch, channel), (0, -1)), axis=-1)


def of_channels(mask: Any, axis: int) -> Any:
    """Which positions have no channel left, with an axis of size one for channels.

    Example:
        >>> of_channels(jnp.array([[True, False]]), 1).shape
        (1, 1)
    """
    return None if mask is None else jnp.all(mask, axis=axis, keepdims=True)
