"""The predictors of neural-tangents, by name and convention, over `lazynet.dynamics`.

A script that uses `neural_tangents.predict` runs after changing the import. Its conventions differ
from the rest of lazynet: the square loss is half the mean over examples *and outputs*, `t` counts
steps of size `learning_rate`, and `diag_reg` is relative to the mean of the kernel's diagonal.
Differences from neural-tangents: targets are `[n, k]`, computations are float64 on the host outside
of transformations, singular kernels have their limits where neural-tangents gives NaN, and a
momentum state cannot be passed in to resume. Under jit, grad and vmap `gradient_descent_mse` and
`gp_inference` compute in `jax.numpy`, in the dtype at hand: infinite time then needs a positive
`diag_reg`. Nothing is cached between calls of an ensemble: ask for all times at once. On the
training set itself (`x_test=None`, `k_test_train=None`) it gives what it gives at the same points
as test points, `K (K + r I)^{-1} y` at infinite time; neural-tangents returns y with variance 0
whatever the ridge.

Directions that the rounding of a kernel drowns are left out at infinite time unless the ridge lifts
them, see `lazynet.linalg`: kernels keep the dtype in which they were computed, and `tolerance`
overrides it.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num, Shaped

from lazynet import dynamics, guards
from lazynet.dropin.predict_arguments import (
    absolute_ridge,
    check_covariance,
    check_cross,
    check_trace_axes,
    checked,
    checked_targets,
    like,
    member,
    names_of,
    numbers,
    regularized,
    start_outputs,
    times,
    traced_start,
)
from lazynet.dynamics import Gaussian, traced
from lazynet.dynamics.processes import chosen_scale, ensemble_law, traced_ensemble
from lazynet.linalg import kernel_matrix
from lazynet.losses import mse
from lazynet.records import Data, Gram
from lazynet.trees import is_traced
from lazynet.typing import ArrayLike, LossFn

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

# Which kernel drives the dynamics, and which one the outputs are drawn from before them.
ROLES = {"nngp": ("nngp", "nngp"), "ntk": ("ntk", "nngp"), "ntkgp": ("ntk", "ntk")}

GAUSSIANS = {
    names: collections.namedtuple("Gaussians_" + "_".join(names), names, module=__name__)
    for number in range(1, len(ROLES) + 1)
    for names in itertools.permutations(ROLES, number)
}
"""The named tuples of predictions, one class for each order of names, so that they pickle and are one pytree."""

globals().update({kind.__name__: kind for kind in GAUSSIANS.values()})


def gradient_descent_mse(
    k_train_train: Float[ArrayLike, "n1 n2 ..."],
    y_train: Shaped[ArrayLike, "n k"],
    learning_rate: float | int | Float[ArrayLike, ""] = 1.0,
    diag_reg: float | int | Float[ArrayLike, ""] = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    tolerance: float | int | None = None,
) -> Callable[..., Any]:
    """Outputs of gradient flow on the loss `1/(2 n k) sum |f - y|^2`: `df/dt = -Theta (f - y) learning_rate / (n k)`.

    Args:
        k_train_train: Kernel of the training inputs, `[n, n]`, or `[n, n, k, k]` with
            `trace_axes=()`.
        y_train: Training targets.
        learning_rate: Size of a step: time is `learning_rate * t`.
        diag_reg: Ridge added to the kernel.
        diag_reg_absolute_scale: Whether `diag_reg` is absolute, not relative to the mean diagonal
            entry.
        trace_axes: `(-1,)` if the kernel lacks the axes of the outputs, `()` if it has them.
        tolerance: Size below which an eigenvalue of kernel + ridge counts as zero at infinite time;
            None for the rounding of the kernel.

    Returns:
        `predict_fn(t=None, fx_train_0=0.0, fx_test_0=None, k_test_train=None)`: training outputs,
        test outputs if `fx_train_0` is None, or both; axes of t come first; t=None is infinity.

    Raises:
        ValueError: If shapes do not fit or the kernel is no kernel.

    Example:
        >>> predict_fn = gradient_descent_mse(jnp.eye(2), jnp.ones((2, 1)))
        >>> predict_fn(t=None, fx_test_0=0.0, k_test_train=jnp.ones((1, 2)))[1].tolist()
        [[2.0]]
    """
    known = not is_traced((k_train_train, y_train, learning_rate, diag_reg))
    kernel, y = checked("k_train_train", k_train_train, y_train, trace_axes)
    unit = guards.rate(learning_rate) / y.shape[1]
    ridge = absolute_ridge(kernel, diag_reg, diag_reg_absolute_scale)
    eigen = regularized(kernel, ridge, tolerance) if known else None
    on_host = _predictor(eigen, y, mse, unit, None)
    in_program = _traced_predictor(kernel, y, unit, ridge, tolerance)

    def predict_fn(t=None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None):
        values = (t, fx_train_0, fx_test_0, k_test_train)
        return on_host(*values) if known and not is_traced(values) else in_program(*values)

    return predict_fn


def gradient_descent(
    loss: LossFn,
    k_train_train: Float[ArrayLike, "n1 n2 ..."],
    y_train: Shaped[ArrayLike, "n k"],
    learning_rate: float | int = 1.0,
    momentum: float | int | None = None,
    trace_axes: int | Sequence[int] = (-1,),
) -> Callable[..., Any]:
    """Outputs of gradient flow on any loss: `df/dt = -Theta grad_f loss(f, y) learning_rate`, or of its heavy ball.

    With momentum m the outputs obey `f'' = -Theta grad_f loss - (1 - m)/sqrt(learning_rate) f'`,
    and `t` counts steps of size `sqrt(learning_rate)`.

    Args:
        loss: Scalar `loss(f, y)`, normalized as it is to be descended.
        k_train_train: Kernel of the training inputs, `[n, n]`, or `[n, n, k, k]` with
            `trace_axes=()`.
        y_train: Training targets.
        learning_rate: Size of a step.
        momentum: Heavy-ball momentum in [0, 1), or None for plain gradient flow.
        trace_axes: `(-1,)` if the kernel lacks the axes of the outputs, `()` if it has them.

    Returns:
        `predict_fn(t, fx_train_or_state_0=0.0, fx_test_0=None, k_test_train=None)`, as from
        `gradient_descent_mse`.

    Raises:
        ValueError: If shapes do not fit, the kernel is no kernel, or t is None.
        RuntimeError: If the integration needs more than a million steps.

    Example:
        >>> predict_fn = gradient_descent(lambda f, y: jnp.mean((f - y) ** 2) / 2, jnp.eye(2), jnp.ones((2, 1)))
        >>> round(float(predict_fn(2.0)[0, 0]), 4)  # 1 - exp(-1)
        0.6321
    """
    guards.concrete("gradient_descent", k_train_train, y_train, learning_rate, momentum)
    if not callable(loss):
        raise TypeError(
            f"loss got a {type(loss).__name__}, expected a function loss(f, y): pass it as first argument."
        )
    kernel, y = checked("k_train_train", k_train_train, y_train, trace_axes)
    rate = guards.rate(learning_rate)
    if momentum is None:
        return _predictor(kernel, y, loss, rate, None)
    unit = rate**0.5
    return _predictor(kernel, y, loss, unit, (1 - guards.momentum(momentum)) / unit)


def gradient_descent_mse_ensemble(
    kernel_fn: Callable[..., Any],
    x_train: Num[ArrayLike, "n *inputs"],
    y_train: Shaped[ArrayLike, "n k"],
    learning_rate: float | int = 1.0,
    diag_reg: float | int = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    tolerance: float | int | None = None,
    **kernel_fn_train_train_kwargs: Any,
) -> Callable[..., Any]:
    """Mean and covariance of an infinite ensemble of infinitely wide networks trained on `1/(2 n k) sum |f - y|^2`.

    Args:
        kernel_fn: `kernel_fn(x1, x2, get)` with `get` "nngp", "ntk" or a tuple of both.
        x_train: Training inputs.
        y_train: Training targets.
        learning_rate: Size of a step: time is `learning_rate * t`.
        diag_reg: Ridge added to the kernels in the dynamics.
        diag_reg_absolute_scale: Whether `diag_reg` is absolute, not relative to the mean diagonal
            entry.
        trace_axes: Must be `(-1,)`: outputs of infinitely wide networks decouple.
        tolerance: Size below which an eigenvalue of kernel + ridge counts as zero at infinite time;
            None for the rounding of the kernel.
        **kernel_fn_train_train_kwargs: Passed to `kernel_fn` in every call.

    Returns:
        `predict_fn(t=None, x_test=None, get=None, compute_cov=False)`: the mean, or `Gaussian(mean,
        covariance)`, for get "nngp" (only the last layer trained) or "ntk" (all layers), a
        namedtuple of them for a tuple, both for None; axes of t come first; x_test=None is the
        training set.

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
    guards.concrete(
        "gradient_descent_mse_ensemble", x_train, y_train, learning_rate, diag_reg, tolerance
    )
    if not callable(kernel_fn):
        raise TypeError(
            f"kernel_fn got a {type(kernel_fn).__name__}, expected a function kernel_fn(x1, x2, get): pass the third "
            "of stax.serial's triple; for kernels that are computed already there is gp_inference."
        )
    y = checked_targets(y_train)
    rate = guards.rate(learning_rate)
    check_trace_axes(trace_axes, (-1,))
    guards.same_length(x_train=x_train, y_train=y)
    kinds = ("nngp", "ntk")
    train = kernel_fn(x_train, None, kinds, **kernel_fn_train_train_kwargs)
    regularize = (diag_reg, diag_reg_absolute_scale, tolerance)
    absolute_ridge(member("kernel_fn", train, "ntk"), *regularize[:2])

    def predict_fn(t=None, x_test=None, get: Get = None, compute_cov: bool = False):
        guards.concrete("predict_fn", t, x_test)
        names = names_of(get, kinds)
        clock = times(t, rate / y.shape[1])
        cross, prior = (train, train) if compute_cov else (train, None)
        if x_test is not None:
            cross = kernel_fn(x_test, x_train, kinds, **kernel_fn_train_train_kwargs)
            prior = (
                kernel_fn(x_test, None, "nngp", **kernel_fn_train_train_kwargs)
                if compute_cov
                else None
            )
        return _collected(
            {name: _ensemble(name, train, cross, prior, y, clock, regularize) for name in names},
            get,
        )

    return predict_fn


