"""Typed configurations: frozen dataclasses, presets by name, and overrides `field.subfield=value`."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from experiments.harness import bounds

__all__ = ["as_dictionary", "from_dictionary", "override", "preset"]

BOOLEANS = {"true": True, "false": False}


def preset(presets: dict[str, Any], name: str, overrides: Sequence[str] = ()) -> Any:
    """The preset `name` with overrides applied.

    A preset may have a variant for another data set, under the key `name/data`: it is taken when
    the overrides name that data set, so that `--set data.name=cifar10` also brings the network and
    the schedule that go with it.

    Raises:
        ValueError: For an unknown preset or override, listing those that exist, and for a value out
            of its bounds.
    """
    data = dict(_split(item) for item in overrides).get("data.name")
    plain = sorted({key.split("/")[0] for key in presets})
    if name not in plain:
        raise ValueError(f"unknown preset {name!r}, expected one of {', '.join(plain)}.")
    variants = {
        key.partition("/")[2]: config
        for key, config in presets.items()
        if key.split("/")[0] == name
    }
    # Without a variant for the data set the plain preset, or the first one where there is none.
    config = variants.get(data or "", variants.get("", next(iter(variants.values()))))
    for item in overrides:
        config = override(config, item)
    # Not before the last override: a field may fit only together with a later one.
    bounds.check(config)
    return config


def override(config: Any, item: str) -> Any:
    """A copy of `config` with one field changed, for instance `override(config, "train.epochs=20")`.

    Raises:
        ValueError: If the field does not exist or the value does not have its type.
    """
    path, value = _split(item)
    return _replace(config, path.split("."), value, item)


def as_dictionary(config: Any) -> dict[str, Any]:
    """The configuration as nested dictionaries of JSON values; infinity becomes the string "inf"."""
    return _json(dataclasses.asdict(config))


def from_dictionary(kind: type, values: dict[str, Any]) -> Any:
    """The configuration of a class that `as_dictionary` made these values of.

    Raises:
        ValueError: If the fields are not those of the class.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    differing = hints.keys() ^ values.keys()
    if differing:
        raise ValueError(
            f"a stored configuration differs from {kind.__name__} in {', '.join(sorted(differing))}: "
            "it is of another version."
        )
    return kind(**{name: _restored(hints[name], value) for name, value in values.items()})


def _split(item: str) -> tuple[str, str]:
    path, equals, value = item.partition("=")
    if not equals:
        raise ValueError(f"--set {item}: expected field=value, for instance --set train.epochs=20.")
    return path.strip(), value.strip()


def _replace(config, path, value, item):
    hints = typing.get_type_hints(type(config), include_extras=True)
    if path[0] not in hints:
        raise ValueError(
            f"--set {item}: unknown field {path[0]!r}, expected one of {', '.join(hints)}."
        )
    current = getattr(config, path[0])
    if len(path) > 1 and not dataclasses.is_dataclass(current):
        raise ValueError(f"--set {item}: {path[0]} is a value and has no field {path[1]!r}.")
    if dataclasses.is_dataclass(current):
        if len(path) == 1:
            fields = ", ".join(f"{path[0]}.{field.name}" for field in dataclasses.fields(current))
            raise ValueError(
                f"--set {item}: {path[0]} is a group, expected one of its fields {fields}."
            )
        return dataclasses.replace(config, **{path[0]: _replace(current, path[1:], value, item)})
    return dataclasses.replace(config, **{path[0]: _parse(hints[path[0]], value, item)})


def _parse(annotation, text, item):
    """The value of a text: of a list, of the words between commas, of which one may end it."""
    kind, _ = bounds.unwrap(annotation)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is tuple:
        # An empty text is an empty list, not a list of one empty word.
        words = text.removesuffix(",").split(",") if text else []
        return tuple(_parse(arguments[0], word.strip(), item) for word in words)
    # Of a type and None.
    if origin in (typing.Union, types.UnionType):
        return None if text.lower() == "none" else _parse(arguments[0], text, item)
    read = {bool: lambda word: BOOLEANS[word.lower()]}.get(kind, kind)
    if origin is typing.Literal:
        read = {str(choice): choice for choice in arguments}.__getitem__
    try:
        return read(text)
    except (ValueError, KeyError):
        raise ValueError(f"--set {item}: {text!r} is not a {_type_name(kind)}.") from None


def _type_name(kind):
    if typing.get_origin(kind) is typing.Literal:
        return "choice of " + ", ".join(map(str, typing.get_args(kind)))
    return kind.__name__


def _json(value):
    if isinstance(value, dict):
        return {key: _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _restored(annotation, value):
    """The value of a field in JSON, where tuples are lists and infinity is a text."""
    kind, _ = bounds.unwrap(annotation)
    if dataclasses.is_dataclass(kind):
        return from_dictionary(kind, value)
    if isinstance(value, list):
        entry = typing.get_args(kind)[0]
        return tuple(_restored(entry, each) for each in value)
    return float(value) if value == "inf" and kind is float else value
