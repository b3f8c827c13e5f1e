"""The flow in dual coefficients: a closed form for `mse`, a differential equation for other losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num, Shaped

from lazynet import guards
from lazynet.dynamics import traced
from lazynet.dynamics.checks import (
    check_finite_kernel,
    check_kernel,
    check_outputs,
    check_targets,
    check_times,
    formed,
    modes,
)
from lazynet.linalg import Eigen, check_positive, columns_of, kernel_matrix, symmetric
from lazynet.losses import check_labels, mse
from lazynet.trees import is_traced
from lazynet.typing import ArrayLike, LossFn


class Solution(NamedTuple):
    """Dynamics in function space at s times: `outputs = f0 + Theta coefficients` on the training inputs.

    Attributes:
        outputs: Training outputs f(t, X).
        coefficients: Dual coefficients a(t), which `kernel_outputs` turns into outputs on further
            inputs.

    Example:
        >>> Solution(outputs=np.zeros((4, 2, 1)), coefficients=np.zeros((4, 2, 1))).outputs.shape
        (4, 2, 1)
    """

    outputs: Float[ArrayLike, "s n k"]
    coefficients: Float[ArrayLike, "s n k"]


def solve_flow(
    ntk: Float[ArrayLike, "n1 n2 ..."] | Eigen,
    y: Shaped[ArrayLike, "..."],
    *,
    time: Num[ArrayLike, "..."] | Sequence[float | int] | float | int,
    loss: LossFn = mse,
    f0: Float[ArrayLike, "..."] | None = None,
    friction: float | int | None = None,
    rtol: float = 1e-11,
    tolerance: float | int | None = None,
) -> Solution:
    """Outputs and dual coefficients of the kernel gradient flow: `f = f0 + Theta a`, `da/dt = -grad_f L(f)`.

    For `mse` in closed form, mode by mode: `a = (t/n) phi(lambda t/n) (y - f0)` with `phi(z) = (1 -
    exp(-z))/z`. A null direction (phi = 1) moves at a constant rate: invisible on the training set,
    it matters to a `cross` kernel computed with rounding. At infinite time null directions are left
    out, as the pseudo-inverse does.

    Under jit, grad and vmap the closed form is computed in `jax.numpy`, in the dtype of the
    arguments, at finite times: its derivatives by kernel, targets and times are exact and finite,
    also where eigenvalues are equal.

    Other losses are integrated by an explicit eighth-order Runge-Kutta method, in float32 when x64
    is off. Its cost grows like `lambda_max(Theta) t / n`, and hardly with the precision asked for.

    Args:
        ntk: Kernel of the training inputs, `[n, n]` or `[n, n, k, k]`; for `mse` also its
            `linalg.psd_eigh`.
        y: Training targets, `[n, k]`.
        time: Increasing times >= 0; the last may be infinite for `mse` without friction.
        loss: Loss averaged over examples.
        f0: Training outputs at time 0, `[n, k]`; zero if left out.
        friction: gamma > 0 replaces the flow by that of the heavy ball, `a'' = -grad_f L - gamma
            a'`, `a'(0) = 0`.
        rtol: Relative error allowed in a step of the integration, at least 1e-5 in float32; closed
            forms ignore it.
        tolerance: Size below which an eigenvalue counts as zero, in closed forms; None for the
            rounding of the kernel at infinite time, and nothing before.

    Raises:
        ValueError: If shapes do not fit, times do not increase, the kernel is no kernel (where it is
            integrated, as far as a few products show), a number is out of range, or targets are none of
            the loss.
        TypeError: If an argument is no array of real numbers, or traced where there is no closed
            form.
        RuntimeError: If the integration needs more than a million steps.

    Example:
        >>> solution = solve_flow(np.diag([1.0, 0.0]), np.ones((2, 1)), time=[0.0, 4.0])
        >>> solution.coefficients.round(6)[:, :, 0].tolist()
        [[0.0, 0.0], [0.864665, 2.0]]
    """
    guards.function("loss", loss, "pass lazynet.mse or another loss(outputs, targets)")
    if is_traced((ntk, y, time, f0)) and loss is mse and friction is None:
        traced.check_tolerance(tolerance)
        return Solution(*traced.solve_flow(ntk, y, f0, traced.times(time)))
    guards.concrete(
        "solve_flow with a loss other than mse, or friction,", ntk, y, time, f0, friction, tolerance
    )
    y, f0 = check_targets(ntk, y, f0)
    time = check_times(time)
    if friction is not None:
        friction = guards.number("friction", friction, above=0, fix="None is the plain flow")
    if loss is mse and friction is None:
        eigen, ndim = modes(ntk, len(y), time, tolerance)
        return closed_form(eigen, flow_weights(eigen, time / len(y)), y, f0, ndim)
    rtol = guards.number("rtol", rtol, above=0, below=1)
    return _integrate(formed(ntk), y, f0, loss, time, friction, rtol)


def kernel_outputs(
    kernel: Float[ArrayLike, "m1 m2 ..."],
    coefficients: Float[ArrayLike, "*s n k"],
    f0: Float[ArrayLike, "..."] | None = None,
) -> Float[ArrayLike, "*s m k"]:
    """Outputs `f(x) = f0(x) + Theta(x, X) a` of dual coefficients, in float64 where no argument is traced.

    Args:
        kernel: Kernel between the inputs wanted and the training inputs, `[m, n]` or `[m, n, k,
            k]`.
        coefficients: a, with any leading axes, for instance times.
        f0: Outputs at time 0, `[m, k]`; zero if left out.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> solution = solve_flow(np.eye(2), np.array([[1.0], [3.0]]), time=[np.inf])
        >>> kernel_outputs(np.array([[0.5, 0.5]]), solution.coefficients).tolist()
        [[[2.0]]]
    """
    if is_traced((kernel, coefficients, f0)):
        return traced.kernel_outputs(kernel, coefficients, f0)
    a = np.asarray(guards.numbers("coefficients", coefficients), np.float64)
    if a.ndim < 2:
        raise ValueError(
            f"coefficients of shape {a.shape}, expected [..., n, k], as solve_flow returns them."
        )
    n, k = a.shape[-2:]
    check_kernel("cross", kernel, len(np.atleast_1d(guards.numbers("cross", kernel))), n, k)
    matrix = np.asarray(kernel_matrix(kernel), np.float64)
    check_finite_kernel("cross", matrix)
    # A full kernel is a matrix on pairs (example, output), which then are one column.
    columns = a if np.ndim(kernel) == 2 else a.reshape(*a.shape[:-2], n * k, 1)
    outputs = _product(matrix, columns).reshape(*a.shape[:-2], -1, k)
    return outputs if f0 is None else outputs + check_outputs("f0", f0, outputs.shape[-2:])


def _product(matrix, columns):
    """`matrix @ columns` for any leading axes by one product of matrices, a third of the cost of one for each."""
    flat = np.moveaxis(columns, -2, 0)
    product = matrix @ flat.reshape(len(flat), -1)
    return np.moveaxis(product.reshape(len(matrix), *flat.shape[1:]), 0, -2)


def flow_weights(eigen: Eigen, tau):
    """`(1 - exp(-lambda tau)) / lambda` per time and mode; tau = t/n, infinite included."""
    finite = np.isfinite(tau)[:, None]
    tau = np.where(finite, tau[:, None], 0.0)
    with np.errstate(over="ignore"):  # exp(-inf) is the zero that it should be
        exponent = -eigen.values * tau
    # phi near its limit 1 for slow modes; fast ones divide by lambda, which cannot overflow.
    is_slow = exponent > -1.0
    phi = np.where(exponent == 0, 1.0, np.expm1(exponent) / np.where(exponent == 0, 1.0, exponent))
    fast = -np.expm1(exponent) / np.where(is_slow, 1.0, eigen.values)
    return np.where(finite, np.where(is_slow, tau * phi, fast), eigen.inverse_values())


def closed_form(eigen: Eigen, weights, y, f0, ndim) -> Solution:
    """The solution whose dual coefficients are `V diag(weights) V' (y - f0)` at each time."""
    with np.errstate(over="ignore", invalid="ignore"):
        outputs = f0 + expand(eigen, eigen.values * weights, y - f0, ndim)
        return Solution(outputs, expand(eigen, weights, y - f0, ndim))


def expand(eigen: Eigen, weights, residual, ndim):
    """`V diag(weights) V' residual` for every row of weights, `[s, n, k]`."""
    # All times side by side: one product of matrices instead of one for each.
    columns = columns_of(residual, ndim)
    modes = weights.T[:, :, None] * (eigen.vectors.T @ columns)[:, None, :]
    expanded = (eigen.vectors @ modes.reshape(len(modes), -1)).reshape(modes.shape)
    return expanded.swapaxes(0, 1).reshape(len(weights), *residual.shape)


def _integrate(ntk, y, f0, loss, time, friction, rtol):
    """Solves `a' = -grad L`, or `a' = b, b' = -grad L - friction b`, by diffrax in the widest dtype available."""
    import diffrax

    matrix = symmetric(kernel_matrix(ntk))
    check_positive(matrix)
    if np.isinf(time[-1]):
        raise ValueError(
            "time ends with inf, expected finite times: only mse without friction has a closed form; "
            "pass a large finite time."
        )
    check_labels(loss, y)
    dtype = jnp.result_type(float)
    end = jnp.asarray(time[-1] or 1.0, dtype)  # an array, lest every grid of times compile anew
    tolerance = jnp.asarray(rtol if dtype == jnp.float64 else max(rtol, 1e-5), dtype)
    start = jnp.zeros((1 if friction is None else 2, *y.shape), dtype)
    slope = jax.tree_util.Partial(_slope, loss, np.ndim(ntk), friction is not None)
    known = tuple(jnp.asarray(each, dtype) for each in (matrix, y, f0, friction or 0.0))
    # Steps that become this small are a failure, which is told below.
    steps = diffrax.PIDController(
        rtol=tolerance, atol=1e-3 * tolerance, dtmin=end * 1e-9, force_dtmin=False
    )
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        diffrax.Dopri8(),
        t0=0.0,
        t1=end,
        dt0=None,
        y0=start,
        args=known,
        saveat=diffrax.SaveAt(ts=jnp.asarray(time, dtype)),
        max_steps=1_000_000,
        throw=False,
        stepsize_controller=steps,
    )
    if solution.result != diffrax.RESULTS.successful:
        raise RuntimeError(
            f"integration up to time {time[-1]:g} failed after {solution.stats['num_steps']} steps: "
            "shorten the time, check that the loss is finite and smooth, or use mse (closed form)."
        )
    coefficients = np.asarray(solution.ys, np.float64)[:, 0]
    return Solution(kernel_outputs(ntk, coefficients, f0), coefficients)


def _slope(loss, ndim, heavy_ball, _, state, args):
    matrix, y, f0, friction = args
    columns = columns_of(state[0], ndim)
    outputs = f0 + jnp.matmul(matrix, columns, precision="highest").reshape(y.shape)
    force = -jax.grad(loss)(outputs, y)
    return jnp.stack([state[1], force - friction * state[1]]) if heavy_ball else force[None]
