"""Facts about `random_labels`: the smoke run, and what its data sets share."""

from __future__ import annotations

import io

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import experiments.random_labels as experiment
import lazynet as ln

CONSOLE = Console(file=io.StringIO())
SMOKE = experiment.PRESETS["smoke"]


def test_random_labels_have_the_images_of_true_ones_and_shuffled_pixels_their_values():
    sets = {kind: experiment.load_sets(SMOKE, kind)[0] for kind in experiment.KINDS}
    true, shuffled, random = (sets[kind] for kind in experiment.KINDS)
    np.testing.assert_array_equal(true.x, random.x)
    np.testing.assert_array_equal(true.y, shuffled.y)
    assert np.mean(np.argmax(true.y, 1) == np.argmax(random.y, 1)) < 0.3
    np.testing.assert_allclose(np.sort(true.x), np.sort(shuffled.x), rtol=1e-6)
    np.testing.assert_allclose(np.square(np.asarray(true.x)).mean(axis=1), 1, rtol=1e-6)


def test_bounds_are_those_of_the_function_however_its_scale_is_split():
    """`alpha h` is `alpha/c` times the network whose last layer is c times as large."""
    x = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    weights = {
        "0_Dense": {"W": jnp.array([[1.0, -2.0], [3.0, 0.5]])},
        "2_Dense": {"W": jnp.array([[2.0], [1.0]])},
    }
    margins = np.array([1.0, 2.0])
    plain, tripled = (
        experiment._bounds(
            ln.serial(ln.Dense(2), ln.Relu(), ln.Dense(1, W_std)), weights, alpha, x, margins, 5.0
        )
        for alpha, W_std in ((6.0, 1.0), (2.0, 3.0))
    )
    assert tripled == pytest.approx(plain, rel=1e-6) and len(plain) == 5


def test_products_of_norms_are_no_bounds_of_the_linearized_network():
    model, x = ln.Dense(1), jnp.ones((2, 3))
    bounds = experiment._bounds(model, {"W": jnp.ones((3, 1))}, np.inf, x, np.ones(2), 5.0)
    assert bounds.keys() == {"bound/vc", "bound/spectral"}


@pytest.mark.slow
def test_every_fact_of_the_smoke_run_holds(finished):
    summary, folder = finished
    verdicts = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(verdicts) == 9 and all(verdicts.values()), verdicts
    assert (folder / "figures" / "random_labels.png").stat().st_size > 10_000
