"""Bounds of the fields of a configuration, written once in their types and checked before anything is computed.

    alphas: Annotated[tuple[Scale, ...], Values()]

says that `alphas` are different numbers in (0, inf], at least one. `check` walks through a
configuration and names the field that cannot be. What several fields have to satisfy together
stands in a method `check(prefix)` of their class.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Annotated, Any, NamedTuple

from lazynet import guards

__all__ = [
    "Count",
    "Even",
    "Integer",
    "Momentum",
    "Natural",
    "NonNegative",
    "Number",
    "Positive",
    "Scale",
    "Seed",
    "Values",
    "check",
    "check_batch",
    "describe",
    "unwrap",
]

LARGEST = 2**31 - 1
"""Above it whole numbers overflow somewhere on a device."""


class Number(NamedTuple):
    """Bounds of a number; `infinity` makes inf one."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    infinity: bool = False

    def check(self, name: str, value: Any) -> None:
        """Refuses what is outside of the bounds."""
        if self.infinity and value == math.inf:
            return
        fix = "or inf" if self.infinity else ""
        guards.number(
            name, value, above=self.above, at_least=self.at_least, below=self.below, fix=fix
        )

    def __str__(self) -> str:
        """The bounds as words."""
        signs = {">": self.above, ">=": self.at_least, "<": self.below}
        words = " and ".join(
            f"{sign} {limit:g}" for sign, limit in signs.items() if limit is not None
        )
        return f"number {words}{', or inf' if self.infinity else ''}".strip()


class Integer(NamedTuple):
    """Bounds of a whole number, which may have to be even."""

    at_least: int = 1
    at_most: int = LARGEST
    even: bool = False

    def check(self, name: str, value: Any) -> None:
        """Refuses what is outside of the bounds."""
        # Twice, so that a value that is too small is not told the largest one of a device as well.
        guards.count(name, value, at_least=self.at_least)
        guards.count(name, value, at_least=self.at_least, at_most=self.at_most)
        if self.even and value % 2:
            raise ValueError(f"{name} got {value}, expected an even integer.")

    def __str__(self) -> str:
        """The bounds as words."""
        limit = (
            f">= {self.at_least}"
            if self.at_most >= LARGEST
            else f"from {self.at_least} to {self.at_most}"
        )
        return f"{'even ' * self.even}integer {limit}"


class Values(NamedTuple):
    """How many values a list has, and whether they are different or increasing.

    Values are different if they are so to the six digits that names of files and numbers have.
    """

    at_least: int = 1
    increasing: bool = False
    different: bool = True

    def check(self, name: str, value: Any) -> None:
        """Refuses lists that are too short, repeat a value or do not increase."""
        if len(value) < self.at_least:
            raise ValueError(f"{name} got {value}, expected {self}.")
        # Equal neighbors pass here, and are refused below as values that do not differ.
        if self.increasing and list(value) != sorted(value):
            raise ValueError(f"{name} got {value}, expected {self}.")
        shown = [f"{entry:g}" if isinstance(entry, float) else str(entry) for entry in value]
        if (self.different or self.increasing) and len(set(shown)) < len(shown):
            raise ValueError(
                f"{name} got {value}, expected {self}: values that differ in their first six digits."
            )

    def __str__(self) -> str:
        """The bounds as words."""
        number = f"at least {self.at_least}" if self.at_least else "maybe none"
        if self.increasing:
            return f"{number}, in increasing order"
        if self.different:
            return f"{number}, all different"
        return number


Positive = Annotated[float, Number(above=0)]
NonNegative = Annotated[float, Number(at_least=0)]
Scale = Annotated[float, Number(above=0, infinity=True)]
Momentum = Annotated[float, Number(at_least=0, below=1)]
Count = Annotated[int, Integer()]
Natural = Annotated[int, Integer(0)]
Even = Annotated[int, Integer(2, even=True)]
Seed = Annotated[int, Integer(0, 2**32 - 1)]


def check(config: Any, prefix: str = "") -> None:
    """Refuses a configuration that cannot run, naming the field.

    Raises:
        ValueError: A value is outside of its bounds.
        TypeError: A value has another type.
    """
    # Annotations are texts here, and their bounds, the extras, are dropped unless asked for.
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check(value, f"{prefix}{field.name}.")
        else:
            _check_value(f"{prefix}{field.name}", value, hints[field.name])
    # Last: what several fields satisfy together is told of fields that are within their own bounds.
    if hasattr(config, "check"):
        config.check(prefix)


def check_batch(batch_size: int, n_train: int, name: str = "train.batch_size") -> None:
    """Refuses batches of more examples than there are."""
    guards.count(name, batch_size, at_most=n_train, fix="the number of training examples")


def unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type and the bounds of an annotation."""
    if typing.get_origin(annotation) is Annotated:
        return annotation.__origin__, annotation.__metadata__
    return annotation, ()


def describe(annotation: Any) -> str:
    """A type with its bounds in words."""
    kind, bounds = unwrap(annotation)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is tuple:
        entries = describe(arguments[0])
        # A tuple of fixed length says how many entries it has.
        number = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return "; ".join([f"{number}comma-separated {entries}", *map(str, bounds)])
    if bounds:
        return str(bounds[0])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(describe, arguments))
    names = {bool: "true | false", str: "text", type(None): "None", float: "number", int: "integer"}
    return names.get(kind, str(kind))


def _check_value(name: str, value: Any, annotation: Any) -> None:
    kind, bounds = unwrap(annotation)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is tuple:
        if not isinstance(value, tuple) or (
            arguments[-1] is not Ellipsis and len(value) != len(arguments)
        ):
            raise TypeError(f"{name} got {value!r}, expected {describe(annotation)}.")
        for i, entry in enumerate(value):
            _check_value(f"{name}[{i}]", entry, arguments[0])
    if origin is typing.Literal and value not in arguments:
        raise ValueError(f"{name} got {value!r}, expected {describe(annotation)}.")
    if kind in (bool, str) and not isinstance(value, kind):
        raise TypeError(f"{name} got {value!r}, expected {describe(annotation)}.")
    # Those of a list are about its length and order; each entry has been checked by its own.
    for bound in bounds:
        bound.check(name, value)
