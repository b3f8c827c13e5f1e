"""Diagnostics against closed forms: quadratic and linear models, homogeneous networks, kernels made by hand."""

from __future__ import annotations

import math
import pkgutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial, normal
from marks import extended

from lazynet import diagnostics, trees
from lazynet.diagnostics import (
    activation_stability,
    cka,
    fit_slope,
    hessian_norm,
    is_lazy,
    jacobian_norm,
    kappa,
    kernel_cosine_distance,
    kernel_distance,
    kernel_spectrum,
    kernel_velocity,
    layer_drift,
    linearization_gap,
    ntk_change,
    output_gap,
    param_drift,
    tangent_at,
    target_alignment,
)
from lazynet.dynamics import solve_descent
from lazynet.kernels.empirical import empirical_ntk
from lazynet.lazy import lazy, linearize, weights
from lazynet.losses import logistic, mse, objective
from lazynet.models.activations import Erf, Relu
from lazynet.models.layers import Dense, Flatten, MaxPool
from lazynet.models.model import serial, symmetrize
from lazynet.records import Data
from lazynet.training.loop import snapshots, train
from lazynet.training.optimizers import sgd

KEY = jax.random.key(0)
ONE = jnp.ones((1, 1))


@cache
def problem(width=12, activation="erf", doubled=False):
    """A two-layer network, its initialization, and regression data."""
    model = serial(Dense(width, b_std=0.5), {"erf": Erf, "relu": Relu}[activation](), Dense(2))
    x = normal(1, 8, 3)
    params = initial(0, model, x)
    if doubled:
        model, params = symmetrize(model), {"plus": params, "minus": params}
    return model, params, Data(x, normal(2, 8, 2))


def moved(params, size=0.1):
    """Parameters some way off in a fixed random direction."""
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(2)
    return jax.tree.unflatten(
        treedef, [leaf + size * rng.normal(size=leaf.shape) for leaf in leaves]
    )


def rank_one(*entries):
    """`v v'` for the vector v of the entries."""
    v = np.array(entries)[:, None]
    return jnp.asarray(v @ v.T)


# ---- weights and outputs


@pytest.mark.parametrize("size", [1e-6, 0.5])
def test_drift_of_rescaled_weights_is_the_change_of_scale(size):
    _, params, _ = problem()
    assert float(
        param_drift(jax.tree.map(lambda w: (1 + size) * w, params), params)
    ) == pytest.approx(size)


def test_squared_drifts_of_the_layers_add_up_to_that_of_the_network():
    _, params, _ = problem()
    end = moved(params)
    drifts = layer_drift(end, params, relative=False)
    assert set(drifts) == {"0_Dense", "2_Dense"}
    assert math.hypot(*map(float, drifts.values())) == pytest.approx(
        float(param_drift(end, params, relative=False))
    )


def test_only_the_layer_that_moved_has_drifted():
    _, params, _ = problem()
    drifts = layer_drift(params | {"2_Dense": {"W": 3.0 * params["2_Dense"]["W"]}}, params)
    assert {name: float(drift) for name, drift in drifts.items()} == pytest.approx(
        {"0_Dense": 0.0, "2_Dense": 2.0}
    )


def test_drift_of_a_lazy_function_is_that_of_its_weights():
    model, params, _ = problem()
    u = moved(trees.zeros_like(params))
    drift = param_drift(weights(lazy(model.apply, params, 10.0), u), params, relative=False)
    expected = float(param_drift(u, trees.zeros_like(params), relative=False)) / 10
    assert float(drift) == pytest.approx(expected)


def test_gap_of_a_quadratic_model_is_its_second_order_term():
    params = jnp.array([[1.0], [2.0]])
    x = jnp.array([[1.0, 1.0]])
    gap = linearization_gap(lambda w, x: x @ w**2, params + 1.0, params, x)
    assert float(gap) == pytest.approx(2 / 11)


def test_linearized_model_has_no_gap():
    model, params, data = problem()
    assert (
        float(linearization_gap(linearize(model.apply, params), moved(params), params, data.x))
        < 1e-14
    )


def test_gap_of_a_lazy_function_falls_like_one_over_alpha():
    model, params, data = problem()
    zeros, alphas = trees.zeros_like(params), [100.0, 1000.0]
    gaps = [
        float(linearization_gap(lazy(model.apply, params, a), moved(zeros), zeros, data.x))
        for a in alphas
    ]
    assert fit_slope(alphas, gaps) == pytest.approx(-1, abs=0.01)


def test_gap_of_outputs_is_relative_to_the_reference():
    outputs = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    assert float(output_gap(1.25 * outputs, outputs)) == pytest.approx(0.25)


