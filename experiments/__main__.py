"""Command line of the experiments: `python -m experiments list | run | show | sweep | compare`."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

import experiments
from experiments.config import preset as configure

console = Console()


def experiment_names() -> list[str]:
    """Modules of this package that are experiments."""
    names = [module.name for module in pkgutil.iter_modules(experiments.__path__) if module.name != "__main__"]
    return [name for name in names if hasattr(importlib.import_module(f"experiments.{name}"), "PRESETS")]


def list_experiments() -> None:
    """One line for each experiment."""
    table = Table("experiment", "what it shows", "presets", box=None)
    for name in experiment_names():
        module = importlib.import_module(f"experiments.{name}")
        table.add_row(name, module.__doc__.strip().splitlines()[0], ", ".join(module.PRESETS))
    console.print(table)


def run(
    name: tyro.conf.Positional[str],
    preset: str = "laptop",
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE")] = (),
    out: Path = Path("runs"),
) -> None:
    """Runs an experiment, or goes on where it was stopped, and prints its table and the paths of its figures.

    Args:
        name: Experiment, see `list`.
        preset: Size of the experiment: smoke, laptop or paper.
        set: Override of one field of the configuration; may be given several times.
        out: Folder of the run folders.
    """
    module = _experiment(name)
    config = configure(module.PRESETS, preset, set)
    if getattr(module, "HOST_DEVICES", False):
        _use_all_cores()
    _set_precision(config)
    from experiments import store

    folder = store.open_run(name, config, out)
    start = time.perf_counter()
    if not (folder / "DONE").exists():
        summary = module.run(config, folder, console)
        store.write_json(folder / "summary.json", summary)
        store.write_json(folder / "DONE", {"seconds": round(time.perf_counter() - start, 1)})
    else:
        console.print("This configuration has been run before; remove its folder to run it again.")
    show(folder)


def show(folder: tyro.conf.Positional[Path]) -> None:
    """Prints the table of a finished run and the paths of its figures.

    Args:
        folder: Run folder, as printed by `run`.
    """
    from experiments import store

    if not (folder / "DONE").exists():
        raise ValueError(
            f"{folder} is not the folder of a finished run (no file DONE): finish it by the same `run` command."
        )
    name = store.read_json(folder / "config.json")["experiment"]
    module = importlib.import_module(f"experiments.{name}")
    module.show(store.read_json(folder / "summary.json"), console)
    for path in sorted((folder / "figures").glob("*.png")):
        console.print(f"figure   {path}", soft_wrap=True, highlight=False)
    console.print(f"numbers  {folder / 'summary.json'}", soft_wrap=True, highlight=False)
    seconds = store.read_json(folder / "DONE")["seconds"]
    console.print(f"time     {seconds} s", highlight=False)


def sweep(
    name: tyro.conf.Positional[str],
    over: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE,VALUE")],
    preset: str = "laptop",
    set: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE")] = (),
    out: Path = Path("runs"),
    print: bool = False,
) -> None:
    """Runs an experiment at every point of a grid, except where it has been run before, and says how to compare them.

    Args:
        name: Experiment, see `list`.
        over: Field and its values; given several times, all combinations are run.
        preset: Size of the experiment: smoke, laptop or paper.
        set: Override of one field for all runs; may be given several times.
        out: Folder of the run folders.
        print: Prints one command per unfinished run, for a cluster's own scheduler, and runs nothing.
    """
    from experiments.sweep import grid, run_points

    points = grid(name, _experiment(name).PRESETS, preset, over, set, out)
    if print:
        for point in points:
            if not point.finished:
                console.print(shlex.join(point.command), soft_wrap=True, highlight=False, markup=False)
        return
    run_points(points, console)
    folders = shlex.join(str(point.folder) for point in points)
    console.print(f"compare  python -m experiments compare {folders}", soft_wrap=True, highlight=False)


def compare(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path = Path("runs/compare.png")) -> None:
    """Prints the numbers of several finished runs beside each other and draws their curves together.

    Args:
        runs: Run folders of one experiment, as printed by `run` and `sweep`.
        out: File of the figure.
    """
    from experiments import compare as comparison

    loaded = comparison.load(runs)
    comparison.show(loaded, console)
    if comparison.draw(loaded, out):
        console.print(f"figure   {out}", soft_wrap=True, highlight=False)


def _experiment(name: str):
    if name not in experiment_names():
        raise ValueError(f"unknown experiment {name!r}, expected one of {', '.join(experiment_names())}.")
    return importlib.import_module(f"experiments.{name}")


def _set_precision(config) -> None:
    """Switches float64 on before the first array exists, if the configuration asks for it."""
    import jax

    jax.config.update("jax_enable_x64", getattr(config, "precision", "float32") == "float64")


def _use_all_cores() -> None:
    """Makes every core of a CPU a device, for experiments that spread independent work over devices."""
    flag = "--xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={os.cpu_count()}".strip()


def main() -> None:
    """Parses the command line; a user's mistake is one line on standard error and exit status 2."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    commands = {"list": list_experiments, "run": run, "show": show, "sweep": sweep, "compare": compare}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m experiments", description=experiments.__doc__)
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("LAZYNET_TRACEBACK"):
            raise
        Console(stderr=True).print(f"error: {error}", style="red", soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
