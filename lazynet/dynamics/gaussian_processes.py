"""Gaussian processes: the posterior of infinitely wide networks, and the law of those that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from lazynet import guards
from lazynet.dynamics import traced
from lazynet.dynamics.checks import (
    check_finite_kernel,
    check_targets,
    check_times,
    decompose,
    modes,
    targets,
)
from lazynet.dynamics.flow import flow_weights
from lazynet.dynamics.regression import left_out
from lazynet.linalg import (
    NEGATIVE_LIMIT,
    Eigen,
    check_symmetric,
    checked_ridge,
    columns_of,
    kernel_matrix,
    rank_tolerance,
    symmetric,
    unfolded,
)
from lazynet.records import Data, Gram
from lazynet.trees import is_traced
from lazynet.typing import Array, ArrayLike

SCALES = ("evidence", "leave_one_out")


class Gaussian(NamedTuple):
    """Distribution of the outputs at m inputs, over initializations or given data.

    Attributes:
        mean: Mean output; a leading axis of times if there is one.
        covariance: Covariance between inputs, `[m, m]` and the same for each of k independent
            outputs, or `[m, m, k, k]` of outputs that share a full kernel.

    Example:
        >>> Gaussian(mean=np.zeros((2, 1)), covariance=np.eye(2)).mean.shape
        (2, 1)
    """

    mean: Float[ArrayLike, "*s m k"]
    covariance: Float[ArrayLike, "..."]


def nngp_posterior(
    nngp: Float[ArrayLike, "n1 n2 ..."],
    data: Data,
    *,
    cross: Float[ArrayLike, "m1 m2 ..."],
    prior: Float[ArrayLike, "m3 m4 ..."],
    ridge: float | int | Float[ArrayLike, ""] = 0.0,
    scale: float | int | str | Float[ArrayLike, ""] = 1.0,
    tolerance: float | int | None = None,
) -> Gaussian:
    """Posterior `mean = K_tx G y`, `covariance = s (K_tt - K_tx G K_xt)` of the process, G = (K_xx + ridge I)^{-1}.

    What Bayesian inference gives in an infinitely wide network, or training only its last layer.
    The variance of a prior is rarely that of the targets, and then the covariance is off by the
    factor of their squares: a scale chosen by the data makes errors as large as they are said to be.

    Under jit, grad and vmap it is computed in `jax.numpy` and in the dtype of the arguments, with
    derivatives by all of them and a positive ridge.

    Args:
        nngp: NNGP kernel of the training inputs, `[n, n]`, or `[n, n, k, k]` of outputs that are
            not independent.
        data: Training examples; only the targets are used.
        cross: NNGP kernel between the inputs wanted and the training inputs.
        prior: NNGP kernel of the inputs wanted.
        ridge: Variance of the observation noise, in units of s; 0 gives the pseudo-inverse, its
            limit.
        scale: s, by which kernel and noise are multiplied, or "evidence" or "leave_one_out", which
            choose it as `prior_scale` does. The mean does not depend on it.
        tolerance: Size below which an eigenvalue of K_xx + ridge I counts as zero; None for the
            rounding of K_xx.

    Returns:
        Mean `[m, k]` and covariance `[m, m]`, or `[m, m, k, k]` of full kernels; variances that
        rounding made negative are zero.

    Raises:
        ValueError: If shapes do not fit, the ridge is negative, the kernel is no kernel, or a
            variance is negative beyond rounding: no process has these kernels.

    Example:
        >>> data = Data(x=np.zeros((1, 1)), y=np.array([[2.0]]))
        >>> posterior = nngp_posterior(np.eye(1), data, cross=np.eye(1), prior=np.eye(1), ridge=1.0)
        >>> posterior.mean.item(), round(posterior.covariance.item(), 12)
        (1.0, 0.5)
    """
    if is_traced((nngp, targets(data), cross, prior, ridge, scale)):
        traced.check_tolerance(tolerance)
        arrays = nngp, nngp, targets(data), cross, cross, prior
        law = traced_ensemble(*arrays, ridge=ridge, noise=ridge)
        size = jnp.asarray(chosen_scale(scale, nngp, data, ridge))
        return law._replace(covariance=size.astype(law.mean.dtype) * law.covariance)
    y, _ = check_targets(nngp, data.y, None)
    ridge = checked_ridge(ridge)
    _check_blocks(nngp, cross, prior, y, np.ndim(nngp))
    eigen, _ = decompose(nngp, len(y), ridge, tolerance)
    size = chosen_scale(scale, eigen, data, ridge)
    across = np.asarray(kernel_matrix(cross), np.float64)
    prior_matrix = np.asarray(kernel_matrix(prior), np.float64)
    # K_tx G = filters V', since G = V diag(1 / (lambda + ridge)) V'.
    filters = (across @ eigen.vectors) * eigen.inverse_values(ridge)
    covariance = prior_matrix - filters @ (across @ eigen.vectors).T
    error = _rounding(eigen.tolerance, kernel_matrix(cross), kernel_matrix(prior))
    covariance = _with_variances(covariance, filters, error, np.max(prior))
    mean = filters @ (eigen.vectors.T @ columns_of(y, np.ndim(nngp)))
    # s cancels in the mean, as the ridge is in units of it.
    return _gaussian(mean, size * covariance, np.ndim(nngp), y)


def prior_scale(
    nngp: Float[ArrayLike, "n1 n2 ..."] | Eigen,
    data: Data,
    *,
    ridge: float | int | Float[ArrayLike, ""],
    by: str = "evidence",
) -> float | Float[Array, ""]:
    """Scale s of the process with covariance s (K + ridge I) that fits the targets: `s = y' G y / (n k)`.

    This is the maximum of the evidence `N(y; 0, s (K + ridge I))`. By "leave_one_out" it is the
    scale at which the errors of predictions of each example from all others have the variance that
    the process gives them, `s = mean_i [G y]_i' [G_ii]^{-1} [G y]_i / k`: less is assumed of the
    process as a whole.

    Args:
        nngp: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`, or its `linalg.psd_eigh`.
        data: Training examples; only the targets are used.
        ridge: Noise in units of s, such that K + ridge I is invertible; under jit, grad and vmap
            positive.
        by: "evidence" or "leave_one_out".

    Raises:
        ValueError: If shapes do not fit, K + ridge I is singular, the kernel is no kernel, or `by`
            is neither.

    Example:
        >>> data = Data(x=np.zeros((2, 1)), y=np.array([[3.0], [1.0]]))
        >>> float(prior_scale(np.eye(2), data, ridge=0.0))
        5.0

    Source: Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, sections 5.4.1
    and 5.4.2.
    """
    _check_rule("by", by)
    if is_traced((nngp, targets(data), ridge)):
        kernel, y = traced.arrays(nngp, targets(data))
        ridge = traced.positive_ridge(ridge, kernel)
        blocks, solved = traced.left_out(kernel, y, ridge, traced.rounding(nngp))
        return _fitted(by, blocks, solved, y, jnp.linalg.solve)
    y, _ = check_targets(nngp, data.y, None)
    ridge = checked_ridge(ridge)
    eigen, ndim = decompose(nngp, len(y), ridge, None)
    blocks, solved = left_out(eigen, y, ndim, ridge)
    return float(_fitted(by, blocks, solved, y, np.linalg.solve))


def _fitted(by, blocks, solved, y, solve):
    """Mean over examples and outputs of `y_i' [G y]_i`, or of squared errors by their covariance `[G_ii]^{-1}`."""
    targets_by_example = y.reshape(solved.shape)
    # e_i = [G_ii]^{-1} [G y]_i has the covariance s [G_ii]^{-1}, and e_i' G_ii e_i = e_i' [G y]_i.
    errors = targets_by_example if by == "evidence" else solve(blocks, solved)
    return (errors * solved).sum() / y.size


