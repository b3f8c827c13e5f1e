"""kymatio's `Scattering2D`, argument for argument and number for number, over `filter_bank` and `scattering2d`."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np

from lazynet.scattering.filters import filter_bank
from lazynet.scattering.levels import crop
from lazynet.scattering.transform import check_max_order, scattering2d, scattering_paths
from lazynet.typing import ArrayLike

__all__ = ["Scattering2D"]

_FRONTENDS = (None, "jax", "numpy", "sklearn")


class Scattering2D:
    """`S(x)`: `scattering2d(x, filter_bank(shape, J, L, pi="kymatio"))`, behind kymatio's interface.

    Replace `from kymatio.jax import Scattering2D` (or `kymatio.numpy`, `kymatio.sklearn`) by `from
    lazynet import Scattering2D`; kymatio itself is not needed. Differences: NumPy arrays give NumPy
    arrays and JAX arrays (also traced ones) give JAX arrays, whatever the module it replaces; wrong
    arguments raise `ValueError` or `TypeError`; `max_order=0` gives order 0 alone; float64 needs
    `jax_enable_x64`.

    It is a scikit-learn transformer too: `fit` learns nothing, `transform` (alias `predict`) maps
    rows of H W pixels to rows of coefficients.

    Args:
        J: Log2 of the averaging scale.
        shape: Image size (M, N).
        L: Number of angles on the half circle.
        max_order: Highest order of the coefficients.
        pre_pad: The caller passes images that already have the padded size.
        backend: Accepted for compatibility and ignored: there is one, JAX.
        out_type: "array", or "list" for a list of dictionaries with `coef`, `j`, `n` and `theta`.
        frontend: None for the type of the input, "jax" or "numpy" to fix the type of the output,
            "sklearn" as "numpy".

    Raises:
        ValueError: If the size, J, L, max_order, out_type or frontend is not possible.

    Example:
        >>> S = Scattering2D(2, (32, 32))
        >>> S(np.ones((5, 3, 32, 32), np.float32)).shape
        (5, 3, 81, 8, 8)
        >>> last = Scattering2D(2, (32, 32), out_type="list")(np.ones((32, 32), np.float32))[-1]
        >>> last["j"], last["n"], last["theta"]
        ((0, 1), (7, 15), (7, 7))
    """

    def __init__(
        self,
        J: int,
        shape: tuple[int, int],
        L: int = 8,
        max_order: int = 2,
        pre_pad: bool = False,
        backend: Any = None,
        out_type: str = "array",
        frontend: str | None = None,
    ):
        if out_type not in ("array", "list"):
            raise ValueError(f"out_type must be 'array' or 'list', got {out_type!r}")
        if frontend not in _FRONTENDS:
            raise ValueError(
                f"frontend must be one of {_FRONTENDS}, got {frontend!r}: the computation is JAX's"
            )
        check_max_order(max_order)
        filters = filter_bank(shape, J, L, padding="given" if pre_pad else "reflect", pi="kymatio")
        self.J = J
        self.shape = shape
        self.L = L
        self.max_order = max_order
        self.pre_pad = pre_pad
        self.backend = backend
        self.out_type = out_type
        self.frontend = frontend
        self.filters = filters

    def __call__(self, x: ArrayLike) -> Any:
        """Same as `scattering`."""
        return self.scattering(x)

    def scattering(self, x: ArrayLike) -> Any:
        """The coefficients of images [..., M, N]: an array [..., K, M // 2^J, N // 2^J], or a list of K dictionaries.

        Raises:
            ValueError: If x has another spatial size.
            TypeError: If x is not a float32 or float64 array.
        """
        coefficients = scattering2d(x, self.filters, max_order=self.max_order)
        if self.frontend in ("numpy", "sklearn") or (
            self.frontend is None and isinstance(x, np.ndarray)
        ):
            coefficients = np.asarray(coefficients)
        return coefficients if self.out_type == "array" else self._as_list(coefficients)

    def _as_list(self, coefficients: ArrayLike) -> list[dict[str, Any]]:
        entries = []
        for k, path in enumerate(scattering_paths(self.J, self.L, self.max_order)):
            # kymatio numbers wavelets by scale and then by angle.
            numbers = tuple(j * self.L + t for j, t in zip(path.j, path.theta, strict=True))
            maps = coefficients[..., k, :, :]
            entries.append({"coef": maps, "j": path.j, "n": numbers, "theta": path.theta})
        return entries

    @property
    def psi(self) -> list[dict[str, Any]]:
        """The wavelets as kymatio lists them: `{"levels": [array, ...], "j": j, "theta": t}`, arrays in Fourier."""
        return [
            # As many resolutions as kymatio stores of a wavelet of scale j.
            {"levels": _levels(wave, min(j + 1, max(self.J - 1, 1))), "j": j, "theta": t}
            for j, waves in self.filters.psi[0].items()
            for t, wave in enumerate(np.asarray(waves))
        ]

    @property
    def phi(self) -> dict[str, Any]:
        """The low-pass as kymatio stores it: `{"levels": [array, ...], "j": J}`."""
        return {"levels": _levels(np.outer(*self.filters.phi), self.J), "j": self.J}

    def fit(self, x: Any = None, y: Any = None) -> Scattering2D:
        """Does nothing: there is nothing to learn."""
        return self

    def transform(self, x: Any) -> np.ndarray:
        """Rows of pixels (one image or several channels each) to rows of coefficients."""
        rows = np.asarray(x)
        height, width = (
            (
                side + sum(margin)
                for side, margin in zip(self.shape, self.filters.margins, strict=True)
            )
            if self.pre_pad
            else self.shape
        )
        pixels = height * width
        if rows.ndim < 2 or math.prod(rows.shape[1:]) % pixels or math.prod(rows.shape[1:]) == 0:
            raise ValueError(
                f"transform got rows of shape {rows.shape}, expected [n, {pixels}] (or a multiple of {pixels} for "
                f"several channels): one image of {height} x {width} pixels, or its channels, a row."
            )
        coefficients = scattering2d(
            rows.reshape(-1, height, width), self.filters, max_order=self.max_order
        )
        return np.asarray(coefficients).reshape(
            len(rows), math.prod(rows.shape[1:]) // pixels * math.prod(coefficients.shape[1:])
        )

    predict = transform

    def fit_transform(self, x: Any, y: Any = None) -> np.ndarray:
        """Same as `transform`."""
        return self.transform(x)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, as scikit-learn's `clone` and grid searches need them."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Scattering2D:
        """Changes arguments of the constructor and rebuilds the filters; what is refused changes nothing."""
        unknown = sorted(set(params) - set(self.get_params()))
        if unknown:
            raise ValueError(
                f"set_params got {unknown[0]!r}, expected one of {', '.join(self.get_params())}."
            )
        # Another one is made first, so that arguments that are refused leave this one as it is.
        vars(self).update(vars(type(self)(**{**self.get_params(), **params})))
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float32"]),
            requires_fit=False,
        )


def _levels(spectrum: np.ndarray, count: int) -> list[np.ndarray]:
    return [crop(crop(spectrum, level, 0), level, 1).astype(np.float32) for level in range(count)]
