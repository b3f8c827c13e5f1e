"""The functions of time that `lazynet.dropin.predict` returns: on the host, inside of programs, and from states."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lazynet import dynamics, guards
from lazynet.dropin.predict_arguments import (
    check_cross,
    like,
    numbers,
    start_outputs,
    times,
    traced_start,
)
from lazynet.dynamics import traced
from lazynet.dynamics.programs import Motion, known_flow, moved
from lazynet.trees import is_traced

__all__ = ["ODEState"]


class ODEState(NamedTuple):
    """Outputs and velocities of `gradient_descent`, from which it goes on.

    Attributes:
        fx_train: Training outputs.
        fx_test: Test outputs.
        qx_train: Velocities of training outputs; None at rest.
        qx_test: Of test outputs.

    Example:
        >>> ODEState(jnp.zeros((2, 1))).qx_train is None
        True
    """

    fx_train: Any = None
    fx_test: Any = None
    qx_train: Any = None
    qx_test: Any = None


def host_predictor(kernel, y, loss, unit, friction):
    """`predict_fn` of the dynamics whose time is `unit * t`."""

    def predict_fn(t=None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None):
        guards.concrete("predict_fn", t, fx_train_0, fx_test_0, k_test_train)
        check_cross(fx_test_0, k_test_train)
        time, restore = times(t, unit)
        # None asks for test outputs alone; training outputs then start at zero.
        start = start_outputs("fx_train_0", 0.0 if fx_train_0 is None else fx_train_0, y.shape)
        solution = dynamics.solve_flow(kernel, y, time=time, loss=loss, f0=start, friction=friction)
        train = like(restore(solution.outputs), y)
        if fx_test_0 is None:
            return train
        cross = guards.numbers("k_test_train", k_test_train)
        start = start_outputs("fx_test_0", fx_test_0, (len(np.atleast_1d(cross)), y.shape[1]))
        # `f(x) = f0(x) + Theta(x, X) a`: the coefficients of the training set serve any input.
        test = like(restore(dynamics.kernel_outputs(cross, solution.coefficients, start)), y)
        return test if fx_train_0 is None else (train, test)

    return predict_fn


def traced_predictor(kernel, y_train, unit, ridge, tolerance):
    """`predict_fn` of gradient flow on the square loss where a value is traced."""

    def predict_fn(t, fx_train_0, fx_test_0, k_test_train):
        traced.check_tolerance(tolerance)
        check_cross(fx_test_0, k_test_train)
        y = jnp.asarray(y_train)
        # Known times stay known, so that an infinite one among them is seen.
        steps = t if is_traced(t) else np.asarray(guards.numbers("t", np.inf if t is None else t))
        shape = jnp.shape(steps)
        start = traced_start("fx_train_0", 0.0 if fx_train_0 is None else fx_train_0, y.shape, y)
        outputs, coefficients = traced.solve_flow(
            kernel, y, start, steps.reshape(-1), ridge=ridge, rate=unit
        )
        train = outputs.reshape(*shape, *y.shape).astype(y.dtype)
        if fx_test_0 is None:
            return train
        cross = numbers("k_test_train", k_test_train)
        start = traced_start("fx_test_0", fx_test_0, (len(cross), y.shape[1]), y)
        test = traced.kernel_outputs(cross, coefficients, start)
        test = test.reshape(*shape, *test.shape[1:]).astype(y.dtype)
        return test if fx_train_0 is None else (train, test)

    return predict_fn


def predictor_of_axes(axes, inner):
    """`predict_fn` for targets of several axes."""

    def start(values):
        # One number for all outputs has no axes to move.
        return values if values is None or not jnp.ndim(values) else axes.targets(values)

    def predict_fn(t=None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None):
        cross = None if k_test_train is None else axes.matrix(k_test_train)
        found = inner(t, start(fx_train_0), start(fx_test_0), cross)
        if fx_test_0 is None:
            return axes.outputs(found, axes.shape)
        shape = axes.sized(k_test_train)
        if fx_train_0 is None:
            return axes.outputs(found, shape)
        return axes.outputs(found[0], axes.shape), axes.outputs(found[1], shape)

    return predict_fn


def known_predictor(eigen, ndim, y, unit):
    """`predict_fn` on the square loss inside of a program, of a kernel that is known."""

    def predict_fn(t, fx_train_0, fx_test_0, k_test_train):
        check_cross(fx_test_0, k_test_train)
        steps = jnp.asarray(np.inf if t is None else t)
        targets = jnp.asarray(y)
        start = traced_start(
            "fx_train_0", 0.0 if fx_train_0 is None else fx_train_0, y.shape, targets
        )
        clock = steps.reshape(-1).astype(targets.dtype) * unit
        outputs, coefficients = known_flow(eigen, ndim, targets, start, clock)
        train = outputs.reshape(*steps.shape, *y.shape)
        if fx_test_0 is None:
            return train
        cross = numbers("k_test_train", k_test_train)
        start = traced_start("fx_test_0", fx_test_0, (len(cross), y.shape[1]), targets)
        test = traced.kernel_outputs(cross, coefficients, start)
        test = test.reshape(*steps.shape, *test.shape[1:]).astype(targets.dtype)
        return test if fx_train_0 is None else (train, test)

    return predict_fn


def in_motion(kernel, y, loss, unit, friction, values):
    """Outputs inside of a program, or from a state."""
    t, state, fx_test_0, k_test_train = values
    if t is None:
        raise ValueError(
            "gradient_descent got t=None, expected a time: only gradient_descent_mse has a limit."
        )
    is_state = isinstance(state, ODEState)
    fx_train_0 = state.fx_train if is_state else state
    fx_test_0 = state.fx_test if is_state else fx_test_0
    check_cross(fx_test_0, k_test_train)
    targets = jnp.asarray(y)
    steps = jnp.asarray(t)
    cross = None if fx_test_0 is None else jnp.asarray(numbers("k_test_train", k_test_train))
    start = Motion(
        traced_start("fx_train_0", 0.0 if fx_train_0 is None else fx_train_0, y.shape, targets),
        None
        if cross is None
        else traced_start("fx_test_0", fx_test_0, (len(cross), y.shape[1]), targets),
        state.qx_train if is_state else None,
        state.qx_test if is_state else None,
    )
    end = moved(
        jnp.asarray(kernel),
        targets,
        loss,
        start,
        steps.reshape(-1) * unit,
        cross=cross,
        friction=friction,
    )
    end = [
        None if a is None else a.reshape(*steps.shape, *a.shape[1:]).astype(targets.dtype)
        for a in end
    ]
    if is_state:
        return ODEState(*end)
    if fx_test_0 is None:
        return end[0]
    return end[1] if fx_train_0 is None else (end[0], end[1])
