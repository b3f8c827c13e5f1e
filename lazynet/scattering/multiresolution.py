"""Wavelet transforms that can be inverted: the fast orthogonal one, and the dual frame of a Morlet bank."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float, Shaped

from lazynet import guards
from lazynet.scattering.filters import Filters
from lazynet.scattering.transform import check_floating
from lazynet.scattering.wavelets import LOWPASS_WIDTH
from lazynet.trees import is_traced
from lazynet.typing import Array, ArrayLike

__all__ = [
    "DAUBECHIES",
    "HAAR",
    "cascade_aliasing",
    "dual_frame_inverse",
    "fast_wavelet_inverse",
    "fast_wavelet_transform",
    "undecimated_coefficients",
]

HAAR = (math.sqrt(0.5), math.sqrt(0.5))
"""Low-pass of the Haar wavelet."""

DAUBECHIES = tuple(
    (a + b * math.sqrt(3)) / (4 * math.sqrt(2)) for a, b in ((1, 1), (3, 1), (3, -1), (1, -1))
)
"""Low-pass of the Daubechies wavelet with two vanishing moments."""


def fast_wavelet_transform(
    x: Shaped[ArrayLike, "*batch H W"], levels: int, lowpass: tuple[float, ...] = DAUBECHIES
) -> tuple[Float[Array, "*batch h w"], list[Float[Array, "*batch 3 p q"]]]:
    """The cascade `a_{j+1} = D_2(a_j * h h)`, `d_{j+1} = D_2(a_j * {h g, g h, g g})` on the periodic grid.

    g[m] = (-1)^m h[n-1-m] is the conjugate mirror of h. With an orthogonal h the transform is an
    isometry that costs O(H W) operations. (Morlet banks have no such cascade: see
    `cascade_aliasing`.)

    Args:
        x: Images whose sides are multiples of 2^levels.
        levels: Number of times the approximation is split.
        lowpass: Coefficients h of the filter, of unit norm and orthogonal to their even shifts.

    Returns:
        The approximation [..., H/2^levels, W/2^levels] and the details of each level, finest first:
        [..., 3, h, w].

    Raises:
        ValueError: If a side is not a multiple of 2^levels.

    Example:
        >>> approximation, details = fast_wavelet_transform(jnp.ones((8, 8)), 2)
        >>> approximation.shape, [d.shape for d in details]
        ((2, 2), [(3, 4, 4), (3, 2, 2)])
    """
    levels = guards.count("levels", levels, at_least=0)
    check_floating(x)
    _check_lowpass(lowpass)
    if x.ndim < 2 or 0 in x.shape[-2:] or any(side % 2**levels for side in x.shape[-2:]):
        raise ValueError(
            f"x got shape {tuple(x.shape)}, expected sides that are multiples of 2^levels = {2**levels}"
        )
    guards.finite("x", x)
    approximation = jnp.asarray(x)
    details = []
    for _ in range(levels):
        low, high = _split(approximation, lowpass, -2)
        approximation, vertical = _split(low, lowpass, -1)
        horizontal, diagonal = _split(high, lowpass, -1)
        details.append(jnp.stack([vertical, horizontal, diagonal], axis=-3))
    return approximation, details


def fast_wavelet_inverse(
    approximation: Float[Array, "*batch h w"],
    details: list[Array],
    lowpass: tuple[float, ...] = DAUBECHIES,
) -> Float[Array, "*batch H W"]:
    """The image with these coefficients: `x = W^T W x`, since an orthogonal W is inverted by its transpose.

    Args:
        approximation: From `fast_wavelet_transform`.
        details: From `fast_wavelet_transform`.
        lowpass: The same filter.

    Example:
        >>> x = jnp.arange(16.0).reshape(4, 4)
        >>> bool(jnp.allclose(fast_wavelet_inverse(*fast_wavelet_transform(x, 1)), x, atol=1e-5))
        True
    """
    check_floating(approximation)
    *batch, height, width = approximation.shape
    scale = 2 ** len(details)
    image = jax.ShapeDtypeStruct((*batch, height * scale, width * scale), approximation.dtype)
    # Shapes are enough: nothing is computed to find the transpose of a linear function.
    transpose = jax.linear_transpose(
        lambda x: fast_wavelet_transform(x, len(details), lowpass), image
    )
    return transpose((approximation, details))[0]


def cascade_aliasing(oversampling: int) -> float:
    """`exp(-(LOWPASS_WIDTH pi 2^oversampling)^2 / 2)`: the low-pass at the Nyquist frequency of its own samples.

    It is what a pyramid of Gaussians would alias at every step if it kept 2^oversampling times more
    samples along each axis than one for each 2^j pixels, and why `scattering2d` filters the
    full-resolution image instead.

    Example:
        >>> [f"{cascade_aliasing(s):.2g}" for s in range(3)]
        ['0.45', '0.042', '3.3e-06']
    """
    oversampling = guards.count("oversampling", oversampling, at_least=0)
    return math.exp(-0.5 * (LOWPASS_WIDTH * math.pi * 2**oversampling) ** 2)


def undecimated_coefficients(
    x: Shaped[ArrayLike, "*batch P Q"], filters: Filters
) -> tuple[Float[Array, "*batch P Q"], Complex[Array, "*batch J L P Q"]]:
    """The average `x * phi` and the wavelet coefficients `x * psi_{j,theta}` at every pixel of the padded grid.

    Args:
        x: Images of the padded size (the image's own with padding="periodic").
        filters: From `filter_bank` with sampling="kymatio".

    Raises:
        ValueError: If x has another size than the filters, or their samples are centered.

    Example:
        >>> from lazynet.scattering import filter_bank
        >>> low, waves = undecimated_coefficients(jnp.ones((8, 8)), filter_bank((8, 8), 2, 4, padding="periodic"))
        >>> low.shape, waves.shape
        ((8, 8), (2, 4, 8, 8))
    """
    check_floating(x)
    if filters.sampling != "kymatio":
        raise ValueError(
            f"filters got sampling={filters.sampling!r}, which moves coefficients off the pixels, expected 'kymatio': "
            "make them with filter_bank(..., sampling='kymatio')."
        )
    expected = tuple(axis.size for axis in filters.phi)
    if tuple(x.shape[-2:]) != expected:
        raise ValueError(
            f"x must have the padded size of the filters [..., {expected[0]}, {expected[1]}], got "
            f"shape {tuple(x.shape)}: pad them, or make filters with padding='periodic'"
        )
    guards.finite("x", x)
    spectrum = jnp.fft.fft2(jnp.asarray(x))
    phi, psi = _spectra(filters, spectrum.dtype)
    low = jnp.fft.ifft2(_times(spectrum, phi)).real
    return low, jnp.fft.ifft2(_times(spectrum[..., None, None, :, :], psi))


def dual_frame_inverse(
    low: Float[Array, "*batch P Q"], waves: Complex[Array, "*batch J L P Q"], filters: Filters
) -> Float[Array, "*batch P Q"]:
    """The real image `Re F^-1[(conj(phi) low + sum conj(psi) waves) / A]`, A the Littlewood-Paley sum.

    The inverse of `undecimated_coefficients`, and the least-squares image if the coefficients are
    those of none.

    Args:
        low: From `undecimated_coefficients`.
        waves: From `undecimated_coefficients`.
        filters: The same bank.

    Example:
        >>> from lazynet.scattering import filter_bank
        >>> filters, x = filter_bank((8, 8), 2, 4, padding="periodic"), jnp.arange(64.0).reshape(8, 8)
        >>> bool(jnp.allclose(dual_frame_inverse(*undecimated_coefficients(x, filters), filters), x, atol=1e-3))
        True
    """
    phi, psi = _spectra(filters, waves.dtype)
    energy = jnp.square(jnp.abs(psi)).sum((0, 1))
    # Reversed and moved by one, bin k becomes bin -k.
    mirrored = jnp.roll(jnp.flip(energy), (1, 1), (0, 1))
    total = jnp.square(jnp.abs(phi)) + 0.5 * (energy + mirrored)
    of_average = _times(jnp.fft.fft2(low), jnp.conj(phi))
    of_waves = _times(jnp.fft.fft2(waves), jnp.conj(psi)).sum((-4, -3))
    summed = of_average + of_waves
    # The real part adds the conjugate wavelets; division by the even function A commutes with it.
    return jnp.fft.ifft2(_times(summed, (1 / total).astype(waves.dtype))).real


def _check_lowpass(lowpass):
    """Refuses filters that are not orthogonal: the transform would not be inverted by its transpose."""
    if is_traced(tuple(lowpass)):
        return
    h = np.asarray([guards.number(f"lowpass[{i}]", value) for i, value in enumerate(lowpass)])
    if len(h) < 2 or len(h) % 2:
        raise ValueError(
            f"lowpass got {len(h)} coefficients, expected an even number: for instance HAAR."
        )
    # sum_k h[k] h[k + 2 m] = 1 for m = 0, and 0 for all others.
    shifts = [h[: len(h) - m] @ h[m:] - (m == 0) for m in range(0, len(h), 2)]
    if np.abs(shifts).max() > 1e-3:
        raise ValueError(
            "lowpass got coefficients that are not of unit norm and orthogonal to their even shifts: "
            "take HAAR or DAUBECHIES."
        )


def _split(x: Array, lowpass: tuple[float, ...], axis: int) -> tuple[Array, Array]:
    """Even samples of the correlations with h and with its conjugate mirror, along one axis."""
    n = len(lowpass)
    mirror = [(-1) ** m * lowpass[n - 1 - m] for m in range(n)]
    even = jnp.stack([_even(jnp.roll(x, -m, axis), axis) for m in range(n)])
    low, high = jnp.tensordot(jnp.asarray([lowpass, mirror], x.dtype), even, 1, precision="highest")
    return low, high


def _even(x: Array, axis: int) -> Array:
    return x[..., ::2] if axis == -1 else x[..., ::2, :]


def _spectra(filters: Filters, dtype) -> tuple[Array, Array]:
    phi = jnp.outer(*filters.phi).astype(dtype)
    return phi, jnp.stack(list(filters.psi[0].values())).astype(dtype)


def _times(maps: Array, spectra: Array) -> Array:
    return maps * spectra.reshape((1,) * (maps.ndim - spectra.ndim) + spectra.shape)
