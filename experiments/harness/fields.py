"""The fields of a configuration for readers: names as `--set` wants them, types, defaults and meanings."""

from __future__ import annotations

import dataclasses
import re
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

from experiments.harness import bounds

__all__ = ["fields_of", "meanings", "show", "written"]


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Path, annotation, value and meaning of every field, those of nested groups after each other."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    said = meanings(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name], value, said.get(field.name, "")


def meanings(kind: type) -> dict[str, str]:
    """The meaning of each field, from the sections Attributes of the docstrings of the class and its bases."""
    found: dict[str, str] = {}
    # Bases first: a class may give a field of its base another meaning.
    for each in reversed(kind.__mro__):
        section = (each.__doc__ or "").partition("Attributes:")[2]
        found |= re.findall(r"^ +(\w+): (.+)$", section, flags=re.MULTILINE)
    return found


def show(config: Any, console) -> None:
    """Prints for each field a line `path = default`, its type and its meaning."""
    for path, annotation, value, meaning in fields_of(config):
        console.print(
            f"  {path}={written(value)}",
            style="bold",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        text = textwrap.fill(
            f"{meaning} ({bounds.describe(annotation)})",
            console.width,
            initial_indent=" " * 6,
            subsequent_indent=" " * 6,
        )
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def written(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    if isinstance(value, bool):
        return str(value).lower()
    # The short form where it reads back as the same number.
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
