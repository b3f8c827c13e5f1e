"""Experiments on scattering: every fact of the smoke runs, resumption, and the parts that could mislead."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from marks import extended
from rich.console import Console

from experiments import scattering_cifar10, scattering_properties, texture_synthesis
from experiments.harness import config as configuration
from experiments.harness import running, store
from experiments.scattering_cifar10 import heads
from experiments.scattering_properties import measures
from experiments.shared import ridge
from lazynet import datasets

QUIET = Console(quiet=True)
TINY = [
    "data.n_train=60",
    "data.n_test=100",
    "sizes=20",
    "draws=2",
    "mlp.width=8",
    "mlp.epochs=2",
    "mlp.alphas=0.1,inf",
    "ridges=1e-3,0.1,10",
]


def _failures(summary):
    return [name for name, value in summary.items() if name.startswith("passed/") and not value]


@pytest.mark.extended
def test_every_fact_about_scattering_holds_in_the_smoke_run(tmp_path):
    summary = running.compute(
        scattering_properties, scattering_properties.PRESETS["smoke"], tmp_path, QUIET
    )
    assert not _failures(summary) and len(summary) > 40
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"filters.png", "littlewood_paley.png", "stability.png"}
    running.show(scattering_properties, summary, QUIET)


def test_a_deformation_by_whole_pixels_is_a_permutation_of_them():
    x = np.random.default_rng(0).standard_normal((6, 6))
    matrix = measures.deformation_matrix((np.full((6, 6), 2.0), np.full((6, 6), -1.0)))
    np.testing.assert_allclose(
        (matrix @ x.ravel()).reshape(6, 6), np.roll(x, (2, -1), (0, 1)), atol=1e-13
    )


@pytest.mark.extended
def test_the_commutator_norm_is_the_largest_singular_value_of_the_dense_commutator():
    size, J, epsilon = 8, 2, 0.2
    deform, spectra = (
        measures.deformation_matrix(measures.displacement(size, epsilon)),
        measures._spectra(size, J),
    )
    columns = jax.vmap(lambda x: measures._commutator(deform, spectra, x).ravel())(np.eye(size**2))
    expected = np.linalg.norm(np.asarray(columns), 2)
    np.testing.assert_allclose(measures.commutator_norm(J, size, epsilon), expected, rtol=1e-4)


@pytest.mark.extended
def test_textures_are_synthesized_from_their_moments(tmp_path):
    summary = running.compute(
        texture_synthesis, texture_synthesis.PRESETS["smoke"], tmp_path, QUIET
    )
    assert (
        not _failures(summary)
        and summary["error/strokes"] < 1e-2 * summary["error_of_noise/strokes"]
    )
    assert (tmp_path / "figures" / "texture_synthesis.png").exists()


@pytest.mark.parametrize("name", ["strokes", "discs", "waves"])
def test_drawn_textures_are_periodic_and_standardized(name):
    x = texture_synthesis.texture(name, 32)
    seam, inside = np.abs(x[0] - x[-1]).max(), np.abs(np.diff(x, axis=0)).max()
    assert abs(x.mean()) < 1e-12 and abs(x.std() - 1) < 1e-12 and seam <= 1.01 * inside


def _tiny(*overrides):
    return configuration.preset(scattering_cifar10.PRESETS, "smoke", [*TINY, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished tiny run: its folder and its summary."""
    folder = tmp_path_factory.mktemp("scattering_cifar10")
    return folder, running.compute(scattering_cifar10, _tiny(), folder, QUIET)


@pytest.mark.extended
def test_one_table_holds_prior_features_kernels_and_training(finished):
    folder, summary = finished
    expected = [
        "pixels/ridge",
        "pixels/ntk",
        "ridge",
        "logistic",
        "rbf",
        "ntk",
        "mlp/alpha=0.1",
        "mlp/alpha=inf",
    ]
    assert summary["heads"] == expected and summary["sizes"] == ["20", "60"]
    assert (
        summary["accuracy/ridge/n=60"] > 0.6
        and "accuracy/rbf/n=60" not in summary
        and summary["left_out"]
    )
    assert {"accuracy_std/ntk/n=20", "seconds/ntk/n=20", "ridge/ntk/n=20"} <= summary.keys()
    assert not [value for value in summary.values() if isinstance(value, dict)]
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    running.show(scattering_cifar10, summary, console)
    printed = console.export_text()
    assert "kernels and perceptrons grow faster than n" in printed and "±" in printed
    assert (folder / "figures" / "accuracy_against_n.png").exists()


