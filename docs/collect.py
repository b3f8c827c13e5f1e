"""Stores what runs measured in `docs/data/`, of which the pages are made, so that no number is typed twice.

    python -m experiments run lazy_vs_standard
    python docs/collect.py lazy_vs_standard runs/lazy_vs_standard-*
    python docs/collect.py cifar10_alpha_sweep_full runs/cifar10_alpha_sweep-*  # one run for each alpha

writes `docs/data/NAME.json`: the experiment, the preset, and of each run, by the value of the field
in which the runs differ, its configuration, environment, seconds, summary and curves. Runs that are
stored already stay, unless one of the same value is given.

    python -m experiments run alpha_rates --preset smoke  # and so on, for each experiment of the table
    python docs/collect.py theory runs/*

stores the smoke presets of the theory page and leaves out all other runs; `python docs/collect.py
lecture runs/*` those of the page on the lecture.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from experiments.harness import catalog, compare, results, running, store

DATA = Path(__file__).resolve().parent / "data"
DIGITS = 6


def main() -> None:
    """Reads the name and the run folders of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the file in docs/data")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    arguments = parser.parse_args()
    path = DATA / f"{arguments.name}.json"
    collected = smoke_presets if arguments.name in ("theory", "lecture") else runs_of
    known = json.loads(path.read_text()) if path.exists() else {}
    stored = collected(known, arguments.runs)
    path.write_text(json.dumps(stored, indent=1) + "\n")


def runs_of(known: dict[str, Any], folders: list[Path]) -> dict[str, Any]:
    """What is known of an experiment, with these runs of it."""
    found = {}
    for folder in map(store.sound, folders):
        found[folder] = {
            "config": _portable(store.read_json(folder / "config.json")),
            "environment": store.read_json(folder / "env.json"),
            "seconds": store.read_json(folder / store.DONE)["seconds"],
            "summary": store.read_json(folder / "summary.json"),
            "curves": {name: _rounded(columns) for name, columns in results.curves(folder).items()},
            **_classes(folder),
        }
    earlier = list(known.get("runs", {}).values())
    every = [compare.Run(Path(), run["config"], {}) for run in [*earlier, *found.values()]]
    (experiment,) = {catalog.current(run.config["experiment"]) for run in every}
    fields = compare.differing_fields(every)
    runs = {_label(run["config"], fields): run for run in [*earlier, *found.values()]}
    preset = known.get("preset") or preset_of(experiment, folders[0])
    ordered = dict(sorted(runs.items(), key=lambda item: _place(item[0])))
    return {**known, "experiment": experiment, "preset": preset, "runs": ordered}


def preset_of(experiment: str, folder: Path) -> str | None:
    """The preset of a run, apart from its data and from what one of several pieces leaves out; None without one."""
    config = running.configuration(folder)
    module = catalog.find(experiment)
    for name, preset in module.PRESETS.items():
        fields = {"data", *getattr(module, "PIECES", ())} & vars(config).keys()
        if {**vars(preset), **{field: getattr(config, field) for field in fields}} == vars(config):
            return name
    return None


def smoke_presets(known: dict[str, Any], folders: list[Path]) -> dict[str, Any]:
    """A page's rows, with those of the runs that are smoke presets: the page says that they are."""
    names = [row["experiment"] for row in known["rows"] if "experiment" in row]
    presets = {name: catalog.find(name).PRESETS["smoke"] for name in names}
    wanted = {store.run_folder(name, preset, Path()).name: name for name, preset in presets.items()}
    runs = {wanted[folder.name]: _smoke(folder) for folder in folders if folder.name in wanted}
    return {**known, "runs": {**known["runs"], **runs}}


def _smoke(folder: Path) -> dict[str, Any]:
    environment = store.read_json(folder / "env.json")
    return {
        "jax": environment["packages"]["jax"],
        "device": environment["device"],
        "seconds": store.read_json(folder / store.DONE)["seconds"],
        "summary": store.read_json(folder / "summary.json"),
    }


def _classes(folder: Path) -> dict[str, dict[str, str]]:
    """The class that each training of a run predicts for each test image, a digit an image, where it stores outputs."""
    # Names of files lack letters that names of curves have, such as the "+" of 1e+07.
    curves = {store.Store(folder).path(name).stem: name for name in results.curves(folder)}
    classes = {}
    for path in sorted((folder / "cells").glob("*.npz")):
        outputs = store.load_arrays(path).get("outputs")
        if outputs is not None and outputs.shape[1:] == (10,):
            cell = curves.get(path.stem, path.stem.replace("-", "=", 1))
            classes[cell] = "".join(str(digit) for digit in outputs.argmax(1))
    return {"classes": classes} if classes else {}


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the folder of the data, which is another one on every machine."""
    if "data" not in config:
        return config
    return {**config, "data": {**config["data"], "root": None, "download": False}}


def _rounded(columns: dict[str, Any]) -> dict[str, list[float]]:
    """Columns of a curve with as many digits as a page can show."""
    return {
        name: [float(f"{value:.{DIGITS}g}") for value in values] for name, values in columns.items()
    }


def _label(config: dict[str, Any], fields: list[str]) -> str:
    """The values of the fields in which runs differ, such as "10" of runs of single alphas."""
    values = []
    for field in fields:
        value = config
        for part in field.split("."):
            # Runs of a network of one's own have a digest that the others lack.
            value = value.get(part)
        values += value if isinstance(value, list) else [value]
    plain = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return ", ".join(plain) or "run"


def _place(label: str) -> tuple[float, str]:
    try:
        return float(label), ""
    except ValueError:
        return float("inf"), label


if __name__ == "__main__":
    main()
