"""Gram matrices of infinitely wide networks: analytic, and estimated from finite ones."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Key, Num

from lazynet import guards
from lazynet.covariance import cpu
from lazynet.files import given_path
from lazynet.kernels.blocks import (
    LANES,
    block,
    block_by,
    compute_block,
    plans_of,
    questions_of,
    row_by_row,
    symmetric,
)
from lazynet.kernels.empirical import empirical_ntk
from lazynet.kernels.inputs import checked_inputs
from lazynet.models.model import Model
from lazynet.programs import fingerprint, program
from lazynet.records import Gram
from lazynet.tiles import (
    assemble,
    checked_when_read,
    digest,
    open_store,
    tile_advice,
    tiles,
)
from lazynet.trees import is_traced
from lazynet.triangle import Triangle
from lazynet.typing import Array, ArrayLike

__all__ = ["analytic_kernel", "monte_carlo_kernel"]

TILE_OF_VECTORS = 1024
TILE_OF_IMAGES = 32
"""Sides of the tiles that are fastest on a CPU; larger ones gain nothing."""

TILES_ALONG_A_SIDE = 200
"""The most tiles along a side of a stored kernel of images, where they fit the memory: each has a price on the disk."""

TILE_OF_EQUAL_POSITIONS = 128
"""Side of the tiles of images of which equal positions alone meet in the compiled program: larger tiles spare what
images bring along to each of them."""


def analytic_kernel(
    model: Model,
    x1: Num[ArrayLike, "n1 ..."],
    x2: Num[ArrayLike, "n2 ..."] | None = None,
    *,
    tile: int | None = None,
    memory: int | float = 2**30,
    store: str | os.PathLike | None = None,
    get: Literal["nngp", "ntk"] | None = None,
    triangle: bool = False,
    progress: bool = False,
) -> Gram:
    """Kernels of the infinitely wide network, `nngp = E[f(x1) f(x2)]` and `ntk = E[<df(x1)/dw, df(x2)/dw>]`.

    Both are per output: outputs of an infinitely wide network are independent and share one kernel.
    With `x2=None` only the upper triangle is computed and mirrored, and the diagonal comes from the
    exact k(x, x) formulas.

    Args:
        model: Network of layers with an infinite-width limit.
        x1: Inputs.
        x2: Other inputs; None for `x1` itself.
        tile: Side of the square tiles computed at a time (any number of inputs will do); None for
            the fastest one within `memory`. A traced call is one tile.
        memory: Bytes that the arrays of one tile may take, by the compiler's account of each tile
            compiled. Beside that, only the result and the inputs are held. Each device computes one
            tile at a time.
        store: Folder for the matrices as memory-mapped `.npy` files, where a killed run continues:
            finished tiles are not computed again. Tiles are spread over the devices of a process,
            and over processes that share the folder (`jax.distributed`); without a store, each
            process computes all.
        get: The kernel to keep, `"nngp"` or `"ntk"`; the other one is None in the result. None keeps
            both.
        triangle: Whether to keep the upper triangle alone of the kernel of one set, as a `Triangle`,
            in half of the memory or disk: `conjugate_gradient_regression` takes it, and `np.asarray`
            makes a matrix of it. Its tiles in a store are compared with their checksums when they are
            first read.
        progress: Whether to show a progress bar with the time left.

    Returns:
        `Gram(nngp, ntk)`, each `[n1, n2]`, in the dtype in which it was computed: float64 where an
        input is float64 and jax has it (`jax_enable_x64`), else float32, also for inputs of half
        precision, whose rounding would be that of the kernel. On the device if one tile was enough,
        on the host otherwise; with a store read-only maps of its files, of which
        `np.array(gram.ntk)` is a copy that may be changed.

    Raises:
        ValueError: For inputs of a wrong shape or that are not finite, a layer without a limit
            (named), a network that ends in an image, a tile that does not fit the memory, a store
            of another kernel, a kernel that is not finite (a tile of which is not stored), or a
            triangle of two sets.
        TypeError: For inputs that are no arrays of floating point, a model that is none, or an
            option of a wrong type.
        MemoryError: If a tile that fits `memory` does not fit the device, with a smaller one to
            pass.

    Example:
        >>> import lazynet as ln
        >>> from lazynet.models.activations import Relu
        >>> model = ln.serial(ln.Dense(1, W_std=2**0.5), Relu(), ln.Dense(1))
        >>> gram = analytic_kernel(model, jnp.eye(2) * 2**0.5)
        >>> [round(float(value), 4) for value in gram.nngp[0]]
        [1.0, 0.3183]

    Source: Jacot, Gabriel and Hongler (2018), theorem 1.
    """
    x1, x2 = checked_inputs(model, x1, x2)
    tile = None if tile is None else guards.count("tile", tile)
    memory = int(guards.number("memory", memory, at_least=1, fix="it is a number of bytes"))
    progress = guards.flag("progress", progress)
    kept = _kept(get)
    triangle = guards.flag("triangle", triangle)
    if triangle and x2 is not None:
        raise ValueError(
            "triangle=True got two sets of inputs, whose kernel is not symmetric: leave out x2, or triangle."
        )
    store = None if store is None else given_path("store", store)
    # Traced values cannot be checked, tiled on the host or put into files.
    if is_traced((x1, x2)):
        if store is not None or triangle:
            raise ValueError(
                "analytic_kernel got a store or triangle=True inside a jax transformation: call it outside of jit, "
                "grad and vmap."
            )
        return _only(kept, compute_block(model, x1, x2)._asdict())
    sides = [len(x) for x in (x1, x2) if x is not None]
    tile = _tile_of(store) if tile is None and store is not None else tile
    side = _fitting_side(model, x1, x2, tile, memory, stored=store is not None)
    if max(sides) <= side and store is None and not triangle:
        with tile_advice(max(sides)):
            # Waited for inside: the error of a device without memory comes with the result.
            gram = jax.block_until_ready(compute_block(model, x1, x2))
            _check_known(gram._asdict())
            return _only(kept, gram._asdict())
    # On the host, so that devices hold the rows of one tile only.
    second = None if x2 is None else np.asarray(x2)
    return _tiled(model, np.asarray(x1), second, side, store, kept, triangle, progress)


def monte_carlo_kernel(
    model: Model,
    key: Key[Array, ""],
    x1: Num[ArrayLike, "n1 ..."],
    x2: Num[ArrayLike, "n2 ..."] | None = None,
    *,
    n_samples: int,
) -> tuple[Gram, Gram]:
    """Mean over initializations of the empirical NNGP `f(x1) f(x2)^T / k` and NTK, with each entry's standard error.

    Args:
        model: Network of finite width; it needs no infinite-width limit.
        key: Random key of the initializations.
        x1: Inputs.
        x2: Other inputs; None for `x1` itself.
        n_samples: Number of initializations, at least 2.

    Returns:
        The means and their standard errors (sample standard deviation over sqrt `n_samples`), both
        averaged over the k outputs. The means still carry the bias of finite width, of order
        1/width.

    Raises:
        ValueError: If `n_samples` is less than 2, or for inputs of a wrong shape or that are not
            finite.
        TypeError: For inputs that are no arrays of floating point, a model that is none, or an
            `n_samples` that is no integer.

    Example:
        >>> import lazynet as ln
        >>> mean, error = monte_carlo_kernel(ln.Dense(512), jax.random.key(0), jnp.ones((1, 4)), n_samples=8)
        >>> bool(abs(mean.nngp[0, 0] - 1) < 4 * error.nngp[0, 0]), round(float(mean.ntk[0, 0]), 6)
        (True, 1.0)
    """
    n_samples = guards.count("n_samples", n_samples, at_least=2, fix="one has no standard error")
    first, second = checked_inputs(model, x1, x2)
    x1 = jnp.asarray(first)
    x2 = None if second is None else jnp.asarray(second)
    samples = [_sample(model, jax.random.fold_in(key, i), x1, x2) for i in range(n_samples)]
    nngp = jnp.stack([sample.nngp for sample in samples])
    ntk = jnp.stack([sample.ntk for sample in samples])

    def error(values):
        return jnp.std(values, axis=0, ddof=1) / n_samples**0.5

    mean = Gram(jnp.mean(nngp, axis=0), jnp.mean(ntk, axis=0))
    return mean, Gram(error(nngp), error(ntk))


def _check_known(matrices):
    """Refuses NaN, of quadratures that were not accurate and activations without a limit, and values out of range."""
    for name, values in matrices.items():
        if is_traced(values):
            continue
        # They take no memory, and are NaN if one value is.
        extremes = np.array([values.min(), values.max()])
        if np.isnan(extremes).any():
            raise ValueError(
                f"kernel has NaN ({name}) though the inputs are finite: an elementwise function may have kinks that "
                "are not named (kinks=(...)) or turn too fast for the variances here, Gaussian(a, b) with b > 0 has no "
                "limit at variances from 1/(4 b) on (use smaller inputs), or values left the dtype (use float64)."
            )
        if np.isinf(extremes).any():
            raise ValueError(
                f"kernel has {extremes[np.isinf(extremes)][0]} ({name}), expected finite values: they left the range "
                f"of {values.dtype}; use smaller inputs or W_std, or float64 (jax_enable_x64)."
            )


def _kept(get) -> tuple[str, ...]:
    if get is None:
        return Gram._fields
    if get not in Gram._fields:
        raise ValueError(
            f"get got {get!r:.60}, expected 'nngp', 'ntk' or None: None keeps both kernels."
        )
    return (get,)


def _only(kept, matrices) -> Gram:
    neither = Gram(None, None)  # pyright: ignore[reportArgumentType]
    return neither._replace(**{name: matrices[name] for name in kept})


def _tile_of(store):
    """The side of the tiles of a store that is there: it may be that of an earlier version."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return guards.count("tile", json.loads((store / "manifest.json").read_bytes())["tile"])
    return None


