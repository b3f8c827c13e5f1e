"""Where laziness begins: VGG-11 between standard and linearized, at several widths, against kappa and changed gates.

    python -m experiments run laziness_onset --preset smoke          # digits, about a minute
    python -m experiments run laziness_onset --set data.root=DIR     # about 25 CPU minutes
    python -m experiments run laziness_onset --preset full --set data.root=DIR  # 50,000 images, about 10 hours
    python -m experiments run laziness_onset --preset seeds --set data.root=DIR  # 1/16 at three alphas, about 2 hours

For every width and seed, the network is trained at several alphas from the same weights on the same
batches, as in `cifar10_alpha_sweep`. Three questions:

1. At which alpha has the test accuracy lost half of what separates the standard network (alpha = 1)
   from its linearization (alpha = inf)? Between two alphas it is interpolated in log alpha.
2. Does kappa at initialization know that alpha? The trained function is centered, h(w0) = 0, hence
   the relative scale of `alpha h` is kappa(h)/alpha. If kappa decides, half of the accuracy is lost
   at the same kappa/alpha whatever the width.
3. Does the loss of accuracy go with the gates that change? Over all alphas and widths, the rank
   correlation of the share of ReLU gates that changed with the share of accuracy that is kept.

Expected, and checked: accuracy falls and gates become stable as alpha grows; half of the accuracy
is lost between alpha = 2 and alpha = 30, far below the 1e4 from which the network is its tangent
model in every prediction; accuracy goes with changed gates (rank correlation 0.9 or more). Measured
by the laptop preset on a JPEG copy of CIFAR-10: alpha = 3.9 at 1/16 and 6.5 at 1/8 of the channels,
kappa/alpha = 0.35 and 0.28 there; the correlation is 0.75, since networks without a gain have none
in their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np

from experiments.cifar10_alpha_sweep import FLOAT32_UP_TO, NetworkConfig
from experiments.cifar10_alpha_sweep import Config as Sweep
from experiments.harness import panels
from experiments.harness.bounds import Count, Positive, Scale, Values, check_batch
from experiments.harness.facts import within
from experiments.shared.data import DataConfig
from experiments.shared.training import diverged_at, final, named
from experiments.shared.vgg import PAPER_TRAIN, SMOKE_TRAIN, TrainConfig

__all__ = [
    "PRESETS",
    "TITLE",
    "Config",
    "draw",
    "facts",
    "halfway_alpha",
    "measure",
    "numbers",
    "report",
]

TITLE = "accuracy between standard and linearized"


@dataclass(frozen=True)
class Config:
    """Widths, scales and seeds of the trainings; scales must begin with 1 and end with inf.

    Attributes:
        data: Images.
        widths: Factors of the channels of VGG-11.
        gain: Factor of the standard deviations of the first weights.
        train: Training.
        alphas: Scales; inf is the linearized model.
        seeds: Number of draws of weights and batches.
        examples: Training images on which kappa is measured.
        iterations: Power iterations of the norms in kappa.
    """

    data: DataConfig = field(default_factory=DataConfig)
    widths: Annotated[tuple[Positive, ...], Values(1, increasing=True)] = (0.0625, 0.125)
    gain: Positive = 1.0
    train: TrainConfig = field(default_factory=TrainConfig)
    alphas: Annotated[tuple[Scale, ...], Values(3, increasing=True)] = (
        1.0,
        3.0,
        10.0,
        30.0,
        100.0,
        math.inf,
    )
    seeds: Count = 1
    examples: Count = 100
    iterations: Count = 10

    def check(self, prefix: str) -> None:
        """Refuses scales without both ends, and batches of more images than there are."""
        check_batch(self.train.batch_size, self.data.n_train, f"{prefix}train.batch_size")
        check_batch(self.examples, self.data.n_train, f"{prefix}examples")
        if self.alphas[0] != 1 or self.alphas[-1] != math.inf:
            raise ValueError(
                f"{prefix}alphas={self.alphas}: expected 1 first and inf last, between which accuracy is lost."
            )
        if self.alphas[-2] > FLOAT32_UP_TO:
            raise ValueError(
                f"{prefix}alphas={self.alphas}: expected finite ones up to {FLOAT32_UP_TO:g}, "
                "which keep their digits in float32."
            )


_FULL = Config(DataConfig("cifar10", n_train=50_000, n_test=10_000), train=PAPER_TRAIN, seeds=3)

PRESETS = {
    "smoke": Config(
        DataConfig("digits", n_train=200, n_test=200),
        widths=(0.0625,),
        train=SMOKE_TRAIN,
        alphas=(1.0, 100.0, math.inf),
        examples=20,
    ),
    "laptop": Config(DataConfig("cifar10", n_train=10_000, n_test=2000)),
    "full": _FULL,
    "seeds": replace(_FULL, widths=(0.0625,), alphas=(1.0, 10.0, math.inf)),
}


def measure(config: Config, store) -> dict[str, Any]:
    """Every training as `width=1/seed=0/alpha=1/...`, and kappa of every network as `width=1/seed=0/kappa`."""
    from experiments.cifar10_alpha_sweep.cells import gathered, train_all

    arrays: dict[str, Any] = {}
    for width in config.widths:
        for seed in range(config.seeds):
            network = _name(width, seed)
            trainings = store.within(network.replace("/", ","))
            sweep = Sweep(
                data=config.data,
                network=NetworkConfig(width, config.gain),
                train=config.train,
                alphas=config.alphas,
                seed=seed,
                # Enough, since `check` refuses finite alphas that lose their digits in it.
                precision="float32",
            )
            arrays |= named(network, gathered(sweep, train_all(sweep, trainings)))
            kappa = trainings.read("kappa") or trainings.write(
                "kappa", {"kappa": kappa_at_start(config, width, seed)}
            )
            arrays[f"{network}/kappa"] = kappa["kappa"]
    return arrays


def kappa_at_start(config: Config, width: float, seed: int) -> float:
    """The relative scale of the centered network at its first weights, on the first training images."""
    import jax

    import lazynet as ln
    from experiments.shared import vgg

    model = vgg.build(width, config.gain)
    images = vgg.load_large_images(config.data)
    problem = vgg.start(model, seed, images, "float32")
    examples = ln.Data(*(part[: config.examples] for part in problem.train))
    # The trained function starts at zero: kappa of alpha (h - h(w0)) is this one over alpha.
    centered = ln.center(model.apply, problem.params0)
    return ln.diagnostics.kappa(
        centered,
        problem.params0,
        examples,
        key=jax.random.key(seed),
        iterations=config.iterations,
        restarts=1,
    )


def halfway_alpha(alphas: Any, accuracies: Any) -> float:
    """The alpha at which accuracy is `(acc(1) + acc(inf)) / 2`, interpolated in log alpha; nan where there is none.

    Example:
        >>> round(halfway_alpha((1.0, 10.0, 100.0, math.inf), (0.8, 0.7, 0.5, 0.4)), 1)
        31.6
    """
    accuracies = np.asarray(accuracies, float)
    middle = (accuracies[0] + accuracies[-1]) / 2
    finite = np.isfinite(alphas)
    logs = np.log(np.asarray(alphas, float)[finite])
    above = accuracies[finite] - middle
    falls = (above[:-1] > 0) & (above[1:] <= 0)
    if not falls.any():
        return math.nan
    # The first of several: behind it noise may cross the middle again.
    before = int(np.argmax(falls))
    # Linear in log alpha between the two, as the abscissa of the figure is.
    share = above[before] / (above[before] - above[before + 1])
    return float(np.exp(logs[before] + share * (logs[before + 1] - logs[before])))


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Means over seeds: accuracy and gates of every width and alpha, the half-way alpha, kappa and their ratio.

    What diverged at one of the seeds has no accuracy and no gates.
    """
    cells = [f"{_name(width, seed)}/alpha={alpha:g}" for width, seed, alpha in _cells(config)]
    data = config.data
    summary: dict[str, Any] = {
        "data": f"{data.title}, {data.n_train} train and {data.n_test} test images",
        "seeds": config.seeds,
        "diverged": [cell for cell in cells if diverged_at(arrays, cell) is not None],
    }
    accuracy = _table(config, arrays, "test_accuracy")
    stability = _table(config, arrays, "stability")
    for i, width in enumerate(config.widths):
        for j, alpha in enumerate(config.alphas):
            # One that diverged makes the mean nan, which JSON does not have: there is no number then.
            if not np.isfinite(accuracy[i, :, j]).all():
                continue
            cell = f"width={width:g}/alpha={alpha:g}"
            summary[f"test_accuracy/{cell}"] = float(accuracy[i, :, j].mean())
            summary[f"test_accuracy_std/{cell}"] = float(accuracy[i, :, j].std())
            summary[f"stability/{cell}"] = float(stability[i, :, j].mean())
        kappa = np.mean([arrays[f"{_name(width, seed)}/kappa"] for seed in range(config.seeds)])
        half = halfway_alpha(config.alphas, accuracy[i].mean(0))
        summary[f"kappa/width={width:g}"] = float(kappa)
        if math.isfinite(half):
            summary[f"halfway_alpha/width={width:g}"] = half
            summary[f"kappa_over_halfway_alpha/width={width:g}"] = float(kappa) / half
    return summary


