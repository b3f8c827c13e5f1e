"""neural-tangents' layers without parameters that are not pools: graphs, products, indices, norms, noise."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lazynet import guards
from lazynet.covariance.general.layer_rules import (
    axes_norm_rule,
    dropout_rule,
    fixed_rule,
    pick_rule,
    routed_rule,
)
from lazynet.covariance.layer_rules import layer_norm_rule
from lazynet.dropin.kernels import inside, kernel_of, outside
from lazynet.dropin.masks import Bool, Diagonal, parts, whole
from lazynet.dropin.networks import LAST, Layer, Twin, constructor
from lazynet.dropin.primitives import check_axes, fixed, placed
from lazynet.dropin.windows import MIXES
from lazynet.models import layers, spatial
from lazynet.models.graphs import aggregated, routed

__all__ = [
    "Aggregate",
    "AggregateImplementation",
    "DotGeneral",
    "Dropout",
    "ImageResize",
    "Index",
    "LayerNorm",
    "Slice",
]


class AggregateImplementation(enum.Enum):
    """Dense matrices of edges, or lists of them.

    Example:
        >>> AggregateImplementation("SPARSE").name
        'SPARSE'
    """

    DENSE = "DENSE"
    SPARSE = "SPARSE"


@constructor
def Aggregate(
    aggregate_axis: int | Sequence[int] | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    to_dense: Callable[[Any], Any] | None = lambda pattern: pattern,
    implementation: Any = "DENSE",
) -> Layer:
    """Sums over the edges of a graph whose nodes are positions, told by `pattern` of each call."""
    dense = AggregateImplementation(implementation) == AggregateImplementation.DENSE

    def nodes(ndim):
        """The axes of nodes, batch first and channels last."""
        ends = batch_axis % ndim, channel_axis % ndim
        places = [axis for axis in range(ndim) if axis not in ends]
        if aggregate_axis is None:
            return tuple(range(1, ndim - 1))
        given = (aggregate_axis,) if isinstance(aggregate_axis, int) else aggregate_axis
        return tuple(1 + places.index(axis % ndim) for axis in given)

    def summed(x, pattern):
        axes = nodes(x.ndim)
        if dense:
            return aggregated(x, pattern if to_dense is None else to_dense(pattern), axes)
        # `[n, edges, 2]` are edges of one axis of nodes, without an axis of coordinates.
        edges = pattern[..., None, :] if pattern.ndim == 3 else pattern
        return routed(x, edges, axes)

    def function(x, told):
        pattern = told.get("pattern")
        if pattern is None:
            return x
        moved = summed(inside(x, batch_axis, channel_axis), pattern)
        return outside(moved, batch_axis, channel_axis)

    shared = routed_rule("Aggregate", summed)

    def rule(k):
        check_axes("Aggregate", k, (batch_axis, channel_axis))
        return shared(k)

    return fixed("Aggregate", function, rule, axes=(batch_axis, channel_axis), spatial=MIXES)


@constructor
def DotGeneral(
    *,
    lhs: Any = None,
    rhs: Any = None,
    dimension_numbers: Any = (((), ()), ((), ())),
    precision: Any = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Product with a constant, `lax.dot_general(lhs, x)` or `lax.dot_general(x, rhs)`."""
    if lhs is not None and rhs is not None:
        raise ValueError("stax.DotGeneral got lhs and rhs, expected one: the other factor is x.")
    product = _Product.of(lhs, rhs, dimension_numbers, precision)
    contracted = product.contracted

    def rule(k):
        ndim = len(k.shape) + 2
        check_axes("DotGeneral", k, (batch_axis, channel_axis))
        batch, channel = batch_axis % ndim, channel_axis % ndim
        if channel in (*contracted, *product.batched):
            raise ValueError(
                "DotGeneral got an axis of channels to contract, expected other axes: in the limit their number is "
                "infinite; contract axes of positions."
            )
        if batch in contracted:
            kernel = kernel_of(k).replace(mask1=None, mask2=None)
            return product.of_kernel(kernel)
        # Without a sum each entry is one times a constant, whose square its variance takes.
        alone = None if contracted else product.map(batch, channel, lambda other: other**2)
        if k.context.get("asked_diagonal") and k.vectors and alone is not None:
            # Vectors have no positions to choose among, but their product may get some.
            k = k.replace(diagonal=True)
        nonzero = product.map(batch, channel, lambda other: other != 0)
        layer = product.map(batch, channel, lambda other: other)

        def missing(mask):
            # Missing where nothing that is there enters with a factor other than zero.
            return nonzero((~mask).astype(k.nngp.dtype)) == 0

        moved = fixed_rule("DotGeneral", layer, missing=missing, on_equal=alone)(k)
        return placed(moved, (product.after(batch), product.after(channel)))

    def masked(values, mask, shape, told):
        there = jnp.broadcast_to(~mask, values.shape).astype(values.dtype)
        return product(there, lambda other: other != 0) == 0

    return fixed(
        "DotGeneral",
        lambda x, told: product(x, lambda other: other),
        rule,
        axes=(batch_axis, channel_axis),
        masked=masked,
        spatial=Diagonal(input=Bool.NO if set(contracted) - {batch_axis} else Bool.YES),
        pairs=batch_axis in contracted,
    )


