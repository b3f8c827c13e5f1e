"""Learning curves of kernel regression on few images."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from experiments.shared import ridge
from experiments.shared.data import load_images
from lazynet import datasets, dynamics, zoo
from lazynet.kernels.analytic import analytic_kernel
from lazynet.models.attention import Embedding
from lazynet.models.model import Model
from lazynet.records import Data, Gram

__all__ = ["KERNELS", "RIDGES", "measure", "numbers", "patches"]

RIDGES = 10.0 ** np.arange(-5, 1.5, 0.5)
"""Ridges to choose from, relative to the mean of the kernel's diagonal; all above the rounding of float32 kernels."""


class Case(NamedTuple):
    """A network, and how it wants its images: whitened, as vectors, or as sequences of patches."""

    network: Model
    whitened: bool = False
    vectors: bool = False
    patches: bool = False


KERNELS = ("FC", "CNTK-Flatten", "Transformer on patches", "CNTK-GAP", "Myrtle5 + ZCA")

PLACES = Embedding("SUM", values=True)
"""Where a patch is, which the mean over patches at the end forgets unless values hold it."""

POOLED = KERNELS[3:]
"""Those that need the covariance of every pair of positions, and cost a thousand times more."""

DIGITS = "digits as images"


def measure(config, store) -> dict[str, Any]:
    """Test accuracies and ridges of every kernel, `kernel=.../ntk/accuracy` `[draws, sizes]`, and CPU seconds."""
    arrays: dict[str, Any] = {}
    for name, case in _cases(config).items():
        cells = []
        draws = _draws(config, name)
        for draw in range(draws):
            label = f"{name},draw={draw}"
            cell = store.read(f"{label}.json")
            if cell is None:
                store.console.print(f"{name}, draw {draw + 1} of {draws}", highlight=False)
                cell = store.write(f"{label}.json", _draw(config, case, draw, label, store))
            cells.append(cell)
        arrays[f"kernel={name}/seconds"] = sum(cell["seconds"] for cell in cells)
        for kind in Gram._fields:
            for entry in ("accuracy", "ridge"):
                rows = []
                for cell in cells:
                    chosen = cell["chosen"][kind]
                    rows.append([chosen[str(n)][entry] for n in _sizes(config, name)])
                arrays[f"kernel={name}/{kind}/{entry}"] = np.array(rows)
    return arrays


def numbers(config, arrays) -> dict[str, Any]:
    """Test accuracy of each kernel and n: mean and standard deviation over draws; CPU time of the kernels."""
    images = config.images
    title = config.data.title if config.data.name == "cifar10" or config.data.label else DIGITS
    summary: dict[str, Any] = {"images": title}
    for name in _cases(config):
        for kind in ("ntk", "nngp"):
            accuracies = 100 * arrays[f"kernel={name}/{kind}/accuracy"]
            ridges = arrays[f"kernel={name}/{kind}/ridge"]
            for i, n in enumerate(_sizes(config, name)):
                key = f"kernel={name} ({kind})/n={n}"
                summary[f"accuracy/{key}"] = float(accuracies[:, i].mean())
                summary[f"ridge/{key}"] = float(np.median(ridges[:, i]))
                if len(accuracies) > 1:
                    summary[f"accuracy_std/{key}"] = float(accuracies[:, i].std(ddof=1))
        pooled = name in POOLED
        summary[f"draws/kernel={name}"] = _draws(config, name)
        summary[f"test_images/kernel={name}"] = images.pooled_test if pooled else images.n_test
        summary[f"seconds/kernel={name}"] = round(float(arrays[f"kernel={name}/seconds"]), 1)
    return summary


def _draws(config, name: str) -> int:
    return config.images.pooled_draws if name in POOLED else config.images.draws


def _sizes(config, name: str) -> tuple[int, ...]:
    return config.images.pooled_sizes if name in POOLED else config.images.sizes


def _cases(config) -> dict[str, Case]:
    """The networks whose kernels have sizes."""
    images = config.images
    if not images.sizes:
        return {}
    networks = (
        # Of the widths a limit knows nothing: one unit is enough.
        Case(zoo.mlp((1,) * (images.depth - 1), 1, b_std=None), vectors=True),
        Case(zoo.cntk(images.depth, pooled=False)),
        Case(zoo.transformer(1, heads=1, embedding=PLACES), patches=True),
        Case(zoo.cntk(images.depth)),
        Case(zoo.myrtle(5), whitened=True),
    )
    cases = dict(zip(KERNELS, networks, strict=True))
    return {name: case for name, case in cases.items() if _sizes(config, name)}


