"""What transformations of the input draw in feature space: straight lines, or curves."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.typing import ArrayLike

__all__ = ["Flatness", "flatness", "transformed"]

KINDS = ("translation", "rotation", "dilation")


class Flatness(NamedTuple):
    """How flat paths are, mean over examples.

    Attributes:
        share: Share of the variance of a path in its first d principal directions: 1 for paths in a
            subspace of dimension d.
        turning: Sum of the angles between successive steps, in radians: 0 for a straight line, 2 pi
            for a closed circle.

    Example:
        >>> Flatness(1.0, 0.0).turning
        0.0
    """

    share: float
    turning: float


def flatness(paths: dict[str, Float[ArrayLike, "n t d"]], directions: int) -> dict[str, Flatness]:
    """Share of variance in the first principal directions of `Phi(L_theta x)`, and how far the path turns, by depth.

    A representation that linearizes a group of transformations maps its orbits to flat sets, which
    a linear classifier can make itself invariant to.

    Args:
        paths: By layer the features of n examples at t values of theta, in their order.
        directions: Number of principal directions, for each example its own.

    Raises:
        ValueError: If a path has fewer than three points, does not move, or there are no layers.
        TypeError: If an argument is no array of numbers.

    Example:
        >>> line = np.linspace(0, 1, 5)[None, :, None] * np.ones((1, 1, 3))
        >>> [round(value, 6) for value in flatness({"line": line}, 1)["line"]]
        [1.0, 0.0]

    Source: Mallat (2016), Understanding deep convolutional networks, on linearized groups.
    """
    directions = guards.count("directions", directions)
    if not isinstance(paths, dict) or not paths:
        raise ValueError(
            f"paths got {paths!r:.60}, expected a dictionary of arrays [n, t, d] by layer, not empty."
        )
    return {name: _flatness(name, path, directions) for name, path in paths.items()}


def transformed(
    x: Float[ArrayLike, "n h w c"], kind: str, amounts: Float[ArrayLike, " t"]
) -> Float[np.ndarray, "n t h w c"]:
    """Images under translations (in pixels to the right), rotations (in radians), dilations (factors): cubic splines.

    Args:
        x: Images.
        kind: `"translation"`, `"rotation"` or `"dilation"`; the last two about the center.
        amounts: Values of theta.

    Raises:
        ValueError: If the kind is unknown, x has no images, or a dilation is not positive.
        TypeError: If an argument is no array of numbers.

    Example:
        >>> image = np.zeros((1, 5, 5, 1)); image[0, 2, 2] = 1.0
        >>> moved = transformed(image, "translation", np.array([1.0]))
        >>> int(moved[0, 0, 2, :, 0].argmax())
        3
    """
    from scipy import ndimage

    if kind not in KINDS:
        raise ValueError(f"kind got {kind!r}, expected one of {', '.join(KINDS)}.")
    images = np.asarray(guards.numbers("x", x), np.float64)
    values = guards.vector("amounts", amounts)
    if images.ndim != 4 or not images.size:
        raise ValueError(f"x has shape {images.shape}, expected images [n, h, w, c], not empty.")
    center = (np.array(images.shape[1:3]) - 1) / 2
    moved = []
    for amount in values:
        matrix, offset = _inverse_map(kind, float(amount), center)
        shift: Any = offset
        warped = np.empty_like(images)
        for i, c in np.ndindex(images.shape[0], images.shape[-1]):
            warped[i, ..., c] = ndimage.affine_transform(
                images[i, ..., c], matrix, shift, order=3, mode="nearest"
            )
        moved.append(warped)
    return np.stack(moved, axis=1)


def _inverse_map(kind, amount, center):
    """Matrix and shift by which positions of the result are looked up in the image."""
    if kind == "translation":
        return np.eye(2), np.array([0.0, -amount])
    if kind == "rotation":
        cos = np.cos(amount)
        sin = np.sin(amount)
        matrix = np.array([[cos, -sin], [sin, cos]])
    else:
        matrix = np.eye(2) / guards.number("dilation", amount, above=0)
    # `M (p - center) + center`.
    return matrix, center - matrix @ center


def _flatness(name, path, directions):
    array = np.asarray(guards.numbers(f"paths[{name!r}]", path), np.float64)
    if array.ndim != 3 or array.shape[1] < 3 or not array.size:
        raise ValueError(
            f"paths[{name!r}] has shape {array.shape}, expected [n, t, d] with t >= 3 points: take more of theta."
        )
    guards.finite(f"paths[{name!r}]", array)
    centered = array - array.mean(axis=1, keepdims=True)
    # Squared singular values are the variances along principal directions, times t.
    energies = np.square(np.linalg.svd(centered, compute_uv=False))
    total = energies.sum(axis=1)
    steps = np.diff(array, axis=1)
    lengths = np.linalg.norm(steps, axis=2)
    if not (total > 0).all() or not (lengths > 0).all():
        raise ValueError(
            f"paths[{name!r}] has steps of length zero, expected features that move: leave out constant layers."
        )
    products = (steps[:, 1:] * steps[:, :-1]).sum(axis=2)
    cosines = products / (lengths[:, 1:] * lengths[:, :-1])
    # Rounding takes the cosine of a straight path beyond one.
    angles = np.arccos(np.clip(cosines, -1, 1))
    share = energies[:, :directions].sum(axis=1) / total
    return Flatness(float(share.mean()), float(angles.sum(axis=1).mean()))
