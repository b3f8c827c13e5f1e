"""Expected scattering moments of stationary textures."""

from __future__ import annotations

from jaxtyping import Float, Shaped

from lazynet.scattering.filters import Filters
from lazynet.scattering.transform import check_images, scattering2d
from lazynet.typing import Array, ArrayLike

__all__ = ["scattering_moments"]


def scattering_moments(
    x: Shaped[ArrayLike, "*batch H W"], filters: Filters, *, max_order: int = 2
) -> Float[Array, "*batch K"]:
    """Spatial means estimating `E|X * psi_1|` and `E||X * psi_1| * psi_2|` of a stationary X (order 0: `E X`).

    A handful of numbers that describe a texture; differentiable, so that images with given moments
    can be found by gradient descent.

    Args:
        x: Images of the bank's size, float32 or float64.
        filters: From `filter_bank` with pool="mean"; padding="periodic" for periodic textures.
        max_order: 0, 1 or 2.

    Raises:
        ValueError: If the bank does not pool by the mean.

    Example:
        >>> import jax.numpy as jnp
        >>> from lazynet.scattering import filter_bank
        >>> scattering_moments(jnp.ones((5, 32, 32)), filter_bank((32, 32), 2, pool="mean")).shape
        (5, 81)
    """
    check_images(x, filters)
    if filters.pool != "mean":
        raise ValueError(f"moments need filters with pool='mean', these have pool={filters.pool!r}")
    return scattering2d(x, filters, max_order=max_order)[..., 0, 0]
