"""Filters as they act at each resolution: cropped spectra, half-sample phases, averaging matrices."""

from __future__ import annotations

import math

import numpy as np

from lazynet.scattering.norms import Layer
from lazynet.scattering.wavelets import frequencies

__all__ = ["at_level", "averaging", "crop", "layer"]


def crop(spectrum: np.ndarray, level: int, axis: int) -> np.ndarray:
    """The DFT bins k in [-n/2, n/2) of one axis, n = N / 2^level: bin -n/2 stays and n/2 goes, as in kymatio."""
    n = spectrum.shape[axis] >> level
    return np.take(spectrum, np.r_[0 : (n + 1) // 2, -(n // 2) : 0], axis=axis)


def _half_sample(n: int, step: int, sampling: str) -> np.ndarray:
    """Phases `e^(i w (step-1)/2)`: decimation then samples the middle of each block of step samples.

    The Nyquist bin stands for both signs of its frequency, hence its cosine, which is 0 for the
    even steps here.
    """
    if sampling == "kymatio" or step == 1:
        return np.ones(n)
    phase = np.exp(0.5j * (step - 1) * frequencies(n))
    phase[n // 2] = math.cos(0.5 * math.pi * (step - 1)) if step % 2 else 0.0
    return phase


def at_level(wave: np.ndarray, level: int, j: int, sampling: str) -> np.ndarray:
    """Wavelets of scale j for maps of this level, about to be decimated by 2^(j - level)."""
    wave = crop(crop(wave, level, -2), level, -1)
    phase0, phase1 = (_half_sample(n, 2 ** (j - level), sampling) for n in wave.shape[-2:])
    return wave * phase0[:, None] * phase1


def layer(
    psi: dict[int, np.ndarray], phi: tuple[np.ndarray, ...], level: int, J: int, sampling: str
) -> Layer:
    """All the filters that act on maps of a level, with their decimations: low-pass first."""
    step = 2 ** (J - level)

    def lowpass(axis):
        return crop(axis, level, 0) * _half_sample(axis.size >> level, step, sampling)

    low = (np.outer(*map(lowpass, phi))[None], step)
    return [low, *((wave, 2 ** (j - level)) for j, wave in psi.items())]


def averaging(
    phi: np.ndarray,
    level: int,
    J: int,
    size: int,
    margin: tuple[int, int],
    sampling: str,
    pool: str,
) -> np.ndarray:
    """The matrix from one axis of a map at a level to the output samples inside the image."""
    spectrum = crop(phi, level, 0)
    n = spectrum.size
    step = 2 ** (J - level)
    position = np.arange(spectrum.size)
    if pool == "mean":
        # Where in the padded image the samples of the level are.
        pixel = 2**level * position + (0.5 * (2**level - 1) if sampling == "centered" else 0)
        inside = (pixel >= margin[0]) & (pixel < margin[0] + size)
        return inside[None] / inside.sum()
    offset = 0.5 * (step - 1) if sampling == "centered" else 0.0
    impulse = np.fft.ifft(spectrum * np.exp(1j * frequencies(n) * offset)).real
    # The first sample lies in the margin, where there is one.
    first = 1 if sum(margin) else 0
    wanted = step * (first + np.arange(size >> J))
    # Rows of the circulant matrix of phi, those of samples inside of the image.
    return impulse[(wanted[:, None] - position) % n]
