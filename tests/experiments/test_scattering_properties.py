"""What scattering promises (stability, covariance, energy), with the constants measured for this filter bank."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

from lazynet.scattering import Path, filter_bank, lipschitz_bound, scattering2d, scattering_paths


@cache
def photographs():
    from sklearn.datasets import load_sample_image

    gray = [load_sample_image(name).mean(-1)[:424] / 255 for name in ("china.jpg", "flower.jpg")]
    return [g.reshape(106, 4, 160, 4).mean((1, 3)) for g in gray]


def natural(size, count=8):
    """Gray crops of two photographs, mean removed."""
    starts = np.linspace((0, 0), (106 - size, 160 - size), count // 2).astype(int)
    crops = np.stack(
        [photo[r : r + size, c : c + size] for photo in photographs() for r, c in starts]
    )
    return crops - crops.mean((1, 2), keepdims=True)


def windowed(size, count=8):
    """Natural images that vanish smoothly at their borders, so that the periodic grid has no seam."""
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return natural(size, count) * np.outer(window, window)


@cache
def bank(size, J, **options):
    return filter_bank((size, size), J, **{"padding": "periodic", **options})


def scatter(x, filters, **options):
    return np.asarray(scattering2d(x, filters, chunk=8, **options))


def norm(x, axes):
    return np.sqrt(np.square(x).sum(axes))


def shifted(x, offset):
    """x(u - offset) on the periodic grid, by its Fourier series: offsets need not be whole pixels."""
    w = 2 * np.pi * np.fft.fftfreq(x.shape[-1])
    return np.fft.ifft2(
        np.fft.fft2(x) * np.exp(-1j * (w[:, None] * offset[0] + w * offset[1]))
    ).real


@pytest.mark.parametrize("sampling", ["kymatio", "centered"])
@pytest.mark.parametrize("J", [2, extended(3)])
def test_shifting_the_image_by_a_multiple_of_2_to_the_j_shifts_the_maps_exactly(J, sampling):
    x, filters = natural(32), bank(32, J, sampling=sampling)
    moved = scatter(np.roll(x, (2**J, -(2 ** (J + 1))), (-2, -1)), filters)
    np.testing.assert_allclose(moved, np.roll(scatter(x, filters), (1, -2), (-2, -1)), atol=1e-14)


@pytest.mark.parametrize("J", [2, extended(3)])
def test_small_translations_change_the_coefficients_linearly_in_the_offset_over_2_to_the_j(J):
    x, filters = windowed(32), bank(32, J)
    reference, each, together = scatter(x, filters), [], []
    for a in 2**J / 16 * np.array([0.25, 0.5, 1.0]):
        change = 4**J / a * norm(scatter(shifted(x, (a, 0)), filters) - reference, (1, 2, 3))
        each.append(change / norm(x, (1, 2)))
        together.append(np.linalg.norm(change) / np.linalg.norm(x))
    assert np.ptp(together) < 0.05 * max(together)
    assert 1.0 < np.max(each) < 1.25


def deformed(x, epsilon):
    """x(u - tau(u)) for a smooth tau with max |grad tau| = epsilon, by splines of order 5."""
    from scipy.ndimage import map_coordinates

    size = x.shape[-1]
    u, v = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    amplitude = epsilon * size / (2 * np.pi)
    tau = amplitude * np.sin(2 * np.pi * v / size), amplitude * np.sin(2 * np.pi * u / size)
    return np.stack(
        [map_coordinates(p, [u - tau[0], v - tau[1]], order=5, mode="grid-wrap") for p in x]
    )


@pytest.mark.parametrize(("J", "low", "high"), [(2, 1.2, 1.9), extended(3, 0.8, 1.3)])
def test_small_deformations_change_the_coefficients_linearly_in_their_gradient(J, low, high):
    x, filters = windowed(64), bank(64, J)
    reference = scatter(x, filters)
    slopes = np.array(
        [
            2**J
            * norm(scatter(deformed(x, e), filters) - reference, (1, 2, 3))
            / norm(x, (1, 2))
            / e
            for e in (0.025, 0.05, 0.1)
        ]
    )
    assert np.ptp(slopes, axis=0).max() < 0.05 * slopes.max()
    assert low < slopes.min() and slopes.max() < high


@pytest.mark.extended
def test_dilating_a_high_frequency_moves_its_fourier_modulus_but_not_its_scattering():
    size, J, filters = 64, 3, bank(64, 3)
    u = np.arange(size) - size / 2
    fourier, scattering = [], []
    for frequency in (0.3, 0.6, 1.2, 1.8, 2.4):
        x, y = (
            np.exp(-(u[:, None] ** 2 + u**2) * s**2 / (2 * 8**2))
            * np.cos(frequency * s * u)[:, None]
            for s in (1, 1.1)
        )
        modulus = [abs(np.fft.fft2(z)) / size for z in (x, y)]
        fourier.append(norm(modulus[0] - modulus[1], (0, 1)) / norm(x, (0, 1)))
        scattering.append(
            2**J * norm(scatter(x, filters) - scatter(y, filters), (0, 1, 2)) / norm(x, (0, 1))
        )
    assert np.all(np.diff(fourier) > 0) and fourier[-1] > 4 * fourier[0]
    assert max(scattering) < 1.5 * min(scattering) and max(scattering) < 0.3


@pytest.mark.parametrize(
    ("J", "measured"), [(2, (0.642, 0.199, 0.0096)), (3, (0.433, 0.339, 0.0366))]
)
def test_energy_falls_with_the_order_and_adds_up_to_nearly_all_of_it(J, measured):
    x = windowed(32)
    coefficients = scatter(x, bank(32, J))
    order = np.array([path.order for path in scattering_paths(J)])
    energy = [
        (
            4**J * np.square(coefficients[:, order == m]).sum((1, 2, 3)) / np.square(x).sum((1, 2))
        ).mean()
        for m in range(3)
    ]
    assert 0.75 < sum(energy) < 1.0 and energy[2] < energy[1]
    np.testing.assert_allclose(energy, measured, rtol=0.02)


@jax.jit
def expansion(pair, filters):
    a, b = scattering2d(pair, filters)
    return 2**filters.J * jnp.linalg.norm(a - b) / jnp.linalg.norm(pair[0] - pair[1])


def steepest_pair(filters, steps):
    """How far scattering drives two images apart, relative to their distance, at the end of a gradient ascent."""
    climb = jax.jit(jax.value_and_grad(expansion))
    pair = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16, 16)).cumsum(1).cumsum(2))
    best = 0.0
    for _ in range(steps):
        pair = pair / jnp.linalg.norm(pair)
        value, slope = climb(pair, filters)
        best, pair = max(best, float(value)), pair + 0.02 * slope / jnp.linalg.norm(slope)
    return best


@pytest.mark.extended
def test_no_pair_of_images_moves_apart_by_more_than_the_lipschitz_bound():
    raw, tight = bank(16, 2), bank(16, 2, normalize="frame")
    assert 1 < steepest_pair(raw, 150) <= lipschitz_bound(raw) < 1.034
    assert 0.95 < steepest_pair(tight, 150) <= 1
    assert lipschitz_bound(tight) <= 1 + 1e-12


@pytest.mark.parametrize("J", [2, 3])
def test_pairs_of_natural_images_come_closer_and_noise_comes_much_closer(J):
    filters = bank(32, J)
    for x, low, high in [
        (natural(32), 0.5, 1.0),
        (np.random.default_rng(0).standard_normal((8, 32, 32)), 0.1, 0.3),
    ]:
        coefficients = scatter(x, filters)
        ratio = (
            2**J
            * norm(coefficients[1:] - coefficients[:-1], (1, 2, 3))
            / norm(x[1:] - x[:-1], (1, 2))
        )
        assert low < ratio.max() < high


def turned(coefficients, J, L, steps, max_order=2):
    """Coefficients with every angle index advanced by `steps` (modulo L)."""
    paths = scattering_paths(J, L, max_order)
    index = {path: k for k, path in enumerate(paths)}
    source = [index[Path(p.order, p.j, tuple((t - steps) % L for t in p.theta))] for p in paths]
    return np.take(coefficients, source, axis=-3)


ROTATIONS = [(28, 2, "reflect"), (30, 2, "symmetric"), (32, 2, "reflect")]
DEEPER = [(28, 3, "symmetric"), (30, 3, "reflect"), (32, 3, "symmetric")]
OTHERS = [
    (size, J, "symmetric" if padding == "reflect" else "reflect")
    for size, J, padding in (*ROTATIONS, *DEEPER)
]


@pytest.mark.parametrize(
    ("size", "J", "padding"),
    [
        *ROTATIONS,
        *(extended(*case) for case in DEEPER),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS),
    ],
)
def test_rotating_by_90_degrees_rotates_maps_and_angles_exactly_with_centered_sampling(
    size, J, padding
):
    filters = filter_bank((size, size), J, sampling="centered", padding=padding)
    x = natural(size)[1] + 0.5
    got = np.asarray(scattering2d(np.rot90(x).copy(), filters))
    expected = np.rot90(turned(np.asarray(scattering2d(x, filters)), J, 8, 4), axes=(-2, -1))
    order = np.array([path.order for path in scattering_paths(J)])
    for m in (1, 2):
        error = np.linalg.norm((got - expected)[order == m]) / np.linalg.norm(expected[order == m])
        assert error < 1e-10


def test_rotating_by_90_degrees_does_not_rotate_the_maps_with_kymatio_s_sampling():
    filters, x = filter_bank((32, 32), 2), natural(32)[1] + 0.5
    got = np.asarray(scattering2d(np.rot90(x).copy(), filters))
    expected = np.rot90(turned(np.asarray(scattering2d(x, filters)), 2, 8, 4), axes=(-2, -1))
    assert np.linalg.norm(got[1:] - expected[1:]) > 0.2 * np.linalg.norm(expected[1:])


def test_rotating_about_pixel_zero_is_exact_on_the_periodic_grid():
    filters, x = bank(32, 2), natural(32)[1]

    def about_zero(u):
        return np.roll(np.rot90(u, axes=(-2, -1)), 1, -2)

    got = scatter(about_zero(x), filters)
    np.testing.assert_allclose(got, about_zero(turned(scatter(x, filters), 2, 8, 4)), atol=1e-13)


def test_rotating_by_one_step_of_the_angles_permutes_the_spatial_means():
    from scipy.ndimage import rotate

    size, J = 64, 2
    disc = np.hypot(*(np.mgrid[:size, :size] - (size - 1) / 2)) / (size / 2)
    x = natural(size)[0] * np.clip(np.cos(np.pi * disc / 2), 0, None) ** 2 * (disc < 1)
    means, turned_means = (
        scatter(u, bank(size, J), max_order=1).mean((-2, -1), keepdims=True)
        for u in (x, rotate(x, 22.5, reshape=False, order=5))
    )
    errors = [
        np.linalg.norm((turned(means, J, 8, steps, 1) - turned_means)[1:])
        / np.linalg.norm(means[1:])
        for steps in (-1, 0, 1)
    ]
    assert errors[0] < 0.03 and min(errors[1:]) > 0.1
