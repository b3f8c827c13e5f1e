"""Single layers of neural-tangents: a layer of lazynet between two layouts of axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lazynet.covariance.general.layer_rules import permute_rule
from lazynet.covariance.general.positions import Positions
from lazynet.dropin.kernels import inside, laid, outside
from lazynet.dropin.masks import Diagonal, parts, whole
from lazynet.dropin.networks import LAST, Layer, Twin
from lazynet.models.model import Model

__all__ = ["Layout", "elementwise", "fixed", "primitive"]

Axes = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a layer finds and leaves its axes, and its parameters.

    Attributes:
        axes: Of examples and channels in inputs.
        after: In outputs.
        order: Which axis of positions of the layer of lazynet each one of the outputs is.
        inward: From the parameters of neural-tangents to those of lazynet.
        outward: Back, `outward(params, ndim)`.
    """

    axes: Axes = LAST
    after: Axes = LAST
    order: Sequence[int] | None = None
    inward: Callable[[Any], Any] = lambda params: {}
    outward: Callable[[Any, int], Any] = lambda params, ndim: ()

    @property
    def plain(self) -> bool:
        """Whether it is that of lazynet."""
        return self.axes == self.after == LAST and self.order is None

    def left(self, y: Any) -> Any:
        """Outputs in the layout of users."""
        if self.order is not None:
            y = jnp.transpose(y, (0, *(1 + axis for axis in self.order), y.ndim - 1))
        return outside(y, *self.after)


def primitive(
    core: Model,
    layout: Layout = Layout(),
    *,
    missing: Callable[[Any], Any] | None = None,
    given_mask: Callable[[Any, Any, Any], Any] | None = None,
    spatial: Diagonal = Diagonal(),  # noqa: B008
    planar: Sequence[int] = (2, 4),
    flattens: bool = False,
    vectors: bool = True,
) -> Layer:
    """A layer of lazynet in another layout.

    Args:
        core: The layer, batch first and channels last.
        layout: Of the user.
        missing: From a mask `[n, *positions, c]` to that of the outputs; None for the same.
        given_mask: `given_mask(params, x, mask)`, outputs of inputs with a mask; None for those
            with zeros.
        spatial: What it needs of different positions.
        planar: Numbers of axes of inputs for which there are planes.
        flattens: Whether it makes vectors of images.
        vectors: Whether it takes vectors; otherwise it leaves them as they are.
    """

    def canonical(shape):
        batch, channel = (axis % len(shape) for axis in layout.axes)
        positions = [n for axis, n in enumerate(shape) if axis not in (batch, channel)]
        return shape[batch], (*positions, shape[channel])

    def init(key, shape):
        shape = tuple(shape)
        n, rest = canonical(shape)
        # -1 is any number of examples.
        x = jax.ShapeDtypeStruct((1 if n == -1 else n, *rest), jnp.zeros(()).dtype)
        params = core.init(key, x)
        after = _output_shape(core, params, x)
        if layout.order is not None:
            after = (after[0], *(after[1 + axis] for axis in layout.order), after[-1])
        return laid((n, *after[1:]), *layout.after), layout.outward(params, len(shape))

    def apply(params, inputs, told):
        values, mask = parts(inputs)
        x = inside(values, *layout.axes)
        own = layout.inward(params)
        if mask is None or given_mask is None:
            y = core.apply(own, x)
        else:
            y = given_mask(own, x, inside(jnp.broadcast_to(mask, values.shape), *layout.axes))
        if mask is not None:
            kept = inside(mask, *layout.axes)
            mask = layout.left(kept if missing is None else missing(kept))
        return whole(layout.left(y), mask)

    def rule(k: Positions) -> Positions:
        check_axes(core.name, k, layout.axes)
        if core.kernel is None:
            raise NotImplementedError(
                f"{core.name} has no infinite-width limit with these arguments: use monte_carlo_kernel_fn."
            )
        after = k if k.vectors and not vectors else core.kernel(k)
        if layout.order is not None:
            after = permute_rule(layout.order)(after)
        return placed(after, layout.after)

    twin = Twin(core, layout.inward, frozenset(planar), flattens) if layout.plain else None
    return Layer(core.name, init, apply, rule, layout.axes, spatial, twin=twin)


def elementwise(core: Model) -> Layer:
    """A layer that maps each entry by itself, in any layout."""

    def init(key, shape):
        return shape, ()

    def apply(params, inputs, told):
        values, mask = parts(inputs)
        return whole(core.apply({}, values), mask)

    return Layer(core.name, init, apply, core.kernel, twin=Twin(core, lambda params: {}))  # pyright: ignore[reportArgumentType]


def fixed(
    name: str,
    function: Callable[[Any, dict[str, Any]], Any],
    rule: Callable[[Any], Any],
    *,
    axes: Any = None,
    masked: Callable[[Any, Any, tuple[int, ...], dict[str, Any]], Any] | None = None,
    spatial: Diagonal = Diagonal(),  # noqa: B008
    pairs: bool = False,
    twin: Twin | None = None,
) -> Layer:
    """A layer without parameters, a function of arrays in the layout of users.

    Args:
        name: Of the layer.
        function: `function(x, told)`.
        rule: Of states.
        axes: Of examples and channels of its inputs.
        masked: `masked(x, mask, shape, told)`, the mask of outputs; None for the same.
        spatial: What it needs of different positions.
        pairs: Whether it needs pairs of examples.
        twin: The same as a model.
    """

    def init(key, shape):
        shape = tuple(shape)
        x = jax.ShapeDtypeStruct(tuple(1 if n == -1 else n for n in shape), jnp.zeros(()).dtype)
        told = {"rng": jax.random.key(0)}
        after = jax.eval_shape(lambda x: function(x, told), x).shape
        # Axes of any size go through as ones; where a one is left, it is of any size again.
        unknown = [axis for axis, n in enumerate(shape) if n == -1]
        if unknown and len(after) == len(shape):
            after = tuple(-1 if axis in unknown and n == 1 else n for axis, n in enumerate(after))
        return after, ()

    def apply(params, inputs, told):
        values, mask = parts(inputs)
        y = function(values, told)
        if mask is not None and masked is not None:
            mask = masked(values, mask, y.shape, told)
        return whole(y, mask)

    return Layer(name, init, apply, rule, axes, spatial, pairs, twin)


def check_axes(name: str, k: Positions, axes: Axes) -> None:
    """Refuses covariances whose examples or channels are on other axes than the layer takes them from."""
    ndim = len(k.shape) + 2
    expected = tuple(axis % ndim for axis in axes)
    if k.context["axes"] != expected:
        raise ValueError(
            f"{name} got examples and channels on axes {k.context['axes']}, expected {expected}: give all layers the "
            "same batch_axis, channel_axis and dimension_numbers."
        )


def placed(k: Positions, axes: Sequence[int]) -> Positions:
    """The state with its examples and channels on these axes.

    Example:
        >>> from lazynet.covariance.general.positions import position_kernel
        >>> placed(position_kernel(jnp.ones((2, 3))), (0, -1)).context["axes"]
        (0, 1)
    """
    ndim = len(k.shape) + 2
    return k.replace(context={**k.context, "axes": tuple(axis % ndim for axis in axes)})


def _output_shape(core, params, x):
    try:
        return jax.eval_shape(core.apply, params, x).shape
    except NotImplementedError:
        # A map of kernels without a finite network (ExpNormalized, Elementwise without fn) keeps shapes.
        return x.shape
