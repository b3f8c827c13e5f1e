"""Facts about processes that are killed at random moments: what they computed is not lost, and the result is the same.

A kill counts if it ended the process; a process that was faster has its result compared, and
another is started.
"""

from __future__ import annotations

import hashlib
import io
import signal
import tarfile
import time
from pathlib import Path

import faults_processes
import faults_worker
import numpy as np
import pytest
from faults_processes import finish, start
from marks import extended
from served import serve

from experiments.harness import store
from experiments.harness.errors import RunError

DATA = "cifar-10-batches-bin"
FEW_AND_MANY = [3, pytest.param(20, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", autouse=True)
def _server():
    faults_processes.serve()


def _survives(kills, tmp_path, task, *arguments, result, prepare=Path.mkdir):
    """Kills a task as often as told, each time going on in the same folder until it ends, and compares the results."""
    folders = iter(tmp_path / str(i) for i in range(1000))

    def fresh():
        folder = next(folders)
        prepare(folder)
        return folder

    whole = fresh()
    seconds, expected = finish(task, whole, *arguments), result(whole)
    rng, done, folder = np.random.default_rng(kills), 0, fresh()
    for _ in range(10 * kills):
        process = start(task, folder, *arguments)
        process.join(rng.uniform(0, seconds))
        process.kill()
        process.join()
        done += process.exitcode == -signal.SIGKILL
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0
            assert result(folder) == expected
            folder = fresh()
        if done == kills:
            break
    assert done == kills, f"only {done} of {kills} processes were killed before they ended"
    finish(task, folder, *arguments)
    assert result(folder) == expected


def _digests(folder: Path, pattern: str) -> dict[str, str]:
    files = sorted(folder.glob(pattern))
    assert files
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def training_result(folder: Path):
    (path,) = folder.glob("*/measured.npz")
    assert not list(folder.rglob("*.partial"))
    arrays = {name: values.tobytes() for name, values in store.load_arrays(path).items()}
    return arrays, store.read_json(folder / "summary.json")


@pytest.mark.parametrize("kills", FEW_AND_MANY)
def test_a_training_killed_at_random_moments_ends_bit_identically(kills, tmp_path):
    _survives(kills, tmp_path, faults_worker.training, result=training_result)


def _files_of_the_run(folder: Path):
    """All files but the time in DONE; what killed processes were writing is not among them."""
    (run,) = folder.iterdir()
    store.read_json(run / "DONE")
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    made = {"cells/0.npz", "cells/1.npz", "measured.npz", "figures/a.png", "figures/b.png"}
    assert names == made | {
        "config.json",
        "env.json",
        "summary.json",
        "DONE",
    } and not store.damages(run)
    return {name: (run / name).read_bytes() for name in made} | {
        "summary": store.read_json(run / "summary.json")
    }


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_while_it_draws_loses_nothing_and_leaves_nothing(
    kills, tmp_path
):
    _survives(kills, tmp_path, faults_worker.drawn, result=_files_of_the_run)


@pytest.mark.slow
def test_an_experiment_killed_at_random_moments_ends_bit_identically(tmp_path):
    _survives(20, tmp_path, faults_worker.experiment, result=training_result)


@pytest.mark.parametrize("task", [faults_worker.tiles, extended(faults_worker.triangle)])
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_kernel_killed_at_random_moments_ends_bit_identically_and_leaves_its_store_only(
    kills, task, tmp_path
):
    def result(folder):
        assert [path.name for path in folder.iterdir()] == ["store"]
        return _digests(folder, "store/*")

    _survives(kills, tmp_path, task, result=result)


@pytest.fixture(scope="module")
def served():
    """A server of an archive with random images, its record, and its bytes."""
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            records = rng.integers(0, 256, (faults_worker.IMAGES, 3073), np.uint8)
            records[:, 0] %= 10
            member = tarfile.TarInfo(f"{DATA}/{name}.bin")
            member.size = records.size
            tar.addfile(member, io.BytesIO(records.tobytes()))
    body = buffer.getvalue()
    with serve(body) as (server, archive):
        yield server, archive, body


@pytest.mark.parametrize("kills", FEW_AND_MANY)
def test_a_download_killed_at_random_moments_is_continued(kills, tmp_path, served):
    server, archive, _ = served
    server.asked.clear()
    _survives(
        kills,
        tmp_path,
        faults_worker.download,
        archive,
        result=lambda folder: _digests(folder, f"{DATA}/*"),
    )
    assert [asked for asked in server.asked if asked], "no download was continued"


@pytest.mark.parametrize("kills", FEW_AND_MANY)
def test_an_unpacking_killed_at_random_moments_is_all_or_nothing(kills, tmp_path, served):
    server, archive, body = served
    server.asked.clear()

    def received(folder):
        folder.mkdir()
        (folder / f"{Path(archive.url).name}.part").write_bytes(body)

    def result(folder):
        assert {path.name for path in folder.iterdir()} <= {
            DATA,
            ".lock",
            f"{Path(archive.url).name}.part",
        }
        return _digests(folder, f"{DATA}/*")

    _survives(kills, tmp_path, faults_worker.download, archive, result=result, prepare=received)
    assert not server.asked, "what had been received was asked for again"


def test_a_run_folder_admits_one_process_and_a_killed_one_leaves_it_free(tmp_path):
    folder = tmp_path / "run"
    process = start(faults_worker.hold, folder)
    deadline = time.monotonic() + 120
    while not (folder / "computing").exists():
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    with pytest.raises(
        RunError, match=f"computed by another process .locked by process {process.pid}.*--out"
    ):
        with store.alone(folder):
            raise AssertionError("two processes in one run folder")
    process.kill()
    process.join()
    with store.alone(folder):
        assert (folder / ".lock").read_text() not in ("", str(process.pid))
    assert not (folder / ".lock").exists()


def test_of_two_downloads_at_once_one_fetches_and_the_other_waits(tmp_path, served):
    server, archive, body = served
    server.asked.clear()
    both = [start(faults_worker.download, tmp_path, archive) for _ in range(2)]
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(server.asked) == 1 and [path.name for path in tmp_path.iterdir()] == [DATA]
