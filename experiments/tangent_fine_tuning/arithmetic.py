"""Two tasks, learned apart: their tangents added, and one taken away from the tangent of both."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lazynet as ln
from experiments.shared.training import batched_outputs
from experiments.tangent_fine_tuning.trainings import (
    OLD,
    Problem,
    displacement,
    methods,
    tuned,
)
from lazynet import tangents
from lazynet.records import Data

__all__ = ["MODELS", "TASKS", "combined"]

TASKS = {"two classes": range(OLD, OLD + 2), "three classes": range(OLD + 2, 10)}
"""The classes of each task."""

MODELS = {"network": "all weights", "linearized": "linearized"}


def combined(config, model, params, problem: Problem, arrays) -> dict[str, Any]:
    """Accuracies on each task, among its own classes, as `MODEL/WHAT/TASK`, and the disentanglement error."""
    few = {name: _of(problem.few, classes) for name, classes in TASKS.items()}
    new = {name: _of(problem.new, classes) for name, classes in TASKS.items()}
    start = ln.tangent_at(model.apply, params)
    found: dict[str, Any] = {}
    for name, method_name in MODELS.items():
        method = methods(config, model, params, problem)[method_name]
        alpha = np.inf if method.linearized else 1.0
        # Not centered: what the pretrained network answers counts as well.
        function = ln.lazy(model.apply, params, alpha, centered=False)
        # Tasks are learned here; the tangent of both is the fine-tuning on all new classes.
        both = start.at(displacement(arrays, f"pretrained/{method_name}", params))
        tasks = {}
        for task in TASKS:
            cell = {f"own/{e}": v for e, v in tuned(config, method, few[task], new[task]).items()}
            tasks[task] = start.at(displacement(cell, "own", params))
        one, other = tasks.values()
        results = {"before": start, "sum": one + other, "both": both, "removed": both - one}
        for what, tangent in results.items():
            found |= _accuracies(f"{name}/{what}", function, tangent, new)
        for task, tangent in tasks.items():
            found |= _accuracies(f"{name}/alone", function, tangent, {task: new[task]})
        sums = [
            _accuracies("", function, scale * (one + other), new).values()
            for scale in config.scales
        ]
        found[f"{name}/sums"] = np.array([list(values) for values in sums])
        examples = (part.x for part in new.values())
        found[f"{name}/disentanglement"] = tangents.disentanglement_error(
            one, other, *examples, alpha=alpha, classes=tuple(TASKS.values())
        )
    return found


def _of(part: Data, classes: range) -> Data:
    """The examples of some classes."""
    chosen = np.isin(np.asarray(part.y).argmax(axis=1), classes)
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[chosen]), part)


def _accuracies(name, function, tangent, parts) -> dict[str, float]:
    """Accuracy on the examples of each task, among its own classes."""
    found = {}
    for task, part in parts.items():
        own = np.asarray(TASKS[task])
        # Among its own classes, so that a task is not charged for answers of the other one.
        outputs = batched_outputs(function, tangent.displacement, part.x)[:, own]
        found[f"{name}/{task}"] = float(ln.accuracy(outputs, np.asarray(part.y)[:, own]))
    return found
