"""Models written elsewhere, as `Model`s of finite width: modules of flax and equinox, triples of neural-tangents.

Parameters are arguments. Whatever else such a module holds (statistics, random keys, masks) is
constant, and an argument of the program too: `Model.apply` is then a `jax.tree_util.Partial` that
carries it.
"""

from __future__ import annotations

from lazynet.models.foreign.flax import from_flax
from lazynet.models.foreign.pytrees import from_equinox
from lazynet.models.foreign.triples import from_neural_tangents

__all__ = ["from_equinox", "from_flax", "from_neural_tangents"]