@pytest.mark.extended
def test_kernel_change_by_probes_is_that_of_the_formed_kernels():
    model, params, data = problem()
    end = moved(params, 0.3)
    expected = float(
        kernel_distance(*(empirical_ntk(model.apply, w, data.x) for w in (end, params)))
    )
    change = float(ntk_change(model.apply, end, params, data.x, key=KEY, probes=300))
    assert change == pytest.approx(expected, rel=0.05)


# ---- kernels


def test_kernel_distance_of_a_rescaled_kernel_is_the_change_of_scale():
    kernel = jax.random.normal(KEY, (4, 4, 2, 2))
    assert float(kernel_distance(0.7 * kernel, kernel)) == pytest.approx(0.3)


def test_cosine_distance_does_not_see_the_size_of_a_kernel():
    kernel = rank_one(1.0, 2.0)
    assert float(kernel_cosine_distance(7.0 * kernel, kernel)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("angle", [0.1, 1.0])
def test_cosine_distance_of_rank_one_kernels_follows_from_their_angle(angle):
    distance = kernel_cosine_distance(
        rank_one(1.0, 0.0), rank_one(math.cos(angle), math.sin(angle))
    )
    assert float(distance) == pytest.approx(math.sin(angle) ** 2)


def test_small_cosine_distances_keep_their_digits_in_float32():
    single = (
        rank_one(1.0, 0.0).astype(jnp.float32),
        rank_one(math.cos(1e-4), math.sin(1e-4)).astype(jnp.float32),
    )
    assert float(kernel_cosine_distance(*single)) == pytest.approx(1e-8, rel=0.02)


def test_velocity_is_distance_over_time():
    kernels = [rank_one(1.0, 0.0), rank_one(1.0, 1.0), rank_one(0.0, 1.0)]
    velocities = kernel_velocity(kernels, jnp.array([0.0, 0.5, 2.5]))
    np.testing.assert_allclose(velocities, [0.5 / 0.5, 0.5 / 2.0])


def test_cka_of_features_does_not_see_shifts_rotations_and_scales():
    x = jax.random.normal(KEY, (6, 2))
    y = 3.0 * x @ jnp.array([[0.6, 0.8], [-0.8, 0.6]]) + 5.0
    assert float(cka(x @ x.T, y @ y.T)) == pytest.approx(1)


def test_cka_of_uncorrelated_features_is_zero():
    assert float(
        cka(rank_one(1.0, -1.0, 1.0, -1.0), rank_one(1.0, 1.0, -1.0, -1.0))
    ) == pytest.approx(0, abs=1e-15)


def test_uncentered_cka_is_one_minus_the_cosine_distance():
    a, b = rank_one(1.0, 2.0, 0.5), rank_one(0.3, 1.0, 2.0)
    assert float(cka(a, b, centered=False)) == pytest.approx(
        1 - float(kernel_cosine_distance(a, b))
    )


def test_kernel_of_the_targets_has_alignment_one():
    y = jax.random.normal(KEY, (5, 3))
    full = jnp.einsum("ia,jb->ijab", y, y)
    assert [float(target_alignment(k, y)) for k in (y @ y.T, full)] == pytest.approx([1, 1])


def test_alignment_of_one_output_is_its_quadratic_form():
    y, root = (
        np.random.default_rng(0).normal(size=(5, 1)),
        np.random.default_rng(1).normal(size=(5, 5)),
    )
    kernel = root @ root.T
    expected = (y.T @ kernel @ y).item() / (np.sum(y**2) * np.linalg.norm(kernel))
    assert float(target_alignment(kernel, y)) == pytest.approx(expected)


@pytest.mark.parametrize("n", [4, 9])
def test_alignment_of_the_identity_is_one_over_the_root_of_its_size(n):
    assert float(target_alignment(jnp.eye(n), jnp.ones((n, 1)))) == pytest.approx(1 / math.sqrt(n))


def test_full_kernel_of_one_output_has_the_alignment_of_its_matrix():
    y, kernel = jnp.array([[1.0], [2.0]]), rank_one(1.0, 3.0) + jnp.eye(2)
    assert float(target_alignment(kernel[:, :, None, None], y)) == pytest.approx(
        float(target_alignment(kernel, y))
    )


def test_centered_alignment_does_not_see_constants_in_features_and_targets():
    x = jax.random.normal(KEY, (6, 2))
    shifted = target_alignment((x + 2.0) @ (x + 2.0).T, x + 5.0, centered=True)
    assert float(shifted) == pytest.approx(float(target_alignment(x @ x.T, x, centered=True)))


def test_spectrum_of_a_diagonal_kernel_is_its_diagonal():
    spectrum = kernel_spectrum(
        jnp.diag(jnp.array([1.0, 4.0, 2.0])), jnp.array([[1.0], [2.0], [2.0]])
    )
    np.testing.assert_allclose(spectrum.values, [4, 2, 1])
    np.testing.assert_allclose(spectrum.label_energy, [4 / 9, 4 / 9, 1 / 9])
    assert (spectrum.condition, spectrum.effective_rank) == pytest.approx((4, 49 / 21))


def test_singular_kernel_has_an_infinite_condition_and_effective_rank_one():
    spectrum = kernel_spectrum(rank_one(1.0, 2.0, 3.0))
    assert spectrum.condition == math.inf
    assert spectrum.effective_rank == pytest.approx(1)


def test_spectrum_of_a_full_kernel_of_decoupled_outputs_repeats_that_of_its_matrix():
    kernel, y = rank_one(1.0, 2.0) + jnp.eye(2), jnp.array([[1.0, 0.0], [2.0, 1.0]])
    full = jnp.einsum("ij,ab->ijab", kernel, jnp.eye(2))
    spectrum, decoupled = kernel_spectrum(full, y), kernel_spectrum(kernel, y)
    np.testing.assert_allclose(spectrum.values, np.repeat(decoupled.values, 2))
    np.testing.assert_allclose(spectrum.label_energy.reshape(2, 2).sum(1), decoupled.label_energy)


# ---- activations


def test_gates_are_stable_at_initialization():
    model, params, data = problem(activation="relu")
    stability = activation_stability(model, params, params, data.x)
    assert (float(stability.total), float(stability.relu), stability.max_pool) == (1.0, 1.0, None)


def test_flipping_one_bias_of_four_flips_a_quarter_of_the_gates():
    model = serial(Dense(4, b_std=1.0), Relu(), Dense(1))
    x = jnp.ones((5, 3))
    params = {
        "0_Dense": {"W": jnp.zeros((3, 4)), "b": jnp.ones(4)},
        "2_Dense": {"W": jnp.ones((4, 1))},
    }
    flipped = params | {"0_Dense": {"W": jnp.zeros((3, 4)), "b": jnp.array([1.0, -1.0, 1.0, 1.0])}}
    stability = activation_stability(model, flipped, params, x)
    assert float(stability.relu) == float(stability.layers["1_Relu"]) == 0.75


def test_max_pool_is_stable_where_the_old_winner_still_gives_the_maximum():
    shift = jnp.zeros((2, 4, 1)).at[0, 0, 0].set(2.0)
    add = serial(MaxPool((2, 2), (2, 2)), Flatten())
    traced = add._replace(trace=lambda params, x: add.trace({}, x + params[None]))
    x = jnp.zeros((3, 2, 4, 1)).at[:, 1, 1, 0].set(1.0)
    stability = activation_stability(traced, shift, jnp.zeros_like(shift), x)
    assert (float(stability.max_pool), stability.relu) == (0.5, None)


def test_total_stability_counts_every_gate_and_every_pooled_output_once():
    model = serial(Relu(), MaxPool((2, 2), (2, 2)), Flatten())
    traced = model._replace(trace=lambda params, x: model.trace({}, x + params[None]))
    x = jnp.ones((1, 2, 2, 1))
    change = jnp.zeros((2, 2, 1)).at[0, 0, 0].set(-2.0)
    stability = activation_stability(traced, change, jnp.zeros_like(change), x)
    assert (float(stability.relu), float(stability.max_pool), float(stability.total)) == (
        0.75,
        0.0,
        0.6,
    )


# ---- curvature


def test_jacobian_norm_is_the_largest_singular_value_in_the_empirical_norm():
    model, params, data = problem()
    leaves = jax.tree.leaves(jax.jit(jax.jacrev(model.apply))(params, data.x))
    matrix = np.concatenate([leaf.reshape(16, -1) for leaf in leaves], axis=1)
    expected = np.linalg.norm(matrix, 2) / math.sqrt(8)
    assert jacobian_norm(model.apply, params, data.x, key=KEY) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("eigenvalues", [(3.0, 1.0, 0.5), (2.0, -2.0, 1.0), (-4.0, 1.0, 1.0)])
def test_hessian_norm_of_a_quadratic_form_is_its_largest_absolute_eigenvalue(eigenvalues):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    matrix, x = jnp.asarray(q @ np.diag(eigenvalues) @ q.T), jnp.array([[1.0], [3.0]])
    norm = hessian_norm(
        lambda w, x: x * (w @ matrix @ w) / 2, jnp.ones(3), x, key=KEY, iterations=60
    )
    assert norm == pytest.approx(max(map(abs, eigenvalues)) * math.sqrt(5), rel=1e-6)


def test_hessian_norm_of_decoupled_parameters_is_that_of_the_worst_one():
    x = jnp.diag(jnp.array([1.0, 5.0, 2.0]))
    assert hessian_norm(
        lambda w, x: x @ w**2 / 2, jnp.ones((3, 1)), x, key=KEY, iterations=40
    ) == pytest.approx(5 / math.sqrt(3), rel=1e-6)


def test_hessian_norm_of_a_linear_model_is_zero():
    assert hessian_norm(lambda w, x: x @ w, jnp.ones((3, 1)), jnp.eye(3), key=KEY) == 0.0


@pytest.mark.extended
def test_hessian_norm_increases_with_the_rounds():
    model, params, data = problem()
    norms = [
        hessian_norm(model.apply, params, data.x, key=KEY, iterations=i, restarts=1)
        for i in (1, 3, 10)
    ]
    assert norms == sorted(norms)


@pytest.mark.extended
def test_kappa_of_a_model_that_starts_at_zero_falls_like_one_over_alpha():
    model, params, data = problem(doubled=True)
    alphas = [1.0, 10.0, 100.0]
    values = [kappa(model.apply, params, data, key=KEY, alpha=alpha) for alpha in alphas]
    assert fit_slope(alphas, values) == pytest.approx(-1, abs=1e-9)


@pytest.mark.extended
def test_kappa_of_a_two_homogeneous_network_falls_like_the_square_of_the_weights():
    model, data = problem()[0], problem()[2]
    model = symmetrize(serial(Dense(6), Relu(), Dense(2)))
    params = jax.jit(model.init)(jax.random.key(3), data.x)
    scales = [1.0, 2.0, 4.0]
    values = [
        kappa(model.apply, jax.tree.map(lambda w, s=s: s * w, params), data, key=KEY)
        for s in scales
    ]
    assert fit_slope(scales, values) == pytest.approx(-2, abs=1e-6)


@pytest.mark.extended
def test_kappa_of_a_lazy_function_is_that_of_the_scaled_model():
    model, params, data = problem(doubled=True)
    expected = kappa(model.apply, params, data, key=KEY, alpha=30.0)
    assert kappa(
        lazy(model.apply, params, 30.0), trees.zeros_like(params), data, key=KEY
    ) == pytest.approx(expected)


@pytest.mark.extended
def test_kappa_of_the_tangent_model_is_zero():
    model, params, data = problem()
    assert (
        kappa(lazy(model.apply, params, math.inf), trees.zeros_like(params), data, key=KEY) == 0.0
    )


def test_kappa_at_infinite_alpha_is_that_of_the_outputs_at_initialization():
    model, params, data = problem()
    expected = kappa(model.apply, params, data._replace(y=jnp.zeros_like(data.y)), key=KEY)
    assert kappa(model.apply, params, data, key=KEY, alpha=math.inf) == pytest.approx(expected)


def test_general_kappa_of_the_square_loss_is_half_of_its_own_form_for_one_output():
    square, data = (lambda w, x: x @ w**2), Data(ONE, 3.0 * ONE)
    general = kappa(square, 2.0 * ONE, data, key=KEY, loss=mse)
    assert general == pytest.approx(kappa(square, 2.0 * ONE, data, key=KEY) / 2)


# ---- the tangent at later weights


@cache
def trained(steps=60):
    """A small network that is not lazy, trained for a while and for longer, both by the same steps."""
    model, params, data = problem(width=6)
    states = snapshots(
        objective(model.apply, mse),
        params,
        data,
        sgd(),
        key=KEY,
        save_at=[steps, 2 * steps],
        learning_rate=0.5,
    )
    return model, params, data, *(state.params for state in states)


@pytest.mark.extended
def test_tangent_at_later_weights_touches_the_network_there_to_first_order():
    model, _, data, later, _ = trained()
    tangent = tangent_at(model.apply, later)
    np.testing.assert_allclose(tangent.apply(later, data.x), model.apply(later, data.x))
    sizes, gaps = [1e-3, 1e-2], []
    for size in sizes:
        near = moved(later, size)
        gaps.append(
            float(jnp.max(jnp.abs(tangent.apply(near, data.x) - model.apply(near, data.x))))
        )
    assert fit_slope(sizes, gaps) == pytest.approx(2, abs=0.05)


@pytest.mark.extended
def test_kernel_of_the_tangent_is_that_of_the_later_weights_for_the_model_and_its_tangent():
    model, params, data, later, _ = trained()
    tangent = tangent_at(model.apply, later)
    kernel = tangent.kernel(data.x, outputs="trace")
    np.testing.assert_allclose(
        kernel, empirical_ntk(model.apply, later, data.x, outputs="trace"), rtol=1e-12
    )
    np.testing.assert_allclose(
        kernel, empirical_ntk(tangent.apply, params, data.x, outputs="trace"), rtol=1e-10
    )
    assert (
        float(kernel_distance(kernel, empirical_ntk(model.apply, params, data.x, outputs="trace")))
        > 0.1
    )


@pytest.mark.extended
def test_kernel_of_later_weights_predicts_later_training_better_than_the_initial_one():
    model, params, data, later, end = trained()
    start, outputs = model.apply(later, data.x), model.apply(end, data.x)
    settings = dict(learning_rate=0.5, save_at=[60], f0=start)
    gaps = [
        float(
            output_gap(jnp.asarray(solve_descent(kernel, data.y, **settings).outputs[0]), outputs)
        )
        for kernel in (tangent_at(model.apply, w).kernel(data.x) for w in (later, params))
    ]
    assert gaps[0] < gaps[1] / 2


@pytest.mark.extended
def test_training_the_tangent_is_descent_with_its_kernel_from_the_later_outputs():
    model, _, data, later, _ = trained()
    tangent = tangent_at(model.apply, later)
    settings = dict(save_at=[40], learning_rate=0.3)
    direct = train(
        objective(tangent.apply, mse), tangent.params, data, sgd(0.5), key=KEY, **settings
    )
    exact = solve_descent(
        tangent.kernel(data.x), data.y, f0=model.apply(later, data.x), momentum=0.5, **settings
    )
    np.testing.assert_allclose(tangent.apply(direct.params, data.x), exact.outputs[0], atol=1e-9)


# ---- rates and the verdict


@pytest.mark.parametrize("power", [-2.0, -0.5, 1.0])
def test_slope_of_a_power_law_is_its_exponent(power):
    x = np.geomspace(1, 1000, 7)
    assert fit_slope(x, 3 * x**power) == pytest.approx(power, abs=1e-12)


@pytest.mark.parametrize(
    ("width", "alpha", "expected"),
    [
        extended(16, 1.0, False),
        extended(16, 100.0, True),
        pytest.param(4096, 1.0, True, marks=pytest.mark.slow),
    ],
)
def test_verdict_is_lazy_for_wide_networks_and_large_alpha(width, alpha, expected):
    model, _, data = problem(width=width, activation="relu")
    params = jax.jit(model.init)(jax.random.key(4), data.x)
    verdict = is_lazy(lazy(model.apply, params, alpha), trees.zeros_like(params), data, key=KEY)
    assert verdict.verdict is expected


def test_verdict_of_the_tangent_model_measures_nothing():
    model, params, data = problem()
    result = is_lazy(lazy(model.apply, params, math.inf), trees.zeros_like(params), data, key=KEY)
    assert (result.kappa, result.ntk_change, result.verdict) == (0.0, 0.0, True)


def test_verdict_of_a_diverged_run_is_not_lazy():
    model, params, data = problem()
    assert not is_lazy(model.apply, params, data, key=KEY, learning_rate=1e30).verdict


@pytest.mark.extended
def test_float32_weights_give_float32_diagnostics():
    model, params, data = jax.tree.map(lambda leaf: leaf, problem(activation="relu"))
    params, x = jax.tree.map(lambda w: w.astype(jnp.float32), (params, data.x))
    end = jax.tree.map(lambda w: 1.5 * w, params)
    values = [
        param_drift(end, params),
        linearization_gap(model.apply, end, params, x),
        ntk_change(model.apply, end, params, x, key=KEY, probes=2),
        activation_stability(model, end, params, x).total,
    ]
    assert {value.dtype for value in values} == {jnp.dtype(jnp.float32)}


@pytest.mark.extended
def test_flax_module_has_every_diagnostic_that_needs_no_layers():
    linen = pytest.importorskip("flax.linen")
    module = linen.Sequential([linen.Dense(8), jnp.tanh, linen.Dense(1)])
    x = jax.random.normal(KEY, (4, 3), jnp.float32)
    with jax.numpy_rank_promotion("allow"):
        params = module.init(KEY, x)
        laziness = kappa(module.apply, params, Data(x, x[:, :1]), key=KEY)
        gap = linearization_gap(module.apply, params, params, x)
    assert laziness > 0
    assert float(gap) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: param_drift({"w": ONE}, {"w": jnp.ones(2)}),
            r"params\['w'\] has shape \(1, 1\), expected \(2,\)",
        ),
        (
            lambda: output_gap(ONE, jnp.ones((2, 1))),
            r"outputs of shape \(1, 1\) and reference of shape \(2, 1\)",
        ),
        (
            lambda: kernel_distance(ONE, jnp.ones((2, 2))),
            r"kernels of shapes \(1, 1\) and \(2, 2\)",
        ),
        (lambda: kernel_velocity([ONE, ONE], np.array([0.0])), "2 kernels and 1 times"),
        (lambda: kernel_velocity([ONE, ONE], np.array([1.0, 1.0])), "do not increase"),
        (
            lambda: target_alignment(jnp.eye(2), jnp.ones((3, 1))),
            r"\(2, 2\) with targets of shape \(3, 1\)",
        ),
        (
            lambda: kernel_spectrum(np.eye(2), np.ones((3, 1))),
            r"kernel of shape \(2, 2\) with targets",
        ),
        (lambda: kernel_spectrum(np.array([[1.0, 2.0], [0.0, 1.0]])), "not symmetric"),
        (lambda: kernel_spectrum(np.full((2, 2), np.nan)), "4 entries that are not finite"),
        (lambda: kernel_velocity([ONE, ONE], np.array([0.0, np.nan])), "do not increase"),
        (
            lambda: activation_stability(problem()[0], problem()[1], problem()[1], problem()[2].x),
            "no layer with gates",
        ),
        (
            lambda: hessian_norm(lambda w, x: x @ w, ONE, ONE, key=KEY, restarts=0),
            "restarts got 0, expected",
        ),
        (
            lambda: kappa(lambda w, x: x @ w, ONE, Data(ONE, ONE), key=KEY, alpha=0.0),
            "alpha got 0.0, expected",
        ),
        (
            lambda: kappa(
                lambda w, x: x @ w, ONE, Data(ONE, ONE), key=KEY, alpha=math.inf, loss=mse
            ),
            "alpha got inf, .* without a loss",
        ),
        (
            lambda: ntk_change(lambda w, x: x @ w, ONE, ONE, ONE, key=KEY, probes=0),
            "probes got 0, expected",
        ),
        (
            lambda: is_lazy(lambda w, x: x @ w, ONE, Data(ONE, ONE), key=KEY, steps=0),
            "steps got 0, expected",
        ),
        (lambda: fit_slope([1.0, 2.0], [1.0, 0.0]), "y is .* expected positive finite"),
        (lambda: fit_slope([1.0, math.inf], [1.0, 1.0]), "x is .* expected positive finite"),
        (lambda: fit_slope([1.0], [1.0]), r"expected the same \[s\], s >= 2"),
    ],
)
def test_bad_input_is_named_with_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- values at the edges


