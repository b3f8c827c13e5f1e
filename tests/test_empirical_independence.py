"""Functions that mix the examples of a batch are refused where derivatives are taken example by example."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal

import lazynet as ln
from lazynet.empirical import empirical_ntk, ntk_vector_product

X = normal(0, 4, 3)
W = {"w": normal(1, 3, 2)}


def independent(params, x):
    return jnp.tanh(x @ params["w"])


def centered_over_the_batch(params, x):
    h = independent(params, x)
    return h - jnp.mean(h, axis=0, keepdims=True)


def normalized_over_the_batch(params, x):
    h = x @ params["w"]
    return (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)


@contextlib.contextmanager
def flax_terms():
    """Implicit promotion, which the layers of flax rely on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


MIXED = [centered_over_the_batch, normalized_over_the_batch]


@pytest.mark.parametrize("apply", MIXED)
def test_mixed_examples_are_refused_with_the_way_out(apply):
    with pytest.raises(ValueError, match="its first output depends on its second example.*use_running_average=True"):
        empirical_ntk(apply, W, X)


def test_mixed_examples_are_refused_where_outputs_cancel():
    zeros = jax.tree.map(jnp.zeros_like, W)
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(ln.lazy(centered_over_the_batch, W, 10.0), zeros, X)


def test_mixed_examples_are_refused_from_a_batch_of_one():
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(centered_over_the_batch, W, X[:1])


def test_a_layer_that_mixes_examples_is_refused_inside_a_model():
    center = ln.layer("Center", lambda params, x: x - jnp.mean(x, axis=0, keepdims=True))
    model = ln.serial(ln.Dense(4), center, ln.Dense(2))
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(model.apply, model.init(jax.random.key(0), X), X)


def test_tokens_are_compared_with_another_example():
    table, tokens = {"w": jnp.eye(5)}, jnp.array([[0, 1], [2, 3]])
    lookup = lambda params, x: params["w"][x].sum(1)  # noqa: E731
    assert empirical_ntk(lookup, table, tokens, outputs="trace").shape == (2, 2)
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(lambda params, x: lookup(params, x) - lookup(params, x).mean(0, keepdims=True), table, tokens)


def test_outputs_that_are_not_numbers_are_not_blamed_on_the_batch():
    broken = {"w": W["w"] * jnp.nan}
    assert bool(jnp.isnan(empirical_ntk(independent, broken, X)).all())


def test_traced_examples_are_not_checked():
    ntk = jax.jit(lambda x: empirical_ntk(independent, W, x))(X)
    np.testing.assert_allclose(ntk, empirical_ntk(independent, W, X), atol=1e-13)


def test_nan_checks_of_jax_do_not_see_the_probe():
    with jax.debug_nans(True):
        assert empirical_ntk(independent, W, X).shape == (4, 4, 2, 2)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda params, x: (independent(params, x), {}), "expected one array"),
        (lambda params, x: jnp.sum(independent(params, x)), "expected one array"),
    ],
)
def test_outputs_without_a_batch_axis_are_refused(apply, message):
    with pytest.raises(ValueError, match=message):
        empirical_ntk(apply, W, X)


@pytest.mark.extended
def test_products_with_vectors_take_functions_that_mix_examples():
    v = jnp.ones((4, 2))
    product = ntk_vector_product(centered_over_the_batch, W, X)(v)
    jacobian = jax.jacobian(centered_over_the_batch)(W, X)["w"].reshape(8, -1)
    np.testing.assert_allclose(product.ravel(), jacobian @ (jacobian.T @ v.ravel()), atol=1e-12)


def linen_network():
    linen = pytest.importorskip("flax.linen")

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            x = linen.Dense(4, param_dtype=jnp.float64)(x)
            x = linen.BatchNorm(use_running_average=not train, param_dtype=jnp.float64)(x)
            return linen.Dense(2, param_dtype=jnp.float64)(jnp.tanh(x))

    module = Network()
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), module.init(jax.random.key(0), X, train=False))

    def apply(params, x, train):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        with flax_terms():
            return module.apply(given, x, train=train, mutable=["batch_stats"])[0]

    return apply, variables["params"]


def nnx_network():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 4, rngs=rngs, param_dtype=jnp.float64)
            self.norm = nnx.BatchNorm(4, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, x):
            return self.norm(self.first(x))

    graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def apply(params, x, train):
        network = nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), rest))
        if not train:
            network.eval()
        with flax_terms():
            return network(x)

    return apply, params


@pytest.mark.extended
@pytest.mark.parametrize("network", [linen_network, nnx_network])
def test_batch_norm_of_flax_is_refused_in_training_and_taken_with_running_averages(network):
    with flax_terms():
        apply, params = network()
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(lambda params, x: apply(params, x, train=True), params, X)
    ntk = empirical_ntk(lambda params, x: apply(params, x, train=False), params, X)
    jacobian = jax.tree.leaves(jax.jacobian(lambda params: apply(params, X, train=False))(params))
    flat = np.concatenate([np.asarray(leaf).reshape(4, ntk.shape[2], -1) for leaf in jacobian], axis=2)
    np.testing.assert_allclose(ntk, np.einsum("iap,jbp->ijab", flat, flat), atol=1e-12)
