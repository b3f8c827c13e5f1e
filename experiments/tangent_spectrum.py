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
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from experiments.harness.bounds import Integer, Positive, Seed
from experiments.harness.facts import within
from experiments.shared.data import Photographs, enlarged, load_images
from lazynet import datasets, empirical, guards, linalg, plots, zoo
from lazynet.models.model import Model
from lazynet.records import Data

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers", "report"]

IMAGES = ("photographs", "random")
CLASSES = 10


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

    data: Photographs = field(default_factory=lambda: Photographs("cifar10"))
    n: Annotated[int, Integer(20)] = 495
    width: Positive = 0.25
    shuffles: Annotated[int, Integer(2)] = 100
    seed: Seed = 0
    memory_gib: Positive = 2.0
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses more images than there are."""
        # Of 1,797 digits ten are drawn as test images, which are not used.
        guards.count(f"{prefix}n", self.n, at_most=1787 if self.data.name == "digits" else 50_000)


PRESETS = {
    "smoke": Config(Photographs("digits"), n=60, width=1 / 16),
    "laptop": Config(),
    "paper": Config(width=1.0, memory_gib=16.0),
}


TITLE = "{title}"

TITLES = {
    "condition": "lambda_1/lambda_m",
    "condition_behind_constants": "lambda_11/lambda_m",
    "effective_rank": "effective rank",
    "effective_rank_centered": "centered",
}


def measure(config: Config, store) -> dict[str, Any]:
    """Eigenvalues, energies of the labels and effective ranks of both kernels, as `photographs/values` and so on."""
    sets = load_sets(config)
    model, params = network(config)
    arrays: dict[str, Any] = {}
    for name in IMAGES:
        cell = store.read(name)
        if cell is None:
            title = _titles(config)[name]
            store.console.print(f"tangent kernel of {config.n} images: {title}", highlight=False)
            cell = store.write(name, _decomposed(config, model, params, sets[name], name, store))
        arrays |= {f"{name}/{entry}": value for entry, value in cell.items()}
    return arrays


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Condition numbers, effective ranks and the labels' energy."""
    summary: dict[str, Any] = {}
    for name in IMAGES:
        values = arrays[f"{name}/values"]
        labels, shuffled, _ = _label_energy(arrays[f"{name}/energy"])
        summary[f"condition/{name}"] = float(values[0] / values[-1])
        summary[f"condition_behind_constants/{name}"] = _decay(values)
        summary[f"effective_rank/{name}"] = float(arrays[f"{name}/rank"])
        summary[f"effective_rank_centered/{name}"] = float(arrays[f"{name}/rank_centered"])
        summary[f"label_energy/{name}"] = labels
        summary[f"label_energy_shuffled/{name}"] = shuffled
    title = f"VGG-11 x {config.width:g}, {config.n} images: {config.data.title}"
    return summary | {"title": title}


def facts(config: Config, arrays):
    """Both kernels are ill-conditioned; what sets photographs apart; and the labels' energy beside its control."""
    for name in IMAGES:
        values = arrays[f"{name}/values"]
        yield within(f"condition_number/{name}", values[0] / values[-1], at_least=300)
    decay = _decay(arrays["photographs/values"]) / _decay(arrays["random/values"])
    yield within("decay_behind_constants/over_random", decay, at_least=1.2)
    rank = arrays["photographs/rank"] / arrays["random/rank"]
    yield within("effective_rank/over_random", rank, at_least=1.0)
    limits = {"photographs": {"at_least": 2.0}, "random": {"at_least": -3.0, "at_most": 3.0}}
    for name in IMAGES:
        labels, mean, deviation = _label_energy(arrays[f"{name}/energy"])
        off = (labels - mean) / deviation
        yield within(f"label_energy_in_deviations/{name}", off, **limits[name])


def report(summary):
    """The numbers of both kernels."""
    table = Table("images", *TITLES.values(), box=None)
    for name in IMAGES:
        table.add_row(name, *(f"{summary[f'{column}/{name}']:.4g}" for column in TITLES))
    yield table


def draw(config: Config, arrays):
    """Both spectra, and the labels' energy in the leading modes."""
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    titles = _titles(config)
    spectra = {}
    for style, name in zip(plots.curve_styles(len(IMAGES)), IMAGES, strict=True):
        values = arrays[f"{name}/values"]
        spectra[titles[name]] = values / values[0]
        _draw_energy(right, arrays[f"{name}/energy"], titles[name], {**style, "marker": ""})
    plots.plot_spectrum(spectra, ylabel=r"eigenvalue $\lambda_i / \lambda_1$", ax=left)
    right.set(xscale="log", yscale="log", ylim=(1e-3, 1.5))
    right.set(xlabel="number $i$ of modes", ylabel="share of the labels' energy")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    network_title = f"VGG-11 × {config.width:g}, {config.n} images"
    figure.suptitle(f"tangent kernel at initialization, {network_title}", fontsize=11)
    return {"spectrum": figure}


