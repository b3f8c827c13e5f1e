"""Rows as tables: times per unit, ratios to the first program of the case, and the conditions of the run.

A result is `{"quick", "machine", "rows"}`, and is what is stored as JSON; `tables` has the form of
the site's tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.measure import Row

__all__ = [
    "Ratio",
    "amount",
    "conditions",
    "line",
    "markdown",
    "ratios",
    "rows",
    "seconds",
    "site",
    "tables",
]

COLUMNS = [
    "case",
    "program",
    "CPU",
    "wall",
    "CPU ratio",
    "wall ratio",
    "first call",
    "memory",
    "remarks",
]

Ratio = tuple[float | None, float | None]
"""How many times more CPU and wall time a unit takes than that of the first program of its case."""


def rows(result: dict[str, Any]) -> list[Row]:
    """The rows of a stored result."""
    return [Row(**row) for row in result["rows"]]


def ratios(measured: Iterable[Row]) -> Iterator[tuple[Row, Ratio]]:
    """Every row with its ratios; None where either side has no time."""
    # Rows of a case follow each other, as they were measured.
    for _, group in itertools.groupby(measured, key=lambda row: (row.group, row.case)):
        case = list(group)
        for row in case:
            yield row, (_ratio(row, case[0], "cpu_s"), _ratio(row, case[0], "wall_s"))


def markdown(result: dict[str, Any]) -> str:
    """The whole result as one page of Markdown."""
    shown = site(result)
    listed = [f"- {name}: {value}" for name, value in shown["conditions"].items()]
    parts = [
        f"## {each['title']}\n\n{_markdown(each['columns'], each['rows'])}"
        for each in shown["tables"]
    ]
    about = "Times are per unit; ratios are to the first program of a case, above 1 where that one is cheaper."
    return "\n\n".join(["# Benchmarks", about, "\n".join(listed), *parts]) + "\n"


def site(result: dict[str, Any]) -> dict[str, Any]:
    """What the site renders: `{"conditions": {name: value}, "tables": [{"title", "columns", "rows"}]}`."""
    return {"conditions": conditions(result), "tables": tables(rows(result))}


def conditions(result: dict[str, Any]) -> dict[str, str]:
    """What the numbers depend on."""
    machine = result["machine"]
    packages = ", ".join(
        f"{name} {version}" for name, version in machine["packages"].items() if version
    )
    changed = " with changes" if machine["uncommitted"] else ""
    return {
        "date": machine["date"],
        "sizes": "quick" if result["quick"] else "full",
        "processor": f"{machine['cpu']}, {machine['cores']} cores",
        "device": machine["device"],
        "packages": f"Python {machine['python']}, {packages}",
        "commit": f"{machine['commit'] or 'unknown'}{changed}",
    }


def tables(measured: Iterable[Row]) -> list[dict[str, Any]]:
    """One table for every group."""
    grouped = itertools.groupby(ratios(measured), key=lambda pair: pair[0].group)
    return [{"title": group, "columns": COLUMNS, "rows": _table(pairs)} for group, pairs in grouped]


def line(row: Row) -> str:
    """One row as a line of the terminal."""
    head = f"{row.group} | {row.case} | {row.program or '(building)'}"
    if row.cpu_s is None:
        return f"{head}: {row.error or row.note}"
    per = f"{seconds(row.cpu_s / row.entries)} cpu, {seconds(row.wall_s / row.entries)} wall per {row.unit}"
    return f"{head}: {per}; first call {seconds(row.first_s)} {_remarks(row)}".rstrip()


def seconds(value: float | None) -> str:
    """A time with a fitting unit and three digits."""
    if value is None:
        return ""
    scale, unit = next(
        ((s, u) for s, u in ((1, "s"), (1e3, "ms"), (1e6, "us")) if value * s >= 1), (1e9, "ns")
    )
    return f"{value * scale:.3g} {unit}" if value * scale < 1000 else f"{value * scale:,.0f} {unit}"


def amount(count: int | None) -> str:
    """Bytes in MiB."""
    return "" if count is None else f"{count / 2**20:,.1f} MiB"


def _ratio(row: Row, first: Row, name: str) -> float | None:
    mine = getattr(row, name)
    theirs = getattr(first, name)
    # No ratio to a program that did not run, nor to a time of zero.
    if mine is None or not theirs:
        return None
    return (mine / row.entries) / (theirs / first.entries)


def _table(pairs: Iterable[tuple[Row, Ratio]]) -> list[list[str]]:
    """Cells of a group; a case is named in its first row alone."""
    cells = []
    last = None
    for row, ratio in pairs:
        head, *rest = _cells(row, ratio)
        cells.append(["" if row.case == last else head, *rest])
        last = row.case
    return cells


def _cells(row: Row, ratio: Ratio) -> list[str]:
    times = [
        seconds(None if value is None else value / row.entries) for value in (row.cpu_s, row.wall_s)
    ]
    shown = ["" if value is None else f"{value:.2f}" for value in ratio]
    case = f"{row.case}, per {row.unit}"
    return [
        case,
        row.program,
        *times,
        *shown,
        seconds(row.first_s),
        amount(row.bytes),
        _remarks(row),
    ]


def _remarks(row: Row) -> str:
    agreement = f"differs by {row.differs:.0e}" if row.differs is not None and not row.error else ""
    error = f"FAILED: {row.error}" if row.error else ""
    return "; ".join(filter(None, [error, row.note, agreement]))


def _markdown(columns: list[str], cells: list[list[str]]) -> str:
    lines = [
        columns,
        ["---"] * len(columns),
        *[[cell.replace("|", "\\|") for cell in each] for each in cells],
    ]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)
