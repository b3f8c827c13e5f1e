from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from marks import extended
from rich.console import Console

import experiments.kernel_small_data as experiment
from experiments.harness import running
from experiments.kernel_small_data import images, tables
from lazynet.kernels.analytic import analytic_kernel
from lazynet.records import Data

CONSOLE = Console(file=io.StringIO())
PRESET = experiment.PRESETS["smoke"]
SMOKE = dataclasses.replace(
    PRESET,
    tables=dataclasses.replace(PRESET.tables, names=("iris",), trees=5),
    images=dataclasses.replace(PRESET.images, pooled_sizes=(), sizes=(10, 30)),
)


@pytest.mark.extended
def test_every_method_classifies_iris_and_every_kernel_digits(finished):
    summary, _ = finished
    accuracies = [
        value for key, value in summary.items() if key.startswith("test_accuracy/table=iris")
    ]
    assert len(accuracies) == 4 and min(accuracies) > 0.9
    curves = {key: value for key, value in summary.items() if key.startswith("accuracy/kernel=")}
    assert len(curves) == 12
    low = {key for key, value in curves.items() if value <= 50}
    # of one image a class a transformer learns little
    assert low <= {
        f"accuracy/kernel=Transformer on patches ({kind})/n=10" for kind in ("ntk", "nngp")
    }
    assert curves["accuracy/kernel=FC (ntk)/n=30"] > curves["accuracy/kernel=FC (ntk)/n=10"]


def test_patches_are_the_squares_of_a_grid():
    x = np.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    found = images.patches(x)
    assert found.shape == (2, 16, 2 * 3 * 3)
    np.testing.assert_array_equal(found[1, 6], x[1, 2:4, 6:9].ravel())


@pytest.mark.extended
def test_the_figure_is_drawn_and_both_tables_are_printed(finished):
    summary, folder = finished
    assert (folder / "figures" / "kernel_small_data.png").stat().st_size > 10_000
    console = Console(file=io.StringIO(), width=200)
    running.show(experiment, summary, console)
    printed = console.file.getvalue()
    assert all(words in printed for words in ("iris", "CNTK-Flatten", "NNGP", "forest"))


@pytest.mark.extended
def test_finished_cells_are_not_computed_again(finished, monkeypatch):
    summary, folder = finished
    monkeypatch.delattr(tables, "_nested")
    monkeypatch.delattr(images, "_draw")
    assert running.compute(experiment, SMOKE, folder, CONSOLE) == summary


@pytest.mark.parametrize(
    "method", [extended(name) if name == "ntk" else name for name in tables.METHODS]
)
def test_settings_are_chosen_without_the_labels_of_the_outer_fold(method, monkeypatch):
    """With the labels of one outer fold exchanged, the setting chosen for it stays the same."""
    from sklearn.model_selection import StratifiedKFold

    data = tables._whole_table("iris")
    split = StratifiedKFold(3, shuffle=True, random_state=0).split(data.x, data.y.argmax(1))
    train, test = next(iter(split))
    labels = data.y.argmax(axis=1)
    exchanged = labels.copy()
    exchanged[test] = (labels[test] + 1) % 3
    x = tables._standardized(data, train).x
    scores = []
    for these in (labels, exchanged):
        folds = list(tables._inner_folds(SMOKE, train, these))
        scores.append(
            [
                [one.score(*fold) for fold in folds]
                for one in tables._candidates(SMOKE, method, x, train, these)
            ]
        )
    np.testing.assert_array_equal(*scores)
    assert all(set(part) <= set(train) for fold in folds for part in fold)


def test_columns_are_standardized_by_the_training_rows():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(30, 3))
    x[:, 1] = 1.0
    scaled = tables._standardized(Data(x, np.ones((30, 1))), np.arange(20)).x
    assert scaled.shape == (30, 2)
    np.testing.assert_allclose(scaled[:20].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled[:20].std(0), 1, rtol=1e-12)


@pytest.mark.parametrize("method", ["rbf", "nngp"])
def test_kernels_of_the_training_rows_do_not_depend_on_other_rows(method):
    x = np.random.default_rng(0).normal(size=(30, 3))
    train = np.arange(20)
    moved = np.concatenate([x[:20], 10 * x[20:]])
    kernels = [dict(tables._kernels(SMOKE.tables, method, rows, train)) for rows in (x, moved)]
    for kernel, other in zip(*(each.values() for each in kernels), strict=True):
        np.testing.assert_allclose(kernel[:20, :20], other[:20, :20], rtol=1e-6)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.extended
def test_with_all_but_the_last_layer_frozen_the_tangent_kernel_is_the_nngp_kernel(depth):
    x = np.random.default_rng(0).normal(size=(5, 4))
    gram = analytic_kernel(tables.relu_network(depth, depth), x)
    np.testing.assert_array_equal(gram.ntk, gram.nngp)
    partly = analytic_kernel(tables.relu_network(depth, depth - 1), x).ntk
    assert np.all(np.diag(partly) > np.diag(gram.ntk))


def test_the_ridge_of_a_regression_comes_from_the_training_images_alone():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 6)), np.arange(40) % 2
    x[:, 0] += 2.0 * labels
    data = Data(x, np.eye(2)[labels] - 0.5)
    kernel = x @ x.T
    with_hits = images._regression(kernel, kernel, data, data, 40)
    wrong = Data(x, data.y[::-1])
    without = images._regression(kernel, kernel, data, wrong, 40)
    assert with_hits["ridge"] == without["ridge"] and with_hits["accuracy"] > 0.7


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("images", {"sizes": (40, 10)}, "images.sizes"),
        ("images", {"sizes": (1, 10)}, "images.sizes"),
        ("images", {"depth": 1}, "images.depth got 1"),
        ("tables", {"outer": 1}, "tables.outer got 1"),
        ("tables", {"depth": 0}, "tables.depth got 0"),
    ],
)
def test_configurations_that_cannot_run_are_refused(part, change, words, tmp_path):
    config = dataclasses.replace(
        SMOKE, **{part: dataclasses.replace(getattr(SMOKE, part), **change)}
    )
    with pytest.raises(ValueError, match=words):
        running.compute(experiment, config, tmp_path, CONSOLE)
