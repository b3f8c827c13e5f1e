"""Facts about losses: closed forms, gradients, and shapes that must agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal

import lazynet as ln
from lazynet.losses import check_labels, masked_cross_entropy

F = normal(0, 6, 3)
Y = jnp.asarray(np.eye(3)[[0, 1, 2, 0, 1, 2]])


def test_mse_gradient_is_the_residual_over_n():
    np.testing.assert_allclose(jax.grad(ln.mse)(F, Y), (F - Y) / 6, rtol=1e-14)


def test_cross_entropy_gradient_is_softmax_minus_target_over_n():
    np.testing.assert_allclose(
        jax.grad(ln.cross_entropy)(F, Y), (jax.nn.softmax(F) - Y) / 6, rtol=1e-12, atol=1e-15
    )


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
    ("f", "y"),
    [
        (jnp.ones(6), jnp.ones((6, 1))),
        (jnp.ones((6, 2)), jnp.ones((6, 3))),
        (jnp.ones(6), jnp.ones(6)),
    ],
)
def test_shapes_that_would_broadcast_are_refused(loss, f, y):
    with pytest.raises(ValueError, match=r"expected the same \[n, k\]"):
        loss(f, y)


def test_objective_weight_scales_the_value_and_the_gradient():
    data = ln.Data(F, Y)
    full = ln.objective(lambda w, x: x * w, ln.mse)
    half = ln.objective(lambda w, x: x * w, ln.mse, 0.5)
    w = jnp.asarray(1.3)
    np.testing.assert_allclose(
        jax.grad(half.value)(w, data), 0.5 * jax.grad(full.value)(w, data), rtol=1e-14
    )


def test_a_class_of_probability_zero_adds_nothing_where_its_logit_is_minus_infinity():
    logits, targets = jnp.array([[0.0, 1.0, -jnp.inf]]), jnp.array([[1.0, 0.0, 0.0]])
    assert float(ln.cross_entropy(logits, targets)) == pytest.approx(np.log(1 + np.e), rel=1e-14)
    gradient = np.asarray(jax.grad(ln.cross_entropy)(logits, targets))[0]
    np.testing.assert_allclose(
        gradient, np.array([1.0, np.e, 0.0]) / (1 + np.e) - [1, 0, 0], rtol=1e-14
    )


def test_a_class_of_positive_probability_and_logit_minus_infinity_costs_infinitely_much():
    assert float(ln.cross_entropy(jnp.array([[0.0, -jnp.inf]]), jnp.array([[0.5, 0.5]]))) == np.inf


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
@pytest.mark.parametrize("loss", [ln.mse, ln.cross_entropy, ln.accuracy])
def test_integers_are_compared_as_the_numbers_they_are(loss, dtype):
    f, y = np.array([[1, 0], [0, 1], [1, 0]]), np.array([[1, 0], [1, 0], [0, 1]])
    expected = {ln.mse: 4 / 6, ln.accuracy: 1 / 3, ln.cross_entropy: np.log(1 + np.e) - 1 / 3}[loss]
    for outputs, targets in (
        (f.astype(dtype), y.astype(dtype)),
        (f.astype(dtype), y * 1.0),
        (f * 1.0, y.astype(dtype)),
    ):
        assert float(loss(outputs, targets)) == pytest.approx(expected, rel=1e-6)


def test_outputs_that_are_nan_are_no_hits():
    f, y = np.array([[np.nan, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    assert float(ln.accuracy(f, y)) == 0.5
    assert float(ln.accuracy(np.array([[np.nan], [-1.0]]), np.array([[-1.0], [-1.0]]))) == 0.5


@pytest.mark.parametrize("loss", [ln.mse, ln.cross_entropy, ln.logistic, ln.accuracy])
def test_complex_outputs_are_refused(loss):
    with pytest.raises(TypeError, match="complex outputs, expected real"):
        loss(np.ones((2, 1)) * 1j, np.ones((2, 1)))


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (
            ln.cross_entropy,
            np.eye(3) - 1 / 3,
            r"y\[0\] is .*expected one-hot or probability targets",
        ),
        (ln.cross_entropy, np.array([[1.0, 0.0], [2.0, -1.0]]), r"y\[1\] is \[2.0, -1.0\]"),
        (ln.cross_entropy, np.array([[1.0, np.nan]]), r"y\[0\] is \[1.0, nan\]"),
        (ln.logistic, np.array([[1.0], [0.0]]), r"y\[1\] is \[0.0\], expected -1 or 1"),
        (jax.tree_util.Partial(ln.logistic), np.array([[True]]) ^ True, "expected -1 or 1"),
    ],
)
def test_targets_of_another_kind_than_the_loss_are_named(loss, targets, message):
    with pytest.raises(ValueError, match=message):
        check_labels(loss, targets)
    with pytest.raises(
        ValueError, match=message.replace("y", "targets", 1) if message.startswith("y") else message
    ):
        loss(np.zeros(targets.shape), targets * 1.0)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (ln.cross_entropy, np.eye(3, dtype=bool)),
        (ln.cross_entropy, np.full((2, 7), 1 / 7, np.float32)),
        (ln.logistic, np.array([[1], [-1]])),
        (ln.mse, np.array([[17.0]])),
        (lambda f, y: 0.0, np.array([[17.0]])),
    ],
)
def test_targets_of_the_right_kind_pass_and_so_do_traced_ones(loss, targets):
    check_labels(loss, targets)
    jax.jit(lambda y: check_labels(loss, y - 5.0) or y)(targets * 1.0)


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_no_finite_positive_number_is_refused(weight):
    with pytest.raises(ValueError, match="weight got"):
        ln.objective(lambda w, x: x * w, ln.mse, weight)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_has_the_losses_of_float32_and_gradients_in_its_own_dtype(dtype):
    f, y = jnp.zeros((33000, 1), dtype), jnp.ones((33000, 1), dtype)
    assert float(ln.mse(f, y)) == 0.5
    assert float(ln.mse(300 * y, f)) == pytest.approx(4.5e4, rel=3e-3)
    assert float(ln.logistic(f, y)) == pytest.approx(np.log(2), rel=1e-6)
    assert float(ln.accuracy(y, y)) == 1.0
    logits, labels = jnp.zeros((1, 70000, 2), dtype), jnp.zeros((1, 70000), jnp.int32)
    rows = jnp.stack([y, f], 1)[..., 0]
    assert float(ln.cross_entropy(0 * rows, rows)) == pytest.approx(np.log(2), rel=1e-6)
    assert float(masked_cross_entropy(logits, labels)) == pytest.approx(np.log(2), rel=1e-6)
    slope = jax.grad(lambda w: ln.mse(w * y, 8 * y))(jnp.zeros((), dtype))
    assert slope.dtype == dtype and float(slope) == -8


def test_probabilities_in_half_precision_may_be_rounded():
    smoothed = (0.9 * np.eye(10) + 0.01).astype(jnp.bfloat16)
    check_labels(ln.cross_entropy, smoothed)
    with pytest.raises(ValueError, match="expected one-hot"):
        check_labels(ln.cross_entropy, smoothed * 1.2)
