"""Networks of the literature, as plain compositions of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lazynet.activations import Relu
from lazynet.layers import Conv, Dense, Flatten, GlobalAvgPool, MaxPool
from lazynet.model import Model, serial

__all__ = ["cnn", "mlp", "vgg11"]

SQRT2 = math.sqrt(2.0)


def mlp(
    widths: Sequence[int],
    outputs: int = 1,
    *,
    activation: Model | None = None,
    W_std: float = SQRT2,
    b_std: float | None = None,
) -> Model:
    """Fully connected network `Dense, phi, ..., Dense, phi, Dense(outputs)`.

    Args:
        widths: Width of each hidden layer.
        outputs: Number of outputs of the linear head.
        activation: Layer after each hidden Dense; Relu by default.
        W_std: Standard deviation of all rescaled weights.
        b_std: Standard deviation of all biases; None for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = mlp((32, 32), 10, b_std=0.1)
        >>> sorted(model.init(jax.random.key(0), jnp.ones((1, 64))))
        ['0_Dense', '2_Dense', '4_Dense']
    """
    activation = Relu() if activation is None else activation
    hidden = [layer for width in widths for layer in (Dense(width, W_std, b_std), activation)]
    return serial(*hidden, Dense(outputs, W_std, b_std), name="mlp")


def cnn(
    widths: Sequence[int],
    outputs: int = 10,
    *,
    strides: Sequence[int] | None = None,
    activation: Model | None = None,
    W_std: float = SQRT2,
    b_std: float | None = None,
) -> Model:
    """Convolutional network `Conv 3x3 SAME, phi, ..., GlobalAvgPool, Dense(outputs)`.

    Args:
        widths: Channels of each convolution.
        outputs: Number of outputs of the linear head.
        strides: Stride of each convolution; 1 by default.
        activation: Layer after each convolution; Relu by default.
        W_std: Standard deviation of all rescaled weights.
        b_std: Standard deviation of all biases; None for none.

    Raises:
        ValueError: If the numbers of widths and strides differ.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = cnn((8, 16), 10, strides=(2, 2))
        >>> x = jnp.ones((1, 32, 32, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (1, 10)
    """
    activation = Relu() if activation is None else activation
    strides = [1] * len(widths) if strides is None else list(strides)
    if len(strides) != len(widths):
        raise ValueError(f"cnn got {len(strides)} strides for {len(widths)} widths, expected one each.")
    convolutions = [
        layer
        for width, stride in zip(widths, strides, strict=True)
        for layer in (Conv(width, (3, 3), (stride, stride), "SAME", W_std, b_std), activation)
    ]
    return serial(*convolutions, GlobalAvgPool(), Dense(outputs, W_std, b_std), name="cnn")


def vgg11(
    outputs: int = 10,
    *,
    width: float = 1.0,
    activation: Model | None = None,
    W_std: float = SQRT2,
    b_std: float | None = 0.0,
) -> Model:
    """VGG-11 for 32x32 images: eight 3x3 convolutions, five 2x2 max-pools, and one linear layer.

    Args:
        outputs: Number of outputs of the linear head.
        width: Factor of all channel numbers (64 to 512).
        activation: Layer after each convolution; Relu by default.
        W_std: Standard deviation of all rescaled weights.
        b_std: Standard deviation of all biases; None for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = vgg11(10, width=1 / 16)
        >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> params["0_Conv"]["W"].shape
        (3, 3, 3, 4)

    Source: Simonyan and Zisserman (2015), configuration A, without its hidden fully connected layers.
    """
    activation = Relu() if activation is None else activation
    layers = []
    for channels in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if channels == "pool":
            layers.append(MaxPool((2, 2), (2, 2)))
        else:
            features = max(1, round(width * channels))
            layers += [Conv(features, (3, 3), (1, 1), "SAME", W_std, b_std), activation]
    return serial(*layers, Flatten(), Dense(outputs, W_std, b_std), name="vgg11")