def facts(config: Config, arrays):
    """Accuracy falls and gates become stable in alpha; both go together; half of the accuracy is lost early."""
    from scipy.stats import spearmanr

    accuracy = _table(config, arrays, "test_accuracy").mean(1)
    stability = _table(config, arrays, "stability").mean(1)
    for i, width in enumerate(config.widths):
        largest_rise = float(np.diff(accuracy[i]).max())
        yield within(f"largest_rise_of_accuracy/width={width:g}", largest_rise, at_most=0.02)
        smallest_step = float(np.diff(stability[i]).min())
        yield within(f"smallest_rise_of_stability/width={width:g}", smallest_step, at_least=-0.005)
        if config.data.teaches_features:
            half = halfway_alpha(config.alphas, accuracy[i])
            yield within(f"halfway/width={width:g}", half, at_least=2, at_most=30)
    if config.data.teaches_features:
        # Shares, not accuracies: networks of all widths fall from one to zero.
        kept = kept_share(accuracy)
        correlation = spearmanr((1 - stability).ravel(), kept.ravel()).statistic
        yield within("correlation_of_gates_and_accuracy", float(correlation), at_least=0.9)


def kept_share(accuracy: np.ndarray) -> np.ndarray:
    """What is left of the gain over the linearized model, `(acc - acc(inf)) / (acc(1) - acc(inf))`, `[..., alphas]`."""
    standard = accuracy[..., :1]
    linearized = accuracy[..., -1:]
    return (accuracy - linearized) / (standard - linearized)


