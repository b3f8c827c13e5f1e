"""Overhead of logging diagnostics during training: what one call costs in steps and epochs of the training itself.

    python benchmarks/diagnostics.py [--networks MLP CNN] [--examples 64]

Training is `train` with momentum, batches of 50 from 1,000 examples: an epoch is 20 steps. Diagnostics are evaluated on
`--examples` of them, at weights after a few steps. Times are the smallest of three after compilation; all of them run
in one process, so that a slow machine slows both columns. Logged once an epoch, a diagnostic costs its last column.
"""

from __future__ import annotations

import argparse
import math
import time

import jax
import jax.numpy as jnp

from lazynet import diagnostics, spectra, zoo
from lazynet.empirical import empirical_ntk, estimate_max_learning_rate, ntk_vector_product
from lazynet.losses import mse, objective
from lazynet.records import Data
from lazynet.train import evaluate, sgd, snapshots

NETWORKS = {
    "MLP": (zoo.mlp((512, 512), 10, b_std=0.1), (1000, 256)),
    "CNN": (zoo.cnn((32, 64, 64), 10, strides=(2, 2, 1)), (1000, 32, 32, 3)),
}
BATCH = 50


def seconds(run):
    """Smallest time of three after one call that compiles."""
    jax.block_until_ready(run())
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(run())
        best = min(best, time.perf_counter() - start)
    return best


def steps(goal, params, data, count):
    """Parameters after some steps of training."""
    settings = dict(key=jax.random.key(1), save_at=[count], learning_rate=1e-2, batch_size=BATCH)
    return next(snapshots(goal, params, data, sgd(0.9), **settings)).params


def calls(model, params0, params, data, part):
    """{name: a call of each diagnostic}."""
    x, key = part.x, jax.random.key(2)
    kernel0, kernel = (empirical_ntk(model.apply, w, x, outputs="trace") for w in (params0, params))
    product, shape = ntk_vector_product(model.apply, params, x), part.y.shape
    return {
        "evaluate, all examples": lambda: evaluate(objective(model.apply, mse), params, data),
        "param_drift": lambda: diagnostics.param_drift(params, params0),
        "layer_drift": lambda: diagnostics.layer_drift(params, params0),
        "activation_stability": lambda: diagnostics.activation_stability(model, params, params0, x),
        "linearization_gap": lambda: diagnostics.linearization_gap(model.apply, params, params0, x),
        "ntk_change, 20 probes": lambda: diagnostics.ntk_change(model.apply, params, params0, x, key=key),
        "ntk_change, 4 probes": lambda: diagnostics.ntk_change(model.apply, params, params0, x, key=key, probes=4),
        "jacobian_norm": lambda: diagnostics.jacobian_norm(model.apply, params, x, key=key),
        "hessian_norm": lambda: diagnostics.hessian_norm(model.apply, params, x, key=key),
        "kappa": lambda: diagnostics.kappa(model.apply, params, part, key=key),
        "kappa, 5 rounds from 1 start": lambda: diagnostics.kappa(
            model.apply, params, part, key=key, iterations=5, restarts=1
        ),
        "estimate_max_learning_rate": lambda: estimate_max_learning_rate(model.apply, params, x, key=key),
        "empirical_ntk, trace": lambda: empirical_ntk(model.apply, params, x, outputs="trace"),
        "empirical_ntk, sum": lambda: empirical_ntk(model.apply, params, x, outputs="sum"),
        "kernel_distance, kernels given": lambda: diagnostics.kernel_distance(kernel, kernel0),
        "kernel_cosine_distance": lambda: diagnostics.kernel_cosine_distance(kernel, kernel0),
        "cka": lambda: diagnostics.cka(kernel, kernel0),
        "target_alignment": lambda: diagnostics.target_alignment(kernel, part.y),
        "kernel_spectrum": lambda: diagnostics.kernel_spectrum(kernel, part.y).values,
        "top_eigenvalues, 1": lambda: spectra.top_eigenvalues(product, 1, key=key, shape=shape, steps=15),
        "trace, 12 probes": lambda: spectra.trace(product, key=key, shape=shape, probes=12),
        "tangent_at, its outputs": lambda: diagnostics.tangent_at(model.apply, params).apply(params0, x),
    }


def report(name, examples):
    """Prints the table of one network."""
    model, shape = NETWORKS[name]
    x = jax.random.normal(jax.random.key(0), shape)
    data = Data(x, jnp.eye(10)[jnp.arange(len(x)) % 10] - 0.1)
    params0 = jax.jit(model.init)(jax.random.key(1), x[:1])
    goal, epoch = objective(model.apply, mse), len(x) // BATCH
    step = seconds(lambda: steps(goal, params0, data, epoch)) / epoch
    print(f"\n{name} {shape[1:]}: a step of {BATCH} examples takes {1e3 * step:.2f} ms, an epoch {epoch} steps")
    print(f"{f'on {examples} examples':34}{'ms':>10}{'steps':>10}{'of an epoch':>14}")
    part = Data(data.x[:examples], data.y[:examples])
    for diagnostic, call in calls(model, params0, steps(goal, params0, data, 5), data, part).items():
        cost = seconds(call)
        print(f"{diagnostic:34}{1e3 * cost:10.2f}{cost / step:10.1f}{cost / step / epoch:14.1%}", flush=True)


def main():
    """Prints a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--examples", type=int, default=64, help="examples that the diagnostics see")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for name in options.networks:
        report(name, options.examples)


if __name__ == "__main__":
    main()
