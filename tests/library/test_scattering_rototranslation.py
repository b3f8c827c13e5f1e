from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazynet.scattering import (
    angles,
    filter_bank,
    morlet,
    rototranslation_scattering,
    scattering2d,
    scattering_paths,
)
from lazynet.scattering.wavelets import frequencies


def circle_of_wavelets(n, j, L):
    """Wavelets in Fourier at the 2 L angles theta_t = theta_0 - t pi / L of the whole circle, t = 0 .. 2L-1."""
    w = frequencies(n)
    return np.concatenate([morlet(w[:, None], w[None], j, angles(L) - turn) for turn in (0, np.pi)])


def line_wavelet(n, k):
    """The one-dimensional Morlet wavelet sampled in space over many periods."""
    u = np.arange(-20 * n, 21 * n)
    envelope = np.exp(-(u**2) / (2 * (0.8 * 2**k) ** 2)) / (np.sqrt(2 * np.pi) * 0.8 * 2**k)
    wave = envelope * np.exp(1j * 3 * np.pi / 4 / 2**k * u)
    return (wave - wave.sum() / envelope.sum() * envelope).reshape(41, n).sum(0)


def line_lowpass(n, scales):
    u, sigma = np.arange(-20 * n, 21 * n), 0.4 * 2**scales
    return (np.exp(-(u**2) / (2 * sigma**2)) / (np.sqrt(2 * np.pi) * sigma)).reshape(41, n).sum(0)


def convolve(u, spectrum):
    return np.fft.ifft2(np.fft.fft2(u) * spectrum)


def test_coefficients_equal_the_defining_sum():
    n, L, scales = 16, 4, 2
    x = np.random.default_rng(0).standard_normal((n, n))
    filters = filter_bank((n, n), 2, L, padding="periodic", pool="mean")
    fine, coarse = circle_of_wavelets(n, 0, L), circle_of_wavelets(n, 1, L)
    y1 = [abs(convolve(x, fine[t])) for t in range(2 * L)]
    along = [line_wavelet(2 * L, k) for k in range(scales)] + [line_lowpass(2 * L, scales)]
    expected = np.zeros((L, scales + 1))
    for d in range(L):
        z = [convolve(y1[s], coarse[(d + s) % (2 * L)])[::2, ::2] for s in range(2 * L)]
        for k, psi in enumerate(along):
            y2 = [
                abs(sum(z[s] * psi[(t - s) % (2 * L)] for s in range(2 * L))) for t in range(2 * L)
            ]
            expected[d, k] = np.mean(y2)
    got = np.asarray(rototranslation_scattering(x, filters, angular_scales=scales))[:, 0, 0]
    np.testing.assert_allclose(got[0], x.mean(), atol=1e-12)
    np.testing.assert_allclose(got[1], np.mean(y1), rtol=1e-10)
    np.testing.assert_allclose(got[3:].reshape(L, scales + 1), expected, rtol=1e-10)


@pytest.mark.parametrize("padding", ["reflect", "symmetric"])
def test_turning_the_image_by_90_degrees_changes_nothing(padding):
    x = np.random.default_rng(0).standard_normal((20, 20)).cumsum(0)
    filters = filter_bank((20, 20), 2, 4, sampling="centered", padding=padding, pool="mean")
    images = np.stack([np.rot90(x, turns) for turns in range(4)])
    got = np.asarray(rototranslation_scattering(images, filters))
    np.testing.assert_allclose(got[1:], np.broadcast_to(got[0], got[1:].shape), rtol=1e-12)


def crossing_and_separate_strokes(n=32):
    """Two textures of vertical and horizontal strokes: crossing in the first, in different places in the second."""
    u, v = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")

    def blob(center):
        rows, columns = ((w - center + n / 2) % n - n / 2 for w in (u, v))
        return np.exp(-(rows**2 + columns**2) / (2 * 2.5**2))

    wave = 3 * np.pi / 4
    return np.stack(
        [blob(8) * np.cos(wave * u) + blob(center) * np.cos(wave * v) for center in (8, 24)]
    )


@pytest.mark.extended
def test_only_the_joint_transform_tells_crossing_strokes_from_separate_ones():
    x, filters = (
        crossing_and_separate_strokes(),
        filter_bank((32, 32), 3, 8, padding="periodic", pool="mean"),
    )
    paths = scattering_paths(3, 8)
    plain = np.asarray(scattering2d(x, filters))[..., 0, 0]
    scales = sorted({path.j for path in paths})
    averaged = np.stack([plain[:, [p.j == j for p in paths]].mean(1) for j in scales], 1)
    joint = np.asarray(rototranslation_scattering(x, filters, angular_scales=3))[..., 0, 0]
    change = [
        np.linalg.norm((f[0] - f[1])[4:]) / np.linalg.norm(f[0][4:]) for f in (averaged, joint)
    ]
    assert change[0] < 0.02 and change[1] > 5 * change[0]


@pytest.mark.extended
def test_the_transform_is_differentiable_and_keeps_batch_axes_and_float32():
    filters, x = filter_bank((8, 8), 2, 2), jnp.zeros((2, 1, 8, 8), jnp.float32)
    got = rototranslation_scattering(x, filters, angular_scales=1)
    assert got.shape == (2, 1, 1 + 2 + 2 * 2, 2, 2) and got.dtype == jnp.float32
    gradient = jax.grad(lambda u: rototranslation_scattering(u, filters, angular_scales=1).sum())(x)
    assert bool(jnp.isfinite(gradient).all())


def test_too_many_angular_scales_are_refused():
    with pytest.raises(ValueError, match="angular_scales"):
        rototranslation_scattering(np.zeros((8, 8)), filter_bank((8, 8), 1, 2), angular_scales=3)
