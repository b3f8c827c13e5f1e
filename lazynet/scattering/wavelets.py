"""Morlet and Gabor wavelets in closed form on the DFT grid: lattice sums of Gaussians, evaluated in float64.

A wavelet sampled on the integer grid has the Fourier transform `sum_m psi(omega + 2 pi m)`, m in
Z^2 (Poisson), and so is known without sampling it in space: no spatial tiling and no FFT.
Frequencies are in radians per pixel of the full-resolution image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

from lazynet import guards

__all__ = [
    "CENTER_FREQUENCY",
    "KYMATIO_PI",
    "LOWPASS_WIDTH",
    "SLANT",
    "WIDTH",
    "Wavelet",
    "angles",
    "frequencies",
    "gabor",
    "lowpass",
    "morlet",
    "morlet_1d",
]

WIDTH = 0.8
"""Standard deviation, in pixels, of the envelope of the finest wavelet along its oscillation; it doubles with j."""

CENTER_FREQUENCY = 3 * math.pi / 4
"""Frequency, in radians per pixel, of the finest wavelet; it halves with j."""

SLANT = 4.0
"""The envelope is L / SLANT times wider across the oscillation than along it."""

LOWPASS_WIDTH = 0.4
"""Standard deviation of the low-pass phi_J is LOWPASS_WIDTH 2^J pixels: that of the coarsest wavelet, j = J - 1."""

KYMATIO_PI = 3.1415
"""The value of pi in kymatio's normalization: every one of its filters is pi / 3.1415 times the exact one."""

_CUTOFF = 8.5  # standard deviations: exp(-8.5^2 / 2) = 2e-16 does not change a float64 sum

Wavelet = Callable[[np.ndarray, np.ndarray, int, np.ndarray], np.ndarray]
"""`wavelet(w0, w1, j, theta) -> [L, P, Q]`: Fourier transforms at frequencies `w0 [P, 1]`, `w1 [1, Q]` of the
wavelets of scale j and angles `theta [L]`; real or complex."""


def angles(L: int) -> Float[np.ndarray, " L"]:
    """Angles `theta_t = (ceil(L/2) - 1 - t) pi / L`, t = 0 .. L-1, in radians, as kymatio orders them.

    They cover a half circle: the wavelet of angle theta + pi is the conjugate of the one of angle
    theta, and has the same modulus on real images.

    Example:
        >>> np.round(angles(4) / np.pi, 2).tolist()
        [0.25, 0.0, -0.25, -0.5]
    """
    L = guards.count("L", L)
    return (int(L - L / 2 - 1) - np.arange(L)) * (math.pi / L)


def frequencies(n: int) -> Float[np.ndarray, " n"]:
    """Frequencies `2 pi k / n` of the DFT with k in [-n/2, n/2), in the DFT's order, in radians per sample.

    Example:
        >>> np.round(frequencies(4) / np.pi, 2).tolist()
        [0.0, 0.5, -1.0, -0.5]
    """
    return 2 * math.pi * np.fft.fftfreq(n)


def gabor(w0: np.ndarray, w1: np.ndarray, j: int, theta: np.ndarray) -> Float[np.ndarray, "L P Q"]:
    """Gabor wavelets `G(omega) = sum_m exp(-|D R_theta^T (omega + 2 pi m - xi_j e_theta)|^2 / 2)`, m in Z^2.

    D = diag(sigma_j, sigma_j L / SLANT) with sigma_j = WIDTH 2^j, and xi_j = CENTER_FREQUENCY /
    2^j. Their mean is small but not zero, so averages of their moduli depend on the image's mean;
    `morlet` repairs that.

    Args:
        w0: Frequencies along rows, `[P, 1]`, in [-pi, pi].
        w1: Frequencies along columns, `[1, Q]`, in [-pi, pi].
        j: Scale: the wavelet is dilated by 2^j.
        theta: Angles in radians, `[L]`; axis 0 of the image pairs with cos(theta).

    Example:
        >>> w = frequencies(8)
        >>> G = gabor(w[:, None], w[None, :], 0, angles(8))
        >>> G.shape, bool(abs(G[:, 0, 0]).max() > 0.01)
        ((8, 8, 8), True)
    """
    return _lattice_sum(w0, w1, j, theta, CENTER_FREQUENCY / 2**j)


