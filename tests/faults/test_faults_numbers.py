"""Facts about NaN, infinity and too little memory: an error names the array and how many, or the tile that fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial

import lazynet as ln
from lazynet import datasets, dynamics, empirical, kernels, predict, tiles
from lazynet.records import Data, Gram

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 3)), np.ones((5, 2))
MODEL = ln.serial(ln.Dense(4), ln.Relu(), ln.Dense(2))
PARAMS = initial(1, MODEL, jnp.asarray(X))
KERNEL = np.array(kernels.analytic_kernel(MODEL, X).ntk)
CROSS = KERNEL[:2]
KEY = jax.random.key(0)
GOAL = ln.objective(MODEL.apply, ln.mse)


def _bad(array, value, count):
    """A copy with as many bad values, the first of them in the second row."""
    changed = np.array(array)
    changed[1].flat[:count] = value
    return changed


def _data(x=X, y=Y):
    return Data(jnp.asarray(x), jnp.asarray(y))


def _train(data=None, params=PARAMS, **options):
    settings = dict(key=jax.random.key(0), save_at=[0, 1], learning_rate=0.1) | options
    return ln.train(GOAL, params, data or _data(), ln.sgd(), **settings)


def _params(bad):
    return PARAMS | {"0_Dense": PARAMS["0_Dense"] | {"W": jnp.asarray(bad(PARAMS["0_Dense"]["W"]))}}


def _lazy(bad):
    goal = ln.objective(ln.lazy(MODEL.apply, _params(bad), 2.0), ln.mse)
    return ln.train(
        goal, None, _data(), ln.sgd(), key=jax.random.key(0), save_at=[0], learning_rate=0.1
    )


TEST, CURVE = Data(X[:2], Y[:2]), dict(time=[0.0, 1.0])
CASES = {
    "analytic_kernel, x1": ("x1", lambda bad: kernels.analytic_kernel(MODEL, bad(X))),
    "analytic_kernel, x2": ("x2", lambda bad: kernels.analytic_kernel(MODEL, X, bad(X))),
    "analytic_kernel, stored": ("x1", lambda bad: kernels.analytic_kernel(MODEL, bad(X), tile=2)),
    "monte_carlo_kernel": (
        "x1",
        lambda bad: kernels.monte_carlo_kernel(MODEL, KEY, jnp.asarray(bad(X)), n_samples=2),
    ),
    "empirical_ntk, x1": (
        "x1",
        lambda bad: empirical.empirical_ntk(MODEL.apply, PARAMS, jnp.asarray(bad(X))),
    ),
    "empirical_ntk, x2": (
        "x2",
        lambda bad: empirical.empirical_ntk(MODEL.apply, PARAMS, X, jnp.asarray(bad(X))),
    ),
    "empirical_nngp": (
        "x1",
        lambda bad: empirical.empirical_nngp(MODEL.apply, PARAMS, jnp.asarray(bad(X))),
    ),
    "kernel_regression, y": (
        "y",
        lambda bad: dynamics.kernel_regression(KERNEL, Data(X, bad(Y)), cross=CROSS),
    ),
    "kernel_regression, cross": (
        "cross",
        lambda bad: dynamics.kernel_regression(KERNEL, _data(), cross=bad(CROSS)),
    ),
    "gradient_flow, y": ("y", lambda bad: dynamics.gradient_flow(KERNEL, Data(X, bad(Y)), **CURVE)),
    "gradient_flow, f0": (
        "f0",
        lambda bad: dynamics.gradient_flow(KERNEL, _data(), f0=bad(Y), **CURVE),
    ),
    "gradient_flow, cross": (
        "cross",
        lambda bad: dynamics.gradient_flow(KERNEL, _data(), cross=bad(CROSS), test=TEST, **CURVE),
    ),
    "gradient_flow, test": (
        r"test\.y",
        lambda bad: dynamics.gradient_flow(
            KERNEL, _data(), cross=CROSS, test=Data(X[:2], bad(Y[:2])), **CURVE
        ),
    ),
    "nngp_posterior, cross": (
        "cross",
        lambda bad: dynamics.nngp_posterior(
            KERNEL, _data(), cross=bad(CROSS), prior=KERNEL[:2, :2]
        ),
    ),
    "nngp_posterior, prior": (
        "prior",
        lambda bad: dynamics.nngp_posterior(
            KERNEL, _data(), cross=CROSS, prior=bad(KERNEL[:2, :2])
        ),
    ),
    "trained_ensemble": (
        r"cross\.nngp",
        lambda bad: dynamics.trained_ensemble(
            Gram(KERNEL, KERNEL),
            _data(),
            time=[1.0],
            cross=Gram(bad(CROSS), CROSS),
            prior=KERNEL[:2, :2],
        ),
    ),
    "conjugate_gradient_regression": (
        "cross",
        lambda bad: dynamics.conjugate_gradient_regression(
            KERNEL, _data(), cross=bad(CROSS), ridge=1.0
        ),
    ),
    "predict": ("y", lambda bad: predict.gradient_descent_mse(KERNEL, bad(Y))(1.0)),
    "train, x": (r"data\.x", lambda bad: _train(_data(bad(X)))),
    "train, y": (r"data\.y", lambda bad: _train(_data(y=bad(Y)))),
    "train, test": (r"test\.x", lambda bad: _train(test=_data(bad(X)))),
    "train, params": (r"params\['0_Dense'\]\['W'\]", lambda bad: _train(params=_params(bad))),
    "train, params0": (r"params0\['0_Dense'\]\['W'\]", _lazy),
    "standardize": ("x", lambda bad: datasets.standardize(Data(bad(X), Y))),
    "zca": ("x", lambda bad: datasets.zca(Data(X, Y), Data(bad(X), Y))),
}


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "2 NaN and 0 infinite"), (-np.inf, "0 NaN and 2 infinite")]
)
@pytest.mark.parametrize("case", CASES)
def test_values_that_are_not_finite_are_counted_and_their_array_is_named(case, value, words):
    name, call = CASES[case]
    with pytest.raises(
        ValueError, match=rf"^{name} has {words} of \d+ values, first at \[1, 0\]: \w+"
    ):
        call(lambda array: _bad(array, value, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "call",
    [
        lambda kernel: dynamics.kernel_regression(kernel, _data(), cross=CROSS),
        lambda kernel: dynamics.kernel_regression(
            kernel, _data(), cross=CROSS, ridge=np.array([0.0, 1.0])
        ),
        lambda kernel: dynamics.leave_one_out(kernel, _data(), ridge=1.0),
        lambda kernel: dynamics.conjugate_gradient_regression(
            kernel, _data(), cross=CROSS, ridge=1.0
        ),
        lambda kernel: dynamics.gradient_flow(kernel, _data(), **CURVE),
        lambda kernel: dynamics.gradient_descent(
            kernel, _data(), learning_rate=0.1, save_at=[0, 1]
        ),
        lambda kernel: dynamics.max_learning_rate(kernel),
        lambda kernel: ln.diagnostics.kernel_spectrum(kernel),
    ],
    ids=[
        "regression",
        "ridges",
        "leave one out",
        "conjugate gradient",
        "flow",
        "descent",
        "rate",
        "spectrum",
    ],
)
def test_a_training_kernel_that_is_not_finite_is_refused_with_the_number_of_entries(call, value):
    kernel = np.array(KERNEL)
    kernel[0, 3] = kernel[3, 0] = value
    with pytest.raises(
        ValueError, match="has 2 entries that are not finite.*check the inputs of the kernel"
    ):
        call(kernel)


def test_values_are_looked_at_where_others_are_traced_but_not_inside_compiled_programs():
    weights, x = jnp.ones((3, 1)), jnp.asarray(X)

    def kernel(w, x):
        return empirical.empirical_ntk(lambda w, x: x @ w, w, x, outputs="trace")

    np.testing.assert_allclose(jax.jit(lambda w: kernel(w, x))(weights), X @ X.T)
    with pytest.raises(ValueError, match="x1 has 1 NaN"):
        jax.jit(lambda w: kernel(w, _bad(X, np.nan, 1)))(weights)
    assert np.isnan(jax.jit(kernel)(weights, x.at[0, 0].set(jnp.nan))).any()


def test_a_diverging_training_is_a_result_and_no_error():
    assert _train(learning_rate=1e300, save_at=[0, 3]).diverged_at == 3


OUT_OF_MEMORY = """
import resource, sys
import numpy as np
import lazynet as ln
from lazynet.kernels import analytic_kernel
model = ln.serial(ln.Dense(1), ln.Relu(), ln.Dense(1))
n, tile = map(int, sys.argv[1:])
x = np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)
analytic_kernel(model, x[:10])
with open("/proc/self/statm") as file:
    limit = int(file.read().split()[0]) * resource.getpagesize() + 450_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    analytic_kernel(model, x, tile=tile, memory=2**40)
except MemoryError as error:
    print(error)
"""


@pytest.mark.extended
@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(),
    reason="limits the memory of a process by what Linux tells",
)
@pytest.mark.parametrize(("n", "tile"), [(9000, 9000), (6000, 5000)], ids=["one tile", "several"])
def test_a_tile_larger_than_the_memory_there_is_names_a_tile_that_fits(n, tile):
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(n), str(tile)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"a tile of side {tile} does not fit the memory of the device" in done.stdout
    assert f"pass tile={tile // 2}, which takes a quarter of it" in done.stdout


def test_other_errors_of_the_compiler_pass_unchanged():
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="^INTERNAL: broken$"),
        tiles.tile_advice(4),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
