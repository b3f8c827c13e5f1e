"""Empirical kernels within a memory budget, in stores that survive a kill, and over several devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial, normal
from marks import extended

import lazynet as ln
from lazynet import programs
from lazynet.kernels.empirical import contraction, empirical_ntk, rows
from lazynet.kernels.empirical.jacobians import chosen_names
from lazynet.kernels.empirical.memory import peak_bytes, plan
from lazynet.tiles import tiles
from lazynet.trees import as_partial

ROOT = Path(__file__).resolve().parents[2]
MODEL = ln.serial(ln.Dense(40), ln.Erf(), ln.Dense(40), ln.Erf(), ln.Dense(2))
X = np.asarray(normal(0, 7, 12))
PARAMS = initial(1, MODEL, jnp.asarray(X))
NAMES = chosen_names(PARAMS, None)
JACOBIAN = 2 * 8 * sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
"""Bytes of the derivatives of one example."""


def general(params, x):
    """The same function, of whose layers nothing is known."""
    return MODEL.apply(params, x)


@pytest.mark.parametrize("memory", [extended(10 * JACOBIAN), 4 * JACOBIAN, extended(3 * JACOBIAN)])
@pytest.mark.extended
def test_arrays_held_stay_within_the_budget(memory, monkeypatch):
    held, original = [], rows.contract

    def watched(*arguments):
        block = original(*arguments)
        held.append(sum(a.nbytes for a in jax.live_arrays()) - before)
        return block

    expected = empirical_ntk(MODEL.apply, PARAMS, X)
    before = sum(a.nbytes for a in jax.live_arrays())
    monkeypatch.setattr(rows, "contract", watched)
    ntk = empirical_ntk(general, PARAMS, X, memory=memory)
    chosen = plan(as_partial(general), PARAMS, X, NAMES, "full", memory, None)
    needed = max(
        peak_bytes(as_partial(general), PARAMS, jnp.asarray(X[: chosen.tile]), g, "full")
        for g in chosen.groups
    )
    assert needed <= memory and max(held) <= memory + 2 * ntk.nbytes + X.nbytes
    np.testing.assert_allclose(ntk, expected, atol=1e-12)


def test_parameters_are_taken_in_groups_where_one_example_is_too_much():
    chosen = plan(as_partial(general), PARAMS, X, NAMES, "full", 3 * JACOBIAN, None)
    assert chosen.tile == 1 and sorted(name for group in chosen.groups for name in group) == sorted(
        NAMES
    )
    assert len(chosen.groups) > 1


@pytest.mark.extended
def test_a_jacobian_is_computed_once_per_row_of_tiles_and_group(monkeypatch):
    seen, original = [], rows.features

    def counted(function, params, x, names, outputs):
        seen.append((float(x[0, 0]), names))
        return original(function, params, x, names, outputs)

    monkeypatch.setattr(rows, "features", counted)
    empirical_ntk(general, PARAMS, X, X[:3], memory=3 * JACOBIAN)
    groups = len({names for _, names in seen})
    assert groups > 1 and len(seen) == groups * 7 * (1 + 3)


def test_a_smaller_budget_gives_a_smaller_tile_of_a_layerwise_kernel():
    function = as_partial(MODEL.apply)
    needed = peak_bytes(function, PARAMS, jnp.asarray(X), NAMES, "full")
    chosen = plan(function, PARAMS, X, NAMES, "full", needed // 2, None)
    assert chosen.tile < 7 and len(chosen.groups) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"memory": JACOBIAN // 2},
            r"1 example\(s\) and one parameter at a time need .*'2_Dense/W'.*allow more",
        ),
        ({"memory": 3 * JACOBIAN, "tile": 7}, "pass a smaller tile"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_parameter_and_the_ways_out(options, message):
    with pytest.raises(ValueError, match=message):
        empirical_ntk(general, PARAMS, X, **options)


@pytest.mark.parametrize("outputs", ["full", *map(extended, ("trace", "sum", "diagonal"))])
@pytest.mark.parametrize("x2", [None, extended(X[:5] + 1)])
@pytest.mark.extended
def test_a_stored_kernel_is_the_kernel_and_is_read_again(outputs, x2, tmp_path, monkeypatch):
    store = tmp_path / "store"
    ntk = empirical_ntk(MODEL.apply, PARAMS, X, x2, outputs=outputs, tile=3, store=store)
    np.testing.assert_allclose(
        ntk, empirical_ntk(MODEL.apply, PARAMS, X, x2, outputs=outputs), atol=1e-13
    )
    monkeypatch.setattr(rows, "row", None)
    np.testing.assert_array_equal(
        empirical_ntk(
            MODEL.apply, PARAMS, X, x2, outputs=outputs, tile=3, store=store, progress=True
        ),
        ntk,
    )


def test_only_the_upper_triangle_is_computed(tmp_path, monkeypatch):
    blocks, original = [], rows.contract
    monkeypatch.setattr(
        rows, "contract", lambda *arguments: blocks.append(1) or original(*arguments)
    )
    empirical_ntk(MODEL.apply, PARAMS, X, tile=2, store=tmp_path / "store")
    assert len(blocks) == 4 + 3 + 2 + 1


@pytest.mark.extended
def test_rows_of_a_store_are_cut_where_they_exceed_the_memory(tmp_path):
    memory = peak_bytes(as_partial(MODEL.apply), PARAMS, jnp.asarray(X[:1]), NAMES, "full") + 8
    strips = tiles(7, 7, 1, width=2, symmetric=True)
    assert max(len(columns) for _, columns in strips) == 2
    covered = np.zeros((7, 7))
    for one, two in strips:
        covered[np.ix_(one, two)] += 1
    np.testing.assert_array_equal(np.triu(covered), np.triu(np.ones((7, 7))))
    ntk = empirical_ntk(MODEL.apply, PARAMS, X, memory=memory, store=tmp_path / "store")
    np.testing.assert_allclose(ntk, empirical_ntk(MODEL.apply, PARAMS, X), atol=1e-13)


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        ({"params": jax.tree.map(lambda w: w + 1, PARAMS)}, "params"),
        ({"outputs": "diagonal"}, "outputs"),
        ({"x1": X + 1}, "x1"),
        ({"tile": 2}, "tile"),
    ],
)
def test_a_store_of_another_kernel_is_refused_by_the_entry_that_differs(change, entry, tmp_path):
    given = {"params": PARAMS, "x1": X, "tile": 3, "outputs": "full"}
    empirical_ntk(MODEL.apply, **given, store=tmp_path / "store")
    with pytest.raises(ValueError, match=f"belongs to another kernel: {entry} differ"):
        empirical_ntk(MODEL.apply, **given | change, store=tmp_path / "store")


def plain(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def stopped(params, x):
    return plain({**params, "w": jax.lax.stop_gradient(params["w"])}, x)


doubled = jax.custom_jvp(plain)
doubled.defjvp(
    lambda primals, tangents: (plain(*primals), 2 * jax.jvp(plain, primals, tangents)[1])
)


def shifted(shift):
    shift = jnp.asarray(shift)
    return lambda params, x: plain(params, x + shift)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (plain, stopped),
        (plain, doubled),
        extended(shifted(np.zeros((1, 12))), shifted(np.ones((1, 12)))),
    ],
)
def test_a_store_does_not_answer_for_a_function_with_other_derivatives_or_constants(
    first, second, tmp_path
):
    params = {"w": normal(2, 12, 4), "v": normal(3, 4, 2)}
    empirical_ntk(first, params, X, store=tmp_path / "store")
    with pytest.raises(ValueError, match="belongs to another kernel: network differ"):
        empirical_ntk(second, params, X, store=tmp_path / "store")


@pytest.mark.extended
def test_a_store_does_not_answer_for_a_network_with_a_frozen_layer(tmp_path):
    frozen = ln.serial(ln.freeze(ln.Dense(40)), ln.Erf(), ln.Dense(40), ln.Erf(), ln.Dense(2))
    empirical_ntk(MODEL.apply, PARAMS, X, store=tmp_path / "store")
    with pytest.raises(ValueError, match="belongs to another kernel: network differ"):
        empirical_ntk(frozen.apply, PARAMS, X, store=tmp_path / "store")


def test_arrays_that_a_program_holds_are_found_at_any_depth():
    inner = jnp.arange(3.0)
    program = jax.make_jaxpr(
        lambda x: jax.jit(lambda x: jax.lax.scan(lambda c, _: (c * inner, None), x, None, 2))(x)
    )
    found = [np.asarray(value) for value in programs.closed_over(program(inner)) if np.ndim(value)]
    assert any(np.array_equal(value, inner) for value in found)


def test_a_store_inside_a_transformation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="store inside a jax transformation"):
        jax.jit(lambda x: empirical_ntk(MODEL.apply, PARAMS, x, store=tmp_path / "store"))(X)


SCRIPT = """
import os, signal, sys
import jax
jax.config.update("jax_enable_x64", True)
sys.path[:0] = [{root!r}, {tests!r}, {support!r}]
import numpy as np
from lazynet.kernels.empirical import empirical_ntk, rows
from test_empirical_memory import MODEL, PARAMS, X
assert len(jax.local_devices()) == 4
np.save({whole!r}, empirical_ntk(MODEL.apply, PARAMS, X, tile=2))
calls, original = [], rows.concatenated
def killed(*arguments):
    calls.append(1)
    return os.kill(os.getpid(), signal.SIGKILL) if len(calls) > 6 else original(*arguments)