def morlet(w0: np.ndarray, w1: np.ndarray, j: int, theta: np.ndarray) -> Float[np.ndarray, "L P Q"]:
    """Morlet wavelets `psi(omega) = G(omega) - (G(0) / G_0(0)) G_0(omega)`, of mean exactly zero.

    G is the Gabor wavelet of `gabor`, G_0 its envelope (the same at center frequency 0).

    Args:
        w0: Frequencies along rows, `[P, 1]`, in [-pi, pi].
        w1: Frequencies along columns, `[1, Q]`, in [-pi, pi].
        j: Scale: the wavelet is dilated by 2^j.
        theta: Angles in radians, `[L]`.

    Example:
        >>> w = frequencies(8)
        >>> bool(abs(morlet(w[:, None], w[None, :], 0, angles(8))[:, 0, 0]).max() < 1e-12)
        True
    """
    xi = CENTER_FREQUENCY / 2**j
    wave = _lattice_sum(w0, w1, j, theta, xi)
    envelope = _lattice_sum(w0, w1, j, theta, 0.0)
    # As much of the envelope as makes the mean of the wavelet, its value at the frequency zero, vanish.
    if w0.flat[0] == 0 and w1.flat[0] == 0:  # a DFT grid has the origin
        return wave - wave[:, :1, :1] / envelope[:, :1, :1] * envelope
    # Off the DFT grid, the value at frequency zero is computed apart.
    zero = np.zeros((1, 1))
    return (
        wave
        - _lattice_sum(zero, zero, j, theta, xi)
        / _lattice_sum(zero, zero, j, theta, 0.0)
        * envelope
    )


def morlet_1d(w: Shaped[np.ndarray, " n"], j: int) -> Float[np.ndarray, " n"]:
    """The Morlet wavelet on a line: `G(w) - (G(0) / G_0(0)) G_0(w)`, G of width WIDTH 2^j samples and mean xi_j.

    Example:
        >>> bool(abs(morlet_1d(frequencies(16), 1)[0]) < 1e-15)
        True
    """
    sigma = WIDTH * 2**j
    xi = CENTER_FREQUENCY / 2**j
    # The frequency zero stands last: there the wavelet has to vanish.
    at = np.append(w, 0.0)

    def bumps(center):
        return np.exp(-0.5 * (sigma * _periods(at, center, _CUTOFF / sigma)) ** 2).sum(0)

    wave = bumps(xi)
    envelope = bumps(0.0)
    return (wave - wave[-1] / envelope[-1] * envelope)[:-1]


def lowpass(w: Shaped[np.ndarray, " n"], J: int) -> Float[np.ndarray, " n"]:
    """One axis of the low-pass, `phi(omega) = sum_m exp(-sigma^2 (omega + 2 pi m)^2 / 2)`, sigma = LOWPASS_WIDTH 2^J.

    The Gaussian is isotropic: phi_J on the plane is the product of its two axes.

    Example:
        >>> np.round(lowpass(frequencies(4), 2), 3).tolist()
        [1.0, 0.042, 0.0, 0.042]
    """
    sigma = LOWPASS_WIDTH * 2**J
    return np.exp(-0.5 * (sigma * _periods(w, 0.0, _CUTOFF / sigma)) ** 2).sum(0)


def _lattice_sum(
    w0: np.ndarray, w1: np.ndarray, j: int, theta: np.ndarray, xi: float
) -> np.ndarray:
    """`sum_m exp(-|D R_theta^T (omega + 2 pi m - xi e_theta)|^2 / 2)` at every (theta, w0, w1)."""
    along = WIDTH * 2**j
    across = along * len(theta) / SLANT
    reverse = -np.arange(w1.size)
    sums = {}
    symmetric = bool(np.abs(np.sin(0.5 * (w1 + w1[:, reverse]))).max() < 1e-12)
    for angle in theta.tolist():
        opposite = next((other for other in sums if symmetric and abs(other + angle) < 1e-12), None)
        if opposite is None:
            sums[angle] = _one_lattice_sum(w0.ravel(), w1.ravel(), along, across, angle, xi)
        else:  # the sums have period 2 pi: on a DFT grid, w1 -> -w1 is a reversal of the bins
            sums[angle] = sums[opposite][:, reverse]
    # An angle may stand there twice.
    return np.stack([sums[angle] for angle in theta.tolist()])


def _one_lattice_sum(
    w0: np.ndarray, w1: np.ndarray, along: float, across: float, angle: float, xi: float
):
    cos = math.cos(angle)
    sin = math.sin(angle)
    # The hypotenuses are the standard deviations of the turned bump along each frequency axis.
    u = _periods(w0, xi * cos, _CUTOFF * math.hypot(cos / along, sin / across))
    v = _periods(w1, xi * sin, _CUTOFF * math.hypot(sin / along, cos / across))
    # |D R' (u, v)|^2 = along^2 (u cos + v sin)^2 + across^2 (v cos - u sin)^2, term by term.
    exponent = np.multiply.outer((across**2 - along**2) * cos * sin * u, v)
    exponent -= (0.5 * ((along * cos) ** 2 + (across * sin) ** 2) * u**2)[:, :, None, None]
    exponent -= 0.5 * ((along * sin) ** 2 + (across * cos) ** 2) * v**2
    inside = exponent > -0.5 * _CUTOFF**2
    return np.exp(exponent, where=inside, out=np.zeros_like(exponent)).sum((0, 2))


def _periods(w: np.ndarray, center: float, extent: float) -> np.ndarray:
    """`[m, n]`: the frequencies `w + 2 pi m - center` of every period that comes within extent of the center."""
    period = 2 * math.pi
    # w lies in [-pi, pi], which adds pi on both sides.
    first = math.ceil((center - extent - math.pi) / period)
    last = math.floor((center + extent + math.pi) / period)
    return w + period * np.arange(first, last + 1)[:, None] - center
