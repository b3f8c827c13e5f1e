"""Features of images: scattering coefficients, computed once in parts that a killed run finds again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import store
from lazynet.scattering import filter_bank, scattering2d_nhwc

__all__ = ["scattering_features"]

PART = 5000
"""Images in one file of features."""

BATCH = 250
"""Images in one call of the transform."""


def scattering_features(config, images: np.ndarray, name: str, folder: Path, advance) -> np.ndarray:
    """Coefficients `[n, h, w, C K]` of all images in half precision, from the files of the folder or computed now.

    Half precision keeps 60,000 images in 2 GB; its rounding is a thousandth of the spread of a
    feature.
    """
    filters = filter_bank(images.shape[1:3], config.J, config.L)
    features = None
    for start in range(0, len(images), PART):
        part = images[start : start + PART]
        path = folder / "features" / f"{name}-{start:05d}.npz"
        if not path.exists():
            batches = list(_transformed(config, filters, part, advance))
            store.save_arrays(path, {"features": np.concatenate(batches)})
        else:
            advance(len(part))
        stored = store.load_arrays(path)["features"]
        # One array for all, whose shape is known with the first part: no list and its copy.
        if features is None:
            features = np.empty((len(images), *stored.shape[1:]), np.float16)
        features[start : start + PART] = stored
    return features


def _transformed(config, filters, images, advance) -> Iterator[np.ndarray]:
    """The features of every batch, by one thread for each core."""
    transform = partial(
        _transform, filters=filters, max_order=config.max_order, offset=config.log_offset
    )
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    # Transforms of small images do not fill XLA's own threads.
    with ThreadPoolExecutor(os.cpu_count() if jax.default_backend() == "cpu" else 1) as pool:
        for batch in pool.map(lambda batch: np.asarray(transform(batch)), batches):
            advance(len(batch))
            yield batch


@partial(jax.jit, static_argnames=("max_order", "offset"))
def _transform(x, *, filters, max_order: int, offset: float):
    coefficients = scattering2d_nhwc(x, filters, max_order=max_order)
    if offset:
        # Coefficients of different scales and orders differ by orders of magnitude.
        coefficients = jnp.log(jnp.abs(coefficients) + offset)
    return coefficients.astype(jnp.float16)
