"""The experiments that train VGG-11 from standard to linearized: on enlarged digits, where there are no photographs."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import lazynet as ln
from experiments import __main__ as cli
from experiments import cifar10_alpha_sweep, cifar10_linearized, laziness_onset
from experiments.cifar10_alpha_sweep import cells as sweep_cells
from experiments.cifar10_linearized import cells as table_cells
from experiments.harness import bounds, compare, pieces, running, store
from experiments.harness import config as configuration
from experiments.shared import vgg
from lazynet.models.initializers import xavier_normal

QUIET = Console(quiet=True)
SHORT = [
    "data.n_train=40",
    "data.n_test=40",
    "train.batch_size=20",
    "train.epochs=2",
    "train.records=1",
]
SWEEP = [*SHORT, "alphas=1e5,inf"]
TABLE = [
    *SHORT,
    "kernel.n_train=20",
    "kernel.n_test=20",
    "patches.filters=8",
    "patches.patches=100",
]


def _config(experiment, overrides, *more):
    return configuration.preset(experiment.PRESETS, "smoke", [*overrides, *more])


def _text(experiment, summary):
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    running.show(experiment, summary, console)
    return console.export_text()


def _failures(summary):
    return [name for name, value in summary.items() if name.startswith("passed/") and not value]


def _one_convolution(width, gain):
    """Stands for VGG-11, which takes ten times longer to compile; the slow tests have the real one."""
    settings = dict(b_std=0.0, parameterization="standard")
    layers = (
        ln.Conv(4, (3, 3), padding="SAME", **settings),
        ln.Relu(),
        ln.MaxPool((4, 4), (4, 4)),
        ln.Flatten(),
    )
    return xavier_normal(ln.serial(*layers, ln.Dense(10, **settings)), gain)


class Interrupted(Exception):
    """Stands for the end of a killed process."""


def _stopping_after(compute, calls):
    """`compute`, which counts and after some calls breaks off."""
    count = []

    def counted(*arguments):
        count.append(arguments)
        if len(count) > calls:
            raise Interrupted
        return compute(*arguments)

    return counted, count


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep, interrupted after its first alpha and run again: folder, summary, trainings of the second run."""
    folder, config = tmp_path_factory.mktemp("sweep"), _config(cifar10_alpha_sweep, SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "build", _one_convolution)
        patch.setattr(vgg, "trained", _stopping_after(vgg.trained, 1)[0])
        with pytest.raises(Interrupted):
            running.compute(cifar10_alpha_sweep, config, folder, QUIET)
    with pytest.MonkeyPatch.context() as patch:
        counted, count = _stopping_after(vgg.trained, 9)
        patch.setattr(vgg, "build", _one_convolution)
        patch.setattr(vgg, "trained", counted)
        summary = running.compute(cifar10_alpha_sweep, config, folder, QUIET)
    return folder, summary, len(count)


@pytest.mark.extended
def test_an_interrupted_sweep_trains_only_what_is_missing(swept):
    folder, _, trained = swept
    assert trained == 1 and {path.name for path in (folder / "cells").iterdir()} == {
        "alpha-100000.npz",
        "alpha-inf.npz",
    }


@pytest.mark.extended
def test_the_largest_alpha_is_the_linearized_model_and_its_facts_hold(swept):
    folder, summary, _ = swept
    assert not _failures(summary) and "passed/agreement/alpha=100000" in summary
    assert (
        summary["stability/alpha=inf"]
        == summary["pool_stability/alpha=inf"]
        == summary["agreement/alpha=inf"]
        == 1
    )
    assert summary["param_drift/alpha=inf"] == 0 < summary["param_drift/alpha=100000"] < 1e-3
    assert not [value for value in summary.values() if isinstance(value, dict)]
    assert (folder / "figures" / "accuracy_against_alpha.png").exists() and not summary["diverged"]
    assert "max-pool" in _text(cifar10_alpha_sweep, summary)


