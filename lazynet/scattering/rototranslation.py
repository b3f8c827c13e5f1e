"""Scattering on the group of translations and rotations: the second layer filters positions and angles jointly."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float, Shaped

from lazynet import guards
from lazynet.scattering.filters import Filters
from lazynet.scattering.transform import (
    average_maps,
    check_images,
    filter_maps,
    map_planes,
    modulus,
    pad_plane,
)
from lazynet.scattering.wavelets import frequencies, lowpass, morlet_1d
from lazynet.typing import Array, ArrayLike

__all__ = ["angular_filters", "rototranslation_scattering"]


def angular_filters(L: int, scales: int = 2) -> Complex[np.ndarray, "k n n"]:
    """Circulant matrices `C_k[t, t'] = psi_k(t - t')` on the circle of n = 2 L angles: scales of Morlet, then phi.

    psi_k is the one-dimensional Morlet wavelet of width 0.8 2^k steps of pi / L, phi the Gaussian
    of width 0.4 2^scales steps.

    Example:
        >>> angular_filters(4).shape
        (3, 8, 8)
    """
    w = frequencies(2 * L)
    spectra = np.stack([*(morlet_1d(w, k) for k in range(scales)), lowpass(w, scales)])
    impulse = np.fft.ifft(spectra)
    # Negative lags count from the end, as on the circle.
    lag = np.arange(2 * L)[:, None] - np.arange(2 * L)
    return impulse[:, lag]


def rototranslation_scattering(
    x: Shaped[ArrayLike, "*batch H W"],
    filters: Filters,
    *,
    angular_scales: int = 2,
    chunk: int | None = None,
) -> Float[Array, "*batch K h w"]:
    """Averages over positions and angles of Y1 and `Y2 = |sum_t' (Y1(., t') * psi_{j2, d+t'})(u) psi_k(t - t')|`.

    `Y1(u, t) = |x * psi_{j1, t}|(u)` is a function on the group of translations and rotations; the
    second wavelet turns along with the angle t' of the first (which covers the whole circle: the
    wavelet of an angle plus pi is the conjugate), so coefficients depend on the relative angle d
    only. Averaging a plain scattering transform over angles is invariant too, but cannot tell
    whether two orientations occur in the same places; this transform can.

    Args:
        x: Images of the bank's size, float32 or float64.
        filters: From `filter_bank`; with sampling="centered" and pool="mean" the coefficients of an
            image turned by 90 degrees are exactly the same.
        angular_scales: Number of scales of the wavelets along angles; 2^angular_scales at most 2 L.
        chunk: As for `scattering2d`.

    Returns:
        1 + J + (J (J-1) / 2) L (angular_scales + 1) coefficients: order 0; order 1 by scale; order
        2 nested as (j1, j2, d, k), k = angular_scales being the low-pass along angles.

    Raises:
        ValueError: If x has another spatial size, or there are too many angular scales.
        TypeError: If x is not a float32 or float64 array.

    Example:
        >>> import jax.numpy as jnp
        >>> from lazynet.scattering import filter_bank
        >>> rototranslation_scattering(jnp.ones((16, 16)), filter_bank((16, 16), 2, 4)).shape
        (15, 4, 4)

    Source: Sifre and Mallat, "Rotation, scaling and deformation invariant scattering for texture
    discrimination", 2013.
    """
    check_images(x, filters)
    guards.count(
        "angular_scales",
        angular_scales,
        at_least=0,
        at_most=int(np.log2(2 * filters.L)),
        fix=f"2^angular_scales is at most 2 L = {2 * filters.L}",
    )
    chunk = None if chunk is None else guards.count("chunk", chunk)
    return _transform(x, filters, angular_scales, chunk)


@partial(jax.jit, static_argnums=(2, 3))
def _transform(x, filters: Filters, angular_scales: int, chunk: int | None) -> Array:
    return map_planes(partial(_plane, angular_scales=angular_scales), x, filters, chunk)


def _plane(x: Array, *, filters: Filters, angular_scales: int) -> Array:
    x = pad_plane(x, filters)
    spectrum = jnp.fft.fft2(x)[None]
    circulants = angular_filters(filters.L, angular_scales)
    first = []
    second = []
    for j1 in range(filters.J):
        # [L, P, Q] on half of the circle; the other half is the same, for real images.
        y1 = modulus(jnp.fft.ifft2(filter_maps(spectrum, filters, 0, j1)))
        first.append(average_maps(y1.mean(0), filters.average[j1])[None])
        moduli = jnp.fft.fft2(y1)[:, None]
        for j2 in range(j1 + 1, filters.J):
            # [t1, t2, P, Q]: each first angle with each second one.
            z = jnp.fft.ifft2(filter_maps(moduli, filters, j1, j2))
            y2 = _along_angles(z, circulants.astype(z.dtype))
            second.append(average_maps(y2, filters.average[j2]).reshape(-1, *first[0].shape[-2:]))
    return jnp.concatenate([average_maps(x, filters.average[0])[None], *first, *second])


def _along_angles(z: Array, circulants: np.ndarray) -> Array:
    """Mean over t of |sum_t' C_k[t, t'] z(t', d + t')|, [d, k, P, Q], from z [t1, t2, P, Q] on the half circle."""
    L = len(z)
    t = np.arange(L)[None, :]
    d = np.arange(L)[:, None]
    # The wavelet at the angle t + pi is the conjugate of that at t, and so is its map of a real image.
    half = z[t, (t + d) % L]
    half = jnp.where((t + d)[..., None, None] >= L, jnp.conj(half), half)
    circle = jnp.concatenate([half, jnp.conj(half)], axis=1)
    return modulus(jnp.einsum("kts,dspq->dktpq", circulants, circle, precision="highest")).mean(2)
