"""The rows of `cifar10_linearized`, each stored when it is done: networks, features and a kernel."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lazynet as ln
from experiments.harness import store
from experiments.harness.progress import advancing, bar
from experiments.random_features import draw_filters, leave_one_out_ridge, patch_features
from experiments.scattering_cifar10.features import scattering_features
from experiments.scattering_cifar10.heads import all_images
from experiments.shared import vgg
from experiments.shared.training import stored_cell
from lazynet import datasets, dynamics, zoo
from lazynet.kernels.analytic import analytic_kernel
from lazynet.records import Data

__all__ = ["compute"]

Row = dict[str, Any]
Parts = tuple[Data, Data]


def compute(config, folder: Path, console) -> dict[str, Row]:
    """All rows of the table."""
    parts = vgg.load_images(config.data)
    rows = _networks(config, parts, folder, console)
    methods = {"scattering": _scattering, "patches": _patches} | (
        {"kernel": _kernel} if config.kernel.n_train else {}
    )
    for name, method in methods.items():
        compute_row = partial(method, config, parts, folder, console)
        rows[name] = store.stored_json(
            folder / "cells" / f"{name}.json", partial(_timed, compute_row)
        )
    return rows


def _networks(config, parts: Parts, folder: Path, console) -> dict[str, Row]:
    rows = {}
    steps = vgg.steps(config.train, len(parts[0].x))
    with bar(console, "steps", 26) as progress:
        task = progress.add_task("training", total=steps * len(config.widths) * len(config.kinds))
        for width in config.widths:
            problem = vgg.start(vgg.build(width, config.gain), config.seed, parts, config.precision)
            for kind in config.kinds:
                progress.update(task, description=f"{kind}, width {width:g}")
                advance = advancing(progress, task, steps * len(rows))
                train = partial(
                    vgg.trained, config, problem, function(kind, problem), _nothing, advance
                )
                cell = stored_cell(folder / "cells" / f"{kind},width={width:g}.npz", train)
                rows[f"{kind}/width={width:g}"] = _network_row(problem, cell)
                advance(steps)
    return rows


def function(kind: str, problem: vgg.Problem):
    """The function of the displacement w - w0 that is trained; for the linearized network it is the tangent at w0."""
    model = problem.model
    params0 = problem.params0
    if kind == "gated":
        return ln.lazy(ln.gated(model, params0), params0, 1.0)
    return ln.lazy(model.apply, params0, {"standard": 1.0, "linearized": math.inf}[kind])


def _nothing(u) -> dict[str, float]:
    return {}


def _network_row(problem: vgg.Problem, cell: dict[str, Any]) -> Row:
    counts = _sizes(problem.train, problem.test)
    counts["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(problem.params0))
    if cell["curve"].diverged_at is not None:
        return counts | {
            "diverged_at": cell["curve"].diverged_at,
            "seconds": cell["final"]["seconds"],
        }
    return counts | {
        name: cell["final"][name] for name in ("train_accuracy", "test_accuracy", "seconds")
    }


def _sizes(train: Data, test: Data) -> Row:
    return {"n": len(train.x), "n_test": len(test.x)}


def _timed(compute_row: Callable[[], Row]) -> Row:
    start = time.perf_counter()
    return compute_row() | {"seconds": time.perf_counter() - start}


def _scattering(config, parts: Parts, folder: Path, console) -> Row:
    """Linear classification of scattering coefficients, by the head of `scattering_cifar10` for all images."""
    with bar(console, "images", 26) as progress:
        task = progress.add_task("scattering", total=sum(len(part.x) for part in parts))
        advance = partial(progress.advance, task)
        features = [
            Data(scattering_features(config.scattering, part.x, name, folder, advance), part.y)
            for part, name in zip(parts, ("train", "test"), strict=True)
        ]
    with bar(console, "images", 26) as progress:
        task = progress.add_task("scattering, linear", total=len(parts[0].x))
        found = all_images(config, *features, partial(progress.advance, task))
    found["test_accuracy"] = found.pop("accuracy")
    return found | _sizes(*parts)


def _patches(config, parts: Parts, folder: Path, console) -> Row:
    """Linear classification of the responses of whitened random patches."""
    with console.status("random patches, linear"):
        filters = draw_filters(config.patches, parts[0].x, config.seed)
        train, test = (
            Data(patch_features(config.patches, filters, part.x), part.y) for part in parts
        )
        return leave_one_out_ridge(train, test, config.ridges) | _sizes(*parts)


def _kernel(config, parts: Parts, folder: Path, console) -> Row:
    """Regression with the tangent kernel on the first images; the ridge has the best leave-one-out accuracy."""
    train, test = _subset(config, parts)
    model = zoo.cntk(config.kernel.depth, pooled=False)
    shown = console.is_terminal
    ntk = analytic_kernel(model, train.x, store=folder / "kernels" / "train", progress=shown).ntk
    cross = analytic_kernel(
        model, test.x, train.x, store=folder / "kernels" / "test", progress=shown
    ).ntk
    ridges = np.mean(np.diag(ntk)) * np.array(config.ridges)
    hits = [
        _accuracy(outputs, train.y) for outputs in dynamics.leave_one_out(ntk, train, ridge=ridges)
    ]
    best = int(np.argmax(hits))
    return {
        "train_accuracy": _accuracy(
            dynamics.kernel_regression(ntk, train, cross=ntk, ridge=float(ridges[best])), train.y
        ),
        "test_accuracy": _accuracy(
            dynamics.kernel_regression(ntk, train, cross=cross, ridge=float(ridges[best])), test.y
        ),
        "ridge": config.ridges[best],
        "at_edge": best in (0, len(ridges) - 1),
        **_sizes(train, test),
    }


def _subset(config, parts: Parts) -> Parts:
    """Balanced draws of standardized images, with centered targets."""
    sizes = (config.kernel.n_train, config.kernel.n_test)
    drawn = [
        datasets.balanced_subset(part, n, seed=config.seed)
        for part, n in zip(parts, sizes, strict=True)
    ]
    _, train, test = datasets.standardize(parts[0], *drawn, center="channel", scale="channel")
    return datasets.center_targets(train), datasets.center_targets(test)


def _accuracy(outputs, y) -> float:
    return float(np.mean(np.asarray(outputs).argmax(1) == np.asarray(y).argmax(1)))