def _single(out, alpha, console=QUIET):
    """A finished run of one alpha."""
    config = _config(cifar10_alpha_sweep, SHORT, f"alphas={alpha}")
    folder = store.open_run("cifar10_alpha_sweep", config, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "build", _one_convolution)
        running.compute(cifar10_alpha_sweep, config, folder, console)
    store.finish(folder, 1.0)
    return folder


@pytest.mark.extended
def test_runs_of_one_alpha_each_are_collected_into_what_one_run_of_all_says(
    swept, tmp_path, monkeypatch
):
    folders = [_single(tmp_path / "runs", alpha) for alpha in ("1e5", "inf")]
    assert [path.name for f in folders for path in (f / "cells").iterdir()] == [
        "alpha-100000.npz",
        "alpha-inf.npz",
    ]
    assert "agreement/alpha=100000" not in store.read_json(folders[0] / "summary.json")
    # Where an earlier version finished a run, its cells have the names of then.
    (folders[1] / "cells" / "alpha-inf.npz").rename(folders[1] / "cells" / "alpha=inf.npz")
    monkeypatch.setattr(
        cli, "console", Console(record=True, width=200, file=open("/dev/null", "w"))
    )
    cli.compare(tuple(folders), tmp_path / "figures" / "epochs.png")
    assert "max-pool" in cli.console.export_text()
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert written == {"epochs.png", "epochs_accuracy_against_alpha.png", "epochs.json"}
    together = store.read_json(tmp_path / "figures" / "epochs.json")
    assert together.keys() == swept[1].keys() and not _failures(together)
    for name, value in swept[1].items():
        if not name.startswith(("seconds", "diverged")):
            assert together[name] == (
                pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            ), name
    with pytest.raises(ValueError, match="compare got two runs with alpha=100000"):
        pieces.joined_runs(cifar10_alpha_sweep, compare.load(folders) * 2, QUIET)


@pytest.mark.extended
def test_accuracies_are_drawn_against_epochs(swept):
    assert (swept[0] / "figures" / "accuracy_against_epochs.png").stat().st_size > 10_000


def test_the_half_way_alpha_of_accuracies_linear_in_log_alpha_is_their_geometric_mean():
    alphas = (1.0, 10.0, 100.0, math.inf)
    assert laziness_onset.halfway_alpha(alphas, (0.8, 0.6, 0.4, 0.4)) == pytest.approx(10.0)
    assert laziness_onset.halfway_alpha(alphas, (0.8, 0.7, 0.5, 0.4)) == pytest.approx(10**1.5)
    # Not reached by a finite scale.
    assert math.isnan(laziness_onset.halfway_alpha(alphas, (0.8, 0.7, 0.7, 0.4)))


@pytest.mark.parametrize("finite", [True, False])
def test_the_accuracy_of_a_diverged_training_is_none_of_the_onset(finite):
    config = laziness_onset.PRESETS["smoke"]
    network = "width=0.0625/seed=0"
    arrays = {f"{network}/kappa": 5.0}
    for alpha, diverged_at in (("1", 30), ("100", -1 if finite else 30), ("inf", 30)):
        cell = f"{network}/alpha={alpha}"
        arrays |= {f"{cell}/final/test_accuracy": 0.1, f"{cell}/final/stability": 0.9}
        arrays[f"{cell}/curve/diverged_at"] = diverged_at
    table = laziness_onset._table(config, arrays, "test_accuracy")
    np.testing.assert_array_equal(table, [[[math.nan, 0.1 if finite else math.nan, math.nan]]])
    summary = laziness_onset.numbers(config, arrays)
    json.dumps(summary, allow_nan=False)
    assert ("test_accuracy/width=0.0625/alpha=100" in summary) == finite
    list(laziness_onset.report(summary))
    laziness_onset.draw(config, arrays).draw_without_rendering()


def test_the_onset_of_laziness_needs_both_ends_of_the_scales():
    for alphas in ("10,100,inf", "1,10,100", "1,1e6,inf"):
        with pytest.raises(ValueError, match="alphas"):
            bounds.check(_config(laziness_onset, [], f"alphas={alphas}"))


