"""The same questions asked of one network trained at alpha = 1, lazily and linearized: what happens inside, by depth.

    python -m experiments run inside_a_network --preset smoke                # digits, less than a minute
    python -m experiments run inside_a_network --set data.root=DIR           # 10 CPU minutes

A convolutional network with first filters of 7 x 7 is trained from the same weights at several
scales. At finite alpha its activations are those at `w0 + u/alpha`; those of the linearized network
do not move, and what is shown are the tangents added to them, `a_l(w0) + D a_l(w0) u`. Expected:

- classes are further apart with depth at alpha = 1, and hardly move from initialization at alpha =
  100;
- no gradient exceeds the product of the layers' norms;
- perturbations that change the class of the lazy network at alpha = 100 are about as long as those
  of the linearized one, 0.85 times on digits. No fact, since with ReLU that depends on alpha: the
  tangent model jumps in x where a gate changes, and the lazy network has a ramp there, of a slope
  that grows with alpha. DeepFool follows ramps, until alpha is so large that no image is on one.

Expected, but not found on digits (smoke preset): that translations are flatter with depth, at alpha
= 1 more than elsewhere. Three directions hold 99.8 % of their variance after the first layer and
97.3 % after the third at alpha = 1, 97.6 % at initialization. Gabor functions explain 41 % of the
first filters at alpha = 1, and 36 % of those at initialization.

On 2,000 photographs of CIFAR-10 (JPEG) the same two are not found, and perturbations at alpha = 100
are 0.09 times as long as those of the linearized network, among those that were found. Ramps are
why: of one displacement of a network of 8 channels in float64 80 gates of an image change at alpha =
10, 8 at 100, 0.9 at 1000 and none at 10,000, DeepFool finds a perturbation for 77 %, 40 %, 100 % and
100 % of the images, and its median norm is 5.2 and 4.8 at the last two. With GELU, which has no
gates, norms of a dense network are the same to three digits from alpha = 100 to 10,000.

Adversarial norms are those of the trained function `alpha (h(w) - h(w0))`, and of h at
initialization, where that function is zero: medians over all images, infinite where a perturbation is
found for less than half of them. Flatness is that of translations by up to two pixels.
References: Oyallon (2017); Facco et al. (2017); Moosavi-Dezfooli et al. (2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

import lazynet as ln
from experiments.harness import panels
from experiments.harness.bounds import Count, Integer, Positive, Scale, Seed, Values
from experiments.harness.facts import within
from experiments.shared.data import DataConfig, standardized_images
from experiments.shared.training import trained_from
from lazynet import guards, insights
from lazynet.records import Data

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers", "report"]

CLASSES = 10
START = "initialization"
FILTERS = 7
QUESTIONS = {
    "nearest_neighbor": "1-nearest-neighbor accuracy",
    "nearest_mean": "nearest-mean accuracy",
    "distances": "within / between-class distance",
    "dimension": "intrinsic dimension",
    "share": "variance of translations in 3 directions",
    "turning": "turning of translations",
}
"""What is asked of every layer."""

WHOLE = {
    "adversarial": "length of adversarial perturbations",
    "gabor": "filters explained by Gabor functions",
    "test_accuracy": "test accuracy",
}
"""What is asked of the network."""


@dataclass(frozen=True)
class Config:
    """Images, channels of the first layer, scales, training, and how many images the questions are asked of.

    Attributes:
        data: Photographs.
        width: Channels of the first layer; the next ones have two and four times as many.
        alphas: Scales, of which 1 is the network and inf its linearization.
        steps: Steps of gradient descent with momentum.
        batch_size: Examples of a step.
        lr_fraction: Learning rate as a share of the largest stable one.
        examples: Images whose orbits and perturbations are computed.
        seed: Of weights and batches.
        precision: Of the training.
    """

    data: DataConfig = field(
        default_factory=lambda: DataConfig("cifar10", n_train=2000, n_test=1000)
    )
    width: Count = 16
    alphas: Annotated[tuple[Scale, ...], Values()] = (1.0, 10.0, 100.0, math.inf)
    steps: Annotated[int, Integer(10)] = 1500
    batch_size: Count = 64
    lr_fraction: Positive = 0.3
    examples: Count = 50
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses questions to more images than are tested."""
        name = f"{prefix}examples"
        guards.count(
            name, self.examples, at_most=self.data.n_test, fix="the number of test examples"
        )


