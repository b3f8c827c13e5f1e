"""Kernels on small data: infinite networks beside tuned classical methods on tables, and on few images.

    python -m experiments run kernel_small_data                  # tables and digits, about 10 minutes
    python -m experiments run kernel_small_data --preset smoke   # about half a minute
    python -m experiments run kernel_small_data --set data.name=cifar10 --set data.root=DIR  # about 30 minutes
    python -m experiments run kernel_small_data --preset paper --set data.root=DIR           # meant for a GPU

Tables (iris, wine, breast cancer, digits): support vector machines on the tangent and NNGP kernels
of fully-connected ReLU networks of depth 1 to 5, with the first k layers frozen, beside the RBF
kernel and a random forest. Every method is tuned by the same nested cross-validation: each outer
fold is predicted by the setting that was best in a cross-validation of the other folds. Expected:
no method wins on all tables; differences are within the standard deviation over folds.

Images: regression on centered one-hot targets with the kernels of a fully-connected network, of a
convolutional one with a Flatten or a global average pool (CNTK), of a transformer of two blocks on
the patches of a 4 x 4 grid, and of the Myrtle network on whitened images, from n = 10 to 1280
training images in class-balanced draws. The ridge is chosen by the closed-form leave-one-out error
of the training images. Expected on CIFAR-10: the whitened Myrtle kernel is best, by ten points at n
= 160; a global pool gains nothing over Flatten below a few hundred images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from experiments.harness.bounds import Count, Integer, Positive, Seed, Values
from experiments.shared.data import Photographs
from lazynet import guards

__all__ = [
    "HOST_DEVICES",
    "PRESETS",
    "Config",
    "draw",
    "facts",
    "measure",
    "numbers",
    "report",
]

HOST_DEVICES = True
"""Every core of a CPU is a device of its own: kernels of images run on one core each."""


Table = Literal["iris", "wine", "breast_cancer", "digits"]
Sizes = Annotated[tuple[Annotated[int, Integer(2)], ...], Values(0, increasing=True)]


@dataclass(frozen=True)
class DataConfig(Photographs):
    """Which images, how they are whitened, and what figures and tables call them.

    Attributes:
        whitening_images: Images of the whitening.
        zca_bias: Added to the eigenvalues of the whitening.
    """

    whitening_images: Annotated[int, Integer(2)] = 1000
    zca_bias: Positive = 1e-3


@dataclass(frozen=True)
class TablesConfig:
    """Nested cross-validation on tables.

    Attributes:
        names: Tables; none leaves this half out.
        depth: Hidden layers, at most.
        outer: Folds of the test.
        inner: Folds of the choice.
        C: Inverse ridges of the support vector machines.
        gammas: Number of scales of the Gaussian kernel.
        trees: Of the random forest.
    """

    names: Annotated[tuple[Table, ...], Values(0)] = ("iris", "wine", "breast_cancer", "digits")
    depth: Count = 5
    outer: Annotated[int, Integer(2)] = 5
    inner: Annotated[int, Integer(2)] = 4
    C: Annotated[tuple[Positive, ...], Values(1, increasing=True)] = (
        1e-2,
        1e-1,
        1.0,
        1e1,
        1e2,
        1e3,
    )
    gammas: Count = 15
    trees: Count = 100


@dataclass(frozen=True)
class ImagesConfig:
    """Kernels on images; the pooled kernels, which cost a thousand times more, have sizes of their own.

    Attributes:
        sizes: Numbers of training images; none leaves this half out.
        pooled_sizes: Those of the pooled kernels.
        draws: Training sets of each size.
        pooled_draws: Those of the pooled kernels.
        n_test: Test images.
        pooled_test: Those of the pooled kernels.
        depth: Layers of the networks.
    """

    sizes: Sizes = (10, 20, 40, 80, 160, 320, 640, 1280)
    pooled_sizes: Sizes = (10, 20, 40, 80, 160, 320, 640, 1280)
    draws: Count = 5
    pooled_draws: Count = 5
    n_test: Count = 400
    pooled_test: Count = 400
    depth: Annotated[int, Integer(2)] = 5


@dataclass(frozen=True)
class Config:
    """The whole experiment; either half may be left out by empty `tables.names` or `images.sizes`.

    Attributes:
        data: Images.
        tables: Tables.
        images: Images, number and kernels.
        seed: Of folds and draws.
        precision: Of the computation.
    """

    data: DataConfig = field(default_factory=DataConfig)
    tables: TablesConfig = field(default_factory=TablesConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses more images than there are."""
        n_train, n_test = self.data.balanced
        for name in ("sizes", "pooled_sizes"):
            largest = max(getattr(self.images, name), default=2)
            guards.count(f"{prefix}images.{name}", largest, at_most=n_train)
        for name in ("n_test", "pooled_test"):
            guards.count(f"{prefix}images.{name}", getattr(self.images, name), at_most=n_test)


_CIFAR = DataConfig("cifar10", whitening_images=10_000, zca_bias=1e-5)
_SMALL_TABLES = TablesConfig(
    ("iris", "wine"), depth=2, outer=3, inner=3, C=(0.1, 1.0, 10.0), gammas=3, trees=30
)

PRESETS = {
    "smoke": Config(
        tables=_SMALL_TABLES, images=ImagesConfig((10, 40), (10, 20), 2, 2, 100, 50, 2)
    ),
    "smoke/cifar10": Config(
        data=DataConfig("cifar10", whitening_images=200, zca_bias=1e-3),
        tables=_SMALL_TABLES,
        images=ImagesConfig((10, 20), (10,), 2, 1, 20, 10, 2),
    ),
    "laptop": Config(),
    "laptop/cifar10": Config(
        data=_CIFAR,
        images=ImagesConfig(
            pooled_sizes=(10, 20, 40, 80, 160),
            draws=5,
            pooled_draws=2,
            n_test=2000,
            pooled_test=200,
        ),
    ),
    "paper": Config(
        data=_CIFAR,
        images=ImagesConfig(draws=20, pooled_draws=20, n_test=10_000, pooled_test=10_000, depth=14),
    ),
}


def measure(config: Config, store) -> dict[str, Any]:
    """Accuracies on tables, `table=.../method=.../...`, and on images, `kernel=.../...`."""
    from experiments.kernel_small_data import images, tables

    return tables.measure(config, store) | images.measure(config, store)


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Means and standard deviations over folds and draws, choices, and times."""
    from experiments.kernel_small_data import images, tables

    return tables.numbers(config, arrays) | images.numbers(config, arrays)


def facts(config: Config, arrays):
    """None: no method is expected to win on all tables, and which kernel wins depends on the images."""
    return ()


def report(summary):
    """Both tables."""
    from experiments.kernel_small_data.figure import image_tables, table_of_tables

    yield from table_of_tables(summary)
    yield from image_tables(summary)


def draw(config: Config, arrays):
    """Bars of the tables, and learning curves of the images."""
    from experiments.kernel_small_data import figure

    return figure.draw(config, numbers(config, arrays))
