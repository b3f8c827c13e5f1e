from __future__ import annotations

import inspect
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_networks import GOLDEN, network, relative
from marks import extended, extended_but

import lazynet as ln
from lazynet.kernels.analytic import analytic_kernel, monte_carlo_kernel
from lazynet.models.activations import (
    ABRelu,
    Abs,
    Cos,
    Erf,
    Gelu,
    LeakyRelu,
    Rbf,
    Relu,
    Sigmoid_like,
    Sin,
    elementwise,
)
from lazynet.models.layers import Dense, LayerNorm
from lazynet.models.model import freeze, parallel, repeat, residual, serial, symmetrize

ROOT = Path(__file__).resolve().parents[2]
FULLY_CONNECTED = [name for name in GOLDEN if name.startswith("fc_")]
KINKED = ("relu", "leaky", "abs", "abrelu", "nobias", "standard", "residual", "layernorm")


def _inputs(seed: int, n: int, d: int, dtype=np.float64) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)), dtype)


def _deep_relu(depth: int, features: int = 1, b_std: float | None = 0.1):
    return serial(
        *[part for _ in range(depth) for part in (Dense(features, 1.5, b_std), Relu())], Dense(1)
    )


# Parity with neural-tangents
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [extended(name) if name == "fc_relu_10" else name for name in FULLY_CONNECTED]
)
def test_kernels_between_two_sets_equal_those_of_neural_tangents(name):
    x1, x2, nngp, ntk = (GOLDEN[name][part] for part in ("x1", "x2", "nngp", "ntk"))
    gram = analytic_kernel(network(name), jnp.asarray(x1), jnp.asarray(x2))
    assert relative(gram.nngp, nngp) < 1e-13 and relative(gram.ntk, ntk) < 1e-13


@pytest.mark.parametrize(
    "name", [extended(name) if name == "fc_relu_10" else name for name in FULLY_CONNECTED]
)
def test_kernels_of_one_set_equal_those_of_neural_tangents_off_the_diagonal(name):
    x1, nngp, ntk = (GOLDEN[name][part] for part in ("x1", "nngp11", "ntk11"))
    gram = analytic_kernel(network(name), jnp.asarray(x1))
    off = ~np.eye(len(x1), dtype=bool)
    assert relative(gram.nngp, nngp) < 1e-13 and relative(gram.ntk[off], ntk[off]) < 1e-13
    # The reference takes the diagonal of kinked activations from a cancelling square root.
    tolerance = 1e-8 if any(part in name for part in KINKED) else 1e-13
    assert relative(np.diag(gram.ntk), np.diag(ntk)) < tolerance


@pytest.mark.extended
def test_the_diagonal_of_a_deep_relu_network_has_its_closed_form():
    x = _inputs(0, 4, 7)
    gram = analytic_kernel(
        serial(*[part for _ in range(5) for part in (Dense(1, 2**0.5), Relu())], Dense(1)), x
    )
    variances = np.mean(np.asarray(x) ** 2, axis=1)
    np.testing.assert_allclose(np.diag(gram.nngp), variances, rtol=1e-14)
    np.testing.assert_allclose(np.diag(gram.ntk), 6 * variances, rtol=1e-14)


# Single precision
# ------------------------------------------------------------------------------------------------


@pytest.mark.extended
@pytest.mark.parametrize("symmetric", [True, False])
def test_single_precision_is_kept_through_ten_relu_layers(symmetric):
    x1, x2 = _inputs(0, 20, 50), _inputs(1, 15, 50)
    sets = (x1,) if symmetric else (x1, x2)
    double = analytic_kernel(_deep_relu(10), *sets)
    single = analytic_kernel(_deep_relu(10), *(x.astype(jnp.float32) for x in sets))
    assert single.ntk.dtype == jnp.float32
    for ours, exact in zip(single, double, strict=True):
        assert relative(ours, exact) < 5e-7
        assert np.max(np.abs(np.asarray(ours, np.float64) / exact - 1)) < 2e-6


