"""Dynamics in function space against direct training of the linearized network, step for step, in float64."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

from lazynet import dynamics, trees
from lazynet.kernels.empirical import empirical_ntk
from lazynet.lazy import lazy, linearize
from lazynet.losses import cross_entropy, mse, objective
from lazynet.models.activations import Erf
from lazynet.models.layers import Dense
from lazynet.models.model import serial
from lazynet.records import Data
from lazynet.training.loop import train
from lazynet.training.optimizers import sgd

KEY = jax.random.key(7)


@functools.cache
def problem():
    """A network that is not zero at initialization, training and test examples, and its kernels."""
    model = serial(Dense(9, b_std=0.3), Erf(), Dense(3))
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (11, 4))
    params = jax.jit(model.init)(keys[1], x[:1])
    y = jnp.eye(3)[jax.random.randint(keys[2], (11,), 0, 3)]
    gram = empirical_ntk(model.apply, params, x)
    return model, params, Data(x[:8], y[:8]), Data(x[8:], y[8:]), gram[:8, :8], gram[8:, :8]


def both(loss, tangent=True, **settings):
    """Trajectories of direct training and of the kernel, and the kernel's dual coefficients."""
    model, params, data, test, ntk, cross = problem()
    if tangent:
        apply, start = linearize(model.apply, params), params
        f0, f0_test = (model.apply(params, part.x) for part in (data, test))
    else:
        apply, start, f0, f0_test = (
            lazy(model.apply, params, math.inf),
            trees.zeros_like(params),
            None,
            None,
        )
    momentum, key = settings.pop("momentum"), settings.pop("key", KEY)
    direct = train(
        objective(apply, loss), start, data, sgd(momentum), key=key, test=test, **settings
    )
    shared = dict(settings, momentum=momentum, loss=loss, key=key)
    curve = dynamics.gradient_descent(
        ntk, data, f0=f0, cross=cross, test=test, f0_test=f0_test, **shared
    )
    return direct, curve, dynamics.solve_descent(ntk, data.y, f0=f0, **shared)


@pytest.mark.parametrize("tangent", [True, extended(False)])
@pytest.mark.parametrize("batch_size", [extended(None), 3])
@pytest.mark.parametrize("momentum", [extended(0.0), 0.8])
@pytest.mark.parametrize("loss", [mse, extended(cross_entropy)])
@pytest.mark.extended
def test_descent_on_the_kernel_is_training_of_the_linearized_network(
    tangent, batch_size, momentum, loss
):
    settings = dict(
        momentum=momentum, learning_rate=0.2, save_at=[0, 1, 2, 3, 40], batch_size=batch_size
    )
    direct, curve, solution = both(loss, tangent, **settings)
    np.testing.assert_allclose(curve.time, direct.time, rtol=1e-12)
    for name, values in direct.metrics.items():
        np.testing.assert_allclose(curve.metrics[name], values, rtol=1e-9, atol=1e-11)
    model, params, data, *_ = problem()
    weights = dynamics.linearized_weights(model.apply, params, data.x, solution.coefficients)
    moved = trees.subtract(jax.tree.map(lambda leaf: leaf[-1], weights), params)
    expected = trees.subtract(direct.params, params) if tangent else direct.params
    for ours, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_another_key_gives_another_order_of_the_batches():
    settings = dict(momentum=0.0, learning_rate=0.2, save_at=[5], batch_size=3)
    curves = [
        both(mse, **settings, key=jax.random.key(seed))[1].metrics["train_loss"][0]
        for seed in (0, 1)
    ]
    assert abs(curves[0] - curves[1]) > 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_a_batch_of_all_examples_is_full_batch_descent(momentum):
    _, _, data, _, ntk, _ = problem()
    settings = dict(learning_rate=0.2, momentum=momentum, save_at=[0, 30])
    exact = dynamics.solve_descent(ntk, data.y, **settings)
    for loss, batch_size in ((mse, 8), (lambda f, y: mse(f, y), None)):
        other = dynamics.solve_descent(ntk, data.y, **settings, loss=loss, batch_size=batch_size)
        np.testing.assert_allclose(other.coefficients, exact.coefficients, rtol=1e-10, atol=1e-13)


