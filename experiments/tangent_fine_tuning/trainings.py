"""The network, its two data sets, and the ways to fine-tune it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lazynet as ln
from experiments.shared.data import load_images
from experiments.shared.training import batched_outputs, checkpointed
from lazynet import datasets, diagnostics, dynamics, guards, trees, zoo
from lazynet.records import Data

__all__ = [
    "METHODS",
    "OLD",
    "Method",
    "Problem",
    "displacement",
    "describe",
    "kernel_solved",
    "load",
    "methods",
    "network",
    "pretrained",
    "tuned",
]

OLD = 5
"""The number of classes of the pretraining, the first ones of ten."""

CLASSES = 10
METHODS = ("all weights", "linearized", "last layer", "LoRA", "linearized LoRA")
MEASURED = {"restarts": 1, "iterations": 10}
PROBES = 10


class Problem(NamedTuple):
    """Images of the old classes to pretrain on and to test, few of the new classes, and their test images."""

    old: Data
    old_test: Data
    few: Data
    new: Data


class Method(NamedTuple):
    """A function, the weights it starts from, which of them are trained, and whether it is linearized."""

    apply: Any
    params: Any
    where: Any
    linearized: bool


def load(config) -> Problem:
    """Standardized images and centered targets of ten classes, apart by old and new ones."""
    train, test = load_images(config.data, config.data.n_train, config.data.n_test)
    train, test = datasets.standardize(train, test, center="channel", scale="channel")
    parts = []
    for part in (train, test):
        is_old = np.asarray(part.y).argmax(axis=1) < OLD
        centered = datasets.center_targets(part)
        parts += [jax.tree.map(lambda leaf, at=at: leaf[at], centered) for at in (is_old, ~is_old)]
    old, new, old_test, new_test = parts
    # A slice would take fewer without a word.
    fix = "the training images of the new classes, half of data.n_train"
    guards.count("few", config.few, at_most=len(new.y), fix=fix)
    few = jax.tree.map(lambda leaf: leaf[: config.few], new)
    in_float32 = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32), (old, old_test, few, new_test)
    )
    return Problem(*in_float32)


def network(config) -> ln.Model:
    """Convolutions of stride two, the mean over positions, and a linear head for all ten classes."""
    return zoo.cnn(config.widths, CLASSES, strides=(2,) * len(config.widths), b_std=0.1)


def pretrained(config, model, params, problem: Problem, store) -> Any:
    """The weights after training on the old classes, from the store or made now."""
    leaves, structure = jax.tree.flatten(params)
    cell = store.read("pretrained")
    if cell is None:
        store.console.print("pretraining", highlight=False)
        steps = config.pretraining_epochs * (len(problem.old.y) // config.batch_size)
        curve = checkpointed(
            store.checkpoint("pretrained"),
            ln.objective(model.apply, ln.mse),
            params,
            problem.old,
            ln.sgd(config.momentum),
            lambda step: None,
            key=jax.random.key(config.seed),
            # Checkpoints are written at records: one halfway lets a killed pretraining go on.
            save_at=[steps // 2, steps],
            learning_rate=_rate(config, model.apply, params, problem.old.x, None),
            batch_size=config.batch_size,
            test=problem.old_test,
        )
        # Arrays are stored by name: leaves by their number, in the order of the structure.
        found = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(curve.params))}
        found["test_accuracy"] = curve.metrics["test_accuracy"][-1]
        cell = store.write("pretrained", found)
    return structure.unflatten([jnp.asarray(cell[str(i)]) for i in range(len(leaves))])


def methods(config, model: ln.Model, params: Any, problem: Problem) -> dict[str, Method]:
    """The ways to fine-tune from these weights that the configuration asks for, by name."""
    # By number, since as text 10 comes before 9.
    last = sorted(params, key=lambda name: int(name.split("_")[0]))[-1]
    found = {
        "all weights": Method(model.apply, params, None, False),
        "linearized": Method(model.apply, params, None, True),
        "last layer": Method(model.apply, params, _Below(last), False),
    }
    if {"LoRA", "linearized LoRA"} & set(config.methods):
        adapted = ln.lora(model, rank=config.rank)
        drawn = adapted.init(jax.random.key(config.seed + 1), problem.few.x)
        # The factor B is zero at the start: the function is that of the given weights.
        low_rank = {**drawn, "weights": params}
        of_factors = _Below("factors")
        found["LoRA"] = Method(adapted.apply, low_rank, of_factors, False)
        found["linearized LoRA"] = Method(adapted.apply, low_rank, of_factors, True)
    return {name: found[name] for name in config.methods}


def tuned(config, method: Method, data: Data, test: Data) -> dict[str, Any]:
    """What a method has learned of the data: its displacement `u/...`, outputs on the test images, and CPU seconds."""
    began = time.process_time()
    start = ln.tangent_at(method.apply, method.params)
    rate = _rate(config, method.apply, method.params, data.x, method.where)
    steps = config.epochs * (len(data.y) // config.batch_size)
    curve = ln.train(
        ln.objective(start.function if method.linearized else method.apply, ln.mse),
        # The displacement starts at zero, the weights where they are.
        None if method.linearized else method.params,
        data,
        ln.sgd(config.momentum),
        key=jax.random.key(config.seed),
        save_at=[steps],
        learning_rate=rate,
        batch_size=config.batch_size,
        where=method.where,
    )
    u = curve.params if method.linearized else trees.subtract(curve.params, method.params)
    seconds = time.process_time() - began
    function = start.function if method.linearized else method.apply
    outputs = batched_outputs(function, curve.params, test.x)
    found = {f"u/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(u))}
    return found | {
        "outputs": outputs,
        "accuracy": ln.accuracy(outputs, np.asarray(test.y)),
        "train_accuracy": curve.metrics["train_accuracy"][-1],
        "train_loss": curve.metrics["train_loss"][-1],
        "time": curve.time[-1],
        "seconds": seconds,
    }


def kernel_solved(model, params, problem: Problem, moment: float) -> dict[str, Any]:
    """Fine-tuning without training: the flow of the tangent kernel at the time of the training, and its limit."""
    began = time.process_time()
    few, new = problem.few, problem.new
    start = ln.tangent_at(model.apply, params)
    kernel = start.kernel(few.x)
    times = [moment, np.inf]
    flow = dynamics.solve_flow(kernel, few.y, time=times, f0=model.apply(params, few.x))
    weights = dynamics.linearized_weights(model.apply, params, few.x, flow.coefficients)
    found = {"seconds": time.process_time() - began}
    arrays = {}
    for i, name in enumerate(("kernel", "kernel, limit")):
        # Weights of both times, `[2, ...]`, as displacements of the linearized model.
        moved = jax.tree.map(lambda leaf, w0, i=i: leaf[i] - w0, weights, params)
        outputs = batched_outputs(start.function, moved, new.x)
        accuracy = ln.accuracy(outputs, np.asarray(new.y))
        entries = {"outputs": outputs, "accuracy": accuracy} | found
        arrays |= {f"{name}/{entry}": value for entry, value in entries.items()}
    return arrays


def describe(config, model, params, problem: Problem, arrays, start: str) -> dict[str, Any]:
    """How lazy fine-tuning is: kappa at its start, the change of the kernel at its end, and gaps of outputs."""
    key = jax.random.key(config.seed)
    few = jax.tree.map(lambda leaf: leaf[: config.examples], problem.few)
    found: dict[str, Any] = {}
    for name, method in methods(config, model, params, problem).items():
        if method.linearized or name == "last layer":
            # Linear in what is trained: no second derivative, and a kernel that stays.
            found |= {f"{name}/kappa": 0.0, f"{name}/ntk_change": 0.0}
            continue
        where = {"where": method.where, "key": key}
        found[f"{name}/kappa"] = diagnostics.kappa(
            method.apply, method.params, few, **where, **MEASURED
        )
        moved = displacement(arrays, f"{start}/{name}", method.params)
        weights = trees.add(method.params, moved)
        found[f"{name}/ntk_change"] = diagnostics.ntk_change(
            method.apply, weights, method.params, few.x, probes=PROBES, **where
        )
    # Gaps are relative to the change of outputs, not to outputs that the start already has.
    before = batched_outputs(model.apply, params, problem.new.x)
    outputs = {
        name: arrays[f"{start}/{name}/outputs"] - before
        for name in ("all weights", "linearized", "kernel")
    }
    gaps = {
        "gap_to_linearized": ("all weights", "linearized"),
        "gap_to_flow": ("linearized", "kernel"),
        "gap_to_flow_of_network": ("all weights", "kernel"),
    }
    for name, (one, other) in gaps.items():
        found[name] = diagnostics.output_gap(outputs[one], outputs[other])
    return found | {"accuracy_before": ln.accuracy(before, np.asarray(problem.new.y))}


def displacement(arrays, name: str, params: Any) -> Any:
    """The displacement among the arrays of a fine-tuning, as a tree like the weights."""
    structure = jax.tree.structure(params)
    leaves = [jnp.asarray(arrays[f"{name}/u/{i}"]) for i in range(structure.num_leaves)]
    return structure.unflatten(leaves)


class _Below(NamedTuple):
    """Selects the parameters below a name."""

    name: str

    def __call__(self, path):
        return path.split("/")[0] == self.name


def _rate(config, apply, params, x, where):
    largest = ln.estimate_max_learning_rate(
        apply,
        params,
        x[:200],
        momentum=config.momentum,
        key=jax.random.key(config.seed),
        where=where,
    )
    return config.lr_fraction * largest
