"""Kernels of infinitely wide networks of each input with itself."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Num

from lazynet.covariance.general.positions import BeyondPlanes, Positions, position_kernel
from lazynet.covariance.halves import joined
from lazynet.covariance.state import input_kernel
from lazynet.kernels.inputs import checked_inputs
from lazynet.models.model import Model, propagate
from lazynet.programs import program
from lazynet.records import Gram
from lazynet.typing import ArrayLike

__all__ = ["analytic_variances"]


def analytic_variances(model: Model, x: Num[ArrayLike, "n ..."]) -> Gram:
    """Kernels of each input with itself, `nngp = E[f(x_i)^2]` and `ntk = E[|df(x_i)/dw|^2]`, both `[n]`.

    Args:
        model: Network of layers with an infinite-width limit.
        x: Inputs.

    Raises:
        ValueError: For inputs that are not finite, a layer without a limit, or a network that ends
            in an image.
        TypeError: For inputs that are no array of floating point, or a model that is none.

    Example:
        >>> import lazynet as ln
        >>> analytic_variances(ln.Dense(1), jnp.eye(2)).nngp.tolist()
        [0.5, 0.5]
    """
    x, _ = checked_inputs(model, x, None)
    return program(_variances, model, x)(x)


def _variances(model, x):
    """The diagonal of a set with itself; what is between inputs is not computed."""
    try:
        # Planes are recipes, evaluated by the heads that ask for them: here only variances are.
        start = input_kernel(x, x) if x.ndim in (2, 4) else position_kernel(x)
        k = joined(propagate(model, start, model.name))
    except BeyondPlanes:
        k = joined(propagate(model, position_kernel(x), model.name))
    if not k.vectors:
        raise ValueError(
            f"{model.name} ends in an image, expected vectors: end it in Flatten() or GlobalAvgPool()."
        )
    if isinstance(k, Positions):
        nngp = jnp.diagonal(k.nngp)
        ntk = None if k.ntk is None else jnp.diagonal(k.ntk)
    else:
        nngp, ntk = k.first.moments()
    return Gram(nngp, jnp.zeros_like(nngp) if ntk is None else ntk)
