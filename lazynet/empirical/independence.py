"""Refusal of functions that mix the examples of a batch, of which per-example derivatives would be wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from lazynet.empirical.layerwise import known_layers
from lazynet.trees import is_traced
from lazynet.typing import Array, ArrayLike, Params


def check_independent(function: Partial, params: Params, x: ArrayLike) -> None:
    """Raises if the first output depends on the second example, which is set to NaN.

    Traced values pass, and so do models of which every layer is known to treat examples one by one. NaN spreads to
    whatever is computed from it, also where values cancel, as in a lazy function at u = 0. Inputs that cannot be NaN,
    such as tokens, are compared with another example of the batch.
    """
    known = known_layers(function)
    if len(x) == 0 or (known and known.independent) or is_traced((function, params, x)):
        return
    first, floating = jnp.asarray(x[:1]), jnp.issubdtype(x.dtype, jnp.floating)
    with jax.debug_nans(False):
        other = jnp.full_like(first, jnp.nan) if floating else jnp.asarray(x[-1:])
        beside = _first_row(function, params, jnp.concatenate([first, other]))
        if floating and not bool(jnp.isnan(beside).any()):
            return
        alone = _first_row(function, params, jnp.concatenate([first, first]))
        mixed = bool(_differ(alone, beside))
    if mixed:
        raise ValueError(
            "apply mixes the examples of a batch: its first output depends on its second example, expected outputs "
            "[n, ...] of which row i depends on x[i] alone. Use the running averages of BatchNorm "
            "(use_running_average=True in linen, module.eval() in nnx), or GroupNorm or LayerNorm; subtract outputs at "
            "initialization (lazynet.center) instead of the mean over a batch. ntk_vector_product takes such functions."
        )


@jax.jit
def _first_row(function: Partial, params: Params, pair: Array) -> Array:
    h = function(params, pair)
    if not hasattr(h, "shape") or h.shape[:1] != (2,):
        raise ValueError(
            f"apply returned {jax.tree.map(jnp.shape, h)} (shapes) for two examples, expected one array [2, ...]: "
            "return the outputs alone, batch first."
        )
    return h[0]


@jax.jit
def _differ(alone: Array, beside: Array) -> Array:
    tolerance = jnp.sqrt(jnp.finfo(alone.dtype).eps) * jnp.max(jnp.abs(alone))
    return jnp.any((jnp.isnan(beside) & ~jnp.isnan(alone)) | (jnp.abs(beside - alone) > tolerance))
