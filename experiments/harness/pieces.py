"""Runs that are pieces of one table: they differ in nothing but the fields that their experiment names in `PIECES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.harness import compare, running, store

__all__ = ["are_pieces", "joined_config", "joined_runs", "write_together"]

PLACES = {"data.root", "data.download"}
"""Where the data are, which says nothing about a run."""


def are_pieces(experiment: ModuleType, runs: Sequence[compare.Run]) -> bool:
    """Whether the runs differ, and in fields of `PIECES` alone."""
    differing = {*compare.differing_fields(runs)} - PLACES
    return bool(differing) and differing <= {*getattr(experiment, "PIECES", ())}


def joined_config(experiment: ModuleType, configs: Sequence[Any]) -> Any:
    """The first configuration with the values that any of them has, in the lists among the fields of `PIECES`."""
    together = {}
    for name in experiment.PIECES:
        # A nested field such as `train.epochs` is one number: that of the first run stands.
        if "." not in name:
            values = {value for config in configs for value in getattr(config, name)}
            # The default lists all words, in the order of the rows.
            order = getattr(experiment.Config(), name)
            together[name] = tuple(sorted(values, key=_place_in(order)))
    return dataclasses.replace(configs[0], **together)


def joined_runs(
    experiment: ModuleType, runs: Sequence[compare.Run], console
) -> tuple[Any, dict[str, Any]]:
    """The configuration and the arrays of all runs, with what `gather(config, folders)` of the experiment adds.

    Raises:
        ValueError: If two runs measured the same.
    """
    configs = [running.configuration(run.folder) for run in runs]
    arrays: dict[str, Any] = {}
    for config, run in zip(configs, runs, strict=True):
        measured = running.arrays_of(experiment, config, run.folder, console)
        common = arrays.keys() & measured.keys()
        if common:
            raise ValueError(
                f"compare got two runs with {min(common).rpartition('/')[0]}, {run.folder} and one before it: "
                "leave one of them out."
            )
        arrays |= measured
    config = joined_config(experiment, configs)
    # After the runs' own arrays: what compares one run with another is known only together.
    if hasattr(experiment, "gather"):
        arrays |= experiment.gather(config, [run.folder for run in runs])
    return config, arrays


def write_together(
    experiment: ModuleType, runs: Sequence[compare.Run], out: Path, console
) -> list[Path]:
    """Prints the table of all runs; writes the first figure as `out`, the others and the summary beside it."""
    from lazynet import plots

    config, arrays = joined_runs(experiment, runs, console)
    summary = running.summarize(experiment, config, arrays)
    running.show(experiment, summary, console)
    out.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in experiment.draw(config, arrays).items():
        path = out.with_name(f"{out.stem}_{name}{out.suffix}") if written else out
        written.append(plots.save(figure, path))
    store.write_json(out.with_suffix(".json"), summary)
    return [*written, out.with_suffix(".json")]


def _place_in(order: Sequence[Any]):
    """Numbers by size; words in the order that the configuration lists them in."""
    return lambda value: order.index(value) if isinstance(value, str) else value