def gp_inference(
    k_train_train: Kernels,
    y_train: Shaped[ArrayLike, "n k"],
    diag_reg: float | int | Float[ArrayLike, ""] = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    tolerance: float | int | None = None,
    scale: float | int | str | Float[ArrayLike, ""] = 1.0,
) -> Callable[..., Any]:
    """Gaussian-process inference `mean = K_tx (K_xx + r I)^{-1} y`, and training for infinite time.

    Args:
        k_train_train: Kernels of the training inputs: an object with attributes `nngp` and `ntk`,
            or an array for one.
        y_train: Training targets.
        diag_reg: Ridge r added to the kernel.
        diag_reg_absolute_scale: Whether `diag_reg` is absolute, not relative to the mean diagonal
            entry.
        trace_axes: `(-1,)` if the kernels lack the axes of the outputs, `()` if they have them.
        tolerance: Size below which an eigenvalue of kernel + ridge counts as zero; None for the
            rounding of the kernel.
        scale: s > 0, by which the covariance of the prior and its noise are multiplied, or
            "evidence" or "leave_one_out", see `dynamics.prior_scale`: covariances are s times those
            of s = 1, and means are the same.

    Returns:
        `predict_fn(get=None, k_test_train=None, k_test_test=None)` for get "nngp" (the Bayesian
        posterior), "ntk" (an ensemble trained for infinite time), "ntkgp" (the posterior with the
        NTK as covariance), or a tuple: the mean or, given `k_test_test`, `Gaussian(mean,
        covariance)`; k_test_train=None is the training set.

    Raises:
        ValueError: If shapes do not fit, `get` is unknown, a kernel is missing or is no kernel.

    Example:
        >>> predict_fn = gp_inference(jnp.eye(2), jnp.ones((2, 1)), diag_reg=1.0)
        >>> predict_fn("nngp", jnp.eye(2)).ravel().tolist()
        [0.5, 0.5]
    """
    first = member("k_train_train", k_train_train, "nngp", "ntk")
    kernel, y = checked("k_train_train", first, y_train, trace_axes)
    absolute_ridge(kernel, diag_reg, diag_reg_absolute_scale)
    regularize = (diag_reg, diag_reg_absolute_scale, tolerance)
    scaled = (scale, regularize)

    def predict_fn(get: Get = None, k_test_train: Kernels = None, k_test_test: Kernels = None):
        names = names_of(get, tuple(ROLES))
        cross = k_train_train if k_test_train is None else k_test_train
        prior = k_train_train if k_test_train is None and k_test_test is not None else k_test_test
        if prior is not None:
            check_covariance(names, k_train_train, cross)
        return _collected(
            {name: _inference(name, k_train_train, cross, prior, y, scaled) for name in names}, get
        )

    return predict_fn


