"""From dual coefficients back to weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Num, PyTree

from lazynet import guards, trees
from lazynet.lazy import check_displacement
from lazynet.parameters import Where
from lazynet.programs import PerFunction
from lazynet.signatures import Output, flat, real_weights, with_constants
from lazynet.typing import Apply, ArrayLike, Params


def linearized_weights(
    apply: Apply,
    params0: Params,
    x: PyTree[Num[ArrayLike, "n ..."]],
    coefficients: Float[ArrayLike, "..."],
    *,
    output: Output = None,
    where: Where | None = None,
) -> Params:
    """Weights `w(t) = w0 + J(X)' a(t)` of the linearized network whose outputs are `f0 + Theta a(t)`.

    The closed form of training in the space of weights: gradients of a linear model never leave the
    span of J(X)'. One backward derivative for each time, whatever the number of steps.

    Args:
        apply: Model h, or a `lazy` function (with params0 = 0), whose displacement u this then is.
        params0: w0, where the tangent is taken.
        x: Training inputs.
        coefficients: a, from `solve_flow` or `solve_descent` with the full empirical kernel at w0;
            any leading axes.
        output: Which of the outputs of apply, by `select`, as in the kernel.
        where: Which parameters move, as in the kernel; None for all.

    Returns:
        Weights with the leading axes of the coefficients, in the dtypes of params0; constants among
        them, without these axes, as they are.

    Raises:
        ValueError: If the coefficients do not have the shape of the outputs at x, or `apply` is a
            `lazy` function and `params0` its own, which is no displacement.
        TypeError: If the inputs are no arrays of numbers.

    Example:
        >>> import numpy as np
        >>> from lazynet.dynamics import solve_flow
        >>> linear, x = (lambda w, x: x @ w), jnp.array([[1.0, 1.0]])
        >>> end = solve_flow(np.full((1, 1), 2.0), np.ones((1, 1)), time=np.inf)
        >>> linearized_weights(linear, jnp.zeros((2, 1)), x, end.coefficients[0]).tolist()
        [[0.5], [0.5]]

    Source: Lee et al. (2019), Wide neural networks of any depth evolve as linear models under
    gradient descent.
    """
    check_displacement(apply, params0, "params0")
    function, weights = real_weights(flat(apply, x, output), params0, where)
    a = guards.numbers("coefficients", coefficients)
    guards.inputs("x", x)
    if a.ndim == 2:
        moved = _weights(function, weights, x, jnp.asarray(a))
        return with_constants(moved, function)
    every = a.reshape(-1, *a.shape[-2:])
    each = [_weights(function, weights, x, jnp.asarray(one)) for one in every]

    def stacked(*leaves):
        return jnp.stack(leaves).reshape(*a.shape[:-2], *leaves[0].shape)

    return with_constants(jax.tree.map(stacked, *each), function)


@PerFunction
def _weights(function, weights, x, a):
    # `J(X)' a` is one backward derivative, for coefficients in the place of cotangents.
    outputs, pull_back = jax.vjp(lambda w: function(w, x), weights)
    if a.shape[0] != outputs.shape[0] or a.size != outputs.size:
        raise ValueError(
            f"coefficients of shape {a.shape}, expected {outputs.shape}, the shape of the outputs at x: pass the "
            "training inputs."
        )
    (displacement,) = pull_back(a.reshape(outputs.shape).astype(outputs.dtype))
    return trees.add_scaled(weights, 1.0, displacement)
