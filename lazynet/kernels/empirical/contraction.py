"""Features of examples and their products: what every way to an empirical kernel has in common."""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp

from lazynet.kernels.empirical.arguments import Examples
from lazynet.kernels.empirical.jacobians import Jacobian, Names, Outputs, jacobian_features
from lazynet.kernels.empirical.layerwise import Pair, layer_features, layer_names
from lazynet.typing import Apply, Array, Params

Features = dict[str, Pair | Jacobian]

MIRROR = {"full": (1, 0, 3, 2), "trace": (1, 0), "sum": (1, 0), "diagonal": (1, 0, 2)}
"""Order of axes that turns a block of a symmetric kernel into its mirror image."""


def features(
    function: Apply, params: Params, x: Examples, names: Names, outputs: Outputs
) -> Features:
    """What the named leaves contribute to the kernel of the examples x, for each leaf."""
    known = layer_names(function, names)
    rest = tuple(name for name in names if name not in known)
    found: Features = {}
    if known:
        found |= layer_features(function, params, x, known, outputs)
    if rest:
        found |= jacobian_features(function, params, x, rest, outputs)
    return found


@partial(jax.jit, static_argnames="outputs")
def contract(rows: Features, columns: Features, outputs: Outputs) -> Array:
    """Kernel of two sets of examples: a sum over leaves, so that Jacobians are never concatenated."""
    # Leaves of two precisions: each product in the wider one, in which they are added up.
    dtype = jnp.result_type(*jax.tree.leaves(rows))
    rows, columns = jax.tree.map(lambda leaf: leaf.astype(dtype), (rows, columns))
    total = reduce(jnp.add, [_product(own, columns[name], outputs) for name, own in rows.items()])
    if outputs == "trace":
        # Cotangents of a pair are [n, k, ...] as Jacobians are: the last field of either tells k.
        any_leaf = next(iter(rows.values()))
        return total / any_leaf[-1].shape[1]
    if outputs == "sum":
        return total.reshape(total.shape[0], total.shape[2])
    return total


@partial(jax.jit, static_argnames="outputs")
def symmetric(square: Array, outputs: Outputs) -> Array:
    """The mean of a block and its mirror image."""
    return (square + square.transpose(MIRROR[outputs])) / 2


def _product(a: Pair | Jacobian, b: Pair | Jacobian, outputs: Outputs) -> Array:
    """`[n1, n2, k, k]` for all outputs, `[n1, k, n2, k]` with k = 1 for their sum."""
    if isinstance(a, Pair) and isinstance(b, Pair):
        blocks = _factored(a, b, outputs)
    else:
        blocks = _blocks(a[-1], b[-1], outputs)
    return blocks.transpose(0, 2, 1, 3) if outputs == "full" else blocks


def _blocks(a: Array, b: Array, outputs: Outputs) -> Array:
    """Derivatives `[n, k, p]`, contracted as plain matrices where possible: twice as fast on a CPU."""
    n1, k, _ = a.shape
    n2 = len(b)
    if outputs == "diagonal":
        return jnp.einsum("iap,jap->ija", a, b, precision="highest")
    if outputs == "trace":
        # `sum_a <J_a, J'_a>` is one product of the rows of all outputs.
        return _matmul(a.reshape(n1, -1), b.reshape(n2, -1))
    return _matmul(a.reshape(n1 * k, -1), b.reshape(n2 * k, -1)).reshape(n1, k, n2, k)


def _factored(a: Pair, b: Pair, outputs: Outputs) -> Array:
    """`sum_pq (rows1_p . rows2_q) (cotangents1_p . cotangents2_q)`, p and q positions."""
    n1, k, p, f = a.cotangents.shape
    n2, q, _ = b.rows.shape
    rows1 = a.rows.reshape(n1 * p, -1)
    rows2 = b.rows.reshape(n2 * q, -1)
    gram = _matmul(rows1, rows2).reshape(n1, p, n2, q)
    if outputs == "diagonal":
        # `[k, n1, p, n2, q]`, summed over positions.
        inner = jnp.einsum("iapf,jaqf->aipjq", a.cotangents, b.cotangents, precision="highest")
        return jnp.sum(inner * gram[None], axis=(2, 4)).transpose(1, 2, 0)
    if outputs == "trace":
        # The trace adds up outputs inside the product of cotangents, as one more axis of features.
        one = a.cotangents.transpose(0, 2, 1, 3).reshape(-1, k * f)
        two = b.cotangents.transpose(0, 2, 1, 3).reshape(-1, k * f)
        return jnp.sum(_matmul(one, two).reshape(gram.shape) * gram, axis=(1, 3))
    inner = _matmul(a.cotangents.reshape(-1, f), b.cotangents.reshape(-1, f))
    inner = inner.reshape(n1, k, p, n2, k, q)
    return jnp.sum(inner * gram[:, None, :, :, None], axis=(2, 5))


def _matmul(a: Array, b: Array) -> Array:
    # The default of accelerators is TF32 or bfloat16, with which kernels get negative eigenvalues.
    return jnp.matmul(a, b.T, precision="highest")