@pytest.mark.extended
def test_the_single_precision_kernel_of_near_duplicates_is_positive():
    x = _inputs(0, 12, 50)
    x = jnp.concatenate([x, x[:3] + 1e-4 * _inputs(1, 3, 50)]).astype(jnp.float32)
    values = np.linalg.eigvalsh(np.asarray(analytic_kernel(_deep_relu(10), x).ntk, np.float64))
    assert values[0] > -1e-6 * values[-1]


# Monte Carlo
# -----------------------------------------------------------------------------------------------------

WIDTH = 128
BODIES = {
    "Dense": [],
    "Dense, standard": [Dense(WIDTH, 1.2, 0.3, parameterization="standard"), Relu()],
    "Dense, standard with width factors": [
        Dense(32, 1.2, 0.3, parameterization="standard", s=(1, 8)),
        Erf(),
        Dense(32, 1.1, None, parameterization="standard", s=(8, 8)),
        Relu(),
    ],
    "Relu": [Dense(WIDTH, 1.4, 0.2), Relu()],
    "LeakyRelu": [Dense(WIDTH, 1.4, 0.2), LeakyRelu(0.2)],
    "Abs": [Dense(WIDTH, 1.4, 0.2), Abs()],
    "ABRelu": [Dense(WIDTH, 1.4, 0.2), ABRelu(-0.4, 1.3)],
    "Erf": [Dense(WIDTH, 1.4, 0.2), Erf(1.2, 0.8, 0.3)],
    "Sigmoid_like": [Dense(WIDTH, 1.4, 0.2), Sigmoid_like()],
    "Gelu": [Dense(WIDTH, 1.4, 0.2), Gelu()],
    "Sin": [Dense(WIDTH, 1.4, 0.2), Sin(1.2, 0.8, 0.3)],
    "Cos": [Dense(WIDTH, 1.4, 0.2), Cos(1.2, 0.8, 0.3)],
    "Rbf": [Dense(WIDTH, 1.4, 0.2), Rbf(0.4)],
    "elementwise": [Dense(WIDTH, 1.4, 0.2), elementwise(jnp.tanh)],
    "LayerNorm": [Dense(WIDTH, 1.4, 0.2), LayerNorm(), Relu()],
    "residual": [Dense(WIDTH, 1.4, 0.2), residual(Relu(), Dense(WIDTH, 1.1)), Relu()],
    "parallel": [
        parallel(Dense(WIDTH), serial(Dense(WIDTH, 1.4, 0.2), Erf(), Dense(WIDTH))),
        Relu(),
    ],
    "repeat": [repeat(serial(Dense(WIDTH, 1.4, 0.1), Relu()), 2)],
    "frozen first layer": [freeze(Dense(WIDTH, 1.4, 0.2)), Relu(), Dense(WIDTH, 1.4, 0.2), Relu()],
    "frozen second layer": [Dense(WIDTH, 1.4, 0.2), Relu(), freeze(Dense(WIDTH, 1.4, 0.2)), Relu()],
    "frozen branch": [Dense(WIDTH, 1.4), residual(Relu(), freeze(Dense(WIDTH, 1.1))), Relu()],
}


@pytest.mark.extended
@pytest.mark.parametrize("body", BODIES)
def test_wide_networks_agree_with_their_limit(body):
    model = serial(*BODIES[body], Dense(1, 1.1, 0.2))
    x1, x2 = _inputs(0, 3, 5), _inputs(1, 2, 5)
    mean, error = monte_carlo_kernel(model, jax.random.key(0), x1, x2, n_samples=32)
    limit = analytic_kernel(model, x1, x2)
    for got, standard_error, exact in zip(mean, error, limit, strict=True):
        scale = np.max(np.abs(exact))
        assert np.all(np.abs(got - exact) < 4.5 * standard_error + 4 / WIDTH * scale)


