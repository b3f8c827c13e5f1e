"""What a layer of neural-tangents is here, and the three functions that users see of it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import guards
from lazynet.covariance.general.positions import position_kernel
from lazynet.dropin.kernels import Kernel, chosen, inside, is_kernel, kernel_of, names_of, state_of
from lazynet.dropin.masks import (
    Bool,
    Diagonal,
    is_masked,
    missing_positions,
    parts,
    with_constant,
)
from lazynet.kernels.analytic import analytic_kernel
from lazynet.kernels.variances import analytic_variances
from lazynet.models.model import Model
from lazynet.recipes import found, named
from lazynet.trees import is_traced

__all__ = ["Layer", "Triple"]

MEMORY = 2**33
"""Bytes that covariances of all pairs of positions may take."""

LAST = (0, -1)
"""Batch first, channels last."""


class Twin(NamedTuple):
    """The same network as a model of lazynet.

    Attributes:
        model: Batch first, channels last.
        inward: From the parameters of the layer to those of the model.
        planar: Numbers of axes of inputs, 2 for vectors and 4 for images, for which planes suffice.
        flattens: Whether it makes vectors of images.
        depth: How many times it makes branches of one array, less how many times one of branches.
    """

    model: Model
    inward: Callable[[Any], Any]
    planar: frozenset[int] = frozenset((2, 4))
    flattens: bool = False
    depth: int = 0


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer, or a network.

    Attributes:
        name: Name of its constructor.
        init: `init(key, shape) -> (shape, params)`, of shapes or trees of them.
        apply: `apply(params, inputs, told) -> outputs`, of arrays, `MaskedArray` or trees of them,
            with the keyword arguments of `apply_fn`.
        rule: From states of covariances to states, or trees of them.
        axes: Axes of examples and channels of its inputs, a tuple of those of branches in a list,
            or None for any.
        spatial: What it needs of different positions.
        pairs: Whether it needs pairs of examples within each set.
        twin: The same as a model of lazynet, if there is one.
    """

    name: str
    init: Callable[[Any, Any], tuple[Any, Any]]
    apply: Callable[[Any, Any, dict[str, Any]], Any]
    rule: Callable[[Any], Any]
    axes: Any = None
    spatial: Diagonal = Diagonal()
    pairs: bool = False
    twin: Twin | None = None


class Triple(tuple):
    """`(init_fn, apply_fn, kernel_fn)` of a layer or a network.

    Attributes:
        layer: What they are made of.
        model: The lazynet model of the same network: batch first, channels last.
    """

    layer: Layer
    made: Any

    def __new__(cls, layer: Layer, made: Any = None) -> Triple:
        """The triple of a layer and the call that made it."""
        triple = super().__new__(cls, (_init_fn(layer), _apply_fn(layer), _kernel_fn(layer)))
        triple.layer = layer
        triple.made = made
        return triple

    @property
    def model(self) -> Model:
        """The lazynet model of the same network."""
        if self.layer.twin is None:
            raise ValueError(
                f"stax.{self.layer.name} has no model, expected a network of batches first and channels last without "
                "layers of neural-tangents alone (Aggregate, DotGeneral, Dropout, Index, custom ones): use the triple."
            )
        return self.layer.twin.model

    def __reduce__(self):
        """The call, of which the functions are made again."""
        return _again, self.made


def constructor(maker: Callable[..., Layer]) -> Callable[..., Triple]:
    """The function that returns the triple of the layer which `maker` returns, under its name."""

    @functools.wraps(maker)
    def make(*args: Any, **kwargs: Any) -> Triple:
        layer = dataclasses.replace(maker(*args, **kwargs), name=maker.__name__)
        keywords = {name: named(value) for name, value in kwargs.items()}
        made = (maker.__module__, maker.__name__, tuple(map(named, args)), keywords)
        return Triple(layer, made)

    return make


def _again(module, name, args, kwargs):
    maker = getattr(importlib.import_module(module), name)
    return maker(*map(found, args), **{key: found(value) for key, value in kwargs.items()})


