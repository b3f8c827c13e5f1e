from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

from lazynet.scattering import (
    cascade_aliasing,
    dual_frame_inverse,
    fast_wavelet_inverse,
    fast_wavelet_transform,
    filter_bank,
    scattering_moments,
    undecimated_coefficients,
    wavelet_coefficients,
)
from lazynet.scattering.multiresolution import DAUBECHIES, HAAR


def image(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("lowpass", [HAAR, extended(DAUBECHIES)])
@pytest.mark.parametrize("levels", [0, extended(1), extended(3)])
def test_orthogonal_wavelets_reconstruct_the_image_and_keep_its_energy(levels, lowpass):
    x = image(2, 16, 24)
    approximation, details = fast_wavelet_transform(x, levels, lowpass)
    energy = sum(float(jnp.square(part).sum()) for part in [approximation, *details])
    np.testing.assert_allclose(fast_wavelet_inverse(approximation, details, lowpass), x, atol=1e-12)
    np.testing.assert_allclose(energy, np.square(x).sum(), rtol=1e-12)


@pytest.mark.extended
def test_haar_approximations_are_sums_of_blocks():
    x = image(8, 8)
    approximation, details = fast_wavelet_transform(x, 2, HAAR)
    np.testing.assert_allclose(approximation, x.reshape(2, 4, 2, 4).sum((1, 3)) / 4, atol=1e-14)
    np.testing.assert_allclose(
        details[0][0], (x[::2, ::2] + x[1::2, ::2] - x[::2, 1::2] - x[1::2, 1::2]) / 2, atol=1e-14
    )


@pytest.mark.extended
def test_daubechies_details_of_a_linear_ramp_vanish_away_from_the_seam():
    x = np.broadcast_to(np.arange(16.0), (16, 16))
    details = fast_wavelet_transform(x, 1, DAUBECHIES)[1][0]
    np.testing.assert_allclose(details[:, :, :-1], 0, atol=1e-13)


def test_sides_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="multiples of 2"):
        fast_wavelet_transform(image(12, 16), 3)


def test_the_cascade_of_gaussians_aliases_as_measured():
    np.testing.assert_allclose(
        [cascade_aliasing(s) for s in range(3)], [0.454, 0.0425, 3.3e-6], rtol=0.05
    )


@pytest.mark.extended
def test_the_dual_frame_reconstructs_the_image():
    x, filters = image(2, 32, 32), filter_bank((32, 32), 3, padding="periodic")
    low, waves = undecimated_coefficients(x, filters)
    np.testing.assert_allclose(dual_frame_inverse(low, waves, filters), x, atol=1e-12)
    decimated = wavelet_coefficients(x, filters)
    np.testing.assert_allclose(decimated[2], waves[:, 2, :, ::4, ::4], atol=1e-12)


def test_a_bank_of_centered_samples_has_no_coefficients_at_pixels():
    filters = filter_bank((8, 8), 2, 2, padding="periodic", sampling="centered")
    with pytest.raises(ValueError, match="sampling='centered'"):
        undecimated_coefficients(image(8, 8), filters)


@pytest.mark.extended
def test_moments_approach_the_expected_modulus_of_filtered_white_noise():
    filters = filter_bank((64, 64), 1, 2, padding="periodic", pool="mean")
    x = np.random.default_rng(0).standard_normal((200, 64, 64))
    moments = np.asarray(scattering_moments(x, filters, max_order=1))[:, 1:]
    psi = np.asarray(filters.psi[0][0])
    z = (
        np.random.default_rng(1).standard_normal((2000, 2, 64 * 64))
        @ np.fft.ifft2(psi).reshape(2, -1).T
    )
    expected = [abs(z[:, 0, t]).mean() for t in range(2)]
    error = [abs(z[:, 0, t]).std() / np.sqrt(2000) for t in range(2)]
    assert np.all(abs(moments.mean(0) - expected) < 4 * np.array(error))


@pytest.mark.extended
def test_moments_are_differentiable_and_refuse_a_bank_that_keeps_positions():
    filters = filter_bank((8, 8), 1, 2, pool="mean")
    gradient = jax.grad(lambda u: scattering_moments(u, filters).sum())(jnp.ones((8, 8)))
    assert bool(jnp.isfinite(gradient).all())
    with pytest.raises(ValueError, match="pool='mean'"):
        scattering_moments(image(8, 8), filter_bank((8, 8), 1, 2))


@pytest.mark.parametrize(
    ("x", "levels", "words"),
    [
        (np.zeros((8, 8), np.uint8), 1, "float32 or float64"),
        (np.full((8, 8), np.nan), 1, "NaN"),
        (np.zeros((8, 6)), 2, "multiples of"),
        (np.zeros((0, 8)), 1, "multiples of"),
        (np.zeros((8, 8)), -1, "levels got -1"),
    ],
)
def test_images_without_a_wavelet_transform_are_refused(x, levels, words):
    with pytest.raises((ValueError, TypeError), match=words):
        fast_wavelet_transform(x, levels)


def test_filters_that_are_not_orthogonal_are_refused():
    for lowpass in ((1.0, 1.0), (0.5, 0.5, 0.5), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="lowpass"):
            fast_wavelet_transform(np.zeros((8, 8)), 1, lowpass)
