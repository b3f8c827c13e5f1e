"""Facts: what the theory predicts, what was measured and whether both agree; their flat summary and their table.

A fact has a prediction with a tolerance, or bounds. `summarize` writes for a fact
`slope/drift/centered` the keys `slope/drift/centered`, `expected/drift/centered`,
`tolerance/drift/centered` and `passed/drift/centered`; a fact that is not a slope keeps its whole
name behind the prefix, and bounds stand under `at_least/` and `at_most/`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Fact", "close", "is_measured", "power_law", "show", "summarize", "told", "within"]

PREDICTIONS = ("expected/", "tolerance/", "at_least/", "at_most/")
"""Prefixes of what a summary says about its facts beside the numbers."""


class Fact(NamedTuple):
    """A measured number with its prediction `expected ± tolerance`, or its bounds `at_least`, `at_most`."""

    name: str
    measured: float
    expected: float | None = None
    tolerance: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the measurement agrees; a number that is not finite never does."""
        # Comparisons with nan are false, but inf would pass `at_least`.
        if not math.isfinite(self.measured):
            return False
        if self.expected is not None and self.tolerance is not None:
            return bool(abs(self.measured - self.expected) <= self.tolerance)
        low = -math.inf if self.at_least is None else self.at_least
        return bool(low <= self.measured <= (math.inf if self.at_most is None else self.at_most))


def close(name: str, measured: float, expected: float, tolerance: float) -> Fact:
    """The fact `measured = expected ± tolerance`."""
    return Fact(name, float(measured), expected=float(expected), tolerance=float(tolerance))


def within(
    name: str, measured: float, *, at_least: float | None = None, at_most: float | None = None
) -> Fact:
    """The fact `at_least <= measured <= at_most`, with at least one of the bounds."""
    if at_least is None and at_most is None:
        raise ValueError(
            f"fact {name} has no bounds, expected at_least, at_most or both: it could not fail."
        )
    return Fact(name, float(measured), at_least=at_least, at_most=at_most)


def power_law(
    name: str,
    x: Sequence[float],
    values: Any,
    expected: float | None = None,
    tolerance: float | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Fact:
    """The fact that `values ~ x^slope`, named `slope/name`; of values `[seeds, x]`, the mean over seeds.

    The slope is nan, with which no fact holds, where a mean is not positive and finite.
    """
    from lazynet.diagnostics import fit_slope

    values = np.atleast_2d(np.asarray(values, float))
    # The slope of the mean and not the mean of slopes: laws are about expectations.
    means = values.mean(0)
    lawful = np.all((means > 0) & np.isfinite(means))
    slope = fit_slope(np.asarray(x, float), means) if lawful else math.nan
    if expected is not None and tolerance is not None:
        return close(f"slope/{name}", slope, expected, tolerance)
    return within(f"slope/{name}", slope, at_least=at_least, at_most=at_most)


def summarize(facts: Sequence[Fact]) -> dict[str, Any]:
    """The facts as one flat dictionary of JSON values.

    Raises:
        ValueError: If two facts have one name.
    """
    summary: dict[str, Any] = {}
    for fact in facts:
        rest = fact.name.removeprefix("slope/")
        if f"passed/{rest}" in summary:
            raise ValueError(f"two facts are named {rest!r}: give each its own name.")
        # JSON has neither nan nor infinity.
        summary[fact.name] = fact.measured if math.isfinite(fact.measured) else None
        for kind in ("expected", "tolerance", "at_least", "at_most"):
            if getattr(fact, kind) is not None:
                summary[f"{kind}/{rest}"] = float(getattr(fact, kind))
        summary[f"passed/{rest}"] = fact.passed
    return summary


def is_measured(key: str, value: Any) -> bool:
    """Whether an entry of a summary is a number that was measured."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and not key.startswith(PREDICTIONS)


def show(summary: dict[str, Any], console, title: str) -> None:
    """Prints the table of a summary, one row for each fact, and how many hold."""
    from rich.table import Table

    table = Table("fact", "measured", "expected", "holds", box=None, title=title)
    names = [key.removeprefix("passed/") for key in summary if key.startswith("passed/")]
    for rest in names:
        name, measured, predicted, holds = told(summary, rest)
        table.add_row(name, measured, predicted, "yes" if holds else "[bold red]NO[/]")
    console.print(table)
    count = sum(summary[f"passed/{rest}"] for rest in names)
    console.print(f"{count} of {len(names)} facts hold", highlight=False)


def told(summary: dict[str, Any], rest: str) -> tuple[str, str, str, bool]:
    """Name, measurement and prediction of a fact for a table, and whether it holds; `rest` is without `slope/`."""
    name = f"slope/{rest}" if f"slope/{rest}" in summary else rest
    predicted = _prediction(summary, rest)
    return name, _number(summary[name]), predicted, summary[f"passed/{rest}"]


def _prediction(summary, rest):
    expected = summary.get(f"expected/{rest}")
    low = summary.get(f"at_least/{rest}")
    high = summary.get(f"at_most/{rest}")
    if expected is not None:
        return f"{_number(expected)} ± {summary[f'tolerance/{rest}']:.2g}"
    if low is not None and high is not None:
        return f"{_number(low)} to {_number(high)}"
    return f"<= {_number(high)}" if low is None else f">= {_number(low)}"


def _number(value):
    return "not finite" if value is None else f"{value:.4g}"
