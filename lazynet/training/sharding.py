"""Data-parallel training: examples are divided over devices and processes, everything else is on each of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["data_parallel", "first_shards", "place", "replicated"]


def data_parallel(devices: Sequence[Any] | None = None) -> NamedSharding:
    """The sharding of n examples over D devices, n/D on each: the argument `sharding` of `train` and `evaluate`.

    Each device differentiates its part of every batch and the gradients are averaged, `g = 1/D
    sum_d g_d`, so that a training curve is that of one device up to rounding. With several
    processes, call `jax.distributed.initialize` first (with a `heartbeat_timeout_seconds`, so that
    a lost process ends the others) and run the same program with the same data in each. `on_save`
    runs in every process: only `jax.process_index() == 0` should write files, and all processes
    should resume from the same one.

    Args:
        devices: Which devices; by default all of them, of all processes.

    Raises:
        ValueError: If there is no device.

    Example:
        >>> data_parallel().shard_shape((8 * jax.device_count(), 3))
        (8, 3)
    """
    chosen = jax.devices() if devices is None else list(devices)
    if not chosen or not all(isinstance(device, jax.Device) for device in chosen):
        raise ValueError(
            f"data_parallel got devices={chosen}, expected at least one of jax.devices(): None uses all."
        )
    return NamedSharding(Mesh(np.asarray(chosen), ("examples",)), PartitionSpec("examples"))


def replicated(sharding: NamedSharding) -> NamedSharding:
    """The sharding on the same devices that puts whole arrays on each.

    Example:
        >>> replicated(data_parallel()).is_fully_replicated
        True
    """
    return NamedSharding(sharding.mesh, PartitionSpec())


def place(tree: Any, sharding: NamedSharding | None) -> Any:
    """Puts the arrays of a tree, the same ones in every process, under a sharding; None leaves them where they are.

    Example:
        >>> place({"w": np.ones(3), "alpha": 2.0}, replicated(data_parallel()))["alpha"]
        2.0
    """
    return tree if sharding is None else jax.tree.map(functools.partial(_placed, sharding), tree)


def first_shards(tree: Any) -> Any:
    """This process's first copy of replicated arrays, as arrays of a single device.

    Example:
        >>> first_shards(place(np.ones(3), replicated(data_parallel()))).tolist()
        [1.0, 1.0, 1.0]
    """
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


def _placed(sharding, leaf):
    """Python numbers stay as they are: a compiled function takes them on any device, and weakly typed."""
    if not isinstance(leaf, jax.Array | np.ndarray):
        return leaf
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    # NumPy has no keys: their data are placed, and made keys again.
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _placed(sharding, jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # `device_put` is for the devices of this process; here each gives its devices their part.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
