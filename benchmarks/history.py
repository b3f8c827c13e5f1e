"""Recorded runs, `benchmarks/history/DATE-COMMIT-MACHINE.json`, and how the ratios went with time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import report
from experiments.harness import store

__all__ = ["FOLDER", "curves", "load", "plot", "record"]

FOLDER = Path(__file__).parent / "history"

Curve = list[tuple[date, float]]


def record(result: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Keeps a result; a second run of the same commit, day, machine and sizes replaces the first."""
    machine = result["machine"]
    name = f"{machine['cpu']} {machine['cores']} cores jax {machine['packages']['jax']}"
    slug = re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")
    size = "-quick" if result["quick"] else ""
    path = folder / f"{machine['date']}-{(machine['commit'] or 'unknown')[:9]}-{slug}{size}.json"
    store.write_json(path, result)
    return path


def load(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All recorded results, oldest first, and those of one day by commit, machine and sizes."""
    by_name = sorted(folder.glob("*.json"))
    return sorted(map(store.read_json, by_name), key=lambda result: result["machine"]["date"])


def curves(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], Curve]:
    """CPU ratios against the date: `{(group, "case: program", machine): [(date, ratio)]}`."""
    found: dict[tuple[str, str, str], Curve] = {}
    for result in results:
        machine = result["machine"]
        where = f"{machine['cpu']}, {machine['cores']} cores, jax {machine['packages']['jax']}"
        for row, (cpu, _) in report.ratios(report.rows(result)):
            # The first program of a case is the unit: its ratio is one at all dates.
            if cpu is not None and cpu != 1.0:
                curve = found.setdefault((row.group, f"{row.case}: {row.program}", where), [])
                curve.append((date.fromisoformat(machine["date"]), cpu))
    return found


def plot(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draws a panel for every group: CPU time relative to the first program of each case, against the date."""
    from matplotlib.figure import Figure

    from lazynet import plots

    found = curves(results)
    groups, machines = (sorted({key[i] for key in found}) for i in (0, 2))
    if not groups:
        raise ValueError(
            "no recorded run has a ratio to draw: record one by python -m benchmarks --record."
        )
    figure = Figure(figsize=(12, 3.6 * len(groups)), layout="constrained")
    for ax, group in zip(figure.subplots(len(groups), squeeze=False)[:, 0], groups, strict=True):
        _panel(
            ax, group, {key[1:]: curve for key, curve in found.items() if key[0] == group}, machines
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return plots.save(figure, path)


def _panel(ax, group, found, machines) -> None:
    labels = list(dict.fromkeys(label for label, _ in found))
    for (label, machine), curve in found.items():
        style = dict(
            color=f"C{labels.index(label) % 10}", marker="os^vDP*X"[machines.index(machine) % 8]
        )
        ax.plot(
            *zip(*curve, strict=True),
            label=f"{label} ({machine})" if len(machines) > 1 else label,
            **style,
        )
    ax.axhline(1.0, color="0.6", linewidth=0.8)
    ax.set(title=group, xlabel="date", ylabel="CPU time / that of the first program", yscale="log")
    ax.tick_params("x", rotation=20)
    ax.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
