"""The filter bank: wavelets at every resolution and averaging matrices, designed in float64, as one frozen pytree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from lazynet import guards
from lazynet.scattering.levels import at_level, averaging, layer
from lazynet.scattering.norms import layer_bounds
from lazynet.scattering.wavelets import (
    KYMATIO_PI,
    Wavelet,
    angles,
    frequencies,
    gabor,
    lowpass,
    morlet,
)

__all__ = ["Filters", "filter_bank"]

_CHOICES = {
    "padding": ("reflect", "symmetric", "periodic", "given"),
    "sampling": ("kymatio", "centered"),
    "normalize": (None, "frame"),
    "pool": ("lowpass", "mean"),
    "pi": ("exact", "kymatio"),
}
_WAVELETS = {"morlet": morlet, "gabor": gabor}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["psi", "phi", "average"],
    meta_fields=["shape", "J", "L", "margins", "padding", "sampling", "pool", "band"],
)
@dataclass(frozen=True)
class Filters:
    """A filter bank of a fixed image size: arrays that `jit`, `grad` and `device_put` see, and static numbers.

    P x Q is the padded size; level r is the resolution after decimation by 2^r, with the DFT grid
    P/2^r x Q/2^r.

    Attributes:
        psi: `psi[r][j]`: Fourier transforms `[L, P/2^r, Q/2^r]` of the wavelets of scale j that act
            at level r (all j at level 0, j > r at the others). Real, or complex with centered
            sampling.
        phi: The low-pass along each axis at level 0, `[P]` and `[Q]`: `phi_J(w0, w1) = phi[0](w0)
            phi[1](w1)`.
        average: `average[r]`: matrices A `[h, P/2^r]`, A' `[w, Q/2^r]` such that A U A'^T is U
            averaged, decimated and cropped to the image.
        shape: Image size (H, W).
        J: Log2 of the scale of the average.
        L: Number of angles on the half circle.
        margins: Pixels padded before and after, for each axis.
        padding: How the margins are filled; "given" if the caller passes padded images.
        sampling: Position of the samples, "kymatio" or "centered".
        pool: "lowpass" or "mean".
        band: `band[j]`: the last level whose grid holds every frequency of psi_j, up to 1e-12 of
            its maximum: the transform takes psi_j to be zero elsewhere (0 with centered sampling,
            whose phases need the full grid).
    """

    psi: tuple[dict[int, Any], ...]
    phi: tuple[Any, Any]
    average: tuple[tuple[Any, Any], ...]
    shape: tuple[int, int]
    J: int
    L: int
    margins: tuple[tuple[int, int], tuple[int, int]]
    padding: str
    sampling: str
    pool: str
    band: tuple[int, ...]


def filter_bank(
    shape: Sequence[int],
    J: int,
    L: int = 8,
    *,
    wavelet: str | Callable = "morlet",
    sampling: str = "kymatio",
    normalize: str | None = None,
    padding: str = "reflect",
    pool: str = "lowpass",
    pi: str = "exact",
) -> Filters:
    """The wavelets `psi_{j,theta}(u) = 2^(-2j) psi(R_theta^(-1) u / 2^j)`, j < J, and the low-pass `phi_J`.

    Built from closed forms in Fourier, in float64; no image is needed. The arrays are stored in
    float64 if x64 is on and in float32 otherwise, and `scattering2d` casts them to the dtype of the
    image.

    Args:
        shape: Image size (H, W); 2^J may not exceed either.
        J: Log2 of the averaging scale, at least 1; the output has H // 2^J x W // 2^J samples.
        L: Number of angles on the half circle; see `angles` for their values.
        wavelet: "morlet" (mean zero), "gabor", or a function `wavelet(w0, w1, j, theta) -> [L, P,
            Q]` that returns Fourier transforms at the frequencies w0 `[P, 1]`, w1 `[1, Q]` (radians
            per pixel) for angles theta `[L]`.
        sampling: "kymatio" puts the samples at pixels 0, 2^J, 2 2^J, ... of the padded image.
            "centered" puts them in the middle of each block of 2^J pixels, by a half-sample phase
            at every decimation: with reflect or symmetric padding and even L, rotating the image by
            90 degrees then rotates maps and angles exactly.
        normalize: "frame" divides every filter by the square root of the largest upper frame bound
            of the layers, decimation included: on the periodic grid 2^J ||Sx - Sy|| <= ||x - y||
            then holds for all images. None keeps the filters, whose constant `lipschitz_bound`
            gives. The exact bound takes eigenvalues of 4^J x 4^J matrices: seconds for J <= 4,
            minutes beyond.
        padding: "reflect" (the border pixel is not repeated), "symmetric" (it is), "periodic" (no
            margin, and shifts by 2^J commute exactly with the transform), or "given" (the caller
            passes images of the padded size).
        pool: "lowpass" averages with phi_J; "mean" averages over the whole image and gives 1 x 1
            maps: the estimator of scattering moments.
        pi: "exact", or "kymatio" to multiply every filter by pi / 3.1415 as kymatio's normalization
            does.

    Raises:
        ValueError: If J or L is below 1, 2^J exceeds the image, an option is unknown, a periodic
            image is not a multiple of 2^J or a centered one has an odd side, or a custom wavelet
            returns the wrong shape.

    Example:
        >>> filters = filter_bank((28, 28), 2)
        >>> filters.psi[0][1].shape, filters.average[1][0].shape
        ((8, 36, 36), (7, 18))

    Source: the parameters are those of kymatio 0.3.0 (kymatio/scattering2d/filter_bank.py).
    """
    _check_options(padding=padding, sampling=sampling, normalize=normalize, pool=pool, pi=pi)
    height, width = _check_size(shape, J, L, padding, sampling)
    margins = _margin(height, J, padding), _margin(width, J, padding)
    padded = height + sum(margins[0]), width + sum(margins[1])
    gain = math.pi / KYMATIO_PI if pi == "kymatio" else 1.0
    # The low-pass is a product of two, each with the root of the gain.
    phi = [math.sqrt(gain) * lowpass(frequencies(size), J) for size in padded]
    waves = [gain * wave for wave in _waves(wavelet, padded, J, L)]
    psi = []
    for r in range(J):
        # Level r holds maps of scale r, to which larger scales alone are applied: paths of decreasing
        # frequency. Level 0 is that of the image too.
        scales = range(r + 1 if r else 0, J)
        psi.append({j: at_level(waves[j], r, j, sampling) for j in scales})
    if normalize == "frame":
        psi, phi = _normalized(psi, phi, J, sampling)
    rows = [averaging(phi[0], r, J, height, margins[0], sampling, pool) for r in range(J)]
    columns = [averaging(phi[1], r, J, width, margins[1], sampling, pool) for r in range(J)]
    arrays = tuple(psi), tuple(phi), tuple(zip(rows, columns, strict=True))
    psi, phi, average = jax.device_put(jax.tree.map(_in_default_precision, arrays))
    band = tuple(_band(wave, j) if sampling == "kymatio" else 0 for j, wave in enumerate(waves))
    return Filters(psi, phi, average, (height, width), J, L, margins, padding, sampling, pool, band)


def _in_default_precision(array: np.ndarray) -> np.ndarray:
    """The array in float64 or complex128 if x64 is on and in single precision otherwise, cast on the host."""
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def _check_size(
    shape: Sequence[int], J: int, L: int, padding: str, sampling: str
) -> tuple[int, int]:
    if isinstance(shape, (str, bytes)) or not hasattr(shape, "__len__") or len(shape) != 2:
        raise ValueError(f"shape must be two positive integers (H, W), got {shape!r}")
    shape = [guards.count(f"shape[{axis}]", side) for axis, side in enumerate(shape)]
    guards.count("J", J)
    guards.count("L", L)
    if 2**J > min(shape):
        raise ValueError(
            f"an average over 2^J = {2**J} pixels does not fit an image of size {tuple(shape)}: "
            f"use J <= {int(math.log2(min(shape)))} or larger images"
        )
    if padding == "periodic" and any(size % 2**J for size in shape):
        raise ValueError(
            f"padding='periodic' needs sides that are multiples of 2^J = {2**J}, got {tuple(shape)}"
        )
    if sampling == "centered" and any(size % 2 for size in shape):
        raise ValueError(
            f"sampling='centered' needs even sides, got {tuple(shape)}: an odd side cannot be padded equally on both "
            "ends; crop or pad the images by one pixel, or use sampling='kymatio'"
        )
    return int(shape[0]), int(shape[1])


def _check_options(**options: str | None) -> None:
    for name, value in options.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {_CHOICES[name]}, got {value!r}")


def _margin(size: int, J: int, padding: str) -> tuple[int, int]:
    """One sample of the output grid on each side, more or less, so that borders meet reflected pixels."""
    if padding == "periodic":
        return 0, 0
    # Padded sides are multiples of 2^J, for which every level has whole numbers of samples.
    extra = ((size + 2**J) // 2**J + 1) * 2**J - size
    return extra // 2, (extra + 1) // 2


def _waves(wavelet: str | Wavelet, padded: tuple[int, ...], J: int, L: int) -> list[np.ndarray]:
    """The wavelets of every scale on the full grid, `[L, P, Q]` each."""
    evaluate = _WAVELETS.get(wavelet) if isinstance(wavelet, str) else wavelet
    if evaluate is None:
        raise ValueError(
            f"wavelet must be 'morlet', 'gabor' or a function of (w0, w1, j, theta), got {wavelet!r}"
        )
    w0 = frequencies(padded[0])[:, None]
    w1 = frequencies(padded[1])[None, :]
    waves = [np.asarray(evaluate(w0, w1, j, angles(L))) for j in range(J)]
    for j, wave in enumerate(waves):
        if wave.shape != (L, *padded):
            raise ValueError(
                f"the wavelet of scale {j} has shape {wave.shape}; expected [L, P, Q] = {(L, *padded)}"
            )
    return waves


def _band(wave: np.ndarray, j: int) -> int:
    """The last level up to j whose DFT grid misses nothing above 1e-12 of the wavelets of scale j."""
    size = np.abs(wave).max(0)
    for level in range(j, 0, -1):
        # In the DFT's order the bins that a crop removes are those in the middle.
        rows, columns = (slice((n >> level) // 2, n - (n >> level) // 2) for n in size.shape)
        if max(size[rows].max(), size[:, columns].max()) <= 1e-12 * size.max():
            return level
    return 0


def _normalized(psi: list[dict[int, np.ndarray]], phi: list[np.ndarray], J: int, sampling: str):
    """The filters divided by the square root of the largest upper frame bound of the layers."""
    layers = [layer(psi[r], tuple(phi), r, J, sampling) for r in range(J)]
    scale = max(layer_bounds(filters)[1] for filters in layers) ** -0.5
    scaled = [jax.tree.map(lambda wave: scale * wave, level) for level in psi]
    # phi is the product of its two axes: each has the root of the factor.
    return scaled, [math.sqrt(scale) * axis for axis in phi]
