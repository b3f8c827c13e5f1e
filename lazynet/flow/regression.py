"""Kernel regression and Gaussian-process inference: where the dynamics end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from lazynet.flow.checks import check_finite_kernel, check_kernel, check_ridges, check_targets, check_times, decompose
from lazynet.flow.dynamics import expand, flow_weights, kernel_outputs
from lazynet.linalg import Eigen, check_ridge, kernel_matrix, psd_eigh, solve_psd, symmetric
from lazynet.records import Data, Gram
from lazynet.typing import ArrayLike


def kernel_regression(
    kernel: Float[ArrayLike, "n1 n2 ..."] | Eigen,
    data: Data,
    *,
    cross: Float[ArrayLike, "m1 m2 ..."],
    ridge: float | int | Float[ArrayLike, " r"] = 0.0,
) -> Float[np.ndarray, "*r m k"]:
    """Predictions `f(x) = K(x, X) (K(X, X) + ridge I)^{-1} y`, for one ridge or a sweep from one eigendecomposition.

    With the NTK and ridge 0 this is the infinite-time limit of `gradient_flow` from f0 = 0. One ridge is solved by
    Cholesky, an axis of ridges by an eigendecomposition, which takes as long as about ten single solves; for
    kernels that leave no room for either there is `conjugate_gradient_regression`.

    Args:
        kernel: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`, or its `linalg.psd_eigh`.
        data: Training examples; only the targets are used (center one-hot targets first).
        cross: Kernel between the inputs wanted and the training inputs.
        ridge: Absolute ridges >= 0; 0 gives the pseudo-inverse, the limit of a vanishing ridge.

    Returns:
        Predictions, with a leading axis if `ridge` has one.

    Raises:
        ValueError: If shapes do not fit, a ridge is negative, or the kernel is no kernel.

    Example:
        >>> data = Data(x=np.zeros((2, 1)), y=np.array([[1.0], [3.0]]))
        >>> kernel_regression(np.eye(2), data, cross=np.eye(2), ridge=np.array([0.0, 1.0]))[:, :, 0].tolist()
        [[1.0, 3.0], [0.5, 1.5]]
    """
    y, _ = check_targets(kernel, data.y, None)
    ridges = check_ridges(ridge)
    if not np.ndim(ridge) and not isinstance(kernel, Eigen):
        columns = y if np.ndim(kernel) == 2 else y.reshape(-1, 1)
        solved = solve_psd(kernel_matrix(kernel), columns, ridge=float(ridges[0]))
        return kernel_outputs(cross, solved.reshape(y.shape))
    eigen, ndim = decompose(kernel, len(y))
    weights = np.stack([eigen.inverse_values(value) for value in ridges])
    outputs = kernel_outputs(cross, expand(eigen, weights, y, ndim))
    return outputs if np.ndim(ridge) else outputs[0]


def leave_one_out(
    kernel: Float[ArrayLike, "n1 n2 ..."] | Eigen, data: Data, *, ridge: float | int | Float[ArrayLike, " r"]
) -> Float[np.ndarray, "*r n k"]:
    """Prediction of each example from all others: `f_i = y_i - [G_ii]^{-1} [G y]_i` with G = (K + ridge I)^{-1}.

    Exact, for the price of one regression: the cheapest honest way to choose a ridge or a depth on training data.

    Args:
        kernel: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`, or its `linalg.psd_eigh`.
        data: Training examples; only the targets are used.
        ridge: Absolute ridges >= 0, such that K + ridge I is invertible.

    Returns:
        Left-out predictions, with a leading axis if `ridge` has one.

    Raises:
        ValueError: If shapes do not fit, a ridge is negative, K + ridge I is singular, or the kernel is no kernel.

    Example:
        >>> data = Data(x=np.zeros((2, 1)), y=np.array([[1.0], [3.0]]))
        >>> leave_one_out(np.array([[2.0, 1.0], [1.0, 2.0]]), data, ridge=0.0).round(12).tolist()
        [[1.5], [0.5]]

    Source: Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, equation 5.12.
    """
    y, _ = check_targets(kernel, data.y, None)
    eigen, ndim = decompose(kernel, len(y))
    left_out = [_leave_one_out(eigen, y, ndim, value) for value in check_ridges(ridge)]
    return np.stack(left_out) if np.ndim(ridge) else left_out[0]


class Gaussian(NamedTuple):
    """Distribution of the outputs at m inputs, over initializations or given data.

    Attributes:
        mean: Mean output; a leading axis of times if there is one.
        covariance: Covariance between inputs, the same for each of the k outputs, which are independent.

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
) -> Gaussian:
    """Posterior `mean = K_tx G y`, `covariance = K_tt - K_tx G K_xt` of the process, G = (K_xx + ridge I)^{-1}.

    What Bayesian inference gives in an infinitely wide network, or training only its last layer.

    Args:
        nngp: NNGP kernel of the training inputs.
        data: Training examples; only the targets are used.
        cross: NNGP kernel between the inputs wanted and the training inputs.
        prior: NNGP kernel of the inputs wanted.
        ridge: Variance of the observation noise; 0 gives the pseudo-inverse, its limit.

    Raises:
        ValueError: If shapes do not fit, the ridge is negative, or the kernel is no kernel.

    Example:
        >>> data = Data(x=np.zeros((1, 1)), y=np.array([[2.0]]))
        >>> posterior = nngp_posterior(np.eye(1), data, cross=np.eye(1), prior=np.eye(1), ridge=1.0)
        >>> posterior.mean.item(), round(posterior.covariance.item(), 12)
        (1.0, 0.5)
    """
    y, _ = check_targets(nngp, data.y, None)
    cross, prior = np.asarray(cross, np.float64), np.asarray(prior, np.float64)
    check_kernel("cross", cross, len(cross), *y.shape)
    check_kernel("prior", prior, len(cross), len(cross), y.shape[1])
    for name, kernel in {"cross": cross, "prior": prior}.items():
        check_finite_kernel(name, kernel)
    check_ridge(ridge)
    eigen = psd_eigh(nngp)
    modes, weights = cross @ eigen.vectors, eigen.inverse_values(ridge)
    return Gaussian((modes * weights) @ (eigen.vectors.T @ y), prior - (modes * weights) @ modes.T)


