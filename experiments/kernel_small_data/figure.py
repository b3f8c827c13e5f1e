"""The figure and the printed tables of `kernel_small_data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["draw", "show_images", "show_tables"]

METHODS = {"ntk": "FC-NTK SVM", "nngp": "FC-NNGP SVM", "rbf": "RBF SVM", "forest": "forest"}


def draw(config, summary: dict[str, Any], path: Path) -> None:
    """Bars of the tables, and accuracy against the number of training images with error bars over draws."""
    from matplotlib.figure import Figure

    from lazynet import plots

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(config.tables.names, summary, left)
    _curves(summary, right)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)


def _bars(names, summary, ax) -> None:
    for i, (method, label) in enumerate(METHODS.items()):
        cells = [f"table={name}/method={method}" for name in names]
        heights = [100 * summary[f"test_accuracy/{cell}"] for cell in cells]
        errors = [100 * summary[f"test_accuracy_std/{cell}"] for cell in cells]
        ax.bar(
            np.arange(len(names)) + (i - 1.5) / 5,
            heights,
            0.19,
            yerr=errors,
            capsize=2,
            label=label,
        )
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
            values, errors = ([row[j] for row in rows.values()] for j in (0, 1))
            ax.errorbar(
                list(rows),
                values,
                errors,
                fmt=style,
                color=f"C{i}",
                ms=4,
                capsize=2,
                label=f"{kernel}, {kind.upper()}",
            )
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


def show_tables(summary: dict[str, Any], console) -> None:
    """One row for each table, one column for each method: accuracy, and the CPU seconds of its nested tuning."""
    from rich.table import Table

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
    console.print(table)


def _tuned(summary, cell) -> str:
    mean, deviation = (
        100 * summary[f"{entry}/{cell}"] for entry in ("test_accuracy", "test_accuracy_std")
    )
    return f"{mean:.1f}±{deviation:.1f} ({summary[f'seconds/{cell}']:.0f})"


def show_images(summary: dict[str, Any], console) -> None:
    """One table for each kind of kernel: one row for each n, one column for each network."""
    from rich.table import Table

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
        console.print(table)
    times = ", ".join(f"{kernel} {summary[f'seconds/kernel={kernel}']:.0f} s" for kernel in kernels)
    console.print(f"CPU time of the kernels: {times}", highlight=False, soft_wrap=True)
    console.print(
        '"-": not computed at this size. No published value is printed beside: those for small CIFAR-10 draws could '
        "not be verified.",
        highlight=False,
        soft_wrap=True,
    )
