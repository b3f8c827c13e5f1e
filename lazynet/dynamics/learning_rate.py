"""The largest learning rate with which gradient descent under a kernel is stable."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lazynet import guards
from lazynet.linalg import kernel_matrix, largest_eigenvalue
from lazynet.typing import ArrayLike


def max_learning_rate(ntk: Float[ArrayLike, "n1 n2 ..."], *, momentum: float | int = 0.0) -> float:
    """Largest stable full-batch learning rate on `mse`: `2 (1 + m) n / lambda_max(Theta)`.

    Training above it diverges when the model is linear, and dies or leaves the lazy regime when it
    is not.

    Args:
        ntk: Kernel of the training inputs, `[n, n]` where outputs decouple, or `[n, n, k, k]`.
        momentum: Heavy-ball momentum m in [0, 1).

    Raises:
        ValueError: If the kernel is not square, symmetric and finite, has no positive eigenvalue,
            or the momentum is out of range.

    Example:
        >>> max_learning_rate(np.diag([4.0, 1.0])), max_learning_rate(np.diag([4.0, 1.0]), momentum=0.5)
        (1.0, 1.5)
    """
    guards.concrete("max_learning_rate", ntk, momentum)
    momentum = guards.momentum(momentum)
    largest = largest_eigenvalue(kernel_matrix(ntk))
    if largest <= 0:
        raise ValueError(
            f"ntk has lambda_max = {largest:.3g}, expected a positive one: no learning rate is too large "
            "for a kernel that is zero."
        )
    # n is the number of examples, also of a full kernel, whose matrix has n k rows.
    return 2 * (1 + momentum) * np.shape(ntk)[0] / largest
