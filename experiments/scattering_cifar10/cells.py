"""The computations of `scattering_cifar10`: features once, then one stored cell for each draw, size and head."""

from __future__ import annotations

import functools
import time
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.harness.progress import bar
from experiments.scattering_cifar10.features import scattering_features
from experiments.scattering_cifar10.heads import all_images, head, head_names, principal_components
from experiments.shared.data import load_images
from lazynet import datasets
from lazynet.records import Data

__all__ = ["compute"]

WIDTH = 32
"""Columns of the descriptions of progress bars."""


def compute(config, store) -> dict[tuple[int, int, str], dict[str, Any]]:
    """Every cell `{(n, draw, head): numbers}`, from the store or computed now."""
    pixels = load_images(config.data, config.data.n_train, config.data.n_test)
    pixels = tuple(part._replace(x=np.asarray(part.x, np.float32)) for part in pixels)
    features = _features(config, pixels, store)
    cells = {}
    with bar(store.console, "cells", WIDTH) as progress:
        task = progress.add_task("heads", total=sum(config.draws) * len(head_names(config)))
        for n, draws in zip(config.sizes, config.draws, strict=True):
            for draw in range(draws):
                # Principal components take longer than some heads: the first one that needs them computes them.
                inputs = {True: pixels, False: features}
                components = functools.cache(partial(_components, config, inputs, n, draw))
                # The same first weights and batches for every alpha of a draw.
                key = jax.random.fold_in(jax.random.key(n), draw)
                for name in head_names(config):
                    progress.update(task, description=f"{name}, n = {n}, draw {draw}")
                    cell = store.read(_name(n, draw, name))
                    if cell is None:
                        start = time.perf_counter()
                        problem = components(name.startswith("pixels/"))
                        cell = head(config, name, problem, key)
                        cell |= {"seconds": time.perf_counter() - start}
                        cell = store.write(_name(n, draw, name), cell)
                    cells[n, draw, name] = cell
                    progress.advance(task)
    if config.all_images:
        cells[config.data.n_train, 0, "ridge"] = _of_all_images(config, features, store)
    return cells


def _features(config, pixels, store) -> tuple[Data, Data]:
    """Scattering coefficients of training and test images."""
    with bar(store.console, "images", WIDTH) as progress:
        task = progress.add_task("scattering", total=sum(len(part.x) for part in pixels))
        advance = partial(progress.advance, task)
        parts = []
        for part, name in zip(pixels, ("train", "test"), strict=True):
            x = scattering_features(config.features, part.x, name, store.folder, advance)
            parts.append(part._replace(x=x))
    return tuple(parts)


def _components(config, inputs, n: int, draw: int, of_pixels: bool):
    train, test = inputs[of_pixels]
    return principal_components(config, datasets.balanced_subset(train, n, seed=draw), test)


def _of_all_images(config, features, store) -> dict[str, Any]:
    name = _name(config.data.n_train, 0, "ridge")
    cell = store.read(name)
    if cell is None:
        start = time.perf_counter()
        with bar(store.console, "images", WIDTH) as progress:
            task = progress.add_task("ridge, all images", total=config.data.n_train)
            cell = all_images(config, *features, partial(progress.advance, task))
        cell = store.write(name, cell | {"seconds": time.perf_counter() - start})
    return cell


def _name(n: int, draw: int, head_name: str) -> str:
    return f"n={n},draw={draw},{head_name.replace('/', '-')}.json"
