"""The predictors of neural-tangents, by name and convention, over `lazynet.flow`.

A script that uses `neural_tangents.predict` runs after changing the import. Its conventions differ from the rest of
lazynet: the square loss is half the mean over examples *and outputs*, `t` counts steps of size `learning_rate`, and
`diag_reg` is relative to the mean of the kernel's diagonal. Differences from neural-tangents: targets are `[n, k]`,
computations are float64 on the host (predictors cannot be traced by `jax.jit`), singular kernels have their limits
where neural-tangents gives NaN, and a momentum state cannot be passed in to resume. Nothing is cached between calls:
ask for all times at once.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from lazynet import flow
from lazynet.flow import Gaussian
from lazynet.losses import mse
from lazynet.records import Data, Gram
from lazynet.typing import Array, ArrayLike, LossFn

__all__ = [
    "Gaussian",
    "gp_inference",
    "gradient_descent",
    "gradient_descent_mse",
    "gradient_descent_mse_ensemble",
    "max_learning_rate",
]

Kernels = Any
"""An array, or an object with attributes `nngp` and `ntk`."""

Get = str | Sequence[str] | None


def gradient_descent_mse(
    k_train_train: Float[ArrayLike, "n1 n2 ..."],
    y_train: Float[ArrayLike, "n k"],
    learning_rate: float | int = 1.0,
    diag_reg: float | int = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> Callable[..., Any]:
    """Outputs of gradient flow on the loss `1/(2 n k) sum |f - y|^2`: `df/dt = -Theta (f - y) learning_rate / (n k)`.

    Args:
        k_train_train: Kernel of the training inputs, `[n, n]`, or `[n, n, k, k]` with `trace_axes=()`.
        y_train: Training targets.
        learning_rate: Size of a step: time is `learning_rate * t`.
        diag_reg: Ridge added to the kernel.
        diag_reg_absolute_scale: Whether `diag_reg` is absolute, not relative to the mean diagonal entry.
        trace_axes: `(-1,)` if the kernel lacks the axes of the outputs, `()` if it has them.

    Returns:
        `predict_fn(t=None, fx_train_0=0.0, fx_test_0=None, k_test_train=None)`: training outputs, test outputs if
        `fx_train_0` is None, or both; axes of t come first; t=None is infinity.

    Raises:
        ValueError: If shapes do not fit or the kernel is no kernel.

    Example:
        >>> predict_fn = gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)))
        >>> predict_fn(t=None, fx_test_0=0.0, k_test_train=jnp.ones((1, 2)))[1].tolist()
        [[2.0]]
    """
    _check_trace_axes(k_train_train, y_train, trace_axes)
    kernel = _regularized(k_train_train, diag_reg, diag_reg_absolute_scale)
    return _predictor(kernel, y_train, mse, learning_rate / np.shape(y_train)[1], None)


def gradient_descent(
    loss: LossFn,
    k_train_train: Float[ArrayLike, "n1 n2 ..."],
    y_train: Float[ArrayLike, "n k"],
    learning_rate: float | int = 1.0,
    momentum: float | int | None = None,
    trace_axes: int | Sequence[int] = (-1,),
) -> Callable[..., Any]:
    """Outputs of gradient flow on any loss: `df/dt = -Theta grad_f loss(f, y) learning_rate`, or of its heavy ball.

    With momentum m the outputs obey `f'' = -Theta grad_f loss - (1 - m)/sqrt(learning_rate) f'`, and `t` counts steps
    of size `sqrt(learning_rate)`.

    Args:
        loss: Scalar `loss(f, y)`, normalized as it is to be descended.
        k_train_train: Kernel of the training inputs, `[n, n]`, or `[n, n, k, k]` with `trace_axes=()`.
        y_train: Training targets.
        learning_rate: Size of a step.
        momentum: Heavy-ball momentum in [0, 1), or None for plain gradient flow.
        trace_axes: `(-1,)` if the kernel lacks the axes of the outputs, `()` if it has them.

    Returns:
        `predict_fn(t, fx_train_or_state_0=0.0, fx_test_0=None, k_test_train=None)`, as from `gradient_descent_mse`.

    Raises:
        ValueError: If shapes do not fit, the kernel is no kernel, or t is None.
        RuntimeError: If the integration needs more than a million steps.

    Example:
        >>> predict_fn = gradient_descent(lambda f, y: jnp.mean((f - y) ** 2) / 2, jnp.eye(2), jnp.ones((2, 1)))
        >>> round(float(predict_fn(2.0)[0, 0]), 4)  # 1 - exp(-1)
        0.6321
    """
    _check_trace_axes(k_train_train, y_train, trace_axes)
    if momentum is None:
        return _predictor(k_train_train, y_train, loss, learning_rate, None)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum = {momentum}, expected a number in [0, 1), or None for gradient flow.")
    unit = float(np.sqrt(learning_rate))
    return _predictor(k_train_train, y_train, loss, unit, (1 - momentum) / unit)


def gradient_descent_mse_ensemble(
    kernel_fn: Callable[..., Any],
    x_train: Num[ArrayLike, "n *inputs"],
    y_train: Float[ArrayLike, "n k"],
    learning_rate: float | int = 1.0,
    diag_reg: float | int = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    **kernel_fn_train_train_kwargs: Any,
) -> Callable[..., Any]:
    """Mean and covariance of an infinite ensemble of infinitely wide networks trained on `1/(2 n k) sum |f - y|^2`.

    Args:
        kernel_fn: `kernel_fn(x1, x2, get)` with `get` "nngp", "ntk" or a tuple of both.
        x_train: Training inputs.
        y_train: Training targets.
        learning_rate: Size of a step: time is `learning_rate * t`.
        diag_reg: Ridge added to the kernels in the dynamics.
        diag_reg_absolute_scale: Whether `diag_reg` is absolute, not relative to the mean diagonal entry.
        trace_axes: Must be `(-1,)`: outputs of infinitely wide networks decouple.
        **kernel_fn_train_train_kwargs: Passed to `kernel_fn` in every call.

    Returns:
        `predict_fn(t=None, x_test=None, get=None, compute_cov=False)`: the mean, or `Gaussian(mean, covariance)`, for
        get "nngp" (only the last layer trained) or "ntk" (all layers), a namedtuple of them for a tuple, both for
        None; axes of t come first; x_test=None is the training set.

    Raises:
        ValueError: If shapes do not fit, `get` is unknown, or a kernel is no kernel.

    Example:
        >>> kernels = collections.namedtuple("Kernels", "nngp ntk")
        >>> def kernel_fn(x1, x2, get):
        ...     linear = jnp.asarray(x1) @ jnp.asarray(x1 if x2 is None else x2).T
        ...     return linear if isinstance(get, str) else kernels(linear, 2 * linear)
        >>> predict_fn = gradient_descent_mse_ensemble(kernel_fn, jnp.eye(2), jnp.ones((2, 1)))
        >>> predict_fn(x_test=jnp.eye(2), get="ntk").ravel().tolist()
        [1.0, 1.0]
    """
    _check_trace_axes(np.empty((len(x_train),) * 2), y_train, trace_axes)
    train = kernel_fn(x_train, None, ("nngp", "ntk"), **kernel_fn_train_train_kwargs)
    regularize = (diag_reg, diag_reg_absolute_scale)

    def predict_fn(t=None, x_test=None, get: Get = None, compute_cov: bool = False):
        cross = prior = None
        if x_test is not None:
            cross = kernel_fn(x_test, x_train, ("nngp", "ntk"), **kernel_fn_train_train_kwargs)
            prior = kernel_fn(x_test, None, "nngp", **kernel_fn_train_train_kwargs) if compute_cov else None
        clock = _times(t, learning_rate / y_train.shape[1])
        members = {
            name: _ensemble(name, train, cross, prior, y_train, clock, regularize, compute_cov)
            for name in _names(get, ("nngp", "ntk"))
        }
        return _collected(members, get)

    return predict_fn


def gp_inference(
    k_train_train: Kernels,
    y_train: Float[ArrayLike, "n k"],
    diag_reg: float | int = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
) -> Callable[..., Any]:
    """Gaussian-process inference `mean = K_tx (K_xx + r I)^{-1} y`, and training for infinite time.

    Args:
        k_train_train: Kernels of the training inputs: an object with attributes `nngp` and `ntk`, or an array for one.
        y_train: Training targets.
        diag_reg: Ridge r added to the kernel.
        diag_reg_absolute_scale: Whether `diag_reg` is absolute, not relative to the mean diagonal entry.
        trace_axes: Must be `(-1,)`: outputs of infinitely wide networks decouple.

    Returns:
        `predict_fn(get=None, k_test_train=None, k_test_test=None)` for get "nngp" (the Bayesian posterior), "ntk" (an
        ensemble trained for infinite time), "ntkgp" (the posterior with the NTK as covariance), or a tuple: the mean
        or, given `k_test_test`, `Gaussian(mean, covariance)`; k_test_train=None is the training set.

    Raises:
        ValueError: If shapes do not fit, `get` is unknown, a kernel is missing or is no kernel.

    Example:
        >>> predict_fn = gp_inference(jnp.eye(2), jnp.ones((2, 1)), diag_reg=1.0)
        >>> predict_fn("nngp", jnp.eye(2)).ravel().tolist()
        [0.5, 0.5]
    """
    first = k_train_train if hasattr(k_train_train, "shape") else _member(k_train_train, "nngp", "ntk")
    _check_trace_axes(first, y_train, trace_axes)

    def predict_fn(get: Get = None, k_test_train: Kernels = None, k_test_test: Kernels = None):
        settings = (y_train, _times(None, 1.0), (diag_reg, diag_reg_absolute_scale), k_test_test is not None)
        members = {
            name: _ensemble(name, k_train_train, k_test_train, k_test_test, *settings)
            for name in _names(get, ("nngp", "ntk", "ntkgp"))
        }
        return _collected(members, get)

    return predict_fn


def max_learning_rate(
    ntk_train_train: Float[ArrayLike, "n1 n2 ..."], y_train_size: int | None = None, momentum: float | int = 0.0
) -> float:
    """Largest stable learning rate on `1/(2 n k) sum |f - y|^2`: `2 (1 + m) n k / lambda_max(Theta)`.

    Args:
        ntk_train_train: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`.
        y_train_size: n k; None for the size of the kernel as a matrix.
        momentum: Heavy-ball momentum m in [0, 1).

    Raises:
        ValueError: If the kernel is not symmetric with a positive eigenvalue, or the momentum is out of range.

    Example:
        >>> max_learning_rate(jnp.eye(2), y_train_size=6)
        12.0
    """
    n, outputs = np.shape(ntk_train_train)[0], np.shape(ntk_train_train)[3:] or (1,)
    size = n * outputs[0] if y_train_size is None else y_train_size
    return flow.max_learning_rate(ntk_train_train, momentum=momentum) * size / n


def _predictor(kernel, y, loss, unit, friction):
    """`predict_fn` of the dynamics whose time is `unit * t`."""

    def predict_fn(t=None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None):
        if fx_test_0 is not None and k_test_train is None:
            raise ValueError(
                "got fx_test_0 without k_test_train, expected both: pass the kernel between test and training inputs."
            )
        time, restore = _times(t, unit)
        start = np.broadcast_to(np.asarray(0.0 if fx_train_0 is None else fx_train_0, np.float64), np.shape(y))
        solution = flow.solve_flow(kernel, y, time=time, loss=loss, f0=start, friction=friction)
        train = _like(restore(solution.outputs), y)
        if fx_test_0 is None:
            return train
        shape = (np.shape(k_test_train)[0], np.shape(y)[1])
        start = np.broadcast_to(np.asarray(fx_test_0, np.float64), shape)
        test = _like(restore(flow.kernel_outputs(k_test_train, solution.coefficients, start)), y)
        return test if fx_train_0 is None else (train, test)

    return predict_fn


# Which kernel drives the dynamics, and which one the outputs are drawn from before them.
ROLES = {"nngp": ("nngp", "nngp"), "ntk": ("ntk", "nngp"), "ntkgp": ("ntk", "ntk")}


def _ensemble(name, train, cross, prior, y, clock, regularize, compute_cov):
    """Mean, or mean and covariance, of one kind of training; cross=None is the training set."""
    (time, restore), (trained, drawn) = clock, ROLES[name]
    kernel = _regularized(_member(train, trained), *regularize)
    rows = kernel if cross is None else _member(cross, trained)
    if not compute_cov:
        return _like(restore(flow.kernel_outputs(rows, flow.solve_flow(kernel, y, time=time).coefficients)), y)
    start = kernel if trained == drawn else _member(train, drawn)
    columns, prior = (start, start) if cross is None else (_member(cross, drawn), _member(prior, drawn))
    ensemble = flow.trained_ensemble(
        Gram(nngp=start, ntk=kernel), Data(x=y, y=y), time=time, cross=Gram(nngp=columns, ntk=rows), prior=prior
    )
    return Gaussian(*(_like(restore(each), y) for each in ensemble))


def _times(t, unit):
    """Increasing distinct times, and a function that puts results at these times into the shape of t."""
    steps = np.asarray(np.inf if t is None else t, np.float64)
    distinct, position = np.unique(steps, return_inverse=True)
    position = position.reshape(steps.shape)
    return distinct * unit, lambda results: results[position]


def _regularized(kernel, diag_reg, absolute):
    if not (np.isfinite(diag_reg) and diag_reg >= 0):
        raise ValueError(f"diag_reg = {diag_reg}, expected a finite number >= 0.")
    kernel = np.asarray(kernel, np.float64)
    n, outputs = kernel.shape[0], kernel.shape[3:]
    identity = np.eye(n) if not outputs else np.einsum("ij,ab->ijab", np.eye(n), np.eye(outputs[0]))
    scale = 1.0 if absolute else np.sum(kernel * identity) / np.sum(identity)
    return kernel + diag_reg * scale * identity


def _member(kernels, *names):
    """The first kernel that is there; an array stands for the one asked for."""
    if hasattr(kernels, "shape") and len(names) == 1:
        return kernels
    found = [getattr(kernels, name) for name in names if getattr(kernels, name, None) is not None]
    if not found:
        raise ValueError(
            f"kernels of type {type(kernels).__name__} have no {' or '.join(names)}, expected an object "
            f"with this attribute: compute them with get={('nngp', 'ntk')}."
        )
    return found[0]


def _names(get, known):
    names = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else tuple(get)
    if not names or not set(names) <= set(known):
        raise ValueError(f"get = {get!r}, expected one of {known}, or a tuple of them.")
    return names


def _collected(members, get):
    return members[get] if isinstance(get, str) else collections.namedtuple("Gaussians", members)(**members)


def _check_trace_axes(kernel, y, trace_axes):
    axes = (trace_axes,) if isinstance(trace_axes, int) else tuple(trace_axes)
    if axes not in ((), (-1,), (1,)) or np.ndim(y) != 2 or np.ndim(kernel) != (2 if axes else 4):
        raise ValueError(
            f"trace_axes = {trace_axes} with a kernel of shape {np.shape(kernel)} and targets of shape "
            f"{np.shape(y)}, expected targets [n, k] and (-1,) with a kernel [n, n], or () with a kernel "
            "[n, n, k, k]."
        )


def _like(outputs, y) -> Array:
    """On the device, in the floating-point dtype of the targets."""
    return jnp.asarray(outputs.astype(np.asarray(y).dtype))
