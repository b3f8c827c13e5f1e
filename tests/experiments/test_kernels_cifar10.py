"""Rows of `kernels_cifar10`: solved, kept as small files, their kernels deleted; ridges from training images alone."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

import experiments.kernels_cifar10 as experiment
from experiments.harness import running
from experiments.harness.store import Store
from experiments.kernels_cifar10 import rows
from lazynet.kernels.analytic import analytic_kernel
from lazynet.records import Data
from lazynet.triangle import Triangle

CONSOLE = Console(file=io.StringIO())
SMOKE = experiment.PRESETS["smoke"]
SMALL = dataclasses.replace(
    SMOKE,
    rows=("pixels (ntk)",),
    n_train=150,
    n_test=100,
    solver=dataclasses.replace(SMOKE.solver, choice=100, rank=30),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return running.compute(experiment, SMALL, folder, CONSOLE), folder


def test_every_fact_holds_and_the_kernel_classifies_digits(finished):
    summary, _ = finished
    passed = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(passed) == 3 and all(passed.values())
    assert summary["test_accuracy/pixels (ntk)"] > 0.85


def test_what_stays_of_a_row_is_a_small_file_and_it_is_not_computed_again(finished, monkeypatch):
    summary, folder = finished
    assert not list((folder / "kernels").iterdir())
    assert (folder / "cells" / "pixelsntk.json").stat().st_size < 3000
    monkeypatch.delattr(rows, "_computed")
    assert running.compute(experiment, SMALL, folder, CONSOLE) == summary


def test_the_table_and_the_figure_name_the_row(finished):
    summary, folder = finished
    console = Console(file=io.StringIO(), width=200)
    running.show(experiment, summary, console)
    printed = console.file.getvalue()
    assert "pixels (ntk)" in printed and "150 / 100" in printed
    assert (folder / "figures" / "kernels_cifar10.png").stat().st_size > 5000


def test_the_ridge_comes_from_the_training_images_alone(tmp_path, monkeypatch):
    chosen = []
    for exchanged in (False, True):
        if exchanged:
            inputs = rows._inputs

            def confused(*arguments, inputs=inputs):
                found = inputs(*arguments)
                return found._replace(test=found.test._replace(y=found.test.y[:, ::-1]))

            monkeypatch.setattr(rows, "_inputs", confused)
        store = Store(tmp_path / str(exchanged), CONSOLE)
        chosen.append(rows.compute(SMALL, "pixels (ntk)", store))
    assert chosen[0]["ridge"] == chosen[1]["ridge"]
    assert chosen[0]["test_accuracy"] > 0.85 and chosen[1]["test_accuracy"] < 0.5


def test_held_out_accuracies_are_those_of_the_dense_solution_of_the_others():
    x = np.random.default_rng(0).normal(size=(60, 3))
    kernel = np.exp(-((x[:, None] - x) ** 2).sum(-1))
    data = Data(x, np.eye(2)[(x[:, 0] > 0).astype(int)] - 0.5)
    solver = dataclasses.replace(SMALL.solver, held_out=20, rtol=1e-10, rank=10)
    config = dataclasses.replace(SMALL, solver=solver)
    ridges = np.array([0.01, 0.1, 10.0])
    found = rows._held_out_accuracies(config, Triangle.of(kernel, side=16), data, ridges)
    for ridge, accuracy in zip(ridges, found, strict=True):
        solution = np.linalg.solve(kernel[:40, :40] + ridge * np.eye(40), data.y[:40])
        outputs = kernel[40:, :40] @ solution
        assert accuracy == np.mean(outputs.argmax(1) == data.y[40:].argmax(1))


def test_seconds_count_tiles_of_a_killed_process_at_the_rate_of_the_others(tmp_path, monkeypatch):
    store = Store(tmp_path, CONSOLE)
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    folder = store.kernels("row,train")

    def compute(store):
        return analytic_kernel(rows._network("pixels (ntk)"), x, tile=5, store=store)

    compute(folder)
    done = np.load(folder / "done.npy", mmap_mode="r+")
    done[5:] = 0
    done.flush()
    clock = iter([0.0, 3.0])
    monkeypatch.setattr(rows.time, "process_time", lambda: next(clock))
    _, seconds = rows._stored(compute, "row,train", store)
    assert seconds == pytest.approx(3.0 * 10 / 5)
    assert store.read("row,train.json") == {"seconds": seconds, "tiles": 10}


def test_both_rows_of_scattering_have_the_seconds_of_the_features_that_they_share(
    tmp_path, monkeypatch
):
    clock = [0.0]

    def features(config, images, name, folder, advance):
        path = folder / "features" / f"{name}-00000.npz"
        if not path.exists():
            clock[0] += 5.0
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return images

    x = np.random.default_rng(0).normal(size=(200, 2, 2, 1))
    images = Data(x, np.eye(10)[np.arange(200) % 10])
    monkeypatch.setattr(rows, "load_images", lambda *_, **__: (images, images))
    monkeypatch.setattr(rows, "scattering_features", features)
    monkeypatch.setattr(rows.time, "process_time", lambda: clock[0])
    store = Store(tmp_path, CONSOLE)
    seconds = [
        rows._inputs(SMALL, f"scattering ({kind})", store).seconds for kind in ("nngp", "ntk")
    ]
    assert seconds == [10.0, 10.0]


@pytest.mark.extended
def test_every_row_of_the_smoke_preset_is_solved_and_far_above_chance(tmp_path):
    summary = running.compute(experiment, SMOKE, tmp_path, CONSOLE)
    passed = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(passed) == 3 * len(experiment.ALL_ROWS) and all(passed.values())


def test_a_difference_from_the_dense_solution_is_that_of_the_fitted_values():
    x = np.random.default_rng(0).normal(size=(40, 3))
    kernel = np.exp(-((x[:, None] - x) ** 2).sum(-1))
    data = Data(x, np.eye(2)[np.arange(40) % 2] - 0.5)
    config = dataclasses.replace(
        SMALL, solver=dataclasses.replace(SMALL.solver, rtol=1e-10, rank=10)
    )
    assert rows._difference_from_dense(config, kernel, data, np.array([0.1, 1.0])) < 1e-8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_train": 2000}, "n_train got 2000"),
        ({"pooled_test": 451}, "pooled_test got 451"),
        ({"rows": ()}, "rows"),
        ({"rows": ("pixels",)}, "rows"),
    ],
)
def test_a_mistake_is_named(change, words):
    from experiments.harness import bounds

    with pytest.raises(ValueError, match=words):
        bounds.check(dataclasses.replace(SMALL, **change))
