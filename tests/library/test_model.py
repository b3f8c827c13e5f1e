"""Facts about models: what combinators compute, what a trace holds, and how the two parameterizations relate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from jax import lax

import lazynet as ln

KEY = jax.random.key(0)
X = normal(1, 4, 6)
IMAGES = normal(2, 2, 8, 8, 3)


def test_serial_is_composition():
    inner, outer = ln.serial(ln.Dense(5), ln.Relu()), ln.Dense(2)
    model = ln.serial(inner, outer)
    params = model.init(KEY, X)
    expected = outer.apply(params["1_Dense"], inner.apply(params["0_serial"], X))
    np.testing.assert_array_equal(model.apply(params, X), expected)


def test_appending_a_layer_does_not_change_earlier_weights():
    short, long = ln.serial(ln.Dense(5), ln.Relu()), ln.serial(ln.Dense(5), ln.Relu(), ln.Dense(2))
    np.testing.assert_array_equal(
        short.init(KEY, X)["0_Dense"]["W"], long.init(KEY, X)["0_Dense"]["W"]
    )


def test_parallel_adds_its_branches_and_residual_adds_the_identity():
    body = ln.serial(ln.Relu(), ln.Dense(6))
    block = ln.residual(ln.Relu(), ln.Dense(6))
    params = block.init(KEY, X)
    np.testing.assert_allclose(
        block.apply(params, X), X + body.apply(params["1_serial"], X), rtol=1e-14
    )


def test_repeat_draws_different_weights_for_each_copy():
    params = ln.repeat(ln.Dense(6), 2).init(KEY, X)
    assert float(jnp.abs(params["0_Dense"]["W"] - params["1_Dense"]["W"]).max()) > 0.1


@pytest.mark.parametrize(
    "model",
    [
        ln.serial(
            ln.Dense(5, 1.0, 0.1), ln.Relu(), ln.residual(ln.Relu(), ln.Dense(5)), ln.Dense(2)
        ),
        ln.symmetrize(ln.serial(ln.Dense(5), ln.Erf(), ln.Dense(2))),
        ln.parallel(ln.Dense(3), ln.serial(ln.Dense(4), ln.Relu(), ln.Dense(3))),
    ],
)
def test_trace_returns_the_output_of_apply_and_paths_into_the_parameters(model):
    params = model.init(KEY, X)
    outputs, inside = model.trace(params, X)
    np.testing.assert_array_equal(outputs, model.apply(params, X))
    for path in inside:
        if path.endswith("Dense"):
            own = params
            for part in path.split("/"):
                own = own[part]
            assert set(own) <= {"W", "b"}


@pytest.mark.extended
def test_traced_preactivations_are_the_affine_maps_of_the_traced_inputs():
    model = ln.serial(
        ln.Conv(4, (3, 3), padding="SAME", W_std=1.5),
        ln.Relu(),
        ln.Flatten(),
        ln.Dense(2, 1.5, 0.3),
    )
    params = model.init(KEY, IMAGES)
    _, inside = model.trace(params, IMAGES)
    x, z = inside["3_Dense"]
    own = params["3_Dense"]
    np.testing.assert_allclose(
        z, 1.5 * x @ own["W"] / np.sqrt(x.shape[1]) + 0.3 * own["b"][None], rtol=1e-12
    )
    np.testing.assert_array_equal(inside["1_Relu"][1], inside["0_Conv"][1])


@pytest.mark.extended
def test_standard_parameterization_has_the_same_function_distribution():
    ntk = ln.Dense(20000, 1.3, 0.4)
    standard = ln.Dense(20000, 1.3, 0.4, parameterization="standard")
    variances = [float(jnp.var(m.apply(m.init(KEY, X), X)[0])) for m in (ntk, standard)]
    exact = 1.3**2 * float(jnp.mean(X[0] ** 2)) + 0.4**2
    np.testing.assert_allclose(variances, exact, rtol=4 * np.sqrt(2 / 20000))


def test_width_factors_multiply_the_features_of_the_standard_parameterization():
    layer = ln.Dense(5, parameterization="standard", s=(2, 3))
    params = layer.init(KEY, X)
    assert params["W"].shape == (6, 15)
    np.testing.assert_allclose(layer.apply(params, X), X @ params["W"] / np.sqrt(2.0), rtol=1e-14)


def test_parameters_take_the_dtype_of_the_example():
    params = ln.Dense(5).init(KEY, jax.ShapeDtypeStruct((1, 3), jnp.float32))
    assert params["W"].dtype == jnp.float32


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_conv_equals_the_sum_over_shifts(padding, strides):
    layer = ln.Conv(2, (3, 2), strides, padding, 1.5, 0.5)
    params = layer.init(KEY, IMAGES)
    pads = (
        [(0, 0)] * 2
        if padding == "VALID"
        else lax.padtype_to_pads(IMAGES.shape[1:3], (3, 2), strides, "SAME")
    )
    image = np.pad(
        IMAGES, [(0, 0), *pads, (0, 0)], mode="wrap" if padding == "CIRCULAR" else "constant"
    )
    h, w = (image.shape[1] - 3) // strides[0] + 1, (image.shape[2] - 2) // strides[1] + 1
    expected = np.zeros((2, h, w, 2))
    for i in range(h):
        for j in range(w):
            patch = image[
                :, i * strides[0] : i * strides[0] + 3, j * strides[1] : j * strides[1] + 2
            ]
            expected[:, i, j] = np.einsum("nabc,abcf->nf", patch, params["W"])
    expected = 1.5 * expected / np.sqrt(18) + 0.5 * np.asarray(params["b"])
    np.testing.assert_allclose(layer.apply(params, IMAGES), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("name", "reduce", "identity"), [("MaxPool", lax.max, -np.inf), ("SumPool", lax.add, 0.0)]
)
def test_pools_equal_reduce_window(name, reduce, identity, padding):
    expected = lax.reduce_window(IMAGES, identity, reduce, (1, 3, 2, 1), (1, 2, 2, 1), padding)
    pooled = getattr(ln, name)((3, 2), (2, 2), padding).apply({}, IMAGES)
    np.testing.assert_allclose(pooled, expected, rtol=1e-13, atol=1e-14)


def test_average_pool_is_the_sum_pool_over_the_window_size_also_at_padded_edges():
    avg, total = (
        pool((3, 3), (1, 1), "SAME").apply({}, IMAGES) for pool in (ln.AvgPool, ln.SumPool)
    )
    np.testing.assert_allclose(avg, total / 9, rtol=1e-14)


def test_circular_convolution_commutes_with_shifts():
    layer = ln.Conv(4, (3, 3), padding="CIRCULAR")
    params = layer.init(KEY, IMAGES)
    shifted = layer.apply(params, jnp.roll(IMAGES, (2, 3), (1, 2)))
    np.testing.assert_allclose(
        shifted, jnp.roll(layer.apply(params, IMAGES), (2, 3), (1, 2)), rtol=1e-12, atol=1e-13
    )


def test_max_pool_trace_holds_the_window_entries_whose_maximum_is_the_output():
    pool = ln.MaxPool((2, 2), (2, 2))
    outputs, inside = pool.trace({}, IMAGES)
    np.testing.assert_array_equal(inside[""][1].max(axis=3), outputs)


def test_layer_norm_has_zero_mean_and_unit_variance_over_features():
    y = ln.LayerNorm().apply({}, 3.0 * X + 1.0)
    np.testing.assert_allclose(y.mean(-1), 0.0, atol=1e-14)
    np.testing.assert_allclose(y.var(-1), 1.0, rtol=1e-10)


def test_global_pools_and_flatten():
    np.testing.assert_allclose(
        ln.GlobalAvgPool().apply({}, IMAGES), IMAGES.mean((1, 2)), rtol=1e-14
    )
    np.testing.assert_allclose(ln.GlobalSumPool().apply({}, IMAGES), IMAGES.sum((1, 2)), rtol=1e-13)
    assert ln.Flatten().apply({}, IMAGES).shape == (2, 192)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ln.Dense(4, np.nan), "W_std got nan"),
        (lambda: ln.Dense(4, -1.0), "W_std got -1.0, expected a finite number >= 0"),
        (lambda: ln.Conv(4, b_std=-0.1), "b_std got -0.1"),
        (lambda: ln.Dense(True), "features got True"),
        (lambda: ln.Conv(0), "features got 0"),
        (lambda: ln.Conv(4, strides=(0, 1)), r"strides\[0\] got 0"),
        (lambda: ln.AvgPool((2, -1)), r"window\[1\] got -1"),
        (lambda: ln.LayerNorm(-1.0), "eps got -1.0"),
        (lambda: ln.repeat(ln.Relu(), -1), "n got -1"),
        (lambda: ln.zoo.vgg11(width=-1), "width got -1"),
        (lambda: ln.zoo.resnet18(width=np.nan), "width got nan"),
        (lambda: ln.zoo.wide_resnet(0), "blocks got 0"),
        (lambda: ln.zoo.cntk(1), "depth got 1"),
    ],
)
def test_hyperparameters_of_layers_and_networks_are_checked_when_they_are_built(build, words):
    with pytest.raises((ValueError, TypeError), match=words):
        build()


def test_a_convolution_larger_than_the_image_is_refused_before_it_gives_the_mean_of_nothing():
    model, x = ln.serial(ln.Conv(3, (9, 9)), ln.GlobalAvgPool()), np.ones((1, 6, 6, 2))
    with pytest.raises(ValueError, match="does not fit"):
        model.init(jax.random.key(0), x)
    layer = ln.Conv(3, (9, 9))
    with pytest.raises(ValueError, match="does not fit"):
        layer.apply(layer.init(jax.random.key(0), np.ones((1, 9, 9, 2))), x)


def test_scales_that_are_being_differentiated_pass():
    x = jnp.ones((2, 3))
    output = lambda W_std: jnp.sum(ln.Dense(2, W_std).apply({"W": jnp.ones((3, 2))}, x))  # noqa: E731
    np.testing.assert_allclose(jax.grad(output)(1.5), 12 / 3**0.5, rtol=1e-12)