@pytest.mark.extended
def test_the_onset_trains_every_width_and_seed_and_says_where_half_of_the_accuracy_is_lost(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(vgg, "build", _one_convolution)
    config = _config(laziness_onset, SHORT, "examples=20", "alphas=1,10,inf", "seeds=2")
    summary = running.compute(laziness_onset, config, tmp_path, QUIET)
    cells = {path.name for path in (tmp_path / "cells").iterdir()}
    assert cells == {"width-0.0625_seed-0", "width-0.0625_seed-1"}
    # One network at both seeds: accuracies are those of the sweep itself.
    sweep = _config(cifar10_alpha_sweep, SHORT, "alphas=1,10,inf", "precision=float32")
    alone = running.compute(cifar10_alpha_sweep, sweep, tmp_path / "alone", QUIET)
    arrays = store.load_arrays(tmp_path / running.MEASURED)
    for alpha in ("1", "10", "inf"):
        own = arrays[f"width=0.0625/seed=0/alpha={alpha}/final/test_accuracy"]
        assert float(own) == alone[f"test_accuracy/alpha={alpha}"]
    assert summary["kappa/width=0.0625"] > 0
    assert "kappa at the start" in _text(laziness_onset, summary)


def test_the_full_preset_is_the_paper_s_training_at_an_eighth_of_its_width():
    full, paper = cifar10_alpha_sweep.PRESETS["full"], cifar10_alpha_sweep.PRESETS["paper"]
    assert dataclasses.replace(paper, network=full.network, alphas=full.alphas) == full
    assert (full.network.width, full.train.epochs, full.train.augment) == (1 / 8, 70, True)
    assert full.alphas == (1, 3, 10, 30, 100, 1000, math.inf)


@pytest.mark.extended
def test_one_run_trains_the_tangent_model_in_float32_and_large_alphas_in_float64(swept):
    _, summary, _ = swept
    assert (
        summary["precision/alpha=inf"] == "float32"
        and summary["precision/alpha=100000"] == "float64"
    )


def test_weights_of_both_precisions_are_one_draw():
    parts = vgg.load_large_images(_config(cifar10_alpha_sweep, SWEEP).data)
    drawn = vgg.start(_one_convolution(1.0, 1.0), 0, parts, "float64")
    rounded = sweep_cells._rounded(drawn, "float32")
    pairs = zip(jax.tree.leaves(drawn.params0), jax.tree.leaves(rounded.params0), strict=True)
    for exact, single in pairs:
        assert exact.dtype == np.float64 and single.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(exact, np.float32), single)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(1.0, "float32"), (1e4, "float32"), (1e5, "float64"), (math.inf, "float32")],
)
def test_the_precision_follows_from_alpha(alpha, expected):
    assert sweep_cells.precision_of(cifar10_alpha_sweep.PRESETS["laptop"], alpha) == expected


def test_a_step_on_lazynets_square_loss_is_a_step_on_the_mean_over_examples_and_outputs():
    f, y = (jax.random.normal(jax.random.key(i), (7, 10)) for i in (0, 1))
    reference = jax.grad(lambda f: jnp.mean((f - y) ** 2))(f)
    np.testing.assert_allclose(
        vgg.learning_rate("mse", 0.7) * jax.grad(ln.mse)(f, y), 0.7 * reference, rtol=1e-12
    )
    assert vgg.learning_rate("mse", 1.0) == 0.2 and vgg.learning_rate("cross_entropy", 0.7) == 0.7


def test_digits_become_images_of_the_side_of_photographs():
    train, _ = vgg.load_large_images(_config(cifar10_alpha_sweep, SWEEP).data)
    assert train.x.shape == (40, 32, 32, 1) and train.x.dtype == np.float32
    assert np.array_equal(train.x[:, ::4, ::4], train.x[:, 3::4, 3::4])


