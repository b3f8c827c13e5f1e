"""True labels, random labels and shuffled pixels in each regime: fits, margins, and bounds beside the measured gap.

    python -m experiments run random_labels --preset smoke            # digits, about 10 CPU seconds
    python -m experiments run random_labels --set data.root=DIR       # 11 CPU minutes

A network, its linearization and its infinite-width kernel are trained on the same images with their
labels, with random ones, and with the pixels of every image in an order of its own. Expected:

- random labels are fitted at alpha = 1 and by the kernel as true ones are, but later: it takes more
  steps to halve the loss;
- they have the larger complexity under the kernel, sqrt(2 tr(Y' K^-1 Y) / n);
- margins over the spectral complexity order the data sets by difficulty: those of random labels are
  smaller. Relative to w0 the complexity of the linearized network is that of its displacement;
- no bound of the network is below one, so that none says anything of the gap: by which factor is in
  the table;
- estimators of the kernel's test error (KARE, leave-one-out) agree with it.

On digits (smoke preset) random labels take 3.7 times the steps and twice the complexity, and half
of the normalized margin is left; the bounds of the network are 240 to 1,600 times the gap.

On 1,000 images of CIFAR-10 (JPEG) differences are small, since the network fits by heart what it
does not understand: it answers 28 % of the test images at alpha = 1, the kernel 36 %. Random labels
take 1.36 times the steps and 1.13 times the complexity, and 0.87 of the normalized margin is left.
The bounds of the network are 100 to 3,500 times its gap of 0.72; of the kernel, whose gap is 0.64,
that of the Rademacher complexity is 3.5 and the complexity of its labels 1.2.

Expected, but not found there: that the last example is fitted later. Random labels are all fitted
after 113 steps, when one image is left with its true label, which takes until 234. And that shuffled
pixels lie between: images in orders of their own have little in common, so that they are fitted
first, with the smallest complexity and the largest margins, and 11 % of the test images are
answered.

Bounds are without their constants and logarithms: the Rademacher complexity is that of the ball of
the interpolating function, over the margin, those of norms are for the margin that nine of ten
training examples have, the VC dimension is under a root over n. Margins of the lazy models are
those of `alpha (h(w) - h(w0))`, and their bounds those of `alpha h`; products of norms have no
limit at alpha = inf, where only the spectral complexity says how far was trained. References: Zhang
et al. (2017); Bartlett, Foster and Telgarsky (2017), figure 1; Arora et al. (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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
from experiments.shared.data import DataConfig, load_images
from experiments.shared.training import batched_outputs, trained_lazily
from lazynet import datasets, dynamics, zoo
from lazynet.insights import bounds
from lazynet.records import Data

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure", "numbers", "report"]

KINDS = ("true", "shuffled", "random")
CLASSES = 10
BOUNDS = (
    "spectral",
    "l1_inf",
    "frobenius",
    "spectral_frobenius",
    "rademacher",
    "kernel_complexity",
    "vc",
)
LEFT = 0.5
"""Share of the first training loss up to which steps are counted."""

QUANTILE = 0.1
"""Share of the training examples whose margin may be smaller than that of the bounds."""

SIGNS = 300
MOMENTUM = 0.9


@dataclass(frozen=True)
class Config:
    """Images, width of the two-layer network, scales, steps and precision.

    Attributes:
        data: Photographs.
        width: Hidden units.
        alphas: Scales, of which 1 is the network and inf its linearization.
        steps: Full-batch steps of gradient descent with momentum.
        lr_fraction: Learning rate as a share of the largest stable one.
        seed: Of weights, labels and orders of pixels.
        precision: Of the training; kernels are float64 where x64 is on.
    """

    data: DataConfig = field(
        default_factory=lambda: DataConfig("cifar10", n_train=1000, n_test=1000)
    )
    width: Count = 256
    alphas: Annotated[tuple[Scale, ...], Values()] = (1.0, math.inf)
    steps: Annotated[int, Integer(10)] = 1000
    lr_fraction: Positive = 0.5
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float64"


PRESETS = {
    "smoke": Config(DataConfig("digits", n_train=100, n_test=200), width=256, steps=40),
    "laptop": Config(),
}
TITLE = "{title}"


def measure(config: Config, store) -> dict[str, Any]:
    """Curves, margins and bounds as `KIND/alpha=A/...`, and those of the kernel as `KIND/kernel/...`."""
    arrays: dict[str, Any] = {}
    for kind in KINDS:
        train, test = load_sets(config, kind)
        cells = {f"{kind}/alpha={alpha:g}": alpha for alpha in config.alphas}
        for name, alpha in cells.items():
            part = store.read(name.replace("/", ","))
            if part is None:
                store.console.print(f"training: {name}", highlight=False)
                checkpoint = store.checkpoint(name.replace("/", ","))
                cell = _trained(config, alpha, train, test, checkpoint)
                part = store.write(name.replace("/", ","), cell)
            arrays |= {f"{name}/{entry}": value for entry, value in part.items()}
        kernel = store.read(f"{kind},kernel")
        if kernel is None:
            kernel = store.write(f"{kind},kernel", _kernel(config, train, test))
        arrays |= {f"{kind}/kernel/{entry}": value for entry, value in kernel.items()}
    return arrays


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Accuracies, steps until all examples are fitted, complexities, bounds and gaps."""
    kept = {name: value for name, value in arrays.items() if np.ndim(value) == 0}
    summary = {name: float(value) for name, value in kept.items()}
    for cell in (f"{kind}/alpha={alpha:g}" for kind in KINDS for alpha in config.alphas):
        if f"{cell}/curve/step" in arrays:
            summary[f"{cell}/halved_at"] = _halved_at(arrays, cell)
    title = f"{config.data.title}, {config.data.n_train} images, width {config.width}"
    return summary | {"title": title}


