"""The computations of `lazy_vs_standard`: data, network, one training per (seed, alpha), and the kernel flow."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import lazynet as ln
from experiments.harness.progress import advancing, bar
from experiments.shared.training import (
    LOSSES,
    batched_outputs,
    cell_arrays,
    checkpointed,
    stored_cell,
)
from lazynet import datasets, diagnostics, dynamics, empirical, kernels, trees, zoo
from lazynet.records import Data, Trajectory

__all__ = ["kernel_curve", "load_data", "train_cells"]

ACTIVATIONS = {"relu": ln.Relu, "erf": ln.Erf, "gelu": ln.Gelu}


def load_data(config) -> tuple[Data, Data]:
    """Train and test set, standardized by the training set, with the targets that the loss needs."""
    data = config.data
    if data.name == "digits":
        train, test = datasets.digits(data.n_train, data.n_test)
        train, test = datasets.standardize(train, test, center="feature", scale="global")
    else:
        root = datasets.data_root(data.root)
        train, test = datasets.cifar10(
            root, download=data.download, n_train=data.n_train, n_test=data.n_test
        )
        train, test = datasets.standardize(train, test, center="channel", scale="channel")
        if config.network.name == "mlp":
            train, test = (Data(part.x.reshape(len(part.x), -1), part.y) for part in (train, test))
    if config.loss == "mse":
        train = datasets.center_targets(train)
        test = datasets.center_targets(test)
    dtype = jnp.dtype(config.precision)
    return tuple(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), part) for part in (train, test)
    )


def build(config) -> ln.Model:
    """The network of the configuration."""
    network = config.network
    settings = dict(
        activation=ACTIVATIONS[network.activation](), W_std=network.W_std, b_std=network.b_std
    )
    if network.name == "mlp":
        model = zoo.mlp(network.widths, 10, **settings)
    elif network.name == "cnn":
        model = zoo.cnn(network.widths, 10, strides=network.strides, **settings)
    else:
        model = zoo.vgg11(10, **settings)
    return ln.symmetrize(model) if config.doubled else model


def train_cells(config, train: Data, test: Data, folder: Path, console) -> tuple[dict, list[dict]]:
    """Every (seed, alpha): its curve, its final numbers and its final test outputs; and each seed's learning rates."""
    model = build(config)
    cells = {}
    rates = []
    steps = config.train.epochs * (len(train.x) // config.train.batch_size)
    with bar(console, "steps") as progress:
        task = progress.add_task("training", total=steps * config.seeds * len(config.alphas))
        for seed in range(config.seeds):
            start = _start(config, seed, model, train, test)
            rates.append(start.rates)
            for alpha in config.alphas:
                progress.update(task, description=f"seed {seed}, alpha {alpha:g}")
                advance = advancing(progress, task, steps * len(cells))
                path = folder / "cells" / f"seed={seed},alpha={alpha:g}.npz"
                cells[seed, alpha] = stored_cell(path, partial(_train_cell, start, alpha, advance))
                progress.update(task, completed=steps * len(cells))
    _compare_with_linearized(config, cells)
    return cells, rates


def kernel_curve(
    config, train: Data, test: Data, clock: float, folder: Path, console
) -> tuple[Trajectory | None, str]:
    """Gradient flow of the infinitely wide network on the common clock, and on which data; or None and the reason.

    Kernels of images, which take minutes, are stored tile by tile.
    """
    if config.network.name == "vgg11":
        return None, "max-pooling has no infinite-width limit in closed form"
    train, test = (
        Data(part.x[: config.kernel_images], part.y[: config.kernel_images])
        for part in (train, test)
    )
    label = f"{len(train.x)} train and {len(test.x)} test images"
    with console.status(f"infinite-width kernel of {label}"):
        model = build(config)
        stores = [
            folder / "kernels" / name if train.x.ndim == 4 else None for name in ("train", "test")
        ]
        ntk = kernels.analytic_kernel(model, train.x, store=stores[0]).ntk
        cross = kernels.analytic_kernel(model, test.x, train.x, store=stores[1]).ntk
        times = np.concatenate([[0.0], np.geomspace(clock / 10_000, clock, 60)])
        curve = dynamics.gradient_flow(
            ntk, train, time=times, loss=LOSSES[config.loss], cross=cross, test=test
        )
    return curve, label


class Start(NamedTuple):
    """What all alphas of one seed share; `ntk0` is the initial tangent kernel on a few test examples."""

    config: Any
    seed: int
    model: ln.Model
    params0: Any
    ntk0: Any
    rates: dict[str, float]
    key: Any
    train: Data
    test: Data


def _start(config, seed, model, train, test) -> Start:
    params0 = jax.jit(model.init)(jax.random.fold_in(jax.random.key(0), seed), train.x)
    ntk0 = empirical.empirical_ntk(
        model.apply, params0, test.x[: config.ntk_examples], outputs="trace"
    )
    rates = _rates(config, model, params0, train, seed)
    return Start(
        config,
        seed,
        model,
        params0,
        ntk0,
        rates,
        jax.random.fold_in(jax.random.key(1), seed),
        train,
        test,
    )


def _rates(config, model, params0, train, seed):
    """The largest stable full-batch learning rate of the initial tangent kernel, and the one that is used."""
    x = train.x[: config.lr_examples]
    key = jax.random.fold_in(jax.random.key(2), seed)
    bound = empirical.estimate_max_learning_rate(
        model.apply, params0, x, momentum=config.train.momentum, key=key
    )
    top = 2 * (1 + config.train.momentum) / bound
    return {"learning_rate": config.train.lr_fraction * bound, "lr_max": bound, "lambda_max": top}


def _train_cell(start, alpha, advance, checkpoint):
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
        test=start.test,
        measure=lambda u: {"param_drift": trees.norm(u) / (alpha * norm0)},
    )
    outputs = batched_outputs(function, curve.params, start.test.x)
    return cell_arrays(curve, _final(start, alpha, curve), outputs)


