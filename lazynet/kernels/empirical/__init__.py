"""Kernels of one finite network: the empirical tangent kernel, its products with vectors, its largest eigenvalue.

Everything here works for any pure `apply(params, x)` that treats the examples of a batch
independently: a `Model`'s, a flax module's, or a `lazy` or linearized function (a
`jax.tree_util.Partial`, whose arrays stay arguments of the compiled code). A second call with other
parameters of the same shapes compiles nothing.
"""

from __future__ import annotations

from lazynet.kernels.empirical.centered import center_jacobian, hermitian
from lazynet.kernels.empirical.nngp import empirical_nngp
from lazynet.kernels.empirical.ntk import empirical_ntk
from lazynet.kernels.empirical.products import (
    estimate_max_learning_rate,
    largest_ntk_eigenvalue,
    ntk_vector_product,
)

__all__ = [
    "center_jacobian",
    "empirical_nngp",
    "empirical_ntk",
    "estimate_max_learning_rate",
    "hermitian",
    "largest_ntk_eigenvalue",
    "ntk_vector_product",
]
