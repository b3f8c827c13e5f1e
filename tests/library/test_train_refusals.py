"""Facts about what training is given: another run's state, names that are taken, data and weights of a wrong kind."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from draws import initial, normal

import lazynet as ln
from lazynet import trees

KEY = jax.random.key(0)
X = normal(1, 6, 4)
Y = jnp.asarray(np.sin(np.asarray(X)[:, :2]))
DATA, TEST = ln.Data(X, Y), ln.Data(X[:3], Y[:3])
MODEL = ln.serial(ln.Dense(8, 1.5, 0.1), ln.Erf(), ln.Dense(2))
PARAMS = initial(0, MODEL, X)
GOAL = ln.objective(MODEL.apply, ln.mse)
SETTINGS = dict(key=KEY, save_at=[0, 1, 2], learning_rate=0.1)


def _train(goal=GOAL, params=PARAMS, data=DATA, optimizer=None, **changes):
    train = inspect.unwrap(ln.train)  # types are checked at run time in tests only
    return train(
        goal, params, data, ln.sgd(0.9) if optimizer is None else optimizer, **(SETTINGS | changes)
    )


def _evaluate(**changes):
    return inspect.unwrap(ln.evaluate)(GOAL, PARAMS, **changes)


def _saved(**changes):
    pairs = []
    _train(on_save=lambda *pair: pairs.append(pair), **changes)
    return pairs


PAIRS = _saved(test=TEST, measure=lambda w: {"norm": trees.norm(w)})
STATE, CURVE = PAIRS[1]
RESUMED = dict(test=TEST, measure=lambda w: {"norm": trees.norm(w)}, resume=(STATE, CURVE))
NAN = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(resume=CURVE), "expected the pair"),
        (dict(resume=(None, CURVE)), "expected the pair .TrainState"),
        (dict(resume=(STATE, PAIRS[2][1])), "ends at step 2 .* state at step 1"),
        (dict(resume=(STATE, PAIRS[0][1])), "ends at step 0 .* state at step 1"),
        (dict(resume=(STATE._replace(time=7.0), CURVE)), "time 1, .*time 7"),
        (dict(resume=(STATE, CURVE._replace(time=CURVE.time[:1]))), "lengths"),
        (
            dict(resume=(STATE._replace(params=NAN), CURVE)),
            r"resume\.params\['0_Dense'\]\['W'\] has 32 NaN",
        ),
        (dict(resume=(STATE._replace(params={"w": X}), CURVE)), "structure"),
        (
            dict(
                resume=(
                    jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), STATE)._replace(step=1),
                    CURVE,
                )
            ),
            "float32",
        ),
        (dict(optimizer=ln.sgd()), r"resume\.opt_state is .*expected .*SGD\(momentum=0.0"),
        (dict(optimizer=optax.adam(0.1), learning_rate=None), r"resume\.opt_state"),
        (dict(test=None), "with others .'test_accuracy', 'test_loss'"),
        (dict(measure=None), "with others .'norm'"),
        (dict(measure=lambda w: {"norm": 0.0, "new": 1.0}), "without the metrics asked for .'new'"),
        (dict(resume=PAIRS[2], save_at=[0, 1]), "resume is at step 2, expected at most 1"),
    ],
)
def test_what_belongs_to_another_training_is_not_resumed(change, message):
    steps = []
    with pytest.raises((TypeError, ValueError), match=message):
        _train(**(RESUMED | dict(on_save=lambda *pair: steps.append(pair)) | change))
    assert not steps


def test_a_curve_that_lacks_the_test_set_is_not_resumed_with_one():
    with pytest.raises(ValueError, match="'test_accuracy', 'test_loss'"):
        _train(test=TEST, resume=_saved()[1])


def test_a_curve_resumes_with_its_metrics_in_any_order():
    mixed = CURVE._replace(
        metrics={name: CURVE.metrics[name] for name in sorted(CURVE.metrics, reverse=True)}
    )
    resumed = _train(**(RESUMED | dict(resume=(STATE, mixed))))
    assert set(resumed.metrics) == set(CURVE.metrics)
    for name, values in PAIRS[2][1].metrics.items():
        np.testing.assert_array_equal(resumed.metrics[name], values)


def test_a_training_that_diverged_has_ended_and_stays_so_when_it_is_resumed():
    settings = dict(learning_rate=1e300, save_at=[0, 3, 9])
    pairs = _saved(**settings)
    again = _train(resume=pairs[-1], **settings)
    assert again.diverged_at == 3 and again.step.tolist() == [0, 3]


def test_states_go_on_from_the_one_that_is_resumed():
    states = ln.snapshots(GOAL, PARAMS, DATA, ln.sgd(0.9), resume=STATE, **SETTINGS)
    assert [state.step for state in states] == [1, 2]


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda w: {"train_loss": -1.0}, "'train_loss'.*other names"),
        (lambda w: {"step": -5.0}, "'step'.*other names"),
        (lambda w: {"test_accuracy": 1.0}, "'test_accuracy'.*other names"),
        (lambda w: 3.0, "returned 3.0, expected a dictionary"),
        (lambda w: {"norms": np.ones(2)}, "as 'norms', expected one number"),
        (lambda w: {"norms": "x"}, "as 'norms', expected one number"),
    ],
)
def test_a_measure_gives_numbers_under_names_of_its_own(measure, message):
    with pytest.raises((TypeError, ValueError), match=message):
        _train(measure=measure)


def test_a_measure_gives_the_same_names_every_time():
    names = iter(["a", "b"])
    with pytest.raises(ValueError, match=r"\['a', 'b'\] in one record only"):
        _train(measure=lambda w: {next(names): 0.0})


def test_a_measure_may_be_nan():
    assert np.isnan(_train(measure=lambda w: {"gap": np.nan}).metrics["gap"]).all()


@pytest.mark.parametrize("call", [_train, _evaluate])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ln.Data(X[:0], Y[:0]), "0 inputs"),
        (ln.Data(X, jnp.concatenate([Y, Y])), "6 inputs and 12 targets"),
        (ln.Data(X, Y[:, :1]), r"\(6, 2\) and targets of shape \(6, 1\)"),
        (ln.Data(X, Y[:1]), "6 inputs and 1 targets"),
        ((X, Y), "expected Data|parameter 'data'"),
    ],
)
def test_inconsistent_data_is_refused_before_anything_is_recorded(call, data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(data=data)


@pytest.mark.parametrize(
    ("size", "message"), [(-1, "got -1"), (0, "got 0"), (2.5, "2.5"), ("all", "all")]
)
def test_a_batch_of_an_evaluation_has_at_least_one_example(size, message):
    with pytest.raises((TypeError, ValueError), match=f"batch_size.*{message}"):
        _evaluate(data=DATA, batch_size=size)


def test_a_test_set_of_another_width_is_refused_before_training():
    with pytest.raises(ValueError, match="3 channels"):
        _train(test=ln.Data(X[:, :3], Y))


@pytest.mark.parametrize("loss", [ln.cross_entropy, ln.logistic])
def test_targets_of_another_kind_are_refused_by_training_and_evaluation(loss):
    y = Y - 5.0 if loss is ln.cross_entropy else jnp.abs(jnp.sign(Y[:, :1])) * 0
    goal = ln.objective(lambda w, x: x @ w, loss)
    w = jnp.zeros((4, y.shape[1]))
    for call in (
        lambda: _train(goal, w, ln.Data(X, y)),
        lambda: ln.evaluate(goal, w, ln.Data(X, y)),
    ):
        with pytest.raises(ValueError, match=rf"data\.y\[0\] is .* {loss.__name__}"):
            call()


def test_params0_is_refused_by_evaluation_as_by_training():
    goal = ln.objective(ln.lazy(MODEL.apply, PARAMS, 3.0), ln.mse)
    with pytest.raises(ValueError, match="params is params0"):
        ln.evaluate(goal, PARAMS, DATA)


def _embed(w, tokens):
    return w["table"][tokens].mean(1)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, bool])
def test_tokens_are_trained_on_as_they_are(dtype):
    tokens = np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0]]).astype(dtype)
    indices = tokens.astype(np.int32)
    goal = ln.objective(lambda w, x: _embed(w, x.astype(jnp.int32)), ln.mse)
    table, y = jnp.asarray([[0.3], [-0.2]]), jnp.ones((3, 1))
    curve = _train(goal, {"table": table}, ln.Data(tokens, y), ln.sgd(), save_at=[1])
    features = np.stack([(indices == token).mean(1) for token in (0, 1)], axis=1)
    expected = np.asarray(table) - 0.1 * features.T @ (features @ np.asarray(table) - 1) / 3
    np.testing.assert_allclose(curve.params["table"], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((6, 2), np.uint8), "uint8.*x.astype.float. / 255 for images"),
        (np.ones((6, 2, 2, 1), np.int32), "int32.*x.astype.float. / 255"),
        ([X, X], "data.x got a list, expected an array"),
        ({"a": X, "b": "text"}, r"data.x\['b'\] got a str, expected an array"),
        (np.asarray(X) * 1j, "complex128"),
    ],
)
def test_bytes_images_of_integers_and_what_is_no_array_are_refused(x, message):
    with pytest.raises(TypeError, match=message):
        inspect.unwrap(ln.datasets.check_data)(SimpleNamespace(x=x, y=Y))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.ones((4, 2), int)}, r"params\['w'\] has dtype int64, expected floating-point"),
        ({"w": np.ones((4, 2), object)}, r"params\['w'\] has dtype object"),
        (
            {"params": {"w": jnp.ones((4, 2))}, "batch_stats": {"mean": jnp.ones(2)}},
            "flax's variables with 'batch_stats'",
        ),
    ],
)
def test_leaves_that_are_no_weights_are_refused(params, message):
    with pytest.raises((TypeError, ValueError), match=message):
        _train(ln.objective(lambda w, x: x @ w["w"], ln.mse), params)


@pytest.mark.parametrize("optimizer", [optax.adam, "sgd", 0.9])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises((TypeError, ValueError), match="optimizer"):
        _train(optimizer=optimizer)


@pytest.mark.parametrize("rate", [1e-2, 0.0, lambda step: 1e-2])
def test_the_rate_of_an_optax_optimizer_is_not_given_twice(rate):
    with pytest.raises(ValueError, match="carries its own rate.*unit_rate"):
        _train(optimizer=optax.adam(1e-2), learning_rate=rate)


def test_adam_moves_by_its_own_rate_and_its_clock_counts_steps():
    with jax.numpy_dtype_promotion("standard"):
        curve = _train(optimizer=optax.adam(1e-2), learning_rate=None)
        state, w = optax.adam(1e-2).init(PARAMS), PARAMS
        for _ in range(2):
            updates, state = optax.adam(1e-2).update(jax.grad(GOAL.value)(w, DATA), state, w)
            w = optax.apply_updates(w, updates)
    assert curve.time.tolist() == [0.0, 1.0, 2.0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), curve.params, w)


def test_a_unit_rate_is_multiplied_by_that_of_training():
    with jax.numpy_dtype_promotion("standard"):
        own = _train(optimizer=optax.adam(1e-2), learning_rate=None)
        unit = _train(optimizer=ln.unit_rate(optax.adam(1.0)), learning_rate=1e-2)
    np.testing.assert_allclose(unit.time, [0.0, 0.01, 0.02], rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), own.params, unit.params)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan, "0.9"])
def test_impossible_momenta_are_refused(momentum):
    with pytest.raises((TypeError, ValueError), match="momentum"):
        ln.sgd(momentum)


def test_no_step_waits_for_the_device(monkeypatch):
    kind, reads = type(jnp.ones(1)), []
    for name in (
        "__array__",
        "__float__",
        "__bool__",
        "__int__",
        "__index__",
        "item",
        "tolist",
        "block_until_ready",
    ):
        original = getattr(kind, name)
        monkeypatch.setattr(
            kind,
            name,
            lambda self, *a, _f=original, **k: (reads.append(self), _f(self, *a, **k))[1],
        )

    def count(steps):
        reads.clear()
        goal = ln.objective(ln.lazy(MODEL.apply, PARAMS, 3.0), ln.mse)
        rate = ln.inverse_epoch_decay(0.1, 3)
        _train(
            goal,
            None,
            save_at=[steps],
            batch_size=2,
            learning_rate=rate,
            measure=lambda u: {"a": 0.0},
        )
        return len(reads)

    assert count(3) == count(60) > 0


def test_an_optimizer_whose_state_changes_its_kind_is_refused():
    def update(grads, state, params=None):
        return grads, (state, 0)

    growing = optax.GradientTransformation(lambda params: (), update)
    with pytest.raises(TypeError, match="the optimizer's update returned .*keep the structure"):
        _train(optimizer=growing, learning_rate=None)


def test_adam_on_a_partial_function_of_a_lazy_one_is_refused():
    f = ln.lazy(lambda w, x: x @ w, jnp.ones((2, 1)), 10.0)
    data = ln.Data(jnp.eye(2), jnp.ones((2, 1)))
    goal = ln.objective(jax.tree_util.Partial(f), ln.mse)
    with pytest.raises(ValueError, match="cannot train a lazy function"):
        ln.train(goal, f.start(), data, optax.adam(1e-2), key=jax.random.key(0), save_at=[1])
