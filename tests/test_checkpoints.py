"""Facts about sharded checkpoints: bit for bit, over devices and processes, and complete or absent."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lazynet as ln
from lazynet.checkpoints import load_sharded, save_sharded

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _state(step):
    params = {"w": jax.random.normal(jax.random.key(step), (8, 3)), "b": jnp.ones(3, jnp.float32)}
    return ln.TrainState(step, 0.1 * step, params, optax.adam(1.0).init(params))


def test_the_newest_state_comes_back_bit_for_bit(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    for step in (3, 10, 11):
        save_sharded(tmp_path / "run", _state(step))
    loaded = load_sharded(tmp_path / "run", _state(0))
    assert (loaded.step, loaded.time) == (11, 0.1 * 11)
    assert jax.tree.structure(loaded) == jax.tree.structure(_state(11))
    for a, b in zip(jax.tree.leaves(loaded[2:]), jax.tree.leaves(_state(11)[2:]), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.name.isdigit()) == ["10", "11"]


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
