"""How far a filter bank is from an isometry: Littlewood-Paley sum, frame bounds of the layers, Lipschitz constant."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from lazynet.scattering.filters import Filters
from lazynet.scattering.levels import layer
from lazynet.scattering.norms import layer_bounds

__all__ = ["LittlewoodPaley", "frame_bounds", "lipschitz_bound", "littlewood_paley"]


class LittlewoodPaley(NamedTuple):
    """The Littlewood-Paley sum and its extremes.

    Attributes:
        sum: `[P, Q]` on the DFT grid, in the DFT's order.
        lower: Its minimum on the disc |omega| <= pi.
        upper: Its maximum.
    """

    sum: Float[np.ndarray, "P Q"]
    lower: float
    upper: float


def littlewood_paley(filters: Filters) -> LittlewoodPaley:
    """`A(w) = |phi(w)|^2 + 1/2 sum_{j,theta} (|psi_{j,theta}(w)|^2 + |psi_{j,theta}(-w)|^2)`.

    A = 1 everywhere would make the undecimated wavelet transform of a real image an isometry. For
    Morlet wavelets A stays below 1.05 and falls to 0.3 at |w| = pi: the finest details are partly
    lost.

    Example:
        >>> from lazynet.scattering import filter_bank
        >>> report = littlewood_paley(filter_bank((32, 32), 2))
        >>> round(report.lower, 2), round(report.upper, 3)
        (0.33, 1.0)
    """
    total = np.multiply.outer(*(np.square(np.asarray(axis)) for axis in filters.phi))
    for wave in filters.psi[0].values():
        # A real image has at -w the conjugate of its spectrum at w.
        energy = np.square(np.abs(np.asarray(wave))).sum(0)
        # Reversed and moved by one, bin k becomes bin -k.
        mirrored = np.roll(energy[::-1, ::-1], 1, axis=(0, 1))
        total = total + 0.5 * (energy + mirrored)
    w0, w1 = (2 * math.pi * np.fft.fftfreq(n) for n in total.shape)
    disc = np.hypot(w0[:, None], w1) <= math.pi
    return LittlewoodPaley(total, float(total[disc].min()), float(total.max()))


def frame_bounds(filters: Filters) -> list[tuple[float, float]]:
    """For each level r, the extremes of `||W_r x||^2 / ||x||^2` over real periodic maps x at that level.

    W_r x collects the average of x and its wavelet coefficients, each decimated by s along both
    axes and multiplied by s: level 0 is the first layer of the transform, level r >= 1 the second
    layer on moduli of scale r. The decimation counts: it aliases, and raises the upper bound above
    the maximum of the Littlewood-Paley sum.

    Example:
        >>> from lazynet.scattering import filter_bank
        >>> [round(upper, 3) for _, upper in frame_bounds(filter_bank((32, 32), 2))]
        [1.047, 1.004]
    """
    phi = _host(filters.phi)
    bounds = []
    for r, psi in enumerate(filters.psi):
        bounds.append(layer_bounds(layer(_host(psi), phi, r, filters.J, filters.sampling)))
    return bounds


def lipschitz_bound(filters: Filters, max_order: int = 2) -> float:
    """A constant C such that `2^J ||Sx - Sy|| <= C ||x - y||` for all images on the periodic grid.

    C^2 = B_0 max(1, max_r B_r max(1, max_r b_r)), with B_r the upper frame bound of level r (r >= 1
    in the inner maximum includes level 0, whose maps of scale 0 feed the second layer) and b_r that
    of the average alone. The modulus does not expand distances. Images that are padded by
    reflection: multiply by the norm of the padding, at most 2 for margins up to the image's side.

    Args:
        filters: A bank with pool="lowpass".
        max_order: Highest order of the coefficients.

    Example:
        >>> from lazynet.scattering import filter_bank
        >>> lipschitz_bound(filter_bank((32, 32), 2, normalize="frame")) <= 1 + 1e-6
        True
    """
    phi = _host(filters.phi)
    J = filters.J
    sampling = filters.sampling
    first = layer_bounds(layer(_host(filters.psi[0]), phi, 0, J, sampling))[1]
    if max_order == 0:
        return math.sqrt(layer_bounds(layer({}, phi, 0, J, sampling))[1])
    low = max(layer_bounds(layer({}, phi, r, J, sampling))[1] for r in range(J))
    if max_order == 1:
        return math.sqrt(first * max(1.0, low))
    # Each operator stretches by the root of its upper bound at most, and a modulus by nothing.
    uppers = []
    for r in range(J):
        waves = {j: wave for j, wave in _host(filters.psi[r]).items() if j > r}
        uppers.append(layer_bounds(layer(waves, phi, r, J, sampling))[1])
    second = max(uppers)
    return math.sqrt(first * max(1.0, second * max(1.0, low)))


def _host(arrays):
    return jax.tree.map(np.asarray, arrays)
