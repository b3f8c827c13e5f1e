"""Run folders: one per configuration, written atomically, so that a killed run resumes and a changed one starts anew.

runs/NAME-DIGEST/
    config.json      the configuration, with the digest of a model's file; its own digest names the folder
    env.json         versions, device, precision, git commit
    cells/*.npz      arrays of finished parts
    measured.npz     all that was measured, from which facts and figures are made
    summary.json     the numbers that a reader compares, flat
    figures/*.png
    DONE             written last: how long it took, and the digests of all files that the run wrote

Every file carries a checksum, of which damaged files are known: arrays by the format `.npz`, JSON
by its last entry, and every file of a finished run, figures too, by its digest in DONE. Finished
parts that are damaged are computed again, all else that is damaged is refused by name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from experiments.harness.config import as_dictionary
from experiments.harness.errors import RunError
from experiments.harness.progress import over_devices
from experiments.shared import own
from lazynet import files
from lazynet.records import Trajectory
from lazynet.training import checkpoints
from lazynet.training.loop import TrainState

__all__ = [
    "Damaged",
    "Store",
    "alone",
    "check_config",
    "damages",
    "finish",
    "has_leftovers",
    "is_finished",
    "load_arrays",
    "load_checkpoint",
    "open_run",
    "part",
    "read_json",
    "run_folder",
    "save_arrays",
    "save_checkpoint",
    "sound",
    "write_json",
]


CHECKSUM = "crc32"

DONE = "DONE"
"""The file that a run writes last."""


class Damaged(RunError):
    """A file that does not hold what was written to it."""


class Store(NamedTuple):
    """A run folder as an experiment sees it: what has been computed, by name, and where progress is shown.

        cell = store.read("seed=0") or store.write("seed=0", train(config, seed=0))

    Names end with `.json` for values of JSON; all others are of named arrays.
    """

    folder: Path
    console: Console = Console(quiet=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """What was written under a name; None where there is nothing, or, after a warning, nothing sound."""
        path = self.path(name)
        load = read_json if path.suffix == ".json" else load_arrays
        try:
            return load(path)
        except FileNotFoundError:
            return None
        except Damaged as error:
            warnings.warn(f"{error} It is computed again now.", stacklevel=2)
            return None

    def write(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Writes values under a name, all or nothing, and returns them as they will be read."""
        path = self.path(name)
        if path.suffix == ".json":
            write_json(path, values)
            return read_json(path)
        save_arrays(path, values)
        # Not before the result stands: a killed training goes on from here.
        self.checkpoint(name).unlink(missing_ok=True)
        return load_arrays(path)

    def has(self, name: str) -> bool:
        """Whether something was written under a name."""
        return self.path(name).exists()

    def path(self, name: str) -> Path:
        """The file of a name, in the folder `cells`."""
        return part(self.folder / "cells" / (name if name.endswith(".json") else f"{name}.npz"))

    def checkpoint(self, name: str) -> Path:
        """Where a training that will be written under a name keeps its state until then."""
        return part(self.folder / "cells" / f"{name}.checkpoint.npz")

    def within(self, name: str) -> Store:
        """A store of its own inside this one, for an experiment that another one is made of."""
        return self._replace(folder=part(self.folder / "cells" / name))

    def kernels(self, name: str) -> Path:
        """The folder of a kernel's tiles."""
        return part(self.folder / "kernels" / name)

    def status(self, text: str):
        """Says what is computed until the block ends."""
        return self.console.status(text)

    def track(self, items: Sequence[Any], text: str) -> Iterable[Any]:
        """The items, with a bar of how many are done on a terminal."""
        shown = self.console.is_terminal
        return track(items, text, console=self.console, transient=True, disable=not shown)

    def spread(self, compute: Callable[[Any], Any], cells: Sequence[Any]) -> dict[Any, Any]:
        """`{cell: compute(cell)}`, as many at a time as there are devices."""
        return over_devices(compute, cells, self.console)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a run folder, which is created if needed, until the block ends or this one dies.

    Raises:
        RunError: If another process is computing there.
        ValueError: If the folder cannot be written.
    """
    # A stack, so that the block runs outside of the `try`: its own OSErrors are not the folder's.
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.locked(folder))
        except BlockingIOError as error:
            raise RunError(
                f"{folder} is being computed by another process ({error.strerror}): wait for it, or choose another "
                "folder by --out."
            ) from None
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield


def open_run(name: str, config: Any, out: Path) -> Path:
    """The folder of this configuration, created if needed; its digest makes every configuration its own folder.

    Raises:
        ValueError: If the folder cannot be written, or holds another configuration.
    """
    described = _described(name, config)
    folder = run_folder(name, config, out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The lock is held: unfinished files are those of processes that are dead.
        files.sweep(folder)
        if not (folder / "config.json").exists():
            write_json(folder / "config.json", described)
        if not (folder / DONE).exists():
            # Of the machine that goes on with a run; a finished one keeps its own.
            write_json(folder / "env.json", environment())
    except OSError as error:
        raise _unwritable(folder, error) from error
    check_config(name, config, folder)
    return folder


def check_config(name: str, config: Any, folder: Path) -> None:
    """Refuses a folder that holds another configuration.

    Raises:
        ValueError: If it does.
        Damaged: If `config.json` is damaged.
    """
    if read_json(folder / "config.json") != _described(name, config):
        raise ValueError(
            f"{folder / 'config.json'} is not this run's configuration: remove the folder or use another --out."
        )


def run_folder(name: str, config: Any, out: Path) -> Path:
    """Where a run of this configuration stands or will stand."""
    # Sorted keys: fields may change places in the source without making it another configuration.
    digest = hashlib.sha256(
        json.dumps(_described(name, config), sort_keys=True).encode()
    ).hexdigest()[:10]
    return Path(out) / f"{name}-{digest}"


def finish(folder: Path, seconds: float) -> None:
    """Marks a run as finished: writes DONE with the digests of all files that the run wrote."""
    digests = {str(path.relative_to(folder)): _digest(path) for path in _written(folder)}
    write_json(folder / DONE, {"seconds": round(seconds, 1), "files": digests})


def damages(folder: Path) -> dict[Path, str]:
    """What is wrong with which file of a finished run: "missing" or "damaged".

    Runs that earlier versions finished have no digests: what their formats tell of is found, but
    nothing missing.
    """
    try:
        digests = read_json(folder / DONE).get("files")
    # Without DONE nothing is known of the other files.
    except Damaged:
        return {folder / DONE: "damaged"}
    if digests is None:
        return {path: "damaged" for path in _written(folder) if not _is_sound(path)}
    found = {}
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            found[path] = "missing"
        elif _digest(path) != digest:
            found[path] = "damaged"
    return found


def is_finished(folder: Path) -> bool:
    """Whether a run has ended, all its files are what was written, and no other process left any."""
    ended = all((folder / name).exists() for name in ("config.json", "summary.json", DONE))
    return ended and not damages(folder) and not has_leftovers(folder)


def sound(folder: Path, but: str = "") -> Path:
    """The folder of a finished run, all of whose files are what was written, except maybe those in one of its folders.

    Raises:
        ValueError: If the run is not finished.
        Damaged: If a file is missing or damaged.
    """
    folder = folder.expanduser()
    if not (folder / DONE).exists():
        raise ValueError(
            f"{folder} is not the folder of a finished run (no file DONE): finish it by the same `run` command."
        )
    for path, what in damages(folder).items():
        if path.parent.name != but:
            raise Damaged(f"{path} is {what}: the same `run` command makes it again.")
    return folder


def has_leftovers(folder: Path) -> bool:
    """Whether a process that was killed at its very end left a file behind."""
    return (folder / ".lock").exists() or any(folder.rglob(".*.unfinished"))


def environment() -> dict[str, Any]:
    """Versions, device, precision and commit: what else a number depends on."""
    packages = ("lazynet-jax", "jax", "jaxlib", "numpy", "scipy", "optax", "scikit-learn")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in packages},
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "float64": bool(jax.config.jax_enable_x64),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
        "commit": _commit(),
    }


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an `.npz` of named arrays, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.save_arrays(path, arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads what `save_arrays` wrote, each array to its end, where its checksum is.

    Raises:
        Damaged: If the file is not complete, or one of its checksums is wrong.
    """
    try:
        return files.load_arrays(path)
    except files.Damaged as error:
        raise _computed_again(error) from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, all or nothing; the last entry of a dictionary is then the checksum of the others."""
    if isinstance(value, dict):
        value = value | {CHECKSUM: _checksum(value)}
    _atomically(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote, without the checksum, or JSON that never had one.

    Raises:
        Damaged: If the file is not JSON, or its checksum is wrong.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict) or not value:
        return value
    # The checksum is of the entries in their order, which JSON keeps.
    *entries, (name, checksum) = value.items()
    if checksum == _checksum(dict(entries)):
        return dict(entries)
    if name == CHECKSUM:
        raise _damaged(path, f"its checksum is not {checksum}")
    return value


def part(path: Path) -> Path:
    """The file of a finished part: its name in letters, digits, `.`, `_` and `-`, which shells and transfers let alone.

    "alpha=10,seed=0.npz" becomes "alpha-10_seed-0.npz"; where an earlier version wrote the first,
    it stays.
    """
    # "=" and "," have substitutes, as they stand between names and values; the rest is dropped.
    name = re.sub("[^A-Za-z0-9._-]", "", path.name.replace("=", "-").replace(",", "_"))
    return path if path.exists() else path.with_name(name)


def save_checkpoint(path: Path, state: TrainState, curve: Trajectory) -> None:
    """Writes everything that training needs to go on bit-identically: the state and the curve so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(path, state, curve)