@pytest.mark.slow
def test_a_learning_rate_that_is_too_large_is_recorded_as_divergence(tmp_path):
    config = _config(cifar10_alpha_sweep, SWEEP, "alphas=inf", "train.eta0=1e12", "train.epochs=10")
    summary = running.compute(cifar10_alpha_sweep, config, tmp_path, QUIET)
    assert summary["diverged"] == ["inf"] and summary["diverged_at/alpha=inf"] == 20
    assert "test_accuracy/alpha=inf" not in summary and "diverged, seen at step 20" in _text(
        cifar10_alpha_sweep, summary
    )


@pytest.mark.slow
def test_cross_entropy_and_augmentation_are_options(tmp_path):
    config = _config(
        cifar10_alpha_sweep, SWEEP, "alphas=1", "train.loss=cross_entropy", "train.augment=true"
    )
    summary = running.compute(cifar10_alpha_sweep, config, tmp_path, QUIET)
    assert (
        math.isfinite(summary["train_loss/alpha=1"])
        and summary["learning_rate"] == config.train.eta0
    )


@pytest.fixture(scope="module")
def tabled(tmp_path_factory):
    """A table that was interrupted at its last row and computed again without training anything."""
    folder, config = tmp_path_factory.mktemp("table"), _config(cifar10_linearized, TABLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "build", _one_convolution)
        patch.setattr(table_cells, "_kernel", _stopping_after(table_cells._kernel, 0)[0])
        with pytest.raises(Interrupted):
            running.compute(cifar10_linearized, config, folder, QUIET)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("scattering_features", "patch_features"):
            patch.setattr(table_cells, name, _stopping_after(getattr(table_cells, name), 0)[0])
        patch.setattr(vgg, "build", _one_convolution)
        patch.setattr(vgg, "trained", _stopping_after(vgg.trained, 0)[0])
        return folder, running.compute(cifar10_linearized, config, folder, QUIET)


@pytest.mark.extended
def test_one_table_holds_networks_features_and_a_kernel_with_their_sizes_and_times(tabled):
    folder, summary = tabled
    networks = [f"{kind}/width=0.0625" for kind in ("standard", "gated", "linearized")]
    assert summary["rows"] == [*networks, "scattering", "patches", "kernel"]
    for row in summary["rows"]:
        assert (
            0 <= summary[f"test_accuracy/{row}"] <= 1 and 0 <= summary[f"train_accuracy/{row}"] <= 1
        )
        assert (
            summary[f"n/{row}"] == (20 if row == "kernel" else 40)
            and summary[f"seconds/{row}"] >= 0
        )
    assert not [value for value in summary.values() if isinstance(value, dict)]
    assert (folder / "figures" / "accuracy_against_width.png").exists()
    printed = _text(cifar10_linearized, summary)
    assert "scattering, linear" in printed and "gated" in printed


@pytest.mark.extended
def test_prior_features_beat_a_narrow_linearized_network(tabled):
    assert not _failures(tabled[1]) and tabled[1]["passed/scattering_minus_linearized"]


@pytest.mark.extended
def test_rows_of_several_runs_are_one_table(tabled, tmp_path, monkeypatch):
    """What a network, a wider one and patches give in runs of their own is the table of them all."""
    monkeypatch.setattr(vgg, "build", _one_convolution)
    single = {
        "narrow": ["kinds=standard,linearized", "priors="],
        "wide": ["kinds=standard", "widths=0.125", "priors=", "train.epochs=1"],
        "priors": ["kinds=", "priors=patches"],
    }
    folders = []
    for name, overrides in single.items():
        config = _config(cifar10_linearized, TABLE, *overrides)
        folder = store.open_run("cifar10_linearized", config, tmp_path / name)
        running.compute(cifar10_linearized, config, folder, QUIET)
        store.finish(folder, 1.0)
        folders.append(folder)
    runs = compare.load(folders)
    assert pieces.are_pieces(cifar10_linearized, runs)
    written = pieces.write_together(cifar10_linearized, runs, tmp_path / "table.png", QUIET)
    assert [path.name for path in written] == ["table.png", "table.json"]
    summary = store.read_json(written[-1])
    narrow, wide = "width=0.0625", "width=0.125"
    networks = [f"standard/{narrow}", f"linearized/{narrow}", f"standard/{wide}"]
    assert summary["rows"] == [*networks, "patches"]
    assert [summary[f"epochs/{row}"] for row in networks] == [2, 2, 1]
    for row in (networks[0], networks[1], "patches"):
        assert summary[f"test_accuracy/{row}"] == tabled[1][f"test_accuracy/{row}"]


