"""Facts about runs whose files, output or process fail: nothing is lost, what is damaged is named and made again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazynet as ln
from experiments import __main__ as cli
from experiments import trajectories_2d
from experiments.harness import progress, store, streams
from experiments.harness.errors import RunError
from experiments.shared import training
from lazynet import files, plots

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = {"slope/a": -1.0, "b": None}


@pytest.fixture
def out(monkeypatch, tmp_path):
    """The folder of runs of an experiment of three small files."""

    def measure(config, store):
        store.console.print("0.5 ± 0.1")
        return store.read("one") or store.write("one", {"x": np.arange(4.0)})

    def draw(config, arrays):
        return {"kernel": plots.plot_kernel(np.eye(2))}

    monkeypatch.setattr(trajectories_2d, "measure", measure)
    monkeypatch.setattr(trajectories_2d, "numbers", lambda config, arrays: SUMMARY, raising=False)
    monkeypatch.setattr(trajectories_2d, "facts", lambda config, arrays: ())
    monkeypatch.setattr(trajectories_2d, "draw", draw)
    monkeypatch.setattr(trajectories_2d, "report", lambda summary: ["the table"], raising=False)
    monkeypatch.setattr(cli, "_set_precision", lambda config: None)
    return tmp_path


def _run(out) -> Path:
    cli.run("trajectories_2d", "smoke", (), out, True)
    (folder,) = out.iterdir()
    return folder


def _contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# Damaged files of finished runs
# -----------------------------------------------------------------------------------

MADE = ["cells/one.npz", "measured.npz", "figures/kernel.png", "summary.json", "env.json"]


@pytest.mark.parametrize("name", [*MADE, "DONE"])
@pytest.mark.parametrize("damage", ["cut off", "flipped", "missing"])
def test_a_damaged_file_of_a_finished_run_is_named_and_made_again(name, damage, out, capsys):
    folder = _run(out)
    before = _contents(folder)
    path = folder / name
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            raw[: len(raw) // 2] if damage == "cut off" else bytes([raw[0] ^ 1]) + raw[1:]
        )
    capsys.readouterr()
    if (name, damage) != ("DONE", "missing"):
        with pytest.raises(store.Damaged, match="same `run` command makes it again"):
            cli.show(folder)
    _run(out)
    assert name in capsys.readouterr().err or damage == "missing"
    after = _contents(folder)
    assert {Path(key) for key in MADE} < after.keys() == before.keys()
    del after[Path("DONE")], before[Path("DONE")]
    assert after == before and not store.damages(folder)


def test_a_cell_that_was_exchanged_for_another_sound_one_is_noticed(out, capsys):
    folder = _run(out)
    path = folder / "cells" / "one.npz"
    raw = path.read_bytes()
    store.save_arrays(path, {"x": np.zeros(4)})
    _run(out)
    assert (
        f"{path} is damaged: it is made again now." in capsys.readouterr().err
        and path.read_bytes() == raw
    )


def test_a_run_that_was_finished_without_digests_opens_and_its_damaged_arrays_are_noticed(
    out, capsys
):
    folder = _run(out)
    (folder / "DONE").write_text('{"seconds": 2.5}')
    before = _contents(folder)
    _run(out)
    assert _contents(folder) == before and capsys.readouterr().err == ""
    path = folder / "measured.npz"
    path.write_bytes(path.read_bytes()[:-40])
    _run(out)
    assert "measured.npz is damaged" in capsys.readouterr().err and not store.damages(folder)


# What killed processes leave
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
def test_what_a_killed_process_left_is_removed_when_the_run_is_opened(finished, out):
    folder = _run(out)
    if not finished:
        (folder / "DONE").unlink()
    before = _contents(folder).keys()
    for name in (
        ".lock",
        "figures/.kernel.png.1.unfinished",
        "figures/.kernel.png.0123456789ab.unfinished",
    ):
        (folder / name).write_text("half")
    _run(out)
    assert _contents(folder).keys() | {Path("DONE")} == before | {Path("DONE")}


def test_files_that_are_being_written_have_names_that_do_not_collide(tmp_path):
    names = []

    def write(file):
        names.append(file.name)
        if len(names) < 9:
            files.atomically(tmp_path / "one", write)
        file.write(b"all")

    files.atomically(tmp_path / "one", write)
    assert len(set(names)) == 9 and [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_figure_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*kernel\.png'"):
        plots.save(plots.plot_kernel(np.eye(2)), tmp_path / "kernel.png")
    assert not list(tmp_path.iterdir())


# Resumption
# -------------------------------------------------------------------------------------------------------


def _trained(path, steps, **settings):
    """A training with a checkpoint at every record; `steps` are recorded."""
    data = ln.Data(jnp.linspace(-1.0, 1.0, 12).reshape(12, 1), jnp.ones((12, 1)))
    start = {"w": jnp.zeros((1, 1))}
    goal = ln.objective(lambda w, x: x @ w["w"], ln.mse)
    common = dict(key=jax.random.key(0), save_at=steps, learning_rate=0.1)
    return training.checkpointed(
        path, goal, start, data, ln.sgd(), lambda step: None, **common, **settings
    )


DRIFT = {"measure": lambda w: {"drift": jnp.abs(w["w"]).sum()}}
TEST = {"test": ln.Data(np.ones((3, 1)), np.ones((3, 1)))}


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, DRIFT, "drift is now recorded"),
        (DRIFT, {}, "drift is no more recorded"),
        ({}, TEST, "test_accuracy, test_loss is now recorded"),
        (TEST, {}, "test_accuracy, test_loss is no more recorded"),
        (DRIFT, {"measure": lambda w: {"norm": 1.0}}, "drift is no more recorded"),
    ],
)
def test_a_training_that_records_something_else_does_not_go_on(
    before, after, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "checkpoint.npz"
    _trained(path, [0, 2], **before)
    raw = path.read_bytes()
    with pytest.raises(
        RunError, match=rf"checkpoint\.npz was written by another training: {words}"
    ):
        _trained(path, [0, 2, 4], **after)
    assert path.read_bytes() == raw


def test_a_curve_reloads_with_its_names_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "checkpoint.npz"
    whole = _trained(tmp_path / "other.npz", [0, 2, 4], **TEST, **DRIFT)
    _trained(path, [0, 2], **TEST, **DRIFT)
    store.save_arrays(path, dict(reversed(store.load_arrays(path).items())))
    resumed = _trained(path, [0, 2, 4], **TEST, **DRIFT)
    assert resumed.metrics.keys() == whole.metrics.keys()
    for name, values in whole.metrics.items():
        np.testing.assert_array_equal(resumed.metrics[name], values)


# Output that nobody reads, or that knows few letters
# --------------------------------------------------------------

PRINTING = """
import sys
from experiments.harness import streams
streams.outlive_readers()
for _ in range(20_000):
    print("0.5 ± 0.1 ∞ é")
