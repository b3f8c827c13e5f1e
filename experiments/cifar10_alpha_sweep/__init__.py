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

from experiments.harness import bounds, facts
from experiments.harness.bounds import Positive, Scale, Seed, Values, check_batch
from experiments.lazy_vs_standard import DataConfig
from experiments.shared.vgg import PAPER_TRAIN, SMOKE_TRAIN, TrainConfig

__all__ = ["PRESETS", "Config", "collect", "run", "show"]


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


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Trains every alpha that is not stored yet, draws the figure and returns the flat summary."""
    from experiments.cifar10_alpha_sweep.cells import train_cells
    from experiments.cifar10_alpha_sweep.figure import draw, draw_epochs
    from experiments.harness.store import curve_arrays, save_arrays

    bounds.check(config)
    cells = train_cells(config, folder, console)
    arrays = {
        f"alpha={alpha:g}/{name}": value
        for alpha, cell in cells.items()
        for name, value in curve_arrays(cell["curve"]).items()
    }
    save_arrays(folder / "trajectory.npz", arrays)
    summary = summarize(config, cells)
    summary |= facts.summarize(checked_facts(config, summary))
    draw(summary, folder / "figures" / "accuracy_against_alpha.png")
    draw_epochs(config, cells, folder / "figures" / "accuracy_against_epochs.png")
    return summary


def collect(runs: Sequence[Any], out: Path, console) -> list[Path]:
    """Puts runs that differ in their alphas alone into one table and two figures: against epochs in `out`, and alpha.

    Agreement with the linearized model is computed from the stored test outputs.

    Args:
        runs: Finished runs, as `experiments.harness.compare.load` returns them.
        out: Figure of the accuracies against epochs; the others stand beside it.
        console: Where the table is printed.

    Returns:
        The figures, and the summary as JSON.

    Raises:
        ValueError: If two runs have an alpha in common.
    """
    from experiments.cifar10_alpha_sweep.cells import stored_cells
    from experiments.cifar10_alpha_sweep.figure import draw, draw_epochs
    from experiments.harness import store

    alphas = sorted(float(alpha) for run in runs for alpha in run.config["alphas"])
    bounds.Values().check("alphas of all runs", tuple(alphas))
    first = runs[0].config
    config = Config(
        data=DataConfig(**first["data"]),
        network=NetworkConfig(**first["network"]),
        train=TrainConfig(**first["train"]),
        alphas=tuple(alphas),
        seed=first["seed"],
        precision=first["precision"],
    )
    cells = stored_cells(config, [run.folder for run in runs])
    summary = summarize(config, cells)
    summary |= facts.summarize(checked_facts(config, summary))
    show(summary, console)
    against_alpha = out.with_name(f"{out.stem}_against_alpha{out.suffix}")
    draw_epochs(config, cells, out)
    draw(summary, against_alpha)
    store.write_json(out.with_suffix(".json"), summary)
    return [out, against_alpha, out.with_suffix(".json")]


def summarize(config: Config, cells: dict[float, dict]) -> dict[str, Any]:
    """The final numbers of every alpha; what diverged has none but the step at which that was seen."""
    from experiments.shared.vgg import learning_rate

    data = config.data
    summary: dict[str, Any] = {
        "data": f"{data.title}, {data.n_train} train and {data.n_test} test images",
        "network": f"VGG-11, width {config.network.width:g}",
        "learning_rate": learning_rate(config.train.loss, config.train.eta0),
        "diverged": [
            f"{alpha:g}" for alpha, cell in cells.items() if cell["curve"].diverged_at is not None
        ],
    }
    for alpha, cell in cells.items():
        if cell["curve"].diverged_at is not None:
            summary[f"diverged_at/alpha={alpha:g}"] = cell["curve"].diverged_at
        else:
            summary |= {f"{name}/alpha={alpha:g}": value for name, value in cell["final"].items()}
        summary[f"seconds/alpha={alpha:g}"] = cell["final"]["seconds"]
        summary[f"precision/alpha={alpha:g}"] = str(cell["outputs"].dtype)
    return summary


def checked_facts(config: Config, summary: dict[str, Any]) -> list:
    """What lazy training is expected to show, as far as the run can: some facts need photographs or both ends."""
    from experiments.harness.facts import within

    ends = {end: summary.get(f"test_accuracy/alpha={end}") for end in ("1", "inf")}
    found = []
    if ends["inf"] is not None:
        gap = summary["gated_accuracy/alpha=inf"] - ends["inf"]
        found.append(within("gated_minus_tangent", gap, at_least=-ROUNDING, at_most=ROUNDING))
        for alpha in [
            f"{a:g}"
            for a in config.alphas
            if LAZY <= a < math.inf and f"agreement/alpha={a:g}" in summary
        ]:
            gap = summary[f"test_accuracy/alpha={alpha}"] - ends["inf"]
            found.append(
                within(f"gap_to_linearized/alpha={alpha}", gap, at_least=-0.01, at_most=0.01)
            )
            found.append(
                within(
                    f"agreement/alpha={alpha}", summary[f"agreement/alpha={alpha}"], at_least=0.97
                )
            )
            found.append(
                within(
                    f"stability/alpha={alpha}", summary[f"stability/alpha={alpha}"], at_least=0.99
                )
            )
    if ends["inf"] is not None and config.data.name == "cifar10" and config.data.n_train >= ENOUGH:
        found.append(
            within("linearized_train_accuracy", summary["train_accuracy/alpha=inf"], at_least=0.40)
        )
        if ends["1"] is not None:
            found.append(
                within("standard_minus_linearized", ends["1"] - ends["inf"], at_least=0.10)
            )
    return found


LAZY = 10_000.0
"""From this alpha on the network is expected to be its tangent model; a tenth of it agrees in 96.9 % of predictions."""

ENOUGH = 10_000
"""Photographs from which features can be learned that are better than the first ones."""

ROUNDING = 0.005
"""Share of test images whose two largest outputs rounding may exchange."""


def show(summary: dict[str, Any], console) -> None:
    """Prints one row for each alpha, the facts and what diverged."""
    from rich.table import Table

    table = Table("alpha", box=None, title=f"{summary['network']}, {summary['data']}")
    for title in COLUMNS.values():
        table.add_column(title, no_wrap=True)
    table.add_column("precision")
    table.add_column("time", no_wrap=True)
    for alpha in [key.split("=")[1] for key in summary if key.startswith("precision/alpha=")]:
        values = [summary.get(f"{name}/alpha={alpha}") for name in COLUMNS]
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        table.add_row(
            alpha,
            *cells,
            summary[f"precision/alpha={alpha}"],
            f"{summary[f'seconds/alpha={alpha}']:.0f} s",
        )
    console.print(table)
    for alpha in summary["diverged"]:
        console.print(
            f"alpha = {alpha} diverged, seen at step {summary[f'diverged_at/alpha={alpha}']}"
        )
    if any(key.startswith("passed/") for key in summary):
        facts.show(summary, console, "lazy training")
