"""Modules of flax nnx: variables that are no parameters are constants, and a call may change none of them."""

from __future__ import annotations

import functools
from typing import Any

import jax

from lazynet.models.foreign.calls import (
    Constants,
    astype,
    check_no_key,
    check_output,
    foreign_terms,
    model_of,
    parted,
)
from lazynet.models.model import Model
from lazynet.recipes import recipe

SWITCHES = ("deterministic", "use_running_average")
"""Attributes of layers that are false in training."""


def from_nnx(source: Any, call: dict[str, Any]) -> Model:
    """The model of a module that exists or, `source` being a factory, of those that it makes."""
    from flax import nnx

    if isinstance(source, nnx.Module):
        # A copy: the module may be trained on, or set to another mode.
        source = _Held(nnx.clone(source))
    built = source.module if isinstance(source, _Held) else source(rngs=nnx.Rngs(0))
    _, _, constants = nnx.split(built, nnx.Param, ...)
    name = type(built).__name__
    # Keyword arguments of the call may switch layers to evaluation: only a call then tells.
    if not call and _is_training(built):
        _check_state(name, constants)
    arrays, static = parted(call)
    functions = _functions(source, arrays, static)
    return model_of(name, functions, Constants(nnx.to_pure_dict(constants), arrays))


class _Held:
    """A module as it is now: the one that it is a copy of may change."""

    def __init__(self, module: Any):
        self.module = module


@recipe
def _functions(source: Any, arrays: dict[str, Any], static: dict[str, Any]):
    from flax import nnx

    held = isinstance(source, _Held)
    built = source.module if held else source(rngs=nnx.Rngs(0))
    graphdef, _, own_state = nnx.split(built, nnx.Param, ...)
    name = type(built).__name__

    def called(constants, params, inputs, kwargs, records=None):
        # What the call changes is lost with the copy.
        fresh = jax.tree.map(lambda value: value, constants.state)
        module = nnx.merge(graphdef, nnx.State(params), nnx.State(fresh))
        if records is not None:
            module = _recording(module, records)
        before = _state(module)
        with foreign_terms():
            outputs = module(*inputs, **{**static, **constants.call, **kwargs})
        after = _state(module)
        # By identity: values may be traced, and what a call writes is another object.
        _check_unchanged(
            name, [path for path, value in after.items() if value is not before.get(path)]
        )
        return outputs

    def apply(constants, params, *inputs, **kwargs):
        return called(constants, params, inputs, kwargs)

    def trace(constants, params, *inputs, **kwargs):
        records: dict[str, Any] = {}
        outputs = called(constants, params, inputs, kwargs, records)
        return outputs, records

    def init(key, *inputs):
        if held:
            check_no_key(name, key, "from_flax", f"lambda rngs: {name}(..., rngs=rngs)")
        drawn = built if held else source(rngs=nnx.Rngs(key))
        params = astype(nnx.to_pure_dict(nnx.state(drawn, nnx.Param)), inputs)
        constants = Constants(nnx.to_pure_dict(own_state), arrays)
        check_output(name, jax.eval_shape(apply, constants, params, *inputs), inputs)
        return params

    return init, apply, trace


def _recording(module: Any, records: dict[str, Any]) -> Any:
    """A module of one's own, whose affine layers note inputs and outputs: their classes are replaced, in it alone."""
    from flax import nnx

    affine = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.ConvTranspose)
    for path, node in list(nnx.iter_graph(module)):
        if isinstance(node, affine):
            name = "/".join(map(str, path))
            object.__setattr__(node, "__class__", _noting(type(node), name, records))
    return module


def _noting(kind: type, name: str, records: dict[str, Any]) -> type:
    """The class whose calls are those of `kind` and are noted by this name."""

    def call(self, x, *args, **kwargs):
        outputs = kind.__call__(self, x, *args, **kwargs)
        # Calls of a shared layer are numbered: name, name#1, name#2.
        seen = sum(path.partition("#")[0] == name for path in records)
        records[name + (f"#{seen}" if seen else "")] = (x, outputs)
        return outputs

    functools.update_wrapper(call, kind.__call__)
    return type(kind)(kind.__name__, (kind,), {"__call__": call})


def _state(module: Any) -> dict[str, Any]:
    """The arrays beside the parameters by their paths, without what a call leaves for those who look inside."""
    from flax import nnx

    _, _, _, state = nnx.split(module, nnx.Param, nnx.Intermediate, ...)
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

    return any(
        getattr(node, switch, None) is False
        for _, node in nnx.iter_graph(module)
        for switch in SWITCHES
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
