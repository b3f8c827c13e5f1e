"""Networks of the literature, as plain compositions of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from lazynet import guards
from lazynet.covariance.general.attention import Embedding
from lazynet.models import spatial
from lazynet.models.activations import Gelu, Relu
from lazynet.models.attention import SelfAttention
from lazynet.models.hierarchical import AttributeConv
from lazynet.models.invertible import coupling, inject, squeeze
from lazynet.models.layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    LayerNorm,
    MaxPool,
    Parameterization,
)
from lazynet.models.model import Model, residual, serial
from lazynet.models.tokens import Embed, Positions

__all__ = [
    "cnn",
    "cntk",
    "hierarchical_cnn",
    "irevnet",
    "mlp",
    "myrtle",
    "resnet18",
    "transformer",
    "two_layer",
    "vgg11",
    "wide_resnet",
]

SQRT2 = math.sqrt(2.0)
MYRTLE_CONVOLUTIONS = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}


def two_layer(
    width: int, outputs: int = 1, *, activation: Model | None = None, b_std: float | None = None
) -> Model:
    """Two-layer network `f(x) = sum_j a_j phi(b_j . x)`, the smallest model that is lazy or not.

    Args:
        width: Number of hidden units.
        outputs: Number of outputs.
        activation: phi; Relu by default.
        b_std: Standard deviation of all biases; None for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = two_layer(100)
        >>> x = jnp.ones((4, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (4, 1)
    """
    return mlp((width,), outputs, activation=activation, b_std=b_std)


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
        >>> sorted(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 64))))
        ['0_Dense', '2_Dense', '4_Dense']
    """
    activation = Relu() if activation is None else activation
    _check_widths("mlp", widths)
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
        >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> params["2_Conv"]["W"].shape
        (3, 3, 8, 16)
    """
    activation = Relu() if activation is None else activation
    _check_widths("cnn", widths)
    strides = [1] * len(widths) if strides is None else list(strides)
    if len(strides) != len(widths):
        raise ValueError(
            f"cnn got {len(strides)} strides for {len(widths)} widths, expected one each."
        )
    convolutions = [
        layer
        for width, stride in zip(widths, strides, strict=True)
        for layer in (Conv(width, (3, 3), (stride, stride), "SAME", W_std, b_std), activation)
    ]
    return serial(*convolutions, GlobalAvgPool(), Dense(outputs, W_std, b_std), name="cnn")


def vgg11(
    outputs: int = 10,
    *,
    width: float | int = 1.0,
    activation: Model | None = None,
    W_std: float = SQRT2,
    b_std: float | None = 0.0,
    parameterization: Parameterization = "ntk",
) -> Model:
    """VGG-11 for 32x32 images: eight 3x3 convolutions, five 2x2 max-pools, and one linear layer.

    Args:
        outputs: Number of outputs of the linear head.
        width: Factor of all channel numbers (64 to 512).
        activation: Layer after each convolution; Relu by default.
        W_std: Standard deviation of all rescaled weights.
        b_std: Standard deviation of all biases; None for none.
        parameterization: Of all layers; "standard" for weights as other training codes have them
            (`xavier_normal`).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = vgg11(10, width=1 / 16)
        >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> params["0_Conv"]["W"].shape
        (3, 3, 3, 4)

    Source: Simonyan and Zisserman (2015), configuration A, without its hidden fully connected
    layers.
    """
    activation = Relu() if activation is None else activation
    width = guards.number("vgg11 width", width, above=0)
    layers = []
    for channels in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if channels == "pool":
            layers.append(MaxPool((2, 2), (2, 2)))
        else:
            features = max(1, round(width * channels))
            convolution = Conv(
                features, (3, 3), (1, 1), "SAME", W_std, b_std, parameterization=parameterization
            )
            layers += [convolution, activation]
    head = Dense(outputs, W_std, b_std, parameterization=parameterization)
    return serial(*layers, Flatten(), head, name="vgg11")


def cntk(
    depth: int,
    outputs: int = 1,
    *,
    width: int = 64,
    pooled: bool = True,
    b_std: float | None = None,
) -> Model:
    """Convolutional network of the CNTK: `depth - 1` times [Conv 3x3 SAME, ReLU], a global average or Flatten, Dense.

    All layers are trained (the reference fixes the first and the last one in its pooled variant).

    Args:
        depth: Number of layers with weights, at least 2.
        outputs: Number of outputs of the linear head.
        width: Channels at finite width.
        pooled: Global average pooling, or the cheaper and less accurate Flatten.
        b_std: Standard deviation of all biases; None for none.

    Raises:
        ValueError: If `depth` is less than 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = jax.eval_shape(cntk(3).init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> params["0_Conv"]["W"].shape, len(params)
        ((3, 3, 3, 64), 3)

    Source: Arora et al. (2019), section 4.
    """
    depth = guards.count("cntk depth", depth, at_least=2, fix="one convolution and the linear head")
    body = [
        layer
        for _ in range(depth - 1)
        for layer in (Conv(width, (3, 3), (1, 1), "SAME", SQRT2, b_std), Relu())
    ]
    return serial(
        *body, GlobalAvgPool() if pooled else Flatten(), Dense(outputs, SQRT2, b_std), name="cntk"
    )


def myrtle(
    depth: int = 5, outputs: int = 10, *, width: int = 64, b_std: float | None = None
) -> Model:
    """Myrtle network: three stages of [Conv 3x3 SAME, ReLU], 2x2 average pools between them, a global one at the end.

    Args:
        depth: 5, 7 or 10 layers with weights.
        outputs: Number of outputs of the linear head.
        width: Channels at finite width.
        b_std: Standard deviation of all biases; None for none.

    Raises:
        ValueError: If `depth` is not 5, 7 or 10.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = jax.eval_shape(myrtle(5, width=64).init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> params["0_Conv"]["W"].shape, len(params)
        ((3, 3, 3, 64), 5)

    Source: Shankar et al. (2020), as convolutional networks.
    """
    if depth not in tuple(MYRTLE_CONVOLUTIONS):
        raise ValueError(f"myrtle got depth={depth}, expected 5, 7 or 10.")
    layers = []
    for stage, count in enumerate(MYRTLE_CONVOLUTIONS[depth]):
        layers += [] if stage == 0 else [AvgPool((2, 2), (2, 2))]
        layers += [
            layer
            for _ in range(count)
            for layer in (Conv(width, (3, 3), (1, 1), "SAME", SQRT2, b_std), Relu())
        ]
    return serial(*layers, GlobalAvgPool(), Dense(outputs, SQRT2, b_std), name="myrtle")


def wide_resnet(
    blocks: int = 2,
    outputs: int = 10,
    *,
    width: int = 4,
    W_std: float = 1.0,
    b_std: float | None = None,
) -> Model:
    """Wide residual network: three groups of pre-activation blocks with strides 1, 2, 2, without normalization.

    Args:
        blocks: Blocks in each group.
        outputs: Number of outputs of the linear head.
        width: Factor of the channels 16, 32, 64 at finite width.
        W_std: Standard deviation of all rescaled weights.
        b_std: Standard deviation of all biases; None for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = wide_resnet(1, width=1)
        >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> params["0_Conv"]["W"].shape
        (3, 3, 3, 16)

    Source: Zagoruyko and Komodakis (2016), with 3x3 convolutions as shortcuts where the shape
    changes.
    """
    blocks = guards.count("wide_resnet blocks", blocks)
    width = guards.count("wide_resnet width", width)
    convolution = partial(Conv, padding="SAME", W_std=W_std, b_std=b_std)
    layers = [convolution(16)]
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        layers.append(_block(convolution, width * channels, stride, (3, 3)))
        layers += [_block(convolution, width * channels, 1, None) for _ in range(blocks - 1)]
    return serial(*layers, GlobalAvgPool(), Dense(outputs, W_std, b_std), name="wide_resnet")


def resnet18(
    outputs: int = 10,
    *,
    width: float | int = 1.0,
    W_std: float = 1.0,
    b_std: float | None = None,
    parameterization: Parameterization = "ntk",
) -> Model:
    """ResNet-18 for 32x32 images: four groups of two pre-activation blocks, without normalization.

    Args:
        outputs: Number of outputs of the linear head.
        width: Factor of all channel numbers (64 to 512).
        W_std: Standard deviation of all rescaled weights.
        b_std: Standard deviation of all biases; None for none.
        parameterization: Of all layers; "standard" for weights as other training codes have them
            (`xavier_normal`).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = resnet18(10, width=1 / 16)
        >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> params["0_Conv"]["W"].shape
        (3, 3, 3, 4)

    Source: He et al. (2016), in the pre-activation form, which has an infinite-width limit.
    """
    width = guards.number("resnet18 width", width, above=0)
    channels = [max(1, round(width * features)) for features in (64, 128, 256, 512)]
    convolution = partial(
        Conv, padding="SAME", W_std=W_std, b_std=b_std, parameterization=parameterization
    )
    layers = [convolution(channels[0])]
    for group, features in enumerate(channels):
        if group == 0:
            layers.append(_block(convolution, features, 1, None))
        else:  # half the size and twice the channels, to which a 1 x 1 convolution takes the shortcut
            layers.append(_block(convolution, features, 2, (1, 1)))
        layers.append(_block(convolution, features, 1, None))
    head = Dense(outputs, W_std, b_std, parameterization=parameterization)
    return serial(*layers, GlobalAvgPool(), head, name="resnet18")


def irevnet(
    blocks: Sequence[int] = (2, 2, 2),
    outputs: int | None = 10,
    *,
    width: int = 32,
    channels: int = 3,
    injected: int = 0,
    stem: bool = False,
    gain: float | None = None,
    b_std: float | None = None,
) -> Model:
    """Invertible network: stages of [squeeze, couplings with branch `Conv 3x3, ReLU, Conv 3x3`], then a pooled head.

    All that it does before the head can be undone: `serial(zoo.irevnet(outputs=None), head)` holds
    the invertible part as its first member. The branches' gain 1/sqrt(depth) keeps variances and
    the error of the inverse bounded for any depth.

    Args:
        blocks: Couplings of each stage; every stage halves the sides of the images, and has four
            times the channels of the one before.
        outputs: Number of outputs of the linear head on pooled features; None for no head.
        width: Channels inside the branches.
        channels: Channels of the images.
        injected: Zero channels added to them, at no price for the inverse.
        stem: Whether the first layer is a 3x3 Conv to `channels + injected` channels instead:
            without an inverse, but with an infinite-width limit.
        gain: W_std of the branches' last layers; `1/sqrt(depth)` for depth couplings by default.
        b_std: Standard deviation of all biases; None for none.

    Raises:
        TypeError: If `blocks` is no sequence of numbers.
        ValueError: If a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lazynet.models.invertible import inverse
        >>> body = irevnet((1, 1), None, width=4)
        >>> x = jnp.ones((1, 8, 8, 3))
        >>> params = body.init(jax.random.key(0), x)
        >>> y = body.apply(params, x)
        >>> y.shape, bool(jnp.abs(inverse(body, params, y) - x).max() < 1e-5)
        ((1, 2, 2, 48), True)

    Source: Jacobsen, Smeulders and Oyallon (2018), without normalization and bottlenecks.
    """
    _check_widths("irevnet", blocks)
    blocks = [guards.count("irevnet blocks", count, at_least=0) for count in blocks]
    channels = guards.count("irevnet channels", channels)
    injected = guards.count("irevnet injected", injected, at_least=0)
    # A coupling multiplies variances by at most 1 + gain^2, and (1 + 1/depth)^depth < e.
    depth = max(1, sum(blocks))
    scale = guards.number("irevnet gain", depth**-0.5 if gain is None else gain, at_least=0)
    features = channels + injected
    layers = [inject(injected)] if injected else []
    layers = [Conv(features, (3, 3), (1, 1), "SAME", 1.0, b_std)] if stem else layers
    for stage, count in enumerate(blocks, 1):
        # Every squeeze makes 4 channels of 1, and branches see one of the two halves.
        half = features * 4**stage // 2
        branch = serial(
            Conv(width, (3, 3), (1, 1), "SAME", SQRT2, b_std),
            Relu(),
            Conv(half, (3, 3), (1, 1), "SAME", scale, b_std),
        )
        layers += [squeeze(), *[coupling(branch)] * count]
    if outputs is None:
        return serial(*layers, name="irevnet")
    # The part that has an inverse is one member, for `reversible` and `inverse` to take.
    body = serial(*layers, name="body")
    return serial(body, GlobalAvgPool(), Dense(outputs, 1.0, b_std), name="irevnet")


def hierarchical_cnn(
    widths: Sequence[int] = (8, 8, 8, 8),
    outputs: int = 10,
    *,
    strides: Sequence[int] | None = None,
    reach: int = 3,
    activation: Model | None = None,
    W_std: float = SQRT2,
    b_std: float | None = None,
) -> Model:
    """Hierarchical network: each layer convolves along the channels of the two before it, as periodic attributes.

    The head is linear in means over positions and over all attributes but the last, so that outputs
    are invariant, exactly, to cyclic shifts of the channels of every layer but that: shifting the
    filters of the first layer gives the same function.

    Args:
        widths: Channels of each layer, at least two; those that a later layer convolves along are at
            least its reach.
        outputs: Number of outputs of the linear head.
        strides: Stride of each layer; 1 by default.
        reach: Size of the filters along each attribute, an odd number.
        activation: Layer after each convolution; Relu by default.
        W_std: Standard deviation of all rescaled weights.
        b_std: Standard deviation of all biases; None for none.

    Raises:
        ValueError: If there are fewer than two widths, the numbers of widths and strides differ, or the
            reach is even.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = hierarchical_cnn((4, 4, 4), 2)
        >>> x = jax.random.normal(jax.random.key(1), (1, 6, 6, 3))
        >>> params = model.init(jax.random.key(0), x)
        >>> shifted = params | {"0_Conv": {"W": jnp.roll(params["0_Conv"]["W"], 1, axis=-1)}}
        >>> bool(jnp.allclose(model.apply(shifted, x), model.apply(params, x), rtol=1e-4, atol=1e-5))
        True

    Source: Jacobsen, Oyallon, Mallat and Smeulders (2017), with two attributes kept in each layer and
    without normalization.
    """
    activation = Relu() if activation is None else activation
    _check_widths("hierarchical_cnn", widths)
    strides = [1] * len(widths) if strides is None else list(strides)
    if len(widths) < 2 or len(strides) != len(widths):
        raise ValueError(
            f"hierarchical_cnn got {len(widths)} widths and {len(strides)} strides, expected at least two widths and a "
            "stride each: the first layer makes the attribute that the second one convolves along."
        )
    first, *rest = zip(widths, [(stride, stride) for stride in strides], strict=True)
    layers = [Conv(first[0], (3, 3), first[1], "SAME", W_std, b_std), activation]
    for width, stride in rest:
        convolution = AttributeConv(width, (3, 3), stride, "SAME", W_std, b_std, reach=reach)
        layers += [convolution, activation]
    head = [spatial.GlobalAvgPool(), Dense(outputs, W_std, b_std)]
    return serial(*layers, *head, name="hierarchical_cnn")


def transformer(
    width: int,
    outputs: int = 1,
    *,
    depth: int = 2,
    heads: int = 8,
    activation: Model | None = None,
    W_std: float = SQRT2,
    b_std: float | None = None,
    embedding: Embedding = Embedding(),  # noqa: B008
    vocabulary: int | None = None,
    positions: bool = False,
    causal: bool = False,
) -> Model:
    """Transformer on sequences `[n, positions, c]`, by blocks `x + Attention(LN x)` and `x + MLP(LN x)`.

    Attention is softmax attention whose scores are divided by the number of key features, and
    queries are keys: in the limit of many heads it weighs positions by the softmax of their
    covariances. The NTK kernel of all pairs of positions follows from the rules of its layers.

    Args:
        width: Number of features of each position, divided among the heads.
        outputs: Number of outputs of the linear head, on the mean over positions.
        depth: Number of pairs of blocks.
        heads: Number of heads, a divisor of the width.
        activation: Of the two-layer networks; Gelu by default.
        W_std: Standard deviation of all rescaled weights of Dense layers.
        b_std: Standard deviation of all biases; None for none.
        embedding: Positional embeddings of the first attention.
        vocabulary: Number of tokens, for inputs `[n, positions]` of whole numbers, each with a learned
            vector; this and the two options below are of finite width.
        positions: Whether each position gets a learned vector too.
        causal: Whether a position sees itself and those before it alone; the head is then one for
            each position, `[n, positions, outputs]`.

    Raises:
        ValueError: If the heads do not divide the width.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = transformer(16, 3, depth=1, heads=4)
        >>> x = jnp.ones((2, 5, 4))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (2, 3)

    Source: Vaswani et al. (2017), in the pre-normalization form; limit: Hron, Bahri, Sohl-Dickstein
    and Novak (2020).
    """
    width = guards.count("transformer width", width)
    depth = guards.count("transformer depth", depth, at_least=0)
    heads = guards.count("transformer heads", heads)
    if width % heads:
        raise ValueError(
            f"transformer got width={width} and heads={heads}, expected heads that divide the width: each head has as "
            "many features as the others."
        )
    dense = partial(spatial.Dense, W_std=W_std, b_std=b_std)
    layers = [dense(width) if vocabulary is None else Embed(vocabulary, width)]
    layers += [Positions()] if guards.flag("positions", positions) else []
    for block in range(depth):
        places = embedding if block == 0 else Embedding()
        attention = SelfAttention(
            width,
            width // heads,
            width // heads,
            heads,
            b_std=b_std,
            embedding=places,
            causal=causal,
        )
        layers.append(residual(LayerNorm(), attention))
        phi = Gelu() if activation is None else activation
        layers.append(residual(LayerNorm(), dense(width), phi, dense(width)))
    head = [LayerNorm(), dense(outputs)]
    if not causal:
        head = [LayerNorm(), spatial.GlobalAvgPool(), Dense(outputs, W_std, b_std)]
    return serial(*layers, *head, name="transformer")


def _check_widths(name, widths):
    if isinstance(widths, (str, bytes)) or not hasattr(widths, "__len__"):
        raise TypeError(
            f"{name} got widths={widths!r}, expected the width of each layer, for instance (64, 64)."
        )


def _block(
    convolution: Callable[..., Model], features: int, stride: int, shortcut: tuple[int, int] | None
) -> Model:
    """Pre-activation block; `shortcut` is the size of the convolution beside it, None for the identity."""
    strides = (stride, stride)
    body = [Relu(), convolution(features, strides=strides), Relu(), convolution(features)]
    return residual(
        *body, shortcut=None if shortcut is None else convolution(features, shortcut, strides)
    )
