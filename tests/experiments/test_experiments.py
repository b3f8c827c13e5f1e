"""Facts about experiments: typed overrides, run folders, resumption after SIGKILL, and the numbers of the smoke run."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazynet as ln
from experiments import lazy_vs_standard
from experiments.harness import config as configuration
from experiments.harness import store

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
TINY = [
    "data.n_train=100",
    "data.n_test=100",
    "network.widths=8",
    "seeds=1",
    "alphas=1,10,100,inf",
    "train.epochs=4",
]


def _command(*words, out):
    return [sys.executable, "-m", "experiments", *words, *(["--out", str(out)] if out else [])]


def _run(*words, out=None):
    return subprocess.run(
        _command(*words, out=out),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def _sets(items):
    return [word for item in items for word in ("--set", item)]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One finished smoke run: its folder and what it printed."""
    out = tmp_path_factory.mktemp("runs")
    done = _run("run", "lazy_vs_standard", "--preset", "smoke", out=out)
    assert done.returncode == 0, done.stderr
    return next(out.iterdir()), done.stdout


@pytest.mark.extended
def test_the_smoke_run_writes_every_file_of_a_run_folder(smoke):
    folder, printed = smoke
    names = {"config.json", "env.json", "measured.npz", "summary.json", "DONE"}
    assert names <= {path.name for path in folder.iterdir()}
    figures = {path.name for path in (folder / "figures").glob("*.png")}
    assert figures == {"training_curves.png", "laziness_against_alpha.png", "relu_stability.png"}
    assert "kernel row" in printed and "largest stable" in printed


@pytest.mark.extended
def test_the_summary_of_the_smoke_run_is_flat_and_says_what_the_theory_says(smoke):
    summary = store.read_json(smoke[0] / "summary.json")
    assert not [value for value in summary.values() if isinstance(value, dict)]
    assert abs(summary["slope/param_drift"] + 1) < 0.05
    assert summary["stability/alpha=100"] > summary["stability/alpha=1"]
    assert summary["agreement/alpha=100"] > summary["agreement/alpha=1"]
    assert summary["test_accuracy/kernel"] > 0.9 and summary["test_accuracy/alpha=1"] > 0.7
    np.testing.assert_allclose(summary["lr_over_lr_max"], 0.1, rtol=1e-12)


@pytest.mark.extended
def test_a_finished_run_is_shown_and_not_computed_again(smoke):
    folder, _ = smoke
    before = (folder / "summary.json").stat().st_mtime_ns
    again = _run("run", "lazy_vs_standard", "--preset", "smoke", out=folder.parent)
    assert (
        "has been run before" in again.stdout
        and (folder / "summary.json").stat().st_mtime_ns == before
    )
    assert "acc. %" in _run("show", str(folder)).stdout


