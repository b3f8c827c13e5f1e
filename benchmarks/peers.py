"""Other libraries, where they can be imported: neural-tangents 0.6.5 (jax < 0.6) and kymatio 0.3.0."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.measure import Program, absent

__all__ = ["beside", "kymatio", "neural_tangents"]


def beside(load: Callable[[], Any], build: Callable[[Any], Program]) -> Program:
    """`build(load())`, or an absent program that says why `load` cannot import its library."""
    try:
        library = load()
    except (ImportError, AttributeError) as error:
        return absent(f"not importable: {error}")
    return build(library)


def neural_tangents() -> Any:
    """neural-tangents; its implementation 3 reads two names that jax 0.5.3 has no more."""
    # It imports TensorFlow through this module alone, which nothing here needs.
    sys.modules.setdefault(
        "neural_tangents.experimental", types.ModuleType("neural_tangents.experimental")
    )
    interpreter = importlib.import_module("jax.interpreters.ad")
    names = importlib.import_module("jax._src.source_info_util")
    for name, value in (("source_info_util", names), ("config", jax.config)):
        if not hasattr(interpreter, name):
            setattr(interpreter, name, value)
    return importlib.import_module("neural_tangents")


def kymatio(module: str) -> Any:
    """A module of `kymatio.scattering2d`: other parts of it do not import with a recent SciPy."""
    return importlib.import_module(f"kymatio.scattering2d.{module}")
