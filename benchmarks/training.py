"""Full-batch steps of standard, lazy and linearized training beside a loop of plain JAX, per image and step.

Standard training differentiates `apply(params, x)`; the lazy function at alpha = 10 evaluates the
network twice, the linearized one takes a jvp and its transpose. "plain JAX" is a jitted step of
momentum written by hand, with its arguments donated, in a loop; "flax + optax" is the same network
of linen in a `TrainState`. Expected on a CPU: standard training takes at most 1.05 times plain JAX
where a step takes more than a millisecond and 1.2 times below; linearized takes 1.45 to 1.7 times
the standard step of VGG-11, and at most 3.3 times that of any network here; at most 1.4 times
where the activations at w0 are kept and a step takes more than a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen
from flax.training.train_state import TrainState

import lazynet as ln
from benchmarks import networks
from benchmarks.measure import Case, Program
from lazynet import trees, zoo
from lazynet.models.model import Model

MOMENTUM = 0.9
RATE = 1e-3

OPTIMIZER = optax.sgd(RATE, MOMENTUM)
"""Of flax: made once, for a `TrainState` with another one is another program."""


def cases(quick: bool) -> Iterator[Case]:
    rounds, few, many = (2, 3, 20) if quick else (5, 5, 1000)
    small = partial(zoo.mlp, (32, 32), 10, b_std=0.1), networks.mlp((32, 32), 10)
    yield _case("MLP 64-32-32-10", *small, (50, 64), many, rounds)
    large = partial(zoo.mlp, (512, 512), 10, b_std=0.1), networks.mlp((512, 512), 10)
    yield _case("MLP 3072-512-512-10", *large, (100, 3072), 10 * few, rounds)
    strides = (2, 2, 1)
    cnn = (
        partial(zoo.cnn, (32, 64, 64), 10, strides=strides),
        networks.cnn((32, 64, 64), 10, strides),
    )
    yield _case("CNN 32-64-64 stride 2, 32 x 32 RGB", *cnn, (100, 32, 32, 3), few, rounds)
    for width in (1 / 8,) if quick else (1 / 8, 1 / 4, 1 / 2):
        name = f"VGG-11 of width {width:g}, 32 x 32 RGB"
        vgg = partial(zoo.vgg11, 10, width=width, b_std=0.1), networks.vgg11(10, width)
        yield _case(name, *vgg, (32, 32, 32, 3), few, rounds)


def _case(
    name: str,
    build: Callable[[], Model],
    module: linen.Module,
    shape: tuple[int, ...],
    steps: int,
    rounds: int,
) -> Case:
    def programs():
        model, data, params = start(build(), shape)
        images = shape[0] * steps
        found = {
            "lazynet, standard": trained(model.apply, params, data, steps),
            "plain JAX": Program(lambda: _by_hand(model.apply, params, data, steps), images),
            "flax + optax": Program(partial(_by_flax, module, params, data, steps), images),
        }
        for label, alpha in (
            ("lazynet, lazy at alpha = 10", 10.0),
            ("lazynet, linearized", math.inf),
        ):
            function = ln.lazy(model.apply, params, alpha)
            found[label] = trained(function, trees.zeros_like(params), data, steps)
        # Activations at w0 are computed once, and are inputs of every step.
        kept = ln.keep_activations(ln.lazy(model.apply, params, math.inf), data.x)
        inputs = data._replace(x=kept.x)
        zero = trees.zeros_like(params)
        found["lazynet, linearized, kept"] = trained(kept.apply, zero, inputs, steps)
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
    return Program(lambda: next(run()).params, len(data.y) * steps)


def _by_hand(apply, params, data, steps):
    # Copies, since the step takes over the memory of its arguments.
    params, velocity = jax.tree.map(jnp.copy, params), trees.zeros_like(params)
    for _ in range(steps):
        params, velocity = _step(apply, params, velocity, data.x, data.y)
    return params


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(apply, params, velocity, x, y):
    # The loss is `ln.mse`: a sum over outputs, half of a mean over examples.
    gradient = jax.grad(lambda w: jnp.sum((apply(w, x) - y) ** 2) / (2 * len(x)))(params)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
    return jax.tree.map(lambda w, v: w - RATE * v, params, velocity), velocity


def _by_flax(module, params, data, steps):
    # With the outputs of the other programs at the start.
    weights = networks.flax_weights(params, W_std=2**0.5, b_std=0.1)
    state = TrainState.create(apply_fn=module.apply, params=weights["params"], tx=OPTIMIZER)
    for _ in range(steps):
        state = _flax_step(state, data.x, data.y)
    return state.params


@partial(jax.jit, donate_argnums=0)
def _flax_step(state, x, y):
    def loss(params):
        outputs = state.apply_fn({"params": params}, x)
        return jnp.sum((outputs - y) ** 2) / (2 * len(x))

    return state.apply_gradients(grads=jax.grad(loss)(state.params))
