"""Flows of known kernels inside of jit: from starts that are traced, at times that are traced."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lazynet.dynamics.traced import product
from lazynet.linalg import Eigen, columns_of
from lazynet.losses import check_labels
from lazynet.typing import Array, LossFn

__all__ = ["Motion", "known_flow", "moved"]

RTOL = 1e-7
"""Relative error of a step in double precision; 1e-5 in single."""


class Motion(NamedTuple):
    """Outputs and their velocities, of training and of test inputs.

    Attributes:
        train: `[n, k]`.
        test: `[m, k]`; None without test inputs.
        train_speed: Velocity of the heavy ball; None at rest.
        test_speed: The same for test outputs.

    Example:
        >>> Motion(jnp.zeros((2, 1))).test is None
        True
    """

    train: Any
    test: Any = None
    train_speed: Any = None
    test_speed: Any = None


def known_flow(eigen: Eigen, ndim: int, y: Array, f0: Array, time: Array) -> tuple[Array, Array]:
    """Outputs and coefficients of gradient flow on the square loss, of a kernel that is decomposed already.

    As outside of programs, null directions are left out at infinite times.

    Args:
        eigen: The decomposition of the kernel as a matrix, with its ridge.
        ndim: Number of axes of the kernel.
        y: Targets, `[n, k]`.
        f0: Outputs at time 0, `[n, k]`.
        time: Times, in units of which the flow is `df/dt = -Theta (f - y) / n`.

    Returns:
        Outputs `[s, n, k]`, and coefficients a with `f = f0 + Theta a`.

    Example:
        >>> from lazynet.linalg import eigh
        >>> outputs, _ = known_flow(eigh(jnp.eye(2)), 2, jnp.ones((2, 1)), jnp.zeros((2, 1)), jnp.array([jnp.inf]))
        >>> outputs.ravel().tolist()
        [1.0, 1.0]
    """
    values = jnp.asarray(eigen.values).astype(y.dtype)
    vectors = jnp.asarray(eigen.vectors).astype(y.dtype)
    inverse = jnp.asarray(eigen.inverse_values()).astype(y.dtype)
    is_infinite = jnp.isinf(time)[:, None]
    # Infinite times get the pseudo-inverse below: tau phi(lambda tau) would be inf * 0.
    tau = jnp.where(is_infinite, 0.0, time[:, None]) / len(y)
    exponents = -values[None] * tau
    # The branch that is not taken must not divide by zero, which would make derivatives NaN.
    nonzero = jnp.where(exponents == 0, 1.0, exponents)
    finite = tau * jnp.where(exponents == 0, 1.0, jnp.expm1(nonzero) / nonzero)
    weights = jnp.where(is_infinite, inverse[None], finite)
    modes = jnp.matmul(vectors.T, columns_of(y - f0, ndim), precision="highest")
    coefficients = jnp.matmul(vectors, weights[:, :, None] * modes[None], precision="highest")
    moved_modes = (values[None] * weights)[:, :, None] * modes[None]
    moved = jnp.matmul(vectors, moved_modes, precision="highest")
    shape = (len(time), *y.shape)
    return f0[None] + moved.reshape(shape), coefficients.reshape(shape)


def moved(
    kernel: Array,
    y: Array,
    loss: LossFn,
    start: Motion,
    time: Array,
    *,
    cross: Array | None = None,
    friction: Any = None,
) -> Motion:
    """Outputs along `f' = -Theta grad L(f)`, or `f'' = -Theta grad L(f) - friction f'`, at increasing times.

    Integrated in the space of functions, so that a motion can be resumed from its outputs and
    velocities, by Dormand and Prince's method of order 8.

    Args:
        kernel: Theta, `[n, n]` or `[n, n, k, k]`.
        y: Targets, `[n, k]`.
        loss: `loss(f, y)`.
        start: Where to begin.
        time: Times from there, one axis.
        cross: Kernel of test and training inputs, with test outputs.
        friction: None for the flow without inertia.

    Example:
        >>> half = lambda f, y: jnp.sum((f - y) ** 2) / 2
        >>> end = moved(jnp.eye(1), jnp.ones((1, 1)), half, Motion(jnp.zeros((1, 1))), jnp.array([1.0]))
        >>> round(float(end.train[0, 0, 0]), 4)
        0.6321
    """
    check_labels(loss, y)
    dtype = jnp.result_type(y.dtype, kernel.dtype)
    heavy = friction is not None
    kernels = [kernel] if cross is None else [kernel, cross]
    outputs = [start.train] if cross is None else [start.train, start.test]
    speeds = [start.train_speed] if cross is None else [start.train_speed, start.test_speed]
    still = [jnp.zeros_like(f) if v is None else v for f, v in zip(outputs, speeds, strict=True)]
    state = (outputs, still) if heavy else (outputs,)

    def slope(_, state, args):
        kernels, y, friction = args
        force = -jax.grad(loss)(state[0][0], y)
        pushed = [product(theta, force) for theta in kernels]
        if not heavy:
            return (pushed,)
        return state[1], [a - friction * v for a, v in zip(pushed, state[1], strict=True)]

    known = (kernels, y, friction or 0.0)
    state, known, time = jax.tree.map(lambda a: jnp.asarray(a).astype(dtype), (state, known, time))
    functions, *rest = _integrated(slope, state, known, time)
    velocities = rest[0] if heavy else [None, None]
    if cross is None:
        return Motion(functions[0], None, velocities[0])
    return Motion(*functions, *velocities)


def _integrated(slope, state, known, time):
    """The state at each time; NaN where a million steps were not enough."""
    import diffrax

    tolerance = RTOL if time.dtype == jnp.float64 else 1e-5
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        diffrax.Dopri8(),
        t0=0.0,
        # An interval that is not empty, also where the only time is 0.
        t1=jnp.where(time[-1] > 0, time[-1], 1.0),
        dt0=None,
        y0=state,
        args=known,
        saveat=diffrax.SaveAt(ts=time),
        max_steps=1_000_000,
        throw=False,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=1e-3 * tolerance),
    )
    failed = solution.result != diffrax.RESULTS.successful
    return jax.tree.map(lambda a: jnp.where(failed, jnp.nan, a), solution.ys)
