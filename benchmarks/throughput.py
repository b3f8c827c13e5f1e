"""Images per second of standard, lazy and linearized training of VGG-11, and of one device against two.

    python benchmarks/throughput.py [--seconds 5] [--batch 32] [--widths 0.125 0.25 0.5]

Standard training differentiates `apply(params, x)`; the lazy function at alpha = 10 evaluates the network twice, the
linearized one takes a jvp and its transpose. Expected on a CPU: linearized over standard .69, .63 and .59 at width
1/8, 1/4 and 1/2. The variants take turns, so that a drifting machine slows all of them; medians are compared, and
the spread is (max - min) / median of the turns.

The second table trains the smallest width on one and on two virtual devices of a CPU (or the first two devices of
another platform), in the same process, taking turns. XLA gives every virtual device the same threads, so that two
are compared with what the cores can do: with at least two idle cores, two lose at most 10 %.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"

import jax
import jax.numpy as jnp

import lazynet as ln
from lazynet import zoo

TURNS = 5


def seconds_of(run, steps):
    """Time of one training of `steps` full-batch steps."""
    goal, params, data, sharding = run
    settings = dict(key=jax.random.key(0), learning_rate=1e-3, sharding=sharding)
    start = time.perf_counter()
    for state in ln.snapshots(goal, params, data, ln.sgd(0.9), save_at=[steps], **settings):
        jax.block_until_ready(state.params)
    return time.perf_counter() - start


def rates(runs, batch, seconds):
    """Images per second of every run, one number for each turn."""
    steps = {}
    for name, run in runs.items():
        seconds_of(run, 1)
        steps[name] = max(1, round(seconds / TURNS / seconds_of(run, 1)))
    found = {name: [] for name in runs}
    for _ in range(TURNS):
        for name, run in runs.items():
            found[name].append(batch * steps[name] / seconds_of(run, steps[name]))
    return found


def show(label, found):
    """One line for each run, with its ratio to the first."""
    reference = statistics.median(next(iter(found.values())))
    for name, values in found.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        print(f"{label:14}{name:22}{median:12.1f}{median / reference:8.2f}{spread:8.0%}", flush=True)


def variants(width, batch):
    """Standard, lazy and linearized training of VGG-11 of one width."""
    model = zoo.vgg11(10, width=width)
    data = ln.Data(jax.random.normal(jax.random.key(1), (batch, 32, 32, 3), jnp.float32), jnp.zeros((batch, 10)))
    params = model.init(jax.random.key(0), data.x)
    lazy = {name: ln.lazy(model.apply, params, alpha) for name, alpha in (("lazy", 10.0), ("linearized", math.inf))}
    runs = {"standard": (ln.objective(model.apply, ln.mse), params, data, None)}
    return runs | {name: (ln.objective(function, ln.mse), None, data, None) for name, function in lazy.items()}


def main():
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each network and variant")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--widths", type=float, nargs="+", default=[1 / 8, 1 / 4, 1 / 2], help="of VGG-11")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind} x {jax.device_count()}, batch {options.batch}")
    print(f"{'':14}{'training':22}{'images/s':>12}{'ratio':>8}{'spread':>8}")
    for width in options.widths:
        show(f"width {width:g}", rates(variants(width, options.batch), options.batch, options.seconds))
    if jax.device_count() < 2:
        return
    goal, params, data, _ = variants(options.widths[0], options.batch)["standard"]
    runs = {f"{d} device(s)": (goal, params, data, ln.data_parallel(jax.devices()[:d])) for d in (1, 2)}
    show(f"width {options.widths[0]:g}", rates(runs, options.batch, options.seconds))


if __name__ == "__main__":
    main()