def load_checkpoint(path: Path, example: TrainState) -> tuple[TrainState, Trajectory]:
    """Reads a checkpoint; `example` is a state of the same training, which gives the structure of the leaves.

    Raises:
        Damaged: If the file is.
        ValueError: If the leaves are not those of the example.
    """
    try:
        return checkpoints.load(path, example)
    except files.Damaged as error:
        raise _computed_again(error) from error


def _written(folder: Path) -> list[Path]:
    """The files of a finished run; large ones that are only needed to compute cells have checksums of their own."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder).parts for path in paths}
    exempt = ("config.json", DONE, "kernels", "features")
    return [
        path for path in paths if names[path][0] not in exempt and not path.name.startswith(".")
    ]


def _is_sound(path: Path) -> bool:
    loaders = {".npz": load_arrays, ".json": read_json}
    try:
        # Of figures and other files nothing can be told but that they can be read.
        loaders.get(path.suffix, Path.read_bytes)(path)
    except Damaged:
        return False
    return True


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _atomically(path: Path, write) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.atomically(path, write)


def _unwritable(folder, error):
    return ValueError(
        f"output folder {folder} cannot be written ({error}): choose another one by --out."
    )


def _damaged(path, reason):
    return _computed_again(f"{path} is damaged ({reason}): delete it.")


def _computed_again(told: object) -> Damaged:
    return Damaged(f"{str(told).removesuffix('.')}, and the same command computes it again.")


def _checksum(value: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(value).encode()):08x}"


def _described(name: str, config: Any) -> dict[str, Any]:
    described = {"experiment": name, **as_dictionary(config)}
    # The path of a network of one's own stays when the file is changed into another network.
    if getattr(config, "model", ""):
        described["model_digest"] = own.digest(config.model)
    return described


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
