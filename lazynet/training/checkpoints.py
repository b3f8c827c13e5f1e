"""Checkpoints of arrays that are sharded over processes, by orbax, each process writing its own part.

Orbax has checksums for its index but not for large arrays, of which it loads a flipped bit without
a word. A finished checkpoint therefore holds a file of the digests of all others, written last: one
without it is not complete.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import jax

from lazynet.files import given_path, naming
from lazynet.training.loop import TrainState

__all__ = ["load_sharded", "save_sharded"]

DIGESTS = "SHA256SUMS"
"""The file that ends a checkpoint: a line `digest  name` for each other file, and the digest of these lines."""


def save_sharded(folder: str | os.PathLike, state: TrainState, *, keep: int = 2) -> None:
    """Writes the state of training to `folder/<step>`, which appears complete or not at all, and waits for the disk.

    All processes call it together, with a folder that all of them see. Arrays of a single host need
    no orbax: an `.npz` file of the leaves does.

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
        progress = {"step": int(state.step), "time": float(state.time).hex()}
        complete = _complete(manager, folder)
        if complete and complete[-1] >= state.step:
            raise ValueError(
                f"{str(folder)!r} holds step {complete[-1]}, expected earlier steps than {state.step}: go on from "
                "load_sharded, or choose another folder."
            )
        _delete(manager, set(manager.all_steps()) - set(complete))
        manager.save(
            int(state.step),
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress)
            ),
        )
        manager.wait_until_finished()
        _finish(Path(folder, str(int(state.step))))
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


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "sharded checkpoints need the package orbax-checkpoint: pip install 'lazynet-jax[orbax]'."
        ) from error
    return ocp


def _manager(ocp, folder):
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
            file.write(text + b"\n" + _sha256(text))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, place / DIGESTS)
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
    digests = (line.split("  ", 1) for line in text.decode().splitlines())
    return next((place / name for digest, name in digests if not _is(place / name, digest)), None)


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and _digest(path) == digest


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
