"""neural-tangents' combinators: layers one after the other and side by side."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lazynet import guards
from lazynet.covariance.general.layer_rules import join_rule, product_rule, stack_rule
from lazynet.covariance.layer_rules import concat_rule
from lazynet.dropin.masks import Diagonal, is_masked, parts, whole
from lazynet.dropin.networks import Layer, Triple, Twin, constructor, kernel_layer_rule
from lazynet.models import layers as core_layers
from lazynet.models import model
from lazynet.models.model import Model

__all__ = [
    "FanInConcat",
    "FanInProd",
    "FanInSum",
    "FanOut",
    "Identity",
    "layer",
    "parallel",
    "repeat",
    "serial",
]

# Branches pass tuples of arrays, for which `Apply` and `Rule` have no type.
_layer: Callable[..., Model] = model.layer


@constructor
def serial(*layers: Any) -> Layer:
    """Layers one after the other.

    Example:
        >>> init_fn, apply_fn, kernel_fn = serial(Identity(), Identity())
        >>> kernel_fn(jnp.eye(2), None, "nngp").tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    members = layers_of(layers, "serial")

    def init(key, shape):
        # The order of keys is that of neural-tangents, so that both draw the same weights.
        params = []
        for member in members:
            key, own = jax.random.split(key)
            shape, drawn = member.init(own, shape)
            params.append(drawn)
        return shape, params

    def apply(params, inputs, told):
        for member, own, more in zip(members, params, _split(told, len(members)), strict=True):
            inputs = member.apply(own, inputs, more)
        return inputs

    def rule(states):
        for member in members:
            states = member.rule(states)
        return states

    known = [member.axes for member in members if member.axes is not None]
    needs = [member.spatial for member in members]
    return Layer(
        "serial",
        init,
        apply,
        rule,
        axes=known[0] if known else None,
        spatial=functools.reduce(operator.rshift, needs) if needs else Diagonal(),
        pairs=any(member.pairs for member in members),
        twin=_twin(members, lambda models: model.serial(*models)),
    )


@constructor
def parallel(*layers: Any) -> Layer:
    """Layers side by side: layer i takes element i of its inputs, as given by FanOut."""
    members = layers_of(layers, "parallel")

    def init(key, shapes):
        keys = jax.random.split(key, len(members))
        drawn = [
            member.init(own, shape)
            for member, own, shape in zip(members, keys, shapes, strict=True)
        ]
        return type(shapes)(shape for shape, _ in drawn), [params for _, params in drawn]

    def apply(params, inputs, told):
        each = zip(members, params, inputs, _split(told, len(members)), strict=True)
        return type(inputs)(member.apply(own, x, more) for member, own, x, more in each)

    def rule(states):
        return type(states)(m.rule(k) for m, k in zip(members, states, strict=True))

    return Layer(
        "parallel",
        init,
        apply,
        rule,
        axes=[member.axes for member in members],
        spatial=functools.reduce(operator.and_, [member.spatial for member in members]),
        pairs=any(member.pairs for member in members),
        # Depths add up along a chain, and not side by side.
        twin=_twin(members, _side_by_side) if not any(_depth(m) for m in members) else None,
    )


@constructor
def repeat(layer: Any, n: int) -> Layer:
    """`n` copies of a layer, each with its own weights."""
    (one,) = layers_of([layer], "repeat")
    copies = guards.count("repeat n", n, at_least=0)
    return serial(*[Triple(one)] * copies).layer


@constructor
def FanOut(num: int) -> Layer:
    """`num` references to the input."""
    num = guards.count("FanOut num", num)

    def rule(k):
        # The branches share what comes before: a sum of them needs weights of their own.
        return [k.replace(fresh=False)] * num

    def init(key, shape):
        return [shape] * num, ()

    twin = _layer("FanOut", lambda params, x: [x] * num, kernel=rule)
    return Layer(
        "FanOut",
        init,
        lambda params, x, told: [x] * num,
        rule,
        twin=Twin(twin, lambda params: {}, depth=1),
    )


