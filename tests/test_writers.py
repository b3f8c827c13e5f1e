"""Facts about metrics streamed to files: rows once each, also after a kill, and what is refused."""

from __future__ import annotations

import csv
import functools
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

import lazynet as ln
from lazynet.writers import tensorboard, write_csv, write_jsonl

STEPS = [0, 3, 7, 15]
WRITERS = [write_csv, write_jsonl]


def _train(on_save, resume=None):
    data = ln.Data(jnp.eye(4), jnp.ones((4, 1)))
    goal = ln.objective(lambda w, x: x @ w, ln.mse)
    settings = dict(key=jax.random.key(0), save_at=STEPS, learning_rate=0.3, batch_size=2)
    return ln.train(goal, jnp.zeros((4, 1)), data, ln.sgd(0.5), on_save=on_save, resume=resume, **settings)


def _read(path):
    if path.suffix == ".csv":
        with open(path) as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [json.loads(line) for line in path.read_text().splitlines()]


def _path(folder, writer):
    return folder / ("metrics.csv" if writer is write_csv else "metrics.jsonl")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_holds_every_row_exactly(tmp_path, writer):
    path = _path(tmp_path, writer)
    curve = _train(functools.partial(writer, path))
    rows = _read(path)
    assert [row["step"] for row in rows] == STEPS
    for name, values in {"time": curve.time, **curve.metrics}.items():
        np.testing.assert_array_equal([row[name] for row in rows], values)


@pytest.mark.parametrize("writer", WRITERS)
def test_rows_are_in_the_file_as_soon_as_they_are_recorded(tmp_path, writer):
    path, seen = _path(tmp_path, writer), []

    def on_save(state, curve):
        writer(path, state, curve)
        seen.append(len(_read(path)))

    _train(on_save)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("lost", [extended(0), 1, extended(9)])
@pytest.mark.extended
def test_a_run_resumed_from_an_older_checkpoint_repeats_no_row_and_mends_a_torn_one(tmp_path, writer, lost):
    path, saved = _path(tmp_path, writer), {}

    def on_save(state, curve):
        writer(path, state, curve)
        saved[state.step] = (state, curve)

    _train(on_save)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - lost])
    _train(functools.partial(writer, path), resume=saved[3])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_cut_off_anywhere_is_mended(tmp_path, writer):
    path = _path(tmp_path, writer)
    curve = _train(functools.partial(writer, path))
    whole, state = path.read_bytes(), ln.TrainState(15, 0.0, {}, ())
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        writer(path, state, curve)
        assert path.read_bytes() == whole


def test_long_files_are_continued_after_their_last_row(tmp_path):
    curve = ln.Trajectory(np.arange(2000), np.arange(2000.0), {"loss": np.ones(2000)}, None, None)
    for count in (1999, 2000):
        part = curve._replace(step=curve.step[:count], time=curve.time[:count], metrics={"loss": np.ones(count)})
        write_jsonl(tmp_path / "metrics.jsonl", ln.TrainState(count, 0.0, {}, ()), part)
    assert [row["step"] for row in _read(tmp_path / "metrics.jsonl")] == list(range(2000))


def test_a_file_of_another_run_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,time,loss\n0,0.0,1.0\n")
    with pytest.raises(ValueError, match=r"has the columns step,time,loss, expected step,time,train_loss"):
        _train(functools.partial(write_csv, tmp_path / "metrics.csv"))
    (tmp_path / "metrics.jsonl").write_text("hello\n")
    with pytest.raises(ValueError, match="ends in 'hello', expected a row with its step"):
        _train(functools.partial(write_jsonl, tmp_path / "metrics.jsonl"))
    assert (tmp_path / "metrics.jsonl").read_text() == "hello\n"


def test_without_tensorboardx_the_error_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        tensorboard(tmp_path)


def test_tensorboard_gets_every_metric_once_and_voids_what_a_killed_run_wrote_later(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append(("purge", purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    curve = _train(tensorboard(tmp_path))
    assert written[0] == ("purge", 0)
    losses = [(value, step) for name, value, step in written[1:] if name == "train_loss"]
    assert losses == list(zip(curve.metrics["train_loss"], STEPS, strict=True))


def test_tensorboardx_itself_takes_the_metrics(tmp_path):
    pytest.importorskip("tensorboardX")
    _train(tensorboard(tmp_path))
    assert [path for path in tmp_path.iterdir() if path.stat().st_size > 0]
