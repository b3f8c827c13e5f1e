"""How a network is computed, not what it is: in which precision, and what is kept for the backward pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from lazynet.losses import as_partial
from lazynet.model import Model
from lazynet.typing import Apply

__all__ = ["compute_in", "remat"]


def compute_in(apply: Apply, dtype: Any) -> Partial:
    """The function `round(h(round(w), round(x)))`: weights and inputs cast to `dtype`, outputs back to that of w.

    With `jnp.bfloat16` activations take half the memory and matrix products run on the fast units of an accelerator,
    while the weights that an optimizer updates stay float32, and so do gradients. Wrap the network before its
    transforms: `lazy(compute_in(apply, jnp.bfloat16), params0, alpha)`. Displacements below the rounding of the
    weights, 2^-9 of them in bfloat16, then vanish at large finite alpha; the tangent model at alpha = inf has no
    such limit, since u is rounded by itself.

    Args:
        apply: Model h.
        dtype: Floating-point type of the computation.

    Raises:
        TypeError: If `dtype` is not a floating-point type.

    Example:
        >>> half = compute_in(lambda w, x: x @ w, jnp.bfloat16)
        >>> half(jnp.full((1, 1), 1.001, jnp.float32), jnp.ones((1, 1), jnp.float32))
        Array([[1.]], dtype=float32)
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"compute_in got dtype={dtype!r}, expected a floating-point type such as jnp.bfloat16.")
    return Partial(_ComputeIn(jnp.dtype(dtype)), as_partial(apply))


def remat(model: Model) -> Model:
    """The same model, whose inside is computed again in the backward pass: only its input is kept.

    A network of B blocks `serial(*[remat(block) for block in blocks])` holds B inputs and the inside of one block
    at a time, for one more forward pass. The parameters' names are those of `model`. On a CPU, XLA merges the second
    computation with the first (it drops the optimization barrier between them): it costs and saves nothing there.

    Args:
        model: A block of several layers; a single layer saves nothing.

    Example:
        >>> import lazynet as ln
        >>> block = remat(ln.serial(ln.Dense(3), ln.Relu()))
        >>> params = block.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> block.apply(params, jnp.ones((1, 3))).shape
        (1, 3)
    """
    checkpointed = jax.checkpoint(model.apply)

    def apply(params, x):
        return checkpointed(params, x)

    vars(apply).update(vars(model.apply))
    return model._replace(apply=apply)


@dataclasses.dataclass(frozen=True)
class _ComputeIn:
    """The cast to a static type; equal types compare equal, so that they share compilations."""

    dtype: Any

    def __call__(self, apply, params, x):
        outputs = apply(_cast(params, self.dtype), _cast(x, self.dtype))
        return outputs.astype(_dtype_of(params, outputs))


def _cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def _dtype_of(params, outputs):
    """Type of the first floating-point weight; that of the outputs if there is none."""
    found = (leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating))
    return next(found, outputs.dtype)
