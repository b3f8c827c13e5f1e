"""Functions of traces that are estimated by quadratic forms of Gaussian vectors, with their standard errors.

The variance of `g' A g` is `2 |A|_F^2`, and `(g' A h)^2` with another vector h has the mean
`|A|_F^2`: the products between different vectors tell the error of the mean. The scatter of the
squares themselves would tell it much worse: where one eigenvalue is large, a mean that came out
low has a small scatter too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


def gradient(of: Callable, values: np.ndarray) -> np.ndarray:
    """Derivatives of an analytic function of numbers, `Im f(x + ih)/h`, exact to rounding.

    Example:
        >>> gradient(lambda a, b: a**2 * b, np.array([3.0, 2.0])).tolist()
        [12.0, 9.0]
    """
    step = (
        1e-100  # without a difference nothing cancels, and the error is of the order of its square
    )
    moved = [values + 1j * step * unit for unit in np.eye(len(values))]
    return np.array([np.imag(of(*each)) / step for each in moved])


def scatter(slopes: np.ndarray, forms: Sequence[Float[np.ndarray, "p p"]]) -> float:
    """The standard error of `sum_k slopes_k mean_i g_i' A_k g_i`, from the forms `g_i' A_k g_j`.

    Example:
        >>> scatter(np.ones(1), [np.array([[5.0, 1.0], [1.0, 7.0]])])
        1.0
    """
    form = without_diagonal(np.tensordot(slopes, forms, 1))
    p = len(form)
    return float(np.sqrt(2 * np.sum(form**2) / (p - 1)) / p)


def without_diagonal(matrix: Float[np.ndarray, "p p"]) -> Float[np.ndarray, "p p"]:
    """A matrix with zeros on its diagonal.

    Example:
        >>> without_diagonal(np.ones((2, 2))).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return matrix - np.diag(np.diagonal(matrix))


def symmetrized(matrix: Float[np.ndarray, "p p"]) -> Float[np.ndarray, "p p"]:
    """`(A + A')/2`.

    Example:
        >>> symmetrized(np.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    return (matrix + matrix.T) / 2


def nonzero(square: Any) -> Any:
    """`tr K^2`, by which something is divided; that of a zero kernel is refused.

    Example:
        >>> nonzero(2.0)
        2.0
    """
    if np.real(square) <= 0:
        raise ValueError("kernel is zero, expected one with a spectrum.")
    return square
