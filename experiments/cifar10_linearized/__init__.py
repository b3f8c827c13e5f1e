"""VGG-11 on CIFAR-10, standard, gated and linearized at several widths, beside features and kernels that learn nothing.

    python -m experiments run cifar10_linearized --preset smoke                      # digits, about a minute
    python -m experiments run cifar10_linearized --set data.root=DIR                 # about 45 CPU minutes
    python -m experiments run cifar10_linearized --preset full --set data.root=DIR   # 50,000 images, over an hour a row
    python -m experiments run cifar10_linearized --preset paper --set data.root=DIR  # the same at full width, for a GPU

Rows may be computed by runs of their own, on several machines, and `compare` puts them into one
table and one figure, here a network and what learns nothing:

    python -m experiments run cifar10_linearized --preset full --set widths=0.125 --set kinds=standard --set priors=
    python -m experiments run cifar10_linearized --preset full --set kinds= --set priors=scattering,patches
    python -m experiments compare runs/cifar10_linearized-* --out figures/widths.png

One table. The three networks of a width start from the same weights and see the same batches with
the same learning rate: the standard one (centered, alpha = 1), the gated one, whose ReLU gates and
max-pooling winners stay those of the first weights, and the linearized one; eta0 = 1 is too large
for the standard network at width 1/4, which then learns next to nothing (29 %), hence 0.5. Beside
them, linear classifiers on what was not learned: scattering coefficients (the ridge is chosen on a
fifth of the training images) and responses of whitened random patches (leave-one-out); and
regression with the tangent kernel of an infinitely wide network of the same depth, nine layers with
weights, which has no pools, for max-pooling has no such kernel and average-pooling an expensive
one. It sees a stated subset only.

Expected on CIFAR-10, and checked: at every width the standard network is ten points or more above
its linearization, and so are both kinds of prior features above the widest one. What the linearized
network lacks is not a larger space of functions but a better kernel. `cifar10_alpha_sweep` says what training has
in common with the published experiment.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from rich.table import Table

from experiments.harness.bounds import Count, Integer, Positive, Seed, Values, check_batch
from experiments.harness.facts import within
from experiments.scattering_cifar10 import FeatureConfig
from experiments.shared.data import DataConfig
from experiments.shared.patches import PatchConfig
from experiments.shared.vgg import PAPER_TRAIN, SMOKE_TRAIN, TrainConfig
from lazynet import guards

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers", "report"]


Kind = Literal["standard", "gated", "linearized"]
Prior = Literal["scattering", "patches", "kernel"]

PIECES = ("widths", "kinds", "priors", "train.epochs")
"""The fields in which runs may differ that are rows of one table."""


@dataclass(frozen=True)
class KernelConfig:
    """How many of the images the tangent kernel sees, for pairs of images cost time.

    Attributes:
        n_train: Training images of the kernel.
        n_test: Its test images.
        depth: Layers of its network.
    """

    n_train: Count = 500
    n_test: Count = 500
    depth: Annotated[int, Integer(2)] = 9


@dataclass(frozen=True)
class Config:
    """The whole experiment; ridges are relative to the mean eigenvalue of what they are added to.

    Attributes:
        data: Images.
        widths: Factors of the channels of VGG-11.
        kinds: Functions of the network that are trained.
        priors: What is put beside them, and learns no features.
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
    kinds: Annotated[tuple[Kind, ...], Values(0)] = ("standard", "gated", "linearized")
    priors: Annotated[tuple[Prior, ...], Values(0)] = ("scattering", "patches", "kernel")
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
        """Refuses batches and kernels of more images than there are, and a table without rows."""
        if not (self.kinds or self.priors):
            raise ValueError(f"{prefix}kinds and {prefix}priors are both empty, expected a row.")
        check_batch(self.train.batch_size, self.data.n_train, f"{prefix}train.batch_size")
        for name in ("n_train", "n_test"):
            available = getattr(self.data, name)
            fix = f"those of {prefix}data.{name}"
            guards.count(
                f"{prefix}kernel.{name}",
                getattr(self.kernel, name),
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
        # At eta0 = 1 the standard network of width 1/4 learns next to nothing.
        train=TrainConfig(eta0=0.5, epochs=8, records=2),
    ),
    "full": Config(
        data=DataConfig("cifar10", n_train=50_000, n_test=10_000),
        kinds=("standard", "linearized"),
        priors=("scattering", "patches"),
        train=dataclasses.replace(PAPER_TRAIN, eta0=0.5),
        patches=PatchConfig(filters=2048),
    ),
    "paper": Config(
        data=DataConfig("cifar10", n_train=50_000, n_test=10_000),
        widths=(0.25, 0.5, 1.0, 2.0),
        train=dataclasses.replace(PAPER_TRAIN, eta0=0.5),
        patches=PatchConfig(filters=2048),
        kernel=KernelConfig(2000, 2000),
    ),
}

