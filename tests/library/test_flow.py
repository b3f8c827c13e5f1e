"""Oracles: matrix exponentials, literal loops, neural-tangents' recorded outputs, and limits known on paper.

The golden file holds outputs of neural-tangents 0.6.5 in float64: `mse` (gradient_descent_mse,
learning rate 0.7, whose loss is averaged over examples and outputs) and `ce` (gradient_descent,
learning rate 1, loss averaged over examples).
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended
from scipy.linalg import expm

from lazynet import dynamics
from lazynet.linalg import eigh, kernel_matrix, psd_eigh
from lazynet.losses import cross_entropy, logistic, mse
from lazynet.records import Data, Gram

TIMES = [0.0, 0.3, 2.0, 50.0]


@functools.cache
def golden():
    return dict(np.load(Path(__file__).resolve().parents[1] / "golden" / "predict.npz"))


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def _problem(n=6, m=4, k=3, full=False, rank=None):
    """Jacobians of a linear model, so that train and test kernels belong together; f0, f0_test and targets."""
    outputs = k if full else 1
    jacobian = _normal((n + m) * outputs, rank or 2 * n * outputs)
    gram = jacobian @ jacobian.T / n
    if full:
        gram = gram.reshape(n + m, k, n + m, k).transpose(0, 2, 1, 3)
    return (
        gram[:n, :n],
        gram[n:, :n],
        *(_normal(size, k, seed=seed) for size, seed in ((n, 1), (n, 2), (m, 3))),
    )


def _data(y):
    return Data(x=np.zeros((len(y), 1)), y=y)


def _matrix(kernel, k):
    """The kernel acting on flattened [n, k] outputs, written independently of the library."""
    if kernel.ndim == 2:
        return np.kron(kernel, np.eye(k))
    return np.block(
        [[kernel[i, j] for j in range(kernel.shape[1])] for i in range(kernel.shape[0])]
    )


# -------------------------------------------------------------------------------------------------
# flow, square loss


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("rank", [None, 3])
def test_the_mse_flow_is_the_matrix_exponential_of_the_joint_system(full, rank):
    ntk, cross, y, f0, g0 = _problem(full=full, rank=rank)
    n, k = y.shape
    joint = np.vstack([_matrix(ntk, k), _matrix(cross, k)])
    generator = np.zeros((joint.shape[0] + 1,) * 2)
    generator[:-1, : n * k], generator[:-1, -1] = -joint / n, joint @ y.ravel() / n
    start = np.concatenate([f0.ravel(), g0.ravel(), [1.0]])
    solution = dynamics.solve_flow(ntk, y, time=TIMES, f0=f0)
    test = dynamics.kernel_outputs(cross, solution.coefficients, g0)
    for i, time in enumerate(TIMES):
        expected = (expm(generator * time) @ start)[:-1]
        np.testing.assert_allclose(
            solution.outputs[i].ravel(), expected[: n * k], rtol=1e-9, atol=1e-10
        )
        np.testing.assert_allclose(test[i].ravel(), expected[n * k :], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("full", [False, True])
def test_training_outputs_are_the_kernel_times_the_dual_coefficients(full):
    ntk, _, y, f0, _ = _problem(full=full)
    for solution in (
        dynamics.solve_flow(ntk, y, time=TIMES, f0=f0),
        dynamics.solve_descent(ntk, y, learning_rate=0.1, momentum=0.5, save_at=[0, 9], f0=f0),
    ):
        np.testing.assert_allclose(
            dynamics.kernel_outputs(ntk, solution.coefficients, f0), solution.outputs, atol=1e-10
        )


def test_the_full_kernel_of_decoupled_outputs_gives_the_flow_of_the_small_one():
    ntk, cross, y, f0, g0 = _problem()
    full, full_cross = (kernel[:, :, None, None] * np.eye(3) for kernel in (ntk, cross))
    time = [*TIMES, np.inf]
    small, large = (
        dynamics.gradient_flow(a, _data(y), time=time, f0=f0, cross=b, test=_data(g0), f0_test=g0)
        for a, b in ((ntk, cross), (full, full_cross))
    )
    for name in ("train_loss", "test_loss", "test_accuracy"):
        np.testing.assert_allclose(small.metrics[name], large.metrics[name], rtol=1e-9, atol=1e-12)


def test_a_null_direction_of_the_kernel_moves_test_outputs_at_a_constant_rate():
    cross = np.array([[0.0, 1.0]])
    solution = dynamics.solve_flow(
        np.diag([1.0, 0.0]), np.array([[0.0], [-1.0]]), time=[0.0, 3.0, 1e6]
    )
    test = dynamics.kernel_outputs(cross, solution.coefficients)[:, 0, 0]
    np.testing.assert_allclose(test, [0.0, -1.5, -5e5], rtol=1e-14)


@pytest.mark.parametrize("small", [1e-300, 1e-14, 0.0, -1e-14, -1e-6])
def test_a_tiny_eigenvalue_of_either_sign_has_the_limit_of_a_zero_one(small):
    ntk = np.diag([1.0, small])
    y = np.array([[1.0], [1.0]])
    for solution in (
        dynamics.solve_flow(ntk, y, time=[10.0]),
        dynamics.solve_descent(ntk, y, learning_rate=0.1, save_at=[100]),
    ):
        np.testing.assert_allclose(solution.coefficients[0, 1, 0], 5.0, rtol=1e-12)
        np.testing.assert_allclose(solution.outputs[0, 1, 0], max(small, 0.0) * 5.0, rtol=1e-12)


def test_rounding_noise_of_a_float32_kernel_does_not_grow_over_long_times():
    noisy = (_problem(n=40, rank=5)[0] + 1e-6 * np.diag(_normal(40))).astype(np.float32)
    curve = dynamics.gradient_flow(noisy, _data(_normal(40, 2)), time=np.logspace(-2, 8, 30))
    assert (np.diff(curve.metrics["train_loss"]) <= 0).all()


def test_at_infinite_time_the_flow_follows_the_pseudo_inverse():
    ntk, cross, y, f0, g0 = _problem(rank=3)
    solution = dynamics.solve_flow(ntk, y, time=[1.0, np.inf], f0=f0)
    dual = np.linalg.pinv(ntk, hermitian=True) @ (y - f0)
    np.testing.assert_allclose(solution.coefficients[1], dual, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(
        dynamics.kernel_outputs(cross, solution.coefficients, g0)[1], g0 + cross @ dual, atol=1e-9
    )


def test_a_definite_kernel_interpolates_at_infinite_time():
    ntk, _, y, f0, _ = _problem()
    np.testing.assert_allclose(
        dynamics.solve_flow(ntk, y, time=np.inf, f0=f0).outputs[0], y, rtol=1e-10
    )


def test_the_mse_flow_agrees_with_neural_tangents_whose_loss_averages_over_outputs():
    z = golden()
    time = np.append(z["mse/t"] * 0.7 / z["mse/y"].shape[1], np.inf)
    solution = dynamics.solve_flow(z["mse/k_train_train"], z["mse/y"], time=time, f0=z["mse/f0"])
    test = dynamics.kernel_outputs(z["mse/k_test_train"], solution.coefficients, z["mse/g0"])
    np.testing.assert_allclose(solution.outputs[:-1], z["mse/f_train"], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(test[:-1], z["mse/f_test"], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(test[-1], z["mse/f_test_inf"], rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------------------------------------------
# flow, other losses


def _square_loss(outputs, targets):
    return mse(outputs, targets)


@pytest.mark.parametrize("full", [False, extended(True)])
@pytest.mark.extended
def test_integration_of_the_square_loss_agrees_with_its_closed_form(full):
    ntk, _, y, f0, _ = _problem(full=full)
    closed = dynamics.solve_flow(ntk, y, time=TIMES, f0=f0)
    integrated = dynamics.solve_flow(ntk, y, time=TIMES, f0=f0, loss=_square_loss)
    np.testing.assert_allclose(integrated.outputs, closed.outputs, atol=1e-7)
    np.testing.assert_allclose(integrated.coefficients, closed.coefficients, atol=1e-7)


def _golden_cross_entropy(**settings):
    z = golden()
    y = np.eye(3)[z["ce/labels"]]
    return dynamics.solve_flow(
        z["mse/k_train_train"], y, loss=cross_entropy, f0=z["mse/f0"], **settings
    )


@pytest.mark.extended
def test_the_cross_entropy_flow_agrees_with_neural_tangents():
    z = golden()
    solution = _golden_cross_entropy(time=z["ce/t"])
    test = dynamics.kernel_outputs(z["mse/k_test_train"], solution.coefficients, z["mse/g0"])
    np.testing.assert_allclose(solution.outputs, z["ce/f_train"], atol=1e-7)
    np.testing.assert_allclose(test, z["ce/f_test"], atol=1e-7)


@pytest.mark.extended
def test_the_heavy_ball_flow_agrees_with_neural_tangents():
    z = golden()
    solution = _golden_cross_entropy(
        time=np.sqrt(0.1) * z["ce/t"], friction=(1 - 0.9) / np.sqrt(0.1)
    )
    test = dynamics.kernel_outputs(z["mse/k_test_train"], solution.coefficients, z["mse/g0"])
    np.testing.assert_allclose(solution.outputs, z["ce_mom/f_train"], atol=1e-7)
    np.testing.assert_allclose(test, z["ce_mom/f_test"], atol=1e-7)


@pytest.mark.parametrize("friction", [None, extended(0.3)])
@pytest.mark.extended
def test_the_default_precision_of_an_integration_is_nine_digits(friction):
    settings = dict(time=[1.0, 5.0, 40.0], friction=friction)
    default, tight = (
        _golden_cross_entropy(**settings, **more).outputs for more in ({}, {"rtol": 1e-12})
    )
    np.testing.assert_allclose(default, tight, rtol=0, atol=1e-9)


@pytest.mark.extended
def test_the_curve_of_the_heavy_ball_oscillates_as_its_modes_do():
    """A mode `x'' + gamma x' + lambda/n x = 0` from x = 1, x' = 0."""
    gamma, time = 0.4, np.array([0.0, 1.0, 3.0, 9.0])
    curve = dynamics.gradient_flow(
        np.array([[4.0]]), _data(np.ones((1, 1))), time=time, friction=gamma
    )
    omega = np.sqrt(4.0 - gamma**2 / 4)
    residual = np.exp(-gamma * time / 2) * (
        np.cos(omega * time) + gamma / (2 * omega) * np.sin(omega * time)
    )
    np.testing.assert_allclose(curve.metrics["train_loss"], residual**2 / 2, atol=1e-9)


