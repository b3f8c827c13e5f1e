"""Gradient descent in dual coefficients: a closed form for full batches on `mse`, else a loop."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key, Num, Shaped

from lazynet import guards
from lazynet.datasets.batches import epoch_order
from lazynet.dynamics.checks import check_batches, check_steps, check_targets, formed, modes
from lazynet.dynamics.flow import Solution, closed_form, kernel_outputs
from lazynet.linalg import Eigen, check_positive, columns_of, kernel_matrix
from lazynet.losses import check_labels, mse
from lazynet.programs import PerFunction
from lazynet.typing import Array, ArrayLike, LossFn


def solve_descent(
    ntk: Float[ArrayLike, "n1 n2 ..."] | Eigen,
    y: Shaped[ArrayLike, "..."],
    *,
    learning_rate: float | int,
    momentum: float | int = 0.0,
    save_at: Num[ArrayLike, "..."] | Sequence[int] | int,
    loss: LossFn = mse,
    batch_size: int | None = None,
    key: Key[Array, ""] | None = None,
    f0: Float[ArrayLike, "..."] | None = None,
    tolerance: float | int | None = None,
) -> Solution:
    """Outputs and dual coefficients of gradient descent: `v <- m v + grad_f L(f); a <- a - lr v; f = f0 + Theta a`.

    For full batches on `mse` each eigenmode of the kernel is an affine map of (a, v), raised to the
    number of steps by repeated squaring. With minibatches or another loss the steps are simulated
    on the host; one costs the rows of the kernel in its batch, and the kernel is not copied.

    Args:
        ntk: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`; for full batches on `mse`
            also its `linalg.psd_eigh`.
        y: Training targets, `[n, k]`.
        learning_rate: Step size lr > 0.
        momentum: Heavy-ball momentum m in [0, 1).
        save_at: Increasing numbers of steps >= 0.
        loss: Loss averaged over examples, those of the batch in a step with a minibatch.
        batch_size: Examples per step; None for full batch.
        key: Draws the batches as `train` does: epoch e is the permutation of `fold_in(key, e)`, its
            incomplete last batch is dropped.
        f0: Training outputs at step 0, `[n, k]`; zero if left out.
        tolerance: Size below which an eigenvalue counts as zero for full batches on `mse`; None for
            zero itself, as finitely many steps amplify no rounding.

    Raises:
        ValueError: If shapes do not fit, steps do not increase, a rate or the batch size is out of
            range, minibatches have no key, targets are none of the loss, or the kernel is no kernel
            (where steps are simulated, as far as a few products show).
        TypeError: If an argument is no array of real numbers, or traced.

    Example:
        >>> solve_descent(np.eye(1), np.ones((1, 1)), learning_rate=0.5, save_at=[0, 1, 2]).outputs[:, 0, 0].tolist()
        [0.0, 0.5, 0.75]
    """
    guards.concrete("solve_descent", ntk, y, learning_rate, momentum, save_at, key, f0, tolerance)
    guards.function("loss", loss, "pass lazynet.mse or another loss(outputs, targets)")
    y, f0 = check_targets(ntk, y, f0)
    step = check_steps(save_at)
    learning_rate = guards.rate(learning_rate)
    momentum = guards.momentum(momentum)
    batch_size = check_batches(batch_size, key, len(y))
    if loss is mse and batch_size == len(y):
        eigen, ndim = modes(ntk, len(y), step, tolerance)
        weights = _descent_weights(eigen.values, len(y), learning_rate, momentum, step)
        return closed_form(eigen, weights, y, f0, ndim)
    kernel = formed(ntk)
    check_positive(kernel_matrix(kernel))
    check_labels(loss, y)
    coefficients = _simulate(kernel, y, f0, loss, learning_rate, momentum, step, key, batch_size)
    return Solution(kernel_outputs(kernel, coefficients, f0), coefficients)


def _simulate(ntk, y, f0, loss, learning_rate, momentum, step, key, batch_size):
    """Dual coefficients at the given steps, `[s, n, k]`."""
    coefficients = np.zeros_like(y)
    velocity = np.zeros_like(y)
    saved = []
    batches = _batches(key, len(y), batch_size)
    # At a rate that is too large values overflow, which the curve shows.
    with np.errstate(over="ignore", invalid="ignore"):
        for steps in np.diff(step, prepend=0):
            for _ in range(steps):
                rows = next(batches)
                # The gradient by a_i is zero outside of the batch; momentum moves all coefficients.
                velocity *= momentum
                velocity[rows] += _slope(loss, _outputs(ntk[rows], coefficients, f0[rows]), y[rows])
                coefficients = coefficients - learning_rate * velocity
            saved.append(coefficients)
    return np.stack(saved)


def _batches(key, n, batch_size):
    """Rows of one batch after the other, without end: the order of `lazynet.train`."""
    epoch = 0
    while True:
        order = np.arange(n) if batch_size == n else np.asarray(epoch_order(key, epoch, n))
        for start in range(0, n - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
        epoch += 1


def _outputs(rows, coefficients, f0):
    columns = columns_of(coefficients, rows.ndim)
    return f0 + (np.asarray(kernel_matrix(rows), np.float64) @ columns).reshape(f0.shape)


def _slope(loss, outputs, y):
    """`grad_f L(f)`; that of `mse` in float64 also where x64 is off."""
    if loss is mse:
        return (outputs - y) / len(y)
    return np.asarray(_gradient(loss, outputs, y), np.float64)


@functools.partial(PerFunction, static_argnums=(0,))
def _gradient(loss, outputs, y):
    return jax.grad(loss)(jnp.asarray(outputs), jnp.asarray(y))


def _descent_weights(values, n, learning_rate, momentum, step):
    """Dual coefficient per save point and mode, for a residual y - f0 of one."""
    change = _change_per_step(values, n, learning_rate, momentum)
    state = np.zeros((len(values), 3, 1))
    state[:, 2] = 1.0  # the one of (a, v, 1), which carries the targets
    weights = []
    with np.errstate(over="ignore", invalid="ignore"):
        for steps in np.diff(step, prepend=0):
            state = state + _change_after(change, int(steps)) @ state
            weights.append(state[:, 0, 0])
    return np.stack(weights)


def _change_per_step(values, n, learning_rate, momentum):
    """`M - I` of the affine map M of (a, v, 1) that one step is, per mode."""
    # v <- m v + (lambda a - 1) / n, then a <- a - lr v with the v that is new.
    rate = values / n
    zero = np.zeros_like(values)
    velocity = np.stack([rate, zero + momentum, zero - 1 / n], axis=-1)
    rows = [
        -learning_rate * velocity,
        velocity - np.array([0.0, 1.0, 0.0]),
        np.stack([zero] * 3, axis=-1),
    ]
    return np.stack(rows, axis=-2)


def _change_after(change, steps):
    """`M^steps - I` by repeated squaring of `D = M - I`, which keeps the digits of eigenvalues far below one."""
    total = np.zeros_like(change)
    while steps:
        if steps % 2:
            # (I + D)(I + T) = I + T + D + D T.
            total = total + change + change @ total
        # (I + D)^2 = I + 2 D + D^2.
        change = 2 * change + change @ change
        steps = steps // 2
    return total
