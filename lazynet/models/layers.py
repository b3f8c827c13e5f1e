"""Linear and pooling layers. Nonlinearities are in `activations.py`.

Parameterizations, with fan-in `n` (kernel entries times input channels) and neural-tangents'
meaning of `s`:

- `"ntk"`: `z = W_std / sqrt(n) W x + b_std b`, all of W and b drawn from N(0, 1).
- `"standard"`: `z = W x / sqrt(s_in) + b`, W drawn from N(0, W_std^2 s_in / n) and b from N(0,
  b_std^2); the layer has `s_out` times as many features, and its width is `s` times a base width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import product
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from lazynet import guards
from lazynet.covariance.layer_rules import (
    conv_rule,
    dense_rule,
    flatten_rule,
    global_pool_rule,
    layer_norm_rule,
    pool_rule,
)
from lazynet.covariance.windows import Window
from lazynet.models.convolution import convolve
from lazynet.models.model import Model, layer
from lazynet.recipes import recipe
from lazynet.typing import Array

__all__ = [
    "AvgPool",
    "Conv",
    "Dense",
    "Flatten",
    "GlobalAvgPool",
    "GlobalSumPool",
    "Identity",
    "LayerNorm",
    "MaxPool",
    "SumPool",
]

Parameterization = Literal["ntk", "standard"]
Padding = Literal["SAME", "VALID", "CIRCULAR"]
Pair = tuple[int, int]
Scale = float | int | Array


@recipe
def Dense(
    features: int,
    W_std: Scale = 1.0,
    b_std: Scale | None = None,
    *,
    parameterization: Parameterization = "ntk",
    s: Pair = (1, 1),
) -> Model:
    """Fully connected layer `z = W_std/sqrt(n) W x + b_std b` (NTK parameterization) on `[n, features]`.

    Args:
        features: Number of outputs (times `s[1]` in the standard parameterization).
        W_std: Standard deviation of the rescaled weights; sqrt 2 keeps variances through ReLU
            layers.
        b_std: Standard deviation of the biases; None for a layer without biases.
        parameterization: `"ntk"` or `"standard"`, see the module docstring.
        s: Width factors of input and output; only with `parameterization="standard"`.

    Raises:
        ValueError: For a bad width, parameterization or `s`; on inputs that are not `[n,
            features]`.
        TypeError: On integer inputs.

    Example:
        >>> model = Dense(2, W_std=2**0.5, b_std=0.1)
        >>> x = jnp.ones((4, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (4, 2)

    Source: Jacot, Gabriel and Hongler (2018), section 2.1; Lee et al. (2019), equation 1.
    """
    features, scheme = check_affine("Dense", features, parameterization, s)
    W_std, b_std = check_scales("Dense", W_std, b_std)

    def init(key, x):
        _check_rank("Dense", x, 2, "[n, features]", "put Flatten() or GlobalAvgPool() before it")
        return draw(key, (x.shape[-1], features), x.shape[-1], x.dtype, W_std, b_std, scheme)

    def apply(params, x, probe=None):
        _check_rank("Dense", x, 2, "[n, features]", "put Flatten() or GlobalAvgPool() before it")
        check_channels("Dense", x, params["W"].shape[0])
        z = probed(x @ params["W"], probe) * multiplier(x.shape[-1], W_std, scheme)
        return add_bias(z, params, b_std, scheme)

    kernel = dense_rule(features, W_std, b_std, scheme)
    return layer(
        "Dense",
        apply,
        init=init,
        record=preactivation,
        kernel=kernel,
        # One position: [n, 1, fan_in].
        rows=lambda x: x[:, None, :],
    )


@recipe
def Conv(
    features: int,
    kernel_size: Pair = (3, 3),
    strides: Pair = (1, 1),
    padding: Padding = "VALID",
    W_std: Scale = 1.0,
    b_std: Scale | None = None,
    *,
    parameterization: Parameterization = "ntk",
    s: Pair = (1, 1),
) -> Model:
    """Convolution `z_p = W_std/sqrt(k^2 c) sum_d W_d x_{p+d} + b_std b` on images `[n, h, w, c]`.

    Args:
        features: Number of output channels (times `s[1]` in the standard parameterization).
        kernel_size: Height and width of the filters.
        strides: Vertical and horizontal strides.
        padding: `"SAME"` (zeros), `"VALID"` or `"CIRCULAR"` (periodic images).
        W_std: Standard deviation of the rescaled weights.
        b_std: Standard deviation of the biases; None for a layer without biases.
        parameterization: `"ntk"` or `"standard"`, see the module docstring.
        s: Width factors of input and output; only with `parameterization="standard"`.

    Raises:
        ValueError: For a bad width, padding, parameterization or `s`; on inputs that are not `[n,
            h, w, c]`.
        TypeError: On integer inputs.

    Example:
        >>> model = Conv(8, (3, 3), strides=(2, 2), padding="SAME")
        >>> x = jnp.ones((1, 32, 32, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (1, 16, 16, 8)

    Source: Arora et al. (2019), section 4 (CNTK), without its fixed layers.
    """
    features, scheme = check_affine("Conv", features, parameterization, s)
    W_std, b_std = check_scales("Conv", W_std, b_std)
    check_padding("Conv", padding)
    kernel_size = _pair("Conv", "kernel_size", kernel_size)
    strides = _pair("Conv", "strides", strides)

    def fan_in(channels):
        return math.prod(kernel_size) * channels

    def init(key, x):
        _check_rank("Conv", x, 4, "[n, h, w, c]", "reshape flat images, channels last")
        _check_fits("Conv", x.shape[1:3], kernel_size, padding)
        channels = x.shape[-1]
        shape = (*kernel_size, channels, features)
        return draw(key, shape, fan_in(channels), x.dtype, W_std, b_std, scheme)

    def apply(params, x, probe=None):
        _check_rank("Conv", x, 4, "[n, h, w, c]", "reshape flat images, channels last")
        _check_fits("Conv", x.shape[1:3], kernel_size, padding)
        check_channels("Conv", x, params["W"].shape[2])
        image, pads = pad_image(x, kernel_size, strides, padding)
        # The probe comes before the multiplier m, which derivatives by W have too.
        z = probed(convolve(image, params["W"], strides, pads), probe)
        return add_bias(z * multiplier(fan_in(x.shape[-1]), W_std, scheme), params, b_std, scheme)

    def rows(x):
        # [n, h' w', k^2 c] in the order of W as [k^2 c, features]: taps before channels.
        windows = _windows(x, kernel_size, strides, padding, fill=0.0)
        return windows.reshape(x.shape[0], -1, fan_in(x.shape[-1]))

    kernel = conv_rule(features, Window(kernel_size, strides, padding), W_std, b_std, scheme)
    return layer("Conv", apply, init=init, record=preactivation, kernel=kernel, rows=rows)


@recipe
def AvgPool(window: Pair, strides: Pair | None = None, padding: Padding = "VALID") -> Model:
    """Mean over windows `y_p = 1/|window| sum_d x_{p+d}`; padded entries count as zeros.

    Args:
        window: Height and width of the window.
        strides: Strides; (1, 1) by default, as in neural-tangents and flax.
        padding: `"SAME"`, `"VALID"` or `"CIRCULAR"`.

    Example:
        >>> AvgPool((2, 2), (2, 2)).apply({}, jnp.ones((1, 4, 4, 1))).shape
        (1, 2, 2, 1)
    """
    window = _pair("AvgPool", "window", window)
    return _pool("AvgPool", window, strides, padding, math.prod(window))


@recipe
def SumPool(window: Pair, strides: Pair | None = None, padding: Padding = "VALID") -> Model:
    """Sum over windows `y_p = sum_d x_{p+d}`.

    Args:
        window: Height and width of the window.
        strides: Strides; (1, 1) by default.
        padding: `"SAME"`, `"VALID"` or `"CIRCULAR"`.

    Example:
        >>> float(SumPool((2, 2), (2, 2)).apply({}, jnp.ones((1, 4, 4, 1)))[0, 0, 0, 0])
        4.0
    """
    return _pool("SumPool", window, strides, padding, 1)


@recipe
def MaxPool(
    window: Pair, strides: Pair | None = None, padding: Literal["SAME", "VALID"] = "VALID"
) -> Model:
    """Maximum over windows `y_p = max_d x_{p+d}`. It has no infinite-width limit in closed form.

    Args:
        window: Height and width of the window.
        strides: Strides; (1, 1) by default.
        padding: `"SAME"` (padded entries never win) or `"VALID"`.

    Example:
        >>> MaxPool((2, 2), (2, 2)).apply({}, jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    window = _pair("MaxPool", "window", window)
    strides = (1, 1) if strides is None else _pair("MaxPool", "strides", strides)
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"MaxPool got padding={padding!r}, expected 'SAME' or 'VALID'.")

    def patches(x):
        # Zeros would win against negative entries at the edges.
        return _windows(x, window, strides, padding, fill=-jnp.inf)

    def apply(params, x, gate=None):
        _check_rank("MaxPool", x, 4, "[n, h, w, c]", "pool before Flatten()")
        if gate is None:
            # Equal entries share the derivative; with a gate the first of them has all of it.
            return _over_windows(jnp.maximum, x, window, strides, padding, fill=-jnp.inf)
        winners = jnp.argmax(gate, axis=3, keepdims=True)  # in the windows that decide
        return jnp.take_along_axis(patches(x), winners, axis=3)[:, :, :, 0]

    return layer("MaxPool", apply, record=lambda x, outputs: (x, patches(x)))


@recipe
def GlobalAvgPool() -> Model:
    """Mean over positions `y = 1/(hw) sum_p x_p`, from `[n, h, w, c]` to `[n, c]`.

    Example:
        >>> GlobalAvgPool().apply({}, jnp.ones((2, 4, 4, 3))).shape
        (2, 3)
    """
    return _global("GlobalAvgPool", jnp.mean, mean=True)


@recipe
def GlobalSumPool() -> Model:
    """Sum over positions `y = sum_p x_p`, from `[n, h, w, c]` to `[n, c]`.

    Example:
        >>> float(GlobalSumPool().apply({}, jnp.ones((1, 4, 4, 1)))[0, 0])
        16.0
    """
    return _global("GlobalSumPool", jnp.sum, mean=False)


@recipe
def Flatten() -> Model:
    """All positions and channels as one vector, from `[n, h, w, c]` to `[n, h w c]`.

    A head on Flatten needs covariances at equal positions only, which makes its kernels about 600
    times cheaper than those of a pooled head, and blind to translations.

    Example:
        >>> Flatten().apply({}, jnp.ones((2, 4, 4, 3))).shape
        (2, 48)
    """
    return layer("Flatten", lambda params, x: x.reshape(x.shape[0], -1), kernel=flatten_rule)


@recipe
def LayerNorm(eps: float | int = 1e-12) -> Model:
    """Normalization over features `y = (x - mean(x)) / sqrt(var(x) + eps)`, without learned gain and bias.

    Args:
        eps: Added to the variance.

    Example:
        >>> y = LayerNorm().apply({}, jnp.array([[1.0, 3.0]]))
        >>> [round(v, 6) for v in y[0].tolist()]
        [-1.0, 1.0]

    Source: Ba, Kiros and Hinton (2016), equation 3.
    """
    eps = guards.number("LayerNorm eps", eps, at_least=0)

    def apply(params, x):
        # Not E[x^2] - E[x]^2, which loses all digits where the mean is large beside the deviation.
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        return centered * lax.rsqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + eps)

    return layer("LayerNorm", apply, kernel=layer_norm_rule(eps))


@recipe
def Identity() -> Model:
    """`y = x`: the shortcut of a residual block.

    Example:
        >>> Identity().apply({}, jnp.ones(2)).tolist()
        [1.0, 1.0]
    """
    return layer("Identity", _unchanged, kernel=lambda k: k, inverse=_unchanged)


def pad_image(
    x: Array, window: Pair, strides: Pair, padding: Padding
) -> tuple[Array, Sequence[Pair]]:
    """The image and the zero padding left to do: periodic images are wrapped here, the others are returned as they are.

    Example:
        >>> image, pads = pad_image(jnp.ones((1, 4, 4, 1)), (3, 3), (1, 1), "CIRCULAR")
        >>> image.shape, pads
        ((1, 6, 6, 1), [(0, 0), (0, 0)])
    """
    if padding == "VALID":
        return x, [(0, 0), (0, 0)]
    # Periodic images get the output size of "SAME", so its pads say how far to wrap.
    pads = [(int(a), int(b)) for a, b in lax.padtype_to_pads(x.shape[1:3], window, strides, "SAME")]
    if padding == "SAME":
        return x, pads
    return jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="wrap"), [(0, 0), (0, 0)]


def _unchanged(params, x):
    return x


def preactivation(x, outputs):
    """What `trace` records of a layer with weights: its input and its output."""
    return x, outputs


def draw(key, shape, fan_in, dtype, W_std, b_std, scheme):
    """Weights and biases of either parameterization; N(0, 1) in the NTK one."""
    # Split also without biases: weights are the same with them and without.
    key_W, key_b = jax.random.split(key)
    W = jax.random.normal(key_W, shape, dtype)
    params = {"W": W if scheme is None else W * (W_std * math.sqrt(scheme[0] / fan_in))}
    if b_std is not None:
        b = jax.random.normal(key_b, shape[-1:], dtype)
        params["b"] = b if scheme is None else b * b_std
    return params


def multiplier(fan_in, W_std, scheme):
    """Factor of the weights in the forward pass."""
    return W_std / math.sqrt(fan_in) if scheme is None else 1 / math.sqrt(scheme[0])


def probed(z, probe):
    """Adds the zeros by which an empirical kernel differentiates (`model.layer`)."""
    return z if probe is None else z + probe


def add_bias(z, params, b_std, scheme):
    """Adds biases `[features]`, or `[n, features]` where each example has its own."""
    if b_std is None:
        return z
    b = params["b"] if scheme is not None else params["b"] * b_std
    # [1, 1, .., features] or [n, 1, .., features], since rank promotion may be an error.
    return z + b.reshape(*(b.shape[:-1] or (1,)), *(1,) * (z.ndim - 2), b.shape[-1])


def _pool(name, window, strides, padding, divisor):
    check_padding(name, padding)
    window = _pair(name, "window", window)
    strides = (1, 1) if strides is None else _pair(name, "strides", strides)

    def apply(params, x):
        _check_rank(name, x, 4, "[n, h, w, c]", "pool before Flatten()")
        return _over_windows(jnp.add, x, window, strides, padding, fill=0.0) / divisor

    return layer(name, apply, kernel=pool_rule(name, Window(window, strides, padding), divisor))


def _global(name, reduce, *, mean):
    def apply(params, x):
        _check_rank(name, x, 4, "[n, h, w, c]", "pool before Flatten()")
        return reduce(x, axis=(1, 2))

    return layer(name, apply, kernel=global_pool_rule(name, mean=mean))


def _windows(x, window, strides, padding, fill):
    """Entries of each window, `[n, h', w', window, c]`."""
    return jnp.stack(_window_entries(x, window, strides, padding, fill), axis=3)


def _over_windows(combine, x, window, strides, padding, fill):
    """The sum or maximum over each window, along its first axis and then along its second one.

    The derivative then goes back along one axis at a time, which takes half to a fifth of the time
    on a CPU. Entries are combined one after the other: stacked, they would be copied first.
    """
    _check_fits("a pool", x.shape[1:3], window, padding)
    rows = (window[0], 1), (strides[0], 1)
    columns = (1, window[1]), (1, strides[1])
    for part, steps in (rows, columns):
        x = functools.reduce(combine, _window_entries(x, part, steps, padding, fill))
    return x


def _window_entries(x, window, strides, padding, fill):
    """For each place in a window its entries `[n, h', w', c]`: strided slices, which differentiate to any order."""
    _check_fits("a pool", x.shape[1:3], window, padding)
    image, pads = pad_image(x, window, strides, padding)
    # "SAME" pads with what never changes the result: 0 in a sum, -inf in a maximum.
    image = jnp.pad(image, [(0, 0), *pads, (0, 0)], constant_values=fill)
    h, w = ((image.shape[i + 1] - window[i]) // strides[i] + 1 for i in (0, 1))
    offsets = product(range(window[0]), range(window[1]))
    rows, columns = strides
    return [
        image[:, i : i + rows * (h - 1) + 1 : rows, j : j + columns * (w - 1) + 1 : columns]
        for i, j in offsets
    ]


def check_affine(name, features, parameterization, s):
    """The number of features of the layer and, for the standard parameterization, its width factors."""
    features = guards.count(f"{name} features", features)
    if parameterization not in ("ntk", "standard"):
        raise ValueError(
            f"{name} got parameterization={parameterization!r}, expected 'ntk' or 'standard'."
        )
    s = _pair(name, "s", s)
    if parameterization == "ntk" and s != (1, 1):
        raise ValueError(
            f"{name} got s={s} with parameterization='ntk', expected (1, 1): width factors only change "
            "the 'standard' parameterization."
        )
    return (features, None) if parameterization == "ntk" else (features * s[1], (s[0], s[1]))


def check_scales(name, W_std, b_std):
    """Standard deviations: finite and not negative, or traced."""
    W_std = guards.number(f"{name} W_std", W_std, at_least=0)
    return W_std, None if b_std is None else guards.number(f"{name} b_std", b_std, at_least=0)


def _check_fits(name, shape, window, padding):
    """Without padding, an image smaller than the window would leave nothing, whose mean is NaN."""
    if padding == "VALID" and any(size < side for size, side in zip(shape, window, strict=True)):
        raise ValueError(
            f"{name} got images of {tuple(shape)}, expected at least the size of its window {window}, which does not "
            "fit with 'VALID' padding: use a smaller window, 'SAME' padding, or fewer layers before it that shrink."
        )


def check_padding(name, padding):
    """Refuses other ways to treat the edges."""
    if padding not in ("SAME", "VALID", "CIRCULAR"):
        raise ValueError(f"{name} got padding={padding!r}, expected 'SAME', 'VALID' or 'CIRCULAR'.")


def _pair(name, argument, value) -> Pair:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__") or len(value) != 2:
        raise ValueError(
            f"{name} got {argument}={value!r}, expected two integers >= 1 (height, width): images are [n, h, w, c]; "
            f"for one dimension give them a height of 1 and write (1, width)."
        )
    height, width = (guards.count(f"{name} {argument}[{i}]", side) for i, side in enumerate(value))
    return height, width


def _check_rank(name, x, rank, expected, fix):
    if len(x.shape) != rank:
        raise ValueError(
            f"{name} got an input of shape {tuple(x.shape)}, expected {expected}: {fix}."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} got {x.dtype} inputs, expected floating point: use x.astype(float) / 255 for images."
        )


def check_channels(name, x, expected):
    """Refuses inputs of another number of channels than the weights have."""
    if x.shape[-1] != expected:
        raise ValueError(
            f"{name} got {x.shape[-1]} channels (shape {tuple(x.shape)}), its weights expect {expected}: "
            "initialize with a batch of this shape, or fix the input."
        )
