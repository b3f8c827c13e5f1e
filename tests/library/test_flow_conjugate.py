"""Conjugate gradient against `kernel_regression`; the preconditioner by what it saves, memory by what it allocates."""

from __future__ import annotations

import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

from lazynet import linalg
from lazynet.dynamics import conjugate, conjugate_gradient_regression, kernel_regression
from lazynet.kernels.empirical import empirical_ntk, ntk_vector_product
from lazynet.models.activations import Erf
from lazynet.models.layers import Dense
from lazynet.models.model import serial
from lazynet.records import Data
from lazynet.triangle import Triangle


def _data(y):
    return Data(x=np.zeros((len(y), 1)), y=y)


@functools.cache
def problem(n=300, m=5, k=3):
    """The kernel of an arc-cosine network on points near a plane, whose eigenvalues span seven decades; targets."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + m, 2)) @ rng.normal(size=(2, 10)) + 0.03 * rng.normal(size=(n + m, 10))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = np.clip(x @ x.T, -1, 1)
    kernel = (np.sqrt(1 - cosine**2) + 2 * (np.pi - np.arccos(cosine)) * cosine) / np.pi
    return kernel[:n, :n], kernel[n:, :n], rng.normal(size=(n, k))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ridge", [extended(1.0), 1e-3])
def test_predictions_are_those_of_the_direct_solution(dtype, ridge):
    kernel, cross, y = problem()
    kernel, cross = kernel.astype(dtype), cross.astype(dtype)
    fit = conjugate_gradient_regression(kernel, _data(y), cross=cross, ridge=ridge, rtol=1e-11)
    expected = kernel_regression(kernel, _data(y), cross=cross, ridge=ridge)
    np.testing.assert_allclose(fit.predictions, expected, atol=1e-8)
    assert fit.residual <= 1e-11


@pytest.mark.extended
def test_a_definite_kernel_needs_no_ridge():
    kernel, cross, y = problem()
    kernel = kernel + 0.1 * np.eye(len(kernel))
    fit = conjugate_gradient_regression(kernel, _data(y), cross=cross, ridge=0.0)
    np.testing.assert_allclose(
        fit.predictions, kernel_regression(kernel, _data(y), cross=cross), atol=1e-8
    )


@pytest.mark.parametrize("block", [extended(2**25), 8 * 300 * 7])
@pytest.mark.extended
def test_a_mapped_file_gives_the_same_as_the_array(tmp_path, monkeypatch, block):
    monkeypatch.setattr(linalg, "BLOCK_BYTES", block)
    kernel, cross, y = problem()
    mapped = np.memmap(tmp_path / "kernel", np.float32, "w+", shape=kernel.shape)
    mapped[:] = kernel
    fits = [
        conjugate_gradient_regression(k, _data(y), cross=cross, ridge=0.1)
        for k in (mapped, np.array(mapped))
    ]
    np.testing.assert_allclose(fits[0].predictions, fits[1].predictions, rtol=1e-12)


@pytest.mark.extended
def test_the_residual_is_that_of_the_coefficients():
    kernel, cross, y = problem()
    fit = conjugate_gradient_regression(kernel, _data(y), cross=cross, ridge=0.1, rtol=1e-4)
    residual = y - kernel @ fit.coefficients - 0.1 * fit.coefficients
    expected = (np.linalg.norm(residual, axis=0) / np.linalg.norm(y, axis=0)).max()
    assert fit.residual == pytest.approx(expected, rel=1e-6)
    assert 1e-7 < fit.residual <= 1e-4


@functools.cache
def network():
    model = serial(Dense(16, b_std=0.3), Erf(), Dense(2))
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (12, 3))
    params = jax.jit(model.init)(keys[1], x[:1])
    return model.apply, params, x[:9], x[9:], np.asarray(jax.random.normal(keys[2], (9, 2)))


@pytest.mark.extended
def test_the_full_empirical_kernel_is_one_system_of_all_outputs():
    apply, params, x, x_test, y = network()
    kernel, cross = empirical_ntk(apply, params, x), empirical_ntk(apply, params, x_test, x)
    fit = conjugate_gradient_regression(kernel, _data(y), cross=cross, ridge=0.1, rank=5)
    np.testing.assert_allclose(
        fit.predictions, kernel_regression(kernel, _data(y), cross=cross, ridge=0.1), atol=1e-8
    )


@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.extended
def test_a_product_with_the_tangent_kernel_and_its_diagonal_do_for_the_kernel(rank):
    apply, params, x, x_test, y = network()
    kernel, cross = empirical_ntk(apply, params, x), empirical_ntk(apply, params, x_test, x)
    fit = conjugate_gradient_regression(
        ntk_vector_product(apply, params, x),
        _data(y),
        cross=ntk_vector_product(apply, params, x_test, x),
        ridge=0.1,
        rank=rank,
        diagonal=np.einsum("iiaa->ia", kernel),
    )
    np.testing.assert_allclose(
        fit.predictions, kernel_regression(kernel, _data(y), cross=cross, ridge=0.1), atol=1e-8
    )


@pytest.mark.extended
def test_a_product_that_acts_on_columns_serves_decoupled_outputs():
    kernel, cross, y = problem()
    device = jnp.asarray(kernel)
    fit = conjugate_gradient_regression(
        lambda v: device @ v,
        _data(y),
        cross=lambda v: cross @ v,
        ridge=0.1,
        diagonal=np.diag(kernel),
    )
    expected = conjugate_gradient_regression(kernel, _data(y), cross=cross, ridge=0.1)
    np.testing.assert_allclose(fit.predictions, expected.predictions, atol=1e-9)
    assert fit.iterations == expected.iterations


@pytest.mark.extended
def test_the_preconditioner_saves_iterations_and_more_rank_saves_more():
    kernel, cross, y = problem()
    settings = dict(cross=cross, ridge=1e-2, max_iterations=5000)
    counts = [
        conjugate_gradient_regression(kernel, _data(y), **settings, rank=rank).iterations
        for rank in (0, 20, 100)
    ]
    assert counts[0] > 2 * counts[1] and counts[1] > 1.5 * counts[2]


@pytest.mark.extended
def test_a_preconditioner_of_full_rank_solves_at_once():
    kernel, cross, y = problem()
    assert (
        conjugate_gradient_regression(
            kernel, _data(y), cross=cross, ridge=1e-2, rank=300
        ).iterations
        <= 2
    )


@pytest.mark.extended
def test_a_vanishing_ridge_costs_no_further_iterations():
    kernel, cross, y = problem()
    kernel = kernel + 0.05 * np.eye(len(kernel))
    counts = [
        conjugate_gradient_regression(kernel, _data(y), cross=cross, ridge=r).iterations
        for r in (1e-2, 1e-6)
    ]
    assert counts[1] <= 1.3 * counts[0]


RIDGES = np.array([1e-3, 1e-2, 1.0])


@pytest.mark.parametrize("n", [300, extended(2000)])
@pytest.mark.parametrize("form", [np.asarray, lambda kernel: Triangle.of(kernel, side=64)])
def test_a_path_of_ridges_is_that_of_the_dense_solution(n, form):
    kernel, cross, y = (values.astype(np.float32) for values in problem(n))
    fit = conjugate_gradient_regression(form(kernel), _data(y), cross=cross, ridge=RIDGES)
    expected = kernel_regression(kernel, _data(y), cross=cross, ridge=RIDGES)
    np.testing.assert_allclose(fit.predictions, expected, atol=1e-7)
    assert fit.residual.shape == (3,) and (fit.residual <= 1e-10).all()


def test_all_ridges_share_one_product_an_iteration_and_converged_ones_drop_out():
    kernel, cross, y = problem()
    widths = []

    def product(v):
        widths.append(v.shape[1])
        return kernel @ np.asarray(v)

    settings = dict(cross=cross, rank=0, rtol=1e-4)
    one = dict(ridge=RIDGES[0], diagonal=np.diag(kernel))
    alone = conjugate_gradient_regression(product, _data(y), **settings, **one)
    widths.clear()
    path = conjugate_gradient_regression(product, _data(y), **settings, **(one | {"ridge": RIDGES}))
    assert abs(path.iterations - alone.iterations) <= 20
    assert widths[0] == 9 and widths[path.iterations - 1] <= 3
    np.testing.assert_allclose(path.predictions[0], alone.predictions, atol=1e-3)


@pytest.mark.extended
def test_the_path_of_a_full_kernel_has_an_axis_of_ridges():
    apply, params, x, x_test, y = network()
    kernel, cross = empirical_ntk(apply, params, x), empirical_ntk(apply, params, x_test, x)
    settings = dict(cross=cross, ridge=np.array([0.1, 1.0]))
    fit = conjugate_gradient_regression(kernel, _data(y), **settings, rank=7)
    expected = kernel_regression(kernel, _data(y), **settings)
    np.testing.assert_allclose(fit.predictions, expected, atol=1e-7)
    assert fit.coefficients.shape == (2, 9, 2)


@pytest.mark.parametrize("block", [1, 250])
def test_the_factor_interpolates_its_pivots_and_leaves_a_trace_close_to_the_best(block):
    kernel = problem()[0]
    system = conjugate._System(None, kernel.__getitem__, np.diag(kernel), block)
    factor, rest = conjugate._randomly_pivoted_cholesky(system, 40)
    left = kernel - factor.T @ factor
    np.testing.assert_allclose(np.diag(left), rest, atol=1e-12)
    assert len(factor) == 40 and np.sum(np.abs(left).max(axis=1) < 1e-12) == 40
    smallest = np.linalg.eigvalsh(kernel)[:-40].sum()
    assert smallest <= rest.sum() <= 3 * smallest


def test_pivots_of_a_block_are_drawn_like_pivots_one_at_a_time():
    # Two pivots of a diagonal with correlations: the mean of what remains has one value for both.
    kernel = np.array([[4.0, 1.9, 0.0], [1.9, 1.0, 0.3], [0.0, 0.3, 1.0]])
    means = []
    for block in (1, 2):
        system = conjugate._System(None, kernel.__getitem__, np.diag(kernel), block)
        draws = [conjugate._randomly_pivoted_cholesky(system, 2, seed)[1] for seed in range(4000)]
        means.append(np.mean([rest.sum() for rest in draws]))
        error = np.std([rest.sum() for rest in draws]) / 4000**0.5
    assert abs(means[0] - means[1]) < 5 * error


def test_a_residual_that_was_not_reached_is_returned_when_asked_for():
    kernel, cross, y = problem()
    settings = dict(cross=cross, ridge=np.array([1e-6, 10.0]), rank=0, max_iterations=20)
    fit = conjugate_gradient_regression(kernel, _data(y), **settings, unconverged="return")
    assert fit.residual[0] > 1e-3 and fit.residual[1] < fit.residual[0]
    with pytest.raises(RuntimeError, match="the ridge .1e-06."):
        conjugate_gradient_regression(kernel, _data(y), **settings)


def test_zero_targets_have_zero_predictions():
    kernel, cross, y = problem()
    y = np.column_stack([y[:, 0], np.zeros(len(y))])
    fit = conjugate_gradient_regression(kernel, _data(y), cross=cross, ridge=0.1)
    assert (fit.predictions[:, 1] == 0).all() and np.abs(fit.predictions[:, 0]).max() > 0


@pytest.mark.extended
def test_a_float32_kernel_is_solved_within_a_tenth_of_its_memory(monkeypatch):
    n = 3000
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    kernel = np.exp(x @ x.T / 20) + np.eye(n, dtype=np.float32)
    monkeypatch.setattr(linalg, "BLOCK_BYTES", kernel.nbytes // 100)
    tracemalloc.start()
    conjugate_gradient_regression(
        kernel, _data(x[:, :1]), cross=kernel[:2], ridge=0.1, rank=30, rtol=1e-6
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.1 * kernel.nbytes


@pytest.mark.extended
def test_a_kernel_that_does_not_converge_names_the_residual_reached():
    kernel, cross, y = problem()
    with pytest.raises(
        RuntimeError, match=r"reached a residual of .* after 3 iterations, expected 1e-10 or less"
    ):
        conjugate_gradient_regression(
            kernel, _data(y), cross=cross, ridge=1e-6, rank=0, max_iterations=3
        )
    twice = np.arange(len(y)) // 2
    with pytest.raises(RuntimeError, match="reached a residual of"):
        conjugate_gradient_regression(
            kernel[np.ix_(twice, twice)], _data(y), cross=cross[:, twice], ridge=0.0
        )


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200])
def test_targets_of_any_size_have_predictions_of_their_size(scale):
    kernel, cross, y = problem()
    fit = conjugate_gradient_regression(kernel, _data(y * scale), cross=cross, ridge=1.0)
    expected = kernel_regression(kernel, _data(y), cross=cross, ridge=1.0)
    np.testing.assert_allclose(fit.predictions / scale, expected, atol=1e-8)


EYE, Y = np.eye(3), np.ones((3, 2))


@pytest.mark.parametrize(
    ("kernel", "settings", "message"),
    [
        (EYE + np.tri(3), {}, "largest asymmetry is 1"),
        (EYE * np.nan, {}, "9 entries that are not finite"),
        (np.eye(2), {}, r"has shape \(2, 2\), expected \(3, 3\)"),
        (EYE, {"ridge": -1.0}, "ridge got -1.0"),
        (EYE, {"rank": -1}, "rank got -1"),
        (EYE, {"rtol": 0.0}, "rtol got 0.0"),
        (EYE, {"max_iterations": 0}, "max_iterations got 0"),
        (Triangle.of(EYE, side=2), {"cross": np.eye(2)}, r"cross has shape \(2, 2\)"),
        (Triangle.of(np.eye(2), side=2), {}, r"kernel has shape \(2, 2\), expected \(3, 3\)"),
        (Triangle.of(EYE * np.nan, side=2), {}, "kernel"),
        (EYE, {"cross": np.ones((4, 2))}, r"cross has shape \(4, 2\)"),
        (lambda v: v, {}, "a product needs the diagonal"),
        (lambda v: v, {"diagonal": np.ones(2)}, r"diagonal of shape \(2,\), expected \(3,\)"),
    ],
)
def test_a_mistake_is_named(kernel, settings, message):
    with pytest.raises(ValueError, match=message):
        conjugate_gradient_regression(kernel, _data(Y), **({"cross": EYE, "ridge": 0.1} | settings))
