"""neural-tangents' linear layers with weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lazynet.covariance.general.families import Transposed, window_mask
from lazynet.covariance.windows import Window
from lazynet.dropin.kernels import inside, outside
from lazynet.dropin.masks import Bool, Diagonal, of_channels
from lazynet.dropin.networks import Layer, constructor
from lazynet.dropin.primitives import Layout, primitive
from lazynet.dropin.windows import Padding
from lazynet.models import spatial

__all__ = ["Conv", "ConvLocal", "ConvTranspose", "Dense"]

Shape = Sequence[int]


@constructor
def Dense(
    out_dim: int,
    W_std: float = 1.0,
    b_std: float | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """Fully connected layer over channels, at every position."""
    core = spatial.Dense(out_dim, W_std, b_std, parameterization=parameterization.lower(), s=s)  # pyright: ignore[reportArgumentType]

    def outward(params, ndim):
        b = params.get("b")
        shape = [1] * ndim
        shape[channel_axis] = -1
        return params["W"], None if b is None else b.reshape(shape)

    axes = (batch_axis, channel_axis)
    layout = Layout(axes, axes, inward=_with_bias, outward=outward)
    return primitive(core, layout, missing=_no_channel)


@constructor
def Conv(
    out_chan: int,
    filter_shape: Shape,
    strides: Shape | None = None,
    padding: Any = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """Convolution over any number of axes."""
    return _conv(
        spatial.Conv,
        Window,
        (out_chan, filter_shape, strides, padding, W_std, b_std),
        dimension_numbers,
        parameterization,
        s,
    )


@constructor
def ConvTranspose(
    out_chan: int,
    filter_shape: Shape,
    strides: Shape | None = None,
    padding: Any = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """Transposed convolution over any number of axes."""
    return _conv(
        spatial.ConvTranspose,
        Transposed,
        (out_chan, filter_shape, strides, padding, W_std, b_std),
        dimension_numbers,
        parameterization,
        s,
    )


@constructor
def ConvLocal(
    out_chan: int,
    filter_shape: Shape,
    strides: Shape | None = None,
    padding: Any = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: str = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Layer:
    """Convolution with filters and biases of its own at each position."""
    return _conv(
        spatial.ConvLocal,
        Window,
        (out_chan, filter_shape, strides, padding, W_std, b_std),
        dimension_numbers,
        parameterization,
        s,
        # Outputs at different positions are independent: equal ones may do for what follows.
        needs=Diagonal(output=Bool.MAYBE),
    )


def _conv(build, window_of, arguments, dimension_numbers, parameterization, s, needs=Diagonal()):  # noqa: B008
    features, filter_shape, strides, padding, W_std, b_std = arguments
    size = tuple(filter_shape)
    steps = (1,) * len(size) if strides is None else tuple(strides)
    if len(steps) != len(size):
        raise ValueError(
            f"stax.{build.__name__} got strides={steps}, expected {len(size)}: one for each axis of the filter {size}."
        )
    padding = Padding(padding).value
    numbers = _Numbers.of(dimension_numbers, len(size))
    # Given in the order of the letters of the filter, needed in that of the inputs.
    size = tuple(size[i] for i in numbers.sizes)
    steps = tuple(steps[i] for i in numbers.sizes)
    standard: Any = parameterization.lower()
    window = window_of(size, steps, padding)
    # Without an axis of positions it is a dense layer.
    if size:
        core = build(features, size, steps, padding, W_std, b_std, parameterization=standard, s=s)
    else:
        core = spatial.Dense(features, W_std, b_std, parameterization=standard, s=s)

    def missing(mask):
        gone = jnp.all(mask, axis=-1)
        return (window_mask(gone, window) if size else gone)[..., None]

    # Planes are for images whose positions share their weights.
    planar = (4,) if build is spatial.Conv and len(size) == 2 else ()
    layout = numbers.layout(local=build is spatial.ConvLocal)
    return primitive(core, layout, missing=missing, spatial=needs, planar=planar)


class _Numbers(NamedTuple):
    """Dimension numbers, letters of the axes of inputs, filters and outputs."""

    inputs: str
    filters: str
    outputs: str

    @classmethod
    def of(cls, given: Any, rank: int) -> _Numbers:
        """Those given, or batch first and channels last."""
        letters = "HWDXYZUV"[:rank]
        return cls(*(given or (f"N{letters}C", f"{letters}IO", f"N{letters}C")))

    @property
    def places(self) -> list[str]:
        """Letters of the positions of inputs, in their order."""
        return [letter for letter in self.inputs if letter not in "NC"]

    @property
    def sizes(self) -> list[int]:
        """Of each axis of positions, where its size stands among those of the filter."""
        filters = [letter for letter in self.filters if letter not in "IO"]
        return [filters.index(letter) for letter in self.places]

    def layout(self, *, local: bool) -> Layout:
        """The layout of a convolution, with biases at each position if `local`."""
        after = [letter for letter in self.outputs if letter not in "NC"]
        order = [self.places.index(letter) for letter in after]
        taken = [*self.places, "I", "O"]
        batch, channel = (self.outputs.index(letter) for letter in "NC")

        def outward(params, ndim):
            b = params.get("b")
            if b is not None and local:
                moved = jnp.transpose(b[None], (0, *(1 + i for i in order), b.ndim))
                b = outside(moved, batch, channel)
            elif b is not None:
                b = b.reshape([-1 if axis == channel else 1 for axis in range(ndim)])
            return jnp.transpose(params["W"], [taken.index(c) for c in self.filters]), b

        def inward(params):
            W, b = params
            W = jnp.transpose(W, [self.filters.index(letter) for letter in taken])
            if b is None or not (local and jnp.ndim(b)):
                return _with_bias((W, b))
            flat = inside(b, batch, channel)[0]
            back = [after.index(letter) for letter in self.places]
            return {"W": W, "b": jnp.transpose(flat, (*back, flat.ndim - 1))}

        return Layout(
            (_axis(self.inputs, "N"), _axis(self.inputs, "C")),
            (_axis(self.outputs, "N"), _axis(self.outputs, "C")),
            None if order == sorted(order) else order,
            inward,
            outward,
        )


def _axis(spec, letter):
    """The axis of a letter, the last one as -1."""
    axis = spec.index(letter)
    # So that the usual layout equals LAST, whatever the number of axes.
    return -1 if axis == len(spec) - 1 else axis


def _no_channel(mask):
    return of_channels(mask, -1)


def _with_bias(params):
    W, b = params
    if b is None:
        return {"W": W}
    b = jnp.asarray(b)
    return {"W": W, "b": jnp.broadcast_to(b, W.shape[-1:]) if b.ndim == 0 else b.reshape(-1)}
