"""Modules of flax linen: variables of all collections but the parameters are constants."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from lazynet.models.foreign.calls import (
    Constants,
    NamingPickler,
    astype,
    check_no_key,
    check_output,
    foreign_terms,
    model_of,
    one_example,
    parted,
)
from lazynet.models.model import Model
from lazynet.recipes import recipe


def from_linen(module: Any, variables: Mapping[str, Any] | None, call: dict[str, Any]) -> Model:
    """The model of a module, with its variables if there are some."""
    # A bound module: its variables are taken from it, and `apply` takes the bare one.
    if module.scope is not None:
        variables = module.variables if variables is None else variables
        module = module.unbind()[0]
    if variables is not None and not isinstance(variables, Mapping):
        raise TypeError(
            f"from_flax got variables={variables!r}, expected a dictionary of collections such as 'params'."
        )
    held = None if variables is None else dict(variables)
    state = None if held is None else _without_params(held)
    arrays, static = parted(call)
    functions = _functions(_Linen(module), held, arrays, static)
    return model_of(type(module).__name__, functions, Constants(state, arrays))


@recipe
def _functions(source: _Linen, held: Any, arrays: dict[str, Any], static: dict[str, Any]):
    module = source.module
    name = type(module).__name__

    def variables_of(constants, params, inputs):
        state = constants.state
        if state is None:
            state = _drawn(module, inputs, constants.call, static)
        return {"params": params, **state}

    def apply(constants, params, *inputs, **kwargs):
        call = {**static, **constants.call, **kwargs}
        with _refusals(name), foreign_terms():
            return module.apply(variables_of(constants, params, inputs), *inputs, **call)

    def init(key, *inputs):
        variables = held
        # Variables may hold statistics alone: weights are then still to be drawn.
        if held is not None and "params" in held:
            factory = f"lambda rngs: {name}(..., rngs=rngs)"
            check_no_key(name, key, "from_flax", factory)
        else:
            with foreign_terms():
                variables = module.init(key, *one_example(inputs), **static, **arrays)
        params = astype(variables.get("params", {}), inputs)
        constants = Constants(None if held is None else _without_params(held), arrays)
        check_output(name, jax.eval_shape(apply, constants, params, *inputs), inputs)
        return params

    def trace(constants, params, *inputs, **kwargs):
        from flax import linen, traverse_util

        # Before records are taken, which must not be those of the example of zeros.
        variables = variables_of(constants, params, inputs)
        call = {**static, **constants.call, **kwargs}
        with foreign_terms(), linen.intercept_methods(_record):
            outputs, sown = module.apply(variables, *inputs, mutable=["trace"], **call)
        # Sown under (*path of the layer, "calls"), an entry for each call of it.
        calls: Any = traverse_util.flatten_dict(sown.get("trace", {}))
        records = {}
        for keys, entries in calls.items():
            for i, entry in enumerate(entries):
                records["/".join(keys[:-1]) + (f"#{i}" if i else "")] = entry
        return outputs, records

    return init, apply, trace


def _record(call_layer: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Keeps the input and the output of affine layers."""
    from flax import linen

    affine = (linen.Dense, linen.DenseGeneral, linen.Conv, linen.ConvTranspose)
    outputs = call_layer(*args, **kwargs)
    if context.method_name == "__call__" and isinstance(context.module, affine):
        context.module.sow("trace", "calls", (args[0], outputs))
    return outputs


def _drawn(module: Any, inputs: Any, arrays: dict[str, Any], static: dict[str, Any]) -> Any:
    """The collections beside the parameters of the module's own init, drawn by the program that uses them.

    Nothing else of init is computed: a compiler drops what has no use.
    """

    def draw(arrays):
        with foreign_terms():
            variables = module.init(jax.random.key(0), *one_example(inputs), **static, **arrays)
        return _without_params(variables)

    shapes = jax.eval_shape(draw, arrays)
    # Most modules have parameters only: nothing is compiled for them.
    return jax.jit(draw)(arrays) if jax.tree.leaves(shapes) else shapes


def _without_params(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in variables.items() if name != "params"}


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
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
            "statistics, from_flax(module, variables, train=False) where __call__ has such an argument."
        ) from error


class _Linen:
    """A linen module that pickles, also where fields have their defaults, of which initializers are closures."""

    def __init__(self, module: Any):
        self.module = module

    def __reduce__(self):
        """What pickle keeps: the module by its own rule."""
        file = io.BytesIO()
        _LinenPickler(file).dump(self.module)
        return _linen_again, (file.getvalue(),)


class _LinenPickler(NamingPickler):
    """Keeps modules, nested ones too, as their class and those fields that are not its defaults."""

    def reducer_override(self, obj: Any) -> Any:
        """The call that makes a module again; other objects pickle as they do."""
        from flax import linen

        if not isinstance(obj, linen.Module):
            return super().reducer_override(obj)
        # Made without a parent: a nested module gets its own when it is bound.
        own = [field for field in dataclasses.fields(obj) if field.init and field.name != "parent"]
        values = {
            field.name: getattr(obj, field.name)
            for field in own
            # Default initializers are closures, which pickle refuses; the class brings them back.
            if getattr(obj, field.name) is not field.default
        }
        return functools.partial(type(obj), parent=None, **values), ()


def _linen_again(pickled: bytes) -> _Linen:
    return _Linen(pickle.loads(pickled))
