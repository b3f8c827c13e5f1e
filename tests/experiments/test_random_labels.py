"""Facts about `random_labels`: the smoke run, and what its data sets share."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

import experiments.random_labels as experiment

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


@pytest.mark.slow
def test_every_fact_of_the_smoke_run_holds(finished):
    summary, folder = finished
    verdicts = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(verdicts) == 9 and all(verdicts.values()), verdicts
    assert (folder / "figures" / "random_labels.png").stat().st_size > 10_000
