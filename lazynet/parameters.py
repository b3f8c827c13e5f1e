"""One selector of parameters, `where`: a function of path and leaf, or a tree of booleans."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from lazynet import trees
from lazynet.typing import Params

__all__ = ["Where", "selected"]

Where = Callable[..., bool] | PyTree[bool]
"""`where(path)` or `where(path, leaf)`, or booleans in a tree, each of which stands for all leaves below it."""


def selected(where: Where | None, params: Params, name: str = "where") -> PyTree[bool]:
    """Which leaves of the parameters are chosen, as a tree of booleans; constants never are.

    Args:
        where: A function of the path, such as `"0_Dense/W"`, or of path and leaf; or a tree of
            booleans of the structure of `params`, or of its upper part. None for all.
        params: Parameters.
        name: What messages call `where`.

    Raises:
        TypeError: `where` is neither.
        ValueError: It has another structure, or chooses nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"W": jnp.ones((2, 2)), "b": jnp.ones(2)}
        >>> selected(lambda path: path.endswith("b"), params)
        {'W': False, 'b': True}
        >>> selected(lambda path, leaf: leaf.ndim == 2, params) == selected({"W": True, "b": False}, params)
        True
    """
    if where is None:
        return jax.tree.map(trees.is_weight, params)
    wanted = _called(where, params) if callable(where) else _spread(where, params, name)
    # Constants have no derivative, also where they are asked for.
    chosen = jax.tree.map(
        lambda leaf, is_wanted: trees.is_weight(leaf) and is_wanted, params, wanted
    )
    if not any(jax.tree.leaves(chosen)):
        raise ValueError(
            f"{name} selects none of the parameters {[path for path, _ in _leaves(params)]}: a function gets one of "
            "these paths at a time."
        )
    return chosen


def _called(where: Callable[..., Any], params: Params) -> PyTree[bool]:
    takes_leaves = _arguments(where) == 2
    flags = []
    for path, leaf in _leaves(params):
        flag = where(path, leaf) if takes_leaves else where(path)
        flags.append(bool(flag))
    return jax.tree.unflatten(jax.tree.structure(params), flags)


def _arguments(where: Callable[..., Any]) -> int:
    """Whether it takes the path alone or the leaf too: arguments with defaults are the function's own."""
    try:
        parameters = inspect.signature(where).parameters.values()
    except (TypeError, ValueError):  # of builtins nothing is known
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _spread(where: PyTree[bool], params: Params, name: str) -> PyTree[bool]:
    try:
        return jax.tree.map(
            lambda flag, below: jax.tree.map(lambda _: _flag(flag, name), below), where, params
        )
    except ValueError as error:
        raise ValueError(
            f"{name} has the structure {jax.tree.structure(where)}, expected {jax.tree.structure(params)}, that of the "
            "parameters, or its upper part."
        ) from error


def _flag(flag: Any, name: str) -> bool:
    if isinstance(flag, (bool, np.bool_)):
        return bool(flag)
    raise TypeError(
        f"{name} got {flag!r}, expected a function of paths, lambda path: path.startswith('0_Dense'), of paths and "
        "leaves, or a tree of booleans."
    )


def _leaves(params: Params) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
