"""Facts about compiled programs: equal functions share one, whatever built them, and few are kept."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import lazynet as ln
from lazynet import programs
from lazynet.programs import PerFunction, fingerprint, program
from lazynet.training import loop, step

ROOT = Path(__file__).resolve().parents[2]
X = np.arange(3.0)


def _apply(function, *args):
    return function(*args)


def _power(n):
    return lambda x: x**n


def _compiled(function, *args):
    return program(_apply, function, *args).compiled


def test_functions_that_were_built_again_share_a_program_and_others_do_not():
    assert _compiled(_power(2), X) is _compiled(_power(2), X)
    assert _compiled(_power(2), X) is not _compiled(_power(3), X)
    assert _compiled(_power(2), X) is not _compiled(_power(2), X[:2])
    assert _compiled(_power(2), X) is not _compiled(_power(2), X.astype(np.float32))


def _shifted(n):
    shift = jnp.arange(40.0) + n
    return lambda x: x + shift[:3]


def test_functions_that_close_over_other_arrays_have_other_programs():
    assert _compiled(_shifted(0), X) is _compiled(_shifted(0), X) is not _compiled(_shifted(1), X)
    np.testing.assert_array_equal(program(_apply, _shifted(1), X)(X), X + np.arange(3.0) + 1)


def test_trees_come_and_go_whatever_equal_program_is_found():
    def function(static, tree, f):
        return {"sum": tree["a"] + f(tree["b"]), "f": f}

    for _ in range(2):
        tree, f = (
            {"a": X, "b": 2 * X},
            Partial(
                _power(2),
            ),
        )
        result = program(function, None, tree, f)(tree, f)
        np.testing.assert_allclose(result["sum"], X + 4 * X**2)
        assert result["f"].func is f.func


def test_only_the_arguments_that_were_named_are_consumed():
    trees = [{"a": jnp.ones(3), "b": jnp.ones(3)} for _ in range(2)]

    def add(static, one, two):
        return jax.tree.map(jnp.add, one, two)

    program(add, None, *trees, donate=(1,))(*trees)
    assert all(leaf.is_deleted() for leaf in trees[1].values())
    assert not any(leaf.is_deleted() for leaf in trees[0].values())


def _with_slope(slope):
    @jax.custom_jvp
    def function(x):
        return x

    function.defjvp(lambda primals, tangents: (primals[0], slope * tangents[0]))
    return function


def test_equal_programs_with_other_derivatives_are_told_apart_where_derivatives_are_taken():
    def value(x, function):
        return program(_apply, function, x)(x)

    for slope in (2.0, 3.0):
        function = _with_slope(slope)
        assert float(value(1.0, function)) == 1.0
        assert float(jax.grad(value)(1.0, function)) == slope
        assert float(jax.jit(jax.grad(value), static_argnums=1)(1.0, function)) == slope


def _called_back(value):
    return lambda x: jax.pure_callback(
        lambda x: np.full_like(x, value), jax.ShapeDtypeStruct((3,), X.dtype), x
    )


def test_functions_that_call_python_share_nothing():
    for value in range(4):
        np.testing.assert_array_equal(program(_apply, _called_back(value), X)(X), value)


def test_functions_that_call_python_have_no_name_in_a_store():
    with pytest.raises(ValueError, match="calls back to Python"):
        fingerprint(jax.jit(_called_back(0)).trace(X))


def test_programs_with_large_arrays_are_not_compared(monkeypatch):
    monkeypatch.setattr(programs, "COMPARED", 100)
    assert _compiled(_shifted(7), X) is not _compiled(_shifted(7), X)


def test_a_bounded_number_of_programs_stays_and_the_last_one_is_found(monkeypatch):
    monkeypatch.setattr(programs, "KEPT", 3)
    alive = [_compiled(_power(n), X) for n in range(10, 13)]
    names = [fingerprint(jax.jit(_power(n)).trace(X)) for n in range(10, 13)]
    assert len(set(names)) == 3
    assert _compiled(_power(12), X) is alive[2]
    gone = [weakref.ref(one) for one in alive]
    del alive
    for n in range(20, 24):
        _compiled(_power(n), X)
    gc.collect()
    assert [one() for one in gone] == [None] * 3 and len(programs._kept.programs) == 3


def test_threads_get_one_program():
    found, start = [], threading.Barrier(4)

    def look():
        start.wait()
        found.append((_compiled(_power(5), X), np.asarray(program(_apply, _power(5), X)(X))))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(compiled) for compiled, _ in found}) == 1
    assert all((values == X**5).all() for _, values in found)


def test_what_was_compiled_for_the_last_functions_stays(monkeypatch):
    monkeypatch.setattr(programs, "LAST", 2)
    mapped = PerFunction(
        lambda function, scale, x: scale(function(x)), by=(0, 1), static_argnums=(1,)
    )
    functions, scales = [Partial(_power(n)) for n in (2, 3)], [abs, jnp.negative]
    found = [mapped.of(function, scale, X) for function in functions for scale in scales]
    assert len(set(found)) == 4 and mapped.of(functions[1], scales[1], X) is found[3]
    for function, power in zip(functions, (2, 3), strict=True):
        np.testing.assert_array_equal(mapped(function, abs, X), X**power)
    held = [weakref.ref(one) for one in found]
    del found
    gc.collect()
    assert sum(one() is not None for one in held) <= 2


def _executables():
    gc.collect()
    return len(jax.devices()[0].client.live_executables())


@pytest.mark.extended
def test_a_training_with_a_rebuilt_optimizer_and_loss_keeps_the_last_steps_only(monkeypatch):
    monkeypatch.setattr(programs, "LAST", 3)
    compiled_step = functools.lru_cache(3)(step._compiled_step.__wrapped__)
    monkeypatch.setattr(step, "_compiled_step", compiled_step)
    data = ln.Data(jnp.eye(2), jnp.ones((2, 1)))
    alive = []
    for rate in np.linspace(0.1, 0.5, 7):
        goal = ln.objective(lambda w, x: x @ w, ln.mse)
        curve = ln.train(
            goal, jnp.zeros((2, 1)), data, optax.sgd(rate), key=jax.random.key(0), save_at=[1]
        )
        np.testing.assert_allclose(curve.params, np.full((2, 1), rate / 2), rtol=1e-12)
        alive.append(_executables())
    assert compiled_step.cache_info().currsize == len(loop._loss_and_accuracy._compiled) == 3
    assert alive[3:] == alive[3:4] * 4


@pytest.mark.extended
def test_shapes_of_a_function_that_is_gone_hold_nothing_that_was_compiled(monkeypatch):
    monkeypatch.setattr(programs, "LAST", 1)
    squared = PerFunction(lambda function, x: function(x))
    alive = []
    for _ in range(4):
        function = Partial(_power(2))
        assert squared.eval_shape(function, X).shape == squared(function, X).shape == (3,)
        alive.append(_executables())
    assert alive[1:] == alive[1:2] * 3


GROWTH = """
import gc, sys, jax, optax, numpy as np
import lazynet as ln
x = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
def network(i):
    return ln.serial(ln.Dense(4, 1.1 + i * float(sys.argv[1]), 0.1), ln.Relu(), ln.Dense(2))
