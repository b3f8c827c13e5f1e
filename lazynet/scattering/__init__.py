"""Scattering transforms of images (2D only): jitted, differentiable, with closed-form filters.

Start with `filter_bank` and `scattering2d`; `lazynet.Scattering2D` is the same transform behind
kymatio's interface.
"""

from lazynet.scattering.filters import Filters, filter_bank
from lazynet.scattering.frame import (
    LittlewoodPaley,
    frame_bounds,
    lipschitz_bound,
    littlewood_paley,
)
from lazynet.scattering.moments import scattering_moments
from lazynet.scattering.multiresolution import (
    cascade_aliasing,
    dual_frame_inverse,
    fast_wavelet_inverse,
    fast_wavelet_transform,
    undecimated_coefficients,
)
from lazynet.scattering.rototranslation import rototranslation_scattering
from lazynet.scattering.transform import (
    Path,
    scattering2d,
    scattering2d_nhwc,
    scattering_paths,
    wavelet_coefficients,
)
from lazynet.scattering.wavelets import angles, gabor, morlet

__all__ = [
    "Filters",
    "LittlewoodPaley",
    "Path",
    "angles",
    "cascade_aliasing",
    "dual_frame_inverse",
    "fast_wavelet_inverse",
    "fast_wavelet_transform",
    "filter_bank",
    "frame_bounds",
    "gabor",
    "lipschitz_bound",
    "littlewood_paley",
    "morlet",
    "rototranslation_scattering",
    "scattering2d",
    "scattering2d_nhwc",
    "scattering_moments",
    "scattering_paths",
    "undecimated_coefficients",
    "wavelet_coefficients",
]


def __getattr__(name: str):
    """`Scattering2D`, whose home is `lazynet`, under its name in 0.1 too; it lies above this package."""
    if name == "Scattering2D":
        import lazynet

        return lazynet.Scattering2D
    raise AttributeError(
        f"module 'lazynet.scattering' has no attribute {name!r}; see dir(lazynet.scattering)"
    )
