"""The empirical tangent kernel of functions of whole batches, whose examples may depend on each other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lazynet.programs import PerFunction
from lazynet.signatures import real_weights
from lazynet.typing import Apply, Params

__all__ = ["whole_ntk"]


@PerFunction
def _whole(functions: tuple[Apply, Apply], params: Params, x1: Any, x2: Any) -> Any:
    def one(params):
        return functions[0](params, x1)

    def two(params):
        return functions[1](params, x2)

    _, pull_back = jax.vjp(two, params)
    shapes = jax.eval_shape(two, params)
    leaves, tree = jax.tree.flatten(shapes)
    kernels = []
    for place, leaf in enumerate(leaves):

        def column(unit, place=place):
            """The kernel between all outputs at x1 and one at x2, by a backward and a forward derivative."""
            zeros = [jnp.zeros(other.shape, other.dtype) for other in leaves]
            zeros[place] = unit
            (direction,) = pull_back(tree.unflatten(zeros))
            _, tangents = jax.jvp(one, (params,), (direction,))
            return jax.tree.leaves(tangents)[place]

        # One output at x2 after the other: together, they would be a Jacobian.
        units = jnp.eye(leaf.size, dtype=leaf.dtype).reshape(leaf.size, *leaf.shape)
        columns = jax.lax.map(column, units)
        # `[outputs2, *outputs1]`, flat outputs at x2 first.
        kernel = jnp.moveaxis(columns, 0, -1)
        kernels.append(kernel.reshape(*kernel.shape[:-1], *leaf.shape))
    return tree.unflatten(kernels)


def whole_ntk(first: Apply, second: Apply, params: Params, x1: Any, x2: Any) -> Any:
    """Tangent kernel `Theta = Df(x1) Dg(x2)'` of functions of whole batches, `[*outputs1, *outputs2]`.

    It costs a backward and a forward derivative of the whole batch for each output at x2, and no
    Jacobian is formed: `empirical_ntk` is for functions that treat examples one by one.

    Args:
        first: `f(params, x1)`, an array or a tree of them.
        second: `g(params, x2)`, of the same structure: f with other arguments.
        params: Where to take the derivative.
        x1: Inputs of f.
        x2: Inputs of g.

    Returns:
        A kernel for each array of the outputs with itself.

    Example:
        >>> from jax.tree_util import Partial
        >>> centered = Partial(lambda w, x: x @ w - jnp.mean(x @ w))
        >>> whole_ntk(centered, centered, jnp.ones(2), jnp.eye(2), jnp.eye(2)).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """
    # A complex weight is two real ones: the derivative by it is none of a real function.
    function, weights = real_weights(first, params)
    other, _ = real_weights(second, params)
    return _whole((function, other), weights, x1, x2)
