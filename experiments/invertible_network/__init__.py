"""A network that can be undone, beside one of the same size that cannot, at initialization, trained and linearized.

    python -m experiments run invertible_network --preset smoke                # digits, less than a minute
    python -m experiments run invertible_network --set data.root=DIR           # 5 CPU minutes

An i-RevNet, stages of [squeeze, additive couplings] and a pooled linear head, loses nothing before
its pooling; a residual network with the same branches, strided convolutions in place of squeezes,
and as many parameters does. Expected:

- images come back from every depth to the rounding of float32, before and after training at alpha
  = 1; the network of strides gives them back by gradient descent, up to an error that grows with
  depth;
- the linearized network is not inverted by this: its features `B(w0) + DB(w0) u` are no image of
  couplings, and the inverse at w0 is off by as much as the tangent has moved them;
- couplings keep volume: the logarithms of the singular values of the Jacobian sum to zero, trained
  or not; those of the tangent network do not;
- along the straight line between two feature vectors the network's outputs are affine, since the
  head is, and every point is an image; along the line between two images they are not;
- training at alpha = 1 spreads the singular values;
- being invertible costs no accuracy: within five points of the other network, in each regime.

On digits (smoke preset) the linearized network's features come back with an error of 35 %, those of
the network of strides with one of 79 % after two blocks and 25 % after the first convolution, and
training at alpha = 1 multiplies the condition number by 1.3. On 2,000 photographs of CIFAR-10 (JPEG)
39.1 % and 38.4 % are classified at alpha = 1, 34.1 % and 34.4 % linearized.

Features are those before the pooling. The gradient descent starts at zero, in standardized pixels.
References: Jacobsen, Smeulders and Oyallon (2018); Gomez et al. (2017); Mahendran and Vedaldi
(2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from rich.table import Table

from experiments.harness.bounds import Count, Integer, Positive, Scale, Seed, Values
from experiments.harness.facts import within
from experiments.shared.data import DataConfig

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers", "report"]

START = "initialization"
NETWORKS = ("invertible", "residual")


@dataclass(frozen=True)
class Config:
    """Images, size of the networks, scales, training, and how many images the questions are asked of.

    Attributes:
        data: Photographs.
        blocks: Couplings of each stage, after a squeeze each.
        width: Channels inside the branches.
        alphas: Scales, of which 1 is the network and inf its linearization.
        steps: Steps of gradient descent with momentum.
        batch_size: Examples of a step.
        lr_fraction: Learning rate as a share of the largest stable one.
        examples: Images that are reconstructed, and between which lines are drawn.
        jacobians: Images whose Jacobians are decomposed.
        descent: Steps of gradient descent to images with given features.
        seed: Of weights and batches.
        precision: Of the training.
    """

    data: DataConfig = field(
        default_factory=lambda: DataConfig("cifar10", n_train=2000, n_test=1000)
    )
    blocks: Annotated[tuple[Count, ...], Values(1, different=False)] = (2, 2, 2)
    width: Count = 32
    alphas: Annotated[tuple[Scale, ...], Values()] = (1.0, math.inf)
    steps: Annotated[int, Integer(10)] = 1000
    batch_size: Count = 64
    lr_fraction: Positive = 0.3
    examples: Annotated[int, Integer(2)] = 8
    jacobians: Count = 1
    descent: Count = 300
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses images that cannot be squeezed so often, and more images than there are."""
        # Digits are not enlarged here: 8 pixels can be squeezed three times.
        side = {"digits": 8, "cifar10": 32}[self.data.name]
        if side % 2 ** len(self.blocks):
            raise ValueError(
                f"{prefix}blocks={self.blocks}, expected at most {side.bit_length() - 1} stages: each halves the "
                f"{side} pixels of a side."
            )
        few = min(self.data.n_test, self.data.n_train)
        if max(self.examples, self.jacobians, self.batch_size) > few:
            raise ValueError(
                f"{prefix}examples={self.examples}, {prefix}jacobians={self.jacobians}, {prefix}batch_size="
                f"{self.batch_size}: expected at most {few}, the number of images."
            )


PRESETS = {
    "smoke": Config(
        DataConfig("digits", n_train=300, n_test=300),
        blocks=(1, 1),
        width=16,
        steps=100,
        batch_size=50,
        examples=4,
        jacobians=4,
        descent=100,
    ),
    "laptop": Config(),
}
TITLE = "{title}"


