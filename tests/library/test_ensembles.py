"""Ensembles against a loop over `train`, member by member, and against their infinitely wide limit."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

from lazynet import dynamics, trees
from lazynet.kernels.analytic import analytic_kernel
from lazynet.lazy import lazy, linearize
from lazynet.losses import cross_entropy, mse, objective
from lazynet.models.activations import Erf
from lazynet.models.layers import Dense
from lazynet.models.model import serial
from lazynet.records import Data
from lazynet.training.ensembles import moments, train_ensemble
from lazynet.training.loop import train
from lazynet.training.optimizers import sgd

KEY = jax.random.key(3)
LAZY = functools.partial(lazy, alpha=3.0)


@functools.cache
def problem(width=8, members=3):
    model = serial(Dense(width, W_std=1.3, b_std=0.3), Erf(), Dense(2))
    x = jax.random.normal(jax.random.key(0), (8, 3))
    y = jnp.eye(2)[jnp.array([0, 1, 0, 1, 1])]
    params = jax.jit(jax.vmap(model.init, (0, None)))(
        jax.random.split(jax.random.key(1), members), x
    )
    return model, params, Data(x[:5], y), x[5:]


def _itself(apply, params0):
    return apply


@pytest.mark.parametrize(
    ("transform", "loss", "batch_size", "momentum"),
    [
        (linearize, mse, None, 0.0),
        extended(linearize, cross_entropy, 2, 0.7),
        extended(LAZY, mse, 2, 0.7),
        extended(_itself, mse, 2, 0.0),
    ],
)
@pytest.mark.extended
def test_a_member_is_trained_as_by_train(transform, loss, batch_size, momentum):
    model, params, data, x = problem()
    settings = dict(save_at=[0, 1, 2, 7], learning_rate=0.3, batch_size=batch_size)
    curve = train_ensemble(
        model.apply,
        params,
        data,
        sgd(momentum),
        key=KEY,
        x=x,
        loss=loss,
        transform=transform,
        **settings,
    )
    for i, key in enumerate(jax.random.split(KEY, 3)):
        start = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        apply = transform(model.apply, start)
        zeros = None if transform is LAZY else start
        single = train(objective(apply, loss), zeros, data, sgd(momentum), key=key, **settings)
        np.testing.assert_allclose(curve.time, single.time, rtol=1e-12)
        np.testing.assert_allclose(
            curve.outputs[-1, i], apply(single.params, x), rtol=1e-10, atol=1e-12
        )
        own = jax.tree.map(lambda leaf, i=i: leaf[i], curve.params)
        assert float(trees.norm(trees.subtract(own, single.params))) < 1e-11


@pytest.mark.extended
def test_members_train_the_parameters_that_where_selects_as_train_does():
    model, params, data, x = problem()
    settings = dict(save_at=[7], learning_rate=0.3, where=lambda path: path.startswith("0_Dense"))
    curve = train_ensemble(model.apply, params, data, sgd(0.5), key=KEY, x=x, **settings)
    start = jax.tree.map(lambda leaf: leaf[1], params)
    goal = objective(linearize(model.apply, start), mse)
    single = train(goal, start, data, sgd(0.5), key=jax.random.split(KEY, 3)[1], **settings)
    own = jax.tree.map(lambda leaf: leaf[1], curve.params)
    assert float(trees.norm(trees.subtract(own, single.params))) < 1e-11
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), own, start)
    assert [path for path, has in jax.tree_util.tree_leaves_with_path(moved) if has] == [
        path
        for path, _ in jax.tree_util.tree_leaves_with_path(moved)
        if jax.tree_util.keystr(path, simple=True).startswith("0_Dense")
    ]


def test_moments_are_those_of_numpy():
    outputs = np.random.default_rng(0).normal(size=(2, 7, 3, 1))
    mean, covariance = moments(outputs)
    np.testing.assert_allclose(mean, outputs.mean(1))
    np.testing.assert_allclose(covariance[1], np.cov(outputs[1, :, :, 0].T))


@pytest.mark.extended
def test_a_wide_ensemble_has_the_moments_of_its_infinitely_wide_limit():
    """Also at time 0: the networks are not zero at initialization."""
    members, rate, steps = 300, 0.1, [0, 10, 100]
    model, params, data, x = problem(192, members)
    curve = train_ensemble(
        model.apply, params, data, sgd(), key=KEY, save_at=steps, learning_rate=rate, x=x
    )
    mean, covariance = moments(curve.outputs)
    limit = dynamics.trained_ensemble(
        analytic_kernel(model, data.x),
        data,
        time=curve.time,
        cross=analytic_kernel(model, x, data.x),
        prior=analytic_kernel(model, x).nngp,
    )
    variances = np.diagonal(limit.covariance, axis1=1, axis2=2)
    error = np.sqrt(variances / members)[..., None]
    assert np.abs((mean - limit.mean) / error).max() < 4
    scale = np.sqrt(
        (limit.covariance**2 + variances[:, :, None] * variances[:, None, :]) / (2 * members)
    )
    assert np.abs((covariance - limit.covariance) / scale).max() < 4
    assert (variances[0] > 2 * variances[-1]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6}, "batch_size got 6, expected an integer from 1 to 5"),
        ({"save_at": [2, 1]}, "save_at got 1 after 2"),
        ({"params": {"a": jnp.zeros((2, 1)), "b": jnp.zeros((3, 1))}}, r"leading axes \[2, 3\]"),
    ],
)
def test_a_mistake_is_named(settings, message):
    model, params, data, x = problem()
    settings = {"params": params, "save_at": [1]} | settings
    with pytest.raises(ValueError, match=message):
        train_ensemble(
            model.apply,
            settings.pop("params"),
            data,
            sgd(),
            key=KEY,
            learning_rate=0.1,
            x=x,
            **settings,
        )


def test_a_single_network_has_no_covariance():
    with pytest.raises(ValueError, match="outputs of 1 network"):
        moments(np.zeros((1, 2, 1)))
