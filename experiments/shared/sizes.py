"""Networks of the same number of parameters, so that what is compared is their form."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any

import jax

import lazynet as ln

__all__ = ["largest_width", "parameters"]

WIDEST = 512
"""More channels than a network of comparable size has."""


def parameters(model: ln.Model, x: Any) -> int:
    """How many parameters a model has on such inputs."""
    # Shapes alone: nothing is drawn, since many widths are tried.
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def largest_width(make: Callable[[int], ln.Model], model: ln.Model, x: Any) -> int:
    """The largest width at which `make(width)` has no more parameters than a model."""
    size = parameters(model, x)
    # How many of the widths 1, 2, ... are no larger is the largest of them.
    return bisect.bisect(range(1, WIDEST), size, key=lambda width: parameters(make(width), x))
