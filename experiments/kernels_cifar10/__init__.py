"""Exact kernels of infinitely wide networks on all of CIFAR-10: accuracy beside time, memory and iterations.

    python -m experiments run kernels_cifar10 --preset smoke                     # digits, seconds
    python -m experiments run kernels_cifar10 --set data.root=DIR                # n = 5,000, about an hour on 2 cores
    python -m experiments run kernels_cifar10 --preset full --set data.root=DIR  # all images, hours
    python -m experiments run kernels_cifar10 --preset full --set data.root=DIR --set 'rows=pixels (ntk)'  # 20 minutes

A row is one kernel of one network between all training images, and with the test images:

- pixels: the fully connected ReLU network with three hidden layers;
- scattering: the same network on the logarithms of second-order scattering coefficients;
- CNTK-Flatten: 3x3 convolutions and a Flatten, of 3 or 5 layers;
- CNTK-GAP and Myrtle-5: pooled networks, which cost a thousand times more an entry, the second one
  on whitened images, on fewer images.

The kernel is kept on disk while its row is computed, as its upper triangle in single precision (5 GB
for 50,000 images, 10 GB of which are never there), and so is that with the test images (2 GB).
Targets are one-hot minus 1/10. The ridge has the best leave-one-out accuracy on the first `choice`
images, by one eigendecomposition, which for many more images is too large; with `held_out` it has
the best accuracy on the last training images by the solution of all others, for twice the price. It
and its neighbors in the grid are then solved for together on
all images by conjugate gradient in double precision, with a randomly pivoted Cholesky
preconditioner. A killed run goes on with the tile where it stopped; a finished row is a small JSON,
and its kernels are deleted unless `keep_kernels`.

Expected: all systems are solved to the residual asked for, and as by a dense solver on a few images;
more images, convolutions and scattering help, in this order of cost: on 50,000 images the fully
connected network stays below 65 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from experiments.harness.bounds import Count, Integer, Natural, Positive, Seed, Values
from experiments.harness.facts import within
from experiments.scattering_cifar10 import FeatureConfig
from experiments.shared.data import Photographs
from lazynet import guards

__all__ = [
    "ALL_ROWS",
    "PRESETS",
    "TITLE",
    "Config",
    "bars",
    "draw",
    "facts",
    "measure",
    "minutes",
    "numbers",
    "report",
]

Row = Literal[
    "pixels (nngp)",
    "pixels (ntk)",
    "scattering (nngp)",
    "scattering (ntk)",
    "CNTK-Flatten-3 (ntk)",
    "CNTK-Flatten-5 (ntk)",
    "CNTK-GAP-5 (ntk)",
    "Myrtle-5 (ntk)",
]

POOLED = ("CNTK-GAP-5 (ntk)", "Myrtle-5 (ntk)")

ALL_ROWS: tuple[Row, ...] = Row.__args__


@dataclass(frozen=True)
class SolverConfig:
    """Choice of the ridge, and the conjugate gradient.

    Attributes:
        ridges: Grid, relative to the mean of the diagonal.
        choice: Training images on which the ridge is chosen by leave-one-out, at most.
        held_out: Training images, the last ones, on which it is chosen instead, by the solution of
            all others; 0 for leave-one-out.
        rank: Of the preconditioner, at most.
        rtol: Residual at which an output has converged, relative to its targets.
        max_iterations: Products with the kernel.
    """

    ridges: Annotated[tuple[Positive, ...], Values(3, increasing=True)] = (
        1e-5,
        3e-5,
        1e-4,
        3e-4,
        1e-3,
        3e-3,
        1e-2,
        3e-2,
        0.1,
        0.3,
        1.0,
    )
    choice: Count = 5000
    held_out: Natural = 0
    rank: Count = 1000
    rtol: Positive = 1e-4
    max_iterations: Count = 500


@dataclass(frozen=True)
class Config:
    """Images, rows and the solver.

    Attributes:
        data: Photographs.
        rows: Kernels.
        n_train: Training images.
        n_test: Test images.
        pooled_train: Training images of the pooled kernels, in balanced draws.
        pooled_test: Test images of the pooled kernels.
        features: Scattering.
        whitening_images: Images of the whitening.
        zca_bias: Added to the eigenvalues of the whitening.
        solver: Choice of the ridge and the conjugate gradient.
        keep_kernels: Whether the kernels stay on disk when their row is finished.
        seed: Of the draws.
        precision: Of the kernels.
    """

    data: Photographs = field(default_factory=lambda: Photographs("cifar10"))
    rows: Annotated[tuple[Row, ...], Values(1)] = ALL_ROWS
    n_train: Annotated[int, Integer(20)] = 5000
    n_test: Annotated[int, Integer(20)] = 2000
    pooled_train: Annotated[int, Integer(20)] = 160
    pooled_test: Annotated[int, Integer(20)] = 200
    features: FeatureConfig = field(default_factory=FeatureConfig)
    whitening_images: Annotated[int, Integer(2)] = 10_000
    zca_bias: Positive = 1e-5
    solver: SolverConfig = field(default_factory=SolverConfig)
    keep_kernels: bool = False
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses more images than there are."""
        n_train, n_test = self.data.balanced
        for name in ("n_train", "pooled_train"):
            guards.count(f"{prefix}{name}", getattr(self, name), at_most=n_train)
        for name in ("n_test", "pooled_test"):
            guards.count(f"{prefix}{name}", getattr(self, name), at_most=n_test)


