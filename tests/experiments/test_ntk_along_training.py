"""Facts about `ntk_along_training`: the velocities against a finite difference, the smoke run, and its resumption."""

from __future__ import annotations

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import experiments.ntk_along_training as experiment
import lazynet as ln
from experiments.harness import running, store
from lazynet import empirical

CONSOLE = Console(file=io.StringIO())
SMOKE = experiment.PRESETS["smoke"]


@pytest.fixture
def tiny():
    """A smooth network of 2 outputs on 5 examples, and 3 examples more."""
    model = ln.serial(ln.Dense(4), ln.Erf(), ln.Dense(2))
    x = jax.random.normal(jax.random.key(0), (8, 3))
    data = ln.Data(x[:5], jax.nn.one_hot(jnp.arange(5) % 2, 2, dtype=x.dtype))
    return model, model.init(jax.random.key(1), x), data, x[5:]


@pytest.mark.extended
@pytest.mark.parametrize("loss", [ln.mse, ln.cross_entropy])
def test_the_predicted_velocity_is_minus_the_kernel_times_the_residuals_over_n(tiny, loss):
    model, params, data, x = tiny
    outputs = model.apply(params, data.x)
    values = outputs if loss is ln.mse else jax.nn.softmax(outputs)
    kernel = empirical.empirical_ntk(model.apply, params, x, data.x)
    expected = -np.einsum("ijab,jb->ia", kernel, values - data.y) / len(data.x)
    predicted = experiment.predicted_velocity(ln.objective(model.apply, loss), params, data, x)
    np.testing.assert_allclose(predicted, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", [ln.mse, ln.cross_entropy])
@pytest.mark.extended
def test_the_difference_between_both_velocities_falls_like_the_step(tiny, loss):
    model, params, data, x = tiny
    goal = ln.objective(model.apply, loss)
    predicted = experiment.predicted_velocity(goal, params, data, x)
    errors = [
        jnp.abs(experiment.stepped_velocity(goal, params, data, x, h) - predicted).max()
        for h in (1e-2, 1e-3)
    ]
    np.testing.assert_allclose(errors[0] / errors[1], 10, rtol=0.05)


def test_of_a_linear_model_one_large_step_shows_the_velocity_exactly():
    x = jax.random.normal(jax.random.key(0), (6, 3))
    data, params = ln.Data(x, x[:, :2]), jnp.zeros((3, 2))
    goal = ln.objective(lambda w, x: x @ w, ln.mse)
    stepped = experiment.stepped_velocity(goal, params, data, x, 0.5)
    np.testing.assert_allclose(stepped, x @ (x.T @ data.y) / 6, rtol=1e-12, atol=1e-14)


@pytest.mark.extended
def test_every_fact_of_the_smoke_run_holds_and_the_controls_are_among_them(finished):
    summary, _ = finished
    verdicts = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(verdicts) == 16 and all(verdicts.values()), verdicts
    assert sum(key.startswith("control_") for key in summary) == 4


@pytest.mark.extended
def test_the_stored_kernel_is_that_of_the_weights_at_the_checkpoint(finished):
    _, folder = finished
    setting = experiment._setting(
        SMOKE, "mse", experiment.cells.build(experiment._problem(SMOKE, "mse"))
    )
    last = max(
        (folder / "states" / "loss-mse").iterdir(), key=lambda path: int(path.stem.split("-")[1])
    )
    u = experiment._load_state(setting, last, ln.sgd(SMOKE.train.momentum))[0].params
    weights = jax.tree.map(jnp.add, setting.params0, u)
    rows = [
        jax.jacrev(lambda w, x=x: setting.model.apply(w, x[None])[0])(weights)
        for x in setting.train.x[:4]
    ]
    flat = [
        jnp.concatenate([leaf.reshape(10, -1) for leaf in jax.tree.leaves(row)], axis=1)
        for row in rows
    ]
    jacobian = jnp.stack(flat)
    expected = jnp.einsum("iap,jap->ij", jacobian, jacobian) / 10
    stored = store.load_arrays(folder / "cells" / f"loss-mse_{last.stem}.npz")["kernel"][:4, :4]
    np.testing.assert_allclose(stored, expected, rtol=1e-4)


@pytest.mark.extended
def test_the_figure_is_drawn_and_every_checkpoint_is_in_the_table(finished):
    summary, folder = finished
    assert (folder / "figures" / "ntk_along_training.png").stat().st_size > 10_000
    console = Console(file=io.StringIO(), width=200)
    running.show(experiment, summary, console)
    printed = console.file.getvalue()
    assert all(f"{loss}, {step}" in printed for loss in SMOKE.losses for step in (0, 1, 400))


@pytest.mark.extended
def test_a_finished_run_computes_nothing_again(finished, monkeypatch):
    summary, folder = finished
    monkeypatch.setattr(experiment, "_errors", None)
    monkeypatch.setattr(experiment.ln, "train", None)
    assert running.compute(experiment, SMOKE, folder, CONSOLE) == summary


@pytest.mark.extended
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(finished, tmp_path):
    _, folder = finished
    whole = {path.name: path for path in (folder / "states" / "loss-mse").iterdir()}
    stopped = tmp_path / "loss-mse"
    stopped.mkdir()
    (stopped / "step-4.npz").write_bytes(whole["step-4.npz"].read_bytes())
    setting = experiment._setting(
        SMOKE, "mse", experiment.cells.build(experiment._problem(SMOKE, "mse"))
    )
    experiment._train(SMOKE, setting, stopped, CONSOLE)
    assert not (stopped / "step-1.npz").exists()
    expected, resumed = (
        store.load_arrays(path) for path in (whole["step-400.npz"], stopped / "step-400.npz")
    )
    for name, values in expected.items():
        np.testing.assert_array_equal(values, resumed[name], err_msg=name)


def test_a_ridge_is_chosen_on_one_half_of_the_test_examples_for_the_other():
    """Ridge 0 is right on one half and ridge 1 on half of the other: each is judged on the other half."""
    halves = np.array([[1, 0, 1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0, 0, 0]], bool)
    places = np.random.default_rng(0).permutation(8).argsort()
    assert experiment._tuned(halves[:, places]) == 0.0


def test_both_halves_of_the_test_examples_have_every_class():
    """Classes alternate. Ridge 0 knows one of them and ridge 1 a fifth of the other: both halves choose ridge 0."""
    classes = np.arange(200) % 2
    hits = np.stack([classes == 0, np.arange(200) % 10 == 1])
    assert experiment._tuned(hits) == 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"losses": ()}, "losses"),
        ({"fractions": (0.1,)}, "fractions"),
        ({"fractions": (0.1, 0.01)}, "fractions"),
    ],
)
def test_configurations_that_cannot_run_are_refused(change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        running.compute(experiment, dataclasses.replace(SMOKE, **change), tmp_path, CONSOLE)
