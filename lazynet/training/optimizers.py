"""Optimizers that commute with u = alpha (w - w0), the test of those that do not, and learning rates.

The learning rate belongs to training where the optimizer is ours (`sgd`, of unit rate): one
compiled step serves all rates. A transformation of optax carries its own and is multiplied by
nothing; `unit_rate` makes it one of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lazynet import guards
from lazynet.lazy import lazy_below
from lazynet.losses import Objective
from lazynet.typing import Array, Params

__all__ = [
    "SGD",
    "Schedule",
    "UnitRate",
    "check_optimizer",
    "inverse_epoch_decay",
    "sgd",
    "step_sizes",
    "unit_rate",
]

Schedule = float | int | Array | Callable[[int], Any]
"""A learning rate, or a function of the step that gives it."""


@dataclasses.dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, as an optax transformation that knows its momentum; see `sgd`."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self):
        # The record is frozen, and keeps the number that was checked.
        object.__setattr__(self, "momentum", guards.momentum(self.momentum))

    def init(self, params: Params) -> Any:
        """Velocity v = 0."""
        return self._transformation.init(params)

    def update(self, grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        """The update `-v` of the new velocity `v <- momentum v + g`."""
        return self._transformation.update(grads, state, params)

    @property
    def _transformation(self):
        # Without momentum optax then keeps no velocity.
        return optax.sgd(1.0, self.momentum or None, self.nesterov)


def sgd(momentum: float = 0.0, nesterov: bool = False) -> SGD:
    """Optimizer `v <- momentum v + g, w <- w - learning_rate v`; `train` supplies the learning rate.

    It is covariant under u = alpha (w - w0): the same steps in u and in w give the same function,
    which is what makes an alpha sweep a sweep of one thing only.

    Args:
        momentum: In [0, 1).
        nesterov: Whether to look ahead.

    Raises:
        ValueError: If the momentum is outside [0, 1).

    Example:
        >>> sgd(0.9) == sgd(0.9), sgd(0.9).momentum
        (True, 0.9)
    """
    return SGD(momentum, nesterov)


class UnitRate(NamedTuple):
    """An optax transformation of learning rate one, whose updates `train` multiplies; see `unit_rate`."""

    transformation: Any

    def init(self, params: Params) -> Any:
        """The transformation's state."""
        return self.transformation.init(params)

    def update(self, grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        """The transformation's update, of rate one."""
        return self.transformation.update(grads, state, params)


def unit_rate(transformation: optax.GradientTransformation) -> UnitRate:
    """The optimizer `w <- w + learning_rate * update(g)`, for an optax transformation made with a learning rate of one.

    An optax transformation carries its own learning rate, so `train` multiplies its updates by
    nothing. This one leaves the rate to the argument `learning_rate` of `train`: a number or a
    schedule, an argument of the compiled step, which a sweep over rates then compiles once. Its
    learning rates add up to the `time` of the curve.

    Args:
        transformation: Such as `optax.adam(1.0)`; a rate of its own would multiply that of `train`.

    Raises:
        TypeError: If it is no optax transformation.

    Example:
        >>> import lazynet as ln
        >>> goal = ln.objective(lambda w, x: x @ w, ln.mse)
        >>> data = ln.Data(jnp.eye(2), jnp.ones((2, 1)))
        >>> settings = dict(key=jax.random.key(0), save_at=[1], learning_rate=0.01)
        >>> curve = ln.train(goal, jnp.zeros((2, 1)), data, unit_rate(optax.sgd(1.0)), **settings)
        >>> [round(float(w), 6) for w in curve.params[:, 0]], float(curve.time[0])
        ([0.005, 0.005], 0.01)
    """
    _check_transformation(transformation)
    return UnitRate(transformation)


def step_sizes(optimizer: Any, learning_rate: Schedule | None) -> Callable[[int], float]:
    """The factor of the optimizer's update as a function of the step: the learning rate, or 1 where optax has its own.

    Raises:
        TypeError: If the optimizer has no init and update, or the rate is no real number.
        ValueError: If the learning rate is missing, given twice, negative or not finite; of a
            schedule once called.

    Example:
        >>> step_sizes(sgd(), 0.5)(3), step_sizes(optax.adam(1e-2), None)(3)
        (0.5, 1.0)
        >>> step_sizes(optax.adam(1e-2), 1e-2)
        Traceback (most recent call last):
        ...
        ValueError: learning_rate got 0.01, expected None (or 1): an optax optimizer carries its own rate, ...
    """
    _check_transformation(optimizer)
    if not isinstance(optimizer, (SGD, UnitRate)):
        # A rate of 1 multiplies nothing, and passes.
        if learning_rate is not None and (
            callable(learning_rate) or np.ndim(learning_rate) or learning_rate != 1
        ):
            raise ValueError(
                f"learning_rate got {learning_rate}, expected None (or 1): an optax optimizer carries its own rate, "
                "which this one would multiply: leave one out, or pass ln.unit_rate(optax.adam(1.0))."
            )
        return _Constant(1.0)
    if learning_rate is None:
        raise ValueError(
            "learning_rate is missing, expected a number or a function of the step: sgd has none itself."
        )
    if callable(learning_rate):
        return _Checked(learning_rate)
    return _Constant(guards.number("learning_rate", learning_rate, at_least=0))


@dataclasses.dataclass(frozen=True)
class _Constant:
    rate: float

    def __call__(self, step):
        return self.rate


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A schedule, each value of which is a number on the host before the step starts."""

    schedule: Callable[[int], Any]

    def __call__(self, step):
        return guards.number(f"learning_rate({step})", self.schedule(step), at_least=0)


def inverse_epoch_decay(
    learning_rate: float, steps_per_epoch: int, *, decay: float = 1 / 3
) -> Callable[[int], float]:
    """Learning rate `lr(epoch) = lr0 / (1 + decay * epoch)`, constant within an epoch, as a function of the step.

    Args:
        learning_rate: lr0, the rate of epoch 0.
        steps_per_epoch: `len(x) // batch_size`.
        decay: Per epoch; after 1/decay epochs the rate is half of lr0.

    Raises:
        ValueError: If the rate is not positive, there is less than one step per epoch, or the decay
            is negative.
        TypeError: If the number of steps is no integer.

    Example:
        >>> rate = inverse_epoch_decay(0.3, 100)
        >>> round(rate(0), 6), round(rate(99), 6), round(rate(300), 6)
        (0.3, 0.3, 0.15)
    """
    return _InverseEpochDecay(
        guards.rate(learning_rate),
        guards.count("steps_per_epoch", steps_per_epoch),
        guards.number("decay", decay, at_least=0),
    )


@dataclasses.dataclass(frozen=True)
class _InverseEpochDecay:
    learning_rate: float
    steps_per_epoch: int
    decay: float

    def __call__(self, step):
        return self.learning_rate / (1 + self.decay * (step // self.steps_per_epoch))


def check_optimizer(
    objective: Objective, optimizer: SGD | UnitRate | optax.GradientTransformation
) -> None:
    """Refuses optimizers of a lazy function whose updates do not scale with the gradient or depend on the weights.

    Only the others commute with u = alpha (w - w0). At alpha = inf the variable is the tangent
    itself, no change of it, and every optimizer passes.

    Raises:
        ValueError: If `objective` is that of a lazy function of finite alpha and the optimizer does
            not commute.

    Example:
        >>> from lazynet import mse, objective
        >>> check_optimizer(objective(lambda w, x: x @ w, mse), optax.adam(1.0))
    """
    lazy_function = lazy_below(objective.apply)
    if isinstance(optimizer, SGD) or lazy_function is None or lazy_function.is_tangent:
        return
    # A transformation says nothing of itself: three steps with made-up gradients show whether its
    # updates scale with gradients, and whether they depend on weights.
    params = {"w": jnp.array([0.3, -1.2, 2.0]), "b": jnp.array([[0.7]])}
    grads = [jax.tree.map(lambda p, s=s: jnp.cos(s + p), params) for s in (0.0, 1.0, 2.0)]

    def updates(params, factor):
        state = optimizer.init(params)
        seen = []
        for g in grads:
            scaled = jax.tree.map(lambda leaf: factor * leaf, g)
            update, state = optimizer.update(scaled, state, params)
            seen.append(jax.tree.map(lambda leaf: leaf / factor, update))
        return seen

    # Other people's transformations need not hold under the strict promotion that a user has set.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        reference = updates(params, 1.0)
        # Gradients far below any decay and far above any bound at which they are clipped.
        small = updates(params, 1e-8)
        large = updates(params, 1e8)
        elsewhere = jax.tree.map(lambda p: 5.0 * p + 1.0, params)
        ignores_weights = _close(small, updates(elsewhere, 1e-8))
        scales = _close(reference, small) and _close(reference, large)
    if ignores_weights and scales:
        return
    reason = (
        "its updates do not scale with the gradient, as those of Adam or of gradient clipping"
        if ignores_weights
        else "its updates depend on the weights, as with weight decay"
    )
    raise ValueError(
        f"the optimizer cannot train a lazy function: {reason}. In u = alpha (w - w0) it would "
        "be another algorithm for every alpha: use sgd(momentum), or alpha = inf, where u is the tangent itself and "
        "any optimizer will do."
    )


def _check_transformation(optimizer):
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            f"optimizer got {optimizer!r}, expected an object with init and update: sgd(momentum), or an optax "
            "transformation such as optax.adam(1e-2)."
        )


def _close(a, b):
    """Whether updates agree up to 1e-4 of the largest of them, whatever the rate they were multiplied by."""
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(a))
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=0, atol=1e-4 * largest) for x, y in pairs)
