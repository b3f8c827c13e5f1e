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

    starts = np.linspace((0, 0), (106 - size, 160 - size), 3).astype(int)
    crops = []
    for name in ("china.jpg", "flower.jpg"):
        # 427 x 640 pixels, of which 424 rows divide by four: means over 4 x 4 blocks.
        gray = load_sample_image(name).mean(-1)[:424] / 255
        small = gray.reshape(106, 4, 160, 4).mean((1, 3))
        crops += [small[row : row + size, column : column + size] for row, column in starts]
    images = np.stack(crops)
    # Without its mean a crop has no step at the border of the window.
    images = images - images.mean((1, 2), keepdims=True)
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return images * np.outer(window, window)


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
    frequencies = np.fft.fftfreq(x.shape[-2])
    phase = np.exp(-2j * np.pi * frequencies * offset)
    shifted = np.fft.fft2(x) * phase[:, None]
    # At the highest frequency the shift by a part of a pixel is complex; its real part is interpolated.
    return np.fft.ifft2(shifted).real


def exact_shift(x: np.ndarray, J: int) -> float:
    """Relative difference of `S(L x)` and `L S(x)` for a shift by 2^J pixels."""
    filters = _bank(x.shape[-1], J)
    # Coefficients are sampled every 2^J pixels: the shift of the image is one of theirs.
    shifted_after = np.roll(_scatter(x, filters), 1, -2)
    shifted_before = _scatter(np.roll(x, 2**J, -2), filters)
    return float(np.max(_norm(shifted_before - shifted_after) / _norm(shifted_after)))


def translations(x: np.ndarray, J: int, offsets: Sequence[float]) -> np.ndarray:
    """`|S L_a x - S x| / |x|`, `[images, offsets]`, for shifts by these fractions of 2^J pixels."""
    return _changes(x, J, [_shifted(x, offset * 2**J) for offset in offsets])


def deformations(x: np.ndarray, J: int, gradients: Sequence[float]) -> np.ndarray:
    """`|S L_tau x - S x| / |x|`, `[images, gradients]`, for smooth tau with these largest gradients."""
    return _changes(x, J, [_deformed(x, epsilon) for epsilon in gradients])


def _changes(x, J, moved):
    filters = _bank(x.shape[-1], J)
    reference = _scatter(x, filters)
    changes = [_norm(_scatter(images, filters) - reference) for images in moved]
    return np.stack(changes, axis=1) / _norm(x)[:, None]


def displacement(size: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """The displacement `A (sin v, sin u)`, with one period on the grid and largest gradient epsilon."""
    u = 2 * np.pi * np.arange(size) / size
    # The slope of A sin(2 pi u / size) is at most 2 pi A / size, which is to be epsilon.
    wave = epsilon * size / (2 * np.pi) * np.sin(u)
    return np.broadcast_to(wave, (size, size)), np.broadcast_to(wave[:, None], (size, size))


def _deformed(x, epsilon):
    from scipy.ndimage import map_coordinates

    size = x.shape[-1]
    tau = displacement(size, epsilon)
    u, v = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    places = [u - tau[0], v - tau[1]]
    # Splines of degree 5: those of degree 1 smooth the image, which scattering sees as a change.
    return np.stack([map_coordinates(image, places, order=5, mode="grid-wrap") for image in x])


def deformation_matrix(tau: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """`L_tau x(u) = x(u - tau(u))` as a matrix, x being the trigonometric polynomial through its samples."""
    size = len(tau[0])
    grid = np.arange(size)
    rows = _dirichlet((grid[:, None] - tau[0])[..., None] - grid)
    columns = _dirichlet((grid - tau[1])[..., None] - grid)
    # The polynomial of two variables is a product of two: a row for each place (u, v).
    return np.einsum("uvp,uvq->uvpq", rows, columns).reshape(size**2, size**2)


def _dirichlet(t: np.ndarray) -> np.ndarray:
    """The trigonometric polynomial that is one at 0 and zero at the other samples of a periodic grid."""
    size = t.shape[-1]
    k = np.arange(1, size // 2)
    waves = np.cos(2 * np.pi * t[..., None] * k / size).sum(-1)
    # The highest frequency of an even grid has one wave instead of two.
    highest = np.cos(np.pi * t) if size % 2 == 0 else 0
    return (1 + 2 * waves + highest) / size


def commutator_norm(J: int, size: int, epsilon: float, shift: float = 0.0) -> float:
    """Operator norm of `[W_J, L_tau] = W_J L_tau - L_tau W_J`, W_J x the average and all wavelet coefficients of x.

    `shift` pixels are added to the displacement of largest gradient epsilon.
    """
    rows, columns = displacement(size, epsilon)
    deform = deformation_matrix((rows + shift, columns))
    return _operator_norm(_commutator, deform, _spectra(size, J))


def averaging_norm(J: int, size: int, amplitude: float) -> float:
    """Operator norm of `L_tau A_J - A_J` for a displacement of at most `amplitude` pixels along each axis."""
    # The largest gradient of the displacement whose amplitude this is.
    deform = deformation_matrix(displacement(size, 2 * np.pi * amplitude / size))
    return _operator_norm(_averaging_change, deform, _spectra(size, J)[:1])


def _commutator(deform, spectra, x):
    # One map a row: the transpose deforms each of them.
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
    # As one real map, which has a transpose, and the norm of the complex one.
    return jnp.concatenate([maps.real, maps.imag])


def _operator_norm(operator: Callable, deform: np.ndarray, spectra: np.ndarray) -> float:
    """The largest singular value of `x -> operator(deform, spectra, x)`, by Lanczos iterations."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = len(deform)
    arrays = (jnp.asarray(deform), jnp.asarray(spectra))

    def product(x):
        return np.asarray(_normal(operator, jnp.asarray(x.ravel()), *arrays))

    # The wavelets of all scales and the deformation have n^2 J L entries together: never formed.
    matrix = LinearOperator((n, n), matvec=product, dtype=np.float64)
    # A start that is drawn anew would give other digits at every run.
    start = np.random.default_rng(0).standard_normal(n)
    # |A|^2 is the largest eigenvalue of A'A.
    largest = eigsh(matrix, 1, tol=1e-4, v0=start, return_eigenvectors=False)[0]
    return math.sqrt(largest)


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
    atoms = _gabor_atoms(size, frequencies, 1.0)
    dilated = _gabor_atoms(size, frequencies, 1.0 + dilation)
    # The transform of n x n samples over n has the norm of the image.
    modulus = np.abs(np.fft.fft2(atoms)) - np.abs(np.fft.fft2(dilated))
    scattering = _scatter(atoms, filters) - _scatter(dilated, filters)
    return _norm(modulus) / size / _norm(atoms), _norm(scattering) / _norm(atoms)


def _gabor_atoms(size: int, frequencies: Sequence[float], dilation: float) -> np.ndarray:
    """`exp(-|d u|^2 / 2 s^2) cos(w d u)` for each frequency w, d being the dilation and s an eighth of the grid."""
    u = dilation * (np.arange(size) - size / 2)
    envelope = np.exp(-(u[:, None] ** 2 + u**2) / (2 * (size / 8) ** 2))
    return np.stack([envelope * np.cos(w * u)[:, None] for w in frequencies])
