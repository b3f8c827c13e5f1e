"""Textures from their scattering moments: noise is changed by gradient descent until its moments are the texture's.

    python -m experiments run texture_synthesis                    # about 3 minutes
    python -m experiments run texture_synthesis --preset smoke     # about 10 seconds

Sources are periodic textures that are drawn here: strokes in two directions, discs of two sizes, a
wavy grating. The moments are the means over the image of X, |X * psi_1| and ||X * psi_1| * psi_2|
and the root mean square of X, 682 numbers for 16,384 pixels; L-BFGS lowers their squared distance,
from white noise. Expected: the relative error of the moments falls from 40 % or more below 2 %; no
shift of the source correlates with the synthesis by more than 0.8 (that of the regular grating by
0.68). First-order moments alone give the scales and directions, the second order their arrangement:
lines of the grating join only with it. Moduli forget signs: strokes and discs come out dark and
bright.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.harness.bounds import Count, Integer, Seed, Values
from experiments.harness.facts import within
from lazynet import guards
from lazynet.scattering import filter_bank, scattering_moments

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure"]


@dataclass(frozen=True)
class Config:
    """Textures, their side in pixels, the scale of the moments and the number of steps.

    Attributes:
        textures: What is synthesized.
        size: Side of the textures in pixels.
        J: Scale 2^J of the moments.
        L: Orientations.
        steps: Steps of the synthesis.
        seed: Of the first image.
        precision: Of the computation.
    """

    textures: Annotated[tuple[Literal["strokes", "discs", "waves"], ...], Values()] = (
        "strokes",
        "discs",
        "waves",
    )
    size: Annotated[int, Integer(8)] = 128
    J: Count = 5
    L: Count = 8
    steps: Count = 200
    seed: Seed = 0
    precision: Literal["float32", "float64"] = "float32"

    def check(self, prefix: str) -> None:
        """Refuses scales that are larger than the textures."""
        guards.count(
            f"{prefix}J", self.J, at_most=self.size.bit_length() - 1, fix="2^J is at most the size"
        )


PRESETS = {
    "smoke": Config(textures=("strokes",), size=32, J=2, L=4, steps=60),
    "laptop": Config(),
    "paper": Config(size=256, J=6, steps=500),
}


TITLE = "textures synthesized from scattering moments"


def measure(config: Config, store) -> dict[str, Any]:
    """Each texture, its syntheses from moments up to both orders, and the errors of their moments."""
    arrays: dict[str, Any] = {}
    for name in store.track(config.textures, "textures"):
        source = texture(name, config.size)
        arrays[f"{name}/source"] = source
        for order in (1, 2):
            image, errors = synthesize(config, source, order)
            arrays[f"{name}/image/order={order}"] = image
            arrays[f"{name}/errors/order={order}"] = errors
    return arrays


def facts(config: Config, arrays):
    """The moments are met, and the synthesis is no shifted copy of the source."""
    for name in config.textures:
        errors = arrays[f"{name}/errors/order=2"]
        yield within(f"error_of_noise/{name}", errors[0], at_least=0.2)
        yield within(f"error/{name}", errors[-1], at_most=0.02)
        copy = _correlation(arrays[f"{name}/source"], arrays[f"{name}/image/order=2"])
        yield within(f"correlation_with_source/{name}", copy, at_most=0.8)


def draw(config: Config, arrays):
    """A row for each texture: the source, and the syntheses from both orders."""
    rows = len(config.textures)
    figure = Figure(figsize=(9.6, 3.1 * rows + 0.3), layout="constrained")
    for row, name in zip(figure.subplots(rows, 3, squeeze=False), config.textures, strict=True):
        _show(row[0], arrays[f"{name}/source"], name)
        for ax, order in zip(row[1:], (1, 2), strict=True):
            first, *_, last = 100 * arrays[f"{name}/errors/order={order}"]
            title = f"orders 0 to {order}: error {first:.0f} % to {last:.2g} %"
            _show(ax, arrays[f"{name}/image/order={order}"], title)
    return figure


def _show(ax, image: np.ndarray, title: str) -> None:
    ax.imshow(image, cmap="gray", vmin=-2.2, vmax=2.6)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=10)


def texture(name: str, size: int) -> np.ndarray:
    """A source texture `[size, size]` with mean zero and variance one."""
    image = {"strokes": _strokes, "discs": _discs, "waves": _waves}[name](size)
    return (image - image.mean()) / image.std()


def _offsets(size: int, count: int):
    """Periodic offsets from random centers, `[count, size, size]` along each axis, and the random generator."""
    rng = np.random.default_rng(0)
    centers = rng.uniform(0, size, (2, count, 1))
    # Between -size/2 and size/2: the nearest of all periodic copies.
    grid = (np.arange(size) - centers + size / 2) % size - size / 2
    return grid[0][:, :, None], grid[1][:, None, :], rng


def _strokes(size: int) -> np.ndarray:
    """Short strokes in two crossing directions."""
    u, v, rng = _offsets(size, size**2 // 64)
    angle = np.where(rng.random(len(u)) < 0.5, 0.4, 0.4 + np.pi / 2)[:, None, None]
    along = u * np.cos(angle) + v * np.sin(angle)
    across = v * np.cos(angle) - u * np.sin(angle)
    # The largest of all strokes at a pixel: they cover each other, and do not add up.
    return np.exp(-((along / 5) ** 4) - (across / 1.1) ** 2).max(0)


def _discs(size: int) -> np.ndarray:
    """Discs of two sizes."""
    u, v, rng = _offsets(size, size**2 // 130)
    radius = np.where(rng.random(len(u)) < 0.7, 2.5, 6.0)[:, None, None]
    return (1 / (1 + np.exp(2 * (np.hypot(u, v) - radius)))).max(0)


def _waves(size: int) -> np.ndarray:
    """A grating with a wavy phase."""
    angle = 2 * np.pi * np.arange(size) / size
    u, v = np.meshgrid(angle, angle, indexing="ij")
    return np.sin(size / 8 * u + 2.5 * np.sin(3 * v) + 1.5 * np.sin(2 * u + 1))


def synthesize(config: Config, source: np.ndarray, max_order: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with the moments of the source up to an order, and the relative error at every step."""
    from scipy.optimize import minimize

    dtype = jnp.dtype(config.precision)
    filters = filter_bank(source.shape, config.J, config.L, padding="periodic", pool="mean")
    wanted = _moments(jnp.asarray(source, dtype), filters, max_order)

    def objective(x):
        difference = _moments(x.reshape(source.shape), filters, max_order) - wanted
        return (difference @ difference) / (wanted @ wanted)

    # Filters and wanted moments are constants of the program, which serves one synthesis.
    value_and_slope = jax.jit(jax.value_and_grad(objective))

    def host(x):
        value, slope = value_and_slope(jnp.asarray(x, dtype))
        # SciPy's L-BFGS works in float64, whatever the moments are computed in.
        return float(value), np.asarray(slope, np.float64)

    def record(intermediate_result):
        errors.append(float(intermediate_result.fun))

    start = np.random.default_rng(config.seed).standard_normal(source.size)
    errors = [host(start)[0]]
    # Far below what the steps can reach: their number alone ends the search.
    settings = {"maxiter": config.steps, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-12}
    end = minimize(host, start, jac=True, method="L-BFGS-B", callback=record, options=settings)
    # The objective is the square of the relative error.
    return end.x.reshape(source.shape), np.sqrt(errors)


def _moments(x, filters, max_order):
    """The moments of orders 0 to max_order, and the second moment of the image."""
    moments = scattering_moments(x, filters, max_order=max_order)
    # Means of moduli leave the contrast of the finest scale open, which the second moment fixes.
    return jnp.append(moments, jnp.sqrt(jnp.mean(x**2)))


def _correlation(source: np.ndarray, image: np.ndarray) -> float:
    """The largest correlation of the image with any periodic shift of the source."""
    centered = (image - image.mean()) / image.std()
    # Correlations with all shifts at once are a product in Fourier.
    product = np.fft.fft2(source) * np.conj(np.fft.fft2(centered))
    return float(np.fft.ifft2(product).real.max() / source.size)
