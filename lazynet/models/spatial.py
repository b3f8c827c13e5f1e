"""Linear layers on positions of any number of dimensions, `[n, *positions, channels]`.

Those of `layers` are for vectors and images; these have the same limits by the general way
(`lazynet.covariance.general`), and the fast one where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet import guards
from lazynet.covariance.general.families import Transposed, window_mask
from lazynet.covariance.general.layer_rules import (
    axes_norm_rule,
    fixed_rule,
    local_rule,
    positions_only,
)
from lazynet.covariance.layer_rules import conv_rule, dense_rule, global_pool_rule, pool_rule
from lazynet.covariance.windows import Window
from lazynet.models import layers
from lazynet.models.convolution import convolve, dimension_numbers
from lazynet.models.layers import Padding, Parameterization, Scale
from lazynet.models.model import Model, layer
from lazynet.recipes import recipe
from lazynet.typing import Array

__all__ = [
    "AvgPool",
    "Conv",
    "ConvLocal",
    "ConvTranspose",
    "Dense",
    "GlobalAvgPool",
    "GlobalSumPool",
    "LayerNorm",
    "Resize",
    "SumPool",
]

Size = Sequence[int]


@recipe
def Dense(
    features: int,
    W_std: Scale = 1.0,
    b_std: Scale | None = None,
    *,
    parameterization: Parameterization = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Model:
    """Fully connected layer over channels `z_p = W_std/sqrt(c) W x_p + b_std b`, at every position.

    Args:
        features: Number of outputs.
        W_std: Standard deviation of the rescaled weights.
        b_std: Standard deviation of the biases; None for none.
        parameterization: See `lazynet.models.layers`.
        s: See `lazynet.models.layers`.

    Example:
        >>> model = Dense(2)
        >>> x = jnp.ones((4, 5, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (4, 5, 2)
    """
    features, scheme = layers.check_affine("Dense", features, parameterization, s)
    W_std, b_std = layers.check_scales("Dense", W_std, b_std)

    def init(key, x):
        shape = x.shape[-1], features
        return layers.draw(key, shape, x.shape[-1], x.dtype, W_std, b_std, scheme)

    def apply(params, x, probe=None):
        layers.check_channels("Dense", x, params["W"].shape[0])
        z = layers.probed(x @ params["W"], probe) * layers.multiplier(x.shape[-1], W_std, scheme)
        return layers.add_bias(z, params, b_std, scheme)

    rule = dense_rule(features, W_std, b_std, scheme, any_rank=True)
    return layer(
        "Dense",
        apply,
        init=init,
        record=layers.preactivation,
        kernel=rule,
        rows=lambda x: x.reshape(x.shape[0], -1, x.shape[-1]),
    )


@recipe
def Conv(
    features: int,
    kernel_size: Size,
    strides: Size | None = None,
    padding: Padding = "VALID",
    W_std: Scale = 1.0,
    b_std: Scale | None = None,
    *,
    parameterization: Parameterization = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Model:
    """Convolution over any number of axes `z_p = W_std/sqrt(k c) sum_d W_d x_{p+d} + b_std b`.

    Args:
        features: Number of output channels.
        kernel_size: Size of the filters along each axis of positions.
        strides: Strides; ones by default.
        padding: `"SAME"` (zeros), `"VALID"` or `"CIRCULAR"`.
        W_std: Standard deviation of the rescaled weights.
        b_std: Standard deviation of the biases; None for none.
        parameterization: See `lazynet.models.layers`.
        s: See `lazynet.models.layers`.

    Example:
        >>> model = Conv(8, (3,), padding="SAME")
        >>> x = jnp.ones((1, 10, 2))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (1, 10, 8)
    """
    size, steps = _sizes("Conv", kernel_size, strides)
    # Images have a fast way, planes of covariances at equal displacement.
    if len(size) == 2:
        return layers.Conv(
            features, size, steps, padding, W_std, b_std, parameterization=parameterization, s=s
        )
    window = Window(size, steps, padding)

    def filtered(x, W):
        image, pads = _padded(x, window)
        return convolve(image, W, steps, pads)

    return _weighted("Conv", features, window, filtered, W_std, b_std, parameterization, s)


@recipe
def ConvTranspose(
    features: int,
    kernel_size: Size,
    strides: Size | None = None,
    padding: Padding = "VALID",
    W_std: Scale = 1.0,
    b_std: Scale | None = None,
    *,
    parameterization: Parameterization = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Model:
    """Transposed convolution: the convolution of inputs that are `strides` apart, with zeros between.

    Args:
        features: Number of output channels.
        kernel_size: See `Conv`.
        strides: See `Conv`.
        padding: See `Conv`.
        W_std: See `Conv`.
        b_std: See `Conv`.
        parameterization: See `Conv`.
        s: See `Conv`.

    Example:
        >>> model = ConvTranspose(8, (3, 3), (2, 2), "SAME")
        >>> x = jnp.ones((1, 5, 5, 2))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (1, 10, 10, 8)
    """
    size, steps = _sizes("ConvTranspose", kernel_size, strides)
    window = Transposed(size, steps, padding)
    # All outputs first, of which those beyond the image are added on its other side.
    pads = "VALID" if padding == "CIRCULAR" else padding

    def filtered(x, W):
        z = lax.conv_transpose(x, W, steps, pads, dimension_numbers=dimension_numbers(len(size)))
        if padding != "CIRCULAR":
            return z
        for axis, (n, stride) in enumerate(zip(x.shape[1:-1], steps, strict=True), start=1):
            z = _folded(z, axis, n * stride)
        return z

    return _weighted("ConvTranspose", features, window, filtered, W_std, b_std, parameterization, s)


@recipe
def ConvLocal(
    features: int,
    kernel_size: Size,
    strides: Size | None = None,
    padding: Padding = "VALID",
    W_std: Scale = 1.0,
    b_std: Scale | None = None,
    *,
    parameterization: Parameterization = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Model:
    """Convolution whose filters and biases are different at each position.

    Args:
        features: Number of output channels.
        kernel_size: See `Conv`.
        strides: See `Conv`.
        padding: See `Conv`.
        W_std: See `Conv`.
        b_std: See `Conv`.
        parameterization: See `Conv`.
        s: See `Conv`.

    Example:
        >>> model = ConvLocal(8, (3, 3))
        >>> x = jnp.ones((1, 5, 5, 2))
        >>> model.init(jax.random.key(0), x)["W"].shape
        (3, 3, 18, 8)
    """
    size, steps = _sizes("ConvLocal", kernel_size, strides)
    window = Window(size, steps, padding)

    def filtered(x, W):
        image, pads = _padded(x, window)
        return lax.conv_general_dilated_local(
            image, W, steps, pads, filter_shape=size, dimension_numbers=dimension_numbers(len(size))
        )

    return _weighted(
        "ConvLocal", features, window, filtered, W_std, b_std, parameterization, s, local=True
    )


@recipe
def AvgPool(
    window: Size,
    strides: Size | None = None,
    padding: Padding = "VALID",
    *,
    normalize_edges: bool = False,
) -> Model:
    """Mean over windows of any number of axes.

    Args:
        window: Size along each axis of positions.
        strides: Strides; ones by default.
        padding: `"SAME"`, `"VALID"` or `"CIRCULAR"`.
        normalize_edges: Whether to divide by the number of entries inside the image, at its edges
            too.

    Example:
        >>> AvgPool((3,), padding="SAME", normalize_edges=True).apply({}, jnp.ones((1, 3, 1))).ravel().tolist()
        [1.0, 1.0, 1.0]
    """
    size, steps = _sizes("AvgPool", window, strides)
    if normalize_edges and padding == "SAME":
        slid = Window(size, steps, padding)

        def mean(x):
            # Divided by the number of entries inside the image, a sum of ones.
            return _summed(x, slid) / _summed(jnp.ones_like(x[:1, ..., :1]), slid)

        middle = lambda mask: window_mask(mask[..., 0], slid)[..., None]  # noqa: E731
        return layer(
            "AvgPool", lambda params, x: mean(x), kernel=fixed_rule("AvgPool", mean, missing=middle)
        )
    if len(size) == 2:
        return layers.AvgPool(size, steps, padding)
    return _pool("AvgPool", size, steps, padding, math.prod(size))


@recipe
def SumPool(window: Size, strides: Size | None = None, padding: Padding = "VALID") -> Model:
    """Sum over windows of any number of axes.

    Args:
        window: Size along each axis of positions.
        strides: Strides; ones by default.
        padding: `"SAME"`, `"VALID"` or `"CIRCULAR"`.

    Example:
        >>> SumPool((2,)).apply({}, jnp.ones((1, 3, 1))).ravel().tolist()
        [2.0, 2.0]
    """
    size, steps = _sizes("SumPool", window, strides)
    if len(size) == 2:
        return layers.SumPool(size, steps, padding)
    return _pool("SumPool", size, steps, padding, 1)


@recipe
def GlobalAvgPool() -> Model:
    """Mean over all positions, `[n, *positions, c]` to `[n, c]`.

    Example:
        >>> GlobalAvgPool().apply({}, jnp.ones((2, 4, 3))).shape
        (2, 3)
    """
    return layer(
        "GlobalAvgPool",
        lambda params, x: jnp.mean(x, inner_axes(x)),
        kernel=global_pool_rule("GlobalAvgPool", mean=True),
    )


@recipe
def GlobalSumPool() -> Model:
    """Sum over all positions, `[n, *positions, c]` to `[n, c]`.

    Example:
        >>> GlobalSumPool().apply({}, jnp.ones((1, 4, 1))).tolist()
        [[4.0]]
    """
    return layer(
        "GlobalSumPool",
        lambda params, x: jnp.sum(x, inner_axes(x)),
        kernel=global_pool_rule("GlobalSumPool", mean=False),
    )


@recipe
def LayerNorm(axes: Size = (), eps: float | int = 1e-12) -> Model:
    """Normalization over channels and axes of positions (from 1 on; 0 is the batch), without gain and bias.

    Args:
        axes: Axes beside the channels.
        eps: Added to the variance.

    Example:
        >>> LayerNorm((1,)).apply({}, jnp.array([[[1.0], [3.0]]])).ravel().round(6).tolist()
        [-1.0, 1.0]
    """
    if not axes:
        return layers.LayerNorm(eps)
    eps = guards.number("LayerNorm eps", eps, at_least=0)
    axes = tuple(axes)
    rule = axes_norm_rule([axis - 1 for axis in axes], eps)
    return layer(
        "LayerNorm",
        lambda params, x: normalized(x, (*axes, -1), eps),
        # Over the batch examples are mixed, so that no covariance of two of them alone is enough.
        kernel=None if 0 in axes else rule,
    )


@recipe
def Resize(shape: Size, method: str = "linear", antialias: bool = True) -> Model:
    """Images of another size by interpolation.

    Args:
        shape: New sizes of the axes of positions.
        method: "linear" or "nearest": other methods have no sum of weights.
        antialias: Whether smaller images are smoothed first.

    Example:
        >>> Resize((4, 4)).apply({}, jnp.ones((1, 2, 2, 3))).shape
        (1, 4, 4, 3)
    """
    shape = tuple(shape)

    def resized(x):
        return jax.image.resize(x, (x.shape[0], *shape, x.shape[-1]), method, antialias)

    return layer("Resize", lambda params, x: resized(x), kernel=fixed_rule("Resize", resized))


def normalized(x: Array, axes: Size, eps: float, missing: Array | None = None) -> Array:
    """`(x - mean) / sqrt(variance + eps)` over axes, where entries are not missing.

    Example:
        >>> normalized(jnp.array([1.0, 3.0]), (0,), 0.0).tolist()
        [-1.0, 1.0]
    """
    if missing is None:
        # Differences first: E[x^2] - E[x]^2 loses all digits where the mean is large.
        mean = jnp.mean(x, axes, keepdims=True)
        return (x - mean) / jnp.sqrt(jnp.mean((x - mean) ** 2, axes, keepdims=True) + eps)
    there = jnp.broadcast_to(~missing, x.shape)
    # At least one, so that an example with nothing in it is 0 and not 0 / 0.
    count = jnp.maximum(jnp.sum(there, axes, keepdims=True), 1).astype(x.dtype)
    mean = jnp.sum(jnp.where(there, x, 0), axes, keepdims=True) / count
    centered = jnp.where(there, x - mean, 0)
    variance = jnp.sum(centered**2, axes, keepdims=True) / count
    return centered / jnp.sqrt(variance + eps)


def mean_of_present(x: Array, missing: Array) -> Array:
    """Mean over the positions of `[n, *positions, c]` that are not missing.

    Example:
        >>> mean_of_present(jnp.ones((1, 2, 1)), jnp.array([[[True], [False]]])).tolist()
        [[1.0]]
    """
    axes = inner_axes(x)
    there = jnp.broadcast_to(~missing, x.shape)
    count = jnp.maximum(jnp.sum(there, axes), 1).astype(x.dtype)
    return jnp.sum(jnp.where(there, x, 0), axes) / count


def dropped(key: Array, x: Array, keep: float) -> Array:
    """Entries kept with a probability and divided by it, or zero.

    Example:
        >>> dropped(jax.random.key(0), jnp.ones(3), 1.0).tolist()
        [1.0, 1.0, 1.0]

    Source: Srivastava et al. (2014), section 4, with the scale at training time.
    """
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, jnp.zeros((), x.dtype))


def inner_axes(x: Any) -> tuple[int, ...]:
    """The axes of positions of `[n, *positions, c]`.

    Example:
        >>> inner_axes(jnp.ones((1, 2, 3, 4)))
        (1, 2)
    """
    return tuple(range(1, x.ndim - 1))


def _weighted(name, features, window, filtered, W_std, b_std, parameterization, s, *, local=False):
    """A layer with weights for each tap of a window, `z = m filtered(x, W) + b`."""
    features, scheme = layers.check_affine(name, features, parameterization, s)
    W_std, b_std = layers.check_scales(name, W_std, b_std)
    layers.check_padding(name, window.padding)
    taps = math.prod(window.size)

    def init(key, x):
        _check_rank(name, x, window.size)
        fan_in = taps * x.shape[-1]
        if not local:
            shape = (*window.size, x.shape[-1], features)
            return layers.draw(key, shape, fan_in, x.dtype, W_std, b_std, scheme)
        # A pool with the same window has as many outputs; nothing is computed.
        places = jax.eval_shape(lambda x: _summed(x, window), x).shape[1:-1]
        key_W, key_b = jax.random.split(key)
        W = layers.draw(key_W, (*places, fan_in, features), fan_in, x.dtype, W_std, None, scheme)
        if b_std is None:
            return W
        b = jax.random.normal(key_b, (*places, features), x.dtype)
        return {**W, "b": b if scheme is None else b * b_std}

    def apply(params, x):
        _check_rank(name, x, window.size)
        z = filtered(x, params["W"]) * layers.multiplier(taps * x.shape[-1], W_std, scheme)
        if not local:
            return layers.add_bias(z, params, b_std, scheme)
        if b_std is None:
            return z
        # Biases are [*positions, features], one for each output, as the weights are.
        return z + params["b"][None] * (b_std if scheme is None else 1)

    shared = conv_rule(features, window, W_std, b_std, scheme)

    def rule(k):
        positions_only(name, k)
        return shared(k)

    kernel = local_rule(shared) if local else rule
    return layer(name, apply, init=init, record=layers.preactivation, kernel=kernel)


def _pool(name, size, steps, padding, divisor):
    layers.check_padding(name, padding)
    window = Window(size, steps, padding)
    rule = pool_rule(name, window, divisor)
    return layer(name, lambda params, x: _summed(x, window) / divisor, kernel=rule)


def _summed(x, window):
    """Sums over windows of `[n, *positions, c]`."""
    image, pads = _padded(x, window)
    size = (1, *window.size, 1)
    strides = (1, *window.strides, 1)
    # Of NumPy: a traced zero hides from lax that this is a sum, which alone has gradients.
    zero = np.zeros((), x.dtype)
    return lax.reduce_window(image, zero, lax.add, size, strides, [(0, 0), *pads, (0, 0)])


def _padded(x, window):
    """The image and the zero padding left to do: periodic images are wrapped here."""
    none = [(0, 0)] * len(window.size)
    if window.padding == "VALID":
        return x, none
    pads = lax.padtype_to_pads(x.shape[1:-1], window.size, window.strides, "SAME")
    pads = [(int(a), int(b)) for a, b in pads]
    if window.padding == "SAME":
        return x, pads
    return jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="wrap"), none


def _folded(z, axis, outputs):
    """What leaves a periodic image on one side comes in on the other."""
    length = z.shape[axis]
    # Half of the entries beyond the image are on each side of it.
    place = (np.arange(length) - (length - outputs) // 2) % outputs
    moved = jnp.moveaxis(z, axis, 0)
    nothing = jnp.zeros((outputs, *moved.shape[1:]), z.dtype)
    return jnp.moveaxis(nothing.at[place].add(moved), 0, axis)


def _sizes(name, size, strides) -> tuple[Any, Any]:
    size = tuple(guards.count(f"{name} window[{i}]", k) for i, k in enumerate(size))
    steps = (1,) * len(size) if strides is None else tuple(strides)
    if len(steps) != len(size):
        raise ValueError(
            f"{name} got strides={steps}, expected {len(size)}: one for each axis of the window {size}."
        )
    return size, tuple(guards.count(f"{name} strides[{i}]", k) for i, k in enumerate(steps))


def _check_rank(name, x, size):
    if len(x.shape) != len(size) + 2:
        raise ValueError(
            f"{name} got an input of shape {tuple(x.shape)}, expected [n, *positions, c] with {len(size)} axes of "
            "positions: give windows one size for each axis."
        )
