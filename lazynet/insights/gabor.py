"""How much filters look like Gabor functions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.typing import Array, ArrayLike

__all__ = ["GaborFit", "gabor_fit"]

SPREADS = 0.6, 1.0, 1.6
"""Widths of the envelopes that fits start from, in units of a quarter of the filter."""

STEPS = 200
"""Steps of a fit at most."""

PADDING = 4
"""The spectrum is looked at on a grid so many times finer."""


class GaborFit(NamedTuple):
    """Parameters of `C exp(-(u - m)' D (u - m)) cos(xi' (u - m) + phase)`, u in pixels from the center (rows, columns).

    Attributes:
        amplitude: C >= 0.
        center: m.
        precision: D.
        frequency: xi, in radians a pixel; its second component is not negative.
        phase: In (-pi, pi].
        explained: Explained variance `1 - |filter - fit|^2 / |filter|^2`.
        fit: The functions on the grid of the filters.

    Example:
        >>> GaborFit(*(np.zeros(1) for _ in range(7))).amplitude.shape
        (1,)
    """

    amplitude: Float[np.ndarray, " n"]
    center: Float[np.ndarray, "n 2"]
    precision: Float[np.ndarray, "n 2 2"]
    frequency: Float[np.ndarray, "n 2"]
    phase: Float[np.ndarray, " n"]
    explained: Float[np.ndarray, " n"]
    fit: Float[np.ndarray, "n k k"]

    def ellipses(self, points: int = 64) -> Float[np.ndarray, "n p 2"]:
        """One standard deviation of each filter's spectrum around xi: `(w - xi)' D^{-1} (w - xi) = 2`."""
        angles = np.linspace(0, 2 * np.pi, points)
        circle = np.stack([np.cos(angles), np.sin(angles)])
        values, vectors = np.linalg.eigh(self.precision)
        # One standard deviation of `exp(-(w - xi)' D^{-1} (w - xi) / 4)` is where the form is 2.
        roots = vectors * np.sqrt(2 * values)[:, None, :]
        return self.frequency[:, None] + np.swapaxes(roots @ circle, 1, 2)


def gabor_fit(filters: Float[ArrayLike, "n k1 k2"]) -> GaborFit:
    """Gabor functions that are closest to filters, by nonlinear least squares (Levenberg-Marquardt).

    Each filter is fitted from several envelopes at the peak of its spectrum, and the best fit is
    kept. Noise is explained by some twenty to forty percent: compare with filters at
    initialization.

    Args:
        filters: Square filters, none of them zero.

    Raises:
        ValueError: If filters are not square, smaller than 4 x 4 (a Gabor function has 8
            parameters), zero, or not finite.
        TypeError: If it is no array of numbers.

    Example:
        >>> u = np.arange(9.0) - 4
        >>> wave = np.exp(-0.15 * (u[:, None] ** 2 + u**2)) * np.cos(1.2 * u[:, None])
        >>> found = gabor_fit(wave[None])
        >>> bool(found.explained[0] > 0.999), bool(abs(abs(found.frequency[0, 0]) - 1.2) < 0.01)
        (True, True)

    Source: Jones and Palmer (1987), with a full matrix D.
    """
    images = np.asarray(guards.numbers("filters", filters), np.float64)
    if images.ndim != 3 or images.shape[1] != images.shape[2] or images.shape[1] < 4:
        raise ValueError(
            f"filters has shape {images.shape}, expected [n, k, k] with k >= 4: take one input channel of the weights "
            "of a Conv, W[:, :, 0].transpose(2, 0, 1)."
        )
    guards.finite("filters", images)
    norms = np.linalg.norm(images, axis=(1, 2))
    if not len(images) or not norms.all():
        raise ValueError(
            f"filters has {int((norms == 0).sum())} of {len(images)} that are zero, expected none: leave them out."
        )
    targets = images / norms[:, None, None]
    starts = np.stack([_start(target, spread) for target in targets for spread in SPREADS])
    repeated = np.repeat(targets, len(SPREADS), axis=0)
    dtype = jnp.result_type(float)
    # optimistix mixes dtypes and ranks, whatever the user has forbidden
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        solved = _solved(jnp.asarray(starts, dtype), jnp.asarray(repeated, dtype))
    found = np.asarray(solved, np.float64)
    errors = []
    for theta, target in zip(found, repeated, strict=True):
        errors.append(np.square(_fit_of(theta, len(target), np) - target).sum())
    # A fit that has diverged is the worst of its filter.
    best = np.nan_to_num(np.array(errors), nan=np.inf).reshape(-1, len(SPREADS)).argmin(axis=1)
    chosen = found.reshape(len(images), len(SPREADS), -1)[np.arange(len(images)), best]
    return _record(chosen, targets, norms)


def _start(target, spread):
    """Parameters from the center of the energy and the peak of the spectrum."""
    size = len(target)
    u = np.arange(size) - (size - 1) / 2
    energy = np.square(target)
    center = np.array([energy.sum(axis=1) @ u, energy.sum(axis=0) @ u]) / energy.sum()
    # The spectrum of a real filter is even: half of it has all peaks.
    padded = np.abs(np.fft.fft2(target, (PADDING * size, PADDING * size)))
    half = PADDING * size // 2 + 1
    row, column = np.unravel_index(padded[:, :half].argmax(), (PADDING * size, half))
    frequencies = 2 * np.pi * np.fft.fftfreq(PADDING * size)
    # the root of D: exp(-|u|^2 / (2 s^2)) for a spread s
    root = 1 / (np.sqrt(2) * spread * size / 4)
    theta = np.array(
        [*center, np.log(root), 0.0, np.log(root), frequencies[row], abs(frequencies[column]), 0, 0]
    )
    waves = _waves(theta, size, np)
    # Amplitudes enter linearly: given the rest, least squares has the best ones.
    theta[7:] = np.linalg.lstsq(waves.reshape(2, -1).T, target.ravel(), rcond=None)[0]
    return theta


def _waves(theta, size, numpy: Any):
    """Even and odd wave under the envelope, `[2, k, k]`."""
    u = numpy.arange(size) - (size - 1) / 2
    rows = u[:, None] - theta[0] + 0 * u[None, :]
    columns = u[None, :] - theta[1] + 0 * u[:, None]
    # D = L L' with the logarithms of L's diagonal: positive definite at every step of a fit.
    first = numpy.exp(theta[2]) * rows + theta[3] * columns
    second = numpy.exp(theta[4]) * columns
    envelope = numpy.exp(-(first**2) - second**2)
    angle = theta[5] * rows + theta[6] * columns
    return numpy.stack([envelope * numpy.cos(angle), envelope * numpy.sin(angle)])


def _fit_of(theta, size, numpy: Any):
    waves = _waves(theta, size, numpy)
    return theta[7] * waves[0] + theta[8] * waves[1]


@jax.jit
def _solved(starts: Array, targets: Array) -> Array:
    """Parameters after least squares from each start."""
    import optimistix

    size = targets.shape[1]
    solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)

    def residual(theta, target):
        return (_fit_of(theta, size, jnp) - target).ravel()

    def one(start, target):
        solution = optimistix.least_squares(
            residual, solver, start, target, max_steps=STEPS, throw=False
        )
        return solution.value

    return jax.vmap(one)(starts, targets)


def _record(theta, targets, norms):
    size = targets.shape[1]
    fits = np.stack([_fit_of(one, size, np) for one in theta])
    # cos(xi u + phase) = cos(phase) cos(xi u) - sin(phase) sin(xi u), xi on one half plane
    sign = np.where(theta[:, 6] < 0, -1.0, 1.0)
    phase = np.arctan2(-sign * theta[:, 8], theta[:, 7])
    roots = np.zeros((len(theta), 2, 2))
    roots[:, 0, 0] = np.exp(theta[:, 2])
    roots[:, 1, 0] = theta[:, 3]
    roots[:, 1, 1] = np.exp(theta[:, 4])
    errors = np.square(fits - targets).sum(axis=(1, 2))
    return GaborFit(
        amplitude=norms * np.hypot(theta[:, 7], theta[:, 8]),
        center=theta[:, :2],
        precision=roots @ np.swapaxes(roots, 1, 2),
        frequency=sign[:, None] * theta[:, 5:7],
        phase=phase,
        explained=1 - errors,
        fit=norms[:, None, None] * fits,
    )
