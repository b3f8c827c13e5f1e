"""Training: a host loop over one compiled step, with records at chosen steps.

The loop stays on the host because a convolution inside `lax.scan` is 11 to 100 times slower on CPU. The objective
(with its initialization and alpha) and the learning rate are arguments of the step, so a sweep over them compiles
once; make the optimizer and the augmentation once as well, or use `sgd`, which compares by value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from lazynet import guards, trees
from lazynet.datasets import check_data
from lazynet.lazy import is_lazy_function
from lazynet.losses import Objective, accuracy, cross_entropy
from lazynet.optimizers import SGD, check_optimizer, sgd
from lazynet.records import Data, Trajectory
from lazynet.sharding import first_shards, place, replicated
from lazynet.steps import Augment, Plan, Source, advance, check_plan, epoch_order, placed_data
from lazynet.typing import Array, Params

__all__ = ["SGD", "TrainState", "evaluate", "log_spaced", "sgd", "snapshots", "train"]

Schedule = float | Callable[[int], Any]

WEIGHTS = "training starts from finite weights, look where these were made"

AUGMENTATION = np.uint32(2**32 - 1)
"""Number of the stream of random numbers that augments batches; the lower ones are epochs."""


class TrainState(NamedTuple):
    """Everything that the next step depends on, besides the key: batches are a function of key and step.

    Attributes:
        step: Number of steps done.
        time: Cumulated learning rate over (1 - momentum).
        params: Weights, or the displacement u of a lazy function.
        opt_state: State of the optimizer.

    Example:
        >>> TrainState(0, 0.0, {}, ()).step
        0
    """

    step: int
    time: float
    params: Params
    opt_state: Any


def train(
    objective: Objective,
    params: Params | None,
    data: Data,
    optimizer: SGD | optax.GradientTransformation,
    *,
    key: Array,
    save_at: Sequence[int],
    learning_rate: Schedule,
    batch_size: int | None = None,
    microbatches: int = 1,
    augment: Augment | None = None,
    sharding: NamedSharding | None = None,
    test: Data | None = None,
    measure: Callable[[Params], dict[str, Any]] | None = None,
    on_save: Callable[[TrainState, Trajectory], None] | None = None,
    resume: tuple[TrainState, Trajectory] | None = None,
) -> Trajectory:
    """Training curve of `w <- w + learning_rate * update(grad R(w))`, recorded at the steps `save_at`.

    Metrics are `train_loss`, `train_accuracy`, and with `test` also `test_loss`, `test_accuracy`, on whole data sets
    and without the objective's weight. Training stops at the first recorded non-finite train loss, which is a result
    (`diverged_at`) and not an exception.

    Args:
        objective: From `objective(apply, loss)`.
        params: Start; None for a lazy function, whose displacement u starts at zero.
        data: Training set.
        optimizer: `sgd(...)`, or any optax transformation made with a learning rate of one.
        key: Draws the batches: epoch e is the permutation of `fold_in(key, e)`, its incomplete last batch is dropped.
        save_at: Strictly increasing steps to record, 0 included if wanted; the last one ends the training.
        learning_rate: A number, or a function of the step (an optax schedule).
        batch_size: Examples per step; None for full batch.
        microbatches: Parts of a batch whose gradients are averaged one after the other, for less memory.
        augment: `augment(key, x) -> x`, applied to every batch and to no evaluation; its key is a function of `key`
            and the step. For instance `datasets.crop_and_flip`.
        sharding: From `data_parallel()`: divides every batch over devices and processes. Each device holds all
            examples, or its part of a full batch; what is returned is on this process's first device.
        test: Test set.
        measure: `measure(params) -> {name: number}`, recorded next to the losses.
        on_save: Called with the state and the curve so far after every record, for progress bars and checkpoints.
        resume: The last pair that `on_save` got: goes on from there, bit-identically.

    Returns:
        The curve, with the final parameters in `params`.

    Raises:
        ValueError: For inconsistent data, batch size, steps or targets; if a batch does not divide evenly over
            microbatches and devices; if `params` is the initialization of a lazy
            function; if the optimizer is not covariant and the function is lazy.

    Example:
        >>> from lazynet import mse, objective
        >>> data = Data(jnp.eye(2), jnp.ones((2, 1)))
        >>> goal = objective(lambda w, x: x @ w, mse)
        >>> settings = dict(key=jax.random.key(0), save_at=[0, 50], learning_rate=1.0)
        >>> curve = train(goal, jnp.zeros((2, 1)), data, sgd(), **settings)
        >>> [round(float(loss), 6) for loss in curve.metrics["train_loss"]]
        [0.5, 0.0]
    """
    done, rows = (None, []) if resume is None else (resume[0], _rows(resume[1]))
    if test is not None:
        check_data(test, "test")
    remaining = [step for step in _checked_steps(save_at) if done is None or step > done.step]
    states = snapshots(
        objective,
        params,
        data,
        optimizer,
        key=key,
        save_at=remaining,
        learning_rate=learning_rate,
        batch_size=batch_size,
        microbatches=microbatches,
        augment=augment,
        sharding=sharding,
        resume=done,
    )
    parts = {"train": data} | ({} if test is None else {"test": test})
    curve = Trajectory(*_columns(rows), None if done is None else done.params, None)
    for state in states:
        rows.append(
            {"step": state.step, "time": state.time, **_record(objective, state.params, parts, measure, sharding)}
        )
        finite = bool(np.isfinite(rows[-1]["train_loss"]))
        curve = Trajectory(*_columns(rows), state.params, None if finite else state.step)
        if on_save is not None:
            on_save(state, curve)
        if not finite:
            break
    return curve


def snapshots(
    objective: Objective,
    params: Params | None,
    data: Data,
    optimizer: SGD | optax.GradientTransformation,
    *,
    key: Array,
    save_at: Sequence[int],
    learning_rate: Schedule,
    batch_size: int | None = None,
    microbatches: int = 1,
    augment: Augment | None = None,
    sharding: NamedSharding | None = None,
    resume: TrainState | None = None,
) -> Iterator[TrainState]:
    """States of training at the steps `save_at`, one by one: `train` without its records.

    Arguments as in `train`. The yielded arrays are copies, safe to keep.

    Example:
        >>> from lazynet import mse, objective
        >>> goal = objective(lambda w, x: x @ w, mse)
        >>> data = Data(jnp.eye(2), jnp.ones((2, 1)))
        >>> settings = dict(key=jax.random.key(0), save_at=[0, 2], learning_rate=1.0)
        >>> [state.step for state in snapshots(goal, jnp.zeros((2, 1)), data, sgd(), **settings)]
        [0, 2]
    """
    steps = _checked_steps(save_at)
    plan = Plan(optimizer, _checked_batch_size(batch_size, data), microbatches, augment, sharding)
    check_plan(plan)
    _check_targets(objective, data)
    check_optimizer(objective, optimizer)
    state = resume if resume is not None else _start(objective, params, optimizer)
    return _run(plan, objective, state, placed_data(plan, data), key, steps, learning_rate)


def evaluate(
    objective: Objective, params: Params, data: Data, *, batch_size: int = 2048, sharding: NamedSharding | None = None
) -> dict[str, float]:
    """Mean loss and accuracy on a whole data set, `{"loss": ..., "accuracy": ...}`, evaluated in chunks.

    Args:
        objective: Its loss is averaged without its weight.
        params: Parameters of `objective.apply`.
        data: Data set.
        batch_size: Examples per evaluation, which bounds the memory.
        sharding: From `data_parallel()`: divides the chunks over devices.

    Example:
        >>> from lazynet import mse, objective
        >>> goal = objective(lambda w, x: x @ w, mse)
        >>> evaluate(goal, jnp.ones((2, 1)), Data(jnp.eye(2), jnp.ones((2, 1))))
        {'loss': 0.0, 'accuracy': 1.0}
    """
    n, totals = len(data.x), np.zeros(2)
    everywhere = None if sharding is None else replicated(sharding)
    objective, params = place((objective, params), everywhere)
    for start in range(0, n, batch_size):
        chunk = Data(data.x[start : start + batch_size], data.y[start : start + batch_size])
        even = sharding is not None and len(chunk.x) % sharding.mesh.size == 0
        values = _loss_and_accuracy(objective, params, place(chunk, sharding if even else everywhere))
        totals += len(chunk.x) / n * np.asarray(values, np.float64)
    return {"loss": float(totals[0]), "accuracy": float(totals[1])}


def log_spaced(n_steps: int, n_points: int) -> list[int]:
    """Steps 0, 1, ..., n_steps, spaced evenly in the logarithm: records where training moves fastest.

    Args:
        n_steps: Last step.
        n_points: At most this many records.

    Example:
        >>> log_spaced(1000, 5)
        [0, 1, 10, 100, 1000]
    """
    return [0, *np.unique(np.round(np.geomspace(1, n_steps, n_points - 1)).astype(int)).tolist()]


def _run(plan, objective, state, data, key, steps, learning_rate: Schedule):
    everywhere = None if plan.sharding is None else replicated(plan.sharding)
    draws = None if plan.augment is None else place(jax.random.fold_in(key, AUGMENTATION), everywhere)
    step, time, params, opt_state = state.step, state.time, *_copied((state.params, state.opt_state))
    objective, params, opt_state = place((objective, params, opt_state), everywhere)
    damping, per_epoch = 1 - getattr(plan.optimizer, "momentum", 0.0), len(data.x) // plan.batch_size
    epoch, source = None, Source(data, None, draws)
    for last in steps:
        while step < last:
            if epoch is None or (plan.batch_size < len(data.x) and step // per_epoch != epoch):
                epoch = step // per_epoch
                source = source._replace(order=epoch_order(plan, jax.random.fold_in(key, epoch), len(data.x)))
            rate = float(learning_rate(step) if callable(learning_rate) else learning_rate)
            params, opt_state = advance(plan, objective, params, opt_state, source, step, rate)
            step, time = step + 1, time + rate / damping
        yield TrainState(step, time, *_copied(_local(plan, (params, opt_state))))


@jax.jit
def _loss_and_accuracy(objective, params, data):
    outputs = objective.apply(params, data.x)
    return objective.loss(outputs, data.y), accuracy(outputs, data.y)


def _record(objective, params, parts, measure, sharding):
    row = {}
    for name, part in parts.items():
        values = evaluate(objective, params, part, sharding=sharding)
        row |= {f"{name}_{key}": value for key, value in values.items()}
    return row | ({} if measure is None else {name: float(value) for name, value in measure(params).items()})


def _columns(rows):
    """Columns (step, time, metrics) of the recorded rows."""
    names = [name for name in (rows[0] if rows else {}) if name not in ("step", "time")]
    return (
        np.array([row["step"] for row in rows], np.int64),
        np.array([row["time"] for row in rows], np.float64),
        {name: np.array([row[name] for row in rows]) for name in names},
    )


def _rows(curve):
    return [
        {"step": int(step), "time": float(time), **{name: float(values[i]) for name, values in curve.metrics.items()}}
        for i, (step, time) in enumerate(zip(curve.step, curve.time, strict=True))
    ]


@jax.jit
def _copied(tree):
    return jax.tree.map(jnp.copy, tree)


def _local(plan, tree):
    return tree if plan.sharding is None else first_shards(tree)


def _start(objective, params, optimizer):
    if is_lazy_function(objective.apply):
        params0 = objective.apply.args[1]
        guards.finite("params0", params0, WEIGHTS)
        params = trees.zeros_like(params0) if params is None else params
        trees.check_same_structure(params, params0, name="params", expected="params0")
        if _equal(params, params0):
            raise ValueError(
                "params is params0, the initialization of the lazy function, whose variable is the "
                "displacement u = alpha (w - w0): pass params=None to start at u = 0."
            )
    elif params is None:
        raise ValueError(
            "params is None, expected the initial weights: only a lazy function has a start of its own, u = 0."
        )
    guards.finite("params", params, WEIGHTS)
    return TrainState(0, 0.0, params, optimizer.init(params))


def _equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(bool(jnp.any(y != 0)) for y in jax.tree.leaves(b)) and all(bool(jnp.all(x == y)) for x, y in pairs)


def _checked_steps(save_at):
    steps = [int(step) for step in save_at]
    if any(b <= a for a, b in zip([-1, *steps], steps, strict=False)):
        raise ValueError(f"save_at={list(save_at)}, expected strictly increasing steps >= 0: see log_spaced.")
    return steps


def _checked_batch_size(batch_size, data):
    check_data(data, "data")
    n = len(data.x)
    if batch_size is not None and not 1 <= batch_size <= n:
        raise ValueError(f"batch_size={batch_size}, expected between 1 and the {n} training examples, or None.")
    return n if batch_size is None else batch_size


def _check_targets(objective, data):
    if objective.loss.func is cross_entropy and not np.allclose(np.sum(np.asarray(data.y), -1), 1.0, atol=1e-4):
        total = float(np.sum(np.asarray(data.y[0])))
        raise ValueError(
            f"cross_entropy needs one-hot or probability targets, but row 0 of y sums to {total:.3g}: "
            "use one_hot(labels, classes), not centered targets."
        )
