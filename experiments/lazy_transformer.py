"""Is a transformer lazy? Modular addition at every scale: when it is fitted, when understood, and what attends to what.

    python -m experiments run lazy_transformer --preset smoke     # about 20 CPU seconds, of compilation
    python -m experiments run lazy_transformer                    # about 4 CPU minutes

A causal transformer with one block reads `a b =` and answers (a + b) mod p, trained by full-batch
gradient descent with momentum on the square loss, from the same weights and at the same rate for
every alpha, on a share of the p^2 sums. The others are the test. Expected, as Kumar et al. (2023,
arXiv 2310.06110) found for larger ones:

- every scale fits the training sums;
- the delay between fitting them and answering the others grows with alpha;
- it has no end within the training at alpha = inf;
- the tangent kernel and the attention change less with alpha.

"Fitted" is a train accuracy of 95 %, "understood" a test accuracy of one half; chance is 1/p. Found
with p = 13 and two seeds: the delays are 12 and 17 steps at alpha = 0.3, 190 and 101 at 1, 8,700 and
8,600 at 10. At alpha = 100 and inf the test accuracy is about 0 when the sums are fitted, and 12 to
23 % after 20,000 steps. Expected, but not found: that it never gets further. In the limit of all
times, solved with its kernel, the linearized transformer answers 42 and 60 % of the test sums, near
the 67 and 63 % that alpha = 0.3 and 1 learn: the delay is long there, not infinite.

The kernel of the first weights is the control of the training: the linearized transformer has the
test loss of exact descent with it, step for step. Attention is that from `=` to `a`, for every sum,
in the head that depends most on it. The linearized transformer attends as the first one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

import lazynet as ln
from experiments.harness import panels
from experiments.harness.bounds import (
    Count,
    Integer,
    Momentum,
    Number,
    Positive,
    Scale,
    Seed,
    Values,
)
from experiments.harness.facts import within
from experiments.shared.training import curve_of, named, trained_lazily
from lazynet import diagnostics, empirical, plots, zoo
from lazynet.records import Data, Trajectory
from lazynet.training.checkpoints import curve_arrays

__all__ = [
    "PRESETS",
    "TITLE",
    "Config",
    "attention",
    "draw",
    "facts",
    "first_step",
    "measure",
    "numbers",
    "report",
    "sums",
    "transformer",
]

TITLE = "{title}"
FITTED = 0.95
UNDERSTOOD = 0.5
ENOUGH = 13
"""The modulus from which there are enough sums to understand addition."""


@dataclass(frozen=True)
class Config:
    """The task, the transformer, its scales and its training.

    Attributes:
        modulus: p; there are p^2 sums.
        train_fraction: Share of the sums that are trained on.
        width: Features of each position.
        heads: Heads of the attention.
        alphas: Scales, of which inf is the linearized transformer.
        steps: Steps of full-batch gradient descent.
        lr_fraction: Learning rate as a share of the largest stable one of the first kernel.
        momentum: Of gradient descent.
        records: Steps at which to record, evenly spaced in the logarithm.
        probes: Random vectors of which the change of the kernel is estimated.
        seed: Of weights, and of which sums are trained on.
    """

    modulus: Annotated[int, Integer(3, 31)] = 13
    train_fraction: Annotated[float, Number(above=0, below=1)] = 0.75
    width: Count = 64
    heads: Count = 4
    alphas: Annotated[tuple[Scale, ...], Values(3, increasing=True)] = (
        0.3,
        1.0,
        10.0,
        100.0,
        math.inf,
    )
    steps: Annotated[int, Integer(10)] = 20_000
    lr_fraction: Positive = 0.3
    momentum: Momentum = 0.98
    records: Annotated[int, Integer(5)] = 50
    probes: Count = 5
    seed: Seed = 0

    @property
    def teaches(self) -> bool:
        """Whether there are enough sums, and steps, to understand addition."""
        return self.modulus >= ENOUGH and self.steps >= 10_000

    def check(self, prefix: str) -> None:
        """Refuses scales without a linearization at the end."""
        if self.alphas[-1] != math.inf:
            raise ValueError(f"{prefix}alphas={self.alphas}: expected inf last, the linearization.")


PRESETS = {
    "smoke": Config(
        # As many sums for training as for the test: one program serves both.
        modulus=6,
        train_fraction=0.5,
        width=32,
        alphas=(1.0, 100.0, math.inf),
        steps=800,
        records=12,
        probes=2,
    ),
    "laptop": Config(),
}


def measure(config: Config, store) -> dict[str, Any]:
    """Curves and attention of every scale as `alpha=1/...`, and of the kernel of the first weights as `kernel/...`."""
    train, test = sums(config)
    model = transformer(config)
    params0 = jax.jit(model.init)(jax.random.key(config.seed), train.x)
    arrays: dict[str, Any] = {"start/attention": attention(config, params0)}
    for alpha in config.alphas:
        name = f"alpha={alpha:g}"
        cell = store.read(name)
        if cell is None:
            store.console.print(f"training: {name}", highlight=False)
            cell = store.write(name, _trained(config, model, params0, alpha, train, test, store))
        arrays |= named(name, cell)
    # The steps and the rate of the training: its kernel is to predict it step for step.
    rate = float(arrays["alpha=inf/rate"])
    kernel = store.read("kernel")
    if kernel is None:
        steps = curve_of(arrays, "alpha=inf").step
        kernel = store.write("kernel", _solved(config, model, params0, rate, steps, train, test))
    return arrays | named("kernel", kernel)


def numbers(config: Config, arrays) -> dict[str, Any]:
    """When each scale fits and understands, its final accuracies, and the changes of kernel and attention."""
    summary: dict[str, Any] = {}
    for alpha in config.alphas:
        name = f"alpha={alpha:g}"
        metrics = curve_of(arrays, name).metrics
        for entry in ("train_accuracy", "test_accuracy", "test_loss", "ntk_change"):
            summary[f"{entry}/{name}"] = float(metrics[entry][-1])
        for entry, step in _milestones(arrays, name).items():
            summary[f"{entry}/{name}"] = step if math.isfinite(step) else None
        change = np.abs(arrays[f"{name}/attention"] - arrays["start/attention"])
        summary[f"attention_change/{name}"] = float(change.mean())
    summary["limit_test_accuracy/kernel"] = float(arrays["kernel/limit_test_accuracy"])
    title = f"(a + b) mod {config.modulus}, {_n_train(config)} of {config.modulus**2} sums"
    return summary | {"title": title}


def facts(config: Config, arrays):
    """The kernel predicts the linearized transformer; changes fall with alpha; the delay grows with it."""
    curve = curve_of(arrays, "alpha=inf")
    solved = curve_of(arrays, "kernel")
    gap = np.abs(curve.metrics["test_loss"] / solved.metrics["test_loss"] - 1).max()
    yield within("test_loss/linearized_over_kernel", gap, at_most=0.01)
    # What learns features is no descent with the first kernel.
    other = curve_of(arrays, f"alpha={config.alphas[0]:g}").metrics["test_loss"]
    control = np.abs(other / solved.metrics["test_loss"] - 1).max()
    yield within("test_loss/control_of_the_smallest_alpha", control, at_least=0.1)
    summary = numbers(config, arrays)
    finite = [f"alpha={alpha:g}" for alpha in config.alphas if math.isfinite(alpha)]
    for name in ("ntk_change", "attention_change"):
        ratio = summary[f"{name}/{finite[-1]}"] / summary[f"{name}/{finite[0]}"]
        yield within(f"{name}/largest_over_smallest_alpha", ratio, at_most=0.2)
    if not config.teaches:
        return
    for alpha in config.alphas:
        fit = summary[f"train_accuracy/alpha={alpha:g}"]
        yield within(f"fitted/alpha={alpha:g}", fit, at_least=FITTED)
    for name in finite[:2]:
        yield within(f"understood/{name}", summary[f"test_accuracy/{name}"], at_least=UNDERSTOOD)
    # From the fourth scale on the delay outlasts the training.
    delays = [_delay(config, arrays, f"alpha={alpha:g}") for alpha in config.alphas[:3]]
    for i, (before, after) in enumerate(zip(delays, delays[1:], strict=False)):
        pair = f"{config.alphas[i + 1]:g}_over_{config.alphas[i]:g}"
        yield within(f"delay/alpha={pair}", after / max(before, 1.0), at_least=2.0)
    never = summary["test_accuracy/alpha=inf"]
    yield within("test_accuracy/linearized", never, at_most=UNDERSTOOD / 2)


COLUMNS = {
    "train_accuracy": "train\nacc.",
    "test_accuracy": "test\nacc.",
    "fitted_at": "steps\nto fit",
    "understood_at": "to under-\nstand",
    "delay": "delay",
    "ntk_change": "NTK\nchange",
    "attention_change": "attention\nchange",
}


def report(summary):
    """One row for each scale; a dash where it was not reached."""
    table = Table("scale", *COLUMNS.values(), box=None)
    for key in [key for key in summary if key.startswith("train_accuracy/")]:
        scale = key.split("/")[1]
        values = [summary[f"{name}/{scale}"] for name in COLUMNS]
        table.add_row(scale, *("-" if value is None else f"{value:.3g}" for value in values))
    yield table
    limit = summary["limit_test_accuracy/kernel"]
    yield f"test accuracy of the linearized transformer in the limit of all times: {limit:.3g}"


def draw(config: Config, arrays):
    """Accuracies against steps, change of the kernel, steps until fitted and understood; and attention below."""
    figure = Figure(figsize=(14.5, 7.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    accuracies, changes, delays = upper.subplots(1, 3)
    styles = plots.curve_styles(len(config.alphas))
    for alpha, style in zip(config.alphas, styles, strict=True):
        curve = curve_of(arrays, f"alpha={alpha:g}")
        # Step 0 stands a little left of step 1 on the logarithmic axis.
        steps = np.maximum(curve.step, 0.7)
        look = {"color": style["color"], "lw": 1.5}
        accuracies.plot(steps, curve.metrics["train_accuracy"], ls="--", **look)
        accuracies.plot(steps, curve.metrics["test_accuracy"], label=f"alpha = {alpha:g}", **look)
        if math.isfinite(alpha):
            moved = curve.step > 0
            change = curve.metrics["ntk_change"][moved]
            changes.plot(steps[moved], change, label=f"alpha = {alpha:g}", **look)
    accuracies.set(xscale="log", xlabel="step", ylabel="accuracy")
    changes.set(xscale="log", yscale="log", xlabel="step", ylabel="relative change")
    _draw_milestones(config, arrays, delays)
    panels.finish(accuracies, "dashed: trained sums, solid: the others")
    panels.finish(changes, "tangent kernel")
    panels.finish(delays, "steps")
    _draw_attention(config, arrays, lower)
    upper.suptitle(numbers(config, arrays)["title"], fontsize=11)
    return {"lazy_transformer": figure}


def sums(config: Config) -> tuple[Data, Data]:
    """Tokens `a b =` of all sums, `[n, 3]`, with centered one-hot answers; those to train on, and the others."""
    p = config.modulus
    tokens, answers = _all_sums(p)
    order = np.random.default_rng(config.seed).permutation(p * p)
    # One-hot minus 1/p: the function that is zero at the start has the mean of the targets.
    y = (np.eye(p) - 1 / p)[answers]
    everything = Data(jnp.asarray(tokens[order]), jnp.asarray(y[order]))
    n = _n_train(config)
    return jax.tree.map(lambda leaf: leaf[:n], everything), jax.tree.map(
        lambda leaf: leaf[n:], everything
    )


def transformer(config: Config) -> ln.Model:
    """A causal transformer of one block, whose output is that at the last position."""
    p = config.modulus
    model = zoo.transformer(
        config.width, p, depth=1, heads=config.heads, vocabulary=p + 1, positions=True, causal=True
    )
    # At `=`: under the causal mask every position has outputs of its own.
    return model._replace(apply=ln.select(model.apply, _at_the_end))


def attention(config: Config, params: Any) -> np.ndarray:
    """Attention from `=` to `a b =` for every sum, `[heads, p, p, 3]`: the softmax of `<K x, K x'> / (c d)`."""
    tokens = jnp.asarray(_all_sums(config.modulus)[0])
    before = ln.serial(
        ln.tokens.Embed(config.modulus + 1, config.width), ln.tokens.Positions(), ln.LayerNorm()
    )
    # What the attention sees: the norm begins the residual branch, and has no weights.
    seen = before.apply({name: params.get(name, {}) for name in ("0_Embed", "1_Positions")}, tokens)
    weights = params["2_residual"]["1_serial"]["1_SelfAttention"]["K"]
    # Queries are keys: with the scaling 1 / (c d) the layer has one matrix for both.
    keys = jnp.einsum("npc,hck->nhpk", seen, weights)
    # From the last position, which sees all three: the causal mask takes nothing away.
    scores = jnp.einsum("nhk,nhpk->hnp", keys[:, :, -1], keys) / math.prod(weights.shape[1:])
    shape = (config.heads, config.modulus, config.modulus, 3)
    return np.asarray(jax.nn.softmax(scores)).reshape(shape)


def first_step(steps: Any, values: Any, level: float) -> float:
    """The first step at which values reach a level, interpolated between records in log steps; inf if none does.

    Example:
        >>> first_step([1, 10, 1000], [0.0, 0.2, 0.6], 0.4)
        100.0
    """
    reached = np.flatnonzero(np.asarray(values) >= level)
    if not len(reached):
        return math.inf
    i = int(reached[0])
    # Step 0 has no logarithm to interpolate in.
    if i == 0 or steps[i - 1] == 0:
        return float(steps[i])
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(round(steps[i - 1] * (steps[i] / steps[i - 1]) ** share, 9))


def _n_train(config):
    return int(config.train_fraction * config.modulus**2)


def _all_sums(p):
    """Tokens `[p^2, 3]`, of which p is the sign `=`, and answers `[p^2]`."""
    a, b = np.divmod(np.arange(p * p), p)
    tokens = np.stack([a, b, np.full_like(a, p)], axis=1).astype(np.int32)
    return tokens, (a + b) % p


def _at_the_end(outputs):
    return outputs[:, -1]


def _trained(config, model, params0, alpha, train, test, store):
    """The curve of one scale, its learning rate, and the attention at its last weights."""
    key = jax.random.key(config.seed)
    function = ln.lazy(model.apply, params0, alpha)

    def changed(u):
        # Its kernel is the first one at all times.
        if function.is_tangent:
            return {"ntk_change": 0.0}
        settings = dict(key=key, probes=config.probes)
        weights = function.weights(u)
        return {
            "ntk_change": diagnostics.ntk_change(model.apply, weights, params0, train.x, **settings)
        }

    _, curve = trained_lazily(
        store.checkpoint(f"alpha={alpha:g}"),
        model,
        params0,
        alpha,
        train,
        lr_fraction=config.lr_fraction,
        lr_examples=len(train.y),
        momentum=config.momentum,
        key=key,
        save_at=ln.log_spaced(config.steps, config.records),
        test=test,
        measure=changed,
    )
    # The clock of a curve counts rate / (1 - momentum) for every step.
    rate = curve.time[-1] / curve.step[-1] * (1 - config.momentum)
    final = attention(config, function.weights(curve.params))
    return curve_arrays(curve) | {"rate": rate, "attention": final}


def _solved(config, model, params0, rate, steps, train, test):
    """The linearized transformer by its kernel: at the steps of the training, and at the end of all times."""
    # At infinite time the smallest eigenvalues are inverted too, which float32 does not resolve.
    with jax.enable_x64(True):
        params, train, test = _in_float64((params0, train, test))
        kernel = empirical.empirical_ntk(model.apply, params, train.x)
        cross = empirical.empirical_ntk(model.apply, params, test.x, train.x)
        problem = dict(cross=cross, test=test)
        momentum = dict(learning_rate=rate, momentum=config.momentum)
        curve = ln.gradient_descent(kernel, train, save_at=steps, **momentum, **problem)
        limit = ln.gradient_flow(kernel, train, time=[math.inf], **problem)
    ends = {f"limit_{name}": limit.metrics[name][-1] for name in limit.metrics}
    # Steps, times and metrics alone: a kernel has no weights to store.
    return curve_arrays(Trajectory(*curve[:3], None, None)) | ends


def _in_float64(tree):
    return jax.tree.map(
        lambda leaf: leaf.astype("float64") if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        tree,
    )


def _milestones(arrays, name):
    """Steps until fitted and understood, and the delay between them; inf where there is none."""
    curve = curve_of(arrays, name)
    fitted = first_step(curve.step, curve.metrics["train_accuracy"], FITTED)
    understood = first_step(curve.step, curve.metrics["test_accuracy"], UNDERSTOOD)
    delay = understood - fitted if math.isfinite(fitted) else math.inf
    return {"fitted_at": fitted, "understood_at": understood, "delay": delay}


def _delay(config, arrays, name):
    """The delay in steps; where it has no end yet, what was waited for it."""
    milestones = _milestones(arrays, name)
    waited = config.steps - min(milestones["fitted_at"], config.steps)
    return milestones["delay"] if math.isfinite(milestones["delay"]) else waited


def _draw_milestones(config, arrays, ax):
    places = np.arange(len(config.alphas))
    milestones = [_milestones(arrays, f"alpha={alpha:g}") for alpha in config.alphas]
    looks = {"fitted_at": ("o--", "fitted"), "understood_at": ("s-", "understood")}
    for name, (look, label) in looks.items():
        values = np.array([entry[name] for entry in milestones])
        ax.plot(places, np.where(np.isfinite(values), values, np.nan), look, label=label)
    ax.axhline(config.steps, color="0.5", lw=1, ls=":", label="end of training")
    ax.set_xticks(places, [f"{alpha:g}" for alpha in config.alphas])
    ax.set(yscale="log", xlabel="alpha", ylabel="steps")


def _draw_attention(config, arrays, figure):
    """For every sum the attention from `=` to `a`, in the head where it varies most."""
    names = ["start", *(f"alpha={alpha:g}" for alpha in config.alphas if math.isfinite(alpha))]
    axes = figure.subplots(1, len(names))
    for ax, name in zip(axes, names, strict=True):
        to_a = arrays[f"{name}/attention"][..., 0]
        head = int(np.argmax(to_a.std(axis=(1, 2))))
        image = ax.imshow(to_a[head], vmin=0, vmax=1, cmap="viridis", origin="lower")
        ax.set_title(f"{name}, head {head}", fontsize=10)
        ax.set(xlabel="b", ylabel="a")
    figure.colorbar(image, ax=axes, label="attention of the block from = to a", shrink=0.8)
