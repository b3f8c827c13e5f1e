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
from lazynet.dropin.kernels import Kernel, is_kernel
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

    def batched(x1: Any, x2: Any = None, *args: Any, **kwargs: Any) -> Any:
        if batch_size == 0 and len(devices) == 1:
            return kernel_fn(x1, x2, *args, **kwargs)
        if any(is_kernel(leaf) for leaf in jax.tree.leaves(x1, is_leaf=is_kernel)):
            return _of_kernels(kernel_fn, x1, batch_size, args, kwargs)
        turns = itertools.cycle(devices)
        x2 = x2 if jax.tree.leaves(x2) else None
        other = x1 if x2 is None else x2
        n1, n2 = check_examples("x1", x1), check_examples("x2", other)
        pairs = {name: v for name, v in kwargs.items() if _are_of_examples(name, v, n1, n2)}
        kwargs = {name: v for name, v in kwargs.items() if name not in pairs}
        placed = functools.cache(lambda device: _placed((args, kwargs), device, len(devices)))
        # Without a size each device takes one strip of rows; columns are cut as rows where both sets
        # may be one, so that blocks on the diagonal are of one set.
        side = batch_size or -(-n1 // len(devices))
        width = batch_size or (side if n1 == n2 else n2)
        rows = []
        for i in range(0, n1, side):
            row = []
            for j in range(0, n2, width):
                device = next(turns)
                parts = _placed((_part(x1, i, side), _part(other, j, width)), device, len(devices))
                # The function is told that a block on the diagonal has one set.
                own = (parts[0], None) if x2 is None and i == j and side == width else parts
                more, named = placed(device)
                cut = {n: _parts(pair, ((i, side), (j, width))) for n, pair in pairs.items()}
                row.append(
                    _checked(
                        kernel_fn(*own, *more, **named, **_placed(cut, device, len(devices))),
                        (min(side, n1 - i), min(width, n2 - j)),
                        store_on_device,
                        devices,
                    )
                )
            rows.append(row)
        return _joined(rows, x2 is None)

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


def _are_of_examples(name: str, value: Any, n1: int, n2: int) -> bool:
    """Whether a keyword argument is a pair of arrays with a row for each example of either set."""
    # Two keys of the old kind are arrays `[2]`, which would be taken for rows of two examples.
    if name in ("rng", "keys") or not isinstance(value, tuple) or len(value) != 2:
        return False
    shapes = [np.shape(part) if isinstance(part, ArrayLike) else () for part in value]
    return shapes[0][:1] == (n1,) and shapes[1][:1] == (n2,)


def _parts(pair: Any, both: Any) -> Any:
    first, second = (_part(x, *place) for x, place in zip(pair, both, strict=True))
    return (first, first) if pair[0] is pair[1] and both[0] == both[1] else (first, second)


def _of_kernels(kernel_fn: Any, x: Any, batch_size: int, args: Any, kwargs: Any) -> Any:
    """Kernels of kernels, by blocks of their rows and columns."""
    first = jax.tree.leaves(x, is_leaf=is_kernel)[0]
    n1, n2 = first.nngp.shape[:2]
    height, width = batch_size or n1, batch_size or n2
    rows = []
    for i in range(0, n1, height):
        row = []
        for j in range(0, n2, width):
            both = slice(i, min(i + height, n1)), slice(j, min(j + width, n2))
            cut = jax.tree.map(lambda k, both=both: k.slice(*both), x, is_leaf=is_kernel)
            # A kernel is of both sets: there is no x2.
            row.append(kernel_fn(cut, None, *args, **kwargs))
        rows.append(row)
    return _joined(rows, first.cov2 is None)


def _checked(
    block: Any, expected: tuple[int, int], store_on_device: bool, devices: list[Any]
) -> Any:
    leaves = jax.tree.leaves(block, is_leaf=is_kernel)
    shapes = [np.shape(leaf.nngp if is_kernel(leaf) else leaf) for leaf in leaves]
    if any(shape[:2] != expected for shape in shapes):
        raise ValueError(
            f"kernel_fn returned shapes {shapes}, expected each to begin with {expected}, rows and columns."
        )
    if not store_on_device:
        return jax.tree.map(np.asarray, block)
    # Blocks are joined on one device.
    return jax.device_put(block, devices[0]) if len(devices) > 1 else block


def _joined(rows: list[list[Any]], one_set: bool) -> Any:
    # a kernel_fn may make the class of its records anew at each call: all blocks are of the kind of
    # the first
    treedef = jax.tree.structure(rows[0][0], is_leaf=is_kernel)
    leaves = [[jax.tree.leaves(block, is_leaf=is_kernel) for block in row] for row in rows]
    joined = []
    for place in range(treedef.num_leaves):
        blocks = [[block[place] for block in row] for row in leaves]
        whole = joined_kernels(blocks, one_set) if is_kernel(blocks[0][0]) else _matrix(blocks)
        joined.append(whole)
    return jax.tree.unflatten(treedef, joined)


def joined_kernels(blocks: list[list[Kernel]], one_set: bool) -> Kernel:
    """The kernel of blocks of its rows and columns."""
    first = blocks[0][0]
    # A layer may have made two sets of one.
    one_set = one_set and first.cov2 is None
    column = [row[0] for row in blocks]
    top = blocks[0]
    seconds = [k.cov1 if k.cov2 is None else k.cov2 for k in top]
    masks2 = [k.mask1 if k.cov2 is None else k.mask2 for k in top]

    def within(values):
        if first.diagonal_batch:
            return _stacked(0, values)
        raise ValueError(
            "batch got kernels with diagonal_batch=False, expected True: blocks do not have the covariances within "
            "the whole set."
        )

    scalar = first.ntk is None or not np.ndim(first.ntk)
    nngp = _matrix([[k.nngp for k in row] for row in blocks])
    # Sets are equal where all blocks on the diagonal have equal ones.
    equal = [row[i].x1_is_x2 for i, row in enumerate(blocks) if i < len(row)]
    square = nngp.shape[0] == nngp.shape[1]
    return first.replace(
        nngp=nngp,
        ntk=first.ntk if scalar else _matrix([[k.ntk for k in row] for row in blocks]),
        cov1=within([k.cov1 for k in column]),
        cov2=None if one_set else within(seconds),
        x1_is_x2=jnp.asarray(one_set or (square and jnp.all(jnp.asarray(equal)))),
        shape1=_sized(first.shape1, first.batch_axis, nngp.shape[0]),
        shape2=_sized(first.shape2, first.batch_axis, nngp.shape[1]),
        mask1=_stacked(first.batch_axis, [k.mask1 for k in column]),
        mask2=None if one_set else _stacked(first.batch_axis, masks2),
    )


def _matrix(blocks: list[list[Any]]) -> Any:
    return _stacked(0, [_stacked(1, row) for row in blocks])


def _stacked(axis: int, blocks: list[Any]) -> Any:
    if blocks[0] is None:
        return None
    return (np if isinstance(blocks[0], np.ndarray) else jnp).concatenate(blocks, axis)


def _sized(shape: Any, axis: int, n: int) -> Any:
    return None if shape is None else (*shape[:axis], n, *shape[axis + 1 :])
