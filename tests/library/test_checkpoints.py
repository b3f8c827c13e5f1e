"""Facts about checkpoints: in one file or sharded, bit for bit, over devices and processes, complete or absent."""

from __future__ import annotations

import functools
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lazynet as ln
from lazynet import checkpoints, files
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


# In one file
# --------------------------------------------------------------------------------------------------


def _training(**settings):
    """Twelve steps of a small lazy function with batches."""
    x = jnp.linspace(0, 1, 8, dtype=jnp.float32)[:, None]
    data = ln.Data(x, jnp.sin(3 * x))
    function = ln.lazy(lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"], START, 2.0)
    return ln.train(
        ln.objective(function, ln.mse),
        None,
        data,
        ln.sgd(0.9),
        key=jax.random.key(0),
        save_at=[0, 5, 12],
        learning_rate=0.1,
        batch_size=3,
        **settings,
    )


START = {"a": np.full((1, 4), 0.5, np.float32), "b": np.full((4, 1), 0.25, np.float32)}


def _same_curves(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert a.metrics.keys() == b.metrics.keys() and a.diverged_at == b.diverged_at


def test_a_training_goes_on_from_a_file_bit_for_bit_and_has_its_history(tmp_path):
    path = tmp_path / "state.npz"

    def until_the_second_record(state, curve):
        checkpoints.save(path, state, curve)
        if state.step == 5:
            raise KeyboardInterrupt

    whole = _training()
    with pytest.raises(KeyboardInterrupt):
        _training(on_save=until_the_second_record)
    zeros = jax.tree.map(jnp.zeros_like, START)
    example = ln.TrainState(0, 0.0, zeros, ln.sgd(0.9).init(zeros))
    state, curve = checkpoints.load(path, example)
    assert (state.step, curve.step.tolist()) == (5, [0, 5])
    _same_curves(_training(resume=(state, curve)), whole)


def test_a_curve_comes_back_with_its_parameters_or_without(tmp_path):
    whole = _training()
    checkpoints.save_curve(tmp_path / "curve.npz", whole)
    _same_curves(checkpoints.load_curve(tmp_path / "curve.npz", START), whole)
    _same_curves(checkpoints.load_curve(tmp_path / "curve.npz"), whole._replace(params=None))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "bool"])
def test_arrays_of_every_type_come_back(dtype, tmp_path):
    curve = _training()._replace(params=jnp.arange(3).astype(dtype))
    checkpoints.save_curve(tmp_path / "curve.npz", curve)
    loaded = checkpoints.load_curve(tmp_path / "curve.npz", jnp.zeros(3, dtype)).params
    assert loaded.dtype == dtype
    np.testing.assert_array_equal(loaded, curve.params)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"a": START["a"]}, "it has 2 arrays, expected 1"),
        ({"a": START["b"], "b": START["a"]}, r"shape \(1, 4\).*expected \(4, 1\)"),
        (
            jax.tree.map(functools.partial(np.asarray, dtype=np.float16), START),
            "type float32, expected.*float16",
        ),
    ],
)
def test_a_file_of_another_training_is_refused(params, words, tmp_path):
    checkpoints.save_curve(tmp_path / "curve.npz", _training())
    with pytest.raises(ValueError, match=f"is not a checkpoint of this training.*{words}"):
        checkpoints.load_curve(tmp_path / "curve.npz", params)


def test_no_flipped_bit_and_no_missing_end_of_a_file_goes_unnoticed(tmp_path):
    path = tmp_path / "curve.npz"
    checkpoints.save_curve(path, _training())
    raw = path.read_bytes()
    for damaged in (_flipped(raw, 8 * 200), raw[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(files.Damaged, match=r"curve\.npz is damaged"):
            checkpoints.load_curve(path, START)


def test_a_file_that_is_no_curve_is_named(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(1))
    with pytest.raises(ValueError, match=r"other\.npz holds a, expected what save"):
        checkpoints.load_curve(tmp_path / "other.npz")