def _tiled(model, x1, x2, side, store, kept, triangle, progress):
    symmetric = x2 is None
    other = x1 if x2 is None else x2
    every = tiles(len(x1), len(other), side, symmetric=symmetric)

    def compute(device, tile):
        rows, columns = tile
        one = jax.device_put(_rows(x1, rows, side), device)
        two = jax.device_put(_rows(other, columns, side), device)
        # A tile on the diagonal is a set with itself, whose k(x, x) have formulas of their own.
        gram = compute_block(model, one, None if symmetric and rows == columns else two)
        return {name: getattr(gram, name) for name in kept}

    identity = {} if store is None else _identity(model, x1, x2, side)
    block = min(side, len(x1))
    shape = (len(every), block, block) if triangle else (len(x1), len(other))
    # Named where they are not what earlier versions kept, whose stores go on.
    if len(kept) == 1:
        identity["get"] = kept[0]
    if triangle:
        identity["triangle"] = True
    target = open_store(
        store, dict.fromkeys(kept, shape), x1.dtype, len(every), identity, packed=triangle
    )
    mirror = dict.fromkeys(kept, (1, 0)) if symmetric else None
    matrices = assemble(
        compute, every, target, mirror=mirror, progress=progress, check=_check_known
    )
    if triangle:
        check = checked_when_read(target)
        matrices = {name: Triangle(matrices[name], len(x1), check) for name in kept}
    return _only(kept, matrices)