def facts(config: Config, arrays):
    """Random labels are fitted, later; their complexity is larger, their margins are smaller; bounds say nothing."""
    for name in ("alpha=1", "kernel"):
        fitted = arrays[f"random/{name}/train_accuracy"]
        yield within(f"random_labels_fitted/{name}", fitted, at_least=0.99)
    steps = {kind: _halved_at(arrays, f"{kind}/alpha=1") for kind in KINDS}
    yield within(
        "steps_to_halve_the_loss/random_over_true", steps["random"] / steps["true"], at_least=1.05
    )
    complexity = {kind: float(arrays[f"{kind}/kernel/kernel_complexity"]) for kind in KINDS}
    ratio = complexity["random"] / complexity["true"]
    yield within("kernel_complexity/random_over_true", ratio, at_least=1.1)
    for alpha in config.alphas:
        margins = {kind: np.median(arrays[f"{kind}/alpha={alpha:g}/normalized"]) for kind in KINDS}
        ratio = margins["random"] / margins["true"]
        yield within(f"normalized_margin/random_over_true/alpha={alpha:g}", ratio, at_most=0.9)
    of_networks = [arrays.get(f"true/alpha=1/bound/{name}", math.nan) for name in BOUNDS]
    smallest = float(np.nanmin(np.array(of_networks, float)))
    yield within("smallest_bound_of_the_network", smallest, at_least=1.0)
    for name in ("kare", "leave_one_out"):
        ratio = float(arrays[f"true/kernel/{name}"]) / float(arrays["true/kernel/test_mse"])
        yield within(f"{name}_over_test_error", ratio, at_least=0.6, at_most=1.6)


def report(summary):
    """Bounds beside the measured gap, of the networks and of the kernel."""
    regimes = dict.fromkeys(key.split("/")[1] for key in summary if key.endswith("/gap"))
    networks = [name for name in regimes if name != "kernel"]
    for columns in (networks, ["kernel"]):
        cells = [f"{kind}/{regime}" for kind in KINDS for regime in columns]
        table = Table("", *(cell.replace("/", "\n") for cell in cells), box=None)
        for row in ("gap", *(f"bound/{name}" for name in BOUNDS)):
            values = [summary.get(f"{cell}/{row}") for cell in cells]
            if any(value is not None for value in values):
                shown = ["" if value is None else f"{value:.3g}" for value in values]
                table.add_row(row.replace("bound/", "").replace("_", " "), *shown)
        yield table


def draw(config: Config, arrays):
    """Train accuracy against steps, margins, normalized margins, and bounds over the gap."""
    figure = Figure(figsize=(15.5, 4.2), layout="constrained")
    curves, margins, normalized, ratios = figure.subplots(1, 4)
    for color, kind in zip(("C0", "C1", "C3"), KINDS, strict=True):
        for style, alpha in zip(("-", "--", ":", "-."), config.alphas, strict=False):
            cell = f"{kind}/alpha={alpha:g}"
            look = {"color": color, "ls": style, "label": f"{kind}, alpha = {alpha:g}"}
            curves.plot(
                # Step 0 stands a little left of step 1 on the logarithmic axis.
                np.maximum(arrays[f"{cell}/curve/step"], 0.7),
                arrays[f"{cell}/curve/metrics/train_accuracy"],
                **look,
            )
            for ax, entry in ((margins, "margins"), (normalized, "normalized")):
                values = np.sort(arrays[f"{cell}/{entry}"])
                ax.plot(values, np.linspace(0, 1, len(values)), **look)
    curves.set(xscale="log", xlabel="step", ylabel="train accuracy")
    margins.set(xlabel="margin", ylabel="share of training examples below")
    normalized.set(xlabel="margin / (complexity |X| / n)")
    normalized.locator_params(axis="x", nbins=4)
    _draw_bounds(config, arrays, ratios)
    for ax, title in zip(
        (curves, margins, normalized, ratios),
        ("fits", "margins", "normalized margins", "bounds, true labels"),
        strict=True,
    ):
        panels.finish(ax, title)
    for ax in (margins, normalized):
        ax.get_legend().remove()
    figure.suptitle(numbers(config, {})["title"], fontsize=11)
    return {"random_labels": figure}