def max_learning_rate(
    ntk_train_train: Float[ArrayLike, "n1 n2 ..."],
    y_train_size: int | None = None,
    momentum: float | int = 0.0,
) -> float:
    """Largest stable learning rate on `1/(2 n k) sum |f - y|^2`: `2 (1 + m) n k / lambda_max(Theta)`.

    Args:
        ntk_train_train: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`.
        y_train_size: n k; None for the size of the kernel as a matrix.
        momentum: Heavy-ball momentum m in [0, 1).

    Raises:
        ValueError: If the kernel is not symmetric with a positive eigenvalue, or the momentum is
            out of range.

    Example:
        >>> max_learning_rate(jnp.eye(2), y_train_size=6)
        12.0
    """
    guards.concrete("max_learning_rate", ntk_train_train, momentum)
    n = len(np.atleast_1d(guards.numbers("ntk_train_train", ntk_train_train)))
    size = len(kernel_matrix(ntk_train_train))
    if y_train_size is not None:
        size = guards.count(
            "y_train_size", y_train_size, fix="it is y_train.size, examples times outputs"
        )
    return dynamics.max_learning_rate(ntk_train_train, momentum=momentum) * size / n


def _predictor(kernel, y, loss, unit, friction):
    """`predict_fn` of the dynamics whose time is `unit * t`."""

    def predict_fn(t=None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None):
        guards.concrete("predict_fn", t, fx_train_0, fx_test_0, k_test_train)
        check_cross(fx_test_0, k_test_train)
        time, restore = times(t, unit)
        start = start_outputs("fx_train_0", 0.0 if fx_train_0 is None else fx_train_0, y.shape)
        solution = dynamics.solve_flow(kernel, y, time=time, loss=loss, f0=start, friction=friction)
        train = like(restore(solution.outputs), y)
        if fx_test_0 is None:
            return train
        cross = guards.numbers("k_test_train", k_test_train)
        start = start_outputs("fx_test_0", fx_test_0, (len(np.atleast_1d(cross)), y.shape[1]))
        test = like(restore(dynamics.kernel_outputs(cross, solution.coefficients, start)), y)
        return test if fx_train_0 is None else (train, test)

    return predict_fn


