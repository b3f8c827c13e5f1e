"""Keyword arguments of the functions of neural-tangents: bound to a function, and split between two sets of inputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from lazynet.trees import as_partial
from lazynet.typing import Apply, Array, ArrayLike

__all__ = ["bound", "split_keywords", "takes_key"]


def bound(f: Callable[..., Any], kwargs: dict[str, Any]) -> Apply:
    """The function with its keyword arguments; arrays among them stay arguments of the compiled code.

    Example:
        >>> float(bound(lambda p, x, gain: gain * p * x, {"gain": 2.0})(1.0, 3.0))
        6.0
    """
    arrays = {name: value for name, value in kwargs.items() if isinstance(value, ArrayLike)}
    static = {name: value for name, value in kwargs.items() if name not in arrays}
    if not static:
        return Partial(_call, as_partial(f, "f"), **arrays) if arrays else as_partial(f, "f")
    # A record compares equal at the next call, where a partial of functools would compile anew.
    fixed = _Fixed(f, tuple(sorted(static.items())))
    return Partial(fixed if _hashable(fixed) else functools.partial(f, **static), **arrays)


def split_keywords(
    kwargs: dict[str, Any], x1: Any, x2: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments for both sets of inputs, one and the same dictionary if they are the same.

    A pair holds those for either; of a single key both sets get one of their own, unless they are
    equal.

    Example:
        >>> split_keywords({"gain": (1, 2)}, jnp.ones(1), jnp.ones(2))
        ({'gain': 1}, {'gain': 2})
    """
    pairs = {name: v for name, v in kwargs.items() if isinstance(v, tuple) and len(v) == 2}
    rng = kwargs.get("rng")
    if rng is not None and "rng" not in pairs and x2 is not None:
        pairs["rng"] = tuple(jax.random.split(rng))
    if not pairs:
        return kwargs, kwargs
    first = {**kwargs, **{name: pair[0] for name, pair in pairs.items()}}
    second = {**kwargs, **{name: pair[1] for name, pair in pairs.items()}}
    # One set has one draw of its noise.
    if x2 is None:
        second["rng"] = first.get("rng")
    elif "rng" in pairs:
        second["rng"] = _same_key(x1, x2, *pairs["rng"])
    # By identity, since traced values cannot be compared.
    if all(second.get(name) is value for name, value in first.items()):
        return first, first
    return first, {name: value for name, value in second.items() if value is not None}


def _same_key(x1: Any, x2: Any, key1: Any, key2: Any) -> Any:
    """The key of the second set: that of the first if both are equal."""
    shapes = [jax.tree.map(jnp.shape, x) for x in (x1, x2)]
    if key2 is None or shapes[0] != shapes[1]:
        return key2
    # Inside of the program, where inputs may be traced.
    each = jax.tree.map(_are_equal, x1, x2)
    same = functools.reduce(jnp.logical_and, jax.tree.leaves(each))
    return jax.lax.cond(same, lambda: key1, lambda: key2)


def _are_equal(a: Any, b: Any) -> Array:
    # As numbers of float32 large tokens next to each other would be one.
    if not jnp.issubdtype(jnp.result_type(a, b), jnp.inexact):
        return jnp.all(a == b)
    # The bound of neural-tangents; NaN may stand for what is missing.
    return jnp.all(jnp.isclose(a, b, rtol=0, atol=1e-12, equal_nan=True))


def takes_key(f: Callable[..., Any]) -> bool:
    """Whether a function may take `rng`: one with any keyword arguments, or this one.

    Example:
        >>> takes_key(lambda params, x, **kwargs: x)
        True
    """
    parameters = inspect.signature(f).parameters.values()
    return any(p.kind == p.VAR_KEYWORD or p.name == "rng" for p in parameters)


def _call(f, *args, **kwargs):
    return f(*args, **kwargs)


class _Fixed(NamedTuple):
    """`f` with keyword arguments that are no arrays: equal ones share a compiled program."""

    f: Callable[..., Any]
    static: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The value of `f`."""
        return self.f(*args, **dict(self.static), **kwargs)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
