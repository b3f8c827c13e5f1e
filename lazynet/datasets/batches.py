"""The order in which an epoch of training visits the examples, of which batches are consecutive parts."""

from __future__ import annotations

import functools

import jax
from jaxtyping import Int, Key

from lazynet.typing import Array

__all__ = ["epoch_order"]


@functools.partial(jax.jit, static_argnums=2)
def epoch_order(key: Key[Array, ""], epoch: int | Int[Array, ""], n: int) -> Int[Array, "n"]:
    """Order in which an epoch of training visits n examples: the permutation of `fold_in(key, epoch)`.

    Batches are consecutive parts of it, of which an incomplete last one is dropped. All that trains
    takes this order, so that networks, ensembles of them and kernels see the same batches.

    Args:
        key: Of the training.
        epoch: Number of the epoch, from 0 on.
        n: Number of examples.

    Example:
        >>> sorted(epoch_order(jax.random.key(0), 1, 3).tolist())
        [0, 1, 2]
    """
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)
