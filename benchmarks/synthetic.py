"""The engine of the synthetic figures beside three ways that one would write first, per step of one scale.

Two-layer students of a ReLU teacher. Figure 1 (c): full batches of 1,000, one scale after the
other, beside `snapshots` (a host loop over one jitted step), `jax.grad` of the loss in a
`fori_loop` and gradients by hand in NumPy; all of them train weights w, where the engine trains
displacements u. Figure 2 (b): all 17 scales share fresh batches of 200, beside one scale at a time
by the engine, by `jax.grad` and by NumPy; NumPy gets the batches for nothing. All of them return
the same weights or losses, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lazynet as ln
from benchmarks.measure import Case, Program
from experiments import loss_vs_scale, population_sgd
from experiments.shared.students import Student, descend, on_sphere, relu_net

TAUS = (0.1, 1.0)


def cases(quick: bool) -> Iterator[Case]:
    steps, rounds = (60, 2) if quick else (1000, 3)
    config = loss_vs_scale.Config()
    sizes = f"m = {config.width}, d = {config.d}"
    name = f"figure 1 (c): {sizes}, n = {config.n:,}, 2 scales, {steps} steps"
    yield Case(
        name, partial(full_batch, config, TAUS, steps), "step and scale", rounds, np.asarray, 1e-2
    )
    fresh = population_sgd.Config(steps=steps, last=steps // 4)
    name = f"figure 2 (b): {sizes}, batches of {fresh.batch_size}, {len(fresh.taus)} scales, {steps} steps"
    yield Case(name, partial(fresh_batches, fresh), "step and scale", rounds, np.asarray, 1e-2)


def full_batch(config: loss_vs_scale.Config, taus, steps) -> dict[str, Program]:
    """Programs that return hidden and output weights over tau of every scale, `[s, m, d + 1]`."""
    weights0, (x, y, *_) = loss_vs_scale.draw_trial(config, 0)
    alpha = np.square(taus)
    tau = np.reshape(taus, (-1, 1, 1))
    # Of the weights w; the engine's rate of u is alpha = tau^2 times that.
    rates = np.minimum(10.0, 0.1 / alpha)
    starts = [jax.tree.map(lambda leaf, t=t: t * leaf, tuple(weights0)) for t in taus]
    batch = ln.Data(x.T, y.T)

    def engine():
        student = Student(
            weights0, jnp.asarray(alpha), jnp.asarray(rates * alpha), jnp.zeros(len(taus))
        )
        u = jax.tree.map(lambda leaf: jnp.zeros((len(taus), *leaf.shape)), weights0)
        moved = descend(student, u, x, y, steps)
        hidden, out = (np.asarray(leaf)[None] for leaf in weights0)
        # Weights over tau: w = tau v, and v = v0 + u / alpha.
        return _stacked(
            hidden + moved.hidden / alpha[:, None, None], out + moved.out / alpha[:, None]
        )

    def one_at_a_time(train):
        hidden, out = zip(
            *(train(w, float(rate)) for w, rate in zip(starts, rates, strict=True)), strict=True
        )
        return _stacked(np.stack(hidden), np.stack(out)) / tau

    host = ln.Data(*map(np.asarray, batch))
    ways = {
        "lazynet, snapshots": lambda w, rate: _by_snapshots(w, batch, rate, steps),
        "plain JAX": lambda w, rate: _by_autodiff(w, batch, rate, steps),
        "NumPy": lambda w, rate: _by_numpy(w, [host] * steps, rate, rate)[0],
    }
    entries = steps * len(taus)
    programs = {
        name: Program(partial(one_at_a_time, train), entries) for name, train in ways.items()
    }
    return {"lazynet": Program(engine, entries), **programs}


def fresh_batches(config: population_sgd.Config) -> dict[str, Program]:
    """Programs that return the mean loss of the last batches at every scale, `[s]`."""
    weights0, teacher, key = population_sgd.draw_trial(config, 0)
    size = [min(0.25 / tau**2, 25.0) * config.width for tau in config.taus]
    starts = [jax.tree.map(lambda leaf, t=t: t * leaf, tuple(weights0)) for t in config.taus]
    batches = [_host_batch(teacher, key, i, config.batch_size) for i in range(config.steps)]

    def engine_one_at_a_time():
        # The same trial with one scale, which draws the same batches from the same key.
        alone = [config.__class__(**vars(config) | {"taus": (tau,)}) for tau in config.taus]
        return np.concatenate([population_sgd.train(each, 0) for each in alone])

    def by_autodiff():
        # Losses count from the step at which the average begins.
        first = config.steps - config.last
        settings = (teacher, key, first, config.steps, config.batch_size)
        return (
            np.stack(
                [_fresh_autodiff(w, rate, *settings) for w, rate in zip(starts, size, strict=True)]
            )
            / config.last
        )

    def by_numpy():
        trained = [
            _by_numpy(w, batches, config.d * r, r, config.width)
            for w, r in zip(starts, size, strict=True)
        ]
        return np.array([np.mean(losses[-config.last :]) for _, losses in trained])

    runs = {
        "lazynet": lambda: population_sgd.train(config, 0),
        "lazynet, one scale at a time": engine_one_at_a_time,
        "plain JAX": by_autodiff,
        "NumPy": by_numpy,
    }
    entries = config.steps * len(config.taus)
    return {name: Program(run, entries) for name, run in runs.items()}


def _network(weights, x, divisor=1.0):
    hidden, out = weights
    return jnp.maximum(x @ hidden.T, 0) @ out / divisor


def _column(weights, x):
    return _network(weights, x)[:, None]


_GOAL = ln.objective(_column, ln.mse)
_SGD = ln.sgd()


def _by_snapshots(weights, batch, rate, steps):
    settings = dict(key=jax.random.key(0), save_at=[steps], learning_rate=rate)
    return next(ln.snapshots(_GOAL, weights, batch, _SGD, **settings)).params


@jax.jit
def _by_autodiff(weights, batch, rate, steps):
    gradient = jax.grad(lambda w: jnp.mean((_network(w, batch.x) - batch.y[:, 0]) ** 2) / 2)
    return lax.fori_loop(
        0, steps, lambda _, w: jax.tree.map(lambda a, g: a - rate * g, w, gradient(w)), weights
    )


@partial(jax.jit, static_argnums=6)
def _fresh_autodiff(weights, rate, teacher, key, first, steps, batch_size):
    """Sum of the losses of the batches from `first` on; hidden weights move d times faster."""
    width, d = weights[0].shape

    def body(i, carry):
        (hidden, out), total = carry
        x = on_sphere(jax.random.fold_in(key, i), batch_size, d)
        y = relu_net(teacher, x)
        loss = lambda w: jnp.mean((_network(w, x.T, width) - y) ** 2) / 2  # noqa: E731
        now, (g, h) = jax.value_and_grad(loss)((hidden, out))
        return (hidden - d * rate * g, out - rate * h), total + jnp.where(i >= first, now, 0)

    return lax.fori_loop(0, steps, body, (weights, jnp.zeros(())))[1]


def _by_numpy(weights, batches, hidden_rate, out_rate, divisor=1.0):
    """Weights after one step on each batch, and the loss of each batch before its step."""
    hidden, out = (np.array(leaf) for leaf in weights)
    losses = []
    for x, y in batches:
        active = np.maximum(x @ hidden.T, 0)
        residual = active @ out / divisor - y[:, 0]
        losses.append(np.mean(residual**2) / 2)
        # The gradient in the outputs, through the output factor 1/m.
        pull = residual / (divisor * len(x))
        # Of the hidden units, with the output weights from before their step.
        slope = (active > 0) * pull[:, None] * out
        out -= x.dtype.type(out_rate) * (active.T @ pull)
        hidden -= x.dtype.type(hidden_rate) * (slope.T @ x)
    return (hidden, out), losses


def _host_batch(teacher, key, i, batch_size):
    x = on_sphere(jax.random.fold_in(key, i), batch_size, teacher.hidden.shape[1])
    return np.asarray(x.T), np.asarray(relu_net(teacher, x))[:, None]


def _stacked(hidden, out):
    return np.concatenate([np.asarray(hidden), np.asarray(out)[:, :, None]], axis=2)
