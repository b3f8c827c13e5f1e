"""The computations of `cifar10_alpha_sweep`: one stored training for each alpha."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lazynet as ln
from experiments.cifar10_alpha_sweep import FLOAT32_UP_TO
from experiments.harness.progress import advancing, bar
from experiments.harness.store import Store
from experiments.shared import vgg
from experiments.shared.training import batched_outputs, named
from lazynet import diagnostics, trees

__all__ = ["gathered", "precision_of", "products_of", "stored_cells", "train_all"]

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


def train_all(config, store) -> dict[float, dict[str, Any]]:
    """Every alpha's training: its curve, final numbers and test outputs."""
    cells = {alpha: store.read(f"alpha={alpha:g}") for alpha in config.alphas}
    missing = [alpha for alpha in config.alphas if cells[alpha] is None]
    if not missing:
        return cells
    model = vgg.build(config.network.width, config.network.gain)
    images = vgg.load_large_images(config.data)
    # One draw in the highest precision: weights in float32 are the same ones, rounded.
    drawn = vgg.start(model, config.seed, images, config.precision)
    problem = functools.cache(lambda precision: _rounded(drawn, precision))
    steps = vgg.steps(config.train, len(drawn.train.x))
    done = steps * (len(cells) - len(missing))
    with bar(store.console, "steps") as progress:
        task = progress.add_task("training", total=steps * len(cells), completed=done)
        # The names sort float32 before float64: the cheap ones come first.
        for alpha in sorted(missing, key=lambda alpha: precision_of(config, alpha)):
            progress.update(task, description=f"alpha {alpha:g}")
            name = f"alpha={alpha:g}"
            advance = advancing(progress, task, done)
            rounded = problem(precision_of(config, alpha))
            cell = _train(config, rounded, alpha, advance, store.checkpoint(name))
            cells[alpha] = store.write(name, cell)
            done += steps
            progress.update(task, completed=done)
    return cells


def stored_cells(config, folders: Sequence[Path]) -> dict[float, dict[str, Any]]:
    """The finished trainings of several run folders, each alpha in one of them."""
    cells = {}
    for folder in map(Store, folders):
        for alpha in config.alphas:
            if folder.has(f"alpha={alpha:g}"):
                cells[alpha] = folder.read(f"alpha={alpha:g}")
    return cells


def gathered(config, cells: dict[float, dict[str, Any]]) -> dict[str, Any]:
    """The arrays of all trainings, with how often they predict what the linearized model predicts, if there is one."""
    reference = cells.get(np.inf)
    # It is -1 where training did not diverge.
    if reference is not None and reference["curve/diverged_at"] >= 0:
        reference = None
    arrays: dict[str, Any] = {}
    for alpha in config.alphas:
        cell = cells[alpha] | {"precision": str(cells[alpha]["outputs"].dtype)}
        if reference is not None:
            same = cell["outputs"].argmax(1) == reference["outputs"].argmax(1)
            cell["final/agreement"] = np.mean(same)
        arrays |= named(f"alpha={alpha:g}", cell)
    return arrays


def _rounded(problem: vgg.Problem, precision: str) -> vgg.Problem:
    arrays = vgg.cast((problem.params0, problem.train, problem.test), precision)
    return vgg.Problem(problem.model, *arrays)


def _train(config, problem: vgg.Problem, alpha: float, advance, checkpoint: Path) -> dict[str, Any]:
    function = ln.lazy(problem.model.apply, problem.params0, alpha)
    # It counts where a program is traced, hence around the whole training.
    with jax.default_matmul_precision(products_of(alpha)):
        finish = partial(_final, problem, alpha, function)
        return vgg.trained(config, problem, function, finish, advance, checkpoint)


def _final(problem: vgg.Problem, alpha: float, function, u) -> dict[str, float]:
    """How far weights and gates are from where they were, and the accuracy of the trained weights behind old gates."""
    weights = ln.weights(function, u)
    gated = ln.lazy(ln.gated(problem.model, problem.params0), problem.params0, alpha)
    outputs = batched_outputs(gated, u, problem.test.x)
    return {
        # |w - w0| = |u| / alpha, which is zero for the linearized network.
        "param_drift": float(trees.norm(u)) / (alpha * float(trees.norm(problem.params0))),
        "gated_accuracy": float(np.mean(outputs.argmax(1) == np.asarray(problem.test.y).argmax(1))),
        **_stability(problem, weights),
    }


def _stability(problem: vgg.Problem, weights) -> dict[str, float]:
    """Shares of ReLU gates and of max-pools that are stable, over all test images."""
    images = problem.test.x
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    shares = []
    for x in batches:
        stable = diagnostics.activation_stability(problem.model, weights, problem.params0, x)
        # Of `Stability(total, relu, max_pool, layers)` those of ReLU gates and of max-pools.
        shares.append([float(share) for share in stable[1:3]])
    # The last batch may be smaller than the others.
    relu, pools = np.average(shares, axis=0, weights=[len(x) for x in batches]).tolist()
    return {"stability": relu, "pool_stability": pools}
