"""Stores the finished rows of runs of `kernels_cifar10` for the results page: numbers and the figure.

    python docs/collect_kernels.py runs/kernels_cifar10-*

Every row that is finished is taken, of runs that are not, too; a row of the same kernel and number
of images that was stored before is replaced.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from experiments.harness.store import Store, read_json
from experiments.kernels_cifar10 import ALL_ROWS, bars
from lazynet import plots

DOCS = Path(__file__).resolve().parent
STORED = DOCS / "data" / "kernels_cifar10.json"


def main() -> None:
    """Reads the run folders of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    rows = json.loads(STORED.read_text())["rows"] if STORED.exists() else []
    for folder in parser.parse_args().runs:
        found = _finished(folder)
        names = {(row["row"], row["n"]) for row in found}
        rows = [row for row in rows if (row["row"], row["n"]) not in names] + found
    rows.sort(key=lambda row: (-row["n"], ALL_ROWS.index(row["row"])))
    STORED.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    labeled = {f"{row['row']}, n = {row['n']:,}": row for row in rows}
    plots.save(bars(rows[0]["data"], labeled), DOCS / "figures" / "kernels_cifar10.png")
    for label in labeled:
        print(label)


def _finished(folder: Path) -> list[dict]:
    config = read_json(folder / "config.json")
    environment = read_json(folder / "env.json")
    store = Store(folder)
    rows = []
    for name in config["rows"]:
        numbers = store.read(f"{name}.json")
        if numbers is not None:
            about = {"row": name, "data": config["data"]["label"], "solver": config["solver"]}
            made_by = {"jax": environment["packages"]["jax"], "commit": environment["commit"]}
            rows.append(about | numbers | made_by)
    return rows


if __name__ == "__main__":
    main()
