"""Which gates of the network still are where they were at initialization."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Float, Num

from lazynet import guards, trees
from lazynet.lazy import GATES, layer_name
from lazynet.models.model import Model
from lazynet.programs import PerFunction
from lazynet.typing import Array, ArrayLike, Params, Scalar

__all__ = ["Stability", "activation_stability"]


class Stability(NamedTuple):
    """Fractions of gates that are unchanged since initialization.

    Attributes:
        total: Over all gates and all max-pooling outputs.
        relu: Over the gates of ReLU-like layers; None if there are none.
        max_pool: Over the outputs of max-pooling layers; None if there are none.
        layers: By the layer's path in `Model.trace`.

    Example:
        >>> Stability(jnp.array(1.0), jnp.array(1.0), None, {"1_Relu": jnp.array(1.0)}).max_pool is None
        True
    """

    total: Float[Scalar, ""]
    relu: Float[Scalar, ""] | None
    max_pool: Float[Scalar, ""] | None
    layers: dict[str, Float[Scalar, ""]]


def activation_stability(
    model: Model, params: Params, params0: Params, x: Num[ArrayLike, "n *inputs"]
) -> Stability:
    """Stability of activations `mean 1[(z(w) > 0) = (z(w0) > 0)]` over examples and units, z the pre-activations.

    For max pooling it is the fraction of outputs that the entry which was the maximum at w0 still
    gives. A network with stable gates is linear in each layer's weights: 1 means lazy training.

    Args:
        model: Network with ReLU-like layers (Relu, LeakyRelu, Abs, ABRelu) or MaxPool.
        params: w.
        params0: w0.
        x: Inputs. Of gates that see NaN the stability is NaN.

    Raises:
        TypeError: If `model` is no Model, or x no array.
        ValueError: If the network has no such layer, if the weights differ in structure or shapes,
            or if there is no example.

    Example:
        >>> import lazynet as ln
        >>> model = ln.serial(ln.MaxPool((2, 2)), ln.Flatten())
        >>> activation_stability(model, {}, {}, jnp.ones((1, 4, 4, 1))).layers
        {'0_MaxPool': Array(1., dtype=float...)}

    Source: Chizat, Oyallon and Bach (2019), appendix C, and its reference code, for ReLU and max
    pooling.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"activation_stability got {model!r}, expected a Model: gates need its layers."
        )
    guards.same_length(x=guards.array("x", x))
    trees.check_same_structure(params, params0, name="params", expected="params0")
    stable = _unchanged(Partial(model.trace), params, params0, x, model.name)
    if not stable:
        raise ValueError(
            f"{model.name} has no layer with gates, expected one of {', '.join(GATES)} or MaxPool."
        )
    pools = {path: unchanged for path, unchanged in stable.items() if layer_name(path) == "MaxPool"}
    gates = {path: unchanged for path, unchanged in stable.items() if path not in pools}
    layers = {path: mean for path, (mean, _) in stable.items()}
    return Stability(
        total=_fraction(stable),
        relu=_fraction(gates) if gates else None,
        max_pool=_fraction(pools) if pools else None,
        layers=layers,
    )


@functools.partial(PerFunction, static_argnums=(4,))
def _unchanged(
    trace: Partial, params: Params, params0: Params, x: Array, name: str
) -> dict[str, tuple[Array, Array]]:
    """The fraction of unchanged gates and the number of gates, for each layer that has gates."""
    _, inside = trace(params, x)
    _, inside0 = trace(params0, x)
    stable = {}
    for path, (_, z) in inside.items():
        # A single layer has the empty path in its own trace.
        layer = path or name
        if layer_name(layer) in GATES:
            z0 = inside0[path][1]
            same = (z > 0) == (z0 > 0)
        elif layer_name(layer) == "MaxPool":
            z0 = inside0[path][1]
            # Windows lie along axis 3. By value and not by place: where entries are equal, as zeros
            # behind a ReLU, the old winner still gives the output.
            winners = jnp.argmax(z0, axis=3, keepdims=True)
            same = jnp.take_along_axis(z, winners, axis=3) == jnp.max(z, axis=3, keepdims=True)
        else:
            continue
        # NaN > 0 is false on both sides, a gate that seems not to have changed.
        unknown = jnp.isnan(z).any() | jnp.isnan(z0).any()
        # counts of gates overflow float16, and bfloat16 has three digits of them
        dtype = z.dtype if jnp.finfo(z.dtype).bits >= 32 else jnp.float32
        mean = jnp.where(unknown, jnp.nan, jnp.mean(same, dtype=dtype))
        stable[layer] = mean, jnp.asarray(same.size, dtype)
    return stable


def _fraction(stable: dict[str, tuple[Array, Array]]) -> Array:
    """Mean over layers, weighted by their numbers of gates."""
    means, sizes = (jnp.stack(column) for column in zip(*stable.values(), strict=True))
    return jnp.vdot(means, sizes, precision="highest") / jnp.sum(sizes)
