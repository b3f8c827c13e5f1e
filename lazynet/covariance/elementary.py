"""Maps of numbers as lists of elementary operations, read off the functions that compute them.

A dual is written once, for numbers, in JAX. What compiles it for a processor needs it as additions,
products, roots and comparisons, one after the other: they are found in the trace of the function.
Numbers in it (a `W_std`, a coefficient) become constants beside the list, so that maps which differ
in numbers alone share their machine code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lazynet.covariance.expansions import EXPANSIONS
from lazynet.trees import is_traced

__all__ = ["Elementary", "Operation", "Unsupported", "elementary"]

OPERATIONS = frozenset(
    "add sub mul div max min neg abs sqrt rsqrt select_n gt ge lt le eq ne and or not".split()
)
"""Primitives of JAX that are operations of processors, or a few of them."""

COPIES = frozenset(
    "broadcast_in_dim copy convert_element_type reshape squeeze stop_gradient".split()
)
"""Those that do nothing to a number."""

CALLS = frozenset(
    "pjit jit closed_call core_call custom_jvp_call custom_vjp_call checkpoint remat remat2".split()
)
"""Those that hold a program, which is written out."""


OF_CONSTANTS = frozenset("cos sin exp log".split())
"""Those of which a map may hold the value at a constant."""


class Unsupported(Exception):
    """A map holds a primitive that is not known here."""


class Operation(NamedTuple):
    """An operation on values: inputs are numbered first, then results; constant k is number -1 - k."""

    name: str
    operands: tuple[int, ...]


class Elementary(NamedTuple):
    """A map of numbers.

    Attributes:
        inputs: How many.
        operations: In order.
        outputs: Numbers of the values that are returned.
        constants: Values of the constants.
    """

    inputs: int
    operations: tuple[Operation, ...]
    outputs: tuple[int, ...]
    constants: tuple[float, ...]


def elementary(function: Callable[..., Sequence[Any]], inputs: int, dtype: Any) -> Elementary:
    """The operations of `function(*numbers) -> numbers`.

    Raises:
        Unsupported: If the function does something else, or holds arrays or traced numbers.

    Example:
        >>> square = elementary(lambda x: [x * x + 1], 1, np.float32)
        >>> [operation.name for operation in square.operations], square.constants
        (['mul', 'add'], (1.0,))
    """
    record = _Record(inputs, dtype)
    outputs = record.traced(function, list(range(inputs)))
    return Elementary(inputs, tuple(record.operations), tuple(outputs), tuple(record.constants))


class _Record:
    """What has been written down so far; equal operations on equal values are one."""

    def __init__(self, inputs, dtype):
        self.inputs = inputs
        self.dtype = dtype
        self.operations: dict[Operation, int] = {}
        self.constants: dict[float, int] = {}

    def traced(self, function, operands):
        number = jax.ShapeDtypeStruct((), self.dtype)
        closed = jax.make_jaxpr(function)(*[number] * len(operands))
        return self.written(closed, operands)

    def written(self, program, operands):
        """Numbers of the outputs of a program for those of its inputs."""
        jaxpr = getattr(program, "jaxpr", program)
        constants = [self.constant(a) for a in getattr(program, "consts", ())]
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *operands], strict=True))

        def number(atom):
            return self.constant(atom.val) if hasattr(atom, "val") else known[atom]

        for equation in _needed(jaxpr):
            results = self.equation(equation, [number(atom) for atom in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [number(atom) for atom in jaxpr.outvars]

    def equation(self, equation, operands):
        name = equation.primitive.name
        params = equation.params
        if name in OF_CONSTANTS and (value := self.value(operands[0])) is not None:
            return [self.constant(getattr(np, name)(value))]
        if any(variable.aval.size != 1 for variable in equation.outvars):
            raise Unsupported(f"{name} of arrays")
        if name in EXPANSIONS:
            return self.traced(EXPANSIONS[name], operands)
        # Kept whole: inside it works on the bits of a number.
        if name in CALLS and params.get("name") == "power_of_two":
            return [self.operation("power_of_two", *operands)]
        if name in CALLS:
            inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
            return self.written(inner, operands)
        if name in COPIES:
            before, after = (a.aval.dtype for a in (equation.invars[0], equation.outvars[0]))
            # the integers of a program are constants, whose values are kept
            if before != after and operands[0] >= 0:
                raise Unsupported(f"{name} from {before} to {after}")
            return operands
        if name in ("square", "integer_pow"):
            return [self.power(operands[0], params.get("y", 2))]
        if name not in OPERATIONS:
            raise Unsupported(name)
        # By a constant: products are several times cheaper than quotients.
        if name == "div" and operands[1] < 0:
            return [self.operation("mul", operands[0], self.inverse(operands[1]))]
        if name in ("max", "min"):  # a constant first: what is not a number then passes
            operands = sorted(operands)
        return [self.operation(name, *operands)]

    def inverse(self, number):
        return self.constant(1 / list(self.constants)[-1 - number])

    def value(self, number):
        """The value of a constant, or of a product of constants; None of what depends on an input."""
        if number < 0:
            return list(self.constants)[-1 - number]
        if number < self.inputs:
            return None
        name, operands = list(self.operations)[number - self.inputs]
        values = [self.value(operand) for operand in operands]
        return math.prod(values) if name == "mul" and None not in values else None

    def power(self, x, exponent):
        if exponent < 0:
            return self.operation("div", self.constant(1.0), self.power(x, -exponent))
        value = self.constant(1.0) if exponent == 0 else x
        for _ in range(exponent - 1):
            value = self.operation("mul", value, x)
        return value

    def operation(self, name, *operands):
        return self.operations.setdefault(
            Operation(name, operands), self.inputs + len(self.operations)
        )

    def constant(self, value):
        if is_traced(value) or np.ndim(value) != 0 or np.result_type(value).kind not in "fi":
            raise Unsupported("a constant that is no number")
        return -1 - self.constants.setdefault(float(value), len(self.constants))


def _needed(jaxpr):
    """The equations of a program that its outputs depend on."""
    # A trace also holds what was computed and not returned, perhaps by primitives not known here.
    needed = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}
    equations = []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            equations.append(equation)
            needed.update(atom for atom in equation.invars if not hasattr(atom, "val"))
    return equations[::-1]
