"""What the predictors of `lazynet.dropin.predict` require of their arguments, and the forms in which they take them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lazynet import guards
from lazynet.dynamics.checks import check_kernel_shape
from lazynet.linalg import Eigen, check_symmetric, kernel_matrix, ridge_eigh, unfolded
from lazynet.trees import is_traced
from lazynet.typing import Array


class TargetAxes(NamedTuple):
    """Targets of several axes as a matrix `[m, r]`: m entries that a kernel couples, and r copies that it does not.

    Attributes:
        shape: Of the targets, examples first.
        traced: Axes that the kernel lacks, in order.
    """

    shape: tuple[int, ...]
    traced: tuple[int, ...]

    @property
    def kept(self) -> list[int]:
        """Axes that the kernel has, in pairs."""
        return [axis for axis in range(len(self.shape)) if axis not in self.traced]

    def targets(self, y: Any) -> Any:
        """`[m, r]` of targets or outputs."""
        array = jnp.transpose(y, (*self.kept, *self.traced))
        copies = math.prod(self.shape[axis] for axis in self.traced)
        return array.reshape(-1, copies)

    def matrix(self, kernel: Any) -> Any:
        """`[m1, m2]` of a kernel with its axes in pairs."""
        pairs = len(self.kept)
        if kernel.ndim != 2 * pairs:
            raise ValueError(
                f"a kernel of shape {kernel.shape} for targets of shape {self.shape} and trace_axes = {self.traced}, "
                f"expected {2 * pairs} axes: each axis of the targets that is not traced twice."
            )
        # Axes come in pairs `[n1, n2, k1, k2, ...]`, of which the first ones are rows.
        firsts = range(0, kernel.ndim, 2)
        square = jnp.transpose(kernel, (*firsts, *range(1, kernel.ndim, 2)))
        return square.reshape(math.prod(square.shape[:pairs]), -1)

    def sized(self, kernel: Any) -> tuple[int, ...]:
        """Shape of the outputs of the inputs of the rows of a kernel."""
        return (kernel.shape[0] if 0 in self.kept else self.shape[0], *self.shape[1:])

    def outputs(self, values: Any, shape: tuple[int, ...]) -> Any:
        """Outputs `[*times, *shape]` of values `[*times, m, r]`."""
        lead = values.ndim - 2
        order = [*self.kept, *self.traced]
        array = values.reshape(*values.shape[:lead], *(shape[axis] for axis in order))
        back = [lead + order.index(axis) for axis in range(len(shape))]
        return jnp.transpose(array, (*range(lead), *back))

    def covariance(self, values: Any, shape: tuple[int, ...]) -> Any:
        """Covariances with their axes in pairs of values `[*times, m, m]`."""
        lead = values.ndim - 2
        sizes = [shape[axis] for axis in self.kept]
        array = values.reshape(*values.shape[:lead], *sizes, *sizes)
        pairs = [lead + i + len(sizes) * j for i in range(len(sizes)) for j in (0, 1)]
        return jnp.transpose(array, (*range(lead), *pairs))


def target_axes(trace_axes: Any, y: Any) -> TargetAxes | None:
    """How targets become a matrix; None for targets `[n, k]` with a kernel that has all of their axes, or examples."""
    if not hasattr(y, "ndim"):
        return None
    axes = trace_axes if isinstance(trace_axes, (tuple, list)) else (trace_axes,)
    known = all(isinstance(axis, int) and -y.ndim <= axis < y.ndim for axis in axes)
    traced = tuple(sorted({axis % y.ndim for axis in axes})) if known and y.ndim else ()
    plain = not known or y.ndim < 2 or (y.ndim == 2 and traced in ((), (1,)))
    return None if plain else TargetAxes(tuple(y.shape), traced)


def times(t, unit):
    """Increasing distinct times, and a function that puts results at these times into the shape of t."""
    steps = np.asarray(guards.numbers("t", np.inf if t is None else t), np.float64)
    if not steps.size:
        raise ValueError(
            f"t of shape {steps.shape}, expected at least one time, or None for infinity."
        )
    distinct, position = np.unique(steps, return_inverse=True)
    position = position.reshape(steps.shape)
    return distinct * unit, lambda results: results[position]


def absolute_ridge(kernel, diag_reg, absolute) -> Any:
    """The ridge in the units of the kernel."""
    ridge = guards.number("diag_reg", diag_reg, at_least=0, fix="it is added to the diagonal")
    if absolute:
        return ridge
    if is_traced(ridge) or is_traced(kernel):
        # Zero times a traced mean would be traced, and not known to be zero any more.
        is_known_zero = not is_traced(ridge) and ridge == 0
        return 0.0 if is_known_zero else ridge * jnp.mean(jnp.diagonal(unfolded(kernel)))
    matrix = kernel_matrix(kernel)
    # A kernel with NaN would make the ridge NaN, and the message speak of that.
    check_symmetric(matrix)
    return ridge * float(np.mean(np.diagonal(matrix), dtype=np.float64))


def regularized(kernel, ridge, tolerance) -> Eigen:
    """Decomposition of kernel + ridge, whose tolerance is the rounding of the kernel in its own dtype."""
    return ridge_eigh(kernel_matrix(kernel), ridge, tolerance=tolerance).shifted(ridge)


def member(name, kernels, *kinds):
    """The first of the kernels that is there; an array stands for the one asked for."""
    if hasattr(kernels, "shape") and not hasattr(kernels, "nngp"):
        return numbers(name, kernels)
    found = [kind for kind in kinds if getattr(kernels, kind, None) is not None]
    if not found:
        raise ValueError(
            f"{name} of type {type(kernels).__name__} have no {' or '.join(kinds)}, expected an object "
            f"with this attribute: compute them with get={('nngp', 'ntk')}, or pass Gram(nngp=..., ntk=...)."
        )
    return numbers(f"{name}.{found[0]}", getattr(kernels, found[0]))


def numbers(name, values):
    """Real numbers as an array of NumPy, or traced as they are."""
    return guards.real(name, values) if is_traced(values) else guards.numbers(name, values)


def names_of(get, known):
    """Names of the kernels asked for, as a tuple."""
    names = ("nngp", "ntk") if get is None else (get,) if isinstance(get, str) else get
    if isinstance(names, (tuple, list)):
        names = tuple(name.lower() if isinstance(name, str) else name for name in names)
    if (
        not isinstance(names, (tuple, list))
        or not names
        or not all(name in known for name in names)
    ):
        raise ValueError(f"get = {get!r}, expected one of {known}, or a tuple of them.")
    return tuple(names)


def check_covariance(names, train, cross):
    """Refuses covariances for which a kernel is missing, as neural-tangents does."""
    if "ntk" in names and not (hasattr(train, "nngp") and hasattr(cross, "nngp")):
        raise ValueError(
            "get='ntk' with k_test_test got single arrays, expected NNGP and NTK, both of which the covariance of "
            "trained networks needs: pass Gram(nngp=..., ntk=...), or kernel_fn(x1, x2, ('nngp', 'ntk')), as "
            "k_train_train and k_test_train, and the NNGP as k_test_test; get='ntkgp' takes the NTK alone."
        )


def checked(name, kernel, y, trace_axes):
    """Kernel and targets as arrays of NumPy, after checking that they belong together."""
    y = checked_targets(y)
    matrix = numbers(name, kernel)
    if not matrix.size:
        raise ValueError(f"{name} has shape {matrix.shape}, expected at least one training input.")
    check_trace_axes(trace_axes, () if matrix.ndim == 4 else (-1,), matrix.shape)
    check_kernel_shape(name, matrix.shape, len(y), *y.shape)
    return matrix, y


def checked_targets(y):
    """Targets `[n, k]` in floating point."""
    y = numbers("y_train", y)
    if y.ndim != 2 or not y.size:
        raise ValueError(
            f"y_train has shape {y.shape}, expected targets [n, k]: write y_train[:, None] for k = 1."
        )
    return y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(jnp.result_type(float))


def check_trace_axes(trace_axes, expected, shape=("n", "n")):
    """Refuses axes of outputs that are not those of the kernel."""
    is_axes = isinstance(trace_axes, int) or (
        isinstance(trace_axes, (tuple, list)) and all(isinstance(axis, int) for axis in trace_axes)
    )
    axes = (trace_axes,) if isinstance(trace_axes, int) else tuple(trace_axes) if is_axes else None
    # Targets have two axes, which may be counted from either end.
    if axes not in (expected, tuple(axis % 2 for axis in expected)):
        raise ValueError(
            f"trace_axes = {trace_axes} with a kernel of shape {shape}, expected targets [n, k] and (-1,) with a "
            "kernel [n, n], or () with a kernel [n, n, k, k]: write kernel[:, :, None, None] * np.eye(k) for the full "
            "kernel of independent outputs, and transpose other axes to the end."
        )


def check_cross(fx_test_0, k_test_train):
    """Refuses test outputs at time 0 without the kernel that leads to them."""
    if fx_test_0 is not None and k_test_train is None:
        raise ValueError(
            "got fx_test_0 without k_test_train, expected both: pass the kernel between test and training inputs."
        )


def traced_start(name, outputs, shape, y):
    """`start_outputs` in the dtype of the targets, also of traced ones."""
    if not is_traced(outputs):
        return jnp.asarray(start_outputs(name, outputs, shape)).astype(y.dtype)
    return jnp.broadcast_to(guards.real(name, outputs), shape).astype(y.dtype)


def start_outputs(name, outputs, shape):
    """Outputs at time 0: one number for all of them, or an array that broadcasts."""
    outputs = np.asarray(guards.numbers(name, outputs), np.float64)
    try:
        return np.broadcast_to(outputs, shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {outputs.shape}, expected {shape}, or one number for all outputs."
        ) from None


def like(outputs, y) -> Array:
    """On the device, in the floating-point dtype of the targets."""
    return jnp.asarray(outputs.astype(y.dtype))
