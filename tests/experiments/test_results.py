"""Facts about what a finished run still gives: its figures drawn again, and its numbers as one tidy table."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import __main__ as cli
from experiments import trajectories_2d as experiment
from experiments.harness import config as configuration
from experiments.harness import docs_data, store

COLUMNS = ["alpha", "seed", "step", "time", "metric", "value", "run"]
CURVES = {
    "seed=0/alpha=10/curve/step": [0, 5],
    "seed=0/alpha=10/curve/time": [0.0, 0.5],
    "seed=0/alpha=10/curve/diverged_at": -1,
    "seed=0/alpha=10/curve/metrics/test_loss": [1.0, 0.25],
    "noise": [3.0],
}
SUMMARY = {
    "test_accuracy/alpha=inf": 0.5,
    "loss/tau=2/seed=1": 2.0,
    "data": "digits",
    "slope/drift": -1.0,
    "expected/drift": -1.0,
    "passed/drift": True,
}


@pytest.fixture
def calls(monkeypatch):
    """Counts of what an experiment of two points does; no precision is left behind."""
    counts = {"measure": 0, "draw": 0}

    def measure(config, store):
        counts["measure"] += 1
        return CURVES

    def draw(config, arrays):
        counts["draw"] += 1
        figure = Figure()
        figure.add_subplot().plot(arrays["seed=0/alpha=10/curve/metrics/test_loss"])
        return {"loss": figure}

    for name, function in {"measure": measure, "draw": draw}.items():
        monkeypatch.setattr(experiment, name, function)
    monkeypatch.setattr(experiment, "numbers", lambda config, arrays: SUMMARY, raising=False)
    monkeypatch.setattr(experiment, "facts", lambda config, arrays: ())
    monkeypatch.setattr(experiment, "report", lambda summary: (), raising=False)
    monkeypatch.setattr(cli, "_set_precision", lambda config: None)
    monkeypatch.setattr(cli.console, "_width", 200)
    return counts


@pytest.fixture
def folder(calls, tmp_path):
    """A finished run of it."""
    cli.run("trajectories_2d", "smoke", out=tmp_path, quiet=True)
    return next(tmp_path.iterdir())


def _main(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["experiments", *map(str, words)])
    try:
        cli.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def _table(capsys) -> list[list[str]]:
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))


@pytest.mark.parametrize("change", ["missing", "damaged", "whole"])
def test_a_figure_is_drawn_again_without_computing_and_the_run_is_sound(
    change, folder, calls, monkeypatch, capsys
):
    path = folder / "figures" / "loss.png"
    before = path.read_bytes()
    if change == "missing":
        path.unlink()
    elif change == "damaged":
        path.write_bytes(before[:100])
    assert _main(monkeypatch, "draw", folder) == 0
    assert calls == {"measure": 1, "draw": 2}
    assert path.read_bytes()[:4] == before[:4] and path.stat().st_size == len(before)
    assert str(path) in capsys.readouterr().out
    assert not store.damages(folder) and not store.has_leftovers(folder)


def test_a_run_without_a_file_of_all_arrays_is_put_together_from_its_parts(
    folder, calls, monkeypatch
):
    (folder / "measured.npz").unlink()
    store.finish(folder, 1.0)
    assert _main(monkeypatch, "draw", folder) == 0
    assert calls == {"measure": 2, "draw": 2}
    np.testing.assert_array_equal(store.load_arrays(folder / "measured.npz")["noise"], [3.0])


def test_damaged_arrays_are_not_drawn(folder, calls, monkeypatch, capsys):
    path = folder / "measured.npz"
    path.write_bytes(path.read_bytes()[:-40])
    assert _main(monkeypatch, "draw", folder) == 1
    assert "measured.npz is damaged" in capsys.readouterr().err and calls["draw"] == 1


def test_arrays_of_an_earlier_version_are_refused_in_one_sentence(folder, monkeypatch, capsys):
    store.save_arrays(folder / "measured.npz", {"other": np.ones(1)})
    store.finish(folder, 1.0)
    assert _main(monkeypatch, "draw", folder) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "measured.npz is of another version" in said


def test_the_summary_is_written_where_the_numbers_cannot_be_drawn(calls, tmp_path, monkeypatch):
    def draw(config, arrays):
        raise ValueError("Invalid vmin or vmax")

    monkeypatch.setattr(experiment, "draw", draw)
    with pytest.raises(ValueError, match="Invalid vmin"):
        cli.run("trajectories_2d", "smoke", out=tmp_path, quiet=True)
    (folder,) = tmp_path.iterdir()
    assert store.read_json(folder / "summary.json") == SUMMARY


def test_a_run_that_is_not_finished_is_not_drawn(tmp_path, monkeypatch, capsys):
    assert _main(monkeypatch, "draw", tmp_path) == 2
    assert "not the folder of a finished run" in capsys.readouterr().err


def test_the_table_has_a_row_for_every_number_of_curves_and_summary(folder, monkeypatch, capsys):
    assert _main(monkeypatch, "compare", folder, "--csv") == 0
    run = folder.name
    assert _table(capsys) == [
        COLUMNS,
        ["10", "0", "0", "0.0", "test_loss", "1.0", run],
        ["10", "0", "5", "0.5", "test_loss", "0.25", run],
        ["inf", "", "", "", "test_accuracy", "0.5", run],
        ["", "1", "", "", "loss/tau=2", "2.0", run],
        ["", "", "", "", "slope/drift", "-1.0", run],
    ]


def test_the_table_of_several_runs_names_the_run_of_each_row(calls, tmp_path, monkeypatch, capsys):
    for seed in (1, 2):
        cli.run("trajectories_2d", "smoke", (f"seed={seed}",), tmp_path, True)
    folders = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert _main(monkeypatch, "compare", *folders, "--csv") == 0
    header, *rows = _table(capsys)
    assert header == COLUMNS
    assert [row[-1] for row in rows] == [folder.name for folder in folders for _ in range(5)]
    assert _main(monkeypatch, "compare", *folders[:1], tmp_path, "--csv") == 2


def test_curves_that_an_earlier_version_stored_by_themselves_are_in_the_table(
    folder, monkeypatch, capsys
):
    (folder / "measured.npz").rename(folder / "trajectory.npz")
    store.finish(folder, 1.0)
    assert _main(monkeypatch, "compare", folder, "--csv") == 0
    assert len(_table(capsys)) == 6


def _collect():
    path = Path(__file__).resolve().parents[2] / "docs" / "collect.py"
    spec = importlib.util.spec_from_file_location("collect", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_are_stored_for_the_pages_by_the_field_in_which_they_differ(calls, tmp_path):
    collect = _collect()
    folders = []
    for seed in (3, 1):
        cli.run("trajectories_2d", "smoke", (f"seed={seed}",), tmp_path / str(seed), True)
        folders += (tmp_path / str(seed)).iterdir()
    alone = collect.runs_of({}, folders[:1])
    assert list(alone["runs"]) == ["run"] and alone["experiment"] == "trajectories_2d"
    both = collect.runs_of(alone | {"status": "half"}, folders[1:])
    assert list(both["runs"]) == ["1", "3"] and both["status"] == "half"
    assert both["runs"]["3"] == alone["runs"]["run"]
    stored = both["runs"]["1"]
    assert stored["summary"] == SUMMARY and stored["config"]["seed"] == 1
    assert stored["curves"]["seed=0/alpha=10"] == {
        "step": [0, 5],
        "time": [0, 0.5],
        "test_loss": [1, 0.25],
    }


def test_a_stored_run_knows_its_preset(folder):
    assert _collect().runs_of({}, [folder])["preset"] == "smoke"


def test_classes_are_stored_under_the_name_of_their_curve(tmp_path):
    store.save_arrays(tmp_path / "measured.npz", {"alpha=1e+07/curve/step": [0]})
    store.Store(tmp_path).write("alpha=1e+07", {"outputs": np.eye(10)})
    assert _collect()._classes(tmp_path) == {"classes": {"alpha=1e+07": "0123456789"}}


def test_a_stored_training_that_diverged_has_no_final_numbers_and_no_facts():
    from experiments import cifar10_alpha_sweep as sweep

    ends = {
        "1e+07": {"diverged_at": 30},
        "inf": dict.fromkeys(("test_accuracy", "gated_accuracy", "train_accuracy"), 0.5),
    }
    runs = {}
    for alpha, end in ends.items():
        cell = f"alpha={alpha}"
        numbers = {**end, "seconds": 1.0, "precision": "float64"}
        config = configuration.preset(sweep.PRESETS, "laptop", [f"alphas={alpha}"])
        runs[alpha] = {
            "config": configuration.as_dictionary(config),
            "summary": {f"{name}/{cell}": number for name, number in numbers.items()},
            "curves": {cell: {"step": [0], "time": [0.0]}},
            "classes": {cell: "01"},
        }
    stored = {"experiment": "cifar10_alpha_sweep", "runs": runs}
    config, arrays = docs_data.whole(stored), docs_data.arrays_of(stored)
    summary = sweep.numbers(config, arrays)
    assert summary["diverged"] == ["1e+07"] and summary["diverged_at/alpha=1e+07"] == 30
    assert summary["agreement/alpha=inf"] == 1 and "agreement/alpha=1e+07" not in arrays
    names = [fact.name for fact in sweep.facts(config, arrays)]
    assert names == ["gated_minus_tangent", "linearized_train_accuracy"]


@pytest.mark.extended
def test_stored_runs_of_single_scales_are_together_what_their_cells_are(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_set_precision", lambda config: None)  # which would outlast the test
    from experiments import cifar10_alpha_sweep as sweep
    from experiments.cifar10_alpha_sweep.cells import gathered, stored_cells

    folders = []
    for alpha in ("1", "inf"):
        settings = (f"alphas={alpha}", "train.epochs=1", "train.records=1")
        cli.run("cifar10_alpha_sweep", "smoke", settings, tmp_path / alpha, True)
        folders += (tmp_path / alpha).iterdir()
    runs = _collect().runs_of({}, folders)
    config = docs_data.whole(runs)
    assert config.alphas == (1.0, float("inf"))
    expected = sweep.numbers(config, gathered(config, stored_cells(config, folders)))
    assert sweep.numbers(config, docs_data.arrays_of(runs)) == expected