@pytest.mark.parametrize("size", [1e-15, 1e20, 1e30])
def test_hessian_norm_scales_with_the_weights_of_a_cube_where_squares_leave_float32(size):
    x = jnp.eye(3, dtype=jnp.float32)
    norm = hessian_norm(
        lambda w, x: x @ w**3, jnp.full((3, 1), size, jnp.float32), x, key=KEY, iterations=40
    )
    assert norm == pytest.approx(6 * size / math.sqrt(3), rel=1e-4)


@pytest.mark.parametrize("measure", [hessian_norm, jacobian_norm])
def test_norms_of_derivatives_refuse_weights_and_inputs_that_are_not_finite(measure):
    model, params, data = problem()
    with pytest.raises(ValueError, match=r"params\['0_Dense'\]\['W'\] has .* NaN"):
        measure(model.apply, jax.tree.map(lambda w: w * jnp.nan, params), data.x, key=KEY)
    with pytest.raises(ValueError, match="x has 24 NaN"):
        measure(model.apply, params, data.x * jnp.nan, key=KEY)
    with pytest.raises(ValueError, match="same number of examples >= 1"):
        measure(model.apply, params, data.x[:0], key=KEY)


def test_a_curvature_that_overflows_is_refused():
    with pytest.raises(ValueError, match="hessian_norm met .* use float64"):
        hessian_norm(lambda w, x: jnp.sqrt(x @ (w - 1)), ONE, ONE, key=KEY)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)])
