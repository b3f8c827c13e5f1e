"""VGG-11 on CIFAR-10 from standard (alpha = 1) to linearized (alpha = inf): accuracy falls, gates become stable.

    python -m experiments run cifar10_alpha_sweep --preset smoke                      # digits, about a minute
    python -m experiments run cifar10_alpha_sweep --set data.root=DIR                 # about 25 minutes on 2 cores
    python -m experiments run cifar10_alpha_sweep --preset full --set data.root=DIR   # an hour or two an alpha
    python -m experiments run cifar10_alpha_sweep --preset paper --set data.root=DIR  # full width, meant for a GPU

Alphas may be trained by runs of their own, on several machines; `compare` puts runs that differ in
their alphas alone into one table and two figures, and compares their stored outputs with those of
the linearized model:

    python -m experiments sweep cifar10_alpha_sweep --preset full --set data.root=DIR --over alphas=1,10,inf --print
    python -m experiments compare runs/cifar10_alpha_sweep-* --out figures/epochs.png

Every alpha starts from the same weights (Xavier normal, zero biases, no normalization), sees the
same batches and has the same learning rate: eta0 = 1 on the loss averaged over examples and
outputs, which is 0.2 on `lazynet.mse`, over 1 + epoch/3. Only `lazy(apply, params0, alpha)`
changes. Up to alpha = 10^4, and for the linearized model, training is float32; above, where alpha
(h(w0 + u/alpha) - h(w0)) loses its digits (6 % at 10^5), it is float64 from the same weights, which
are drawn in float64 and rounded.

Beside train and test accuracy, all on test images: the share of ReLU gates that are where they were
at first, and of max-pools whose first winner still is the largest; the accuracy of the gated
network, which has the trained weights behind the gates and winners of the first ones; and how often
the prediction is that of the linearized model.

Expected of the laptop preset on a JPEG copy of CIFAR-10: test accuracy falls from 56 % at alpha = 1
over 53 % (3) and 44 % (10) to 39 % from alpha = 100 on, where it stays; 65, 82, 96 and 99.8 % of
the gates are stable. Differences from the published experiment: channels are standardized by the
training set, the last epoch is evaluated, the training accuracy is that on the whole training set
without augmentation, and the smaller presets have fewer images and channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.table import Table

from experiments.harness.bounds import Positive, Scale, Seed, Values, check_batch
from experiments.harness.facts import within
from experiments.shared.data import DataConfig
from experiments.shared.training import diverged_at, final
from experiments.shared.vgg import PAPER_TRAIN, SMOKE_TRAIN, TrainConfig, learning_rate

__all__ = [
    "PRESETS",
    "TITLE",
    "Config",
    "draw",
    "facts",
    "gather",
    "measure",
    "numbers",
    "report",
]


PIECES = ("alphas",)

FLOAT32_UP_TO = 1e4
"""Largest finite alpha whose displaced weights float32 still tells from the first ones."""


@dataclass(frozen=True)
class NetworkConfig:
    """Factor of the channels of VGG-11, and of the standard deviations of its first weights.

    Attributes:
        width: Factor of the channels.
        gain: Factor of the standard deviations.
    """

    width: Positive = 0.125
    gain: Positive = 1.0


@dataclass(frozen=True)
class Config:
    """The whole experiment; `precision` is that of alphas above 10^4.

    Attributes:
        data: Images.
        network: VGG-11.
        train: Training.
        alphas: Scales; inf is the linearized model.
        seed: Of weights and batches.
        precision: Of alphas above 10^4; others are computed in float32.
    """

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    alphas: Annotated[tuple[Scale, ...], Values()] = (
        1.0,
        3.0,
        10.0,
        100.0,
        1e3,
        1e4,
        1e5,
        1e7,
        math.inf,
    )
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float64"

    def check(self, prefix: str) -> None:
        """Refuses scales that lose their digits, and batches of more images than there are."""
        check_batch(self.train.batch_size, self.data.n_train, f"{prefix}train.batch_size")
        lost = [alpha for alpha in self.alphas if FLOAT32_UP_TO < alpha < math.inf]
        if lost and self.precision == "float32":
            raise ValueError(
                f"{prefix}alphas={lost} lose their digits in precision=float32: use float64, or alphas up to "
                f"{FLOAT32_UP_TO:g}."
            )


_NARROW = NetworkConfig(0.0625)
_FEW = (1.0, 100.0, 1e5, math.inf)

PRESETS = {
    "smoke": Config(DataConfig("digits", n_train=200, n_test=200), _NARROW, SMOKE_TRAIN, _FEW),
    "smoke/cifar10": Config(
        DataConfig("cifar10", n_train=200, n_test=200), _NARROW, SMOKE_TRAIN, _FEW
    ),
    "laptop": Config(data=DataConfig("cifar10", n_train=10_000, n_test=2000)),
    "full": Config(
        data=DataConfig("cifar10", n_train=50_000, n_test=10_000),
        train=PAPER_TRAIN,
        alphas=(1.0, 3.0, 10.0, 30.0, 100.0, 1e3, math.inf),
    ),
    "paper": Config(
        data=DataConfig("cifar10", n_train=50_000, n_test=10_000),
        network=NetworkConfig(1.0),
        train=PAPER_TRAIN,
        alphas=(1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, math.inf),
    ),
}

COLUMNS = {
    "train_accuracy": "train\nacc. %",
    "test_accuracy": "test\nacc. %",
    "gated_accuracy": "gated\nacc. %",
    "stability": "ReLU\nstable %",
    "pool_stability": "max-pool\nstable %",
    "agreement": "same as\ninf %",
}


TITLE = "lazy training"

LAZY = 10_000.0
"""From this alpha on the network is expected to be its tangent model; a tenth of it agrees in 96.9 % of predictions."""

ROUNDING = 0.005
"""Share of test images whose two largest outputs rounding may exchange."""


def measure(config: Config, store) -> dict[str, Any]:
    """Every training as `alpha=1/...`, compared with that of the linearized model."""
    from experiments.cifar10_alpha_sweep.cells import gathered, train_all

    return gathered(config, train_all(config, store))


def numbers(config: Config, arrays) -> dict[str, Any]:
    """The final numbers of every alpha; what diverged has none but the step at which that was seen."""
    data = config.data
    summary: dict[str, Any] = {
        "data": f"{data.title}, {data.n_train} train and {data.n_test} test images",
        "network": f"VGG-11, width {config.network.width:g}",
        "learning_rate": learning_rate(config.train.loss, config.train.eta0),
        "diverged": [],
    }
    for alpha in [f"{alpha:g}" for alpha in config.alphas]:
        cell = f"alpha={alpha}"
        diverged = diverged_at(arrays, cell)
        if diverged is not None:
            summary["diverged"].append(alpha)
            summary[f"diverged_at/{cell}"] = diverged
        else:
            prefix = f"{cell}/final/"
            for key in arrays:
                if key.startswith(prefix):
                    name = key.removeprefix(prefix)
                    summary[f"{name}/{cell}"] = float(arrays[key])
        summary[f"seconds/{cell}"] = final(arrays, cell, "seconds")
        summary[f"precision/{cell}"] = str(arrays[f"{cell}/precision"])
    return summary


def facts(config: Config, arrays):
    """What lazy training is expected to show, as far as the run can: some facts need photographs or both ends."""
    summary = numbers(config, arrays)
    yield from checked_facts(config, summary)


def checked_facts(config: Config, summary: dict[str, Any]):
    """The facts about the final numbers."""
    standard = summary.get("test_accuracy/alpha=1")
    linearized = summary.get("test_accuracy/alpha=inf")
    if linearized is None:
        return
    # D h(w0) is that of the network with the gates of w0: both tangent models are one function.
    gap = summary["gated_accuracy/alpha=inf"] - linearized
    yield within("gated_minus_tangent", gap, at_least=-ROUNDING, at_most=ROUNDING)
    lazy = [f"alpha={alpha:g}" for alpha in config.alphas if LAZY <= alpha < math.inf]
    for alpha in lazy:
        if f"agreement/{alpha}" in summary:
            gap = summary[f"test_accuracy/{alpha}"] - linearized
            yield within(f"gap_to_linearized/{alpha}", gap, at_least=-0.01, at_most=0.01)
            yield within(f"agreement/{alpha}", summary[f"agreement/{alpha}"], at_least=0.97)
            yield within(f"stability/{alpha}", summary[f"stability/{alpha}"], at_least=0.99)
    if config.data.teaches_features:
        accuracy = summary["train_accuracy/alpha=inf"]
        yield within("linearized_train_accuracy", accuracy, at_least=0.40)
        if standard is not None:
            yield within("standard_minus_linearized", standard - linearized, at_least=0.10)


def report(summary):
    """One row for each alpha, and what diverged."""
    table = Table("alpha", box=None, title=f"{summary['network']}, {summary['data']}")
    for title in COLUMNS.values():
        table.add_column(title, no_wrap=True)
    table.add_column("precision")
    table.add_column("time", no_wrap=True)
    for alpha in [key.split("=")[1] for key in summary if key.startswith("precision/alpha=")]:
        values = [summary.get(f"{name}/alpha={alpha}") for name in COLUMNS]
        shares = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        seconds = f"{summary[f'seconds/alpha={alpha}']:.0f} s"
        table.add_row(alpha, *shares, summary[f"precision/alpha={alpha}"], seconds)
    yield table
    for alpha in summary["diverged"]:
        yield f"alpha = {alpha} diverged, seen at step {summary[f'diverged_at/alpha={alpha}']}"


def draw(config: Config, arrays):
    """Accuracies and stabilities against alpha, and accuracies against epochs."""
    from experiments.cifar10_alpha_sweep import figure

    return {
        "accuracy_against_epochs": figure.against_epochs(config, arrays),
        "accuracy_against_alpha": figure.against_alpha(numbers(config, arrays)),
    }


def gather(config: Config, folders: Sequence[Path]) -> dict[str, Any]:
    """The arrays of runs of single alphas, each compared with the linearized model by the stored test outputs."""
    from experiments.cifar10_alpha_sweep.cells import gathered, stored_cells

    return gathered(config, stored_cells(config, folders))
