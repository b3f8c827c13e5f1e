"""Ensembles: one network from many initializations, trained side by side, and the moments of their outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from lazynet import guards, trees
from lazynet.datasets import check_data
from lazynet.datasets.batches import epoch_order
from lazynet.dynamics import Gaussian
from lazynet.lazy import lazy_part, linearize
from lazynet.losses import check_labels, masked_cross_entropy, mse, objective
from lazynet.parameters import Where, selected
from lazynet.programs import PerFunction
from lazynet.records import Data
from lazynet.signatures import Output, flat, one_array, real_weights, with_constants
from lazynet.training.optimizers import SGD, check_optimizer, step_sizes
from lazynet.typing import Apply, Array, ArrayLike, Key, LossFn, Params

__all__ = ["EnsembleCurve", "moments", "train_ensemble"]

Transform = Callable[[Apply, Params], Apply]


class EnsembleCurve(NamedTuple):
    """Outputs of r networks during training.

    Attributes:
        step: Steps at which they were recorded.
        time: Gradient-flow time `learning_rate * step / (1 - momentum)`.
        outputs: Outputs of every network on the inputs asked for.
        params: Final parameters, the networks along the leading axis.

    Example:
        >>> EnsembleCurve(np.arange(2), np.arange(2.0), np.zeros((2, 5, 3, 1)), {}).outputs.shape
        (2, 5, 3, 1)
    """

    step: Any
    time: Any
    outputs: Float[np.ndarray, "s r m k"]
    params: Params


def train_ensemble(
    apply: Apply,
    params: Params,
    data: Data,
    optimizer: SGD,
    *,
    key: Key[Array, ""],
    save_at: Sequence[int],
    learning_rate: float | int,
    x: Any,
    loss: LossFn = mse,
    transform: Transform = linearize,
    batch_size: int | None = None,
    where: Where | None = None,
    output: Output = None,
) -> EnsembleCurve:
    """Trains networks from r initializations, `train` for each of them, by one vectorized step.

    By default the linearized network of every initialization. As the width grows, the moments of
    their outputs tend to those of `dynamics.trained_ensemble`, initial outputs and their covariance
    included. Convolutional networks are faster by a loop over `train` on a CPU: vectorized over
    weights, their convolutions are grouped ones.

    Args:
        apply: Model h.
        params: Initializations along a leading axis of the leaves: `jax.vmap(model.init, (0,
            None))(keys, x)`.
        data: Training examples.
        optimizer: From `sgd(momentum)`.
        key: Network i draws its batches by `jax.random.split(key, r)[i]`, in the order of `train`.
        save_at: Increasing steps to record.
        learning_rate: Step size.
        x: Inputs at which to record outputs.
        loss: Loss averaged over examples.
        transform: What to train, a function of `(apply, params0)`: `linearize`, `center`,
            `partial(lazy, alpha=10.0)`, or `lambda apply, params0: apply` for the network itself.
        batch_size: Examples per step; None for full batch.
        where: Which parameters of each network are trained, as in `train`; None for all.
        output: Which of the outputs of apply, by `select`.

    Raises:
        ValueError: If the batch size is out of range, steps do not increase, the rate is negative,
            the leaves of params do not share a leading axis, data are inconsistent or not finite,
            or targets of another kind than the loss.
        TypeError: For numbers, data or weights of a wrong type.

    Example:
        >>> starts = jnp.array([[[0.0]], [[2.0]]])
        >>> data = Data(jnp.ones((1, 1)), jnp.ones((1, 1)))
        >>> settings = dict(key=jax.random.key(0), save_at=[0, 1], learning_rate=0.5, x=data.x)
        >>> from lazynet.training.loop import sgd
        >>> train_ensemble(lambda w, x: x @ w, starts, data, sgd(), **settings).outputs[..., 0, 0].tolist()
        [[0.0, 2.0], [0.5, 1.5]]

    Source: Lee et al. (2019), Wide neural networks of any depth evolve as linear models under
    gradient descent.
    """
    steps = guards.steps(save_at)
    n = len(data.y)
    batch_size = guards.batch_size(batch_size, n)
    learning_rate = _rate(optimizer, learning_rate)
    check_data(data, labels=loss is masked_cross_entropy)
    check_labels(loss, data.y, "data.y")
    members = _members(params)
    x = _inputs(x, data.x)
    static = (transform, loss, optimizer, batch_size)
    function = flat(apply, data.x, output)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    goal = objective(transform(function, one), loss)
    check_optimizer(goal, optimizer)
    # The variable of a lazy function is u = 0, for each network.
    start = params if lazy_part(goal.apply) is None else trees.zeros_like(params)
    data = jax.tree.map(jnp.asarray, data)
    # Shapes that do not fit raise an error here, for one network, and not inside of vmap.
    jax.eval_shape(goal.value, jax.tree.map(lambda leaf: leaf[0], start), data)
    # What the networks do not learn is constant, each its own.
    chosen = selected(where, jax.tree.map(lambda leaf: leaf[0], start))
    constants, trained = real_weights(None, start, chosen)
    state = jax.vmap(optimizer.init)(trained)
    keys = jax.random.split(key, members)
    step = 0
    order = None
    outputs = []
    for last in steps:
        while step < last:
            epoch, batch = divmod(step, n // batch_size)
            if batch == 0 or order is None:
                # A full batch needs no order, and has one of no entries.
                order = _orders(keys, epoch, n) if batch_size < n else jnp.zeros((members, 0), int)
            member = (params, trained, constants)
            trained, state = _step(
                *static, function, member, state, data, order, batch, learning_rate
            )
            step += 1
        outputs.append(np.asarray(_outputs(transform, function, (params, trained, constants), x)))
    time = learning_rate * np.asarray(steps) / (1 - optimizer.momentum)
    return EnsembleCurve(
        np.asarray(steps), time, np.stack(outputs), with_constants(trained, constants)
    )


def moments(outputs: Float[ArrayLike, "*s r m k"]) -> Gaussian:
    """Mean and covariance over the r networks of an ensemble: `1/k sum_a Cov(f_a(x_i), f_a(x_j))`.

    Outputs of wide networks are independent with the same covariance, so that it is averaged over
    them. The standard error of the mean is the root of `covariance / r`, that of a covariance of a
    Gaussian about `sqrt(2 / (r k))` of it.

    Args:
        outputs: Outputs of at least 2 networks, with any leading axes such as times.

    Returns:
        Mean `[*s, m, k]` and unbiased covariance `[*s, m, m]`, in float64.

    Raises:
        ValueError: If there are fewer than 2 networks, or outputs are not finite.

    Example:
        >>> moments(np.array([[[0.0]], [[2.0]]])).covariance.item()
        2.0
    """
    values = np.asarray(guards.numbers("outputs", outputs), np.float64)
    if values.ndim < 3 or not values.size:
        raise ValueError(
            f"outputs of shape {values.shape}, expected [..., networks, examples, k], none of them empty."
        )
    guards.finite("outputs", values, "leave out the networks that diverged")
    members = values.shape[-3]
    outputs_each = values.shape[-1]
    if members < 2:
        raise ValueError(
            f"outputs of {members} network, expected at least 2: a covariance needs a difference."
        )
    mean = values.mean(axis=-3)
    centered = values - mean[..., None, :, :]
    covariance = np.einsum("...rik,...rjk->...ij", centered, centered, optimize=True)
    return Gaussian(mean, covariance / ((members - 1) * outputs_each))


@functools.partial(PerFunction, by=(0, 1, 2, 4), static_argnums=(0, 1, 2, 3))
def _step(
    transform,
    loss,
    optimizer,
    batch_size,
    apply,
    members,
    state,
    data,
    orders,
    batch,
    learning_rate,
):
    def step_one(member, state, order):
        params0, params, constants = member
        examples = data
        # Shapes are static: for a full batch there is no gather in the program.
        if order.size:
            rows = lax.dynamic_slice(order, (batch * batch_size,), (batch_size,))
            examples = jax.tree.map(lambda leaf: leaf[rows], data)

        def value(params):
            # Made inside of vmap: each network is linearized at its own start.
            goal = objective(transform(apply, params0), loss)
            return goal.value(with_constants(params, constants), examples)

        updates, after = optimizer.update(jax.grad(value)(params), state, params)
        return trees.add_scaled(params, learning_rate, updates), after

    return jax.vmap(step_one)(members, state, orders)


@functools.partial(PerFunction, by=(0, 1), static_argnums=(0,))
def _outputs(transform, apply, members, x):
    def outputs(member):
        params0, params, constants = member
        return one_array(transform(apply, params0)(with_constants(params, constants), x), x)

    return jax.vmap(outputs)(members)


@functools.partial(jax.jit, static_argnums=2)
def _orders(keys, epoch, n):
    return jax.vmap(lambda key: epoch_order(key, epoch, n))(keys)


def _rate(optimizer, learning_rate):
    if not isinstance(optimizer, SGD):
        raise TypeError(
            f"optimizer got {optimizer!r}, expected sgd(momentum): train takes others, one network at a time."
        )
    if callable(learning_rate):
        raise TypeError(
            f"learning_rate got {learning_rate!r}, expected a number: train takes functions of the step."
        )
    return step_sizes(optimizer, learning_rate)(0)


def _inputs(x, of_data):
    places = jax.tree_util.tree_leaves_with_path(x)
    same = jax.tree.structure(x) == jax.tree.structure(of_data)
    expected = jax.tree.leaves(of_data) if same else [of_data] * len(places)
    for (path, leaf), other in zip(places, expected, strict=True):
        place = f"x{jax.tree_util.keystr(path)}"
        guards.array(place, leaf)
        guards.finite(place, leaf)
        fits = same and leaf.shape[1:] == other.shape[1:] and leaf.dtype.kind == other.dtype.kind
        if not fits or not len(leaf):
            shape = (
                f"[m, *{other.shape[1:]}] of dtype {other.dtype}" if same else "in the same tree"
            )
            raise ValueError(
                f"{place} has shape {leaf.shape} and dtype {leaf.dtype}, expected inputs like those of data, {shape}."
            )
    return x


def _members(params):
    """The number of initializations, the common length of the leaves' first axes."""
    guards.weights("params", params)
    sizes = {leaf.shape[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(params)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"params has leaves with leading axes {sorted(sizes)}, expected one axis of initializations for all: "
            "jax.vmap(model.init, (0, None))(keys, x)."
        )
    guards.finite(
        "params", params, "training starts from finite weights, look where these were made"
    )
    return sizes.pop()
