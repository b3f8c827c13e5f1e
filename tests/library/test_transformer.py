"""Transformers of finite width: causality, what composes with them, and attention without forward derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from flax import linen

import lazynet as ln
from lazynet import zoo
from lazynet.models.attention import SelfAttention
from lazynet.models.tokens import Embed

KEY = jax.random.key(0)
TOKENS = jnp.array([[0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 1, 0]])
MODEL = zoo.transformer(8, 4, depth=1, heads=2, vocabulary=4, positions=True, causal=True)


def _astype(params, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


PARAMS = _astype(MODEL.init(KEY, TOKENS), jnp.float64)


def test_a_causal_transformer_sees_no_later_token():
    changed = TOKENS.at[:, 2:].set(1)
    before, after = (jax.jit(MODEL.apply)(PARAMS, tokens) for tokens in (TOKENS, changed))
    np.testing.assert_allclose(before[:, :2], after[:, :2], rtol=1e-12)
    assert not np.allclose(before[:, 2:], after[:, 2:])


def test_causal_attention_is_the_softmax_over_earlier_positions():
    attention = SelfAttention(6, 3, 3, 2, linear_scaling=False, causal=True)
    x = normal(1, 2, 5, 4)
    params = attention.init(KEY, x)
    query, key, value = (np.einsum("npc,hck->nhpk", x, params[name]) for name in "QKV")
    heads = np.zeros((2, 2, 5, 3))
    for p in range(5):
        scores = np.einsum("nhk,nhqk->nhq", query[:, :, p], key[:, :, : p + 1]) / (4 * 3**0.5)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads[:, :, p] = np.einsum("nhq,nhqv->nhv", weights, value[:, :, : p + 1])
    joined = heads.transpose(0, 2, 1, 3).reshape(2, 5, 6)
    expected = joined @ np.asarray(params["O"]) / (6 * 4) ** 0.5
    np.testing.assert_allclose(attention.apply(params, x), expected, rtol=1e-10)


@pytest.mark.parametrize("token", [-1, 5])
def test_tokens_beyond_the_vocabulary_are_refused(token):
    model = Embed(5, 3)
    with pytest.raises(ValueError, match="expected 0 to 4"):
        model.apply({"W": jnp.ones((5, 3))}, jnp.array([[0, token]]))


def test_a_transformer_of_vectors_has_a_head_for_each_example():
    model = zoo.transformer(4, 3, depth=1, heads=1, positions=True)
    x = normal(2, 2, 5, 3)
    params = jax.eval_shape(model.init, KEY, x)
    assert params["1_Positions"]["P"].shape == (5, 4)
    assert jax.eval_shape(model.apply, params, x).shape == (2, 3)


@pytest.mark.extended
def test_tangents_kernels_and_rematerialization_compose_with_a_transformer():
    jacobian = jax.jacobian(MODEL.apply)(PARAMS, TOKENS)
    rows = np.concatenate([leaf.reshape(3, 16, -1) for leaf in jax.tree.leaves(jacobian)], axis=-1)
    expected = np.einsum("iap,jap->ij", rows, rows) / 16
    for model in (MODEL, ln.remat(MODEL)):
        kernel = ln.empirical_ntk(model.apply, PARAMS, TOKENS, outputs="trace")
        np.testing.assert_allclose(kernel, expected, rtol=1e-8)
    f = ln.lazy(ln.remat(MODEL).apply, PARAMS, float("inf"))
    u = jax.tree.map(lambda leaf: normal(5, *leaf.shape), PARAMS)
    change = ln.linearize(MODEL.apply, PARAMS)(ln.trees.add(PARAMS, u), TOKENS)
    np.testing.assert_allclose(f(u, TOKENS), change - MODEL.apply(PARAMS, TOKENS), rtol=1e-8)


class Foreign(linen.Module):
    """A block of attention as flax has it."""

    @linen.compact
    def __call__(self, x):
        x = x + linen.MultiHeadDotProductAttention(2, name="attention")(linen.LayerNorm()(x))
        return linen.Dense(2)(x.mean(1))


@pytest.mark.extended
def test_attention_of_flax_has_tangents_kernels_and_rematerialization():
    x = normal(6, 3, 4, 6)
    model = ln.from_flax(Foreign())
    params = model.init(KEY, x)
    u = jax.tree.map(lambda leaf: normal(7, *leaf.shape), params)
    value, change = jax.jvp(lambda w: model.apply(w, x), (params,), (u,))
    jacobian = jax.jacobian(lambda w: model.apply(w, x))(params)
    rows = np.concatenate([leaf.reshape(3, 2, -1) for leaf in jax.tree.leaves(jacobian)], axis=-1)
    for apply in (model.apply, ln.remat(model).apply):
        kernel = ln.empirical_ntk(apply, params, x)
        np.testing.assert_allclose(kernel, np.einsum("iap,jbp->ijab", rows, rows), rtol=1e-10)
        tangent = ln.linearize(apply, params)(ln.trees.add(params, u), x)
        np.testing.assert_allclose(tangent, value + change, rtol=1e-10)
        f = ln.lazy(apply, params, float("inf"))
        np.testing.assert_allclose(f(u, x), change, rtol=1e-10)


@pytest.mark.extended
def test_a_transformer_learns_the_next_token():
    goal = ln.objective(MODEL.apply, ln.masked_cross_entropy)
    labels = np.asarray(jnp.roll(TOKENS, -1, axis=1)).copy()
    labels[:, -1] = -1
    settings = dict(key=KEY, save_at=[0, 60], learning_rate=0.3)
    curve = ln.train(goal, PARAMS, ln.Data(TOKENS, labels), ln.sgd(0.9), **settings)
    assert curve.metrics["train_loss"][-1] < 0.1 * curve.metrics["train_loss"][0]


@jax.custom_vjp
def fused(x):
    """Stands for attention with a backward pass of its own."""
    return jnp.tanh(x)


fused.defvjp(lambda x: (fused(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


def of_fused(w, x):
    return fused(x @ w)


X, W = normal(3, 3, 2), normal(4, 2, 2)
FORWARD = {
    "linearize": lambda: ln.linearize(of_fused, W)(W, X),
    "lazy": lambda: ln.lazy(of_fused, W, float("inf"))(0 * W + 1, X),
    "ntk_vector_product": lambda: ln.ntk_vector_product(of_fused, W, X)(X),
    "estimate_max_learning_rate": lambda: ln.estimate_max_learning_rate(of_fused, W, X, key=KEY),
}


@pytest.mark.parametrize("name", FORWARD)
def test_attention_without_a_forward_derivative_is_refused_with_the_way_out(name):
    with pytest.raises(TypeError, match="custom_vjp.*implementation='xla'"):
        FORWARD[name]()


def test_a_kernel_needs_no_forward_derivative():
    expected = ln.empirical_ntk(lambda w, x: jnp.tanh(x @ w), W, X)
    np.testing.assert_allclose(ln.empirical_ntk(of_fused, W, X), expected, rtol=1e-10)
