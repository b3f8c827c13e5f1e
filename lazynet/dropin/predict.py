"""The predictors of neural-tangents, by name and convention, over `lazynet.dynamics`.

A script that uses `neural_tangents.predict` runs after changing the import. Its conventions differ
from the rest of lazynet: the square loss is half the mean over examples *and outputs*, `t` counts
steps of size `learning_rate`, and `diag_reg` is relative to the mean of the kernel's diagonal.
Differences from neural-tangents: computations are float64 on the host outside of transformations,
and singular kernels have their limits where neural-tangents gives NaN. Under jit, grad and vmap the
predictors compute in `jax.numpy`, in the dtype at hand; infinite time then needs a kernel that is
known outside, or a positive `diag_reg`. Nothing is cached between calls of an ensemble: ask for all
times at once. On the training set itself (`x_test=None`, `k_test_train=None`) it gives what it
gives at the same points as test points, `K (K + r I)^{-1} y` at infinite time; neural-tangents
returns y with variance 0 whatever the ridge.

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
    check_trace_axes,
    checked,
    checked_targets,
    like,
    member,
    names_of,
    regularized,
    target_axes,
    times,
)
from lazynet.dropin.predictors import (
    ODEState,
    host_predictor,
    in_motion,
    known_predictor,
    predictor_of_axes,
    traced_predictor,
)
from lazynet.dynamics import Gaussian, traced
from lazynet.dynamics.gaussian_processes import chosen_scale, ensemble_law, traced_ensemble
from lazynet.linalg import kernel_matrix
from lazynet.losses import mse
from lazynet.records import Data, Gram
from lazynet.trees import is_traced
from lazynet.typing import ArrayLike, LossFn

__all__ = [
    "Gaussian",
    "ODEState",
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
    y_train: Shaped[ArrayLike, "n *k"],
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
    axes = target_axes(trace_axes, y_train)
    if axes is not None:
        inner = gradient_descent_mse(
            axes.matrix(k_train_train),
            axes.targets(y_train),
            learning_rate,
            diag_reg,
            diag_reg_absolute_scale,
            tolerance=tolerance,
        )
        return predictor_of_axes(axes, inner)
    # A kernel that is known is decomposed once, for all calls of what is returned.
    known = not is_traced((k_train_train, y_train, learning_rate, diag_reg))
    kernel, y = checked("k_train_train", k_train_train, y_train, trace_axes)
    # The loss here is that of the dynamics divided by k: time passes k times more slowly.
    unit = guards.rate(learning_rate) / y.shape[1]
    ridge = absolute_ridge(kernel, diag_reg, diag_reg_absolute_scale)
    eigen = regularized(kernel, ridge, tolerance) if known else None
    on_host = host_predictor(eigen, y, mse, unit, None)
    in_program = (
        known_predictor(eigen, kernel.ndim, y, unit)
        if known
        else traced_predictor(kernel, y, unit, ridge, tolerance)
    )

    def predict_fn(t=None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None):
        values = (t, fx_train_0, fx_test_0, k_test_train)
        return on_host(*values) if known and not is_traced(values) else in_program(*values)

    return predict_fn


def gradient_descent(
    loss: LossFn,
    k_train_train: Float[ArrayLike, "n1 n2 ..."],
    y_train: Shaped[ArrayLike, "n *k"],
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
        `gradient_descent_mse`; from an `ODEState` it returns an `ODEState`, from which another call
        goes on.

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
    axes = target_axes(trace_axes, y_train)
    if axes is not None:
        inner = gradient_descent(
            lambda f, y: loss(axes.outputs(f, axes.shape), axes.outputs(y, axes.shape)),
            axes.matrix(k_train_train),
            axes.targets(y_train),
            learning_rate,
            momentum,
        )
        return predictor_of_axes(axes, inner)
    kernel, y = checked("k_train_train", k_train_train, y_train, trace_axes)
    unit = guards.rate(learning_rate)
    friction = None
    if momentum is not None:
        unit = unit**0.5
        friction = (1 - guards.momentum(momentum)) / unit
    on_host = host_predictor(kernel, y, loss, unit, friction)

    def predict_fn(
        t=None, fx_train_or_state_0: Any = 0.0, fx_test_0: Any = None, k_test_train=None
    ):
        values = (t, fx_train_or_state_0, fx_test_0, k_test_train)
        if isinstance(fx_train_or_state_0, ODEState) or is_traced(values):
            return in_motion(kernel, y, loss, unit, friction, values)
        return on_host(*values)

    return predict_fn


def gradient_descent_mse_ensemble(
    kernel_fn: Callable[..., Any],
    x_train: Num[ArrayLike, "n *inputs"],
    y_train: Shaped[ArrayLike, "n *k"],
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
        **kernel_fn_train_train_kwargs: Passed to `kernel_fn`; pairs hold those of either set, and
            of test inputs the first of each pair that `predict_fn` is given.

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
    rate = guards.rate(learning_rate)
    axes = target_axes(trace_axes, y_train)
    if axes is None:
        y = checked_targets(y_train)
        check_trace_axes(trace_axes, (-1,))
        if not isinstance(x_train, (tuple, list)):
            guards.same_length(x_train=x_train, y_train=y)
    else:
        y = checked_targets(axes.targets(y_train))
        kernel_fn = _of_matrices(axes, kernel_fn)
    kinds, own = ("nngp", "ntk"), kernel_fn_train_train_kwargs
    train = kernel_fn(x_train, None, kinds, **own)
    regularize = (diag_reg, diag_reg_absolute_scale, tolerance)
    # For its checks, so that a wrong ridge is refused here and not at the first prediction.
    absolute_ridge(member("kernel_fn", train, "ntk"), *regularize[:2])

    def predict_fn(
        t=None, x_test=None, get: Get = None, compute_cov: bool = False, **test_kwargs: Any
    ):
        guards.concrete("predict_fn", t, x_test)
        names = names_of(get, kinds)
        clock = times(t, rate / y.shape[1])
        cross, prior = (train, train) if compute_cov else (train, None)
        if x_test is not None:
            other = {**own, **test_kwargs}
            between = {name: _first_of_each(value, own.get(name)) for name, value in other.items()}
            cross = kernel_fn(x_test, x_train, kinds, **between)
            prior = kernel_fn(x_test, None, "nngp", **other) if compute_cov else None
        found = {name: _ensemble(name, train, cross, prior, y, clock, regularize) for name in names}
        if axes is not None:
            shape = (len(x_train if x_test is None else x_test), *axes.shape[1:])
            found = {name: _with_axes(axes, law, shape) for name, law in found.items()}
        return _collected(found, get)

    return predict_fn


def gp_inference(
    k_train_train: Kernels,
    y_train: Shaped[ArrayLike, "n *k"],
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
    # For its checks.
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
    # The dynamics have `1/(2 n)` in their loss, this one `1/(2 size)`.
    return dynamics.max_learning_rate(ntk_train_train, momentum=momentum) * size / n


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
    # `K_tt - K_tx (K + r I)^{-1} K_xt` is the law of starts with noise r; networks start without.
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
    return members[get.lower()] if isinstance(get, str) else GAUSSIANS[tuple(members)](**members)


def _first_of_each(value, train):
    """Keyword arguments of test and training inputs: the first of either pair."""
    is_pair = isinstance(value, tuple) and len(value) == 2
    return (value[0], train[0]) if is_pair and isinstance(train, tuple) else value


def _with_axes(axes, law, shape):
    """A mean, or a mean and a covariance, of targets of several axes."""
    if not isinstance(law, Gaussian):
        return axes.outputs(law, shape)
    return Gaussian(axes.outputs(law.mean, shape), axes.covariance(law.covariance, shape))


def _of_matrices(axes, kernel_fn):
    """The kernel function with values as matrices."""

    def matrices(x1, x2, get, **kwargs):
        kernels = kernel_fn(x1, x2, get, **kwargs)
        if isinstance(get, str):
            return axes.matrix(kernels)
        return Gram(axes.matrix(kernels.nngp), axes.matrix(kernels.ntk))

    return matrices
