"""neural-tangents' `stax` by name and argument order, over lazynet's layers.

A network is the unpackable triple `init_fn(key, input_shape) -> (output_shape, params)`,
`apply_fn(params, x, **kwargs)` and `kernel_fn(x1, x2=None, get=None, **kwargs)`, and programs
written for neural-tangents run after changing the import. Where examples come first and channels
last, kernels of vectors and of images that end in vectors are those of `analytic_kernel`; other
layouts, dimensions, masks and layers go through covariances of all pairs of positions
(`lazynet.covariance.general`), of which `memory=` of `kernel_fn` limits the bytes. What is
different: `do_stabilize` has no effect (kernels are scaled exactly), and sums of branches that are
not independent raise an error where neural-tangents warns. The lazynet model of a triple is its
attribute `model`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lazynet.covariance.duals import Dual, gelu_dual
from lazynet.covariance.layer_rules import activation_rule
from lazynet.dropin.attention import (
    AttentionMechanism,
    GlobalSelfAttention,
    PositionalEmbedding,
)
from lazynet.dropin.branching import (
    FanInConcat,
    FanInProd,
    FanInSum,
    FanOut,
    Identity,
    layer,
    parallel,
    repeat,
    serial,
)
from lazynet.dropin.fixed_layers import (
    Aggregate,
    AggregateImplementation,
    DotGeneral,
    Dropout,
    ImageResize,
    Index,
    LayerNorm,
)
from lazynet.dropin.fixed_layers import Slice as _Slice
from lazynet.dropin.linear_layers import Conv, ConvLocal, ConvTranspose, Dense
from lazynet.dropin.masks import Bool, Diagonal, MaskedArray, unmask_fn
from lazynet.dropin.networks import Layer, Triple, constructor
from lazynet.dropin.pools import AvgPool, Flatten, GlobalAvgPool, GlobalSumPool, SumPool
from lazynet.dropin.primitives import elementwise
from lazynet.dropin.requirements import requires, supports_masking
from lazynet.dropin.windows import Padding
from lazynet.models import activations, model, special

__all__ = [
    "ABRelu",
    "Abs",
    "Aggregate",
    "AggregateImplementation",
    "AttentionMechanism",
    "AvgPool",
    "Bool",
    "Conv",
    "ConvLocal",
    "ConvTranspose",
    "Cos",
    "Dense",
    "Diagonal",
    "DotGeneral",
    "Dropout",
    "Elementwise",
    "ElementwiseNumerical",
    "Erf",
    "Exp",
    "ExpNormalized",
    "FanInConcat",
    "FanInProd",
    "FanInSum",
    "FanOut",
    "Flatten",
    "Gabor",
    "Gaussian",
    "Gelu",
    "GlobalAvgPool",
    "GlobalSelfAttention",
    "GlobalSumPool",
    "Hermite",
    "Identity",
    "ImageResize",
    "Index",
    "LayerNorm",
    "LeakyRelu",
    "MaskedArray",
    "Monomial",
    "Padding",
    "Polynomial",
    "PositionalEmbedding",
    "Rbf",
    "RectifiedMonomial",
    "Relu",
    "Sigmoid_like",
    "Sign",
    "Sin",
    "Slice",
    "SumPool",
    "Triple",
    "layer",
    "parallel",
    "repeat",
    "requires",
    "serial",
    "supports_masking",
    "unmask_fn",
]


Slice = _Slice
"""Makes indices for Index: `Slice[1:, 0]` is the one of `x[1:, 0]`."""


def __getattr__(name: str):
    """Says what to do about a name that neural-tangents does not have either."""
    raise AttributeError(
        f"stax has no {name!r}, expected one of {', '.join(__all__)}: write it with Elementwise, ElementwiseNumerical "
        "or layer."
    )


@constructor
def Relu(do_stabilize: bool = False) -> Layer:
    """`max(x, 0)`."""
    return elementwise(activations.Relu())


@constructor
def LeakyRelu(alpha: float, do_stabilize: bool = False) -> Layer:
    """`alpha min(x, 0) + max(x, 0)`."""
    return elementwise(activations.LeakyRelu(alpha))


@constructor
def Abs(do_stabilize: bool = False) -> Layer:
    """`|x|`."""
    return elementwise(activations.Abs())


@constructor
def ABRelu(a: float, b: float, do_stabilize: bool = False) -> Layer:
    """`a min(x, 0) + b max(x, 0)`."""
    return elementwise(activations.ABRelu(a, b))


@constructor
def Erf(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Layer:
    """`a erf(b x) + c`."""
    return elementwise(activations.Erf(a, b, c))


@constructor
def Sigmoid_like() -> Layer:
    """`(1 + erf(x / 2.402)) / 2`."""
    return elementwise(activations.Sigmoid_like())


@constructor
def Gelu(approximate: bool = False) -> Layer:
    """`x P(N(0, 1) <= x)`; `approximate` changes `apply_fn` only, as in neural-tangents."""
    if not approximate:
        return elementwise(activations.Gelu())
    rule = activation_rule("Gelu", gelu_dual())
    approximated = model.layer(
        "Gelu", lambda params, x: jax.nn.gelu(x), record=lambda x, y: (x, x), kernel=rule
    )
    return elementwise(approximated)


@constructor
def Sin(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Layer:
    """`a sin(b x + c)`."""
    return elementwise(activations.Sin(a, b, c))


@constructor
def Cos(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Layer:
    """`a cos(b x + c)`."""
    return elementwise(activations.Cos(a, b, c))


@constructor
def Rbf(gamma: float = 1.0) -> Layer:
    """`sqrt 2 sin(sqrt(2 gamma) x + pi/4)`."""
    return elementwise(activations.Rbf(gamma))


@constructor
def Exp(a: float = 1.0, b: float = 1.0) -> Layer:
    """`a exp(b x)`."""
    return elementwise(special.Exp(a, b))


@constructor
def Gaussian(a: float = 1.0, b: float = -1.0) -> Layer:
    """`a exp(b x^2)`."""
    return elementwise(special.Gaussian(a, b))


@constructor
def Gabor() -> Layer:
    """`exp(-x^2) sin(x)`."""
    return elementwise(special.Gabor())


@constructor
def ExpNormalized(gamma: float = 1.0, shift: float = -1.0, do_clip: bool = False) -> Layer:
    """The kernel map `|x| |x'| exp(gamma (cos t + shift))`; correlations are clipped whatever `do_clip`."""
    shift = float(shift) if isinstance(shift, bool) else shift
    return elementwise(special.ExpNormalized(gamma, shift))


@constructor
def Hermite(degree: int) -> Layer:
    """Normalized Hermite polynomial of a degree."""
    return elementwise(special.Hermite(degree))


@constructor
def Monomial(degree: int) -> Layer:
    """`x^degree`."""
    return elementwise(special.Monomial(degree))


@constructor
def RectifiedMonomial(degree: int) -> Layer:
    """`x^degree` for x >= 0, and 0 below."""
    return elementwise(special.RectifiedMonomial(degree))


@constructor
def Polynomial(coef: Any) -> Layer:
    """`sum_k coef_k x^k`."""
    return elementwise(special.Polynomial(list(coef) or [0.0]))


@constructor
def Sign() -> Layer:
    """`sign(x)`."""
    return elementwise(special.Sign())


@constructor
def ElementwiseNumerical(
    fn: Callable[[Any], Any], deg: int, df: Callable[[Any], Any] | None = None
) -> Layer:
    """`fn(x)` with its kernel by quadrature of `deg` nodes an axis, or more where these are not accurate.

    Derivatives are automatic: `df` is not needed. Where no number of nodes is enough (kinks, which
    `lazynet.elementwise` takes by name, or growth like that of exp), `kernel_fn` raises an error;
    under jit it is NaN.
    """
    return elementwise(activations.elementwise(fn, degree=deg))


@constructor
def Elementwise(
    fn: Callable[[Any], Any] | None = None,
    nngp_fn: Callable[[Any, Any, Any], Any] | None = None,
    d_nngp_fn: Callable[[Any, Any, Any], Any] | None = None,
) -> Layer:
    """`fn(x)` with a given `nngp_fn(covariance, variance1, variance2) = E[fn fn]`.

    Its derivative in the covariance, which the NTK needs, is `d_nngp_fn`, or automatic.
    """

    def apply(params, x):
        # Refused where it is evaluated: a kernel may do without a finite network.
        if fn is None:
            raise NotImplementedError(
                "Elementwise got no fn, so the finite network cannot be evaluated: pass fn."
            )
        return fn(x)

    rule = (
        None if nngp_fn is None else activation_rule("Elementwise", _given_dual(nngp_fn, d_nngp_fn))
    )
    return elementwise(model.layer("Elementwise", apply, record=lambda x, y: (x, x), kernel=rule))


def _given_dual(nngp_fn, d_nngp_fn):
    # jax.grad takes functions of one value: both are called with numbers, by vmap below.
    slope_fn = jax.grad(nngp_fn) if d_nngp_fn is None else d_nngp_fn

    def both(s, q1, q2):
        s, q1, q2 = jnp.broadcast_arrays(s, q1, q2)
        value, slope = (jax.vmap(f)(s.ravel(), q1.ravel(), q2.ravel()) for f in (nngp_fn, slope_fn))
        return value.reshape(s.shape), slope.reshape(s.shape)

    def pair(side1, side2, s, opening, acute):
        return (*both(s, side1[0], side2[0]), None)

    return Dual(lambda q: (q,), pair, lambda q: both(q, q, q))