TITLES = {
    "scattering": "scattering, linear",
    "patches": "random patches, linear",
    "kernel": "infinite width, no pools",
}


TITLE = "above the widest linearized network"


def measure(config: Config, store) -> dict[str, Any]:
    """The numbers of every row as `row/name`."""
    from experiments.cifar10_linearized.cells import compute

    arrays = {}
    for row, values in compute(config, store).items():
        arrays |= {f"{row}/{name}": value for name, value in values.items()}
    return arrays


def rows_of(config: Config, arrays) -> list[str]:
    """Names of the rows that are there."""
    networks = [f"{kind}/width={width:g}" for width in config.widths for kind in config.kinds]
    return [row for row in (*networks, *config.priors) if f"{row}/n" in arrays]


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Every number of every row under `number/row`, and the names of the rows."""
    rows = rows_of(config, arrays)
    summary: dict[str, Any] = {
        "data": f"{config.data.title}, {config.data.n_test} test images",
        "rows": rows,
    }
    for row in rows:
        for key in arrays:
            name = key.removeprefix(f"{row}/")
            if name != key:
                summary[f"{name}/{row}"] = arrays[key].item()
    summary["diverged"] = [row for row in rows if f"{row}/diverged_at" in arrays]
    summary["ridge_at_edge"] = [row for row in rows if arrays.get(f"{row}/at_edge", False)]
    return summary


def facts(config: Config, arrays):
    """How far the others are above the linearized networks; features are only learned from enough photographs."""
    accuracy = {row: arrays.get(f"{row}/test_accuracy") for row in rows_of(config, arrays)}
    linearized = {width: accuracy.get(f"linearized/width={width:g}") for width in config.widths}
    # Runs that train no network keep the widths of their preset: together they list more than were trained.
    trained = [width for width in config.widths if linearized[width] is not None]
    widest = linearized[max(trained)] if trained else None
    for prior in ("scattering", "patches"):
        # Runs may lack rows, which other runs then have: `compare` checks what they have together.
        if accuracy.get(prior) is not None and widest is not None:
            yield within(f"{prior}_minus_linearized", accuracy[prior] - widest, at_least=0.1)
    for width in config.widths if config.data.teaches_features else ():
        standard = accuracy.get(f"standard/width={width:g}")
        if standard is not None and linearized[width] is not None:
            name = f"standard_minus_linearized/width={width:g}"
            yield within(name, standard - linearized[width], at_least=0.1)


def report(summary):
    """One row for each method, and remarks."""
    table = Table(box=None, title=f"{summary['data']}, accuracies in %")
    titles = ("method", "width", "weights", "epochs", "n", "tested")
    for title in (*titles, "train\nacc.", "test\nacc.", "time"):
        table.add_column(title, no_wrap=True)
    for row in summary["rows"]:
        method, _, width = row.partition("/width=")
        counts = [summary.get(f"{name}/{row}") for name in ("parameters", "epochs", "n", "n_test")]
        accuracies = [summary.get(f"{name}/{row}") for name in ("train_accuracy", "test_accuracy")]
        table.add_row(
            TITLES.get(method, method),
            width or "-",
            *("-" if count is None else f"{count:,}" for count in counts),
            *("-" if accuracy is None else f"{100 * accuracy:.1f}" for accuracy in accuracies),
            f"{summary[f'seconds/{row}']:.0f} s",
        )
    yield table
    for row in summary["diverged"]:
        yield f"{row} diverged, seen at step {summary[f'diverged_at/{row}']}"
    if summary["ridge_at_edge"]:
        yield f"ridge at an edge of the grid: {', '.join(summary['ridge_at_edge'])}"


def draw(config: Config, arrays):
    """Test accuracy against the width."""
    from experiments.cifar10_linearized import figure

    return {"accuracy_against_width": figure.draw(config, numbers(config, arrays))}
