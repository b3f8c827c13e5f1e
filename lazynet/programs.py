"""Compiled programs of functions that are built again and again: equal ones share one, and a bounded number is kept.

`jax.jit` knows a function by its address and keeps each program as long as the function lives: a
network built anew for each step of a search compiles anew, and its programs fill the memory maps of
the process until it dies. Here programs are known by what they compute: by their text and the
arrays it closes over.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import re
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.tiles import digest, reserved
from lazynet.trees import as_partial, is_traced

__all__ = [
    "Compiled",
    "PerFunction",
    "Program",
    "fingerprint",
    "program",
    "first_line",
    "refuse_backward_only",
    "refuse_state",
    "shape_of",
]

KEPT = 128
"""Programs that stay: each takes some 50 memory maps, of which Linux gives a process 65,530, and 3 MB or more."""

NOT_PURE = ("TraceContextError", "UnexpectedTracerError")
"""What flax and jax say of a function that keeps state of its own."""

LAST = 32
"""Functions of which each `PerFunction` keeps the programs."""

COMPARED = 2**24
"""Bytes of arrays in a program up to which programs are compared: the text of larger ones takes seconds."""


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """What equal programs share.

    Attributes:
        jitted: The function of the arguments' leaves.
        sizes: Bytes that it takes beside its arguments, for each kind of their shardings.

    Example:
        >>> Compiled(jax.jit(lambda x: [x + 1])).jitted(1.0)[0].item()
        2.0
    """

    jitted: Any
    sizes: dict[Hashable, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled function of arrays of the shapes it was asked for.

    Attributes:
        compiled: The function of the arguments' leaves, shared by equal programs.
        outputs: Holds the structure of the result, once the function was traced.

    Example:
        >>> double = program(lambda factor, x: factor * x, 2.0, np.ones(3))
        >>> double(np.ones(3)).tolist()
        [2.0, 2.0, 2.0]
    """

    compiled: Compiled
    outputs: list[Any]

    def __call__(self, *args: Any) -> Any:
        """The function's value."""
        # By leaves, since equal programs may come from trees that hold different functions.
        leaves = self.compiled.jitted(*jax.tree.leaves(args))
        return jax.tree.unflatten(self.outputs[0], leaves)

    def reserved(self, *shapes: Any) -> int:
        """Bytes that it takes beside its arguments; it is then compiled for calls with their shardings.

        Args:
            *shapes: The arguments, as trees of `jax.ShapeDtypeStruct`.
        """
        leaves = jax.tree.leaves(shapes)
        sizes = self.compiled.sizes
        shardings = tuple(leaf.sharding for leaf in leaves)
        if shardings not in sizes:
            sizes[shardings] = reserved(self.compiled.jitted.lower(*leaves).compile())
        return sizes[shardings]


def program(
    function: Callable, static: Hashable, *args: Any, donate: tuple[int, ...] = ()
) -> Program:
    """The compiled `function(static, *args)`, for arguments of the same structure, shapes and dtypes as these.

    Functions in `static` or in the structure of `args` (a `Partial`) may have been built anew: the
    program of an equal function is found by its text. Traced arguments get a program that is shared
    with the same functions only, since equal programs may have other derivatives.

    Args:
        function: A function at module level, pure.
        static: What it depends on besides arrays, such as a model or an optimizer.
        *args: Trees of arrays, or of their `jax.ShapeDtypeStruct`.
        donate: Which of `args` are consumed.

    Returns:
        The program; hold on to it for a loop, since finding it takes longer than a call.

    Example:
        >>> build = lambda: lambda x: x + 1  # two functions, one program
        >>> apply = lambda f, x: f(x)
        >>> first, second = (program(apply, build(), np.ones(3)) for _ in range(2))
        >>> first.compiled is second.compiled
        True
    """
    traced = is_traced(args)
    structures = [jax.tree.structure(arg) for arg in args]
    known_by = (
        function,
        static,
        tuple(structures),
        tuple(map(_abstract, jax.tree.leaves(args))),
        donate,
        traced,
    )
    key = known_by, jax.dtypes.canonicalize_dtype(np.float64)  # which depends on a setting of jax
    found = _kept.get(key)
    if found is None:
        found = _new(function, static, args, donate)
        found = found if traced else _shared(found, jax.tree.leaves(args))
        _kept.put(key, found)
    return found


