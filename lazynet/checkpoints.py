"""Checkpoints of arrays that are sharded over processes, by orbax, each process writing its own part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lazynet.train import TrainState

__all__ = ["load_sharded", "save_sharded"]


def save_sharded(folder: str | os.PathLike, state: TrainState, *, keep: int = 2) -> None:
    """Writes the state of training to `folder/<step>`, which appears complete or not at all, and waits for the disk.

    All processes call it together, with a folder that all of them see. Arrays of a single host need no orbax: an
    `.npz` file of the leaves does.

    Args:
        folder: Holds one folder for each of the newest steps.
        state: Parameters and optimizer state may be sharded in any way.
        keep: How many steps stay.

    Raises:
        ImportError: If orbax-checkpoint is not installed.
        ValueError: If the folder holds this step or a later one.

    Example:
        >>> save_sharded("checkpoints", TrainState(0, 0.0, {}, ()))  # doctest: +SKIP
    """
    ocp = _orbax()
    with _manager(ocp, folder, max_to_keep=keep) as manager:
        arrays = {"params": state.params, "opt_state": state.opt_state}
        progress = {"step": int(state.step), "time": float(state.time).hex()}
        newest = manager.latest_step()
        if newest is not None and newest >= state.step:
            raise ValueError(
                f"{str(folder)!r} holds step {newest}, expected earlier steps than {state.step}: go on from "
                "load_sharded, or choose another folder."
            )
        manager.save(
            int(state.step),
            args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress)),
        )
        manager.wait_until_finished()


def load_sharded(folder: str | os.PathLike, example: TrainState) -> TrainState:
    """The newest state in a folder, bit for bit, each array sharded like that of `example`.

    Args:
        folder: Where `save_sharded` wrote.
        example: A state of the same training, such as its start: gives structure, shapes, types and shardings, which
            may differ from those of the writer.

    Raises:
        ImportError: If orbax-checkpoint is not installed.
        FileNotFoundError: If the folder holds no complete checkpoint.

    Example:
        >>> load_sharded("checkpoints", TrainState(0, 0.0, {}, ()))  # doctest: +SKIP
    """
    ocp = _orbax()
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{str(folder)!r} does not exist, expected a folder written by save_sharded.")
    with _manager(ocp, folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"{str(folder)!r} holds no complete checkpoint: start training without one.")
        arrays = {"params": example.params, "opt_state": example.opt_state}
        stored = manager.restore(
            step,
            args=ocp.args.Composite(arrays=ocp.args.StandardRestore(arrays), progress=ocp.args.JsonRestore()),
        )
    arrays, progress = stored["arrays"], stored["progress"]
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


def _manager(ocp, folder, **options):
    return ocp.CheckpointManager(Path(folder).absolute(), options=ocp.CheckpointManagerOptions(**options))