def test_a_kernel_of_decoupled_outputs_takes_minibatches_without_a_copy(tmp_path):
    _, _, data, _, ntk, _ = problem()
    small = np.memmap(tmp_path / "kernel", np.float32, "w+", shape=(8, 8))
    small[:] = ntk[:, :, 0, 0]
    settings = dict(learning_rate=0.2, momentum=0.5, save_at=[9], batch_size=2, key=KEY)
    full = np.asarray(small, np.float64)[:, :, None, None] * np.eye(3)
    expected = dynamics.solve_descent(full, data.y, **settings).coefficients
    np.testing.assert_allclose(
        dynamics.solve_descent(small, data.y, **settings).coefficients, expected, rtol=1e-6
    )


@pytest.mark.parametrize("time", [extended(3.0), np.inf])
@pytest.mark.extended
def test_the_flow_in_weights_fits_what_the_flow_in_outputs_fits(time):
    model, params, data, test, ntk, cross = problem()
    f0, f0_test = (model.apply(params, part.x) for part in (data, test))
    solution = dynamics.solve_flow(ntk, data.y, time=time, f0=f0)
    weights = dynamics.linearized_weights(model.apply, params, data.x, solution.coefficients[0])
    tangent = linearize(model.apply, params)
    np.testing.assert_allclose(tangent(weights, data.x), solution.outputs[0], atol=1e-9)
    expected = dynamics.kernel_outputs(cross, solution.coefficients[0], f0_test)
    np.testing.assert_allclose(tangent(weights, test.x), expected, atol=1e-9)


@pytest.mark.extended
def test_at_infinite_time_the_weights_are_the_interpolation_of_least_norm():
    model, params, data, _, ntk, _ = problem()
    f0 = model.apply(params, data.x)
    end = dynamics.solve_flow(ntk, data.y, time=np.inf, f0=f0).coefficients[0]
    displacement = trees.subtract(
        dynamics.linearized_weights(model.apply, params, data.x, end), params
    )
    leaves = jax.tree.leaves(jax.jacrev(model.apply)(params, data.x))
    jacobian = np.concatenate([leaf.reshape(24, -1) for leaf in leaves], axis=1)
    expected = np.linalg.pinv(jacobian) @ np.ravel(data.y - f0)
    np.testing.assert_allclose(
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(displacement)]),
        expected,
        atol=1e-9,
    )


def test_weights_keep_the_dtype_of_the_network():
    model, params, data, *_ = problem()
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    weights = dynamics.linearized_weights(
        model.apply, single, data.x.astype(jnp.float32), np.zeros((2, 8, 3))
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 9, "key": KEY}, "batch_size got 9, expected an integer from 1 to 8"),
        ({"batch_size": 0, "key": KEY}, "batch_size got 0"),
        ({"batch_size": 4}, "batch_size = 4 without key"),
    ],
)
def test_a_mistake_in_the_batches_is_named(settings, message):
    _, _, data, _, ntk, _ = problem()
    with pytest.raises(ValueError, match=message):
        dynamics.gradient_descent(ntk, data, learning_rate=0.1, save_at=[1], **settings)


def test_weights_that_are_not_chosen_stay_and_the_others_fit_by_their_own_kernel():
    def apply(params, x):
        return x @ params["a"] + params["steps"].astype(float) * (x @ params["b"])

    x = np.eye(2, 3)
    y = np.array([[1.0], [-2.0]])
    params = {"a": jnp.ones((3, 1)), "b": jnp.ones((3, 1)), "steps": jnp.array(3)}
    chosen = dict(where=lambda path: path == "a")
    ntk = empirical_ntk(apply, params, x, **chosen)
    end = dynamics.solve_flow(ntk, y, time=np.inf, f0=apply(params, x)).coefficients[0]
    weights = dynamics.linearized_weights(apply, params, x, end, **chosen)
    assert weights["steps"] == 3 and np.array_equal(weights["b"], params["b"])
    np.testing.assert_allclose(weights["a"], [[-2.0], [-5.0], [1.0]], rtol=1e-12)


def test_coefficients_of_other_inputs_are_refused():
    model, params, data, *_ = problem()
    with pytest.raises(ValueError, match=r"coefficients of shape \(8, 3\), expected \(7, 3\)"):
        dynamics.linearized_weights(model.apply, params, data.x[:7], np.zeros((8, 3)))
