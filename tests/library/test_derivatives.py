"""Regression and flow inside of transformations: the numbers of the host, and derivatives by finite differences."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import pytest
from marks import extended, extended_but

from lazynet import dynamics, predict
from lazynet.linalg import psd_eigh
from lazynet.records import Data, Gram

RNG = np.random.default_rng(3)
X = RNG.normal(size=(6, 3))
X_TEST = RNG.normal(size=(4, 3))
Y = RNG.normal(size=(6, 2))
TIMES = np.array([0.0, 0.5, 3.0, 40.0])
MIXED = np.array([[2.0, 0.5], [0.5, 1.0]])
"""Covariance of two outputs."""


def rbf(x1, x2):
    squares = jnp.sum(x1**2, 1)[:, None] + jnp.sum(x2**2, 1)[None] - 2 * x1 @ x2.T
    return jnp.exp(-squares / 4)


def full(kernel):
    return kernel[:, :, None, None] * MIXED


K = np.asarray(rbf(X, X))
CROSS = np.asarray(rbf(X_TEST, X))
PRIOR = np.asarray(rbf(X_TEST, X_TEST))
GRAMS = Gram(nngp=K, ntk=2 * K + CROSS.T @ CROSS)
CROSSES = Gram(nngp=CROSS, ntk=3 * CROSS)
DATA = Data(X, Y)

SOLVES = {
    "regression": lambda k, c, p, y: dynamics.kernel_regression(
        k, Data(X, y), cross=c, ridge=np.array([0.1, 1.0])
    ),
    "leave_one_out": lambda k, c, p, y: dynamics.leave_one_out(k, Data(X, y), ridge=0.1),
    "posterior": lambda k, c, p, y: dynamics.nngp_posterior(
        k, Data(X, y), cross=c, prior=p, ridge=0.1
    ),
    "evidence": lambda k, c, p, y: dynamics.nngp_posterior(
        k, Data(X, y), cross=c, prior=p, ridge=0.1, scale="evidence"
    ),
    "left-out scale": lambda k, c, p, y: dynamics.prior_scale(
        k, Data(X, y), ridge=0.1, by="leave_one_out"
    ),
    "flow": lambda k, c, p, y: dynamics.gradient_flow(
        k, Data(X, y), time=TIMES, cross=c, test=Data(X_TEST, Y[:4])
    ).metrics["test_loss"],
    "solution": lambda k, c, p, y: dynamics.solve_flow(k, y, time=TIMES),
    "descent": lambda k, c, p, y: predict.gradient_descent_mse(
        k, y, 0.5, 0.01, trace_axes=() if k.ndim == 4 else (-1,)
    )(np.array([[1.0, 20.0], [np.inf, 0.0]]), 0.5, 0.0, c),
    "inference": lambda k, c, p, y: predict.gp_inference(
        k, y, 0.01, trace_axes=() if k.ndim == 4 else (-1,), scale="evidence"
    )("nngp", c, p),
}


QUICK = ("regression",)


@pytest.mark.parametrize("kernels", [lambda k: k, extended(full)], ids=["shared", "full"])
@pytest.mark.parametrize("name", extended_but([*SOLVES], *QUICK, "inference"))
def test_a_compiled_solve_gives_the_numbers_of_the_host(name, kernels):
    solve = SOLVES[name]
    k, c, p = map(kernels, (K, CROSS, PRIOR))
    expected = jax.tree.leaves(solve(k, c, p, Y))
    for traced in (jax.jit(solve)(k, c, p, Y), jax.jit(lambda y: solve(k, c, p, y))(Y)):
        for value, of_host in zip(jax.tree.leaves(traced), expected, strict=True):
            np.testing.assert_allclose(value, of_host, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", extended_but([*SOLVES], *QUICK))
def test_float64_of_numpy_is_taken_without_x64_and_without_a_warning(name):
    expected = jax.tree.leaves(SOLVES[name](K, CROSS, PRIOR, Y))
    with jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = jax.jit(lambda k: SOLVES[name](k, CROSS, PRIOR, Y))(jnp.asarray(K))
    for value, of_host in zip(jax.tree.leaves(values), expected, strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, of_host, rtol=2e-3, atol=2e-4)


@pytest.mark.extended
@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp", None])
@pytest.mark.parametrize("prior", [None, 20 * np.eye(4) + 9 * PRIOR])
def test_all_kinds_of_inference_compile(get, prior):
    expected = predict.gp_inference(GRAMS, Y, 0.01)(get, CROSSES, prior)
    traced = jax.jit(lambda g: predict.gp_inference(g, Y, 0.01)(get, CROSSES, prior))(GRAMS)
    for value, of_host in zip(jax.tree.leaves(traced), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, of_host, rtol=1e-10, atol=1e-12)


def slope(function, arguments, directions, step=1e-6):
    """Derivative along a direction by central differences."""
    ahead = function(*(a + step * d for a, d in zip(arguments, directions, strict=True)))
    behind = function(*(a - step * d for a, d in zip(arguments, directions, strict=True)))
    return (ahead - behind) / (2 * step)


@pytest.mark.parametrize("name", extended_but([*SOLVES], *QUICK))
@pytest.mark.extended
def test_gradients_by_inputs_and_targets_are_those_of_finite_differences(name):
    def summed(x, x_test, y):
        values = SOLVES[name](rbf(x, x), rbf(x_test, x), rbf(x_test, x_test), y)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(values))

    arguments = (X, X_TEST, Y)
    directions = [RNG.normal(size=a.shape) for a in arguments]
    gradients = jax.grad(summed, argnums=(0, 1, 2))(*arguments)
    along = sum(float(jnp.sum(g * d)) for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(along, slope(summed, arguments, directions), rtol=2e-6, atol=1e-7)


def by_exponential(matrix, tau, residual):
    """`(1 - exp(-K tau)) / K` as a block of one matrix exponential, which needs no eigenvalues."""
    m = len(matrix)
    upper = jnp.concatenate([-matrix * tau, jnp.eye(m)], axis=1)
    block = jnp.concatenate([upper, jnp.zeros((m, 2 * m))])
    return tau * jax.scipy.linalg.expm(block)[:m, m:] @ residual


@pytest.mark.parametrize(
    "inputs",
    [X, np.eye(6), X[[0, 0, 1, 1, 2, 2]], np.eye(6)[:, :2], 4 * X, 1e-4 * X],
    ids=["distinct", "identity", "duplicates", "zero rows", "fast", "slow"],
)
@pytest.mark.parametrize("tau", [0.5, extended(40.0)])
@pytest.mark.extended
def test_the_derivative_of_the_flow_is_finite_and_right_at_equal_eigenvalues(inputs, tau):
    def coefficients(x):
        return dynamics.solve_flow(x @ x.T, Y, time=[6 * tau]).coefficients[0]

    def expected(x):
        return by_exponential(x @ x.T, tau, Y)

    direction = RNG.normal(size=inputs.shape)
    value, derivative = jax.jvp(coefficients, (jnp.asarray(inputs),), (direction,))
    true_value, true_derivative = jax.jvp(expected, (jnp.asarray(inputs),), (direction,))
    np.testing.assert_allclose(value, true_value, rtol=1e-8, atol=1e-10 * tau)
    scale = 1e-9 * float(jnp.abs(true_derivative).max())
    np.testing.assert_allclose(derivative, true_derivative, rtol=1e-8, atol=scale)
    cotangent = RNG.normal(size=Y.shape)
    pulled = jax.vjp(coefficients, jnp.asarray(inputs))[1](cotangent)[0]
    np.testing.assert_allclose(
        jnp.sum(pulled * direction), jnp.sum(derivative * cotangent), rtol=1e-9, atol=scale
    )


@pytest.mark.extended
def test_times_and_rates_have_derivatives():
    slopes = jax.jacfwd(lambda t: dynamics.solve_flow(K, Y, time=t).outputs[0])(jnp.array([2.0]))
    outputs = dynamics.solve_flow(K, Y, time=[2.0]).outputs[0]
    np.testing.assert_allclose(slopes[..., 0], -K @ (outputs - Y) / 6, rtol=1e-10)  # the flow
    by_rate = jax.grad(lambda rate: predict.gradient_descent_mse(K, Y, rate)(3.0)[0, 0])
    clock = jax.grad(lambda t: predict.gradient_descent_mse(K, Y, 0.5)(t)[0, 0])
    np.testing.assert_allclose(by_rate(0.5) * 0.5, clock(3.0) * 3.0, rtol=1e-10)


def test_bootstraps_are_a_vmap():
    rows = RNG.integers(0, 6, size=(3, 6))

    def resampled(i):
        return dynamics.kernel_regression(
            jnp.asarray(K)[i][:, i],
            Data(X, jnp.asarray(Y)[i]),
            cross=jnp.asarray(CROSS)[:, i],
            ridge=0.1,
        )

    for i, outputs in zip(rows, jax.vmap(resampled)(rows), strict=True):
        alone = dynamics.kernel_regression(
            K[i][:, i], Data(X[i], Y[i]), cross=CROSS[:, i], ridge=0.1
        )
        np.testing.assert_allclose(outputs, alone, rtol=1e-11)


@pytest.mark.extended
def test_results_have_the_dtype_at_hand():
    single = [np.asarray(a, np.float32) for a in (K, CROSS, PRIOR, Y)]
    for solve in (SOLVES["regression"], SOLVES["posterior"], SOLVES["solution"], SOLVES["descent"]):
        values = jax.tree.leaves(jax.jit(solve)(*single))
        assert {value.dtype for value in values} == {np.dtype(np.float32)}
        for value, exact in zip(values, jax.tree.leaves(solve(K, CROSS, PRIOR, Y)), strict=True):
            np.testing.assert_allclose(value, exact, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("by", ["evidence", "leave_one_out"])
@pytest.mark.parametrize("kernels", [lambda k: k[:, :, None, None] * np.eye(2), full])
def test_the_scale_of_the_prior_makes_errors_as_large_as_they_are_said_to_be(by, kernels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    kernel = np.asarray(rbf(x, x)) + 0.05 * np.eye(80)
    mixing = np.linalg.cholesky(kernels(np.ones((1, 1)))[0, 0])
    y = 0.2 * np.linalg.cholesky(kernel) @ rng.normal(size=(80, 2)) @ mixing.T
    k, c, p = (kernels(block) for block in (kernel[:60, :60], kernel[60:, :60], kernel[60:, 60:]))
    posterior = dynamics.nngp_posterior(k, Data(x[:60], y[:60]), cross=c, prior=p, scale=by)
    covariance = posterior.covariance.transpose(0, 2, 1, 3).reshape(40, 40)
    z = np.linalg.solve(np.linalg.cholesky(covariance), (y[60:] - posterior.mean).reshape(-1))
    assert abs(np.std(z) - 1) < 3 / np.sqrt(2 * len(z))  # three standard errors
    unscaled = dynamics.nngp_posterior(k, Data(x[:60], y[:60]), cross=c, prior=p)
    np.testing.assert_allclose(posterior.mean, unscaled.mean)
    scale = dynamics.prior_scale(k, Data(x[:60], y[:60]), ridge=0.0, by=by)
    np.testing.assert_allclose(posterior.covariance, scale * unscaled.covariance)


@pytest.mark.extended
def test_the_scale_by_evidence_is_the_maximum_of_the_evidence():
    def evidence(log_scale):
        covariance = jnp.exp(log_scale) * (K + 0.1 * np.eye(6))
        zero = jnp.zeros(6)
        return sum(jax.scipy.stats.multivariate_normal.logpdf(y, zero, covariance) for y in Y.T)

    scale = dynamics.prior_scale(K, DATA, ridge=0.1)
    assert abs(jax.grad(evidence)(np.log(scale))) < 1e-10


def test_the_left_out_scale_is_the_mean_square_of_left_out_errors_in_their_units():
    errors = [
        dynamics.nngp_posterior(
            np.delete(np.delete(K, i, 0), i, 1),
            Data(X, np.delete(Y, i, 0)),
            cross=np.delete(K[i], i)[None],
            prior=K[i : i + 1, i : i + 1],
            ridge=0.1,
        )
        for i in range(6)
    ]
    squares = [
        (Y[i] - one.mean[0]) ** 2 / (one.covariance[0, 0] + 0.1) for i, one in enumerate(errors)
    ]
    scale = dynamics.prior_scale(K, DATA, ridge=0.1, by="leave_one_out")
    np.testing.assert_allclose(scale, np.mean(squares), rtol=1e-10)


def test_full_kernels_of_independent_outputs_give_the_posterior_of_each():
    alone = predict.gp_inference(GRAMS, Y, 0.01)(None, CROSSES, 20 * np.eye(4) + 9 * PRIOR)
    blocks = [
        Gram(*(kernel[:, :, None, None] * np.eye(2) for kernel in pair))
        for pair in (GRAMS, CROSSES)
    ]
    prior = (20 * np.eye(4) + 9 * PRIOR)[:, :, None, None] * np.eye(2)
    both = predict.gp_inference(blocks[0], Y, 0.01, trace_axes=())(None, blocks[1], prior)
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_allclose(other.mean, one.mean, rtol=1e-9)
        expected = np.asarray(one.covariance)[:, :, None, None] * np.eye(2)
        np.testing.assert_allclose(other.covariance, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a: dynamics.kernel_regression(a * K, DATA, cross=CROSS),
            "ridge got 0.0, expected .*> 0",
        ),
        (
            lambda a: dynamics.leave_one_out(a * K, DATA, ridge=-1.0),
            "ridge got -1.0, expected .*> 0",
        ),
        (
            lambda a: dynamics.kernel_regression(
                a * K, DATA, cross=CROSS, ridge=0.1, tolerance=0.1
            ),
            "tolerance got 0.1 inside of a transformation, expected None",
        ),
        (
            lambda a: dynamics.nngp_posterior(a * K, DATA, cross=CROSS, prior=PRIOR),
            "ridge got 0.0, expected .*> 0",
        ),
        (
            lambda a: dynamics.gradient_flow(a * K, DATA, time=[1.0, np.inf]),
            "time ends with inf inside of a transformation",
        ),
        (lambda a: predict.gradient_descent_mse(a * K, Y)(None), "ridge got 0.0, expected .*> 0"),
        (lambda a: predict.gp_inference(a * K, Y)("ntk"), "ridge got 0.0, expected .*> 0"),
        (
            lambda a: dynamics.kernel_regression(a * K[:5], DATA, cross=CROSS, ridge=0.1),
            r"kernel has shape \(5, 6\), expected \(6, 6\)",
        ),
        (
            lambda a: dynamics.kernel_regression(a * K, DATA, cross=CROSS[:, :5], ridge=0.1),
            r"cross has shape \(4, 5\), expected \(4, 6\)",
        ),
        (
            lambda a: jax.grad(
                lambda b: dynamics.solve_flow(b * K, Y, time=[1.0]).outputs[0, 0, 0]
            )(a),
            "second derivative by its kernel",
        ),
    ],
)
def test_what_cannot_be_traced_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        jax.grad(lambda a: jnp.sum(jax.tree.leaves(call(a))[0]))(1.0)


def test_an_eigendecomposition_is_refused_where_targets_are_traced():
    with pytest.raises(TypeError, match="pass the matrix itself"):
        jax.jit(
            lambda y: dynamics.kernel_regression(psd_eigh(K), Data(X, y), cross=CROSS, ridge=1.0)
        )(Y)


def test_kernels_that_are_not_definite_give_nan_and_no_number():
    values = jax.jit(lambda k: dynamics.kernel_regression(k, DATA, cross=CROSS, ridge=0.1))(
        K - np.eye(6)
    )
    assert np.isnan(values).all()
    impossible = jax.jit(
        lambda p: dynamics.nngp_posterior(K, DATA, cross=CROSS, prior=p, ridge=0.1).covariance
    )(0.1 * PRIOR)
    assert np.isnan(np.diagonal(impossible)).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_kernel_in_doubt_is_nan_and_so_are_its_derivatives(dtype):
    for seed in range(6):
        features = jax.random.normal(jax.random.key(seed), (6, 5), jnp.float32)
        kernel = jnp.matmul(features, features.T, precision="highest")

        def total(k):
            y = jnp.ones((6, 1), dtype)
            ridge = 1e-9 if dtype == jnp.float32 else 1e-7
            return dynamics.kernel_regression(
                k, Data(None, y), cross=k[:2] + 0.1, ridge=ridge
            ).sum()

        value, slope = jax.jit(jax.value_and_grad(total))(kernel)
        assert np.isnan(value) and np.isnan(slope).any()


@pytest.mark.parametrize(
    "call",
    [
        lambda k, r: dynamics.kernel_regression(k, DATA, cross=CROSS, ridge=r[None]),
        lambda k, r: dynamics.leave_one_out(k, DATA, ridge=r[None]),
        lambda k, r: dynamics.prior_scale(k, DATA, ridge=r),
        lambda k, r: dynamics.nngp_posterior(k, DATA, cross=CROSS, prior=PRIOR, ridge=r).mean,
        lambda k, r: (
            dynamics.nngp_posterior(k, DATA, cross=CROSS, prior=PRIOR, ridge=1.0, scale=r[:4]).mean
        ),
        lambda k, r: dynamics.solve_flow(k, Y, time=r[None]).outputs,
    ],
)
def test_shapes_that_the_host_refuses_are_refused_inside_of_transformations(call):
    for ridge in (jnp.ones(6), np.ones(6)):
        with pytest.raises((TypeError, ValueError), match="expected (a finite|one)|Type-check"):
            jax.jit(lambda k, r=ridge: call(k, r))(jnp.asarray(K))
    with pytest.raises((TypeError, ValueError), match="expected (a finite|one)|Type-check"):
        jax.jit(call)(jnp.asarray(K), jnp.ones(6))