class _Product(NamedTuple):
    """The product with a constant on one side.

    Attributes:
        other: The constant; None for the identity.
        on_left: Whether it stands on the left.
        numbers: Dimension numbers of both.
        precision: Of the product.
        contracted: Axes of x that are summed over.
        batched: Axes of x that have partners in the constant.
    """

    other: Any
    on_left: bool
    numbers: Any
    precision: Any
    contracted: tuple[int, ...]
    batched: tuple[int, ...]

    @classmethod
    def of(cls, lhs: Any, rhs: Any, numbers: Any, precision: Any) -> _Product:
        """The product of the arguments of `DotGeneral`."""
        on_left = rhs is None
        none = lhs is None and rhs is None
        own = [tuple(axes[int(on_left)]) for axes in numbers]
        other = None if none else jnp.asarray(lhs if on_left else rhs)
        return cls(other, on_left, numbers, precision, own[0], own[1])

    def __call__(self, x: Any, of_other: Callable[[Any], Any]) -> Any:
        """The product of x with a function of the constant."""
        if self.other is None:
            return x
        factor = of_other(self.other).astype(x.dtype)
        pair = (factor, x) if self.on_left else (x, factor)
        return lax.dot_general(*pair, self.numbers, self.precision)

    def of_kernel(self, kernel: Any) -> Any:
        """Covariances of the product where examples are contracted: none are left for a layer to follow."""
        done = kernel.dot_general(self.other, self.other, self.on_left, self.numbers)
        shapes = [
            jax.eval_shape(
                lambda x: self(x, lambda other: other), jax.ShapeDtypeStruct(shape, float)
            )
            for shape in (kernel.shape1, kernel.shape2)
        ]
        return done.replace(shape1=shapes[0].shape, shape2=shapes[1].shape)

    def after(self, axis: int) -> int:
        """Where an axis of x is in the product."""
        if self.other is None:
            return axis
        if axis in self.batched:
            return self.batched.index(axis)
        # `dot_general` puts batched axes first, then free ones of the left and the right factor.
        gone = [i for i in (*self.contracted, *self.batched) if i < axis]
        used = len(self.contracted) + len(self.batched)
        before = self.other.ndim - used if self.on_left else 0
        return len(self.batched) + before + axis - len(gone)

    def map(self, batch: int, channel: int, of_other: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The product as a map of `[n, *positions, c]`."""

        def function(x):
            y = self(outside(x, batch, channel), of_other)
            return inside(y, self.after(batch), self.after(channel))

        return function


@constructor
def Dropout(rate: float, mode: str = "train") -> Layer:
    """Entries kept with probability `rate`; `apply_fn` needs a key `rng` in mode "train"."""
    if mode not in ("train", "test"):
        raise ValueError(f"stax.Dropout got mode={mode!r}, expected 'train' or 'test'.")
    if not 0 < rate <= 1:
        raise ValueError(
            f"stax.Dropout got rate={rate}, expected a number in (0, 1]: it is the probability to keep an entry."
        )

    def function(x, told):
        if mode == "test":
            return x
        if told.get("rng") is None:
            raise ValueError(
                "stax.Dropout got no rng, expected a key: apply_fn(params, x, rng=key), or mode='test'."
            )
        return spatial.dropped(told["rng"], x, rate)

    identity = Twin(layers.Identity(), lambda params: {}) if mode == "test" else None
    rule = (lambda k: k) if mode == "test" else dropout_rule(rate)
    return fixed("Dropout", function, rule, twin=identity)


@constructor
def ImageResize(
    shape: Sequence[int],
    method: Any,
    antialias: bool = True,
    precision: Any = lax.Precision.HIGHEST,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Images of another size by interpolation; -1 in `shape` keeps a size."""
    shape = tuple(shape)
    batch, channel = batch_axis % len(shape), channel_axis % len(shape)
    places = [axis for axis in range(len(shape)) if axis not in (batch, channel)]
    name = (
        method.name.lower() if isinstance(method, jax.image.ResizeMethod) else str(method).lower()
    )

    def resized(x, sizes):
        full = [n if new == -1 else new for n, new in zip(x.shape, sizes, strict=True)]
        return jax.image.resize(x, tuple(full), name, antialias, precision)

    def rule(k):
        check_axes("ImageResize", k, (batch_axis, channel_axis))
        if name not in ("linear", "bilinear", "trilinear", "triangle", "nearest"):
            raise NotImplementedError(
                f"ImageResize got method={name!r}, expected 'linear' or 'nearest': others have no infinite-width rule."
            )
        if shape[channel] != -1:
            raise ValueError(
                f"ImageResize got shape={shape} with a number of channels, expected -1: in the limit it is infinite."
            )
        sizes = (shape[batch], *(shape[axis] for axis in places), -1)

        def unseen(mask):
            # Missing where nothing that is there is interpolated.
            return resized((~mask).astype(k.nngp.dtype), sizes) == 0

        if all(size == -1 for size in sizes):
            return k
        return fixed_rule("ImageResize", lambda x: resized(x, sizes), missing=unseen)(k)

    def masked(values, mask, after, told):
        return resized((~mask).astype(values.dtype), shape) == 0

    mixes = any(shape[axis] != -1 for axis in places)
    return fixed(
        "ImageResize",
        lambda x, told: resized(x, shape),
        rule,
        axes=(batch_axis, channel_axis),
        masked=masked,
        spatial=MIXES if mixes else Diagonal(),
        pairs=shape[batch] != -1,
    )


class _Slice:
    """`Slice[1:, 0]` is the index that `x[1:, 0]` takes."""

    def __getitem__(self, index: Any) -> Any:
        return index


Slice = _Slice()
"""Makes indices: `Slice[1:, 0]` is the one of `x[1:, 0]`."""


@constructor
def Index(idx: Any, batch_axis: int = 0, channel_axis: int = -1) -> Layer:
    """`x[idx]`, of examples and positions."""

    def rule(k):
        check_axes("Index", k, (batch_axis, channel_axis))
        ndim = len(k.shape) + 2
        batch, channel = batch_axis % ndim, channel_axis % ndim
        index = _full_index(idx, ndim)
        if isinstance(index[batch], int) or index[channel] != slice(None):
            raise NotImplementedError(
                f"Index got {idx!r}, which takes one example or some channels, expected slices of examples and any of "
                "positions: in the limit there is an axis of examples, and the number of channels is infinite."
            )
        positions = [index[axis] for axis in range(ndim) if axis not in (batch, channel)]
        moved = pick_rule(index[batch], lambda x: x[(slice(None), *positions)])(k)
        # An integer takes an axis away, and those behind it move up.
        gone = [axis for axis in range(ndim) if isinstance(index[axis], int)]
        axes = tuple(end - sum(axis < end for axis in gone) for end in (batch, channel))
        return placed(moved, axes)

    def masked(values, mask, shape, told):
        # A mask may have one entry where the index counts on all.
        return jnp.broadcast_to(mask, values.shape)[idx]

    return fixed(
        "Index", lambda x, told: x[idx], rule, axes=(batch_axis, channel_axis), masked=masked
    )


@constructor
def LayerNorm(
    axis: int | Sequence[int] = -1,
    eps: float = 1e-12,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Normalization over channels, and other axes."""
    eps = guards.number("LayerNorm eps", eps, at_least=0)
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)

    def apply(params, inputs, told):
        values, mask = parts(inputs)
        over = tuple(a % values.ndim for a in axes)
        return whole(spatial.normalized(values, over, eps, mask), mask)

    def rule(k):
        check_axes("LayerNorm", k, (batch_axis, channel_axis))
        ndim = len(k.shape) + 2
        batch, channel = batch_axis % ndim, channel_axis % ndim
        over = {a % ndim for a in axes}  # pyright: ignore[reportOperatorIssue]
        if channel not in over:
            raise ValueError(
                f"LayerNorm got axis={axis}, expected the channels (axis {channel}) among them: without them there is "
                "no limit."
            )
        places = [a for a in range(ndim) if a not in (batch, channel)]
        own = [places.index(a) for a in sorted(over - {batch, channel})]
        if not own and batch not in over:
            return layer_norm_rule(eps)(k)
        return axes_norm_rule(own, eps, across=batch in over)(k)

    plain = (batch_axis, channel_axis) == LAST and axes == (-1,)
    twin = Twin(layers.LayerNorm(eps), lambda params: {}) if plain else None
    return Layer(
        "LayerNorm",
        lambda key, shape: (shape, ()),
        apply,
        rule,
        (batch_axis, channel_axis),
        twin=twin,
    )


def _full_index(idx, ndim):
    """An index with an entry for each axis."""
    entries = list(idx) if isinstance(idx, tuple) else [idx]
    if Ellipsis in entries:
        place = entries.index(Ellipsis)
        missing = ndim - len(entries) + 1
        entries[place : place + 1] = [slice(None)] * missing
    return [*entries, *[slice(None)] * (ndim - len(entries))]
