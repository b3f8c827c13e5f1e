"""Standardization and whitening with the statistics of the training set."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.records import Data

__all__ = ["standardize", "zca"]

CHUNK = 2**20
CONSTANT = 10.0
STATISTICS = ("feature", "channel", "global")

SQUARABLE = 1e100
"""Numbers up to here have sums of squares in float64, and from its inverse on squares that are not rounded to zero."""


def standardize(
    train: Data, *others: Data, center: str | None = "feature", scale: str | None = "global"
) -> tuple[Data, ...]:
    """All data sets with inputs `(x - mean) / std`, mean and standard deviation taken over the training set.

    `"feature"` takes a statistic for each input coordinate (a pixel of a channel, a column of a
    table), `"channel"` for each entry of the last axis, `"global"` one for all. The default
    subtracts the mean image and divides by one number: where some pixels are almost constant, as in
    scanned digits, a standard deviation per pixel blows them up and the linearized network then
    diverges. Photographs usually take `center="channel", scale="channel"`, tables with columns in
    different units `scale="feature"`.

    Args:
        train: Data that the statistics are taken from, `x: [n, *inputs]` floating point.
        *others: Data sets to be transformed in the same way, for instance the test set.
        center: What the mean is taken over, None for no centering.
        scale: What the standard deviation is taken over, None for no scaling.

    Returns:
        The transformed data sets in the order given, on the host, each with its own dtype.

    Raises:
        TypeError: The inputs are no arrays of floating point.
        ValueError: Unknown `center` or `scale`, no examples, NaN or infinity, data sets of
            different input shapes, or something to be divided by its standard deviation is constant
            over the training set.

    Example:
        >>> train = Data(np.array([[0.0, 1.0], [2.0, 5.0]]), np.zeros((2, 1)))
        >>> (scaled,) = standardize(train, scale="feature")
        >>> scaled.x.tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """
    for name, statistic in (("center", center), ("scale", scale)):
        if statistic is not None and statistic not in STATISTICS:
            known = ", ".join(map(repr, STATISTICS))
            raise ValueError(
                f"unknown statistic {name}={statistic!r}, expected one of {known} or None"
            )
    _check_inputs(train, *others)
    unit = _unit(np.asarray(train.x), center, scale)
    # Mean and deviation are those of x / unit, whose squares stay in the range of float64.
    x = _divided(np.asarray(train.x), unit)
    mean = np.zeros(math.prod(x.shape[1:])) if center is None else _mean(x, center, x)
    # Without scaling, division by 1 / unit takes the units away again.
    std = 1 / unit if scale is None else _deviation(_flat(x) - mean.astype(x.dtype), scale, x)
    return tuple(_transform(data, unit, mean, std) for data in (train, *others))


def zca(train: Data, *others: Data, bias: float = 1e-4) -> tuple[Data, ...]:
    """All data sets with inputs `W z`, `z = (x - mean(x)) / |x - mean(x)|` and `W = V (E + bias)^(-1/2) V^T`.

    Each example first loses its own mean and is divided by its own norm. `V E V^T = X^T X / n` is
    then the second moment of these training examples, without subtracting their mean. Whitening
    equalizes the energy of coarse and fine structure in photographs; kernels without learned
    features gain several points on CIFAR-10 from it.

    Args:
        train: Data that W is taken from, `x: [n, *inputs]` floating point.
        *others: Data sets to be transformed in the same way.
        bias: Added to the eigenvalues E, which sum to 1. Small values amplify noise.

    Returns:
        The transformed data sets in the order given, on the host, each with its own dtype. All
        arithmetic is float64; the time is that of a symmetric eigendecomposition of size
        prod(inputs), about a minute for 32 x 32 x 3.

    Raises:
        TypeError: The inputs are no arrays of floating point, or the bias is no number.
        ValueError: There are no examples, or NaN or infinity; the bias is not positive, the input
            shapes differ, or an example is constant.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(50, 3))
        >>> (white,) = zca(Data(x, np.zeros((50, 1))), bias=1e-12)
        >>> np.abs(np.round(np.linalg.eigvalsh(white.x.T @ white.x / 50), 3)).tolist()
        [0.0, 1.0, 1.0]

    Source: the preprocessing of Shankar et al. (2020), "Neural Kernels Without Tangents".
    """
    bias = guards.number("bias", bias, above=0)
    _check_inputs(train, *others)
    units = [_unit_rows(np.asarray(data.x)) for data in (train, *others)]
    whiten = _whitening(units[0], bias)
    whitened = []
    for data, rows in zip((train, *others), units, strict=True):
        x = (rows @ whiten).reshape(data.x.shape)
        whitened.append(Data(x.astype(data.x.dtype), np.asarray(data.y)))
    return tuple(whitened)


def _check_inputs(*sets: Data) -> None:
    for data in sets:
        guards.data("data", data)
        guards.floating("x", guards.array("x", data.x))
        guards.finite("x", data.x)
        if data.x.ndim < 2:
            raise ValueError(
                f"inputs have shape {data.x.shape}, expected [n, *inputs]: use x[:, None] for scalar inputs"
            )
        if data.x.shape[1:] != sets[0].x.shape[1:]:
            raise ValueError(
                f"inputs have shape {tuple(data.x.shape[1:])}, but {tuple(sets[0].x.shape[1:])} in the training set: "
                "pass data sets with equal inputs"
            )
    if 0 in sets[0].x.shape:
        raise ValueError(
            f"inputs have shape {sets[0].x.shape}, expected at least one example and one coordinate"
        )


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _unit(
    x: Float[np.ndarray, "n *inputs"], center: str | None, scale: str | None
) -> Float[np.ndarray, " d"]:
    """A power of two for each input, near the largest where its square leaves float64 and 1 elsewhere.

    Inputs that share a statistic share the unit; dividing by it rounds nothing.
    """
    largest = np.abs(_flat(x)).max(axis=0).astype(np.float64)
    groups = {"feature": len(largest), "channel": x.shape[-1], "global": 1}
    shared = min(groups[statistic] for statistic in (center or "feature", scale or "feature"))
    # Channels vary fastest in a flat row: as [-1, channels] each is a column.
    largest = np.tile(largest.reshape(-1, shared).max(axis=0), len(largest) // shared)
    is_extreme = (largest > 0) & ((largest < 1 / SQUARABLE) | (largest > SQUARABLE))
    # frexp writes x = m 2^e with 1/2 <= m < 1: 2^(e - 1) is the power of two at or below x.
    return np.where(is_extreme, np.ldexp(0.5, np.frexp(largest)[1]), 1.0)


def _divided(x: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return x if (unit == 1).all() else (_flat(x) / unit).reshape(x.shape)


def _transform(data: Data, unit: np.ndarray, mean: np.ndarray, std: np.ndarray) -> Data:
    x = _divided(np.asarray(data.x), unit)
    moved = _flat(x) - mean.astype(x.dtype)
    moved /= std.astype(x.dtype)
    return Data(moved.reshape(x.shape), np.asarray(data.y))


def _mean(x: np.ndarray, axis: str, like: np.ndarray) -> Float[np.ndarray, " d"]:
    return _pool(_flat(x).mean(axis=0, dtype=np.float64), axis, like)


def _pool(
    values: Float[np.ndarray, " d"], axis: str, x: Float[np.ndarray, "n *inputs"]
) -> Float[np.ndarray, " d"]:
    """Mean of a per-feature statistic over the features that share it, repeated for each of them."""
    groups = {"feature": len(values), "channel": x.shape[-1], "global": 1}
    return np.tile(values.reshape(-1, groups[axis]).mean(axis=0), len(values) // groups[axis])


def _deviation(
    rows: Float[np.ndarray, "n d"], scale: str, x: Float[np.ndarray, "n *inputs"]
) -> Float[np.ndarray, " d"]:
    """Standard deviations in float64, by chunks so that no float64 copy of the data is made."""
    # Rows keep a mean where they are not centered, or by a coarser statistic than that of scale.
    mean = _mean(rows, scale, x)
    step = max(1, CHUNK // rows.shape[1])
    squares = np.zeros_like(mean)
    for i in range(0, len(rows), step):
        squares += np.square(rows[i : i + step] - mean).sum(axis=0)
    std = np.sqrt(_pool(squares / len(rows), scale, x))
    # Of a constant, rounding of its mean is left, some eps of its largest value.
    constant = std <= CONSTANT * np.finfo(x.dtype).eps * np.abs(_flat(x)).max(axis=0)
    if constant.any():
        fix = "use scale=None" if scale == "global" else "use scale='global'"
        raise ValueError(
            f"{constant.sum()} of {constant.size} inputs have standard deviation 0 for scale={scale!r}, first number "
            f"{constant.argmax()}: remove what is constant over the training set, or {fix}"
        )
    return std


def _unit_rows(x: Float[np.ndarray, "n *inputs"]) -> Float[np.ndarray, "n d"]:
    rows = x.reshape(len(x), -1).astype(np.float64)
    # Powers of two round nothing, and squares of what is left stay in the range of float64.
    rows = np.ldexp(rows, -np.frexp(np.abs(rows).max(axis=1, keepdims=True))[1])
    size = np.abs(rows).max(axis=1)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    constant = np.flatnonzero(norms[:, 0] <= CONSTANT * np.finfo(x.dtype).eps * size)
    if constant.size:
        raise ValueError(
            f"{constant.size} of {len(x)} examples are constant, first number {constant[0]}: remove them"
        )
    return rows / norms


def _whitening(rows: Float[np.ndarray, "n d"], bias: float) -> Float[np.ndarray, "d d"]:
    """`V (E + bias)^{-1/2} V'` for the second moments `V E V'` of the rows."""
    eigenvalues, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    # Rounding leaves eigenvalues slightly below zero, which a small bias would not lift.
    return (vectors / np.sqrt(np.maximum(eigenvalues, 0) + bias)) @ vectors.T