def _draw(config, case: Case, draw: int, label: str, store) -> dict[str, Any]:
    """Accuracies and ridges of one draw for every n: smaller draws are parts of the largest, whose kernel serves."""
    name = label.partition(",draw=")[0]
    sizes = _sizes(config, name)
    n_test = config.images.pooled_test if name in POOLED else config.images.n_test
    train, test = _load(config, case, max(sizes), n_test, draw)
    # CPU time adds up all cores and is hardly changed by what else the machine does.
    start = time.process_time()
    settings = {"progress": store.console.is_terminal}
    tiles = store.kernels(f"{label},train")
    # The limit gives both kernels at once; each is regressed with by itself.
    gram = analytic_kernel(case.network, train.x, store=tiles, **settings)
    tiles = store.kernels(f"{label},test")
    cross = analytic_kernel(case.network, test.x, train.x, store=tiles, **settings)
    seconds = time.process_time() - start
    chosen: dict[str, dict] = {kind: {} for kind in Gram._fields}
    for kind, of_kind in chosen.items():
        kernels = (getattr(gram, kind), getattr(cross, kind))
        for n in sizes:
            # Names of JSON are texts.
            of_kind[str(n)] = _regression(*kernels, train, test, n)
    return {"chosen": chosen, "seconds": seconds}


def _regression(kernel, cross, train: Data, test: Data, n: int) -> dict[str, float]:
    """Share of the test images that the first n training images classify, and the ridge that they choose.

    The ridge of the most leave-one-out hits, the smallest one if several are equal: with one image
    of each class, none of which the others can classify, it is the smallest of all.
    """
    # The first n of the largest draw, which is nested: no kernel is computed for a smaller one.
    kernel = np.asarray(kernel[:n, :n], np.float64)
    cross = np.asarray(cross[:, :n], np.float64)
    own = Data(train.x[:n], train.y[:n])
    ridges = RIDGES * np.mean(np.diag(kernel))
    best = int(np.argmax(ridge.left_out_accuracies(kernel, own, ridges)))
    outputs = dynamics.kernel_regression(kernel, own, cross=cross, ridge=float(ridges[best]))
    return {"accuracy": ridge.accuracy(outputs, test.y), "ridge": float(RIDGES[best])}


def _load(config, case: Case, n: int, n_test: int, draw: int) -> tuple[Data, Data]:
    """A class-balanced draw and a balanced test set that all draws share; targets are one-hot minus 1/10.

    Channel means and deviations, and the whitening, come from training images without their labels.
    """
    sizes = {"digits": (1340, 450), "cifar10": (None, None)}[config.data.name]
    pool, test = load_images(config.data, *sizes, seed=config.seed)
    # Draws differ in their training images, and share the test images.
    train = datasets.balanced_subset(pool, n, seed=config.seed + draw)
    test = datasets.balanced_subset(test, n_test, seed=config.seed)
    unlabeled = Data(pool.x[: config.data.whitening_images], pool.y[: config.data.whitening_images])
    if case.whitened:
        _, train, test = datasets.zca(unlabeled, train, test, bias=config.data.zca_bias)
    else:
        _, train, test = datasets.standardize(
            unlabeled, train, test, center="channel", scale="channel"
        )
    parts = []
    for part in (train, test):
        x = part.x.astype(config.precision)
        x = x.reshape(len(x), -1) if case.vectors else x
        x = patches(x) if case.patches else x
        parts.append(Data(x, datasets.center_targets(part).y))
    return tuple(parts)


def patches(images: np.ndarray) -> np.ndarray:
    """Images `[n, h, w, c]` as sequences `[n, 16, features]` of the patches of a 4 x 4 grid, row by row."""
    n, height, width, channels = images.shape
    # `[n, row, pixel, column, pixel, c]`: the transpose puts the pixels of a patch together.
    grid = images.reshape(n, 4, height // 4, 4, width // 4, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(n, 16, -1)