def _check_rule(name, rule):
    if rule not in SCALES:
        raise ValueError(f"{name} got {rule!r}, expected one of {SCALES}.")


def chosen_scale(scale, kernel, data, ridge):
    """A scale that was given, or the one by the rule that was named."""
    if isinstance(scale, str):
        _check_rule("scale", scale)
        return prior_scale(kernel, data, ridge=ridge, by=scale)
    return guards.number("scale", scale, above=0, fix='or "evidence" or "leave_one_out"')


def traced_ensemble(ntk, nngp, y, rows, cross, prior, *, ridge, noise) -> Gaussian:
    """`ensemble_law` at infinite time where values are traced; the noise is that of the start f(0), if any."""
    kernel, y, start, rows, cross, prior = traced.arrays(
        ntk, y, start=nngp, rows=rows, cross=cross, prior=prior
    )
    m = len(cross)
    check_block("nngp", start, len(y), y, kernel.ndim)
    check_block("cross.ntk", rows, m, y, kernel.ndim)
    check_block("cross", cross, m, y, kernel.ndim)
    check_block("prior", prior, m, y, kernel.ndim, columns=m)
    matrices = [unfolded(each) for each in (kernel, start, rows, cross, prior)]
    matrix, start, rows, cross, prior = matrices
    trained = matrix, traced.positive_ridge(ridge, matrix), traced.rounding(ntk)
    if noise is not None:
        identity = jnp.eye(len(matrix), dtype=matrix.dtype)
        start = start + traced.positive_ridge(noise, matrix) * identity
    law = traced.gaussian(trained, start, columns_of(y, kernel.ndim), rows, cross, prior)
    return _gaussian(*law, kernel.ndim, y)


