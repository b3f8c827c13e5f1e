"""Networks as chains of layers: their operator norms and Lipschitz constants."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import guards
from lazynet.linalg import lanczos, ritz_values
from lazynet.models.model import Model, child_path
from lazynet.programs import PerFunction
from lazynet.recipes import call_of
from lazynet.typing import Params

STEPS = 60
"""Products of a Lanczos iteration, enough for the largest singular value of a convolution to some digits."""

WEIGHTS = ("Dense", "Conv")
LINEAR = ("AvgPool", "SumPool", "GlobalAvgPool", "GlobalSumPool", "squeeze", "inject")
ISOMETRIES = ("Flatten", "Identity")
SLOPES = {
    "Relu": 1.0,
    "Abs": 1.0,
    "Tanh": 1.0,
    "Softplus": 1.0,
    "Gelu": 1.1289041,
    "SiLU": 1.0998394,
    "Swish": 1.0998394,
}
"""Largest derivatives; those of Gelu and SiLU are rounded up."""


class Link(NamedTuple):
    """A layer of a chain, its weights and the shape of one of its inputs.

    Attributes:
        path: As in `Model.trace`.
        name: Of the layer.
        layer: The model.
        params: Its weights.
        shape: Of its input, without the batch.
        dtype: Of its input.
        call: Arguments of the layer's constructor.
    """

    path: str
    name: str
    layer: Model
    params: Params
    shape: tuple[int, ...]
    dtype: Any
    call: Mapping[str, Any]


def chain(model: Model, params: Params, x: Any, path: str = "") -> Iterator[Link]:
    """The layers of a network one after the other; sums of branches and couplings are one link.

    Args:
        model: Any model.
        params: Its weights.
        x: Inputs, or their `jax.ShapeDtypeStruct`; only shape and dtype are used.
        path: What comes before the paths of its layers.
    """
    name, call = call_of(model.apply)
    if name == "serial":
        members = call.get("layers", ())
    elif name == "repeat":
        members = (call["block"],) * call["n"]
    # They change derivatives and memory, but no values, and add nothing to paths.
    elif name in ("freeze", "reversible", "remat"):
        yield from chain(call["model"], params, x, path)
        return
    else:
        yield Link(path, name or model.name, model, params, tuple(x.shape[1:]), x.dtype, call)
        return
    for i, member in enumerate(members):
        own = params.get(child_path(i, member), {})
        below = "/".join(filter(None, (path, child_path(i, member))))
        yield from chain(member, own, x, below)
        x = jax.eval_shape(member.apply, own, x)


def lipschitz(link: Link) -> float:
    """Lipschitz constant of a link in the Euclidean norm, or a bound of it.

    Raises:
        ValueError: If none is known for the layer.
    """
    if link.name in WEIGHTS or link.name in LINEAR:
        return operator_norm(link)
    if link.name in ISOMETRIES:
        return 1.0
    if link.name == "MaxPool":
        return _overlap(link)
    slope = _slope(link)
    if slope is None:
        raise ValueError(
            f"layer {link.path} ({link.name}) has no known Lipschitz constant, expected Dense, Conv, pools, couplings, "
            "sums of branches, and activations with a bounded derivative: replace it."
        )
    return slope


def operator_norm(link: Link) -> float:
    """Largest singular value of a layer that is linear but for its biases: an SVD for Dense, else Lanczos on `J'J`."""
    if link.name == "Dense":
        return float(np.linalg.norm(matrix(link), 2))
    size = math.prod(link.shape)
    start = np.random.default_rng(0).normal(size=size)
    layer = jax.tree_util.Partial(link.layer.apply, link.params)
    example = jax.ShapeDtypeStruct((1, *link.shape), link.dtype)

    # Multiplied and not formed: the matrix of a convolution has the squared size of an image.
    def product(v):
        return np.asarray(_gram(layer, jnp.asarray(v.reshape(example.shape), example.dtype)))

    values, _ = ritz_values(
        *lanczos(lambda v: product(v).astype(np.float64).ravel(), start, min(STEPS, size))
    )
    return math.sqrt(max(values[-1], 0.0))


@PerFunction
def _gram(layer, v):
    """`J' J v` of a layer that is linear but for its biases."""
    outputs, back = jax.vjp(layer, jnp.zeros_like(v))
    # Of an affine layer, what it does to v beyond what it does to zero.
    image = layer(v) - outputs
    return back(image)[0]


def matrix(link: Link) -> np.ndarray:
    """The matrix `[outputs, inputs]` of a Dense layer, in float64."""
    return multiplier(link) * np.asarray(link.params["W"], np.float64).T


def multiplier(link: Link) -> float:
    """What the weights of a Dense or Conv layer are multiplied by."""
    if link.call["parameterization"] == "standard":
        return 1 / math.sqrt(link.call["s"][0])
    fan_in = math.prod(np.shape(link.params["W"])[:-1])
    return float(link.call["W_std"]) / math.sqrt(fan_in)


def row_norms(link: Link, weights: Any, power: int) -> np.ndarray:
    """For each output of a layer with these weights `(sum over inputs of |entry|^power)`, borders of images included.

    They are the outputs of the layer with powers of its entries as weights, on an input of ones.
    """
    entries = (multiplier(link) * np.abs(np.asarray(weights, np.float64))) ** power
    # A Dense layer on positions has rows for each of them.
    if link.name == "Dense" and len(link.shape) == 1:
        return entries.sum(axis=0)
    ones = jnp.ones((1, *link.shape), link.dtype)
    # The layer multiplies its weights again.
    scaled = jnp.asarray(entries / multiplier(link), link.dtype)
    params = {**link.params, "W": scaled}
    if "b" in params:
        params["b"] = jnp.zeros_like(params["b"])
    outputs = link.layer.apply(params, ones)
    return np.asarray(outputs, np.float64)[0]


def _overlap(link):
    """An entry is in so many windows at most, each of which is as far off as its largest entry."""
    window = link.call["window"]
    strides = link.call["strides"] or (1, 1)
    times = [math.ceil(size / step) for size, step in zip(window, strides, strict=True)]
    return math.sqrt(math.prod(times))


def _slope(link):
    """The largest derivative of an activation, None where it is not known."""
    call = link.call
    if link.name in SLOPES:
        return SLOPES[link.name]
    slopes = {
        "LeakyRelu": lambda: max(1.0, abs(call["negative_slope"])),
        "ABRelu": lambda: max(abs(call["a"]), abs(call["b"])),
        "Erf": lambda: abs(call["a"] * call["b"]) * 2 / math.sqrt(math.pi),
        "Sin": lambda: abs(call["a"] * call["b"]),
        "Cos": lambda: abs(call["a"] * call["b"]),
        "Elu": lambda: max(1.0, abs(call["alpha"])),
    }
    return float(slopes[link.name]()) if link.name in slopes else None


def checked_chain(name: str, model: Any, params: Params, x: Any) -> list[Link]:
    """The layers of a network, after checking the arguments of a public function."""
    if not isinstance(model, Model):
        raise TypeError(
            f"{name} got {model!r:.60}, expected a Model: norms are those of its layers."
        )
    guards.array("x", x)
    guards.same_length(x=x)
    guards.weights("params", params)
    guards.finite("params", params, "train to finite weights")
    return list(chain(model, params, x))


def product(values: Any) -> float:
    """The product of numbers as a float."""
    return functools.reduce(lambda a, b: a * b, values, 1.0)
