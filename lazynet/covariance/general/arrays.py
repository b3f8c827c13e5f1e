"""What is done to arrays of covariances `[..., *shape, *shape]` between all pairs of positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from lazynet.typing import Array

__all__ = [
    "check_memory",
    "conjugated",
    "conjugated_alone",
    "covariance",
    "equal_entries",
    "equal_positions",
    "with_equal_entries",
]

COPIES = 4
"""Arrays of the size of one covariance that a rule holds at a time: both kernels before and after it."""

Layer = Callable[[Array], Array]


def check_memory(shape: tuple[int, ...], itemsize: int, context: Mapping[str, Any]) -> None:
    """Refuses covariances that take more than `context["memory"]` with what is computed beside them.

    Example:
        >>> check_memory((2, 2, 5, 5), 8, {"memory": 10_000})
    """
    needed = COPIES * itemsize * math.prod(shape)
    allowed = context.get("memory", math.inf)
    if needed > allowed:
        raise ValueError(
            f"memory is {int(allowed):,} bytes, expected at least {needed:,} for covariances of shape {shape} and what "
            "is computed beside them: compute blocks of fewer inputs (batch), or allow more by memory=."
        )


def covariance(x1: Array, x2: Array, pairs: bool, diagonal: bool) -> Array:
    """Means over channels of products, of all pairs of examples or of each example with itself."""
    letters = "abcdefgh"[: x1.ndim - 2]
    others = letters if diagonal else letters.upper()
    rows, columns, examples = ("i", "j", "ij") if pairs else ("i", "i", "i")
    kept = letters if diagonal else letters + others
    expression = f"{rows}{letters}z,{columns}{others}z->{examples}{kept}"
    return jnp.einsum(expression, x1, x2, precision="highest") / x1.shape[-1]


def equal_positions(values: Array, lead: int) -> Array:
    """`[..., *shape, *shape]` at equal positions, `[..., *shape]`, after so many leading axes."""
    shape = values.shape[lead : lead + (values.ndim - lead) // 2]
    size = math.prod(shape)
    square = values.reshape(*values.shape[:lead], size, size)
    return jnp.diagonal(square, axis1=-2, axis2=-1).reshape(*values.shape[:lead], *shape)


def equal_entries(values: Array | None, batch: int, diagonal: bool) -> Any:
    """What an example has with itself at equal positions, `[n, *shape]`, after one or two axes of examples.

    Example:
        >>> equal_entries(jnp.arange(4.0).reshape(2, 2), 2, False).tolist()
        [0.0, 3.0]
    """
    if values is None:
        return None
    if batch == 2:
        values = jnp.moveaxis(jnp.diagonal(values, axis1=0, axis2=1), -1, 0)
    return values if diagonal else equal_positions(values, 1)


def with_equal_entries(values: Array | None, exact: Any, batch: int, diagonal: bool) -> Any:
    """Covariances in which those of `equal_entries` are others.

    Example:
        >>> with_equal_entries(jnp.zeros((2, 2)), jnp.array([1.0, 2.0]), 2, False).tolist()
        [[1.0, 0.0], [0.0, 2.0]]
    """
    if values is None:
        return None
    n = len(exact)
    example = jnp.arange(n)[:, None]
    examples = (example,) * batch
    if diagonal:
        return values.at[tuple(e[:, 0] for e in examples)].set(exact)
    size = math.prod(exact.shape[1:])
    place = jnp.arange(size)[None, :]
    square = values.reshape(*values.shape[:batch], size, size)
    # Entries (i, i, p, p), or (i, p, p) where examples have one axis.
    written = square.at[(*examples, place, place)].set(exact.reshape(n, size))
    return written.reshape(values.shape)


def conjugated(values: Array, shape: tuple[int, ...], first: Layer, second: Layer) -> Array:
    """`A S B'` of layers A and B, for covariances `[n1, n2, *shape, *shape]` of all pairs of examples."""
    # A S B' = (B (A S)')': each layer acts on rows, with all the rest beside as channels.
    n1, n2 = values.shape[:2]
    size = math.prod(shape)
    # `[n1, P, n2, P]`.
    pairs = jnp.swapaxes(values.reshape(n1, n2, size, size), 1, 2)
    rows = first(pairs.reshape(n1, *shape, n2 * size))
    m1, *shape1, _ = rows.shape
    other = jnp.moveaxis(rows.reshape(m1 * math.prod(shape1), n2, size), 0, -1)
    columns = second(other.reshape(n2, *shape, other.shape[-1]))
    m2, *shape2, _ = columns.shape
    done = columns.reshape(m2, math.prod(shape2), m1, math.prod(shape1))
    return jnp.transpose(done, (2, 0, 3, 1)).reshape(m1, m2, *shape1, *shape2)


def conjugated_alone(values: Array, shape: tuple[int, ...], layer: Layer) -> Array:
    """`A S A'` for covariances `[n, *shape, *shape]` of each example with itself."""
    size = math.prod(shape)
    rows = layer(values.reshape(len(values), *shape, size))
    n, *new, _ = rows.shape
    other = jnp.swapaxes(rows.reshape(n, math.prod(new), size), 1, 2)
    columns = layer(other.reshape(n, *shape, math.prod(new)))
    done = jnp.swapaxes(columns.reshape(n, math.prod(new), math.prod(new)), 1, 2)
    return done.reshape(n, *new, *new)