def _traced_predictor(kernel, y_train, unit, ridge, tolerance):
    """`predict_fn` of gradient flow on the square loss where a value is traced."""

    def predict_fn(t, fx_train_0, fx_test_0, k_test_train):
        traced.check_tolerance(tolerance)
        check_cross(fx_test_0, k_test_train)
        y = jnp.asarray(y_train)
        steps = t if is_traced(t) else np.asarray(guards.numbers("t", np.inf if t is None else t))
        shape = jnp.shape(steps)
        start = traced_start("fx_train_0", 0.0 if fx_train_0 is None else fx_train_0, y.shape, y)
        outputs, coefficients = traced.solve_flow(
            kernel, y, start, steps.reshape(-1), ridge=ridge, rate=unit
        )
        train = outputs.reshape(*shape, *y.shape).astype(y.dtype)
        if fx_test_0 is None:
            return train
        cross = numbers("k_test_train", k_test_train)
        start = traced_start("fx_test_0", fx_test_0, (len(cross), y.shape[1]), y)
        test = traced.kernel_outputs(cross, coefficients, start)
        test = test.reshape(*shape, *test.shape[1:]).astype(y.dtype)
        return test if fx_train_0 is None else (train, test)

    return predict_fn


def _ensemble(name, train, cross, prior, y, clock, regularize) -> Any:
    """Mean, or mean and covariance given the prior, of one kind of training."""
    (time, restore), (trained, drawn) = clock, ROLES[name]
    kernel = member("k_train_train", train, trained)
    ridge = absolute_ridge(kernel, *regularize[:2])
    eigen = regularized(kernel, ridge, regularize[2])
    rows = member("k_test_train", cross, trained)
    targets = np.asarray(y, np.float64)
    if prior is None:
        return like(
            restore(
                dynamics.kernel_outputs(
                    rows, dynamics.solve_flow(eigen, targets, time=time).coefficients
                )
            ),
            y,
        )
    columns = member("k_test_train", cross, drawn)
    prior = member("k_test_test", prior, drawn)
    start = kernel if trained == drawn else member("k_train_train", train, drawn)
    noise = ridge if trained == drawn else 0.0
    both = Gram(nngp=columns, ntk=rows)
    law = ensemble_law(eigen, kernel.ndim, start, targets, time, both, prior, ridge=noise)
    return Gaussian(*(like(restore(each), y) for each in law))


def _inference(name, train, cross, prior, y, scaled):
    """`_ensemble` at infinite time, with the scale of its prior; inside of a program where a value is traced."""
    scale, regularize = scaled
    trained, drawn = ROLES[name]
    kernel = member("k_train_train", train, trained)
    ridge = absolute_ridge(kernel, *regularize[:2])
    start = kernel if trained == drawn or prior is None else member("k_train_train", train, drawn)
    rows = member("k_test_train", cross, trained)
    columns = rows if prior is None else member("k_test_train", cross, drawn)
    before = None if prior is None else member("k_test_test", prior, drawn)
    if not is_traced((kernel, ridge, start, rows, columns, before, y, scale)):
        law = _ensemble(name, train, cross, prior, y, times(None, 1.0), regularize)
    else:
        traced.check_tolerance(regularize[2])
        if prior is None:
            return traced.kernel_regression(kernel, Data(y, y), rows, ridge, None)
        noise = ridge if trained == drawn else None
        law = traced_ensemble(kernel, start, y, rows, columns, before, ridge=ridge, noise=noise)
    if prior is None:
        return law
    size = chosen_scale(scale, start, Data(y, y), ridge)
    return law._replace(covariance=jnp.asarray(size).astype(law.covariance.dtype) * law.covariance)


def _collected(members, get):
    return members[get] if isinstance(get, str) else GAUSSIANS[tuple(members)](**members)