@pytest.mark.extended
def test_doubling_keeps_the_tangent_kernel_and_cancels_the_covariance():
    x = _inputs(0, 4, 5)
    gram = analytic_kernel(symmetrize(_deep_relu(2)), x)
    np.testing.assert_array_equal(gram.nngp, np.zeros((4, 4)))
    np.testing.assert_allclose(gram.ntk, analytic_kernel(_deep_relu(2), x).ntk, rtol=1e-14)


def test_weights_before_a_doubled_network_add_nothing_to_its_tangent_kernel():
    x = _inputs(0, 4, 5)
    head = serial(Dense(1, 1.5, 0.1), Relu(), Dense(1))
    gram = analytic_kernel(serial(_deep_relu(1), symmetrize(head)), x)
    alone = analytic_kernel(serial(freeze(_deep_relu(1)), head), x)
    np.testing.assert_allclose(gram.ntk, alone.ntk, rtol=1e-14)


@pytest.mark.extended
@pytest.mark.parametrize(
    "body", [[symmetrize(Dense(1))], [residual(Relu(), symmetrize(Dense(WIDTH))), Dense(1)]]
)
def test_wide_networks_with_doubled_layers_agree_with_their_limit(body):
    x = _inputs(0, 3, 5)
    model = serial(Dense(WIDTH, 1.4), Relu(), Dense(WIDTH, 1.4), *body)
    mean, error = monte_carlo_kernel(model, jax.random.key(0), x, n_samples=32)
    exact = analytic_kernel(model, x).ntk
    scale = np.max(np.abs(exact))
    assert np.all(np.abs(mean.ntk - exact) < 4.5 * error.ntk + 4 / WIDTH * scale)


@pytest.mark.extended
def test_the_standard_error_shrinks_with_the_number_of_samples():
    x = _inputs(0, 3, 5)
    errors = [
        monte_carlo_kernel(_deep_relu(1, 16), jax.random.key(0), x, n_samples=n)[1].nngp
        for n in (8, 128)
    ]
    assert 2 < float(jnp.mean(errors[0]) / jnp.mean(errors[1])) < 8


@pytest.mark.extended
def test_tangent_kernels_of_the_layers_add_up():
    x = _inputs(0, 4, 5)
    layers = [Dense(1, 1.4, 0.2), Relu(), Dense(1, 1.1, 0.3), Erf(), Dense(1, 1.2, 0.1)]
    whole = analytic_kernel(serial(*layers), x)
    parts = [
        analytic_kernel(
            serial(*[part if i == j else freeze(part) for j, part in enumerate(layers)]), x
        )
        for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(sum(part.ntk for part in parts), whole.ntk, rtol=1e-13)
    for part in parts:
        np.testing.assert_allclose(part.nngp, whole.nngp, rtol=1e-14)
    assert not np.any(analytic_kernel(freeze(serial(*layers)), x).ntk)


# Tiles
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n1", "n2"),
    [(7, None), (7, 5), *(extended(*sizes) for sizes in [(8, None), (3, 9), (1, 1), (1, None)])],
)
@pytest.mark.extended
def test_tiles_do_not_change_the_kernel(n1, n2):
    x1, x2 = _inputs(0, n1, 6), None if n2 is None else _inputs(1, n2, 6)
    whole, tiled = (analytic_kernel(_deep_relu(2), x1, x2, tile=tile) for tile in (None, 3))
    np.testing.assert_allclose(whole.ntk, tiled.ntk, rtol=1e-13)
    np.testing.assert_allclose(whole.nngp, tiled.nngp, rtol=1e-13)


@pytest.mark.parametrize("tile", [extended(None), 3])
def test_the_kernel_of_one_set_is_exactly_symmetric(tile):
    gram = analytic_kernel(_deep_relu(3), _inputs(0, 8, 6, np.float32), tile=tile)
    for matrix in map(np.asarray, gram):
        np.testing.assert_array_equal(matrix, matrix.T)


# Derivatives
# -----------------------------------------------------------------------------------------------------

SMOOTH_AND_KINKED = {
    "Relu": Relu(),
    "Abs": Abs(),
    "Erf": Erf(),
    "Gelu": Gelu(),
    "Sin": Sin(),
    "Rbf": Rbf(0.5),
    "tanh": elementwise(jnp.tanh, degree=16),
}


