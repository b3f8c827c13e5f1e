"""Sums over the edges of graphs whose nodes are the positions of an example."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lazynet.typing import Array, ArrayLike

__all__ = ["aggregated", "routed"]


def aggregated(x: Array, weights: ArrayLike, axes: Sequence[int]) -> Array:
    """Sums of nodes `y_q = sum_p w_pq x_p` of each example, with a dense matrix of weights for each.

    Args:
        x: Values `[n, *positions, c]`.
        weights: `[n, *nodes, *nodes]`.
        axes: Axes of x that are the nodes; others are treated alike.

    Example:
        >>> aggregated(jnp.array([[[1.0], [2.0]]]), jnp.array([[[0.0, 1.0], [0.0, 1.0]]]), (1,)).ravel().tolist()
        [0.0, 3.0]

    Source: Du et al. (2019), "Graph neural tangent kernel", section 3.
    """
    nodes, restored = _by_nodes(x, axes)
    n, size, _ = nodes.shape
    matrix = jnp.asarray(weights, x.dtype).reshape(n, size, size)
    return restored(jnp.einsum("npq,npc->nqc", matrix, nodes, precision="highest"))


def routed(x: Array, edges: ArrayLike, axes: Sequence[int]) -> Array:
    """Sums of nodes over lists of edges, `y_q = sum_(p -> q) x_p`.

    Args:
        x: Values `[n, *positions, c]`.
        edges: `[n, edges, k, 2]`, the k coordinates of tails and heads; with a negative one there is
            no edge.
        axes: The k axes of x that are the nodes.

    Example:
        >>> routed(jnp.array([[[1.0], [2.0]]]), jnp.array([[[[1, 0]]]]), (1,)).ravel().tolist()
        [2.0, 0.0]
    """
    shape = tuple(x.shape[axis] for axis in axes)
    nodes, restored = _by_nodes(x, axes)
    size = math.prod(shape)
    # Coordinates become the row-major index of a node: [n, edges, 2], tails and heads.
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    places = jnp.sum(edges * jnp.asarray(strides, edges.dtype)[None, None, :, None], axis=2)
    exists = jnp.all(edges >= 0, axis=(2, 3))

    def sums(values, place, exist):
        # The index of an edge that does not exist may be negative, which JAX counts from the end.
        messages = jnp.where(exist[:, None], values[place[:, 0]], 0)
        # Such edges end in one more segment, which is cut off.
        heads = jnp.where(exist, place[:, 1], size)
        return jax.ops.segment_sum(messages, heads, num_segments=size + 1)[:size]

    return restored(jax.vmap(sums)(nodes, places, exists))


def _by_nodes(x, axes):
    """Values `[n, nodes, rest]`, and the function that puts them back."""
    first = range(1, 1 + len(axes))
    moved = jnp.moveaxis(x, axes, first)
    nodes = moved.reshape(len(x), math.prod(moved.shape[1 : 1 + len(axes)]), -1)
    return nodes, lambda y: jnp.moveaxis(y.reshape(moved.shape), first, axes)
