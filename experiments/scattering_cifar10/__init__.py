"""Prior features, kernels and training in one table: heads on scattering coefficients, from few images to all.

    python -m experiments run scattering_cifar10 --preset smoke                      # digits, seconds
    python -m experiments run scattering_cifar10 --set data.root=DIR                 # about 20 minutes on 2 cores
    python -m experiments run scattering_cifar10 --preset paper --set data.root=DIR  # more draws, all test images

The coefficients (order 2, logarithm of coefficient + 0.01) are computed once and kept in the run
folder; the heads see their principal components, at most `components` of them, fitted on the
training images of the draw. Ridge, RBF and NTK heads are kernel ridge regressions whose ridge has
the best leave-one-out accuracy; the logistic head holds a fifth of its training images out. The
perceptron has one hidden layer and runs through a fixed number of epochs; the NTK head is its
infinite-width limit. Training sets are balanced draws. Every cell is stored when it is done.

Expected on a JPEG copy of CIFAR-10, 4,000 test images (accuracy in %, mean over 5, 3, 3, 1 draws;
the standard deviation is 2 to 4 at n = 100, 2 for the logistic head at 500 and 1000, and at most
1.4 elsewhere):

    head               n = 100   500  1000  5000  50000
    pixels, ridge         23.6  29.0  33.6  38.9
    pixels, NTK           25.9  33.3  37.3  45.8
    ridge                 33.5  48.9  53.8  61.5   67.6
    logistic              33.3  47.0  52.2  62.7
    RBF                   35.0  50.4  55.7  66.5
    NTK                   35.0  49.9  56.0  66.4
    MLP, alpha = 0.01     34.4  49.1  54.4  64.9
    MLP, alpha = 0.1      34.4  48.9  53.7  61.9
    MLP, alpha = inf      34.3  48.0  52.6  62.5

The prior is worth more than the head: with 500 images, any head on scattering beats the best one on
pixels with 5,000. Among perceptrons feature learning (alpha = 0.01) pays, more so with more images;
kernels with a chosen ridge stay ahead of all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from rich.table import Table

from experiments.harness.bounds import Count, Integer, NonNegative, Positive, Scale, Values
from experiments.shared.data import DataConfig
from lazynet import guards

__all__ = ["PRESETS", "Config", "draw", "facts", "measure", "numbers", "report"]


@dataclass(frozen=True)
class FeatureConfig:
    """Scattering transform; `log_offset=0` keeps the coefficients without their logarithm.

    Attributes:
        J: Scale 2^J of the averages.
        L: Orientations.
        max_order: Number of nested moduli.
        log_offset: Added before the logarithm; 0 takes none.
    """

    J: Annotated[int, Integer(1, 5)] = 2
    L: Count = 8
    max_order: Annotated[int, Integer(1, 2)] = 2
    log_offset: NonNegative = 0.01


@dataclass(frozen=True)
class MlpConfig:
    """Perceptrons of one hidden layer in the NTK parameterization, trained by SGD with momentum 0.9.

    Attributes:
        width: Hidden units.
        alphas: Scales; inf is the linearized model.
        batch_size: Examples of a step, at most.
        epochs: Passes over the training images.
        lr_fraction: Learning rate over the largest stable one.
        lr_examples: Training examples that give the largest stable learning rate.
    """

    width: Count = 512
    alphas: Annotated[tuple[Scale, ...], Values()] = (0.01, 0.1, math.inf)
    batch_size: Count = 100
    epochs: Count = 60
    lr_fraction: Positive = 0.02
    lr_examples: Count = 1000


@dataclass(frozen=True)
class Config:
    """The experiment; `draws` are the training sets of each size, and ridges are relative to the mean diagonal.

    Attributes:
        data: Images.
        features: Scattering.
        mlp: Perceptrons.
        sizes: Numbers of training images.
        draws: Training sets of each size.
        all_images: Whether to use all training images too.
        components: Principal components of the kernel heads.
        ridges: Relative to the mean diagonal.
        precision: Of the computation.
    """

    data: DataConfig = field(default_factory=DataConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    mlp: MlpConfig = field(default_factory=MlpConfig)
    sizes: Annotated[tuple[Annotated[int, Integer(10)], ...], Values()] = (100, 500, 1000, 5000)
    draws: Annotated[tuple[Count, ...], Values(different=False)] = (5, 3, 3, 1)
    all_images: bool = True
    components: Count = 1000
    ridges: Annotated[tuple[Positive, ...], Values(3, increasing=True)] = (
        1e-4,
        3e-4,
        1e-3,
        3e-3,
        1e-2,
        3e-2,
        0.1,
        0.3,
        1.0,
        3.0,
        10.0,
    )
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses training sets of more images than there are, and all images twice."""
        side = {"digits": 8, "cifar10": 32}[self.data.name]
        guards.count(
            f"{prefix}features.J",
            self.features.J,
            # Of a power of two: log2 of the side.
            at_most=side.bit_length() - 1,
            fix="2^J is at most the side",
        )
        if len(self.draws) != len(self.sizes):
            raise ValueError(
                f"{prefix}draws={self.draws}, expected a number of draws for each of the sizes {self.sizes}."
            )
        if max(self.sizes) > self.data.n_train:
            raise ValueError(
                f"{prefix}sizes={self.sizes}, expected between 10 and data.n_train={self.data.n_train} images."
            )
        # Ridge on principal components and ridge on all coefficients would be one row of one column.
        if self.all_images and self.data.n_train in self.sizes:
            raise ValueError(
                f"{prefix}sizes={self.sizes} with all_images=true, expected sizes below data.n_train="
                f"{self.data.n_train}: leave it out, or use --set {prefix}all_images=false."
            )


