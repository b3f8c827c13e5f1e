"""The two networks, their training, and the questions that are asked of them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import lazynet as ln
from experiments.invertible_network import Config
from experiments.shared.data import standardized_images
from experiments.shared.sizes import largest_width, parameters
from experiments.shared.training import batched_outputs, trained_from
from lazynet import insights, zoo
from lazynet.training.checkpoints import curve_arrays

__all__ = ["answers", "invertible", "residual"]

CLASSES = 10
RATE = 0.1
"""Of the gradient descent to images, in standardized pixels."""

PLACES = 7
"""Points of a line."""

CHUNK = 256
"""Directions of a Jacobian at a time."""


def invertible(config: Config, channels: int, depth: int | None = None) -> ln.Model:
    """The couplings before the head; with a depth, as many of them from the input on."""
    blocks = []
    left = sum(config.blocks) if depth is None else depth
    for count in config.blocks:
        blocks.append(min(count, left))
        left -= blocks[-1]
        if not left:
            break
    # Of the whole network at every depth: the blocks that are asked for have its weights.
    gain = sum(config.blocks) ** -0.5
    return zoo.irevnet(blocks, None, width=config.width, channels=channels, gain=gain)


def residual(config: Config, features: int, depth: int | None = None) -> ln.Model:
    """The same branches beside identities after convolutions of stride 2; with a depth, so many blocks from the input.

    The first stage has `features` channels, the next ones twice as many each.
    """
    left = sum(config.blocks) if depth is None else depth
    # As in `invertible`: the branches are the same ones.
    gain = sum(config.blocks) ** -0.5
    layers = []
    for stage, count in enumerate(config.blocks):
        channels = features * 2**stage
        layers.append(ln.Conv(channels, (3, 3), (2, 2), "SAME"))
        block = ln.residual(
            ln.Conv(channels, padding="SAME", W_std=2**0.5),
            ln.Relu(),
            ln.Conv(channels, padding="SAME", W_std=gain),
        )
        layers += [block] * min(count, left)
        left -= min(count, left)
        # With depth 0 the first convolution stands alone.
        if not left:
            break
    return ln.serial(*layers, name="residual")


def answers(config: Config, network: str, alpha: float | None, checkpoint: Path) -> dict[str, Any]:
    """Trains one network at one scale, None for not at all, and asks it all questions."""
    train, test = standardized_images(config.data, config.precision)
    body = _bodies(config, network, train.x)
    model = ln.serial(body(None), ln.GlobalAvgPool(), ln.Dense(CLASSES))
    params0 = model.init(jax.random.key(config.seed), train.x)
    arrays: dict[str, Any] = {"parameters": parameters(model, train.x)}
    weights = params0
    tangent = None
    if alpha is not None:
        saved = ln.log_spaced(config.steps, 12)
        function, curve = trained_from(
            config, model, params0, alpha, (train, test), checkpoint, save_at=saved
        )
        classes = batched_outputs(function, curve.params, test.x).argmax(axis=1)
        arrays |= curve_arrays(curve)
        arrays["test_accuracy"] = np.mean(classes == np.asarray(test.y).argmax(axis=1))
        weights = function.weights(curve.params)
        tangent = _first(curve.params) if alpha == math.inf else None
    few = test.x[: config.examples]
    arrays["images"] = few
    arrays["range"] = np.stack([np.min(train.x, (0, 1, 2)), np.max(train.x, (0, 1, 2))])
    if network == "invertible":
        arrays |= _inverses(config, body, _first(weights), tangent, few)
        chosen = test.x[: config.jacobians]
        arrays["singular_values"] = _singular_values(body(None), _first(weights), tangent, chosen)
    # The activations of the linearized network are those at initialization, which has been asked.
    if tangent is not None:
        return arrays
    if network == "residual":
        return arrays | _descents(config, body, _first(weights), few)
    return arrays | _lines(model, body(None), weights, few)


def _bodies(config, network, x):
    """What comes before the head, as a function of the depth; of residual networks the largest that is no larger."""
    channels = x.shape[-1]
    if network == "invertible":
        return lambda depth: invertible(config, channels, depth)
    model = invertible(config, channels)
    features = largest_width(lambda features: residual(config, features), model, x)
    return lambda depth: residual(config, features, depth)


def _first(params):
    """Weights of the first member: those before the head."""
    return params[min(params)]


def _inverses(config, body, weights, tangent, x):
    """Images that come back from every depth by the inverse, and their relative errors.

    Features of the linearized network go through the inverse at w0, the only one that there is.
    """
    found = []
    for depth in range(sum(config.blocks) + 1):
        # Shallower bodies read the first of the same weights.
        model = body(depth)
        found.append(np.asarray(_round_trip(model, weights, tangent, x)))
    return _errors(found, x) | {"depth": np.arange(len(found))}


def _descents(config, body, weights, x):
    """Images with the features of each stage by gradient descent from zero, and their relative errors."""
    # After the first convolution, and after the blocks of each stage.
    depths = [0, *np.cumsum(config.blocks)]
    found = []
    for depth in depths:
        features = Partial(body(int(depth)).apply, weights)
        start = jnp.zeros_like(x)
        settings = {"steps": config.descent, "learning_rate": RATE}
        found.append(insights.invert(features, features(x), start, **settings).x)
    return _errors(found, x) | {"depth": np.array(depths)}


def _errors(found, x):
    images = np.asarray(x, np.float64)
    distances = [np.linalg.norm(images - back) for back in found]
    return {
        "reconstruction": np.array(distances) / np.linalg.norm(images),
        # Four images are drawn; errors are those of all.
        "reconstructed": np.stack(found)[:, :4],
    }


def _features(model, weights, tangent, x):
    """`B(w, x)`, or `B(w0, x) + DB(w0, x) u`."""
    if tangent is None:
        return model.apply(weights, x)
    y, change = jax.jvp(lambda w: model.apply(w, x), (weights,), (tangent,))
    return y + change


@partial(jax.jit, static_argnums=0)
def _round_trip(model, weights, tangent, x):
    return ln.inverse(model, weights, _features(model, weights, tangent, x))


_outputs = jax.jit(lambda model, weights, x: model.apply(weights, x), static_argnums=0)
_inverse = jax.jit(ln.inverse, static_argnums=0)


def _lines(model, body, weights, x):
    """Images along straight lines between the features of pairs, and how far outputs are from affine ones there.

    The control goes along the straight lines between the images.
    """
    inside = _first(weights)
    y = _outputs(body, inside, x)
    images = np.stack([_inverse(body, inside, between) for between in _between(y)])
    straight = np.stack(_between(x))

    def bent(line):
        return _from_affine(np.stack([_outputs(model, weights, point) for point in line]))

    middle = PLACES // 2
    size = np.linalg.norm(images[0] - images[-1])
    return {
        "line": np.swapaxes(images, 0, 1),
        # The claim by its worst pair, the control by the mean of all.
        "line_features": bent(images).max(),
        "line_pixels": bent(straight).mean(),
        "bend": np.linalg.norm(images[middle] - straight[middle]) / size,
    }


def _between(x):
    """`(1 - t) x_i + t x_{i+1}` of neighbors in pairs, one array a place t."""
    pairs = len(x) // 2
    one = x[: 2 * pairs : 2]
    other = x[1 : 2 * pairs : 2]
    return [one + t * (other - one) for t in np.linspace(0, 1, PLACES).astype(x.dtype)]


def _from_affine(outputs):
    """Largest distance of outputs `[t, pairs, k]` from affine ones, relative to that of their ends, for each pair."""
    t = np.linspace(0, 1, PLACES)[:, None, None]
    affine = (1 - t) * outputs[0] + t * outputs[-1]
    size = np.linalg.norm(outputs[-1] - outputs[0], axis=-1)
    return np.linalg.norm(outputs - affine, axis=-1).max(axis=0) / size


def _singular_values(body, weights, tangent, images):
    """Singular values `[images, d]` of the derivative of the features in the image, in float64."""
    shape = images.shape[1:]
    size = math.prod(shape)
    basis = np.eye(size, dtype=images.dtype).reshape(size, *shape)
    found = []
    for image in images:
        chunks = [basis[i : i + CHUNK] for i in range(0, size, CHUNK)]
        columns = [_pushed(body, weights, tangent, image, chunk) for chunk in chunks]
        # One direction a row: the transpose of the Jacobian, which has the same singular values.
        jacobian = np.concatenate(columns).reshape(size, -1).astype(np.float64)
        found.append(np.linalg.svd(jacobian, compute_uv=False))
    return np.stack(found)


@partial(jax.jit, static_argnums=0)
def _pushed(body, weights, tangent, image, directions):
    """What the derivative of the features in one image makes of directions."""
    # The same image beside every direction: a batch pushes them all forward at once.
    images = jnp.broadcast_to(image, directions.shape)
    return jax.jvp(lambda x: _features(body, weights, tangent, x), (images,), (directions,))[1]