def test_the_cross_entropy_flow_conserves_the_sum_of_the_logits_and_lowers_the_loss():
    z = golden()
    outputs = _golden_cross_entropy(time=np.array([0.0, 5.0, 30.0])).outputs
    np.testing.assert_allclose(outputs.sum(-1), np.tile(z["mse/f0"].sum(-1), (3, 1)), atol=1e-10)
    losses = [float(cross_entropy(jnp.asarray(f), jnp.eye(3)[z["ce/labels"]])) for f in outputs]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.extended
def test_the_logistic_flow_of_one_example_has_its_implicit_solution():
    time = np.array([0.0, 1.0, 10.0])
    f = dynamics.solve_flow(np.array([[2.0]]), np.ones((1, 1)), time=time, loss=logistic).outputs[
        :, 0, 0
    ]
    np.testing.assert_allclose(f + np.exp(f) - 1, 2.0 * time, rtol=1e-7, atol=1e-9)


@pytest.mark.extended
def test_other_losses_run_in_float32_when_x64_is_off():
    ntk, _, y, f0, _ = _problem()
    with jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64():
        closed = dynamics.solve_flow(ntk, y, time=TIMES, f0=f0).outputs
        integrated = dynamics.solve_flow(ntk, y, time=TIMES, f0=f0, loss=_square_loss).outputs
    assert closed.dtype == integrated.dtype == np.float64
    np.testing.assert_allclose(
        closed, dynamics.solve_flow(ntk, y, time=TIMES, f0=f0).outputs, rtol=1e-12
    )
    assert 1e-10 < np.abs(integrated - closed).max() < 1e-4


