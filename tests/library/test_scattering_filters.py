from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazynet.scattering import angles, filter_bank, frame_bounds, lipschitz_bound, littlewood_paley
from lazynet.scattering.wavelets import frequencies, gabor, lowpass, morlet


def spatial_wavelet(shape, j, theta, L, *, subtract_mean):
    """The wavelet sampled in space over 13 x 13 periods, with the definition of Morlet wavelets written out."""
    sigma, xi, slant = 0.8 * 2**j, 3 * math.pi / 4 / 2**j, 4 / L
    rows, columns = (np.arange(-6 * n, 7 * n) for n in shape)
    u, v = np.meshgrid(rows, columns, indexing="ij")
    along, across = (
        math.cos(theta) * u + math.sin(theta) * v,
        math.cos(theta) * v - math.sin(theta) * u,
    )
    envelope = (
        np.exp(-(along**2 + slant**2 * across**2) / (2 * sigma**2))
        * slant
        / (2 * math.pi * sigma**2)
    )
    wave = envelope * np.exp(1j * xi * along)
    if subtract_mean:
        wave = wave - wave.sum() / envelope.sum() * envelope
    return wave.reshape(13, shape[0], 13, shape[1]).sum((0, 2))


def test_equal_angles_have_equal_wavelets():
    w = frequencies(8)
    values = morlet(w[:, None], w[None], 0, np.array([0.3, 0.3, -0.3]))
    assert values.shape == (3, 8, 8)
    np.testing.assert_array_equal(values[0], values[1])


@pytest.mark.parametrize("L", [4, 6, 8])
@pytest.mark.parametrize("j", [0, 1, 2])
@pytest.mark.parametrize("kind", ["morlet", "gabor"])
def test_closed_form_is_the_fourier_transform_of_the_sampled_wavelet(kind, j, L):
    shape = (24, 32)
    wavelet = {"morlet": morlet, "gabor": gabor}[kind]
    values = wavelet(frequencies(shape[0])[:, None], frequencies(shape[1])[None], j, angles(L))
    for t, theta in enumerate(angles(L)):
        sampled = np.fft.fft2(spatial_wavelet(shape, j, theta, L, subtract_mean=kind == "morlet"))
        np.testing.assert_allclose(values[t], sampled, atol=1e-12)


