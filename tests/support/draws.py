"""Normal draws for the constants of test modules: numpy's, which compile nothing while tests are collected."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int, dtype=np.float64) -> jax.Array:
    """Independent standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def initial(seed: int, model, x: jax.Array):
    """Standard normal weights for inputs like `x`, as `init` draws them in the NTK parameterization."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)
