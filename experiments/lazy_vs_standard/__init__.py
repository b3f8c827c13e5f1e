"""One network trained at every alpha, from standard to linearized, beside its infinite-width kernel.

    python -m experiments run lazy_vs_standard                                              # digits, about a minute
    python -m experiments run lazy_vs_standard --preset smoke                               # digits, some seconds
    python -m experiments run lazy_vs_standard --set data.name=cifar10 --set data.root=DIR  # about 10 minutes
    python -m experiments run lazy_vs_standard --preset paper --set data.root=DIR           # VGG-11, meant for a GPU
    python -m experiments run lazy_vs_standard --set model=my_net.py:build                  # a network of one's own

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
from typing import Annotated, Any, Literal

import numpy as np
from rich.table import Table

from experiments.harness.bounds import (
    Count,
    Integer,
    Momentum,
    NonNegative,
    Positive,
    Scale,
    Values,
    check_batch,
)
from experiments.shared.data import DataConfig
from experiments.shared.training import diverged_at, final
from lazynet import guards

__all__ = ["PRESETS", "Config", "draw", "facts", "measure", "numbers", "report"]


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
    # ReLU halves second moments, which the factor 2 makes up for.
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
        augment: Whether images are cropped and flipped at random.
    """

    batch_size: Count = 50
    epochs: Count = 100
    lr_fraction: Positive = 0.1
    momentum: Momentum = 0.9
    records: Annotated[int, Integer(2)] = 24
    augment: bool = False


@dataclass(frozen=True)
class Config:
    """The whole experiment; the regime follows from alpha and width.

    Attributes:
        data: Examples.
        network: Architecture.
        model: A network of one's own instead, FILE.py:FUNCTION, of flax, equinox, lazynet's layers or (init, apply).
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
    model: str = ""
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
        """Refuses networks that do not fit the data, and more examples of a batch or kernel than there are."""
        network = self.network
        check_batch(self.train.batch_size, self.data.n_train, f"{prefix}train.batch_size")
        name = f"{prefix}ntk_examples"
        guards.count(
            name, self.ntk_examples, at_most=self.data.n_test, fix="the number of test examples"
        )
        if self.train.augment and self.data.name == "digits":
            raise ValueError(
                f"{prefix}train.augment=true needs images, which digits are not here: use --set data.name=cifar10."
            )
        if self.model:
            return
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


SLOPES = ("param_drift", "ntk_change", "linearization_gap")
AVERAGED = ("test_accuracy", "train_loss", *SLOPES, "stability", "agreement")


def measure(config: Config, store) -> dict[str, Any]:
    """Every training as `seed=0/alpha=1/...`, each seed's learning rates, and the flow of the infinite width."""
    from experiments.lazy_vs_standard import cells

    train, test = cells.load_data(config)
    arrays = cells.train_all(config, train, test, store)
    # The longest training: one that diverges ends earlier.
    clock = max(times[-1] for name, times in arrays.items() if name.endswith("curve/time"))
    return arrays | cells.kernel_curve(config, train, test, float(clock), store)


def numbers(config: Config, arrays) -> dict[str, Any]:
    """The numbers that a reader compares: means and standard deviations over seeds, and slopes in alpha."""
    data = config.data
    summary: dict[str, Any] = {
        "data": f"{data.title}, {data.n_train} train and {data.n_test} test images",
        "seeds": config.seeds,
        "precision": config.precision,
    }
    seeds = range(config.seeds)
    for name in AVERAGED:
        for alpha in config.alphas:
            cells = [f"seed={seed}/alpha={alpha:g}" for seed in seeds]
            values = [final(arrays, cell, name) for cell in cells]
            # No gap without a linearized run, no kernel at infinity or after divergence.
            if None not in values:
                summary[f"{name}/alpha={alpha:g}"] = float(np.mean(values))
                if config.seeds > 1:
                    summary[f"{name}_std/alpha={alpha:g}"] = float(np.std(values, ddof=1))
    for name in SLOPES:
        summary[f"slope/{name}"] = _slope(config, summary, name)
    cells = [f"seed={seed}/alpha={alpha:g}" for seed in seeds for alpha in config.alphas]
    summary["diverged"] = [cell for cell in cells if diverged_at(arrays, cell) is not None]
    for name in ("kernel_left_out", "kernel_data"):
        if name in arrays:
            summary[name] = str(arrays[name])
    for name in ("test_accuracy", "train_loss"):
        if "kernel_data" in arrays:
            curve = arrays[f"kernel/curve/metrics/{name}"]
            summary[f"{name}/kernel"] = float(curve[-1])
    for name in ("learning_rate", "lr_max", "lambda_max_over_n"):
        for seed in seeds:
            summary[f"{name}/seed={seed}"] = float(arrays[f"seed={seed}/{name}"])
    # The estimate of the bound differs by seed, its share does not.
    ratios = [summary[f"learning_rate/seed={i}"] / summary[f"lr_max/seed={i}"] for i in seeds]
    summary["lr_over_lr_max"] = float(np.mean(ratios))
    return summary


