"""The tangent model of a network that has been trained for a while."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from lazynet import guards
from lazynet.kernels.empirical import empirical_ntk
from lazynet.lazy import linearize
from lazynet.trees import as_partial
from lazynet.typing import Apply, ArrayLike, Params

__all__ = ["Tangent", "tangent_at"]


class Tangent(NamedTuple):
    """The linearization of a network around some weights, and the kernel that governs it.

    Attributes:
        apply: `hbar(w, x) = h(w_t, x) + Dh(w_t, x) (w - w_t)`.
        params: w_t, where it touches the network.
        kernel: `kernel(x1, x2=None, ...)`, the tangent kernel at w_t with the options of
            `empirical_ntk`.

    Example:
        >>> import jax.numpy as jnp
        >>> Tangent(jnp.multiply, jnp.ones(2), lambda x1: x1).params.tolist()
        [1.0, 1.0]
    """

    apply: Apply
    params: Params
    kernel: Callable[..., ArrayLike]


def tangent_at(apply: Apply, params: Params) -> Tangent:
    """Tangent model `hbar(w) = h(w_t) + Dh(w_t) (w - w_t)` and tangent kernel at the weights w_t of some time t.

    How much of what a network learns is in its kernel shows when training goes on from w_t in the
    tangent model instead: `train(objective(tangent.apply, loss), tangent.params, ...)`, or in
    function space `gradient_flow(tangent.kernel(x), data, f0=h(w_t, x), ...)`. From the initial
    weights that is the lazy model; a network that changes its kernel early and then trains lazily
    is told apart from one that never does.

    Args:
        apply: Model h, or a `lazy` function.
        params: w_t, for instance of a state of `snapshots` (a displacement u_t for a `lazy`
            function).

    Raises:
        TypeError: If `params` has leaves that are not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> h, x = (lambda w, x: x @ w**2), jnp.ones((1, 1))
        >>> tangent = tangent_at(h, jnp.array([[3.0]]))
        >>> tangent.apply(jnp.array([[4.0]]), x).item(), tangent.kernel(x, outputs="trace").item()
        (15.0, 36.0)

    Source: Fort et al. (2020), linearized training from a later time.
    """
    guards.weights("params", params)
    function = as_partial(apply)
    return Tangent(
        linearize(function, params), params, functools.partial(empirical_ntk, function, params)
    )
