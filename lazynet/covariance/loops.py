"""Loops over displacements, in the form that XLA compiles to fast code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.covariance.windows import Size
from lazynet.typing import Array

__all__ = ["cut", "fold", "guarded", "traced_once", "written", "zeros"]


def fold(step: Callable[[Any, Any, Any], Any], carry: Any, canvas: Size) -> Any:
    """Folds `step(carry, p, q)` over all displacements of a canvas.

    Example:
        >>> int(fold(lambda total, p, q: total + p * q, jnp.int32(0), (2, 3)))
        3
    """
    displacements = np.stack(
        np.meshgrid(np.arange(canvas[0]), np.arange(canvas[1]), indexing="ij"), -1
    ).reshape(-1, 2)

    def body(carry, d):
        return step(carry, d[0], d[1]), None

    return lax.scan(body, carry, jnp.asarray(displacements, jnp.int32))[0]


def guarded(compute: Callable[[], Any], index: Any, like: Any = None) -> Any:
    """`compute()` inside a loop over `index` >= 0.

    The condition is always true: XLA hoists constants out of loops as whole arrays, which
    multiplies the memory traffic by six, but it does not look into branches.

    Args:
        compute: Returns arrays.
        index: Of the loop.
        like: Zeros like the result; with them the layers behind `compute` are traced once less.
    """
    # Backward derivatives evaluate layers again, and do not keep the planes of all displacements.
    compute = jax.checkpoint(compute)
    return lax.cond(index >= 0, compute, lambda: zeros(compute) if like is None else like)


def zeros(compute: Callable[[], Any]) -> Any:
    """Zeros like the arrays that `compute()` returns.

    Example:
        >>> zeros(lambda: jnp.ones(2)).tolist()
        [0.0, 0.0]
    """
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(compute))


def traced_once(
    function: Callable[..., Any], keys: Iterable[Any]
) -> Callable[[Any, Any, dict], Any]:
    """`function(p, q, rows)` for rows of these keys: JAX remembers its trace, which it inlines in every later use.

    Asking for the zeros that a loop starts with and running the loop would else trace all layers
    behind it twice.

    Example:
        >>> float(traced_once(lambda p, q, rows: rows["a"] + p * q, ["a"])(2.0, 3.0, {"a": 1.0}))
        7.0
    """
    keys = list(keys)
    flat = jax.jit(
        lambda p, q, *rows: function(p, q, dict(zip(keys, rows, strict=True))), inline=True
    )
    return lambda p, q, rows: flat(p, q, *(rows[key] for key in keys))


def cut(a: Array, start: Any, sizes: Any) -> Array:
    """The part of an array that starts at traced places."""
    return lax.dynamic_slice(a, _starts(start), sizes)


def written(a: Array, part: Array, start: Any) -> Array:
    """The array with a part of it replaced."""
    return lax.dynamic_update_slice(a, part, _starts(start))


def _starts(start):
    # Starts of one dtype, some of which are numbers and others traced.
    return [jnp.asarray(i, jnp.int32) for i in start]
