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
from lazynet.datasets.batches import epoch_order
from lazynet.losses import Objective
from lazynet.programs import LAST, PerFunction, refuse_state
from lazynet.records import Data
from lazynet.training.sharding import place, replicated
from lazynet.typing import Array

__all__ = [
    "Augment",
    "Plan",
    "Source",
    "Stepper",
    "check_plan",
    "placed_data",
    "placed_order",
    "stepper",
]

Augment = Callable[[Any, Any], Array]
"""`augment(key, x) -> x`: inputs `[n, *inputs]` of a batch to inputs of the same shape."""

Stepper = Callable[[list[Array], "Source", int, float], list[Array]]
"""`advance(leaves, source, step, rate)`: parameters and optimizer state after a step, as their leaves."""


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
    if divided or plan.sharding is None:
        return place(data, plan.sharding)
    # Batches are rows in any order, each device's share of which may be anywhere.
    return place(data, replicated(plan.sharding))


def placed_order(plan: Plan, key: Any, epoch: int, n: int) -> Array | None:
    """The order in which an epoch visits n examples, where the steps find it; None if a step takes all at once.

    Example:
        >>> sorted(placed_order(Plan(None, 2, 1, None, None), jax.random.key(0), 0, 3).tolist())
        [0, 1, 2]
    """
    if plan.batch_size < n:
        order = epoch_order(key, epoch, n)
    elif plan.microbatches > 1:
        # Parts of a full batch need a place to begin, not another order.
        order = jnp.arange(n)
    else:
        return None
    return order if plan.sharding is None else place(order, replicated(plan.sharding))


def stepper(plan: Plan, objective: Objective, structure: Any) -> Stepper:
    """The step `w <- w + rate * update(grad R(w))` as a function of flat lists of arrays.

    JAX takes trees apart and puts them together in Python. At every step that would cost as much as
    the gradient of a small network, hence it is done once, here.

    With m microbatches the gradient is `1/m sum_i grad R_i`, accumulated over m calls of one
    compiled function, because a convolution inside `lax.scan` is slow on a CPU.

    Args:
        plan: Checked.
        objective: Its arrays are arguments of the compiled step.
        structure: `jax.tree.structure((params, opt_state))`.

    Returns:
        `advance(leaves, source, step, rate)`: the leaves of parameters and optimizer state after
        that step; the given ones are consumed.

    Example:
        >>> from lazynet import mse, objective, sgd
        >>> goal = objective(lambda w, x: x @ w, mse)
        >>> source = Source(Data(jnp.eye(2), jnp.ones((2, 1))), None, None)
        >>> leaves, structure = jax.tree.flatten((jnp.zeros((2, 1)), sgd().init(0.0)))
        >>> advance = stepper(Plan(sgd(), 2, 1, None, None), goal, structure)
        >>> advance(leaves, source, 0, 1.0)[0].tolist()
        [[0.5], [0.5]]
    """
    if plan.microbatches > 1:
        return functools.partial(_in_parts, plan, objective, structure)
    # params0 and alpha are arguments, their tree is the key of the program: a sweep compiles once.
    constants, form = jax.tree.flatten(objective)
    return functools.partial(_at_once, plan, _compiled_step(plan, form, structure), constants)


def _at_once(plan, compiled, constants, leaves, source, step, rate):
    start = _first_example(plan, source, step)
    try:
        return compiled(constants, leaves, source, start, step, rate)
    except Exception as error:
        refuse_state(error)
        raise


def _in_parts(plan, objective, structure, leaves, source, step, rate):
    params, opt_state = jax.tree.unflatten(structure, leaves)
    size = plan.batch_size // plan.microbatches
    total = trees.zeros_like(params)
    for i in range(plan.microbatches):
        start = _first_example(plan, source, step) + i * size
        # Every part is augmented by a draw of its own.
        # Parts of different steps never share a draw.
        draw = step * plan.microbatches + i
        total = _accumulate(plan, objective, params, total, source, start, draw)
    return jax.tree.leaves(_update(plan, params, opt_state, total, rate))


def _first_example(plan, source, step):
    """Where the batch of a step begins in the order of its epoch."""
    per_epoch = len(source.data.y) // plan.batch_size
    return step % per_epoch * plan.batch_size


@functools.lru_cache(LAST)
def _compiled_step(plan, form, structure):
    def _step(constants, leaves, source, start, draw, rate):
        objective = jax.tree.unflatten(form, constants)
        params, opt_state = jax.tree.unflatten(structure, leaves)
        gradient = _gradient(plan, objective, params, source, start, draw)
        after = _updated(plan, params, opt_state, gradient, rate)
        _check_structure(after, structure)
        return jax.tree.leaves(after)

    # Weights and state are written where the old ones were, of which the caller keeps none.
    return jax.jit(_step, donate_argnums=1)


def _check_structure(after, structure):
    """Refuses an optimizer whose state is of another kind after a step than before."""
    found = jax.tree.structure(after)
    if found != structure:
        raise TypeError(
            f"the optimizer's update returned {found}, expected what its init returned, {structure}: "
            "keep the structure of the state from step to step."
        )


@functools.partial(PerFunction, by=(0, 1), static_argnums=(0,), donate_argnums=(3,))
def _accumulate(plan, objective, params, total, source, start, draw):
    grads = _gradient(plan, objective, params, source, start, draw)
    return _everywhere(plan, trees.add(total, grads))


@functools.partial(PerFunction, static_argnums=(0,), donate_argnums=(1, 2))
def _update(plan, params, opt_state, total, rate):
    # Parts have equal sizes: the mean of their means is that of the batch.
    grads = trees.divide(total, float(plan.microbatches))
    return _updated(plan, params, opt_state, grads, rate)


def _gradient(plan, objective, params, source, start, draw):
    data, order, key = source
    if order is not None:
        size = plan.batch_size // plan.microbatches
        # Each device gathers its own part of the rows.
        rows = _divided(plan, lax.dynamic_slice(order, (start,), (size,)))
        data = _divided(plan, jax.tree.map(lambda leaf: leaf[rows], data))
    if plan.augment is not None:
        x = plan.augment(jax.random.fold_in(key, draw), data.x)
        data = _divided(plan, data._replace(x=x))
    return jax.grad(objective.value)(params, data)


def _updated(plan, params, opt_state, grads, rate):
    updates, opt_state = plan.optimizer.update(grads, opt_state, params)
    # Whole on each device, for which the compiler adds up the gradients of all parts.
    return _everywhere(plan, (trees.add_scaled(params, rate, updates), opt_state))


def _divided(plan, tree):
    return tree if plan.sharding is None else lax.with_sharding_constraint(tree, plan.sharding)


def _everywhere(plan, tree):
    if plan.sharding is None:
        return tree
    return lax.with_sharding_constraint(tree, replicated(plan.sharding))
