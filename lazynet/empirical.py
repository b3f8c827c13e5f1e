"""Kernels of one finite network: the empirical tangent kernel, its products with vectors, its largest eigenvalue.

Everything here works for any pure `apply(params, x)` that treats the examples of a batch independently: a `Model`'s,
a flax module's, or a `lazy` or linearized function (a `jax.tree_util.Partial`, whose arrays stay arguments of the
compiled code). A second call with other parameters of the same shapes compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Float, Num

from lazynet.losses import as_partial
from lazynet.typing import Apply, Array, ArrayLike, Key, Params

__all__ = [
    "empirical_nngp",
    "empirical_ntk",
    "estimate_max_learning_rate",
    "largest_ntk_eigenvalue",
    "ntk_vector_product",
]

Outputs = Literal["full", "trace", "sum", "diagonal"]
Where = Callable[[str], bool]

TILE_BYTES = 2**29
"""Largest size of one tile of Jacobians where `tile` is None; two of them are held at a time."""

_MIRROR = {"full": (1, 0, 3, 2), "trace": (1, 0), "sum": (1, 0), "diagonal": (1, 0, 2)}


def empirical_ntk(
    apply: Apply,
    params: Params,
    x1: Num[ArrayLike, "n1 *inputs"],
    x2: Num[ArrayLike, "n2 *inputs"] | None = None,
    *,
    outputs: Outputs = "full",
    where: Where | None = None,
    tile: int | None = None,
) -> Float[Array, "n1 n2 *k"]:
    """Empirical neural tangent kernel `Theta[i, j, a, b] = <dh_a(x1_i)/dw, dh_b(x2_j)/dw>`.

    It governs gradient descent on the linearized network: with the loss 1/(2n) sum |h - y|^2, its outputs follow
    `dh/dt = -Theta (h - y) / n`.

    Args:
        apply: Pure function `apply(params, x)` with outputs `[n, *outputs]`, flattened to k of them.
        params: Where to take the derivative.
        x1: Examples of the rows.
        x2: Examples of the columns; None for those of the rows, which makes the result exactly symmetric.
        outputs: `"full"` gives `[n1, n2, k, k]`; `"trace"` the mean `1/k sum_a Theta[i, j, a, a]` and `"sum"` the
            kernel of `1/sqrt(k) sum_a h_a`, k times cheaper, both `[n1, n2]`; `"diagonal"` gives `Theta[i, j, a, a]`,
            `[n1, n2, k]`.
        where: Which parameters to differentiate, a predicate on their paths such as `"0_Dense/W"`; None for all. The
            kernels of disjoint sets of parameters add up.
        tile: Number of examples whose Jacobians are held at a time, on each side; None for as many as fit 512 MiB.
            A Jacobian is computed once per row of tiles.

    Raises:
        ValueError: If `outputs` or `tile` is unknown, or if `where` selects nothing.

    Example:
        >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
        >>> linear = lambda params, x: x @ params["w"]
        >>> empirical_ntk(linear, {"w": jnp.ones((2, 1))}, x, outputs="trace").tolist()
        [[1.0, 1.0], [1.0, 2.0]]

    Source: Jacot, Gabriel and Hongler (2018), section 4, for the kernel.
    """
    _check_options(outputs, tile)
    function, chosen = as_partial(apply), _chosen(params, where)
    tile = tile or _fitting_tile(function, params, x1, chosen, outputs)
    jacobians = partial(_jacobians, function, params, chosen=chosen, outputs=outputs)
    contract = partial(_contract, outputs=outputs)
    if x2 is None:
        return _symmetric_tiles(jacobians, contract, _split(x1, tile), _MIRROR[outputs])
    rows = []
    for own in _split(x1, tile):
        row = jacobians(own)
        rows.append([contract(row, jacobians(other)) for other in _split(x2, tile)])
    return _assemble(rows)


def ntk_vector_product(
    apply: Apply,
    params: Params,
    x1: Num[ArrayLike, "n1 *inputs"],
    x2: Num[ArrayLike, "n2 *inputs"] | None = None,
) -> Callable[[Array], Array]:
    """The linear map `v -> Theta(x1, x2) v = J(x1) (J(x2)^T v)`, without forming the kernel.

    One product costs one backward and one forward derivative, whatever the number of outputs.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Where to take the derivative.
        x1: Examples of the rows.
        x2: Examples of the columns; None for those of the rows.

    Returns:
        A function of v `[n2, k]` with value `[n1, k]`, a pytree that compiled code can take as an argument.

    Raises:
        ValueError: When called, if v does not have the shape of the outputs at x2.

    Example:
        >>> linear = lambda params, x: x @ params["w"]
        >>> product = ntk_vector_product(linear, {"w": jnp.ones((2, 1))}, jnp.eye(2))
        >>> product(jnp.array([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
    """
    return Partial(_product, as_partial(apply), params, x1, x1 if x2 is None else x2)


def largest_ntk_eigenvalue(
    apply: Apply, params: Params, x: Num[ArrayLike, "n *inputs"], *, key: Key[Array, ""], iterations: int = 15
) -> float:
    """Largest eigenvalue `lambda_max(Theta)` of the `[n k, n k]` kernel, by Lanczos iteration on products.

    The value approaches lambda_max from below, and is at least that of as many power iterations from the same start.
    The iteration runs on the host, in float64, around one compiled product: convolutions are slow in compiled loops.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Where to take the derivative.
        x: Examples; a few hundred give a good estimate of `lambda_max / n` for a large data set.
        key: Draws the starting vector.
        iterations: Number of products.

    Raises:
        ValueError: If `iterations` is below 1, or if the product is not finite.

    Example:
        >>> linear = lambda params, x: x @ params["w"]
        >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
        >>> round(largest_ntk_eigenvalue(linear, {"w": jnp.ones((2, 1))}, x, key=jax.random.key(0)), 4)
        9.0
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, expected at least 1.")
    shape = jax.eval_shape(_call, as_partial(apply), params, x)
    start = jax.random.normal(key, shape.shape, shape.dtype)
    return _largest_ritz_value(ntk_vector_product(apply, params, x), start, iterations)


def estimate_max_learning_rate(
    apply: Apply,
    params: Params,
    x: Num[ArrayLike, "n *inputs"],
    *,
    key: Key[Array, ""],
    momentum: float = 0.0,
    iterations: int = 15,
) -> float:
    """Largest stable learning rate `2 (1 + momentum) n / lambda_max(Theta)`, without forming the kernel.

    Full-batch gradient descent on the linearized network with the loss 1/(2n) sum |h - y|^2 diverges above it;
    minibatches need a fraction of it. The eigenvalue is approached from below, so this bound is approached from above.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Initial parameters (zeros for a `lazy` function).
        x: Training inputs, or a few hundred of them.
        key: Draws the starting vector of the iteration.
        momentum: Heavy-ball momentum, in [0, 1).
        iterations: Number of products with the kernel.

    Raises:
        ValueError: If `momentum` is outside [0, 1).

    Example:
        >>> linear = lambda params, x: x @ params["w"]
        >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
        >>> round(estimate_max_learning_rate(linear, {"w": jnp.ones((2, 1))}, x, key=jax.random.key(0)), 4)
        0.4444
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}, expected a number in [0, 1).")
    top = largest_ntk_eigenvalue(apply, params, x, key=key, iterations=iterations)
    return 2 * (1 + momentum) * len(x) / top if top > 0 else math.inf


def empirical_nngp(
    apply: Apply,
    params: Params,
    x1: Num[ArrayLike, "n1 *inputs"],
    x2: Num[ArrayLike, "n2 *inputs"] | None = None,
) -> Float[Array, "n1 n2"]:
    """Second moment of the outputs `1/k sum_a h_a(x1_i) h_a(x2_j)`.

    Its mean over initializations tends to the NNGP kernel as the width grows.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Parameters.
        x1: Examples of the rows.
        x2: Examples of the columns; None for those of the rows, which makes the result exactly symmetric.

    Example:
        >>> linear = lambda params, x: x @ params["w"]
        >>> empirical_nngp(linear, {"w": jnp.ones((2, 1))}, jnp.eye(2)).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    function = as_partial(apply)
    rows = _outputs(function, params, x1)
    columns = rows if x2 is None else _outputs(function, params, x2)
    nngp = jnp.matmul(rows, columns.T, precision="highest") / rows.shape[1]
    return _symmetric(nngp, (1, 0)) if x2 is None else nngp


def _call(function: Partial, params: Params, x: Any) -> Array:
    return function(params, x)


@jax.jit
def _outputs(function: Partial, params: Params, x: Any) -> Array:
    return function(params, x).reshape(len(x), -1)


@jax.jit
def _product(function: Partial, params: Params, x1: Any, x2: Any, v: Array) -> Array:
    values, pull_back = jax.vjp(lambda p: function(p, x2), params)
    if v.shape != values.shape:
        raise ValueError(f"v has shape {v.shape}, expected that of the outputs at x2, {values.shape}.")
    return jax.jvp(lambda p: function(p, x1), (params,), pull_back(v.astype(values.dtype)))[1]


def _largest_ritz_value(product: Callable[[Array], Array], start: Array, iterations: int) -> float:
    """Largest eigenvalue of the operator restricted to the Krylov space of `start`, with full orthogonalization."""
    q = np.asarray(start, np.float64).ravel()
    basis, images = np.empty((0, q.size)), np.empty((0, q.size))
    while len(basis) < min(iterations, q.size):
        basis = np.vstack([basis, q / np.linalg.norm(q)])
        image = product(jnp.asarray(basis[-1].reshape(start.shape), start.dtype))
        images = np.vstack([images, np.asarray(image, np.float64).ravel()])
        if not np.isfinite(images[-1]).all():
            raise ValueError("the tangent kernel times a vector is not finite: check the parameters and the inputs.")
        q = images[-1]
        for _ in range(2):
            q = q - basis.T @ (basis @ q)
        if np.linalg.norm(q) <= jnp.finfo(start.dtype).eps * np.linalg.norm(images[-1]):
            break
    projected = basis @ images.T
    return float(np.linalg.eigvalsh((projected + projected.T) / 2)[-1])


def _jacobians(
    function: Partial, params: Params, x: Array, *, chosen: tuple[bool, ...], outputs: Outputs
) -> list[Array]:
    """Per-example Jacobians with respect to the chosen leaves, each `[n, k, *shape]`.

    A vmapped weight gradient of a convolution is a grouped convolution, which is an order of magnitude slower on a CPU
    than a loop over examples.
    """
    if jax.default_backend() == "cpu" and _has_convolution(function, params, x):
        examples = [_example_jacobian(function, params, example, chosen, outputs) for example in x]
        return [jnp.stack(leaves) for leaves in zip(*examples, strict=True)]
    return _vmapped_jacobian(function, params, x, chosen, outputs)


@partial(jax.jit, static_argnames=("chosen", "outputs"))
def _example_jacobian(function, params, x, chosen, outputs):
    """Jacobian at one example, `[k, *shape]` for each chosen leaf (k = 1 for `outputs="sum"`)."""
    leaves, treedef = jax.tree.flatten(params)

    def value(variable):
        rest = iter(variable)
        merged = [next(rest) if free else leaf for free, leaf in zip(chosen, leaves, strict=True)]
        h = function(jax.tree.unflatten(treedef, merged), x[None]).reshape(-1)
        return jnp.sum(h, keepdims=True) / math.sqrt(h.size) if outputs == "sum" else h

    return jax.jacrev(value)([leaf for free, leaf in zip(chosen, leaves, strict=True) if free])


@partial(jax.jit, static_argnames=("chosen", "outputs"))
def _vmapped_jacobian(function, params, x, chosen, outputs):
    return jax.vmap(lambda example: _example_jacobian(function, params, example, chosen, outputs))(x)


def _has_convolution(function: Partial, params: Params, x: Array) -> bool:
    return "conv_general_dilated" in str(jax.make_jaxpr(_call)(function, params, x[:1]))


@partial(jax.jit, static_argnames="outputs")
def _contract(rows: list[Array], columns: list[Array], outputs: Outputs) -> Array:
    """Sum over parameters, one leaf after the other, so that Jacobians are never concatenated."""
    (n1, k), n2 = rows[0].shape[:2], len(columns[0])
    dtype = jnp.result_type(*(leaf.dtype for leaf in rows))
    flat = [[leaf.reshape(*leaf.shape[:2], -1).astype(dtype) for leaf in side] for side in (rows, columns)]
    total = reduce(jnp.add, [_leaf_product(a, b, outputs) for a, b in zip(*flat, strict=True)])
    if outputs == "full":
        return total.reshape(n1, k, n2, k).transpose(0, 2, 1, 3)
    return total / k if outputs == "trace" else total


def _leaf_product(a: Array, b: Array, outputs: Outputs) -> Array:
    """Jacobians `[n, k, p]` of one leaf, contracted as plain matrices where possible: twice as fast on a CPU."""
    if outputs == "diagonal":
        return jnp.einsum("iap,jap->ija", a, b, precision="highest")
    rows = (a.shape[0] * a.shape[1], b.shape[0] * b.shape[1]) if outputs == "full" else (a.shape[0], b.shape[0])
    return jnp.matmul(a.reshape(rows[0], -1), b.reshape(rows[1], -1).T, precision="highest")


def _symmetric_tiles(jacobians, contract, xs, mirror) -> Array:
    """The tiles on and above the diagonal, mirrored below it."""
    tiles: list[list[Any]] = [[None] * len(xs) for _ in xs]
    for i, own in enumerate(xs):
        row = jacobians(own)
        tiles[i][i] = _symmetric(contract(row, row), mirror)
        for j in range(i + 1, len(xs)):
            tiles[i][j] = contract(row, jacobians(xs[j]))
            tiles[j][i] = tiles[i][j].transpose(mirror)
    return _assemble(tiles)


@partial(jax.jit, static_argnames="mirror")
def _symmetric(square: Array, mirror: tuple[int, ...]) -> Array:
    return (square + square.transpose(mirror)) / 2


def _assemble(tiles: list[list[Array]]) -> Array:
    return _concatenate([_concatenate(row, axis=1) for row in tiles], axis=0)


@partial(jax.jit, static_argnames="axis")
def _concatenate(blocks: list[Array], axis: int) -> Array:
    return jnp.concatenate(blocks, axis)


def _split(x: ArrayLike, tile: int) -> list[Array]:
    """Slices of at most `tile` examples; their starts are operands, so that equal sizes share a compilation."""
    return [lax.dynamic_slice_in_dim(x, start, min(tile, len(x) - start)) for start in range(0, len(x), tile)]


def _fitting_tile(function: Partial, params: Params, x: ArrayLike, chosen: tuple[bool, ...], outputs: Outputs) -> int:
    k = 1 if outputs == "sum" else math.prod(jax.eval_shape(_call, function, params, x[:1]).shape)
    leaves = [leaf for free, leaf in zip(chosen, jax.tree.leaves(params), strict=True) if free]
    return max(1, TILE_BYTES // (k * sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)))


def _chosen(params: Params, where: Where | None) -> tuple[bool, ...]:
    """Which leaves to differentiate; integer leaves (counters, indices) never are."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    floating = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for _, leaf in paths]
    chosen = tuple(free and (where is None or bool(where(name))) for free, name in zip(floating, names, strict=True))
    if not any(chosen):
        raise ValueError(f"where selects none of the parameters {names}: it gets one of these paths at a time.")
    return chosen


def _check_options(outputs: str, tile: int | None) -> None:
    if outputs not in _MIRROR:
        raise ValueError(f"outputs is {outputs!r}, expected one of {sorted(_MIRROR)}.")
    if tile is not None and tile < 1:
        raise ValueError(f"tile is {tile}, expected a number of examples, at least 1.")
