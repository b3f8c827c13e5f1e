"""Runs as they are stored in `docs/data/NAME.json`: their configuration, curves and final numbers, without folders.

The stored runs of an experiment may come from several machines and days; together they are one
configuration, as `pieces` joins them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.harness import catalog, pieces
from experiments.harness.config import from_dictionary

__all__ = ["arrays_of", "whole"]

PLACES = {"precision": "precision", "diverged_at": "curve/diverged_at"}
"""Where in a run stands what a summary says of a training; all else under `final/`."""


def whole(stored: dict[str, Any]) -> Any:
    """One configuration with the alphas, or rows, of all stored runs."""
    experiment = catalog.find(stored["experiment"])
    configs = []
    for run in stored["runs"].values():
        # What a description has beside the fields.
        extra = ("experiment", "model_digest")
        values = {key: value for key, value in run["config"].items() if key not in extra}
        configs.append(from_dictionary(experiment.Config, values))
    return pieces.joined_config(experiment, configs)


def arrays_of(stored: dict[str, Any]) -> dict[str, Any]:
    """The stored curves and final numbers under the names that they have in a run."""
    arrays: dict[str, Any] = {}
    for run in stored["runs"].values():
        for cell, columns in run["curves"].items():
            # Of divergence the summary tells, below: -1 is none.
            arrays[f"{cell}/curve/diverged_at"] = np.asarray(-1)
            for column, values in columns.items():
                place = column if column in ("step", "time") else f"metrics/{column}"
                arrays[f"{cell}/curve/{place}"] = np.asarray(values)
        for key, value in run["summary"].items():
            quantity, _, cell = key.partition("/")
            if cell in run["curves"]:
                place = PLACES.get(quantity, f"final/{quantity}")
                arrays[f"{cell}/{place}"] = np.asarray(value)
            # Where a summary has rows, numbers stand under them, without curves.
            elif cell in run["summary"].get("rows", ()):
                arrays[f"{cell}/{quantity}"] = np.asarray(value)
    return arrays | _agreements(stored)


def _agreements(stored: dict[str, Any]) -> dict[str, Any]:
    """How often each run predicts the class of the linearized model, where both are stored and did not diverge."""
    classes = {
        # A text with one digit for each test image.
        cell: np.array(list(digits))
        for run in stored["runs"].values()
        for cell, digits in run.get("classes", {}).items()
        if f"diverged_at/{cell}" not in run["summary"]
    }
    reference = classes.get("alpha=inf")
    if reference is None:
        return {}
    return {
        f"{cell}/final/agreement": np.mean(predicted == reference)
        for cell, predicted in classes.items()
    }