def test_kappa_refuses_targets_that_would_broadcast(rows):
    model, params, data = problem()
    with pytest.raises(ValueError, match=r"targets have shape .* expected \(8, 2\) as the outputs"):
        kappa(model.apply, params, data._replace(y=data.y[rows, :1]), key=KEY)


def test_kappa_of_integer_targets_is_that_of_the_same_numbers():
    square, y = (lambda w, x: x @ w**2), np.array([[3]])
    expected = kappa(square, ONE, Data(ONE, jnp.asarray(y, float)), key=KEY)
    assert kappa(square, ONE, Data(ONE, y), key=KEY) == expected


@pytest.mark.extended
def test_curvature_of_a_function_of_a_dictionary_is_that_of_the_same_function_of_its_arrays():
    w, a = normal(3, 3, 2), normal(4, 5, 3)
    named, plain = (lambda w, x: jnp.tanh(x["a"] @ w) * x["scale"]), (lambda w, x: jnp.tanh(x @ w))
    tree = {"a": a, "scale": jnp.ones((5, 1))}
    for measure in (jacobian_norm, hessian_norm):
        assert measure(named, w, tree, key=KEY) == pytest.approx(
            measure(plain, w, a, key=KEY), rel=1e-12
        )


@pytest.mark.parametrize("measure", [kappa, is_lazy])
def test_a_function_that_mixes_the_examples_has_no_laziness(measure):
    _, _, data = problem()
    with pytest.raises(ValueError, match="mixes the examples"):
        measure(
            lambda w, x: jnp.tanh(x @ w) - jnp.mean(jnp.tanh(x @ w), axis=0, keepdims=True),
            normal(3, 3, 2),
            data,
            key=KEY,
        )


