"""One network trained at every alpha, from standard to linearized, beside its infinite-width kernel.

    python -m experiments run lazy_vs_standard                                              # digits, about a minute
    python -m experiments run lazy_vs_standard --preset smoke                               # digits, some seconds
    python -m experiments run lazy_vs_standard --set data.name=cifar10 --set data.root=DIR  # about 10 minutes
    python -m experiments run lazy_vs_standard --preset paper --set data.root=DIR           # VGG-11, meant for a GPU

Every alpha starts from the same weights and sees the same minibatches; only `lazy(apply, params0,
alpha)` changes. The common clock is gradient-flow time, learning rate times steps over (1 -
momentum). Expected: on CIFAR-10 the test accuracy falls as alpha grows, and from alpha = 100 on the
curves coincide with the linearized one (alpha = inf). On digits the weight drift falls like
1/alpha, and with a smooth activation (`--set network.activation=erf`) so do the change of the
tangent kernel and the distance to the linearized model; with `--set doubled=true` the last two fall
like 1/alpha^2. With ReLU, gates flip on real data and both fall only like alpha^(-1/2). The
negative control `--set center=false` trains alpha h(w) itself, which starts at alpha h(w0) and is
not lazy (alpha = inf then stands for the tangent of h, not centered).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from experiments.harness import bounds
from experiments.harness.bounds import (
    Count,
    Integer,
    Momentum,
    NonNegative,
    Positive,
    Scale,
    Values,
    check_batch,
    check_photographs,
)

__all__ = ["PRESETS", "Config", "run", "show"]


@dataclass(frozen=True)
class DataConfig:
    """Which examples, how many of them, and what figures and tables call them.

    Attributes:
        name: Data set; CIFAR-10 needs its folder.
        root: Folder of CIFAR-10; None takes the environment variable LAZYNET_DATA.
        download: Whether to fetch CIFAR-10 into its folder.
        n_train: Training examples.
        n_test: Test examples.
        label: What figures and tables call the data, None for its name.
    """

    name: Literal["digits", "cifar10"] = "digits"
    root: str | None = None
    download: bool = False
    n_train: Count = 500
    n_test: Count = 797
    label: str | None = None

    @property
    def title(self) -> str:
        """What figures and tables call the data."""
        return self.label or {"digits": "digits", "cifar10": "CIFAR-10"}[self.name]

    def check(self, prefix: str) -> None:
        """Refuses more examples than there are, and a folder that is not there."""
        check_photographs(self, prefix, self.n_train, self.n_test)


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture in the NTK parameterization, with a linear head.

    Attributes:
        name: Architecture; cnn and vgg11 need images.
        widths: Width of each hidden layer, or channels of each convolution.
        strides: Of each convolution of a cnn.
        activation: Of the hidden layers.
        W_std: Standard deviation of the weights times sqrt(fan_in).
        b_std: Standard deviation of the biases.
    """

    name: Literal["mlp", "cnn", "vgg11"] = "mlp"
    widths: Annotated[tuple[Count, ...], Values(different=False)] = (32, 32)
    strides: Annotated[tuple[Count, ...], Values(0, different=False)] = ()
    activation: Literal["relu", "erf", "gelu"] = "relu"
    W_std: Positive = math.sqrt(2.0)
    b_std: NonNegative = 0.1


@dataclass(frozen=True)
class TrainConfig:
    """Minibatch SGD with momentum; the learning rate is a fraction of the largest stable one of the initial NTK.

    Attributes:
        batch_size: Examples of a step.
        epochs: Passes over the training examples.
        lr_fraction: Learning rate over the largest stable one.
        momentum: Heavy-ball momentum.
        records: Points of the curves, about.
    """

    batch_size: Count = 50
    epochs: Count = 100
    lr_fraction: Positive = 0.1
    momentum: Momentum = 0.9
    records: Annotated[int, Integer(2)] = 24


