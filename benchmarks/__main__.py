"""Measures lazynet beside its peers in one run: `python -m benchmarks`.

    python -m benchmarks --list                      # groups and cases
    python -m benchmarks --quick                     # small sizes: under 5 minutes on 2 idle cores
    python -m benchmarks --only kernels scattering   # full sizes of two groups
    python -m benchmarks --record                    # and keeps the result in benchmarks/history
    python -m benchmarks --plot                      # draws the recorded ratios, measures nothing

Every group runs in a process of its own, one after the other. Written are FOLDER/benchmarks.json
and FOLDER/benchmarks.md. neural-tangents needs jax < 0.6; where a peer cannot be imported, its rows
say so. Exit status 0 is success, 1 if a program failed or disagrees with the first one of its case,
2 a mistake in the command.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import GROUPS, group, history, machine, report
from benchmarks.measure import Row
from experiments.harness import store

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.list:
        return _list(options)
    if options.plot:
        print(history.plot(history.load(), options.out / "history.png"))
        return 0
    measured = [row for name in options.only for row in run_group(name, options.quick, options.out)]
    # After the groups: `describe` takes the device that they measured on.
    result = {
        "quick": options.quick,
        "machine": machine.describe(),
        "rows": [row._asdict() for row in measured],
    }
    for path in write(result, options.out) + ([history.record(result)] if options.record else []):
        print(path)
    failed = [row for row in measured if row.error]
    for row in failed:
        print(f"failed: {report.line(row)}", file=sys.stderr)
    return 1 if failed else 0


def run_group(name: str, quick: bool, folder: Path) -> list[Row]:
    """The rows of one group, measured in a process of its own; one row of error if that dies."""
    file = folder / "rows" / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    # Rows are appended: those of an earlier run would be read as this one's.
    file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.group",
        name,
        str(file.resolve()),
        *(["--quick"] if quick else []),
    ]
    # In the environment of the process, since jax and BLAS read them when they are loaded.
    variables = getattr(importlib.import_module(f"benchmarks.{name}"), "ENVIRONMENT", {})
    status = subprocess.run(command, cwd=ROOT, env=os.environ | variables).returncode
    died = (
        [Row(name, "the group", "", error=f"its process ended with status {status}")]
        if status
        else []
    )
    # Rows that were measured before a process died are kept.
    return group.read(file) + died


def write(result: dict, folder: Path) -> list[Path]:
    """Writes the result as JSON and as Markdown."""
    page = folder / "benchmarks.md"
    store.write_json(folder / "benchmarks.json", result)
    page.write_text(report.markdown(result))
    return [folder / "benchmarks.json", page]


def _list(options) -> int:
    for name in options.only:
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"{name}: {module.__doc__.splitlines()[0]}")
        for case in module.cases(options.quick):
            print(f"    {case.name}, per {case.unit}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP", help=str(GROUPS)
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks"), metavar="FOLDER", help="of the results"
    )
    parser.add_argument("--list", action="store_true", help="print the groups and their cases")
    parser.add_argument(
        "--record", action="store_true", help=f"keep the result in {history.FOLDER.name}"
    )
    parser.add_argument(
        "--plot", action="store_true", help="draw the recorded ratios and measure nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
