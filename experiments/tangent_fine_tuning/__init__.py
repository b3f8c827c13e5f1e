"""Fine-tuning in the tangent space: how lazy it is before and after pretraining, what it reaches, arithmetic of tasks.

    python -m experiments run tangent_fine_tuning --preset smoke          # digits, 20 seconds
    python -m experiments run tangent_fine_tuning --set data.root=DIR     # about 3 CPU minutes

A convolutional network is pretrained on five classes and fine-tuned on a few images of the other
five: all weights, linearized, the last layer, factors of low rank (LoRA), linearized factors, and
the tangent kernel of the weights without training, at the time of the training and in its limit. All
this from the pretrained weights and from random ones, with the square loss, at the same share of
each one's largest stable rate. Then two tasks are learned apart, two and three of the new classes:
their tangents are added, and one is taken away from the tangent of both, in the network's weights
and in the linearized model. Expected:

- the linearized model is the flow of its kernel at the same time, and the network, which is the
  control, is further from it;
- from pretrained weights the linearized model comes near the network in accuracy;
- all weights and the last layer gain by pretraining;
- the sum of two tasks loses less of each in the linearized model, and they get in each other's way
  less often (`disentanglement_error`, among each task's classes);
- a task that is taken away is forgotten, more than the other one.

Expected, but not found on photographs: that pretrained weights are lazier than random ones. On
CIFAR-10 (JPEG) kappa is 0.71 at the pretrained weights and 0.63 at random ones, fine-tuning changes
the kernel by 1.7 and by 0.9 of its size, and the distance of network and linearized model is 0.53 and
0.14 of the change of outputs. The stable rate is 5.5 times larger there, and the images are fitted better, 98
against 72 %; but trained for the same time (`--set epochs=220`) random weights fit 99.7 %, and change
their kernel by 0.7. Nevertheless the linearized model is the better one from pretrained weights, 59.2
against 53.5 % of 1,000 test images; 5 classes, one seed. On digits, with one convolution, pretrained
weights are lazier: kappa is 0.14 and 0.26, the kernel changes by 0.16 and by 0.47, and the network is
better, 68 against 63 %.

Accuracies are those on new classes, among all ten outputs; those of tasks are among their own classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jax
import numpy as np
from rich.table import Table
from rich.text import Text

from experiments.harness.bounds import Count, Integer, Momentum, Positive, Seed, Values, check_batch
from experiments.harness.facts import within
from experiments.shared.data import DataConfig
from experiments.tangent_fine_tuning.arithmetic import MODELS, TASKS, combined
from experiments.tangent_fine_tuning.trainings import (
    METHODS,
    Problem,
    describe,
    kernel_solved,
    load,
    methods,
    network,
    pretrained,
    tuned,
)

__all__ = [
    "PRESETS",
    "TITLE",
    "XLA_EFFORT",
    "Config",
    "draw",
    "facts",
    "measure",
    "numbers",
    "report",
]

TITLE = "{title}"
# The smoke preset does little but compile.
XLA_EFFORT = 0
STARTS = ("random", "pretrained")
KERNELS = ("kernel", "kernel, limit")
GAINING = ("all weights", "last layer")
Way = Literal["all weights", "linearized", "last layer", "LoRA", "linearized LoRA"]


@dataclass(frozen=True)
class Config:
    """Images, network, pretraining and fine-tuning.

    Attributes:
        data: Photographs, of which half are of the first five classes.
        methods: Ways to fine-tune, of which the first two are always among them.
        few: Images of the other five classes to fine-tune on.
        widths: Channels of the convolutions, of stride two.
        pretraining_epochs: Epochs on the first five classes.
        epochs: Epochs on the few images.
        batch_size: Examples of a step.
        lr_fraction: Learning rate as a share of the largest stable one.
        momentum: Of gradient descent.
        rank: Of the factors.
        examples: Images on which kappa and changes of kernels are measured.
        scales: Factors of the sum of two tangents.
        seed: Of weights and batches.
    """

    data: DataConfig = field(
        default_factory=lambda: DataConfig("cifar10", n_train=20_000, n_test=2000)
    )
    methods: Annotated[tuple[Way, ...], Values(2)] = METHODS
    few: Count = 300
    widths: Annotated[tuple[Count, ...], Values(different=False)] = (16, 32, 64)
    pretraining_epochs: Count = 10
    epochs: Count = 40
    batch_size: Annotated[int, Integer(2)] = 20
    lr_fraction: Positive = 0.1
    momentum: Momentum = 0.9
    rank: Count = 4
    examples: Count = 100
    scales: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (
        0.25,
        0.5,
        0.75,
        1.0,
        1.5,
    )
    seed: Seed = 0

    def check(self, prefix: str) -> None:
        """Refuses fine-tunings without both that are compared, and batches of more images than there are."""
        check_batch(self.batch_size, self.few, f"{prefix}batch_size")
        if not set(METHODS[:2]) <= set(self.methods):
            raise ValueError(
                f"{prefix}methods={self.methods}: expected {METHODS[0]!r} and {METHODS[1]!r} among them."
            )


PRESETS = {
    "smoke": Config(
        DataConfig("digits", n_train=800, n_test=800),
        methods=METHODS[:3],
        few=60,
        widths=(32,),
        pretraining_epochs=20,
        epochs=20,
        rank=2,
        examples=40,
        scales=(0.5, 1.0),
    ),
    "laptop": Config(),
}


def measure(config: Config, store) -> dict[str, Any]:
    """Every fine-tuning as `START/METHOD/...`, how lazy the start is as `START/...`, arithmetic as `MODEL/...`."""
    problem = load(config)
    model = network(config)
    random = jax.jit(model.init)(jax.random.key(config.seed), problem.few.x)
    trained = pretrained(config, model, random, problem, store)
    arrays: dict[str, Any] = {}
    for start, params in zip(STARTS, (random, trained), strict=True):
        arrays |= _measured_from(config, model, params, start, problem, store)
    cell = store.read("arithmetic")
    if cell is None:
        store.console.print("arithmetic of tasks", highlight=False)
        cell = store.write("arithmetic", combined(config, model, trained, problem, arrays))
    # Displacements, each as large as a network, stay in the cells.
    return {name: value for name, value in (arrays | cell).items() if "/u/" not in name}


def _measured_from(config: Config, model, params, start: str, problem: Problem, store):
    arrays: dict[str, Any] = {}
    for name, method in methods(config, model, params, problem).items():
        cell = store.read(f"{start},{name}")
        if cell is None:
            store.console.print(f"fine-tuning from {start} weights: {name}", highlight=False)
            cell = store.write(f"{start},{name}", tuned(config, method, problem.few, problem.new))
        arrays |= {f"{start}/{name}/{entry}": value for entry, value in cell.items()}
    cell = store.read(f"{start},kernel")
    if cell is None:
        store.console.print(f"tangent kernel of {start} weights", highlight=False)
        # The flow ends when the linearized training does.
        time = float(arrays[f"{start}/linearized/time"])
        cell = store.write(f"{start},kernel", kernel_solved(model, params, problem, time))
    arrays |= {f"{start}/{entry}": value for entry, value in cell.items()}
    cell = store.read(f"{start},laziness")
    if cell is None:
        store.console.print(f"laziness of {start} weights", highlight=False)
        found = describe(config, model, params, problem, arrays, start)
        cell = store.write(f"{start},laziness", found)
    return arrays | {f"{start}/{entry}": value for entry, value in cell.items()}


def numbers(config: Config, arrays) -> dict[str, Any]:
    """Accuracies, seconds and laziness of every method, and all numbers of the arithmetic."""
    kept = {name: value for name, value in arrays.items() if np.ndim(value) == 0}
    summary: dict[str, Any] = {name: float(value) for name, value in kept.items()}
    title = f"{config.data.title}, {config.few} images of five new classes"
    return summary | {"title": title}


def facts(config: Config, arrays):
    """The linearized model is its kernel's flow, comes near the network, and adds up better."""
    value = {name: float(array) for name, array in arrays.items() if np.ndim(array) == 0}
    for start in STARTS:
        gap = value[f"{start}/gap_to_flow"]
        yield within(f"gap_to_flow/linearized/{start}", gap, at_most=0.1)
        # The network is the control: it is no flow of its first kernel.
        control = value[f"{start}/gap_to_flow_of_network"] / gap
        yield within(f"gap_to_flow/network_over_linearized/{start}", control, at_least=2.0)
    accuracy = {name: value[f"pretrained/{name}/accuracy"] for name in config.methods}
    loss = accuracy["all weights"] - accuracy["linearized"]
    yield within("accuracy/all_weights_less_linearized", loss, at_most=0.1)
    for name in (name for name in GAINING if name in config.methods):
        gain = accuracy[name] - value[f"random/{name}/accuracy"]
        yield within(f"gain_of_pretraining/{name}", gain, at_least=0.0)
    lost = {}
    for name in MODELS:
        losses = [value[f"{name}/alone/{task}"] - value[f"{name}/sum/{task}"] for task in TASKS]
        lost[name] = sum(losses) / len(losses)
        # The first task is the one that is removed.
        forgotten, kept = (
            value[f"{name}/both/{task}"] - value[f"{name}/removed/{task}"] for task in TASKS
        )
        yield within(f"forgotten_less_kept/{name}", forgotten - kept, at_least=0.1)
    difference = lost["linearized"] - lost["network"]
    yield within("lost_by_adding/linearized_less_network", difference, at_most=0.0)
    errors = [value[f"{name}/disentanglement"] for name in ("linearized", "network")]
    yield within("disentanglement_error/linearized_less_network", errors[0] - errors[1], at_most=0)


