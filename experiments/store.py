"""Run folders: one per configuration, written atomically, so that a killed run resumes and a changed one starts anew.

runs/NAME-DIGEST/
    config.json      the configuration, whose digest names the folder
    env.json         versions, device, precision, git commit
    cells/*.npz      arrays of finished parts
    trajectory.npz   all curves
    summary.json     the numbers that a reader compares, flat
    figures/*.png
    DONE             written last
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.config import as_dictionary
from lazynet.records import Trajectory
from lazynet.train import TrainState

__all__ = [
    "load_arrays",
    "load_checkpoint",
    "open_run",
    "read_json",
    "run_folder",
    "save_arrays",
    "save_checkpoint",
    "stored_arrays",
    "stored_json",
    "write_json",
]


def open_run(name: str, config: Any, out: Path) -> Path:
    """The folder of this configuration, created if needed; its digest makes every configuration its own folder.

    Raises:
        ValueError: If the folder cannot be written, or holds another configuration.
    """
    described, folder = _described(name, config), run_folder(name, config, out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.rglob("*.partial"):
            stale.unlink()
        if not (folder / "config.json").exists():
            write_json(folder / "config.json", described)
        if not (folder / "DONE").exists():
            write_json(folder / "env.json", environment())
    except OSError as error:
        raise ValueError(f"output folder {folder} cannot be written ({error}): choose another one by --out.") from error
    if read_json(folder / "config.json") != described:
        raise ValueError(
            f"{folder / 'config.json'} is not this run's configuration: remove the folder or use another --out."
        )
    return folder


def run_folder(name: str, config: Any, out: Path) -> Path:
    """Where a run of this configuration stands or will stand."""
    digest = hashlib.sha256(json.dumps(_described(name, config), sort_keys=True).encode()).hexdigest()[:10]
    return Path(out) / f"{name}-{digest}"


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
    _atomically(path, lambda file: np.savez(file, **{name: np.asarray(value) for name, value in arrays.items()}))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads what `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, all or nothing."""
    _atomically(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text())


def stored_arrays(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of a finished part, from its file or computed and written now."""
    if not path.exists():
        save_arrays(path, compute())
    return load_arrays(path)


def stored_json(path: Path, compute: Callable[[], Any]) -> Any:
    """The values of a finished part, from its file or computed and written now."""
    if not path.exists():
        write_json(path, compute())
    return read_json(path)


def save_checkpoint(path: Path, state: TrainState, curve: Trajectory) -> None:
    """Writes everything that training needs to go on bit-identically: the state and the curve so far."""
    leaves = jax.tree.leaves((state.params, state.opt_state))
    arrays = {f"state/{i}": leaf for i, leaf in enumerate(leaves)}
    save_arrays(path, {"step": state.step, "time": state.time, **arrays, **curve_arrays(curve)})


def load_checkpoint(path: Path, example: TrainState) -> tuple[TrainState, Trajectory]:
    """Reads a checkpoint; `example` is a state of the same training, which gives the structure of the leaves."""
    stored = load_arrays(path)
    treedef = jax.tree.structure((example.params, example.opt_state))
    leaves = [jax.numpy.asarray(stored[f"state/{i}"]) for i in range(treedef.num_leaves)]
    params, opt_state = treedef.unflatten(leaves)
    state = TrainState(int(stored["step"]), float(stored["time"]), params, opt_state)
    return state, stored_curve(stored)._replace(params=params)


def curve_arrays(curve: Trajectory) -> dict[str, np.ndarray]:
    """A trajectory, without its parameters, as named arrays."""
    diverged_at = -1 if curve.diverged_at is None else curve.diverged_at
    named = {"curve/step": curve.step, "curve/time": curve.time, "curve/diverged_at": np.asarray(diverged_at)}
    return named | {f"curve/metrics/{name}": np.asarray(values) for name, values in curve.metrics.items()}


def stored_curve(stored: dict[str, np.ndarray]) -> Trajectory:
    """The trajectory in named arrays."""
    prefix = "curve/metrics/"
    metrics = {name.removeprefix(prefix): values for name, values in stored.items() if name.startswith(prefix)}
    diverged_at = int(stored["curve/diverged_at"])
    return Trajectory(
        stored["curve/step"], stored["curve/time"], metrics, None, None if diverged_at < 0 else diverged_at
    )


def _atomically(path: Path, write) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _described(name: str, config: Any) -> dict[str, Any]:
    return {"experiment": name, **as_dictionary(config)}


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
