"""The second moment of a finite network's outputs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from lazynet.kernels.empirical.arguments import Examples, canonical, check_outputs, count_examples
from lazynet.programs import PerFunction
from lazynet.signatures import Output, flat
from lazynet.typing import Apply, Array, Params


def empirical_nngp(
    apply: Apply,
    params: Params,
    x1: Examples,
    x2: Examples | None = None,
    *,
    output: Output = None,
) -> Float[Array, "n1 n2"]:
    """Second moment of the outputs `1/k sum_a h_a(x1_i) h_a(x2_j)`.

    Its mean over initializations tends to the NNGP kernel as the width grows.

    Args:
        apply: Pure function `apply(params, x)`.
        params: Parameters.
        x1: Examples of the rows, `[n1, *inputs]`, or a dictionary or tuple of arrays.
        x2: Examples of the columns; None for those of the rows, which makes the result exactly
            symmetric.
        output: Which of the outputs of apply, by `select`.

    Raises:
        TypeError: If inputs are no arrays of numbers.
        ValueError: If there are no examples, they are not finite, or both sets differ in shape.

    Example:
        >>> linear = lambda params, x: x @ params["w"]
        >>> empirical_nngp(linear, {"w": jnp.ones((2, 1))}, jnp.eye(2)).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    function, params, x1, x2 = canonical(flat(apply, x1, output), params, x1, x2)
    rows = _outputs(function, params, x1)
    columns = rows if x2 is None else _outputs(function, params, x2)
    nngp = jnp.matmul(rows, columns.T, precision="highest") / rows.shape[1]
    # A product of a matrix with its own transpose need not be symmetric bit by bit.
    return (nngp + nngp.T) / 2 if x2 is None else nngp


@PerFunction
def _outputs(function: Apply, params: Params, x: Any) -> Array:
    h = function(params, x)
    check_outputs(h, count_examples(x), derivative=False)
    return h.reshape(len(h), -1)
