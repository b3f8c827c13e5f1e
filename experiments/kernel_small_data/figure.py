"""The figure and the printed tables of `kernel_small_data`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

__all__ = ["draw", "image_tables", "table_of_tables"]

METHODS = {"ntk": "FC-NTK SVM", "nngp": "FC-NNGP SVM", "rbf": "RBF SVM", "forest": "forest"}


def draw(config, summary: dict[str, Any]) -> Figure:
    """Bars of the tables, and accuracy against the number of training images with error bars over draws."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(config.tables.names, summary, left)
    _curves(summary, right)
    return figure


def _bars(names, summary, ax) -> None:
    for i, (method, label) in enumerate(METHODS.items()):
        cells = [f"table={name}/method={method}" for name in names]
        heights = [100 * summary[f"test_accuracy/{cell}"] for cell in cells]
        errors = [100 * summary[f"test_accuracy_std/{cell}"] for cell in cells]
        places = np.arange(len(names)) + (i - 1.5) / 5
        ax.bar(places, heights, 0.19, yerr=errors, capsize=2, label=label)
    ax.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.set(
        ylim=(85, 101),
        ylabel="accuracy of held-out folds, %",
        title="tables, nested cross-validation",
    )
    ax.legend(fontsize=8, loc="lower right", ncols=2)


def _curves(summary, ax) -> None:
    for i, kernel in enumerate(_kernels(summary)):
        for kind, style in (("ntk", "o-"), ("nngp", "s:")):
            rows = _row(summary, f"{kernel} ({kind})")
            values, errors = zip(*rows.values(), strict=True)
            settings = {"fmt": style, "color": f"C{i}", "ms": 4, "capsize": 2}
            ax.errorbar(list(rows), values, errors, label=f"{kernel}, {kind.upper()}", **settings)
    ax.set(
        xscale="log", xlabel="training images n", ylabel="test accuracy, %", title=summary["images"]
    )
    ax.grid(alpha=0.3)
    if _kernels(summary):
        ax.legend(fontsize=7)


def _kernels(summary) -> list[str]:
    return [key.removeprefix("draws/kernel=") for key in summary if key.startswith("draws/kernel=")]


def _row(summary, kernel) -> dict[int, tuple[float, float]]:
    prefix = f"accuracy/kernel={kernel}/n="
    sizes = [int(key.removeprefix(prefix)) for key in summary if key.startswith(prefix)]
    return {
        n: (summary[f"{prefix}{n}"], summary.get(f"accuracy_std/kernel={kernel}/n={n}", 0.0))
        for n in sizes
    }


def table_of_tables(summary: dict[str, Any]) -> Iterator[Table]:
    """One row for each table, one column for each method: accuracy, and the CPU seconds of its nested tuning."""
    names = list(
        dict.fromkeys(key.split("table=")[1].split("/")[0] for key in summary if "table=" in key)
    )
    if not names:
        return
    table = Table(box=None, title="accuracy % ± std over outer folds (CPU s of tuning)")
    table.add_column("table", no_wrap=True, min_width=13)
    for method, label in METHODS.items():
        table.add_column(
            f"{label}\n{summary[f'candidates/table={names[0]}/method={method}']} settings",
            no_wrap=True,
        )
    for name in names:
        table.add_row(
            name, *(_tuned(summary, f"table={name}/method={method}") for method in METHODS)
        )
    yield table


def _tuned(summary, cell) -> str:
    mean = 100 * summary[f"test_accuracy/{cell}"]
    deviation = 100 * summary[f"test_accuracy_std/{cell}"]
    return f"{mean:.1f}±{deviation:.1f} ({summary[f'seconds/{cell}']:.0f})"


def image_tables(summary: dict[str, Any]) -> Iterator[Table | str]:
    """One table for each kind of kernel: one row for each n, one column for each network."""
    kernels = _kernels(summary)
    if not kernels:
        return
    for kind in ("ntk", "nngp"):
        rows = {kernel: _row(summary, f"{kernel} ({kind})") for kernel in kernels}
        table = Table(
            "n",
            box=None,
            title=f"{summary['images']}, {kind.upper()}: test accuracy % ± std over draws",
        )
        for kernel in kernels:
            counts = f"{summary[f'draws/kernel={kernel}']} x {summary[f'test_images/kernel={kernel}']} test"
            table.add_column(f"{kernel}\n{counts}", no_wrap=True)
        for n in sorted({n for row in rows.values() for n in row}):
            cells = [
                f"{row[n][0]:.1f} ± {row[n][1]:.1f}" if n in row else "-" for row in rows.values()
            ]
            table.add_row(str(n), *cells)
        yield table
    times = ", ".join(f"{kernel} {summary[f'seconds/kernel={kernel}']:.0f} s" for kernel in kernels)
    yield f"CPU time of the kernels: {times}"
    yield (
        '"-": not computed at this size. No published value is printed beside: those for small CIFAR-10 draws could '
        "not be verified."
    )
