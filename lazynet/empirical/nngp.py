"""The second moment of a finite network's outputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Float, Num

from lazynet import guards
from lazynet.losses import as_partial
from lazynet.typing import Apply, Array, ArrayLike, Params


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
    guards.finite("x1", x1)
    guards.finite("x2", x2)
    function = as_partial(apply)
    rows = _outputs(function, params, x1)
    columns = rows if x2 is None else _outputs(function, params, x2)
    nngp = jnp.matmul(rows, columns.T, precision="highest") / rows.shape[1]
    return (nngp + nngp.T) / 2 if x2 is None else nngp


@jax.jit
def _outputs(function: Partial, params: Params, x: Any) -> Array:
    return function(params, x).reshape(len(x), -1)
