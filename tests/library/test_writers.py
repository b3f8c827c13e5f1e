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
from lazynet.training.writers import tensorboard, write_csv, write_jsonl

STEPS = [0, 3, 7, 15]
WRITERS = [write_csv, write_jsonl]


def _train(on_save, resume=None):
    data = ln.Data(jnp.eye(4), jnp.ones((4, 1)))
    goal = ln.objective(lambda w, x: x @ w, ln.mse)
    settings = dict(key=jax.random.key(0), save_at=STEPS, learning_rate=0.3, batch_size=2)
    return ln.train(
        goal, jnp.zeros((4, 1)), data, ln.sgd(0.5), on_save=on_save, resume=resume, **settings
    )


def _read(path):
    if path.suffix == ".csv":
        with open(path) as file:
            return [
                {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)
            ]
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
def test_a_run_resumed_from_an_older_checkpoint_repeats_no_row_and_mends_a_torn_one(
    tmp_path, writer, lost
):
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
        part = curve._replace(
            step=curve.step[:count], time=curve.time[:count], metrics={"loss": np.ones(count)}
        )
        write_jsonl(tmp_path / "metrics.jsonl", ln.TrainState(count, 0.0, {}, ()), part)
    assert [row["step"] for row in _read(tmp_path / "metrics.jsonl")] == list(range(2000))


def test_a_file_of_another_run_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,time,loss\n0,0.0,1.0\n")
    with pytest.raises(
        ValueError, match=r"has the columns step,time,loss, expected step,time,train_loss"
    ):
        _train(functools.partial(write_csv, tmp_path / "metrics.csv"))
    (tmp_path / "metrics.jsonl").write_text("hello\n")
    with pytest.raises(ValueError, match="has 'hello' in line 1, expected"):
        _train(functools.partial(write_jsonl, tmp_path / "metrics.jsonl"))
    assert (tmp_path / "metrics.jsonl").read_text() == "hello\n"


def _curve(n, **metrics):
    return ln.Trajectory(
        np.arange(n) * 5, np.arange(n) * 0.5, {"loss": 1 / (1 + np.arange(n))} | metrics, None, None
    )


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("rows", [3, 5, 6])
def test_a_flipped_bit_is_refused_by_name_or_repaired_as_soon_as_its_row_is_written(
    tmp_path, writer, rows
):
    path, state = _path(tmp_path, writer), ln.TrainState(0, 0.0, {}, ())
    writer(path, state, _curve(4))
    written = path.read_bytes()
    writer(path, state, _curve(rows))
    whole = max(written, path.read_bytes(), key=len)
    for position in range(len(written)):
        damaged = bytearray(written)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(damaged))
        try:
            writer(path, state, _curve(rows))
            writer(path, state, _curve(max(rows, 4)))
            assert path.read_bytes() == whole
        except ValueError as error:
            assert str(path) in str(error) and "choose another file" in str(error)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "text", [b"precious notes without a newline", b"\xff\xfe\n", b"notes\nmore notes\n", b"\n"]
)
def test_a_file_that_holds_no_metrics_is_refused_as_it_is(tmp_path, writer, text):
    path = _path(tmp_path, writer)
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f"{path.name}.* choose another file"):
        writer(path, ln.TrainState(0, 0.0, {}, ()), _curve(2))
    assert path.read_bytes() == text


@pytest.mark.parametrize("writer", WRITERS)
def test_columns_may_come_back_in_any_order(tmp_path, writer):
    path, state = _path(tmp_path, writer), ln.TrainState(0, 0.0, {}, ())
    first, longer = (_curve(n, accuracy=np.arange(n)) for n in (3, 5))
    writer(path, state, first)
    writer(path, state, longer._replace(metrics=dict(sorted(longer.metrics.items()))))
    rows = _read(path)
    assert [row["step"] for row in rows] == [0, 5, 10, 15, 20]
    assert [row["accuracy"] for row in rows] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal([row["loss"] for row in rows], longer.metrics["loss"])


@pytest.mark.parametrize("writer", WRITERS)
def test_rows_that_a_resumed_run_computes_with_other_rounding_replace_the_old_ones(
    tmp_path, writer
):
    path, state = _path(tmp_path, writer), ln.TrainState(0, 0.0, {}, ())
    writer(path, state, _curve(4))
    again = _curve(5)
    again.metrics["loss"][3] *= 1 + 1e-7
    writer(path, state, again)
    np.testing.assert_array_equal([row["loss"] for row in _read(path)], again.metrics["loss"])


@pytest.mark.parametrize("writer", WRITERS)
def test_a_curve_without_rows_is_the_beginning_of_one_with_rows(tmp_path, writer):
    path, state = _path(tmp_path, writer), ln.TrainState(0, 0.0, {}, ())
    for n in (0, 0, 2):
        writer(path, state, _curve(n))
    assert [row["step"] for row in _read(path)] == [0, 5]


def test_values_that_are_not_finite_round_trip_through_csv(tmp_path):
    path, state = tmp_path / "metrics.csv", ln.TrainState(0, 0.0, {}, ())
    values = np.array([np.nan, np.inf, -np.inf, -0.0])
    for n in (2, 4):
        write_csv(path, state, _curve(n, strange=values[:n]))
    np.testing.assert_array_equal([row["strange"] for row in _read(path)], values)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"short": np.ones(2)}, r"short has shape \(2,\), expected \(3,\)"),
        ({"wide": np.ones((3, 2))}, r"wide has shape \(3, 2\), expected \(3,\)"),
        ({"step": np.ones(3)}, "expected text other than 'step' and 'time'"),
        ({"a,b": np.ones(3)}, "expected names without commas"),
    ],
)
def test_metrics_that_are_no_columns_are_refused_before_the_file_exists(tmp_path, metrics, message):
    with pytest.raises(ValueError, match=message):
        write_csv(tmp_path / "metrics.csv", ln.TrainState(0, 0.0, {}, ()), _curve(3, **metrics))
    assert not list(tmp_path.iterdir())


def test_without_tensorboardx_the_error_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        tensorboard(tmp_path)


def test_tensorboard_gets_every_metric_once_and_voids_what_a_killed_run_wrote_later(
    tmp_path, monkeypatch
):
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
