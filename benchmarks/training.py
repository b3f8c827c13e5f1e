"""Steps per second of linearized and lazy training against plain training of the same network.

    python benchmarks/training.py [--seconds 3]

Plain training differentiates `apply(params, x)` itself; the lazy function evaluates the network twice, the linearized
one takes a jvp and its transpose. The variants take turns, so that a drifting machine slows all of them; the ratio of
medians is what to compare. Expected: linearized at least 0.3 of plain.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import jax
import jax.numpy as jnp

import lazynet as ln
from lazynet import trees, zoo

NETWORKS = {
    "MLP 64-32-32-10, batch 50": (zoo.mlp((32, 32), 10, b_std=0.1), (50, 64)),
    "MLP 3072-512-512-10, batch 100": (zoo.mlp((512, 512), 10, b_std=0.1), (100, 3072)),
    "CNN 32-64-64 stride 2, batch 100": (zoo.cnn((32, 64, 64), 10, strides=(2, 2, 1)), (100, 32, 32, 3)),
    "VGG-11 / 8, batch 32": (zoo.vgg11(10, width=1 / 8), (32, 32, 32, 3)),
}


def steps_per_second(goal, params, data, steps):
    """One timed training of `steps` full-batch steps, after the step has been compiled."""
    settings = dict(key=jax.random.key(0), learning_rate=1e-3)
    start = time.perf_counter()
    for state in ln.snapshots(goal, params, data, ln.sgd(0.9), save_at=[steps], **settings):
        jax.block_until_ready(state.params)
    return steps / (time.perf_counter() - start)


def variants(model, params):
    """Objectives and starts of plain, lazy and linearized training."""
    zeros = trees.zeros_like(params)
    return {
        "plain": (ln.objective(model.apply, ln.mse), params),
        "lazy, alpha = 10": (ln.objective(ln.lazy(model.apply, params, 10.0), ln.mse), zeros),
        "linearized": (ln.objective(ln.lazy(model.apply, params, math.inf), ln.mse), zeros),
    }


def main():
    """Prints a table of steps per second and ratios to plain training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each network and variant")
    seconds = parser.parse_args().seconds
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind} x {jax.device_count()}")
    print(f"{'network':36}{'variant':20}{'steps/s':>10}{'of plain':>10}")
    for name, (model, shape) in NETWORKS.items():
        data = ln.Data(jax.random.normal(jax.random.key(1), shape), jnp.zeros((shape[0], 10)))
        runs = variants(model, model.init(jax.random.key(0), data.x))
        rates = {variant: [] for variant in runs}
        steps = {}
        for variant, run in runs.items():
            steps_per_second(*run, data, 2)
            steps[variant] = max(2, int(steps_per_second(*run, data, 5) * seconds / 5))
        for _ in range(5):
            for variant, run in runs.items():
                rates[variant].append(steps_per_second(*run, data, steps[variant]))
        plain = statistics.median(rates["plain"])
        for variant, values in rates.items():
            median = statistics.median(values)
            print(f"{name:36}{variant:20}{median:10.1f}{median / plain:10.2f}")


if __name__ == "__main__":
    main()
