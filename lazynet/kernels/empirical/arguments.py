"""What comes into the functions of this package, checked once and in one form.

Examples are an array `[n, *inputs]`, a dictionary or tuple of arrays with a common first axis, or
several of these, `Inputs`. Parameters are a tree of arrays: real floating-point leaves are
differentiated, complex ones as pairs of real ones, all others are constants. Outputs are one array,
which functions of trees are made to return.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lazynet import guards, trees
from lazynet.lazy import check_displacement
from lazynet.models.model import plain
from lazynet.parameters import Where
from lazynet.signatures import real_weights
from lazynet.trees import as_partial
from lazynet.typing import Apply, ArrayLike, Params

Examples = PyTree[Any]
"""An array `[n, *inputs]`, or a dictionary or tuple of arrays with a common first axis."""

STATISTICS = {"BatchStat", "Cache", "Intermediate"}
"""Variables of nnx that are no weights."""


class Arguments(NamedTuple):
    """What `canonical` makes of the arguments of a public function."""

    function: Apply
    params: Params
    x1: Examples
    x2: Examples | None


def canonical(
    apply: Apply,
    params: Params,
    x1: Examples,
    x2: Examples | None = None,
    name: str = "x1",
    where: Where | None = None,
) -> Arguments:
    """The function as a pytree, real parameters, and examples of one structure and dtype.

    Args:
        apply: `apply(params, x)`.
        params: A tree of arrays or numbers.
        x1: Examples.
        x2: More of them, or None.
        name: What messages call `x1`.
        where: Which weights are differentiated; the others become constants of the function.

    Raises:
        TypeError: A leaf is no array of numbers, or `apply` no function.
        ValueError: There are no examples, values that are not finite, two sets that do not fit each
            other, or parameters that are the initialization of a lazy function.
    """
    # Without the backward pass of reversible models, which have no forward derivative.
    function = plain(as_partial(apply))
    check_displacement(function, params)
    check_examples(name, x1)
    guards.finite(name, x1)
    if x2 is not None:
        check_examples("x2", x2)
        guards.finite("x2", x2)
        x1, x2 = _alike(name, x1, x2)
    check_numbers(params)
    return Arguments(*real_weights(function, params, where), x1, x2)


def check_examples(name: str, x: Any) -> int:
    """Their number; refuses what is no array, or tree of arrays, of numbers with a common first axis >= 1."""
    # For JAX a list is a tree of its numbers, and a sparse matrix one of its buffers.
    if isinstance(x, list) or hasattr(x, "todense"):
        guards.array(name, x)
    leaves = {
        f"{name}{jax.tree_util.keystr(path)}": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(x)
    }
    if not leaves:
        raise TypeError(f"{name} got {x!r}, expected an array of examples [n, ...].")
    for path, leaf in leaves.items():
        guards.array(path, leaf)
    return guards.same_length(**leaves)


def count_examples(x: Examples) -> int:
    """The common length of the first axes of all arrays."""
    return int(jnp.shape(jax.tree.leaves(x)[0])[0])


def one_example(x: Examples) -> Examples:
    """Shape and dtype of a batch of one."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)


def check_outputs(h: Any, n: int, derivative: bool = True) -> None:
    """Refuses what is not one real array with a row for each example, in floating point for a derivative.

    A shape and a dtype will do.
    """
    if not hasattr(h, "shape") or h.shape[:1] != (n,):
        shapes = jax.tree.map(jnp.shape, h)
        raise ValueError(
            f"apply returned {shapes} (shapes) for {n} examples, expected one array [{n}, ...]: "
            "return the outputs alone, batch first."
        )
    if jnp.issubdtype(h.dtype, jnp.complexfloating):
        raise ValueError(
            f"apply returned outputs of dtype {h.dtype}, expected real ones: return real and imaginary "
            "parts as two outputs, jnp.stack([h.real, h.imag], -1)."
        )
    if derivative and not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(
            f"apply returned outputs of dtype {h.dtype}, expected floating point: whole numbers have no derivative, "
            "take what they are made of, for instance logits."
        )


def check_numbers(params: Params) -> None:
    """Refuses parameters among which one is no number and no array of numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_number = isinstance(leaf, (ArrayLike, np.generic, bool, int, float, complex))
        if not is_number or getattr(leaf, "dtype", None) == np.dtype(object):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} got {leaf!r}, expected arrays: leave out what is no number, "
                "and bind it to apply (of an equinox module, pass apply and init(None, x) of from_equinox(module))."
            )


def check_no_statistics(params: Params, names: tuple[str, ...] | None = None) -> None:
    """Refuses running averages among the parameters, which would be counted as weights.

    Args:
        params: What may be all variables of a flax module.
        names: Paths of the leaves that are differentiated; None for all.
    """
    found = _linen_statistics(params, names) or _nnx_statistics(params, names)
    if found:
        raise ValueError(
            f"params got all variables of a flax module, {found} among them, expected its weights alone: running "
            "averages are no weights. Pass model.apply and model.init(None, x) of model = from_flax(module, variables) "
            "(of nnx, from_flax(module)); see docs/howto/model.md."
        )


def _linen_statistics(params: Params, names: tuple[str, ...] | None) -> str:
    """The collection of linen that is differentiated beside the collection of weights."""
    if not (isinstance(params, Mapping) and "params" in params):
        return ""
    for collection in sorted(guards.COLLECTIONS & set(params)):
        weights = any(trees.is_weight(leaf) for leaf in jax.tree.leaves(params[collection]))
        if weights and _holds_chosen(collection, names):
            return f"the collection {collection!r}"
    return ""


def _nnx_statistics(params: Params, names: tuple[str, ...] | None) -> str:
    """The first variable of nnx that is differentiated and no weight."""

    def kind(node: Any) -> str:
        return getattr(getattr(node, "type", None), "__name__", type(node).__name__)

    nodes = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda node: kind(node) in STATISTICS
    )
    for path, node in nodes:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if kind(node) in STATISTICS and _holds_chosen(name, names):
            return f"the {kind(node)} {name!r}"
    return ""


def is_chosen(path: str, names: tuple[str, ...]) -> bool:
    """Whether a path is one of the names, or below one, as the two parts of a complex leaf are."""
    # The path of parameters that are one array is empty.
    return any(name in ("", path) or path.startswith(f"{name}/") for name in names)


def _holds_chosen(path: str, names: tuple[str, ...] | None) -> bool:
    """Whether a path is one of the names, or above one; None are all."""
    return names is None or any(name == path or name.startswith(f"{path}/") for name in names)


def _alike(name: str, x1: Examples, x2: Examples) -> tuple[Examples, Examples]:
    """Both sets in the dtypes to which NumPy promotes them."""

    def shapes(x: Examples) -> list[tuple[int, ...]]:
        return [leaf.shape[1:] for leaf in jax.tree.leaves(x)]

    if jax.tree.structure(x1) != jax.tree.structure(x2) or shapes(x1) != shapes(x2):
        found = [jax.tree.map(lambda leaf: leaf.shape, x) for x in (x1, x2)]
        raise ValueError(
            f"{name} has shape {found[0]} and x2 {found[1]}, expected the same but for the first axis."
        )

    def promoted(leaf: ArrayLike, other: ArrayLike) -> ArrayLike:
        if leaf.dtype == other.dtype:
            return leaf
        dtype = jnp.promote_types(leaf.dtype, other.dtype)
        return leaf.astype(jax.dtypes.canonicalize_dtype(dtype))  # without x64 float64 is float32

    return jax.tree.map(promoted, x1, x2), jax.tree.map(promoted, x2, x1)
