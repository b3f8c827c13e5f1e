"""Metrics streamed to files while training: functions to pass to `train` as `on_save`.

    train(..., on_save=functools.partial(write_csv, "metrics.csv"))

A row is added when its step is later than the last one of the file. So a run that was killed and resumed from a
checkpoint older than its file repeats none, and half a row that the kill left is replaced. Only process 0 writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lazynet.records import Trajectory
from lazynet.train import TrainState

__all__ = ["tensorboard", "write_csv", "write_jsonl"]


def write_csv(path: str | os.PathLike, state: TrainState, curve: Trajectory) -> None:
    """Appends the rows `step,time,<metrics>` of a curve that a CSV file lacks, and a header if it is new.

    Args:
        path: File, with an existing folder.
        state: Not used; `on_save` passes it.
        curve: The curve so far.

    Raises:
        ValueError: If the file has other columns, hence belongs to another run.

    Example:
        >>> import tempfile, numpy as np
        >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> for steps in (1, 2, 2):
        ...     curve = Trajectory(np.arange(steps), np.arange(steps) * 0.5, {"loss": np.ones(steps)}, None, None)
        ...     write_csv(path, TrainState(steps - 1, 0.0, {}, ()), curve)
        >>> path.read_text().splitlines()
        ['step,time,loss', '0,0.0,1.0', '1,0.5,1.0']
    """
    header = ",".join(["step", "time", *curve.metrics])
    _append(Path(path), curve, lambda row: ",".join(map(repr, row.values())), header, lambda line: line.split(",")[0])


def write_jsonl(path: str | os.PathLike, state: TrainState, curve: Trajectory) -> None:
    """Appends the rows `{"step": ..., "time": ..., <metrics>}` of a curve that a file of JSON lines lacks.

    JSON has no infinite numbers: they become null.

    Args:
        path: File, with an existing folder.
        state: Not used; `on_save` passes it.
        curve: The curve so far.

    Raises:
        ValueError: If the last line of the file is no such row.

    Example:
        >>> import tempfile, numpy as np
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> curve = Trajectory(np.arange(1), np.zeros(1), {"loss": np.array([np.inf])}, None, None)
        >>> write_jsonl(path, TrainState(0, 0.0, {}, ()), curve)
        >>> path.read_text().splitlines()
        ['{"step": 0, "time": 0.0, "loss": null}']
    """
    _append(Path(path), curve, _json, None, lambda line: json.loads(line)["step"])


def tensorboard(folder: str | os.PathLike) -> Callable[[TrainState, Trajectory], None]:
    """A function for `on_save` that writes the newest metrics as scalars for TensorBoard, through tensorboardX.

    What a killed run wrote after the step from which this one resumes is marked as void.

    Args:
        folder: Where TensorBoard looks for runs.

    Raises:
        ImportError: If tensorboardX is not installed.

    Example:
        >>> on_save = tensorboard("runs/first")  # doctest: +SKIP
    """
    try:
        import tensorboardX  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("tensorboard needs the package tensorboardX: pip install tensorboardX.") from error
    writers: list[Any] = []

    def on_save(state: TrainState, curve: Trajectory) -> None:
        if jax.process_index() != 0:
            return
        if not writers:
            writers.append(tensorboardX.SummaryWriter(str(folder), purge_step=state.step))
        for name, values in curve.metrics.items():
            writers[0].add_scalar(name, float(values[-1]), state.step)
        writers[0].flush()

    return on_save


def _append(path, curve, as_line, header, step_of):
    if jax.process_index() != 0:
        return
    with open(path, "a+b") as file:
        first, last, end = _ends(file)
        if header is not None and first not in (None, header):
            raise ValueError(
                f"{str(path)!r} has the columns {first}, expected {header}: it belongs to another run; "
                "choose another file."
            )
        done = _step(path, last, step_of) if last not in (None, header) else -1
        lines = [as_line(row) for row in _rows(curve) if row["step"] > done]
        lines = [header, *lines] if header is not None and first is None else lines
        file.truncate(end)
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _ends(file):
    """First and last complete line of a file (None without one), and where the last one ends."""
    file.seek(0)
    first, size = file.readline(), file.seek(0, os.SEEK_END)
    if not first.endswith(b"\n"):
        return None, None, 0
    tail = b""
    for start in range(size, 0, -4096):
        file.seek(max(0, start - 4096))
        tail = file.read(start - max(0, start - 4096)) + tail
        if tail.count(b"\n") > 1:
            break
    complete = tail[: tail.rindex(b"\n") + 1]
    return first.decode().rstrip("\n"), complete.decode().splitlines()[-1], size - len(tail) + len(complete)


def _step(path, line, step_of):
    try:
        return int(step_of(line))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} ends in {line[:80]!r}, expected a row with its step: choose another file."
        ) from error


def _json(row):
    return json.dumps({name: value if math.isfinite(value) else None for name, value in row.items()})


def _rows(curve):
    for i, (step, time) in enumerate(zip(curve.step, curve.time, strict=True)):
        yield {"step": int(step), "time": float(time)} | {name: float(v[i]) for name, v in curve.metrics.items()}
