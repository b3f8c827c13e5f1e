"""Facts about training: closed forms it must reproduce, invariances of the displacement form, and bookkeeping."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from draws import initial, normal

import lazynet as ln
from lazynet import trees
from lazynet.lazy import lazy

KEY = jax.random.key(0)
N = 24
X = normal(1, N, 6)
Y = jnp.asarray(np.sin(np.asarray(X) @ np.ones((6, 2)) / 2 + np.arange(2.0)))
DATA = ln.Data(X, Y)
MODEL = ln.serial(ln.Dense(20, 1.5, 0.1), ln.Erf(), ln.Dense(2))
PARAMS = initial(0, MODEL, X)


def _jacobian(params, x):
    rows = jax.jacrev(lambda w: MODEL.apply(w, x))(params)
    return np.concatenate(
        [np.asarray(j).reshape(2 * len(x), -1) for j in jax.tree.leaves(rows)], axis=1
    )


def _lambda_max():
    j = _jacobian(PARAMS, X)
    return float(np.linalg.eigvalsh(j @ j.T)[-1])


def test_linearized_full_batch_descent_is_the_matrix_power():
    j = _jacobian(PARAMS, X)
    theta, rate, steps = j @ j.T, N / _lambda_max(), 60
    goal = ln.objective(ln.lazy(MODEL.apply, PARAMS, math.inf), ln.mse)
    curve = ln.train(goal, None, DATA, ln.sgd(), key=KEY, save_at=[steps], learning_rate=rate)
    residual = np.linalg.matrix_power(np.eye(2 * N) - rate * theta / N, steps) @ -np.asarray(
        Y
    ).reshape(-1)
    outputs = goal.apply(curve.params, X)
    np.testing.assert_allclose(np.asarray(outputs - Y).reshape(-1), residual, atol=1e-10)


@pytest.mark.parametrize("alpha", [1.0, 30.0, 1000.0])
def test_displacement_form_equals_the_paper_objective_on_scaled_weights(alpha):
    settings = dict(key=KEY, save_at=[300], batch_size=8)
    rate = 0.2 * N / _lambda_max()
    u_form = ln.objective(ln.lazy(MODEL.apply, PARAMS, alpha), ln.mse)
    u = ln.train(u_form, None, DATA, ln.sgd(0.9), learning_rate=rate, **settings).params
    w_form = ln.objective(ln.scale(ln.center(MODEL.apply, PARAMS), alpha), ln.mse, 1 / alpha**2)
    w = ln.train(w_form, PARAMS, DATA, ln.sgd(0.9), learning_rate=rate, **settings).params
    np.testing.assert_allclose(u_form.apply(u, X), w_form.apply(w, X), atol=1e-10, rtol=0)


def test_momentum_is_the_heavy_ball_recursion():
    goal = ln.objective(MODEL.apply, ln.mse)
    w, v, rate = PARAMS, trees.zeros_like(PARAMS), 0.1
    for _ in range(5):
        g = jax.grad(goal.value)(w, DATA)
        v = trees.add_scaled(g, 0.9, v)
        w = trees.add_scaled(w, -rate, v)
    trained = ln.train(
        goal, PARAMS, DATA, ln.sgd(0.9), key=KEY, save_at=[5], learning_rate=rate
    ).params
    assert float(trees.norm(trees.subtract(trained, w))) < 1e-13


def test_time_is_the_cumulated_learning_rate_over_one_minus_momentum():
    schedule = optax.linear_schedule(0.2, 0.0, 10)
    goal = ln.objective(MODEL.apply, ln.mse)
    curve = ln.train(
        goal, PARAMS, DATA, ln.sgd(0.5), key=KEY, save_at=[0, 3, 10], learning_rate=schedule
    )
    rates = np.array([0.2 * (1 - s / 10) for s in range(10)])
    np.testing.assert_allclose(
        curve.time, [0.0, rates[:3].sum() / 0.5, rates.sum() / 0.5], rtol=1e-6
    )


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own():
    data = ln.Data(2.0 ** jnp.arange(12.0)[:, None], jnp.zeros((12, 1)))
    # The gradient is the sum of the batch: a bit each.
    goal = ln.objective(lambda w, x: w * x, lambda f, y: jnp.sum(f))
    states = ln.snapshots(
        goal,
        jnp.asarray(0.0),
        data,
        ln.sgd(),
        key=KEY,
        save_at=range(7),
        learning_rate=1.0,
        batch_size=4,
    )
    batches = [int(w) for w in -np.diff([float(state.params) for state in states])]
    assert [batch.bit_count() for batch in batches] == [4] * 6
    assert sum(batches[:3]) == sum(batches[3:]) == 2**12 - 1
    assert batches[:3] != batches[3:]


def test_resumed_training_is_bit_identical():
    goal = ln.objective(ln.lazy(MODEL.apply, PARAMS, 3.0), ln.mse)
    settings = dict(key=KEY, save_at=[0, 7, 20, 31], learning_rate=0.05, batch_size=5, test=DATA)
    saved = []
    whole = ln.train(
        goal, None, DATA, ln.sgd(0.9), on_save=lambda *pair: saved.append(pair), **settings
    )
    resumed = ln.train(goal, None, DATA, ln.sgd(0.9), resume=saved[1], **settings)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_measures_are_recorded_beside_the_losses():
    goal = ln.objective(MODEL.apply, ln.mse)
    curve = ln.train(
        goal,
        PARAMS,
        DATA,
        ln.sgd(),
        key=KEY,
        save_at=[0, 4],
        learning_rate=0.1,
        measure=lambda w: {"norm": trees.norm(w)},
    )
    np.testing.assert_allclose(
        curve.metrics["norm"], [trees.norm(PARAMS), trees.norm(curve.params)], rtol=1e-14
    )


def test_evaluation_does_not_depend_on_its_chunks():
    goal = ln.objective(MODEL.apply, ln.mse)
    whole, chunks = (ln.evaluate(goal, PARAMS, DATA, batch_size=size) for size in (N, 7))
    np.testing.assert_allclose(
        [whole["loss"], whole["accuracy"]], [chunks["loss"], chunks["accuracy"]], rtol=1e-13
    )


def test_divergence_is_recorded_and_ends_the_training():
    goal = ln.objective(ln.lazy(MODEL.apply, PARAMS, math.inf), ln.mse)
    rate = 1e3 * N / _lambda_max()
    curve = ln.train(
        goal, None, DATA, ln.sgd(), key=KEY, save_at=[0, 10, 400, 800], learning_rate=rate
    )
    assert curve.diverged_at == 400
    assert curve.step.tolist() == [0, 10, 400]


@pytest.mark.parametrize(("factor", "converges"), [(0.99, True), (1.01, False)])
def test_the_largest_stable_learning_rate_is_two_n_over_lambda_max(factor, converges):
    goal = ln.objective(ln.lazy(MODEL.apply, PARAMS, math.inf), ln.mse)
    rate = factor * 2 * N / _lambda_max()
    curve = ln.train(goal, None, DATA, ln.sgd(), key=KEY, save_at=[0, 800], learning_rate=rate)
    assert (curve.metrics["train_loss"][-1] < curve.metrics["train_loss"][0]) == converges


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (optax.adam(1e-2), "do not scale with the gradient"),
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)),
            "do not scale with the gradient",
        ),
        (
            optax.chain(optax.clip_by_global_norm(1e4), optax.sgd(1e-6)),
            "do not scale with the gradient",
        ),
        (optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(1.0)), "depend on the weights"),
        (optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(1e-4)), "depend on the weights"),
    ],
)
def test_optimizers_that_are_not_covariant_are_refused_for_lazy_functions(optimizer, reason):
    lazy_goal = ln.objective(ln.lazy(MODEL.apply, PARAMS, 10.0), ln.mse)
    with pytest.raises(ValueError, match=reason):
        ln.train(lazy_goal, None, DATA, optimizer, key=KEY, save_at=[1], learning_rate=1.0)
    plain = ln.objective(MODEL.apply, ln.mse)
    with jax.numpy_dtype_promotion("standard"):
        assert (
            ln.train(
                plain, PARAMS, DATA, optimizer, key=KEY, save_at=[1], learning_rate=1.0
            ).diverged_at
            is None
        )


def test_a_raw_covariant_optax_transformation_trains_a_lazy_function_like_sgd():
    goal = ln.objective(ln.lazy(MODEL.apply, PARAMS, 10.0), ln.mse)
    settings = dict(key=KEY, save_at=[20], batch_size=8)
    raw = ln.train(goal, None, DATA, optax.sgd(0.1, momentum=0.9), learning_rate=1.0, **settings)
    own = ln.train(goal, None, DATA, ln.sgd(0.9), learning_rate=0.1, **settings)
    np.testing.assert_allclose(raw.metrics["train_loss"], own.metrics["train_loss"], rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(save_at=[3, 3]), "strictly increasing"),
        (dict(save_at=[]), "save_at got no steps"),
        (dict(save_at=[0.5, 1.7]), r"(?s)save_at.*0\.5"),
        (dict(save_at=[0, True]), r"(?s)save_at.*True"),
        (dict(batch_size=-1), "batch_size got -1"),
        (dict(batch_size=True), "batch_size got True"),
        (dict(microbatches=0), "microbatches got 0"),
        (dict(learning_rate=-0.01), "learning_rate got -0.01"),
        (dict(learning_rate=math.nan), "learning_rate got nan"),
        (dict(learning_rate=math.inf), "learning_rate got inf"),
        (dict(learning_rate=None), "learning_rate is missing"),
        (dict(learning_rate=lambda step: -0.1), r"learning_rate\(0\) got -0.1"),
        (dict(learning_rate=lambda step: jnp.asarray(jnp.nan)), r"learning_rate\(0\) got"),
        (dict(save_at=[-1, 3]), r"save_at\[0\] got -1"),
        (dict(batch_size=0), "integer from 1 to 24"),
        (dict(batch_size=25), "integer from 1 to 24"),
    ],
)
def test_bad_settings_are_named(change, message):
    settings = dict(key=KEY, save_at=[1], learning_rate=0.1) | change
    for run in (ln.train, lambda *args, **kwargs: list(ln.snapshots(*args, **kwargs))):
        with pytest.raises((TypeError, ValueError), match=message):
            run(ln.objective(MODEL.apply, ln.mse), PARAMS, DATA, ln.sgd(), **settings)


def test_a_schedule_may_begin_at_zero_as_warm_ups_do():
    settings = dict(key=KEY, save_at=[1], learning_rate=optax.linear_schedule(0.0, 0.1, 3))
    curve = ln.train(ln.objective(MODEL.apply, ln.mse), PARAMS, DATA, ln.sgd(), **settings)
    assert curve.time.tolist() == [0.0]
    jax.tree.map(np.testing.assert_array_equal, curve.params, PARAMS)


def test_params0_is_refused_as_the_displacement_and_zeros_are_the_default_start():
    goal = ln.objective(lazy(MODEL.apply, PARAMS, 10.0), ln.mse)
    settings = dict(key=KEY, save_at=[0, 3], learning_rate=0.1)
    with pytest.raises(ValueError, match="pass params=None"):
        ln.train(goal, jax.tree.map(jnp.copy, PARAMS), DATA, ln.sgd(), **settings)
    default = ln.train(goal, None, DATA, ln.sgd(), **settings)
    zeros = ln.train(goal, trees.zeros_like(PARAMS), DATA, ln.sgd(), **settings)
    np.testing.assert_array_equal(default.metrics["train_loss"], zeros.metrics["train_loss"])


def test_centered_targets_are_refused_by_cross_entropy():
    goal = ln.objective(MODEL.apply, ln.cross_entropy)
    with pytest.raises(ValueError, match="one-hot or probability targets"):
        ln.train(goal, PARAMS, DATA, ln.sgd(), key=KEY, save_at=[1], learning_rate=0.1)


@pytest.mark.parametrize(
    ("n_steps", "n_points", "steps"),
    [
        (1000, 1, [1000]),
        (1000, 2, [0, 1000]),
        (1000, 3, [0, 1, 1000]),
        (0, 4, [0]),
        (1, 4, [0, 1]),
        (2, 9, [0, 1, 2]),
    ],
)
def test_log_spaced_ends_at_the_last_step_however_few_points_there_are(n_steps, n_points, steps):
    assert ln.log_spaced(n_steps, n_points) == steps


@pytest.mark.parametrize("numbers", [(-1, 5), (10, 0), (10.0, 5), (10, 2.5)])
def test_log_spaced_refuses_what_is_no_number_of_steps(numbers):
    with pytest.raises((TypeError, ValueError), match="n_"):
        ln.log_spaced(*numbers)


def test_log_spaced_starts_at_zero_and_ends_at_the_last_step():
    steps = ln.log_spaced(777, 30)
    assert (
        steps[:2] == [0, 1]
        and steps[-1] == 777
        and steps == sorted(set(steps))
        and len(steps) <= 30
    )