@pytest.mark.parametrize("b_std", [extended(None), 0.3])
@pytest.mark.parametrize("activation", extended_but(SMOOTH_AND_KINKED, "Relu"))
@pytest.mark.extended
def test_derivatives_are_finite_at_equal_and_zero_inputs_and_modes_agree(activation, b_std):
    phi = SMOOTH_AND_KINKED[activation]
    model = serial(Dense(1, 1.2, b_std), phi, Dense(1, 1.2, b_std), phi, Dense(1))
    x = jnp.concatenate([_inputs(0, 2, 3), jnp.zeros((1, 3))])

    def total(x1):
        gram = analytic_kernel(model, x1, x)
        return jnp.stack([gram.nngp, gram.ntk])

    forward, reverse = jax.jacfwd(total)(x), jax.jacrev(total)(x)
    assert bool(jnp.all(jnp.isfinite(forward)))
    np.testing.assert_allclose(forward, reverse, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", extended_but(SMOOTH_AND_KINKED, "Erf"))
@pytest.mark.extended
def test_derivatives_agree_with_finite_differences(activation):
    phi = SMOOTH_AND_KINKED[activation]
    model = serial(Dense(1, 1.2, 0.1), phi, Dense(1, 1.2, 0.1), phi, Dense(1))
    x1, x2, direction = _inputs(0, 2, 3), _inputs(1, 2, 3), _inputs(2, 2, 3)

    def total(step):
        return jnp.sum(analytic_kernel(model, x1 + step * direction, x2).ntk)

    slope = (total(1e-5) - total(-1e-5)) / 2e-5
    # Derivatives of a quadrature are quadratures of derivatives, which agree up to its error.
    np.testing.assert_allclose(
        jax.grad(total)(0.0), slope, rtol=1e-3 if activation == "tanh" else 1e-6
    )


@pytest.mark.extended
def test_kernels_can_be_mapped_over_weight_and_bias_scales():
    x = _inputs(0, 3, 4)

    def ntk(W_std, b_std):
        return analytic_kernel(serial(Dense(1, W_std, b_std), Relu(), Dense(1, W_std)), x).ntk

    scales = jnp.array([0.5, 1.5]), jnp.array([0.1, 0.2])
    mapped = jax.jit(jax.vmap(ntk))(*scales)
    np.testing.assert_allclose(
        mapped, [ntk(*map(float, pair)) for pair in zip(*scales, strict=True)], rtol=1e-13
    )
    assert bool(jnp.all(jnp.isfinite(jax.jacrev(ntk)(1.0, 0.0))))


# Refusals
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (serial(Relu(), Dense(1)), "Relu.*put a Dense or Conv"),
        (serial(Dense(4), Relu(), Erf(), Dense(1)), "Erf.*put a Dense or Conv"),
        (serial(Dense(4), Relu(), LayerNorm(), Dense(1)), "LayerNorm.*put a Dense or Conv"),
        (serial(Dense(4), residual(Relu()), Dense(1)), "fresh Dense or Conv"),
        (serial(Dense(4), Relu(), residual(Dense(4))), "fresh Dense or Conv"),
        (serial(Dense(4), parallel(ln.Identity(), ln.Identity())), "fresh Dense or Conv"),
        (serial(Dense(4), ln.MaxPool((2, 2))), "MaxPool.*AvgPool"),
    ],
)
def test_networks_without_a_limit_are_refused_with_a_way_out(model, words):
    with pytest.raises(ValueError, match=words):
        analytic_kernel(model, jnp.ones((2, 4)))


