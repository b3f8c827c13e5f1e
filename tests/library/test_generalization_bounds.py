"""Facts about bounds of the generalization gap, against brute force, closed forms and limits."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial, normal

import lazynet as ln
from lazynet.dynamics import leave_one_out
from lazynet.insights import bounds
from lazynet.insights.layers import checked_chain, operator_norm, row_norms
from lazynet.models import spatial

RNG = np.random.default_rng(0)
X = normal(1, 4, 5)
IMAGES = normal(2, 2, 6, 6, 2)
MODEL = ln.serial(ln.Dense(6, 1.3), ln.Relu(), ln.Dense(4, 0.7), ln.LeakyRelu(2.0), ln.Dense(3))
W0 = initial(3, MODEL, X)
U = initial(4, MODEL, X)
CONVOLUTIONS = {
    "SAME": ln.Conv(3, (3, 3), padding="SAME", W_std=1.4),
    "VALID": ln.Conv(3, (3, 2), padding="VALID"),
    "CIRCULAR": ln.Conv(3, (3, 3), padding="CIRCULAR"),
    "strides": ln.Conv(3, (3, 3), (2, 2), "SAME", parameterization="standard", s=(4, 1)),
    "Dense at each position": spatial.Dense(3, 1.4),
}


def dense(model, params, x):
    """The matrix of a layer that is linear but for its biases, column by column."""
    size = x[:1].size
    basis = jnp.eye(size).reshape(size, *x.shape[1:])
    zero = model.apply(params, jnp.zeros_like(x[:1]))
    return np.asarray((model.apply(params, basis) - zero).reshape(size, -1)).T


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_norms_of_convolutions_are_those_of_their_matrix_with_its_borders(name):
    layer = CONVOLUTIONS[name]
    params = initial(5, layer, IMAGES)
    matrix = dense(layer, params, IMAGES)
    (link,) = checked_chain("norms", layer, params, IMAGES)
    np.testing.assert_allclose(operator_norm(link), np.linalg.norm(matrix, 2), rtol=1e-6)
    np.testing.assert_allclose(
        row_norms(link, params["W"], 2).ravel(), np.square(matrix).sum(axis=1), rtol=1e-10
    )
    np.testing.assert_allclose(
        row_norms(link, params["W"], 1).ravel(), np.abs(matrix).sum(axis=1), rtol=1e-10
    )


def matrices(params):
    """Matrices of the three layers of MODEL, with their scales."""
    scales = {"0_Dense": 1.3 / 5**0.5, "2_Dense": 0.7 / 6**0.5, "4_Dense": 1 / 4**0.5}
    return [scale * np.asarray(params[path]["W"]).T for path, scale in scales.items()]


def by_hand(weights, displacements):
    norms = [np.linalg.norm(a, 2) for a in weights]
    ratios = [
        np.linalg.norm(d, axis=1).sum() / norm for d, norm in zip(displacements, norms, strict=True)
    ]
    return 2.0 * math.prod(norms) * sum(ratio ** (2 / 3) for ratio in ratios) ** 1.5


def test_spectral_complexity_is_the_formula_on_the_layers_matrices():
    w = jax.tree.map(jnp.add, W0, U)
    found = bounds.spectral_complexity(MODEL, W0, U, X)
    np.testing.assert_allclose(found, by_hand(matrices(w), matrices(U)), rtol=1e-10)


def test_the_complexity_of_a_lazy_model_is_alpha_times_that_of_its_network():
    alpha = 7.0
    step = jax.tree.map(lambda u: u / alpha, U)
    network = bounds.spectral_complexity(MODEL, W0, step, X)
    lazy = bounds.spectral_complexity(MODEL, W0, U, X, alpha=alpha)
    np.testing.assert_allclose(lazy, alpha * network, rtol=1e-10)


def test_the_complexity_at_alpha_infinite_is_the_limit_of_growing_alpha_at_the_rate_one_over_alpha():
    limit = bounds.spectral_complexity(MODEL, W0, U, X, alpha=math.inf)
    np.testing.assert_allclose(limit, by_hand(matrices(W0), matrices(U)), rtol=1e-10)
    alphas = np.array([1e2, 1e3, 1e4])
    gaps = [
        abs(bounds.spectral_complexity(MODEL, W0, U, X, alpha=float(a)) - limit) for a in alphas
    ]
    slope = np.polyfit(np.log(alphas), np.log(gaps), 1)[0]
    assert abs(slope + 1) < 0.05


def test_the_complexity_of_one_linear_layer_relative_to_zero_is_its_mixed_norm():
    layer = ln.Dense(3)
    w = initial(6, layer, X)
    zero = jax.tree.map(jnp.zeros_like, w)
    rows = np.linalg.norm(np.asarray(w["W"]).T / 5**0.5, axis=1).sum()
    np.testing.assert_allclose(bounds.spectral_complexity(layer, zero, w, X), rows, rtol=1e-10)


def test_normalized_margins_of_a_network_and_of_its_multiple_are_the_same():
    labels = np.array([0, 1, 2, 0])
    zero = jax.tree.map(jnp.zeros_like, W0)
    scaled = W0 | {"4_Dense": {"W": 3.0 * W0["4_Dense"]["W"]}}
    found = [
        bounds.normalized_margins(
            MODEL.apply(w, X), labels, bounds.spectral_complexity(MODEL, zero, w, X), X
        )
        for w in (W0, scaled)
    ]
    np.testing.assert_allclose(*found, rtol=1e-9)
    outputs = np.asarray(MODEL.apply(W0, X))
    others = [max(np.delete(row, y)) for row, y in zip(outputs, labels, strict=True)]
    expected = outputs[np.arange(4), labels] - others
    np.testing.assert_allclose(bounds.margins(outputs, labels), expected, rtol=1e-12)


def test_norm_products_are_the_formulas_on_the_layers_matrices():
    layers = matrices(W0)
    norms = [np.linalg.norm(a, 2) for a in layers]
    square = 4.0 * math.prod(norms) ** 2
    mixed = [np.linalg.norm(a, axis=1).sum() / norm for a, norm in zip(layers, norms, strict=True)]
    stable = [np.linalg.norm(a) ** 2 / norm**2 for a, norm in zip(layers, norms, strict=True)]
    expected = (
        4.0 * math.prod(np.abs(a).sum(axis=1).max() ** 2 for a in layers),
        4.0 * math.prod(np.linalg.norm(a) ** 2 for a in layers),
        square * sum(ratio ** (2 / 3) for ratio in mixed) ** 3,
        square * sum(stable),
    )
    found = bounds.norm_products(MODEL, W0, X, 0.5)
    np.testing.assert_allclose(found, np.array(expected) / 0.25, rtol=1e-9)


def kernel(n, seed=0):
    features = np.random.default_rng(seed).normal(size=(n, n + 2))
    return features @ features.T / n


def test_the_rademacher_complexity_of_one_example_is_its_norm():
    assert bounds.rademacher_ball(4 * np.eye(1), 3.0) == (6.0, 0.0, 6.0)


def test_the_rademacher_complexity_of_few_examples_goes_through_all_signs():
    k = kernel(6)
    signs = itertools.product((1, -1), repeat=6)
    expected = np.mean([math.sqrt(np.array(s) @ k @ np.array(s)) for s in signs]) * 3 / 6
    found = bounds.rademacher_ball(k, 3.0)
    np.testing.assert_allclose(found.value, expected, rtol=1e-12)
    assert found.standard_error == 0 and found.value <= found.bound


def test_the_rademacher_complexity_of_many_examples_is_within_its_error_of_all_signs(monkeypatch):
    k = kernel(10)
    exact = bounds.rademacher_ball(k, 1.0).value
    monkeypatch.setattr(bounds, "EXACT", 4)
    drawn = bounds.rademacher_ball(k, 1.0, key=jax.random.key(0), samples=2000)
    assert 0 < drawn.standard_error < 0.01 * exact
    assert abs(drawn.value - exact) < 4 * drawn.standard_error


def test_the_supremum_over_the_ball_is_the_norm_of_the_signs_in_the_kernel():
    # sup over f = sum_i c_i k(x_i, .) with norm B of 1/n sum_i s_i f(x_i), by its stationary point
    k = kernel(5)
    signs = np.array([1.0, -1, 1, 1, -1])
    c = 2.0 * signs / math.sqrt(signs @ k @ signs)
    assert math.isclose(c @ k @ c, 4.0)
    assert math.isclose(signs @ k @ c / 5, 2.0 / 5 * math.sqrt(signs @ k @ signs))


def test_kernel_complexity_is_the_norm_of_the_function_that_fits_the_labels():
    k = kernel(7)
    y = RNG.normal(size=(7, 2))
    expected = math.sqrt(2 * np.trace(y.T @ np.linalg.inv(k) @ y) / 7)
    assert math.isclose(bounds.kernel_complexity(k, y), expected, rel_tol=1e-9)
    assert bounds.kernel_complexity(k, y[::-1].copy()) != bounds.kernel_complexity(k, y)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_kare_is_generalized_cross_validation(ridge):
    k = kernel(7)
    y = RNG.normal(size=(7, 2))
    hat = k @ np.linalg.inv(k + ridge * np.eye(7))
    if ridge:
        rest = np.eye(7) - hat
        expected = np.square(rest @ y).sum() / 7 / (np.trace(rest) / 7) ** 2
    else:
        inverse = np.linalg.inv(k)
        expected = np.square(inverse @ y).sum() / 7 / (np.trace(inverse) / 7) ** 2
    assert math.isclose(bounds.kare(k, y, ridge=ridge), expected, rel_tol=1e-8)


def test_kare_and_leave_one_out_are_close_to_the_test_error():
    x = RNG.normal(size=(600, 3)) / 2
    y = np.sin(3 * x[:, :1]) + 0.3 * RNG.normal(size=(600, 1))
    k = np.exp(-np.square(x[:, None] - x[None]).sum(axis=2))
    train = k[:300, :300]
    f = k[300:, :300] @ np.linalg.solve(train + 0.1 * np.eye(300), y[:300])
    error = np.square(f - y[300:]).mean()
    left_out = leave_one_out(train, ln.Data(x[:300], y[:300]), ridge=0.1)
    assert 0.8 < bounds.kare(train, y[:300], ridge=0.1) / error < 1.25
    assert 0.8 < np.square(left_out - y[:300]).mean() / error < 1.25


SINGULAR = np.ones((3, 3))
RESIDUAL = ln.residual(ln.Dense(5))
LABELS = np.array([0, 1, 2, 0])
BIASED = ln.Dense(1, b_std=0.0, parameterization="standard")
REFUSED = {
    "a margin of zero": (lambda: bounds.norm_products(MODEL, W0, X, 0.0), "margin got 0"),
    "one class": (lambda: bounds.margins(np.ones((4, 1)), LABELS), "k >= 2 classes"),
    "a singular kernel": (
        lambda: bounds.kernel_complexity(SINGULAR, np.ones((3, 1))),
        "kernel \\+ ridge is singular",
    ),
    "labels of another n": (
        lambda: bounds.margins(np.ones((3, 3)), LABELS),
        "labels has shape \\(4,\\), expected \\(3,\\)",
    ),
    "targets of another n": (
        lambda: bounds.kare(np.eye(3), np.ones((4, 1)), ridge=1.0),
        "expected \\[3, k\\]",
    ),
    "labels that are no classes": (
        lambda: bounds.margins(np.ones((4, 2)), LABELS),
        "expected 0 to 1",
    ),
    "many signs without a key": (
        lambda: bounds.rademacher_ball(np.eye(13), 1.0),
        "without key",
    ),
    "a network with biases": (
        lambda: bounds.norm_products(
            ln.Dense(1, 1.0, 0.1), {"W": jnp.ones((5, 1)), "b": jnp.ones(1)}, X, 1.0
        ),
        "without biases",
    ),
    "biases of the standard parameterization, drawn as zeros and trained": (
        lambda: bounds.norm_products(BIASED, {"W": jnp.ones((5, 1)), "b": jnp.ones(1)}, X, 1.0),
        "without biases",
    ),
    "biases that were trained from zeros": (
        lambda: bounds.spectral_complexity(
            BIASED,
            {"W": jnp.ones((5, 1)), "b": jnp.zeros(1)},
            {"W": jnp.ones((5, 1)), "b": jnp.ones(1)},
            X,
            alpha=math.inf,
        ),
        "without biases",
    ),
    "a residual network": (
        lambda: bounds.norm_products(RESIDUAL, initial(7, RESIDUAL, X), X, 1.0),
        "no link of a chain",
    ),
    "a network that did not move": (
        lambda: bounds.normalized_margins(np.ones((4, 3)), LABELS, 0.0, X),
        "complexity got 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_bound_is_refused(what, unannotated):
    call, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        call()
