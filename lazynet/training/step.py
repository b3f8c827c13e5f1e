"""One step of training, compiled once for all objectives of the same structure and all learning rates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from lazynet import guards, trees
from lazynet.datasets.sampling import epoch_order
from lazynet.losses import Objective
from lazynet.programs import PerFunction
from lazynet.records import Data
from lazynet.training.sharding import place, replicated
from lazynet.typing import Array, ArrayLike, Params

__all__ = ["Augment", "Plan", "Source", "advance", "check_plan", "placed_data", "placed_order"]

Augment = Callable[[Any, Any], Array]
"""`augment(key, x) -> x`: inputs `[n, *inputs]` of a batch to inputs of the same shape."""


class Plan(NamedTuple):
    """What a compiled step depends on besides its arrays.

    Attributes:
        optimizer: With `init` and `update`.
        batch_size: Examples per step; None, all of them, until the data are known.
        microbatches: Parts of a batch that are differentiated one after the other.
        augment: `augment(key, x) -> x`, or None.
        sharding: From `data_parallel()`, or None for a single device.

    Example:
        >>> Plan(None, 64, 2, None, None).microbatches
        2
    """

    optimizer: Any
    batch_size: Any
    microbatches: int
    augment: Augment | None
    sharding: NamedSharding | None


class Source(NamedTuple):
    """Where a step gets its examples from.

    Attributes:
        data: All examples.
        order: That of this epoch; None to take all of them as they come.
        key: Of the augmentation, folded with the number of the draw; None without one.

    Example:
        >>> Source(Data(jnp.eye(2), jnp.eye(2)), None, None).order is None
        True
    """

    data: Data
    order: Array | None
    key: Any


def check_plan(plan: Plan) -> None:
    """Refuses a batch that cannot be divided evenly over microbatches and devices.

    Raises:
        ValueError: Naming the sizes.
        TypeError: If `augment` cannot be the same function for every step, or `sharding` is none.

    Example:
        >>> check_plan(Plan(None, 64, 2, None, None))
    """
    if plan.sharding is not None and not isinstance(plan.sharding, NamedSharding):
        raise TypeError(
            f"sharding got {plan.sharding!r}, expected what data_parallel() returned, or None."
        )
    devices = 1 if plan.sharding is None else plan.sharding.mesh.size
    guards.count("microbatches", plan.microbatches)
    if plan.batch_size % (plan.microbatches * devices):
        raise ValueError(
            f"batch_size={plan.batch_size} does not divide into microbatches={plan.microbatches} over {devices} "
            f"device{'s' * (devices > 1)}, expected a multiple of microbatches * devices = "
            f"{plan.microbatches * devices}: change batch_size, or leave examples out of a full batch."
        )
    if plan.augment is not None and not (
        callable(plan.augment) and isinstance(plan.augment, Hashable)
    ):
        raise TypeError(
            f"augment got {plan.augment!r}, expected a function of (key, x) that can be hashed, such as crop_and_flip."
        )


def placed_data(plan: Plan, data: Data) -> Data:
    """The examples where the steps find them: a full batch divided over devices, else all of them on each device.

    Example:
        >>> placed_data(Plan(None, 2, 1, None, None), Data(jnp.eye(2), jnp.eye(2))).x.shape
        (2, 2)
    """
    data = jax.tree.map(jnp.asarray, data) if plan.sharding is None else data
    divided = plan.batch_size == len(data.y) and plan.microbatches == 1
    return place(
        data, plan.sharding if divided or plan.sharding is None else replicated(plan.sharding)
    )


def placed_order(plan: Plan, key: Any, epoch: int, n: int) -> Array | None:
    """The order in which an epoch visits n examples, where the steps find it; None if a step takes all at once.

    Example:
        >>> sorted(placed_order(Plan(None, 2, 1, None, None), jax.random.key(0), 0, 3).tolist())
        [0, 1, 2]
    """
    if plan.batch_size < n:
        order = epoch_order(key, epoch, n)
    elif plan.microbatches > 1:
        order = jnp.arange(n)
    else:
        return None
    return order if plan.sharding is None else place(order, replicated(plan.sharding))


def advance(
    plan: Plan,
    objective: Objective,
    params: Params,
    opt_state: Any,
    source: Source,
    step: int,
    rate: ArrayLike | float,
) -> tuple[Params, Any]:
    """Parameters and optimizer state after `w <- w + rate * update(grad R(w))`; the given ones are consumed.

    With m microbatches the gradient is `1/m sum_i grad R_i`, accumulated over m calls of one
    compiled function, because a convolution inside `lax.scan` is slow on a CPU.

    Example:
        >>> from lazynet import mse, objective, sgd
        >>> goal = objective(lambda w, x: x @ w, mse)
        >>> source = Source(Data(jnp.eye(2), jnp.ones((2, 1))), None, None)
        >>> advance(Plan(sgd(), 2, 1, None, None), goal, jnp.zeros((2, 1)), sgd().init(0.0), source, 0, 1.0)[0].tolist()
        [[0.5], [0.5]]
    """
    start = step % (len(source.data.y) // plan.batch_size) * plan.batch_size
    if plan.microbatches == 1:
        return _step(plan, objective, params, opt_state, source, start, step, rate)
    size = plan.batch_size // plan.microbatches
    total = trees.zeros_like(params)
    for i in range(plan.microbatches):
        total = _accumulate(
            plan, objective, params, total, source, start + i * size, step * plan.microbatches + i
        )
    return _update(plan, params, opt_state, total, rate)


@functools.partial(PerFunction, by=(0, 1), static_argnums=(0,), donate_argnums=(2, 3))
def _step(plan, objective, params, opt_state, source, start, draw, rate):
    return _updated(
        plan, params, opt_state, _gradient(plan, objective, params, source, start, draw), rate
    )


@functools.partial(PerFunction, by=(0, 1), static_argnums=(0,), donate_argnums=(3,))
def _accumulate(plan, objective, params, total, source, start, draw):
    return _everywhere(
        plan, trees.add(total, _gradient(plan, objective, params, source, start, draw))
    )


@functools.partial(PerFunction, static_argnums=(0,), donate_argnums=(1, 2))
def _update(plan, params, opt_state, total, rate):
    return _updated(plan, params, opt_state, trees.divide(total, float(plan.microbatches)), rate)


def _gradient(plan, objective, params, source, start, draw):
    data, order, key = source
    if order is not None:
        rows = _divided(
            plan, lax.dynamic_slice(order, (start,), (plan.batch_size // plan.microbatches,))
        )
        data = _divided(plan, jax.tree.map(lambda leaf: leaf[rows], data))
    if plan.augment is not None:
        data = _divided(plan, data._replace(x=plan.augment(jax.random.fold_in(key, draw), data.x)))
    return jax.grad(objective.value)(params, data)


def _updated(plan, params, opt_state, grads, rate):
    updates, opt_state = plan.optimizer.update(grads, opt_state, params)
    return _everywhere(plan, (trees.add_scaled(params, rate, updates), opt_state))


def _divided(plan, tree):
    return tree if plan.sharding is None else lax.with_sharding_constraint(tree, plan.sharding)


def _everywhere(plan, tree):
    return (
        tree
        if plan.sharding is None
        else lax.with_sharding_constraint(tree, replicated(plan.sharding))
    )
