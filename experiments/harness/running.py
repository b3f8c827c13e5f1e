"""How an experiment is run: what it measures becomes a file of arrays, facts, a summary and figures.

A module is an experiment if it has

    PRESETS                      frozen dataclasses by name
    measure(config, store)       computes what the store lacks; returns all arrays, by flat names
    facts(config, arrays)        what theory predicts beside what was measured
    draw(config, arrays)         a figure, or figures by name

and, where there is more to say,

    numbers(config, arrays)      entries of the summary that are no facts
    report(summary)              tables and lines that are printed above the facts
    TITLE                        of the table of facts, with entries of the summary in braces
    HOST_DEVICES                 whether every core of a CPU is to be a device of its own
    XLA_EFFORT                   level of XLA's optimizations in the smoke preset, 1 if it is not said
    PIECES                       fields in which runs may differ that `compare` joins to one table
    gather(config, folders)      arrays of runs that are joined, where they are more than those of each
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from experiments.harness import bounds, catalog, facts
from experiments.harness.config import from_dictionary
from experiments.harness.store import Store, load_arrays, read_json, save_arrays, write_json

__all__ = ["MEASURED", "arrays_of", "compute", "configuration", "draw", "show", "summarize"]

MEASURED = "measured.npz"
"""The file of what an experiment measured."""


def compute(module: ModuleType, config: Any, folder: Path, console) -> dict[str, Any]:
    """Measures, writes arrays, the summary and figures into the folder, and returns the summary."""
    bounds.check(config)
    save_arrays(folder / MEASURED, module.measure(config, Store(folder, console)))
    # As they are read again, so that `draw` of a finished run sees the same arrays and types.
    arrays = load_arrays(folder / MEASURED)
    summary = summarize(module, config, arrays)
    # Before the figures: it tells why numbers cannot be drawn.
    write_json(folder / "summary.json", summary)
    draw(module, config, arrays, folder)
    return summary


def summarize(module: ModuleType, config: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The numbers that a reader compares, flat: those of the experiment, then its facts."""
    numbers = module.numbers(config, arrays) if hasattr(module, "numbers") else {}
    return numbers | facts.summarize(list(module.facts(config, arrays)))


def draw(
    module: ModuleType, config: Any, arrays: dict[str, np.ndarray], folder: Path
) -> list[Path]:
    """Draws the figures of the arrays into the folder `figures`."""
    from lazynet import plots

    drawn = module.draw(config, arrays)
    figures = drawn if isinstance(drawn, dict) else {module.__name__.rpartition(".")[2]: drawn}
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    return [
        plots.save(figure, folder / "figures" / f"{name}.png") for name, figure in figures.items()
    ]


def show(module: ModuleType, summary: dict[str, Any], console) -> None:
    """Prints what the experiment reports, then the table of facts."""
    if hasattr(module, "report"):
        for printed in module.report(summary):
            console.print(printed, highlight=False, soft_wrap=isinstance(printed, str))
    if any(key.startswith("passed/") for key in summary):
        facts.show(summary, console, module.TITLE.format_map(summary))


def configuration(folder: Path) -> Any:
    """The configuration of a run folder, as its experiment wants it."""
    described = read_json(folder / "config.json")
    # It tells runs apart and is no field.
    described.pop("model_digest", None)
    # All presets of an experiment are of one class.
    (kind,) = {
        type(preset) for preset in catalog.find(described.pop("experiment")).PRESETS.values()
    }
    return from_dictionary(kind, described)


def arrays_of(module: ModuleType, config: Any, folder: Path, console) -> dict[str, np.ndarray]:
    """What a finished run measured, put together from its parts where an earlier version did not write it."""
    path = folder / MEASURED
    if not path.exists():
        save_arrays(path, module.measure(config, Store(folder, console)))
    return load_arrays(path)