def analytic(model):
    ln.analytic_kernel(model, x)
def training(model):
    params, data = model.init(jax.random.key(0), x), ln.Data(x, x[:, :2])
    goal = ln.objective(lambda params, x: model.apply(params, x), ln.mse)
    ln.train(goal, params, data, optax.sgd(0.1), key=jax.random.key(0), save_at=[1])
def empirical(model):
    ln.empirical_ntk(model.apply, model.init(jax.random.key(0), x), x[:4], outputs="trace")
call = globals()[sys.argv[3]]
def held():
    gc.collect()
    with open("/proc/self/maps") as maps, open("/proc/self/statm") as pages:
        return len(maps.readlines()), int(pages.read().split()[1]) * 4096
import lazynet.programs
lazynet.programs.KEPT = lazynet.programs.LAST = 4
for i in range(30):
    call(network(i))
before = held()
for i in range(30, 30 + int(sys.argv[2])):
    call(network(i))
print(*(after - earlier for earlier, after in zip(before, held())))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="counts memory maps by what Linux tells"
)
@pytest.mark.parametrize(
    ("difference", "models", "what"),
    [
        ("0", 600, "analytic"),
        ("1e-3", 300, "analytic"),
        ("0", 60, "empirical"),
        ("0", 60, "training"),
    ],
)
def test_networks_built_in_a_loop_leave_memory_maps_and_memory_flat(difference, models, what):
    command = [sys.executable, "-c", GROWTH, difference, str(models), what]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=1200
    )
    maps, memory = map(int, done.stdout.split())
    assert maps / models < 0.5 and memory / models < 200_000


def test_a_network_that_was_built_again_is_not_compiled_again(caplog):
    def kernel():
        return ln.analytic_kernel(ln.serial(ln.Dense(3, 1.17), ln.Relu(), ln.Dense(1)), X[None]).ntk

    first = kernel()
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        np.testing.assert_array_equal(kernel(), first)
    assert not [r for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
