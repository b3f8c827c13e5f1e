"""The scattering transform as one pure function, with all angles as batch axes: 2 J FFT operations in the graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float, Shaped

from lazynet import guards
from lazynet.scattering.filters import Filters
from lazynet.typing import Array, ArrayLike

__all__ = ["Path", "scattering2d", "scattering2d_nhwc", "scattering_paths", "wavelet_coefficients"]

_ACCELERATOR_BYTES = 2**31  # temporaries of one chunk of images on an accelerator
# Frequencies up to which adding quarters is faster on a CPU than a strided mean.
_SMALL_GRID = 64**2


class Path(NamedTuple):
    """Which wavelets a coefficient went through.

    Attributes:
        order: 0, 1 or 2.
        j: Scales (j1, j2), as many as the order.
        theta: Indices of the angles (theta1, theta2); `angles` has their values.
    """

    order: int
    j: tuple[int, ...]
    theta: tuple[int, ...]


def scattering_paths(J: int, L: int = 8, max_order: int = 2) -> tuple[Path, ...]:
    """The `1 + J L + L^2 J (J-1) / 2` paths, in the order of the coefficients.

    Order 0; then order 1 by scale and angle; then order 2 nested as (j1, theta1, j2 > j1, theta2).

    Example:
        >>> paths = scattering_paths(2)
        >>> len(paths), paths[1], paths[17]
        (81, Path(order=1, j=(0,), theta=(0,)), Path(order=2, j=(0, 1), theta=(0, 0)))
    """
    J = guards.count("J", J)
    L = guards.count("L", L)
    check_max_order(max_order)
    zeroth = [Path(0, (), ())]
    first = [Path(1, (j,), (t,)) for j in range(J) for t in range(L)]
    second = []
    for path in first:
        for j in range(path.j[0] + 1, J):
            second += [Path(2, (*path.j, j), (*path.theta, t)) for t in range(L)]
    orders = [zeroth, first, second]
    return tuple(path for paths in orders[: max_order + 1] for path in paths)


def scattering2d(
    x: Shaped[ArrayLike, "*batch H W"],
    filters: Filters,
    *,
    max_order: int = 2,
    chunk: int | None = None,
) -> Float[Array, "*batch K h w"]:
    """`S x = [x * phi, |x * psi_1| * phi, ||x * psi_1| * psi_2| * phi]` decimated by 2^J, on [..., H, W].

    Stable to translations below 2^J pixels and to small deformations, without learning. Channels
    are batch axes: every image plane is transformed by itself. Differentiable with finite gradients
    everywhere (zero and constant images included); works under `jit`, `grad`, `jvp` and `vmap`, and
    is jitted by itself. Dtype of the output: that of x.

    Args:
        x: Images of the bank's size, float32 or float64; any number of batch axes, possibly of
            length 0.
        filters: From `filter_bank`. Its arrays may be traced, so filters can be learned.
        max_order: 0, 1 or 2.
        chunk: Planes transformed at a time. None: one on a CPU, where the working set then stays in
            cache, and as many as fit 2 GiB of temporaries elsewhere.

    Returns:
        K coefficients in the order of `scattering_paths(J, L, max_order)`; h = H // 2^J and w = W
        // 2^J (1 x 1 with pool="mean").

    Raises:
        ValueError: If x has another spatial size, or max_order is not 0, 1 or 2.
        TypeError: If x is not a float32 or float64 array.

    Example:
        >>> import jax.numpy as jnp
        >>> from lazynet.scattering import filter_bank
        >>> scattering2d(jnp.ones((5, 3, 32, 32)), filter_bank((32, 32), 2)).shape
        (5, 3, 81, 8, 8)

    Source: Bruna & Mallat, "Invariant Scattering Convolution Networks", IEEE TPAMI 35(8), 2013.
    """
    check_images(x, filters)
    check_max_order(max_order)
    chunk = None if chunk is None else guards.count("chunk", chunk)
    return _scattering(x, filters, max_order, chunk)


def scattering2d_nhwc(
    x: Shaped[ArrayLike, "*batch H W C"],
    filters: Filters,
    *,
    max_order: int = 2,
    chunk: int | None = None,
) -> Float[Array, "*batch h w CK"]:
    """`scattering2d` for channels-last images, [..., H, W, C] -> [..., h, w, C K], the layout of networks.

    Output channel c K + k holds path k of input channel c.

    Args:
        x: Images, channels last.
        filters: From `filter_bank`.
        max_order: 0, 1 or 2.
        chunk: As for `scattering2d`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lazynet.scattering import filter_bank
        >>> scattering2d_nhwc(jnp.ones((5, 32, 32, 3)), filter_bank((32, 32), 2)).shape
        (5, 8, 8, 243)
    """
    check_floating(x)
    if x.ndim < 3:
        raise ValueError(
            f"x has shape {x.shape}, expected channels last, [..., H, W, C]: write x[..., None]"
        )
    planes = jnp.moveaxis(jnp.asarray(x), -1, -3)
    coefficients = scattering2d(planes, filters, max_order=max_order, chunk=chunk)
    *batch, channels, paths, height, width = coefficients.shape
    return jnp.moveaxis(coefficients.reshape(*batch, channels * paths, height, width), -3, -1)


def wavelet_coefficients(
    x: Shaped[ArrayLike, "*batch H W"], filters: Filters
) -> tuple[Complex[Array, "*batch L P Q"], ...]:
    """The complex coefficients `x * psi_{j,theta}` decimated by 2^j, one array [..., L, P/2^j, Q/2^j] per scale j.

    Their moduli are the first layer of `scattering2d`; their phases are what a modulus throws away.
    Maps cover the padded image.

    Args:
        x: Images of the bank's size, float32 or float64.
        filters: From `filter_bank`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lazynet.scattering import filter_bank
        >>> [c.shape for c in wavelet_coefficients(jnp.ones((5, 32, 32)), filter_bank((32, 32), 2))]
        [(5, 8, 40, 40), (5, 8, 20, 20)]
    """
    check_images(x, filters)
    return _wavelets(x, filters)


@partial(jax.jit, static_argnums=(2, 3))
def _scattering(x, filters: Filters, max_order: int, chunk: int | None) -> Array:
    return map_planes(partial(_plane, max_order=max_order), x, filters, chunk)


@jax.jit
def _wavelets(x, filters: Filters) -> tuple[Array, ...]:
    return map_planes(_plane_wavelets, x, filters, None)


def map_planes(transform: Callable, x, filters: Filters, chunk: int | None):
    """`transform(plane, filters)` for every [H, W] plane of x, chunk by chunk; trees of arrays keep their shape."""
    x = jnp.asarray(x)
    filters = _cast(filters, x.dtype)
    *batch, height, width = x.shape
    # Batch axes as one: planes do not mix.
    planes = x.reshape(-1, height, width)
    chunk = chunk or _default_chunk(filters, x.dtype.itemsize)
    each = partial(transform, filters=filters)
    if len(planes) <= chunk:
        coefficients = jax.vmap(each)(planes)
    else:
        coefficients = jax.lax.map(each, planes, batch_size=chunk)
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), coefficients)


def _plane_wavelets(x: Array, *, filters: Filters) -> tuple[Array, ...]:
    spectrum = jnp.fft.fft2(pad_plane(x, filters))[None]
    return tuple(jnp.fft.ifft2(filter_maps(spectrum, filters, 0, j)) for j in range(filters.J))


def _plane(x: Array, *, filters: Filters, max_order: int) -> Array:
    """All coefficients [K, h, w] of one image plane, scale by scale.

    The first-order maps of scale j and the second-order maps whose second wavelet has scale j live
    on the same grid: they share one inverse FFT, one modulus and one average.
    """
    x = pad_plane(x, filters)
    zeroth = average_maps(x, filters.average[0])[None]
    first = []
    second = []
    if max_order == 0:
        return zeroth
    spectrum = jnp.fft.fft2(x)[None]
    moduli = []
    for j in range(filters.J):
        # The first L maps of the batch are of first order, then come L^2 for each smaller j1.
        filtered = [filter_maps(spectrum, filters, 0, j)]
        for j1, spectra in enumerate(moduli):
            # [theta1, theta2, P, Q]
            both = filter_maps(spectra[:, None], filters, j1, j)
            filtered.append(both.reshape(-1, *both.shape[-2:]))
        maps = modulus(jnp.fft.ifft2(jnp.concatenate(filtered)))
        averages = average_maps(maps, filters.average[j])
        first.append(averages[: filters.L])
        second.append(
            averages[filters.L :].reshape(len(moduli), filters.L, filters.L, *averages.shape[-2:])
        )
        # For larger scales alone: frequencies decrease along a path.
        if max_order > 1 and j < filters.J - 1:
            moduli.append(jnp.fft.fft2(maps[: filters.L]))
    by_first_wavelet = [_by_first_wavelet(second, j1) for j1 in range(len(moduli))]
    return jnp.concatenate([zeroth, *first, *by_first_wavelet])


def _by_first_wavelet(second: list[Array], j1: int) -> Array:
    """Second-order averages `second[j2][j1, theta1, theta2]` of one j1 in the order (theta1, j2, theta2)."""
    stacked = jnp.stack([averages[j1] for averages in second[j1 + 1 :]], axis=1)
    return stacked.reshape(-1, *stacked.shape[-2:])


def pad_plane(x: Array, filters: Filters) -> Array:
    """The plane with its margins."""
    if filters.padding in ("periodic", "given"):
        return x
    return jnp.pad(x, filters.margins, mode=filters.padding)


@jax.custom_jvp
def modulus(z: Array) -> Array:
    """`|z|`, with derivative zero at zero and `Re(conj(u) dz)` elsewhere, u = z / |z|.

    u comes from z divided by its largest part first: for maps of size 1e-15 the squares in |z|
    would leave the range of single precision, and second derivatives with them.
    """
    return jnp.abs(z)


@modulus.defjvp
def _modulus_jvp(primals, tangents):
    (z,) = primals
    (dz,) = tangents
    # The scale cancels in u: its derivative would be zero.
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.abs(z.real), jnp.abs(z.imag)))
    nonzero = largest > 0
    scale = jnp.where(nonzero, largest, 1)
    # At zero u = 1 stands for a direction that there is not, so that no derivative divides by zero.
    real = jnp.where(nonzero, z.real, 1) / scale
    imag = jnp.where(nonzero, z.imag, 0) / scale
    length = jnp.sqrt(real**2 + imag**2)
    change = (real * dz.real + imag * dz.imag) / length
    return modulus(z), jnp.where(nonzero, change, 0)


def filter_maps(spectrum: Array, filters: Filters, level: int, j: int) -> Array:
    """Fourier transform of maps [..., 1, P, Q] of a level convolved with psi_j and decimated: [..., L, P', Q'].

    Decimation is the mean over the frequencies that alias to the same one. Those outside the band
    of psi_j do not contribute and are cropped first.
    """
    wave = filters.psi[level][j]
    step = 2 ** (j - level)
    wave = wave.reshape((1,) * (spectrum.ndim - wave.ndim) + wave.shape)
    levels = filters.band[j] - level
    if levels > 0:
        spectrum = _crop(spectrum, levels)
        # The mean is over 4^levels aliases, all of which but the one that is kept are zero, to 1e-12.
        wave = _crop(wave, levels) / 4**levels
        step = step >> levels
    if jnp.iscomplexobj(wave):
        return _alias(spectrum * wave, step)
    # Wavelets that are real in Fourier take two real products instead of a complex one.
    if 1 < step <= 4 and wave.shape[-1] * wave.shape[-2] <= _SMALL_GRID:
        real = _alias_by_quarters(spectrum.real, wave, step)
        imag = _alias_by_quarters(spectrum.imag, wave, step)
        return jax.lax.complex(real, imag)
    return _alias(jax.lax.complex(spectrum.real * wave, spectrum.imag * wave), step)


def _crop(spectrum: Array, levels: int) -> Array:
    """The DFT bins k in [-n/2, n/2) of both axes, n = N / 2^levels."""
    for axis in (-2, -1):
        n = spectrum.shape[axis] >> levels
        low = jax.lax.slice_in_dim(spectrum, 0, (n + 1) // 2, axis=axis)
        high = jax.lax.slice_in_dim(
            spectrum, spectrum.shape[axis] - n // 2, spectrum.shape[axis], axis=axis
        )
        spectrum = jnp.concatenate([low, high], axis)
    return spectrum


def _alias(product: Array, step: int) -> Array:
    *batch, height, width = product.shape
    # Bins r + i height/step alias to bin r: [step, height/step, step, width/step].
    return product.reshape(*batch, step, height // step, step, width // step).mean((-4, -2))


def _alias_by_quarters(spectrum: Array, wave: Array, step: int) -> Array:
    # Keeping every second sample adds the four quarters of the bins; step 4 does it twice.
    total = _add([a * b for a, b in zip(_quarters(spectrum), _quarters(wave), strict=True)])
    return (total if step == 2 else _add(_quarters(total))) / step**2


def _quarters(a: Array) -> list[Array]:
    return [quarter for rows in jnp.split(a, 2, -2) for quarter in jnp.split(rows, 2, -1)]


def _add(parts: list[Array]) -> Array:
    return parts[0] + parts[1] + parts[2] + parts[3]


def average_maps(u: Array, matrices: tuple[Array, Array]) -> Array:
    """`A u A'^T` at full precision: the averaged, decimated and cropped map."""
    rows, columns = matrices
    # One product for all maps.
    narrow = jnp.matmul(u.reshape(-1, u.shape[-1]), columns.T, precision="highest")
    return jnp.einsum(
        "hp,...pw->...hw", rows, narrow.reshape(*u.shape[:-1], -1), precision="highest"
    )


def _cast(filters: Filters, dtype) -> Filters:
    # Single precision has complex64 and double precision complex128.
    complex_dtype = np.result_type(dtype, np.complex64)
    return jax.tree.map(
        lambda a: jnp.asarray(a, complex_dtype if jnp.iscomplexobj(a) else dtype), filters
    )


def _default_chunk(filters: Filters, itemsize: int) -> int:
    if jax.default_backend() == "cpu":
        return 1
    # Most numerous are the maps of scales (0, 1): L^2 of them on a quarter of the grid.
    largest = filters.L**2 * filters.phi[0].size * filters.phi[1].size // 4
    return max(1, _ACCELERATOR_BYTES // (8 * itemsize * largest))


def check_max_order(max_order: int) -> None:
    """Refuses orders other than 0, 1 and 2."""
    guards.count("max_order", max_order, at_least=0, at_most=2)


def check_images(x: ArrayLike, filters: Filters) -> None:
    """Refuses images that do not fit the bank or are not finite, with the remedy."""
    if not isinstance(filters, Filters):
        raise TypeError(
            f"filters got {type(filters).__name__}, expected Filters: make them by filter_bank(shape, J)."
        )
    check_floating(x)
    margins = filters.margins if filters.padding == "given" else ((0, 0), (0, 0))
    expected = tuple(
        size + sum(margin) for size, margin in zip(filters.shape, margins, strict=True)
    )
    if x.ndim < 2 or tuple(x.shape[-2:]) != expected:
        raise ValueError(
            f"x got shape {x.shape}, expected that of filters for images [..., {expected[0]}, {expected[1]}]"
        )
    guards.finite("x", x)


def check_floating(x: ArrayLike) -> None:
    """Refuses images that are not float32 or float64: sums of 8-bit pixels would wrap around."""
    dtype = getattr(x, "dtype", None)
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            f"x got {dtype or type(x).__name__}, but images must be float32 or float64 arrays: "
            "convert them, for instance x.astype(numpy.float32) / 255 for 8-bit images"
        )
