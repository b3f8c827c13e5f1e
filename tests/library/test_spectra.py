"""Matrix-free spectra against decompositions of the formed kernel; standard errors against the scatter over keys."""

from __future__ import annotations

import functools

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

from lazynet import spectra
from lazynet.kernels.empirical import empirical_ntk, ntk_vector_product
from lazynet.kernels.spectra.operators import operator_of
from lazynet.linalg import kernel_matrix
from lazynet.models.activations import Erf
from lazynet.models.layers import Conv, Dense, Flatten
from lazynet.models.model import serial

KEY = jax.random.key(0)


@functools.cache
def problem(convolutional=False):
    """The product with the tangent kernel of a small network, the shape of its vectors, and the formed kernel."""
    body = (Conv(6, (3, 3)), Erf(), Flatten()) if convolutional else (Dense(20, b_std=0.4), Erf())
    model = serial(*body, Dense(2))
    x = jax.random.normal(jax.random.key(1), (30, 4, 4, 1) if convolutional else (30, 3))
    params = jax.jit(model.init)(jax.random.key(2), x[:1])
    kernel = kernel_matrix(empirical_ntk(model.apply, params, x))
    return ntk_vector_product(model.apply, params, x), (30, 2), kernel


@functools.cache
def decaying(n=200, seed=0):
    """A kernel with eigenvalues 1/i^2."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return (q / np.arange(1, n + 1.0) ** 2) @ q.T


def forms(tmp_path):
    """One kernel as an array of NumPy, of JAX, a mapped file, a traceable product and one that is not."""
    matrix = decaying()
    mapped = np.memmap(tmp_path / "kernel", np.float64, "w+", shape=matrix.shape)
    mapped[:] = matrix
    device = jnp.asarray(matrix)
    shaped = {"shape": (len(matrix),)}
    return [
        (matrix, {}),
        (device, {}),
        (mapped, {}),
        (lambda v: jnp.matmul(device, v, precision="highest"), shaped),
        (lambda v: matrix @ np.asarray(v), shaped),
    ]


# -------------------------------------------------------------------------------------------------------
# eigenvalues


@pytest.mark.parametrize("convolutional", [False, extended(True)])
@pytest.mark.extended
def test_top_eigenvalues_are_those_of_the_formed_kernel(convolutional):
    product, shape, kernel = problem(convolutional)
    expected = np.linalg.eigvalsh(kernel)[::-1][:5]
    np.testing.assert_allclose(
        spectra.top_eigenvalues(product, 5, key=KEY, shape=shape), expected, rtol=1e-8
    )


@pytest.mark.extended
def test_top_eigenvalues_are_the_same_for_every_form_of_a_kernel(tmp_path):
    for kernel, shape in forms(tmp_path):
        values = spectra.top_eigenvalues(kernel, 4, key=KEY, **shape)
        np.testing.assert_allclose(values, 1 / np.arange(1, 5.0) ** 2, rtol=1e-10)


def test_ritz_values_approach_the_largest_eigenvalue_from_below():
    values = [
        spectra.top_eigenvalues(decaying(), 1, key=KEY, steps=steps)[0] for steps in (1, 2, 4, 16)
    ]
    assert values == sorted(values)
    assert values[0] < 0.1 < 1 - 1e-9 < values[-1] <= 1 + 1e-12


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_repeated_eigenvalue_is_found_once(array):
    kernel = array(np.diag([3.0, 3.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(spectra.top_eigenvalues(kernel, 5, key=KEY), [3, 1, 0], atol=1e-12)


def test_a_full_empirical_kernel_is_taken_as_the_matrix_of_all_outputs():
    full = np.einsum("ij,ab->ijab", np.diag([3.0, 1.0]), np.diag([1.0, 5.0]))
    np.testing.assert_allclose(spectra.top_eigenvalues(full, 4, key=KEY), [15, 5, 3, 1], rtol=1e-10)


@pytest.mark.extended
def test_a_float32_product_has_eigenvalues_to_single_precision():
    single = jnp.asarray(decaying(), jnp.float32)
    for kernel, shape in ((single, None), (lambda v: single @ v.astype(jnp.float32), (200,))):
        values = spectra.top_eigenvalues(kernel, 3, key=KEY, shape=shape)
        np.testing.assert_allclose(values, [1, 1 / 4, 1 / 9], rtol=1e-6)


@pytest.mark.parametrize("convolutional", [False, extended(True)])
def test_a_product_with_convolutions_is_not_put_into_a_compiled_loop(convolutional):
    product, shape, _ = problem(convolutional)
    assert (operator_of(product, shape, loops=True).compiled is None) == convolutional


# ---------------------------------------------------------------------------------------------------------
# estimates


@pytest.mark.parametrize("convolutional", [False, extended(True)])
def test_the_trace_of_a_product_is_that_of_the_formed_kernel_within_its_error(convolutional):
    product, shape, kernel = problem(convolutional)
    value, error = spectra.trace(product, key=KEY, shape=shape, probes=24)
    assert abs(value - np.trace(kernel)) < 4 * error < 0.4 * np.trace(kernel)


def test_the_trace_of_an_array_is_exact():
    assert spectra.trace(decaying(), key=KEY) == (pytest.approx(np.trace(decaying())), 0.0)


def scatter(estimate, expected, keys):
    """Estimates and errors over keys: the mean must not be biased, the errors must be as large as the scatter."""
    values, errors = np.transpose(
        [estimate(key) for key in jax.random.split(jax.random.key(5), keys)]
    )
    assert abs(values.mean() - expected) < 3.5 * values.std() / np.sqrt(keys)
    assert 0.75 < np.sqrt(np.mean(errors**2)) / values.std() < 1.35


@pytest.mark.extended
def test_the_error_of_a_trace_is_its_scatter_over_keys():
    matrix = decaying(50) + np.diag(np.linspace(0, 0.1, 50))
    scatter(
        lambda key: spectra.trace(lambda v: matrix @ np.asarray(v), key=key, shape=(50,)),
        np.trace(matrix),
        80,
    )


def test_the_trace_is_far_closer_than_hutchinsons():
    matrix = decaying()
    estimates = [
        spectra.trace(lambda v: matrix @ np.asarray(v), key=key, shape=(200,)).value
        for key in jax.random.split(KEY, 20)
    ]
    off_diagonal = np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)
    hutchinson = np.sqrt(2 * off_diagonal / 30)
    assert np.sqrt(np.mean((np.array(estimates) - np.trace(matrix)) ** 2)) < hutchinson / 10


@pytest.mark.extended
@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_the_error_of_an_effective_dimension_is_its_scatter_over_keys(ridge):
    values = 1 / np.arange(1, 51.0) ** 2
    expected = np.sum(values / (values + ridge))
    scatter(
        lambda key: spectra.effective_dimension(decaying(50), ridge, key=key, probes=8),
        expected,
        60,
    )


@pytest.mark.extended
def test_effective_dimensions_are_the_same_for_every_form_of_a_kernel(tmp_path):
    ridges = np.array([1e-3, 1.0])
    results = [
        spectra.effective_dimension(k, ridges, key=KEY, **shape, probes=4)
        for k, shape in forms(tmp_path)
    ]
    for value, error in results[1:]:
        np.testing.assert_allclose(value, results[0].value, rtol=1e-8)
        np.testing.assert_allclose(error, results[0].standard_error, rtol=1e-6)


@pytest.mark.extended
@pytest.mark.parametrize("convolutional", [False, True])
def test_the_effective_dimension_of_a_tangent_kernel_is_that_of_the_formed_one(convolutional):
    product, shape, kernel = problem(convolutional)
    eigenvalues = np.linalg.eigvalsh(kernel)
    value, error = spectra.effective_dimension(
        product, 1.0, key=KEY, shape=shape, steps=60, probes=6
    )
    assert abs(value - np.sum(eigenvalues / (eigenvalues + 1.0))) < 4 * error < 10


@pytest.mark.parametrize("steps", [3, 10, 40])
@pytest.mark.parametrize("ridge", [1e-8, 1e-4])
def test_the_error_of_an_effective_dimension_contains_that_of_its_quadrature(ridge, steps):
    """Too few steps for so small a ridge are off by far more than the scatter over keys."""
    eigenvalues = 1 / np.arange(1, 201.0) ** 2
    value, error = spectra.effective_dimension(decaying(), ridge, key=KEY, steps=steps)
    assert abs(value - np.sum(eigenvalues / (eigenvalues + ridge))) < 3 * error


@pytest.mark.parametrize("scale", [1e-30, 1e20, 1e30])
def test_top_eigenvalues_of_a_float32_kernel_are_right_at_any_scale(scale):
    kernel = jnp.asarray(decaying() * scale, jnp.float32)
    with jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64():
        values = spectra.top_eigenvalues(kernel, 2, key=jax.random.key(0))
    np.testing.assert_allclose(values / scale, [1, 1 / 4], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e160, 1e300])
def test_spectra_of_a_float64_kernel_are_right_at_any_scale(scale):
    kernel = decaying(50) * scale
    np.testing.assert_allclose(
        spectra.top_eigenvalues(kernel, 1, key=KEY) / scale, [1.0], rtol=1e-9
    )
    value, error = spectra.trace(lambda v: kernel @ np.asarray(v), key=KEY, shape=(50,))
    assert abs(value / scale - np.sum(1 / np.arange(1, 51.0) ** 2)) < 4 * error / scale < 1


def test_one_ridge_gives_numbers_and_an_axis_of_ridges_arrays():
    one = spectra.effective_dimension(decaying(), 0.1, key=KEY, probes=2)
    several = spectra.effective_dimension(decaying(), np.array([0.1, 1.0]), key=KEY, probes=2)
    assert isinstance(one.value, float) and several.value.shape == several.standard_error.shape == (
        2,
    )
    assert one.value == pytest.approx(several.value[0])


# -----------------------------------------------------------------------------------------------------------
# density


def test_quadratures_integrate_powers_of_the_kernel():
    density = spectra.spectral_density(decaying(), key=KEY, probes=200, steps=12)
    np.testing.assert_allclose(density.weights.sum(1), 1, rtol=1e-12)
    for power in (1, 2):
        moments = np.sum(density.weights * density.nodes**power, axis=1)
        expected = np.sum(1 / np.arange(1, 201.0) ** (2 * power)) / 200
        assert abs(moments.mean() - expected) < 3.5 * moments.std() / np.sqrt(200)


def test_the_density_counts_every_eigenvalue_once_per_decade():
    eigenvalues = np.repeat([1e-3, 1.0, 1e2], [120, 60, 20])
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(200, 200)))
    density = spectra.spectral_density((q * eigenvalues) @ q.T, key=KEY, probes=40)
    decades = np.log10(density.eigenvalues)
    assert np.trapezoid(density.density, decades) == pytest.approx(1, abs=3e-3)
    for center, share in ((-3, 0.6), (0, 0.3), (2, 0.1)):
        near = np.abs(decades - center) < 0.5
        assert np.trapezoid(density.density[near], decades[near]) == pytest.approx(share, abs=0.03)


def test_a_singular_kernel_has_a_finite_density():
    density = spectra.spectral_density(np.diag([1.0, 1.0, 0.0, 0.0]), key=KEY)
    assert np.isfinite(density.density).all() and (density.eigenvalues > 0).all()


# ------------------------------------------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectra.top_eigenvalues(np.eye(3) + np.tri(3), 1, key=KEY), "not symmetric"),
        (lambda: spectra.trace(np.eye(3) * np.nan, key=KEY), "9 entries that are not finite"),
        (lambda: spectra.top_eigenvalues(lambda v: v, 1, key=KEY), "a product without shape"),
        (lambda: spectra.top_eigenvalues(np.eye(3), 0, key=KEY), "count got 0"),
        (
            lambda: spectra.trace(np.eye(3), key=KEY, probes=5),
            "probes got 5, expected an integer >= 6",
        ),
        (
            lambda: spectra.trace(lambda v: v[:2], key=KEY, shape=(3,)),
            "has 2 entries, 0 of them not finite, expected 3",
        ),
        (lambda: spectra.trace(lambda v: v * jnp.nan, key=KEY, shape=(3,)), "3 of them not finite"),
        (
            lambda: spectra.top_eigenvalues(lambda v: v * jnp.nan, 1, key=KEY, shape=(3,)),
            "not finite",
        ),
        (lambda: spectra.effective_dimension(np.eye(3), -1.0, key=KEY), "ridge got -1.0"),
        (lambda: spectra.effective_dimension(np.eye(3), 0.0, key=KEY), "ridge got 0.0"),
        (lambda: spectra.effective_dimension(np.eye(3), 1.0, key=KEY, probes=1), "probes got 1"),
        (lambda: spectra.effective_dimension(np.eye(3), np.zeros(0), key=KEY), "ridge of shape"),
        (lambda: spectra.top_eigenvalues(np.zeros((0, 0)), 1, key=KEY), "m >= 1"),
        (lambda: spectra.spectral_density(np.eye(3), key=KEY, width=0.0), "width got 0.0"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("form", [lambda a: a * jnp.eye(3), lambda a: lambda v: a * v])
@pytest.mark.parametrize("function", [spectra.trace, spectra.spectral_density])
def test_inside_a_transformation_the_way_out_is_named(function, form):
    with pytest.raises(TypeError, match="got a traced array, .* outside of jit, grad and vmap"):
        jax.jit(lambda a: (function(form(a), key=KEY, shape=(3,)), a)[1])(1.0)