def report(summary):
    """One row for each width and alpha, then one for each width."""
    from rich.table import Table

    yield f"{summary['data']}, {summary['seeds']} seed(s)"
    accuracies = Table("width", "alpha", "test acc. %", "ReLU gates stable %", box=None)
    for cell in [key.removeprefix("stability/") for key in summary if key.startswith("stability/")]:
        width, alpha = cell.split("/")
        mean = 100 * summary[f"test_accuracy/{cell}"]
        spread = 100 * summary[f"test_accuracy_std/{cell}"]
        stable = 100 * summary[f"stability/{cell}"]
        accuracies.add_row(
            width.removeprefix("width="),
            alpha.removeprefix("alpha="),
            f"{mean:.1f} ± {spread:.1f}",
            f"{stable:.1f}",
        )
    yield accuracies
    table = Table("width", "kappa at the start", "half-way alpha", "kappa / alpha there", box=None)
    for width in [key.removeprefix("kappa/") for key in summary if key.startswith("kappa/")]:
        values = [
            summary.get(f"{name}/{width}")
            for name in ("kappa", "halfway_alpha", "kappa_over_halfway_alpha")
        ]
        table.add_row(
            width.removeprefix("width="),
            *("-" if value is None else f"{value:.3g}" for value in values),
        )
    yield table
    for cell in summary["diverged"]:
        yield f"{cell} diverged"


