from __future__ import annotations

import dataclasses
import json
from pathlib import Path as File

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

from lazynet.scattering import (
    Path,
    filter_bank,
    scattering2d,
    scattering2d_nhwc,
    scattering_paths,
    wavelet_coefficients,
)
from lazynet.scattering.transform import modulus

GOLDEN = File(__file__).resolve().parents[1] / "golden"
CASES = json.loads((GOLDEN / "kymatio.json").read_text())


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "kymatio.npz")


def image(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b))


@pytest.mark.parametrize(
    ("case", "chunk"),
    [
        ("a", None),
        ("e", 4),
        *(extended(case, None) for case in CASES if case != "a"),
        extended("a", 100),
    ],
)
def test_coefficients_equal_those_of_kymatio_in_float32(golden, case, chunk):
    facts = CASES[case]
    filters = filter_bank(facts["shape"], facts["J"], facts["L"], pi="kymatio")
    got = scattering2d(golden[f"{case}/x"], filters, max_order=facts["max_order"], chunk=chunk)
    assert got.dtype == jnp.float32 and got.shape == golden[f"{case}/Sx"].shape
    assert relative(got, golden[f"{case}/Sx"]) < 1e-6


def test_every_channel_equals_kymatio_s(golden):
    got = np.asarray(scattering2d(golden["c/x"], filter_bank((32, 32), 3, pi="kymatio")))
    error, size = (np.square(a).sum((0, 1, 3, 4)) for a in (got - golden["c/Sx"], golden["c/Sx"]))
    assert np.sqrt(error / size).max() < 1e-6


def test_the_exact_pi_differs_from_kymatio_s_by_a_power_of_their_ratio_per_order():
    x = image(32, 32)
    exact, legacy = (
        scattering2d(x, filter_bank((32, 32), 2, pi=pi)) for pi in ("exact", "kymatio")
    )
    gain = np.array([(np.pi / 3.1415) ** (path.order + 1) for path in scattering_paths(2)])
    np.testing.assert_allclose(legacy, gain[:, None, None] * exact, rtol=1e-12)


def test_coefficients_equal_direct_convolutions_on_the_periodic_grid():
    x, filters = image(16, 16), filter_bank((16, 16), 2, 4, padding="periodic")
    psi = [np.asarray(filters.psi[0][j]) for j in range(2)]
    phi = np.outer(*filters.phi)

    def convolve(u, spectrum):
        return np.fft.ifft2(np.fft.fft2(u) * spectrum)

    got = np.asarray(scattering2d(x, filters))
    np.testing.assert_allclose(got[0], convolve(x, phi).real[::4, ::4], atol=1e-12)
    for t1 in range(4):
        u1 = abs(convolve(x, psi[0][t1]))
        np.testing.assert_allclose(got[1 + t1], convolve(u1, phi).real[::4, ::4], atol=1e-12)
        for t2 in range(4):
            u2 = abs(convolve(u1, psi[1][t2])[::2, ::2])
            half = np.asarray(filters.average[1][0]), np.asarray(filters.average[1][1])
            np.testing.assert_allclose(got[9 + 4 * t1 + t2], half[0] @ u2 @ half[1].T, atol=1e-12)


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "reflect"), ("symmetric", "symmetric")])
@pytest.mark.extended
def test_padding_is_numpy_s_and_given_padding_is_left_alone(padding, mode):
    x, filters = image(2, 20, 22), filter_bank((20, 22), 2, padding=padding)
    padded = np.pad(x, ((0, 0), *filters.margins), mode=mode)
    by_hand = scattering2d(padded, filter_bank((20, 22), 2, padding="given"))
    np.testing.assert_allclose(scattering2d(x, filters), by_hand, atol=1e-13)


def test_mean_pooling_averages_the_moduli_over_the_image():
    x = image(32, 32)
    filters = filter_bank((32, 32), 2, padding="periodic", pool="mean")
    first = [np.abs(c).mean((-2, -1)) for c in wavelet_coefficients(x, filters)]
    got = scattering2d(x, filters)
    assert got.shape == (81, 1, 1)
    np.testing.assert_allclose(got[0, 0, 0], x.mean(), atol=1e-14)
    np.testing.assert_allclose(got[1:17, 0, 0], np.concatenate(first), rtol=1e-12)


def test_wavelet_coefficients_are_decimated_convolutions():
    x, filters = image(3, 16, 16), filter_bank((16, 16), 3, 4, padding="periodic")
    for j, coefficients in enumerate(wavelet_coefficients(x, filters)):
        full = np.fft.ifft2(np.fft.fft2(x)[:, None] * np.asarray(filters.psi[0][j]))
        np.testing.assert_allclose(coefficients, full[..., :: 2**j, :: 2**j], atol=1e-12)