def load_sets(config: Config) -> dict[str, Data]:
    """Photographs and random images, both standardized by the channels of the photographs, with their labels centered.

    Random images get the labels of the photographs, which then mean nothing.
    """
    photographs = _photographs(config)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    # Bytes, as the pixels of photographs are.
    pixels = jax.random.bits(key, photographs.x.shape, jnp.uint8)
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
    # Not `psd_eigh`, which moves negative eigenvalues to zero: a kernel that has any is to show it.
    eigen = linalg.eigh(np.asarray(linalg.kernel_matrix(kernel), np.float64))
    # Eigenvalues ascend: the last vector is the first mode.
    energy = (eigen.vectors[:, ::-1].T @ targets) ** 2
    return eigen.values[::-1], np.cumsum(energy, axis=0) / np.sum(targets**2, axis=0)


def effective_rank(kernel: np.ndarray) -> float:
    """Participation ratio `(sum lambda)^2 / sum lambda^2 = (tr K)^2 / |K|^2` of a kernel `[n, n, k, k]`."""
    # From the entries alone, without eigenvalues.
    return float(np.einsum("iiaa->", kernel) ** 2 / np.sum(kernel**2))


def centered(kernel: np.ndarray) -> np.ndarray:
    """The kernel `[n, n, k, k]` on outputs whose mean over images is zero."""
    # P K P with P = I - 11'/n, for every pair of outputs.
    rows = kernel - kernel.mean(axis=0, keepdims=True)
    return rows - rows.mean(axis=1, keepdims=True)


def label_columns(config: Config, y: np.ndarray) -> np.ndarray:
    """The labels and their other orders as columns, `[n k, 1 + shuffles]`."""
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    columns = [y.ravel()]
    for i in range(config.shuffles):
        order = jax.random.permutation(jax.random.fold_in(key, i), len(y))
        # Whole rows change places, so that each image has one class, and each class as many images.
        columns.append(y[np.asarray(order)].ravel())
    return np.stack(columns, axis=1)


def _photographs(config: Config) -> Data:
    """Images `[n, 32, 32, 3]` in [0, 1]; digits are enlarged to this size, each color the same."""
    photographs, _ = load_images(config.data, config.n, CLASSES)
    if config.data.name == "digits":
        return photographs._replace(x=enlarged(photographs.x).repeat(3, axis=3))
    return photographs


def _decomposed(
    config: Config, model: Model, params: Any, data: Data, name: str, store
) -> dict[str, Any]:
    """Spectrum, label energies and effective ranks of the kernel, which a killed run goes on with in its folder."""
    kernel = empirical.empirical_ntk(
        model.apply,
        params,
        jnp.asarray(data.x, config.precision),
        memory=int(config.memory_gib * 2**30),
        store=store.kernels(name),
        progress=store.console.is_terminal,
    )
    kernel = np.asarray(kernel, np.float64)
    values, energy = decompose(kernel, label_columns(config, np.asarray(data.y, np.float64)))
    return {
        "values": values,
        "energy": energy,
        "rank": effective_rank(kernel),
        "rank_centered": effective_rank(centered(kernel)),
    }


def _decay(values: np.ndarray) -> float:
    """`lambda_11 / lambda_m`: the condition number behind the modes of constant outputs."""
    return float(values[CLASSES] / values[-1])


def _label_energy(energy: np.ndarray) -> tuple[float, float, float]:
    """Share of the labels in the first tenth of the modes; mean and deviation of that of their other orders."""
    labels, *others = energy[len(energy) // 10 - 1]
    return float(labels), float(np.mean(others)), float(np.std(others, ddof=1))


def _titles(config: Config) -> dict[str, str]:
    return {"photographs": config.data.title, "random": "random bytes"}


def _draw_energy(ax, energy: np.ndarray, title: str, style: dict[str, Any]) -> None:
    """The labels' cumulative energy, and a band of two deviations around that of their other orders."""
    modes = np.arange(1, len(energy) + 1)
    others = energy[:, 1:]
    mean = others.mean(axis=1)
    spread = 2 * others.std(axis=1, ddof=1)
    ax.plot(modes, energy[:, 0], label=f"{title}, labels", **style)
    band = {"color": style["color"], "alpha": 0.2, "lw": 0, "label": f"{title}, labels shuffled"}
    ax.fill_between(modes, mean - spread, mean + spread, **band)
