"""Command line of the experiments: `python -m experiments list | run | show | draw | sweep | compare`.

Exit status 0 is success, 1 a run that failed or whose facts do not hold, 2 a mistake in the
command.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # A Ctrl-C while modules are imported comes before `main` can catch it.
    sys.excepthook = lambda kind, *rest: (
        os._exit(130) if kind is KeyboardInterrupt else sys.__excepthook__(kind, *rest)
    )

import csv
import itertools
import re
import shlex
import signal
import textwrap
import threading
import time
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

import experiments
from experiments.harness import catalog, streams
from experiments.harness.config import preset as configure
from experiments.harness.errors import RunError

console = Console()


def list_experiments() -> None:
    """What each experiment shows, its presets and how long they take."""
    for name in catalog.names():
        module = catalog.find(name)
        times = catalog.expected_times(name, module.__doc__)
        presets = "; ".join(
            f"{key}: {times[key]}" if key in times else key for key in module.PRESETS
        )
        console.print(name, style="bold", highlight=False)
        for text in (module.__doc__.strip().splitlines()[0], f"presets {presets}"):
            indented = textwrap.fill(
                text, console.width, initial_indent="    ", subsequent_indent="      "
            )
            console.print(indented, highlight=False, markup=False, soft_wrap=True)


def run(
    name: tyro.conf.Positional[str],
    preset: str = "laptop",
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE")
    ] = (),
    out: Path = Path("runs"),
    quiet: bool = False,
) -> None:
    """Runs an experiment, or goes on where it was stopped, and prints its table and the paths of its figures.

    Args:
        name: Experiment, see `list`.
        preset: Size of the experiment: smoke, laptop or paper, see `list`.
        set: Override of one field of the configuration; may be given several times.
        out: Folder of the run folders.
        quiet: Prints the run folder and nothing else.
    """
    name = catalog.current(name)
    module = catalog.find(name)
    out = out.expanduser()
    config = configure(module.PRESETS, preset, set)
    if getattr(module, "HOST_DEVICES", False):
        # Every core becomes a device, for experiments that spread independent work over devices.
        _ask_xla("--xla_force_host_platform_device_count", os.cpu_count())
    if preset == "smoke":
        # Smoke presets compile far more than they compute: less effort halves their time.
        _ask_xla("--xla_backend_optimization_level", getattr(module, "XLA_EFFORT", 1))
    _set_precision(config)
    from experiments.harness import running, store

    folder = store.run_folder(name, config, out)
    shown = Console(quiet=True) if quiet else console
    finished = store.is_finished(folder)
    if finished:
        store.check_config(name, config, folder)
    else:
        _check_platform()
        with store.alone(folder):
            seconds = _clear(folder)
            store.open_run(name, config, out)
            # What a killed process left has been swept: without it the run may be finished.
            finished = (folder / store.DONE).exists()
            if not finished:
                start = time.perf_counter()
                running.compute(module, config, folder, shown)
                store.finish(folder, seconds + time.perf_counter() - start)
    if finished:
        shown.print("This configuration has been run before; remove its folder to run it again.")
    if quiet:
        print(folder)
    else:
        show(folder)
    # After the table, which shows by how much a fact fails.
    _check_facts(store.read_json(folder / "summary.json"))


def show(folder: tyro.conf.Positional[Path], csv: bool = False) -> None:
    """Prints the table of a finished run and the paths of its figures.

    Args:
        folder: Run folder, as printed by `run`.
        csv: Prints all numbers instead, as lines key,value.
    """
    from experiments.harness import running, store

    folder = store.sound(folder)
    summary = store.read_json(folder / "summary.json")
    if csv:
        return _print_csv([("key", "value"), *summary.items()])
    name = store.read_json(folder / "config.json")["experiment"]
    running.show(catalog.find(name), summary, console)
    for path in sorted((folder / "figures").glob("*.png")):
        console.print(f"figure   {path}", soft_wrap=True, highlight=False)
    console.print(f"numbers  {folder / 'summary.json'}", soft_wrap=True, highlight=False)
    seconds = store.read_json(folder / "DONE")["seconds"]
    console.print(f"time     {seconds} s", highlight=False)


def draw(folder: tyro.conf.Positional[Path]) -> None:
    """Draws the figures of a finished run again, from what it stored, and computes nothing.

    Args:
        folder: Run folder, as printed by `run`.
    """
    from experiments.harness import running, store

    # Damaged figures are what this command is for.
    folder = store.sound(folder, but="figures")
    module = catalog.find(store.read_json(folder / "config.json")["experiment"])
    config = running.configuration(folder)
    _set_precision(config)
    with store.alone(folder):
        arrays = running.arrays_of(module, config, folder, console)
        try:
            paths = running.draw(module, config, arrays, folder)
        except KeyError as error:
            raise RunError(
                f"{folder / running.MEASURED} is of another version, it lacks {error}: the same `run` command "
                "with another --out makes it again."
            ) from error
        # The new figures have new digests; the time stays that of the run.
        store.finish(folder, store.read_json(folder / "DONE")["seconds"])
    for path in paths:
        console.print(f"figure   {path}", soft_wrap=True, highlight=False)


def sweep(
    name: tyro.conf.Positional[str],
    over: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE,VALUE")
    ],
    preset: str = "laptop",
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE")
    ] = (),
    out: Path = Path("runs"),
    print: bool = False,
) -> None:
    """Runs an experiment at every point of a grid, except where it has been run before, and says how to compare them.

    Args:
        name: Experiment, see `list`.
        over: Field and its values; given several times, all combinations are run.
        preset: Size of the experiment: smoke, laptop or paper, see `list`.
        set: Override of one field for all runs; may be given several times.
        out: Folder of the run folders.
        print: Prints one command per unfinished run, for a cluster's own scheduler, and runs
            nothing.
    """
    from experiments.harness.grid import grid, run_points

    name = catalog.current(name)
    points = grid(name, catalog.find(name).PRESETS, preset, over, set, out.expanduser())
    if print:
        for point in points:
            if not point.finished:
                console.print(
                    shlex.join(point.command), soft_wrap=True, highlight=False, markup=False
                )
        return
    run_points(points, console)
    folders = shlex.join(str(point.folder) for point in points)
    console.print(
        f"compare  python -m experiments compare {folders}", soft_wrap=True, highlight=False
    )


def compare(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path = Path("runs/compare.png"),
    csv: bool = False,
) -> None:
    """Prints the numbers of several finished runs beside each other and draws their curves together.

    Args:
        runs: Run folders of one experiment, as printed by `run` and `sweep`.
        out: File of the figure.
        csv: Prints all numbers of one or more runs instead, as one tidy table with the columns
            alpha, seed, step, time, metric, value and run.
    """
    from experiments.harness import compare as comparison
    from experiments.harness import pieces, results, store

    folders = [run.expanduser() for run in runs]
    if csv:
        tables = [results.rows(store.sound(folder)) for folder in folders]
        # One run is enough here: nothing is compared.
        return _print_csv(itertools.chain([results.Row._fields], *tables))
    loaded = comparison.load(folders)
    path = comparison.figure_path(out)
    experiment = catalog.find(loaded[0].config["experiment"])
    if pieces.are_pieces(experiment, loaded):
        for written in pieces.write_together(experiment, loaded, path, console):
            console.print(f"wrote    {written}", soft_wrap=True, highlight=False)
        return
    comparison.show(loaded, console)
    drawn = comparison.draw(loaded, path)
    said = path if drawn else "none: these runs have no curve of numbers in common"
    console.print(f"figure   {said}", soft_wrap=True, highlight=False)


def _clear(folder: Path) -> float:
    """Names and removes what is damaged of a run that had ended, so that it is made again; the seconds it took."""
    from experiments.harness import store

    if not (folder / store.DONE).exists():
        return 0.0
    damages = store.damages(folder)
    if (folder / "summary.json").exists() and not damages:
        return 0.0
    seconds = (
        0.0
        if folder / store.DONE in damages
        else store.read_json(folder / store.DONE).get("seconds", 0.0)
    )
    # Finished parts that are sound are kept, so that only what is damaged costs time.
    for path, what in damages.items():
        _say(f"{path} is {what}: it is made again now.")
        path.unlink(missing_ok=True)
    (folder / store.DONE).unlink(missing_ok=True)
    return seconds


def _check_facts(summary) -> None:
    failed = [key for key, value in summary.items() if key.startswith("passed/") and not value]
    if failed:
        names = ", ".join(key.removeprefix("passed/") for key in failed)
        raise RunError(f"facts that do not hold: {names}.")


def _print_csv(lines) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerows(lines)


def _set_precision(config) -> None:
    """Switches float64 on before the first array exists, if the configuration asks for it; full float32 products."""
    import jax

    # GPUs would keep three digits of a float32 product.
    if jax.config.jax_default_matmul_precision is None:
        jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_enable_x64", getattr(config, "precision", "float32") == "float64")


def _check_platform() -> None:
    """Refuses a platform that jax does not know or cannot use, before a run folder is made.

    Raises:
        ValueError: In one sentence, where jax has a page.
    """
    import jax

    try:
        jax.devices()
    # The second one for a platform that is known and not there.
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        cause = f"JAX_PLATFORMS={platforms}" if platforms else "jax"
        # What jax adds in parentheses, "(set JAX_PLATFORMS='' ...", is said in other words below.
        reason = str(error).partition(" (set ")[0].splitlines() or ["it is not there"]
        raise ValueError(
            f"{cause} gives no device ({reason[0].rstrip('.')}): set JAX_PLATFORMS=cpu."
        ) from None


def _ask_xla(flag: str, value: int | None) -> None:
    """Sets a flag of XLA, which reads them with its first device, unless the environment sets it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()


