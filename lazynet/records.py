"""The three records that everything exchanges: data, kernels and training curves."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float, Int, Num

from lazynet.typing import ArrayLike, Params

__all__ = ["Data", "Gram", "Trajectory"]


class Data(NamedTuple):
    """Inputs and targets of n examples.

    Targets are always two-dimensional and floating point: one-hot (or centered one-hot) rows for
    classification, `[n, 1]` for a scalar regression. A loss refuses `[n]` against `[n, 1]`, the
    classic silent broadcast.

    Attributes:
        x: Inputs, batch first, channels last: an array, a tree of arrays, or `Inputs` for several.
        y: Targets; whole numbers for `masked_cross_entropy` only.

    Example:
        >>> import jax.numpy as jnp
        >>> Data(x=jnp.ones((5, 3)), y=jnp.zeros((5, 1))).y.shape
        (5, 1)
    """

    x: Num[ArrayLike, "n *inputs"] | Any
    y: Float[ArrayLike, "n k"]


class Gram(NamedTuple):
    """Kernel matrices of an infinitely wide network between two sets of inputs.

    Attributes:
        nngp: `E[f(x1) f(x2)]` at initialization, the covariance of the Gaussian-process limit.
        ntk: `E[<df(x1)/dw, df(x2)/dw>]`, the limit of the neural tangent kernel.

    A kernel that was not asked for is None (`analytic_kernel(get=...)`).

    Example:
        >>> import jax.numpy as jnp
        >>> Gram(nngp=jnp.eye(2), ntk=jnp.eye(2)).ntk.shape
        (2, 2)
    """

    nngp: Float[ArrayLike, "n1 n2"]
    ntk: Float[ArrayLike, "n1 n2"]


class Trajectory(NamedTuple):
    """A training curve, whatever produced it: gradient descent, a linearized model or a kernel flow.

    `time` is the common clock: the cumulated learning rate divided by (1 - momentum), so that
    training of any alpha and the kernel gradient flow can be drawn on one axis.

    Attributes:
        step: Optimizer steps at which the metrics were recorded (-1 where a flow has none).
        time: Gradient-flow time at these steps.
        metrics: Named curves, the first axis of each is the same as that of `step`.
        params: Final parameters (the displacement u for a `lazy` function), None for kernel
            dynamics.
        diverged_at: First recorded step with a non-finite training loss, None if there is none.

    Example:
        >>> import numpy as np
        >>> curve = Trajectory(np.array([0, 1]), np.array([0.0, 0.1]), {"train_loss": np.array([1.0, 0.5])}, None, None)
        >>> float(curve.metrics["train_loss"][-1])
        0.5
    """

    step: Int[ArrayLike, " s"]
    time: Float[ArrayLike, " s"]
    metrics: dict[str, Any]
    params: Params | None
    diverged_at: int | None
