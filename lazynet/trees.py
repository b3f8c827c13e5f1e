"""Vector-space operations on pytrees: what optimizers, drifts and power iterations need, no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.typing import Array, Params

__all__ = [
    "add",
    "add_scaled",
    "as_partial",
    "check_same_structure",
    "differentiable",
    "divide",
    "dot",
    "is_complex",
    "is_key",
    "is_traced",
    "is_weight",
    "length",
    "norm",
    "power_of_two",
    "subtract",
    "widened",
    "zeros_like",
]


def add(a: Params, b: Params) -> Params:
    """`a + b`, leaf by leaf.

    Raises:
        ValueError: The trees differ in structure, or two leaves have shapes that do not broadcast.
        TypeError: A leaf is an array of objects.

    Example:
        >>> add({"w": jnp.ones(2)}, {"w": jnp.ones(2)})["w"].tolist()
        [2.0, 2.0]
    """
    _check_sum(a, b)
    return jax.tree.map(jnp.add, a, b)


def subtract(a: Params, b: Params) -> Params:
    """`a - b`, leaf by leaf: the displacement from `b` to `a`.

    Raises:
        ValueError: The trees differ in structure, or two leaves have shapes that do not broadcast.
        TypeError: A leaf is an array of objects.

    Example:
        >>> subtract({"w": jnp.ones(2)}, {"w": jnp.ones(2)})["w"].tolist()
        [0.0, 0.0]
    """
    _check_sum(a, b)
    return jax.tree.map(jnp.subtract, a, b)


def add_scaled(a: Params, scale: Array | float, b: Params) -> Params:
    """`a + scale b`, each leaf in the dtype of `a`.

    Example:
        >>> add_scaled({"w": jnp.ones(2)}, 3.0, {"w": jnp.ones(2)})["w"].tolist()
        [4.0, 4.0]
    """

    def sum_of(x, y):
        # Optimizers may keep more digits than weights of half precision have: rounded once, at the end.
        with jax.numpy_dtype_promotion("standard"):
            wide = jnp.result_type(x, y)
        total = x.astype(wide) + jnp.asarray(scale).astype(wide) * y.astype(wide)
        return total.astype(x.dtype)

    return jax.tree.map(sum_of, a, b)


def divide(a: Params, scale: Array | float) -> Params:
    """`a / scale`, each leaf in its own dtype.

    Example:
        >>> divide({"w": jnp.ones(2)}, 2.0)["w"].tolist()
        [0.5, 0.5]
    """
    return jax.tree.map(lambda x: x / jnp.asarray(scale).astype(x.dtype), a)


@jax.jit
def dot(a: Params, b: Params) -> Array:
    """Inner product `<a, b>`, the sum over leaves of the leaves' inner products; of half precision it is in float32.

    Example:
        >>> float(dot({"w": jnp.ones(3)}, {"w": jnp.ones(3)}))
        3.0
    """
    a = widened(a)
    b = widened(b)
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision="highest"), a, b)
    return jax.tree.reduce(jnp.add, products)


@jax.jit
def norm(a: Params) -> Array:
    """Euclidean norm `sqrt(<a, a>)` over all leaves, also where the squares overflow or vanish, of complex leaves too.

    Of half precision it is in float32.

    Example:
        >>> float(norm({"w": jnp.array([3.0, 4.0])}))
        5.0
    """
    a = widened(a)
    scale = power_of_two(a)
    scaled = divide(a, scale)
    return scale * jnp.sqrt(jnp.real(dot(scaled, scaled)))


def power_of_two(a: Params) -> Array:
    """The power of two in (max |a| / 2, max |a|], 1 for a zero or not finite a: dividing by it rounds nothing.

    Example:
        >>> float(power_of_two({"w": jnp.array([3.0, -5.0])}))
        4.0
    """
    # `initial` is for leaves without entries.
    largest = jax.tree.reduce(
        jnp.maximum, jax.tree.map(lambda x: jnp.max(jnp.abs(x), initial=0), a)
    )
    # The factor 1.0 makes floating point of whole numbers; the scale cancels in all derivatives.
    largest = jax.lax.stop_gradient(largest * 1.0)
    # frexp writes x = m 2^e with 1/2 <= m < 1: 2^(e - 1) is the power of two at or below x.
    exponent = jnp.frexp(jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1))[1]
    return jnp.ldexp(jnp.asarray(0.5, largest.dtype), exponent)


def widened(a: Params) -> Params:
    """The same values, those of half precision in float32: sums of float16 end at 65,504, those of bfloat16 at 256.

    Example:
        >>> float(widened(jnp.ones(70000, jnp.float16)).sum())
        70000.0
    """

    def wide(leaf):
        is_half = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
        return leaf.astype(jnp.float32) if is_half else leaf

    return jax.tree.map(wide, a)


def zeros_like(a: Params) -> Params:
    """The zero of the space of `a`: the start of a lazy function's variable u = alpha (w - w0).

    Arrays of whole numbers, booleans and keys are constants, and stay.

    Example:
        >>> zeros_like({"w": jnp.ones(2)})["w"].tolist()
        [0.0, 0.0]
    """

    def zero(leaf):
        is_constant = hasattr(leaf, "dtype") and not is_weight(leaf)
        return leaf if is_constant else jnp.zeros_like(leaf)

    return jax.tree.map(zero, a)


def is_weight(leaf: Any) -> bool:
    """Whether a leaf of parameters is differentiated, which real and complex floating-point numbers are.

    All others, whole numbers, booleans and keys, are constants.

    Example:
        >>> is_weight(jnp.ones(2)), is_weight(jnp.array(3))
        (True, False)
    """
    return bool(jnp.issubdtype(_dtype(leaf), jnp.inexact))


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys.

    Example:
        >>> is_key(jax.random.key(0))
        True
    """
    return bool(jnp.issubdtype(getattr(leaf, "dtype", np.dtype(object)), jax.dtypes.prng_key))