def test_kappa_where_the_differential_is_zero_is_refused():
    with pytest.raises(ValueError, match="derivative of apply is zero"):
        kappa(lambda w, x: x @ w**2, 0 * ONE, Data(ONE, ONE), key=KEY)


@pytest.mark.parametrize("learning_rate", [0.0, -0.1, math.nan, math.inf])
def test_there_is_no_verdict_without_a_rate(learning_rate):
    model, params, data = problem()
    with pytest.raises(ValueError, match="learning_rate got .* expected a finite number > 0"):
        is_lazy(model.apply, params, data, learning_rate=learning_rate)


@pytest.mark.parametrize("alpha", [None, 10.0])
@pytest.mark.extended
def test_there_is_no_verdict_where_only_rounding_moved(alpha):
    model, params, data = problem()
    start = params if alpha is None else trees.zeros_like(params)
    function = model.apply if alpha is None else lazy(model.apply, params, alpha)
    with pytest.raises(
        ValueError,
        match="is_lazy moved weights of norm .* expected at least 10 times their rounding",
    ):
        is_lazy(function, start, data, learning_rate=1e-30)


def test_thresholds_of_unknown_names_are_refused():
    model, params, data = problem()
    with pytest.raises(
        ValueError, match=r"thresholds got {'kapa': 1.0}, expected a dictionary of some of kappa"
    ):
        is_lazy(model.apply, params, data, thresholds={"kapa": 1.0})