@pytest.mark.extended
def test_an_integration_that_does_not_end_is_an_error():
    with pytest.raises(RuntimeError, match="integration up to time 1 failed"):
        dynamics.solve_flow(
            np.eye(2), np.ones((2, 1)), time=1.0, loss=lambda f, y: jnp.sum(f * jnp.nan)
        )


# -----------------------------------------------------------------------------------------------------------
# descent


def _literal_descent(ntk, y, f0, learning_rate, momentum, steps):
    matrix, f, velocity = _matrix(ntk, y.shape[1]), f0.ravel().copy(), np.zeros(y.size)
    dual = np.zeros(y.size)
    for _ in range(steps):
        velocity = momentum * velocity + (f - y.ravel()) / len(y)
        dual = dual - learning_rate * velocity
        f = f0.ravel() + matrix @ dual
    return f.reshape(y.shape), dual.reshape(y.shape)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("rank", [None, 3])
def test_descent_is_a_literal_loop(full, momentum, rank):
    ntk, _, y, f0, _ = _problem(full=full, rank=rank)
    save_at = [0, 1, 2, 7, 100, 333]
    rate = 0.3 * dynamics.max_learning_rate(ntk, momentum=momentum)
    solution = dynamics.solve_descent(
        ntk, y, learning_rate=rate, momentum=momentum, save_at=save_at, f0=f0
    )
    for i, steps in enumerate(save_at):
        outputs, dual = _literal_descent(ntk, y, f0, rate, momentum, steps)
        scale = max(1.0, np.abs(dual).max())
        np.testing.assert_allclose(solution.outputs[i], outputs, atol=1e-12 * scale)
        np.testing.assert_allclose(solution.coefficients[i], dual, atol=1e-12 * scale)


@pytest.mark.parametrize("full", [False, True])
def test_descent_without_momentum_is_a_matrix_power(full):
    ntk, _, y, f0, _ = _problem(full=full)
    step = np.eye(y.size) - 0.2 * _matrix(ntk, 3) / len(y)
    solution = dynamics.solve_descent(ntk, y, learning_rate=0.2, save_at=[1000], f0=f0)
    expected = y.ravel() + np.linalg.matrix_power(step, 1000) @ (f0 - y).ravel()
    np.testing.assert_allclose(solution.outputs[0].ravel(), expected, atol=1e-10)


def test_recording_more_often_does_not_change_the_steps():
    ntk, _, y, f0, _ = _problem()
    often, once = (
        dynamics.solve_descent(ntk, y, learning_rate=0.1, momentum=0.9, save_at=steps, f0=f0)
        for steps in (np.arange(0, 501), [500])
    )
    np.testing.assert_allclose(often.coefficients[-1], once.coefficients[-1], rtol=1e-11)