print("done", file=sys.stderr)
sys.exit(3 if streams.failed() else 0)
"""


def _printing(**settings):
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.PIPE, **settings},
    )
    if process.stdout is not None:
        first = process.stdout.readline()
        process.stdout.close()
    else:
        first = b""
    said = process.stderr.read()
    return process.wait(60), first, said


def test_a_closed_pipe_loses_nothing_but_what_nobody_reads():
    assert _printing() == (0, "0.5 ± 0.1 ∞ é\n".encode(), b"done\n")


def test_a_terminal_that_knows_ascii_only_gets_the_nearest_letters():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert _printing(env=environment) == (0, b"0.5 +- 0.1 inf ?\n", b"done\n")


def test_output_to_a_full_disk_is_a_failure_after_the_end():
    with open("/dev/full", "wb") as full:
        assert _printing(stdout=full) == (3, b"", b"done\n")


def test_letters_that_have_no_near_one_are_question_marks():
    assert streams._nearest(UnicodeEncodeError("ascii", "a±é", 1, 3, "")) == ("+-?", 3)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["nonsense", "cuda"])
def test_a_platform_that_is_not_there_is_one_sentence(name, tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments",
        "run",
        "circle_kernel",
        "--preset",
        "smoke",
        "--out",
        str(tmp_path),
    ]
    environment = os.environ | {"JAX_PLATFORMS": name}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"error: JAX_PLATFORMS={name} gives no device" in done.stderr and not list(
        tmp_path.iterdir()
    )


# Interrupts
# -------------------------------------------------------------------------------------------------------

HEARING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""A job in the background of a shell ignores interrupts, and hands that on to what it starts."""

