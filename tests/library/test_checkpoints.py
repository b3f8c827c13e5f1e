"""Facts about sharded checkpoints: bit for bit, over devices and processes, and complete or absent."""

from __future__ import annotations

import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lazynet as ln
from lazynet import checkpoints
from lazynet.training.checkpoints import load_sharded, save_sharded

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _state(step):
    params = {"w": jax.random.normal(jax.random.key(step), (80, 3)), "b": jnp.ones(3, jnp.float32)}
    return ln.TrainState(step, 0.1 * step, params, optax.adam(1.0).init(params))


def _assert_same(loaded, step):
    expected = _state(step)
    assert (loaded.step, loaded.time) == (step, 0.1 * step)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(loaded[2:]), jax.tree.leaves(expected[2:]), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_the_newest_state_comes_back_bit_for_bit(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    for step in (3, 10, 11):
        save_sharded(tmp_path / "run", _state(step))
    _assert_same(load_sharded(tmp_path / "run", _state(0)), 11)
    assert _steps(tmp_path / "run") == [10, 11]


def test_no_flipped_bit_no_missing_end_and_no_missing_file_goes_unnoticed(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    for step in (3, 10):
        save_sharded(tmp_path, _state(step))
    said = "damaged, cut off or missing: delete '{}' to go on from step 3, the one before"
    files = [path for path in (tmp_path / "10").rglob("*") if path.is_file()]
    assert len(files) > 10 and max(path.stat().st_size for path in files) > 80 * 3 * 4
    for path in files:
        raw = path.read_bytes()
        flipped = [_flipped(raw, bit) for bit in (0, 4 * len(raw) + 3, 8 * len(raw) - 1)]
        for damaged in [*flipped, raw[:-1], b""]:
            path.write_bytes(damaged)
            with pytest.raises(
                ValueError, match=re.escape(f"'{path}' is {said.format(tmp_path / '10')}")
            ):
                load_sharded(tmp_path, _state(0))
        if path.name != checkpoints.DIGESTS:
            path.unlink()
            with pytest.raises(
                ValueError, match=re.escape(f"'{path}' is {said.format(tmp_path / '10')}")
            ):
                load_sharded(tmp_path, _state(0))
        path.write_bytes(raw)
    _assert_same(load_sharded(tmp_path, _state(0)), 10)


def test_after_a_damaged_checkpoint_is_deleted_training_goes_on_from_the_one_before(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    for step in (3, 10):
        save_sharded(tmp_path, _state(step))
    shutil.rmtree(tmp_path / "10")
    _assert_same(load_sharded(tmp_path, _state(0)), 3)
    (tmp_path / "3" / "progress" / "metadata").write_text("{}")
    with pytest.raises(ValueError, match="to start training without one"):
        load_sharded(tmp_path, _state(0))


def test_a_step_whose_writer_was_stopped_before_the_digests_is_not_complete(tmp_path, monkeypatch):
    pytest.importorskip("orbax.checkpoint")
    save_sharded(tmp_path, _state(3), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", _stop)
        with pytest.raises(KeyboardInterrupt):
            save_sharded(tmp_path, _state(10), keep=1)
    assert (
        _steps(tmp_path) == [3, 10]
        and (tmp_path / "10" / f"{checkpoints.DIGESTS}.partial").exists()
    )
    _assert_same(load_sharded(tmp_path, _state(0)), 3)
    save_sharded(tmp_path, _state(7), keep=1)
    assert _steps(tmp_path) == [7]
    _assert_same(load_sharded(tmp_path, _state(0)), 7)


def _stop(_, path):
    raise KeyboardInterrupt(path)


def _flipped(raw, bit):
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_steps_to_keep_are_refused(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    with pytest.raises(ValueError, match="keep is 0, expected at least 1"):
        save_sharded(tmp_path, _state(3), keep=0)


def test_a_folder_with_later_steps_is_refused(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    save_sharded(tmp_path, _state(5))
    with pytest.raises(ValueError, match="holds step 5, expected earlier steps than 5"):
        save_sharded(tmp_path, _state(5))


def test_without_a_complete_checkpoint_the_error_says_so(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_sharded(tmp_path / "none", _state(0))
    with pytest.raises(FileNotFoundError, match="holds no complete checkpoint"):
        load_sharded(tmp_path, _state(0))


def test_without_orbax_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'lazynet-jax\[orbax\]'"):
        save_sharded(tmp_path, _state(0))