def trained_ensemble(
    gram: Gram,
    data: Data,
    *,
    time: Num[ArrayLike, "..."] | Sequence[float | int] | float | int,
    cross: Gram,
    prior: Float[ArrayLike, "m3 m4"],
) -> Gaussian:
    """Law of `f(t) = f(0) + Theta_tx A(t) (y - f(0))`: infinitely wide networks trained by gradient flow on `mse`.

    Each network starts at a draw f(0) of the Gaussian process with kernel K = nngp, so the mean is `Theta_tx A y` and
    the covariance `K_tt - B K_xt - (B K_xt)' + B K_xx B'` with `B = Theta_tx A(t)` and A(t) as in `solve_flow`.
    Training only the last layer is the case where nngp stands for both kernels.

    Args:
        gram: Kernels of the training inputs.
        data: Training examples; only the targets are used.
        time: Increasing times >= 0; the last may be infinite.
        cross: Kernels between the inputs wanted and the training inputs.
        prior: NNGP kernel of the inputs wanted.

    Returns:
        Mean `[s, m, k]` and covariance `[s, m, m]`.

    Raises:
        ValueError: If shapes do not fit, times do not increase, or a kernel is no kernel.

    Example:
        >>> one = Gram(nngp=np.eye(1), ntk=np.eye(1))
        >>> data = Data(x=np.zeros((1, 1)), y=np.array([[2.0]]))
        >>> ensemble = trained_ensemble(one, data, time=[0.0, np.inf], cross=one, prior=np.eye(1))
        >>> ensemble.mean.ravel().tolist(), ensemble.covariance.ravel().tolist()
        ([0.0, 2.0], [1.0, 0.0])

    Source: Lee et al. (2019), Wide neural networks of any depth evolve as linear models under gradient descent.
    """
    y, _ = check_targets(gram.ntk, data.y, None)
    time, m = check_times(time), len(cross.ntk)
    for name, kernel, rows, columns in (
        ("nngp", gram.nngp, len(y), len(y)),
        ("cross.ntk", cross.ntk, m, len(y)),
        ("cross.nngp", cross.nngp, m, len(y)),
        ("prior", prior, m, m),
    ):
        check_kernel(name, kernel, rows, columns, y.shape[1])
        check_finite_kernel(name, kernel)
    eigen = psd_eigh(gram.ntk)
    filters = (np.asarray(cross.ntk, np.float64) @ eigen.vectors) * flow_weights(eigen, time / len(y))[:, None]
    shared = filters @ (eigen.vectors.T @ np.asarray(cross.nngp, np.float64).T)
    start = eigen.vectors.T @ symmetric(gram.nngp) @ eigen.vectors
    carried = filters @ start @ filters.swapaxes(1, 2)
    covariance = np.asarray(prior, np.float64) - shared - shared.swapaxes(1, 2) + carried
    return Gaussian(filters @ (eigen.vectors.T @ y), covariance)


def _leave_one_out(eigen: Eigen, y, ndim, ridge):
    if eigen.values[0] + ridge <= eigen.tolerance:
        raise ValueError(
            f"kernel + ridge is singular: lambda_min = {eigen.values[0] + ridge:.3g} with ridge = "
            f"{ridge:g}: pass a positive ridge, or drop duplicate inputs."
        )
    n, k = y.shape
    rows = eigen.vectors.reshape(n, 1 if ndim == 2 else k, -1)
    blocks = np.einsum("iam,m,ibm->iab", rows, eigen.inverse_values(ridge), rows, optimize=True)
    solved = expand(eigen, eigen.inverse_values(ridge)[None], y, ndim).reshape(n, blocks.shape[1], -1)
    return y - np.linalg.solve(blocks, solved).reshape(n, k)