def test_more_rounds_and_starts_barely_change_kappa():
    model, params, data = problem()
    quick, thorough = (
        is_lazy(model.apply, params, data, **more)
        for more in ({}, {"iterations": 20, "restarts": 3})
    )
    assert quick.kappa == pytest.approx(thorough.kappa, rel=0.1)


def test_stability_of_gates_that_see_nan_is_nan():
    model, params, data = problem(activation="relu")
    stability = activation_stability(
        model, jax.tree.map(lambda w: w * jnp.nan, params), params, data.x
    )
    assert np.isnan([float(stability.total), float(stability.relu)]).all()


def test_drift_and_gaps_of_nan_weights_are_nan():
    model, params, data = problem()
    end = jax.tree.map(lambda w: w * jnp.nan, params)
    gap = linearization_gap(model.apply, end, params, data.x)
    change = ntk_change(model.apply, end, params, data.x, key=KEY, probes=1)
    assert np.isnan([float(param_drift(end, params)), float(gap), float(change)]).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_drift_distance_and_alignment_do_not_see_the_scale_of_float32(size):
    start, end = (jnp.asarray(size * np.array(v), jnp.float32) for v in ([3.0, 4.0], [3.0, 9.0]))
    assert float(param_drift(end, start)) == pytest.approx(1, rel=1e-6)
    single = jnp.asarray([[2.0, 1.0], [1.0, 3.0]], jnp.float32)
    y = jnp.asarray([[1.0], [-1.0]], jnp.float32)
    large = jnp.float32(size) * single
    assert float(kernel_distance(1.5 * large, large)) == pytest.approx(0.5, rel=1e-6)
    assert float(cka(large, single)) == pytest.approx(1, rel=1e-6)
    expected = float(target_alignment(single, y))
    assert float(target_alignment(large, size * y)) == pytest.approx(expected, rel=1e-6)


