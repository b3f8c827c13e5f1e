"""Full-batch steps of standard, lazy and linearized training beside a loop of plain JAX, per image and step.

Standard training differentiates `apply(params, x)`; the lazy function at alpha = 10 evaluates the
network twice, the linearized one takes a jvp and its transpose. "plain JAX" is a jitted step of
momentum written by hand, with its arguments donated, in a loop. Expected on a CPU: linearized takes
1.45 to 1.7 times the standard step of VGG-11, and at most 3.3 times that of any network here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp

import lazynet as ln
from benchmarks.measure import Case, Program
from lazynet import trees, zoo
from lazynet.models.model import Model

MOMENTUM = 0.9
RATE = 1e-3


def cases(quick: bool) -> Iterator[Case]:
    rounds, few, many = (2, 3, 20) if quick else (5, 5, 100)
    yield _case("MLP 64-32-32-10", lambda: zoo.mlp((32, 32), 10, b_std=0.1), (50, 64), many, rounds)
    yield _case(
        "MLP 3072-512-512-10", lambda: zoo.mlp((512, 512), 10, b_std=0.1), (100, 3072), many, rounds
    )
    cnn = "CNN 32-64-64 stride 2, 32 x 32 RGB"
    yield _case(
        cnn, lambda: zoo.cnn((32, 64, 64), 10, strides=(2, 2, 1)), (100, 32, 32, 3), few, rounds
    )
    for width in (1 / 8,) if quick else (1 / 8, 1 / 4, 1 / 2):
        name = f"VGG-11 of width {width:g}, 32 x 32 RGB"
        yield _case(name, partial(zoo.vgg11, 10, width=width), (32, 32, 32, 3), few, rounds)


def _case(
    name: str, build: Callable[[], Model], shape: tuple[int, ...], steps: int, rounds: int
) -> Case:
    def programs():
        model, data, params = start(build(), shape)
        by_hand = Program(lambda: _by_hand(model.apply, params, data, steps), shape[0] * steps)
        found = {
            "lazynet, standard": trained(model.apply, params, data, steps),
            "plain JAX": by_hand,
        }
        for label, alpha in (
            ("lazynet, lazy at alpha = 10", 10.0),
            ("lazynet, linearized", math.inf),
        ):
            found[label] = trained(
                ln.lazy(model.apply, params, alpha), trees.zeros_like(params), data, steps
            )
        return found

    return Case(f"{name}, batch {shape[0]}, {steps} steps", programs, "image", rounds)


def start(model: Model, shape: tuple[int, ...]):
    """A network, data of that shape without labels, and initial weights."""
    data = ln.Data(
        jax.random.normal(jax.random.key(1), shape, jnp.float32), jnp.zeros((shape[0], 10))
    )
    return model, data, model.init(jax.random.key(0), data.x)


def trained(apply, params, data, steps: int, sharding=None) -> Program:
    """Full-batch steps with momentum, by `snapshots`."""
    goal = ln.objective(apply, ln.mse)
    optimizer = ln.sgd(MOMENTUM)
    settings = dict(key=jax.random.key(0), save_at=[steps], learning_rate=RATE, sharding=sharding)
    run = partial(ln.snapshots, goal, params, data, optimizer, **settings)
    return Program(lambda: next(run()).params, len(data.x) * steps)


def _by_hand(apply, params, data, steps):
    params, velocity = jax.tree.map(jnp.copy, params), trees.zeros_like(params)
    for _ in range(steps):
        params, velocity = _step(apply, params, velocity, data.x, data.y)
    return params


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(apply, params, velocity, x, y):
    gradient = jax.grad(lambda w: jnp.sum((apply(w, x) - y) ** 2) / (2 * len(x)))(params)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
    return jax.tree.map(lambda w, v: w - RATE * v, params, velocity), velocity