def load_sets(config: Config, kind: str) -> tuple[Data, Data]:
    """Training and test images as vectors whose mean square is one, with centered one-hot targets."""
    parts = load_images(config.data, config.data.n_train, config.data.n_test)
    parts = datasets.standardize(*parts, center="feature", scale="global")
    rng = np.random.default_rng(config.seed)
    changed = []
    for part in parts:
        x = np.asarray(part.x, np.float64).reshape(len(part.x), -1)
        y = np.asarray(part.y, np.float64)
        if kind == "shuffled":
            # Every row in an order of its own; `permutation` would shuffle all rows alike.
            x = rng.permuted(x, axis=1)
        if kind == "random":
            y = np.eye(CLASSES)[rng.integers(0, CLASSES, len(y))]
        # Of mean square one, as the NTK parameterization expects its inputs.
        changed.append(Data(x / np.linalg.norm(x, axis=1, keepdims=True) * x.shape[1] ** 0.5, y))
    dtype = jnp.dtype(config.precision)
    centered = [datasets.center_targets(part) for part in changed]
    train, test = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tuple(centered))
    return train, test


def _model(config):
    return zoo.mlp((config.width,), CLASSES, W_std=2**0.5)


def _trained(config, alpha, train, test, checkpoint):
    """One training: its curve, its margins, and the bounds that its weights have."""
    model = _model(config)
    key = jax.random.key(config.seed)
    params0 = jax.jit(model.init)(key, train.x)
    _, curve = trained_lazily(
        checkpoint,
        model,
        params0,
        alpha,
        train,
        lr_fraction=config.lr_fraction,
        lr_examples=200,
        momentum=MOMENTUM,
        key=key,
        save_at=ln.log_spaced(config.steps, 40),
        test=test,
    )
    return _described(config, model, params0, alpha, curve, train)


def _described(config, model, params0, alpha, curve, train):
    """The curve of a training, its margins, its complexity and the bounds that its weights have."""
    u: Any = curve.params
    accuracy = curve.metrics["train_accuracy"]
    # The first record of the best accuracy, from which on nothing more is fitted.
    everything = np.flatnonzero(accuracy >= accuracy.max())
    outputs = batched_outputs(ln.lazy(model.apply, params0, alpha), u, train.x)
    labels = np.asarray(train.y).argmax(axis=1)
    gap = float(accuracy[-1] - curve.metrics["test_accuracy"][-1])
    margins = bounds.margins(outputs, labels)
    complexity = bounds.spectral_complexity(model, params0, u, train.x, alpha=alpha)
    # At alpha = inf the weights stay at w0.
    weights = jax.tree.map(lambda w, v: w + (0 if math.isinf(alpha) else v / alpha), params0, u)
    cell = {
        "curve/step": curve.step,
        "curve/time": curve.time,
        **{f"curve/metrics/{name}": values for name, values in curve.metrics.items()},
        "margins": margins,
        "normalized": bounds.normalized_margins(outputs, labels, complexity, train.x),
        "train_accuracy": accuracy[-1],
        "test_accuracy": curve.metrics["test_accuracy"][-1],
        "fitted_at": max(int(curve.step[everything[0]]), 1),
        "learning_rate_over_largest": config.lr_fraction,
        "complexity": complexity,
        "gap": gap,
    }
    return cell | _bounds(model, weights, alpha, train.x, margins, complexity)


