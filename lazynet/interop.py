"""Models written elsewhere, flax modules and neural-tangents triples, as `Model`s of finite width."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lazynet.model import Model, layer
from lazynet.typing import Params

__all__ = ["from_flax", "from_neural_tangents"]


def from_flax(module: Any, **call: Any) -> Model:
    """The finite-width model `h(w, x) = module(x)` of a flax module: linen, or nnx through a factory.

    Everything that takes a function `apply(params, x)` then works on a network you already have: `linearize`,
    `lazy`, `empirical_ntk`, `is_lazy`. `params` is a plain nested dictionary in the dtype of `x`: the `"params"`
    collection of linen, `nnx.to_pure_dict(nnx.state(module, nnx.Param))` of nnx. There is no infinite-width rule.

    Args:
        module: One of

            - a linen module, `MLP(features=64)`;
            - a factory of nnx modules, called as `module(rngs=nnx.Rngs(key))`: `lambda rngs: MLP(64, rngs=rngs)` or
              `functools.partial(MLP, 64)`, so that `init` draws new weights for every key;
            - an nnx module that exists already, for instance a trained one. It holds one set of weights, which
              `init(None, x)` returns; with a key, `init` raises instead of returning the same weights again.
        **call: Keyword arguments of every call of the module, for instance `train=False`.

    Returns:
        A model. Its `trace` records input and output of every linen Dense, DenseGeneral, Conv and ConvTranspose
        (path `name#1` for the second call of a shared layer); for nnx, which has no hook for it in all supported
        versions, it records nothing.

    Raises:
        TypeError: If `module` is none of the above.
        ValueError: If the module keeps state besides its parameters (BatchNorm) or draws random numbers in a call
            (Dropout): from nnx at once, from linen in `init`, which sees the shapes.

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
        return _from_nnx(lambda: module, _held_parameters(module), call)
    _check_factory(module, linen.Module)
    return _from_nnx(lambda: module(rngs=nnx.Rngs(0)), _drawn_parameters(module), call)


