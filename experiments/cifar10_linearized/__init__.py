"""VGG-11 on CIFAR-10, standard, gated and linearized at several widths, beside features and kernels that learn nothing.

    python -m experiments run cifar10_linearized --preset smoke                      # digits, about a minute
    python -m experiments run cifar10_linearized --set data.root=DIR                 # about 45 CPU minutes
    python -m experiments run cifar10_linearized --preset paper --set data.root=DIR  # 50,000 images, meant for a GPU

One table. The three networks of a width start from the same weights and see the same batches with
the same learning rate: the standard one (centered, alpha = 1), the gated one, whose ReLU gates and
max-pooling winners stay those of the first weights, and the linearized one; eta0 = 1 is too large
for the standard network at width 1/4, which then learns next to nothing (29 %), hence 0.5. Beside
them, linear classifiers on what was not learned: scattering coefficients (the ridge is chosen on a
fifth of the training images) and responses of whitened random patches (leave-one-out); and
regression with the tangent kernel of an infinitely wide network of the same depth, nine layers with
weights, which has no pools, for max-pooling has no such kernel and average-pooling an expensive
one. It sees a stated subset only.

Expected on CIFAR-10, and checked: at the largest width the standard network is ten points or more
above its linearization, and so are both kinds of prior features. What the linearized network lacks
is not a larger space of functions but a better kernel. `cifar10_alpha_sweep` says what training has
in common with the published experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.harness import bounds
from experiments.harness.bounds import Count, Integer, Natural, Positive, Seed, Values, check_batch
from experiments.lazy_vs_standard import DataConfig
from experiments.random_features import PatchConfig
from experiments.scattering_cifar10 import FeatureConfig
from experiments.shared.vgg import PAPER_TRAIN, SMOKE_TRAIN, TrainConfig
from lazynet import guards

__all__ = ["PRESETS", "Config", "run", "show"]


@dataclass(frozen=True)
class KernelConfig:
    """How many of the images the tangent kernel sees, for pairs of images cost time; 0 leaves the row out.

    Attributes:
        n_train: Training images of the kernel; 0 leaves the row out.
        n_test: Its test images.
        depth: Layers of its network.
    """

    n_train: Natural = 500
    n_test: Count = 500
    depth: Annotated[int, Integer(2)] = 9


@dataclass(frozen=True)
class Config:
    """The whole experiment; ridges are relative to the mean eigenvalue of what they are added to.

    Attributes:
        data: Images.
        widths: Factors of the channels of VGG-11.
        kinds: Functions of the network that are trained.
        gain: Factor of the standard deviations of the first weights.
        train: Training.
        scattering: Scattering features.
        patches: Random patches.
        kernel: Infinite-width kernel.
        ridges: Relative to the mean eigenvalue of what they are added to.
        seed: Of weights, batches and patches.
        precision: Of the computation.
    """

    data: DataConfig = field(default_factory=DataConfig)
    widths: Annotated[tuple[Positive, ...], Values()] = (0.0625, 0.125, 0.25)
    kinds: Annotated[tuple[Literal["standard", "gated", "linearized"], ...], Values()] = (
        "standard",
        "gated",
        "linearized",
    )
    gain: Positive = 1.0
    train: TrainConfig = field(default_factory=TrainConfig)
    scattering: FeatureConfig = field(default_factory=FeatureConfig)
    patches: PatchConfig = field(default_factory=PatchConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    ridges: Annotated[tuple[Positive, ...], Values(3, increasing=True)] = (
        1e-5,
        1e-4,
        1e-3,
        1e-2,
        0.1,
        1.0,
        10.0,
    )
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses batches and kernels of more images than there are."""
        check_batch(self.train.batch_size, self.data.n_train, f"{prefix}train.batch_size")
        for name in ("n_train", "n_test"):
            available = getattr(self.data, name)
            fix = f"those of {prefix}data.{name}"
            guards.count(
                f"{prefix}kernel.{name}",
                getattr(self.kernel, name),
                at_least=0,
                at_most=available,
                fix=fix,
            )


_SMOKE = Config(
    data=DataConfig("digits", n_train=200, n_test=200),
    widths=(0.0625,),
    train=SMOKE_TRAIN,
    scattering=FeatureConfig(J=3, L=4),
    patches=PatchConfig(filters=32, patches=2000),
    kernel=KernelConfig(32, 32, 3),
    ridges=(1e-4, 1e-2, 1.0),
)

