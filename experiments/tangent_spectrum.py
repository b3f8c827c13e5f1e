"""The spectrum of the tangent kernel of VGG-11 at initialization: photographs against random images.

    python -m experiments run tangent_spectrum --set data.root=DIR                 # about 10 minutes of CPU time
    python -m experiments run tangent_spectrum --preset smoke                      # digits, about 40 CPU seconds
    python -m experiments run tangent_spectrum --preset paper --set data.root=DIR  # full width, meant for a GPU

The full kernel Theta[i, j, a, b] of 495 images and 10 outputs is a matrix of 4950 rows; its modes
are learned one after the other, at the rates lambda_i / n. Random images have uniformly distributed
bytes as pixels and are standardized like the photographs. Expected:

- the kernel is ill-conditioned, above 1e4 (already with 150 photographs and width 1/8 or 1/4: 1.2e5
  and 1.8e4);
- the ten largest eigenvalues belong to nearly constant outputs, one for each class. All random
  images look alike to the network, so that these modes take most of their trace: the effective rank
  of the kernel is *smaller* with random images. Behind them the order is reversed, and the spectrum
  of photographs decays faster: lambda_11 / lambda_m is 5 to 6 times that of random images (1.6
  times with digits). The effective rank of the kernel centered over images, which hardly sees the
  small eigenvalues, is not told apart so clearly: 0.9 times that of random images or 1.1 times,
  depending on the width;
- the first tenth of the modes carries more of the labels than of the same labels in another order,
  and with random images no more (the negative control).

The reference is appendix C of Chizat, Oyallon and Bach (2019) and its code. It draws Xavier weights
of gain 2 in the standard parametrization, with biases that are trained. Here the parametrization is
the NTK's and there are no biases, so W_std multiplies the whole kernel by W_std^18 and the
normalized spectrum does not depend on it; in the standard parametrization the kernel of each layer
has its own weight, proportional to its fan-in.

The kernel is computed tile by tile into the run folder, where a killed run goes on; `memory_gib`
bounds what a tile holds beside it (98 MB in float32) and the weights. Layers on maps of at most 4 x
4 pixels need no Jacobians; of the others, those of an image take 0.04 GB at full width (float32).
Eigenvalues are computed in float64 on the host, for which a matrix of 4950 rows takes about 1 GB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import bounds, facts, store
from experiments.harness.bounds import Integer, Positive, Seed, check_photographs
from experiments.shared.vgg import enlarged
from lazynet import datasets, empirical, guards, linalg, zoo
from lazynet.models.model import Model
from lazynet.records import Data

__all__ = ["PRESETS", "Config", "run", "show"]

IMAGES = ("photographs", "random")
CLASSES = 10


@dataclass(frozen=True)
class DataConfig:
    """Which photographs, and what figures and tables call them.

    Attributes:
        name: Data set; CIFAR-10 needs its folder.
        root: Folder of CIFAR-10; None takes the environment variable LAZYNET_DATA.
        download: Whether to fetch CIFAR-10 into its folder.
        label: What figures and tables call the data, None for its name.
    """

    name: Literal["digits", "cifar10"] = "cifar10"
    root: str | None = None
    download: bool = False
    label: str | None = None

    @property
    def title(self) -> str:
        """What figures and tables call the photographs."""
        return self.label or {"digits": "digits", "cifar10": "CIFAR-10"}[self.name]


@dataclass(frozen=True)
class Config:
    """Images, width of the network as a factor of VGG-11's, orders of the labels, memory and precision.

    Attributes:
        data: Photographs.
        n: Number of images.
        width: Factor of the channels of VGG-11.
        shuffles: Random orders of the labels.
        seed: Of weights, random images and orders.
        memory_gib: Memory of a tile of the kernel, in GiB.
        precision: Of the computation.
    """

    data: DataConfig = field(default_factory=DataConfig)
    n: Annotated[int, Integer(20)] = 495
    width: Positive = 0.25
    shuffles: Annotated[int, Integer(2)] = 100
    seed: Seed = 0
    memory_gib: Positive = 2.0
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses more images than there are."""
        check_photographs(self.data, f"{prefix}data.")
        guards.count(f"{prefix}n", self.n, at_most=1796 if self.data.name == "digits" else 50_000)