def from_neural_tangents(triple: Any) -> Model:
    """The finite-width model of `(init_fn, apply_fn, kernel_fn)`, as every layer of neural-tangents' stax returns it.

    Parameters keep their structure (lists and tuples) and get the dtype of `x`. `kernel_fn` is a closed function of
    inputs, not a rule that could be composed with other layers, so the model has no `kernel`: call `kernel_fn(x1, x2)`
    itself, or write the network with `lazynet.stax`.

    Args:
        triple: `init_fn(key, input_shape) -> (output_shape, params)`, `apply_fn(params, x)` and `kernel_fn`.

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
    if not (isinstance(triple, tuple) and len(triple) == 3 and callable(triple[0]) and callable(triple[1])):
        raise TypeError(
            f"from_neural_tangents got {triple!r}, expected the triple (init_fn, apply_fn, kernel_fn), "
            "for instance stax.serial(...) with its call."
        )
    init_fn, apply_fn, _ = triple

    def init(key, x):
        _, params = init_fn(key, (-1, *x.shape[1:]))
        return _astype(params, x)

    def apply(params, x):
        with _foreign_terms():
            return apply_fn(params, x)

    return layer("neural_tangents", apply, init=init)


def _from_linen(module: Any, call: dict[str, Any]) -> Model:
    from flax import errors, linen, traverse_util

    affine = (linen.Dense, linen.DenseGeneral, linen.Conv, linen.ConvTranspose)
    name = type(module).__name__

    def apply(params, x):
        with _foreign_terms():
            return module.apply({"params": params}, x, **call)

    def init(key, x):
        with _foreign_terms():
            variables = module.init(key, jnp.zeros((1, *x.shape[1:]), x.dtype), **call)
        _check_collections(name, variables)
        params = _astype(variables.get("params", {}), x)
        try:
            _check_output(name, jax.eval_shape(apply, params, x), x)
        except errors.InvalidRngError as error:
            raise ValueError(
                f"from_flax got {name}, which draws random numbers in its call ({error}); apply(params, "
                "x) takes no key: drop dropout, or switch it off, for instance from_flax(module, "
                "deterministic=True) where the module's __call__ has this argument."
            ) from error
        return params

    def record(call_layer, args, kwargs, context):
        outputs = call_layer(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, affine):
            context.module.sow("trace", "calls", (args[0], outputs))
        return outputs

    def trace(params, x):
        with _foreign_terms(), linen.intercept_methods(record):
            outputs, sown = module.apply({"params": params}, x, mutable=["trace"], **call)
        calls: Any = traverse_util.flatten_dict(sown.get("trace", {}))
        return outputs, {_path(keys[:-1], i): entry for keys, own in calls.items() for i, entry in enumerate(own)}

    return Model(init, apply, trace, None, name)


def _from_nnx(build: Callable[[], Any], draw: Callable[[Any], Any], call: dict[str, Any]) -> Model:
    from flax import nnx

    abstract = nnx.eval_shape(build)
    if not isinstance(abstract, nnx.Module):
        raise TypeError(f"from_flax called the factory and got {type(abstract).__name__}, expected an nnx.Module.")
    graphdef, _, state = nnx.split(abstract, nnx.Param, ...)
    name = type(abstract).__name__
    _check_state(name, state)

    def apply(params, x):
        with _foreign_terms():
            return nnx.merge(graphdef, nnx.State(params))(x, **call)

    def init(key, x):
        params = _astype(nnx.to_pure_dict(nnx.state(draw(key), nnx.Param)), x)
        _check_output(name, jax.eval_shape(apply, params, x), x)
        return params

    return layer(name, apply, init=init)


def _drawn_parameters(factory: Callable[..., Any]) -> Callable[[Any], Any]:
    from flax import nnx

    return lambda key: factory(rngs=nnx.Rngs(key))


def _held_parameters(module: Any) -> Callable[[Any], Any]:
    name = type(module).__name__

    def draw(key):
        if key is not None:
            raise ValueError(
                f"init got a key, but {name} was given to from_flax as an instance, which holds one set "
                f"of weights: call init(None, x) for these, or from_flax(lambda rngs: {name}(..., "
                "rngs=rngs)) to draw new ones by key."
            )
        return module

    return draw


def _check_factory(factory: Any, linen_module: type) -> None:
    expected = "expected a linen module, an nnx module or a factory of nnx modules, lambda rngs: MLP(..., rngs=rngs)"
    if not callable(factory):
        raise TypeError(f"from_flax got {factory!r}, {expected}.")
    if isinstance(factory, type) and issubclass(factory, linen_module):
        raise TypeError(f"from_flax got the class {factory.__name__}, {expected}: call it, {factory.__name__}(...).")
    signature = inspect.signature(functools.partial(factory.__init__, None) if isinstance(factory, type) else factory)
    try:
        signature.bind(rngs=None)
    except TypeError as error:
        raise TypeError(
            f"from_flax got a function with the signature {signature}, which cannot be called with rngs "
            f"alone ({error}); {expected}."
        ) from error


def _check_collections(name: str, variables: Any) -> None:
    extra = {key: ", ".join(sorted(value)) for key, value in variables.items() if key != "params"}
    if extra:
        collections = "; ".join(f"{key!r} of {where}" for key, where in extra.items())
        raise ValueError(
            f"from_flax got {name}, which keeps state besides its parameters: collection {collections}. apply(params, "
            "x) carries none: use GroupNorm or LayerNorm instead of BatchNorm, or freeze trained statistics yourself, "
            "layer(name, lambda params, x: module.apply({'params': params, 'batch_stats': stats}, x), init=...)."
        )


def _check_state(name: str, state: Any) -> None:
    from flax import nnx

    kinds = {"/".join(map(str, path)): getattr(leaf, "type", type(leaf)) for path, leaf in nnx.to_flat_state(state)}
    random = [path for path, kind in kinds.items() if issubclass(kind, nnx.RngState)]
    if random:
        raise ValueError(
            f"from_flax got {name}, which holds random number generators at {', '.join(random)}; "
            "apply(params, x) takes no key: drop dropout, or build it without rngs, "
            "nnx.Dropout(rate, deterministic=True)."
        )
    if kinds:
        where = ", ".join(f"{path} ({kind.__name__})" for path, kind in kinds.items())
        raise ValueError(
            f"from_flax got {name}, which keeps state besides its parameters: {where}. apply(params, x) carries none: "
            "use GroupNorm or LayerNorm instead of BatchNorm, or freeze trained statistics yourself, "
            "graphdef, params, rest = nnx.split(module, nnx.Param, ...) and "
            "layer(name, lambda params, x: nnx.merge(graphdef, params, rest)(x), init=...)."
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
    return jax.tree.map(lambda w: w.astype(x.dtype) if jnp.issubdtype(w.dtype, jnp.floating) else w, params)


def _path(names: tuple[str, ...], i: int) -> str:
    return "/".join(names) + (f"#{i}" if i else "")


@contextlib.contextmanager
def _foreign_terms() -> Iterator[None]:
    """Layers of flax and neural-tangents rely on implicit promotion, also where the caller's own code forbids it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
