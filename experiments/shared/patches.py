"""Random patch features: filters that are whitened patches of training images.

A patch p of an image is contrast-normalized, `q = (p - mean(p)) / sqrt(var(p) + normalization)`,
and whitened by the matrix `V (E + whitening)^(-1/2) V^T` of many such patches. Filters are whitened
patches of norm one, drawn at random: nothing is learned but a covariance. The response z of a
filter is split into `max(0, z - threshold)` and `max(0, -z - threshold)`, and averaged over the
cells of a coarse grid.

Source: Coates and Ng (2011), "The importance of encoding versus training with sparse coding and
vector quantization".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.harness.bounds import Count, Integer, NonNegative, Positive
from lazynet import guards

__all__ = ["Filters", "PatchConfig", "draw_filters", "patch_features"]

BATCH = 100
"""Images whose responses are held at a time."""


@dataclass(frozen=True)
class PatchConfig:
    """Filters and their encoding; `normalization` is for pixels in [0, 1].

    Attributes:
        size: Side of a patch in pixels.
        filters: Number of filters.
        patches: Patches of which they are drawn and whitened.
        normalization: Added to the variance of a patch, for pixels in [0, 1].
        whitening: Added to the eigenvalues of the covariance.
        threshold: Of the two-sided rectifier.
        grid: Cells of the pooling along a side.
    """

    size: Annotated[int, Integer(1, 32)] = 6
    filters: Count = 512
    patches: Count = 50_000
    # The published 10 is for bytes as pixels.
    normalization: Positive = 10 / 255**2
    whitening: Positive = 0.1
    threshold: NonNegative = 0.25
    grid: Annotated[int, Integer(1, 32)] = 2

    def check(self, prefix: str) -> None:
        """Refuses patches that leave no position for a cell of the pooling."""
        guards.count(f"{prefix}grid", self.grid, at_most=33 - self.size)


class Filters(NamedTuple):
    """Linear filters `[size, size, c, filters]` of contrast-normalized patches, and what is subtracted from them."""

    kernel: np.ndarray
    offset: np.ndarray


def draw_filters(config: PatchConfig, images: np.ndarray, seed: int = 0) -> Filters:
    """Filters `D W` with D random whitened patches of norm one, for `z = D W (q - mean(q))`."""
    patches = _normalized(_drawn_patches(config, images, seed), config.normalization)
    mean = patches.mean(0)
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    scales = np.sqrt(np.maximum(values, 0) + config.whitening)
    # The symmetric root, which changes patches least.
    whiten = (vectors / scales) @ vectors.T
    # Places are random: the first patches are a draw.
    chosen = (patches[: config.filters] - mean) @ whiten
    units = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
    # A filter is applied to patches that are not white yet: it whitens them itself.
    rows = units @ whiten
    kernel = rows.T.reshape(config.size, config.size, images.shape[-1], len(rows))
    return Filters(kernel.astype(np.float32), (rows @ mean).astype(np.float32))


def patch_features(config: PatchConfig, filters: Filters, images: np.ndarray) -> np.ndarray:
    """Features `[n, 2 grid^2 filters]` of images `[n, h, w, c]`, in float32."""
    encode = partial(_encoded, config, filters)
    parts = [images[i : i + BATCH].astype(np.float32) for i in range(0, len(images), BATCH)]
    return np.concatenate([np.asarray(encode(part)) for part in parts])


def _drawn_patches(config: PatchConfig, images, seed) -> np.ndarray:
    """Patches `[patches, size^2 c]` at random places of random images, in float64."""
    count = max(config.patches, config.filters)
    n, h, w, c = images.shape
    bounds = np.array([n, h - config.size + 1, w - config.size + 1])
    shares = jax.random.uniform(jax.random.key(seed), (count, 3), jnp.float32)
    # A share rounded up to one would be a place behind the last.
    places = np.minimum((np.asarray(shares) * bounds).astype(int), bounds - 1)
    # Each `[patches, 1, 1]`, which indexes `[patches, size, size, c]` with the offsets below.
    image, top, left = places.T[:, :, None, None]
    square = np.arange(config.size)
    patches = images[image, top + square[:, None], left + square]
    return patches.reshape(count, config.size**2 * c).astype(np.float64)


def _normalized(patches, normalization):
    centered = patches - patches.mean(1, keepdims=True)
    return centered / np.sqrt(np.square(centered).mean(1, keepdims=True) + normalization)


@partial(jax.jit, static_argnums=0)
def _encoded(config: PatchConfig, filters: Filters, x):
    """Responses of all patches by convolutions: a filter without its mean sees a patch without its mean."""
    kernel = filters.kernel - jnp.mean(filters.kernel, (0, 1, 2), keepdims=True)
    size = config.size
    box = jnp.full((size, size, x.shape[-1], 1), 1 / (size**2 * x.shape[-1]), x.dtype)
    mean = jnp.mean(x, (1, 2, 3), keepdims=True)
    # The variance of a patch as a difference of moments, which loses fewer digits without the mean.
    first = _convolved(x - mean, box)
    second = _convolved((x - mean) ** 2, box)
    variance = jnp.maximum(second - first**2, 0)
    contrast = jnp.sqrt(variance + config.normalization)
    z = _convolved(x, kernel) / contrast - filters.offset[None, None, None]
    above = jnp.maximum(0, z - config.threshold)
    below = jnp.maximum(0, -z - config.threshold)
    sides = jnp.concatenate([above, below], axis=-1)
    return _pooled(sides, config.grid).reshape(len(x), -1)


def _convolved(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _pooled(x, grid):
    """Means `[n, grid, grid, c]` over cells of nearly equal size."""
    return _cell_means(_cell_means(x, grid, axis=1), grid, axis=2)


def _cell_means(x, grid, axis):
    """Means over `grid` parts of an axis, whose lengths differ by at most one."""
    edges = np.linspace(0, x.shape[axis], grid + 1).round().astype(int)
    parts = jnp.split(x, edges[1:-1], axis)
    return jnp.stack([jnp.mean(part, axis) for part in parts], axis)
