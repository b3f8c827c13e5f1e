"""neural-tangents' pools, and Flatten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from lazynet.covariance.general.families import window_mask
from lazynet.covariance.layer_rules import flatten_rule
from lazynet.covariance.windows import Window
from lazynet.dropin.masks import Bool, Diagonal, parts, whole
from lazynet.dropin.networks import Layer, Twin, constructor
from lazynet.dropin.primitives import Layout, placed, primitive
from lazynet.dropin.windows import MIXES, Padding
from lazynet.models import layers, spatial

__all__ = ["AvgPool", "Flatten", "GlobalAvgPool", "GlobalSumPool", "SumPool"]

Shape = Sequence[int]


@constructor
def AvgPool(
    window_shape: Shape,
    strides: Shape | None = None,
    padding: Any = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Mean over windows; padded entries count as zeros unless `normalize_edges`."""
    padding = Padding(padding).value
    core = spatial.AvgPool(window_shape, strides, padding, normalize_edges=normalize_edges)
    uneven = normalize_edges and padding == "SAME"
    return _pool(core, window_shape, strides, padding, (batch_axis, channel_axis), uneven)


@constructor
def SumPool(
    window_shape: Shape,
    strides: Shape | None = None,
    padding: Any = "VALID",
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Sum over windows."""
    padding = Padding(padding).value
    core = spatial.SumPool(window_shape, strides, padding)
    return _pool(core, window_shape, strides, padding, (batch_axis, channel_axis), False)


@constructor
def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """Mean over positions that are there."""

    def given_mask(params, x, mask):
        return spatial.mean_of_present(x, mask)

    return _global_pool(spatial.GlobalAvgPool(), (batch_axis, channel_axis), given_mask)


@constructor
def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """Sum over positions."""
    return _global_pool(spatial.GlobalSumPool(), (batch_axis, channel_axis), None)


@constructor
def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Layer:
    """All positions and channels as one vector."""
    if batch_axis_out not in (-2, -1, 0, 1):
        raise ValueError(f"stax.Flatten got batch_axis_out={batch_axis_out}, expected 0 or 1.")
    first = batch_axis_out in (0, -2)

    def sized(shape):
        axis = batch_axis % len(shape)
        size = math.prod(n for i, n in enumerate(shape) if i != axis)
        return (shape[axis], size) if first else (size, shape[axis])

    def flat(x):
        end = 0 if first else x.ndim - 1
        return jnp.moveaxis(x, batch_axis, end).reshape(sized(x.shape))

    def apply(params, inputs, told):
        values, mask = parts(inputs)
        if mask is not None:
            mask = flat(jnp.broadcast_to(mask, values.shape))
        return whole(flat(values), mask)

    def rule(k):
        batch = k.context["axes"][0]
        if batch != batch_axis % (len(k.shape) + 2):
            raise ValueError(
                f"Flatten got examples on axis {batch}, expected {batch_axis}: give it the batch_axis of its inputs."
            )
        return placed(flatten_rule(k), (0, 1) if first else (1, 0))  # pyright: ignore[reportArgumentType]

    twin = None
    if batch_axis == 0 and first:
        twin = Twin(layers.Flatten(), lambda params: {}, flattens=True)
    needs = Diagonal(output=Bool.YES)
    # Any other axis stands for channels: all of them go into the vector.
    axes = (batch_axis, -1 if batch_axis != -1 else 0)

    def init(key, shape):
        return sized(shape), ()

    return Layer("Flatten", init, apply, rule, axes, needs, twin=twin)


def _pool(core, window_shape, strides, padding, axes, uneven):
    size = tuple(window_shape)
    steps = (1,) * len(size) if strides is None else tuple(strides)
    window = Window(size, steps, padding)  # pyright: ignore[reportArgumentType]

    def missing(mask):
        _check_same_channels(core.name, mask)
        return window_mask(mask[..., 0], window)[..., None]

    # Means over fewer entries at the edges are no windows of one weight, which planes take.
    planar = (4,) if len(size) == 2 and not uneven else ()
    return primitive(core, Layout(axes, axes), missing=missing, spatial=MIXES, planar=planar)


def _global_pool(core, axes, given_mask):
    def missing(mask):
        _check_same_channels(core.name, mask)
        return jnp.all(mask, axis=spatial.inner_axes(mask))

    batch, channel = axes
    # vectors keep the order of the two axes, of which either may be counted from the end
    swapped = _rank(batch) > _rank(channel)
    layout = Layout(axes, (1, 0) if swapped else (0, -1))
    return primitive(
        core,
        layout,
        missing=missing,
        given_mask=given_mask,
        spatial=Diagonal(input=Bool.NO, output=Bool.YES),
        planar=(4,),
        flattens=True,
        vectors=False,
    )


def _rank(axis):
    return axis if axis >= 0 else 1000 + axis


def _check_same_channels(name, mask):
    if mask.shape[-1] != 1:
        raise NotImplementedError(
            f"{name} got masks that differ between channels, expected positions to be missing with all of their "
            "channels: mask whole positions, or put a Dense or Conv before it."
        )
