from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments import circle_kernel
from experiments.harness import compare, grid

CONSOLE = Console(file=io.StringIO(), width=200)
ROOT = Path(__file__).resolve().parents[2]


def _grid(tmp_path, *over, fixed=()):
    return grid.grid("circle_kernel", circle_kernel.PRESETS, "smoke", over, fixed, tmp_path)


def test_a_grid_has_every_combination_with_a_folder_of_its_own(tmp_path):
    points = _grid(tmp_path, "points=2048,4096", "decay_from=8,10", fixed=("decay_to=60",))
    assert [point.overrides for point in points] == [
        ("decay_to=60", f"points={n}", f"decay_from={k}") for n in (2048, 4096) for k in (8, 10)
    ]
    assert len({point.folder for point in points}) == 4 and not any(
        point.finished for point in points
    )


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ((), "each field once"),
        (("points=1", "points=2"), "each field once"),
        (("points=",), "field=value1,value2"),
        (("points=x",), "points=x"),
        (("nothing=1",), "unknown field"),
    ],
)
def test_a_grid_that_cannot_run_is_refused_before_anything_runs(over, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        _grid(tmp_path, *over)


@pytest.mark.extended
def test_a_sweep_runs_what_is_missing_and_its_runs_can_be_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    points = _grid(tmp_path, "points=2048,4096", fixed=("decay_to=60",))
    grid.run_points(points[:1], CONSOLE)
    done = (points[0].folder / "DONE").stat().st_mtime_ns
    grid.run_points(_grid(tmp_path, "points=2048,4096", fixed=("decay_to=60",)), CONSOLE)
    assert (points[0].folder / "DONE").stat().st_mtime_ns == done and points[1].finished
    runs = compare.load([point.folder for point in points])
    assert compare.differences(runs) == ["points=2048", "points=4096"]
    assert (
        compare.draw(runs, tmp_path / "compare.png")
        and (tmp_path / "compare.png").stat().st_size > 5_000
    )
    compare.show(runs, CONSOLE)
    assert "points=4096" in CONSOLE.file.getvalue()
    with pytest.raises(ValueError, match="at least two"):
        compare.load([points[0].folder])
    with pytest.raises(ValueError, match="not the folder of a finished run"):
        compare.load([points[0].folder, tmp_path])


@pytest.mark.extended
def test_commands_are_printed_for_unfinished_runs_only(tmp_path):
    first, second = _grid(tmp_path, "points=2048,4096")
    first.folder.mkdir()
    (first.folder / "DONE").write_text("{}")
    command = [sys.executable, "-m", "experiments", "sweep", "circle_kernel", "--preset", "smoke"]
    command += ["--over", "points=2048,4096", "--out", str(tmp_path), "--print"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert [shlex.split(line) for line in printed.splitlines()] == [second.command]


def test_a_failed_run_is_reported_after_the_others_ran(tmp_path):
    ok = grid.Point(
        ("a=1",), tmp_path / "ok", [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"]
    )
    bad = grid.Point(("a=2",), tmp_path / "bad", [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(ValueError, match="1 of 2 runs failed"):
        grid.run_points([bad, ok], CONSOLE)
    assert (tmp_path / "ran").exists()


def test_entries_of_a_summary_become_curves():
    summary = {
        "loss/tau=0.1": 1.0,
        "loss/tau=1": 2.0,
        "loss/m=2/scaling=inv": 3.0,
        "loss/m=4/scaling=inv": 4.0,
        "x": 1,
    }
    assert compare.series(json.loads(json.dumps(summary))) == {
        "loss against tau": {0.1: 1.0, 1.0: 2.0},
        "loss/scaling=inv against m": {2.0: 3.0, 4.0: 4.0},
    }