def measure(config: Config, store) -> dict[str, Any]:
    """Accuracies, reconstructions, lines and singular values, `NETWORK/REGIME/NAME`."""
    from experiments.invertible_network import cells

    arrays: dict[str, Any] = {}
    for network in NETWORKS:
        for alpha in (None, *config.alphas):
            cell = f"{network},{regime(alpha)}"
            part = store.read(cell)
            if part is None:
                store.console.print(cell.replace(",", ", "), highlight=False)
                checkpoint = store.checkpoint(cell)
                part = store.write(cell, cells.answers(config, network, alpha, checkpoint))
            arrays |= {f"{network}/{regime(alpha)}/{name}": value for name, value in part.items()}
    return arrays


def regime(alpha: float | None) -> str:
    """What figures and tables call a scale, None for the network that is not trained."""
    return START if alpha is None else f"alpha={alpha:g}"


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Accuracies, sizes, errors of the deepest reconstruction, conditions of Jacobians, bends of lines."""
    summary: dict[str, Any] = {"title": f"{config.data.title}, {config.data.n_train} images"}
    for name, value in arrays.items():
        entry = name.split("/")[2]
        if entry == "reconstruction":
            summary[name] = float(value[-1])
        elif entry == "singular_values":
            cell = name.removesuffix("/singular_values")
            summary[f"{cell}/condition"] = float(np.median(value[:, 0] / value[:, -1]))
        elif np.ndim(value) == 0:
            summary[name] = float(value)
    return summary


def facts(config: Config, arrays):
    """Exact inverses, volumes and lines, each with what breaks them, and accuracies beside each other."""
    trained = "invertible/alpha=1"
    for name in (f"invertible/{START}", trained):
        error = np.max(arrays[f"{name}/reconstruction"])
        yield within(f"reconstruction/{name}", error, at_most=1e-4)
        yield within(f"volume/{name}", _volume(arrays, name), at_most=1e-3)
        yield within(f"line/{name}/features", arrays[f"{name}/line_features"], at_most=1e-4)
        yield within(f"line/{name}/pixels", arrays[f"{name}/line_pixels"], at_least=0.01)
    tangent = "invertible/alpha=inf"
    if f"{tangent}/reconstruction" in arrays:
        # The inverse at w0 is exact for B(w0), and off by the tangent DB(w0) u that is added.
        error = arrays[f"{tangent}/reconstruction"][-1]
        yield within(f"reconstruction/{tangent}", error, at_least=1e-3)
        yield within(f"volume/{tangent}", _volume(arrays, tangent), at_least=0.01)
    descent = arrays["residual/alpha=1/reconstruction"]
    yield within("reconstruction/residual/last", descent[-1], at_least=0.01)
    yield within("reconstruction/residual/last_over_first", descent[-1] / descent[0], at_least=1.1)
    found = numbers(config, arrays)
    ratio = found[f"{trained}/condition"] / found[f"invertible/{START}/condition"]
    yield within("condition/trained_over_start", ratio, at_least=1.1)
    for alpha in config.alphas:
        names = [f"{network}/{regime(alpha)}/test_accuracy" for network in NETWORKS]
        gap = found[names[0]] - found[names[1]]
        yield within(f"accuracy/invertible_over_residual/{regime(alpha)}", gap, at_least=-0.05)


def report(summary):
    """The two networks in each regime."""
    columns = ("parameters", "test_accuracy", "reconstruction", "condition")
    table = Table("network", "regime", *(name.replace("_", " ") for name in columns), box=None)
    for cell in [key.removesuffix("/parameters") for key in summary if key.endswith("/parameters")]:
        values = [summary.get(f"{cell}/{name}") for name in columns]
        shown = ["" if value is None else f"{value:,.3g}" for value in values[1:]]
        table.add_row(*cell.split("/"), f"{values[0]:,.0f}", *shown)
    yield table


def draw(config: Config, arrays):
    """Curves and spectra, and the images."""
    from experiments.invertible_network import figures

    return figures.draw(config, arrays)


def _volume(arrays, cell):
    """Mean over images of `|log |det J||`."""
    # log |det J| is the sum of the logarithms of the singular values.
    return np.abs(np.log(arrays[f"{cell}/singular_values"]).sum(axis=1)).mean()
