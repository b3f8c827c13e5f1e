"""The rows of `kernels_cifar10`: inputs, kernels on disk, the choice of the ridge, and the solution on all images."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.progress import bar
from experiments.kernels_cifar10 import POOLED
from experiments.scattering_cifar10.features import scattering_features
from experiments.shared.data import load_images
from lazynet import datasets, dynamics, zoo
from lazynet.kernels.analytic import analytic_kernel
from lazynet.models.model import Model
from lazynet.records import Data

__all__ = ["compute"]

CHECKED = 300
"""Images on which the conjugate gradient is compared with a dense solution."""


class Inputs(NamedTuple):
    """What a network sees: training and test examples with centered targets, and the CPU seconds that they take."""

    train: Data
    test: Data
    seconds: float


def compute(config, row: str, store) -> dict[str, Any]:
    """A row from the store, or computed now; its kernels are deleted once it is stored."""
    found = store.read(f"{row}.json")
    if found is None:
        store.console.print(row, highlight=False)
        found = store.write(f"{row}.json", _computed(config, row, store))
    if not config.keep_kernels:
        for part in ("train", "test"):
            shutil.rmtree(store.kernels(f"{row},{part}"), ignore_errors=True)
    return found


def _computed(config, row, store) -> dict[str, Any]:
    inputs = _inputs(config, row, store)
    train = inputs.train
    test = inputs.test
    kernel, cross, found = _kernels(row, train, test, store)

    start = time.process_time()
    with store.status("choice of the ridge"):
        grid = np.array(config.solver.ridges)
        scale = float(np.mean(kernel.diagonal(), dtype=np.float64))
        accuracies = _held_out_accuracies if config.solver.held_out else _left_out_accuracies
        left_out = accuracies(config, kernel, train, scale * grid)
        best = int(np.argmax(left_out))
        # The neighbors cost no further reading of the kernel: one iteration serves all ridges.
        path = slice(max(best - 1, 0), best + 2)
        difference = _difference_from_dense(config, kernel, train, scale * grid[path])
    choice_seconds = time.process_time() - start

    start = time.process_time()
    with store.status("conjugate gradient"):
        fit = _solved(config, kernel, train, cross, scale * grid[path])
    solution_seconds = time.process_time() - start
    hits = [_accuracy(outputs, test.y) for outputs in fit.predictions]
    # (K + ridge I) a = y, so that the fitted values are y - ridge a.
    fitted = train.y - scale * grid[best] * fit.coefficients[best - path.start]
    return {
        "n": len(train.x),
        "n_test": len(test.x),
        "test_accuracy": hits[best - path.start],
        "train_accuracy": _accuracy(fitted, train.y),
        "ridge": float(grid[best]),
        "at_edge": best in (0, len(grid) - 1),
        "left_out_accuracies": left_out,
        "path_ridges": grid[path].tolist(),
        "path_test_accuracies": hits,
        "iterations": fit.iterations,
        "residuals": np.asarray(fit.residual).tolist(),
        "difference_from_dense": difference,
        "mean_diagonal": scale,
        "features_seconds": inputs.seconds,
        **found,
        "choice_seconds": choice_seconds,
        "solution_seconds": solution_seconds,
        "peak_memory_gib": _peak_memory() / 2**30,
    }


def _kernels(row, train: Data, test: Data, store):
    """The kernel between training examples and that with the test examples, their CPU seconds and their disk."""
    network = _network(row)
    kind = "nngp" if row.endswith("(nngp)") else "ntk"
    settings = {"get": kind, "progress": store.console.is_terminal}
    own = partial(analytic_kernel, network, train.x, triangle=True, **settings)
    own, own_seconds = _stored(own, f"{row},train", store)
    cross = partial(analytic_kernel, network, test.x, train.x, **settings)
    cross, cross_seconds = _stored(cross, f"{row},test", store)
    disk = sum(_size(store.kernels(f"{row},{part}")) for part in ("train", "test"))
    found = {"kernel_seconds": own_seconds, "cross_seconds": cross_seconds, "disk_gb": disk / 1e9}
    return getattr(own, kind), getattr(cross, kind), found


def _stored(compute, name: str, store):
    """A kernel in its folder and its CPU seconds."""
    folder = store.kernels(name)
    return _timed(partial(compute, store=folder), partial(_tiles, folder), name, store)


def _timed(compute, count, name: str, store):
    """What is in files and its CPU seconds, which count files of a killed process at the rate of the others."""
    found = count()
    start = time.process_time()
    result = compute()
    seconds = time.process_time() - start
    timed = store.read(f"{name}.json")
    if timed is None:
        total = count()
        seconds *= total / max(total - found, 1)
        timed = store.write(f"{name}.json", {"seconds": seconds, "tiles": total})
    return result, timed["seconds"]


def _tiles(folder: Path) -> int:
    path = folder / "done.npy"
    return int(np.count_nonzero(np.load(path, allow_pickle=False))) if path.exists() else 0


def _files(folder: Path) -> int:
    return len(list(folder.glob("*.npz")))


def _left_out_accuracies(config, kernel, train: Data, ridges) -> list[float]:
    """Leave-one-out accuracy on the first images for every ridge, by one eigendecomposition."""
    n = min(config.solver.choice, len(train.x))
    first = Data(train.x[:n], train.y[:n])
    corner = np.asarray(kernel[:n, :n], np.float64)
    left_out = dynamics.leave_one_out(corner, first, ridge=ridges)
    return [_accuracy(outputs, first.y) for outputs in left_out]


def _held_out_accuracies(config, kernel, train: Data, ridges) -> list[float]:
    """Accuracy on the last images, at most half of all, by the solution of the others, for every ridge."""
    n = len(train.x) - min(config.solver.held_out, len(train.x) // 2)
    others = Data(train.x[:n], train.y[:n])
    fit = _solved(config, kernel.leading(n), others, kernel[n:, :n], ridges)
    return [_accuracy(outputs, train.y[n:]) for outputs in fit.predictions]


def _solved(config, kernel, train: Data, cross, ridges):
    solver = config.solver
    return dynamics.conjugate_gradient_regression(
        kernel,
        train,
        cross=cross,
        ridge=ridges,
        rank=min(solver.rank, len(train.x)),
        rtol=solver.rtol,
        max_iterations=solver.max_iterations,
        # A row that has not converged is kept, and its residual tells so among the facts.
        unconverged="return",
    )


def _difference_from_dense(config, kernel, train: Data, ridges) -> float:
    """Largest difference of the fitted values of the first images from those by an eigendecomposition, over targets."""
    n = min(CHECKED, len(train.x))
    first = Data(train.x[:n], train.y[:n])
    corner = np.asarray(kernel[:n, :n])
    fit = _solved(config, corner, first, corner, ridges)
    dense = dynamics.kernel_regression(corner, first, cross=corner, ridge=ridges)
    return float(np.abs(fit.predictions - dense).max() / np.abs(first.y).max())


def _network(row: str) -> Model:
    if row.startswith(("pixels", "scattering")):
        # A limit knows nothing of widths.
        return zoo.mlp((1, 1, 1), 1, b_std=None)
    if row.startswith("CNTK"):
        depth = int(row.removesuffix(" (ntk)").rpartition("-")[2])
        return zoo.cntk(depth, pooled="GAP" in row)
    return zoo.myrtle(5, 1)


def _inputs(config, row: str, store) -> Inputs:
    """Standardized or whitened examples in the precision of the kernels."""
    start = time.process_time()
    n_train, n_test = {"digits": (1340, 450), "cifar10": (None, None)}[config.data.name]
    pool, held_out = load_images(config.data, n_train, n_test, seed=config.seed)
    pooled = row in POOLED
    n = config.pooled_train if pooled else config.n_train
    m = config.pooled_test if pooled else config.n_test
    train = _drawn(pool, n, config.seed)
    test = _drawn(held_out, m, config.seed)
    if row.startswith("Myrtle"):
        unlabeled = Data(*(values[: config.whitening_images] for values in pool))
        _, train, test = datasets.zca(unlabeled, train, test, bias=config.zca_bias)
    elif row.startswith("scattering"):
        began = time.process_time()
        scattered = partial(_scattered, config, train, test, store)
        count = partial(_files, store.folder / "features")
        (train, test), seconds = _timed(scattered, count, "features", store)
        # The second of both rows reads what the first has computed, and has its seconds.
        start += time.process_time() - began - seconds
        train, test = datasets.standardize(train, test)
    else:
        train, test = datasets.standardize(train, test, center="channel", scale="channel")
    flat = row.startswith(("pixels", "scattering"))
    parts = []
    for part in (train, test):
        x = np.asarray(part.x, config.precision)
        x = x.reshape(len(x), -1) if flat else x
        parts.append(Data(x, datasets.center_targets(part).y))
    return Inputs(*parts, time.process_time() - start)


def _drawn(data: Data, n: int, seed: int) -> Data:
    """All examples in their order, or a draw with as many of each class in a random one."""
    if n == len(data.x):
        return data
    return datasets.balanced_subset(data, n, seed=seed)


def _scattered(config, train: Data, test: Data, store) -> tuple[Data, ...]:
    with bar(store.console, "images") as progress:
        task = progress.add_task("scattering", total=len(train.x) + len(test.x))
        advance = partial(progress.advance, task)
        parts = []
        for name, part in (("train", train), ("test", test)):
            # In half precision on disk, which holds 60,000 images in 2 GB.
            x = scattering_features(config.features, part.x, name, store.folder, advance)
            parts.append(Data(x.reshape(len(x), -1).astype(np.float32), part.y))
    return tuple(parts)


def _accuracy(outputs, y) -> float:
    return float(np.mean(outputs.argmax(-1) == y.argmax(-1)))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _peak_memory() -> int:
    """Largest resident memory of this process so far, mapped files in the page cache included, in bytes."""
    # macOS counts in bytes, Linux in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
