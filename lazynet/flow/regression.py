"""Kernel regression and Gaussian-process inference: where the dynamics end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lazynet.flow.checks import check_kernel, check_ridges, check_targets
from lazynet.flow.dynamics import expand, kernel_outputs
from lazynet.linalg import Eigen, check_ridge, kernel_matrix, psd_eigh
from lazynet.records import Data
from lazynet.typing import ArrayLike


def kernel_regression(
    kernel: Float[ArrayLike, "n1 n2 ..."],
    data: Data,
    *,
    cross: Float[ArrayLike, "m1 m2 ..."],
    ridge: float | int | Float[ArrayLike, " r"] = 0.0,
) -> Float[np.ndarray, "*r m k"]:
    """Predictions `f(x) = K(x, X) (K(X, X) + ridge I)^{-1} y`, for one ridge or a sweep from one eigendecomposition.

    With the NTK and ridge 0 this is the infinite-time limit of `gradient_flow` from f0 = 0.

    Args:
        kernel: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`.
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
    eigen = psd_eigh(kernel_matrix(kernel))
    weights = np.stack([eigen.inverse_values(value) for value in check_ridges(ridge)])
    outputs = kernel_outputs(cross, expand(eigen, weights, y, np.ndim(kernel)))
    return outputs if np.ndim(ridge) else outputs[0]


def leave_one_out(
    kernel: Float[ArrayLike, "n1 n2 ..."], data: Data, *, ridge: float | int | Float[ArrayLike, " r"]
) -> Float[np.ndarray, "*r n k"]:
    """Prediction of each example from all others: `f_i = y_i - [G_ii]^{-1} [G y]_i` with G = (K + ridge I)^{-1}.

    Exact, for the price of one regression: the cheapest honest way to choose a ridge or a depth on training data.
    Source: Rasmussen and Williams (2006), equation 5.12.

    Args:
        kernel: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`.
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
    """
    y, _ = check_targets(kernel, data.y, None)
    eigen = psd_eigh(kernel_matrix(kernel))
    left_out = [_leave_one_out(eigen, y, np.ndim(kernel), value) for value in check_ridges(ridge)]
    return np.stack(left_out) if np.ndim(ridge) else left_out[0]


class Posterior(NamedTuple):
    """A Gaussian process conditioned on data.

    Attributes:
        mean: Mean at the inputs wanted.
        covariance: Covariance between these inputs, the same for each of the k outputs.

    Example:
        >>> Posterior(mean=np.zeros((2, 1)), covariance=np.eye(2)).mean.shape
        (2, 1)
    """

    mean: Float[np.ndarray, "m k"]
    covariance: Float[np.ndarray, "m m"]


def nngp_posterior(
    nngp: Float[ArrayLike, "n1 n2"],
    data: Data,
    *,
    cross: Float[ArrayLike, "m1 m2"],
    prior: Float[ArrayLike, "m3 m4"],
    ridge: float | int = 0.0,
) -> Posterior:
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
    check_ridge(ridge)
    eigen = psd_eigh(nngp)
    modes, weights = cross @ eigen.vectors, eigen.inverse_values(ridge)
    return Posterior((modes * weights) @ (eigen.vectors.T @ y), prior - (modes * weights) @ modes.T)


def _leave_one_out(eigen: Eigen, y, ndim, ridge):
    if eigen.values[0] + ridge <= eigen.tolerance:
        raise ValueError(f"kernel + ridge is singular: lambda_min = {eigen.values[0] + ridge:.3g} with ridge = "
                         f"{ridge:g}: pass a positive ridge, or drop duplicate inputs.")
    n, k = y.shape
    rows = eigen.vectors.reshape(n, 1 if ndim == 2 else k, -1)
    blocks = np.einsum("iam,m,ibm->iab", rows, eigen.inverse_values(ridge), rows, optimize=True)
    solved = expand(eigen, eigen.inverse_values(ridge)[None], y, ndim).reshape(n, blocks.shape[1], -1)
    return y - np.linalg.solve(blocks, solved).reshape(n, k)
