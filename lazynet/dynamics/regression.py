"""Kernel regression and Gaussian-process inference: where the dynamics end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from lazynet import guards
from lazynet.dynamics.checks import (
    check_finite_kernel,
    check_kernel,
    check_ridges,
    check_targets,
    check_times,
    decompose,
    modes,
    targets,
)
from lazynet.dynamics.flow import expand, flow_weights, kernel_outputs
from lazynet.linalg import (
    NEGATIVE_LIMIT,
    Eigen,
    check_symmetric,
    checked_ridge,
    kernel_matrix,
    rank_tolerance,
    solve_psd,
    symmetric,
)
from lazynet.records import Data, Gram
from lazynet.typing import ArrayLike


def kernel_regression(
    kernel: Float[ArrayLike, "n1 n2 ..."] | Eigen,
    data: Data,
    *,
    cross: Float[ArrayLike, "m1 m2 ..."],
    ridge: float | int | Float[ArrayLike, "*r"] = 0.0,
    tolerance: float | int | None = None,
) -> Float[np.ndarray, "*r m k"]:
    """Predictions `f(x) = K(x, X) (K(X, X) + ridge I)^{-1} y`, for one ridge or a sweep from one eigendecomposition.

    With the NTK and ridge 0 this is the infinite-time limit of `gradient_flow` from f0 = 0. One
    ridge is solved by Cholesky, an axis of ridges by an eigendecomposition, which takes as long as
    about five single solves; for kernels that leave no room for either there is
    `conjugate_gradient_regression`.

    Nothing is left out where the ridge lifts the spectrum above the rounding of the kernel. Without
    such a ridge, directions below it are: a float32 kernel says nothing about them, and an inverse
    would amplify its noise.

    Args:
        kernel: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`, or its `linalg.psd_eigh`.
        data: Training examples; only the targets are used (center one-hot targets first).
        cross: Kernel between the inputs wanted and the training inputs.
        ridge: Absolute ridges >= 0; 0 gives the pseudo-inverse, the limit of a vanishing ridge.
        tolerance: Directions with `lambda + ridge` below it are left out; None for the rounding of
            the kernel in its dtype (`linalg.rank_tolerance`).

    Returns:
        Predictions, with a leading axis if `ridge` has one.

    Raises:
        ValueError: If shapes do not fit, a ridge is negative, the kernel is no kernel, or it has
            half precision and no ridge that lifts it above its rounding.
        TypeError: If an argument is no array of real numbers, or traced.

    Example:
        >>> data = Data(x=np.zeros((2, 1)), y=np.array([[1.0], [3.0]]))
        >>> kernel_regression(np.eye(2), data, cross=np.eye(2), ridge=np.array([0.0, 1.0]))[:, :, 0].tolist()
        [[1.0, 3.0], [0.5, 1.5]]
    """
    guards.concrete("kernel_regression", kernel, targets(data), cross, ridge, tolerance)
    y, _ = check_targets(kernel, data.y, None)
    ridges = check_ridges(ridge)
    check_kernel("cross", cross, len(guards.array("cross", cross)), *y.shape)
    if not np.ndim(ridge) and not isinstance(kernel, Eigen):
        columns = y if np.ndim(kernel) == 2 else y.reshape(-1, 1)
        solved = solve_psd(
            kernel_matrix(kernel), columns, ridge=float(ridges[0]), tolerance=tolerance
        )
        return kernel_outputs(cross, solved.reshape(y.shape))
    eigen, ndim = decompose(kernel, len(y), ridges.min(), tolerance)
    weights = np.stack([eigen.inverse_values(value) for value in ridges])
    outputs = kernel_outputs(cross, expand(eigen, weights, y, ndim))
    return outputs if np.ndim(ridge) else outputs[0]


def leave_one_out(
    kernel: Float[ArrayLike, "n1 n2 ..."] | Eigen,
    data: Data,
    *,
    ridge: float | int | Float[ArrayLike, "*r"],
    tolerance: float | int | None = None,
) -> Float[np.ndarray, "*r n k"]:
    """Prediction of each example from all others: `f_i = y_i - [G_ii]^{-1} [G y]_i` with G = (K + ridge I)^{-1}.

    Exact, for the price of one regression: the cheapest honest way to choose a ridge or a depth on
    training data.

    Args:
        kernel: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`, or its `linalg.psd_eigh`.
        data: Training examples; only the targets are used.
        ridge: Absolute ridges >= 0, such that K + ridge I is invertible.
        tolerance: Size below which an eigenvalue of K + ridge I counts as zero; None for the
            rounding of K.

    Returns:
        Left-out predictions, with a leading axis if `ridge` has one.

    Raises:
        ValueError: If shapes do not fit, a ridge is negative, K + ridge I is singular, or the
            kernel is no kernel.

    Example:
        >>> data = Data(x=np.zeros((2, 1)), y=np.array([[1.0], [3.0]]))
        >>> leave_one_out(np.array([[2.0, 1.0], [1.0, 2.0]]), data, ridge=0.0).round(12).tolist()
        [[1.5], [0.5]]

    Source: Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, equation 5.12.
    """
    guards.concrete("leave_one_out", kernel, targets(data), ridge, tolerance)
    y, _ = check_targets(kernel, data.y, None)
    ridges = check_ridges(ridge)
    eigen, ndim = decompose(kernel, len(y), ridges.min(), tolerance)
    left_out = [_leave_one_out(eigen, y, ndim, float(value)) for value in ridges]
    return np.stack(left_out) if np.ndim(ridge) else left_out[0]


class Gaussian(NamedTuple):
    """Distribution of the outputs at m inputs, over initializations or given data.

    Attributes:
        mean: Mean output; a leading axis of times if there is one.
        covariance: Covariance between inputs, the same for each of the k outputs, which are
            independent.

    Example:
        >>> Gaussian(mean=np.zeros((2, 1)), covariance=np.eye(2)).mean.shape
        (2, 1)
    """

    mean: Float[ArrayLike, "*s m k"]
    covariance: Float[ArrayLike, "*s m m"]


def nngp_posterior(
    nngp: Float[ArrayLike, "n1 n2"],
    data: Data,
    *,
    cross: Float[ArrayLike, "m1 m2"],
    prior: Float[ArrayLike, "m3 m4"],
    ridge: float | int = 0.0,
    tolerance: float | int | None = None,
) -> Gaussian:
    """Posterior `mean = K_tx G y`, `covariance = K_tt - K_tx G K_xt` of the process, G = (K_xx + ridge I)^{-1}.

    What Bayesian inference gives in an infinitely wide network, or training only its last layer.

    Args:
        nngp: NNGP kernel of the training inputs.
        data: Training examples; only the targets are used.
        cross: NNGP kernel between the inputs wanted and the training inputs.
        prior: NNGP kernel of the inputs wanted.
        ridge: Variance of the observation noise; 0 gives the pseudo-inverse, its limit.
        tolerance: Size below which an eigenvalue of K_xx + ridge I counts as zero; None for the
            rounding of K_xx.

    Returns:
        Mean `[m, k]` and covariance `[m, m]`; variances that rounding made negative are zero.

    Raises:
        ValueError: If shapes do not fit, the ridge is negative, the kernel is no kernel, or a
            variance is negative beyond rounding: no process has these kernels.

    Example:
        >>> data = Data(x=np.zeros((1, 1)), y=np.array([[2.0]]))
        >>> posterior = nngp_posterior(np.eye(1), data, cross=np.eye(1), prior=np.eye(1), ridge=1.0)
        >>> posterior.mean.item(), round(posterior.covariance.item(), 12)
        (1.0, 0.5)
    """
    guards.concrete("nngp_posterior", nngp, targets(data), cross, prior, ridge, tolerance)
    y, _ = check_targets(nngp, data.y, None)
    ridge = checked_ridge(ridge)
    _check_blocks(nngp, cross, prior, y)
    eigen, _ = decompose(nngp, len(y), ridge, tolerance)
    rows = np.asarray(cross, np.float64) @ eigen.vectors
    weights = eigen.inverse_values(ridge)
    covariance = np.asarray(prior, np.float64) - (rows * weights) @ rows.T
    error = _rounding(eigen.tolerance, cross, prior)
    return Gaussian(
        (rows * weights) @ (eigen.vectors.T @ y),
        _with_variances(covariance, rows * weights, error, np.max(prior)),
    )


def trained_ensemble(
    gram: Gram,
    data: Data,
    *,
    time: Num[ArrayLike, "..."] | Sequence[float | int] | float | int,
    cross: Gram,
    prior: Float[ArrayLike, "m3 m4"],
    tolerance: float | int | None = None,
) -> Gaussian:
    """Law of `f(t) = f(0) + Theta_tx A(t) (y - f(0))`: infinitely wide networks trained by gradient flow on `mse`.

    Each network starts at a draw f(0) of the Gaussian process with kernel K = nngp, so the mean is
    `Theta_tx A y` and the covariance `K_tt - B K_xt - (B K_xt)' + B K_xx B'` with `B = Theta_tx
    A(t)` and A(t) as in `solve_flow`. Training only the last layer is the case where nngp stands
    for both kernels.

    Args:
        gram: Kernels of the training inputs.
        data: Training examples; only the targets are used.
        time: Increasing times >= 0; the last may be infinite.
        cross: Kernels between the inputs wanted and the training inputs.
        prior: NNGP kernel of the inputs wanted.
        tolerance: Size below which an eigenvalue of the tangent kernel counts as zero; None for its
            rounding.

    Returns:
        Mean `[s, m, k]` and covariance `[s, m, m]`; variances that rounding made negative are zero.

    Raises:
        ValueError: If shapes do not fit, times do not increase, a kernel is no kernel, or a
            variance is negative beyond rounding: no process has these kernels.

    Example:
        >>> one = Gram(nngp=np.eye(1), ntk=np.eye(1))
        >>> data = Data(x=np.zeros((1, 1)), y=np.array([[2.0]]))
        >>> ensemble = trained_ensemble(one, data, time=[0.0, np.inf], cross=one, prior=np.eye(1))
        >>> ensemble.mean.ravel().tolist(), ensemble.covariance.ravel().tolist()
        ([0.0, 2.0], [1.0, 0.0])

    Source: Lee et al. (2019), Wide neural networks of any depth evolve as linear models under
    gradient descent.
    """
    guards.concrete("trained_ensemble", gram, targets(data), time, cross, prior, tolerance)
    for name, kernels in {"gram": gram, "cross": cross}.items():
        _check_gram(name, kernels)
    y, _ = check_targets(gram.ntk, data.y, None)
    time = check_times(time)
    _check_decoupled("gram.ntk", gram.ntk, (len(y), len(y)))
    eigen, _ = modes(gram.ntk, len(y), time, tolerance)
    return ensemble_law(eigen, gram.nngp, y, time, cross, prior)


def ensemble_law(
    eigen: Eigen,
    nngp,
    y,
    time,
    cross: Gram,
    prior: Float[ArrayLike, "m3 m4"],
    *,
    ridge: float = 0.0,
) -> Gaussian:
    """`trained_ensemble` by the decomposition of the kernel that trains; the ridge is noise of the start f(0)."""
    _check_decoupled("cross.ntk", cross.ntk, (len(np.atleast_1d(cross.nngp)), len(y)))
    check_finite_kernel("cross.ntk", cross.ntk)
    _check_blocks(nngp, cross.nngp, prior, y, "cross.nngp")
    filters = (np.asarray(cross.ntk, np.float64) @ eigen.vectors) * flow_weights(
        eigen, time / len(y)
    )[:, None]
    shared = filters @ (eigen.vectors.T @ np.asarray(cross.nngp, np.float64).T)
    start = eigen.vectors.T @ symmetric(nngp) @ eigen.vectors + ridge * np.eye(len(y))
    carried = filters @ start @ filters.swapaxes(1, 2)
    covariance = np.asarray(prior, np.float64) - shared - shared.swapaxes(1, 2) + carried
    error = _rounding(rank_tolerance(nngp), cross.nngp, prior)
    return Gaussian(
        filters @ (eigen.vectors.T @ y), _with_variances(covariance, filters, error, np.max(prior))
    )


def _check_gram(name, kernels):
    if not (hasattr(kernels, "nngp") and hasattr(kernels, "ntk")):
        raise TypeError(
            f"{name} got a {type(kernels).__name__}, expected both kernels: pass Gram(nngp=..., ntk=...), as "
            "analytic_kernel returns it."
        )


def _check_blocks(nngp, cross, prior, y, name="cross"):
    """The blocks of one covariance matrix, of training inputs and inputs wanted."""
    if isinstance(nngp, Eigen):
        raise TypeError(
            "nngp got an eigendecomposition, expected the kernel: pass the matrix itself."
        )
    n = len(y)
    m = len(np.atleast_1d(guards.numbers(name, cross)))
    _check_decoupled("nngp", nngp, (n, n))
    _check_decoupled(name, cross, (m, n))
    _check_decoupled("prior", prior, (m, m))
    check_finite_kernel(name, cross)
    check_finite_kernel("prior", prior)
    check_symmetric(prior)


def _check_decoupled(name, kernel, shape):
    """Refuses a kernel that is not of this shape: independent outputs share one kernel."""
    found = guards.numbers(name, kernel).shape
    if found != shape:
        raise ValueError(
            f"{name} has shape {found}, expected {shape}, one kernel for all outputs: of a full kernel pass the "
            "trace, or linalg.kernel_matrix(kernel) with y.reshape(-1, 1)."
        )


def _rounding(tolerance, cross, prior):
    """Rounding of the joint kernel of training inputs and inputs wanted."""
    n_joint = sum(np.shape(cross))
    parts = (
        rank_tolerance(part) / np.shape(part)[0] ** 0.5
        for part in (np.asarray(cross), np.asarray(prior))
    )
    return max(tolerance, max(parts) * n_joint**0.5)


def _with_variances(covariance, filters, rounding, size):
    """The covariance with variances >= 0, refused where one is negative beyond rounding.

    A variance is `v' J v` with v = (-filters, 1) and J the joint kernel: an error of J of the norm
    `rounding` changes it by at most `|v|^2 rounding`. Kernels with more rounding than their dtype
    has get the limit of their eigenvalues.
    """
    variances = np.diagonal(covariance, axis1=-2, axis2=-1)
    allowed = np.maximum(rounding * (1 + np.sum(filters**2, axis=-1)), NEGATIVE_LIMIT * size)
    impossible = np.argwhere(variances < -allowed)
    if len(impossible):
        worst = tuple(impossible[0])
        raise ValueError(
            f"variance of input {worst[-1]} is {variances[worst]:.3g} where rounding explains {-allowed[worst]:.2g}, "
            "expected >= 0: prior, cross and the kernel of the training inputs are no covariance of one process; "
            "compute all three with one network and one scaling of the inputs."
        )
    covariance = covariance.copy()
    own = np.arange(covariance.shape[-1])
    covariance[..., own, own] = np.maximum(variances, 0.0)
    return covariance


def _leave_one_out(eigen: Eigen, y, ndim, ridge):
    inverse = eigen.inverse_values(ridge)
    if not inverse.all():
        raise ValueError(
            f"kernel + ridge is singular: lambda_min = {eigen.values[0]:.3g} with ridge = {ridge:g} is below the "
            f"rounding {eigen.tolerance:.3g} of the kernel: pass a positive ridge of at least that, or drop duplicate "
            "inputs."
        )
    n, k = y.shape
    rows = eigen.vectors.reshape(n, 1 if ndim == 2 else k, -1)
    blocks = np.einsum("iam,m,ibm->iab", rows, inverse, rows, optimize=True)
    solved = expand(eigen, inverse[None], y, ndim).reshape(n, blocks.shape[1], -1)
    return y - np.linalg.solve(blocks, solved).reshape(n, k)
