"""One group of benchmarks in a process of its own: `python -m benchmarks.group NAME FILE [--quick]`.

Rows are appended to FILE, one JSON object a line, as soon as a case is measured, so that a process
that dies leaves what it has.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks import report
from benchmarks.measure import Case, Row, measure

__all__ = ["read", "run", "write"]


def run(name: str, cases: Sequence[Case], file: Path) -> None:
    """Measures the cases of a group one after another; compiled programs are dropped after each."""
    start = time.perf_counter()
    for number, case in enumerate(cases, 1):
        print(
            f"[{name} {number}/{len(cases)}, {time.perf_counter() - start:.0f} s] {case.name}",
            flush=True,
        )
        for row in measure(name, case):
            write(file, row)
            print(f"  {report.line(row)}", flush=True)
        jax.clear_caches()
        gc.collect()


def write(file: Path, row: Row) -> None:
    """Appends a row."""
    with file.open("a") as stream:
        stream.write(json.dumps(row._asdict()) + "\n")


def read(file: Path) -> list[Row]:
    """The rows of a file, in their order; none if it is missing. Rows beyond a torn line are lost with it."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]


def main() -> None:
    """Runs the group of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    run(
        options.name,
        list(importlib.import_module(f"benchmarks.{options.name}").cases(options.quick)),
        options.file,
    )


if __name__ == "__main__":
    main()