PRESETS = {
    "smoke": Config(
        DataConfig("digits", n_train=300, n_test=300),
        width=8,
        alphas=(1.0, 100.0, math.inf),
        steps=150,
        batch_size=50,
        examples=20,
    ),
    "laptop": Config(),
}
TITLE = "{title}"


def measure(config: Config, store) -> dict[str, Any]:
    """Answers by depth, `REGIME/QUESTION [depth]`, and numbers of the whole network, `REGIME/NAME`."""
    train, test = standardized_images(config.data, config.precision)
    model = network(config.width)
    key = jax.random.key(config.seed)
    params0 = jax.jit(model.init)(key, train.x)
    arrays: dict[str, Any] = {}
    for alpha in (None, *config.alphas):
        name = START if alpha is None else f"alpha={alpha:g}"
        part = store.read(name)
        if part is None:
            store.console.print(name, highlight=False)
            regime = _trained(config, model, params0, alpha, train, test, store.checkpoint(name))
            part = store.write(name, _answers(config, model, params0, *regime, train, test))
        arrays |= {f"{name}/{entry}": value for entry, value in part.items()}
    return arrays


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Answers at the last hidden layer, and numbers of the whole network."""
    summary: dict[str, Any] = {}
    for name, value in arrays.items():
        question = name.split("/")[1]
        if question == "adversarial" and not np.isfinite(value):
            summary[name] = None
        elif question in QUESTIONS:
            # The last layer with weights gives the outputs; before it is the last hidden one.
            summary[name] = float(value[-2])
        elif np.ndim(value) == 0:
            summary[name] = float(value)
    return summary | {"title": f"{config.data.title}, {config.data.n_train} images"}


def facts(config: Config, arrays):
    """Separability by depth against the scale, the bound of gradients, and perturbations that are found."""
    last = {name: float(arrays[f"{name}/nearest_mean"][-2]) for name in _regimes(config)}
    start = last[START]
    yield within("nearest_mean/alpha=1_over_start", last["alpha=1"] - start, at_least=0.02)
    # Activations move like 1/alpha: classes stay as far apart as they were.
    lazy = f"alpha={max(a for a in config.alphas if math.isfinite(a)):g}"
    yield within(
        f"nearest_mean/{lazy}_over_start", last[lazy] - start, at_least=-0.03, at_most=0.03
    )
    input_ = float(arrays["alpha=1/nearest_mean"][0])
    yield within("nearest_mean/last_over_input", last["alpha=1"] - input_, at_least=0.0)
    for name in (START, "alpha=1"):
        ratio = float(arrays[f"{name}/gradient"]) / float(arrays[f"{name}/lipschitz"])
        yield within(f"gradient_over_lipschitz/{name}", ratio, at_most=1.0)
    found = float(arrays["alpha=1/adversarial_found"])
    yield within("adversarial_found/alpha=1", found, at_least=0.9)


def report(summary):
    """The answers at the last hidden layer, and those of the whole network, in each regime."""
    suffix = "/test_accuracy"
    regimes = [key.removesuffix(suffix) for key in summary if key.endswith(suffix)]
    table = Table("at the last hidden layer", *regimes, box=None)
    for name, label in (QUESTIONS | WHOLE).items():
        values = [summary[f"{regime}/{name}"] for regime in regimes]
        table.add_row(label, *("-" if value is None else f"{value:.3g}" for value in values))
    yield table


def draw(config: Config, arrays):
    """One panel a question, depth on the x axis, one line a regime; and what first filters look like."""
    figure = Figure(figsize=(15.0, 7.4), layout="constrained")
    axes = figure.subplots(2, 4)
    for ax, (question, label) in zip(axes.flat, QUESTIONS.items(), strict=False):
        for name in _regimes(config):
            values = arrays[f"{name}/{question}"]
            ax.plot(np.arange(len(values)), values, "o-", ms=3, label=name)
        ax.set_xticks(range(len(values)), ["input", *map(str, range(1, len(values)))])
        ax.set(xlabel="layer with weights")
        panels.finish(ax, label)
    _bars(config, arrays, axes.flat[6], "adversarial", WHOLE["adversarial"])
    axes.flat[6].set(yscale="log", ylim=(0.1, None), ylabel="norm, in standardized pixels")
    _bars(config, arrays, axes.flat[7], "gabor", WHOLE["gabor"])
    axes.flat[7].set(ylabel="share of their energy")
    figure.suptitle(numbers(config, arrays)["title"], fontsize=11)
    return {"inside_a_network": figure}


def network(width: int) -> ln.Model:
    """Three convolutions, of which the first has filters of 7 x 7, average pools, and a linear head."""
    layers = []
    for i, (channels, size) in enumerate(((width, FILTERS), (2 * width, 3), (4 * width, 3))):
        layers += [ln.AvgPool((2, 2), (2, 2))] if i else []
        layers += [ln.Conv(channels, (size, size), padding="SAME", W_std=2**0.5), ln.Relu()]
    return ln.serial(*layers, ln.GlobalAvgPool(), ln.Dense(CLASSES), name="cnn")


def _regimes(config):
    return [START, *(f"alpha={alpha:g}" for alpha in config.alphas)]


def _trained(config, model, params0, alpha, train, test, checkpoint):
    """The trained function, its parameters, and the scale; h at w0 itself for initialization."""
    if alpha is None:
        return model.apply, params0, None
    saved = [0, config.steps]
    function, curve = trained_from(
        config, model, params0, alpha, (train, test), checkpoint, save_at=saved
    )
    return function, curve.params, alpha


def _inside(model, weights, tangent, x):
    """Activations by depth, a thousand images at a time, which keeps them small."""
    parts = []
    for i in range(0, len(x), 1000):
        part = insights.inside(model, weights, x[i : i + 1000], displacement=tangent)
        parts.append(part)
    features = {}
    for path in parts[0]:
        features[path] = np.concatenate([part[path] for part in parts])
    return features


def _answers(config, model, params0, function, params, alpha, train: Data, test: Data):
    """All questions to one regime."""
    # Activations at w0 do not move at alpha = inf: their tangents are asked instead.
    tangent = params if alpha == math.inf else None
    weights = params if alpha is None else function.weights(params)

    inside = partial(_inside, model, weights, tangent)
    features = inside(train.x)
    labels, test_labels = (np.asarray(part.y).argmax(axis=1) for part in (train, test))
    separability = insights.separability(features, labels, inside(test.x), test_labels)
    # The mean over pixels of an image has too few dimensions to ask for more.
    dimension = insights.intrinsic_dimension({k: v for k, v in features.items() if k != "input"})
    images = np.asarray(test.x[: config.examples])
    # Nine translations of each image by up to two pixels, `[images, 9, ...]`, which are its orbit.
    moved = insights.transformed(images, "translation", np.linspace(-2, 2, 9))
    orbit = inside(jnp.asarray(moved.reshape(-1, *images.shape[1:]), test.x.dtype))
    paths = {
        # Back from one batch of all translations to an orbit for each image.
        path: values.reshape(len(images), 9, -1)
        for path, values in orbit.items()
        if path != "input"
    }
    flatness = insights.flatness(paths, 3)
    few = test.x[: config.examples]
    norms = insights.adversarial_norm(function, params, few)
    # At alpha = inf the weights stay at w0: u is what filters have learned.
    filters = np.asarray(weights["0_Conv"]["W"], np.float64)
    filters = filters + (0 if tangent is None else np.asarray(tangent["0_Conv"]["W"]))
    # Filters `[7, 7, c, filters]` of the first channel as `[filters, 7, 7]`.
    fit = insights.gabor_fit(filters[:, :, 0].transpose(2, 0, 1))
    outputs = np.asarray(function(params, test.x))
    return {
        **{name: _column(separability, name) for name in ("nearest_neighbor", "nearest_mean")},
        "distances": _column(separability, "distances"),
        "dimension": np.array([np.nan, *_column(dimension, "value")]),
        "share": np.array([np.nan, *_column(flatness, "share")]),
        "turning": np.array([np.nan, *_column(flatness, "turning")]),
        # Norms are infinite where no perturbation was found, which a median bears up to one half.
        "adversarial": np.median(norms),
        "adversarial_found": np.isfinite(norms).mean(),
        "gradient": insights.largest_gradient(model.apply, weights, few),
        "lipschitz": insights.lipschitz_bound(model, weights, few),
        "gabor": np.mean(fit.explained),
        "test_accuracy": np.mean(outputs.argmax(axis=1) == test_labels),
    }


def _column(answers, name):
    return np.array([getattr(answer, name) for answer in answers.values()])


def _bars(config, arrays, ax, name, title):
    regimes = _regimes(config)
    values = np.array([float(arrays[f"{regime}/{name}"]) for regime in regimes])
    # Bars of infinite height would leave the others none.
    values[~np.isfinite(values)] = np.nan
    colors = [f"C{i}" for i in range(len(regimes))]
    ax.bar(np.arange(len(regimes)), values, color=colors)
    ax.set_xticks(range(len(regimes)), regimes, rotation=20)
    ax.set_title(title, fontsize=11)