@pytest.mark.parametrize("J", [1, 2, 3])
def test_lowpass_is_the_fourier_transform_of_a_sampled_gaussian(J):
    n, sigma = 24, 0.4 * 2**J
    u = np.arange(-8 * n, 9 * n)
    gaussian = np.exp(-(u**2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)
    sampled = np.fft.fft(gaussian.reshape(17, n).sum(0))
    np.testing.assert_allclose(lowpass(frequencies(n), J), sampled, atol=1e-12)


@pytest.mark.parametrize("L", [1, 3, 4, 8])
def test_angles_are_equally_spaced_on_a_half_circle(L):
    assert angles(L).shape == (L,)
    np.testing.assert_allclose(np.diff(angles(L)), -np.pi / L)


@pytest.mark.parametrize("sampling", ["kymatio", "centered"])
def test_morlet_wavelets_of_every_level_have_mean_zero(sampling):
    filters = filter_bank((32, 32), 3, sampling=sampling)
    means = [abs(wave[:, 0, 0]).max() for level in filters.psi for wave in level.values()]
    assert len(means) == 3 + 1 + 0
    assert max(means) < 1e-12


def test_gabor_wavelets_have_a_nonzero_mean():
    assert abs(filter_bank((32, 32), 2, wavelet="gabor").psi[0][0][:, 0, 0]).min() > 0.05


@pytest.mark.parametrize(("pi", "gain"), [("exact", 1.0), ("kymatio", math.pi / 3.1415)])
def test_lowpass_has_the_gain_of_the_chosen_pi_at_frequency_zero(pi, gain):
    filters = filter_bank((32, 32), 3, pi=pi)
    assert float(filters.phi[0][0] * filters.phi[1][0]) == pytest.approx(gain, abs=1e-14)


@pytest.mark.parametrize("pool", ["lowpass", "mean"])
@pytest.mark.parametrize("sampling", ["kymatio", "centered"])
def test_averages_of_a_constant_are_the_constant(pool, sampling):
    filters = filter_bank((32, 28), 2, pool=pool, sampling=sampling)
    for axes in filters.average:
        for matrix in axes:
            np.testing.assert_allclose(
                matrix.sum(1), 1.0, atol=2e-5 if pool == "lowpass" else 1e-14
            )


@pytest.mark.parametrize(
    ("size", "J", "expected"),
    [
        (32, 2, (4, 4)),
        (28, 2, (4, 4)),
        (32, 3, (8, 8)),
        (32, 4, (16, 16)),
        (32, 5, (32, 32)),
        (31, 2, (2, 3)),
    ],
)
def test_margins_are_those_of_kymatio(size, J, expected):
    assert filter_bank((size, size), J).margins[0] == expected


def test_a_custom_wavelet_is_used_at_every_scale():
    def wavelet(w0, w1, j, theta):
        return morlet(w0, w1, j, theta) * (1 + 0.5j)

    custom, standard = filter_bank((16, 16), 2, wavelet=wavelet), filter_bank((16, 16), 2)
    for a, b in zip(custom.psi[0].values(), standard.psi[0].values(), strict=True):
        np.testing.assert_allclose(a, np.asarray(b) * (1 + 0.5j), rtol=1e-12)


def test_a_filter_bank_is_a_frozen_pytree_of_arrays():
    filters = filter_bank((16, 16), 2)
    leaves, structure = jax.tree.flatten(filters)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert hash(structure) == hash(jax.tree.structure(filter_bank((16, 16), 2)))
    with pytest.raises(AttributeError):
        filters.J = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(shape=(32, 32), J=0), "J got 0"),
        (dict(shape=(32, 32), J=2, L=0), "L got 0"),
        (dict(shape=(32, 15), J=4), "J <= 3"),
        (dict(shape=(32,), J=2), "two positive integers"),
        (dict(shape=(32, 30), J=2, padding="periodic"), "multiples of 2\\^J = 4"),
        (dict(shape=(33, 32), J=2, sampling="centered"), "even sides"),
        (dict(shape=(32, 32), J=2, padding="zero"), "padding must be one of"),
        (dict(shape=(32, 32), J=2, sampling="left"), "sampling must be one of"),
        (dict(shape=(32, 32), J=2, normalize="l1"), "normalize must be one of"),
        (dict(shape=(32, 32), J=2, pool="max"), "pool must be one of"),
        (dict(shape=(32, 32), J=2, pi="3.14"), "pi must be one of"),
        (dict(shape=(32, 32), J=2, wavelet="haar"), "'morlet', 'gabor' or a function"),
        (
            dict(shape=(32, 32), J=2, wavelet=lambda w0, w1, j, theta: w0 + w1),
            "expected \\[L, P, Q\\]",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        filter_bank(**arguments)


@pytest.mark.parametrize(
    ("J", "size", "upper"), [(2, 32, 1.0), (3, 32, 1.0185), (4, 64, 1.0485), (5, 32, 1.0442)]
)
def test_littlewood_paley_sum_has_its_measured_bounds(J, size, upper):
    report = littlewood_paley(filter_bank((size, size), J))
    assert report.upper == pytest.approx(upper, abs=1e-3)
    assert report.upper < 1.05 and report.lower > 0.3
    assert report.sum.min() == pytest.approx(0.123, abs=1e-3)


def dense_layer_gram(filters, level):
    """The matrix of ||W_r x||^2 as a quadratic form of the pixels, by pushing every unit image through."""
    steps = [(wave, 2 ** (j - level)) for j, wave in filters.psi[level].items()]
    n = filters.phi[0].shape[0] >> level
    keep = np.r_[0 : n // 2, -(n // 2) : 0]
    low = np.outer(np.asarray(filters.phi[0])[keep], np.asarray(filters.phi[1])[keep])[None]
    rows = []
    for wave, step in [(low, 2 ** (filters.J - level)), *steps]:
        units = np.fft.fft2(np.eye(n * n).reshape(-1, 1, n, n))
        maps = np.fft.ifft2(units * np.asarray(wave))[..., ::step, ::step] * step
        rows.append(maps.reshape(n * n, -1))
    operator = np.concatenate(rows, 1)
    return (operator @ operator.conj().T).real


@pytest.mark.parametrize("level", [0, 1])
def test_frame_bounds_equal_those_of_the_dense_operator(level):
    filters = filter_bank((16, 16), 2, 4, padding="periodic")
    eigenvalues = np.linalg.eigvalsh(dense_layer_gram(filters, level))
    np.testing.assert_allclose(frame_bounds(filters)[level], eigenvalues[[0, -1]], atol=1e-10)


@pytest.mark.parametrize(
    ("J", "size", "first", "second", "bound"),
    [(2, 32, 1.0474, 1.011, 1.033), (3, 32, 1.1252, 1.049, 1.091)],
)
def test_frame_bounds_and_lipschitz_constant_have_their_measured_values(
    J, size, first, second, bound
):
    filters = filter_bank((size, size), J, padding="periodic")
    assert frame_bounds(filters)[0][1] == pytest.approx(first, abs=1e-3)
    assert max(upper for _, upper in frame_bounds(filters)[1:]) < second
    assert lipschitz_bound(filters) == pytest.approx(bound, abs=1e-3)


@pytest.mark.slow
def test_frame_bound_and_lipschitz_constant_at_scale_16_have_their_measured_values():
    filters = filter_bank((64, 64), 4, padding="periodic")
    assert frame_bounds(filters)[0][1] == pytest.approx(1.1463, abs=1e-3)
    assert lipschitz_bound(filters) == pytest.approx(1.141, abs=1e-3)


@pytest.mark.parametrize("sampling", ["kymatio", "centered"])
def test_frame_normalization_makes_every_layer_nonexpansive(sampling):
    filters = filter_bank((32, 32), 2, padding="periodic", normalize="frame", sampling=sampling)
    assert max(upper for _, upper in frame_bounds(filters)) == pytest.approx(1.0, abs=1e-12)
    assert [lipschitz_bound(filters, order) <= 1 + 1e-12 for order in (0, 1, 2)] == [True] * 3


def test_frame_normalization_scales_every_filter_and_average_alike():
    plain, scaled = (
        filter_bank((16, 16), 2, 4, normalize=normalize) for normalize in (None, "frame")
    )
    ratio = float(scaled.psi[0][0][0, 3, 3] / plain.psi[0][0][0, 3, 3])
    np.testing.assert_allclose(scaled.psi[0][1], ratio * plain.psi[0][1], rtol=1e-12)
    low = [np.outer(f.average[1][0][0], f.average[1][1][0]) for f in (plain, scaled)]
    np.testing.assert_allclose(low[1], ratio * low[0], rtol=1e-12, atol=1e-15)


def test_arrays_have_the_widest_enabled_precision():
    assert filter_bank((16, 16), 2).psi[0][0].dtype == jnp.float64
