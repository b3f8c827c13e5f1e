"""Facts about what is asked of the inside of a network, on features whose answers are known."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial, normal

import lazynet as ln
from lazynet import insights, scattering
from lazynet.diagnostics import fit_slope
from lazynet.insights.orbits import transformed
from lazynet.models import spatial
from lazynet.models.tokens import Embed

RNG = np.random.default_rng(0)
X = normal(1, 5, 6, 6, 2)
MODEL = ln.serial(
    ln.Conv(4, (3, 3), padding="SAME"),
    ln.Relu(),
    ln.MaxPool((2, 2), (2, 2)),
    ln.Flatten(),
    ln.Dense(3),
)
PARAMS = initial(2, MODEL, X)


# ---- activations


def test_the_inside_is_the_pre_activations_by_depth_averaged_over_positions():
    found = insights.inside(MODEL, PARAMS, X)
    z = ln.Conv(4, (3, 3), padding="SAME").apply(PARAMS["0_Conv"], X)
    assert list(found) == ["input", "0_Conv", "4_Dense"]
    np.testing.assert_allclose(found["0_Conv"], z.mean(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found["4_Dense"], MODEL.apply(PARAMS, X), rtol=1e-12)
    whole = insights.inside(MODEL, PARAMS, X, average=False)
    np.testing.assert_allclose(whole["0_Conv"], z.reshape(5, -1), rtol=1e-12)


def test_layers_whose_outputs_have_more_axes_than_the_input_are_inside():
    model = ln.serial(Embed(5, 3), spatial.Dense(2))
    tokens = jnp.array([[0, 4, 1], [2, 2, 3]])
    found = insights.inside(model, model.init(jax.random.key(0), tokens), tokens)
    assert {path: a.shape for path, a in found.items()} == {"input": (2, 3), "1_Dense": (2, 2)}


def test_the_inside_of_the_tangent_model_ends_in_the_linearized_outputs_and_is_in_order_of_depth():
    u = initial(3, MODEL, X)
    found = insights.inside(MODEL, PARAMS, X, displacement=u)
    moved = jax.tree.map(jnp.add, PARAMS, u)
    assert list(found) == ["input", "0_Conv", "4_Dense"]
    np.testing.assert_allclose(
        found["4_Dense"], ln.linearize(MODEL.apply, PARAMS)(moved, X), rtol=1e-10
    )


# ---- separability


def brute(train, y, test):
    """Class of the nearest training example and of the nearest mean, one example at a time."""
    nearest = []
    means = []
    for x in test:
        nearest.append(y[np.argmin([np.linalg.norm(x - a) for a in train])])
        distances = [np.linalg.norm(x - train[y == c].mean(axis=0)) for c in (0, 1, 2)]
        means.append(np.argmin(distances))
    return np.array(nearest), np.array(means)


def test_accuracies_of_neighbors_means_and_ridge_are_those_by_brute_force():
    y, y_test = RNG.integers(0, 3, 40), RNG.integers(0, 3, 25)
    train = RNG.normal(size=(40, 4)) + y[:, None]
    test = RNG.normal(size=(25, 4)) + y_test[:, None]
    found = insights.separability({"a": train}, y, {"a": test}, y_test, ridge=0.01)["a"]
    neighbors, means = brute(train, y, test)
    assert found.nearest_neighbor == np.mean(neighbors == y_test)
    assert found.nearest_mean == np.mean(means == y_test)
    centered = train - train.mean(axis=0)
    targets = np.eye(3)[y] - np.eye(3)[y].mean(axis=0)
    ridge = 0.01 * np.square(centered).sum()
    w = np.linalg.solve(centered.T @ centered + ridge * np.eye(4), centered.T @ targets)
    scores = (test - train.mean(axis=0)) @ w + np.eye(3)[y].mean(axis=0)
    assert found.ridge == np.mean(scores.argmax(axis=1) == y_test)
    centers = np.stack([train[y == c].mean(axis=0) for c in range(3)])
    within = np.square(train - centers[y]).sum(axis=1).mean()
    between = np.square(centers - train.mean(axis=0)).sum(axis=1).mean()
    assert math.isclose(found.distances, within / between)


def test_local_support_vectors_do_not_depend_on_the_origin():
    y = np.random.default_rng(1).integers(0, 2, 40)
    x = np.random.default_rng(2).normal(size=(40, 2))
    near, far = (insights.local_support_vectors({"a": x + far}, y, 3)["a"] for far in (0.0, 1e8))
    np.testing.assert_array_equal(near, far)


def test_local_support_vectors_are_outvoted_by_every_number_of_neighbors_up_to_k():
    y = RNG.integers(0, 3, 30)
    x = RNG.normal(size=(30, 2)) + 0.5 * y[:, None]
    found = insights.local_support_vectors({"a": x}, y, 5)["a"]
    expected = np.zeros(5, int)
    for i in range(30):
        others = sorted((j for j in range(30) if j != i), key=lambda j: np.linalg.norm(x[i] - x[j]))
        for k in range(1, 6):
            if 2 * sum(y[j] != y[i] for j in others[:k]) <= k:
                break
            expected[k - 1] += 1
    np.testing.assert_array_equal(found, expected)


# ---- dimension


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_intrinsic_dimension_of_data_of_a_known_one_is_found_within_its_error(dimension):
    flat = RNG.uniform(size=(1500, dimension))
    curved = np.concatenate([np.cos(flat), np.sin(flat), flat @ RNG.normal(size=(dimension, 8))], 1)
    found = insights.intrinsic_dimension({"flat": flat, "curved": curved})
    for name in ("flat", "curved"):
        # uniform densities have borders, beyond which there are no neighbors
        assert abs(found[name].value / dimension - 1) < 0.1
        assert abs(found[name].likelihood / dimension - 1) < 0.15


def test_ratios_of_distances_in_a_poisson_process_have_the_density_of_the_estimate():
    # the estimate of maximum likelihood has the standard error d / sqrt(n) over data sets
    values = [
        insights.intrinsic_dimension({"a": RNG.uniform(size=(400, 2)) * [100, 1e-2]})[
            "a"
        ].likelihood
        for _ in range(3)
    ]
    assert all(abs(value - 1) < 0.3 for value in values)


def test_the_error_of_the_nearest_neighbor_falls_as_n_to_the_minus_one_over_d():
    for dimension in (1, 2, 4):
        counts = [100, 400, 1600, 6400]
        errors = []
        test = RNG.uniform(size=(1000, dimension))
        for n in counts:
            x = RNG.uniform(size=(n, dimension))
            errors.append(insights.nearest_neighbor_error(x, x.sum(axis=1), test, test.sum(axis=1)))
        assert abs(float(fit_slope(np.array(counts), np.array(errors))) + 1 / dimension) < 0.08


# ---- flatness


def test_lines_are_flat_and_circles_turn_once():
    theta = np.linspace(0, 2 * np.pi, 41)
    line = theta[None, :, None] * RNG.normal(size=(3, 1, 7))
    frame = np.linalg.qr(RNG.normal(size=(7, 2)))[0]
    circle = np.stack([np.cos(theta), np.sin(theta)], axis=1) @ frame.T
    found = insights.flatness({"line": line, "circle": circle[None]}, 1)
    np.testing.assert_allclose(found["line"], (1, 0), atol=1e-6)
    # a polygon of 40 edges has 39 corners inside
    np.testing.assert_allclose(found["circle"].turning, 39 * 2 * np.pi / 40, rtol=1e-9)
    np.testing.assert_allclose(found["circle"].share, 0.5, atol=0.03)
    whole = insights.flatness({"circle": circle[None]}, 2)["circle"]
    np.testing.assert_allclose(whole.share, 1.0, rtol=1e-12)


def test_the_modulus_of_the_fourier_transform_is_constant_under_shifts_and_a_wave_draws_a_circle():
    x = np.arange(16)
    shifts = np.arange(9) / 2
    waves = np.cos(2 * np.pi * 3 * (x[None] - shifts[:, None]) / 16)
    found = insights.flatness({"waves": waves[None]}, 2)["waves"]
    assert found.share > 1 - 1e-12


def test_transformed_images_are_moved_to_the_right_turned_and_enlarged_about_the_center():
    rows, columns = np.mgrid[:15, :15] - 7.0

    def bump(row, column, spread=2.0):
        return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * spread**2))

    image = bump(0, 2)[None, :, :, None]
    shifted = transformed(image, "translation", np.array([1.5]))
    np.testing.assert_allclose(shifted[0, 0, 3:-3, 3:-3, 0], bump(0, 3.5)[3:-3, 3:-3], atol=5e-3)
    turned = transformed(image, "rotation", np.array([np.pi / 2]))
    places = np.unravel_index(turned[0, 0, :, :, 0].argmax(), (15, 15))
    assert abs(places[0] - 7) == 2 and places[1] == 7
    larger = transformed(image, "dilation", np.array([1.5]))
    np.testing.assert_allclose(larger[0, 0, 3:-3, 3:-3, 0], bump(0, 3, 3.0)[3:-3, 3:-3], atol=5e-3)


# ---- filters


@pytest.mark.extended
def test_gabor_functions_of_known_parameters_are_found():
    n, size = 12, 11
    u = np.arange(size) - (size - 1) / 2
    grid = np.stack(np.meshgrid(u, u, indexing="ij"), axis=-1)
    angles = RNG.uniform(0, np.pi, n)
    frequencies = RNG.uniform(0.7, 1.6, (n, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
    frequencies *= np.where(frequencies[:, 1:] < 0, -1, 1)
    centers = RNG.uniform(-1, 1, (n, 2))
    phases = RNG.uniform(-3, 3, n)
    roots = RNG.normal(size=(n, 2, 2)) * 0.08 + 0.3 * np.eye(2)
    precisions = roots @ np.swapaxes(roots, 1, 2)
    away = grid[None] - centers[:, None, None]
    decay = np.einsum("nhwi,nij,nhwj->nhw", away, precisions, away)
    waves = np.cos(np.einsum("nhwi,ni->nhw", away, frequencies) + phases[:, None, None])
    found = insights.gabor_fit(2.5 * np.exp(-decay) * waves)
    assert found.explained.min() > 0.999
    np.testing.assert_allclose(found.frequency, frequencies, atol=1e-2)
    np.testing.assert_allclose(found.center, centers, atol=2e-2)
    np.testing.assert_allclose(found.precision, precisions, atol=1e-2)
    np.testing.assert_allclose(found.amplitude, 2.5, rtol=2e-2)
    np.testing.assert_allclose(np.cos(found.phase - phases), 1, atol=1e-2)
    circles = found.ellipses(8) - found.frequency[:, None]
    levels = np.einsum("npi,nij,npj->np", circles, np.linalg.inv(found.precision), circles)
    np.testing.assert_allclose(levels, 2, rtol=1e-6)


@pytest.mark.extended
def test_noise_is_explained_in_part_only():
    noise = RNG.normal(size=(20, 9, 9))
    assert insights.gabor_fit(noise).explained.mean() < 0.6


# ---- inversion


def test_an_injective_linear_map_is_inverted_and_a_lossy_one_keeps_what_it_cannot_see():
    w = normal(4, 6, 9)
    x = normal(5, 3, 6)
    found = insights.invert(lambda x: x @ w, x @ w, jnp.zeros((3, 6)), steps=400, learning_rate=0.1)
    np.testing.assert_allclose(found.x, x, atol=1e-2)
    assert found.error.max() < 1e-4
    start = normal(6, 3, 6)
    lossy = insights.invert(lambda x: x[:, :2], x[:, :2], start, steps=400, learning_rate=0.1)
    np.testing.assert_allclose(lossy.x[:, 2:], start[:, 2:], rtol=1e-12)
    np.testing.assert_allclose(lossy.x[:, :2], x[:, :2], atol=1e-2)


def test_total_variation_is_the_perimeter_of_a_square_and_its_derivative_is_finite():
    from lazynet.insights.inversion import total_variation

    image = jnp.zeros((1, 9, 9, 1)).at[0, 3:6, 3:6].set(1.0)
    # edges of length 3 + 3 + 2 + 2, one corner with both derivatives, and one pixel on its own
    assert 10 < float(total_variation(image)[0]) * 81 * 64 / 81 < 12
    gradient = jax.grad(lambda x: total_variation(x).sum())(image)
    assert bool(jnp.isfinite(gradient).all())


# ---- robustness


def test_the_adversarial_norm_of_a_linear_classifier_is_the_distance_to_its_nearest_boundary():
    w = normal(7, 5, 4)
    x = normal(8, 6, 5)
    found = insights.adversarial_norm(lambda w, x: x @ w, w, x)
    outputs = np.asarray(x @ w)
    expected = []
    for row in outputs:
        own = row.argmax()
        gaps = [
            (row[own] - row[j]) / np.linalg.norm(w[:, own] - w[:, j]) for j in range(4) if j != own
        ]
        expected.append(min(gaps))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_smaller_perturbation_than_the_gradient_allows_changes_no_class():
    model = ln.serial(ln.Dense(32, 2**0.5), ln.Tanh(), ln.Dense(1))
    x = normal(9, 8, 5)
    params = initial(10, model, x)
    found = insights.adversarial_norm(model.apply, params, x)
    slope = insights.lipschitz_bound(model, params, x)
    assert (found >= np.abs(model.apply(params, x))[:, 0] / slope).all()


@pytest.mark.parametrize(
    "model",
    [
        ln.serial(ln.Conv(3), ln.Relu(), ln.AvgPool((2, 2), (2, 2)), ln.Flatten(), ln.Dense(2)),
        ln.serial(ln.residual(ln.Relu(), ln.Conv(2, padding="SAME")), ln.GlobalAvgPool()),
        ln.serial(ln.coupling(ln.serial(ln.Conv(1, padding="SAME"), ln.Erf())), ln.Flatten()),
        ln.serial(ln.MaxPool((3, 3), (2, 2)), ln.Flatten(), ln.Dense(2)),
    ],
    ids=["cnn", "residual", "coupling", "max-pool"],
)
@pytest.mark.extended
def test_no_gradient_exceeds_the_lipschitz_bound(model):
    params = initial(11, model, X)
    bound = insights.lipschitz_bound(model, params, X)
    assert insights.largest_gradient(model.apply, params, X) <= bound * (1 + 1e-6)


def test_the_lipschitz_bound_of_a_linear_network_of_one_layer_is_its_largest_gradient():
    model = ln.serial(ln.Flatten(), ln.Dense(3))
    params = initial(12, model, X)
    bound = insights.lipschitz_bound(model, params, X)
    assert math.isclose(bound, insights.largest_gradient(model.apply, params, X), rel_tol=1e-9)


@pytest.mark.extended
def test_scattering_does_not_expand():
    filters = scattering.filter_bank((8, 8), 1, 4)
    images = normal(13, 2, 8, 8)
    found = insights.largest_gradient(
        lambda w, x: scattering.scattering2d(x, filters).reshape(2, -1), {}, images
    )
    assert found <= 1 + 1e-6


# ---- what is refused

ONE = {"a": np.ones((3, 2))}
NORMALIZED = ln.serial(ln.Flatten(), ln.Dense(2), ln.LayerNorm())
Y = np.array([0, 0, 1])
REFUSED = {
    "activations of different n": (
        lambda: insights.intrinsic_dimension({"a": np.ones((3, 2)), "b": np.ones((4, 2))}),
        "the same number in all layers",
    ),
    "a class with one example": (
        lambda: insights.separability(ONE, Y, ONE, Y),
        "two examples each",
    ),
    "filters that are not square": (
        lambda: insights.gabor_fit(np.ones((2, 5, 4))),
        r"\(2, 5, 4\), expected \[n, k, k\]",
    ),
    "a filter that is zero": (lambda: insights.gabor_fit(np.zeros((2, 5, 5))), "2 of 2 that are zero"),
    "a trace without layers": (
        lambda: insights.inside(ln.serial(ln.Relu(), ln.Flatten()), {}, X),
        "has no layers with weights",
    ),
    "labels of another n": (
        lambda: insights.local_support_vectors(ONE, np.array([0, 1]), 1),
        "labels has shape",
    ),
    "points that are all equal": (
        lambda: insights.intrinsic_dimension(ONE),
        "1 different examples",
    ),
    "equidistant points": (
        lambda: insights.intrinsic_dimension({"a": np.eye(4)}),
        "same distance",
    ),
    "a path that does not move": (
        lambda: insights.flatness({"a": np.ones((1, 4, 2))}, 1),
        "steps of length zero",
    ),
    "features of another layer": (
        lambda: insights.invert(lambda x: x, np.ones((1, 3)), np.ones((1, 2))),
        "expected \\(1, 2\\)",
    ),
    "an image of outputs": (
        lambda: insights.adversarial_norm(lambda w, x: x, {}, X),
        "one column a class",
    ),
    "a layer without a Lipschitz constant": (
        lambda: insights.lipschitz_bound(NORMALIZED, initial(14, NORMALIZED, X), X),
        "layer 2_LayerNorm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused(what, unannotated):
    call, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        call()