INTERRUPTED = """
import sys
import jax, jax.numpy as jnp
from experiments import __main__ as cli
def command():
    product = jax.jit(lambda x: sum(jnp.sin(x @ x / i) for i in range(1, 9)))
    x = product(jnp.ones((600, 600)))
    print("computing", flush=True)
    while True:
        x = product(x)
cli.list_experiments = command
sys.argv = ["experiments", "list"]
cli.main()
"""


@pytest.mark.extended
@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_an_interrupted_computation_ends_with_status_130_and_no_crash(times):
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", HEARING + INTERRUPTED],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stdout.readline() == b"computing\n"
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=120)[1]
        finally:
            process.kill()
        assert (
            process.returncode == 130 and said.startswith(b"stopped: ") and said.count(b"\n") == 1
        )


DROPPED = """
import gc, runpy, signal, sys, time
def dropped(phase, info):
    gc.callbacks.remove(dropped)
    signal.raise_signal(signal.SIGINT)
    for _ in range(1000): pass
def command(*args, **kwargs):
    gc.callbacks.append(dropped)
    gc.collect()
    time.sleep(60)
import tyro
tyro.extras.subcommand_cli_from_dict = command
sys.argv = ["experiments", "list"]
runpy.run_module("experiments", run_name="__main__", alter_sys=True)
"""


@pytest.mark.extended
def test_an_interrupt_in_a_collection_of_garbage_is_not_lost():
    command = [sys.executable, "-c", HEARING + DROPPED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (
        done.returncode == 130
        and done.stderr.startswith("stopped: ")
        and done.stderr.count("\n") == 1
    )


def test_a_second_interrupt_does_not_wait(monkeypatch):
    statuses = []

    def again():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_wait_for_devices", again)
    monkeypatch.setattr(os, "_exit", statuses.append)
    with pytest.raises(SystemExit):
        cli._stop()
    assert statuses == [130]


def test_cells_that_have_not_begun_are_dropped_when_a_run_is_stopped():
    begun = []

    def compute(cell):
        begun.append(cell)
        if cell == 0:
            raise KeyboardInterrupt
        return cell

    with pytest.raises(KeyboardInterrupt):
        list(progress.spread(compute, range(1000)))
    assert len(begun) < 1000


# Names of files
# ---------------------------------------------------------------------------------------------------


def test_cells_have_names_of_plain_letters_and_those_of_earlier_versions_are_found(tmp_path):
    parts = store.Store(tmp_path)
    parts.write("seed=0,alpha=1e+07", {"x": np.ones(1)})
    (new,) = (tmp_path / "cells").iterdir()
    assert new.name == "seed-0_alpha-1e07.npz"
    old = new.rename(new.with_name("seed=0,alpha=1e+07.npz"))
    assert parts.read("seed=0,alpha=1e+07")["x"] == 1 and parts.path("seed=0,alpha=1e+07") == old


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    parts = store.Store(tmp_path)
    (tmp_path / "cells").mkdir()
    checkpoint = tmp_path / "cells" / "alpha=1.checkpoint.npz"
    _trained(checkpoint, [0, 2])
    assert parts.checkpoint("alpha=1") == checkpoint
    curve = _trained(checkpoint, [0, 2, 4])
    assert curve.step.tolist() == [0, 2, 4]
    parts.write("alpha=1", training.cell_arrays(curve, {}, np.ones(1)))
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["alpha-1.npz"]
