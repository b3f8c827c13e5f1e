"""Typed configurations: frozen dataclasses, presets by name, and overrides `field.subfield=value`."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

import tyro

__all__ = ["as_dictionary", "override", "preset"]


def preset(presets: dict[str, Any], name: str, overrides: Sequence[str] = ()) -> Any:
    """The preset `name` with overrides applied.

    A preset may have a variant for another data set, under the key `name/data`: it is taken when the overrides name
    that data set, so that `--set data.name=cifar10` also brings the network and the schedule that go with it.

    Raises:
        ValueError: For an unknown preset or override, listing those that exist.
    """
    data = dict(_split(item) for item in overrides).get("data.name")
    plain = sorted({key.split("/")[0] for key in presets})
    if name not in plain:
        raise ValueError(f"unknown preset {name!r}, expected one of {', '.join(plain)}.")
    variants = {key.partition("/")[2]: config for key, config in presets.items() if key.split("/")[0] == name}
    config = variants.get(data or "", variants.get("", next(iter(variants.values()))))
    for item in overrides:
        config = override(config, item)
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


def _split(item: str) -> tuple[str, str]:
    path, equals, value = item.partition("=")
    if not equals:
        raise ValueError(f"--set {item}: expected field=value, for instance --set train.epochs=20.")
    return path.strip(), value.strip()


def _replace(config, path, value, item):
    hints = typing.get_type_hints(type(config))
    if path[0] not in hints:
        raise ValueError(f"--set {item}: unknown field {path[0]!r}, expected one of {', '.join(hints)}.")
    current = getattr(config, path[0])
    if len(path) > 1 and not dataclasses.is_dataclass(current):
        raise ValueError(f"--set {item}: {path[0]} is a value and has no field {path[1]!r}.")
    if dataclasses.is_dataclass(current):
        if len(path) == 1:
            fields = ", ".join(f"{path[0]}.{field.name}" for field in dataclasses.fields(current))
            raise ValueError(f"--set {item}: {path[0]} is a group, expected one of its fields {fields}.")
        return dataclasses.replace(config, **{path[0]: _replace(current, path[1:], value, item)})
    return dataclasses.replace(config, **{path[0]: _parse(hints[path[0]], value, item)})


def _parse(annotation, value, item):
    words = value.split(",") if typing.get_origin(annotation) is tuple else [value]
    try:
        return tyro.cli(
            tyro.conf.FlagConversionOff[tyro.conf.Positional[annotation]], args=words, console_outputs=False
        )
    except SystemExit:
        pass
    if bool in (annotation, *typing.get_args(annotation)) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError(f"--set {item}: {value!r} is not a {_type_name(annotation)}.")


def _type_name(annotation):
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "choice of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is tuple:
        return f"comma-separated list of {_type_name(arguments[0])}"
    return getattr(annotation, "__name__", str(annotation))


def _json(value):
    if isinstance(value, dict):
        return {key: _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
