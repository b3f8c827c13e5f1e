"""VGG-11 on CIFAR-10 as lazy training was tried out on it: images, network, first weights and SGD.

The square loss of the reference code is the mean over the batch and the k = 10 outputs, `sum (f -
y)^2 / (k n)`, which is 2/k times `lazynet.mse`, `sum (f - y)^2 / (2 n)`: its learning rate eta0 = 1
is 0.2 here. Targets are one-hot and the trained function is centered, `alpha (h(w) - h(w0))`, hence
zero at the start. Training in the displacement u = alpha (w - w0) is the reference's SGD on the
loss over alpha^2, for the square loss and the cross-entropy alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lazynet as ln
from experiments.harness import store
from experiments.harness.bounds import Count, Momentum, NonNegative, Positive
from experiments.shared.data import DataConfig, enlarged, load_images
from experiments.shared.training import LOSSES, batched_outputs, cell_arrays, checkpointed
from lazynet import datasets, initializers, trees, zoo
from lazynet.records import Data

__all__ = [
    "PAPER_TRAIN",
    "SMOKE_TRAIN",
    "Problem",
    "TrainConfig",
    "build",
    "cast",
    "learning_rate",
    "load_large_images",
    "start",
    "steps",
    "trained",
]


@dataclass(frozen=True)
class TrainConfig:
    """SGD with momentum and the learning rate eta0 / (1 + decay * epoch), eta0 as the reference code counts it.

    Attributes:
        eta0: First learning rate, as the reference code counts it.
        decay: By which an epoch divides the learning rate further.
        momentum: Heavy-ball momentum.
        batch_size: Examples of a step.
        epochs: Passes over the training images.
        augment: Whether images are cropped and flipped at random.
        loss: What is trained.
        records: Points of the curves after the start.
    """

    eta0: Positive = 1.0
    decay: NonNegative = 1 / 3
    momentum: Momentum = 0.9
    batch_size: Count = 128
    epochs: Count = 15
    augment: bool = False
    loss: Literal["mse", "cross_entropy"] = "mse"
    records: Count = 5


SMOKE_TRAIN = TrainConfig(eta0=0.3, batch_size=50, epochs=15, records=2)
PAPER_TRAIN = TrainConfig(epochs=70, augment=True, records=14)
"""How all experiments on VGG-11 train it in these presets, so that their numbers can stand side by side."""


class Problem(NamedTuple):
    """What all functions of one network share: the network, its first weights and the images, in one precision."""

    model: ln.Model
    params0: Any
    train: Data
    test: Data


def load_large_images(data: DataConfig) -> tuple[Data, Data]:
    """Train and test images `[n, 32, 32, c]`: digits, enlarged four times, stand in where there are no photographs."""
    train, test = load_images(data, data.n_train, data.n_test)
    if data.name == "digits":
        return _enlarged(train), _enlarged(test)
    return train, test


def build(width: float, gain: float) -> ln.Model:
    """VGG-11 whose channels are `width` times 64 to 512: standard parameterization, Xavier normal, zero biases."""
    return initializers.xavier_normal(zoo.vgg11(10, width=width, parameterization="standard"), gain)


def start(model: ln.Model, seed: int, parts: tuple[Data, Data], precision: str) -> Problem:
    """The problem in the given precision: channels standardized by the training set, and the seed's first weights."""
    train, test = cast(datasets.standardize(*parts, center="channel", scale="channel"), precision)
    return Problem(model, jax.jit(model.init)(jax.random.key(seed), train.x[:1]), train, test)


def cast(tree: Any, dtype: str) -> Any:
    """The same arrays in another precision."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.dtype(dtype)), tree)


def learning_rate(loss: str, eta0: float, outputs: int = 10) -> float:
    """The learning rate of lazynet's loss that is eta0 of the reference code's, `2 eta0 / k` for the square loss."""
    return eta0 * 2 / outputs if loss == "mse" else eta0


def steps(train: TrainConfig, n: int) -> int:
    """Steps of the whole training: incomplete last batches are dropped."""
    return train.epochs * (n // train.batch_size)


def trained(
    config,
    problem: Problem,
    function: Any,
    finish: Callable[[Any], dict[str, float]],
    advance: Callable[[int], None],
    checkpoint: Path,
) -> dict[str, Any]:
    """Trains a lazy function on the problem; `finish(u)` adds numbers of the end, unless training diverged.

    Weights and batches are functions of `config.seed` alone, so that all functions of a network
    share them. `seconds` are those of training with its records, interruptions left out.
    """
    settings = config.train
    n = len(problem.train.x)
    last = steps(settings, n)
    # Short trainings have fewer steps than records.
    save_at = np.unique(np.linspace(0, last, settings.records + 1).round().astype(int))
    rate = learning_rate(settings.loss, settings.eta0)
    curve = checkpointed(
        checkpoint,
        ln.objective(function, LOSSES[settings.loss]),
        trees.zeros_like(problem.params0),
        problem.train,
        ln.sgd(settings.momentum),
        advance,
        # Another stream than that of the weights, `key(seed)`.
        key=jax.random.fold_in(jax.random.key(1), config.seed),
        save_at=save_at.tolist(),
        learning_rate=ln.inverse_epoch_decay(rate, n // settings.batch_size, decay=settings.decay),
        batch_size=settings.batch_size,
        augment=datasets.crop_and_flip if settings.augment else None,
        test=problem.test,
        measure=_clock(checkpoint),
    )
    final = {name: float(values[-1]) for name, values in curve.metrics.items()}
    # Gates and distances of weights that are not finite mean nothing.
    if curve.diverged_at is None:
        final |= finish(curve.params)
    return cell_arrays(curve, final, batched_outputs(function, curve.params, problem.test.x))


def _clock(checkpoint: Path) -> Callable[[Any], dict[str, float]]:
    """Seconds since now, on top of those that a checkpoint counted."""
    counted = 0.0
    if checkpoint.exists():
        counted = float(store.load_arrays(checkpoint)["curve/metrics/seconds"][-1])
    begin = time.perf_counter() - counted
    return lambda params: {"seconds": time.perf_counter() - begin}


def _enlarged(digits: Data) -> Data:
    return Data(enlarged(digits.x), np.asarray(digits.y, np.float32))