@dataclass(frozen=True)
class Config:
    """The whole experiment; the regime follows from alpha and width.

    Attributes:
        data: Examples.
        network: Architecture.
        train: Training.
        alphas: Scales; inf is the linearized model.
        seeds: Number of draws of weights and batches.
        loss: What is trained.
        center: Whether outputs at the start are subtracted.
        doubled: Whether the network is the difference of two that start equal.
        precision: Of the computation.
        ntk_examples: Test examples of the compared tangent kernels.
        lr_examples: Training examples that give the largest stable learning rate.
        kernel_images: Examples of the infinite-width kernel, at most.
    """

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    alphas: Annotated[tuple[Scale, ...], Values()] = (0.1, 1.0, 10.0, 100.0, 1000.0, math.inf)
    seeds: Count = 3
    loss: Literal["mse", "cross_entropy"] = "mse"
    center: bool = True
    doubled: bool = False
    precision: Literal["float32", "float64"] = "float64"
    ntk_examples: Count = 100
    lr_examples: Count = 250
    kernel_images: Count = 1000

    def check(self, prefix: str) -> None:
        """Refuses networks that do not fit the data, and batches of more examples than there are."""
        network = self.network
        check_batch(self.train.batch_size, self.data.n_train, f"{prefix}train.batch_size")
        if self.data.name == "digits" and network.name != "mlp":
            raise ValueError(
                f"{prefix}network.name={network.name} needs images: use --set data.name=cifar10, or network.name=mlp."
            )
        if network.name == "cnn" and len(network.strides) != len(network.widths):
            raise ValueError(
                f"{prefix}network.strides={network.strides}, expected one stride for each of the widths "
                f"{network.widths}."
            )


_SMOKE_TRAIN = TrainConfig(epochs=20, records=12)
_CIFAR = DataConfig(name="cifar10", n_train=4000, n_test=4000)
_CNN = NetworkConfig("cnn", (32, 64, 64), (2, 2, 1), b_std=0.0)
_ALPHAS = (1.0, 10.0, 100.0, 1000.0, math.inf)