PRESETS = {
    "smoke": Config(
        data=DataConfig("digits", n_train=1000, n_test=797),
        features=FeatureConfig(J=1),
        mlp=MlpConfig(width=64, batch_size=50, epochs=20),
        sizes=(50, 200),
        draws=(2, 2),
    ),
    "laptop": Config(data=DataConfig("cifar10", n_train=50_000, n_test=4000)),
    "paper": Config(
        data=DataConfig("cifar10", n_train=50_000, n_test=10_000),
        draws=(10, 10, 10, 5),
        components=5000,
    ),
}


LEFT_OUT = "kernels and perceptrons grow faster than n: of all images, ridge on scattering alone"
"""Why cells of the last column are empty."""


def measure(config: Config, store) -> dict[str, Any]:
    """What every head found, `head/n=.../accuracy` and so on, an entry for each draw."""
    from experiments.scattering_cifar10.cells import compute

    arrays: dict[str, list] = {}
    for (n, _, head), cell in compute(config, store).items():
        for name, value in cell.items():
            arrays.setdefault(f"{head}/n={n}/{name}", []).append(value)
    return arrays


def columns(config: Config) -> list[int]:
    """Numbers of training images, all of them last if that is asked for."""
    return [*config.sizes, *([config.data.n_train] if config.all_images else [])]


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Means and standard deviations over draws, times, chosen ridges and those at an edge of the grid."""
    heads = list(dict.fromkeys(name.partition("/n=")[0] for name in arrays))
    summary: dict[str, Any] = {
        "data": f"{config.data.title}, {config.data.n_test} test images",
        "heads": heads,
        "sizes": [str(n) for n in columns(config)],
        "ridge_at_edge": [],
        "diverged": [],
    }
    for head in heads:
        for n in columns(config):
            cell = f"{head}/n={n}"
            accuracies = arrays.get(f"{cell}/accuracy")
            if accuracies is None:
                continue
            summary[f"accuracy/{cell}"] = float(np.mean(accuracies))
            if len(accuracies) > 1:
                summary[f"accuracy_std/{cell}"] = float(np.std(accuracies, ddof=1))
            summary[f"seconds/{cell}"] = float(np.sum(arrays[f"{cell}/seconds"]))
            if f"{cell}/ridge" in arrays:
                summary[f"ridge/{cell}"] = float(np.median(arrays[f"{cell}/ridge"]))
            for name, entry in (("ridge_at_edge", "at_edge"), ("diverged", "diverged")):
                draws = np.flatnonzero(arrays.get(f"{cell}/{entry}", ()))
                summary[name] += [f"{head}, n={n}, draw {draw}" for draw in draws]
    if config.all_images:
        summary["left_out"] = LEFT_OUT
    return summary


def facts(config: Config, arrays):
    """None: the docstring has the numbers that are expected."""
    return ()


def report(summary):
    """One row for each head: test accuracy in percent for every n, and the time of all its cells; and remarks."""
    table = Table(box=None, title=f"{summary['data']}, test accuracy %")
    table.add_column("head", no_wrap=True)
    for n in summary["sizes"]:
        table.add_column(f"n = {n}", no_wrap=True)
    table.add_column("time", no_wrap=True)
    for head in summary["heads"]:
        seconds = sum(value for key, value in summary.items() if key.startswith(f"seconds/{head}/"))
        accuracies = [_cell(summary, f"{head}/n={n}") for n in summary["sizes"]]
        table.add_row(head, *accuracies, f"{seconds:.0f} s")
    yield table
    if "left_out" in summary:
        yield f"-: {summary['left_out']}"
    edges = "; ".join(summary["ridge_at_edge"])
    yield f"ridge at an edge of the grid: {edges}" if edges else "ridges: all inside the grid"
    if summary["diverged"]:
        yield f"diverged: {'; '.join(summary['diverged'])}"


def draw(config: Config, arrays):
    """Accuracy against the number of training images."""
    from experiments.scattering_cifar10 import figures

    return {"accuracy_against_n": figures.draw(config, numbers(config, arrays))}


def _cell(summary, name):
    mean = summary.get(f"accuracy/{name}")
    deviation = summary.get(f"accuracy_std/{name}")
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