@pytest.mark.parametrize(
    ("J", "L", "count"), [(2, 8, 81), (3, 8, 217), (4, 8, 417), (5, 8, 681), (2, 4, 25), (1, 8, 9)]
)
def test_paths_are_as_many_as_coefficients_and_come_in_kymatio_s_order(J, L, count):
    paths = scattering_paths(J, L)
    second = [p for p in paths if p.order == 2]
    assert len(paths) == count == len(set(paths))
    assert paths[0] == Path(0, (), ()) and [p.order for p in paths] == sorted(
        p.order for p in paths
    )
    assert second == sorted(second, key=lambda p: (p.j[0], p.theta[0], p.j[1], p.theta[1]))
    assert all(p.j[0] < p.j[1] for p in second)


@pytest.mark.parametrize("max_order", [0, 1, 2])
def test_lower_orders_are_a_prefix(max_order):
    x, filters = image(32, 28), filter_bank((32, 28), 2)
    got = scattering2d(x, filters, max_order=max_order)
    assert got.shape == (len(scattering_paths(2, 8, max_order)), 8, 7)
    np.testing.assert_allclose(got, scattering2d(x, filters)[: got.shape[0]], atol=1e-14)


@pytest.mark.extended
def test_channels_last_images_give_channels_last_coefficients():
    x, filters = image(2, 16, 16, 3), filter_bank((16, 16), 2, 4)
    got = scattering2d_nhwc(x, filters)
    assert got.shape == (2, 4, 4, 3 * 25)
    np.testing.assert_array_equal(
        got[..., 25:50], np.moveaxis(scattering2d(x[..., 1], filters), 1, -1)
    )


@pytest.mark.parametrize("dtype", [jnp.float32, extended(jnp.float64)])
@pytest.mark.parametrize("sampling", ["kymatio", "centered"])
def test_the_dtype_of_the_image_is_kept(dtype, sampling):
    filters = filter_bank((16, 16), 2, sampling=sampling)
    x = jnp.asarray(image(16, 16), dtype)
    assert scattering2d(x, filters).dtype == dtype
    assert jax.tree.leaves(wavelet_coefficients(x, filters))[0].real.dtype == dtype


@pytest.mark.extended
def test_float32_agrees_with_float64():
    x, filters = image(2, 32, 32), filter_bank((32, 32), 2)
    assert relative(scattering2d(x.astype(np.float32), filters), scattering2d(x, filters)) < 5e-7


@pytest.mark.extended
def test_jit_vmap_and_the_batch_axis_agree():
    x, filters = image(3, 2, 16, 16), filter_bank((16, 16), 2, 4)
    expected = scattering2d(x, filters)
    np.testing.assert_allclose(jax.jit(scattering2d)(x, filters), expected, atol=1e-13)
    np.testing.assert_allclose(
        jax.vmap(lambda u: scattering2d(u, filters))(jnp.asarray(x)), expected, atol=1e-13
    )
    np.testing.assert_allclose(
        jnp.stack([scattering2d(u, filters) for u in x]), expected, atol=1e-13
    )


@pytest.mark.extended
def test_derivatives_agree_with_finite_differences():
    x, filters = jnp.asarray(image(16, 16)), filter_bank((16, 16), 2, 2)
    direction = jnp.asarray(image(16, 16, seed=1))

    @jax.jit
    def energy(u):
        return (scattering2d(u, filters) ** 2).sum()

    step = 1e-6
    difference = (energy(x + step * direction) - energy(x - step * direction)) / (2 * step)
    forward = jax.jvp(energy, (x,), (direction,))[1]
    np.testing.assert_allclose(forward, difference, rtol=1e-7)
    np.testing.assert_allclose(jnp.vdot(jax.grad(energy)(x), direction), forward, rtol=1e-12)


@pytest.mark.parametrize("sampling", ["kymatio", extended("centered")])
@pytest.mark.extended
def test_gradients_are_finite_at_zero_and_constant_images(sampling):
    filters = filter_bank((16, 16), 2, 2, sampling=sampling)
    gradient = jax.jit(
        jax.grad(lambda u: (scattering2d(u, filters) ** 2).sum() + scattering2d(u, filters).sum())
    )
    for value in (0.0, 1.0, -1e-30):
        assert bool(jnp.isfinite(gradient(jnp.full((16, 16), value))).all())


@pytest.mark.extended
def test_hessian_vector_products_are_finite_at_the_zero_image():
    filters, x = filter_bank((8, 8), 1, 2), jnp.zeros((8, 8))
    gradient = jax.grad(lambda u: (scattering2d(u, filters) ** 2).sum())
    assert bool(jnp.isfinite(jax.jvp(gradient, (x,), (x + 1,))[1]).all())


@pytest.mark.extended
def test_the_filters_can_be_differentiated():
    x, filters = jnp.asarray(image(8, 8)), filter_bank((8, 8), 2, 1)
    gradient = jax.grad(lambda f: (scattering2d(x, f) ** 2).sum())(filters)
    assert (
        gradient.psi[0][0].shape == filters.psi[0][0].shape
        and float(abs(gradient.psi[0][1]).max()) > 0
    )


