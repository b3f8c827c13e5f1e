"""Closed forms of the activations of `special`: against integrals, at correlation one, and at vanishing inputs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazynet as ln
from lazynet.covariance import exponentials, polynomials
from lazynet.models import special

DUALS = {
    "polynomial": (polynomials.polynomial_dual((0.5, -1.0, 0.3, 0.2)), special.Polynomial((0.5, -1.0, 0.3, 0.2))),
    "monomial": (polynomials.polynomial_dual((0, 0, 0, 0, 1.0)), special.Monomial(4)),
    "hermite": (polynomials.polynomial_dual(polynomials.hermite_coefficients(3)), special.Hermite(3)),
    "exp": (exponentials.exponential_dual(0.7, 0.4), special.Exp(0.7, 0.4)),
    "gaussian": (exponentials.gaussian_dual(1.3, -0.8), special.Gaussian(1.3, -0.8)),
    "gabor": (exponentials.gabor_dual(), special.Gabor()),
}  # fmt: skip
CORRELATIONS = np.array([-0.95, -0.3, 0.0, 0.6, 0.99])


def _integral(fn, q1, q2, s):
    """E[fn fn] by Gauss and Hermite on independent variables."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(90)
    z, e = np.meshgrid(nodes, nodes, indexing="ij")
    own = np.sqrt(q1) * z
    other = s / np.sqrt(q1) * z + np.sqrt(q2 - s**2 / q1) * e
    return float(np.sum(np.outer(weights, weights) * fn(own) * fn(other)) / (2 * np.pi))


@pytest.mark.parametrize("name", DUALS)
def test_smooth_duals_are_the_integrals(name):
    dual, model = DUALS[name]
    fn = lambda x: np.asarray(model.apply({}, jnp.asarray(x)))  # noqa: E731

    def slope(x):
        return np.asarray(
            jax.vmap(jax.grad(lambda y: model.apply({}, y)))(x.ravel()).reshape(x.shape)
        )

    q1, q2 = 0.6, 1.1
    for correlation in CORRELATIONS:
        s = correlation * math.sqrt(q1 * q2)
        sides = dual.side(jnp.array(q1)), dual.side(jnp.array(q2))
        value, change, _ = dual.pair(*sides, jnp.array(s), None, False)
        np.testing.assert_allclose(value, _integral(fn, q1, q2, s), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(change, _integral(slope, q1, q2, s), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 5])
def test_rectified_powers_are_integrals_over_a_quadrant(degree):
    dual = polynomials.rectified_power_dual(degree)
    for correlation in CORRELATIONS:
        # in polar coordinates the radius integrates to a factorial, and the angle is smooth
        angle = math.acos(correlation)
        nodes, weights = np.polynomial.legendre.leggauss(60)
        phi = (nodes + 1) / 2 * (math.pi - angle) + angle - math.pi / 2
        own = np.maximum(np.cos(phi), 0)
        other = np.maximum(np.cos(phi - angle), 0)
        radial = 2**degree * math.factorial(degree) / (2 * math.pi)
        expected = radial * np.sum(weights * (own * other) ** degree) * (math.pi - angle) / 2
        side = dual.side(jnp.array(1.0))
        value, _, _ = dual.pair(side, side, jnp.array(correlation), None, False)
        np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_the_slope_of_a_rectified_power_is_the_derivative_in_the_covariance(degree):
    dual = polynomials.rectified_power_dual(degree)
    side = dual.side(jnp.array(1.3))
    value = lambda s: dual.pair(side, side, s, None, False)[0]  # noqa: E731
    np.testing.assert_allclose(
        jax.grad(value)(0.4), dual.pair(side, side, jnp.array(0.4), None, False)[1], rtol=1e-11
    )


@pytest.mark.extended
@pytest.mark.parametrize("degree", [1, 2])
def test_a_rectified_monomial_of_degree_one_is_a_rectifier_and_of_two_has_no_nan_on_the_diagonal(
    degree,
):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)))
    gram = ln.analytic_kernel(
        ln.serial(ln.Dense(1, 1.2, 0.1), special.RectifiedMonomial(degree)), x
    )
    assert np.isfinite(gram.nngp).all() and np.isfinite(gram.ntk).all()
    if degree == 1:
        known = ln.analytic_kernel(ln.serial(ln.Dense(1, 1.2, 0.1), ln.Relu()), x)
        np.testing.assert_allclose(gram.ntk, known.ntk, rtol=1e-12)


