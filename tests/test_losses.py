"""Facts about losses: closed forms, gradients, and shapes that must agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal

import lazynet as ln

F = normal(0, 6, 3)
Y = jnp.asarray(np.eye(3)[[0, 1, 2, 0, 1, 2]])


def test_mse_gradient_is_the_residual_over_n():
    np.testing.assert_allclose(jax.grad(ln.mse)(F, Y), (F - Y) / 6, rtol=1e-14)


def test_cross_entropy_gradient_is_softmax_minus_target_over_n():
    np.testing.assert_allclose(jax.grad(ln.cross_entropy)(F, Y), (jax.nn.softmax(F) - Y) / 6, rtol=1e-12, atol=1e-15)


def test_logistic_is_the_two_class_cross_entropy():
    f, signs = F[:, :1], jnp.array([[1.0], [-1.0], [1.0], [1.0], [-1.0], [-1.0]])
    logits = jnp.concatenate([f, jnp.zeros_like(f)], axis=1)
    targets = jnp.concatenate([signs > 0, signs < 0], axis=1).astype(f.dtype)
    np.testing.assert_allclose(ln.logistic(f, signs), ln.cross_entropy(logits, targets), rtol=1e-13)


def test_accuracy_of_one_hot_and_of_centered_targets_agree():
    hits = np.mean(np.argmax(F, 1) == np.argmax(Y, 1))
    assert float(ln.accuracy(F, Y)) == float(ln.accuracy(F, Y - 1 / 3)) == hits


def test_accuracy_of_one_output_compares_signs():
    assert float(ln.accuracy(jnp.array([[0.3], [-2.0]]), jnp.array([[1.0], [1.0]]))) == 0.5


@pytest.mark.parametrize("loss", [ln.mse, ln.cross_entropy, ln.logistic, ln.accuracy])
@pytest.mark.parametrize(
    ("f", "y"), [(jnp.ones(6), jnp.ones((6, 1))), (jnp.ones((6, 2)), jnp.ones((6, 3))), (jnp.ones(6), jnp.ones(6))]
)
def test_shapes_that_would_broadcast_are_refused(loss, f, y):
    with pytest.raises(ValueError, match=r"expected the same \[n, k\]"):
        loss(f, y)


def test_objective_weight_scales_the_value_and_the_gradient():
    data = ln.Data(F, Y)
    full = ln.objective(lambda w, x: x * w, ln.mse)
    half = ln.objective(lambda w, x: x * w, ln.mse, 0.5)
    w = jnp.asarray(1.3)
    np.testing.assert_allclose(jax.grad(half.value)(w, data), 0.5 * jax.grad(full.value)(w, data), rtol=1e-14)
