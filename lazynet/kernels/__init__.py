"""Kernels: of infinitely wide networks (`analytic`), of these weights (`empirical`), without a matrix (`spectra`)."""

from lazynet.kernels.analytic import analytic_kernel, monte_carlo_kernel

__all__ = ["analytic_kernel", "monte_carlo_kernel"]
