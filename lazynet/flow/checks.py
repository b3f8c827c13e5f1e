"""What the functions of `lazynet.flow` require of their arguments."""

from __future__ import annotations

import numpy as np

from lazynet import guards, linalg
from lazynet.linalg import Eigen, kernel_matrix, psd_eigh


def check_targets(kernel, y, f0):
    """Targets and initial outputs in float64, after checking that they and the kernel, if formed, belong together."""
    y = np.asarray(y, np.float64)
    if y.ndim != 2:
        raise ValueError(f"targets of shape {y.shape}, expected [n, k]: reshape scalar targets by y[:, None].")
    guards.finite("y", y)
    if isinstance(kernel, Eigen):
        _check_eigen(kernel, *y.shape)
    elif not callable(kernel):
        check_kernel("kernel of the training inputs", kernel, len(y), *y.shape)
    return y, np.zeros_like(y) if f0 is None else check_outputs("f0", f0, y.shape)


def check_finite_kernel(name, kernel):
    """Refuses a kernel with NaN or infinity, of any number of axes."""
    guards.finite(name, kernel, "check the inputs of the kernel for NaN, and deep float32 kernels for overflow")


def check_kernel(name, kernel, rows, n, k):
    """Refuses a kernel that is not [rows, n] or [rows, n, k, k]."""
    if np.shape(kernel) not in ((rows, n), (rows, n, k, k)):
        raise ValueError(
            f"{name} has shape {np.shape(kernel)}, expected {(rows, n)}, or {(rows, n, k, k)} for the "
            f"full empirical kernel, with {n} training examples and {k} outputs."
        )


def decompose(kernel, n) -> tuple[Eigen, int]:
    """The eigendecomposition of a kernel of n training inputs, unless it is one, and the kernel's number of axes."""
    if isinstance(kernel, Eigen):
        return kernel, 2 if len(kernel.values) == n else 4
    return psd_eigh(kernel_matrix(kernel)), np.ndim(kernel)


def _check_eigen(eigen, n, k):
    if len(eigen.values) not in (n, n * k) or eigen.values[0] < 0:
        raise ValueError(
            f"eigendecomposition of size {len(eigen.values)} with lambda_min = {eigen.values[0]:.3g}, expected the "
            f"size {n} or {n * k} and no negative eigenvalue: use linalg.psd_eigh(linalg.kernel_matrix(kernel))."
        )


def formed(kernel) -> np.ndarray:
    """The kernel on the host, after refusing an eigendecomposition where its entries are needed."""
    if isinstance(kernel, Eigen):
        raise ValueError(
            "kernel is an eigendecomposition, which serves mse by full batches only: pass the kernel, which is needed "
            "here entry by entry."
        )
    return np.asarray(kernel)


def check_outputs(name, outputs, shape):
    """Outputs at time 0 in float64, after checking their shape."""
    outputs = np.asarray(outputs, np.float64)
    if outputs.shape != shape:
        raise ValueError(
            f"{name} has shape {outputs.shape}, expected outputs of shape {shape}: "
            "evaluate the model at its initial parameters."
        )
    guards.finite(name, outputs, "evaluate the model at finite parameters")
    return outputs


def check_times(time):
    """Times in float64: one axis, increasing from 0 or later."""
    time = np.atleast_1d(np.asarray(time, np.float64))
    if time.ndim != 1 or not len(time) or not time[0] >= 0 or not (time[1:] > time[:-1]).all():
        raise ValueError(f"time = {time}, expected one axis of increasing times >= 0, of which the last may be inf.")
    return time


def check_steps(save_at):
    """Numbers of steps as integers: one axis, increasing from 0 or later."""
    step = np.atleast_1d(np.asarray(save_at))
    if step.ndim != 1 or not len(step) or step[0] < 0 or (np.diff(step) <= 0).any() or (step != step.astype(int)).any():
        raise ValueError(f"save_at = {step}, expected one axis of increasing integers >= 0, numbers of steps.")
    return step.astype(int)


def check_rates(learning_rate, momentum):
    """Refuses a learning rate or a momentum that is out of range."""
    if not (np.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate = {learning_rate}, expected a finite number > 0.")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum = {momentum}, expected a number in [0, 1): 1 never forgets a gradient.")


def check_batches(batch_size, key, n):
    """The number of examples per step, after checking that minibatches have a key."""
    if batch_size is not None and not 1 <= batch_size <= n:
        raise ValueError(f"batch_size = {batch_size}, expected between 1 and the {n} training examples, or None.")
    if batch_size is not None and batch_size < n and key is None:
        raise ValueError(f"batch_size = {batch_size} without key, expected the key that draws the batches.")
    return batch_size or n


def check_ridges(ridge):
    """Ridges as one axis of finite numbers >= 0."""
    ridges = np.atleast_1d(np.asarray(ridge, np.float64))
    for value in ridges:
        linalg.check_ridge(float(value))
    return ridges
