"""Any kernel function, block by block."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import guards
from lazynet.kernels.empirical.arguments import Examples, check_examples
from lazynet.typing import ArrayLike

__all__ = ["batch"]


def batch(
    kernel_fn: Callable[..., Any],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
) -> Callable[..., Any]:
    """The same kernel `kernel_fn(x1, x2)`, from blocks of `batch_size` rows and columns on several devices.

    The number of examples need not be a multiple of anything. `kernel_fn` is called as it is:
    compile it yourself if it is not a function of lazynet. `analytic_kernel` and `empirical_ntk`
    have tiles, memory budgets and stores of their own, and compute the upper triangle only.

    Args:
        kernel_fn: `kernel_fn(x1, x2, *args, **kwargs)` with values `[n1, n2, ...]`, or a pytree of
            them.
        batch_size: Rows and columns of a block; 0 for all.
        device_count: Number of devices that take blocks in turn; -1 for all of this process, 0 for
            the default one.
        store_on_device: False collects the blocks on the host.

    Returns:
        A function with the arguments of `kernel_fn`.

    Raises:
        TypeError: If `kernel_fn` is no function, or a number of the wrong type; when called, if
            inputs are no arrays.
        ValueError: If `batch_size` is negative or there are not as many devices; when called, if
            there are no examples, or a value does not have the shape `[n1, n2, ...]`.

    Example:
        >>> kernel_fn = batch(lambda x1, x2: x1 @ (x1 if x2 is None else x2).T, batch_size=2)
        >>> kernel_fn(jnp.eye(3), None).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if not callable(kernel_fn):
        raise TypeError(f"kernel_fn got {kernel_fn!r}, expected a function of (x1, x2).")
    batch_size = guards.count(
        "batch_size", batch_size, at_least=0, fix="0 takes everything at once"
    )
    devices = _devices(device_count)

    def batched(x1: Examples, x2: Examples | None = None, *args: Any, **kwargs: Any) -> Any:
        if batch_size == 0 and len(devices) == 1:
            return kernel_fn(x1, x2, *args, **kwargs)
        turns = itertools.cycle(devices)
        placed = functools.cache(lambda device: _placed((args, kwargs), device, len(devices)))
        other = x1 if x2 is None else x2
        n1 = check_examples("x1", x1)
        n2 = check_examples("x2", other)
        side = batch_size or -(-n1 // len(devices))
        width = batch_size or n2
        rows = []
        for i in range(0, n1, side):
            row = []
            for j in range(0, n2, width):
                device = next(turns)
                parts = _placed((_part(x1, i, side), _part(other, j, width)), device, len(devices))
                own = (parts[0], None) if x2 is None and i == j and side == width else parts
                more, named = placed(device)
                row.append(
                    _checked(
                        kernel_fn(*own, *more, **named),
                        (min(side, n1 - i), min(width, n2 - j)),
                        store_on_device,
                        devices,
                    )
                )
            rows.append(row)
        return _joined(rows)

    return batched


def _devices(count: int) -> list[Any]:
    every = jax.local_devices()
    fix = "-1 takes all devices of this process, 0 the default one"
    count = guards.count("device_count", count, at_least=-1, at_most=len(every), fix=fix)
    return every if count == -1 else every[: max(1, count)]


def _placed(tree: Any, device: Any, several: int) -> Any:
    """Arrays on the device; with one device everything stays where it is."""
    if several == 1:
        return tree
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, device) if isinstance(leaf, ArrayLike) else leaf, tree
    )


def _part(x: Examples, start: int, size: int) -> Examples:
    return jax.tree.map(lambda leaf: leaf[start : start + size], x)


def _checked(
    block: Any, expected: tuple[int, int], store_on_device: bool, devices: list[Any]
) -> Any:
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(block)]
    if any(shape[:2] != expected for shape in shapes):
        raise ValueError(
            f"kernel_fn returned shapes {shapes}, expected each to begin with {expected}, rows and columns."
        )
    if not store_on_device:
        return jax.tree.map(np.asarray, block)
    return jax.device_put(block, devices[0]) if len(devices) > 1 else block


def _joined(rows: list[list[Any]]) -> Any:
    def join(axis, *blocks):
        return (np if isinstance(blocks[0], np.ndarray) else jnp).concatenate(blocks, axis)

    # a kernel_fn may make the class of its records anew at each call: all blocks are of the kind of
    # the first
    treedef = jax.tree.structure(rows[0][0])
    leaves = [[jax.tree.leaves(block) for block in row] for row in rows]
    lines = [[join(1, *blocks) for blocks in zip(*row, strict=True)] for row in leaves]
    return jax.tree.unflatten(treedef, [join(0, *blocks) for blocks in zip(*lines, strict=True)])