def test_kernels_of_integers_are_compared_as_numbers():
    a, b = np.array([[2, 1], [1, 3]]), np.array([[1, 0], [0, 1]])
    assert float(kernel_distance(a, b)) == pytest.approx(math.sqrt(7 / 2))
    assert float(cka(a, b, centered=False)) == pytest.approx(5 / math.sqrt(15 * 2))


CONSTANT = np.ones((3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cka(np.ones((3, 2)), np.ones((3, 2))),
            r"kernel1 has shape \(3, 2\), expected \[n, n\]",
        ),
        (lambda: cka(np.eye(1), np.eye(1)), "kernel1 is constant over the examples"),
        (lambda: cka(np.eye(3), 5 * CONSTANT), "kernel2 is constant over the examples"),
        (lambda: cka(0 * CONSTANT, CONSTANT, centered=False), "kernel1 is zero"),
        (
            lambda: target_alignment(np.eye(3), CONSTANT[:, :1], centered=True),
            "y is constant over the examples",
        ),
        (lambda: target_alignment(CONSTANT[:1], CONSTANT), r"kernel has shape \(1, 3\)"),
        (lambda: target_alignment(np.eye(3), np.ones(3)), r"targets of shape \(3,\)"),
        (lambda: target_alignment(np.eye(3), 0 * CONSTANT), "y is zero"),
        (lambda: kernel_velocity(CONSTANT, np.arange(3.0)), r"kernels\[0\] has shape \(3,\)"),
        (
            lambda: kernel_velocity([CONSTANT, np.eye(2)], np.arange(2.0)),
            r"kernels of shapes \(2, 2\) and \(3, 3\)",
        ),
        (
            lambda: kernel_velocity([CONSTANT, CONSTANT], np.array([0.0, math.inf])),
            "do not increase",
        ),
        (lambda: kernel_distance(CONSTANT[:0], CONSTANT[:0]), "not empty"),
        (lambda: output_gap(CONSTANT[:0], CONSTANT[:0]), "not empty"),
        (lambda: kernel_spectrum(np.eye(2), np.zeros((2, 1))), "y is zero"),
        (lambda: kernel_spectrum(np.eye(2), np.ones(2)), r"targets of shape \(2,\)"),
        (lambda: kernel_spectrum(np.eye(2), np.full((2, 1), np.nan)), "y has 2 NaN"),
        (lambda: kernel_spectrum(np.zeros((2, 2))), "kernel is zero"),
        (lambda: kernel_spectrum(np.zeros((0, 0))), r"kernel has shape \(0, 0\)"),
        (lambda: fit_slope([2.0, 2.0], [1.0, 3.0]), "expected at least two different values"),
        (lambda: param_drift({}, {}), "params got no arrays with entries"),
    ],
)
def test_what_has_no_value_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_diagnostic_is_exported():
    modules = [module.name for module in pkgutil.iter_modules(diagnostics.__path__)]
    assert "gates" in modules
    names = {name for module in modules for name in getattr(diagnostics, module).__all__}
    assert set(diagnostics.__all__) == names | {"Tangent", "tangent_at"}


