"""Several losses on one network, such as an equation and its boundary values, that should be fitted at one pace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lazynet import guards
from lazynet.kernels import spectra
from lazynet.kernels.empirical import ntk_vector_product
from lazynet.parameters import Where
from lazynet.programs import shape_of
from lazynet.signatures import flat
from lazynet.typing import Apply, Array, Key, Params

__all__ = ["loss_weights"]


def loss_weights(
    residuals: Mapping[str, Apply],
    params: Params,
    x: Mapping[str, Any],
    *,
    key: Key[Array, ""],
    probes: int = 30,
    where: Where | None = None,
) -> dict[str, float]:
    """Weights `mean_j t_j / t_i` of losses `1/(2 n_i) sum |r_i|^2`, with `t_i = tr K_ii / n_i` of diagonal blocks.

    `K_ii = J_i J_i'` is the tangent kernel of one residual on its points: descent takes an error of
    it down at the mean rate `t_i / k_i`. Derivatives of the network make that of an equation some
    orders of magnitude larger than that of boundary values, which are then not fitted at all.
    Weighted, all traces are the same. Repeat it some times during training: kernels of narrow
    networks move.

    Args:
        residuals: By name, functions `r(params, x)` with values `[n, k]`: the network at boundary
            points, what is left of the equation at inner ones.
        params: Where to take the derivatives.
        x: The points of each, by the same names.
        key: Draws the vectors of the traces.
        probes: Products with each block, as in `spectra.trace`; blocks with no more rows are exact.
        where: Which parameters to differentiate, as in `empirical_ntk`.

    Returns:
        A weight by name; their harmonic mean is 1.

    Raises:
        ValueError: If the names differ, a residual does not depend on the parameters, or an argument
            is one that `ntk_vector_product` refuses.

    Example:
        >>> import jax.numpy as jnp
        >>> slope = lambda w, x: 10.0 * x @ w
        >>> value = lambda w, x: x @ w
        >>> x = {"slope": jnp.ones((4, 1)), "value": jnp.ones((2, 1))}
        >>> loss_weights({"slope": slope, "value": value}, jnp.ones((1, 1)), x, key=jax.random.key(0))
        {'slope': 0.505, 'value': 50.5}

    Source: Wang, Yu and Perdikaris (2022), when and why PINNs fail to train, whose sum over the
    blocks is a mean here.
    """
    if not residuals or set(residuals) != set(x):
        raise ValueError(
            f"x got the names {sorted(x)}, expected those of the residuals {sorted(residuals)}, at least one."
        )
    sizes = {}
    for i, (name, residual) in enumerate(residuals.items()):
        function = flat(guards.function(f"residuals[{name!r}]", residual), x[name])
        product = ntk_vector_product(function, params, x[name], where=where)
        shape = shape_of(function, params, x[name]).shape
        trace = spectra.trace(product, key=jax.random.fold_in(key, i), shape=shape, probes=probes)
        sizes[name] = float(trace.value) / shape[0]
        if not sizes[name] > 0:
            raise ValueError(
                f"residuals[{name!r}] does not change with the parameters, expected a function of them."
            )
    mean = float(np.mean(list(sizes.values())))
    return {name: mean / size for name, size in sizes.items()}