def facts(config: Config, arrays):
    """None: what is expected depends on the activation, the centering and the data, as the docstring says."""
    return ()


def report(summary):
    """One row for each alpha, with standard deviations beside the accuracies, and remarks."""
    measured = {key.partition("/")[0] for key in summary}
    shown = {name: title for name, title in COLUMNS.items() if name in measured}
    table = Table("alpha", box=None, title=f"{summary['data']}, {summary['seeds']} seed(s)")
    for title in shown.values():
        table.add_column(title, no_wrap=True)
    for alpha in [key.split("=")[1] for key in summary if key.startswith("test_accuracy/alpha=")]:
        table.add_row(alpha, *(_cell(summary, name, f"alpha={alpha}") for name in shown))
    if "test_accuracy/kernel" in summary:
        table.add_row("kernel", *(_cell(summary, name, "kernel") for name in shown))
    yield table
    yield from _remarks(summary)


def draw(config: Config, arrays):
    """Training curves, laziness against alpha, and stability of the gates, as far as they were measured."""
    from experiments.lazy_vs_standard import figures

    return figures.draw(config, arrays, numbers(config, arrays))


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
    slopes = {name: summary.get(f"slope/{name}") for name in SLOPES}
    if None not in slopes.values():
        words = [
            f"{COLUMNS[name]} {slope:.2f}".replace("\n", " ") for name, slope in slopes.items()
        ]
        yield f"slopes in alpha: {', '.join(words)}"
    if "kernel_left_out" in summary:
        yield f"no kernel row: {summary['kernel_left_out']}"
    if "kernel_data" in summary:
        yield f"kernel row: {summary['kernel_data']}"
    for seed in range(summary["seeds"]):
        rate = summary[f"learning_rate/seed={seed}"]
        bound = summary[f"lr_max/seed={seed}"]
        # Earlier versions called it `lambda_max`.
        top = summary.get(f"lambda_max_over_n/seed={seed}", summary.get(f"lambda_max/seed={seed}"))
        fraction = f"learning rate {rate:.4g} = {rate / bound:.2f} of the largest stable one"
        yield f"seed {seed}: lambda_max(NTK)/n = {top:.4g}, {fraction}, {bound:.4g}"
    if summary["diverged"]:
        yield f"diverged: {', '.join(summary['diverged'])}"


def _cell(summary, name, column):
    mean = summary.get(f"{name}/{column}")
    if mean is None:
        return "-"
    if name == "stability":
        return f"{100 * mean:.2f}"
    if name == "agreement":
        return f"{100 * mean:.1f}"
    if name == "test_accuracy":
        deviation = summary.get(f"{name}_std/{column}")
        return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
    return "0" if mean == 0 else f"{mean:.2g}"


def _slope(config, summary, name):
    from lazynet.diagnostics import fit_slope

    points = {}
    for alpha in fitted_alphas(config):
        value = summary.get(f"{name}/alpha={alpha:g}")
        if value is not None and 0 < value < math.inf:
            points[alpha] = value
    return fit_slope(list(points), list(points.values())) if len(points) > 1 else None


def fitted_alphas(config: Config) -> list[float]:
    """The scales of the slopes: lazy, and small enough for the precision."""
    # Below 10 training is not lazy yet; above 100 float32 keeps too few digits of the changes.
    largest = 1000 if config.precision == "float64" else 100
    return [alpha for alpha in config.alphas if 10 <= alpha <= largest]