def _gaussian(mean, covariance, ndim, y):
    """The record of matrices over (input, output), with leading axes of times."""
    k = y.shape[1]
    if ndim == 2:
        return Gaussian(mean, covariance)
    # Rows and columns are (input, output): [m, k, m, k] becomes [m, m, k, k].
    m = covariance.shape[-1] // k
    blocks = covariance.reshape(*covariance.shape[:-2], m, k, m, k)
    return Gaussian(mean.reshape(*mean.shape[:-2], m, k), blocks.swapaxes(-3, -2))


def trained_ensemble(
    gram: Gram,
    data: Data,
    *,
    time: Num[ArrayLike, "..."] | Sequence[float | int] | float | int,
    cross: Gram,
    prior: Float[ArrayLike, "m3 m4 ..."],
    tolerance: float | int | None = None,
) -> Gaussian:
    """Law of `f(t) = f(0) + Theta_tx A(t) (y - f(0))`: infinitely wide networks trained by gradient flow on `mse`.

    Each network starts at a draw f(0) of the Gaussian process with kernel K = nngp, so the mean is
    `Theta_tx A y` and the covariance `K_tt - B K_xt - (B K_xt)' + B K_xx B'` with `B = Theta_tx
    A(t)` and A(t) as in `solve_flow`. Training only the last layer is the case where nngp stands
    for both kernels.

    Args:
        gram: Kernels of the training inputs, `[n, n]`, or `[n, n, k, k]` like all others.
        data: Training examples; only the targets are used.
        time: Increasing times >= 0; the last may be infinite.
        cross: Kernels between the inputs wanted and the training inputs.
        prior: NNGP kernel of the inputs wanted.
        tolerance: Size below which an eigenvalue of the tangent kernel counts as zero; None for its
            rounding.

    Returns:
        Mean `[s, m, k]` and covariance `[s, m, m]` or `[s, m, m, k, k]`; variances that rounding
        made negative are zero.

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
    check_block("gram.ntk", gram.ntk, len(y), y, np.ndim(gram.ntk))
    eigen, ndim = modes(gram.ntk, len(y), time, tolerance)
    return ensemble_law(eigen, ndim, gram.nngp, y, time, cross, prior)


def ensemble_law(
    eigen: Eigen,
    ndim: int,
    nngp,
    y,
    time,
    cross: Gram,
    prior: Float[ArrayLike, "m3 m4 ..."],
    *,
    ridge: float = 0.0,
) -> Gaussian:
    """`trained_ensemble` by the decomposition of the kernel that trains; the ridge is noise of the start f(0)."""
    check_block("cross.ntk", cross.ntk, len(np.atleast_1d(cross.nngp)), y, ndim)
    check_finite_kernel("cross.ntk", cross.ntk)
    _check_blocks(nngp, cross.nngp, prior, y, ndim, "cross.nngp")
    rows = np.asarray(kernel_matrix(cross.ntk), np.float64)
    across = np.asarray(kernel_matrix(cross.nngp), np.float64)
    drawn = kernel_matrix(nngp)
    # In the eigenbasis V of the tangent kernel: filters = B V, shared = B K_xt and, with start =
    # V' K V, carried = B K_xx B'.
    filters = (rows @ eigen.vectors) * flow_weights(eigen, time / len(y))[:, None]
    shared = filters @ (eigen.vectors.T @ across.T)
    start = eigen.vectors.T @ symmetric(drawn) @ eigen.vectors + ridge * np.eye(len(drawn))
    carried = filters @ start @ filters.swapaxes(1, 2)
    before = np.asarray(kernel_matrix(prior), np.float64)
    covariance = before - shared - shared.swapaxes(1, 2) + carried
    error = _rounding(rank_tolerance(drawn), kernel_matrix(cross.nngp), kernel_matrix(prior))
    covariance = _with_variances(covariance, filters, error, np.max(prior))
    mean = filters @ (eigen.vectors.T @ columns_of(y, ndim))
    return _gaussian(mean, covariance, ndim, y)


def _check_gram(name, kernels):
    if not (hasattr(kernels, "nngp") and hasattr(kernels, "ntk")):
        raise TypeError(
            f"{name} got a {type(kernels).__name__}, expected both kernels: pass Gram(nngp=..., ntk=...), as "
            "analytic_kernel returns it."
        )


def _check_blocks(nngp, cross, prior, y, ndim, name="cross"):
    """The blocks of one covariance matrix, of training inputs and inputs wanted."""
    if isinstance(nngp, Eigen):
        raise TypeError(
            "nngp got an eigendecomposition, expected the kernel: pass the matrix itself."
        )
    m = len(np.atleast_1d(guards.numbers(name, cross)))
    check_block("nngp", nngp, len(y), y, ndim)
    check_block(name, cross, m, y, ndim)
    check_block("prior", prior, m, y, ndim, columns=m)
    check_finite_kernel(name, cross)
    check_finite_kernel("prior", prior)
    check_symmetric(kernel_matrix(prior))


def check_block(name, kernel, rows, y, ndim, columns=None):
    """Refuses a kernel that is not `[rows, columns]`, or `[rows, columns, k, k]` as the others are; None is n."""
    n, k = y.shape
    shape = (rows, n if columns is None else columns)
    expected = shape if ndim == 2 else (*shape, k, k)
    found = guards.array(name, kernel).shape
    if found != expected:
        raise ValueError(
            f"{name} has shape {found}, expected {expected}: all kernels of a process are [n1, n2], one for all "
            "outputs, or all are [n1, n2, k, k]."
        )


def _rounding(tolerance, cross, prior):
    """Rounding of the joint kernel of training inputs and inputs wanted."""
    n_joint = sum(np.shape(cross))

    # A tolerance grows like the root of the rows; that of the joint kernel has the rows of both.
    def of_one_row(kernel):
        return rank_tolerance(np.asarray(kernel)) / np.shape(kernel)[0] ** 0.5

    largest = max(of_one_row(cross), of_one_row(prior))
    return max(tolerance, largest * n_joint**0.5)


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
