"""The photographs of the experiments: CIFAR-10, or handwritten digits where there are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.bounds import Count
from lazynet import datasets, guards
from lazynet.records import Data

__all__ = [
    "DataConfig",
    "Photographs",
    "enlarged",
    "load_images",
    "standardized_images",
    "unit_rows",
]

SIDE = 32
"""Pixels along a side of the photographs."""

DIGITS = 1797

ENOUGH = 10_000
"""Photographs from which features can be learned that are better than the first ones."""


@dataclass(frozen=True)
class Photographs:
    """Which photographs, and what figures and tables call them.

    Attributes:
        name: Data set; CIFAR-10 needs its folder.
        root: Folder of CIFAR-10; None takes the environment variable LAZYNET_DATA.
        download: Whether to fetch CIFAR-10 into its folder.
        label: What figures and tables call the data, None for its name.
    """

    name: Literal["digits", "cifar10"] = "digits"
    root: str | None = None
    download: bool = False
    label: str | None = None

    @property
    def title(self) -> str:
        """What figures and tables call the data."""
        return self.label or {"digits": "digits", "cifar10": "CIFAR-10"}[self.name]

    @property
    def balanced(self) -> tuple[int, int]:
        """The largest balanced subsets for training and test: of 450 digits for the test the rarest class has 40."""
        return {"digits": (1340, 400), "cifar10": (50_000, 10_000)}[self.name]

    def check(self, prefix: str) -> None:
        """Refuses a folder that is not there."""
        needs_folder = self.name == "cifar10" and self.root is not None and not self.download
        if needs_folder and not Path(self.root).expanduser().is_dir():
            raise ValueError(
                f"{prefix}root got {self.root}, expected the folder of CIFAR-10: add --set {prefix}download=true to "
                "fetch it."
            )


@dataclass(frozen=True)
class DataConfig(Photographs):
    """Which photographs, how many of them, and what figures and tables call them.

    Attributes:
        n_train: Training examples.
        n_test: Test examples.
    """

    n_train: Count = 500
    n_test: Count = 797

    @property
    def teaches_features(self) -> bool:
        """Whether these are photographs, and enough to learn features from that are better than the first ones."""
        # Facts about learned features hold for these alone, and are left out elsewhere.
        return self.name == "cifar10" and self.n_train >= ENOUGH

    def check(self, prefix: str) -> None:
        """Refuses more examples than there are, and a folder that is not there."""
        if self.name == "digits" and self.n_train + self.n_test > DIGITS:
            fields = f"{prefix}n_train={self.n_train}, {prefix}n_test={self.n_test}"
            raise ValueError(f"{fields}: expected together at most the {DIGITS} digits.")
        if self.name == "cifar10":
            guards.count(f"{prefix}n_train", self.n_train, at_most=50_000)
            guards.count(f"{prefix}n_test", self.n_test, at_most=10_000)
        super().check(prefix)


def load_images(
    data: Photographs, n_train: int | None, n_test: int | None, *, seed: int = 0
) -> tuple[Data, Data]:
    """Train and test images `[n, H, W, C]` with pixels in [0, 1], and one-hot targets.

    Args:
        data: Which ones.
        n_train: Number of training images; None takes all of CIFAR-10.
        n_test: Number of test images; None takes all of CIFAR-10.
        seed: Of the draw of digits.
    """
    if data.name == "digits":
        train, test = datasets.digits(n_train, n_test, seed=seed)
        return train._replace(x=_squares(train.x)), test._replace(x=_squares(test.x))
    root = datasets.data_root(data.root)
    return datasets.cifar10(root, download=data.download, n_train=n_train, n_test=n_test)


def standardized_images(data: DataConfig, precision: str) -> tuple[Data, Data]:
    """Train and test images with channels of mean zero and variance one, and centered targets, on the device."""
    parts = load_images(data, data.n_train, data.n_test)
    parts = datasets.standardize(*parts, center="channel", scale="channel")
    centered = tuple(datasets.center_targets(part) for part in parts)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.dtype(precision)), centered)


def unit_rows(x: Any) -> Any:
    """Rows of norm one: normal rows become uniform on the sphere."""
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def enlarged(images: np.ndarray) -> np.ndarray:
    """Images whose side divides 32 as images of side 32 in float32, each pixel as a square."""
    times = SIDE // images.shape[1]
    return np.asarray(images, np.float32).repeat(times, 1).repeat(times, 2)


def _squares(digits: np.ndarray) -> np.ndarray:
    return digits.reshape(-1, 8, 8, 1)
