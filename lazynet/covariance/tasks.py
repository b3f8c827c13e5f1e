"""Planes that heads of networks ask for, as tasks for the compiled program of `cpu`.

A kernel is then computed in three parts. JAX computes what the images bring along to each layer
(pixels, norms); the program takes all planes through the layers; and JAX goes on with their sums.
The first and the last part are one and the same function of a network, traced twice: once with
`Asked`, which writes down what heads ask for, and once with `Answered`, which tells them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.covariance import cpu
from lazynet.covariance.chains import Chain
from lazynet.covariance.elementary import Unsupported
from lazynet.covariance.plans import Plan, planned
from lazynet.covariance.pointwise import Covariance, total
from lazynet.typing import Array

__all__ = ["Answered", "Asked", "Task", "Unsupported"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["first", "second", "exact"],
    meta_fields=["plan"],
)
@dataclasses.dataclass(frozen=True)
class Task:
    """Sums over planes of pairs of images.

    Attributes:
        plan: Of the passes through the layers.
        first, second: What the images of both sets bring along, `[numbers, n]`.
        exact: Where each image meets itself, the sums over equal positions `[1, n]`; else None.
    """

    plan: Plan
    first: Array
    second: Array
    exact: Covariance | None

    def answer(self, rows: np.ndarray, columns: np.ndarray) -> Covariance:
        """The sums of pairs, `[1, pairs]`; of each image with itself where there are exact ones."""
        first = np.asarray(self.first)
        second = np.asarray(self.second)
        if self.exact is not None:
            rows = columns = np.arange(first.shape[1])
        sums = cpu.sum_over_pairs(self.plan, first, second, rows, columns)[:, None]
        nngp, ntk = sums.astype(self.plan.dtype)
        found = Covariance(nngp, ntk if self.plan.trained else None)
        return found if self.exact is None else total([found, self.exact.map(np.asarray)])


class Asked:
    """Answers zeros for a number of pairs, and keeps the tasks."""

    def __init__(self, pairs: int):
        self.pairs = pairs
        self.tasks: list[Task] = []

    def __call__(self, chain: Chain | None, *, zero: bool, exact: Covariance | None) -> Covariance:
        """Zeros.

        Raises:
            Unsupported: If there is no program for these layers.
        """
        if chain is None:
            raise Unsupported("layers after a pool of all positions, or many channels")
        plan, sides = planned(chain, zero=zero, same=exact is not None)
        self.tasks.append(Task(plan, *sides, exact))
        pairs = self.pairs if exact is None else exact.nngp.shape[1]
        nothing = jnp.zeros((1, pairs), plan.dtype)
        return Covariance(nothing, nothing if plan.trained else None)


class Answered:
    """Gives the answers, in the order of the questions."""

    def __init__(self, answers: Sequence[Covariance]):
        self.answers = iter(answers)

    def __call__(self, chain: Chain | None, *, zero: bool, exact: Covariance | None) -> Covariance:
        """The next answer."""
        return next(self.answers)
