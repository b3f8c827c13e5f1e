"""Kernel regression, where the dynamics end, and what it predicts of examples that are left out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.dynamics import traced
from lazynet.dynamics.checks import check_kernel, check_ridges, check_targets, decompose, targets
from lazynet.dynamics.flow import expand, kernel_outputs
from lazynet.linalg import Eigen, columns_of, kernel_matrix, solve_psd
from lazynet.records import Data
from lazynet.trees import is_traced
from lazynet.typing import ArrayLike


def kernel_regression(
    kernel: Float[ArrayLike, "n1 n2 ..."] | Eigen,
    data: Data,
    *,
    cross: Float[ArrayLike, "m1 m2 ..."],
    ridge: float | int | Float[ArrayLike, "*r"] = 0.0,
    tolerance: float | int | None = None,
) -> Float[ArrayLike, "*r m k"]:
    """Predictions `f(x) = K(x, X) (K(X, X) + ridge I)^{-1} y`, for one ridge or a sweep from one eigendecomposition.

    With the NTK and ridge 0 this is the infinite-time limit of `gradient_flow` from f0 = 0. One
    ridge is solved by Cholesky, an axis of ridges by an eigendecomposition, which takes as long as
    about five single solves; for kernels that leave no room for either there is
    `conjugate_gradient_regression`.

    Nothing is left out where the ridge lifts the spectrum above the rounding of the kernel. Without
    such a ridge, directions below it are: a float32 kernel says nothing about them, and an inverse
    would amplify its noise.

    Under jit, grad and vmap it is computed in `jax.numpy` and in the dtype of the arguments, by
    Cholesky, and has derivatives by all of them: ridges must then be positive and there is no
    tolerance. A kernel that the ridge does not lift above its rounding gives NaN.

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
        TypeError: If an argument is no array of real numbers.

    Example:
        >>> data = Data(x=np.zeros((2, 1)), y=np.array([[1.0], [3.0]]))
        >>> kernel_regression(np.eye(2), data, cross=np.eye(2), ridge=np.array([0.0, 1.0]))[:, :, 0].tolist()
        [[1.0, 3.0], [0.5, 1.5]]
    """
    if is_traced((kernel, targets(data), cross, ridge)):
        return traced.kernel_regression(kernel, data, cross, ridge, tolerance)
    y, _ = check_targets(kernel, data.y, None)
    ridges = check_ridges(ridge)
    check_kernel("cross", cross, len(guards.array("cross", cross)), *y.shape)
    if not np.ndim(ridge) and not isinstance(kernel, Eigen):
        columns = columns_of(y, np.ndim(kernel))
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
) -> Float[ArrayLike, "*r n k"]:
    """Prediction of each example from all others: `f_i = y_i - [G_ii]^{-1} [G y]_i` with G = (K + ridge I)^{-1}.

    Exact, for the price of one regression: the cheapest honest way to choose a ridge or a depth on
    training data. Under jit, grad and vmap as `kernel_regression`: with positive ridges.

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
    if is_traced((kernel, targets(data), ridge)):
        return traced.leave_one_out(kernel, data, ridge, tolerance)
    y, _ = check_targets(kernel, data.y, None)
    ridges = check_ridges(ridge)
    eigen, ndim = decompose(kernel, len(y), ridges.min(), tolerance)
    predictions = []
    for value in ridges:
        blocks, solved = left_out(eigen, y, ndim, float(value))
        errors = np.linalg.solve(blocks, solved).reshape(y.shape)
        predictions.append(y - errors)
    return np.stack(predictions) if np.ndim(ridge) else predictions[0]


def left_out(eigen: Eigen, y, ndim, ridge):
    """Blocks `G_ii` and `[G y]_i` of the examples, for `G = (K + ridge I)^{-1}`."""
    inverse = eigen.regular_inverse_values(
        ridge, fix="pass a positive ridge of at least that, or drop duplicate inputs"
    )
    n, k = y.shape
    rows = eigen.vectors.reshape(n, 1 if ndim == 2 else k, -1)
    # G = V diag(1 / (lambda + ridge)) V', of which the diagonal blocks alone are formed.
    blocks = np.einsum("iam,m,ibm->iab", rows, inverse, rows, optimize=True)
    solved = expand(eigen, inverse[None], y, ndim).reshape(n, blocks.shape[1], -1)
    return blocks, solved