PRESETS = {
    "smoke": _SMOKE,
    "laptop": Config(
        data=DataConfig("cifar10", n_train=10_000, n_test=2000),
        train=TrainConfig(eta0=0.5, epochs=8, records=2),
    ),
    "paper": Config(
        data=DataConfig("cifar10", n_train=50_000, n_test=10_000),
        widths=(0.25, 0.5, 1.0, 2.0),
        train=PAPER_TRAIN,
        patches=PatchConfig(filters=2048),
        kernel=KernelConfig(2000, 2000),
    ),
}

TITLES = {
    "scattering": "scattering, linear",
    "patches": "random patches, linear",
    "kernel": "infinite width, no pools",
}


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Computes every row that is not stored yet, draws the figure and returns the flat summary."""
    from experiments.cifar10_linearized.cells import compute
    from experiments.cifar10_linearized.figure import draw
    from experiments.harness import facts

    bounds.check(config)
    rows = compute(config, folder, console)
    summary = summarize(config, rows)
    summary |= facts.summarize(checked_facts(config, summary))
    draw(config, summary, folder / "figures" / "accuracy_against_width.png")
    return summary


def summarize(config: Config, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every number of every row under `number/row`, and the names of the rows."""
    summary: dict[str, Any] = {
        "data": f"{config.data.title}, {config.data.n_test} test images",
        "rows": list(rows),
    }
    for row, numbers in rows.items():
        summary |= {f"{name}/{row}": value for name, value in numbers.items()}
    summary["diverged"] = [row for row, numbers in rows.items() if "diverged_at" in numbers]
    summary["ridge_at_edge"] = [row for row, numbers in rows.items() if numbers.get("at_edge")]
    return summary


def checked_facts(config: Config, summary: dict[str, Any]) -> list:
    """How far the others are above the widest linearized network; features are only learned from enough photographs."""
    from experiments.harness.facts import within

    width = f"width={max(config.widths):g}"
    linearized = summary.get(f"test_accuracy/linearized/{width}")
    others = {"scattering": "scattering", "patches": "patches"}
    if config.data.name == "cifar10" and config.data.n_train >= ENOUGH:
        others["standard"] = f"standard/{width}"
    accuracies = {name: summary.get(f"test_accuracy/{row}") for name, row in others.items()}
    return [
        within(f"{name}_minus_linearized", accuracy - linearized, at_least=0.1)
        for name, accuracy in accuracies.items()
        if accuracy is not None and linearized is not None
    ]


ENOUGH = 10_000
"""Photographs from which features can be learned that are better than the first ones."""


def show(summary: dict[str, Any], console) -> None:
    """Prints the table, one row for each method, and the facts."""
    from rich.table import Table

    from experiments.harness import facts

    table = Table(box=None, title=f"{summary['data']}, accuracies in %")
    for title in ("method", "width", "weights", "n", "tested", "train\nacc.", "test\nacc.", "time"):
        table.add_column(title, no_wrap=True)
    for row in summary["rows"]:
        method, _, width = row.partition("/width=")
        counts = [summary.get(f"{name}/{row}") for name in ("parameters", "n", "n_test")]
        accuracies = [summary.get(f"{name}/{row}") for name in ("train_accuracy", "test_accuracy")]
        table.add_row(
            TITLES.get(method, method),
            width or "-",
            *("-" if count is None else f"{count:,}" for count in counts),
            *("-" if accuracy is None else f"{100 * accuracy:.1f}" for accuracy in accuracies),
            f"{summary[f'seconds/{row}']:.0f} s",
        )
    console.print(table)
    for line in _remarks(summary):
        console.print(line, highlight=False, soft_wrap=True)
    if any(key.startswith("passed/") for key in summary):
        facts.show(summary, console, "above the widest linearized network")


def _remarks(summary):
    for row in summary["diverged"]:
        yield f"{row} diverged, seen at step {summary[f'diverged_at/{row}']}"
    if summary["ridge_at_edge"]:
        yield f"ridge at an edge of the grid: {', '.join(summary['ridge_at_edge'])}"