@pytest.mark.parametrize(
    ("shape", "J", "max_order"),
    [
        extended((8, 8), 3, 2),
        extended((4, 4), 2, 1),
        ((2, 2), 1, 2),
        extended((31, 30), 3, 1),
        extended((16, 64), 4, 1),
        ((7, 5), 2, 2),
    ],
)
def test_extreme_shapes_give_the_expected_finite_maps(shape, J, max_order):
    got = scattering2d(image(*shape), filter_bank(shape, J, 4), max_order=max_order)
    assert got.shape == (len(scattering_paths(J, 4, max_order)), shape[0] >> J, shape[1] >> J)
    assert bool(jnp.isfinite(got).all())


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("batch", [(), (1, 1), (2, 0, 3), (5,)])
def test_any_number_of_batch_axes_is_kept_even_empty_ones(batch, chunk):
    filters = filter_bank((8, 8), 1, 2)
    assert scattering2d(jnp.zeros((*batch, 8, 8)), filters, chunk=chunk).shape == (*batch, 3, 4, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.complex64, np.bool_])
def test_images_that_are_not_floats_are_refused_with_the_conversion(dtype):
    with pytest.raises(TypeError, match="astype"):
        scattering2d(np.ones((16, 16), dtype), filter_bank((16, 16), 2))


@pytest.mark.parametrize("shape", [(16, 15), (15, 16), (16, 16, 3), (20, 20)])
def test_images_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match=r"for images \[..., 16, 16\]"):
        scattering2d(np.ones(shape), filter_bank((16, 16), 2))


@pytest.mark.parametrize("max_order", [-1, 3])
def test_orders_above_two_are_refused(max_order):
    with pytest.raises(ValueError, match="max_order got .*expected an integer from 0 to 2"):
        scattering2d(np.ones((16, 16)), filter_bank((16, 16), 2), max_order=max_order)


def count_ffts(jaxpr):
    inner = [
        value
        for eqn in jaxpr.eqns
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns"))
    ]
    nested = [getattr(value, "jaxpr", value) for value in inner]
    return sum(eqn.primitive.name == "fft" for eqn in jaxpr.eqns) + sum(
        count_ffts(sub) for sub in nested if hasattr(sub, "eqns")
    )


def fft_operations(J, gradient=False):
    filters = filter_bank((32, 32), J)

    def energy(x, f):
        return (scattering2d(x, f) ** 2).sum()

    x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    return count_ffts(jax.make_jaxpr(jax.grad(energy) if gradient else energy)(x, filters).jaxpr)


@pytest.mark.parametrize("J", [1, 2, 3, 5])
def test_the_graph_has_one_forward_and_one_inverse_fft_per_scale(J):
    assert fft_operations(J) == 2 * J


def test_the_gradient_doubles_the_number_of_fft_operations():
    assert fft_operations(3, gradient=True) == 2 * fft_operations(3)


@pytest.mark.extended
def test_frequencies_outside_the_band_of_a_wavelet_do_not_contribute():
    filters = filter_bank((40, 48), 5, 4)
    assert filters.band == (0, 0, 0, 1, 2)
    x = np.random.default_rng(0).standard_normal((40, 48))
    whole = dataclasses.replace(filters, band=(0,) * 5)
    np.testing.assert_allclose(scattering2d(x, filters), scattering2d(x, whole), atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-15, 1.0])
@pytest.mark.extended
def test_second_derivatives_of_the_modulus_are_those_of_its_formula_at_any_size(size, dtype):
    z, dz = (3.0 - 4.0j) * size, (1.0 + 2.0j) * size
    # |z + t dz| = |z| sqrt(1 + 2 t a + t^2 b), a = Re(conj(z) dz) / |z|^2, b = |dz|^2 / |z|^2.
    a, b = (np.conj(3 - 4j) * (1 + 2j)).real / 25, 5 / 25
    along = lambda t: modulus(jax.lax.complex(z.real + t * dz.real, z.imag + t * dz.imag))  # noqa: E731
    t = jnp.asarray(0.0, dtype)
    np.testing.assert_allclose(jax.grad(along)(t), 5 * size * a, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(jax.grad(along))(t), 5 * size * (b - a**2), rtol=1e-5)


@pytest.mark.extended
def test_second_derivatives_are_finite_at_tiny_images():
    filters, x = (
        filter_bank((8, 8), 1, 2),
        np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32),
    )
    along = lambda t: scattering2d(jnp.float32(1e-15) * (x + t * x[::-1]), filters).sum()  # noqa: E731
    assert np.isfinite(jax.grad(jax.grad(along))(jnp.float32(0.0)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: filter_bank((8, 8), 0), "J got 0"),
        (lambda: filter_bank((8, 8), 1, -2), "L got -2"),
        (lambda: filter_bank((8, True), 1), r"shape\[1\] got True"),
        (lambda: filter_bank((8, 8), 4), "J <= 3"),
        (lambda: scattering2d(np.full((8, 8), np.nan), filter_bank((8, 8), 1)), "NaN"),
        (lambda: scattering2d(np.zeros((8, 8), np.uint8), filter_bank((8, 8), 1)), "8-bit"),
        (lambda: scattering2d(np.zeros((8, 8)), filter_bank((8, 8), 1), chunk=0), "chunk got 0"),
    ],
)
def test_banks_and_images_without_a_meaning_are_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
