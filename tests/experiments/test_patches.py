"""Whitened random patches and the ridge regression on them."""

from __future__ import annotations

import numpy as np

from experiments.shared import ridge
from experiments.shared.patches import PatchConfig, draw_filters, patch_features
from lazynet import datasets, dynamics
from lazynet.records import Data

SMALL = PatchConfig(size=3, filters=5, patches=500)


def _stripes(n, seed):
    """Vertical or horizontal stripes of random phase and contrast, with noise: their mean image is the same."""
    rng = np.random.default_rng(seed)
    labels, phases = np.arange(n) % 2, rng.uniform(0, 2 * np.pi, n)
    wave = 0.5 + 0.3 * np.sin(np.arange(16) * 1.5 + phases[:, None])
    images = np.where(labels[:, None, None], wave[:, :, None], wave[:, None, :])
    noise = 0.05 * rng.standard_normal((n, 16, 16))
    return Data(
        (images + noise)[..., None].astype(np.float32), datasets.one_hot(labels, 2, np.float32)
    )


def test_features_of_a_patch_are_its_thresholded_responses_averaged_over_quadrants():
    images = np.random.default_rng(0).random((7, 8, 9, 2), np.float32)
    filters = draw_filters(SMALL, images)
    found = patch_features(SMALL, filters, images).reshape(7, 2, 2, 10)
    responses = np.empty((6, 7, 5))
    for i in range(6):
        for j in range(7):
            patch = images[3, i : i + 3, j : j + 3].astype(np.float64)
            q = (patch - patch.mean()) / np.sqrt(patch.var() + SMALL.normalization)
            responses[i, j] = np.einsum("abc,abcf->f", q, filters.kernel) - filters.offset
    sides = np.concatenate([np.maximum(0, responses - 0.25), np.maximum(0, -responses - 0.25)], -1)
    expected = [
        [part.mean((0, 1)) for part in np.split(row, [4], 1)] for row in np.split(sides, [3], 0)
    ]
    assert found.shape == (7, 2, 2, 10) and patch_features(SMALL, filters, images).shape == (7, 40)
    np.testing.assert_allclose(found[3], expected, rtol=1e-4, atol=1e-5)


def test_filters_are_unit_rows_on_whitened_patches():
    config = PatchConfig(size=2, filters=20, patches=4000, whitening=1e-9, normalization=1e-9)
    images = np.random.default_rng(0).random((50, 12, 12, 1))
    filters = draw_filters(config, images)
    patches = np.lib.stride_tricks.sliding_window_view(images[..., 0], (2, 2), (1, 2)).reshape(
        -1, 4
    )
    q = (patches - patches.mean(1, keepdims=True)) / patches.std(1, keepdims=True)
    responses = q @ filters.kernel.reshape(4, 20) - filters.offset
    np.testing.assert_allclose(responses.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(responses.std(0), 1, atol=0.05)


def test_random_patches_separate_what_a_linear_classifier_of_pixels_cannot():
    train, test = _stripes(100, 0), _stripes(200, 1)
    filters = draw_filters(SMALL, train.x)
    features = [Data(patch_features(SMALL, filters, part.x), part.y) for part in (train, test)]
    pixels = [Data(part.x.reshape(len(part.x), -1), part.y) for part in (train, test)]
    ridges = (1e-3, 0.1, 10.0)
    assert ridge.of_features(*features, ridges)["test_accuracy"] > 0.95
    assert ridge.of_features(*pixels, ridges)["test_accuracy"] < 0.85


def test_the_leave_one_out_ridge_is_that_of_the_dual_regression():
    train, test = datasets.digits(60, 100)
    ridges = (1e-3, 0.1, 10.0, 1000.0)
    found = ridge.of_features(train, test, ridges)
    scaled = datasets.standardize(train, test)
    x, x_test = (np.column_stack([part.x, np.ones(len(part.x))]) for part in scaled)
    centered = datasets.center_targets(train)
    absolute = np.array(ridges) * np.square(x).sum() / x.shape[1]
    left_out = dynamics.leave_one_out(x @ x.T, centered, ridge=absolute)
    hits = [np.mean(f.argmax(1) == train.y.argmax(1)) for f in left_out]
    best = int(np.argmax(hits))
    outputs = dynamics.kernel_regression(
        x @ x.T, centered, cross=x_test @ x.T, ridge=float(absolute[best])
    )
    assert found["ridge"] == ridges[best] and found["at_edge"] == (best in (0, 3))
    assert (
        found["test_accuracy"] == np.mean(outputs.argmax(1) == test.y.argmax(1))
        and len(set(hits)) > 1
    )
