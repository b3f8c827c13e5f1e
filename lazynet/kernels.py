"""Gram matrices of infinitely wide networks: analytic, and estimated from finite ones."""

from __future__ import annotations

import functools
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Key, Num

from lazynet import guards
from lazynet.covariance.lanes import ring
from lazynet.covariance.state import input_kernel
from lazynet.empirical import empirical_ntk
from lazynet.model import Model, propagate
from lazynet.records import Gram
from lazynet.tiles import assemble, digest, open_store, reserved, tile_advice, tiles
from lazynet.trees import is_traced
from lazynet.typing import Array, ArrayLike

__all__ = ["analytic_kernel", "monte_carlo_kernel"]

TILE_OF_VECTORS = 256
TILE_OF_IMAGES = 32
"""Sides of the tiles that are fastest on a CPU; larger ones gain nothing."""

LANES = 16, 8
"""The smallest number of lanes that fill a vector register in single precision, and the step of larger ones."""


def analytic_kernel(
    model: Model,
    x1: Num[ArrayLike, "n1 ..."],
    x2: Num[ArrayLike, "n2 ..."] | None = None,
    *,
    tile: int | None = None,
    memory: int = 2**30,
    store: str | os.PathLike | None = None,
    progress: bool = False,
) -> Gram:
    """Kernels of the infinitely wide network, `nngp = E[f(x1) f(x2)]` and `ntk = E[<df(x1)/dw, df(x2)/dw>]`.

    Both are per output: outputs of an infinitely wide network are independent and share one kernel. With `x2=None`
    only the upper triangle is computed and mirrored, and the diagonal comes from the exact k(x, x) formulas.

    Args:
        model: Network of layers with an infinite-width limit.
        x1: Inputs.
        x2: Other inputs; None for `x1` itself.
        tile: Side of the square tiles computed at a time (any number of inputs will do); None for the fastest one
            within `memory`. A traced call is one tile.
        memory: Bytes that the arrays of one tile may take, by the compiler's account of each tile compiled. Beside
            that, only the result and the inputs are held. Each device computes one tile at a time.
        store: Folder for the matrices as memory-mapped `.npy` files, where a killed run continues: finished tiles are
            not computed again. Tiles are spread over the devices of a process, and over processes that share the
            folder (`jax.distributed`); without a store, each process computes all.
        progress: Whether to show a progress bar with the time left.

    Returns:
        `Gram(nngp, ntk)`, each `[n1, n2]`, in the dtype of the inputs: on the device if one tile was enough, on the
        host otherwise.

    Raises:
        ValueError: For inputs of a wrong shape or that are not finite, a layer without a limit (named), a network that
            ends in an image, a tile that does not fit the memory, or a store of another kernel.
        TypeError: For integer inputs.
        MemoryError: If a tile that fits `memory` does not fit the device, with a smaller one to pass.

    Example:
        >>> import lazynet as ln
        >>> from lazynet.activations import Relu
        >>> model = ln.serial(ln.Dense(1, W_std=2**0.5), Relu(), ln.Dense(1))
        >>> gram = analytic_kernel(model, jnp.eye(2) * 2**0.5)
        >>> [round(float(value), 4) for value in gram.nngp[0]]
        [1.0, 0.3183]

    Source: Jacot, Gabriel and Hongler (2018), theorem 1.
    """
    _check_inputs(x1, x1 if x2 is None else x2, tile)
    traced, sides = is_traced((x1, x2)), [len(x) for x in (x1, x2) if x is not None]
    if traced and store is not None:
        raise ValueError(
            "analytic_kernel got a store inside a jax transformation: call it outside of jit, grad and vmap."
        )
    if traced:
        return _symmetric(model, x1) if x2 is None else _block(model, x1, x2)
    side = _fitting_side(model, x1, x2, tile, memory, stored=store is not None)
    if max(sides) <= side and store is None:
        with tile_advice(max(sides)):
            return jax.block_until_ready(_symmetric(model, x1) if x2 is None else _block(model, x1, x2))
    return _tiled(model, np.asarray(x1), None if x2 is None else np.asarray(x2), side, store, progress)


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
        The means and their standard errors (sample standard deviation over sqrt `n_samples`), both averaged over
        the k outputs. The means still carry the bias of finite width, of order 1/width.

    Raises:
        ValueError: If `n_samples` is less than 2, or for inputs of a wrong shape.

    Example:
        >>> import lazynet as ln
        >>> mean, error = monte_carlo_kernel(ln.Dense(512), jax.random.key(0), jnp.ones((1, 4)), n_samples=8)
        >>> bool(abs(mean.nngp[0, 0] - 1) < 4 * error.nngp[0, 0]), round(float(mean.ntk[0, 0]), 6)
        (True, 1.0)
    """
    if n_samples < 2:
        raise ValueError(f"monte_carlo_kernel got n_samples={n_samples}, expected at least 2 for a standard error.")
    _check_inputs(x1, x1 if x2 is None else x2, None)
    samples = [_sample(model, jax.random.fold_in(key, i), x1, x2) for i in range(n_samples)]
    stacked = [jnp.stack([sample[i] for sample in samples]) for i in (0, 1)]
    mean = Gram(*(jnp.mean(values, axis=0) for values in stacked))
    return mean, Gram(*(jnp.std(values, axis=0, ddof=1) / n_samples**0.5 for values in stacked))


@functools.partial(jax.jit, static_argnums=0)
def _block(model, x1, x2):
    k = _limit(model, x1, _padded(x2))
    return Gram(*(values[:, : len(x2)] for values in _gram(k.nngp, k.ntk)))


@functools.partial(jax.jit, static_argnums=0)
def _symmetric(model, x):
    """Kernel of a set with itself: every pair once, the diagonal by its own formulas."""
    if x.ndim == 2:
        k = _limit(model, x, x)
        full = _gram(k.nngp, k.ntk)
    else:
        padded = _padded(x)
        k = _limit(model, padded, padded, ring(len(padded)))
        full = [_unrolled(values) for values in _gram(k.nngp, k.ntk)]
    square = [_mirrored(a, own) for a, own in zip(full, _gram(*k.first.moments()), strict=True)]
    return Gram(*(values[: len(x), : len(x)] for values in square))


def _padded(x):
    """Images repeated up to whole vector registers: a lane is a pair, and odd numbers cost several times as much."""
    if x.ndim == 2:
        return x
    lanes = max(LANES[0], -(-len(x) // LANES[1]) * LANES[1])
    return x[np.minimum(np.arange(lanes), len(x) - 1)]


def _unrolled(values):
    """The matrix of kernels between i and i + g + 1 modulo n, `[groups, n]`, of which one triangle may be taken."""
    n = values.shape[1]
    rows = np.broadcast_to(np.arange(n), values.shape)
    columns = (rows + np.arange(len(values))[:, None] + 1) % n
    known = np.zeros((n, n), bool)
    known[rows, columns] = True
    full = jnp.zeros((n, n), values.dtype).at[rows, columns].set(values)
    return jnp.where(known, full, full.T)


def _gram(nngp, ntk):
    return Gram(nngp, jnp.zeros_like(nngp) if ntk is None else ntk)


def _limit(model, x1, x2, lanes=None):
    k = propagate(model, input_kernel(x1, x2, lanes), model.name)
    if not k.vectors:
        raise ValueError(f"{model.name} ends in an image, expected vectors: end it in Flatten() or GlobalAvgPool().")
    return k


def _mirrored(full, diagonal):
    """The symmetric matrix of an upper triangle and an exact diagonal.

    The diagonal is written, not added: XLA would otherwise fuse all that the entries are made of into the transpose and
    compute it twice, column by column, which is ten times slower on a CPU.
    """
    own = jnp.arange(len(diagonal))
    whole = full.at[own, own].set(diagonal)
    return jnp.triu(whole) + jnp.triu(whole, 1).T


def _tiled(model, x1, x2, side, store, progress):
    symmetric, other = x2 is None, x1 if x2 is None else x2
    every = tiles(len(x1), len(other), side, symmetric=symmetric)

    def compute(device, tile):
        rows, columns = tile
        one, two = (jax.device_put(_rows(x, part, side), device) for x, part in ((x1, rows), (other, columns)))
        gram = _symmetric(model, one) if symmetric and rows == columns else _block(model, one, two)
        return gram._asdict()

    shapes = dict.fromkeys(Gram._fields, (len(x1), len(other)))
    identity = {} if store is None else _identity(model, x1, x2, side)
    target = open_store(store, shapes, x1.dtype, len(every), identity)
    mirror = dict.fromkeys(Gram._fields, (1, 0)) if symmetric else None
    return Gram(**assemble(compute, every, target, mirror=mirror, progress=progress))


def _identity(model, x1, x2, side):
    """What a stored kernel depends on; the network is known by its compiled form on one pair of inputs."""
    one = jax.ShapeDtypeStruct((1, *x1.shape[1:]), x1.dtype)
    network = _block.lower(model, one, one).as_text().encode()
    return {
        "network": hashlib.sha256(network).hexdigest(),
        "x1": digest(x1),
        "x2": None if x2 is None else digest(x2),
        "tile": side,
    }


def _fitting_side(model, x1, x2, tile, memory, *, stored):
    """The side given, or the fastest one whose tiles fit the memory."""
    largest = max(len(x) for x in (x1, x2) if x is not None)
    side = tile or _balanced(largest, x1.ndim)
    needed = _bytes(model, x1, x2, side, alone=not stored and side >= largest)
    while needed > memory and tile is None and side > 1:
        side = max(1, min(side - 1, side * memory // needed))
        needed = _bytes(model, x1, x2, side, alone=False)
    if needed > memory:
        way_out = "use smaller inputs" if side == 1 else f"pass a tile of at most {max(1, side * memory // needed)}"
        raise ValueError(f"a tile of side {side} needs {needed:,} bytes, memory={memory:,}: {way_out}, or allow more.")
    return side


def _bytes(model, x1, x2, side, *, alone):
    """What the compiler reserves for a tile; the computation finds the programs compiled here, not to compile again."""
    device = None if alone else SingleDeviceSharding(jax.local_devices()[0])
    sizes = [min(side, len(x)) for x in (x1, x2) if x is not None]
    sets = tuple(jax.ShapeDtypeStruct((n, *x1.shape[1:]), x1.dtype, sharding=device) for n in sizes)
    needed = _reserved(model, _symmetric if x2 is None else _block, sets)
    return max(needed, _reserved(model, _block, sets * 2)) if x2 is None and side < len(x1) else needed


@functools.lru_cache(maxsize=256)
def _reserved(model, program, inputs):
    return reserved(program.lower(model, *inputs).compile()) + sum(x.size * x.dtype.itemsize for x in inputs)


def _balanced(n, ndim):
    """Side of tiles of about the same size, in whole vector registers for images."""
    largest, multiple = (TILE_OF_VECTORS, 1) if ndim == 2 else (TILE_OF_IMAGES, LANES[1])
    side = -(-n // -(-n // largest))
    return -(-side // multiple) * multiple


def _rows(x, rows, side):
    """Rows of x, the last one repeated up to `side`, so that every tile has one shape."""
    return x[np.minimum(np.arange(rows.start, rows.start + min(side, len(x))), rows.stop - 1)]


def _sample(model, key, x1, x2):
    params = model.init(key, x1)
    outputs = [model.apply(params, x) for x in (x1, x1 if x2 is None else x2)]
    nngp = jnp.matmul(outputs[0], outputs[1].T, precision="highest") / outputs[0].shape[-1]
    return Gram(nngp, empirical_ntk(model.apply, params, x1, x2, outputs="trace"))


def _check_inputs(x1, x2, tile):
    if x1.ndim not in (2, 4) or x1.shape[1:] != x2.shape[1:] or 0 in (*x1.shape, *x2.shape):
        raise ValueError(
            f"got inputs of shapes {x1.shape} and {x2.shape}, expected two sets of vectors [n, features] or "
            "images [n, h, w, c] of one size, not empty."
        )
    if not (jnp.issubdtype(x1.dtype, jnp.floating) and x1.dtype == x2.dtype):
        raise TypeError(
            f"got inputs of dtypes {x1.dtype} and {x2.dtype}, expected one floating-point dtype: convert "
            "images by x.astype(float) / 255."
        )
    guards.finite("x1", x1)
    if x2 is not x1:
        guards.finite("x2", x2)
    if tile is not None and tile < 1:
        raise ValueError(f"got tile={tile}, expected at least 1.")