def report(summary):
    """Methods from both starts; then tasks alone, added and removed."""
    entries = {"accuracy": "acc.", "seconds": "CPU s", "kappa": "kappa", "ntk_change": "NTK ch."}
    columns = [f"{start[:6]}.\n{title}" for start in STARTS for title in entries.values()]
    table = Table("method", *columns, box=None)
    for method in (*METHODS, *KERNELS):
        values = [summary.get(f"{start}/{method}/{name}") for start in STARTS for name in entries]
        if any(value is not None for value in values):
            table.add_row(method, *("" if value is None else f"{value:.3g}" for value in values))
    yield table
    yield Text()
    table = Table("tasks", *(f"{model}\n{task}" for model in MODELS for task in TASKS), box=None)
    for what in ("before", "alone", "sum", "both", "removed"):
        values = [summary[f"{model}/{what}/{task}"] for model in MODELS for task in TASKS]
        table.add_row(what, *(f"{100 * value:.1f} %" for value in values))
    yield table
    errors = [f"{model} {summary[f'{model}/disentanglement']:.3f}" for model in MODELS]
    yield f"disentanglement error: {', '.join(errors)}"


def draw(config: Config, arrays):
    """Accuracies, laziness, the sum of two tasks against its scale, and one task removed."""
    from experiments.tangent_fine_tuning.figure import figure

    names = (*config.methods, *KERNELS)
    return {"tangent_fine_tuning": figure(config, arrays, STARTS, names)}