def _final(start, alpha, curve) -> dict[str, float]:
    """Numbers of the end of training: how far weights, kernel and gates are from initialization."""
    final = {name: float(values[-1]) for name, values in curve.metrics.items()}
    weights = jax.jit(ln.weights)(ln.lazy(start.model.apply, start.params0, alpha), curve.params)
    if np.isfinite(alpha) and curve.diverged_at is None:
        inputs = start.test.x[: start.config.ntk_examples]
        ntk = empirical.empirical_ntk(start.model.apply, weights, inputs, outputs="trace")
        final["ntk_change"] = float(diagnostics.kernel_distance(ntk, start.ntk0))
        if start.config.network.activation == "relu":
            x = start.test.x[:1000]
            final["stability"] = float(
                diagnostics.activation_stability(start.model, weights, start.params0, x).total
            )
    return final


def _compare_with_linearized(config, cells) -> None:
    """Adds the gap to the linearized model of the same seed, each with its own weights, to every finite alpha."""
    for (seed, alpha), cell in cells.items():
        reference = cells.get((seed, float("inf")))
        if reference is not None and np.isfinite(alpha):
            gap = diagnostics.output_gap(cell["outputs"], reference["outputs"])
            cell["final"]["linearization_gap"] = float(gap)
            same = cell["outputs"].argmax(1) == reference["outputs"].argmax(1)
            cell["final"]["agreement"] = float(np.mean(same))


def _function(config, apply, params0, alpha):
    """`lazy(apply, params0, alpha)`; without centering, the outputs at initialization are added back, times alpha."""
    centered = ln.lazy(apply, params0, alpha)
    return centered if config.center else Partial(_uncentered, centered)


def _uncentered(centered, u, x):
    factor = 1.0 if centered.is_tangent else centered.alpha
    return centered(u, x) + factor * centered.apply(centered.params0, x)


def _save_at(config, n):
    """Records evenly spaced in the logarithm and in time, so that curves and progress are smooth."""
    steps = config.train.epochs * (n // config.train.batch_size)
    even = np.linspace(0, steps, config.train.records // 2 + 1).round().astype(int)
    return sorted({*ln.log_spaced(steps, config.train.records // 2), *even.tolist()})
