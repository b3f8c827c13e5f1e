"""Facts about data-parallel training: the curve of one device on virtual devices and on two processes."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import parallel_worker
import pytest

import lazynet as ln
from lazynet.training.sharding import data_parallel

ROOT = Path(__file__).resolve().parents[2]
WORKER = [sys.executable, str(ROOT / "tests" / "support" / "parallel_worker.py")]
HEARTBEAT = "heartbeat_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters
BOUND = 60 if HEARTBEAT else 180
"""Seconds; without a choice of the heartbeat, jax gives a lost process up after 100."""


def _start(*words, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=1"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [*WORKER, *map(str, words)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def _pair(*words, devices=1):
    """Two processes that know each other, neither of which outlives the test."""
    task, *rest = words
    port = _free_port()
    pair = [_start(task, port, i, *rest, devices=devices) for i in (0, 1)]
    try:
        yield pair
    finally:
        for process in pair:
            process.kill()
            process.wait()


def _result(process):
    printed, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(printed.splitlines()[-1])


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _assert_equal_to_rounding(result, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-11, atol=1e-13, err_msg=name)


def _alone(batch_size, microbatches=1):
    return parallel_worker.as_lists(
        parallel_worker.training(None, batch_size=batch_size, microbatches=microbatches)
    )


@pytest.mark.extended
@pytest.mark.parametrize(("devices", "cases"), [(4, [(16, 2)]), (8, [(16, 1), (None, 1)])])
def test_virtual_devices_give_the_curve_of_one_device(devices, cases):
    result = _result(_start("devices", *(f"{b},{m}" for b, m in cases), devices=devices))
    assert result["devices"] == devices
    expected = (
        f"batch_size={devices + 1} does not divide into microbatches=1 over {devices} devices"
    )
    assert result["refused"].startswith(expected)
    for curve, case in zip(result["curves"], cases, strict=True):
        _assert_equal_to_rounding(curve, _alone(*case))


@pytest.mark.extended
def test_two_processes_give_the_curve_of_one_device():
    with _pair("two", "16,1", devices=2) as pair:
        results = [_result(process) for process in pair]
    assert [result["devices"] for result in results] == [4, 4]
    for result in results:
        _assert_equal_to_rounding(result["curves"][0], _alone(16))


@pytest.mark.extended
def test_a_sharding_of_one_device_changes_no_bit():
    settings = dict(batch_size=8, save_at=(0, 5))
    plain, sharded = (
        parallel_worker.training(s, **settings) for s in (None, data_parallel(jax.devices()[:1]))
    )
    np.testing.assert_array_equal(plain.metrics["train_loss"], sharded.metrics["train_loss"])


@pytest.mark.extended
def test_microbatches_give_the_curve_of_the_whole_batch():
    goal = ln.objective(lambda w, x: jax.numpy.tanh(x @ w), ln.mse)
    x = jax.random.normal(jax.random.key(1), (24, 5))
    data = ln.Data(x, jax.numpy.sin(x[:, :1]))
    settings = dict(key=jax.random.key(0), save_at=[0, 7], learning_rate=0.5)
    for batch_size in (8, None):
        curves = [
            ln.train(
                goal,
                jax.numpy.ones((5, 1)),
                data,
                ln.sgd(0.9),
                batch_size=batch_size,
                microbatches=m,
                **settings,
            )
            for m in (1, 4)
        ]
        np.testing.assert_allclose(curves[0].params, curves[1].params, rtol=1e-13)


@pytest.mark.parametrize(("batch_size", "microbatches"), [(16, 3), (15, 2)])
def test_batches_that_do_not_divide_are_refused(batch_size, microbatches):
    with pytest.raises(
        ValueError,
        match=rf"batch_size={batch_size} does not divide into microbatches={microbatches}",
    ):
        parallel_worker.training(None, batch_size=batch_size, microbatches=microbatches)


def test_no_devices_are_refused():
    with pytest.raises(ValueError, match=r"devices=\[\], expected at least one"):
        data_parallel([])


@pytest.mark.slow
def test_a_training_killed_at_random_moments_resumes_bit_identically(tmp_path):
    records, moments = 600, np.random.default_rng(0).uniform(0.1, 1.5, size=4)
    for moment in moments:
        before = len(list(tmp_path.glob("step=*")))
        process = _start("alone", tmp_path, records)
        try:
            _wait_until(
                lambda before=before: len(list(tmp_path.glob("step=*"))) > before, [process]
            )
            time.sleep(moment)
            assert process.poll() is None, "the training ended before it was killed"
        finally:
            process.kill()
            process.wait()
    assert not (tmp_path / f"step={records - 1},process=0").exists()
    result = _result(_start("alone", tmp_path, records))
    assert len(list(tmp_path.glob("resumed at *"))) > 2
    alone = parallel_worker.as_lists(parallel_worker.training(None, save_at=range(records)))
    for name, values in alone.items():
        np.testing.assert_array_equal(result[name], values, err_msg=name)


@pytest.mark.slow
def test_arrays_divided_over_two_processes_are_saved_and_read_in_another_sharding(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    expected = (np.arange(48.0).reshape(16, 3) / 7).tolist()
    with _pair("orbax", tmp_path / "run", devices=2) as pair:
        results = [_result(process) for process in pair]
    for i, result in enumerate(results):
        assert result["divided"] and result["whole"] == expected
        assert sum(result["rows here"], []) == expected[8 * i : 8 * (i + 1)]


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_a_restart_resumes(tmp_path):
    with _pair("long", tmp_path) as pair:
        _wait_until((tmp_path / "step=10,process=1").exists, pair)
        pair[1].send_signal(signal.SIGKILL)
        pair[0].communicate(timeout=BOUND)
        assert pair[0].returncode != 0
    assert not (tmp_path / "step=98,process=0").exists(), (
        "the training ended before the process was killed"
    )
    with _pair("long", tmp_path) as pair:
        results = [_result(process) for process in pair]
    assert list(tmp_path.glob("resumed at *"))
    alone = parallel_worker.as_lists(parallel_worker.training(None, save_at=range(0, 100, 2)))
    _assert_equal_to_rounding(results[0], alone)


@pytest.mark.slow
def test_a_process_killed_among_the_tiles_of_a_kernel_ends_the_other_and_a_restart_goes_on(
    tmp_path,
):
    folder = tmp_path / "store"

    def done():
        return np.load(folder / "done.npy") != 0

    with _pair("tiles", folder) as pair:
        _wait_until(lambda: folder.exists() and done()[1::2].sum() > 5, pair)
        pair[1].send_signal(signal.SIGKILL)
        _, said = pair[0].communicate(timeout=BOUND)
        assert pair[0].returncode != 0 and "another task died" in said
    assert not done()[1::2].all(), "the kernel was done before the process was killed"
    left = np.count_nonzero(~done())
    with _pair("tiles", folder) as pair:
        results = [_result(process) for process in pair]
    assert sum(result["computed"] for result in results) == left
    expected = parallel_worker.gram_tiles(None, pause=0.0)["ntk"]
    for result in results:
        _assert_equal_to_rounding(result, {"ntk": expected})


def _wait_until(happened, processes):
    deadline = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.1)
