"""Kernels on small data: infinite networks beside tuned classical methods on tables, and on few images.

    python -m experiments run kernel_small_data                    # tables and digits as images, about 10 minutes
    python -m experiments run kernel_small_data --preset smoke     # about half a minute
    python -m experiments run kernel_small_data --set data.name=cifar10 --set data.root=DIR      # about 30 minutes
    python -m experiments run kernel_small_data --preset paper --set data.root=DIR               # meant for a GPU

Tables (iris, wine, breast cancer, digits): support vector machines on the tangent and NNGP kernels of fully-connected
ReLU networks of depth 1 to 5, with the first k layers frozen, beside the RBF kernel and a random forest. Every method
is tuned by the same nested cross-validation: each outer fold is predicted by the setting that was best in a
cross-validation of the other folds. Expected: no method wins on all tables; differences are within the standard
deviation over folds.

Images: regression on centered one-hot targets with the kernels of a fully-connected network, of a convolutional one
with a Flatten or a global average pool (CNTK), and of the Myrtle network on whitened images, from n = 10 to 1280
training images in class-balanced draws. The ridge is chosen by the closed-form leave-one-out error of the training
images. Expected on CIFAR-10: the whitened Myrtle kernel is best, by ten points at n = 160; a global pool
gains nothing over Flatten below a few hundred images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["HOST_DEVICES", "PRESETS", "Config", "run", "show"]

HOST_DEVICES = True
"""Every core of a CPU is a device of its own: kernels of images run on one core each."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what figures and tables call them."""

    name: Literal["digits", "cifar10"] = "digits"
    root: str | None = None
    download: bool = False
    label: str | None = None
    whitening_images: int = 1000
    zca_bias: float = 1e-3


@dataclass(frozen=True)
class TablesConfig:
    """Nested cross-validation on tables."""

    names: tuple[str, ...] = ("iris", "wine", "breast_cancer", "digits")
    depth: int = 5
    outer: int = 5
    inner: int = 4
    C: tuple[float, ...] = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
    gammas: int = 15
    trees: int = 100


@dataclass(frozen=True)
class ImagesConfig:
    """Kernels on images; the pooled kernels, which cost a thousand times more, have sizes of their own."""

    sizes: tuple[int, ...] = (10, 20, 40, 80, 160, 320, 640, 1280)
    pooled_sizes: tuple[int, ...] = (10, 20, 40, 80, 160, 320, 640, 1280)
    draws: int = 5
    pooled_draws: int = 5
    n_test: int = 400
    pooled_test: int = 400
    depth: int = 5


@dataclass(frozen=True)
class Config:
    """The whole experiment; either half may be left out by empty `tables.names` or `images.sizes`."""

    data: DataConfig = field(default_factory=DataConfig)
    tables: TablesConfig = field(default_factory=TablesConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    seed: int = 0
    precision: Literal["float32", "float64"] = "float32"


_CIFAR = DataConfig("cifar10", whitening_images=10_000, zca_bias=1e-5)
_SMALL_TABLES = TablesConfig(("iris", "wine"), depth=2, outer=3, inner=3, C=(0.1, 1.0, 10.0), gammas=3, trees=30)

PRESETS = {
    "smoke": Config(tables=_SMALL_TABLES, images=ImagesConfig((10, 40), (10, 20), 2, 2, 100, 50, 2)),
    "smoke/cifar10": Config(
        data=DataConfig("cifar10", whitening_images=200, zca_bias=1e-3),
        tables=_SMALL_TABLES,
        images=ImagesConfig((10, 20), (10,), 2, 1, 20, 10, 2),
    ),
    "laptop": Config(),
    "laptop/cifar10": Config(
        data=_CIFAR,
        images=ImagesConfig(pooled_sizes=(10, 20, 40, 80, 160), draws=5, pooled_draws=2, n_test=2000, pooled_test=200),
    ),
    "paper": Config(
        data=_CIFAR, images=ImagesConfig(draws=20, pooled_draws=20, n_test=10_000, pooled_test=10_000, depth=14)
    ),
}


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Computes what is not stored yet, draws the figure and returns the flat summary."""
    from experiments.kernel_small_data.figure import draw
    from experiments.kernel_small_data.images import check_images, learning_curves
    from experiments.kernel_small_data.tables import check_tables, compare_on_tables

    check_tables(config.tables)
    check_images(config)
    summary = compare_on_tables(config, folder, console)
    summary |= learning_curves(config, folder, console)
    draw(config, summary, folder / "figures" / "kernel_small_data.png")
    return summary


def show(summary: dict[str, Any], console) -> None:
    """Prints both tables of a summary."""
    from experiments.kernel_small_data.figure import show_images, show_tables

    show_tables(summary, console)
    show_images(summary, console)
