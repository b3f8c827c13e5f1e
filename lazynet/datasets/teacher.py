"""The synthetic task of the lazy-training paper."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.records import Data
from lazynet.typing import Array, Key

__all__ = ["teacher_student"]


def teacher_student(
    key: Key[Array, ""], *, n_train: int = 1000, n_test: int = 1000, d: int = 100, width: int = 3
) -> tuple[Data, Data]:
    """Targets `y = sum_j s_j max(0, <w_j, x>)` of a random two-layer teacher, inputs uniform on the unit sphere of R^d.

    The teacher has `width` neurons with weights w_j uniform on the same sphere and signs s_j = +-1.
    A wide student fits it in every regime, but only one whose weights move finds the few directions
    and generalizes, so the test loss tells lazy from non-lazy training. Targets are small: y²
    averages width / (2 d) over inputs and teachers.

    Args:
        key: Of inputs and teacher.
        n_train: Number of training examples.
        n_test: Number of test examples.
        d: Dimension of the inputs.
        width: Number of neurons of the teacher.

    Returns:
        Training and test data with x `[n, d]` and y `[n, 1]`, in JAX's default floating-point
        dtype, on the host.

    Raises:
        TypeError: A size is no integer.
        ValueError: A size is not positive.

    Example:
        >>> train, test = teacher_student(jax.random.key(0), n_train=20, d=5)
        >>> train.x.shape, train.y.shape, test.x.shape
        ((20, 5), (20, 1), (1000, 5))

    Source: Chizat, Oyallon and Bach, "On Lazy Training in Differentiable Programming",
    arXiv:1812.07956, and the authors' code of its synthetic experiments (there d = 100, width = 3,
    1,000 examples each).
    """
    named = {"n_train": n_train, "n_test": n_test, "d": d, "width": width}
    sizes = [guards.count(name, size) for name, size in named.items()]
    (x_train, y_train), (x_test, y_test) = jax.tree.map(np.asarray, _draw(key, *sizes))
    return Data(x_train, y_train), Data(x_test, y_test)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _draw(
    key: Key[Array, ""], n_train: int, n_test: int, d: int, width: int
) -> tuple[tuple[Array, Array], ...]:
    train_key, test_key, weight_key, sign_key = jax.random.split(key, 4)
    weights = _on_sphere(weight_key, width, d)
    signs = jax.random.rademacher(sign_key, (width, 1), dtype=weights.dtype)

    def teacher(x):
        # TF32 would leave targets three digits.
        hidden = jax.nn.relu(jnp.matmul(x, weights.T, precision="highest"))
        return jnp.matmul(hidden, signs, precision="highest")

    x_train = _on_sphere(train_key, n_train, d)
    x_test = _on_sphere(test_key, n_test, d)
    return (x_train, teacher(x_train)), (x_test, teacher(x_test))


def _on_sphere(key: Key[Array, ""], n: int, d: int) -> Float[Array, "n d"]:
    # A normal vector has no preferred direction.
    normal = jax.random.normal(key, (n, d))
    return normal / jnp.linalg.norm(normal, axis=1, keepdims=True)
