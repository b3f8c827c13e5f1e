"""`from_equinox`: modules that are trees of arrays and call themselves, those of equinox and any other."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import jax

from lazynet import guards
from lazynet.models.foreign.calls import (
    Constants,
    NamingPickler,
    astype,
    check_factory,
    check_no_key,
    check_output,
    foreign_terms,
    is_array,
    is_weight,
    leaves_of,
    model_of,
    parted,
)
from lazynet.models.model import Model
from lazynet.recipes import recipe

__all__ = ["from_equinox"]

EXPECTED = "expected a module that is a tree of arrays, or a factory of such, lambda key: MLP(..., key=key)"


def from_equinox(module: Any, state: Any = None, *, batched: bool = False, **call: Any) -> Model:
    """The finite-width model `h(w, x) = module(x)` of an equinox module, or of any callable tree of arrays.

    Floating-point arrays of the module are its parameters, real and complex ones; `params` is the
    module with None for everything else, so that `equinox.combine(params, module)` is the module
    with these weights. Other arrays (whole numbers, keys) and the state are constants, which
    `apply`, a `jax.tree_util.Partial`, carries; static fields stay what they are. There is no
    infinite-width rule.

    Args:
        module: A module of equinox, or of another library in which modules are trees: one set of
            weights, which `init(None, x)` returns. Or a factory, called as `module(key=key)`:
            `lambda key: eqx.nn.MLP(3, 1, 64, 2, key=key)`, or `eqx.nn.make_with_state(Network)`.
        state: `eqx.nn.State` of a module called as `module(x, state)`, such as one with BatchNorm;
            with a factory it comes from there.
        batched: Whether the module takes examples along a leading axis. By default it takes one at
            a time, as those of equinox do, and is vmapped.
        **call: Keyword arguments of every call, for instance `key=...`; `apply` takes more.

    Returns:
        A model. Its `trace` records input and output of every Linear, Conv and ConvTranspose of
        equinox that is not itself called under a `vmap` of the module.

    Raises:
        TypeError: If `module` is none of the above.
        ValueError: If a layer is in training mode (BatchNorm, Dropout), or a call changes the state.

    Example:
        >>> import jax.numpy as jnp
        >>> import equinox as eqx
        >>> x = jnp.ones((4, 3))
        >>> model = from_equinox(lambda key: eqx.nn.MLP(3, 2, 8, 1, key=key))
        >>> params = model.init(jax.random.key(0), x)
        >>> model.apply(params, x).shape, params.layers[0].weight.shape
        ((4, 2), (8, 3))
        >>> trained = from_equinox(eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0)))
        >>> bool(jnp.allclose(trained.apply(trained.init(None, x), x), model.apply(params, x)))
        True
    """
    batched = guards.flag("batched", batched)
    _check_kind(module)
    if not _is_tree(module):
        check_factory(module, "from_equinox", "key", EXPECTED)
    built, own_state = _made(module, state, jax.random.key(0))
    _check_evaluation(type(built).__name__, built)
    if not any(map(is_weight, leaves_of(built))):
        raise TypeError(f"from_equinox got {built!r}, which has no weights, {EXPECTED}.")
    arrays, static = parted(call)
    functions = _functions(_Source(module, state), batched, arrays, static)
    constants = Constants((_buffers(built), own_state), arrays)
    return model_of(type(built).__name__, functions, constants)


@recipe
def _functions(source: _Source, batched: bool, arrays: dict[str, Any], static: dict[str, Any]):
    module, state = source.module, source.state
    built, own_state = _made(module, state, jax.random.key(0))
    leaves, treedef = jax.tree.flatten(built)
    name = type(built).__name__
    own_constants = Constants((_buffers(built), own_state), arrays)

    def called(constants, params, inputs, kwargs, noting=()):
        """The outputs, and what the layers to be noted took and gave."""
        buffers, held = constants.state
        own = jax.tree.unflatten(treedef, _filled(leaves, buffers))
        # None is a leaf here: weights and the rest have it in each other's places.
        network = jax.tree.map(_first, params, own, is_leaf=_is_none)
        call = {**static, **constants.call, **kwargs}

        def one(*example):
            noted: dict[str, Any] = {}
            function = _recording(network, noting, noted) if noting else network
            if held is None:
                return function(*example, **call), noted
            # A state that is set is used up: the call gets one of its own.
            before = jax.tree.map(lambda leaf: leaf, held)
            outputs, after = function(*example, before, **call)
            _check_unchanged(name, held, after)
            return outputs, noted

        with foreign_terms():
            return one(*inputs) if batched else jax.vmap(one)(*inputs)

    def apply(constants, params, *inputs, **kwargs):
        return called(constants, params, inputs, kwargs)[0]

    def trace(constants, params, *inputs, **kwargs):
        def noted(*names):
            return called(constants, params, inputs, kwargs, names)

        names = _affine_layers(built)
        try:
            return noted(*names)
        except jax.errors.UnexpectedTracerError:  # a layer under a vmap of the module
            # Values of an inner vmap must not leave it: each layer is tried by itself.
            return noted(*[name for name in names if _is_traceable(noted, name)])

    def init(key, *inputs):
        if _is_tree(module):
            check_no_key(name, key, "from_equinox", f"lambda key: {name}(..., key=key)")
        drawn = built if key is None else _made(module, state, key)[0]
        params = jax.tree.map(lambda leaf: leaf if is_weight(leaf) else None, drawn)
        params = astype(params, inputs)
        check_output(name, jax.eval_shape(apply, own_constants, params, *inputs), inputs)
        return params

    return init, apply, trace


class _Source:
    """A module or a factory of modules, and the state, which pickle with functions that jax has wrapped."""

    def __init__(self, module: Any, state: Any):
        self.module = module
        self.state = state

    def __reduce__(self):
        """What pickle keeps: both, and functions by their names."""
        file = io.BytesIO()
        NamingPickler(file).dump((self.module, self.state))
        return _source_again, (file.getvalue(),)


def _source_again(pickled: bytes) -> _Source:
    return _Source(*pickle.loads(pickled))


def _check_kind(module: Any) -> None:
    from flax import linen, nnx

    if not callable(module):
        raise TypeError(f"from_equinox got {module!r}, {EXPECTED}.")
    kinds = (linen.Module, nnx.Module)
    if isinstance(module, kinds) or (isinstance(module, type) and issubclass(module, kinds)):
        raise TypeError(f"from_equinox got {module!r}, {EXPECTED}: from_flax takes this one.")


def _is_tree(module: Any) -> bool:
    """Whether it is a tree, and not a function or a class, of which trees are made."""
    return not jax.tree_util.all_leaves([module])


def _made(source: Any, state: Any, key: Any) -> tuple[Any, Any]:
    """The module and its state."""
    if _is_tree(source):
        return source, state
    made = source(key=key)
    module, own = made if isinstance(made, tuple) and not callable(made) else (made, state)
    if not (callable(module) and _is_tree(module)):
        raise TypeError(
            f"from_equinox called the factory and got {type(module).__name__}, {EXPECTED}."
        )
    return module, own


def _buffers(module: Any) -> list[Any]:
    """Arrays without a derivative, as whole numbers and keys."""
    return list(filter(_is_buffer, leaves_of(module)))


def _is_buffer(leaf: Any) -> bool:
    return is_array(leaf) and not is_weight(leaf)


def _filled(leaves: list[Any], buffers: list[Any]) -> list[Any]:
    """The leaves of a module with these buffers, and None in the place of the weights."""
    others = iter(buffers)
    return [
        next(others) if _is_buffer(leaf) else None if is_array(leaf) else leaf for leaf in leaves
    ]


def _first(weight: Any, other: Any) -> Any:
    return other if weight is None else weight


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _nodes(module: Any) -> list[Any]:
    """All nodes of a tree."""
    nodes: list[Any] = []
    # append returns None, so that no node is a leaf, and the walk sees all of them.
    jax.tree.leaves(module, is_leaf=lambda node: bool(nodes.append(node)))
    return nodes


def _check_evaluation(name: str, module: Any) -> None:
    """Refuses layers in training mode, which draw random numbers or change their statistics."""
    training = [
        type(node).__name__
        for node in _nodes(module)
        # Dropout of probability 0 draws nothing, in training mode either.
        if getattr(node, "inference", True) is False and getattr(node, "p", 1) != 0
    ]
    if training:
        raise ValueError(
            f"from_equinox got {name} with {', '.join(sorted(set(training)))} in training mode, which draws random "
            "numbers or changes statistics; apply(params, x) has no state: pass equinox.nn.inference_mode(module), in "
            "a factory too."
        )


def _check_unchanged(name: str, before: Any, after: Any) -> None:
    pairs = zip(leaves_of(before), leaves_of(after), strict=True)
    if not all(old is new for old, new in pairs):
        raise ValueError(
            f"from_equinox got {name}, whose call changes its state; apply(params, x) returns none: pass "
            "equinox.nn.inference_mode(module)."
        )


class _Recorder:
    """A layer that notes the input and the output of its calls."""

    def __init__(self, layer: Callable[..., Any], name: str, noted: dict[str, Any]):
        self._layer = layer
        self._name = name
        self._noted = noted

    def __call__(self, x, *args, **kwargs):
        outputs = self._layer(x, *args, **kwargs)
        seen = sum(path.partition("#")[0] == self._name for path in self._noted)
        self._noted[self._name + (f"#{seen}" if seen else "")] = (x, outputs)
        return outputs

    # Modules look into their layers, for instance at out_features.
    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _is_affine(node: Any) -> bool:
    import equinox

    return isinstance(node, (equinox.nn.Linear, equinox.nn.Conv, equinox.nn.ConvTranspose))


def _affine_layers(module: Any) -> list[str]:
    """Paths of the layers that a trace notes."""
    nodes = jax.tree_util.tree_leaves_with_path(module, is_leaf=_is_affine)
    return [_path(path) for path, node in nodes if _is_affine(node)]


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _recording(module: Any, names: tuple[str, ...], noted: dict[str, Any]) -> Any:
    """The module with recorders in the place of the layers of these names."""

    def with_recorder(keys, node):
        name = _path(keys)
        return _Recorder(node, name, noted) if name in names else node

    return jax.tree_util.tree_map_with_path(with_recorder, module, is_leaf=_is_affine)


def _is_traceable(noted: Callable[..., Any], name: str) -> bool:
    """Whether the values of a layer belong to the call as a whole."""
    try:
        jax.eval_shape(lambda: noted(name))
    except jax.errors.UnexpectedTracerError:
        return False
    return True
