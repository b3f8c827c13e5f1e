"""Learning curves of kernel regression on few images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.harness import store
from lazynet import datasets, dynamics, zoo
from lazynet.kernels.analytic import analytic_kernel
from lazynet.models.model import Model
from lazynet.records import Data, Gram

__all__ = ["KERNELS", "RIDGES", "learning_curves"]

RIDGES = 10.0 ** np.arange(-5, 1.5, 0.5)
"""Ridges to choose from, relative to the mean of the kernel's diagonal; all above the rounding of float32 kernels."""


class Case(NamedTuple):
    """A network, and whether it sees whitened images and needs the covariance of every pair of positions."""

    network: Model
    whitened: bool
    pooled: bool
    vectors: bool = False


KERNELS = ("FC", "CNTK-Flatten", "CNTK-GAP", "Myrtle5 + ZCA")


def learning_curves(config, folder: Path, console) -> dict[str, Any]:
    """Test accuracy of each kernel and n: mean and standard deviation over draws; CPU time of the kernels."""
    images = config.images
    summary: dict[str, Any] = {"images": _label(config)}
    if not images.sizes:
        return summary
    cases = {
        name: case
        for name, case in _cases(config).items()
        if images.pooled_sizes or not case.pooled
    }
    draws = {
        name: images.pooled_draws if case.pooled else images.draws for name, case in cases.items()
    }
    for name, case in cases.items():
        chosen = []
        seconds = 0.0
        for draw in range(draws[name]):
            path = store.part(folder / "cells" / f"{name},draw={draw}.json")
            if not path.exists():
                console.print(f"{name}, draw {draw + 1} of {draws[name]}", highlight=False)
            kernels = folder / "kernels" / f"{name},draw={draw}"
            cell = store.stored_json(
                path, lambda d=draw, c=case, k=kernels: _draw(config, c, d, k, console)
            )
            chosen.append(cell["chosen"])
            seconds += cell["seconds"]
        summary |= _entries(name, case, images, chosen, seconds)
    return summary


def _entries(name, case, images, chosen, seconds) -> dict[str, Any]:
    sizes = images.pooled_sizes if case.pooled else images.sizes
    summary: dict[str, Any] = {}
    for kind in ("ntk", "nngp"):
        for n in sizes:
            values = 100 * np.array([draw[kind][str(n)]["accuracy"] for draw in chosen])
            key = f"kernel={name} ({kind})/n={n}"
            summary[f"accuracy/{key}"] = float(values.mean())
            summary[f"ridge/{key}"] = float(
                np.median([draw[kind][str(n)]["ridge"] for draw in chosen])
            )
            if len(values) > 1:
                summary[f"accuracy_std/{key}"] = float(values.std(ddof=1))
    summary[f"draws/kernel={name}"] = len(chosen)
    summary[f"test_images/kernel={name}"] = images.pooled_test if case.pooled else images.n_test
    summary[f"seconds/kernel={name}"] = round(seconds, 1)
    return summary


def _cases(config) -> dict[str, Case]:
    depth = config.images.depth
    networks = (
        Case(zoo.mlp((1,) * (depth - 1), 1, b_std=None), False, False, vectors=True),
        Case(zoo.cntk(depth, pooled=False), False, False),
        Case(zoo.cntk(depth), False, True),
        Case(zoo.myrtle(5), True, True),
    )
    return dict(zip(KERNELS, networks, strict=True))


def _draw(config, case: Case, draw: int, folder: Path, console) -> dict[str, Any]:
    """Accuracies and ridges of one draw for every n: smaller draws are parts of the largest, whose kernel serves."""
    images = config.images
    sizes = images.pooled_sizes if case.pooled else images.sizes
    train, test = _load(
        config, case, max(sizes), images.pooled_test if case.pooled else images.n_test, draw
    )
    start = time.process_time()
    shown = console.is_terminal
    gram = analytic_kernel(case.network, train.x, store=f"{folder},train", progress=shown)
    cross = analytic_kernel(case.network, test.x, train.x, store=f"{folder},test", progress=shown)
    seconds = time.process_time() - start
    chosen = {
        kind: {
            str(n): _regression(getattr(gram, kind), getattr(cross, kind), train, test, n)
            for n in sizes
        }
        for kind in Gram._fields
    }
    return {"chosen": chosen, "seconds": seconds}


def _regression(kernel, cross, train: Data, test: Data, n: int) -> dict[str, float]:
    """Share of the test images that the first n training images classify, and the ridge that they choose.

    The ridge of the most leave-one-out hits, the smallest one if several are equal: with one image
    of each class, none of which the others can classify, it is the smallest of all.
    """
    kernel, cross = (np.asarray(values, np.float64) for values in (kernel[:n, :n], cross[:, :n]))
    own = Data(train.x[:n], train.y[:n])
    ridges = RIDGES * np.mean(np.diag(kernel))
    left_out = dynamics.leave_one_out(kernel, own, ridge=ridges)
    best = int(np.argmax(np.mean(left_out.argmax(-1) == own.y.argmax(-1), axis=1)))
    outputs = dynamics.kernel_regression(kernel, own, cross=cross, ridge=float(ridges[best]))
    return {
        "accuracy": float(np.mean(outputs.argmax(1) == test.y.argmax(1))),
        "ridge": float(RIDGES[best]),
    }


def _load(config, case: Case, n: int, n_test: int, draw: int) -> tuple[Data, Data]:
    """A class-balanced draw and a balanced test set that all draws share; targets are one-hot minus 1/10.

    Channel means and deviations, and the whitening, come from training images without their labels.
    """
    pool, test = _pool(config)
    train = datasets.balanced_subset(pool, n, seed=config.seed + draw)
    test = datasets.balanced_subset(test, n_test, seed=config.seed)
    unlabeled = Data(pool.x[: config.data.whitening_images], pool.y[: config.data.whitening_images])
    if case.whitened:
        _, train, test = datasets.zca(unlabeled, train, test, bias=config.data.zca_bias)
    else:
        _, train, test = datasets.standardize(
            unlabeled, train, test, center="channel", scale="channel"
        )
    dtype = np.dtype(config.precision)
    flat = (lambda x: x.reshape(len(x), -1)) if case.vectors else (lambda x: x)
    return tuple(
        Data(flat(part.x.astype(dtype)), datasets.center_targets(part).y) for part in (train, test)
    )


def _pool(config) -> tuple[Data, Data]:
    if config.data.name == "cifar10":
        return datasets.cifar10(datasets.data_root(config.data.root), download=config.data.download)
    pair = datasets.digits(1340, 450, seed=config.seed)
    return tuple(Data(part.x.reshape(-1, 8, 8, 1), part.y) for part in pair)


def _label(config) -> str:
    return (
        config.data.label or {"digits": "digits as images", "cifar10": "CIFAR-10"}[config.data.name]
    )
