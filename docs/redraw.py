"""Draws the figures of an experiment again from the numbers stored in `docs/data/NAME.json`, without its run folders.

    python docs/redraw.py cifar10_alpha_sweep_full

writes `docs/figures/NAME_FIGURE.png` for every figure of the experiment.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from experiments.harness import catalog, docs_data
from lazynet import plots

ROOT = Path(__file__).resolve().parent


def main() -> None:
    """Reads the name of the command line and writes its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the file in docs/data")
    name = parser.parse_args().name
    runs = json.loads((ROOT / "data" / f"{name}.json").read_text())
    experiment = catalog.find(runs["experiment"])
    for figure, drawn in experiment.draw(docs_data.whole(runs), docs_data.arrays_of(runs)).items():
        path = ROOT / "figures" / f"{name}_{figure}.png"
        plots.save(drawn, path)
        print(path.relative_to(ROOT.parent))


if __name__ == "__main__":
    main()
