"""Frame bounds of one layer of decimated filters, from the blocks of its Gram operator in Fourier."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

__all__ = ["layer_bounds"]

Layer = list[tuple[np.ndarray, int]]
"""Filters `[t, P, Q]` on one DFT grid, and the factor by which their outputs are decimated along each axis."""


def layer_bounds(layer: Layer) -> tuple[float, float]:
    """Extreme values A, B of `sum_f ||s_f D_{s_f}(f * x)||^2 / ||x||^2` over real images x on the periodic grid.

    D_s keeps every s-th sample along each axis; the factor s makes up for the smaller number of
    samples. Decimation by s couples the frequencies that differ by multiples of P/s, so the
    operator splits into one block for each frequency of the coarsest output grid, whose eigenvalues
    are computed exactly (power iteration underestimates them). A real image sees each wavelet
    together with its conjugate, with weight one half each.

    Args:
        layer: Pairs (filters `[t, P, Q]` in Fourier, decimation); the largest decimation is a
            multiple of the others.

    Example:
        >>> layer_bounds([(np.full((1, 4, 4), 2.0), 1)])
        (4.0, 4.0)
    """
    coarse = max(step for _, step in layer)
    rows = layer[0][0].shape[-2] // coarse
    columns = layer[0][0].shape[-1] // coarse
    # The blocks of q and -q are conjugate, so half of the coarse grid is enough.
    blocks = [_block(layer, coarse, q0, q1) for q0 in range(rows // 2 + 1) for q1 in range(columns)]
    extremes = [np.linalg.eigvalsh(block)[[0, -1]] for block in blocks]
    return float(min(e[0] for e in extremes)), float(max(e[1] for e in extremes))


def _block(layer: Layer, coarse: int, q0: int, q1: int) -> Shaped[np.ndarray, "a a"]:
    alias = np.arange(coarse)
    gram = np.zeros((coarse**2, coarse**2))
    for filters, step in layer:
        height, width = filters.shape[-2:]
        k0 = alias * (height // coarse) + q0
        k1 = alias * (width // coarse) + q1
        # Decimation by `step` mixes frequencies that differ by multiples of P / step, no others.
        same = alias[:, None] % (coarse // step) == alias[None] % (coarse // step)
        coupled = np.kron(same, same)
        # The conjugate wavelet is conj(psi(-k)) at k; negative indices count from the end.
        for values in (filters[:, k0][:, :, k1], filters[:, -k0][:, :, -k1].conj()):
            flat = values.reshape(len(filters), -1)
            gram = gram + 0.5 * coupled * (flat.conj().T @ flat)
    return gram