@pytest.mark.extended
def test_the_three_networks_start_at_zero_with_one_tangent_and_part_when_gates_flip():
    model, x = ln.zoo.mlp((6,), 3), jax.random.normal(jax.random.key(0), (5, 4))
    problem = vgg.Problem(model, model.init(jax.random.key(1), x), ln.Data(x, x), ln.Data(x, x))
    functions = [
        table_cells.function(kind, problem) for kind in ("standard", "gated", "linearized")
    ]
    zero = jax.tree.map(jnp.zeros_like, problem.params0)
    u = model.init(jax.random.key(2), x)
    tangents = [jax.jvp(lambda v, f=f: f(v, x), (zero,), (u,)) for f in functions]
    for outputs, tangent in tangents:
        assert not outputs.any()
        np.testing.assert_allclose(tangent, tangents[2][1], rtol=1e-10)
    far = [f(u, x) for f in functions]
    assert all(float(jnp.abs(far[i] - far[j]).max()) > 0.1 for i, j in ((0, 1), (1, 2), (0, 2)))


@pytest.mark.parametrize(
    ("experiment", "overrides", "message"),
    [
        (cifar10_alpha_sweep, ["alphas=1,1"], "alphas got .*all different"),
        (cifar10_alpha_sweep, ["alphas=1e7", "precision=float32"], "lose their digits"),
        (cifar10_linearized, ["widths=0"], r"widths\[0\] got 0.0, expected a finite number > 0"),
        (
            cifar10_linearized,
            ["kernel.n_train=1000"],
            "kernel.n_train got 1000, expected an integer from 1 to",
        ),
        (cifar10_linearized, ["ridges=1,0.1,0.01"], "in increasing order"),
        (cifar10_linearized, ["kinds=", "priors="], "are both empty, expected a row"),
    ],
)
def test_configurations_that_cannot_run_are_refused(tmp_path, experiment, overrides, message):
    with pytest.raises(ValueError, match=message):
        running.compute(experiment, _config(experiment, [], *overrides), tmp_path, QUIET)


def test_the_facts_about_features_are_claimed_of_enough_photographs_only():
    summary = {
        f"{name}/alpha={a}": 0.5
        for name in ("train_accuracy", "test_accuracy", "gated_accuracy")
        for a in (1, "inf")
    }
    named = {
        preset: {fact.name for fact in cifar10_alpha_sweep.checked_facts(config, summary)}
        for preset, config in cifar10_alpha_sweep.PRESETS.items()
    }
    claims = {"linearized_train_accuracy", "standard_minus_linearized"}
    assert claims <= named["laptop"] and claims <= named["paper"] and not claims & named["smoke"]


def test_prior_features_are_compared_with_the_widest_network_that_was_trained():
    """Runs without networks keep the widths of their preset, of which nothing is there."""
    rows = {"linearized/width=0.0625": 0.3, "linearized/width=0.125": 0.4, "scattering": 0.7}
    arrays = {f"{row}/n": 50_000 for row in rows}
    arrays |= {f"{row}/test_accuracy": accuracy for row, accuracy in rows.items()}
    (fact,) = cifar10_linearized.facts(cifar10_linearized.PRESETS["full"], arrays)
    assert fact.name == "scattering_minus_linearized"
    assert fact.measured == pytest.approx(0.3)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [cifar10_alpha_sweep, cifar10_linearized])
def test_every_fact_of_the_smoke_run_holds(tmp_path, experiment):
    summary = running.compute(experiment, experiment.PRESETS["smoke"], tmp_path, QUIET)
    assert not _failures(summary) and [name for name in summary if name.startswith("passed/")]
