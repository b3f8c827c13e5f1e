"""What `scattering_properties` measures: images, translations, deformations, commutators and dilated Gabor atoms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.scattering import Filters, filter_bank, scattering2d

__all__ = [
    "averaging_norm",
    "commutator_norm",
    "deformations",
    "dilated_atoms",
    "exact_shift",
    "photographs",
    "translations",
]


def photographs(size: int) -> np.ndarray:
    """Gray crops of two photographs that vanish smoothly at their borders, so that the periodic grid has no seam."""
    from sklearn.datasets import load_sample_image

    gray = [load_sample_image(name).mean(-1)[:424] / 255 for name in ("china.jpg", "flower.jpg")]
    small = [photo.reshape(106, 4, 160, 4).mean((1, 3)) for photo in gray]
    starts = np.linspace((0, 0), (106 - size, 160 - size), 3).astype(int)
    crops = np.stack([photo[r : r + size, c : c + size] for photo in small for r, c in starts])
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return (crops - crops.mean((1, 2), keepdims=True)) * np.outer(window, window)


def _bank(size: int, J: int) -> Filters:
    return filter_bank((size, size), J, padding="periodic")


def _scatter(x: np.ndarray, filters: Filters) -> np.ndarray:
    """Coefficients times 2^J, which makes their norm comparable with that of the image."""
    return 2**filters.J * np.asarray(scattering2d(jnp.asarray(x), filters))


def _norm(x: np.ndarray) -> np.ndarray:
    """Euclidean norm of every image."""
    return np.linalg.norm(x.reshape(len(x), -1), axis=1)


def _shifted(x: np.ndarray, offset: float) -> np.ndarray:
    """x(u - offset) along rows, by Fourier series: the offset need not be a whole pixel."""
    phase = np.exp(-2j * np.pi * np.fft.fftfreq(x.shape[-2]) * offset)[:, None]
    return np.fft.ifft2(np.fft.fft2(x) * phase).real


def exact_shift(x: np.ndarray, J: int) -> float:
    """Relative difference of `S(L x)` and `L S(x)` for a shift by 2^J pixels."""
    filters = _bank(x.shape[-1], J)
    reference = np.roll(_scatter(x, filters), 1, -2)
    return float(
        np.max(_norm(_scatter(np.roll(x, 2**J, -2), filters) - reference) / _norm(reference))
    )


def translations(x: np.ndarray, J: int, offsets: Sequence[float]) -> np.ndarray:
    """`|S L_a x - S x| / |x|`, `[images, offsets]`, for shifts by these fractions of 2^J pixels."""
    return _changes(x, J, [_shifted(x, offset * 2**J) for offset in offsets])


def deformations(x: np.ndarray, J: int, gradients: Sequence[float]) -> np.ndarray:
    """`|S L_tau x - S x| / |x|`, `[images, gradients]`, for smooth tau with these largest gradients."""
    return _changes(x, J, [_deformed(x, epsilon) for epsilon in gradients])


def _changes(x, J, moved):
    filters = _bank(x.shape[-1], J)
    reference = _scatter(x, filters)
    return np.stack([_norm(_scatter(y, filters) - reference) / _norm(x) for y in moved], axis=1)


def displacement(size: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """The displacement `A (sin v, sin u)`, with one period on the grid and largest gradient epsilon."""
    u = 2 * np.pi * np.arange(size) / size
    wave = epsilon * size / (2 * np.pi) * np.sin(u)
    return np.broadcast_to(wave, (size, size)), np.broadcast_to(wave[:, None], (size, size))


def _deformed(x, epsilon):
    from scipy.ndimage import map_coordinates

    size = x.shape[-1]
    tau = displacement(size, epsilon)
    u, v = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return np.stack(
        [map_coordinates(p, [u - tau[0], v - tau[1]], order=5, mode="grid-wrap") for p in x]
    )


def deformation_matrix(tau: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """`L_tau x(u) = x(u - tau(u))` as a matrix, x being the trigonometric polynomial through its samples."""
    size = len(tau[0])
    grid = np.arange(size)
    rows = _dirichlet((grid[:, None] - tau[0])[..., None] - grid)
    columns = _dirichlet((grid - tau[1])[..., None] - grid)
    return np.einsum("uvp,uvq->uvpq", rows, columns).reshape(size**2, size**2)


def _dirichlet(t: np.ndarray) -> np.ndarray:
    """The trigonometric polynomial that is one at 0 and zero at the other samples of a periodic grid."""
    size = t.shape[-1]
    k = np.arange(1, size // 2)
    waves = np.cos(2 * np.pi * t[..., None] * k / size).sum(-1)
    return (1 + 2 * waves + np.cos(np.pi * t) * (size % 2 == 0)) / size


def commutator_norm(J: int, size: int, epsilon: float, shift: float = 0.0) -> float:
    """Operator norm of `[W_J, L_tau] = W_J L_tau - L_tau W_J`, W_J x the average and all wavelet coefficients of x.

    `shift` pixels are added to the displacement of largest gradient epsilon.
    """
    tau = displacement(size, epsilon)
    return _operator_norm(
        _commutator, deformation_matrix((tau[0] + shift, tau[1])), _spectra(size, J)
    )


def averaging_norm(J: int, size: int, amplitude: float) -> float:
    """Operator norm of `L_tau A_J - A_J` for a displacement of at most `amplitude` pixels along each axis."""
    deform = deformation_matrix(displacement(size, 2 * np.pi * amplitude / size))
    return _operator_norm(_averaging_change, deform, _spectra(size, J)[:1])


def _commutator(deform, spectra, x):
    return _filtered(spectra, deform @ x) - _filtered(spectra, x) @ deform.T


def _averaging_change(deform, spectra, x):
    average = _filtered(spectra, x)
    return average @ deform.T - average


def _spectra(size: int, J: int) -> np.ndarray:
    """The low-pass and all wavelets in Fourier, `[1 + J L, size, size]`."""
    filters = _bank(size, J)
    return np.concatenate([np.outer(*filters.phi)[None], *filters.psi[0].values()])


def _filtered(spectra, x):
    """Real and imaginary parts of a flat map filtered by every spectrum, one a row."""
    size = spectra.shape[-1]
    spectrum = jnp.fft.fft2(x.reshape(1, size, size))
    maps = jnp.fft.ifft2(spectrum * spectra.astype(spectrum.dtype)).reshape(len(spectra), -1)
    return jnp.concatenate([maps.real, maps.imag])


def _operator_norm(operator: Callable, deform: np.ndarray, spectra: np.ndarray) -> float:
    """The largest singular value of `x -> operator(deform, spectra, x)`, by Lanczos iterations."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = len(deform)
    arrays = (jnp.asarray(deform), jnp.asarray(spectra))
    matrix = LinearOperator(
        (n, n),
        matvec=lambda x: np.asarray(_normal(operator, jnp.asarray(x.ravel()), *arrays)),
        dtype=np.float64,
    )
    start = np.random.default_rng(0).standard_normal(n)
    return math.sqrt(eigsh(matrix, 1, tol=1e-4, v0=start, return_eigenvectors=False)[0])


@partial(jax.jit, static_argnums=0)
def _normal(operator, x, *arrays):
    """The operator, then its transpose."""
    apply = partial(operator, *arrays)
    return jax.linear_transpose(apply, x)(apply(x))[0]


def dilated_atoms(
    J: int, size: int, frequencies: Sequence[float], dilation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Changes of Fourier modulus and of scattering, relative to |x|, when `exp(-u^2 / 2 s^2) cos(w u)` is dilated."""
    filters = _bank(size, J)
    u = np.arange(size) - size / 2
    envelope = u[:, None] ** 2 + u**2
    scale = (size / 8) ** 2
    pairs = [
        [np.exp(-envelope * s**2 / (2 * scale)) * np.cos(w * s * u)[:, None] for w in frequencies]
        for s in (1.0, 1.0 + dilation)
    ]
    x, y = (np.stack(atoms) for atoms in pairs)
    modulus = (np.abs(np.fft.fft2(part)) / size for part in (x, y))
    scattering = (_scatter(part, filters) for part in (x, y))
    return tuple(_norm(np.subtract(*pair)) / _norm(x) for pair in (modulus, scattering))
