"""Models written elsewhere, flax modules and neural-tangents triples, as `Model`s of finite width."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lazynet.models.model import Model, layer
from lazynet.recipes import found, named, recipe
from lazynet.typing import Params

__all__ = ["from_flax", "from_neural_tangents"]


def from_flax(module: Any, **call: Any) -> Model:
    """The finite-width model `h(w, x) = module(x)` of a flax module: linen, or nnx through a factory.

    Everything that takes a function `apply(params, x)` then works on a network you already have:
    `linearize`, `lazy`, `empirical_ntk`, `is_lazy`. `params` is a plain nested dictionary in the
    dtype of `x`: the `"params"` collection of linen, `nnx.to_pure_dict(nnx.state(module,
    nnx.Param))` of nnx. There is no infinite-width rule.

    Args:
        module: One of

            - a linen module, `MLP(features=64)`, or one with its variables, `MLP(64).bind(variables)`, of which
              `init(None, x)` returns the weights;
            - a factory of nnx modules, called as `module(rngs=nnx.Rngs(key))`: `lambda rngs: MLP(64, rngs=rngs)` or
              `functools.partial(MLP, 64)`, so that `init` draws new weights for every key;
            - an nnx module that exists already, for instance a trained one. It holds one set of weights, which
              `init(None, x)` returns; with a key, `init` raises instead of returning the same weights again.
        **call: Keyword arguments of every call of the module, for instance `train=False`. State besides the parameters
            (statistics of BatchNorm, generators of Dropout) stays as it is: that of the variables or of the module that
            is given, else that of a new module.

    Returns:
        A model. Its `trace` records input and output of every linen Dense, DenseGeneral, Conv and
        ConvTranspose (path `name#1` for the second call of a shared layer); for nnx, which has no
        hook for it in all supported versions, it records nothing.

    Raises:
        TypeError: If `module` is none of the above.
        ValueError: If the module changes state besides its parameters (BatchNorm in training) or
            draws random numbers in a call (Dropout in training): where layers of nnx say so at
            once, else in `init`, which sees the shapes.

    Example:
        >>> from flax import linen, nnx
        >>> x = jnp.ones((4, 3))
        >>> model = from_flax(linen.Sequential([linen.Dense(8), jnp.tanh, linen.Dense(2)]))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (4, 2)
        >>> model = from_flax(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
        >>> sorted(model.init(jax.random.key(0), x))
        ['bias', 'kernel']
    """
    from flax import linen, nnx

    if isinstance(module, linen.Module):
        return _from_linen(module, call)
    if isinstance(module, nnx.Module):
        return _from_nnx(module, call)
    _check_factory(module, linen.Module)
    _check_made(nnx.eval_shape(lambda: module(rngs=nnx.Rngs(0))))
    return _from_nnx(module, call)


def from_neural_tangents(triple: Any) -> Model:
    """The finite-width model of `(init_fn, apply_fn, kernel_fn)`, as every layer of neural-tangents' stax returns it.

    Parameters keep their structure (lists and tuples) and get the dtype of `x`. `kernel_fn` is a
    closed function of inputs, not a rule that could be composed with other layers, so the model has
    no `kernel`: call `kernel_fn(x1, x2)` itself, or write the network with `lazynet.stax`.

    Args:
        triple: `init_fn(key, input_shape) -> (output_shape, params)`, `apply_fn(params, x)` and
            `kernel_fn`.

    Raises:
        TypeError: If it is not three values that begin with two functions.

    Example:
        >>> def init_fn(key, input_shape):
        ...     return (-1, 2), (jax.random.normal(key, (input_shape[-1], 2)),)
        >>> model = from_neural_tangents((init_fn, lambda params, x: x @ params[0], None))
        >>> x = jnp.ones((4, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (4, 2)
    """
    if not (
        isinstance(triple, tuple)
        and len(triple) == 3
        and callable(triple[0])
        and callable(triple[1])
    ):
        raise TypeError(
            f"from_neural_tangents got {triple!r}, expected the triple (init_fn, apply_fn, kernel_fn), "
            "for instance stax.serial(...) with its call."
        )
    init_fn, apply_fn, _ = triple
    init, apply = _triple_functions(init_fn, apply_fn)
    return layer("neural_tangents", apply, init=init)


@recipe
def _triple_functions(init_fn: Callable[..., Any], apply_fn: Callable[..., Any]):
    def init(key, x):
        _, params = init_fn(key, (-1, *x.shape[1:]))
        return _astype(params, x)

    def apply(params, x):
        with _foreign_terms():
            return apply_fn(params, x)

    return init, apply


class _Linen:
    """A linen module that pickles, also where fields have their defaults, of which initializers are closures."""

    def __init__(self, module: Any):
        self.module = module

    def __reduce__(self):
        """What pickle keeps: the module by its own rule."""
        file = io.BytesIO()
        _LinenPickler(file).dump(self.module)
        return _linen_again, (file.getvalue(),)


class _LinenPickler(pickle.Pickler):
    """Keeps modules, nested ones too, as their class and those fields that are not its defaults."""

    def reducer_override(self, obj: Any) -> Any:
        """The call that makes a module again; other objects pickle as they do."""
        from flax import linen

        if not isinstance(obj, linen.Module):
            name = named(obj)
            return NotImplemented if name is obj else (found, (name,))
        own = [field for field in dataclasses.fields(obj) if field.init and field.name != "parent"]
        values = {
            field.name: getattr(obj, field.name)
            for field in own
            if getattr(obj, field.name) is not field.default
        }
        return functools.partial(type(obj), parent=None, **values), ()


def _linen_again(pickled: bytes) -> _Linen:
    return _Linen(pickle.loads(pickled))


@contextlib.contextmanager
def _linen_refusals(name):
    """Says what a module may not do in a pure call, and the way out, instead of flax's errors."""
    from flax import errors

    try:
        yield
    except errors.InvalidRngError as error:
        raise ValueError(
            f"from_flax got {name}, which draws random numbers in its call ({error}); apply(params, "
            "x) takes no key: drop dropout, or switch it off, for instance from_flax(module, "
            "deterministic=True) where the module's __call__ has this argument."
        ) from error
    except errors.ModifyScopeVariableError as error:
        raise ValueError(
            f"from_flax got {name}, which changes state besides its parameters, such as batch_stats ({error}); "
            "apply(params, x) returns none: use GroupNorm or LayerNorm instead of BatchNorm, or freeze its "
            "statistics, from_flax(module.bind(variables), train=False) where __call__ has such an argument."
        ) from error


def _from_linen(module: Any, call: dict[str, Any]) -> Model:
    held = None if module.scope is None else module.variables
    module = module if held is None else module.unbind()[0]
    init, apply, trace = _linen_functions(_Linen(module), held, call)
    return Model(init, apply, trace, None, type(module).__name__)


@recipe
def _linen_functions(source: _Linen, held: Any, call: dict[str, Any]):
    from flax import linen, traverse_util

    affine = (linen.Dense, linen.DenseGeneral, linen.Conv, linen.ConvTranspose)
    module = source.module
    name = type(module).__name__

    @functools.lru_cache(maxsize=8)
    def constants(shape, dtype):
        """The collections beside the parameters."""
        if held is not None:
            return {kind: values for kind, values in held.items() if kind != "params"}
        with jax.ensure_compile_time_eval(), _foreign_terms():
            variables = module.init(jax.random.key(0), jnp.zeros((1, *shape), dtype), **call)
        return {kind: values for kind, values in variables.items() if kind != "params"}

    def apply(params, x):
        with _linen_refusals(name), _foreign_terms():
            fixed = constants(x.shape[1:], jnp.dtype(x.dtype))
            return module.apply({"params": params, **fixed}, x, **call)

    def init(key, x):
        variables = held
        if held is not None:
            _check_no_key(name, key)
        else:
            with _foreign_terms():
                variables = module.init(key, jnp.zeros((1, *x.shape[1:]), x.dtype), **call)
        params = _astype(variables.get("params", {}), x)
        _check_output(name, jax.eval_shape(apply, params, x), x)
        return params

    def record(call_layer, args, kwargs, context):
        outputs = call_layer(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, affine):
            context.module.sow("trace", "calls", (args[0], outputs))
        return outputs

    def trace(params, x):
        # Before records are taken, which must not be those of the example of zeros.
        fixed = constants(x.shape[1:], jnp.dtype(x.dtype))
        with _foreign_terms(), linen.intercept_methods(record):
            outputs, sown = module.apply({"params": params, **fixed}, x, mutable=["trace"], **call)
        calls: Any = traverse_util.flatten_dict(sown.get("trace", {}))
        records = {}
        for keys, entries in calls.items():
            records |= {_path(keys[:-1], i): entry for i, entry in enumerate(entries)}
        return outputs, records

    return init, apply, trace


def _from_nnx(source: Any, call: dict[str, Any]) -> Model:
    from flax import nnx

    name = type(source if isinstance(source, nnx.Module) else source(rngs=nnx.Rngs(0))).__name__
    init, apply = _nnx_functions(source, call)
    return layer(name, apply, init=init)


@recipe
def _nnx_functions(source: Any, call: dict[str, Any]):
    """Of a module that exists or, `source` being a factory, of those that it makes."""
    from flax import nnx

    held = isinstance(source, nnx.Module)
    built = source if held else source(rngs=nnx.Rngs(0))
    draw = _held_parameters(source) if held else _drawn_parameters(source)
    graphdef, _, constants = nnx.split(built, nnx.Param, ...)
    name = type(built).__name__
    if not call and _is_training(built):
        _check_state(name, constants)

    def called(params, x):
        """The outputs, and where the call changed state besides the parameters."""
        # What the call changes is lost with the copy.
        fresh = jax.tree.map(lambda value: value, constants)
        module = nnx.merge(graphdef, nnx.State(params), fresh)
        before = _values(nnx.split(module, nnx.Param, ...)[2])
        with _foreign_terms():
            outputs = module(x, **call)
        after = _values(nnx.split(module, nnx.Param, ...)[2])
        return outputs, [path for path, value in after.items() if value is not before.get(path)]

    def apply(params, x):
        return called(params, x)[0]

    def init(key, x):
        params = _astype(nnx.to_pure_dict(nnx.state(draw(key), nnx.Param)), x)
        changed: list[str] = []

        def outputs_of(params, x):
            outputs, places = called(params, x)
            changed.extend(places)
            return outputs

        outputs = jax.eval_shape(outputs_of, params, x)
        _check_unchanged(name, changed)
        _check_output(name, outputs, x)
        return params

    return init, apply


def _drawn_parameters(factory: Callable[..., Any]) -> Callable[[Any], Any]:
    from flax import nnx

    return lambda key: factory(rngs=nnx.Rngs(key))


def _held_parameters(module: Any) -> Callable[[Any], Any]:
    name = type(module).__name__

    def draw(key):
        _check_no_key(name, key)
        return module

    return draw


def _check_no_key(name: str, key: Any) -> None:
    if key is not None:
        raise ValueError(
            f"init got a key, but {name} was given to from_flax as an instance, which holds one set "
            f"of weights: call init(None, x) for these, or from_flax(lambda rngs: {name}(..., "
            "rngs=rngs)) to draw new ones by key."
        )


def _check_factory(factory: Any, linen_module: type) -> None:
    expected = "expected a linen module, an nnx module or a factory of nnx modules, lambda rngs: MLP(..., rngs=rngs)"
    if not callable(factory):
        raise TypeError(f"from_flax got {factory!r}, {expected}.")
    if isinstance(factory, type) and issubclass(factory, linen_module):
        raise TypeError(
            f"from_flax got the class {factory.__name__}, {expected}: call it, {factory.__name__}(...)."
        )
    signature = inspect.signature(
        functools.partial(factory.__init__, None) if isinstance(factory, type) else factory
    )
    try:
        signature.bind(rngs=None)
    except TypeError as error:
        raise TypeError(
            f"from_flax got a function with the signature {signature}, which cannot be called with rngs "
            f"alone ({error}); {expected}."
        ) from error


def _check_made(module: Any) -> None:
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"from_flax called the factory and got {type(module).__name__}, expected an nnx.Module."
        )


def _values(state: Any) -> dict[str, Any]:
    """The arrays of a state by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _check_unchanged(name: str, changed: list[str]) -> None:
    if changed:
        raise ValueError(
            f"from_flax got {name}, whose call changes state besides its parameters: {', '.join(changed)}; "
            "apply(params, x) returns none and takes no key: switch BatchNorm and Dropout to evaluation by "
            "module.eval(), in a factory before it returns the module, or use GroupNorm or LayerNorm, and no dropout."
        )


def _is_training(module: Any) -> bool:
    """Whether a layer says that its calls draw random numbers or update statistics."""
    from flax import nnx

    switches = ("deterministic", "use_running_average")
    return any(
        getattr(node, name, None) is False
        for _, node in nnx.iter_graph(module)
        for name in switches
    )


def _check_state(name: str, state: Any) -> None:
    from flax import nnx

    kinds = {
        "/".join(map(str, path)): getattr(leaf, "type", type(leaf))
        for path, leaf in nnx.to_flat_state(state)
    }
    random = [path for path, kind in kinds.items() if issubclass(kind, nnx.RngState)]
    if random:
        raise ValueError(
            f"from_flax got {name}, which holds random number generators at {', '.join(random)}; "
            "apply(params, x) takes no key: drop dropout, build it with nnx.Dropout(rate, deterministic=True), or "
            "switch the module to evaluation, module.eval(), in a factory before it returns the module."
        )
    if kinds:
        where = ", ".join(f"{path} ({kind.__name__})" for path, kind in kinds.items())
        raise ValueError(
            f"from_flax got {name}, which changes state besides its parameters: {where}. apply(params, x) has none: "
            "use GroupNorm or LayerNorm instead of BatchNorm, or freeze trained statistics by module.eval(), in a "
            "factory before it returns the module."
        )


def _check_output(name: str, outputs: Any, x: Any) -> None:
    if not (hasattr(outputs, "shape") and outputs.shape[:1] == x.shape[:1]):
        raise ValueError(
            f"{name} returned {outputs!r}, expected one array with the batch axis first, "
            f"[{x.shape[0]}, ...]: wrap the module in one that returns its outputs alone."
        )


def _astype(params: Params, x: Any) -> Params:
    """Parameters in the dtype of `x`; as they were drawn where `x` is made of integers (tokens)."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return params
    return jax.tree.map(
        lambda w: w.astype(x.dtype) if jnp.issubdtype(w.dtype, jnp.floating) else w, params
    )


def _path(names: tuple[str, ...], i: int) -> str:
    return "/".join(names) + (f"#{i}" if i else "")


@contextlib.contextmanager
def _foreign_terms() -> Iterator[None]:
    """Layers of flax and neural-tangents rely on implicit promotion, also where the caller's own code forbids it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