rows.concatenated = killed
empirical_ntk(MODEL.apply, PARAMS, X, tile=1, store={store!r})
"""


@pytest.mark.extended
def test_a_killed_run_on_four_devices_is_continued_on_one(tmp_path, monkeypatch):
    whole, store = str(tmp_path / "whole.npy"), str(tmp_path / "store")
    script = SCRIPT.format(
        root=str(ROOT),
        tests=str(ROOT / "tests" / "library"),
        support=str(ROOT / "tests" / "support"),
        whole=whole,
        store=store,
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | flags, capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr
    expected = empirical_ntk(MODEL.apply, PARAMS, X)
    np.testing.assert_allclose(np.load(whole), expected, atol=1e-12)
    finished = np.count_nonzero(np.load(Path(store) / "done.npy"))
    computed, original = [], rows.concatenated
    monkeypatch.setattr(
        rows, "concatenated", lambda *arguments: computed.append(1) or original(*arguments)
    )
    ntk = empirical_ntk(MODEL.apply, PARAMS, X, tile=1, store=store)
    assert 1 <= finished <= 6 and len(computed) == 7 - finished
    np.testing.assert_allclose(ntk, expected, atol=1e-12)


def test_features_of_one_example_are_those_of_many():
    function = as_partial(MODEL.apply)
    every = contraction.features(function, PARAMS, jnp.asarray(X), NAMES, "full")
    one = contraction.features(function, PARAMS, jnp.asarray(X[2:3]), NAMES, "full")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[2:3], b, atol=1e-13), every, one)