def _identity(model, x1, x2, side):
    """What a stored kernel depends on; the network is known by its compiled form on one pair of inputs."""

    def block(one, two):
        # By rows, whatever program computes here: a store is that of the network, not of the
        # program.
        return block_by(row_by_row, model, one, two)

    block.__name__ = "_block"  # part of the program's text, as the stores of version 0.1.0 know it
    one = jax.ShapeDtypeStruct((1, *x1.shape[1:]), x1.dtype)
    return {
        "network": fingerprint(jax.jit(block).trace(one, one)),
        "x1": digest(x1),
        "x2": None if x2 is None else digest(x2),
        "tile": side,
    }


def _fitting_side(model, x1, x2, tile, memory, *, stored):
    """The side given, or the fastest one whose tiles fit the memory."""
    largest = max(len(x) for x in (x1, x2) if x is not None)
    side = tile or _balanced(model, x1, largest, stored)
    needed = _bytes(model, x1, x2, side, alone=not stored and side >= largest)
    while needed > memory and tile is None and side > 1:
        # In proportion, and by one at least, so that the loop ends.
        side = max(1, min(side - 1, side * memory // needed))
        needed = _bytes(model, x1, x2, side, alone=False)
    if needed > memory:
        way_out = (
            "use smaller inputs"
            if side == 1
            else f"pass a tile of at most {max(1, side * memory // needed)}"
        )
        raise ValueError(
            f"a tile of side {side} needs {needed:,} bytes, memory={memory:,}: {way_out}, or allow more."
        )
    return side


def _bytes(model, x1, x2, side, *, alone):
    """What is reserved for a tile; the computation finds the programs compiled here, not to compile again."""
    # Tiles are put on a device, and for arguments of another sharding jax would compile again.
    device = None if alone else SingleDeviceSharding(jax.local_devices()[0])
    sizes = [min(side, len(x)) for x in (x1, x2) if x is not None]
    sets = tuple(jax.ShapeDtypeStruct((n, *x1.shape[1:]), x1.dtype, sharding=device) for n in sizes)
    one, two = sets if len(sets) == 2 else (*sets, None)
    questions = questions_of(model, one, two)
    if questions is not None:
        # Tasks are answered one after the other.
        beside = max(map(cpu.reserved, plans_of(questions)))
        return questions.reserved(*sets) + _bytes_of(sets) + beside
    needed = _reserved(symmetric if x2 is None else block, model, *sets)
    if x2 is None and side < len(x1):
        # Tiles beside the diagonal are blocks of two sets.
        needed = max(needed, _reserved(block, model, *sets * 2))
    return needed


def _reserved(function, model, *sets):
    return program(function, model, *sets).reserved(*sets) + _bytes_of(sets)


def _bytes_of(sets):
    return sum(x.size * x.dtype.itemsize for x in sets)


def _balanced(model, x1, n, stored):
    """Side of tiles of about the same size, in whole vector registers for images."""
    of_images = TILE_OF_IMAGES if n <= TILE_OF_IMAGES else _tile_of_images(model, x1)
    if stored:
        of_images = max(of_images, n // TILES_ALONG_A_SIDE)
    largest, multiple = (TILE_OF_VECTORS, 1) if x1.ndim == 2 else (of_images, LANES[1])
    # Of equal size, since the last tile is filled up to the side and costs as much as the others.
    tiles_along = -(-n // largest)
    side = -(-n // tiles_along)
    return -(-side // multiple) * multiple


def _tile_of_images(model, x1):
    one = jax.ShapeDtypeStruct((1, *x1.shape[1:]), x1.dtype)
    questions = questions_of(model, one, one)
    # A plan is `zero` where a head asks for equal positions alone, as Flatten does.
    if questions is not None and all(plan.zero for plan in plans_of(questions)):
        return TILE_OF_EQUAL_POSITIONS
    return TILE_OF_IMAGES


def _rows(x, rows, side):
    """Rows of x, the last one repeated up to `side`, so that every tile has one shape."""
    wanted = np.arange(rows.start, rows.start + min(side, len(x)))
    return x[np.minimum(wanted, rows.stop - 1)]


def _sample(model, key, x1, x2):
    params = model.init(key, x1)
    outputs1 = _rows_of(model.apply(params, x1))
    outputs2 = _rows_of(model.apply(params, x1 if x2 is None else x2))
    nngp = jnp.matmul(outputs1, outputs2.T, precision="highest") / outputs1.shape[-1]
    return Gram(nngp, empirical_ntk(model.apply, params, x1, x2, outputs="trace"))


def _rows_of(outputs):
    """Outputs of images as vectors."""
    return outputs.reshape(len(outputs), -1)
