"""Names for the shapes of things: the only place where array types get aliases.

A network is a pure function `apply(params, x)` of a pytree of arrays and a batch (batch first,
channels last). It takes no key and keeps no state, so `jax.jvp`, `jax.vjp` and `jax.vmap` apply to
it without ceremony.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float, Key, PyTree, Scalar

__all__ = ["Apply", "Array", "ArrayLike", "Key", "LossFn", "Params", "Scalar"]

Params = PyTree[Any]
"""A pytree of arrays: weights, or a displacement of weights."""

ArrayLike = Array | np.ndarray
"""An array on the device or on the host."""

Apply = Callable[[Params, Any], Array]
"""`apply(params, x)`: `x` is `[n, *inputs]`, the value is `[n, *outputs]`."""

LossFn = Callable[[Float[Array, "n k"], Float[ArrayLike, "n k"]], Array]
"""`loss(outputs, targets)`: both `[n, k]`, the value is a scalar averaged over the n examples."""
