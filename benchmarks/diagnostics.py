"""Diagnostics of training, in steps of the training itself: what logging them costs.

The ratios of these tables are to one step of `train` with momentum on 50 examples; an epoch of the
1,000 examples is 20 steps. Diagnostics are evaluated on 64 of them, at the weights after 5 steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.measure import Case, Program
from lazynet import diagnostics, spectra, zoo
from lazynet.kernels.empirical import empirical_ntk, estimate_max_learning_rate, ntk_vector_product
from lazynet.losses import mse, objective
from lazynet.records import Data
from lazynet.training.loop import evaluate, snapshots
from lazynet.training.optimizers import sgd

NETWORKS = {
    "MLP 256-512-512-10": (lambda: zoo.mlp((512, 512), 10, b_std=0.1), (256,)),
    "CNN 32-64-64 stride 2, 32 x 32 RGB": (
        lambda: zoo.cnn((32, 64, 64), 10, strides=(2, 2, 1)),
        (32, 32, 3),
    ),
}
BATCH = 50
EPOCH = 20
EXAMPLES = 64


def cases(quick: bool) -> Iterator[Case]:
    for name in NETWORKS:
        yield Case(name, partial(_programs, name), "call", 1 if quick else 3)


def _programs(name) -> dict[str, Program]:
    build, shape = NETWORKS[name]
    model = build()
    x = jax.random.normal(jax.random.key(0), (BATCH * EPOCH, *shape))
    data = Data(x, jnp.eye(10)[jnp.arange(len(x)) % 10] - 0.1)
    params0 = jax.jit(model.init)(jax.random.key(1), x[:1])
    part = Data(data.x[:EXAMPLES], data.y[:EXAMPLES])
    # At weights that have moved, since most diagnostics compare them with the first ones.
    calls = _calls(model, params0, _trained(model, params0, data, 5), data, part)
    return {
        # The first program, per step: ratios of the others are in steps.
        "a step of training": Program(lambda: _trained(model, params0, data, EPOCH), EPOCH),
        **{diagnostic: Program(call) for diagnostic, call in calls.items()},
    }


def _trained(model, params, data, steps):
    settings = dict(key=jax.random.key(1), save_at=[steps], learning_rate=1e-2, batch_size=BATCH)
    return next(snapshots(objective(model.apply, mse), params, data, sgd(0.9), **settings)).params


def _calls(model, params0, params, data, part):
    """{name: a call of each diagnostic}."""
    x = part.x
    key = jax.random.key(2)
    # Computed beforehand: what compares kernels is timed without them.
    kernel0, kernel = (empirical_ntk(model.apply, w, x, outputs="trace") for w in (params0, params))
    product = ntk_vector_product(model.apply, params, x)
    shape = part.y.shape
    short = dict(key=key, iterations=5, restarts=1)
    return {
        "evaluate, all examples": lambda: evaluate(objective(model.apply, mse), params, data),
        "param_drift": lambda: diagnostics.param_drift(params, params0),
        "layer_drift": lambda: diagnostics.layer_drift(params, params0),
        "activation_stability": lambda: diagnostics.activation_stability(model, params, params0, x),
        "linearization_gap": lambda: diagnostics.linearization_gap(model.apply, params, params0, x),
        "ntk_change, 20 probes": lambda: diagnostics.ntk_change(
            model.apply, params, params0, x, key=key
        ),
        "ntk_change, 4 probes": lambda: diagnostics.ntk_change(
            model.apply, params, params0, x, key=key, probes=4
        ),
        "jacobian_norm": lambda: diagnostics.jacobian_norm(model.apply, params, x, key=key),
        "hessian_norm": lambda: diagnostics.hessian_norm(model.apply, params, x, key=key),
        "kappa": lambda: diagnostics.kappa(model.apply, params, part, key=key),
        "kappa, 5 rounds from 1 start": lambda: diagnostics.kappa(
            model.apply, params, part, **short
        ),
        "estimate_max_learning_rate": lambda: estimate_max_learning_rate(
            model.apply, params, x, key=key
        ),
        "empirical_ntk, trace": lambda: empirical_ntk(model.apply, params, x, outputs="trace"),
        "empirical_ntk, sum": lambda: empirical_ntk(model.apply, params, x, outputs="sum"),
        "kernel_distance, kernels given": lambda: diagnostics.kernel_distance(kernel, kernel0),
        "kernel_cosine_distance": lambda: diagnostics.kernel_cosine_distance(kernel, kernel0),
        "cka": lambda: diagnostics.cka(kernel, kernel0),
        "target_alignment": lambda: diagnostics.target_alignment(kernel, part.y),
        "kernel_spectrum": lambda: diagnostics.kernel_spectrum(kernel, part.y).values,
        "top_eigenvalues, 1": lambda: spectra.top_eigenvalues(
            product, 1, key=key, shape=shape, steps=15
        ),
        "trace, 12 probes": lambda: spectra.trace(product, key=key, shape=shape, probes=12),
        "tangent_at, its outputs": lambda: diagnostics.tangent_at(model.apply, params).apply(
            params0, x
        ),
    }
