"""Kernels as products `v -> K v` of flat float64 vectors on the host, and Lanczos' iteration with them.

The iteration is matfree's where its compiled loop is fast: for arrays on the device, and for
functions that JAX can trace. Convolutions are an order of magnitude slower inside a compiled loop
on a CPU, and arrays of NumPy would have to be copied to the device; for these the same recursion
runs on the host in float64, around one product at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float

from lazynet import guards
from lazynet.kernels.empirical.products import is_tiled
from lazynet.linalg import (
    blocked_product,
    check_symmetric,
    kernel_matrix,
    lanczos,
    ritz_values,
)
from lazynet.programs import PerFunction
from lazynet.trees import as_partial
from lazynet.typing import ArrayLike

KernelLike = Float[ArrayLike, "..."] | Callable[[Any], Any]
Shape = tuple[int, ...]


class Operator(NamedTuple):
    """A symmetric matrix of the given size, as a product of flat float64 vectors on the host.

    `compiled` is a product of flat vectors for matfree's compiled loop, None where that does not
    work or is slow. The vectors are ordered by (example, output).
    """

    size: int
    examples: int
    product: Callable[[np.ndarray], np.ndarray]
    compiled: Partial | None
    matrix: np.ndarray | None


def operator_of(kernel: Any, shape: Any, *, loops: bool = False) -> Operator:
    """The kernel as an operator; for compiled `loops` it is looked at whether JAX can trace it."""
    if callable(kernel):
        return _of_product(kernel, shape, loops)
    matrix = matrix_of(kernel)
    in_loops = loops and isinstance(kernel, jax.Array)
    compiled = Partial(_times, jnp.asarray(matrix)) if in_loops else None

    def product(v: np.ndarray) -> np.ndarray:
        return blocked_product(matrix, v[:, None])[:, 0]

    return Operator(len(matrix), len(kernel), product, compiled, matrix)


def matrix_of(kernel: Any) -> np.ndarray:
    """A kernel that is an array, as a matrix that was found to be symmetric."""
    guards.concrete("spectra of a kernel", kernel)
    matrix = kernel_matrix(kernel)
    check_symmetric(matrix)
    return matrix


def _of_product(kernel: Callable, shape: Any, loops: bool) -> Operator:
    shape = vector_shape(shape)
    size = int(np.prod(shape))

    def product(v: np.ndarray) -> np.ndarray:
        return checked_image(kernel, v, shape, size)

    in_loops = loops and _loops_fast(kernel, shape)
    compiled = Partial(_Flat(shape), as_partial(kernel)) if in_loops else None
    return Operator(size, shape[0], product, compiled, None)


def vector_shape(shape: Any) -> Shape:
    """The shape of the vectors of a product, without which it is not known."""
    if shape is None:
        raise ValueError(
            "kernel is a product without shape, expected that of the vectors it takes, for instance (n, k)."
        )
    sizes = [shape] if isinstance(shape, int) else shape
    return tuple(guards.count("shape", size) for size in sizes)


def checked_image(kernel: Callable, v: np.ndarray, shape: Shape, size: int) -> np.ndarray:
    """The product of a flat vector, which must be finite and of the given size."""
    image = kernel(jnp.asarray(v.reshape(shape), jnp.result_type(float)))
    guards.concrete("spectra of a product", image)
    image = np.asarray(image, np.float64).ravel()
    if image.size != size or not np.isfinite(image).all():
        raise ValueError(
            f"kernel times a vector of shape {shape} has {image.size} entries, {np.sum(~np.isfinite(image))} of "
            f"them not finite, expected {size} finite ones: check the shape, the parameters and the inputs."
        )
    return image


def without_means(columns: np.ndarray, examples: int) -> np.ndarray:
    """`H V`, `H = I - 11'/n`: columns minus their means over the examples, each output by itself."""
    parts = columns.reshape(examples, -1, *columns.shape[1:])
    return (parts - parts.mean(axis=0)).reshape(columns.shape)


def centered_operator(operator: Operator) -> Operator:
    """`H K H`."""
    n = operator.examples

    def product(v: np.ndarray) -> np.ndarray:
        return without_means(operator.product(without_means(v, n)), n)

    return operator._replace(product=product, compiled=None, matrix=None)


@dataclasses.dataclass(frozen=True)
class _Flat:
    """A product of vectors of a shape as one of flat vectors; equal shapes compare equal and share compilations."""

    shape: Shape

    def __call__(self, product, v):
        return product(v.reshape(self.shape)).ravel().astype(v.dtype)


def _times(matrix, v):
    return jnp.matmul(matrix, v.astype(matrix.dtype), precision="highest").astype(v.dtype)


def _loops_fast(kernel: Callable, shape: Shape) -> bool:
    """Whether JAX can trace the product and compile it inside a loop without loss."""
    if is_tiled(kernel):
        return False
    try:
        program = str(jax.make_jaxpr(kernel)(jax.ShapeDtypeStruct(shape, jnp.result_type(float))))
    except jax.errors.JAXTypeError:
        return False
    return jax.default_backend() != "cpu" or "conv_general_dilated" not in program


def ritz(operator: Operator, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values in ascending order, and their squared overlaps with the start."""
    return ritz_values(*tridiagonal(operator, start, steps))


def tridiagonal(operator: Operator, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Lanczos' matrix, its diagonal and the entries beside it."""
    steps = min(steps, operator.size)
    if operator.compiled is None:
        return lanczos(operator.product, start, steps)
    direction = jnp.asarray(start, jnp.result_type(float))
    # matfree's code need not hold under the strict promotion that a user has set.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        parts = _matfree_tridiagonal(operator.compiled, direction, steps)
    diagonal, beside, scale = (np.asarray(part, np.float64) for part in parts)
    return diagonal * scale, beside * scale


@partial(PerFunction, static_argnames="steps")
def _matfree_tridiagonal(product, start, steps):
    """Lanczos' matrix of the product divided by a power of two, without which float32 overflows at 1e19."""
    from matfree import decomp

    start = start / jnp.linalg.norm(start)
    first = jnp.max(jnp.abs(product(start)))
    is_number = jnp.isfinite(first) & (first > 0)
    # `0.5 = 0.5 * 2^0`: a product that is zero or not finite is left as it is.
    scale = jnp.ldexp(jnp.ones_like(first), jnp.frexp(jnp.where(is_number, first, 0.5))[1])
    iterate = decomp.tridiag_sym(steps, materialize=False)
    diagonal, beside = iterate(lambda v, f: f(v) / scale, start, product).J_small
    return diagonal, beside, scale


def signs(key: Any, count: int, size: int) -> np.ndarray:
    """Random signs, `[size, count]`."""
    draws = jax.random.rademacher(key, (size, count), jnp.int8)
    return np.asarray(guards.numbers("key", draws), np.float64)


def products(operator: Operator, columns: np.ndarray) -> np.ndarray:
    """`K V`, one column after the other."""
    if operator.matrix is not None:
        return blocked_product(operator.matrix, columns)
    if not columns.shape[1]:
        return columns
    return np.stack([operator.product(column) for column in columns.T], axis=1)


def gaussians(key: Any, count: int, size: int) -> np.ndarray:
    """Standard normal numbers, `[size, count]`."""
    return np.asarray(guards.numbers("key", jax.random.normal(key, (size, count))), np.float64)
