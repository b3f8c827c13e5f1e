"""What the functions of `lazynet.dynamics` require of their arguments."""

from __future__ import annotations

import numpy as np

from lazynet import guards
from lazynet.linalg import (
    Eigen,
    check_digits,
    checked_ridge,
    checked_tolerance,
    kernel_matrix,
    psd_eigh,
    ridge_eigh,
)


def targets(data):
    """The targets of training examples."""
    if not hasattr(data, "y"):
        raise TypeError(
            f"data got a {type(data).__name__}, expected examples with targets: pass Data(x, y)."
        )
    return data.y


def check_targets(kernel, y, f0, name="y"):
    """Targets and initial outputs in float64, after checking that they and a kernel that is formed belong together."""
    y = np.asarray(guards.numbers(name, y), np.float64)
    if y.ndim != 2 or not y.size:
        raise ValueError(
            f"{name}: targets of shape {y.shape}, expected [n, k], not empty: reshape scalar targets by y[:, None]."
        )
    guards.finite(name, y)
    if isinstance(kernel, Eigen):
        _check_eigen(kernel, *y.shape)
    elif kernel is not None and not callable(kernel):
        check_kernel("kernel", kernel, len(y), *y.shape)
    return y, np.zeros_like(y) if f0 is None else check_outputs("f0", f0, y.shape)


def check_finite_kernel(name, kernel):
    """Refuses a kernel with NaN or infinity, of any number of axes."""
    guards.finite(
        name,
        kernel,
        "check the inputs of the kernel for NaN, and deep float32 kernels for overflow",
    )


def check_kernel(name, kernel, rows, n, k):
    """Refuses a kernel that is not [rows, n] or [rows, n, k, k]."""
    check_kernel_shape(name, guards.numbers(name, kernel).shape, rows, n, k)


def check_kernel_shape(name, shape, rows, n, k):
    """`check_kernel` of a shape alone, which traced values have too."""
    if shape not in ((rows, n), (rows, n, k, k)):
        raise ValueError(
            f"{name} has shape {shape}, expected {(rows, n)}, or {(rows, n, k, k)} for the "
            f"full empirical kernel, with {n} training examples and {k} outputs."
        )


def decompose(kernel, n, ridge, tolerance) -> tuple[Eigen, int]:
    """Eigendecomposition of a kernel of n inputs for inverses from a ridge on, and the kernel's number of axes."""
    if isinstance(kernel, Eigen):
        return _given(kernel, n, tolerance)
    return ridge_eigh(kernel_matrix(kernel), ridge, tolerance=tolerance), np.ndim(kernel)


def modes(kernel, n, time, tolerance) -> tuple[Eigen, int]:
    """`decompose` for dynamics: no eigenvalue is negative, and those below a tolerance that is given are zero."""
    if isinstance(kernel, Eigen):
        eigen, ndim = _given(kernel, n, tolerance)
    else:
        matrix = kernel_matrix(kernel)
        eigen = psd_eigh(matrix, tolerance=tolerance)
        ndim = np.ndim(kernel)
        # The limit alone divides by eigenvalues; finite times amplify no rounding.
        if tolerance is None and np.isinf(time[-1]):
            check_digits(matrix, eigen, 0.0)
    if tolerance is None:
        return eigen, ndim
    return eigen._replace(values=np.where(eigen.values < eigen.tolerance, 0.0, eigen.values)), ndim


def _given(eigen: Eigen, n, tolerance):
    if tolerance is not None:
        eigen = eigen._replace(tolerance=checked_tolerance(tolerance, eigen.vectors))
    # Of n k eigenvalues the kernel was a full one.
    return eigen, 2 if len(eigen.values) == n else 4


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
    outputs = np.asarray(guards.numbers(name, outputs), np.float64)
    if outputs.shape != shape:
        raise ValueError(
            f"{name} has shape {outputs.shape}, expected outputs of shape {shape}: "
            "evaluate the model at its initial parameters."
        )
    guards.finite(name, outputs, "evaluate the model at finite parameters")
    return outputs


def check_times(time):
    """Times in float64: one axis, increasing from 0 or later."""
    values = guards.numbers("time", time)
    if values.dtype == bool:
        raise TypeError(f"time got {time}, expected increasing times >= 0: booleans are no times.")
    time = np.atleast_1d(np.asarray(values, np.float64))
    if time.ndim != 1 or not len(time) or not time[0] >= 0 or not (time[1:] > time[:-1]).all():
        found = f"an array of shape {time.shape}" if time.ndim != 1 or time.size > 20 else time
        raise ValueError(
            f"time got {found}, expected one axis of increasing times >= 0, of which the last may be inf."
        )
    return time


def check_steps(save_at):
    """Numbers of steps as integers: one axis, increasing from 0 or later; 10.0 is a whole number, 0.5 is not."""
    step = np.atleast_1d(guards.numbers("save_at", save_at))
    is_whole = np.isfinite(step).all() and (step == np.floor(step)).all()
    if step.ndim != 1 or step.dtype == bool or not is_whole:
        raise ValueError(
            f"save_at got {save_at}, expected one axis of increasing integers >= 0, numbers of steps."
        )
    return np.asarray(guards.steps(step.astype(int)))


def check_batches(batch_size, key, n):
    """The number of examples per step, after checking that minibatches have a key."""
    size = guards.batch_size(batch_size, n)
    if size < n and key is None:
        raise ValueError(
            f"batch_size = {size} without key, expected the key that draws the batches."
        )
    return size


def check_ridges(ridge):
    """Ridges as one axis of finite numbers >= 0."""
    ridges = np.atleast_1d(guards.numbers("ridge", ridge))
    if ridges.ndim != 1 or not len(ridges):
        raise ValueError(
            f"ridge of shape {np.shape(ridge)}, expected one number or one axis of them, not empty."
        )
    return np.array([checked_ridge(value) for value in ridges])