def test_a_hundred_million_steps_resolve_an_eigenvalue_of_a_hundred_millionth():
    steps, rate = 10**8, 0.5
    solution = dynamics.solve_descent(
        np.diag([1.0, 1e-8]), np.ones((2, 1)), learning_rate=rate, save_at=[steps]
    )
    expected = -np.expm1(steps * np.log1p(-rate * 1e-8 / 2))
    np.testing.assert_allclose(solution.outputs[0, 1, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_small_steps_follow_the_gradient_flow_on_the_common_clock(momentum):
    ntk, _, y, f0, _ = _problem()
    curves = []
    for halvings in (0, 1):
        rate, steps = 1e-4 / 2**halvings, np.array([5000, 20000]) * 2**halvings
        descent = dynamics.gradient_descent(
            ntk, _data(y), learning_rate=rate, momentum=momentum, save_at=steps, f0=f0
        )
        exact = dynamics.gradient_flow(ntk, _data(y), time=descent.time, f0=f0)
        curves.append(np.abs(descent.metrics["train_loss"] - exact.metrics["train_loss"]).max())
    assert curves[0] < 1e-2
    assert curves[1] == pytest.approx(curves[0] / 2, rel=0.05)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_descent_converges_below_the_largest_learning_rate_and_diverges_above_it(full, momentum):
    ntk, _, y, f0, _ = _problem(full=full)
    bound = dynamics.max_learning_rate(ntk, momentum=momentum)
    for factor, converges in ((0.99, True), (1.01, False)):
        curve = dynamics.gradient_descent(
            ntk,
            _data(y),
            learning_rate=factor * bound,
            momentum=momentum,
            save_at=[0, 2000, 4000],
            f0=f0,
        )
        assert (curve.metrics["train_loss"][2] < curve.metrics["train_loss"][0]) == converges
        assert (curve.metrics["train_loss"][2] > 1e6) != converges


def test_divergence_is_recorded_and_not_raised():
    curve = dynamics.gradient_descent(
        np.eye(2), _data(np.ones((2, 1))), learning_rate=40.0, save_at=[0, 10, 1000, 2000]
    )
    assert curve.diverged_at == 1000
    assert not np.isfinite(curve.metrics["train_loss"][2:]).any()


# -------------------------------------------------------------------------------------------------------------
# curves


def test_a_curve_holds_losses_accuracies_and_the_common_clock():
    ntk, cross, y, _, _ = _problem(k=2)
    labels = np.eye(2)[[0, 1, 0, 1, 0, 1]]
    test = _data(np.eye(2)[[0, 1, 1, 0]])
    curve = dynamics.gradient_descent(
        ntk, _data(labels), learning_rate=0.5, momentum=0.75, save_at=[0, 4], cross=cross, test=test
    )
    assert curve.time.tolist() == [0.0, 8.0]
    assert curve.step.tolist() == [0, 4]
    assert curve.params is None and curve.diverged_at is None
    assert curve.metrics["train_loss"][0] == 0.5
    solution = dynamics.solve_descent(ntk, labels, learning_rate=0.5, momentum=0.75, save_at=[0, 4])
    outputs = dynamics.kernel_outputs(cross, solution.coefficients)
    assert curve.metrics["test_loss"][1] == pytest.approx(
        ((outputs[1] - test.y) ** 2).sum() / 8, rel=1e-12
    )
    assert curve.metrics["test_accuracy"][1] == np.mean(outputs[1].argmax(-1) == test.y.argmax(-1))
    assert all(
        values.dtype == np.float64 and values.shape == (2,) for values in curve.metrics.values()
    )


def test_a_flow_has_no_steps():
    curve = dynamics.gradient_flow(np.eye(2), _data(np.ones((2, 1))), time=[0, 1])
    assert curve.step.tolist() == [-1, -1]
    assert curve.time.tolist() == [0.0, 1.0]


def test_kernels_and_targets_in_float32_give_results_in_float64():
    ntk, cross, y, f0, g0 = (jnp.asarray(array, jnp.float32) for array in _problem())
    curve = dynamics.gradient_flow(
        ntk, _data(y), time=TIMES, f0=f0, cross=cross, test=_data(g0), f0_test=g0
    )
    assert all(values.dtype == np.float64 for values in curve.metrics.values())


# ---------------------------------------------------------------------------------------------------------
# regression


@pytest.mark.parametrize("full", [False, True])
def test_a_sweep_of_ridges_is_one_solve_each(full):
    kernel, cross, y, _, _ = _problem(full=full)
    ridges = np.array([0.0, 0.1, 10.0])
    sweep = dynamics.kernel_regression(kernel, _data(y), cross=cross, ridge=ridges)
    matrix, rows = _matrix(kernel, 3), _matrix(cross, 3)
    for ridge, predictions in zip(ridges, sweep, strict=True):
        expected = rows @ np.linalg.solve(matrix + ridge * np.eye(len(matrix)), y.ravel())
        np.testing.assert_allclose(predictions.ravel(), expected, rtol=1e-8, atol=1e-10)
        single = dynamics.kernel_regression(kernel, _data(y), cross=cross, ridge=float(ridge))
        np.testing.assert_allclose(single, predictions, rtol=1e-9, atol=1e-11)


def test_regression_on_duplicate_inputs_is_the_limit_of_a_vanishing_ridge():
    kernel, cross, y, _, _ = _problem()
    twice = [0, 1, 2, 3, 4, 5, 5]
    kernel, cross, y = kernel[np.ix_(twice, twice)], cross[:, twice], np.vstack([y, -y[:1]])
    exact = dynamics.kernel_regression(kernel, _data(y), cross=cross)
    np.testing.assert_allclose(
        exact, dynamics.kernel_regression(kernel, _data(y), cross=cross, ridge=1e-7), atol=1e-5
    )
    end = dynamics.solve_flow(kernel, y, time=np.inf)
    np.testing.assert_allclose(
        exact, dynamics.kernel_outputs(cross, end.coefficients[0]), rtol=1e-10
    )


@pytest.mark.parametrize("full", [False, True])
def test_leave_one_out_is_a_loop_of_regressions(full):
    kernel, _, y, _, _ = _problem(full=full)
    sweep = dynamics.leave_one_out(kernel, _data(y), ridge=np.array([0.01, 1.0]))
    for ridge, predictions in zip([0.01, 1.0], sweep, strict=True):
        for i in range(len(y)):
            rest = np.delete(np.arange(len(y)), i)
            expected = dynamics.kernel_regression(
                kernel[np.ix_(rest, rest)],
                _data(y[rest]),
                cross=kernel[i : i + 1, rest],
                ridge=ridge,
            )
            np.testing.assert_allclose(predictions[i], expected[0], rtol=1e-8, atol=1e-9)


def test_leave_one_out_of_a_singular_kernel_asks_for_a_ridge():
    kernel, _, y, _, _ = _problem(rank=3)
    with pytest.raises(ValueError, match=r"singular: lambda_min = .*positive ridge"):
        dynamics.leave_one_out(kernel, _data(y), ridge=0.0)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_posterior_is_a_gaussian_conditioned_on_noisy_observations(ridge):
    factor = _normal(10, 20)
    joint = factor @ factor.T
    posterior = dynamics.nngp_posterior(
        joint[:6, :6], _data(_normal(6, 2)), cross=joint[6:, :6], prior=joint[6:, 6:], ridge=ridge
    )
    precision = np.linalg.inv(joint + np.diag([ridge] * 6 + [0.0] * 4))[6:, 6:]
    np.testing.assert_allclose(posterior.covariance, np.linalg.inv(precision), rtol=1e-8, atol=1e-9)
    expected = dynamics.kernel_regression(
        joint[:6, :6], _data(_normal(6, 2)), cross=joint[6:, :6], ridge=ridge
    )
    np.testing.assert_allclose(posterior.mean, expected, rtol=1e-8)


def test_the_posterior_at_observed_inputs_without_noise_is_certain_even_for_duplicates():
    kernel, _, y, _, _ = _problem()
    twice = [0, 1, 2, 3, 4, 5, 5]
    kernel, y = kernel[np.ix_(twice, twice)], y[twice]
    posterior = dynamics.nngp_posterior(kernel, _data(y), cross=kernel, prior=kernel)
    np.testing.assert_allclose(posterior.covariance, 0.0, atol=1e-9)
    np.testing.assert_allclose(posterior.mean, y, atol=1e-9)


@pytest.mark.parametrize("time", [2.0, np.inf])
def test_the_trained_ensemble_has_the_moments_of_its_members(time):
    """Members f(0) = L z with z ~ N(0, I): the flow is affine in f(0), so its covariance follows column by column."""
    ntk, cross, y, _, _ = _problem(k=1)
    factor = _normal(10, 10, seed=4)
    nngp = factor @ factor.T
    ensemble = dynamics.trained_ensemble(
        Gram(nngp[:6, :6], ntk),
        _data(y),
        time=time,
        prior=nngp[6:, 6:],
        cross=Gram(nngp[6:, :6], cross),
    )

    def member(start):
        solution = dynamics.solve_flow(ntk, y, time=time, f0=start[:6])
        return dynamics.kernel_outputs(cross, solution.coefficients, start[6:])[0]

    mean = member(np.zeros((10, 1)))
    columns = np.hstack([member(column[:, None]) - mean for column in factor.T])
    np.testing.assert_allclose(ensemble.mean[0], mean, atol=1e-10)
    np.testing.assert_allclose(ensemble.covariance[0], columns @ columns.T, rtol=1e-9, atol=1e-9)


def test_training_the_last_layer_forever_gives_the_posterior():
    factor = _normal(10, 20)
    joint = factor @ factor.T
    both, cross, prior, data = (
        Gram(joint[:6, :6], joint[:6, :6]),
        joint[6:, :6],
        joint[6:, 6:],
        _data(_normal(6, 2)),
    )
    ensemble = dynamics.trained_ensemble(
        both, data, time=np.inf, cross=Gram(cross, cross), prior=prior
    )
    posterior = dynamics.nngp_posterior(both.nngp, data, cross=cross, prior=prior)
    np.testing.assert_allclose(ensemble.mean[0], posterior.mean, atol=1e-9)
    np.testing.assert_allclose(ensemble.covariance[0], posterior.covariance, atol=1e-9)


@pytest.mark.parametrize("time", [1e300, 1e308, 1.7e308])
def test_the_flow_until_the_largest_time_interpolates(time):
    ntk, _, y, f0, _ = _problem()
    solution = dynamics.solve_flow(ntk, y, time=time, f0=f0)
    np.testing.assert_allclose(solution.outputs[0], y, rtol=1e-9)
    np.testing.assert_allclose(solution.coefficients[0], np.linalg.solve(ntk, y - f0), rtol=1e-8)


def test_integers_in_data_and_lists_of_times_are_computed_as_real_numbers():
    solution = dynamics.solve_flow(np.eye(2), np.array([[2], [4]]), time=[0, 2])
    np.testing.assert_allclose(
        solution.outputs[1, :, 0], np.array([2.0, 4.0]) * -np.expm1(-1.0), rtol=1e-12
    )


# -------------------------------------------------------------------------------------------------
# one decomposition


@pytest.mark.parametrize("full", [False, True])
def test_one_eigendecomposition_serves_curves_regressions_and_leave_one_out(full):
    ntk, cross, y, f0, _ = _problem(full=full)
    eigen = psd_eigh(kernel_matrix(ntk))
    descent = dict(learning_rate=0.1, momentum=0.5, save_at=[3], f0=f0)
    for function in (
        lambda kernel: dynamics.solve_flow(kernel, y, time=TIMES, f0=f0).outputs,
        lambda kernel: dynamics.gradient_flow(kernel, _data(y), time=TIMES, f0=f0).metrics[
            "train_loss"
        ],
        lambda kernel: dynamics.solve_descent(kernel, y, **descent).coefficients,
        lambda kernel: dynamics.kernel_regression(
            kernel, _data(y), cross=cross, ridge=np.array([0.1, 1.0])
        ),
        lambda kernel: dynamics.leave_one_out(kernel, _data(y), ridge=0.1),
    ):
        np.testing.assert_array_equal(function(eigen), function(ntk))
    single = dynamics.kernel_regression(eigen, _data(y), cross=cross, ridge=0.1)
    np.testing.assert_allclose(
        single, dynamics.kernel_regression(ntk, _data(y), cross=cross, ridge=0.1), rtol=1e-9
    )


# --------------------------------------------------------------------------------------------------------------
# errors

NTK, Y = np.eye(3), np.ones((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dynamics.gradient_flow(np.eye(2), _data(Y), time=[1.0]),
            r"has shape \(2, 2\), expected \(3, 3\)",
        ),
        (
            lambda: dynamics.gradient_flow(np.ones((3, 3, 4, 4)), _data(Y), time=[1.0]),
            r"or \(3, 3, 2, 2\) for the full",
        ),
        (
            lambda: dynamics.gradient_flow(NTK, _data(np.ones(3)), time=[1.0]),
            r"targets of shape \(3,\), expected \[n, k\]",
        ),
        (lambda: dynamics.gradient_flow(NTK, _data(Y * np.nan), time=[1.0]), "y has 6 NaN"),
        (
            lambda: dynamics.gradient_flow(NTK * np.nan, _data(Y), time=[1.0]),
            "matrix has 9 entries that are not finite",
        ),
        (
            lambda: dynamics.gradient_flow(NTK + np.tri(3), _data(Y), time=[1.0]),
            "largest asymmetry is 1",
        ),
        (lambda: dynamics.gradient_flow(-NTK, _data(Y), time=[1.0]), "not positive semi-definite"),
        (
            lambda: dynamics.gradient_flow(NTK, _data(Y), time=[1.0, 1.0]),
            "expected one axis of increasing times",
        ),
        (lambda: dynamics.gradient_flow(NTK, _data(Y), time=[-1.0, 1.0]), "times >= 0"),
        (lambda: dynamics.gradient_flow(NTK, _data(Y), time=[np.inf, np.inf]), "increasing times"),
        (lambda: dynamics.gradient_flow(NTK, _data(Y), time=[]), "increasing times"),
        (
            lambda: dynamics.gradient_flow(NTK, _data(Y), time=[1.0], f0=np.ones((3, 1))),
            r"f0 has shape \(3, 1\)",
        ),
        (
            lambda: dynamics.gradient_flow(NTK, _data(Y), time=[1.0], cross=np.ones((4, 3))),
            "cross alone",
        ),
        (lambda: dynamics.gradient_flow(NTK, _data(Y), time=[1.0], test=_data(Y)), "test alone"),
        (
            lambda: dynamics.gradient_flow(
                NTK, _data(Y), time=[1.0], cross=np.ones((3, 4)), test=_data(Y)
            ),
            "cross has shape",
        ),
        (
            lambda: dynamics.gradient_flow(
                NTK, _data(Y), time=[1.0], cross=NTK * np.nan, test=_data(Y)
            ),
            "cross has 9 NaN",
        ),
        (
            lambda: dynamics.gradient_flow(
                NTK, _data(Y), time=[1.0], cross=NTK, test=_data(Y), f0=Y
            ),
            "f0 without f0_test",
        ),
        (
            lambda: dynamics.gradient_flow(NTK, _data(Y), time=[np.inf], loss=cross_entropy),
            "only mse without friction",
        ),
        (
            lambda: dynamics.gradient_descent(NTK, _data(Y), learning_rate=0.0, save_at=[1]),
            "learning_rate got 0.0",
        ),
        (
            lambda: dynamics.gradient_descent(
                NTK, _data(Y), learning_rate=0.1, momentum=1.0, save_at=[1]
            ),
            "momentum got 1.0",
        ),
        (
            lambda: dynamics.gradient_descent(NTK, _data(Y), learning_rate=0.1, save_at=[2, 1]),
            "increasing integers",
        ),
        (
            lambda: dynamics.gradient_descent(
                NTK, _data(Y), learning_rate=0.1, save_at=np.array([0.5])
            ),
            "increasing integers",
        ),
        (
            lambda: dynamics.gradient_flow(NTK, _data(Y), time=[1.0], loss=cross_entropy, rtol=0.0),
            "rtol got 0.0",
        ),
        (
            lambda: dynamics.solve_flow(psd_eigh(np.eye(4)), Y, time=1.0),
            "eigendecomposition of size 4",
        ),
        (
            lambda: dynamics.solve_flow(eigh(np.diag([1.0, 1.0, -1.0])), Y, time=1.0),
            "lambda_min = -1, .* use linalg.psd_eigh",
        ),
        (
            lambda: dynamics.solve_flow(psd_eigh(NTK), Y, time=1.0, loss=cross_entropy),
            "serves mse by full batches only",
        ),
        (lambda: dynamics.gradient_flow(NTK, _data(Y), time=[np.nan]), "increasing times"),
        (
            lambda: dynamics.gradient_flow(NTK, _data(Y), time=[1.0], friction=0.0),
            "friction got 0.0, expected .* > 0",
        ),
        (
            lambda: dynamics.gradient_flow(NTK, _data(Y), time=[1.0], friction=-1.0),
            "friction got -1.0",
        ),
        (
            lambda: dynamics.gradient_flow(NTK, _data(Y - 0.7), time=[1.0], loss=cross_entropy),
            "not centered targets",
        ),
        (lambda: dynamics.gradient_flow(NTK, _data(Y[:0]), time=[1.0]), "not empty"),
        (
            lambda: dynamics.kernel_regression(NTK, _data(Y), cross=NTK, ridge=np.zeros(0)),
            "ridge of shape",
        ),
        (
            lambda: dynamics.gradient_flow(
                NTK, _data(Y), time=[1.0], cross=NTK, test=_data(Y[:, :1])
            ),
            "expected 2 outputs like the training targets",
        ),
        (lambda: dynamics.gradient_flow(NTK, _data(Y), time=[1.0], f0=Y * np.nan), "f0 has 6 NaN"),
        (
            lambda: dynamics.gradient_descent(
                NTK * np.nan, _data(Y), learning_rate=0.1, save_at=[1]
            ),
            "9 entries",
        ),
        (
            lambda: dynamics.gradient_descent(
                NTK + np.tri(3), _data(Y), learning_rate=0.1, save_at=[1]
            ),
            "asymmetry is 1",
        ),
        (
            lambda: dynamics.gradient_descent(
                NTK + np.tri(3), _data(Y), learning_rate=0.1, save_at=[1], loss=cross_entropy
            ),
            "asymmetry is 1",
        ),
        (
            lambda: dynamics.gradient_descent(
                np.diag([1.0, 1.0, -0.1]),
                _data(Y),
                learning_rate=0.1,
                save_at=[1],
                batch_size=2,
                key=jax.random.key(0),
            ),
            "not positive semi-definite",
        ),
        (
            lambda: dynamics.gradient_flow(
                np.diag([1.0, 1.0, -0.1]), _data(Y), time=[1.0], friction=1.0
            ),
            "not positive semi-definite",
        ),
        (lambda: dynamics.max_learning_rate(NTK + np.tri(3)), "asymmetry is 1"),
        (lambda: dynamics.max_learning_rate(np.zeros((2, 2))), "lambda_max = 0"),
        (lambda: dynamics.max_learning_rate(NTK, momentum=-0.1), "momentum got -0.1"),
        (
            lambda: dynamics.kernel_regression(NTK, _data(Y), cross=NTK, ridge=-1.0),
            "ridge got -1.0",
        ),
        (
            lambda: dynamics.kernel_regression(NTK + np.tri(3), _data(Y), cross=NTK),
            "asymmetry is 1",
        ),
        (
            lambda: dynamics.kernel_regression(NTK * np.nan, _data(Y), cross=NTK, ridge=1.0),
            "9 entries",
        ),
        (
            lambda: dynamics.kernel_regression(-NTK, _data(Y), cross=NTK),
            "not positive semi-definite",
        ),
        (
            lambda: dynamics.kernel_regression(NTK, _data(Y), cross=np.ones((4, 2))),
            r"cross has shape \(4, 2\)",
        ),
        (lambda: dynamics.leave_one_out(NTK + np.tri(3), _data(Y), ridge=0.1), "asymmetry is 1"),
        (
            lambda: dynamics.leave_one_out(NTK, _data(Y), ridge=np.array([0.1, np.nan])),
            "ridge got nan",
        ),
        (
            lambda: dynamics.trained_ensemble(
                Gram(np.eye(2), NTK), _data(Y), time=1.0, cross=Gram(NTK, NTK), prior=NTK
            ),
            "nngp",
        ),
        (
            lambda: dynamics.nngp_posterior(NTK, _data(Y), cross=NTK, prior=np.eye(2)),
            "prior has shape",
        ),
        (
            lambda: dynamics.nngp_posterior(NTK, _data(Y), cross=NTK, prior=NTK, ridge=-0.1),
            "ridge got -0.1",
        ),
        (
            lambda: dynamics.nngp_posterior(NTK * np.nan, _data(Y), cross=NTK, prior=NTK),
            "9 entries",
        ),
        (
            lambda: dynamics.nngp_posterior(np.ones((3, 3, 2, 2)), _data(Y), cross=NTK, prior=NTK),
            r"cross has shape \(3, 3\), expected \(3, 3, 2, 2\)",
        ),
        (
            lambda: dynamics.nngp_posterior(NTK, _data(Y), cross=NTK, prior=NTK, scale="prior"),
            r"scale got 'prior', expected one of \('evidence', 'leave_one_out'\)",
        ),
        (
            lambda: dynamics.nngp_posterior(NTK, _data(Y), cross=NTK, prior=NTK, scale=0.0),
            'scale got 0.0, expected a finite number > 0: or "evidence"',
        ),
        (lambda: dynamics.prior_scale(np.ones((3, 3)), _data(Y), ridge=0.0), "is singular"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
@pytest.mark.parametrize(
    "call",
    [
        lambda a: dynamics.trained_ensemble(
            Gram(NTK, a * jnp.eye(3)), _data(Y), time=1.0, cross=Gram(NTK, NTK), prior=NTK
        ),
        lambda a: dynamics.gradient_flow(a * jnp.eye(3), _data(Y), time=1.0, friction=1.0),
        lambda a: dynamics.gradient_descent(
            a * jnp.eye(3), _data(Y), learning_rate=0.1, save_at=[1]
        ),
        lambda a: dynamics.max_learning_rate(a * jnp.eye(3)),
        lambda a: dynamics.conjugate_gradient_regression(
            a * jnp.eye(3), _data(Y), cross=NTK, ridge=1.0
        ),
        lambda a: dynamics.conjugate_gradient_regression(
            lambda v: a * v, _data(Y), cross=NTK, ridge=1.0, diagonal=np.ones(3)
        ),
    ],
)
def test_inside_a_transformation_the_way_out_is_named(call, transform):
    with pytest.raises(
        TypeError,
        match=r"got a traced array, .* outside of jit, grad and vmap, or write .*jnp.linalg",
    ):
        transform(lambda a: (call(a), jnp.zeros(()))[1])(
            jnp.ones(2) if transform is jax.vmap else 1.0
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dynamics.kernel_regression(Gram(NTK, NTK), _data(Y), cross=NTK),
            "got a Gram|Type-check",
        ),
        (
            lambda: dynamics.kernel_regression(NTK * 1j, _data(Y), cross=NTK),
            "expected real numbers|Type-check",
        ),
        (lambda: dynamics.leave_one_out(NTK, (Y, Y), ridge=0.1), r"pass Data\(x, y\)|Type-check"),
        (lambda: dynamics.gradient_flow(NTK, _data(Y), time="1"), "time got a str|Type-check"),
        (
            lambda: dynamics.gradient_descent(NTK, _data(Y), learning_rate="0.1", save_at=[1]),
            "got '0.1'|Type-check",
        ),
        (
            lambda: dynamics.gradient_descent(
                NTK, _data(Y), learning_rate=0.1, save_at=[1], batch_size=1.5
            ),
            "1.5|Type",
        ),
        (
            lambda: dynamics.trained_ensemble(NTK, _data(Y), time=1.0, cross=NTK, prior=NTK),
            "both kernels|Type-check",
        ),
    ],
)
def test_an_argument_of_another_type_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_losses_of_closed_forms_have_their_digits_where_float64_is_off():
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(False):
        curve = dynamics.gradient_flow(np.eye(1), _data(np.full((1, 1), 1e4)), time=[16.0])
    assert curve.metrics["train_loss"][0] == pytest.approx(5e7 * np.exp(-32), rel=1e-6)
