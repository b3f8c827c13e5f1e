"""Optimizers that commute with u = alpha (w - w0), the test of those that do not, and learning rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lazynet.lazy import is_lazy_function
from lazynet.losses import Objective
from lazynet.typing import Params

__all__ = ["SGD", "check_optimizer", "inverse_epoch_decay", "sgd"]


@dataclasses.dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, as an optax transformation that knows its momentum; see `sgd`."""

    momentum: float = 0.0
    nesterov: bool = False

    def init(self, params: Params) -> Any:
        """Velocity v = 0."""
        return self._transformation.init(params)

    def update(self, grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        """The update `-v` of the new velocity `v <- momentum v + g`."""
        return self._transformation.update(grads, state, params)

    @property
    def _transformation(self):
        return optax.sgd(1.0, self.momentum or None, self.nesterov)


def sgd(momentum: float = 0.0, nesterov: bool = False) -> SGD:
    """Optimizer `v <- momentum v + g, w <- w - learning_rate v`; `train` supplies the learning rate.

    It is covariant under u = alpha (w - w0): the same steps in u and in w give the same function, which is what makes
    an alpha sweep a sweep of one thing only.

    Args:
        momentum: In [0, 1).
        nesterov: Whether to look ahead.

    Raises:
        ValueError: If the momentum is outside [0, 1).

    Example:
        >>> sgd(0.9) == sgd(0.9), sgd(0.9).momentum
        (True, 0.9)
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"sgd got momentum={momentum}, expected 0 <= momentum < 1.")
    return SGD(float(momentum), nesterov)


def inverse_epoch_decay(learning_rate: float, steps_per_epoch: int, *, decay: float = 1 / 3) -> Callable[[int], float]:
    """Learning rate `lr(epoch) = lr0 / (1 + decay * epoch)`, constant within an epoch, as a function of the step.

    Args:
        learning_rate: lr0, the rate of epoch 0.
        steps_per_epoch: `len(x) // batch_size`.
        decay: Per epoch; after 1/decay epochs the rate is half of lr0.

    Raises:
        ValueError: If there is less than one step per epoch, or the decay is negative.

    Example:
        >>> rate = inverse_epoch_decay(0.3, 100)
        >>> round(rate(0), 6), round(rate(99), 6), round(rate(300), 6)
        (0.3, 0.3, 0.15)
    """
    if steps_per_epoch < 1 or decay < 0:
        raise ValueError(
            f"inverse_epoch_decay got steps_per_epoch={steps_per_epoch} and decay={decay}, expected at least 1 step "
            "and decay >= 0."
        )
    return lambda step: learning_rate / (1 + decay * (step // steps_per_epoch))


def check_optimizer(objective: Objective, optimizer: SGD | optax.GradientTransformation) -> None:
    """Refuses optimizers of a lazy function whose updates do not scale with the gradient or depend on the weights.

    Only the others commute with u = alpha (w - w0).

    Raises:
        ValueError: If `objective` is that of a lazy function and the optimizer does not commute.

    Example:
        >>> from lazynet import mse, objective
        >>> check_optimizer(objective(lambda w, x: x @ w, mse), optax.adam(1.0))
    """
    if isinstance(optimizer, SGD) or not is_lazy_function(objective.apply):
        return
    params = {"w": jnp.array([0.3, -1.2, 2.0]), "b": jnp.array([[0.7]])}
    grads = [jax.tree.map(lambda p, s=s: jnp.cos(s + p), params) for s in (0.0, 1.0, 2.0)]

    def updates(params, factor):
        state, seen = optimizer.init(params), []
        for g in grads:
            update, state = optimizer.update(jax.tree.map(lambda leaf: factor * leaf, g), state, params)
            seen.append(jax.tree.map(lambda leaf: leaf / factor, update))
        return seen

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        reference = updates(params, 1.0)
        ignores_weights = _close(reference, updates(jax.tree.map(lambda p: 5.0 * p + 1.0, params), 1.0))
        scales = all(_close(reference, updates(params, factor)) for factor in (1e-3, 1e3))
    if ignores_weights and scales:
        return
    reason = (
        "its updates do not scale with the gradient, as those of Adam or of gradient clipping"
        if ignores_weights
        else "its updates depend on the weights, as with weight decay"
    )
    raise ValueError(
        f"the optimizer cannot train a lazy function: {reason}. In u = alpha (w - w0) it would "
        "be another algorithm for every alpha: use sgd(momentum)."
    )


def _close(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in pairs)
