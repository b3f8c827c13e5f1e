"""float32 kernels against NumPy's float64 solutions: plain where a ridge reaches the rounding, else truncated there.

Half of the eigenvalues of a kernel here are zero and the others far above the rounding of float32,
so that the kernel truncated at the rounding is the same in both precisions. Bounds are those of the
perturbation of an inverse by the error E of a kernel, `|E| / ridge` relative to the targets.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pytest
from marks import extended

from lazynet import dynamics, linalg, predict
from lazynet.records import Data, Gram

SIZES = [100, extended(1000), pytest.param(4000, marks=pytest.mark.slow)]
M = 10


class Problem(NamedTuple):
    """Blocks of a joint kernel of n training inputs and M others in float64, targets, and the error of float32."""

    kernel: np.ndarray
    cross: np.ndarray
    prior: np.ndarray
    y: np.ndarray
    error: float


@functools.cache
def problem(n):
    rng = np.random.default_rng(n)
    factor = rng.normal(size=(n + M, n // 2)) * np.geomspace(1, 0.1, n // 2)
    joint = factor @ factor.T / n
    error = np.linalg.norm(joint.astype(np.float32) - joint, "fro")
    return Problem(joint[:n, :n], joint[n:, :n], joint[n:, n:], rng.normal(size=(n, 2)), error)


def single(*kernels):
    return [kernel.astype(np.float32) for kernel in kernels]


def truncated_inverse(kernel, tolerance):
    values, vectors = np.linalg.eigh(kernel)
    kept = values > tolerance
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T


def solvers(p: Problem, ridge):
    """Means at the inputs wanted by every solver that takes a kernel, all of them for the same float32 kernel."""
    kernel, cross, prior = single(p.kernel, p.cross, p.prior)
    lifted, data = (p.kernel + ridge * np.eye(len(p.y))).astype(np.float32), Data(p.y, p.y)
    gram, both = Gram(lifted, lifted), Gram(cross, cross)

    def kernel_fn(x1, x2=None, get=None):
        found = kernel if len(x1) == len(p.y) else prior if x2 is None else cross
        return found if isinstance(get, str) else Gram(found, found)

    x, x_test = np.zeros((len(p.y), 1)), np.zeros((M, 1))
    ensemble = predict.gradient_descent_mse_ensemble(kernel_fn, x, p.y, 1.0, ridge, True)
    inference = predict.gp_inference(Gram(kernel, kernel), p.y, ridge, True)
    descent = functools.partial(predict.gradient_descent_mse, kernel, p.y, 1.0, ridge, True)
    means = {
        "kernel_regression": lambda: dynamics.kernel_regression(
            kernel, data, cross=cross, ridge=ridge
        ),
        "ridge axis": lambda: dynamics.kernel_regression(
            kernel, data, cross=cross, ridge=np.array([ridge, 1.0])
        )[0],
        "gp_inference nngp": lambda: inference("nngp", cross),
        "trained_ensemble": lambda: dynamics.trained_ensemble(
            gram, data, time=np.inf, cross=both, prior=prior
        ).mean[0],
        "nngp_posterior": lambda: (
            dynamics.nngp_posterior(kernel, data, cross=cross, prior=prior, ridge=ridge).mean
        ),
        "gradient_flow": lambda: dynamics.kernel_outputs(
            cross, dynamics.solve_flow(lifted, p.y, time=np.inf).coefficients[0]
        ),
        "gradient_descent_mse": lambda: descent()(None, None, 0.0, cross),
        "gradient_descent_mse_ensemble": lambda: ensemble(None, x_test, get="ntk"),
        "gp_inference ntk": lambda: inference("ntk", cross),
        "gp_inference ntkgp": lambda: inference("ntkgp", cross),
    }
    few = 4 if len(p.y) > 1000 else None  # a decomposition of 4,000 takes minutes on two cores
    return {name: mean() for name, mean in list(means.items())[:few]}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_at_a_ridge_of_the_rounding_every_solver_is_the_plain_solution_of_the_float64_kernel(
    n, factor
):
    p = problem(n)
    ridge = factor * linalg.eigh(single(p.kernel)[0]).tolerance
    plain = np.linalg.inv(p.kernel + ridge * np.eye(n))
    expected = p.cross @ plain @ p.y
    bound = (1 + np.linalg.norm(p.cross @ plain, 2)) * p.error / ridge * np.linalg.norm(p.y)
    for name, mean in solvers(p, ridge).items():
        assert np.linalg.norm(mean - expected) < bound, name
    left_out = dynamics.leave_one_out(single(p.kernel)[0], Data(p.y, p.y), ridge=ridge)
    expected = p.y - plain @ p.y / np.diag(plain)[:, None]
    assert np.linalg.norm(left_out - expected) < 4 * p.error / ridge * np.linalg.norm(p.y)


@pytest.mark.parametrize("n", SIZES)
def test_without_a_ridge_every_solver_is_the_float64_kernel_truncated_at_the_rounding(n):
    p = problem(n)
    tolerance = linalg.eigh(single(p.kernel)[0]).tolerance
    expected = p.cross @ truncated_inverse(p.kernel, tolerance) @ p.y
    for name, mean in solvers(p, 0.0).items():
        np.testing.assert_allclose(mean, expected, atol=2e-3 * np.abs(expected).max(), err_msg=name)
    with pytest.raises(ValueError, match="is below the rounding .* of the kernel"):
        dynamics.leave_one_out(single(p.kernel)[0], Data(p.y, p.y), ridge=0.0)


@pytest.mark.parametrize("n", SIZES)
def test_covariances_of_a_float32_kernel_are_those_of_float64_and_no_variance_is_negative(n):
    p = problem(n)
    kernel, cross, prior = single(p.kernel, p.cross, p.prior)
    ridge = 10 * linalg.eigh(kernel).tolerance
    filters = p.cross @ np.linalg.inv(p.kernel + ridge * np.eye(n))
    expected = p.prior - filters @ p.cross.T
    data = Data(p.y, p.y)
    bound = 2 * (1 + np.linalg.norm(filters, 2)) ** 2 * p.error
    posterior = dynamics.nngp_posterior(
        kernel, data, cross=cross, prior=prior, ridge=ridge
    ).covariance
    inference = predict.gp_inference(kernel, p.y, ridge, True)("nngp", cross, prior).covariance
    lifted = (p.kernel + ridge * np.eye(n)).astype(np.float32)
    ensemble = dynamics.trained_ensemble(
        Gram(lifted, lifted), data, time=np.inf, cross=Gram(cross, cross), prior=prior
    ).covariance[0]
    for covariance in (posterior, np.asarray(inference), ensemble):
        assert np.abs(covariance - expected).max() < bound
        assert np.diag(covariance).min() >= 0


def test_a_tolerance_that_is_given_replaces_the_rounding_in_every_solver():
    kernel, y = np.diag([4.0, 1.0, 0.1]), np.ones((3, 1))
    data, both = Data(y, y), Gram(kernel, kernel)
    expected = np.array([1.0, 1.0, 0.0])
    settings = dict(tolerance=0.5)
    found = [
        dynamics.kernel_regression(kernel, data, cross=kernel, **settings),
        dynamics.kernel_regression(kernel, data, cross=kernel, ridge=np.zeros(1), **settings)[0],
        dynamics.kernel_regression(linalg.psd_eigh(kernel), data, cross=kernel, **settings),
        dynamics.nngp_posterior(kernel, data, cross=kernel, prior=kernel, **settings).mean,
        dynamics.solve_flow(kernel, y, time=np.inf, **settings).outputs[0],
        dynamics.solve_descent(kernel, y, learning_rate=0.5, save_at=[500], **settings).outputs[0],
        dynamics.trained_ensemble(
            both, data, time=np.inf, cross=both, prior=kernel, **settings
        ).mean[0],
        predict.gradient_descent_mse(kernel, y, **settings)(None, None, 0.0, kernel),
        predict.gradient_descent_mse_ensemble(lambda *_: both, y, y, **settings)(get="ntk"),
        predict.gp_inference(kernel, y, **settings)("nngp"),
    ]
    for outputs in found:
        np.testing.assert_allclose(np.asarray(outputs)[:, 0], expected, atol=1e-12)
    with pytest.raises(ValueError, match="singular"):
        dynamics.leave_one_out(kernel, data, ridge=0.0, **settings)
    for refused in (-1.0, np.nan):
        with pytest.raises(ValueError, match="tolerance got"):
            dynamics.kernel_regression(kernel, data, cross=kernel, tolerance=refused)


def test_one_ridge_and_an_axis_of_one_ridge_are_the_same_down_to_zero():
    p = problem(100)
    kernel, cross = single(p.kernel, p.cross)
    rounding = linalg.eigh(kernel).tolerance
    for ridge in (0.0, 0.1 * rounding, rounding, 2 * rounding, 1e-3):
        one = dynamics.kernel_regression(kernel, Data(p.y, p.y), cross=cross, ridge=ridge)
        axis = dynamics.kernel_regression(
            kernel, Data(p.y, p.y), cross=cross, ridge=np.array([ridge])
        )[0]
        np.testing.assert_allclose(one, axis, atol=1e-8 * np.abs(axis).max())


def test_no_mode_of_a_well_conditioned_kernel_is_dropped():
    n = 300
    kernel, y = (np.eye(n) + 1.0).astype(np.float32), np.random.default_rng(0).normal(size=(n, 1))
    fitted = dynamics.kernel_regression(linalg.psd_eigh(kernel), Data(y, y), cross=kernel)
    np.testing.assert_allclose(fitted, y, atol=1e-9)
    left_out = dynamics.leave_one_out(kernel, Data(y, y), ridge=0.1)
    inverse = np.linalg.inv(kernel.astype(np.float64) + 0.1 * np.eye(n))
    np.testing.assert_allclose(left_out, y - inverse @ y / np.diag(inverse)[:, None], atol=1e-9)


def test_a_prior_that_no_process_has_is_refused_and_rounding_is_clipped():
    p = problem(100)
    data = Data(p.y, p.y)
    with pytest.raises(
        ValueError, match=r"variance of input 0 is -.* no covariance of one process"
    ):
        dynamics.nngp_posterior(p.kernel, data, cross=10 * p.cross, prior=p.prior)
    with pytest.raises(ValueError, match="no covariance of one process"):
        both = Gram(p.kernel, p.kernel)
        dynamics.trained_ensemble(
            both, data, time=np.inf, cross=Gram(10 * p.cross, p.cross), prior=-p.prior
        )
    kernel = single(p.kernel)[0]
    certain = dynamics.nngp_posterior(kernel, data, cross=kernel, prior=kernel).covariance
    assert np.diag(certain).min() >= 0 and np.abs(certain).max() < 1e-5
