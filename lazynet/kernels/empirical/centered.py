"""Kernels of derivatives less their mean over samples, and of complex outputs: what variational Monte Carlo needs."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from jaxtyping import Complex, Float

from lazynet import guards, trees
from lazynet.kernels.empirical.arguments import Examples, canonical, check_outputs, count_examples
from lazynet.programs import PerFunction, shape_of
from lazynet.signatures import flat, real_weights
from lazynet.typing import Apply, Array, ArrayLike, Params

CHUNK = 256
"""Examples whose derivatives are added up at a time, which bounds the memory."""


def center_jacobian(
    apply: Apply,
    params: Params,
    x: Examples,
    weights: Float[ArrayLike, " n"] | None = None,
) -> Apply:
    """The function `h(w) - sum_i p_i Dh(w0, x_i) (w - w0)`, whose Jacobian at w0 is `O = J - sum_i p_i J_i`.

    With h = log psi and samples x of |psi|^2, its tangent kernel is the matrix `O O^T` that
    stochastic reconfiguration inverts. The mean is taken over all of x, once; the function then
    goes into `empirical_ntk` and its products like any other, with other examples for rectangular
    kernels, over tiles, devices and processes. At w0 its outputs are those of h.

    Args:
        apply: Function h, of which complex outputs count as real and imaginary parts.
        params: w0.
        x: Samples, all of them.
        weights: p, their weights, which sum to one; None for 1/n each.

    Raises:
        TypeError: If inputs or parameters are no arrays of numbers.
        ValueError: If the weights are not n numbers that sum to one, or as `ntk_vector_product`.

    Example:
        >>> import lazynet as ln
        >>> h = lambda w, x: x @ w
        >>> x, w = jnp.array([[1.0], [3.0]]), jnp.ones((1, 1))
        >>> ln.empirical_ntk(center_jacobian(h, w, x), w, x, outputs="trace").tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    whole = flat(apply, x)
    function, real, samples, _ = canonical(whole, params, x, name="x")
    n = count_examples(samples)
    shape = shape_of(function, real, samples)
    check_outputs(shape, n)
    share = _shares(weights, n)
    outputs = math.prod(shape.shape[1:])
    total = None
    for start in range(0, n, CHUNK):
        part = jax.tree.map(lambda leaf, i=start: leaf[i : i + CHUNK], samples)
        own = jnp.asarray(share[start : start + CHUNK], shape.dtype)
        # The number of the output is an operand, so that all outputs share one compilation.
        rows = [_gradient(function, real, part, own, a) for a in range(outputs)]
        mean = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        total = mean if total is None else trees.add(total, mean)
    return _Centered(whole, real, total)


def hermitian(kernel: Float[ArrayLike, "n1 n2 k k"]) -> Complex[Array, "n1 n2"]:
    """The complex kernel `O O^H` of a holomorphic function with one complex output, from the real one of its two parts.

    By the Cauchy-Riemann equations it is `Theta_uu + i Theta_vu`, u and v the real and imaginary
    parts. A function that is no holomorphic one of its parameters has no such form.

    Args:
        kernel: `empirical_ntk` of a function of complex parameters with one complex output, `[n1,
            n2, 2, 2]`.

    Raises:
        ValueError: If there are not two outputs, or the Cauchy-Riemann equations do not hold.

    Example:
        >>> import lazynet as ln
        >>> h = lambda w, x: x @ w
        >>> x = jnp.array([[1.0 + 1.0j]])
        >>> hermitian(ln.empirical_ntk(h, jnp.ones((1, 1), x.dtype), x)).tolist()
        [[(2+0j)]]
    """
    theta = jnp.asarray(guards.real("kernel", kernel))
    if theta.ndim != 4 or theta.shape[2:] != (2, 2) or not theta.size:
        raise ValueError(
            f"kernel has shape {theta.shape}, expected [n1, n2, 2, 2], of the parts of one complex output."
        )
    guards.concrete("hermitian", theta)
    guards.finite("kernel", theta)
    # With `grad v` the rotated `grad u`: `Theta_uu = Theta_vv` and `Theta_uv = -Theta_vu`.
    difference = jnp.maximum(
        jnp.max(jnp.abs(theta[..., 0, 0] - theta[..., 1, 1])),
        jnp.max(jnp.abs(theta[..., 0, 1] + theta[..., 1, 0])),
    )
    allowed = 1e3 * float(jnp.finfo(theta.dtype).eps) * float(jnp.max(jnp.abs(theta)))
    if not float(difference) <= allowed:
        raise ValueError(
            f"kernel differs by {float(difference):.2g} from that of a holomorphic function, expected at most "
            f"{allowed:.2g}: keep the blocks of real and imaginary parts, which are right for any function."
        )
    return jax.lax.complex(theta[..., 0, 0], theta[..., 1, 0])


@partial(register_dataclass, data_fields=("apply", "start", "mean"), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class _Centered:
    """What `center_jacobian` returns: `start` are the real weights w0, `mean` a gradient `[k, ...]` for each."""

    apply: Apply
    start: Params = dataclasses.field(repr=False)
    mean: Params = dataclasses.field(repr=False)

    def __call__(self, params: Params, *inputs: Any) -> Array:
        outputs = self.apply(params, *inputs)
        weights = real_weights(self.apply, params)[1]
        # What is subtracted is linear in the weights: its Jacobian is the mean, everywhere.
        displacement = jax.tree.leaves(trees.subtract(weights, self.start))
        terms = [
            jnp.tensordot(mean, change, change.ndim, precision="highest").astype(outputs.dtype)
            for mean, change in zip(jax.tree.leaves(self.mean), displacement, strict=True)
        ]
        return outputs - sum(terms[1:], terms[0]).reshape(1, *outputs.shape[1:])


@PerFunction
def _gradient(function: Apply, params: Params, x: Examples, share: Array, a: Any) -> Params:
    """`sum_i p_i dh_a(x_i)/dw`."""

    def mean(w):
        rows = function(w, x).reshape(len(share), -1)
        # The gradient of the mean is the mean of gradients, of which none is formed by itself.
        return jnp.vdot(share, jnp.take(rows, a, axis=1), precision="highest")

    return jax.grad(mean)(params)


def _shares(weights: Any, n: int) -> np.ndarray:
    if weights is None:
        return np.full(n, 1 / n)
    shares = guards.vector("weights", weights)
    guards.finite("weights", shares)
    if shares.shape != (n,) or abs(shares.sum() - 1) > 1e-4:
        raise ValueError(
            f"weights got {shares.size} numbers of sum {shares.sum():g}, expected one for each of {n} samples in x, "
            "which sum to one: pass weights / weights.sum()."
        )
    return shares
