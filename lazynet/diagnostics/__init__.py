"""How lazy is a network, and how far did it move: pure functions of weights, outputs, kernels and activations."""

from __future__ import annotations

from lazynet.diagnostics.curvature import hessian_norm, jacobian_norm, kappa
from lazynet.diagnostics.displacement import (
    layer_drift,
    linearization_gap,
    ntk_change,
    output_gap,
    param_drift,
)
from lazynet.diagnostics.features import coordinate_check, richness
from lazynet.diagnostics.gates import Stability, activation_stability
from lazynet.diagnostics.kernels import (
    Spectrum,
    cka,
    kernel_cosine_distance,
    kernel_distance,
    kernel_spectrum,
    kernel_velocity,
    target_alignment,
)
from lazynet.diagnostics.residuals import loss_weights
from lazynet.diagnostics.slopes import fit_slope
from lazynet.diagnostics.verdict import Laziness, is_lazy
from lazynet.tangents import Tangent, tangent_at

__all__ = [
    "Laziness",
    "Spectrum",
    "Stability",
    "Tangent",
    "activation_stability",
    "cka",
    "coordinate_check",
    "fit_slope",
    "hessian_norm",
    "is_lazy",
    "jacobian_norm",
    "kappa",
    "kernel_cosine_distance",
    "kernel_distance",
    "kernel_spectrum",
    "kernel_velocity",
    "layer_drift",
    "linearization_gap",
    "loss_weights",
    "ntk_change",
    "output_gap",
    "param_drift",
    "richness",
    "tangent_at",
    "target_alignment",
]
