"""Facts about `tangent_spectrum`: its numbers against independent formulas, the smoke run, and its resumption."""

from __future__ import annotations

import dataclasses
import io

import jax
import numpy as np
import pytest
from rich.console import Console

import experiments.tangent_spectrum as experiment
import lazynet as ln
from experiments.harness import running
from lazynet import diagnostics, empirical

CONSOLE = Console(file=io.StringIO())
SMOKE = experiment.PRESETS["smoke"]


@pytest.fixture
def kernel():
    """A full kernel of 4 examples and 3 outputs."""
    features = np.random.default_rng(0).normal(size=(4, 3, 30))
    return np.einsum("iap,jbp->ijab", features, features)


@pytest.mark.slow
def test_every_fact_of_the_smoke_run_holds(finished):
    summary, _ = finished
    verdicts = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(verdicts) == 6 and all(verdicts.values()), verdicts


@pytest.mark.slow
def test_the_figure_is_drawn_and_both_kernels_are_in_the_table(finished):
    summary, folder = finished
    assert (folder / "figures" / "spectrum.png").stat().st_size > 10_000
    console = Console(file=io.StringIO(), width=200)
    running.show(experiment, summary, console)
    assert all(
        words in console.file.getvalue() for words in ("photographs", "random", "effective rank")
    )


@pytest.mark.slow
def test_a_finished_run_computes_nothing_again(finished, monkeypatch):
    summary, folder = finished
    monkeypatch.setattr(experiment.empirical, "empirical_ntk", None)
    assert running.compute(experiment, SMOKE, folder, CONSOLE) == summary


@pytest.mark.slow
def test_a_run_killed_after_the_kernels_reads_them_from_their_stores(
    finished, tmp_path, monkeypatch
):
    """With all tiles stored no features are computed, and the spectrum is the same."""
    import shutil

    from lazynet.kernels.empirical import rows

    summary, folder = finished
    shutil.copytree(folder / "kernels", tmp_path / "kernels")
    monkeypatch.setattr(rows, "features", None)
    assert running.compute(experiment, SMOKE, tmp_path, CONSOLE) == summary


def test_eigenvalues_and_label_energies_are_those_of_the_library(kernel):
    y = np.random.default_rng(1).normal(size=(4, 3))
    spectrum = diagnostics.kernel_spectrum(kernel, y)
    values, energy = experiment.decompose(kernel, y.reshape(-1, 1))
    np.testing.assert_allclose(values, spectrum.values, rtol=1e-12)
    np.testing.assert_allclose(energy[:, 0], np.cumsum(spectrum.label_energy), rtol=1e-10)
    np.testing.assert_allclose(
        experiment.effective_rank(kernel), spectrum.effective_rank, rtol=1e-12
    )


def test_the_centered_kernel_does_not_see_outputs_that_are_constant(kernel):
    constant = np.einsum("ij,ab->ijab", np.ones((4, 4)), np.diag([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(
        experiment.centered(kernel + constant), experiment.centered(kernel), atol=1e-12
    )
    np.testing.assert_allclose(experiment.centered(kernel).sum(axis=0), 0, atol=1e-12)


def test_labels_in_another_order_are_the_same_rows():
    y = np.arange(40.0).reshape(20, 2)
    columns = experiment.label_columns(SMOKE, y)
    assert columns.shape == (40, 1 + SMOKE.shuffles)
    np.testing.assert_array_equal(columns[:, 0].reshape(20, 2), y)
    for column in columns[:, 1:].T:
        rows = column.reshape(20, 2)
        np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], y)
    assert len({tuple(column) for column in columns.T}) == 1 + SMOKE.shuffles


def test_random_images_are_uniform_bytes_on_the_scale_of_the_photographs():
    sets = experiment.load_sets(SMOKE)
    photographs, random = (sets[name].x for name in experiment.IMAGES)
    np.testing.assert_allclose(photographs.reshape(-1, 3).mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(photographs.reshape(-1, 3).std(0), 1, rtol=1e-4)
    raw = experiment._photographs(SMOKE).x
    pixels = (random * raw.std() + raw.mean()) * 255
    np.testing.assert_allclose(pixels, np.round(pixels), atol=0.01)
    assert pixels.min() > -0.5 and pixels.max() < 255.5 and abs(pixels.mean() - 127.5) < 1


@pytest.mark.extended
def test_without_biases_the_gain_multiplies_the_kernel_by_its_power_twice_the_depth():
    """Three layers as VGG-11 has nine: the gain does not change the normalized spectrum."""
    x = experiment.load_sets(SMOKE)["photographs"].x[:2, :8, :8].astype(np.float64)
    kernels = []
    for gain in (1.0, 1.5):
        body = [
            part for _ in range(2) for part in (ln.Conv(3, (3, 3), (1, 1), "SAME", gain), ln.Relu())
        ]
        model = ln.serial(*body, ln.MaxPool((2, 2), (2, 2)), ln.Flatten(), ln.Dense(2, gain))
        params = model.init(jax.random.key(0), x)
        kernels.append(np.asarray(empirical.empirical_ntk(model.apply, params, x)))
    np.testing.assert_allclose(kernels[1], 1.5**6 * kernels[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"n": 5}, "n got 5"), ({"shuffles": 1}, "shuffles got 1"), ({"width": 0.0}, "width got 0.0")],
)
def test_configurations_that_cannot_run_are_refused(change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        running.compute(experiment, dataclasses.replace(SMOKE, **change), tmp_path, CONSOLE)