def shape_after(layer: Layer, shape: Any) -> Any:
    """Shape of the outputs of inputs of a shape, without drawing weights."""
    return _drawn(layer.init, shape)[0]


def _drawn(init, shape):
    """What `init` returns, with the shapes of weights in their places."""
    shapes = []

    def draw(key):
        after, params = init(key, shape)
        # Shapes are no arrays: they leave the traced function on the side.
        shapes.append(after)
        return params

    params = jax.eval_shape(draw, jax.eval_shape(lambda: jax.random.key(0)))
    return shapes[0], params


def _init_fn(layer):
    def init_fn(rng, input_shape):
        """Shape of the outputs (-1 for any number of examples) and parameters."""
        return layer.init(rng, input_shape)

    init_fn.__name__ = layer.name
    init_fn.layer = layer
    return init_fn


def _apply_fn(layer):
    def apply_fn(params, inputs, *, mask_constant=None, **kwargs):
        """Outputs; a `MaskedArray` where entries are missing."""
        masked = jax.tree.map(lambda x: with_constant(x, mask_constant), inputs, is_leaf=is_masked)
        return layer.apply(params, masked, kwargs)

    apply_fn.__name__ = layer.name
    apply_fn.layer = layer
    apply_fn.twin = layer.twin
    return apply_fn


def _kernel_fn(layer):
    by_positions = jax.jit(
        functools.partial(_by_positions, layer), static_argnames=("options", "static")
    )

    def kernel_fn(
        x1_or_kernel: Any,
        x2: Any = None,
        get: Any = None,
        *,
        pattern: Any = None,
        mask_constant: Any = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        batch_axis: int | None = None,
        channel_axis: int | None = None,
        memory: int | float = MEMORY,
        **kwargs: Any,
    ) -> Any:
        """Kernels of two sets of inputs, or of the inputs of a `Kernel`.

        A string gives an array, a tuple a named tuple in that order, None a `Kernel`.
        """
        names = names_of(get)
        x1 = x1_or_kernel
        plain = diagonal_batch is None and diagonal_spatial is None and mask_constant is None
        usual = batch_axis in (None, 0) and channel_axis in (None, -1) and pattern is None
        if plain and usual and _planar(layer, x1):
            return _by_planes(layer, x1, x2, names, get)
        options = _Options(
            _trained(names), diagonal_batch, diagonal_spatial, batch_axis, channel_axis, memory
        )
        told = {"pattern": _shared(pattern), **kwargs}
        static = tuple(sorted((k, v) for k, v in told.items() if not _is_dynamic(v)))
        dynamic = {k: v for k, v in told.items() if _is_dynamic(v)}
        inputs = jax.tree.map(_checked, (x1, x2), is_leaf=is_kernel)
        # What has no hash cannot be part of the name of a program: then nothing is compiled.
        run = by_positions if _hashable(static) else functools.partial(_by_positions, layer)
        kernels = run(*inputs, mask_constant, dynamic, static=static, options=options)  # pyright: ignore[reportCallIssue]
        return jax.tree.map(lambda kernel: chosen(kernel, get), kernels, is_leaf=is_kernel)

    kernel_fn.__name__ = layer.name
    kernel_fn.layer = layer
    return kernel_fn


class _Options(NamedTuple):
    """How covariances are kept."""

    trained: bool
    diagonal_batch: bool | None
    diagonal_spatial: bool | None
    batch_axis: int | None
    channel_axis: int | None
    memory: int | float


def _shared(pattern):
    """One pattern for both sets once, so that it is known to be one inside of a program too."""
    if isinstance(pattern, (tuple, list)) and len(pattern) == 2 and pattern[0] is pattern[1]:
        return None if pattern[0] is None else (pattern[0],)
    return pattern


def _trained(names):
    return "ntk" in names


def _planar(layer, x):
    """Whether the kernel of these inputs comes from planes or vectors."""
    twin = layer.twin
    if twin is None or twin.depth or not hasattr(x, "ndim") or x.ndim not in twin.planar:
        return False
    # Kernels that are images themselves have all pairs of positions.
    return x.ndim == 2 or twin.flattens


