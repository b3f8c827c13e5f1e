"""Facts about disks and files that fail: full, not writable, cut off, changed by a bit, or made to do harm."""

from __future__ import annotations

import ast
import dataclasses
import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import faults_processes
import faults_worker
import jax.numpy as jnp
import numpy as np
import pytest
from faults_processes import CONTEXT, finish, start
from test_faults_kill import served as served
from test_faults_kill import training_result

import lazynet as ln
from experiments.harness import store
from lazynet import datasets, tiles
from lazynet.datasets import download

ROOT = Path(__file__).resolve().parents[2]
ARRAYS = {"loss": np.arange(10.0), "steps": np.arange(3), "ok": np.array(True)}
VALUES = {"accuracy": 0.5, "name": "a", "counts": [1, 2], "none": None}


# Full disks
# -------------------------------------------------------------------------------------------------------


def _on_a_full_disk(limit, task, *arguments) -> str:
    ours, theirs = CONTEXT.Pipe()
    process = start(faults_worker.on_a_full_disk, task, limit, theirs, *arguments)
    process.join(300)
    assert process.exitcode == 0 and ours.poll(), (
        "the task did not fail by an error of the operating system"
    )
    return ours.recv()


@pytest.fixture(scope="module")
def server():
    faults_processes.serve()


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory):
    """A finished training, its result and a copy of its folder that may be damaged."""
    folder = tmp_path_factory.mktemp("trained") / "whole"
    folder.mkdir()
    finish(faults_worker.training, folder)
    return folder, training_result(folder)


@pytest.mark.parametrize("limit", [200, 2000, pytest.param(5000, marks=pytest.mark.slow)])
def test_an_experiment_on_a_full_disk_names_the_file_and_ends_once_there_is_room(
    limit, tmp_path, trained
):
    said = _on_a_full_disk(limit, faults_worker.training, tmp_path)
    assert str(tmp_path) in said and ("File too large" in said or "cannot be written" in said)
    for path in tmp_path.rglob("*.npz"):
        store.load_arrays(path)
    for path in tmp_path.rglob("*.json"):
        store.read_json(path)
    assert not list(tmp_path.rglob("*.partial"))
    finish(faults_worker.training, tmp_path)
    assert training_result(tmp_path) == trained[1]


def test_a_kernel_on_a_full_disk_fails_before_the_first_tile_and_ends_once_there_is_room(
    server, tmp_path
):
    said = _on_a_full_disk(4000, faults_worker.tiles, tmp_path)
    assert said == f"[Errno 27] File too large: '{tmp_path / 'store' / 'nngp.npy'}'"
    assert not list(tmp_path.iterdir())
    finish(faults_worker.tiles, tmp_path)
    assert np.load(tmp_path / "store" / "done.npy").all()


@pytest.mark.parametrize("limit", [100_000, 3_000_000])
def test_a_download_on_a_full_disk_names_the_file_and_is_continued(server, limit, tmp_path, served):
    http, archive, _ = served
    said = _on_a_full_disk(limit, faults_worker.download, tmp_path, archive)
    assert said == f"[Errno 27] File too large: '{tmp_path / Path(archive.url).name}.part'"
    http.asked.clear()
    finish(faults_worker.download, tmp_path, archive)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-bin"]
    assert http.asked[0].removeprefix("bytes=").removesuffix("-") > "0"


def test_an_archive_that_does_not_fit_the_disk_is_kept_and_unpacked_once_there_is_room(tmp_path):
    content = {f"{i}.bin": bytes(50_000) for i in range(3)}
    file = tmp_path / "received.part"
    file.write_bytes(_packed(content))
    kept = file.read_bytes()
    faults_processes.serve()
    said = _on_a_full_disk(20_000, download.unpack, file, tmp_path, "data")
    assert said == f"[Errno 27] File too large: '{tmp_path / 'data'}'"
    assert [path.name for path in tmp_path.iterdir()] == [
        "received.part"
    ] and file.read_bytes() == kept
    download.unpack(file, tmp_path, "data")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == content


