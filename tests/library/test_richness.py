"""Width, output scale and alpha are one axis, richness: what the page on conventions says of mean field and muP."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazynet as ln

WIDTH = 64


def _apply(scale, params, x):
    return scale * jnp.tanh(x @ params["a"]) @ params["b"]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.extended
def test_an_output_scale_below_the_ntk_one_is_alpha_below_one(gamma):
    """Training `m^(-1/2 - gamma/2) sum_j`, centered, is lazy training at alpha = m^(-gamma/2) of the NTK-scaled sum."""
    keys = jax.random.split(jax.random.key(0), 3)
    params0 = {
        "a": jax.random.normal(keys[0], (5, WIDTH)),
        "b": jax.random.normal(keys[1], (WIDTH, 1)),
    }
    data = ln.Data(jax.random.normal(keys[2], (8, 5)), jnp.ones((8, 1)))
    alpha = WIDTH ** (-gamma / 2)
    settings = dict(key=keys[0], save_at=[0, 30])

    scaled = jax.tree_util.Partial(_apply, jnp.asarray(WIDTH ** (-0.5 - gamma / 2)))
    goal = ln.objective(ln.center(scaled, params0), ln.mse)
    rich = ln.train(goal, params0, data, ln.sgd(), learning_rate=0.1 / alpha**2, **settings)

    unscaled = jax.tree_util.Partial(_apply, jnp.asarray(WIDTH**-0.5))
    lazy = ln.lazy(unscaled, params0, alpha)
    displaced = ln.train(
        ln.objective(lazy, ln.mse), None, data, ln.sgd(), learning_rate=0.1, **settings
    )

    losses = rich.metrics["train_loss"]
    assert losses[1] < 0.9 * losses[0]
    np.testing.assert_allclose(displaced.metrics["train_loss"], losses, rtol=1e-10)
    weights = ln.weights(lazy, displaced.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), weights, rich.params
    )