@pytest.mark.parametrize(
    ("x1", "x2", "error", "words"),
    [
        (jnp.ones((2, 3)), jnp.ones((2, 4)), ValueError, "one size"),
        (jnp.ones((2, 3, 4)), None, ValueError, "vectors|features"),
        (np.ones(3), None, ValueError, "vectors"),
        (np.ones(()), None, ValueError, "vectors"),
        (jnp.ones((0, 3)), None, ValueError, "not empty"),
        (jnp.ones((2, 3)), jnp.ones((0, 3)), ValueError, "not empty"),
        (jnp.ones((2, 3), jnp.int32), None, TypeError, "x1 has dtype int32"),
        (np.ones((2, 3)), np.ones((2, 3), np.complex64), TypeError, "x2 has dtype complex64"),
        (np.ma.ones((2, 3)), None, TypeError, "x1 got a MaskedArray"),
        (np.ones((2, 3)), np.full((1, 3), np.nan), ValueError, "x2 has 3 NaN"),
    ],
)
def test_bad_inputs_are_refused(x1, x2, error, words):
    with pytest.raises(error, match=words):
        inspect.unwrap(analytic_kernel)(_deep_relu(1), x1, x2)
    with pytest.raises(error, match=words):
        inspect.unwrap(monte_carlo_kernel)(_deep_relu(1), jax.random.key(0), x1, x2, n_samples=2)


