"""Modules of equinox and other callable trees: their own function, constants apart, and refusals with the way out."""

from __future__ import annotations

import dataclasses
import functools
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal

import lazynet as ln
from lazynet.models.foreign import from_equinox

KEY = jax.random.key(0)
X = normal(1, 4, 3)
IMAGES = normal(2, 2, 1, 5, 5)


class Normed(eqx.Module):
    """A small network with all that is no weight: statistics, dropout, whole numbers, a key and a static field."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear
    drop: eqx.nn.Dropout
    order: jax.Array
    key: jax.Array
    name: str = eqx.field(static=True)

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, key=keys[0])
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
        self.head = eqx.nn.Linear(4, 2, key=keys[1])
        self.drop = eqx.nn.Dropout(0.5)
        self.order = jnp.array([1, 0])
        self.key = KEY
        self.name = "normed"

    def __call__(self, x, state, *, key=None):
        h, state = self.norm(self.conv(x), state)
        h = self.drop(jnp.tanh(h).mean((1, 2)), key=key)
        return self.head(h)[self.order], state


def _normed(key):
    module, state = eqx.nn.make_with_state(Normed)(key=key)
    statistics = jax.tree.map(
        lambda a: a + 1 if jnp.issubdtype(a.dtype, jnp.floating) else a, state
    )
    return eqx.nn.inference_mode(module), statistics


class Rows(eqx.Module):
    """A function of whole batches."""

    linear: jax.Array

    def __call__(self, x):
        return x @ self.linear


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("weight", "shift"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class Plain:
    """A callable tree of no library."""

    weight: jax.Array
    shift: jax.Array

    def __call__(self, x):
        return self.weight @ x + self.shift.astype(x.dtype)


def _carried(model, params, x):
    """Arrays that a program of the model takes from outside instead of as arguments."""
    traced = jax.make_jaxpr(lambda apply, params, x: apply(params, x))(model.apply, params, x)
    return [array for array in traced.consts if np.size(array) > 1]


def test_examples_are_taken_one_at_a_time_as_modules_of_equinox_do():
    module = eqx.nn.MLP(3, 2, 8, 2, activation=jnp.tanh, key=KEY)
    model = from_equinox(module)
    params = model.init(None, X)
    np.testing.assert_allclose(model.apply(params, X), jax.vmap(module)(X), rtol=1e-12)
    assert model.init(None, X.astype(jnp.float32)).layers[0].weight.dtype == jnp.float32
    back = eqx.combine(params, module)
    np.testing.assert_array_equal(jax.vmap(back)(X), jax.vmap(module)(X))


def test_a_factory_draws_new_weights_by_key():
    model = from_equinox(lambda key: eqx.nn.Linear(3, 2, key=key))
    one, same, other = (model.init(jax.random.key(i), X).weight for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_batched_modules_take_the_examples_as_they_come():
    module = Rows(normal(3, 3, 2))
    np.testing.assert_array_equal(
        *(
            from_equinox(module, batched=b).apply(from_equinox(module).init(None, X), X)
            for b in (True, False)
        )
    )


@pytest.mark.extended
def test_statistics_and_keys_are_arguments_of_the_program_and_no_parameters():
    module, state = _normed(KEY)
    model = from_equinox(module, state)
    params = model.init(None, IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float64")}
    outputs = model.apply(params, IMAGES)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = jax.vmap(lambda x: module(x, state)[0])(IMAGES)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)
    assert not _carried(model, params, IMAGES)
    kernel = ln.empirical_ntk(model.apply, params, IMAGES, outputs="trace")
    jacobian = jax.jacobian(model.apply)(params, IMAGES)
    flat = np.concatenate(
        [np.asarray(leaf).reshape(2, 2, -1) for leaf in jax.tree.leaves(jacobian)], axis=-1
    )
    np.testing.assert_allclose(kernel, np.einsum("iap,jap->ij", flat, flat) / 2, rtol=1e-10)


def test_a_factory_of_a_module_and_its_state_is_taken_as_it_is():
    model = from_equinox(_normed)
    params = model.init(jax.random.key(3), IMAGES)
    assert model.apply(params, IMAGES).shape == (2, 2)


def test_any_callable_tree_will_do():
    module = Plain(normal(4, 2, 3), jnp.array([1, 2]))
    model = from_equinox(module)
    params = model.init(None, X)
    assert params.shift is None
    np.testing.assert_allclose(
        model.apply(params, X), X @ module.weight.T + jnp.array([[1.0, 2.0]]), rtol=1e-12
    )


def test_keyword_arguments_go_to_every_call_and_arrays_among_them_are_no_constants():
    class Masked(eqx.Module):
        weight: jax.Array

        def __call__(self, x, mask, *, power):
            return (mask * x**power) @ self.weight

    mask = jnp.array([1.0, 0.0, 1.0])
    model = from_equinox(Masked(normal(5, 3, 2)), mask=mask, power=2)
    params = model.init(None, X)
    np.testing.assert_allclose(model.apply(params, X), (X**2 * mask[None]) @ params.weight)
    np.testing.assert_allclose(model.apply(params, X, power=1), (X * mask[None]) @ params.weight)
    assert not _carried(model, params, X)


class Attention(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.Linear

    def __call__(self, x):
        return self.head(self.head(self.attention(x, x, x).mean(0)))


def test_the_trace_records_layers_that_are_not_under_a_vmap_of_the_module():
    module = Attention(eqx.nn.MultiheadAttention(2, 4, key=KEY), eqx.nn.Linear(4, 4, key=KEY))
    x = normal(6, 3, 5, 4)
    model = from_equinox(module)
    params = model.init(None, x)
    outputs, inside = jax.jit(model.trace)(params, x)
    assert sorted(inside) == ["head", "head#1"]
    np.testing.assert_array_equal(inside["head"][1], inside["head#1"][0])
    np.testing.assert_allclose(inside["head#1"][1], outputs, rtol=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        lambda: from_equinox(*_normed(KEY)),
        lambda: from_equinox(functools.partial(eqx.nn.Conv2d, 1, 2, 5)),
    ],
)
def test_models_of_equinox_pickle(build):
    model = build()
    back = pickle.loads(pickle.dumps(model))
    key = KEY if model.name == "Conv2d" else None
    params = model.init(key, IMAGES)
    assert np.array_equal(back.apply(params, IMAGES), model.apply(params, IMAGES))
    assert jax.tree.all(jax.tree.map(np.array_equal, back.init(key, IMAGES), params))


def _dropped(**options):
    return eqx.nn.Sequential([eqx.nn.Linear(3, 2, key=KEY), eqx.nn.Dropout(0.5, **options)])


REFUSALS = {
    "dropout": (
        lambda: from_equinox(_dropped()),
        ValueError,
        "Dropout in training.*inference_mode",
    ),
    "statistics": (
        lambda: from_equinox(*eqx.nn.make_with_state(Normed)(key=KEY)),
        ValueError,
        "BatchNorm, Dropout in training mode",
    ),
    "a key for an instance": (
        lambda: from_equinox(eqx.nn.Linear(3, 2, key=KEY)).init(KEY, X),
        ValueError,
        r"instance.*init\(None, x\).*from_equinox\(lambda key: Linear",
    ),
    "a factory with other arguments": (
        lambda: from_equinox(eqx.nn.MLP),
        TypeError,
        "signature.*called with key alone",
    ),
    "a factory of something else": (
        lambda: from_equinox(lambda key: 3),
        TypeError,
        "called the factory and got int",
    ),
    "no function": (lambda: from_equinox({"W": X}), TypeError, "expected a module"),
    "outputs without examples": (
        lambda: from_equinox(Rows(X.T), batched=True).init(None, X[0]),
        ValueError,
        "batch axis",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_a_pure_function_is_refused_with_the_way_out(name):
    attempt, error, message = REFUSALS[name]
    with pytest.raises(error, match=f"(?s){message}"):
        attempt()


def test_dropout_in_evaluation_is_the_identity():
    model = from_equinox(_dropped(inference=True))
    params = model.init(None, X)
    linear = params.layers[0]
    np.testing.assert_allclose(model.apply(params, X), X @ linear.weight.T + linear.bias[None])
