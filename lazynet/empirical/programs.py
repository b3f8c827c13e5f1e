"""Compiled programs of the functions that were used last."""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax

LAST = 32
"""Functions whose programs are kept. A program takes some 50 memory maps, of which a process has 65,530."""


class PerFunction:
    """`jax.jit(program)` for a program whose first argument is a function, a `Partial`.

    JAX keeps what it compiled as long as the compiled object lives, so that a loop over new lambdas or rebuilt models
    would fill the memory. Here each function has an object of its own, and the one that was not used for longest goes.

    Example:
        >>> from jax.tree_util import Partial
        >>> twice = PerFunction(lambda function, x: 2 * function(x))
        >>> float(twice(Partial(abs), -1.0))
        2.0
    """

    def __init__(self, program: Callable[..., Any], **options: Any) -> None:
        self._program = program
        self._options = options
        self._compiled: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        functools.update_wrapper(self, program)

    def of(self, function: Any) -> Any:
        """The compiled object of one function; arrays that it carries are no part of its name."""
        name = jax.tree.structure(function)
        with self._lock:
            if name not in self._compiled:
                # jax remembers by the identity of what it compiles, hence a new object
                self._compiled[name] = jax.jit(functools.partial(self._program), **self._options)
            self._compiled.move_to_end(name)
            if len(self._compiled) > LAST:
                self._compiled.popitem(last=False)
            return self._compiled[name]

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """The value of the program, compiled."""
        return self.of(function)(function, *args, **kwargs)

    def lower(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """`jax.jit(program).lower`."""
        return self.of(function).lower(function, *args, **kwargs)

    def trace(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """`jax.jit(program).trace`."""
        return self.of(function).trace(function, *args, **kwargs)

    def _cache_size(self) -> int:
        return sum(compiled._cache_size() for compiled in self._compiled.values())