IN_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size="$2" none "$1"
cd "$3"
shift 3
status=0
"$@" || status=$?
echo "status $status"
find "$PLACE" -name '*.partial' -o -name '*.tmp'
mount -o remount,size=64m "$PLACE"
"$@"
echo "status $?"
cp -r "$PLACE/." "$KEPT"
"""


def _can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["experiment", "kernel"])
def test_a_small_disk_that_is_really_full_ends_in_an_error_and_with_room_in_the_result(
    case, tmp_path, trained
):
    if not _can_mount():
        pytest.skip("needs the right to mount a small disk in a namespace of its own")
    place, kept = tmp_path / "place", tmp_path / "kept"
    place.mkdir()
    kept.mkdir()
    task, size = {"experiment": ("training", "16k"), "kernel": ("tiles", "16k")}[case]
    code = f"import faults_worker, pathlib; faults_worker.{task}(pathlib.Path({str(place)!r}))"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
        "PLACE": str(place),
        "KEPT": str(kept),
    }
    shell = ["unshare", "-rm", "bash", "-c", IN_A_SMALL_DISK, "-", str(place), size, str(ROOT)]
    done = subprocess.run(
        [*shell, sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == ["status", "1", "status", "0"], done.stderr
    assert f"[Errno 28] No space left on device: '{place}" in done.stderr
    if case == "kernel":
        assert np.load(kept / "store" / "done.npy").all()
    else:
        assert training_result(kept) == trained[1]


# Folders that cannot be written
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/proc/nothing", "file"])
def test_an_output_folder_that_cannot_be_written_is_refused_before_computing(place, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / place
    for opening in (
        lambda: store.alone(out / "run").__enter__(),
        lambda: store.open_run("x", Empty(), out),
    ):
        with pytest.raises(ValueError, match=rf"output folder {out}/.* cannot be written .*--out"):
            opening()


@dataclasses.dataclass(frozen=True)
class Empty:
    """A configuration without fields."""


# Damaged files
# ----------------------------------------------------------------------------------------------------


def _flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _same(a, b) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() and a[k].shape == b[k].shape
        for k in a
    )


def _undetected(path, raw, load, same, changes) -> list:
    wrong = []
    for change in changes:
        path.write_bytes(change(raw))
        try:
            loaded = load(path)
        except store.Damaged as error:
            assert str(path) in str(error)
        else:
            wrong += [] if same(loaded) else [change(raw)]
    return wrong


SOME_AND_ALL = [13, pytest.param(1, marks=pytest.mark.slow)]
"""Every how many bits one is flipped."""


@pytest.mark.parametrize("step", SOME_AND_ALL)
@pytest.mark.parametrize("kind", ["arrays", "json"])
def test_no_flipped_bit_and_no_missing_end_of_a_stored_file_goes_unnoticed(kind, step, tmp_path):
    path = tmp_path / "cell"
    if kind == "arrays":
        store.save_arrays(path, ARRAYS)
        load, same = store.load_arrays, lambda loaded: _same(loaded, ARRAYS)
    else:
        store.write_json(path, VALUES)
        load, same = store.read_json, lambda loaded: loaded == VALUES
    raw = path.read_bytes()
    assert same(load(path))
    flips = [lambda raw, bit=bit: _flipped(raw, bit) for bit in range(0, 8 * len(raw), step)]
    ends = [lambda raw, n=n: raw[:n] for n in range(0, len(raw), step)]
    assert _undetected(path, raw, load, same, flips + ends) == []


@pytest.mark.parametrize(
    ("name", "value"), [("part", {"a": np.arange(3)}), ("part.json", {"a": [0, 1, 2]})]
)
def test_a_damaged_part_of_a_run_is_missing_and_said_so(name, value, tmp_path):
    parts = store.Store(tmp_path)
    assert parts.read(name) is None and not parts.has(name)
    assert list(parts.write(name, value)) == ["a"]
    path = parts.path(name)
    raw = path.read_bytes()
    path.write_bytes(_flipped(raw, 4 * len(raw)))
    with pytest.warns(UserWarning, match=f"{path} is damaged .*computed again now"):
        assert parts.read(name) is None
    parts.write(name, value)
    assert path.read_bytes() == raw
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(parts.read(name)) == ["a"]


def test_what_a_training_left_to_go_on_with_is_removed_when_its_result_is_written(tmp_path):
    parts = store.Store(tmp_path)
    parts.write("other", {"a": 1})
    parts.checkpoint("alpha=0.1,seed=0").write_text("half")
    parts.write("alpha=0.1,seed=0", {"a": 1})
    names = sorted(path.name for path in (tmp_path / "cells").iterdir())
    assert names == ["alpha-0.1_seed-0.npz", "other.npz"]


def test_json_written_without_a_checksum_is_read(tmp_path):
    (tmp_path / "old.json").write_text('{"a": 1}')
    assert store.read_json(tmp_path / "old.json") == {"a": 1}


def test_a_damaged_configuration_is_refused_by_name(tmp_path):
    folder = store.open_run("lazy_vs_standard", faults_worker.tiny_config(), tmp_path)
    raw = (folder / "config.json").read_bytes()
    for damaged in (raw[:-30], raw.replace(b'"seeds": 1', b'"seeds": 3')):
        (folder / "config.json").write_bytes(damaged)
        with pytest.raises(store.Damaged, match=r"config\.json is damaged"):
            store.open_run("lazy_vs_standard", faults_worker.tiny_config(), tmp_path)


def _state():
    params = {"w": jnp.arange(6.0).reshape(3, 2)}
    curve = ln.Trajectory(
        np.array([0, 3]), np.array([0.0, 0.3]), {"train_loss": np.array([1.0, 0.5])}, None, None
    )
    return ln.TrainState(3, 0.3, params, ln.sgd(0.9).init(params)), curve


def test_a_damaged_checkpoint_and_one_of_another_training_are_refused_by_name(tmp_path):
    path, (state, curve) = tmp_path / "checkpoint.npz", _state()
    store.save_checkpoint(path, state, curve)
    other = state._replace(params={"w": jnp.ones((4, 2))})
    with pytest.raises(ValueError, match=r"checkpoint\.npz is not a checkpoint of this training"):
        store.load_checkpoint(path, other)
    raw = path.read_bytes()
    for damaged in (
        raw[:-1],
        raw[: len(raw) // 2],
        b"",
        _flipped(raw, 8 * raw.index(state.params["w"].tobytes())),
    ):
        path.write_bytes(damaged)
        with pytest.raises(store.Damaged, match=r"checkpoint\.npz is damaged"):
            store.load_checkpoint(path, state)


def _kernel(folder, calls=None):
    every = tiles.tiles(5, 5, 2, symmetric=True)
    target = tiles.open_store(folder, {"k": (5, 5)}, np.float64, len(every), {"name": "test"})

    def compute(_, tile):
        (calls if calls is not None else []).append(tile)
        return {"k": np.add.outer(*map(np.asarray, tile)) ** 1.5}

    return np.array(tiles.assemble(compute, every, target, mirror={"k": (1, 0)})["k"])


@pytest.mark.parametrize("step", SOME_AND_ALL)
@pytest.mark.parametrize("name", ["k.npy", "done.npy", "manifest.json"])
def test_no_flipped_bit_in_a_store_of_tiles_changes_the_kernel(name, step, tmp_path):
    folder, expected = tmp_path / "store", _kernel(None)
    _kernel(folder)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    raw, refused, repaired = files[folder / name], 0, 0
    for bit in range(0, 8 * len(raw), step):
        for path, content in files.items():
            path.write_bytes(content)
        (folder / name).write_bytes(_flipped(raw, bit))
        computed = []
        try:
            values = _kernel(folder, computed)
        except ValueError as error:
            assert str(folder) in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(values, expected, err_msg=f"bit {bit} of {name}")
            repaired += bool(computed)
    assert refused > 2 and (repaired > 2) == (name != "manifest.json")


# Archives and pickles
# ---------------------------------------------------------------------------------------------


def _packed(files: dict[str, bytes], folder="data") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _announced(size: int) -> bytes:
    member = tarfile.TarInfo("data/x")
    member.size = size
    return gzip.compress(member.tobuf() + bytes(1024))


def _long_header(size: int) -> bytes:
    header = tarfile.TarInfo("data/x")
    header.type, header.size = tarfile.XHDTYPE, size
    return gzip.compress(header.tobuf() + bytes(size))


BOMBS = {
    "a member announced as a terabyte": lambda: _announced(2**40),
    "members that together are too large": lambda: _packed(
        {str(i): bytes(400_000) for i in range(3)}
    ),
    "too many members": lambda: _packed({str(i): b"" for i in range(1001)}),
    "a header that unpacks to too much": lambda: _long_header(2_000_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_archive_that_unpacks_to_too_much_is_refused_and_leaves_nothing(
    bomb, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "MAX_UNPACKED", 10**6)
    file = tmp_path / "bomb.part"
    file.write_bytes(BOMBS[bomb]())
    with pytest.raises(
        ValueError, match=r"no archive of data/ .it unpacks to more than 1000000 bytes"
    ):
        download.unpack(file, tmp_path, "data")
    assert not list(tmp_path.iterdir())


def test_the_archive_of_cifar10_stays_below_the_limits():
    assert datasets.CIFAR10_ARCHIVE.size + 2**27 < download.MAX_UNPACKED


def test_nothing_is_unpickled_but_by_the_reader_that_runs_no_code():
    files = [*(ROOT / "lazynet").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    found = {}
    for path in files:
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        for call in calls:
            name = ast.unparse(call.func)
            safe = any(
                k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in call.keywords
            )
            if "pickle." in name or (name.endswith(("np.load", "read_array")) and not safe):
                found[path.name] = name
    # What a foreign model is made again from is part of a pickle that its user has opened.
    assert found == dict.fromkeys(("linen.py", "pytrees.py"), "pickle.loads")