@pytest.mark.extended
def test_a_run_goes_on_from_its_stored_features_and_cells(finished):
    folder, summary = finished
    lost = folder / "cells" / "n-20_draw-1_rbf.json"
    before = store.read_json(lost)
    parts = [*folder.glob("cells/*"), *folder.glob("features/*")]
    kept = {path: path.stat().st_mtime_ns for path in parts}
    lost.unlink()
    again = running.compute(scattering_cifar10, _tiny(), folder, QUIET)
    changed = {path for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert changed == {lost} and store.read_json(lost)["accuracy"] == before["accuracy"]
    assert again["accuracy/rbf/n=20"] == summary["accuracy/rbf/n=20"]


@pytest.fixture(scope="module")
def problem():
    """Forty digits with their principal components."""
    train, test = datasets.digits(40, 200)
    return heads.principal_components(_tiny(), train, test)


def test_principal_components_keep_the_inner_products_of_the_training_set(problem):
    train, _ = datasets.digits(40, 200)
    centered = train.x - train.x.mean(0)
    expected = centered @ centered.T
    np.testing.assert_allclose(
        problem.train.x @ problem.train.x.T, 40 * expected / np.trace(expected), atol=1e-5
    )


@pytest.mark.parametrize("name", ["ridge", "rbf", extended("ntk")])
def test_the_ridge_of_a_kernel_is_the_one_that_refitting_without_each_example_prefers(
    problem, name
):
    config = dataclasses.replace(_tiny(), ridges=(1e-3, 0.1, 3.0))
    kernel, _ = (np.asarray(part, np.float64) for part in heads.KERNELS[name](config, problem))
    y = np.asarray(problem.train.y, np.float64)
    scores = []
    for relative in config.ridges:
        shifted = kernel + relative * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
        left_out = [
            kernel[i, kept] @ np.linalg.solve(shifted[np.ix_(kept, kept)], y[kept])
            for i in range(len(y))
            for kept in [np.delete(np.arange(len(y)), i)]
        ]
        scores.append(ridge.accuracy(np.stack(left_out), y))
    chosen = heads.head(config, name, problem, jax.random.key(0))["ridge"]
    assert chosen == config.ridges[heads._best(scores)] and 0.2 < max(scores) < 1


def test_ridge_on_all_images_agrees_with_scikit_learn():
    from sklearn.linear_model import Ridge

    train, test = datasets.digits(500, 200)
    config = dataclasses.replace(_tiny(), ridges=(1e-3, 0.1, 10.0))
    got = heads.all_images(config, train, test, lambda n: None)
    x = train.x - train.x.mean(0)
    absolute = got["ridge"] * np.square(x).sum() / len(x)
    peer = Ridge(absolute).fit(x, train.y).predict(test.x - train.x.mean(0))
    assert abs(got["accuracy"] - ridge.accuracy(peer, test.y)) <= 0.01 and got["accuracy"] > 0.85


def test_equal_scores_give_the_ridge_in_their_middle():
    assert heads._best([0.2, 0.9, 0.9, 0.9, 0.1]) == 2 and heads._best([0.5]) == 0


def test_random_ranges_find_the_leading_components():
    rows = np.random.default_rng(0).standard_normal((60, 40)) * 0.7 ** np.arange(40)
    values, vectors = heads._leading(rows @ rows.T, 5)
    expected = np.linalg.eigvalsh(rows @ rows.T)[:-6:-1]
    np.testing.assert_allclose(values, expected, rtol=1e-3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["draws=2,1"], "expected a number of draws for each of the sizes"),
        (["sizes=70"], "expected between 10 and data.n_train=60"),
        (["sizes=20,60", "draws=2,1"], "expected sizes below data.n_train=60.*all_images=false"),
        (["ridges=0.1,10"], "ridges got .*at least 3, in increasing order"),
        (["mlp.alphas=0"], "mlp.alphas.* got 0.0"),
    ],
)
def test_configurations_that_cannot_run_are_refused(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        running.compute(scattering_cifar10, _tiny(*overrides), tmp_path, QUIET)


def test_the_presets_are_those_of_the_docstring():
    assert scattering_cifar10.PRESETS["laptop"].sizes == (100, 500, 1000, 5000)
    assert scattering_cifar10.PRESETS["laptop"].mlp.alphas == (0.01, 0.1, math.inf)