@pytest.mark.extended
def test_a_run_killed_in_the_middle_resumes_bit_identically(tmp_path):
    words = ["run", "lazy_vs_standard", *_sets(TINY)]
    whole = _run(*words, out=tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        _command(*words, out=tmp_path / "killed"),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("*/cells/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = next((tmp_path / "killed").iterdir())
    assert not (folder / "measured.npz").exists(), "the run ended before it was killed"
    assert _run(*words, out=tmp_path / "killed").returncode == 0
    reference = next((tmp_path / "whole").iterdir())
    expected, resumed = (store.load_arrays(path / "measured.npz") for path in (reference, folder))
    assert expected.keys() == resumed.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(values, resumed[name], err_msg=name)
    assert store.read_json(reference / "summary.json") == store.read_json(folder / "summary.json")


@pytest.mark.extended
def test_training_resumed_from_a_checkpoint_file_is_bit_identical(tmp_path):
    data = ln.Data(jnp.linspace(-1.0, 1.0, 24).reshape(12, 2), jnp.ones((12, 1)))
    model = ln.serial(ln.Dense(8), ln.Erf(), ln.Dense(1))
    params0 = model.init(jax.random.key(0), data.x)
    goal, optimizer = ln.objective(ln.lazy(model.apply, params0, 2.0), ln.mse), ln.sgd(0.9)
    settings = dict(key=jax.random.key(1), save_at=[0, 5, 20], learning_rate=0.1, batch_size=4)
    path = tmp_path / "checkpoint.npz"

    def on_save(state, curve):
        if state.step == 5:
            store.save_checkpoint(path, state, curve)

    whole = ln.train(goal, None, data, optimizer, on_save=on_save, **settings)
    zeros = ln.trees.zeros_like(params0)
    example = ln.TrainState(0, 0.0, zeros, optimizer.init(zeros))
    resumed = ln.train(
        goal, None, data, optimizer, resume=store.load_checkpoint(path, example), **settings
    )
    np.testing.assert_array_equal(whole.metrics["train_loss"], resumed.metrics["train_loss"])
    np.testing.assert_array_equal(whole.params["0_Dense"]["W"], resumed.params["0_Dense"]["W"])


@pytest.mark.extended
@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["loss=cross_entropy"], "kernel"),
        (["precision=float32"], "float32"),
        (["center=false"], "alpha"),
        (["doubled=true"], "alpha"),
    ],
)
def test_variants_of_the_experiment_run(tmp_path, extra, expected):
    done = _run("run", "lazy_vs_standard", *_sets([*TINY, "train.epochs=2", *extra]), out=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = store.read_json(next(tmp_path.iterdir()) / "summary.json")
    assert all(
        np.isfinite(value) for name, value in summary.items() if name.startswith("test_accuracy/")
    )


@pytest.mark.extended
def test_a_sweep_too_short_for_a_slope_has_no_rate_figure_and_no_error(tmp_path):
    done = _run(
        "run", "lazy_vs_standard", *_sets([*TINY, "train.epochs=2", "alphas=1,inf"]), out=tmp_path
    )
    assert done.returncode == 0, done.stderr
    folder = next(tmp_path.iterdir())
    assert store.read_json(folder / "summary.json")["slope/param_drift"] is None
    assert not (folder / "figures" / "laziness_against_alpha.png").exists()


def test_every_configuration_has_its_own_folder(tmp_path):
    base = lazy_vs_standard.PRESETS["smoke"]
    other = dataclasses.replace(base, seeds=2)
    folders = {
        store.open_run("lazy_vs_standard", config, tmp_path) for config in (base, other, base)
    }
    assert len(folders) == 2


def test_stale_temporary_files_are_swept_when_a_run_is_opened_again(tmp_path):
    folder = store.open_run("lazy_vs_standard", lazy_vs_standard.PRESETS["smoke"], tmp_path)
    (folder / "summary.json.1.partial").write_text("half")
    store.open_run("lazy_vs_standard", lazy_vs_standard.PRESETS["smoke"], tmp_path)
    assert not list(folder.glob("*.partial"))


def test_overrides_are_parsed_by_the_type_of_their_field():
    presets = lazy_vs_standard.PRESETS
    items = [
        "alphas=1,10,inf",
        "train.epochs=7",
        "train.lr_fraction=0.2",
        "center=false",
        "data.root=/data",
        "network.widths=16,16,16",
    ]
    config = configuration.preset(presets, "laptop", items)
    assert (
        config.alphas == (1.0, 10.0, math.inf)
        and config.train.epochs == 7
        and config.train.lr_fraction == 0.2
    )
    assert (
        config.center is False
        and config.data.root == "/data"
        and config.network.widths == (16, 16, 16)
    )


def test_a_preset_has_a_variant_for_each_data_set():
    config = configuration.preset(lazy_vs_standard.PRESETS, "laptop", ["data.name=cifar10"])
    assert config.network.name == "cnn" and config.data.n_train == 4000 and 0.1 not in config.alphas


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("train.epoch=3", "unknown field 'epoch', expected one of batch_size, epochs"),
        ("train.epochs=three", "'three' is not a int"),
        ("train=3", "train is a group, expected one of its fields train.batch_size"),
        ("alphas.first=3", "alphas is a value and has no field"),
        ("loss=hinge", "'hinge' is not a choice of mse, cross_entropy"),
        ("center=maybe", "'maybe' is not a bool"),
        ("epochs", "expected field=value"),
    ],
)
def test_bad_overrides_name_the_value_and_what_is_expected(item, message):
    with pytest.raises(ValueError, match=message):
        configuration.preset(lazy_vs_standard.PRESETS, "laptop", [item])
