"""Products of the empirical tangent kernel with vectors, and its largest eigenvalue, without forming it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lazynet import guards, trees
from lazynet.kernels.empirical.arguments import (
    Examples,
    canonical,
    check_no_statistics,
    check_outputs,
    count_examples,
)
from lazynet.kernels.empirical.independence import refuse_mixing
from lazynet.linalg import lanczos, ritz_values
from lazynet.parameters import Where
from lazynet.programs import PerFunction, shape_of
from lazynet.signatures import Output, flat
from lazynet.typing import Apply, Array, Key, Params


def ntk_vector_product(
    apply: Apply,
    params: Params,
    x1: Examples,
    x2: Examples | None = None,
    *,
    output: Output = None,
    where: Where | None = None,
    tile: int | None = None,
) -> Callable[[Array], Array]:
    """The linear map `v -> Theta(x1, x2) v = J(x1) (J(x2)^T v)`, without forming the kernel.

    One product costs one backward and one forward derivative, whatever the number of outputs. All
    examples go through the network at once, so that its activations for all of them are held;
    `tile` bounds that: the gradient is added up, and the derivatives are taken, so many examples at
    a time, in a loop on the host.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Where to take the derivative.
        x1: Examples of the rows.
        x2: Examples of the columns; None for those of the rows.
        output: Which of the outputs of apply, by `select`.
        where: Which parameters to differentiate, as in `empirical_ntk`.
        tile: Examples that are looked at together, each by itself; None for all of them.

    Returns:
        A function of v `[n2, k]` with value `[n1, k]`, a pytree that compiled code can take as an
        argument.

    Raises:
        TypeError: If inputs or parameters are no arrays of numbers.
        ValueError: If there are no examples, they are not finite, both sets differ in shape,
            `params` holds running averages of flax, or `tile` is below 1 or given for a function
            that mixes the examples of a batch; when called, if v does not have the shape of the
            outputs at x2.

    Example:
        >>> linear = lambda params, x: x @ params["w"]
        >>> product = ntk_vector_product(linear, {"w": jnp.ones((2, 1))}, jnp.eye(2))
        >>> product(jnp.array([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
    """
    function, params, x1, x2 = canonical(flat(apply, x1, output), params, x1, x2, where=where)
    check_no_statistics(params)
    x2 = x1 if x2 is None else x2
    if tile is None:
        return Partial(_product, function, params, x1, x2)
    tile = guards.count("tile", tile)
    refuse_mixing(function, params, x1)
    return Partial(_Tiled(tile), function, params, x1, x2)


def largest_ntk_eigenvalue(
    apply: Apply,
    params: Params,
    x: Examples,
    *,
    key: Key[Array, ""],
    iterations: int = 15,
    output: Output = None,
    where: Where | None = None,
) -> float:
    """Largest eigenvalue `lambda_max(Theta)` of the `[n k, n k]` kernel, by Lanczos iteration on products.

    The value approaches lambda_max from below, and is at least that of as many power iterations
    from the same start. The iteration runs on the host, in float64, around one compiled product:
    convolutions are slow in compiled loops.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Where to take the derivative.
        x: Examples; a few hundred give a good estimate of `lambda_max / n` for a large data set.
        key: Draws the starting vector.
        iterations: Number of products.
        output: Which of the outputs of apply, by `select`.
        where: Which parameters to differentiate, as in `empirical_ntk`.

    Raises:
        TypeError: If inputs or parameters are no arrays of numbers.
        ValueError: If there are no examples or they are not finite, `apply` mixes the examples of a
            batch, `params` holds running averages of flax, `iterations` is below 1, or the product
            is not finite.

    Example:
        >>> linear = lambda params, x: x @ params["w"]
        >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
        >>> round(largest_ntk_eigenvalue(linear, {"w": jnp.ones((2, 1))}, x, key=jax.random.key(0)), 4)
        9.0
    """
    iterations = guards.count("iterations", iterations)
    guards.key("key", key)
    function, params, x, _ = canonical(flat(apply, x, output), params, x, name="x", where=where)
    check_no_statistics(params)
    refuse_mixing(function, params, x)
    shape = jax.eval_shape(lambda params, x: function(params, x), params, x)
    check_outputs(shape, count_examples(x))
    start = jax.random.normal(key, shape.shape, shape.dtype)

    def on_host(v):
        product, size = _scaled_product(
            function, params, x, jnp.asarray(v.reshape(start.shape), start.dtype)
        )
        # In float64, whose range holds what the dtype of the derivatives does not.
        return np.asarray(product, np.float64).ravel() * float(size)

    values, _ = ritz_values(
        # A Krylov space has no more dimensions than the vectors.
        *lanczos(on_host, np.asarray(start, np.float64).ravel(), min(iterations, start.size))
    )
    return float(values[-1])


def estimate_max_learning_rate(
    apply: Apply,
    params: Params,
    x: Examples,
    *,
    key: Key[Array, ""],
    momentum: float | int = 0.0,
    iterations: int = 15,
    output: Output = None,
    where: Where | None = None,
) -> float:
    """Largest stable learning rate `2 (1 + momentum) n / lambda_max(Theta)`, without forming the kernel.

    Full-batch gradient descent on the linearized network with the loss 1/(2n) sum |h - y|^2
    diverges above it; minibatches need a fraction of it. The eigenvalue is approached from below,
    so this bound is approached from above.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Initial parameters (zeros for a `lazy` function).
        x: Training inputs, or a few hundred of them.
        key: Draws the starting vector of the iteration.
        momentum: Heavy-ball momentum, in [0, 1).
        iterations: Number of products with the kernel.
        output: Which of the outputs of apply, by `select`.
        where: Which parameters to differentiate, as in `empirical_ntk`.

    Raises:
        TypeError: If inputs or parameters are no arrays of numbers.
        ValueError: If `momentum` is outside [0, 1), or as `largest_ntk_eigenvalue`.

    Example:
        >>> linear = lambda params, x: x @ params["w"]
        >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
        >>> round(estimate_max_learning_rate(linear, {"w": jnp.ones((2, 1))}, x, key=jax.random.key(0)), 4)
        0.4444
    """
    momentum = guards.momentum(momentum)
    function = flat(apply, x, output)
    top = largest_ntk_eigenvalue(function, params, x, key=key, iterations=iterations, where=where)
    return 2 * (1 + momentum) * count_examples(x) / top if top > 0 else math.inf


@dataclasses.dataclass(frozen=True)
class _Tiled:
    """The product with so many examples at a time."""

    tile: int

    def __call__(
        self, function: Apply, params: Params, x1: Examples, x2: Examples, v: Any
    ) -> Array:
        guards.array("v", v)
        shape = shape_of(function, params, x2).shape
        if v.shape != shape:
            raise ValueError(f"v has shape {v.shape}, expected that of the outputs at x2, {shape}.")
        gradient = pulled_back(function, params, x2, v, self.tile)
        return pushed_forward(function, params, x1, gradient, self.tile)


def is_tiled(product: Any) -> bool:
    """Whether a product loops over its examples, on the host."""
    return isinstance(getattr(product, "func", None), _Tiled)


def pulled_back(
    function: Apply, params: Params, x: Examples, v: Array, tile: int | None = None
) -> list[Array]:
    """`J(x)' v` for each weight, the sum over tiles of examples: backward derivatives alone."""
    total: list[Array] | None = None
    for rows in _tiles(x, tile):
        part = _pull(function, params, _rows(x, rows), v[rows])
        total = part if total is None else _sum(total, part)
    return [] if total is None else total


def pushed_forward(
    function: Apply, params: Params, x: Examples, direction: list[Array], tile: int | None = None
) -> Array:
    """`J(x) w` for a direction w of the weights, tile by tile of examples: forward derivatives alone."""
    parts = [_push(function, params, _rows(x, rows), direction) for rows in _tiles(x, tile)]
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]


def _tiles(x: Examples, tile: int | None) -> list[slice]:
    n = count_examples(x)
    size = n if tile is None else tile
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _rows(x: Examples, rows: slice) -> Examples:
    return jax.tree.map(lambda leaf: leaf[rows], x)


@PerFunction
def _product(function: Apply, params: Params, x1: Examples, x2: Examples, v: Any) -> Array:
    # Theta v = J(x1) (J(x2)' v): a backward and a forward derivative, and no matrix.
    return _forward(function, params, x1, _backward(function, params, x2, v))


@PerFunction
def _pull(function: Apply, params: Params, x: Examples, v: Any) -> list[Array]:
    return _backward(function, params, x, v)


@PerFunction
def _push(function: Apply, params: Params, x: Examples, direction: list[Array]) -> Array:
    return _forward(function, params, x, direction)


# Into the running sum, so that one gradient is held beside it and not two.
@partial(jax.jit, donate_argnums=0)
def _sum(a: list[Array], b: list[Array]) -> list[Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _backward(function: Apply, params: Params, x: Examples, v: Any) -> list[Array]:
    weights, rebuilt = trees.differentiable(params)
    values, pull_back = jax.vjp(lambda w: function(rebuilt(w), x), weights)
    check_outputs(values, count_examples(x))
    guards.array("v", v)
    if v.shape != values.shape or jnp.issubdtype(v.dtype, jnp.complexfloating):
        found = f"v has shape {v.shape} and dtype {v.dtype}"
        raise ValueError(
            f"{found}, expected real numbers in the shape of the outputs at x2, {values.shape}."
        )
    # JAX takes cotangents of exactly the dtype of the values.
    return pull_back(v.astype(values.dtype))[0]


def _forward(function: Apply, params: Params, x: Examples, direction: list[Array]) -> Array:
    weights, rebuilt = trees.differentiable(params)
    return jax.jvp(lambda w: function(rebuilt(w), x), (weights,), (direction,))[1]


@PerFunction
def _scaled_product(function: Apply, params: Params, x: Examples, v: Array) -> tuple[Array, Array]:
    """`Theta v` and a power of two that it is to be multiplied by: the square of a derivative may leave its dtype."""
    weights, rebuilt = trees.differentiable(params)
    _, pull_back = jax.vjp(lambda w: function(rebuilt(w), x), weights)
    (gradient,) = pull_back(v)
    entries = [jnp.max(jnp.abs(leaf), initial=0).astype(v.dtype) for leaf in gradient]
    largest = functools.reduce(jnp.maximum, entries, jnp.zeros((), v.dtype))
    # A power of two changes no digit, and leaves entries of at most one to be pushed forward.
    exponent = jnp.where((largest > 0) & jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
    size = jnp.ldexp(jnp.ones_like(largest), exponent)
    unit = [leaf / size.astype(leaf.dtype) for leaf in gradient]
    return jax.jvp(lambda w: function(rebuilt(w), x), (weights,), (unit,))[1], size
