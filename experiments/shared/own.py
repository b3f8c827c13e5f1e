"""A network of one's own for an experiment: `--set model=my_net.py:build`."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import lazynet as ln

__all__ = ["digest", "own_model"]


def own_model(place: str) -> ln.Model:
    """The model of `FILE.py:FUNCTION`, of any kind that lazynet takes.

    The function returns a `Model`, a module of flax or equinox (or the module and its state), or
    `(init, apply)`. With an argument `rngs` or `key` it is called once for each seed, as a factory
    of modules; a module that exists already starts every seed from the weights that it holds.

    Args:
        place: The file and the name of the function in it.

    Raises:
        ValueError: If there is no such file or function.
        TypeError: If it returns nothing that is a network.
    """
    file, function = _parts(place)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"model={place}, expected FILE.py:FUNCTION: {file} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        raise ValueError(f"model={place}, expected a function of {file}: it has none of this name.")
    arguments = set(inspect.signature(build).parameters)
    if "rngs" in arguments:
        return ln.from_flax(build)
    if "key" in arguments:
        return ln.from_equinox(build)
    return _as_model(build(), place)


def digest(place: str) -> str:
    """Eight hexadecimal digits of the file: a changed network is another one."""
    return hashlib.sha256(_parts(place)[0].read_bytes()).hexdigest()[:8]


def _parts(place: str) -> tuple[Path, str]:
    name, _, function = place.rpartition(":")
    file = Path(name)
    if not name or not function or not file.is_file():
        raise ValueError(
            f"model={place}, expected FILE.py:FUNCTION with a file that exists, for instance my_net.py:build."
        )
    return file, function


def _as_model(made: Any, place: str) -> ln.Model:
    from flax import linen, nnx

    if isinstance(made, ln.Model):
        return made
    # Unbound: it holds no weights, and draws some for every seed.
    if isinstance(made, linen.Module) and made.scope is None:
        return ln.from_flax(made)
    if isinstance(made, (linen.Module, nnx.Module)):
        return _held(ln.from_flax(made))
    if isinstance(made, tuple) and len(made) == 2 and callable(made[0]):
        # Two functions are (init, apply); a module beside its state can be called as well.
        is_pair = inspect.isroutine(made[0]) and inspect.isroutine(made[1])
        if is_pair:
            return ln.layer("own", made[1], init=made[0])
        return _held(ln.from_equinox(*made))
    if callable(made):
        return _held(ln.from_equinox(made))
    raise TypeError(
        f"model={place} returned {type(made).__name__}, expected a lazynet Model, a module of flax or equinox, or "
        "(init, apply)."
    )


def _held(model: ln.Model) -> ln.Model:
    """The model whose init gives the weights that it holds, whatever the key."""
    return model._replace(init=lambda key, x: model.init(None, x))