def test_the_drift_of_complex_weights_is_real_and_that_of_their_real_and_imaginary_parts():
    w, w0 = np.array([3.0 + 1j, 2.0 - 1j]), np.array([1.0 + 2j, 2.0 + 3j])
    drift = diagnostics.param_drift(w, w0)
    assert drift.dtype == np.float64
    np.testing.assert_allclose(drift, np.linalg.norm(w - w0) / np.linalg.norm(w0), rtol=1e-14)


def test_half_precision_counts_more_gates_than_it_can_number():
    model = serial(Dense(64), Relu(), Dense(1))
    x = jax.random.normal(jax.random.key(0), (1100, 4), jnp.float16)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), model.init(jax.random.key(1), x))
    stability = activation_stability(model, params, params, x)
    assert float(stability.total) == float(stability.layers["1_Relu"]) == 1.0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_norms_of_half_precision_are_those_of_float32(dtype):
    ones, y = jnp.ones((300, 300), dtype), jnp.ones((300, 1), dtype)
    assert float(trees.norm(ones)) == 300 and float(param_drift(1.5 * ones, ones)) == 0.5
    assert float(target_alignment(ones, y)) == pytest.approx(1, rel=1e-6)
    assert float(cka(ones, ones, centered=False)) == pytest.approx(1, rel=1e-6)
    diagonal = jnp.eye(300, dtype=dtype)
    assert float(kernel_cosine_distance(ones, diagonal)) == pytest.approx(1 - 300**-0.5, rel=1e-6)


def test_the_hessian_norm_of_half_precision_is_that_of_its_values():
    weights, x = jnp.ones((1, 1), jnp.float16), jnp.full((300, 1), 3, jnp.float16)
    found = hessian_norm(lambda w, x: x @ (w**2), weights, x, key=KEY, iterations=3, restarts=1)
    assert found == pytest.approx(6, rel=1e-3)


def test_kappa_refuses_targets_that_are_none_of_its_loss():
    with pytest.raises(ValueError, match="expected -1 or 1 for logistic"):
        kappa(lambda w, x: x @ w**2, ONE, Data(ONE, 0 * ONE), key=KEY, loss=logistic)


def test_the_spectrum_of_whole_numbers_is_that_of_float64():
    kernel = np.array([[100000001, 100000000], [100000000, 100000001]])
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(False):
        values = kernel_spectrum(kernel).values
    np.testing.assert_allclose(values, [200000001, 1], rtol=1e-6)


def test_a_single_layer_is_found_under_its_own_name():
    stability = activation_stability(Relu(), {}, {}, -jnp.ones((2, 3)))
    assert stability.layers.keys() == {"Relu"} and float(stability.total) == 1
    dense = Dense(4)
    start = dense.init(KEY, ONE)
    moved = diagnostics.coordinate_check(dense, trees.zeros_like(start), start, ONE)
    size = np.sqrt(np.mean(np.square(start["W"])))
    assert moved.keys() == {"Dense"} and float(moved["Dense"]) == pytest.approx(size, rel=1e-6)
