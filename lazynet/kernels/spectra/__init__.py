"""Spectra of kernels that are too large to decompose, or even to form: all that is needed is the product `v -> K v`.

A kernel is a symmetric matrix (an array, which may be memory-mapped) or a function of vectors of a
given shape, such as that of `empirical.ntk_vector_product`.

- `moments`: trace, diagonal, Frobenius norm, effective rank and target alignment of one kernel;
- `comparisons`: alignment and distances of two of them;
- `sketches`: the products behind both, to be made once for all that is asked;
- `one_sided`: the same from forward derivatives alone, or from backward ones alone;
- `eigenpairs`: the largest eigenvalues, their eigenvectors, and these at other inputs;
- `quadrature`: density of eigenvalues and effective dimension.

Random vectors make the estimates random: each comes with its standard error, in which the error of
a quadrature is included. For kernels that fit in memory, the functions of the same names in
`diagnostics` are exact. Beside vectors of the size of the kernel's rows nothing is held: memory
grows neither with the square of their number, nor with their number times that of the parameters.
"""

from lazynet.kernels.spectra.comparisons import Distances, cka, kernel_distances
from lazynet.kernels.spectra.eigenpairs import (
    Eigenpairs,
    extend_eigenvectors,
    top_eigenpairs,
    top_eigenvalues,
)
from lazynet.kernels.spectra.moments import (
    diagonal,
    effective_rank,
    frobenius_norm,
    target_alignment,
    trace,
)
from lazynet.kernels.spectra.one_sided import OneSided, backward_sketch, forward_sketch
from lazynet.kernels.spectra.quadrature import (
    SpectralDensity,
    effective_dimension,
    spectral_density,
)
from lazynet.kernels.spectra.records import Estimate
from lazynet.kernels.spectra.sketches import Sketch, sketch

__all__ = [
    "Distances",
    "Eigenpairs",
    "Estimate",
    "OneSided",
    "Sketch",
    "SpectralDensity",
    "backward_sketch",
    "cka",
    "diagonal",
    "effective_dimension",
    "effective_rank",
    "extend_eigenvectors",
    "forward_sketch",
    "frobenius_norm",
    "kernel_distances",
    "sketch",
    "spectral_density",
    "target_alignment",
    "top_eigenpairs",
    "top_eigenvalues",
    "trace",
]
