"""Functions that know how they were made: they pickle, and equal recipes make one and the same function.

A layer is a few functions that share constants, closures of the function that makes them. Closures
neither pickle, so that no process could be given one, nor compare, so that the same network built
again would be compiled again.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jax.tree_util import Partial

__all__ = ["Function", "call_of", "found", "named", "recipe"]

Maker = TypeVar("Maker", bound=Callable[..., Any])

_FUNCTIONS: weakref.WeakValueDictionary[Any, Function] = weakref.WeakValueDictionary()
_LOCK = threading.RLock()


class _Named(NamedTuple):
    """Where a function is found: its module and its name there."""

    module: str
    name: str

    def find(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)


def named(value: Any) -> Any:
    """A wrapped function as the name that its module gives it, if there is one; all else as it is.

    Pickle looks for the plain function that `jit` and `custom_jvp` have wrapped, and refuses what
    it finds under its name: `jnp.tanh`, `jax.nn.relu`, and those of users.

    Example:
        >>> import jax
        >>> found(named(jax.nn.relu)) is jax.nn.relu
        True
        >>> named(3)
        3
    """
    module = getattr(value, "__module__", None)
    name = getattr(value, "__name__", None)
    plain = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
    if plain or not (callable(value) and isinstance(module, str) and isinstance(name, str)):
        return value
    return _Named(module, name) if getattr(sys.modules.get(module), name, None) is value else value


def found(value: Any) -> Any:
    """What `named` was given.

    Example:
        >>> found(named(3))
        3
    """
    return value.find() if isinstance(value, _Named) else value


class _Made(NamedTuple):
    """A call: the names of the module and of the function in it, and its arguments."""

    module: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def again(self) -> Any:
        return _Named(self.module, self.name).find()(*self.args, **self.kwargs)

    def __reduce__(self):
        kwargs = {name: named(value) for name, value in self.kwargs.items()}
        return _made, (self.module, self.name, tuple(map(named, self.args)), kwargs)


def _made(module: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Made:
    return _Made(
        module, name, tuple(map(found, args)), {key: found(value) for key, value in kwargs.items()}
    )


class Function:
    """A function, the call whose result it is or belongs to, and its place there: equal calls make one object.

    Attributes of the function are those of the object.
    """

    def __init__(self, function: Callable[..., Any], made: _Made, place: int | None):
        self.function = function
        self.made = made
        self.place = place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The value of the function."""
        return self.function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the function, such as its structure."""
        # Missing before `__init__` has run: to look them up in `self.function` would never end.
        if name in ("function", "made", "place"):
            raise AttributeError(name)
        return getattr(self.function, name)

    def __reduce__(self):
        """What pickle keeps: the call and the place."""
        return _remake, (self.made, self.place)

    def __deepcopy__(self, memo: Any) -> Function:
        """Itself, as of any function."""
        return self

    def __copy__(self) -> Function:
        """Itself."""
        return self

    def __repr__(self) -> str:
        """Where it comes from."""
        return f"<function of {self.made.name}>"


def recipe(maker: Maker) -> Maker:
    """The same function, whose result, or each function of the tuple that it returns, is a `Function`.

    Arguments are compared by value where they are numbers, text, tuples, or functions made by
    recipes, and by identity otherwise. They pickle if arrays and functions among them do: functions
    at the level of a module, no lambdas.

    Args:
        maker: Function at the level of a module.

    Example:
        >>> import pickle
        >>> import lazynet as ln
        >>> model = ln.serial(ln.Dense(4), ln.LayerNorm())
        >>> model == ln.serial(ln.Dense(4), ln.LayerNorm()) == pickle.loads(pickle.dumps(model)) != ln.Dense(4)
        True
    """
    signature = inspect.signature(maker)

    @functools.wraps(maker)
    def make(*args, **kwargs):
        result = maker(*args, **kwargs)
        made = _Made(maker.__module__, maker.__qualname__, args, kwargs)
        bound = signature.bind(*args, **kwargs)
        # Dense(4) and Dense(features=4, W_std=1.0) are one call.
        bound.apply_defaults()
        key = maker.__module__, maker.__qualname__, _key(bound.args), _key(bound.kwargs)
        if not isinstance(result, tuple):
            return _unique(result, made, None, key)
        functions = [_unique(value, made, place, key) for place, value in enumerate(result)]
        record: Any = type(result)
        return record(*functions) if hasattr(result, "_fields") else tuple(functions)

    return make  # pyright: ignore[reportReturnType]


def call_of(function: Any) -> tuple[str, dict[str, Any]]:
    """The name of the recipe that made a function, and the arguments of that call; no name for any other function.

    Example:
        >>> import lazynet as ln
        >>> name, arguments = call_of(ln.Dense(4, b_std=0.1).apply)
        >>> name, arguments["features"], arguments["W_std"]
        ('Dense', 4, 1.0)
    """
    if not isinstance(function, Function):
        return "", {}
    made = function.made
    bound = inspect.signature(_Named(made.module, made.name).find()).bind(*made.args, **made.kwargs)
    bound.apply_defaults()
    return made.name, bound.arguments


def _unique(value, made, place, key):
    """The one function of this key and place; what is no function, or carries arrays, stays as it is."""
    if not callable(value) or isinstance(value, Partial):
        return value
    function = value.function if isinstance(value, Function) else value
    with _LOCK:
        # The first one stays: programs know it by its identity.
        return _FUNCTIONS.setdefault((key, place), Function(function, made, place))


def _remake(made, place):
    result = made.again()
    return result if place is None else result[place]


def _key(value):
    """Equal for arguments that make equal functions; what is known by identity lives as long as the function does."""
    if value is None or isinstance(value, (bool, int, str, bytes)):
        # With the type, since True == 1 == 1.0.
        return type(value), value
    if isinstance(value, np.generic):  # before float, which np.float64 is too
        return type(value), value.tobytes()
    if isinstance(value, float):
        # By digits: 0.0 == -0.0 may make different functions, and NaN is not equal to itself.
        return float, value.hex()
    if isinstance(value, (tuple, list)):
        return type(value), *map(_key, value)
    if isinstance(value, dict):
        return dict, *((name, _key(item)) for name, item in value.items())
    return "identity", id(value)
