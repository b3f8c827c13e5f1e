"""Facts about the command line: what it lists, prints and returns, and that it opens nothing."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as cli
from experiments import lazy_vs_standard, trajectories_2d
from experiments.harness import catalog, store
from experiments.harness.config import preset
from experiments.harness.fields import fields_of, written

ROOT = Path(__file__).resolve().parents[2]
NAMES = catalog.names()
SUMMARY = {
    "slope/a": -1.0,
    "expected/a": -1.0,
    "tolerance/a": 0.1,
    "passed/a": True,
    "b": None,
    "c,d": 'x"y',
}


@pytest.fixture
def wide(monkeypatch):
    """Standard output without line breaks of its own, and no precision left behind."""
    monkeypatch.setattr(cli.console, "_width", 200)
    monkeypatch.setattr(cli, "_set_precision", lambda config: None)


def _main(monkeypatch, *words) -> int:
    """Exit status of the command line."""
    monkeypatch.setattr(sys, "argv", ["experiments", *map(str, words)])
    try:
        cli.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def _computes(monkeypatch, result):
    """Lets an experiment return, or raise, something at once."""

    def measure(config, store):
        store.console.print("computing")
        if isinstance(result, BaseException):
            raise result
        return {"one": 1.0}

    monkeypatch.setattr(trajectories_2d, "measure", measure)
    monkeypatch.setattr(trajectories_2d, "numbers", lambda config, arrays: result, raising=False)
    monkeypatch.setattr(trajectories_2d, "facts", lambda config, arrays: ())
    monkeypatch.setattr(trajectories_2d, "draw", lambda config, arrays: {})
    monkeypatch.setattr(trajectories_2d, "report", lambda summary: ["the table"], raising=False)


def _run(monkeypatch, out, *words) -> int:
    return _main(monkeypatch, "run", "trajectories_2d", "--preset", "smoke", "--out", out, *words)


# What is printed
# --------------------------------------------------------------------------------------------------


def test_the_list_has_the_title_the_presets_and_the_times_of_every_experiment(monkeypatch, capsys):
    monkeypatch.setattr(cli.console, "_width", 100)
    assert _main(monkeypatch, "list") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    blocks = re.split(r"^(?=\S)", printed, flags=re.MULTILINE)[1:]
    assert [block.split()[0] for block in blocks] == NAMES
    for name, block in zip(NAMES, blocks, strict=True):
        module = catalog.find(name)
        words = " ".join(block.split())
        assert module.__doc__.strip().splitlines()[0] in words and len(block.splitlines()) <= 8
        assert all(preset in words for preset in module.PRESETS)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_says_how_long_its_smoke_and_laptop_presets_take(name):
    module = catalog.find(name)
    times = catalog.expected_times(name, module.__doc__)
    assert {"smoke", "laptop"} & {key.split("/")[0] for key in module.PRESETS} <= {
        key.split("/")[0] for key in times
    }
    assert all(
        re.search("second|minute|hour", times[key]) for key in times if key in ("smoke", "laptop")
    )


@pytest.mark.parametrize(
    "words",
    [[], ["list"], ["run"], ["show"], ["draw"], ["sweep"], ["compare"]],
    ids=lambda words: str(words),
)
def test_every_command_has_help(words, monkeypatch, capsys):
    assert _main(monkeypatch, *words, "--help") == 0
    printed = capsys.readouterr().out
    assert "usage: python -m experiments" in printed and "--help" in printed


def test_a_run_prints_its_table_and_where_its_files_are(monkeypatch, capsys, tmp_path, wide):
    _computes(monkeypatch, SUMMARY)
    assert _run(monkeypatch, tmp_path) == 0
    (folder,) = tmp_path.iterdir()
    printed = capsys.readouterr().out
    assert (
        "computing" in printed
        and "the table" in printed
        and str(folder / "summary.json") in printed
    )
    assert _run(monkeypatch, tmp_path) == 0
    assert "has been run before" in capsys.readouterr().out


def test_a_quiet_run_prints_its_folder_and_nothing_else(monkeypatch, capsys, tmp_path, wide):
    _computes(monkeypatch, SUMMARY)
    for _ in range(2):
        assert _run(monkeypatch, tmp_path, "--quiet") == 0
        printed = capsys.readouterr()
        assert printed.out == f"{next(tmp_path.iterdir())}\n" and printed.err == ""


def test_shown_as_csv_every_number_of_the_summary_is_a_row(monkeypatch, capsys, tmp_path, wide):
    _computes(monkeypatch, SUMMARY)
    _run(monkeypatch, tmp_path)
    capsys.readouterr()
    assert _main(monkeypatch, "show", next(tmp_path.iterdir()), "--csv") == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["key", "value"]
    assert dict(rows[1:]) == {
        name: "" if value is None else str(value) for name, value in SUMMARY.items()
    }


def test_showing_a_run_prints_its_table_and_paths_and_opens_nothing(
    monkeypatch, capsys, tmp_path, wide
):
    _computes(monkeypatch, SUMMARY)
    _run(monkeypatch, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "figures" / "one.png").write_bytes(b"")
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    capsys.readouterr()
    for name in ("Popen", "run"):
        monkeypatch.setattr(subprocess, name, None)
    monkeypatch.setattr("webbrowser.open", None)
    assert _main(monkeypatch, "show", folder) == 0
    printed = capsys.readouterr().out
    assert "the table" in printed and str(folder / "figures" / "one.png") in printed
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_the_help_of_an_experiment_lists_its_fields_with_meaning_type_and_value(
    command, monkeypatch, capsys, wide
):
    assert _main(monkeypatch, command, "lazy_vs_standard", "--preset", "smoke", "--help") == 0
    printed = capsys.readouterr().out
    for path, _, value, meaning in fields_of(lazy_vs_standard.PRESETS["smoke"]):
        assert f"{path}={written(value)}" in printed and meaning in printed
    assert (
        "alphas=1,10,100,inf" in printed
        and "number > 0, or inf; at least 1, all different" in printed
    )
    assert "--quiet" in printed or command == "sweep"


def test_what_the_help_shows_as_values_is_what_set_takes():
    config = lazy_vs_standard.PRESETS["laptop/cifar10"]
    items = [f"{path}={written(value)}" for path, _, value, _ in fields_of(config)]
    assert preset(lazy_vs_standard.PRESETS, "laptop", items) == config


def _compared(monkeypatch, tmp_path, *words) -> int:
    _computes(monkeypatch, {"loss/tau=1": 1.0, "loss/tau=2": 2.0})
    for seed in (1, 2):
        cli.run("trajectories_2d", "smoke", (f"seed={seed}",), tmp_path / "runs", True)
    return _main(monkeypatch, "compare", *sorted((tmp_path / "runs").iterdir()), *words)


@pytest.mark.parametrize("out", ["deep/figure.pdf", "plain", "folder/"])
def test_runs_are_compared_into_the_file_or_folder_that_out_names(
    out, monkeypatch, capsys, tmp_path, wide
):
    (tmp_path / "folder").mkdir()
    assert _compared(monkeypatch, tmp_path, "--out", tmp_path / out) == 0
    path = tmp_path / (out if out != "folder/" else "folder/compare.png")
    assert path.stat().st_size > 1000 and f"figure   {path}" in capsys.readouterr().out


def test_a_tilde_is_the_home_folder_also_behind_an_equals_sign(monkeypatch, tmp_path, wide):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    _computes(monkeypatch, SUMMARY)
    assert _main(monkeypatch, "run", "trajectories_2d", "--preset", "smoke", "--out=~/x") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"] and len(
        list((tmp_path / "home/x").iterdir())
    ) == 1
    assert (
        _compared(monkeypatch, tmp_path, "--out=~/figure.png") == 0
        and (tmp_path / "home/figure.png").exists()
    )


# Exit statuses
# ----------------------------------------------------------------------------------------------------


def _said(capsys) -> str:
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "lazy"], "unknown experiment 'lazy', expected one of"),
        (["run", "trajectories_2d", "--preset", "huge"], "unknown preset 'huge'"),
        (["run", "trajectories_2d", "--set", "nothing=1"], "unknown field 'nothing'"),
        (["run", "trajectories_2d", "--out", "/proc/nothing"], "cannot be written"),
        (["show", "nowhere"], "not the folder of a finished run"),
        (["compare", "nowhere"], "not the folder of a finished run"),
        (["compare"], "compare got 0 run(s), expected at least two"),
        (["show", __file__], "not the folder of a finished run"),
        (["sweep", "trajectories_2d"], "expected each field once"),
        (
            ["run", "trajectories_2d", "--set", "taus=1,abc"],
            "--set taus=1,abc: 'abc' is not a float",
        ),
        (["run", "trajectories_2d", "--set", "steps=0"], "steps got 0, expected an integer >= 1"),
        (["sweep", "trajectories_2d", "--over", "steps=1,0"], "steps got 0"),
        (["sweep", "trajectories_2d", "--over", "seeds"], "expected field=value1,value2"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(words, message, monkeypatch, capsys, tmp_path, wide):
    monkeypatch.chdir(tmp_path)
    assert _main(monkeypatch, *words) == 2
    assert message in _said(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["fly"], ["run"], ["run", "crossover", "--fast"]])
def test_words_that_are_no_command_have_status_two(words, monkeypatch, capsys):
    assert _main(monkeypatch, *words) == 2
    assert "python -m experiments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            OSError(28, "No space left on device", "cell.npz"),
            1,
            "No space left on device: 'cell.npz'",
        ),
        (MemoryError("a tile of side 64 does not fit"), 1, "a tile of side 64 does not fit"),
        (store.Damaged("cell.npz is damaged"), 1, "cell.npz is damaged"),
        (ValueError("alphas=(), expected one"), 2, "alphas=(), expected one"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_fails_is_one_line_and_leaves_no_mark_of_an_end(
    error, status, message, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(cli, "_set_precision", lambda config: None)
    _computes(monkeypatch, error)
    assert _run(monkeypatch, tmp_path) == status
    assert message in _said(capsys)
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {"config.json", "env.json"}
    _computes(monkeypatch, SUMMARY)
    assert _run(monkeypatch, tmp_path) == 0


def test_a_run_whose_facts_do_not_hold_is_shown_and_has_status_one(
    monkeypatch, capsys, tmp_path, wide
):
    _computes(monkeypatch, SUMMARY | {"e": 2.0, "at_most/e": 1.0, "passed/e": False})
    for _ in range(2):
        assert _run(monkeypatch, tmp_path) == 1
        printed = capsys.readouterr()
        assert "the table" in printed.out and printed.err == "error: facts that do not hold: e.\n"
    assert _main(monkeypatch, "show", next(tmp_path.iterdir())) == 0


def test_a_run_folder_that_another_process_computes_in_has_status_one(
    monkeypatch, capsys, tmp_path, wide
):
    _computes(monkeypatch, SUMMARY)
    config = trajectories_2d.PRESETS["smoke"]
    with store.alone(store.run_folder("trajectories_2d", config, tmp_path)):
        assert _run(monkeypatch, tmp_path) == 1
    assert "is being computed by another process" in _said(capsys)
    assert _run(monkeypatch, tmp_path) == 0


def test_a_damaged_summary_is_named_with_the_way_out(monkeypatch, capsys, tmp_path, wide):
    _computes(monkeypatch, SUMMARY)
    _run(monkeypatch, tmp_path)
    (path,) = tmp_path.glob("*/summary.json")
    path.write_text(path.read_text().replace("-1.0", "-1.1"))
    capsys.readouterr()
    assert _main(monkeypatch, "show", path.parent) == 1
    assert f"{path} is damaged" in _said(capsys)
    path.unlink()
    assert _run(monkeypatch, tmp_path) == 0 and store.read_json(path) == SUMMARY
