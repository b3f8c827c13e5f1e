"""Stores what the smoke presets of the theory measured, for the theory page: `docs/data/theory.json`.

    python -m experiments run alpha_rates --preset smoke  # and so on, for each experiment of the table
    python docs/collect.py runs/*

Copies the summary of each run folder given, with version, device and time, and leaves everything
else as it was.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from experiments.harness.store import read_json, run_folder

STORED = Path(__file__).resolve().parent / "data" / "theory.json"


def main() -> None:
    """Reads the run folders of the command line, smoke presets only: the page says that they are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    stored = json.loads(STORED.read_text())
    wanted = {_smoke_folder(row["experiment"]): row["experiment"] for row in stored["rows"]}
    for folder in parser.parse_args().runs:
        if name := wanted.get(folder.name):
            stored["runs"][name] = _run(folder)
            print(f"stored {name} from {folder}")
    STORED.write_text(json.dumps(stored, indent=1) + "\n")


def _smoke_folder(name):
    return run_folder(
        name, importlib.import_module(f"experiments.{name}").PRESETS["smoke"], Path()
    ).name


def _run(folder):
    environment = read_json(folder / "env.json")
    return {
        "jax": environment["packages"]["jax"],
        "device": environment["device"],
        "seconds": read_json(folder / "DONE")["seconds"],
        "summary": read_json(folder / "summary.json"),
    }


if __name__ == "__main__":
    main()