PRESETS = {
    "smoke": Config(DataConfig("digits"), n=60, width=1 / 16),
    "laptop": Config(),
    "paper": Config(width=1.0, memory_gib=16.0),
}


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Computes and decomposes the kernels that are not stored yet, draws the figure and returns the facts."""
    bounds.check(config)
    sets = load_images(config)
    cells = {}
    model, params = network(config)
    for name in IMAGES:
        path = folder / "cells" / f"{name}.npz"
        kernel = folder / "kernels" / name
        if not path.exists():
            console.print(
                f"tangent kernel of {config.n} images: {_titles(config)[name]}", highlight=False
            )
        cells[name] = store.stored_arrays(
            path, partial(_measure, config, model, params, sets[name], kernel, console)
        )
    _draw(config, cells, folder / "figures" / "spectrum.png")
    title = f"VGG-11 x {config.width:g}, {config.n} images: {config.data.title}"
    return facts.summarize(list(_facts(cells))) | _numbers(cells) | {"title": title}


def show(summary: dict[str, Any], console) -> None:
    """Prints the table of facts and the numbers of both kernels."""
    from rich.table import Table

    facts.show(summary, console, summary["title"])
    table = Table(
        "images", "lambda_1/lambda_m", "lambda_11/lambda_m", "effective rank", "centered", box=None
    )
    for name in IMAGES:
        columns = (
            "condition",
            "condition_behind_constants",
            "effective_rank",
            "effective_rank_centered",
        )
        table.add_row(name, *(f"{summary[f'{column}/{name}']:.4g}" for column in columns))
    console.print(table)


def load_images(config: Config) -> dict[str, Data]:
    """Photographs and random images, both standardized by the channels of the photographs, with their labels centered.

    Random images get the labels of the photographs, which then mean nothing.
    """
    photographs = _photographs(config)
    pixels = jax.random.bits(
        jax.random.fold_in(jax.random.key(config.seed), 0), photographs.x.shape, jnp.uint8
    )
    random = Data(np.asarray(pixels, photographs.x.dtype) / 255, photographs.y)
    both = datasets.standardize(photographs, random, center="channel", scale="channel")
    return {name: datasets.center_targets(part) for name, part in zip(IMAGES, both, strict=True)}


def network(config: Config) -> tuple[Model, Any]:
    """The network and its weights at initialization."""
    model = zoo.vgg11(CLASSES, width=config.width, b_std=None)
    image = jnp.ones((1, 32, 32, 3), config.precision)
    return model, jax.jit(model.init)(jax.random.fold_in(jax.random.key(config.seed), 1), image)


def decompose(kernel: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues in descending order, `[m]`, and the share of each target's energy in the modes up to i, `[m, c]`."""
    eigen = linalg.eigh(np.asarray(linalg.kernel_matrix(kernel), np.float64))
    energy = (eigen.vectors[:, ::-1].T @ targets) ** 2
    return eigen.values[::-1], np.cumsum(energy, axis=0) / np.sum(targets**2, axis=0)


def effective_rank(kernel: np.ndarray) -> float:
    """Participation ratio `(sum lambda)^2 / sum lambda^2 = (tr K)^2 / |K|^2` of a kernel `[n, n, k, k]`."""
    return float(np.einsum("iiaa->", kernel) ** 2 / np.sum(kernel**2))


def centered(kernel: np.ndarray) -> np.ndarray:
    """The kernel `[n, n, k, k]` on outputs whose mean over images is zero."""
    rows = kernel - kernel.mean(axis=0, keepdims=True)
    return rows - rows.mean(axis=1, keepdims=True)


