"""What a training that goes on must have in common with the one that was saved, looked at before its first step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import guards, trees
from lazynet.parameters import Where
from lazynet.records import Trajectory
from lazynet.signatures import real_weights
from lazynet.typing import Params

__all__ = ["TrainState", "check_curve", "check_names", "check_state"]


class TrainState(NamedTuple):
    """Everything that the next step depends on, besides the key: batches are a function of key and step.

    Attributes:
        step: Number of steps done.
        time: Cumulated learning rate over (1 - momentum); the number of steps for optax with a rate
            of its own.
        params: Weights, or the displacement u of a lazy function.
        opt_state: State of the optimizer.

    Example:
        >>> TrainState(0, 0.0, {}, ()).step
        0
    """

    step: int
    time: float
    params: Params
    opt_state: Any


def check_state(
    state: Any, start: Params | None, optimizer: Any, where: Where | None = None
) -> TrainState:
    """The state itself, if a training from `start` by this optimizer can be in it.

    Args:
        state: What is to be resumed.
        start: Weights of the same shapes and types; None if there are none to compare with.
        optimizer: With `init`.
        where: Which parameters it trains; None for all.

    Raises:
        TypeError: It is no TrainState.
        ValueError: The state has other shapes, is not finite or belongs to another optimizer.

    Example:
        >>> from lazynet import sgd
        >>> check_state(TrainState(3, 0.5, jnp.ones(2), sgd().init(jnp.ones(2))), jnp.zeros(2), sgd()).step
        3
    """
    if not isinstance(state, TrainState):
        raise TypeError(
            f"resume got a {type(state).__name__}, expected the TrainState that on_save got."
        )
    step = guards.count("resume.step", state.step, at_least=0)
    time = guards.number("resume.time", state.time, at_least=0)
    guards.weights("resume.params", state.params)
    if start is not None:
        trees.check_same_structure(state.params, start, name="resume.params", expected="params")
        leaves = jax.tree_util.tree_leaves_with_path(state.params)
        for (path, leaf), other in zip(leaves, jax.tree.leaves(start), strict=True):
            if trees.is_weight(other) and jnp.result_type(leaf) != jnp.result_type(other):
                place = f"resume.params{jax.tree_util.keystr(path)}"
                raise ValueError(
                    f"{place} has dtype {jnp.result_type(leaf)}, expected {jnp.result_type(other)} as in "
                    "params: resume in the precision of the training."
                )
    guards.finite("resume.params", state.params, "resume from a record before training diverged")
    guards.finite(
        "resume.opt_state", state.opt_state, "resume from a record before training diverged"
    )
    # Shapes alone: no state is made.
    expected = jax.eval_shape(optimizer.init, real_weights(None, state.params, where)[1])
    if _form(state.opt_state) != _form(expected):
        raise ValueError(
            f"resume.opt_state is {_form(state.opt_state)}, expected {_form(expected)}, the state of {optimizer}: "
            "resume with the optimizer of the training."
        )
    return state._replace(step=step, time=time)


def check_curve(state: TrainState, curve: Trajectory) -> None:
    """Refuses a curve that does not end where the state is.

    Raises:
        ValueError: Its last step or time is another one, or its columns have different lengths.

    Example:
        >>> check_curve(TrainState(3, 0.5, {}, ()), Trajectory(np.array([3]), np.array([0.5]), {}, None, None))
    """
    columns = {"step": curve.step, "time": curve.time, **curve.metrics}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            f"resume has a curve with columns of lengths {lengths}, expected one length >= 1 for all."
        )
    end = (int(curve.step[-1]), float(curve.time[-1]))
    now = (state.step, float(state.time))
    if (
        end[0] != now[0]
        or not np.isclose(end[1], now[1], rtol=1e-6, atol=0)
        or np.any(np.diff(curve.step) <= 0)
    ):
        raise ValueError(
            f"resume has a curve that ends at step {end[0]} and time {end[1]:g}, and a state at step {now[0]} and time "
            f"{now[1]:g}, expected the same: pass the last pair that on_save got."
        )


def check_names(curve: Trajectory, names: set[str]) -> None:
    """Refuses a curve of other metrics than those that are to be recorded.

    Raises:
        ValueError: Naming those that it lacks and those that nothing gives any more.

    Example:
        >>> check_names(Trajectory(np.array([0]), np.array([0.0]), {"a": np.ones(1)}, None, None), {"a"})
    """
    found = set(curve.metrics)
    if found != names:
        lacking = ", ".join(map(repr, sorted(names - found))) or "none"
        given_up = ", ".join(map(repr, sorted(found - names))) or "none"
        raise ValueError(
            f"resume has a curve without the metrics asked for ({lacking}), or with others ({given_up}), expected the "
            "same: pass test= and measure= of the training that is resumed."
        )


def _form(tree):
    """The structure of a state with the shapes of its arrays, as text."""
    return str(jax.tree.map(lambda leaf: f"{list(np.shape(leaf))}", tree))