@constructor
def FanInSum() -> Layer:
    """Sum of the branches; in the limit they must be independent, that is end in their own Dense or Conv."""

    def rule(ks):
        return type(ks[0]).sum_independent(ks, [f"{i} of parallel" for i in range(len(ks))])

    twin = _layer("FanInSum", lambda params, xs: sum(xs[1:], xs[0]), kernel=rule)
    return _merged(lambda xs: functools.reduce(jnp.add, xs), rule, twin, sizes=lambda ns: ns[0])


@constructor
def FanInProd() -> Layer:
    """Product of the branches, which must be independent."""
    return _merged(
        lambda xs: functools.reduce(jnp.multiply, xs), product_rule, None, sizes=lambda ns: ns[0]
    )


@constructor
def FanInConcat(axis: int = -1) -> Layer:
    """Branches one behind the other along an axis: of channels, of positions or of examples."""

    def rule(ks):
        ndim = len(ks[0].shape) + 2
        batch, channel = ks[0].context["axes"]
        place = axis % ndim
        if place == channel:
            return concat_rule(ks)
        if place == batch:
            return stack_rule(ks)
        # Rules count positions alone, without the axes of examples and channels.
        return join_rule(ks, place - sum(end < place for end in (batch, channel)))

    def joined(shapes):
        place = axis % len(shapes[0])
        total = sum(shape[place] for shape in shapes)
        return (*shapes[0][:place], total, *shapes[0][place + 1 :])

    twin = None
    if axis == -1:
        twin = _layer(
            "FanInConcat", lambda params, xs: jnp.concatenate(xs, axis=-1), kernel=concat_rule
        )
    return _merged(lambda xs: jnp.concatenate(xs, axis), rule, twin, sizes=joined, axis=axis)


@constructor
def Identity() -> Layer:
    """The identity."""
    return Layer(
        "Identity",
        lambda key, shape: (shape, ()),
        lambda params, x, told: x,
        lambda k: k,
        twin=Twin(core_layers.Identity(), lambda params: {}),
    )


def layer(layer_fn: Callable[..., Any]) -> Callable[..., Triple]:
    """A layer of one's own: a function that returns `(init_fn, apply_fn, kernel_fn)`, the last one of `Kernel`.

    One with weights counts as independent of the branches beside it, as if it ended in a Dense.

    Args:
        layer_fn: The function.

    Example:
        >>> @layer
        ... def Double():
        ...     init_fn = lambda rng, shape: (shape, ())
        ...     return init_fn, lambda params, x, **kwargs: 2.0 * x, lambda k, **kwargs: 2.0 * k
        >>> Double()[2](jnp.eye(2), None, "nngp").tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """

    @functools.wraps(layer_fn)
    def make(*args: Any, **kwargs: Any) -> Triple:
        functions = layer_fn(*args, **kwargs)
        made = _layer_behind(functions) or _custom(functions)
        return Triple(dataclasses.replace(made, name=layer_fn.__name__))

    return make


def layers_of(triples: Any, where: str) -> list[Layer]:
    """The layers of triples, unpacked or not; custom ones are any other three functions."""
    found = []
    for i, triple in enumerate(triples):
        if isinstance(triple, Model) or not _is_triple(triple):
            raise TypeError(
                f"stax.{where} got {triple!r} at position {i}, expected a layer of lazynet.stax: call its constructor, "
                "for instance Relu() and not Relu; lazynet's own models go into lazynet.serial."
            )
        found.append(_layer_behind(triple) or _custom(triple))
    return found


def _is_triple(triple):
    return isinstance(triple, tuple) and len(triple) == 3 and all(map(callable, triple))


def _layer_behind(functions) -> Layer | None:
    """The layer whose three functions these are, compiled or not; None of any others."""
    layers = []
    for function in functions:
        plain = function.__wrapped__ if hasattr(function, "lower") else function
        # What else wraps a function copies its attributes, and may compute something else.
        is_copy = hasattr(getattr(plain, "__wrapped__", None), "layer")
        layers.append(None if is_copy else getattr(plain, "layer", None))
    return layers[0] if all(layer is layers[0] for layer in layers) else None