class PerFunction:
    """`jax.jit(program)` that keeps what it compiled for the last functions among its arguments, and no more.

    JAX keeps what it compiled as long as the compiled object lives, so that a loop over new
    lambdas, rebuilt models or optimizers would fill the memory. Here each function has an object of
    its own, and the one that was not used for longest goes. Equal functions are not recognized, in
    return for a call that costs as little as that of `jax.jit`.

    Args:
        program: A function, of which some arguments are functions or hold them in their structure
            (a `Partial`).
        by: The positions of these arguments.
        static_argnums: Those that `jax.jit` takes as static.
        **options: Others of `jax.jit`.

    Example:
        >>> from jax.tree_util import Partial
        >>> twice = PerFunction(lambda function, x: 2 * function(x))
        >>> float(twice(Partial(abs), -1.0))
        2.0
    """

    def __init__(
        self,
        program: Callable[..., Any],
        *,
        by: tuple[int, ...] = (0,),
        static_argnums: tuple[int, ...] = (),
        **options: Any,
    ) -> None:
        self._program = program
        self._by = by
        self._static = static_argnums
        self._options = {**options, "static_argnums": static_argnums} if static_argnums else options
        self._compiled: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        functools.update_wrapper(self, program)

    def of(self, *args: Any) -> Any:
        """The compiled object for the functions in these arguments; arrays that they carry are no part of its name."""
        name = tuple(
            args[i] if i in self._static else jax.tree.structure(args[i]) for i in self._by
        )
        with self._lock:
            if name not in self._compiled:
                # jax remembers by the identity of what it compiles, hence a new object
                again = functools.update_wrapper(functools.partial(self._program), self._program)
                self._compiled[name] = jax.jit(again, **self._options)
            self._compiled.move_to_end(name)
            while len(self._compiled) > LAST:
                self._compiled.popitem(last=False)
            return self._compiled[name]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The value of the program, compiled."""
        try:
            return self.of(*args)(*args, **kwargs)
        except Exception as error:
            refuse_state(error)
            raise

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """`jax.jit(program).lower`."""
        return self.of(*args).lower(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """`jax.jit(program).trace`."""
        return self.of(*args).trace(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes of the value. `jax.eval_shape` of this object would hold what is compiled for these functions.

        It keeps the traced program as long as the object that it traced lives, and that program
        keeps its executable.
        """
        return self.of(*args).eval_shape(*args, **kwargs)

    def _cache_size(self) -> int:
        return sum(compiled._cache_size() for compiled in self._compiled.values())


def shape_of(function: Callable[..., Any], *args: Any) -> Any:
    """Shapes and dtypes of what a function returns; one that keeps a state of its own is refused.

    Example:
        >>> shape_of(lambda w, x: x @ w, np.ones((3, 1)), np.ones((8, 3))).shape
        (8, 1)
    """
    try:  # all arguments are traced, those that a Partial carries too, as in a compiled program
        return jax.eval_shape(lambda function, *args: function(*args), as_partial(function), *args)
    except Exception as error:
        refuse_state(error)
        raise


def refuse_state(error: Exception) -> None:
    """Says what to write where flax or jax found that a function keeps a state of its own; other errors pass.

    Example:
        >>> refuse_state(ValueError("something else"))
    """
    refuse_backward_only(error)
    if type(error).__name__ in NOT_PURE:
        raise ValueError(
            f"apply keeps a state of its own ({first_line(error)}), expected a pure function of (params, x): of a "
            "module of flax pass the apply of from_flax(module), after module.eval() for one of nnx, so that its "
            "statistics stay."
        ) from error


def refuse_backward_only(error: Exception) -> None:
    """Says what to write where a function has no forward derivative; other errors pass.

    Fused attention of cuDNN, and other functions with a backward pass of their own, have none.

    Example:
        >>> refuse_backward_only(ValueError("something else"))
    """
    if isinstance(error, TypeError) and "custom_vjp function" in str(error):
        raise TypeError(
            "apply has a backward pass of its own (custom_vjp) and no forward derivative (jvp), which tangents and "
            "kernels take, as fused attention has: call jax.nn.dot_product_attention(..., implementation='xla') there, "
            "or a form without custom_vjp."
        ) from error


def first_line(error: Exception) -> str:
    r"""Kind and beginning of an error.

    Example:
        >>> first_line(ValueError("no such axis\nmore"))
        'ValueError: no such axis'
    """
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
        :300
    ]


