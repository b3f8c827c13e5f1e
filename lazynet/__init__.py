"""Lazy training, linearized networks and infinite-width kernels in JAX, from one model definition."""

__all__: list[str] = []
