"""What happens inside a network, and what bounds say of it: questions that every regime can be asked.

Inside: functions of `{path: activations}`, one entry a layer, whatever they are made by: `inside` of a
model at its weights, or of its tangent model, whose activations are `a_l(w0) + D a_l(w0) u`; orders
of a scattering transform; the trace of a foreign model. They are computed on the host in float64.

- `separability`, `local_support_vectors`: how far classes are apart, by depth.
- `intrinsic_dimension`, `nearest_neighbor_error`: of how many dimensions the features are.
- `flatness`: what a group of transformations of the input draws in feature space.
- `gabor_fit`: how much first filters look like Gabor functions.
- `invert`: which images have given features.
- `adversarial_norm`, `largest_gradient`, `lipschitz_bound`: how far a network is from another answer.
- `bounds`: spectral complexity, margins, Rademacher complexity and the estimators beside them.
"""

from __future__ import annotations

from lazynet.insights import bounds as bounds
from lazynet.insights.activations import inside
from lazynet.insights.classes import Separability, local_support_vectors, separability
from lazynet.insights.dimension import Dimension, intrinsic_dimension, nearest_neighbor_error
from lazynet.insights.gabor import GaborFit, gabor_fit
from lazynet.insights.inversion import Inversion, invert, total_variation
from lazynet.insights.orbits import Flatness, flatness, transformed
from lazynet.insights.robustness import adversarial_norm, largest_gradient, lipschitz_bound

__all__ = [
    "Dimension",
    "Flatness",
    "GaborFit",
    "Inversion",
    "Separability",
    "adversarial_norm",
    "flatness",
    "gabor_fit",
    "inside",
    "intrinsic_dimension",
    "invert",
    "largest_gradient",
    "lipschitz_bound",
    "local_support_vectors",
    "nearest_neighbor_error",
    "separability",
    "total_variation",
    "transformed",
]
