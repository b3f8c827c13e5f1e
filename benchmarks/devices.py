"""One device against two in data-parallel training of VGG-11, per image: on a CPU two virtual devices.

XLA gives every virtual device the same threads, so that two are compared with what the cores can
do: with at least two idle cores, two lose at most 10 % of wall time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import jax

import lazynet as ln
from benchmarks.measure import Case, Program
from benchmarks.training import start, trained
from lazynet import zoo

ENVIRONMENT = {
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
}

WIDTH = 1 / 8
BATCH = 32


def cases(quick: bool) -> Iterator[Case]:
    steps, rounds = (3, 2) if quick else (10, 5)
    yield Case(
        f"VGG-11 of width {WIDTH:g}, batch {BATCH}, {steps} steps",
        lambda: _programs(steps),
        "image",
        rounds,
    )


def _programs(steps) -> dict[str, Program]:
    if jax.device_count() < 2:
        raise RuntimeError(
            f"{jax.device_count()} {jax.default_backend()} device, expected two to compare with one."
        )
    model, data, params = start(zoo.vgg11(10, width=WIDTH), (BATCH, 32, 32, 3))
    return {
        f"{d} device{'s' * (d > 1)}": trained(
            model.apply, params, data, steps, sharding=ln.data_parallel(jax.devices()[:d])
        )
        for d in (1, 2)
    }