def _by_planes(layer, x1, x2, names, get):
    model = layer.twin.model
    gram = analytic_kernel(model, x1, x2)
    if set(names) <= {"nngp", "ntk"}:
        return chosen(gram, get)
    # The other fields of a kernel: variances, and what the shapes of inputs tell.
    one = analytic_variances(model, x1)
    two = None if x2 is None else analytic_variances(model, x2)
    shapes = [shape_after(layer, tuple(x.shape)) for x in (x1, x1 if x2 is None else x2)]
    tiny = _tiny(layer, x1)
    kernel = tiny.replace(
        nngp=gram.nngp,
        # Without weights it is a zero without axes.
        ntk=gram.ntk if tiny.ntk.ndim else jnp.zeros((), gram.nngp.dtype),
        cov1=one.nngp,
        cov2=None if two is None else two.nngp,
        x1_is_x2=jnp.asarray(x2 is None or _equal(x1, x2)),
        shape1=shapes[0],
        shape2=shapes[1],
    )
    object.__setattr__(kernel, "_exact", x2 is None)
    return chosen(kernel, get)


def _tiny(layer, x):
    """What is known of the kernel of inputs of this shape, without computing it."""
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    options = _Options(True, None, None, None, None, np.inf)
    run = functools.partial(_by_positions, layer, static=(), options=options)
    return jax.eval_shape(lambda x: run(x, None, None, {}), one)


def _by_positions(layer, x1, x2, mask_constant, dynamic, *, static, options):
    """The kernels, or trees of them, by covariances of all pairs of positions."""
    told = {**dict(static), **dynamic}
    pattern = told.get("pattern")
    if isinstance(pattern, tuple) and len(pattern) == 1:
        pattern = pattern * 2
    told["pattern"] = pattern
    context = {"told": told, "memory": options.memory, "pattern": pattern}
    if any(is_kernel(leaf) for leaf in jax.tree.leaves(x1, is_leaf=is_kernel)):
        _check_kernels(layer, x1)
        states = jax.tree.map(lambda k: state_of(k, **context), x1, is_leaf=is_kernel)
    else:
        states = _start(layer, x1, x2, mask_constant, options, context)
    return jax.tree.map(kernel_of, layer.rule(states), is_leaf=is_kernel)


def _start(layer, x1, x2, mask_constant, options, context):
    """States of the inputs."""
    diagonal = bool(layer.spatial) if options.diagonal_spatial is None else options.diagonal_spatial
    if options.diagonal_spatial and layer.spatial.input == Bool.NO:
        raise ValueError(
            f"{layer.name} got diagonal_spatial=True, expected False: it mixes positions."
        )
    if options.diagonal_batch and layer.pairs:
        raise ValueError(
            f"{layer.name} got diagonal_batch=True, expected False: it mixes examples."
        )
    pairs = layer.pairs if options.diagonal_batch is None else not options.diagonal_batch

    def states(axes, x1, x2):
        if isinstance(x1, (tuple, list)):
            own = axes if isinstance(axes, list) else [axes] * len(x1)
            others = [None] * len(x1) if x2 is None else x2
            return type(x1)(states(*branch) for branch in zip(own, x1, others, strict=True))
        usual = LAST if axes is None or isinstance(axes, list) else axes
        return _state(usual, x1, x2, mask_constant, options, (diagonal, pairs), context)

    return states(layer.axes, x1, x2)


