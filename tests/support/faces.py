"""What `import lazynet` offers: its own functions and classes, and the modules that hold the others."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import lazynet


def values() -> dict[str, Any]:
    """Functions, classes and constants of lazynet at its top level."""
    found = {name: getattr(lazynet, name) for name in dir(lazynet)}
    return {
        name: value
        for name, value in found.items()
        if getattr(value, "__module__", "").startswith("lazynet")
    }


def modules() -> dict[str, ModuleType]:
    """Modules at the top level that say what is public in them."""
    found = {name: getattr(lazynet, name) for name in dir(lazynet)}
    return {
        name: value
        for name, value in found.items()
        if inspect.ismodule(value) and hasattr(value, "__all__")
    }
