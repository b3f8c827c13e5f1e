"""Training curves of kernel dynamics."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key, Num

from lazynet import guards
from lazynet.dynamics import traced
from lazynet.dynamics.checks import (
    check_finite_kernel,
    check_kernel,
    check_steps,
    check_targets,
    check_times,
    targets,
)
from lazynet.dynamics.descent import solve_descent
from lazynet.dynamics.flow import Solution, kernel_outputs, solve_flow
from lazynet.linalg import Eigen
from lazynet.losses import accuracy, check_labels, mse
from lazynet.records import Data, Trajectory
from lazynet.trees import is_traced
from lazynet.typing import Array, ArrayLike, LossFn


def gradient_flow(
    ntk: Float[ArrayLike, "n1 n2 ..."] | Eigen,
    data: Data,
    *,
    time: Num[ArrayLike, "..."] | Sequence[float | int] | float | int,
    loss: LossFn = mse,
    f0: Float[ArrayLike, "..."] | None = None,
    cross: Float[ArrayLike, "m1 m2 ..."] | None = None,
    test: Data | None = None,
    f0_test: Float[ArrayLike, "..."] | None = None,
    friction: float | int | None = None,
    rtol: float = 1e-11,
    tolerance: float | int | None = None,
) -> Trajectory:
    """Curve of the kernel gradient flow `df/dt = -Theta grad_f L(f)`: training by infinitely small steps.

    This is what a linearized network, or an infinitely wide one, does as the learning rate goes to
    zero. It draws on the same axis as training: `time = learning_rate * step / (1 - momentum)`.
    Under jit, grad and vmap as `solve_flow`: on `mse` at finite times.

    Args:
        ntk: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`, or its `linalg.psd_eigh`
            where there is a closed form: one decomposition then serves several curves and
            regressions.
        data: Training examples; only the targets are used.
        time: Increasing times >= 0; the last may be infinite for `mse`.
        loss: `mse` is solved in closed form, any other loss by integration (see `solve_flow`).
        f0: Training outputs at time 0, `[n, k]`; zero if left out (a centered or symmetrized
            model).
        cross: Kernel between test and training inputs, `[m, n]` or `[m, n, k, k]`.
        test: Test examples; only the targets are used.
        f0_test: Test outputs at time 0, `[m, k]`; required with `cross` when `f0` is given.
        friction: gamma > 0 replaces the flow by that of the heavy ball, as in `solve_flow`.
        rtol: Relative error allowed in a step of an integration.
        tolerance: Size below which an eigenvalue counts as zero, as in `solve_flow`.

    Returns:
        Trajectory with metrics train_loss and train_accuracy, and test_loss and test_accuracy if
        there is a test set; `step` is -1 throughout.

    Raises:
        ValueError: If shapes do not fit, times do not increase, or the kernel is no kernel.

    Example:
        >>> data = Data(x=np.zeros((2, 1)), y=np.array([[1.0], [-1.0]]))
        >>> curve = gradient_flow(np.eye(2), data, time=[0.0, 2.0, np.inf])
        >>> curve.metrics["train_loss"].round(6).tolist()  # (1/2) exp(-2 t / n)
        [0.5, 0.067668, 0.0]
    """
    if is_traced((ntk, targets(data), time, f0, cross, test, f0_test)):
        # Values that are traced cannot be checked, but for which of them are there.
        times = traced.times(time)
        _check_pairs(f0, cross, test, f0_test)
    else:
        times = check_times(time)
        _check_test(data, f0, cross, test, f0_test, loss)
    solution = solve_flow(
        ntk, data.y, time=times, loss=loss, f0=f0, friction=friction, rtol=rtol, tolerance=tolerance
    )
    metrics = _metrics(solution, data, loss, f0, cross, test, f0_test)
    return Trajectory(np.full(len(times), -1), times, metrics, None, None)


def gradient_descent(
    ntk: Float[ArrayLike, "n1 n2 ..."] | Eigen,
    data: Data,
    *,
    learning_rate: float | int,
    momentum: float | int = 0.0,
    save_at: Num[ArrayLike, "..."] | Sequence[int] | int,
    loss: LossFn = mse,
    batch_size: int | None = None,
    key: Key[Array, ""] | None = None,
    f0: Float[ArrayLike, "..."] | None = None,
    cross: Float[ArrayLike, "m1 m2 ..."] | None = None,
    test: Data | None = None,
    f0_test: Float[ArrayLike, "..."] | None = None,
    tolerance: float | int | None = None,
) -> Trajectory:
    """Curve of gradient descent in function space, for full batches on `mse` `f_s - y = (I - lr Theta/n)^s (f_0 - y)`.

    Training of a linearized network by `train`, step for step, also with momentum, with minibatches
    in the same order, and with other losses. Full batches on `mse` are not simulated: any number of
    steps costs one eigendecomposition. A learning rate above `max_learning_rate` diverges here as
    it does in training.

    Args:
        ntk: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`, or its `linalg.psd_eigh`
            where there is a closed form: one decomposition then serves several curves and
            regressions.
        data: Training examples; only the targets are used.
        learning_rate: Step size lr > 0.
        momentum: Heavy-ball momentum m in [0, 1): `v <- m v + g; w <- w - lr v`.
        save_at: Increasing numbers of steps >= 0 at which to record.
        loss: Loss averaged over examples.
        batch_size: Examples per step; None for full batch.
        key: Draws the batches, in the order of `train` with the same key.
        f0: Training outputs at step 0, `[n, k]`; zero if left out.
        cross: Kernel between test and training inputs, `[m, n]` or `[m, n, k, k]`.
        test: Test examples; only the targets are used.
        f0_test: Test outputs at step 0, `[m, k]`; required with `cross` when `f0` is given.
        tolerance: Size below which an eigenvalue counts as zero, as in `solve_descent`.

    Returns:
        Trajectory as from `gradient_flow`, with `time = learning_rate * step / (1 - momentum)`.

    Raises:
        ValueError: If shapes do not fit, steps do not increase, a rate or the batch size is out of
            range, minibatches have no key, or the kernel is no kernel.

    Example:
        >>> data = Data(x=np.zeros((2, 1)), y=np.array([[1.0], [-1.0]]))
        >>> curve = gradient_descent(np.eye(2), data, learning_rate=1.0, save_at=[0, 1, 2])
        >>> curve.metrics["train_loss"].tolist()  # (1/2) (1 - lr/n)^(2s)
        [0.5, 0.125, 0.03125]
    """
    settings = learning_rate, momentum, save_at, key, tolerance
    arrays = ntk, targets(data), f0, cross, test, f0_test
    guards.concrete("gradient_descent", *arrays, *settings)
    step = check_steps(save_at)
    learning_rate = guards.rate(learning_rate)
    momentum = guards.momentum(momentum)
    _check_test(data, f0, cross, test, f0_test, loss)
    solution = solve_descent(
        ntk,
        data.y,
        learning_rate=learning_rate,
        momentum=momentum,
        save_at=step,
        loss=loss,
        batch_size=batch_size,
        key=key,
        f0=f0,
        tolerance=tolerance,
    )
    metrics = _metrics(solution, data, loss, f0, cross, test, f0_test)
    bad = np.flatnonzero(~np.isfinite(metrics["train_loss"]))
    diverged_at = int(step[bad[0]]) if len(bad) else None
    return Trajectory(step, learning_rate * step / (1 - momentum), metrics, None, diverged_at)


def _check_test(data, f0, cross, test, f0_test, loss):
    """Kernel, targets and initial outputs of a test set, before the dynamics are solved."""
    _check_pairs(f0, cross, test, f0_test)
    if test is None:
        return
    n, k = check_targets(None, data.y, None)[0].shape
    y, _ = check_targets(None, targets(test), f0_test, "test.y")
    if y.shape[1] != k:
        raise ValueError(
            f"test.y of shape {y.shape}, expected {k} outputs like the training targets."
        )
    check_labels(loss, y, "test.y")
    check_kernel("cross", cross, len(y), n, k)
    check_finite_kernel("cross", cross)


def _check_pairs(f0, cross, test, f0_test):
    if (cross is None) != (test is None):
        raise ValueError(
            f"got {'test' if cross is None else 'cross'} alone, expected both cross (kernel between test "
            "and training inputs) and test (the test examples), or neither."
        )
    if test is not None and f0 is not None and f0_test is None:
        raise ValueError(
            "got f0 without f0_test, expected both: test outputs at time 0 are not zero when training outputs are not."
        )


def _metrics(solution: Solution, data, loss, f0, cross, test, f0_test):
    curves = _curves("train", solution.outputs, data.y, loss)
    if test is None:
        return curves
    test_outputs = kernel_outputs(cross, solution.coefficients, f0_test)
    return curves | _curves("test", test_outputs, test.y, loss)


def _curves(name, outputs, y, loss):
    measures = {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
    if is_traced((outputs, y)):
        y = jnp.asarray(y).astype(outputs.dtype)
        return {key: jax.vmap(measure, (0, None))(outputs, y) for key, measure in measures.items()}
    curves = {}
    if loss is mse:
        # In float64 also where x64 is off, as the outputs are.
        with np.errstate(over="ignore", invalid="ignore"):
            squares = (np.asarray(outputs) - np.asarray(y, np.float64)) ** 2
            curves[f"{name}_loss"] = squares.sum((1, 2)) / (2 * len(y))
        del measures[f"{name}_loss"]
    outputs = jnp.asarray(outputs, jnp.result_type(float))
    y = jnp.asarray(y, jnp.result_type(float))
    for key, measure in measures.items():
        curves[key] = np.asarray(jax.vmap(measure, (0, None))(outputs, y), np.float64)
    return curves