PRESETS = {
    "smoke": Config(train=_SMOKE_TRAIN, alphas=(1.0, 10.0, 100.0, math.inf), seeds=1),
    "smoke/cifar10": Config(
        data=DataConfig(name="cifar10", n_train=200, n_test=200),
        network=NetworkConfig("cnn", (8, 16), (2, 2), b_std=0.0),
        train=TrainConfig(batch_size=50, epochs=4, lr_fraction=0.4, records=6),
        alphas=(1.0, 100.0, math.inf),
        seeds=1,
        precision="float32",
        ntk_examples=20,
        lr_examples=50,
        kernel_images=32,
    ),
    "laptop": Config(),
    "laptop/cifar10": Config(
        data=_CIFAR,
        network=_CNN,
        train=TrainConfig(batch_size=100, epochs=50, lr_fraction=0.4, records=20),
        alphas=_ALPHAS,
        seeds=1,
        precision="float32",
        kernel_images=500,
    ),
    "paper": Config(
        data=DataConfig(name="cifar10", n_train=50_000, n_test=10_000),
        network=NetworkConfig("vgg11", b_std=0.0),
        train=TrainConfig(batch_size=128, epochs=70, lr_fraction=0.4, records=40),
        alphas=_ALPHAS,
        seeds=1,
        precision="float32",
        ntk_examples=20,
    ),
}


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Trains every cell (seed, alpha) that is not stored yet, draws the figures and returns the flat summary."""
    from experiments.harness.store import curve_arrays, save_arrays
    from experiments.lazy_vs_standard.cells import kernel_curve, load_data, train_cells
    from experiments.lazy_vs_standard.figures import draw

    bounds.check(config)
    train, test = load_data(config)
    cells, rates = train_cells(config, train, test, folder, console)
    clock = max(float(cell["curve"].time[-1]) for cell in cells.values())
    kernel, remark = kernel_curve(config, train, test, clock, folder, console)
    curves = {
        f"seed={seed}/alpha={alpha:g}": cell["curve"] for (seed, alpha), cell in cells.items()
    }
    curves |= {} if kernel is None else {"kernel": kernel}
    arrays = {
        f"{label}/{name}": value
        for label, curve in curves.items()
        for name, value in curve_arrays(curve).items()
    }
    save_arrays(folder / "trajectory.npz", arrays)
    summary = summarize(config, cells, rates, kernel, remark)
    draw(config, cells, kernel, summary, folder / "figures")
    return summary


def summarize(
    config: Config, cells: dict, rates: list[dict], kernel, remark: str
) -> dict[str, Any]:
    """The numbers that a reader compares: means and standard deviations over seeds, and slopes in alpha."""
    summary: dict[str, Any] = {
        "data": _data_label(config),
        "seeds": config.seeds,
        "precision": config.precision,
    }
    for name in (
        "test_accuracy",
        "train_loss",
        "param_drift",
        "ntk_change",
        "linearization_gap",
        "stability",
        "agreement",
    ):
        for alpha in config.alphas:
            values = [cells[seed, alpha]["final"].get(name) for seed in range(config.seeds)]
            if all(value is not None for value in values):
                summary[f"{name}/alpha={alpha:g}"] = float(np.mean(values))
                if config.seeds > 1:
                    summary[f"{name}_std/alpha={alpha:g}"] = float(np.std(values, ddof=1))
    for name in ("param_drift", "ntk_change", "linearization_gap"):
        summary[f"slope/{name}"] = _slope(config, summary, name)
    summary["diverged"] = [
        f"seed={s}/alpha={a:g}" for (s, a), c in cells.items() if c["curve"].diverged_at is not None
    ]
    if kernel is None:
        summary["kernel_left_out"] = remark
    else:
        summary["kernel_data"] = remark
        summary["test_accuracy/kernel"] = float(kernel.metrics["test_accuracy"][-1])
        summary["train_loss/kernel"] = float(kernel.metrics["train_loss"][-1])
    for seed, rate in enumerate(rates):
        summary |= {f"{name}/seed={seed}": value for name, value in rate.items()}
    summary["lr_over_lr_max"] = float(
        np.mean([rate["learning_rate"] / rate["lr_max"] for rate in rates])
    )
    return summary


def show(summary: dict[str, Any], console) -> None:
    """Prints the table of a summary; standard deviations over seeds beside the accuracies, all of them in the file."""
    from rich.table import Table

    shown = {
        name: title
        for name, title in COLUMNS.items()
        if any(key.startswith(f"{name}/") for key in summary)
    }
    table = Table("alpha", box=None, title=f"{summary['data']}, {summary['seeds']} seed(s)")
    for title in shown.values():
        table.add_column(title, no_wrap=True)
    for alpha in [key.split("=")[1] for key in summary if key.startswith("test_accuracy/alpha=")]:
        table.add_row(alpha, *(_cell(summary, name, f"alpha={alpha}") for name in shown))
    if "test_accuracy/kernel" in summary:
        table.add_row("kernel", *(_cell(summary, name, "kernel") for name in shown))
    console.print(table)
    for line in _remarks(summary):
        console.print(line, highlight=False, soft_wrap=True)


COLUMNS = {
    "train_loss": "train\nloss",
    "test_accuracy": "test\nacc. %",
    "param_drift": "weight\ndrift",
    "ntk_change": "NTK\nchange",
    "linearization_gap": "gap to\nlinear",
    "stability": "ReLU\nstable %",
    "agreement": "same as\ninf %",
}


def _remarks(summary):
    slopes = {
        name: summary.get(f"slope/{name}")
        for name in ("param_drift", "ntk_change", "linearization_gap")
    }
    if None not in slopes.values():
        named = [
            f"{COLUMNS[name]} {slope:.2f}".replace("\n", " ") for name, slope in slopes.items()
        ]
        yield "slopes in alpha: " + ", ".join(named)
    if summary.get("kernel_left_out"):
        yield f"no kernel row: {summary['kernel_left_out']}"
    elif summary.get("kernel_data"):
        yield f"kernel row: {summary['kernel_data']}"
    for seed in range(summary["seeds"]):
        rate, bound, top = (
            summary[f"{name}/seed={seed}"] for name in ("learning_rate", "lr_max", "lambda_max")
        )
        fraction = f"learning rate {rate:.4g} = {rate / bound:.2f} of the largest stable one"
        yield f"seed {seed}: lambda_max(NTK)/n = {top:.4g}, {fraction}, {bound:.4g}"
    if summary["diverged"]:
        yield f"diverged: {', '.join(summary['diverged'])}"


def _cell(summary, name, column):
    mean = summary.get(f"{name}/{column}")
    deviation = summary.get(f"{name}_std/{column}")
    if mean is None:
        return "-"
    if name in ("test_accuracy", "stability", "agreement"):
        digits = 2 if name == "stability" else 1
        text = f"{100 * mean:.{digits}f}"
        return (
            f"{text} ± {100 * deviation:.1f}"
            if name == "test_accuracy" and deviation is not None
            else text
        )
    return "0" if mean == 0 else f"{mean:.2g}"


def _slope(config, summary, name):
    from lazynet.diagnostics import fit_slope

    largest = 1000 if config.precision == "float64" else 100
    points = {a: summary.get(f"{name}/alpha={a:g}") for a in config.alphas if 10 <= a <= largest}
    points = {
        alpha: value
        for alpha, value in points.items()
        if value is not None and 0 < value < math.inf
    }
    return fit_slope(list(points), list(points.values())) if len(points) > 1 else None


def _data_label(config):
    data = config.data
    return f"{data.title}, {data.n_train} train and {data.n_test} test images"
