"""Xavier normal weights in the standard parameterization."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazynet as ln
from lazynet import zoo
from lazynet.models.initializers import xavier_normal

X = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
NETWORKS = {
    "vgg11": zoo.vgg11(10, width=1 / 8, parameterization="standard"),
    "resnet18": zoo.resnet18(10, width=1 / 8, b_std=0.0, parameterization="standard"),
}


@pytest.mark.extended
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gain", [1.0, 1.3])
def test_all_weights_have_the_standard_deviation_of_glorot_and_bengio_and_biases_are_zero(
    name, gain
):
    params = xavier_normal(NETWORKS[name], gain).init(jax.random.key(0), X)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "b":
            assert not leaf.any()
            continue
        receptive = math.prod(leaf.shape[:-2])
        expected = gain * math.sqrt(2 / (receptive * leaf.shape[-2] + receptive * leaf.shape[-1]))
        assert abs(float(leaf.std()) / expected - 1) < 5 / math.sqrt(2 * leaf.size), path


def test_a_layer_computes_w_x_plus_b_without_a_factor():
    model = xavier_normal(ln.Dense(5, W_std=7.0, b_std=0.0, parameterization="standard"))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    params = model.init(jax.random.key(0), x)
    params["b"] = jnp.arange(5.0)
    np.testing.assert_allclose(
        model.apply(params, x), x @ params["W"] + params["b"][None], rtol=1e-12
    )


@pytest.mark.extended
def test_outputs_of_a_layer_have_the_variance_of_twice_the_fan_in_over_both_fans():
    model = xavier_normal(
        ln.Conv(300, (3, 3), padding="CIRCULAR", b_std=0.0, parameterization="standard"), 2.0
    )
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 100))
    z = model.apply(model.init(jax.random.key(0), x), x)
    assert abs(float(z.std()) / math.sqrt(4 * 2 * 100 / (100 + 300)) - 1) < 0.02


def test_layers_of_one_shape_get_different_weights_and_the_seed_decides():
    model = xavier_normal(ln.serial(*[ln.Dense(4, parameterization="standard")] * 2))
    x = jnp.ones((1, 4))
    first, again, other = (model.init(jax.random.key(seed), x) for seed in (0, 0, 1))
    assert not jnp.array_equal(first["0_Dense"]["W"], first["1_Dense"]["W"])
    assert jnp.array_equal(first["0_Dense"]["W"], again["0_Dense"]["W"])
    assert not jnp.array_equal(first["0_Dense"]["W"], other["0_Dense"]["W"])


@pytest.mark.extended
def test_gates_and_stability_see_the_layers_of_the_redrawn_network():
    model = xavier_normal(zoo.mlp((6,), 2, b_std=0.0))
    x = jax.random.normal(jax.random.key(1), (5, 3))
    params = model.init(jax.random.key(0), x)
    np.testing.assert_allclose(
        ln.gated(model, params)(params, x), model.apply(params, x), rtol=1e-12
    )


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="gain got 0.0"):
        xavier_normal(ln.Dense(1), 0.0)
    other = ln.model.layer("Odd", lambda params, x: x, init=lambda key, x: {"scale": jnp.ones(2)})
    with pytest.raises(ValueError, match="only W and b"):
        xavier_normal(other).init(jax.random.key(0), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="no infinite-width limit"):
        ln.analytic_kernel(
            xavier_normal(ln.Dense(1, parameterization="standard")), jnp.ones((1, 2))
        )


def test_a_doubled_network_whose_halves_would_be_drawn_apart_is_refused():
    model = ln.Dense(4, b_std=0.0, parameterization="standard")
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"use symmetrize\(xavier_normal\(model\)\)"):
        xavier_normal(ln.serial(ln.symmetrize(model))).init(jax.random.key(0), x)
    doubled = ln.symmetrize(xavier_normal(model))
    assert not doubled.apply(doubled.init(jax.random.key(0), x), x).any()