def main() -> None:
    """Parses the command line; what a user can mend is one line on standard error."""
    # Figures are files: no display is opened.
    os.environ.setdefault("MPLBACKEND", "Agg")
    commands = {
        "list": list_experiments,
        "run": run,
        "show": show,
        "draw": draw,
        "sweep": sweep,
        "compare": compare,
    }
    try:
        # The parser knows the options of the command, not the fields of an experiment.
        if sys.argv[1:2] in (["run"], ["sweep"]) and {"--help", "-h"} & {*sys.argv[2:]}:
            _show_fields(sys.argv[2:])
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="python -m experiments", description=experiments.__doc__
        )
    # Before ValueError, of which RunError is one: a failed run is no mistake in the command.
    except (RunError, OSError, MemoryError) as error:
        _fail(error, 1)
    except (ValueError, TypeError) as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        _stop()


def _show_fields(words: list[str]) -> None:
    """Prints the fields of the experiment among the words, if there is one, before the help of the command."""
    from experiments.harness import fields

    for name in [word for word in words if catalog.current(word) in catalog.names()]:
        module = catalog.find(name)
        chosen = re.search(r"--preset[ =](\S+)", " ".join(words))
        size = chosen[1] if chosen else "laptop"
        config = configure(module.PRESETS, size)
        console.print(
            module.__doc__.strip().splitlines()[0], highlight=False, markup=False, soft_wrap=True
        )
        console.print(
            f"\nfields of {name} for --set, with their values in the preset {size}:",
            highlight=False,
        )
        fields.show(config, console)
        console.print()