def _custom(functions):
    init_fn, apply_fn, kernel_fn = functions
    required = getattr(kernel_fn, "required", {})
    known = "batch_axis" in required or "channel_axis" in required
    axes = (required.get("batch_axis", 0), required.get("channel_axis", -1)) if known else None
    spatial = required.get("diagonal_spatial", Diagonal())

    def apply(params, inputs, told):
        if not getattr(apply_fn, "takes_masks", False):
            # A layer that knows nothing of masks gets zeros.
            inputs = jax.tree.map(lambda x: parts(x)[0], inputs, is_leaf=is_masked)
        return apply_fn(params, inputs, **told)

    return Layer(
        "layer",
        init_fn,
        apply,
        kernel_layer_rule(kernel_fn, init_fn),
        axes=axes,
        spatial=spatial if isinstance(spatial, Diagonal) else Diagonal(),
        pairs=required.get("diagonal_batch") is False,
    )


def _split(told, n):
    """Keyword arguments of each of n layers: a key of its own, and the rest."""
    rng = told.get("rng")
    if rng is None:
        return [told] * n
    return [{**told, "rng": key} for key in jax.random.split(rng, n)]


def _twin(members, combine):
    """The model of layers that all have one."""
    twins = [member.twin for member in members]
    if not all(twins):
        return None
    paths = [model.child_path(i, twin.model) for i, twin in enumerate(twins)]

    def inward(params):
        own = [twin.inward(p) for twin, p in zip(twins, params, strict=True)]
        return {path: p for path, p in zip(paths, own, strict=True) if p}

    return Twin(
        combine([twin.model for twin in twins]),
        inward,
        frozenset.intersection(frozenset((2, 4)), *(twin.planar for twin in twins)),
        any(twin.flattens for twin in twins),
        sum(twin.depth for twin in twins),
    )


def _depth(member):
    return 0 if member.twin is None else member.twin.depth


def _side_by_side(branches):
    paths = [model.child_path(i, branch) for i, branch in enumerate(branches)]

    def init(key, xs):
        each = enumerate(zip(paths, branches, xs, strict=True))
        drawn = {path: b.init(jax.random.fold_in(key, i), x) for i, (path, b, x) in each}
        return {path: own for path, own in drawn.items() if own}

    def apply(params, xs):
        each = zip(paths, branches, xs, strict=True)
        return type(xs)(b.apply(params.get(path, {}), x) for path, b, x in each)

    def kernel(ks):
        each = zip(paths, branches, ks, strict=True)
        return type(ks)(model.propagate(b, k, path) for path, b, k in each)

    return _layer("parallel", apply, init=init, kernel=kernel)


def _merged(function, rule, twin, *, sizes, axis=None):
    """A layer that makes one array of several."""

    def joint_rule(ks):
        # An example is the same in both sets where it is in every branch.
        equal = functools.reduce(operator.and_, [k.context.get("equal", False) for k in ks])
        joint = rule(ks)
        return joint.replace(context={**joint.context, "equal": equal})

    def init(key, shapes):
        return sizes([tuple(shape) for shape in shapes]), ()

    def apply(params, inputs, told):
        split = [parts(x) for x in inputs]
        values = [x for x, _ in split]
        masks = [mask for _, mask in split]
        if all(mask is None for mask in masks):
            return function(values)
        full = [
            jnp.broadcast_to(False if mask is None else mask, x.shape)
            for x, mask in zip(values, masks, strict=True)
        ]
        # A sum is missing where every branch is; of joined branches each keeps its own mask.
        joint = functools.reduce(jnp.logical_and, full) if axis is None else function(full)
        return whole(function(values), joint)

    return Layer(
        "merge",
        init,
        apply,
        joint_rule,
        axes=None,
        twin=None if twin is None else Twin(twin, lambda params: {}, depth=-1),
    )