def _bounds(model, weights, alpha, x, margins, complexity):
    """Bounds for the margin of `alpha h` that nine of ten examples have; none where that is not positive."""
    margin = float(np.quantile(margins, QUANTILE))
    depth = len(weights)
    count = sum(leaf.size for leaf in jax.tree.leaves(weights))
    n = len(x)
    found = {"vc": math.sqrt(bounds.vc_bound(depth, count) / n)}
    if margin > 0:
        size = float(np.linalg.norm(np.asarray(x).ravel()))
        # R |X| / (n margin), without constants and logarithms, as all bounds here.
        found["spectral"] = complexity * size / (n * margin)
    # At alpha = inf the norms are those of w0, of which nothing was trained.
    if margin > 0 and math.isfinite(alpha):
        products = bounds.norm_products(model, weights, x, margin)
        radius = float(np.linalg.norm(np.asarray(x), axis=1).max())
        for name in ("l1_inf", "frobenius", "spectral_frobenius"):
            found[name] = alpha * radius * math.sqrt(getattr(products, name) / n)
    return {f"bound/{name}": value for name, value in found.items()}


def _halved_at(arrays, cell):
    """The step at which the training loss falls below its share, between records on logarithmic axes."""
    loss = np.log(arrays[f"{cell}/curve/metrics/train_loss"])
    # Step 0, which has no logarithm, counts as half a step.
    step = np.log(np.maximum(arrays[f"{cell}/curve/step"], 0.5))
    goal = loss[0] + math.log(LEFT)
    below = np.flatnonzero(loss <= goal)
    if not below.size:
        return math.nan
    last = slice(below[0] - 1, below[0] + 1)
    # `np.interp` wants increasing abscissas, and the loss falls.
    return float(np.exp(np.interp(-goal, -loss[last], step[last])))


def _kernel(config, train, test):
    """Regression with the infinite-width tangent kernel without a ridge, its bounds, and the estimators beside them."""
    x = jnp.concatenate([train.x, test.x]).astype(jnp.result_type(float))
    n = len(train.x)
    gram = np.asarray(ln.analytic_kernel(_model(config), x).ntk, np.float64)
    kernel = gram[:n, :n]
    y = np.asarray(train.y, np.float64)
    # As good as none, in units of the mean of the diagonal.
    ridge = 1e-9 * float(np.trace(kernel)) / n
    # Regression with a kernel reads the targets alone.
    data = Data(np.zeros((n, 1)), y)
    # Training and test examples at once: the first n rows are the kernel itself.
    both = dynamics.kernel_regression(kernel, data, cross=gram[:, :n], ridge=ridge)
    targets = np.concatenate([y, np.asarray(test.y, np.float64)])
    right = both.argmax(axis=1) == targets.argmax(axis=1)
    margins = bounds.margins(both[:n], y.argmax(axis=1))
    # In the RKHS |f|^2 = tr y' K^{-1} y: the fitted functions lie in a ball of this radius.
    coefficients = np.linalg.solve(kernel + ridge * np.eye(n), y)
    norm = math.sqrt(max(float(np.sum(y * coefficients)), 0.0))
    ball = bounds.rademacher_ball(kernel, norm, key=jax.random.key(config.seed), samples=SIGNS)
    left_out = dynamics.leave_one_out(kernel, data, ridge=ridge)
    # Where it is not positive there is no bound: the number becomes huge, and not negative.
    margin = max(float(np.quantile(margins, QUANTILE)), np.finfo(float).tiny)
    complexity = bounds.kernel_complexity(kernel, y)
    return {
        "margins": margins,
        "train_accuracy": right[:n].mean(),
        "test_accuracy": right[n:].mean(),
        "gap": right[:n].mean() - right[n:].mean(),
        "test_mse": np.square(both[n:] - targets[n:]).sum() / (len(targets) - n),
        "kernel_complexity": complexity,
        "rademacher": ball.value,
        "rademacher_error": ball.standard_error,
        "bound/rademacher": 2 * ball.value / margin,
        "bound/kernel_complexity": complexity,
        "kare": bounds.kare(kernel, y, ridge=ridge),
        "leave_one_out": np.square(left_out - y).sum() / n,
    }


def _draw_bounds(config, arrays, ax):
    """Bounds over the measured gap for true labels."""
    places = np.arange(len(BOUNDS))
    regimes = [f"alpha={alpha:g}" for alpha in config.alphas] + ["kernel"]
    for i, regime in enumerate(regimes):
        gap = float(arrays[f"true/{regime}/gap"])
        values = [arrays.get(f"true/{regime}/bound/{name}", np.nan) for name in BOUNDS]
        ax.plot(places, np.array(values, float) / gap, "o", color=f"C{i}", label=regime)
    ax.axhline(1.0, color="0.5", lw=1)
    ax.set(yscale="log", ylabel="bound / measured gap")
    ax.set_xticks(places, [name.replace("_", " ") for name in BOUNDS], rotation=40, ha="right")
