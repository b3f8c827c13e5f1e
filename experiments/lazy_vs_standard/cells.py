"""The computations of `lazy_vs_standard`: data, network, one training per (seed, alpha), and the kernel flow."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import lazynet as ln
from experiments.harness.progress import advancing, bar
from experiments.shared.data import load_images
from experiments.shared.own import own_model
from experiments.shared.training import (
    LOSSES,
    batched_outputs,
    cell_arrays,
    checkpointed,
    named,
)
from lazynet import datasets, diagnostics, dynamics, empirical, kernels, trees, zoo
from lazynet.records import Data
from lazynet.training.checkpoints import curve_arrays

__all__ = ["build", "kernel_curve", "load_data", "train_all"]

ACTIVATIONS = {"relu": ln.Relu, "erf": ln.Erf, "gelu": ln.Gelu}


def load_data(config) -> tuple[Data, Data]:
    """Train and test set, standardized by the training set, with the targets that the loss needs."""
    parts = load_images(config.data, config.data.n_train, config.data.n_test)
    # The pixels at the borders of digits are constant: by their own deviations they would be divided by zero.
    if config.data.name == "digits":
        parts = datasets.standardize(*parts, center="feature", scale="global")
    else:
        parts = datasets.standardize(*parts, center="channel", scale="channel")
    if config.network.name == "mlp" and (not config.model or config.data.name == "digits"):
        parts = [part._replace(x=part.x.reshape(len(part.x), -1)) for part in parts]
    if config.loss == "mse":
        parts = [datasets.center_targets(part) for part in parts]
    dtype = jnp.dtype(config.precision)
    train, test = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tuple(parts))
    return train, test


def build(config) -> ln.Model:
    """The network of the configuration."""
    network = config.network
    if config.model:
        model = own_model(config.model)
        return ln.symmetrize(model) if config.doubled else model
    activation = ACTIVATIONS[network.activation]()
    settings = dict(activation=activation, W_std=network.W_std, b_std=network.b_std)
    if network.name == "mlp":
        model = zoo.mlp(network.widths, 10, **settings)
    elif network.name == "cnn":
        model = zoo.cnn(network.widths, 10, strides=network.strides, **settings)
    else:
        model = zoo.vgg11(10, **settings)
    return ln.symmetrize(model) if config.doubled else model


def train_all(config, train: Data, test: Data, store) -> dict[str, Any]:
    """Every training, compared with the linearized one of its seed, and each seed's learning rates."""
    model = build(config)
    steps = config.train.epochs * (len(train.x) // config.train.batch_size)
    done = 0
    arrays: dict[str, Any] = {}
    with bar(store.console, "steps") as progress:
        task = progress.add_task("training", total=steps * config.seeds * len(config.alphas))
        for seed in range(config.seeds):
            start = _start(config, seed, model, train, test)
            cells = {}
            for alpha in config.alphas:
                progress.update(task, description=f"seed {seed}, alpha {alpha:g}")
                name = f"seed={seed},alpha={alpha:g}"
                cells[alpha] = store.read(name)
                if cells[alpha] is None:
                    advance = advancing(progress, task, done)
                    cell = _train(start, alpha, advance, store.checkpoint(name))
                    cells[alpha] = store.write(name, cell)
                done += steps
                progress.update(task, completed=done)
            arrays |= {f"seed={seed}/{name}": value for name, value in start.rates.items()}
            for alpha, cell in _compared_with_linearized(cells).items():
                arrays |= named(f"seed={seed}/alpha={alpha:g}", cell)
    return arrays


def kernel_curve(config, train: Data, test: Data, clock: float, store) -> dict[str, Any]:
    """Gradient flow of the infinitely wide network on the common clock, and on which data; or why there is none."""
    if config.model and build(config).kernel is None:
        return {"kernel_left_out": "the network has no infinite-width limit here"}
    if config.network.name == "vgg11" and not config.model:
        return {"kernel_left_out": "max-pooling has no infinite-width limit in closed form"}
    train, test = jax.tree.map(lambda leaf: leaf[: config.kernel_images], (train, test))
    label = f"{len(train.x)} train and {len(test.x)} test images"
    with store.status(f"infinite-width kernel of {label}"):
        model = build(config)
        # Kernels of images take minutes: they are stored tile by tile.
        images = train.x.ndim == 4
        tiles = store.kernels("train") if images else None
        ntk = kernels.analytic_kernel(model, train.x, store=tiles).ntk
        tiles = store.kernels("test") if images else None
        cross = kernels.analytic_kernel(model, test.x, train.x, store=tiles).ntk
        # Down to a step or less: modes of large eigenvalues have ended before the first epoch has.
        times = np.concatenate([[0.0], np.geomspace(clock / 10_000, clock, 60)])
        loss = LOSSES[config.loss]
        curve = dynamics.gradient_flow(ntk, train, time=times, loss=loss, cross=cross, test=test)
    return named("kernel", curve_arrays(curve)) | {"kernel_data": label}


class Start(NamedTuple):
    """What all alphas of one seed share; `ntk0` is the initial tangent kernel on a few test examples."""

    config: Any
    model: ln.Model
    params0: Any
    ntk0: Any
    rates: dict[str, float]
    key: Any
    train: Data
    test: Data


def _start(config, seed, model, train, test) -> Start:
    # Streams 0, 1 and 2 of a seed: weights, batches, and the estimate of the largest rate.
    params0 = jax.jit(model.init)(jax.random.fold_in(jax.random.key(0), seed), train.x)
    inputs = test.x[: config.ntk_examples]
    ntk0 = empirical.empirical_ntk(model.apply, params0, inputs, outputs="trace")
    rates = _rates(config, model, params0, train, seed)
    key = jax.random.fold_in(jax.random.key(1), seed)
    return Start(config, model, params0, ntk0, rates, key, train, test)


def _rates(config, model, params0, train, seed):
    """The largest stable full-batch learning rate of the initial tangent kernel, and the one that is used."""
    x = train.x[: config.lr_examples]
    key = jax.random.fold_in(jax.random.key(2), seed)
    bound = empirical.estimate_max_learning_rate(
        model.apply, params0, x, momentum=config.train.momentum, key=key
    )
    return {
        "learning_rate": config.train.lr_fraction * bound,
        "lr_max": bound,
        # bound = 2 (1 + m) n / lambda_max.
        "lambda_max_over_n": 2 * (1 + config.train.momentum) / bound,
    }


def _train(start, alpha, advance, checkpoint):
    config = start.config
    function = _function(config, start.model.apply, start.params0, alpha)
    u = trees.zeros_like(start.params0)
    norm0 = float(trees.norm(start.params0))
    curve = checkpointed(
        checkpoint,
        ln.objective(function, LOSSES[config.loss]),
        u,
        start.train,
        ln.sgd(config.train.momentum),
        advance,
        key=start.key,
        save_at=_save_at(config, len(start.train.x)),
        learning_rate=start.rates["learning_rate"],
        batch_size=config.train.batch_size,
        augment=datasets.crop_and_flip if config.train.augment else None,
        test=start.test,
        measure=lambda u: {"param_drift": trees.norm(u) / (alpha * norm0)},
    )
    outputs = batched_outputs(function, curve.params, start.test.x)
    return cell_arrays(curve, _final(start, alpha, curve), outputs)


def _final(start, alpha, curve) -> dict[str, float]:
    """Numbers of the end of training: how far weights, kernel and gates are from initialization."""
    end = {name: float(values[-1]) for name, values in curve.metrics.items()}
    # w = w0 + u / alpha, centered or not: a function that is not has no `weights` of its own.
    weights = jax.jit(ln.weights)(ln.lazy(start.model.apply, start.params0, alpha), curve.params)
    if np.isfinite(alpha) and curve.diverged_at is None:
        inputs = start.test.x[: start.config.ntk_examples]
        ntk = empirical.empirical_ntk(start.model.apply, weights, inputs, outputs="trace")
        end["ntk_change"] = float(diagnostics.kernel_distance(ntk, start.ntk0))
        if start.config.network.activation == "relu" and not start.config.model:
            x = start.test.x[:1000]
            stable = diagnostics.activation_stability(start.model, weights, start.params0, x)
            end["stability"] = float(stable.total)
    return end


def _compared_with_linearized(cells: dict[float, dict]) -> dict[float, dict]:
    """The trainings of a seed with the gap to the linearized one, each with its own weights, for every finite alpha.

    What diverged is not compared, and nothing is with a linearized model that diverged.
    """
    reference = cells.get(np.inf)
    # It is -1 where training did not diverge.
    if reference is None or reference["curve/diverged_at"] >= 0:
        return cells
    compared = {}
    for alpha, cell in cells.items():
        if np.isfinite(alpha) and cell["curve/diverged_at"] < 0:
            same = cell["outputs"].argmax(1) == reference["outputs"].argmax(1)
            gap = diagnostics.output_gap(cell["outputs"], reference["outputs"])
            cell = cell | {"final/linearization_gap": gap, "final/agreement": np.mean(same)}
        compared[alpha] = cell
    return compared


def _function(config, apply, params0, alpha):
    """`lazy(apply, params0, alpha)`; without centering, the outputs at initialization are added back, times alpha."""
    centered = ln.lazy(apply, params0, alpha)
    return centered if config.center else Partial(_uncentered, centered)


def _uncentered(centered, u, x):
    # At alpha = inf the tangent of h itself, h(w0) + Dh(w0) u.
    factor = 1.0 if centered.is_tangent else centered.alpha
    return centered(u, x) + factor * centered.apply(centered.params0, x)


def _save_at(config, n):
    """Records evenly spaced in the logarithm and in time, so that curves and progress are smooth."""
    steps = config.train.epochs * (n // config.train.batch_size)
    even = np.linspace(0, steps, config.train.records // 2 + 1).round().astype(int)
    return sorted({*ln.log_spaced(steps, config.train.records // 2), *even.tolist()})