def fingerprint(traced: Any) -> str:
    """A name for what a traced function computes: its program's text, and arrays that it takes from outside.

    Args:
        traced: From `jax.jit(function).trace(*args)`.

    Raises:
        ValueError: If the program calls back to Python.

    Example:
        >>> named = lambda factor: fingerprint(jax.jit(lambda x: factor * x).trace(np.ones(3)))
        >>> named(2.0) == named(2.0) != named(3.0)
        True
    """
    text = traced.lower().as_text()
    if re.search(r"@xla_\w*callback", text):
        raise ValueError(
            "the stored function calls back to Python (pure_callback), expected one of jax alone, since its program "
            "does not tell which function it calls: write that in jax.numpy, or compute without a store."
        )
    return _named(traced, text)


class _Kept:
    """The programs used last."""

    def __init__(self):
        self.programs: collections.OrderedDict[Hashable, Program] = collections.OrderedDict()
        self.compiled: weakref.WeakValueDictionary[str, Compiled] = weakref.WeakValueDictionary()
        self.lock = threading.Lock()

    def get(self, key: Hashable) -> Program | None:
        with self.lock:
            if key in self.programs:
                self.programs.move_to_end(key)
            return self.programs.get(key)

    def put(self, key: Hashable, value: Program) -> None:
        with self.lock:
            self.programs[key] = value
            while len(self.programs) > KEPT:
                self.programs.popitem(last=False)

    def first(self, name: str, compiled: Compiled) -> Compiled:
        """Of equal programs the one that came first."""
        with self.lock:
            return self.compiled.setdefault(name, compiled)


_kept = _Kept()


def _new(function, static, args, donate):
    structure = jax.tree.structure(args)
    outputs = []

    def flat(*leaves):
        result = function(static, *jax.tree.unflatten(structure, leaves))
        # Known when the function is traced, which the first call does.
        outputs[:] = [jax.tree.structure(result)]
        return jax.tree.leaves(result)

    flat.__name__ = getattr(function, "__name__", "program")
    return Program(Compiled(jax.jit(flat, donate_argnums=_leaves_of(args, donate))), outputs)


def _shared(new, leaves):
    """The new program, or the structure of its result with the function of an equal one that is still kept."""
    traced = new.compiled.jitted.trace(*leaves)
    # Values that an outer transformation traces (a W_std in grad) are arguments of the program, not
    # of its text.
    if len(traced.jaxpr.jaxpr.invars) > len(leaves) or is_traced(traced.jaxpr.consts):
        return new
    if sum(array.nbytes for array in closed_over(traced.jaxpr)) > COMPARED:
        return new
    text = traced.lower().as_text()
    if "callback" in text:  # Python functions are named by addresses, which are used again
        return new
    # Arguments that are not used are not in the text, and for other shapes a function is traced again.
    name = _named(traced, text) + str(traced.jaxpr.in_avals)
    return dataclasses.replace(new, compiled=_kept.first(name, new.compiled))


def _named(traced, text):
    # Where constants are arguments of a program (JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS), its text
    # lacks their values.
    values = [digest(*closed_over(traced.jaxpr))] if "jax.const" in text else []
    return hashlib.sha256("".join([text, *values]).encode()).hexdigest()


def closed_over(jaxpr: Any) -> Iterator[np.ndarray]:
    """Values of the arrays in a program, also in the programs it calls, in the order of their use."""
    return map(_values, constants(jaxpr))


def constants(jaxpr: Any) -> Iterator[Any]:
    """The arrays in a program as they are, maybe traced by an outer transformation."""
    yield from getattr(jaxpr, "consts", ())
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (v.val for v in equation.invars if hasattr(v, "val"))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from constants(inner)


def _values(array: Any) -> np.ndarray:
    is_key = jnp.issubdtype(getattr(array, "dtype", None) or type(array), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def _abstract(leaf: Any) -> Hashable:
    """Shape and dtype of an array, the type of a number."""
    is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    return (
        (tuple(leaf.shape), leaf.dtype, getattr(leaf, "weak_type", False))
        if is_array
        else type(leaf)
    )


def _leaves_of(args, chosen):
    ends = np.cumsum([0, *(len(jax.tree.leaves(arg)) for arg in args)])
    return tuple(int(i) for arg in chosen for i in range(ends[arg], ends[arg + 1]))
