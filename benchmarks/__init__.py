"""Benchmarks beside other ways to the same results, in one run: `python -m benchmarks`.

Every module of `GROUPS` has a function `cases(quick)` that yields `measure.Case`s, and may have
`ENVIRONMENT`, the variables of the process of its own in which it runs.
"""

from __future__ import annotations

GROUPS = (
    "kernels",
    "positions",
    "first_calls",
    "empirical",
    "scattering",
    "regression",
    "solvers",
    "diagnostics",
    "training",
    "devices",
    "synthetic",
)
"""Modules that measure, in the order of a run."""
