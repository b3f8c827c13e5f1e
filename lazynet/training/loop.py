"""Training: a host loop over one compiled step, with records at chosen steps.

The loop stays on the host because a convolution inside `lax.scan` is 11 to 100 times slower on CPU.
The objective (with its initialization and alpha) and the learning rate are arguments of the step,
so a sweep over them compiles once; make the optimizer and the augmentation once as well, or use
`sgd`, which compares by value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from lazynet import guards
from lazynet.datasets import check_data
from lazynet.lazy import check_displacement, lazy_part
from lazynet.losses import Objective, accuracy, check_labels, masked_cross_entropy
from lazynet.parameters import Where
from lazynet.programs import PerFunction
from lazynet.records import Data, Trajectory
from lazynet.signatures import real_weights, with_constants
from lazynet.training.optimizers import SGD, Schedule, UnitRate, check_optimizer, sgd, step_sizes
from lazynet.training.resume import TrainState, check_curve, check_names, check_state
from lazynet.training.sharding import first_shards, place, replicated
from lazynet.training.step import (
    Augment,
    Plan,
    Source,
    check_plan,
    placed_data,
    placed_order,
    stepper,
)
from lazynet.typing import Array, Params

__all__ = ["SGD", "TrainState", "evaluate", "log_spaced", "sgd", "snapshots", "train"]

Optimizer = SGD | UnitRate | optax.GradientTransformation

WEIGHTS = "training starts from finite weights, look where these were made"

AUGMENTATION = np.uint32(2**32 - 1)
"""Number of the stream of random numbers that augments batches; the lower ones are epochs."""

CHUNK = 2048
"""Examples evaluated at a time."""

OWN_NAMES = {"step", "time", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}
"""Names of a record that no measure may take."""


def train(
    objective: Objective,
    params: Params | None,
    data: Data,
    optimizer: Optimizer,
    *,
    key: Array,
    save_at: Sequence[int],
    learning_rate: Schedule | None = None,
    batch_size: int | None = None,
    microbatches: int = 1,
    augment: Augment | None = None,
    where: Where | None = None,
    sharding: NamedSharding | None = None,
    test: Data | None = None,
    measure: Callable[[Params], dict[str, Any]] | None = None,
    on_save: Callable[[TrainState, Trajectory], None] | None = None,
    resume: tuple[TrainState, Trajectory] | None = None,
) -> Trajectory:
    """Training curve of `w <- w + learning_rate * update(grad R(w))`, recorded at the steps `save_at`.

    Metrics are `train_loss`, `train_accuracy`, and with `test` also `test_loss`, `test_accuracy`,
    on whole data sets and without the objective's weight. Training stops at the first recorded
    non-finite train loss, which is a result (`diverged_at`) and not an exception.

    Args:
        objective: From `objective(apply, loss)`.
        params: Start; None for a lazy function, whose displacement u starts at zero.
        data: Training set.
        optimizer: `sgd(...)`; any optax transformation, with a learning rate of its own; or
            `unit_rate(...)` of one.
        key: Draws the batches: epoch e is the permutation of `fold_in(key, e)`, its incomplete last
            batch is dropped.
        save_at: Strictly increasing steps to record, 0 included if wanted; the last one ends the
            training.
        learning_rate: A number, or a function of the step (an optax schedule): finite and >= 0.
            None for an optax transformation, whose own rate nothing multiplies; the `time` of its
            curve is the number of steps.
        batch_size: Examples per step; None for full batch.
        microbatches: Parts of a batch whose gradients are averaged one after the other, for less
            memory.
        augment: `augment(key, x) -> x`, applied to every batch and to no evaluation; its key is a
            function of `key` and the step. For instance `datasets.crop_and_flip`.
        where: Which parameters are trained, a function of their paths, or of path and leaf, or a tree
            of booleans; None for all. The optimizer knows of these alone, the others stay as they are.
        sharding: From `data_parallel()`: divides every batch over devices and processes. Each
            device holds all examples, or its part of a full batch; what is returned is on this
            process's first device.
        test: Test set.
        measure: `measure(params) -> {name: number}`, recorded next to the losses, the same names
            every time.
        on_save: Called with the state and the curve so far after every record, for progress bars
            and checkpoints.
        resume: The last pair that `on_save` got: goes on from there, bit-identically. A training
            that had diverged has ended: its curve is returned.

    Returns:
        The curve, with the final parameters in `params`.

    Raises:
        ValueError: For inconsistent data, batch size, steps, rates or targets; if a batch does not
            divide evenly over microbatches and devices; if `params` is the initialization of a lazy
            function; if the optimizer is not covariant and the function is lazy; if `resume` is of
            another training; if a measure takes a name of ours.
        TypeError: For numbers, data or weights of a wrong type.

    Example:
        >>> from lazynet import mse, objective
        >>> data = Data(jnp.eye(2), jnp.ones((2, 1)))
        >>> goal = objective(lambda w, x: x @ w, mse)
        >>> settings = dict(key=jax.random.key(0), save_at=[0, 50], learning_rate=1.0)
        >>> curve = train(goal, jnp.zeros((2, 1)), data, sgd(), **settings)
        >>> [round(float(loss), 6) for loss in curve.metrics["train_loss"]]
        [0.5, 0.0]
    """
    steps = guards.steps(save_at)
    _check_functions(measure=measure, on_save=on_save)
    # Weights that diverged may not be finite, which the checks below would refuse.
    if resume is not None and _pair(resume)[1].diverged_at is not None:
        return resume[1]._replace(params=resume[0].params)
    plan = Plan(optimizer, batch_size, microbatches, augment, sharding)
    before = None if resume is None else resume[0]
    run = _prepared(plan, objective, params, data, learning_rate, before, where)
    parts = {"train": data} | ({} if test is None else {"test": test})
    # Before the first step: an error of the test set must not wait for a record.
    for name, part in parts.items():
        _check_part(objective, run.state.params, part, name)
    rows = [] if resume is None else _resumed(run.state, resume[1], steps, parts, measure)
    curve = Trajectory(*_columns(rows), run.state.params if rows else None, None)
    for state in _run(run, key, [step for step in steps if not rows or step > run.state.step]):
        record = _record(objective, state.params, parts, measure, sharding)
        rows.append({"step": state.step, "time": state.time} | record)
        _check_names(rows)
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
    optimizer: Optimizer,
    *,
    key: Array,
    save_at: Sequence[int],
    learning_rate: Schedule | None = None,
    batch_size: int | None = None,
    microbatches: int = 1,
    augment: Augment | None = None,
    where: Where | None = None,
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
    steps = guards.steps(save_at)
    plan = Plan(optimizer, batch_size, microbatches, augment, sharding)
    run = _prepared(plan, objective, params, data, learning_rate, resume, where)
    return _run(run, key, [step for step in steps if step >= run.state.step])


def evaluate(
    objective: Objective,
    params: Params,
    data: Data,
    *,
    batch_size: int = CHUNK,
    sharding: NamedSharding | None = None,
) -> dict[str, float]:
    """Mean loss and accuracy on a whole data set, `{"loss": ..., "accuracy": ...}`, evaluated in chunks.

    Args:
        objective: Its loss is averaged without its weight.
        params: Parameters of `objective.apply`.
        data: Data set.
        batch_size: Examples per evaluation, which bounds the memory.
        sharding: From `data_parallel()`: divides the chunks over devices.

    Raises:
        ValueError: For inconsistent data, targets of another kind than the loss is made for, a
            batch size below 1, or if `params` is the initialization of a lazy function.
        TypeError: For data or a batch size of a wrong type.

    Example:
        >>> from lazynet import mse, objective
        >>> goal = objective(lambda w, x: x @ w, mse)
        >>> evaluate(goal, jnp.ones((2, 1)), Data(jnp.eye(2), jnp.ones((2, 1))))
        {'loss': 0.0, 'accuracy': 1.0}
    """
    batch_size = guards.count("batch_size", batch_size)
    check_data(data, labels=_takes_labels(objective))
    check_labels(objective.loss, data.y, "data.y")
    check_displacement(objective.apply, params)
    return _evaluated(objective, params, data, batch_size, sharding)


def log_spaced(n_steps: int, n_points: int) -> list[int]:
    """Steps 0, 1, ..., n_steps, spaced evenly in the logarithm: records where training moves fastest.

    Args:
        n_steps: Last step.
        n_points: At most this many records, the last of them `n_steps`: one is that alone, two
            begin at 0.

    Raises:
        ValueError: If `n_steps` is negative, or `n_points` is below 1.
        TypeError: If one of them is no integer.

    Example:
        >>> log_spaced(1000, 5), log_spaced(1000, 2)
        ([0, 1, 10, 100, 1000], [0, 1000])
    """
    n_steps = guards.count("n_steps", n_steps, at_least=0)
    n_points = guards.count("n_points", n_points)
    if n_points == 1:
        return [n_steps]
    if n_points == 2 or n_steps <= 1:
        return sorted({0, n_steps})
    spaced = np.unique(np.round(np.geomspace(1, n_steps, n_points - 1)).astype(int)).tolist()
    return [0, *spaced[:-1], n_steps]


class _Run(NamedTuple):
    """A training that has passed all checks."""

    plan: Plan
    objective: Objective
    state: TrainState
    data: Data
    rate: Callable[[int], float]
    where: Where | None


def _prepared(plan: Plan, objective, params, data, learning_rate, resume, where) -> _Run:
    """The training, after all checks that need no step."""
    rate = step_sizes(plan.optimizer, learning_rate)
    check_data(data, labels=_takes_labels(objective))
    plan = plan._replace(batch_size=guards.batch_size(plan.batch_size, len(data.y)))
    check_plan(plan)
    check_labels(objective.loss, data.y, "data.y")
    check_optimizer(objective, plan.optimizer)
    if resume is None:
        state = _start(objective, params, plan.optimizer, where)
    else:
        lazy_function = lazy_part(objective.apply)
        # u has the shapes and types of params0.
        start = params if lazy_function is None else lazy_function.params0
        state = check_state(resume, start, plan.optimizer, where)
    return _Run(plan, objective, state, placed_data(plan, data), rate, where)


def _takes_labels(objective):
    """Whether targets are whole numbers, those of tokens."""
    return getattr(objective.loss, "func", objective.loss) is masked_cross_entropy


def _start(objective, params, optimizer, where):
    lazy_function = lazy_part(objective.apply)
    if lazy_function is not None:
        guards.finite("params0", lazy_function.params0, WEIGHTS)
        params = lazy_function.start() if params is None else params
    elif params is None:
        raise ValueError(
            "params is None, expected the initial weights: only a lazy function has a start of its own, u = 0."
        )
    check_displacement(objective.apply, params)
    guards.weights("params", params)
    guards.finite("params", params, WEIGHTS)
    weights = real_weights(objective.apply, params, where)[1]
    return TrainState(0, 0.0, params, optimizer.init(weights))


def _run(run: _Run, key: Array, steps: list[int]) -> Iterator[TrainState]:
    plan, objective, state, data, learning_rate, where = run
    everywhere = None if plan.sharding is None else replicated(plan.sharding)
    draws = None
    if plan.augment is not None:
        draws = place(jax.random.fold_in(key, AUGMENTATION), everywhere)
    function, params = real_weights(objective.apply, state.params, where)
    objective = objective._replace(apply=function)
    step = state.step
    time = state.time
    # Steps consume what they are given, which is the caller's at the first one.
    params, opt_state = _copied((params, state.opt_state))
    objective, params, opt_state = place((objective, params, opt_state), everywhere)
    leaves, structure = jax.tree.flatten((params, opt_state))
    advance = stepper(plan, objective, structure)
    damping = 1 - getattr(plan.optimizer, "momentum", 0.0)
    n = len(data.y)
    per_epoch = n // plan.batch_size
    epoch = None
    source = Source(data, None, draws)
    for last in steps:
        while step < last:
            # A full batch has one order for all epochs.
            if epoch is None or (plan.batch_size < n and step // per_epoch != epoch):
                epoch = step // per_epoch
                source = source._replace(order=placed_order(plan, key, epoch, n))
            rate = learning_rate(step)
            # A function of the step alone picks the batch, so that a resumed run goes on bit for bit.
            leaves = advance(leaves, source, step, rate)
            step = step + 1
            # With momentum m a gradient moves the weights by rate / (1 - m) in all.
            time = time + rate / damping
        own = jax.tree.unflatten(structure, leaves)
        if plan.sharding is not None:
            own = first_shards(own)
        # The next step takes over the memory of these leaves: what is yielded must be a copy.
        weights, copied_state = _copied(own)
        yield TrainState(step, time, with_constants(weights, function), copied_state)


def _evaluated(objective, params, data, batch_size, sharding):
    n = len(data.y)
    totals = np.zeros(2)
    everywhere = None if sharding is None else replicated(sharding)
    objective, params = place((objective, params), everywhere)
    for start in range(0, n, batch_size):
        # Data may stay on the host: one chunk at a time goes to the device.
        chunk = jax.tree.map(lambda leaf, i=start: leaf[i : i + batch_size], data)
        even = sharding is not None and len(chunk.y) % sharding.mesh.size == 0
        # A last chunk that the devices do not divide is evaluated whole on each of them.
        placed = place(chunk, sharding if even else everywhere)
        values = _loss_and_accuracy(objective, params, placed)
        # In float64, lest a long sum of chunks round what was computed in float32.
        totals += len(chunk.y) / n * np.asarray(values, np.float64)
    return {"loss": float(totals[0]), "accuracy": float(totals[1])}


@PerFunction
def _loss_and_accuracy(objective, params, data):
    outputs = objective.outputs(params, data.x)
    return objective.loss(outputs, data.y), accuracy(outputs, data.y)


def _record(objective, params, parts, measure, sharding):
    row = {}
    for name, part in parts.items():
        values = _evaluated(objective, params, part, CHUNK, sharding)
        row |= {f"{name}_{key}": value for key, value in values.items()}
    return row | _measured(measure, params)


def _check_functions(**functions):
    """Refuses what cannot be called before the first step, None aside."""
    for name, value in functions.items():
        if value is not None:
            guards.function(name, value, "None leaves it out")


def _measured(measure, params):
    """What a measure gives, as floats, of which NaN is one."""
    values = {} if measure is None else measure(params)
    if not isinstance(values, Mapping):
        raise TypeError(f"measure returned {values!r}, expected a dictionary of numbers by name.")
    taken = sorted(OWN_NAMES & set(values))
    if taken:
        raise ValueError(
            f"measure returned {taken}, expected other names than those of training: rename them."
        )
    for name, value in values.items():
        if (
            not isinstance(name, str)
            or np.size(value) != 1
            or np.asarray(value).dtype.kind in "cOSU"
        ):
            raise TypeError(
                f"measure returned {value!r} as {name!r}, expected one number by a name: split arrays up."
            )
    return {name: float(np.asarray(value).item()) for name, value in values.items()}


def _check_names(rows):
    """Every record has the names of the first one."""
    differing = sorted(set(rows[0]) ^ set(rows[-1]))
    if differing:
        raise ValueError(
            f"measure returned other names at step {rows[-1]['step']} than before, {differing} in one record only: "
            "give the same every time, NaN where there is no number."
        )


def _check_part(objective, params, data, name):
    """Refuses a data set that the function and the loss do not take, by tracing them on its first chunk."""
    if name == "test":
        check_data(data, name, labels=_takes_labels(objective))
        check_labels(objective.loss, data.y, f"{name}.y")
    chunk = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((min(len(a), CHUNK), *a.shape[1:]), jnp.result_type(a)), data
    )
    _loss_and_accuracy.eval_shape(objective, params, chunk)


def _pair(resume):
    kinds = tuple(map(type, resume)) if isinstance(resume, tuple) else type(resume)
    if kinds != (TrainState, Trajectory):
        raise TypeError(
            f"resume got {kinds}, expected the pair (TrainState, Trajectory) that on_save got."
        )
    return resume


def _resumed(state, curve, steps, parts, measure):
    """The rows of a curve, after checking that it is one of this training."""
    check_curve(state, curve)
    if state.step > steps[-1]:
        raise ValueError(
            f"resume is at step {state.step}, expected at most {steps[-1]}, the last of save_at: ask for more."
        )
    names = {f"{part}_{name}" for part in parts for name in ("loss", "accuracy")}
    check_names(curve, names | set(_measured(measure, state.params)))
    rows = []
    for i, (step, time) in enumerate(zip(curve.step, curve.time, strict=True)):
        metrics = {name: float(values[i]) for name, values in curve.metrics.items()}
        rows.append({"step": int(step), "time": float(time), **metrics})
    return rows


def _columns(rows):
    """Columns (step, time, metrics) of the recorded rows."""
    step = np.array([row["step"] for row in rows], np.int64)
    time = np.array([row["time"] for row in rows], np.float64)
    metrics = {}
    for name in rows[0] if rows else ():
        if name not in ("step", "time"):
            metrics[name] = np.array([row[name] for row in rows])
    return step, time, metrics


@jax.jit
def _copied(tree):
    return jax.tree.map(jnp.copy, tree)
