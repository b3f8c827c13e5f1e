"""Kernels of one finite network: the empirical tangent kernel, its products with vectors, its largest eigenvalue.

Everything here works for any pure `apply(params, x)` that treats the examples of a batch independently: a `Model`'s,
a flax module's, or a `lazy` or linearized function (a `jax.tree_util.Partial`, whose arrays stay arguments of the
compiled code). A second call with other parameters of the same shapes compiles nothing.
"""

from __future__ import annotations

from lazynet.empirical.batching import batch
from lazynet.empirical.dropin import (
    empirical_kernel_fn,
    empirical_nngp_fn,
    empirical_ntk_fn,
    empirical_ntk_vp_fn,
    monte_carlo_kernel_fn,
)
from lazynet.empirical.nngp import empirical_nngp
from lazynet.empirical.ntk import empirical_ntk
from lazynet.empirical.products import estimate_max_learning_rate, largest_ntk_eigenvalue, ntk_vector_product

__all__ = [
    "batch",
    "empirical_kernel_fn",
    "empirical_nngp",
    "empirical_nngp_fn",
    "empirical_ntk",
    "empirical_ntk_fn",
    "empirical_ntk_vp_fn",
    "estimate_max_learning_rate",
    "largest_ntk_eigenvalue",
    "monte_carlo_kernel_fn",
    "ntk_vector_product",
]
