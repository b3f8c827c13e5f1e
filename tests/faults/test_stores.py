"""Facts about the folders of stores: made once by many, rid of what the dead left, and of paths as users give them."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

import lazynet as ln
from lazynet import checkpoints, datasets, files, plots, tiles, writers
from lazynet.kernels.analytic import analytic_kernel
from lazynet.training.loop import TrainState

X = np.random.default_rng(0).normal(size=(6, 4))
EVERY = tiles.tiles(6, 6, 2, symmetric=True)
DEAD = ["store.1.0.tmp", f"store.{'0a' * 16}.tmp"]
"""Names of unfinished folders of version 0.1.0 and of this one."""


def _product(device, tile):
    return {"k": np.outer(*map(np.asarray, tile)) * 1.5}


def _stored(folder, compute=_product, identity=None):
    target = tiles.open_store(
        folder, {"k": (6, 6)}, np.float64, len(EVERY), identity or {"tile": 2}
    )
    return tiles.assemble(compute, EVERY, target, mirror={"k": (1, 0)})["k"]


def test_what_killed_processes_left_is_removed_and_what_has_another_name_stays(tmp_path):
    others = ["store.backup.tmp", "store.tmp", "other.1.0.tmp", "store.1.0.tmp.keep"]
    for name in [*DEAD, *others]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "k.npy").write_bytes(bytes(1000))
    for _ in range(2):  # a new store, then one that is there
        (tmp_path / DEAD[0]).mkdir(exist_ok=True)
        np.testing.assert_array_equal(
            _stored(tmp_path / "store"), 1.5 * np.outer(range(6), range(6))
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "store"])


HOLDING = """
import sys, time
from pathlib import Path
from lazynet.files import unfinished
with unfinished(Path(sys.argv[1])) as made:
    print(made.name, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")
def test_a_folder_that_a_living_process_is_making_stays_and_that_of_a_killed_one_goes(tmp_path):
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "store")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    name = process.stdout.readline().strip()
    _stored(tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", name]
    process.kill()
    process.wait()
    _stored(tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_one_who_is_taken_for_dead_makes_the_folder_again(tmp_path, monkeypatch):
    allocated, allocate = [], tiles._allocate

    def robbed(path, shape, dtype):
        allocate(path, shape, dtype)
        allocated.append(path)
        if len(allocated) == 1:
            path.parent.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(tiles, "_allocate", robbed)
    np.testing.assert_array_equal(_stored(tmp_path / "store"), 1.5 * np.outer(range(6), range(6)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "store"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        _stored(tmp_path / "file" / "store")
    with pytest.raises(ValueError, match="is not a kernel store"):
        _stored(tmp_path / "file")


@pytest.mark.extended
def test_threads_that_compute_one_new_store_at_a_time_have_the_same_kernel(tmp_path):
    model = ln.serial(ln.Dense(1, 1.5, 0.1), ln.Relu(), ln.Dense(1))
    expected = np.array(analytic_kernel(model, X, tile=2).ntk)
    for folder in (tmp_path / str(i) for i in range(5)):
        found, start = [], threading.Barrier(6)

        def compute(folder=folder, found=found, start=start):
            start.wait()
            found.append(analytic_kernel(model, X, tile=2, store=folder / "store").ntk)

        threads = [threading.Thread(target=compute) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6 and all(np.array_equal(kernel, expected) for kernel in found)
        assert [path.name for path in folder.iterdir()] == ["store"]


def test_a_dtype_or_an_identity_that_files_cannot_hold_leaves_no_folder(tmp_path):
    with pytest.raises(TypeError, match=r"bfloat16 .* expected a dtype of NumPy: convert"):
        tiles.open_store(tmp_path / "store", {"k": (2, 2)}, jnp.bfloat16, 1, {})
    with pytest.raises(TypeError, match="int64"):
        tiles.open_store(tmp_path / "store", {"k": (2, 2)}, np.float64, 1, {"tile": np.int64(4)})
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_a_store_is_made_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(path, shape, dtype):
        path.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(tiles, "_allocate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _stored(tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_tiles_that_are_there_are_not_opened_for_writing(tmp_path, monkeypatch):
    _stored(tmp_path / "store")
    monkeypatch.delattr(tiles, "_writable")
    assert not _stored(tmp_path / "store").flags.writeable


# Paths
# -----------------------------------------------------------------------------------------------------------

STATE = TrainState(0, 0.0, {}, ())
CURVE = ln.Trajectory(np.arange(1), np.zeros(1), {"loss": np.ones(1)}, None, None)
TAKE_PATHS = {
    "store": lambda path: _stored(path),
    "write_csv": lambda path: writers.write_csv(path, STATE, CURVE),
    "write_jsonl": lambda path: writers.write_jsonl(path, STATE, CURVE),
    "plots.save": lambda path: plots.save(matplotlib.figure.Figure(), path),
}


@pytest.mark.parametrize("name", TAKE_PATHS)
def test_the_home_folder_is_where_a_shell_finds_it(name, tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    TAKE_PATHS[name]("~/result.png")
    assert (home / "result.png").exists() and not list(here.iterdir())
    TAKE_PATHS[name]("~nobody~.png")  # no user's name
    assert [path.name for path in here.iterdir()] == ["~nobody~.png"]


def test_roots_and_checkpoints_know_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.data_root("~/data") == tmp_path / "data"
    monkeypatch.setenv("LAZYNET_DATA", "~/other")
    assert datasets.data_root() == tmp_path / "other"
    pytest.importorskip("orbax.checkpoint")
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/states' does not exist"):
        checkpoints.load_sharded("~/states", STATE)


@pytest.mark.parametrize("value", [3, True, b"store", ["store"], None])
def test_what_is_no_path_is_refused_by_name(value):
    with pytest.raises(
        TypeError, match=r"^out got .*, expected a path: pass a string or a pathlib\.Path\.$"
    ):
        inspect.unwrap(files.given_path)("out", value)


def test_kernels_do_not_depend_on_the_path(tmp_path):
    model = ln.serial(ln.Dense(1), ln.Erf(), ln.Dense(1))
    expected = analytic_kernel(model, X, tile=4).ntk
    for path in (tmp_path / "a", str(tmp_path / "b")):
        np.testing.assert_array_equal(analytic_kernel(model, X, tile=4, store=path).ntk, expected)