def _interrupt_again(unraisable) -> None:
    """Repeats a Ctrl-C that came where exceptions are dropped, as in what jax does at each collection of garbage."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(unraisable)
    # An exception would be dropped here as well; a signal a moment later wakes the main thread.
    again = threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGINT])
    again.daemon = True
    again.start()


def _fail(error: Exception, status: int) -> None:
    if os.environ.get("LAZYNET_TRACEBACK"):
        raise error
    _say(f"error: {error}")
    sys.exit(status)


def _stop() -> None:
    """Ends with status 130 once nothing is computed any more; a second Ctrl-C does not wait.

    An interpreter that exits while XLA computes crashes.
    """
    try:
        _say("stopped: the same command goes on from the parts that are finished.")
        _wait_for_devices()
    except KeyboardInterrupt:
        os._exit(130)
    sys.exit(130)


def _wait_for_devices() -> None:
    """Returns when nothing computes any more: a device works in order, so its last array is ready after all others."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    if "jax" in sys.modules:
        import jax

        for device in jax.local_devices():
            jax.block_until_ready(jax.device_put(0.0, device) + 1.0)


def _say(line: str) -> None:
    Console(stderr=True).print(line, style="red", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    streams.outlive_readers()
    sys.unraisablehook = _interrupt_again
    try:
        main()
    except SystemExit as end:
        # An interpreter that was interrupted now and then crashes in the threads of XLA when it ends.
        if end.code == 130:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            os._exit(130)
        raise
    finally:
        # The interpreter that ends would be killed by a Ctrl-C, whatever the status was.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if streams.failed():
        _fail(RunError(f"standard output could not be written ({streams.failed()})."), 1)
