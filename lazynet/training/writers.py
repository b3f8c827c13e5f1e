"""Metrics streamed to files while training: functions to pass to `train` as `on_save`.

    train(..., on_save=functools.partial(write_csv, "metrics.csv"))

The rows of a file are those of the curve, which has all rows from the start. So a run that was
killed and resumed from a checkpoint older than its file repeats none, and half a row that the kill
left is replaced. A file whose rows are not those of the curve is damaged or belongs to another run,
and is refused as it is. Only process 0 writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lazynet import guards
from lazynet.files import given_path
from lazynet.records import Trajectory
from lazynet.training.loop import TrainState

__all__ = ["tensorboard", "write_csv", "write_jsonl"]

Row = dict[str, Any]

CLOSE = 1e-3
"""Relative difference of rows that a resumed run computed again, with another order of summation."""


def write_csv(path: str | os.PathLike, state: TrainState, curve: Trajectory) -> None:
    """Appends the rows `step,time,<metrics>` of a curve that a CSV file lacks, and a header if it is new.

    Args:
        path: File, with an existing folder.
        state: Not used; `on_save` passes it.
        curve: The curve so far.

    Raises:
        ValueError: If the file has other columns or other rows, hence is damaged or belongs to
            another run; if a metric has not one number for each step, or a name that has no place
            in a header.

    Example:
        >>> import tempfile, numpy as np
        >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> for steps in (1, 2, 2):
        ...     curve = Trajectory(np.arange(steps), np.arange(steps) * 0.5, {"loss": np.ones(steps)}, None, None)
        ...     write_csv(path, TrainState(steps - 1, 0.0, {}, ()), curve)
        >>> path.read_text().splitlines()
        ['step,time,loss', '0,0.0,1.0', '1,0.5,1.0']
    """
    _append(given_path("path", path), curve, _CSV)


def write_jsonl(path: str | os.PathLike, state: TrainState, curve: Trajectory) -> None:
    """Appends the rows `{"step": ..., "time": ..., <metrics>}` of a curve that a file of JSON lines lacks.

    JSON has no infinite numbers: they become null.

    Args:
        path: File, with an existing folder.
        state: Not used; `on_save` passes it.
        curve: The curve so far.

    Raises:
        ValueError: If the file has other rows, hence is damaged or belongs to another run; if a
            metric has not one number for each step.

    Example:
        >>> import tempfile, numpy as np
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> curve = Trajectory(np.arange(1), np.zeros(1), {"loss": np.array([np.inf])}, None, None)
        >>> write_jsonl(path, TrainState(0, 0.0, {}, ()), curve)
        >>> path.read_text().splitlines()
        ['{"step": 0, "time": 0.0, "loss": null}']
    """
    _append(given_path("path", path), curve, _JSON)


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
        raise ImportError(
            "tensorboard needs the package tensorboardX: pip install tensorboardX."
        ) from error
    folder = os.fspath(given_path("folder", folder))
    writers: list[Any] = []

    def on_save(state: TrainState, curve: Trajectory) -> None:
        if jax.process_index() != 0:
            return
        if not writers:
            # At the first record and not before: a function that is never called makes no files.
            writers.append(tensorboardX.SummaryWriter(folder, purge_step=state.step))
        for name, value in _rows(curve)[-1].items():
            if name not in ("step", "time"):
                writers[0].add_scalar(name, value, state.step)
        writers[0].flush()

    return on_save


class _Form(NamedTuple):
    """How rows are written and read.

    Attributes:
        header: The lines above the rows, from the names of the columns.
        line: A row.
        columns: The names of the columns from the first line, None where every row has its own.
        parse: A row from its line and the columns; raises an error where it is none.
    """

    header: Callable[[list[str]], list[str]]
    line: Callable[[Row], str]
    columns: Callable[[str], list[str] | None]
    parse: Callable[[str, list[str]], Row]


def _json_line(row: Row) -> str:
    return json.dumps(
        {name: value if math.isfinite(value) else None for name, value in row.items()}
    )


def _json_row(line: str, columns: list[str]) -> Row:
    return {
        name: math.nan if value is None else float(value)
        for name, value in json.loads(line).items()
    }


def _csv_row(line: str, columns: list[str]) -> Row:
    return dict(zip(columns, map(float, line.split(",")), strict=True))


_CSV = _Form(
    header=lambda names: [",".join(names)],
    line=lambda row: ",".join(map(repr, row.values())),
    columns=lambda line: line.split(","),
    parse=_csv_row,
)
_JSON = _Form(header=lambda names: [], line=_json_line, columns=lambda line: None, parse=_json_row)


def _append(path: Path, curve: Trajectory, form: _Form) -> None:
    rows = _rows(curve)
    names = ["step", "time", *curve.metrics]
    if form is _CSV and any(set(name) & set(',"\r\n') for name in names):
        raise ValueError(
            f"metrics are called {names[2:]}, expected names without commas, quotes and line ends."
        )
    if jax.process_index() != 0:
        return
    # This mode makes a new file but never empties an old one, and writes at the end, which is
    # where `truncate` puts it: what agrees with the curve is not written again.
    with open(path, "a+b") as file:
        file.seek(0)
        old = file.read()
        # What the file would be, had nothing gone wrong: usually the old file is its beginning.
        new = _text([*form.header(names), *map(form.line, rows)])
        kept = len(old)
        if not new.startswith(old):
            new = _text(_merged(path, old, rows, names, form))
            # What differs is written again, from the first difference on.
            kept = len(os.path.commonprefix([old, new]))
        file.truncate(kept)
        file.write(new[kept:])
        file.flush()
        os.fsync(file.fileno())


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _merged(path: Path, old: bytes, rows: list[Row], names: list[str], form: _Form) -> list[str]:
    """The lines of the curve, in the columns of the file, and those of the file behind them, once both agree."""
    lines = _complete_lines(path, old)
    # The order of the file stays, if an earlier run had metrics in another one.
    columns = form.columns(lines[0]) or names
    if sorted(columns) != sorted(names):
        raise ValueError(
            f"{str(path)!r} has the columns {lines[0][:200]}, expected {','.join(names)}: it belongs to another run; "
            "choose another file."
        )
    header = form.header(columns)
    in_order = []
    for row in rows:
        in_order.append({name: row[name] for name in columns})
    rows = in_order
    last = -math.inf
    # Rows behind those of the curve are from the run that was killed: their steps do not fall.
    for i, line in enumerate(lines[len(header) :]):
        found = _parsed(line, columns, form)
        if i < len(rows):
            expected = form.line(rows[i])
            agrees = _agree(found, rows[i])
        else:
            expected = "a later row of the run"
            agrees = found is not None and found["step"] >= last
        if found is None or not agrees:
            raise ValueError(
                f"{str(path)!r} has {line[:80]!r} in line {i + len(header) + 1}, expected {expected!r}: it is damaged "
                "or belongs to another run; delete it, or choose another file."
            )
        last = found["step"]
    return [*header, *map(form.line, rows), *lines[len(header) + len(rows) :]]


def _complete_lines(path: Path, old: bytes) -> list[str]:
    """All but the half line at the end; of a file that has no other, nothing says that it holds metrics."""
    try:
        *lines, _ = old.decode().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is no UTF-8 ({error}), expected a file of metrics: choose another file."
        ) from error
    if not lines:
        raise ValueError(
            f"{str(path)!r} begins with {old[:80]!r}, expected a file of metrics: choose another file."
        )
    return lines


def _parsed(line: str, columns: list[str], form: _Form) -> Row | None:
    """The row of a line, None where it is no row of these columns."""
    try:
        row = form.parse(line, columns)
    except (AttributeError, TypeError, ValueError):
        return None
    # A damaged line may still be read: under other names, or with half a number as step.
    return row if row.keys() == set(columns) and row["step"].is_integer() else None


def _agree(found: Row | None, row: Row) -> bool:
    """Equal steps, and equal numbers up to another order of summation; JSON does not tell what is not finite."""
    return (
        found is not None
        and found["step"] == row["step"]
        and all(_close(found[name], row[name]) for name in row)
    )


def _close(a: Any, b: Any) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE) or not (math.isfinite(a) or math.isfinite(b))


def _rows(curve: Trajectory) -> list[Row]:
    if not isinstance(curve, Trajectory):
        raise TypeError(
            f"curve got {type(curve).__name__}, expected the Trajectory that train passes to on_save."
        )
    columns = {"step": curve.step, "time": curve.time} | curve.metrics
    if len(columns) < 2 + len(curve.metrics) or not all(isinstance(name, str) for name in columns):
        raise ValueError(
            f"metrics are called {list(curve.metrics)}, expected text other than 'step' and 'time'."
        )
    n = np.size(curve.step)
    for name, values in columns.items():
        if guards.real(
            name, values if isinstance(values, jax.Array) else np.asarray(values)
        ).shape != (n,):
            raise ValueError(
                f"{name} has shape {np.shape(values)}, expected ({n},): one number for each step."
            )
    lists = {name: np.asarray(values).astype(float).tolist() for name, values in columns.items()}
    lists["step"] = [int(step) for step in np.asarray(curve.step)]
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