def is_complex(leaf: Any) -> bool:
    """Whether a leaf is complex.

    Example:
        >>> is_complex(jnp.ones(2))
        False
    """
    return bool(jnp.issubdtype(_dtype(leaf), jnp.complexfloating))


def differentiable(params: Params) -> tuple[list[Array], Callable[[list[Array]], Params]]:
    """The weights among the parameters, and the function that puts others into their places; the rest are constants.

    Example:
        >>> weights, rebuilt = differentiable({"w": jnp.ones(1), "steps": 3})
        >>> rebuilt([2 * weights[0]])["w"].tolist(), rebuilt(weights)["steps"]
        ([2.0], 3)
    """
    leaves, treedef = jax.tree.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if is_weight(leaf)]

    def rebuilt(weights: list[Array]) -> Params:
        every = dict(enumerate(leaves)) | dict(zip(places, weights, strict=True))
        return jax.tree.unflatten(treedef, list(every.values()))

    return [jnp.asarray(leaves[i]) for i in places], rebuilt


def length(x: Any) -> int:
    """The number of examples, the length of the first axis of the first array of a tree.

    Example:
        >>> length({"tokens": jnp.ones((5, 3)), "mask": jnp.ones(5)})
        5
    """
    return int(jnp.shape(jax.tree.leaves(x)[0])[0])


def as_partial(function, name: str = "apply") -> Callable[..., Any]:
    """The function as a pytree: arrays that it carries stay arguments of a compiled function.

    A `jax.tree_util.Partial` is one, and so is a callable record of arrays such as what `lazy`
    returns: they come back as they are. Any other function gets a `Partial` around it.

    Raises:
        TypeError: If it cannot be called.

    Example:
        >>> as_partial(jnp.sin, "loss").func is jnp.sin
        True
    """
    if not callable(function):
        raise TypeError(
            f"{name} got {function!r}, expected a function of (params, x) or a jax.tree_util.Partial; "
            "of a Model pass model.apply."
        )
    is_tree = isinstance(function, jax.tree_util.Partial) or _holds_arrays(function)
    return function if is_tree else jax.tree_util.Partial(function)


def _holds_arrays(record: Any) -> bool:
    """Whether it is a pytree of arrays and numbers; a plain function is a leaf."""
    leaves = jax.tree.leaves(record)
    return all(
        leaf is not record and (hasattr(leaf, "dtype") or isinstance(leaf, (int, float, complex)))
        for leaf in leaves
    )


def check_same_structure(params: Params, reference: Params, *, name: str, expected: str) -> None:
    """Raises a ValueError unless `params` has the structure and the shapes of `reference`.

    Only static facts are compared, so the check also works on traced arrays.

    Args:
        params: The tree to check.
        reference: The tree whose structure and shapes are expected.
        name: What `params` is called in the message.
        expected: What `reference` is called in the message.

    Raises:
        ValueError: Naming the first leaf that differs.

    Example:
        >>> check_same_structure({"w": jnp.ones(2)}, {"w": jnp.ones(3)}, name="u", expected="params0")
        Traceback (most recent call last):
        ...
        ValueError: u['w'] has shape (2,), expected (3,) as in params0: build both from the same model.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    leaves, expected_treedef = jax.tree.flatten(reference)
    if treedef != expected_treedef:
        raise ValueError(
            f"{name} has the structure {treedef}, expected {expected_treedef} as in {expected}: "
            "build both from the same model."
        )
    for (path, leaf), other in zip(paths, leaves, strict=True):
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, expected "
                f"{jnp.shape(other)} as in {expected}: build both from the same model."
            )


def _check_sum(a: Params, b: Params) -> None:
    """Refuses trees without a sum, by static facts: JAX would not say which leaf it is."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(a)
    try:
        others = treedef.flatten_up_to(b)
    except (TypeError, ValueError):
        raise ValueError(
            f"a has the structure {treedef} and b {jax.tree.structure(b)}, expected the same: take both of one model."
        ) from None
    for (path, leaf), other in zip(paths, others, strict=True):
        place = jax.tree_util.keystr(path)
        for name, value in (("a", leaf), ("b", other)):
            if getattr(getattr(value, "dtype", None), "kind", "") == "O":
                raise TypeError(
                    f"{name}{place} has dtype object, expected numbers: pass {name}.astype(float)."
                )
        try:
            jnp.broadcast_shapes(jnp.shape(leaf), jnp.shape(other))
        except ValueError:
            raise ValueError(
                f"a{place} has shape {jnp.shape(leaf)} and b{place} {jnp.shape(other)}, expected the same: take both "
                "of one model."
            ) from None


def is_traced(tree: Any) -> bool:
    """Whether a leaf is being traced by a transformation, so that its value is unknown.

    Example:
        >>> is_traced({"w": jnp.ones(2)})
        False
    """
    try:
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array):
                # A traced array has no devices, and says so by this error.
                leaf.devices()
    except jax.errors.ConcretizationTypeError:
        return True
    return False


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
