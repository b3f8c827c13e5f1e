"""Nonlinearities with their infinite-width limit, and `elementwise` for any other function.

The arguments mean what they mean in neural-tangents: `a`, `b`, `c` scale the output, the input and
shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf

from lazynet import guards
from lazynet.covariance.duals import Dual, erf_dual, gelu_dual, rbf_dual, rectifier_dual, sine_dual
from lazynet.covariance.layer_rules import activation_rule
from lazynet.covariance.logistic import silu_dual, softplus_dual, tanh_dual
from lazynet.covariance.pieces import piecewise_dual
from lazynet.covariance.quadrature import quadrature_dual
from lazynet.models.model import Model, layer
from lazynet.recipes import recipe
from lazynet.typing import Array

__all__ = [
    "ABRelu",
    "Abs",
    "Cos",
    "Elu",
    "Erf",
    "Gelu",
    "LeakyRelu",
    "Rbf",
    "Relu",
    "SiLU",
    "Sigmoid_like",
    "Sin",
    "Softplus",
    "Swish",
    "Tanh",
    "elementwise",
]

Scale = float | int | Array

# The b of least squares between (1 + erf(b x)) / 2 and the logistic sigmoid on [-5, 5].
SIGMOID_SCALE = 1 / 2.4020563531719796


@recipe
def Relu() -> Model:
    """Rectifier `phi(x) = max(x, 0)`, with derivative 1/2 at zero.

    Example:
        >>> Relu().apply({}, jnp.array([[-1.0, 2.0]])).tolist()
        [[0.0, 2.0]]
    """
    return _rectifier("Relu", 0.0, 1.0, lambda x: jnp.maximum(x, 0.0))


@recipe
def LeakyRelu(negative_slope: Scale) -> Model:
    """Leaky rectifier `phi(x) = negative_slope min(x, 0) + max(x, 0)`.

    Args:
        negative_slope: Slope for x < 0.

    Example:
        >>> LeakyRelu(0.5).apply({}, jnp.array([[-1.0, 2.0]])).tolist()
        [[-0.5, 2.0]]
    """
    return _rectifier("LeakyRelu", guards.number("negative_slope", negative_slope), 1.0)


@recipe
def Abs() -> Model:
    """Absolute value `phi(x) = |x|`, with derivative 0 at zero.

    Example:
        >>> Abs().apply({}, jnp.array([[-1.0, 2.0]])).tolist()
        [[1.0, 2.0]]
    """
    return _rectifier("Abs", -1.0, 1.0)


@recipe
def ABRelu(a: Scale, b: Scale) -> Model:
    """Piecewise linear `phi(x) = a min(x, 0) + b max(x, 0)`.

    Args:
        a: Slope for x < 0.
        b: Slope for x > 0.

    Example:
        >>> ABRelu(-0.5, 2.0).apply({}, jnp.array([[-1.0, 2.0]])).tolist()
        [[0.5, 4.0]]
    """
    return _rectifier("ABRelu", guards.number("a", a), guards.number("b", b))


@recipe
def Erf(a: Scale = 1.0, b: Scale = 1.0, c: Scale = 0.0) -> Model:
    """Error function `phi(x) = a erf(b x) + c`, a smooth sigmoidal activation.

    Args:
        a: Output scale.
        b: Input scale.
        c: Output shift.

    Example:
        >>> float(Erf().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    a, b, c = _numbers(a, b, c)
    return activation("Erf", lambda x: a * erf(b * x) + c, erf_dual(a, b, c))


@recipe
def Sigmoid_like() -> Model:
    """Sigmoid up to 2 percent `phi(x) = (1 + erf(x / 2.402)) / 2`, whose kernel has a closed form.

    Example:
        >>> float(Sigmoid_like().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.5
    """
    return activation(
        "Sigmoid_like",
        lambda x: 0.5 * erf(SIGMOID_SCALE * x) + 0.5,
        erf_dual(0.5, SIGMOID_SCALE, 0.5),
    )


@recipe
def Gelu() -> Model:
    """Gaussian error linear unit `phi(x) = x P(N(0, 1) <= x)`, exact (not the tanh approximation).

    Example:
        >>> float(Gelu().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    return activation("Gelu", lambda x: jax.nn.gelu(x, approximate=False), gelu_dual())


@recipe
def Sin(a: Scale = 1.0, b: Scale = 1.0, c: Scale = 0.0) -> Model:
    """Sine `phi(x) = a sin(b x + c)`.

    Args:
        a: Output scale.
        b: Input scale.
        c: Phase.

    Example:
        >>> float(Sin().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    a, b, c = _numbers(a, b, c)
    return activation("Sin", lambda x: a * jnp.sin(b * x + c), sine_dual(a, b, c))


@recipe
def Cos(a: Scale = 1.0, b: Scale = 1.0, c: Scale = 0.0) -> Model:
    """Cosine `phi(x) = a cos(b x + c)`.

    Args:
        a: Output scale.
        b: Input scale.
        c: Phase.

    Example:
        >>> float(Cos().apply({}, jnp.zeros((1, 1)))[0, 0])
        1.0
    """
    a, b, c = _numbers(a, b, c)
    # cos(z) = sin(z + pi / 2)
    return activation("Cos", lambda x: a * jnp.cos(b * x + c), sine_dual(a, b, c + math.pi / 2))


@recipe
def Rbf(gamma: Scale = 1.0) -> Model:
    """Random Fourier feature `phi(x) = sqrt 2 sin(sqrt(2 gamma) x + pi/4)`, whose NNGP is an RBF kernel.

    On Gaussian pre-activations of covariance q the NNGP is `exp(-gamma (q11 + q22 - 2 q12))`.

    Args:
        gamma: Inverse squared length scale.

    Example:
        >>> round(float(Rbf().apply({}, jnp.zeros((1, 1)))[0, 0]), 6)
        1.0
    """
    gamma = guards.number("gamma", gamma, at_least=0)
    return activation(
        "Rbf",
        lambda x: math.sqrt(2.0) * jnp.sin((2.0 * gamma) ** 0.5 * x + math.pi / 4),
        rbf_dual(gamma),
    )


@recipe
def Tanh() -> Model:
    """Hyperbolic tangent `phi(x) = tanh(x)`.

    Example:
        >>> float(Tanh().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    return activation("Tanh", jnp.tanh, tanh_dual())


@recipe
def Softplus() -> Model:
    """Smooth rectifier `phi(x) = log(1 + e^x)`.

    Example:
        >>> round(float(Softplus().apply({}, jnp.zeros((1, 1)))[0, 0]), 6)
        0.693147
    """
    return activation("Softplus", jax.nn.softplus, softplus_dual())


@recipe
def SiLU() -> Model:
    """Sigmoid linear unit `phi(x) = x / (1 + e^-x)`.

    Example:
        >>> float(SiLU().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    return activation("SiLU", jax.nn.silu, silu_dual())


@recipe
def Swish() -> Model:
    """`SiLU` by its other name.

    Example:
        >>> float(Swish().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    return SiLU()


@recipe
def Elu(alpha: Scale = 1.0) -> Model:
    """Exponential linear unit `phi(x) = max(x, 0) + alpha (e^min(x, 0) - 1)`; its kernel is a quadrature.

    Args:
        alpha: Minus the limit at minus infinity.

    Example:
        >>> Elu().apply({}, jnp.array([[0.0, 2.0]])).tolist()
        [[0.0, 2.0]]
    """
    alpha = guards.number("alpha", alpha)

    def elu(x):
        # Without the minimum the branch that is not taken overflows, and is NaN backwards.
        return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0)))

    return activation("Elu", elu, piecewise_dual(elu, (0.0,)))


@recipe
def elementwise(
    fn: Callable[[Array], Array], *, kinks: Sequence[float | int] = (), degree: int | None = None
) -> Model:
    """Any function applied entry by entry `phi(x) = fn(x)`; its kernel is a quadrature that says how good it is.

    The number of nodes grows until `E[phi^2]` and `E[phi'^2]` are right to 1e-9 (4e-6 in single
    precision) for the variances that occur. Where they never are, because of a kink that is not
    named, of growth like that of exp, or of a step that is narrow beside the standard deviation
    (below about 1/13 of it), `analytic_kernel` raises an error; under jit, where nothing can be
    raised, kernels are NaN.

    Args:
        fn: Function of each entry. It may use hyperparameters that are being differentiated.
        kinks: Where fn or its derivative jumps, for instance (-1, 1) for `jax.nn.hard_tanh`: sums
            are cut there, which costs more.
        degree: The least number of nodes per axis (per piece); None to begin with few.

    Raises:
        TypeError: If `fn` is not callable, or a kink is no number.
        ValueError: If `degree` is not positive or a kink is not finite; for kernels, if fn is NaN
            somewhere.

    Example:
        >>> import lazynet as ln
        >>> clipped = elementwise(jax.nn.hard_tanh, kinks=(-1, 1))
        >>> gram = ln.analytic_kernel(ln.serial(ln.Dense(1), clipped), jnp.ones((1, 2)))
        >>> round(float(gram.nngp[0, 0]), 4), round(float(gram.ntk[0, 0]), 4)
        (0.5161, 0.6827)
    """
    if not callable(fn):
        raise TypeError(
            f"elementwise got fn={fn!r}, expected a function of an array, for instance jnp.tanh."
        )
    if degree is not None:
        degree = max(2, guards.count("elementwise degree", degree, fix="None finds it"))
    kinks = sorted(guards.number(f"elementwise kinks[{i}]", kink) for i, kink in enumerate(kinks))
    # Pieces cut the sums at kinks, where an even grid converges slowly.
    rule = activation_rule(
        "elementwise", piecewise_dual(fn, kinks, degree) if kinks else quadrature_dual(fn, degree)
    )

    def kernel(k):
        _check_values(fn)
        return rule(k)

    return _activation("elementwise", lambda params, x: fn(x), kernel)


def _check_values(fn):
    """Refuses functions that are NaN where a Gaussian goes; unknown values pass."""
    # Where nearly all of a standard normal variable is.
    points = np.linspace(-4.0, 4.0, 17)
    # Hyperparameters that are being differentiated have no value to look at.
    _, traced = jax.closure_convert(fn, jnp.asarray(points))
    if traced:
        return
    # Under jit these constants would be traced too, and have no values.
    with jax.ensure_compile_time_eval():
        missing = np.isnan(np.asarray(fn(jnp.asarray(points))))
    if missing.any():
        raise ValueError(
            f"elementwise got a function that is NaN at {points[missing][0]:g}, expected one of all real numbers: "
            "pre-activations of wide networks take them all; extend it, for instance by jnp.where."
        )


def _numbers(a, b, c):
    return guards.number("a", a), guards.number("b", b), guards.number("c", c)


def _rectifier(name, a, b, fn=None):
    """Slopes a and b on the two sides of zero, of x or of a gate (`lazynet.gated`)."""
    # At zero JAX gives both minimum and maximum the derivative 1/2: together the mean (a + b) / 2.
    fn = fn or (lambda x: a * jnp.minimum(x, 0.0) + b * jnp.maximum(x, 0.0))

    def apply(params, x, gate=None):
        if gate is None:
            return fn(x)
        side = jnp.sign(gate)  # at zero the derivative is the mean of both slopes
        return (0.5 * (1 + side) * b + 0.5 * (1 - side) * a) * x

    return _activation(name, apply, activation_rule(name, rectifier_dual(a, b)))


def activation(name: str, fn: Callable[[Array], Array], dual: Dual) -> Model:
    """A function of each entry with the dual that is its limit.

    Example:
        >>> activation("Sine", jnp.sin, sine_dual(1.0, 1.0, 0.0)).name
        'Sine'
    """
    return _activation(name, lambda params, x: fn(x), activation_rule(name, dual))


def _activation(name: str, apply, kernel) -> Model:
    return layer(name, apply, record=lambda x, outputs: (x, x), kernel=kernel)