def label_columns(config: Config, y: np.ndarray) -> np.ndarray:
    """The labels and their other orders as columns, `[n k, 1 + shuffles]`."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    orders = [
        jax.random.permutation(jax.random.fold_in(key, i), len(y)) for i in range(config.shuffles)
    ]
    return np.stack([y.ravel(), *(y[np.asarray(order)].ravel() for order in orders)], axis=1)


def _photographs(config: Config) -> Data:
    """Images `[n, 32, 32, 3]` in [0, 1]; digits are enlarged to this size, each color the same."""
    if config.data.name == "cifar10":
        root = datasets.data_root(config.data.root)
        return datasets.cifar10(
            root, download=config.data.download, n_train=config.n, n_test=CLASSES
        )[0]
    digits, _ = datasets.digits(config.n, 1)
    return digits._replace(x=enlarged(digits.x).repeat(3, axis=3))


def _measure(
    config: Config, model: Model, params: Any, data: Data, folder: Path, console
) -> dict[str, Any]:
    """Spectrum, label energies and effective ranks of the kernel, which a killed run goes on with in its folder."""
    x = jnp.asarray(data.x, config.precision)
    memory = int(config.memory_gib * 2**30)
    settings: dict[str, Any] = {"memory": memory, "store": folder, "progress": console.is_terminal}
    kernel = np.asarray(empirical.empirical_ntk(model.apply, params, x, **settings), np.float64)
    values, energy = decompose(kernel, label_columns(config, np.asarray(data.y, np.float64)))
    ranks = {"rank": effective_rank(kernel), "rank_centered": effective_rank(centered(kernel))}
    return {"values": values, "energy": energy, **ranks}


def _numbers(cells) -> dict[str, Any]:
    numbers = {}
    for name, cell in cells.items():
        numbers[f"condition/{name}"] = float(cell["values"][0] / cell["values"][-1])
        numbers[f"condition_behind_constants/{name}"] = _decay(cell)
        numbers[f"effective_rank/{name}"] = float(cell["rank"])
        numbers[f"effective_rank_centered/{name}"] = float(cell["rank_centered"])
        numbers[f"label_energy/{name}"], numbers[f"label_energy_shuffled/{name}"], _ = (
            _label_energy(cell)
        )
    return numbers


def _facts(cells):
    photographs, random = (cells[name] for name in IMAGES)
    for name, cell in cells.items():
        yield facts.within(
            f"condition_number/{name}", cell["values"][0] / cell["values"][-1], at_least=300
        )
    yield facts.within(
        "decay_behind_constants/over_random", _decay(photographs) / _decay(random), at_least=1.2
    )
    whole = photographs["rank"] / random["rank"]
    yield facts.within("effective_rank/over_random", whole, at_least=1.0)
    for name, limits in {
        "photographs": {"at_least": 2.0},
        "random": {"at_least": -3.0, "at_most": 3.0},
    }.items():
        own, mean, deviation = _label_energy(cells[name])
        yield facts.within(f"label_energy_in_deviations/{name}", (own - mean) / deviation, **limits)


def _decay(cell) -> float:
    """`lambda_11 / lambda_m`: the condition number behind the modes of constant outputs."""
    return float(cell["values"][CLASSES] / cell["values"][-1])


def _label_energy(cell) -> tuple[float, float, float]:
    """Share of the labels in the first tenth of the modes; mean and deviation of that of their other orders."""
    own, *others = cell["energy"][len(cell["energy"]) // 10 - 1]
    return float(own), float(np.mean(others)), float(np.std(others, ddof=1))


def _titles(config: Config) -> dict[str, str]:
    return {"photographs": config.data.title, "random": "random bytes"}


def _draw(config: Config, cells, path: Path) -> None:
    from matplotlib.figure import Figure

    from lazynet import plots

    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    titles = _titles(config)
    spectra = {titles[name]: cell["values"] / cell["values"][0] for name, cell in cells.items()}
    plots.plot_spectrum(spectra, ylabel=r"eigenvalue $\lambda_i / \lambda_1$", ax=left)
    for style, (name, cell) in zip(plots.curve_styles(len(cells)), cells.items(), strict=True):
        _draw_energy(right, cell["energy"], titles[name], {**style, "marker": ""})
    right.set(
        xlabel="number $i$ of modes",
        ylabel="share of the labels' energy",
        xscale="log",
        yscale="log",
    )
    right.set_ylim(1e-3, 1.5)
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.suptitle(
        f"tangent kernel at initialization, VGG-11 × {config.width:g}, {config.n} images",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.save(figure, path)


def _draw_energy(ax, energy: np.ndarray, title: str, style: dict[str, Any]) -> None:
    """The labels' cumulative energy, and a band of two deviations around that of their other orders."""
    modes = np.arange(1, len(energy) + 1)
    others = energy[:, 1:]
    mean = others.mean(axis=1)
    spread = 2 * others.std(axis=1, ddof=1)
    ax.plot(modes, energy[:, 0], label=f"{title}, labels", **style)
    ax.fill_between(
        modes,
        mean - spread,
        mean + spread,
        color=style["color"],
        alpha=0.2,
        lw=0,
        label=f"{title}, labels shuffled",
    )