def _state(axes, x1, x2, mask_constant, options, kept, context):
    """The state of one array of inputs, or of two."""
    ndim = x1.ndim
    if ndim < 2:
        raise ValueError(
            f"got inputs of shape {x1.shape}, expected at least two axes: batch and channels."
        )
    batch = (axes[0] if options.batch_axis is None else options.batch_axis) % ndim
    channel = (axes[1] if options.channel_axis is None else options.channel_axis) % ndim
    if x2 is not None and _examples_apart(x1, batch) != _examples_apart(x2, batch):
        raise ValueError(
            f"kernel_fn got inputs of shapes {x1.shape} and {x2.shape}, expected two sets of one shape but for the "
            f"number of examples, axis {batch}: bring both to one size."
        )
    arrays = []
    masks = []
    for x in (x1, x2):
        values, mask = parts(with_constant(x, mask_constant))
        arrays.append(None if values is None else inside(values, batch, channel))
        masks.append(missing_positions(mask, batch, channel))
    k = position_kernel(
        *_alike(*arrays),  # pyright: ignore[reportArgumentType]
        masks=(masks[0], masks[0] if x2 is None else masks[1]),
        # Vectors have no positions.
        diagonal=kept[0] and ndim > 2,
        whole=kept[1],
        axes=(batch, channel),
        equal=x2 is None or _equal(x1, x2),
        asked_diagonal=kept[0],
        **context,
    )
    return k.replace(trained=options.trained)


def _check_kernels(layer, kernels):
    for kernel in jax.tree.leaves(kernels, is_leaf=is_kernel):
        if kernel.diagonal_batch and layer.pairs:
            raise ValueError(
                f"{layer.name} got a kernel with diagonal_batch=True, expected False, since it mixes examples: compute "
                "that kernel with diagonal_batch=False."
            )
        if kernel.diagonal_spatial and layer.spatial.input == Bool.NO:
            raise ValueError(
                f"{layer.name} got a kernel with diagonal_spatial=True, expected False, since it mixes positions: "
                "compute that kernel with diagonal_spatial=False."
            )


def _examples_apart(x, batch):
    """The shape without the axis of examples."""
    return (*x.shape[:batch], *x.shape[batch + 1 :])


def _alike(x1, x2):
    """Both in double precision if one is and jax has it, else in single."""
    given = [x for x in (x1, x2) if x is not None]
    wide = max(x.dtype.itemsize for x in given) > 4
    dtype = jax.dtypes.canonicalize_dtype(np.float64 if wide else np.float32)
    return [None if x is None else x.astype(dtype) for x in (x1, x2)]


def _equal(x1, x2):
    if x1.shape != x2.shape:
        return False
    # NaN may stand for what is missing, and does not equal itself.
    return jnp.all(jnp.isclose(x1, x2, rtol=0, atol=1e-12, equal_nan=True))


def _checked(x):
    if is_kernel(x):
        return x
    x = x if is_traced(x) else guards.array("inputs of kernel_fn", x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(
            f"inputs of kernel_fn got dtype {x.dtype}, expected real numbers: give real and imaginary parts as "
            "channels."
        )
    return x


def _is_dynamic(value):
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)


def _hashable(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True


def kernel_layer_rule(kernel_fn: Callable[..., Any], init: Any) -> Callable[[Any], Any]:
    """The rule of a custom layer, a function of `Kernel`, with the shapes that its `init_fn` gives."""

    def rule(states):
        inputs = jax.tree.leaves(states, is_leaf=is_kernel)
        context = inputs[0].context
        told = {key: value for key, value in context["told"].items() if value is not None}
        given = jax.tree.map(kernel_of, states, is_leaf=is_kernel)
        kernels = kernel_fn(given, **told)
        shapes = jax.tree.map(lambda k: k.shape1, given, is_leaf=is_kernel)
        shape1, weights = _drawn(init, shapes)
        if isinstance(kernels, Kernel) and isinstance(given, Kernel):
            kernels = kernels.replace(shape1=shape1, shape2=_drawn(init, given.shape2)[0])
        # Without weights of its own a layer leaves branches as dependent as they come.
        fresh = bool(jax.tree.leaves(weights)) or all(k.fresh for k in inputs)
        # These two are said by the kernel that comes back.
        kept = {key: value for key, value in context.items() if key not in ("axes", "equal")}
        return jax.tree.map(
            lambda k: state_of(k, **kept).replace(fresh=fresh), kernels, is_leaf=is_kernel
        )

    return rule
