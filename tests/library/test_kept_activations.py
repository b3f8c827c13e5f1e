"""The linearized model on kept activations is the linearized model, and keeps no weights for each example."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazynet as ln
from lazynet import trees, zoo
from lazynet.training.kept_activations import keep_activations

NETWORKS = {
    "mlp": (lambda: zoo.mlp((16, 16), 3, b_std=0.1), (6, 5)),
    "cnn": (lambda: zoo.cnn((4, 4), 3, strides=(2, 1)), (6, 8, 8, 2)),
    "max-pool": (
        lambda: ln.serial(
            ln.Conv(4, (3, 3)), ln.Relu(), ln.MaxPool((2, 2), (2, 2)), ln.Flatten(), ln.Dense(3)
        ),
        (6, 4, 4, 2),
    ),
    "layer norm": (lambda: ln.serial(ln.Dense(8), ln.LayerNorm(), ln.Gelu(), ln.Dense(3)), (6, 5)),
}


def _started(name):
    build, shape = NETWORKS[name]
    model = build()
    x = jax.random.normal(jax.random.key(0), shape)
    return model, model.init(jax.random.key(1), x), x


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("centered", [True, False])
def test_values_and_gradients_are_those_of_the_linearized_model(name, centered):
    model, params0, x = _started(name)
    f = ln.lazy(model.apply, params0, math.inf, centered=centered)
    kept = keep_activations(f, x, chunk=4)
    u = model.init(jax.random.key(2), x)
    rows = [3, 0, 5]
    some = tuple(row[jnp.array(rows)] for row in kept.x)
    np.testing.assert_allclose(
        kept.apply(u, some), f(u, x)[jnp.array(rows)], rtol=1e-10, atol=1e-12
    )
    y = jax.random.normal(jax.random.key(3), (6, 3))
    found = jax.grad(lambda u: ln.mse(kept.apply(u, kept.x), y))(u)
    expected = jax.grad(lambda u: ln.mse(f(u, x), y))(u)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_a_training_on_them_is_that_of_the_linearized_model():
    model, params0, x = _started("max-pool")
    f = ln.lazy(model.apply, params0, math.inf)
    kept = keep_activations(f, x)
    y = jax.random.normal(jax.random.key(3), (6, 3))
    settings = dict(key=jax.random.key(4), save_at=[0, 7], learning_rate=0.05, batch_size=2)
    curves = [
        ln.train(
            ln.objective(apply, ln.mse), f.start(), ln.Data(inputs, y), ln.sgd(0.9), **settings
        )
        for apply, inputs in ((f, x), (kept.apply, kept.x))
    ]
    losses = [curve.metrics["train_loss"] for curve in curves]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-10)
    assert losses[0][1] < losses[0][0]
    difference = trees.subtract(curves[0].params, curves[1].params)
    assert float(trees.norm(difference)) < 1e-10 * float(trees.norm(curves[0].params))


def test_an_example_keeps_inputs_and_derivatives_of_its_layers_and_no_weights():
    model = ln.serial(ln.Dense(300), ln.Relu(), ln.Dense(1))
    x = jax.random.normal(jax.random.key(0), (4, 50))
    kept = keep_activations(
        ln.lazy(jax.jit(model.apply), model.init(jax.random.key(1), x), math.inf), x
    )
    numbers = sum(row[0].size for row in kept.x)
    assert 50 + 300 <= numbers <= 50 + 3 * 300 + 1
    assert all(len(row) == 4 for row in kept.x)
    shared = sum(leaf.size for leaf in jax.tree.leaves(kept.apply))
    assert shared >= 300


def test_tokens_constants_and_trees_of_inputs_are_kept():
    def apply(params, x):
        return jnp.tanh(x["a"] @ params["w"]) * params["times"] + x["b"] @ params["w"] ** 2

    params0 = {"w": jax.random.normal(jax.random.key(0), (3, 2)), "times": 2}
    x = {name: jax.random.normal(jax.random.key(i), (5, 3)) for i, name in enumerate("ab")}
    f = ln.lazy(apply, params0, math.inf)
    kept = keep_activations(f, x)
    u = {"w": jnp.ones((3, 2)), "times": 2}
    np.testing.assert_allclose(kept.apply(u, kept.x), f(u, x), rtol=1e-12)
    model = zoo.transformer(8, 7, depth=1, heads=2, vocabulary=7, positions=True)
    tokens = jax.random.randint(jax.random.key(0), (4, 5), 0, 7)
    params0 = model.init(jax.random.key(1), tokens)
    f = ln.lazy(model.apply, params0, math.inf)
    kept = keep_activations(f, tokens)
    u = model.init(jax.random.key(2), tokens)
    np.testing.assert_allclose(kept.apply(u, kept.x), f(u, tokens), rtol=1e-10, atol=1e-12)


def test_what_moves_mixes_or_has_no_derivative_is_refused(unannotated):
    x = jax.random.normal(jax.random.key(0), (5, 3))
    W = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="got a finite alpha, expected alpha = inf"):
        keep_activations(ln.lazy(lambda w, x: x @ w, W, 10.0), x)
    with pytest.raises(TypeError, match="function got function, expected what `lazy` returns"):
        keep_activations(lambda w, x: x @ w, x)
    with pytest.raises(
        ValueError,
        match="apply mixes the examples of a batch: its outputs at one example depend on another",
    ):
        keep_activations(ln.lazy(lambda w, x: (x - x.mean(0, keepdims=True)) @ w, W, math.inf), x)
    with pytest.raises(ValueError, match="gave outputs of int"):
        keep_activations(ln.lazy(lambda w, x: (x @ w).argmax(-1), W, math.inf), x)
    with pytest.raises(ValueError, match="do not depend on x"):
        keep_activations(ln.lazy(lambda w, x: jnp.ones((len(x), 3)) @ w, W, math.inf), x)
