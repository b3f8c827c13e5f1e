"""Closed forms under jit, grad and vmap: in `jax.numpy`, in the dtype at hand, with derivatives of all arguments.

Outside of transformations the same functions compute on the host in float64, where the rank of a
kernel can be decided by its values. Values that are traced are unknown: here nothing is left out,
so that an inverse needs a positive ridge, and a kernel that its ridge does not lift above its
rounding gives NaN.

The flow needs no ridge. With `A(K) = (1 - exp(-K tau)) / K = V diag(g(lambda)) V'` its derivative
is that of Daleckii and Krein, `dA = V (g[lambda_i, lambda_j] * (V' dK V)) V'`, in which divided
differences `g[a, b] = (g(a) - g(b)) / (a - b)` stand where the derivative of eigenvectors would have
`1 / (a - b)`: they are finite where eigenvalues are equal. They are held for all times together,
one matrix each.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jax.custom_derivatives import SymbolicZero

from lazynet import guards
from lazynet.dynamics.checks import check_kernel_shape, check_times, targets
from lazynet.linalg import NEGATIVE_LIMIT, Eigen, columns_of, unfolded
from lazynet.trees import is_traced, widened
from lazynet.typing import Array

NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)
"""Exact to rounding for `exp(-z s)` with s in [0, 1] and z <= 1."""


def arrays(kernel: Any, y: Any, **others: Any) -> tuple[Array, ...]:
    """Kernel, targets and further arrays in the widest floating-point dtype among them, which is at least float32."""
    if isinstance(kernel, Eigen):
        raise TypeError(
            "kernel got an eigendecomposition inside of a transformation, expected the kernel: pass the matrix itself."
        )
    values = {
        name: guards.real(name, value)
        for name, value in {"kernel": kernel, "y": y, **others}.items()
    }
    for name, value in values.items():
        guards.finite(name, value)
    n_and_k = values["y"].shape
    if len(n_and_k) != 2 or 0 in n_and_k:
        raise ValueError(
            f"y: targets of shape {n_and_k}, expected [n, k], not empty: reshape scalar targets by y[:, None]."
        )
    check_kernel_shape("kernel", values["kernel"].shape, n_and_k[0], *n_and_k)
    return _in_one_dtype(*values.values())


def _in_one_dtype(*values):
    """Arrays in the widest of their dtypes, float32 at least: half precision has no Cholesky factors."""
    converted = [jnp.asarray(value) for value in values]  # float64 of NumPy is float32 without x64
    widest = max((value.dtype for value in converted), key=lambda dtype: dtype.itemsize)
    dtype = jnp.float32 if widest.itemsize < 4 else widest
    return tuple(value.astype(dtype) for value in converted)


def check_tolerance(tolerance: Any) -> None:
    """Refuses a tolerance: which directions to leave out cannot be seen in values that are traced."""
    if tolerance is not None:
        raise ValueError(
            f"tolerance got {tolerance} inside of a transformation, expected None: nothing is left out there, pass a "
            "positive ridge."
        )


def positive_ridge(ridge: Any, like: Array) -> Array:
    """One ridge in the dtype of an array, after refusing a known one that is not positive."""
    fix = "the pseudo-inverse needs values that are known, call it outside of jit, grad and vmap"
    return jnp.asarray(guards.number("ridge", ridge, above=0, fix=fix)).astype(like.dtype)


def positive_ridges(ridge: Any, like: Array) -> Array:
    """`positive_ridge` of one ridge, or of an axis of them."""
    if np.ndim(ridge) > 1 or not np.size(ridge):
        raise ValueError(
            f"ridge of shape {np.shape(ridge)}, expected one number or one axis of them, not empty."
        )
    if is_traced(ridge):
        return jnp.asarray(ridge).astype(like.dtype)
    ridges = [positive_ridge(value, like) for value in np.ravel(ridge)]
    return jnp.stack(ridges) if np.ndim(ridge) else ridges[0]


def times(time: Any) -> Any:
    """Times as one axis, of which known ones are finite and >= 0: the limit needs a rank, or a ridge."""
    if is_traced(time):
        if np.ndim(time) > 1:
            raise ValueError(
                f"time got an array of shape {time.shape}, expected one axis of increasing times >= 0."
            )
        return jnp.atleast_1d(time)
    time = check_times(time)
    if np.isinf(time[-1]):
        raise ValueError(
            "time ends with inf inside of a transformation, expected finite times: use kernel_regression with a "
            "positive ridge."
        )
    return time


def product(kernel: Array, coefficients: Array) -> Array:
    """`Theta a` for coefficients `[*s, n, k]`."""
    n, k = coefficients.shape[-2:]
    columns = coefficients if kernel.ndim == 2 else coefficients.reshape(-1, n * k, 1)
    outputs = jnp.matmul(unfolded(kernel), columns, precision="highest")
    return outputs.reshape(*coefficients.shape[:-2], len(kernel), k)


def rounding(kernel: Any) -> Array:
    """`4 eps max|K| sqrt(m)` with eps of the dtype the kernel came in, `linalg.rank_tolerance` of traced values."""
    kernel = jnp.asarray(guards.real("kernel", kernel))
    rows = len(unfolded(kernel))
    largest = widened(jax.lax.stop_gradient(jnp.max(jnp.abs(kernel))))
    return 4 * float(jnp.finfo(kernel.dtype).eps) * math.sqrt(rows) * largest


def solve(kernel: Array, columns: Array, ridge: Array, rounding: Array) -> Array:
    """`(K + ridge I)^{-1} b` by Cholesky, for a kernel as a matrix; NaN where its rounding leaves it in doubt."""
    identity = jnp.eye(len(kernel), dtype=kernel.dtype)
    rounding = rounding.astype(kernel.dtype)
    # As in `linalg.solve_psd`: a factor of the matrix with less than the ridge says that no
    # eigenvalue with it is in doubt.
    less = jnp.where(ridge >= rounding, ridge / 2, ridge - rounding)
    test = jnp.linalg.cholesky(jax.lax.stop_gradient(kernel + less * identity))
    # Added to the ridge, NaN is in all derivatives too.
    doubt = jnp.where(jnp.isnan(test).any(), jnp.nan, 0.0).astype(kernel.dtype)
    shifted = kernel + (ridge + doubt) * identity
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(shifted), True), columns)


def kernel_outputs(kernel: Any, coefficients: Any, f0: Any) -> Array:
    """`f0 + Theta a`."""
    a = guards.real("coefficients", coefficients)
    kernel = guards.real("cross", kernel)
    check_kernel_shape("cross", kernel.shape, len(kernel), *a.shape[-2:])
    if f0 is None:
        return product(*_in_one_dtype(kernel, a))
    kernel, a, f0 = _in_one_dtype(kernel, a, guards.real("f0", f0))
    outputs = product(kernel, a)
    check_start(f0, outputs.shape[-2:])
    return outputs + jnp.broadcast_to(f0, outputs.shape)


def check_start(f0: Array, shape: tuple[int, ...]) -> None:
    """Refuses outputs at time 0 of another shape."""
    if f0.shape != shape:
        raise ValueError(
            f"f0 has shape {f0.shape}, expected outputs of shape {shape}: evaluate the model at its initial parameters."
        )


def kernel_regression(given: Any, data: Any, cross: Any, ridge: Any, tolerance: Any) -> Array:
    """`K(x, X) (K + ridge I)^{-1} y`, for one ridge or an axis of them."""
    kernel, y, cross = arrays(given, targets(data), cross=cross)
    check_kernel_shape("cross", cross.shape, len(cross), *y.shape)
    check_tolerance(tolerance)
    ridge = positive_ridges(ridge, kernel)
    limit = rounding(given)
    columns = columns_of(y, kernel.ndim)

    def outputs_at(ridge):
        return product(cross, solve(unfolded(kernel), columns, ridge, limit).reshape(y.shape))

    return jax.vmap(outputs_at)(ridge) if ridge.ndim else outputs_at(ridge)


def leave_one_out(given: Any, data: Any, ridge: Any, tolerance: Any) -> Array:
    """`y_i - [G_ii]^{-1} [G y]_i` with `G = (K + ridge I)^{-1}`, for one ridge or an axis of them."""
    kernel, y = arrays(given, targets(data))
    check_tolerance(tolerance)
    ridge = positive_ridges(ridge, kernel)
    limit = rounding(given)

    def left_out_at(ridge):
        blocks, solved = left_out(kernel, y, ridge, limit)
        return y - jnp.linalg.solve(blocks, solved).reshape(y.shape)

    return jax.vmap(left_out_at)(ridge) if ridge.ndim else left_out_at(ridge)


def left_out(kernel: Array, y: Array, ridge: Array, rounding: Array) -> tuple[Array, Array]:
    """Blocks `G_ii` and `[G y]_i` of the examples."""
    n, k = y.shape
    outputs = 1 if kernel.ndim == 2 else k
    columns = columns_of(y, kernel.ndim)
    identity = jnp.eye(n * outputs, dtype=kernel.dtype)
    inverse = solve(unfolded(kernel), identity, ridge, rounding)
    solved = jnp.matmul(inverse, columns, precision="highest")
    own = jnp.arange(n)
    blocks = inverse.reshape(n, outputs, n, outputs)[own, :, own]
    return blocks, solved.reshape(n, outputs, -1)


def gaussian(
    train: tuple[Array, Array, Array],
    start: Array,
    y: Array,
    cross: Array,
    cross_start: Array,
    prior: Array,
) -> tuple[Array, Array]:
    """Mean `B y` and covariance `K_tt - B K_xt - (B K_xt)' + B K_xx B'` with `B = Theta_tx Theta_xx^{-1}`, of matrices.

    Negative variances are rounding and become zero; beyond what rounding explains they are NaN.

    Args:
        train: Theta_xx, the kernel that trains, its ridge and its rounding.
        start: K_xx, with the noise of the start.
        y: Targets, one column for each independent output.
        cross: Theta_tx.
        cross_start: K_tx.
        prior: K_tt.
    """
    kernel, ridge, limit = train
    filters = solve(kernel, cross.T, ridge, limit).T
    shared = _highest(filters, cross_start.T)
    carried = _highest(_highest(filters, start), filters.T)
    covariance = prior - shared - shared.T + carried
    variances = jnp.diagonal(covariance)
    is_rounding = variances >= -NEGATIVE_LIMIT * jnp.max(prior)
    own = jnp.arange(len(covariance))
    variances = jnp.where(is_rounding, jnp.maximum(variances, 0.0), jnp.nan)
    return _highest(filters, y), covariance.at[own, own].set(variances)


def solve_flow(
    ntk: Any, y: Any, f0: Any, time: Any, ridge: Any = 0.0, rate: Any = 1.0
) -> tuple[Array, Array]:
    """Outputs and coefficients `a = A(K + ridge I) (y - f0)` at times `rate * time`, of which inf needs a ridge."""
    start = jnp.zeros_like(y) if f0 is None else f0
    kernel, y, f0 = arrays(ntk, y, f0=start)
    check_start(f0, y.shape)
    is_infinite = np.zeros(np.shape(time), bool) if is_traced(time) else np.isinf(np.asarray(time))
    matrix = unfolded(kernel)
    if is_infinite.any():
        ridge = positive_ridge(ridge, kernel)
    else:
        ridge = jnp.asarray(ridge).astype(y.dtype)
    matrix = matrix + ridge * jnp.eye(len(matrix), dtype=matrix.dtype)
    residual = columns_of(y - f0, kernel.ndim)
    # Infinite times get the limit below: tau phi(lambda tau) would be inf * 0.
    finite = jnp.asarray(time if is_traced(time) else np.where(is_infinite, 0.0, time))
    tau = finite.astype(y.dtype) * jnp.asarray(rate).astype(y.dtype) / len(y)
    coefficients = flow_coefficients(matrix, tau, residual)
    if is_infinite.any():
        limit = solve(unfolded(kernel), residual, ridge, rounding(ntk))
        coefficients = jnp.where(is_infinite[:, None, None], limit[None], coefficients)
    outputs = jnp.matmul(matrix, coefficients, precision="highest").reshape(-1, *y.shape) + f0[None]
    return outputs, coefficients.reshape(-1, *y.shape)


@jax.custom_jvp
def flow_coefficients(matrix: Array, tau: Array, residual: Array) -> Array:
    """`A(K) residual` at s times: `(1 - exp(-K tau)) / K` of a positive semi-definite matrix, `[s, m, c]`."""
    values, vectors = _modes(matrix)
    return _expanded(vectors, tau[:, None] * _phi(values[None] * tau[:, None]), residual)


def _flow_derivative(primals, tangents):
    matrix, tau, residual = primals
    matrix_dot, tau_dot, residual_dot = tangents
    values, vectors = map(_once_differentiable, _modes(matrix))
    exponents = values[None] * tau[:, None]
    weights = tau[:, None] * _phi(exponents)
    derivative = jnp.zeros((len(tau), *residual.shape), residual.dtype)
    if not isinstance(residual_dot, SymbolicZero):
        derivative += _expanded(vectors, weights, residual_dot)
    if not isinstance(tau_dot, SymbolicZero):
        # d/dtau (1 - exp(-lambda tau)) / lambda = exp(-lambda tau).
        derivative += _expanded(vectors, jnp.exp(-exponents) * tau_dot[:, None], residual)
    if not isinstance(matrix_dot, SymbolicZero):
        # In the eigenbasis the derivative of a function of a matrix multiplies that of the matrix,
        # entry by entry, with divided differences of the function (Daleckii and Krein).
        turned = _highest(_highest(vectors.T, (matrix_dot + matrix_dot.T) / 2), vectors)
        modes = _highest(vectors.T, residual)
        # g(lambda) = tau phi(lambda tau), hence g[a, b] = tau^2 phi[a tau, b tau].
        slopes = _divided_difference(exponents[:, :, None], exponents[:, None, :])
        slopes = tau[:, None, None] ** 2 * slopes
        derivative += _highest(vectors, _highest(slopes * turned[None], modes))
    return _expanded(vectors, weights, residual), derivative


# Tangents that are zero are known to be: divided differences, a matrix for each time, are made
# for derivatives by the kernel alone.
flow_coefficients.defjvp(_flow_derivative, symbolic_zeros=True)


@jax.custom_jvp
def _once_differentiable(values: Array) -> Array:
    """The identity: the derivative above is not made to be differentiated by the kernel again."""
    return values


@_once_differentiable.defjvp
def _refuse(primals, tangents):
    raise ValueError(
        "gradient_flow got a second derivative by its kernel, expected first ones: take second derivatives of "
        "kernel_regression with a ridge, or finite differences of the gradient."
    )


def _modes(matrix):
    """Eigenvalues, of which negative ones are rounding and become zero, and eigenvectors."""
    values, vectors = jnp.linalg.eigh(matrix)
    return jnp.maximum(values, 0.0), vectors


def _expanded(vectors, weights, residual):
    """`V diag(weights) V' residual` for every row of weights."""
    modes = weights[:, :, None] * _highest(vectors.T, residual)[None]
    return _highest(vectors, modes)


def _highest(a, b):
    return jnp.matmul(a, b, precision="highest")


def _phi(z):
    """`(1 - exp(-z)) / z`, 1 at zero, for z >= 0."""
    # The branch that is not taken must not divide by zero, which would make derivatives NaN.
    nonzero = jnp.where(z == 0, 1.0, z)
    return jnp.where(z == 0, 1.0, -jnp.expm1(-nonzero) / nonzero)


def _divided_difference(a, b):
    """`phi[a, b] = (phi(a) - phi(b)) / (a - b)` for a, b >= 0, also where both are equal or tiny.

    With a >= b it is `(exp(-b) phi(a - b) - phi(b)) / a`, by the product rule for `z phi(z) = 1 -
    exp(-z)`. Below a = 1 this cancels, and `-int_0^1 s exp(-b s) phi((a - b) s) ds` does not.
    """
    larger = jnp.maximum(a, b)
    smaller = jnp.minimum(a, b)
    gap = larger - smaller
    # Both branches are computed everywhere: each gets arguments at which it is finite.
    is_small = larger < 1
    fast = (jnp.exp(-smaller) * _phi(gap) - _phi(smaller)) / jnp.where(is_small, 1.0, larger)
    near = jnp.where(is_small, smaller, 0.0)
    apart = jnp.where(is_small, gap, 0.0)
    slow = jnp.zeros_like(fast)
    # Gauss-Legendre, its nodes moved from [-1, 1] to [0, 1].
    for node, weight in zip((NODES + 1) / 2, WEIGHTS / 2, strict=True):
        slow -= float(weight * node) * jnp.exp(-near * float(node)) * _phi(apart * float(node))
    return jnp.where(is_small, slow, fast)
