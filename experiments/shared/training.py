"""Trainings that a killed run goes on with, shared by the experiments that train networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lazynet as ln
from experiments.harness import store
from experiments.harness.errors import RunError
from lazynet.records import Data, Trajectory
from lazynet.training.checkpoints import curve_arrays, curve_from
from lazynet.trees import as_partial

__all__ = [
    "LOSSES",
    "batched_outputs",
    "cell_arrays",
    "checkpointed",
    "curve_of",
    "diverged_at",
    "final",
    "named",
    "trained_from",
    "trained_lazily",
]

LOSSES = {"mse": ln.mse, "cross_entropy": ln.cross_entropy}

CHECKPOINT_SECONDS = 10.0
BATCH = 1000

MOMENTUM = 0.9
LR_EXAMPLES = 100
"""How the small networks of `trained_from` are trained, in all experiments on them."""


def checkpointed(
    checkpoint: Path,
    goal: ln.Objective,
    start: Any,
    data: Data,
    optimizer: Any,
    advance: Callable[[int], None],
    **settings: Any,
) -> Trajectory:
    """`lazynet.train` from `start`, or from the checkpoint if there is one, which is rewritten every few seconds.

    `advance(step)` is told of every record. The checkpoint stays: remove it once the result is
    stored.

    Raises:
        RunError: If the checkpoint has recorded other metrics than are asked for now.
    """
    saved = [time.monotonic()]

    def on_save(state, curve):
        advance(state.step)
        if time.monotonic() - saved[0] > CHECKPOINT_SECONDS:
            store.save_checkpoint(checkpoint, state, curve)
            saved[0] = time.monotonic()

    resume = None
    if checkpoint.exists():
        # Zeros and the start give the structure of the leaves; their values are replaced.
        resume = store.load_checkpoint(
            checkpoint, ln.TrainState(0, 0.0, start, optimizer.init(start))
        )
        _check_metrics(checkpoint, resume[1], resume[0].params, settings)
    return ln.train(goal, start, data, optimizer, on_save=on_save, resume=resume, **settings)


def trained_lazily(
    checkpoint: Path,
    model: ln.Model,
    params0: Any,
    alpha: float,
    train: Data,
    *,
    lr_fraction: float,
    lr_examples: int,
    momentum: float,
    key: jax.Array,
    **settings: Any,
) -> tuple[Any, Trajectory]:
    """The lazy function at alpha and its curve by SGD on the square loss, at a share of the largest stable rate.

    That rate is estimated on the first `lr_examples` training examples; the same for every alpha.
    """
    # At u = 0 the kernel of f in u is that of h at w0, whatever alpha is.
    largest = ln.estimate_max_learning_rate(
        model.apply, params0, train.x[:lr_examples], momentum=momentum, key=key
    )
    function = ln.lazy(model.apply, params0, alpha)
    curve = checkpointed(
        checkpoint,
        ln.objective(function, ln.mse),
        function.start(),
        train,
        ln.sgd(momentum=momentum),
        lambda step: None,
        key=key,
        learning_rate=lr_fraction * largest,
        **settings,
    )
    return function, curve


def trained_from(
    config: Any,
    model: ln.Model,
    params0: Any,
    alpha: float,
    parts: tuple[Data, Data],
    checkpoint: Path,
    *,
    save_at: Any,
) -> tuple[Any, Trajectory]:
    """`trained_lazily` with the rate, the batches and the seed of a configuration, on train and test examples."""
    train, test = parts
    return trained_lazily(
        checkpoint,
        model,
        params0,
        alpha,
        train,
        lr_fraction=config.lr_fraction,
        lr_examples=LR_EXAMPLES,
        momentum=MOMENTUM,
        key=jax.random.key(config.seed),
        save_at=save_at,
        batch_size=config.batch_size,
        test=test,
    )


def _check_metrics(
    checkpoint: Path, curve: Trajectory, params: Any, settings: dict[str, Any]
) -> None:
    expected = {"train_loss", "train_accuracy"}
    if settings.get("test") is not None:
        expected |= {"test_loss", "test_accuracy"}
    if settings.get("measure") is not None:
        # Called for its names alone.
        expected |= settings["measure"](params).keys()
    recorded = curve.metrics.keys()
    for differing, fix in ((recorded - expected, "no more"), (expected - recorded, "now")):
        if differing:
            raise RunError(
                f"{checkpoint} was written by another training: {', '.join(sorted(differing))} is {fix} recorded. "
                "Delete it to start again, or ask for the same `test` and `measure`."
            )


def cell_arrays(curve: Trajectory, end: dict[str, float], outputs: Any) -> dict[str, Any]:
    """The named arrays of a finished training: its curve, the numbers of its end and its final test outputs."""
    named = {f"final/{name}": value for name, value in end.items()}
    return curve_arrays(curve) | named | {"outputs": outputs}


def named(cell: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a training under the name of its cell, without its outputs."""
    return {f"{cell}/{name}": array for name, array in arrays.items() if name != "outputs"}


def final(arrays: Mapping[str, Any], cell: str, name: str) -> float | None:
    """A number of the end of a training among the arrays of a run; None where it has none."""
    value = arrays.get(f"{cell}/final/{name}")
    return None if value is None else float(value)


def diverged_at(arrays: Mapping[str, Any], cell: str) -> int | None:
    """The step at which a training among the arrays of a run was seen to diverge, if it did."""
    step = int(arrays[f"{cell}/curve/diverged_at"])
    return None if step < 0 else step


def curve_of(arrays: Mapping[str, Any], cell: str) -> Trajectory:
    """The curve of a training among the arrays of a run."""
    prefix = f"{cell}/curve/"
    own = {
        name.removeprefix(f"{cell}/"): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    return curve_from(own)


def batched_outputs(function: Any, params: Any, x: Any) -> np.ndarray:
    """Outputs `function(params, x)` on the host, a thousand inputs at a time."""
    # A pytree, as an argument of `_call`: functions of another alpha or seed share its program.
    function = as_partial(function)
    batches = [x[i : i + BATCH] for i in range(0, len(x), BATCH)]
    return np.concatenate([np.asarray(_call(function, params, batch)) for batch in batches])


@jax.jit
def _call(function, params, x):
    return function(params, x)
