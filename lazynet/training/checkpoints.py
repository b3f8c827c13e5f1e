"""Checkpoints: state and curve of a training on one host in one file, sharded states by orbax.

What `train` hands to `on_save` is saved by `save`, and what `load` returns is its `resume`.

Arrays that are sharded over processes go through orbax, each process writing its own part. Orbax
has checksums for its index but not for large arrays, of which it loads a flipped bit without a
word. A finished checkpoint therefore holds a file of the digests of all others, written last: one
without it is not complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import files
from lazynet.files import given_path, naming
from lazynet.records import Trajectory
from lazynet.training.loop import TrainState
from lazynet.typing import Params

__all__ = [
    "curve_arrays",
    "curve_from",
    "load",
    "load_curve",
    "load_sharded",
    "save",
    "save_curve",
    "save_sharded",
]

METRICS = "curve/metrics/"
"""What the names of the metrics of a curve begin with."""

DIGESTS = "SHA256SUMS"
"""The file that ends a checkpoint: a line `digest  name` for each other file, and the digest of these lines."""


def save(path: str | os.PathLike[str], state: TrainState, curve: Trajectory) -> None:
    """Writes the state of a training and its curve so far to one `.npz` file, all or nothing.

    This is all that `train` needs to go on bit-identically: `on_save=partial(save, path)`, and
    later `resume=load(path, example)`.

    Args:
        path: The file, in a folder that exists; what it held before is replaced.
        state: Step, time, parameters and optimizer state, on one host.
        curve: The records so far.

    Raises:
        OSError: With `path` as its file name, for instance on a full disk.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "state.npz")
        >>> curve = Trajectory(np.array([0]), np.array([0.0]), {"train_loss": np.array([0.5])}, None, None)
        >>> save(path, TrainState(0, 0.0, jnp.ones(2), ()), curve)
        >>> state, curve = load(path, TrainState(0, 0.0, jnp.zeros(2), ()))
        >>> state.params.tolist(), float(curve.metrics["train_loss"][0])
        ([1.0, 1.0], 0.5)
    """
    leaves = _leaves((state.params, state.opt_state))
    progress = {"step": state.step, "time": state.time}
    files.save_arrays(given_path("path", path), progress | leaves | curve_arrays(curve))


def load(path: str | os.PathLike[str], example: TrainState) -> tuple[TrainState, Trajectory]:
    """The state and the curve that `save` wrote, bit for bit: what `train` takes as `resume`.

    Args:
        path: Where `save` wrote.
        example: A state of the same training, such as its start: gives the structure, shapes and
            types of parameters and optimizer state.

    Raises:
        FileNotFoundError: If there is no such file.
        Damaged: If the file is not what was written.
        ValueError: If its arrays are not those of the example.

    Example:
        >>> from lazynet import sgd
        >>> start = TrainState(0, 0.0, jnp.zeros(2), sgd(0.9).init(jnp.zeros(2)))
        >>> load("state.npz", start)  # doctest: +SKIP
    """
    path = given_path("path", path)
    stored = _stored(path)
    params, opt_state = _restored(path, stored, (example.params, example.opt_state))
    state = TrainState(int(stored["step"]), float(stored["time"]), params, opt_state)
    return state, curve_from(stored)._replace(params=params)


def save_curve(path: str | os.PathLike[str], curve: Trajectory) -> None:
    """Writes a curve with its parameters, if it has any, to one `.npz` file, all or nothing.

    Args:
        path: The file, in a folder that exists.
        curve: What `train` or a kernel flow returned.

    Raises:
        OSError: With `path` as its file name, for instance on a full disk.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "curve.npz")
        >>> save_curve(path, Trajectory(np.array([3]), np.array([0.3]), {}, jnp.ones(2), None))
        >>> load_curve(path, jnp.zeros(2)).params.tolist(), load_curve(path).params
        ([1.0, 1.0], None)
    """
    files.save_arrays(given_path("path", path), _leaves(curve.params) | curve_arrays(curve))


def load_curve(path: str | os.PathLike[str], params: Params | None = None) -> Trajectory:
    """The curve that `save_curve` or `save` wrote, bit for bit.

    Args:
        path: Where it was written.
        params: Parameters of the same structure, shapes and types, to have those of the curve as
            well (of a file of `save_curve`); None leaves them out.

    Raises:
        FileNotFoundError: If there is no such file.
        Damaged: If the file is not what was written.
        ValueError: If its arrays are not those of `params`.
    """
    path = given_path("path", path)
    stored = _stored(path)
    curve = curve_from(stored)
    if params is None:
        return curve
    return curve._replace(params=_restored(path, stored, params))


def curve_arrays(curve: Trajectory) -> dict[str, np.ndarray]:
    """A curve, without its parameters, as named arrays.

    Example:
        >>> list(curve_arrays(Trajectory(np.arange(2), np.zeros(2), {"loss": np.ones(2)}, None, None)))
        ['curve/step', 'curve/time', 'curve/diverged_at', 'curve/metrics/loss']
    """
    # -1 in the place of None, which arrays do not hold.
    diverged_at = -1 if curve.diverged_at is None else curve.diverged_at
    arrays = {
        "curve/step": curve.step,
        "curve/time": curve.time,
        "curve/diverged_at": diverged_at,
    }
    metrics = {f"{METRICS}{name}": values for name, values in curve.metrics.items()}
    return {name: np.asarray(value) for name, value in (arrays | metrics).items()}


def curve_from(arrays: Mapping[str, np.ndarray]) -> Trajectory:
    """The curve in named arrays, among which there may be others.

    Example:
        >>> curve = Trajectory(np.arange(2), np.zeros(2), {"loss": np.ones(2)}, None, None)
        >>> curve_from(curve_arrays(curve)).metrics["loss"].tolist()
        [1.0, 1.0]
    """
    names = [name for name in arrays if name.startswith(METRICS)]
    metrics = {name.removeprefix(METRICS): arrays[name] for name in names}
    step = int(arrays["curve/diverged_at"])
    diverged_at = None if step < 0 else step
    return Trajectory(arrays["curve/step"], arrays["curve/time"], metrics, None, diverged_at)


def save_sharded(folder: str | os.PathLike, state: TrainState, *, keep: int = 2) -> None:
    """Writes the state of training to `folder/<step>`, which appears complete or not at all, and waits for the disk.

    All processes call it together, with a folder that all of them see. Arrays of a single host need
    no orbax: `save` does.

    Args:
        folder: Holds one folder for each of the newest steps.
        state: Parameters and optimizer state may be sharded in any way.
        keep: How many steps stay.

    Raises:
        ImportError: If orbax-checkpoint is not installed.
        ValueError: If the folder holds this step or a later one, or `keep` is below 1.

    Example:
        >>> save_sharded("checkpoints", TrainState(0, 0.0, {}, ()))  # doctest: +SKIP
    """
    ocp = _orbax()
    if keep < 1:
        raise ValueError(f"keep is {keep}, expected at least 1, the step that is saved.")
    folder = given_path("folder", folder)
    with _manager(ocp, folder) as manager:
        arrays = {"params": state.params, "opt_state": state.opt_state}
        # Hexadecimal floats come back bit for bit.
        progress = {"step": int(state.step), "time": float(state.time).hex()}
        # Orbax does not save a step that is not behind the last one, and raises no error.
        complete = _complete(manager, folder)
        if complete and complete[-1] >= state.step:
            raise ValueError(
                f"{str(folder)!r} holds step {complete[-1]}, expected earlier steps than {state.step}: go on from "
                "load_sharded, or choose another folder."
            )
        # Folders without digests are what killed runs left.
        _delete(manager, set(manager.all_steps()) - set(complete))
        manager.save(
            int(state.step),
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress)
            ),
        )
        manager.wait_until_finished()
        _finish(Path(folder, str(int(state.step))))
        # Not before the new one is complete: until then a killed run goes on from these.
        _delete(manager, _complete(manager, folder)[:-keep])


def load_sharded(folder: str | os.PathLike, example: TrainState) -> TrainState:
    """The newest state in a folder, bit for bit, each array sharded like that of `example`.

    Args:
        folder: Where `save_sharded` wrote.
        example: A state of the same training, such as its start: gives structure, shapes, types and
            shardings, which may differ from those of the writer.

    Raises:
        ImportError: If orbax-checkpoint is not installed.
        FileNotFoundError: If the folder holds no complete checkpoint.
        ValueError: If one of its files is not what was written, whose name and the step to go on
            from are told.

    Example:
        >>> load_sharded("checkpoints", TrainState(0, 0.0, {}, ()))  # doctest: +SKIP
    """
    ocp = _orbax()
    folder = given_path("folder", folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{str(folder)!r} does not exist, expected a folder written by save_sharded."
        )
    with _manager(ocp, folder) as manager:
        complete = _complete(manager, folder)
        if not complete:
            raise FileNotFoundError(
                f"{str(folder)!r} holds no complete checkpoint: start training without one."
            )
        *earlier, step = complete
        _check(Path(folder, str(step)), earlier)
        arrays = {"params": example.params, "opt_state": example.opt_state}
        stored = manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(arrays), progress=ocp.args.JsonRestore()
            ),
        )
    arrays = stored["arrays"]
    progress = stored["progress"]
    time = float.fromhex(progress["time"])
    return TrainState(progress["step"], time, arrays["params"], arrays["opt_state"])


def _stored(path: Path) -> dict[str, np.ndarray]:
    stored = files.load_arrays(path)
    if "curve/diverged_at" not in stored:
        raise ValueError(
            f"{path} holds {', '.join(stored)}, expected what save or save_curve wrote."
        )
    return stored


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    leaves = [_typed(leaf) for leaf in jax.tree.leaves(tree)]
    return {f"state/{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _typed(leaf: Any) -> Any:
    """An array as it is, a number of Python as jax takes it."""
    return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def _restored(path: Path, stored: dict[str, np.ndarray], example: Any) -> Any:
    """The leaves in the structure of the example, after comparing shapes and types."""
    like, structure = jax.tree.flatten(example)
    count = sum(name.startswith("state/") for name in stored)
    if count != len(like):
        raise ValueError(
            f"{path} is not a checkpoint of this training: it has {count} arrays, expected {len(like)}: delete it to "
            "start again."
        )
    leaves = []
    for i, leaf in enumerate(like):
        value = stored[f"state/{i}"]
        expected = _typed(leaf)
        # Files have no name for bfloat16 and its relatives, whose bytes they keep.
        value = value.view(expected.dtype) if value.dtype.kind == "V" else value
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise ValueError(
                f"{path} is not a checkpoint of this training: array {i} has shape {value.shape} and type "
                f"{value.dtype}, expected {expected.shape} and {expected.dtype}: delete it to start again."
            )
        leaves.append(jnp.asarray(value))
    return structure.unflatten(leaves)


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "sharded checkpoints need the package orbax-checkpoint: pip install 'lazynet-jax[orbax]'."
        ) from error
    return ocp


def _manager(ocp, folder):
    # Orbax wants absolute paths. What stays is decided here, not by it.
    return ocp.CheckpointManager(Path(folder).absolute())


def _complete(manager, folder) -> list[int]:
    """The steps that were written to their end, in order."""
    return sorted(step for step in manager.all_steps() if Path(folder, str(step), DIGESTS).exists())


def _delete(manager, steps) -> None:
    for step in sorted(steps):
        manager.delete(step)


def _finish(place: Path) -> None:
    """Writes the digests of a checkpoint, by the first process, while the others wait."""
    from jax.experimental import multihost_utils

    if jax.process_index() == 0:
        files = sorted(path for path in place.rglob("*") if path.is_file())
        text = "\n".join(
            f"{_digest(path)}  {path.relative_to(place).as_posix()}" for path in files
        ).encode()
        temporary = place / f"{DIGESTS}.partial"
        with naming(place / DIGESTS), open(temporary, "wb") as file:
            # No other file has the digest of this one, which ends with it.
            file.write(text + b"\n" + _sha256(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place / DIGESTS)
    # No process goes on, and deletes the older ones, before the digests stand.
    multihost_utils.sync_global_devices("lazynet: the checkpoint is complete")


def _check(place: Path, earlier: list[int]) -> None:
    """Reads all files of a checkpoint once more than loading does."""
    damaged = _damaged(place)
    if damaged is not None:
        way_out = (
            f"go on from step {earlier[-1]}, the one before"
            if earlier
            else "start training without one"
        )
        raise ValueError(
            f"{str(damaged)!r} is damaged, cut off or missing: delete {str(place)!r} to {way_out}."
        )


def _damaged(place: Path) -> Path | None:
    """The first file that is not what was written."""
    text, _, own = (place / DIGESTS).read_bytes().rpartition(b"\n")
    if own != _sha256(text):
        return place / DIGESTS
    for line in text.decode().splitlines():
        digest, name = line.split("  ", 1)
        path = place / name
        if not path.is_file() or _digest(path) != digest:
            return path
    return None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