def test_a_step_is_one_at_vanishing_inputs():
    x = jnp.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    model = ln.serial(ln.Dense(1), special.RectifiedMonomial(0))
    expected = [[0.5, 0.5, 0.5], [0.5, 1.0, 1.0], [0.5, 1.0, 1.0]]
    for gram in (ln.analytic_kernel(model, x), ln.analytic_kernel(model, x, x)):
        np.testing.assert_allclose(gram.nngp, expected, rtol=1e-12)


BUILDS = {
    "polynomial": lambda: special.Polynomial((1.0, 0.5, -0.3)),
    "rectified": lambda: special.RectifiedMonomial(2),
    "gabor": special.Gabor,
    "sign": special.Sign,
    "normalized": special.ExpNormalized,
    "gaussian": special.Gaussian,
}


@pytest.mark.extended
@pytest.mark.parametrize("name", BUILDS)
def test_kernels_and_their_gradients_are_finite_at_equal_and_at_vanishing_inputs(name):
    model = ln.serial(ln.Dense(1), BUILDS[name](), ln.Dense(1))
    x = jnp.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])

    def total(x):
        gram = ln.analytic_kernel(model, x, x)
        return jnp.sum(gram.nngp) + jnp.sum(gram.ntk)

    assert np.isfinite(total(x)) and np.isfinite(jax.grad(total)(x)).all()


@pytest.mark.extended
def test_a_hermite_polynomial_is_a_power_of_the_correlation_and_exact_for_any_variance():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
    unit = x / jnp.sqrt(jnp.mean(x**2, axis=1, keepdims=True))
    power = ln.analytic_kernel(ln.serial(ln.Dense(1), special.Hermite(3)), unit)
    np.testing.assert_allclose(power.nngp, (unit @ unit.T / 4) ** 3, rtol=1e-11, atol=1e-13)
    free = ln.analytic_kernel(ln.serial(ln.Dense(1), special.Hermite(3)), x)
    known = ln.analytic_kernel(
        ln.serial(ln.Dense(1), ln.elementwise(lambda z: (z**3 - 3 * z) / math.sqrt(6))), x
    )
    np.testing.assert_allclose(free.ntk, known.ntk, rtol=1e-7)


def test_a_sign_is_the_limit_of_steep_error_functions_and_passes_no_gradient():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)))
    sign = ln.analytic_kernel(ln.serial(ln.Dense(1), special.Sign()), x)
    steep = ln.analytic_kernel(ln.serial(ln.Dense(1), ln.Erf(b=1e6)), x)
    np.testing.assert_allclose(sign.nngp, steep.nngp, atol=1e-5)
    assert not np.any(sign.ntk)


def test_the_normalized_exponential_of_a_known_correlation():
    x = jnp.array([[2.0, 0.0], [1.0, 1.0]])
    gram = ln.analytic_kernel(ln.serial(ln.Dense(1), special.ExpNormalized(1.5, -0.2)), x)
    cosine = 1 / math.sqrt(2)
    norms = math.sqrt(2.0 * 1.0)
    np.testing.assert_allclose(gram.nngp[0, 1], norms * math.exp(1.5 * (cosine - 0.2)), rtol=1e-12)
    np.testing.assert_allclose(
        gram.ntk[0, 1], 1.0 * 1.5 * math.exp(1.5 * (cosine - 0.2)), rtol=1e-12
    )


@pytest.mark.parametrize("other", [None, jnp.array([[0.0, 1.6]])], ids=["itself", "orthogonal"])
def test_a_growing_bell_beyond_its_largest_variance_has_no_limit(other):
    """E[exp(b z^2 + b z'^2)] is finite where both eigenvalues of I - 2 b Sigma are positive."""
    model = ln.serial(ln.Dense(1), special.Gaussian(1.0, 1.0))
    x = jnp.array([[1.6, 0.0]])
    known = ln.analytic_kernel(model, x / 4).nngp[0, 0]
    np.testing.assert_allclose(known, 1 / math.sqrt(1 - 4 * 0.08), rtol=1e-6)
    with pytest.raises(ValueError, match=r"Gaussian\(a, b\) with b > 0 has no limit at variances"):
        ln.analytic_kernel(model, x, other)
