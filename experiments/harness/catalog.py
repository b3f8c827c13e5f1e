"""Which experiments there are: the modules of this package that have `PRESETS`, by name."""

from __future__ import annotations

import importlib
import pkgutil
import re
from types import ModuleType

import experiments

__all__ = ["FORMER", "current", "expected_times", "find", "names"]

FORMER = {"test_loss_vs_scale": "loss_vs_scale", "test_loss_vs_width": "loss_vs_width"}
"""Earlier names of experiments, by which commands and run folders still find them."""


def names() -> list[str]:
    """Modules of this package that are experiments."""
    return [name for name in _modules() if hasattr(_imported(name), "PRESETS")]


def current(name: str) -> str:
    """The name that an experiment has now."""
    return FORMER.get(name, name)


def find(name: str) -> ModuleType:
    """The module of an experiment, also by a former name.

    Raises:
        ValueError: If there is none of this name.
    """
    # That one alone: all of them together take a second.
    module = _imported(current(name)) if current(name) in _modules() else None
    if not hasattr(module, "PRESETS"):
        raise ValueError(f"unknown experiment {name!r}, expected one of {', '.join(names())}.")
    return module


def expected_times(name: str, doc: str) -> dict[str, str]:
    """`{preset: time}` from the commands in an experiment's docstring and the comments behind them."""
    times: dict[str, str] = {}
    for options, comment in re.findall(rf"python -m experiments run {name}\b(.*?)#(.*)", doc):
        found = dict(re.findall(r"(--preset|data\.name)[ =](\S+)", options))
        variant = f"/{found['data.name']}" if "data.name" in found else ""
        # The first command of a preset is the plain one; the next ones have overrides.
        times.setdefault(f"{found.get('--preset', 'laptop')}{variant}", comment.strip())
    return times


def _modules() -> list[str]:
    modules = [module.name for module in pkgutil.iter_modules(experiments.__path__)]
    return [name for name in modules if name != "__main__"]


def _imported(name: str) -> ModuleType:
    return importlib.import_module(f"experiments.{name}")
