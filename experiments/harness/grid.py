"""Grids of runs: one command for each point, run here one after the other, or printed for a cluster's scheduler."""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.harness.config import preset as configure
from experiments.harness.errors import RunError
from experiments.harness.store import DONE, damages, run_folder

__all__ = ["Point", "grid", "run_points"]


class Point(NamedTuple):
    """One run of a grid: its overrides, its folder and the command that computes it."""

    overrides: tuple[str, ...]
    folder: Path
    command: list[str]

    @property
    def finished(self) -> bool:
        """Whether the run has ended before, and its files are what was written."""
        return (self.folder / DONE).exists() and not damages(self.folder)


def grid(
    name: str,
    presets: dict[str, Any],
    preset: str,
    over: Sequence[str],
    fixed: Sequence[str],
    out: Path,
) -> list[Point]:
    """All combinations of `field=value1,value2,...`, each checked against the configuration before anything runs.

    Raises:
        ValueError: If a field is given twice or without values, or an override is not accepted.
    """
    axes = [_axis(item) for item in over]
    fields = [field for field, _ in axes]
    if not axes or len(set(fields)) < len(fields):
        raise ValueError(
            f"--over {' --over '.join(over)}: expected each field once, for instance --over seeds=1,3."
        )
    points = []
    for values in itertools.product(*(values for _, values in axes)):
        overrides = (
            *fixed,
            *(f"{field}={value}" for field, value in zip(fields, values, strict=True)),
        )
        config = configure(presets, preset, overrides)
        # A process of its own, since precision and devices are fixed when jax starts.
        command = [
            sys.executable,
            "-m",
            "experiments",
            "run",
            name,
            "--preset",
            preset,
            "--out",
            str(out),
        ]
        for item in overrides:
            command += ["--set", item]
        points.append(Point(overrides, run_folder(name, config, out), command))
    return points


def run_points(points: Sequence[Point], console) -> None:
    """Runs what has not been finished, one process after the other.

    Raises:
        RunError: After the last run, if some of them failed; the others are kept.
    """
    failed = []
    for i, point in enumerate(points):
        label = f"[{i + 1}/{len(points)}] {' '.join(point.overrides)}"
        if point.finished:
            console.print(
                f"{label}: finished before, {point.folder}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            continue
        console.print(label, highlight=False, markup=False, soft_wrap=True)
        # A run whose facts do not hold ends with status 1 too, and is finished.
        if subprocess.run(point.command).returncode and not point.finished:
            failed.append(shlex.join(point.command))
    if failed:
        raise RunError(
            f"{len(failed)} of {len(points)} runs failed; run again to see why: {failed[0]}"
        )


def _axis(item: str) -> tuple[str, list[str]]:
    field, _, values = item.partition("=")
    kept = [value.strip() for value in values.split(",") if value.strip()]
    if not kept:
        raise ValueError(
            f"--over {item}: expected field=value1,value2, for instance --over seeds=1,3."
        )
    return field.strip(), kept
