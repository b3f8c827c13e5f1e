"""Convolutions along channels too: each layer's channels are a periodic axis that the next layers move along.

The channels of an ordinary network have no order. Here those of a layer are an attribute, a
variable on a circle like the angle of a wavelet, and the next layers are convolutions over
positions and the attributes before. Averaged over an attribute, a network is invariant to shifts
along it, as it is to translations.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp

from lazynet import guards
from lazynet.models.layers import Conv, Padding, Pair, Scale, preactivation
from lazynet.models.model import Model, layer
from lazynet.recipes import recipe

__all__ = ["AttributeConv"]


@recipe
def AttributeConv(
    features: int,
    kernel_size: Pair = (3, 3),
    strides: Pair = (1, 1),
    padding: Padding = "SAME",
    W_std: Scale = 1.0,
    b_std: Scale | None = None,
    *,
    reach: int = 3,
    kept: int = 2,
) -> Model:
    """Convolution over positions u and periodic attributes v, `z(u, v, c) = sum_{d, e} W(d, e, c) x(u + d, v + e)`.

    From `[n, h, w, *attributes]`, of which the oldest are averaged until `kept` are left, to `[n, h,
    w, *kept attributes, features]`: what were channels are attributes, and the features are the new
    channels. A shift of the inputs along an attribute that is kept shifts the outputs; a shift along
    one that is averaged leaves them as they are. No infinite-width rule: filters are shared among
    channels, whose number is the size of the circle.

    Args:
        features: Number of output channels.
        kernel_size: Height and width of the filters.
        strides: Vertical and horizontal strides.
        padding: Of the positions, as in Conv.
        W_std: Standard deviation of the rescaled weights.
        b_std: Standard deviation of the biases; None for a layer without biases.
        reach: Size of the filters along each attribute, an odd number.
        kept: Number of attributes that the convolution sees.

    Raises:
        ValueError: For an even reach; on inputs that are not `[n, h, w, *attributes]`, or with fewer
            channels on an attribute than the filter reaches over.

    Example:
        >>> layer = AttributeConv(4)
        >>> x = jnp.ones((1, 6, 6, 8))
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (1, 6, 6, 8, 4)

    Source: Jacobsen, Oyallon, Mallat and Smeulders (2017), Multiscale hierarchical convolutional
    networks.
    """
    reach = guards.count("AttributeConv reach", reach)
    kept = guards.count("AttributeConv kept", kept)
    if reach % 2 == 0:
        raise ValueError(
            f"AttributeConv got reach={reach}, expected an odd number: as far on both sides."
        )
    convolution = Conv(features, kernel_size, strides, padding, W_std, b_std)

    def init(key, x):
        # Conv.init takes shapes alone: neighbors are not computed.
        return convolution.init(key, jax.eval_shape(lambda x: _neighbors(x, reach, kept), x))

    def apply(params, x):
        attributes = x.shape[3:][-kept:]
        z = convolution.apply(params, _neighbors(x, reach, kept))
        # the circle of each image was part of the batch
        z = z.reshape(len(x), *attributes, *z.shape[1:])
        return jnp.moveaxis(z, (-3, -2), (1, 2))

    return layer("AttributeConv", apply, init=init, record=preactivation)


def _neighbors(x, reach, kept):
    """Images `[n * attributes, h, w, reach^kept]`, one a place of the attributes, whose channels are its neighbors."""
    if x.ndim < 4:
        raise ValueError(
            f"AttributeConv got an input of shape {tuple(x.shape)}, expected [n, h, w, *attributes]: put it after "
            "a Conv."
        )
    # Axes 3 to 3 + older are the oldest attributes: new features are appended at the end.
    older = x.ndim - 3 - kept
    x = jnp.mean(x, axis=tuple(range(3, 3 + older))) if older > 0 else x
    if min(x.shape[3:]) < reach:
        raise ValueError(
            f"AttributeConv got attributes of sizes {x.shape[3:]}, expected at least reach={reach} each: give the "
            "layers before more features."
        )
    axes = tuple(range(3, x.ndim))
    # A roll by s is x(v - s): shifts go down, so that e = -s goes up, as in the filters.
    shifts = itertools.product(range(reach // 2, -(reach // 2) - 1, -1), repeat=len(axes))
    # one roll each costs less than a convolution of four axes, for which compilers have no fast path
    near = jnp.stack([jnp.roll(x, shift, axes) for shift in shifts], axis=-1)
    circle = jnp.moveaxis(near, (1, 2), (-3, -2))
    return circle.reshape(len(x) * math.prod(x.shape[3:]), *circle.shape[-3:])