OPTIONS = {
    "tile": [0, 2.5, True, "2", np.float64(2)],
    "memory": [0, -1, np.nan, np.inf, "1 GB", True],
    "progress": ["no", 2, None, np.zeros(2)],
    "store": [3, True, b"store"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OPTIONS.items() for value in values]
)
def test_a_wrong_option_of_a_kernel_is_named_before_it_is_computed(
    name, value, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError), match=rf"^{name} got .*, expected "):
        inspect.unwrap(analytic_kernel)(_deep_relu(1), jnp.ones((2, 3)), **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n_samples", [1, 2.0, True, None])
def test_the_number_of_samples_is_at_least_two(n_samples):
    with pytest.raises(
        (TypeError, ValueError), match=r"^n_samples got .*, expected an integer >= 2"
    ):
        inspect.unwrap(monte_carlo_kernel)(
            _deep_relu(1), jax.random.key(0), jnp.ones((2, 3)), n_samples=n_samples
        )


@pytest.mark.parametrize("model", [Relu, ln.stax.Dense(1), lambda x: x, None])
def test_what_is_no_model_has_no_kernel(model):
    with pytest.raises(TypeError, match="^model got .*, expected a Model"):
        inspect.unwrap(analytic_kernel)(model, jnp.ones((2, 3)))


# Dtypes
# ----------------------------------------------------------------------------------------------------------

HALF = [np.float16, jnp.bfloat16]


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize(
    "dtypes", [(np.float32, np.float64), (np.float64, np.float32), (jnp.bfloat16, np.float64)]
)
def test_inputs_of_two_dtypes_have_the_kernel_of_the_wider_one(dtypes, tile):
    x1, x2 = (np.asarray(_inputs(i, 3, 4)).astype(dtype) for i, dtype in enumerate(dtypes))
    found = analytic_kernel(_deep_relu(1), x1, x2, tile=tile).ntk
    expected = analytic_kernel(_deep_relu(1), x1.astype(np.float64), x2.astype(np.float64)).ntk
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.extended
def test_the_kernel_of_half_precision_inputs_has_the_digits_of_float32(dtype, tile, tmp_path):
    x = np.asarray(_inputs(0, 5, 4)).astype(dtype)
    exact = analytic_kernel(_deep_relu(2), x.astype(np.float64))
    for values in (x, jnp.asarray(x)):
        gram = analytic_kernel(_deep_relu(2), values, tile=tile, store=tmp_path / "store")
        assert gram.nngp.dtype == gram.ntk.dtype == np.float32
        np.testing.assert_allclose(gram.ntk, exact.ntk, rtol=2e-6)
    traced = jax.jit(lambda x: analytic_kernel(_deep_relu(2), x).ntk)(jnp.asarray(x))
    np.testing.assert_allclose(traced, exact.ntk, rtol=2e-6)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
def test_dtypes_that_jax_does_not_know_are_converted(dtype):
    x = np.asarray(_inputs(0, 5, 4)).astype(dtype)
    expected = analytic_kernel(
        _deep_relu(1), x.astype(np.float32 if dtype == ">f4" else np.float64)
    )
    for tile in (None, 2):
        found = inspect.unwrap(analytic_kernel)(_deep_relu(1), x, tile=tile).ntk
        assert found.dtype == expected.ntk.dtype
        np.testing.assert_allclose(found, expected.ntk, rtol=1e-6 if dtype == ">f4" else 1e-13)


@pytest.mark.parametrize("tile", [None, 2])
def test_a_kernel_computed_in_float32_says_so(tile):
    x = np.asarray(_inputs(0, 5, 4))
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(False):
        gram = analytic_kernel(_deep_relu(1), x, tile=tile)
        assert gram.nngp.dtype == gram.ntk.dtype == np.float32
        with pytest.raises(
            ValueError, match="infinite .*values exceed float32: scale the inputs, or enable"
        ):
            analytic_kernel(_deep_relu(1), 1e300 * x, tile=tile)
    np.testing.assert_allclose(gram.ntk, analytic_kernel(_deep_relu(1), x).ntk, rtol=1e-5)


def test_samples_of_half_precision_and_of_networks_that_end_in_images_are_right():
    x = np.asarray(_inputs(0, 2, 48)).reshape(2, 4, 4, 3)
    model = ln.Conv(64, (1, 1))
    mean, error = monte_carlo_kernel(model, jax.random.key(0), x.astype(np.float16), n_samples=16)
    pixels = x.astype(np.float16).astype(float).reshape(2, -1)
    assert mean.nngp.dtype == np.float32
    assert np.all(abs(np.asarray(mean.nngp) - pixels @ pixels.T / 48) < 5 * np.asarray(error.nngp))


# Stores
# ----------------------------------------------------------------------------------------------------------

WRITER = """
import jax, numpy as np, sys
jax.config.update("jax_enable_x64", True)
from lazynet.models.activations import Relu
from lazynet.kernels import analytic_kernel
from lazynet.models.layers import Dense
from lazynet.models.model import serial
x = np.random.default_rng(0).normal(size=(60, 6))
model = serial(Dense(1, 1.5, 0.1), Relu(), Dense(1))
print("ready", flush=True)
gram = analytic_kernel(model, x, tile=2, store=sys.argv[1])
"""


def _stored_case():
    x = np.random.default_rng(0).normal(size=(60, 6))
    return serial(Dense(1, 1.5, 0.1), Relu(), Dense(1)), x


def test_a_stored_kernel_is_the_kernel_and_is_not_computed_again(tmp_path, monkeypatch):
    model, x = _stored_case()
    first = analytic_kernel(model, x, tile=16, store=tmp_path / "store")
    np.testing.assert_allclose(first.ntk, analytic_kernel(model, x).ntk, rtol=1e-13)
    monkeypatch.delattr("lazynet.tiles._write")
    again = analytic_kernel(model, x, tile=16, store=tmp_path / "store")
    np.testing.assert_array_equal(again.ntk, first.ntk)


@pytest.mark.parametrize(
    ("row", "column"), [extended(0, 0), (3, 50), extended(50, 3), extended(59, 59)]
)
def test_a_damaged_tile_is_computed_again(tmp_path, row, column):
    model, x = _stored_case()
    first = np.array(analytic_kernel(model, x, tile=16, store=tmp_path / "store").ntk)
    damaged = np.load(tmp_path / "store" / "ntk.npy", mmap_mode="r+")
    damaged[row, column] += 1e-9
    damaged.flush()
    again = analytic_kernel(model, x, tile=16, store=tmp_path / "store")
    np.testing.assert_array_equal(again.ntk, first)


@pytest.mark.parametrize("name", ["ntk.npy", "done.npy"])
def test_a_store_with_a_file_cut_off_is_refused(tmp_path, name):
    model, x = _stored_case()
    analytic_kernel(model, x[:4], tile=2, store=tmp_path / "store")
    path = tmp_path / "store" / name
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{name}.*cut off"):
        analytic_kernel(model, x[:4], tile=2, store=tmp_path / "store")


@pytest.mark.extended
def test_tiles_fit_the_memory_given_to_them():
    model, x = _stored_case()
    budget = 60_000
    limited, whole = analytic_kernel(model, x, memory=budget), analytic_kernel(model, x)
    assert isinstance(limited.ntk, np.ndarray)
    np.testing.assert_allclose(limited.ntk, whole.ntk, rtol=1e-12, atol=1e-15)
    with pytest.raises(
        ValueError, match="tile of side 60 needs .*pass a tile of at most"
    ) as refusal:
        analytic_kernel(model, x, tile=60, memory=budget)
    fitting = int(str(refusal.value).split("at most ")[1].split(",")[0])
    analytic_kernel(model, x, tile=fitting, memory=budget)
    with pytest.raises(ValueError, match="memory=10: .*or allow more"):
        analytic_kernel(model, x, memory=10)


PEAK = """
import resource, sys, numpy as np
from lazynet.models.activations import Relu
from lazynet.kernels import analytic_kernel
from lazynet.models.layers import Dense
from lazynet.models.model import serial
model = serial(Dense(1, 1.5, 0.1), Relu(), Dense(1))
x = np.random.default_rng(0).normal(size=(4000, 6)).astype(np.float32)
analytic_kernel(model, x[:1000])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
gram = analytic_kernel(model, x, store=sys.argv[1] if len(sys.argv) > 1 else None)
print(peak() - before, gram.nngp.nbytes + gram.ntk.nbytes)
"""


@pytest.mark.extended
@pytest.mark.parametrize("stored", [False, True])
def test_beside_the_result_memory_holds_one_tile(tmp_path, stored):
    command = [sys.executable, "-c", PEAK, *([str(tmp_path / "store")] if stored else [])]
    grown, result = map(
        int,
        subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split(),
    )
    assert grown < result + 2**25


@pytest.mark.parametrize("changed", [extended("network"), "x1", extended("tile"), extended("x2")])
def test_a_store_of_another_kernel_is_refused(tmp_path, changed):
    model, x = _stored_case()
    analytic_kernel(model, x[:4], tile=2, store=tmp_path / "store")
    other = serial(Dense(1, 1.6, 0.1), Relu(), Dense(1)) if changed == "network" else model
    x1 = x[:4] + 1 if changed == "x1" else x[:4]
    with pytest.raises(ValueError, match=f"another kernel.*{changed}"):
        analytic_kernel(
            other,
            x1,
            x[:4] if changed == "x2" else None,
            tile=3 if changed == "tile" else 2,
            store=tmp_path / "store",
        )


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    model, x = _stored_case()
    with pytest.raises(ValueError, match="not a kernel store"):
        analytic_kernel(model, x, store=tmp_path)


def test_what_a_store_returns_cannot_be_changed(tmp_path):
    model, x = _stored_case()
    for gram in (analytic_kernel(model, x[:6], tile=4, store=tmp_path / "store") for _ in range(2)):
        for values in gram:
            with pytest.raises(ValueError, match="read-only"):
                values[np.diag_indices(6)] += 1.0
            with pytest.raises(ValueError, match="WRITEABLE"):
                values.flags.writeable = True
        np.testing.assert_array_equal(np.load(tmp_path / "store" / "ntk.npy"), gram.ntk)
        assert np.array(gram.ntk).flags.writeable


def test_a_finished_store_is_read_without_permission_to_write(tmp_path, monkeypatch):
    model, x = _stored_case()
    expected = np.array(analytic_kernel(model, x[:6], tile=4, store=tmp_path / "store").ntk)
    opened = np.lib.format.open_memmap

    def refusing(filename, mode="r+", **options):
        if mode != "r":
            raise PermissionError(13, "Permission denied", str(filename))
        return opened(filename, mode=mode, **options)

    monkeypatch.setattr(np.lib.format, "open_memmap", refusing)
    monkeypatch.setattr(Path, "rename", refusing)
    np.testing.assert_array_equal(
        analytic_kernel(model, x[:6], tile=4, store=tmp_path / "store").ntk, expected
    )


def test_the_home_folder_may_be_the_place_of_a_store(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model, x = _stored_case()
    inspect.unwrap(analytic_kernel)(model, x[:6], tile=np.int64(4), store="~/kernels/one")
    assert np.load(tmp_path / "kernels" / "one" / "done.npy").all()
    assert [path.name for path in tmp_path.iterdir()] == ["kernels"]


CLOSED_OVER = """
import sys, numpy as np
import lazynet as ln
def scaled(model, values):
    def rule(k):
        k = model.kernel(k)
        return k.replace(cross=k.cross._replace(ntk=k.cross.ntk * (1 + values.sum() - np.sum(values.shape))))
    return model._replace(kernel=rule)
x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
factor = np.full(20, float(sys.argv[2]), np.float32)
import jax.numpy as jnp
model = scaled(ln.serial(ln.Dense(1), ln.Relu(), ln.Dense(1)), jnp.asarray(factor))
try:
    print(float(ln.analytic_kernel(model, x, tile=2, store=sys.argv[1]).ntk[0, 0]))
except ValueError as error:
    print(error)
"""


@pytest.mark.extended
@pytest.mark.parametrize("setting", ["0", "1"])
def test_a_store_knows_a_network_by_the_arrays_that_it_closes_over(setting, tmp_path):
    environment = {**os.environ, "JAX_USE_SIMPLIFIED_JAXPR_CONSTANTS": setting}

    def said(factor):
        command = [sys.executable, "-c", CLOSED_OVER, str(tmp_path / "store"), factor]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True
        ).stdout

    first = said("1.0")
    assert said("1.0") == first and float(first)
    assert "belongs to another kernel: network differ" in said("2.0")


DEVICES = """
import jax, numpy as np
import lazynet.kernels
from lazynet.models.activations import Relu
from lazynet.models.layers import Dense
from lazynet.models.model import serial
used, assemble = set(), lazynet.kernels.analytic.assemble
def recorded(compute, *rest, **options):
    return assemble(lambda device, tile: used.add(device.id) or compute(device, tile), *rest, **options)
lazynet.kernels.analytic.assemble = recorded
x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
model = serial(Dense(1, 1.5, 0.1), Relu(), Dense(1))
tiled = lazynet.kernels.analytic.analytic_kernel(model, x, tile=6)
whole = lazynet.kernels.analytic.analytic_kernel(model, x)
print(sorted(used), float(np.max(np.abs(tiled.ntk - whole.ntk))))
"""


@pytest.mark.extended
def test_tiles_are_dealt_to_all_devices():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    run = subprocess.run(
        [sys.executable, "-c", DEVICES],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    used, _, difference = run.stdout.strip().rpartition(" ")
    assert used == "[0, 1, 2, 3]" and float(difference) < 1e-6


@pytest.mark.slow
def test_a_store_survives_being_killed_at_any_moment(tmp_path):
    model, x = _stored_case()
    store, delays = tmp_path / "store", np.random.default_rng(1).uniform(0.2, 2.5, size=4)
    for delay in delays:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(store)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resumed = analytic_kernel(model, x, tile=2, store=store)
    whole = analytic_kernel(model, x, tile=2)
    np.testing.assert_array_equal(resumed.ntk, whole.ntk)
    np.testing.assert_array_equal(resumed.nngp, whole.nngp)


@pytest.mark.slow
def test_two_processes_share_a_store(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model, x = _stored_case()
    starts = [
        f"import jax; jax.distributed.initialize('127.0.0.1:{port}', 2, {i})\n{WRITER}"
        for i in (0, 1)
    ]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store")], cwd=ROOT)
        for code in starts
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert np.load(tmp_path / "store" / "done.npy").all()
    np.testing.assert_array_equal(
        np.load(tmp_path / "store" / "ntk.npy"), analytic_kernel(model, x, tile=2).ntk
    )
