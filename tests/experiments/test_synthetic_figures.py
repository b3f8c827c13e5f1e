from __future__ import annotations

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import lazynet as ln
from experiments import loss_vs_scale, loss_vs_width, population_sgd, trajectories_2d
from experiments.harness import progress, running
from experiments.shared.students import (
    Student,
    Weights,
    descend,
    doubled,
    gradients,
    measurements,
    on_sphere,
    outputs,
    relu_net,
)

CONSOLE = Console(file=io.StringIO())


def _case(scales=(0.5, 4.0), d=5, m=6, n=20, dtype=jnp.float64, offset=0.0):
    keys = jax.random.split(jax.random.key(0), 5)
    start = Weights(
        jax.random.normal(keys[0], (m, d), dtype), jax.random.normal(keys[1], (m,), dtype)
    )
    alpha = jnp.asarray(scales, dtype)
    u = Weights(*(jax.random.normal(keys[2], (len(scales), *leaf.shape), dtype) for leaf in start))
    x, y = on_sphere(keys[3], n, d, dtype), jax.random.normal(keys[4], (1, n), dtype)
    student = Student(start, alpha, jnp.full_like(alpha, 0.1), offset * alpha)
    return student, u, x, y


def _apply(weights, x):
    return relu_net(weights, x.T)[:, None]


@pytest.mark.extended
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_outputs_are_those_of_the_scaled_and_centered_network(offset):
    student, u, x, _ = _case(offset=offset)
    for s, alpha in enumerate(student.alpha):
        own = jax.tree.map(lambda leaf, s=s: leaf[s], u)
        expected = ln.lazy(_apply, student.start, alpha)(own, x.T)[
            :, 0
        ] + offset * alpha * relu_net(student.start, x)
        np.testing.assert_allclose(outputs(student, u, x)[s], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.extended
@pytest.mark.parametrize("alpha", [1e-4, 1.0, 1e6])
def test_outputs_in_single_precision_are_exact_at_every_scale(alpha):
    student, u, x, _ = _case((alpha,))
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (student, u, x))
    exact = outputs(*jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), single))
    np.testing.assert_allclose(
        outputs(*single), exact, rtol=2e-5, atol=2e-6 * float(jnp.max(jnp.abs(exact)))
    )


@pytest.mark.extended
def test_gradients_are_those_of_the_loss():
    student, u, x, y = _case(offset=1.0)

    def loss(u):
        return jnp.sum((outputs(student, u, x) - y) ** 2) / (2 * y.shape[1])

    _, got = gradients(student, student.start.hidden @ x, u, x, y)
    for ours, expected in zip(got, jax.grad(loss)(u), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.extended
def test_descent_is_training_of_the_lazy_network():
    student, u, x, y = _case()
    ours = descend(student, jax.tree.map(jnp.zeros_like, u), x, y, 30)
    for s, alpha in enumerate(student.alpha):
        goal = ln.objective(ln.lazy(_apply, student.start, alpha), ln.mse)
        curve = ln.train(
            goal,
            jax.tree.map(jnp.zeros_like, student.start),
            ln.Data(x.T, y.T),
            ln.sgd(0.0),
            key=jax.random.key(0),
            save_at=[30],
            learning_rate=0.1,
        )
        for got, expected in zip(ours, curve.params, strict=True):
            np.testing.assert_allclose(got[s], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.extended
def test_measurements_at_the_start_are_those_of_an_untrained_network():
    student, u, x, y = _case()
    student = student._replace(start=doubled(student.start))
    zero = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape)), student.start)
    at_start = measurements(student, zero, x, y, x, y)
    np.testing.assert_allclose(at_start["train_loss"], np.mean(np.asarray(y) ** 2) / 2, rtol=1e-12)
    np.testing.assert_array_equal(at_start["stability"], [1.0, 1.0])
    np.testing.assert_array_equal(at_start["drift"], [0.0, 0.0])
    assert float(jnp.max(jnp.abs(relu_net(student.start, x)))) < 1e-14


def test_cells_come_back_in_their_order():
    assert list(progress.spread(lambda cell: cell**2, range(7))) == [cell**2 for cell in range(7)]


@pytest.mark.extended
def test_neurons_align_with_the_teacher_or_hardly_move(tmp_path):
    config = dataclasses.replace(trajectories_2d.PRESETS["smoke"], steps=20_000)
    summary = running.compute(trajectories_2d, config, tmp_path, CONSOLE)
    assert all(value for key, value in summary.items() if key.startswith("passed/"))
    assert (tmp_path / "figures" / "trajectories_2d.png").stat().st_size > 10_000


