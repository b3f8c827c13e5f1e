"""Which images have given features."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.programs import PerFunction
from lazynet.trees import as_partial
from lazynet.typing import Array, ArrayLike

__all__ = ["Inversion", "invert", "total_variation"]

DECAYS = 0.9, 0.999
"""Of the moments of gradients, as in Adam."""


class Inversion(NamedTuple):
    """Images that were found, and how well they fit.

    Attributes:
        x: The images.
        error: Relative error of the features of each, `|Phi(x) - z|^2 / |z|^2`.

    Example:
        >>> Inversion(np.zeros((1, 2)), np.zeros(1)).error.tolist()
        [0.0]
    """

    x: Float[np.ndarray, "n *inputs"]
    error: Float[np.ndarray, " n"]


def invert(
    features: Any,
    target: Float[ArrayLike, "n *outputs"],
    start: Float[ArrayLike, "n *inputs"],
    *,
    weight: float | int = 0.0,
    steps: int = 300,
    learning_rate: float | int = 0.05,
) -> Inversion:
    """Images with given features at a layer, `min_x |Phi(x) - z|^2 / |z|^2 + weight TV(x)`, by gradient descent (Adam).

    What a layer has lost is what the images that it maps to the same features have not in common:
    the error against the original grows with depth.

    Args:
        features: `features(x) -> [n, *outputs]`, Phi, one example by itself.
        target: z, the features wanted.
        start: Images from which the descent starts.
        weight: Of the total variation, mean over pixels; images only.
        steps: Number of steps.
        learning_rate: Of Adam, which decays to zero along a cosine; in the units of x.

    Raises:
        ValueError: If shapes do not fit, a target is zero, or total variation is asked of vectors.
        TypeError: If `features` is no function, or an argument no array.

    Example:
        >>> found = invert(lambda x: 2 * x, np.array([[1.0, 3.0]]), np.zeros((1, 2)))
        >>> found.x.round(2).tolist()
        [[0.5, 1.5]]

    Source: Mahendran and Vedaldi (2015), Understanding deep image representations by inverting them.
    """
    function = as_partial(features, "features")
    weight = guards.number("weight", weight, at_least=0)
    steps = guards.count("steps", steps)
    rate = guards.number("learning_rate", learning_rate, above=0)
    x = jnp.asarray(guards.real("start", start))
    z = jnp.asarray(guards.real("target", target))
    guards.finite("start", np.asarray(x))
    guards.finite("target", np.asarray(z))
    shape = jax.eval_shape(function, x).shape
    if z.shape != shape:
        raise ValueError(
            f"target has shape {z.shape}, expected {shape}, that of the features of start: take both of one layer."
        )
    sizes = jnp.sum(jnp.reshape(z, (len(z), -1)) ** 2, axis=1)
    if not bool((sizes > 0).all()):
        raise ValueError(
            "target has features that are all zero, expected none: the error is relative."
        )
    if weight and x.ndim != 4:
        raise ValueError(
            f"start has shape {x.shape}, expected images [n, h, w, c] with a weight of total variation: pass weight=0."
        )
    scale = jnp.asarray(weight, x.dtype)
    mean = jnp.zeros_like(x)
    square = jnp.zeros_like(x)
    for step in range(1, steps + 1):
        decayed = rate * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        # the moments start at zero, which their divisors make up for
        size = decayed * math.sqrt(1 - DECAYS[1] ** step) / (1 - DECAYS[0] ** step)
        pace = jnp.asarray(size, x.dtype)
        x, mean, square = _step(function, x, mean, square, z, sizes, scale, pace)
    error = _errors(function, x, z, sizes)
    return Inversion(np.asarray(x, np.float64), np.asarray(error, np.float64))


def total_variation(x: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """Mean length of the gradient, `1/((h-1)(w-1)) sum_p sqrt(|x_{p+e1} - x_p|^2 + |x_{p+e2} - x_p|^2)`.

    The mean is over the pixels p that have a neighbor in both directions.

    Example:
        >>> total_variation(jnp.ones((1, 3, 3, 1))).tolist()
        [0.0]
    """
    down = x[:, 1:, :-1] - x[:, :-1, :-1]
    right = x[:, :-1, 1:] - x[:, :-1, :-1]
    squares = jnp.sum(down**2 + right**2, axis=-1)
    # finite derivative where an image is constant
    safe = jnp.where(squares > 0, squares, 1)
    return jnp.mean(jnp.where(squares > 0, jnp.sqrt(safe), 0), axis=(1, 2))


@PerFunction
def _step(
    function: Any,
    x: Array,
    mean: Array,
    square: Array,
    z: Array,
    sizes: Array,
    weight: Array,
    size: Array,
) -> tuple[Array, Array, Array]:
    """One step of Adam."""

    def objective(x):
        loss = jnp.sum(_relative(function(x), z, sizes))
        return loss + weight * jnp.sum(total_variation(x)) if x.ndim == 4 else loss

    gradient = jax.grad(objective)(x)
    mean = DECAYS[0] * mean + (1 - DECAYS[0]) * gradient
    square = DECAYS[1] * square + (1 - DECAYS[1]) * gradient**2
    return x - size * mean / (jnp.sqrt(square) + 1e-12), mean, square


@PerFunction
def _errors(function: Any, x: Array, z: Array, sizes: Array) -> Array:
    return _relative(function(x), z, sizes)


def _relative(found, z, sizes):
    return jnp.sum(jnp.reshape(found - z, (len(z), -1)) ** 2, axis=1) / sizes
