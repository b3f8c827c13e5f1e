"""Activations of a network by depth, as the questions of this package take them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from lazynet import guards, trees
from lazynet.models.model import Model
from lazynet.typing import Array, ArrayLike, Params

__all__ = ["inside"]

Features = dict[str, Float[np.ndarray, "n _"]]


def inside(
    model: Model,
    params: Params,
    x: Num[ArrayLike, "n *inputs"],
    *,
    displacement: Params | None = None,
    average: bool = True,
) -> Features:
    """Activations of every layer with weights, `{path: a_l(w)}`, spatially averaged, in the order of depth.

    With a displacement u they are those of the tangent model, `a_l(w0) + D a_l(w0) u`: the
    activations that a linearized network is made of do not move, their tangents do.

    Args:
        model: A model with a trace, of lazynet's layers or foreign.
        params: w; w0 for the tangent model.
        x: Inputs.
        displacement: u, for the tangent model.
        average: Whether images of activations become their mean over positions; False for all
            positions side by side.

    Returns:
        `[n, d]` by path, in float64 on the host; the input comes first, as `"input"`. Layers that
        record their input twice, as activations do, and windows of max-pooling are left out.

    Raises:
        ValueError: If the trace has no layers with weights.
        TypeError: If `model` is no Model, or x no array.

    Example:
        >>> import lazynet as ln
        >>> model = ln.serial(ln.Conv(4), ln.Relu(), ln.GlobalAvgPool(), ln.Dense(2))
        >>> x = jnp.ones((3, 8, 8, 1))
        >>> {path: a.shape for path, a in inside(model, model.init(jax.random.key(0), x), x).items()}
        {'input': (3, 1), '0_Conv': (3, 4), '3_Dense': (3, 2)}
    """
    if not isinstance(model, Model):
        raise TypeError(f"inside got {model!r:.60}, expected a Model: activations need its layers.")
    guards.array("x", x)
    guards.same_length(x=x)
    average = guards.flag("average", average)
    if displacement is not None:
        trees.check_same_structure(displacement, params, name="displacement", expected="params")

    def activations(w):
        layers = _layers(model, w, x)
        return {"input": jnp.asarray(guards.real("x", x))} | layers

    if displacement is None:
        found = activations(params)
    else:
        start, change = jax.jvp(activations, (params,), (displacement,))
        found = jax.tree.map(jnp.add, start, change)
    # dictionaries that a transformation returns are sorted by path, not by depth
    order = ["input", *_layers(model, params, x)] if displacement is not None else found
    features = {path: rows(found[path], average=average) for path in order}
    if len(features) == 1:
        raise ValueError(
            f"the trace of {model.name} has no layers with weights, expected one at least: give the model a trace."
        )
    return features


def rows(values: Array, *, average: bool = True) -> Float[np.ndarray, "n d"]:
    """Activations as one vector an example, in float64 on the host.

    Example:
        >>> rows(jnp.ones((2, 4, 4, 3))).shape, rows(jnp.ones((2, 4, 4, 3)), average=False).shape
        ((2, 3), (2, 48))
    """
    array = np.asarray(values, np.float64)
    if average and array.ndim > 2:
        return array.mean(axis=tuple(range(1, array.ndim - 1)))
    return array.reshape(len(array), -1)


def _layers(model: Model, params: Params, x: Any) -> dict[str, Array]:
    """What layers with weights make of their inputs."""
    _, trace = model.trace(params, x)
    return {
        path: z
        for path, (a, z) in trace.items()
        # An activation records its input twice, as the same array.
        if a is not z and "MaxPool" not in path.rsplit("/", 1)[-1]
    }


def checked(name: str, features: Any, *, at_least: int = 1) -> dict[str, np.ndarray]:
    """Features by depth in float64, after checking that all are `[n, d]` with one n.

    Example:
        >>> list(checked("features", {"a": np.ones((3, 2))}))
        ['a']
    """
    if not isinstance(features, dict) or not features:
        raise ValueError(
            f"{name} got {features!r:.60}, expected a dictionary of activations by path, not empty: pass inside(model, "
            "params, x)."
        )
    arrays = {}
    for path, values in features.items():
        array = np.asarray(guards.numbers(f"{name}[{path!r}]", values), np.float64)
        if array.ndim != 2 or not array.size:
            raise ValueError(
                f"{name}[{path!r}] has shape {array.shape}, expected [n, d]: average over positions, or reshape."
            )
        guards.finite(f"{name}[{path!r}]", array)
        arrays[path] = array
    lengths = {path: len(array) for path, array in arrays.items()}
    if len(set(lengths.values())) != 1 or min(lengths.values()) < at_least:
        raise ValueError(
            f"{name} has {lengths} examples, expected the same number in all layers, at least {at_least}: take all "
            "activations of one batch."
        )
    return arrays
