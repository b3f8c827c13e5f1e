"""The computations of `scattering_cifar10`: features once, then one stored cell for each draw, size and head."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments.harness import store
from experiments.harness.progress import bar
from experiments.scattering_cifar10.features import load_images, scattering_features
from experiments.scattering_cifar10.heads import all_images, head, head_names, principal_components
from lazynet import datasets
from lazynet.records import Data

__all__ = ["compute"]

WIDTH = 32
"""Columns of the descriptions of progress bars."""


def compute(config, folder: Path, console) -> dict[tuple[int, int, str], dict[str, Any]]:
    """Every cell `{(n, draw, head): numbers}`, from its file or computed now."""
    parts = load_images(config.data)
    with bar(console, "images", WIDTH) as progress:
        task = progress.add_task("scattering", total=sum(len(part.x) for part in parts))
        advance = partial(progress.advance, task)
        features = tuple(
            Data(scattering_features(config.features, part.x, name, folder, advance), part.y)
            for part, name in zip(parts, ("train", "test"), strict=True)
        )
    cells = {}
    with bar(console, "cells", WIDTH) as progress:
        task = progress.add_task("heads", total=sum(config.draws) * len(head_names(config)))
        for n, draws in zip(config.sizes, config.draws, strict=True):
            for draw in range(draws):
                problem = functools.cache(
                    partial(_problem, config, {True: parts, False: features}, n, draw)
                )
                key = jax.random.fold_in(jax.random.key(n), draw)
                for name in head_names(config):
                    progress.update(task, description=f"{name}, n = {n}, draw {draw}")
                    cell = partial(_head, config, name, problem, key)
                    cells[n, draw, name] = _stored(_path(folder, n, draw, name), cell)
                    progress.advance(task)
    if config.all_images:
        with bar(console, "images", WIDTH) as progress:
            task = progress.add_task("ridge, all images", total=config.data.n_train)
            cell = partial(all_images, config, *features, partial(progress.advance, task))
            cells[config.data.n_train, 0, "ridge"] = _stored(
                _path(folder, config.data.n_train, 0, "ridge"), cell
            )
    return cells


def _problem(config, inputs: dict[bool, tuple[Data, Data]], n: int, draw: int, pixels: bool):
    train, test = inputs[pixels]
    return principal_components(config, datasets.balanced_subset(train, n, seed=draw), test)


def _head(config, name: str, problem: Callable, key) -> dict[str, Any]:
    """The head of a draw; its principal components are computed by the first head that is not stored."""
    return head(config, name, problem(name.startswith("pixels/")), key)


def _path(folder: Path, n: int, draw: int, name: str) -> Path:
    return store.part(folder / "cells" / f"n={n},draw={draw},{name.replace('/', '-')}.json")


def _stored(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The numbers of a finished cell, with the seconds they took."""

    def timed():
        start = time.perf_counter()
        numbers = compute()
        return numbers | {"seconds": time.perf_counter() - start}

    return store.stored_json(path, timed)
