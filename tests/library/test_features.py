"""Moving layers, features that collapse, and weights of several losses: closed forms, and trainings with known ends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazynet as ln
from lazynet import diagnostics, trees

KEY = jax.random.key(0)
MODEL = ln.serial(ln.Dense(64), ln.elementwise(jnp.tanh), ln.Dense(2))
X = jax.random.normal(jax.random.key(1), (40, 3))
LABELS = np.asarray(X[:, 0] > 0, int)
Y = jnp.asarray(np.eye(2)[LABELS] - 0.5)
PARAMS0 = MODEL.init(jax.random.key(2), X)


def draws(*shape):
    return np.random.default_rng(0).normal(size=shape)


# ------------------------------------------------------------------------------------------------------
# coordinate check


def test_a_coordinate_check_is_the_change_of_each_layers_output():
    params = jax.tree.map(lambda w: w + 0.1, PARAMS0)
    moved = diagnostics.coordinate_check(MODEL, params, PARAMS0, X)
    first = X @ (params["0_Dense"]["W"] - PARAMS0["0_Dense"]["W"]) / np.sqrt(3)
    change = MODEL.apply(params, X) - MODEL.apply(PARAMS0, X)
    assert set(moved) == {"0_Dense", "2_Dense"}
    np.testing.assert_allclose(moved["0_Dense"], np.sqrt(np.mean(first**2)), rtol=1e-6)
    np.testing.assert_allclose(moved["2_Dense"], np.sqrt(np.mean(change**2)), rtol=1e-6)


def test_a_coordinate_check_of_float16_has_the_squares_of_float32():
    half = jax.tree.map(lambda w: w.astype(jnp.float16), (PARAMS0, X))
    for size in (3e-4, 300):
        params0, x = half[0], jnp.float16(size) * half[1]
        moved = diagnostics.coordinate_check(MODEL, trees.zeros_like(params0), params0, x)
        first = x.astype(jnp.float32) @ PARAMS0["0_Dense"]["W"].astype(jnp.float32) / 3**0.5
        np.testing.assert_allclose(moved["0_Dense"], np.sqrt(np.mean(first**2)), rtol=1e-2)


def test_a_coordinate_check_sees_the_branches_of_a_network():
    model = ln.symmetrize(MODEL)
    params0 = model.init(KEY, X)
    moved = diagnostics.coordinate_check(model, params0, params0, X)
    assert len(moved) == 4 and all(float(value) == 0 for value in moved.values())


def test_a_coordinate_check_without_layers_is_refused():
    with pytest.raises(ValueError, match="no layer with weights"):
        diagnostics.coordinate_check(ln.Relu(), {}, {}, X)


# ------------------------------------------------------------------------------------------------------
# richness


@pytest.mark.parametrize("width", [5, 60])
def test_richness_is_the_alignment_with_the_projection_on_the_outputs(width):
    features, outputs = draws(30, width), draws(30, 2)
    centered = outputs - outputs.mean(0)
    projection = centered @ np.linalg.pinv(centered)
    expected = diagnostics.cka(features @ features.T, projection)
    assert diagnostics.richness(features, outputs) == pytest.approx(float(expected), rel=1e-9)


def test_richness_of_probabilities_is_that_of_the_projection_with_constants_in_its_span():
    features, outputs = draws(30, 7), np.exp(draws(30, 3))
    outputs /= outputs.sum(1, keepdims=True)
    minimum = 0.3 * np.ones((30, 30)) + 2.0 * outputs @ np.linalg.pinv(outputs)
    expected = diagnostics.cka(features @ features.T, minimum)
    assert diagnostics.richness(features, outputs) == pytest.approx(float(expected), rel=1e-9)


def test_collapsed_features_are_rich_at_any_scale_and_rotation():
    classes = np.eye(3)[np.arange(30) % 3]
    rotation, _ = np.linalg.qr(draws(8, 8))
    features = 1e5 * classes @ rotation[:3] + 7
    assert diagnostics.richness(features, classes @ draws(3, 3)) == pytest.approx(1, abs=1e-9)


def test_outputs_that_depend_on_each_other_count_once():
    outputs = draws(30, 1)
    pair = np.concatenate([outputs, -outputs], axis=1)
    features = draws(30, 9)
    value = diagnostics.richness(features, outputs)
    assert diagnostics.richness(features, pair) == pytest.approx(value)


@pytest.mark.extended
def test_rich_training_drops_features_that_no_output_needs_and_lazy_training_keeps_them():
    found = {}
    for alpha in (0.03, 30.0):
        f = ln.lazy(MODEL.apply, PARAMS0, alpha)
        goal = ln.objective(f, ln.mse)
        settings = dict(key=KEY, save_at=[0, 400], learning_rate=0.5)
        u = ln.train(goal, None, ln.Data(X, Y), ln.sgd(), **settings).params
        for state, params in (("start", PARAMS0), ("end", ln.weights(f, u))):
            _, inside = MODEL.trace(params, X)
            found[alpha, state] = diagnostics.richness(inside["2_Dense"][0], f(u, X))
    assert found[30.0, "end"] == pytest.approx(found[30.0, "start"], abs=0.005)
    assert found[0.03, "end"] > found[0.03, "start"] + 0.15


@pytest.mark.parametrize(
    ("features", "outputs", "message"),
    [
        (np.ones((4, 2)), np.eye(4), "features is constant"),
        (np.eye(4), np.ones((4, 1)), "outputs is constant"),
    ],
)
def test_what_has_no_richness_is_named(features, outputs, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.richness(features, outputs)


# ------------------------------------------------------------------------------------------------------
# weights of losses


def network(params, x):
    return MODEL.apply(params, x)


def steep(params, x):
    return jax.vmap(lambda z: jax.jacfwd(lambda t: MODEL.apply(params, t[None])[0])(z)[:, 0])(x) * 9


def test_weights_of_losses_make_the_traces_of_all_blocks_equal():
    x = {"value": X[:6], "slope": X[6:20]}
    residuals = {"value": network, "slope": steep}
    weights = diagnostics.loss_weights(residuals, PARAMS0, x, key=KEY)
    blocks = {name: np.asarray(ln.empirical_ntk(residuals[name], PARAMS0, x[name])) for name in x}
    traces = {name: np.einsum("iiaa->", block) / len(block) for name, block in blocks.items()}
    rates = [weights[name] * traces[name] for name in x]
    np.testing.assert_allclose(rates, np.mean(list(traces.values())), rtol=1e-6)
    assert weights["value"] > 10 * weights["slope"]


@pytest.mark.extended
def test_weights_of_many_points_are_those_of_the_traces_within_their_error():
    x = {"value": X, "slope": X}
    residuals = {"value": network, "slope": steep}
    estimated = diagnostics.loss_weights(residuals, PARAMS0, x, key=KEY)
    exact = diagnostics.loss_weights(residuals, PARAMS0, x, key=KEY, probes=100)
    for name in x:
        assert estimated[name] == pytest.approx(exact[name], rel=0.05)


@pytest.mark.parametrize(
    ("residuals", "x", "message"),
    [
        ({}, {}, "at least one"),
        ({"a": network}, {"b": X}, r"names \['b'\], expected those of the residuals \['a'\]"),
        ({"a": lambda w, x: x}, {"a": X}, "does not change with the parameters"),
    ],
)
def test_residuals_that_cannot_be_weighted_are_named(residuals, x, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.loss_weights(residuals, PARAMS0, x, key=KEY)
