"""The rows of `cifar10_linearized`, each stored when it is done: networks, features and a kernel."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import jax
import numpy as np

import lazynet as ln
from experiments.harness.progress import advancing, bar
from experiments.scattering_cifar10.features import scattering_features
from experiments.scattering_cifar10.heads import all_images
from experiments.shared import ridge, vgg
from experiments.shared.patches import draw_filters, patch_features
from lazynet import datasets, dynamics, zoo
from lazynet.kernels.analytic import analytic_kernel
from lazynet.records import Data

__all__ = ["compute"]

Row = dict[str, Any]
Parts = tuple[Data, Data]


def compute(config, store) -> dict[str, Row]:
    """All rows of the table, each from the store or computed now."""
    parts = vgg.load_large_images(config.data)
    rows = _networks(config, parts, store)
    methods = {"scattering": _scattering, "patches": _patches, "kernel": _kernel}
    for name in config.priors:
        row = store.read(f"{name}.json")
        if row is None:
            start = time.perf_counter()
            row = methods[name](config, parts, store)
            row = store.write(f"{name}.json", row | {"seconds": time.perf_counter() - start})
        rows[name] = row
    return rows


def _networks(config, parts: Parts, store) -> dict[str, Row]:
    rows = {}
    steps = vgg.steps(config.train, len(parts[0].x))
    with bar(store.console, "steps", 26) as progress:
        task = progress.add_task("training", total=steps * len(config.widths) * len(config.kinds))
        # Without a network to train, nothing is drawn or standardized.
        for width in config.widths if config.kinds else ():
            problem = vgg.start(vgg.build(width, config.gain), config.seed, parts, config.precision)
            for kind in config.kinds:
                progress.update(task, description=f"{kind}, width {width:g}")
                name = f"{kind},width={width:g}"
                cell = store.read(name)
                if cell is None:
                    advance = advancing(progress, task, steps * len(rows))
                    train = partial(vgg.trained, config, problem, function(kind, problem))
                    cell = store.write(name, train(_nothing, advance, store.checkpoint(name)))
                rows[f"{kind}/width={width:g}"] = _network_row(config, problem, cell)
                progress.update(task, completed=steps * len(rows))
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


def _network_row(config, problem: vgg.Problem, cell: dict[str, Any]) -> Row:
    row = _sizes(problem.train, problem.test)
    row["epochs"] = config.train.epochs
    row["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(problem.params0))
    row["seconds"] = float(cell["final/seconds"])
    if cell["curve/diverged_at"] >= 0:
        row["diverged_at"] = int(cell["curve/diverged_at"])
    else:
        row["train_accuracy"] = float(cell["final/train_accuracy"])
        row["test_accuracy"] = float(cell["final/test_accuracy"])
    return row


def _sizes(train: Data, test: Data) -> Row:
    return {"n": len(train.x), "n_test": len(test.x)}


def _scattering(config, parts: Parts, store) -> Row:
    """Linear classification of scattering coefficients, by the head of `scattering_cifar10` for all images."""
    with bar(store.console, "images", 26) as progress:
        task = progress.add_task("scattering", total=sum(len(part.x) for part in parts))
        advance = partial(progress.advance, task)
        features = []
        for part, name in zip(parts, ("train", "test"), strict=True):
            x = scattering_features(config.scattering, part.x, name, store.folder, advance)
            features.append(Data(x, part.y))
    with bar(store.console, "images", 26) as progress:
        task = progress.add_task("scattering, linear", total=len(parts[0].x))
        found = all_images(config, *features, partial(progress.advance, task))
    found["test_accuracy"] = found.pop("accuracy")
    return found | _sizes(*parts)


def _patches(config, parts: Parts, store) -> Row:
    """Linear classification of the responses of whitened random patches."""
    with store.status("random patches, linear"):
        # Pixels in [0, 1], not standardized ones: `normalization` is in their units.
        filters = draw_filters(config.patches, parts[0].x, config.seed)
        train, test = (
            part._replace(x=patch_features(config.patches, filters, part.x)) for part in parts
        )
        return ridge.of_features(train, test, config.ridges) | _sizes(*parts)


def _kernel(config, parts: Parts, store) -> Row:
    """Regression with the tangent kernel on the first images; the ridge has the best leave-one-out accuracy."""
    train, test = _subset(config, parts)
    model = zoo.cntk(config.kernel.depth, pooled=False)
    settings = {"progress": store.console.is_terminal}
    tiles = store.kernels("train")
    ntk = analytic_kernel(model, train.x, store=tiles, **settings).ntk
    tiles = store.kernels("test")
    cross = analytic_kernel(model, test.x, train.x, store=tiles, **settings).ntk
    # The mean of the diagonal is that of the eigenvalues, to which ridges are relative.
    ridges = np.mean(np.diag(ntk)) * np.array(config.ridges)
    best = int(np.argmax(ridge.left_out_accuracies(ntk, train, ridges)))
    fit = partial(dynamics.kernel_regression, ntk, train, ridge=float(ridges[best]))
    return {
        "train_accuracy": ridge.accuracy(fit(cross=ntk), train.y),
        "test_accuracy": ridge.accuracy(fit(cross=cross), test.y),
        **ridge.chosen(config.ridges, best),
        **_sizes(train, test),
    }


def _subset(config, parts: Parts) -> Parts:
    """Balanced draws of standardized images, with centered targets."""
    train = datasets.balanced_subset(parts[0], config.kernel.n_train, seed=config.seed)
    test = datasets.balanced_subset(parts[1], config.kernel.n_test, seed=config.seed)
    channels = {"center": "channel", "scale": "channel"}
    # Statistics are those of all training images, as for the networks beside the kernel.
    _, train, test = datasets.standardize(parts[0], train, test, **channels)
    return datasets.center_targets(train), datasets.center_targets(test)