SMALL = {
    loss_vs_scale: loss_vs_scale.Config(
        taus=(0.1, 1.0, 2.0), trials=2, d=10, n=40, width=6, steps=60, looks=3
    ),
    loss_vs_width: loss_vs_width.Config(widths=(2, 64), trials=2, d=100, n=60, steps=60),
    population_sgd: population_sgd.Config(
        taus=(0.1, 1.0), trials=2, d=10, width=6, batch_size=20, steps=60, last=20
    ),
}


@pytest.mark.extended
@pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__)
def test_a_small_run_draws_its_figure_and_is_not_computed_again(module, tmp_path, monkeypatch):
    summary = running.compute(module, SMALL[module], tmp_path, CONSOLE)
    assert list(tmp_path.glob("figures/*.png"))
    running.show(module, summary, CONSOLE)
    monkeypatch.delattr(module, "train")
    assert running.compute(module, SMALL[module], tmp_path, CONSOLE) == summary
    assert all(key in summary for key in _expected_keys(module))


def _expected_keys(module):
    if module is loss_vs_width:
        return ["test_loss/m=2/scaling=inv", "test_loss/m=64/scaling=inv_sqrt", "ratio/m=64"]
    return ["test_loss/tau=0.1", "test_loss/tau=1"]


@pytest.mark.extended
def test_scales_trained_together_are_scales_trained_alone():
    config = SMALL[loss_vs_scale]
    together = loss_vs_scale.train(config, 0, (0.1, 1.0))
    alone = [loss_vs_scale.train(config, 0, (tau,)) for tau in (0.1, 1.0)]
    for name, values in together.items():
        np.testing.assert_allclose(values, [one[name][0] for one in alone], rtol=1e-9)


@pytest.mark.extended
def test_the_learning_rates_of_the_width_sweep_are_one_and_a_twentieth_of_the_width():
    """One step of the displacement is one step of the weights with the rates of the text."""
    config = dataclasses.replace(SMALL[loss_vs_width], steps=1)
    start, (x, y, *rest) = loss_vs_width.draw_trial(config, 0, 8)
    measured = loss_vs_width.train(config, 0, 8)
    for s, (scale, rate) in enumerate(((8**-0.5, 1.0), (1 / 8, 0.4))):

        def loss(w, scale=scale):
            return jnp.mean((scale * relu_net(w, x) - y[0]) ** 2) / 2

        moved = jax.tree.map(lambda w, g, rate=rate: w - rate * g, start, jax.grad(loss)(start))
        np.testing.assert_allclose(measured["train_loss"][s], loss(moved), rtol=1e-9)


def test_the_teacher_of_fresh_samples_is_the_same_for_every_batch_size():
    teachers = [
        population_sgd.draw_trial(population_sgd.Config(batch_size=size), 0)[1]
        for size in (50, 200)
    ]
    jax.tree.map(np.testing.assert_array_equal, *teachers)


@pytest.mark.extended
def test_the_steps_on_fresh_samples_are_those_of_the_weights():
    config = dataclasses.replace(SMALL[population_sgd], steps=1, last=1, taus=(0.5, 2.0))
    start, teacher, key = population_sgd.draw_trial(config, 0)
    x = on_sphere(jax.random.fold_in(key, 0), config.batch_size, config.d)
    y = relu_net(teacher, x)
    for tau, loss in zip(config.taus, population_sgd.train(config, 0), strict=True):
        weights = jax.tree.map(lambda leaf, tau=tau: tau * leaf, start)
        np.testing.assert_allclose(
            loss, np.mean(np.asarray(relu_net(weights, x) / config.width - y) ** 2) / 2, rtol=1e-9
        )


@pytest.mark.parametrize(
    ("module", "change", "words"),
    [
        (loss_vs_scale, {"width": 7}, "width got 7"),
        (loss_vs_scale, {"taus": (1.0, 0.1)}, "taus"),
        (loss_vs_width, {"trials": 0}, "trials got 0"),
        (population_sgd, {"last": 100}, "last got 100"),
        (trajectories_2d, {"taus": (2.0, 0.1)}, "taus"),
    ],
)
def test_configurations_that_cannot_run_are_refused(module, change, words, tmp_path):
    config = dataclasses.replace(SMALL.get(module, trajectories_2d.Config()), **change)
    with pytest.raises(ValueError, match=words):
        running.compute(module, config, tmp_path, CONSOLE)
