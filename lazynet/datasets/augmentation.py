"""Random transformations of batches on the device, as pure functions of a key: the argument `augment` of `train`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Key, Num

from lazynet import guards
from lazynet.typing import Array, ArrayLike

__all__ = ["crop_and_flip"]


def crop_and_flip(
    key: Key[Array, ""], x: Num[ArrayLike, "..."], *, padding: int = 4
) -> Num[Array, "..."]:
    """Image i moved by `(a_i, b_i)`, uniform in [-padding, padding]^2, zeros moving in, mirrored with probability 1/2.

    It stays on the device, so that batches drawn there are augmented there: `train(...,
    augment=crop_and_flip)`. Of standardized images the zeros are the mean color.

    Args:
        key: Draws the moves and the mirrors of all images of the batch.
        x: Images.
        padding: Largest move, in pixels; 0 only mirrors.

    Returns:
        Images of the same shape and dtype.

    Raises:
        TypeError: If `padding` is no integer, or x no array of numbers.
        ValueError: If `padding` is negative, or x not `[n, height, width, channels]`.

    Example:
        >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> crop_and_flip(jax.random.key(1), x, padding=0)[0, :, :, 0].tolist()
        [[0.0, 1.0], [2.0, 3.0]]
    """
    padding = guards.count("padding", padding, at_least=0)
    if guards.array("x", x).ndim != 4:
        raise ValueError(
            f"x has shape {x.shape}, expected [n, height, width, channels]: use x[..., None] for grey."
        )
    key_crop, key_flip = jax.random.split(key)
    # The corner of the crop in the padded image: one at (padding, padding) does not move it.
    corners = jax.random.randint(key_crop, (len(x), 2), 0, 2 * padding + 1)
    flips = jax.random.bernoulli(key_flip, 0.5, (len(x),))
    padded = jnp.pad(jnp.asarray(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    cropped = jax.vmap(lambda image, corner: _crop(image, corner, x.shape[1:]))(padded, corners)
    return jnp.where(flips[:, None, None, None], cropped[:, :, ::-1], cropped)


def _crop(image, corner, shape):
    # All three starts need one dtype.
    return lax.dynamic_slice(image, (corner[0], corner[1], jnp.zeros_like(corner[0])), shape)