PRESETS = {
    "smoke": Config(
        Photographs("digits"),
        n_train=400,
        n_test=200,
        pooled_train=40,
        pooled_test=50,
        features=FeatureConfig(J=1),
        whitening_images=500,
        zca_bias=1e-3,
        solver=SolverConfig(choice=300, rank=50),
    ),
    "laptop": Config(),
    "full": Config(n_train=50_000, n_test=10_000, pooled_train=640, pooled_test=1000),
}


TITLE = "{images}"

TOLERATED = 10
"""A residual of so many times the one asked for is as good as that to the accuracy; above, the row is no result."""


def measure(config: Config, store) -> dict[str, Any]:
    """What every row found, as `row/name`."""
    from experiments.kernels_cifar10.rows import compute

    arrays: dict[str, Any] = {}
    for row in config.rows:
        for name, value in compute(config, row, store).items():
            arrays[f"{row}/{name}"] = value
    return arrays


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Every number of every row as `number/row`."""
    summary: dict[str, Any] = {"images": config.data.title, "rows": list(config.rows)}
    for row in config.rows:
        for key, value in arrays.items():
            if key.startswith(f"{row}/"):
                summary[f"{key.removeprefix(f'{row}/')}/{row}"] = np.asarray(value).tolist()
    return summary


def facts(config: Config, arrays):
    """Every system is solved, on a few images as by a dense solver; what each kernel knows is far above chance."""
    for row in config.rows:
        limit = TOLERATED * config.solver.rtol
        yield within(f"residual/{row}", np.max(arrays[f"{row}/residuals"]), at_most=limit)
        difference = arrays[f"{row}/difference_from_dense"]
        yield within(f"difference_from_dense/{row}", difference, at_most=limit)
        yield within(f"accuracy/{row}", arrays[f"{row}/test_accuracy"], at_least=0.2)


def report(summary):
    """One line for each row."""
    title = f"{summary['images']}: exact kernels of infinitely wide networks"
    table = Table("kernel", box=None, title=title)
    for column in ("n / test", "accuracy %", "ridge", "iterations", "CPU min", "GiB", "disk GB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in summary["rows"]:
        ending = f"/{row}"
        own = {key.removesuffix(ending): summary[key] for key in summary if key.endswith(ending)}
        table.add_row(
            row,
            f"{own['n']:,} / {own['n_test']:,}",
            f"{100 * own['test_accuracy']:.1f}",
            f"{own['ridge']:g}",
            str(own["iterations"]),
            f"{minutes(own):.1f}",
            f"{own['peak_memory_gib']:.1f}",
            f"{own['disk_gb']:.2f}",
        )
    return [
        table,
        "accuracy: of the test images, at the ridge (relative to the mean of the diagonal) of the best leave-one-out "
        "accuracy on training images; CPU min: kernels, choice and solution",
    ]


def draw(config: Config, arrays):
    """Accuracies as bars, with numbers of images and CPU minutes."""
    rows: dict[str, dict[str, Any]] = {row: {} for row in config.rows}
    for key, value in arrays.items():
        row, _, name = key.rpartition("/")
        rows[row][name] = value
    return bars(config.data.title, rows)


def bars(title: str, rows: dict[str, dict[str, Any]]) -> Figure:
    """A bar for each row, of one or more runs, by its label."""
    figure = Figure(figsize=(9, 0.5 * len(rows) + 1.6), layout="constrained")
    ax = figure.subplots()
    places = range(len(rows))[::-1]
    accuracies = [100 * float(numbers["test_accuracy"]) for numbers in rows.values()]
    ax.barh(places, accuracies, 0.65, color="C0")
    for place, numbers, accuracy in zip(places, rows.values(), accuracies, strict=True):
        text = f" {accuracy:.1f}   n = {int(numbers['n']):,}, {minutes(numbers):.1f} CPU min"
        ax.text(accuracy, place, text, va="center", fontsize="small")
    ax.set_yticks(places, rows)
    ax.set(xlim=(0, 100), xlabel="test accuracy, %", title=title)
    return figure


def minutes(numbers: dict[str, Any]) -> float:
    """CPU minutes of a row, from images to the accuracy."""
    parts = ("features", "kernel", "cross", "choice", "solution")
    return sum(float(numbers[f"{part}_seconds"]) for part in parts) / 60
