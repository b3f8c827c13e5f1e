"""The computations of `cifar10_alpha_sweep`: one stored training for each alpha."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lazynet as ln
from experiments.cifar10_alpha_sweep import FLOAT32_UP_TO
from experiments.harness import store
from experiments.harness.progress import advancing, bar
from experiments.shared import vgg
from experiments.shared.training import as_cell, batched_outputs, stored_cell
from lazynet import diagnostics, trees
from lazynet.records import Data

__all__ = ["precision_of", "products_of", "stored_cells", "train_cells"]

BATCH = 500
"""Images whose activations are held at a time."""


def precision_of(config, alpha: float) -> str:
    """float32 for the tangent model and up to alpha = 10^4, the precision of the configuration above."""
    return config.precision if FLOAT32_UP_TO < alpha < np.inf else "float32"


def products_of(alpha: float) -> str:
    """Precision of float32 products: full where a difference is multiplied by alpha, else the device's fastest.

    That of recent GPUs keeps three digits (TF32), which the outputs of VGG-11 at alpha = 100 have
    lost.
    """
    return "highest" if 1 < alpha < np.inf else "default"


def train_cells(config, folder: Path, console) -> dict[float, dict[str, Any]]:
    """Every alpha's curve, final numbers and test outputs, compared with those of the linearized model."""
    model = vgg.build(config.network.width, config.network.gain)
    drawn = vgg.start(model, config.seed, vgg.load_images(config.data), config.precision)
    problem = functools.cache(lambda precision: _rounded(drawn, precision))
    steps = vgg.steps(config.train, len(drawn.train.x))
    cells = {}
    with bar(console, "steps") as progress:
        task = progress.add_task("training", total=steps * len(config.alphas))
        for alpha in sorted(
            config.alphas, key=lambda alpha: precision_of(config, alpha)
        ):  # the cheap ones first
            progress.update(task, description=f"alpha {alpha:g}")
            advance = advancing(progress, task, steps * len(cells))
            compute = partial(_train, config, problem(precision_of(config, alpha)), alpha, advance)
            cells[alpha] = stored_cell(folder / "cells" / f"alpha={alpha:g}.npz", compute)
            advance(steps)
    _compare_with_linearized(cells)
    return {alpha: cells[alpha] for alpha in config.alphas}


def stored_cells(config, folders: Sequence[Path]) -> dict[float, dict[str, Any]]:
    """The finished trainings of several run folders, each alpha in one of them, compared as those of one run."""
    cells = {}
    for alpha in config.alphas:
        paths = [store.part(folder / "cells" / f"alpha={alpha:g}.npz") for folder in folders]
        (path,) = [path for path in paths if path.exists()]
        cells[alpha] = as_cell(store.load_arrays(path))
    _compare_with_linearized(cells)
    return cells


def _rounded(problem: vgg.Problem, precision: str) -> vgg.Problem:
    arrays = vgg.cast((problem.params0, problem.train, problem.test), precision)
    return vgg.Problem(problem.model, *arrays)


def _train(config, problem: vgg.Problem, alpha: float, advance, checkpoint: Path) -> dict[str, Any]:
    function = ln.lazy(problem.model.apply, problem.params0, alpha)
    with jax.default_matmul_precision(products_of(alpha)):
        return vgg.trained(
            config,
            problem,
            function,
            partial(_final, problem, alpha, function),
            advance,
            checkpoint,
        )


def _final(problem: vgg.Problem, alpha: float, function, u) -> dict[str, float]:
    """How far weights and gates are from where they were, and the accuracy of the trained weights behind old gates."""
    weights = ln.weights(function, u)
    gated = ln.lazy(ln.gated(problem.model, problem.params0), problem.params0, alpha)
    outputs = batched_outputs(gated, u, problem.test.x)
    return {
        "param_drift": float(trees.norm(u)) / (alpha * float(trees.norm(problem.params0))),
        "gated_accuracy": float(np.mean(outputs.argmax(1) == np.asarray(problem.test.y).argmax(1))),
        **_stability(problem, weights),
    }


def _stability(problem: vgg.Problem, weights) -> dict[str, float]:
    """Shares of ReLU gates and of max-pools that are stable, over all test images."""
    means = _mean_over_batches(
        lambda x: diagnostics.activation_stability(problem.model, weights, problem.params0, x)[1:3],
        problem.test,
    )
    return dict(zip(("stability", "pool_stability"), means.tolist(), strict=True))


def _mean_over_batches(measure: Callable, data: Data) -> np.ndarray:
    parts = [data.x[i : i + BATCH] for i in range(0, len(data.x), BATCH)]
    return np.average(
        [np.array(measure(x), float) for x in parts], axis=0, weights=[len(x) for x in parts]
    )


def _compare_with_linearized(cells: dict[float, dict]) -> None:
    """Adds to the final numbers how often the prediction is that of the linearized model, if that was trained."""
    reference = cells.get(np.inf)
    if reference is None or reference["curve"].diverged_at is not None:
        return
    for cell in cells.values():
        same = cell["outputs"].argmax(1) == reference["outputs"].argmax(1)
        cell["final"]["agreement"] = float(np.mean(same))