def draw(config: Config, arrays):
    """Accuracy against alpha with the half-way points; what is kept against kappa/alpha, and against changed gates."""
    from matplotlib.figure import Figure

    from lazynet import plots

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    against_alpha, against_kappa, against_gates = figure.subplots(1, 3)
    # A marker at every point, since there are few; spaced markers fail on a curve of nan.
    styles = [style | {"markevery": None} for style in plots.curve_styles(len(config.widths))]
    draw_accuracy(against_alpha, config, arrays, styles)
    draw_kept(against_kappa, against_gates, config, arrays, styles)
    panels.finish(against_alpha, "accuracy")
    panels.finish(against_kappa, "kappa")
    panels.finish(against_gates, "gates")
    figure.suptitle(
        f"VGG-11: {config.data.title}, {config.data.n_train} images, "
        f"{config.train.epochs} epochs, {config.seeds} seed(s)",
        fontsize=11,
    )
    return figure


def draw_accuracy(ax, config: Config, arrays, styles) -> None:
    """Test accuracy against alpha with its spread over seeds, and where half of the gain is lost."""
    finite = np.isfinite(config.alphas)
    alphas = np.asarray(config.alphas)[finite]
    accuracy = 100 * _table(config, arrays, "test_accuracy")
    # First: without a finite point behind it, matplotlib takes no logarithmic axis.
    ax.set_xscale("log")
    for width, values, style in zip(config.widths, accuracy, styles, strict=True):
        mean = values.mean(0)
        spread = values.std(0)
        ax.errorbar(
            alphas, mean[finite], spread[finite], label=f"width {width:g}", capsize=2, **style
        )
        ax.axhline(mean[-1], color=style["color"], linewidth=0.8, linestyle=":")
        lowest = mean[-1] - spread[-1]
        highest = mean[-1] + spread[-1]
        ax.axhspan(lowest, highest, color=style["color"], alpha=0.12, linewidth=0)
        half = halfway_alpha(config.alphas, mean)
        ax.axvline(half, color=style["color"], linewidth=0.8, linestyle="--")
    ax.set(
        xlabel=r"scale $\alpha$ (dotted: $\alpha=\infty$, dashed: half-way)",
        ylabel="test accuracy (%)",
    )


def draw_kept(against_kappa, against_gates, config: Config, arrays, styles) -> None:
    """What is kept of the gain over the linearized network, against kappa/alpha and against changed gates."""
    from matplotlib.ticker import NullFormatter

    finite = np.isfinite(config.alphas)
    alphas = np.asarray(config.alphas)[finite]
    changed = 100 * (1 - _table(config, arrays, "stability").mean(1))
    kept = 100 * kept_share(_table(config, arrays, "test_accuracy").mean(1))
    for i, (width, style) in enumerate(zip(config.widths, styles, strict=True)):
        kappas = [arrays[f"{_name(width, seed)}/kappa"] for seed in range(config.seeds)]
        label = f"width {width:g}"
        against_kappa.plot(np.mean(kappas) / alphas, kept[i, finite], label=label, **style)
        against_gates.plot(changed[i], kept[i], label=label, **style)
    ylabel = "kept of the gain over linearized (%)"
    against_kappa.set(
        xscale="log", xlabel=r"relative scale at the start, $\kappa/\alpha$", ylabel=ylabel
    )
    # Over less than a decade, matplotlib names the ticks between, one over the other.
    against_kappa.xaxis.set_minor_formatter(NullFormatter())
    against_gates.set(xlabel="ReLU gates changed by training (%)", ylabel=ylabel)


def _name(width: float, seed: int) -> str:
    return f"width={width:g}/seed={seed}"


def _cells(config: Config):
    """All trainings: width, seed, alpha."""
    for width in config.widths:
        for seed in range(config.seeds):
            for alpha in config.alphas:
                yield width, seed, alpha


def _table(config: Config, arrays, name: str) -> np.ndarray:
    """A number of the end of every training `[widths, seeds, alphas]`; nan where it diverged."""
    cells = [f"{_name(width, seed)}/alpha={alpha:g}" for width, seed, alpha in _cells(config)]
    # Outputs that are not finite have an accuracy too, that of misses.
    values = [
        final(arrays, cell, name) if diverged_at(arrays, cell) is None else math.nan
        for cell in cells
    ]
    shape = (len(config.widths), config.seeds, len(config.alphas))
    return np.array(values, float).reshape(shape)
