"""The networks of `benchmarks.training` once more in layers of flax, with the initial weights of ours.

Layers stand at the same positions, so that `0_Dense` of a `serial` is `layers_0` of a `Sequential`.
Weights of flax are those of the standard parameterization: the outputs agree before the first step,
and steps differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import linen

from lazynet.typing import Array, Params

__all__ = ["cnn", "flax_weights", "mlp", "vgg11"]

convolution = partial(linen.Conv, kernel_size=(3, 3), padding="SAME")


def mlp(widths: Sequence[int], outputs: int) -> linen.Sequential:
    """`zoo.mlp(widths, outputs, b_std=...)`."""
    layers = []
    for width in widths:
        layers += [linen.Dense(width), linen.relu]
    return linen.Sequential([*layers, linen.Dense(outputs)])


def cnn(widths: Sequence[int], outputs: int, strides: Sequence[int]) -> linen.Sequential:
    """`zoo.cnn(widths, outputs, strides=strides)`."""
    layers = []
    for width, stride in zip(widths, strides, strict=True):
        layers += [convolution(width, strides=(stride, stride), use_bias=False), linen.relu]
    return linen.Sequential([*layers, _mean_over_pixels, linen.Dense(outputs, use_bias=False)])


def vgg11(outputs: int, width: float) -> linen.Sequential:
    """`zoo.vgg11(outputs, width=width)`."""
    layers = []
    for channels in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if channels == "pool":
            # No module: a `Sequential` calls functions as they are.
            layers.append(partial(linen.max_pool, window_shape=(2, 2), strides=(2, 2)))
        else:
            layers += [convolution(round(width * channels)), linen.relu]
    return linen.Sequential([*layers, _flattened, linen.Dense(outputs)])


def _mean_over_pixels(x: Array) -> Array:
    return jnp.mean(x, (1, 2))


def _flattened(x: Array) -> Array:
    return x.reshape(len(x), -1)


def flax_weights(params: Params, W_std: float, b_std: float) -> Params:
    """Weights of the standard parameterization that give the outputs of ours in the NTK one."""
    weights = {}
    for path, layer in params.items():
        fan_in = math.prod(layer["W"].shape[:-1])
        # The factor W_std / sqrt(fan_in) of the NTK parameterization goes into the weights.
        kernel = W_std / math.sqrt(fan_in) * layer["W"]
        bias = {"bias": b_std * layer["b"]} if "b" in layer else {}
        weights[f"layers_{path.split('_')[0]}"] = {"kernel": kernel} | bias
    return {"params": weights}
