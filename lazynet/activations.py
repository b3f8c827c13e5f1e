"""Nonlinearities with a closed-form infinite-width limit, and `elementwise` for any other function.

The arguments mean what they mean in neural-tangents: `a`, `b`, `c` scale the output, the input and shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from lazynet.covariance.duals import Dual, erf_dual, gelu_dual, rbf_dual, rectifier_dual, sine_dual
from lazynet.covariance.quadrature import quadrature_dual
from lazynet.covariance.rules import activation_rule
from lazynet.model import Model, layer
from lazynet.typing import Array

__all__ = [
    "ABRelu",
    "Abs",
    "Cos",
    "Erf",
    "Gelu",
    "LeakyRelu",
    "Rbf",
    "Relu",
    "Sigmoid_like",
    "Sin",
    "elementwise",
]

SIGMOID_SCALE = 1 / 2.4020563531719796


def Relu() -> Model:
    """Rectifier `phi(x) = max(x, 0)`, with derivative 1/2 at zero.

    Example:
        >>> Relu().apply({}, jnp.array([[-1.0, 2.0]])).tolist()
        [[0.0, 2.0]]
    """
    return _rectifier("Relu", 0.0, 1.0, lambda x: jnp.maximum(x, 0.0))


def LeakyRelu(negative_slope: float) -> Model:
    """Leaky rectifier `phi(x) = negative_slope min(x, 0) + max(x, 0)`.

    Args:
        negative_slope: Slope for x < 0.

    Example:
        >>> LeakyRelu(0.5).apply({}, jnp.array([[-1.0, 2.0]])).tolist()
        [[-0.5, 2.0]]
    """
    return _rectifier("LeakyRelu", negative_slope, 1.0)


def Abs() -> Model:
    """Absolute value `phi(x) = |x|`, with derivative 0 at zero.

    Example:
        >>> Abs().apply({}, jnp.array([[-1.0, 2.0]])).tolist()
        [[1.0, 2.0]]
    """
    return _rectifier("Abs", -1.0, 1.0)


def ABRelu(a: float, b: float) -> Model:
    """Piecewise linear `phi(x) = a min(x, 0) + b max(x, 0)`.

    Args:
        a: Slope for x < 0.
        b: Slope for x > 0.

    Example:
        >>> ABRelu(-0.5, 2.0).apply({}, jnp.array([[-1.0, 2.0]])).tolist()
        [[0.5, 4.0]]
    """
    return _rectifier("ABRelu", a, b)


def Erf(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Model:
    """Error function `phi(x) = a erf(b x) + c`, a smooth sigmoidal activation.

    Args:
        a: Output scale.
        b: Input scale.
        c: Output shift.

    Example:
        >>> float(Erf().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    return _elementwise("Erf", lambda x: a * erf(b * x) + c, erf_dual(a, b, c))


def Sigmoid_like() -> Model:
    """Sigmoid up to 2 percent `phi(x) = (1 + erf(x / 2.402)) / 2`, whose kernel has a closed form.

    Example:
        >>> float(Sigmoid_like().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.5
    """
    return _elementwise("Sigmoid_like", lambda x: 0.5 * erf(SIGMOID_SCALE * x) + 0.5, erf_dual(0.5, SIGMOID_SCALE, 0.5))


def Gelu() -> Model:
    """Gaussian error linear unit `phi(x) = x P(N(0, 1) <= x)`, exact (not the tanh approximation).

    Example:
        >>> float(Gelu().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    return _elementwise("Gelu", lambda x: jax.nn.gelu(x, approximate=False), gelu_dual())


def Sin(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Model:
    """Sine `phi(x) = a sin(b x + c)`.

    Args:
        a: Output scale.
        b: Input scale.
        c: Phase.

    Example:
        >>> float(Sin().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    return _elementwise("Sin", lambda x: a * jnp.sin(b * x + c), sine_dual(a, b, c))


def Cos(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Model:
    """Cosine `phi(x) = a cos(b x + c)`.

    Args:
        a: Output scale.
        b: Input scale.
        c: Phase.

    Example:
        >>> float(Cos().apply({}, jnp.zeros((1, 1)))[0, 0])
        1.0
    """
    return _elementwise("Cos", lambda x: a * jnp.cos(b * x + c), sine_dual(a, b, c + math.pi / 2))


def Rbf(gamma: float = 1.0) -> Model:
    """Random Fourier feature `phi(x) = sqrt 2 sin(sqrt(2 gamma) x + pi/4)`, whose NNGP is an RBF kernel.

    On Gaussian pre-activations of covariance q the NNGP is `exp(-gamma (q11 + q22 - 2 q12))`.

    Args:
        gamma: Inverse squared length scale.

    Example:
        >>> round(float(Rbf().apply({}, jnp.zeros((1, 1)))[0, 0]), 6)
        1.0
    """
    return _elementwise(
        "Rbf", lambda x: math.sqrt(2.0) * jnp.sin((2.0 * gamma) ** 0.5 * x + math.pi / 4), rbf_dual(gamma)
    )


def elementwise(fn: Callable[[Array], Array], *, degree: int = 25) -> Model:
    """Any function applied entry by entry `phi(x) = fn(x)`; its kernel comes from Gauss-Hermite quadrature.

    Args:
        fn: Differentiable elementwise function. Quadrature is accurate for smooth functions, poor for kinks.
        degree: Number of quadrature nodes per axis.

    Raises:
        TypeError: If `fn` is not callable.
        ValueError: If `degree` is not a positive integer.

    Example:
        >>> elementwise(jnp.tanh).apply({}, jnp.zeros((1, 2))).tolist()
        [[0.0, 0.0]]
    """
    if not callable(fn):
        raise TypeError(f"elementwise got fn={fn!r}, expected a function of an array, for instance jnp.tanh.")
    if not isinstance(degree, int) or degree < 1:
        raise ValueError(f"elementwise got degree={degree!r}, expected an integer >= 1, for instance 25.")
    return _elementwise("elementwise", fn, quadrature_dual(fn, degree))


def _rectifier(name, a, b, fn=None):
    """Slopes a and b on the two sides of zero, of x or of the entry "gate" of the parameters (`lazynet.gated`)."""
    fn = fn or (lambda x: a * jnp.minimum(x, 0.0) + b * jnp.maximum(x, 0.0))

    def apply(params, x):
        if "gate" not in params:
            return fn(x)
        side = jnp.sign(params["gate"])  # at zero the derivative is the mean of both slopes
        return (0.5 * (1 + side) * b + 0.5 * (1 - side) * a) * x

    return _activation(name, apply, rectifier_dual(a, b))


def _elementwise(name: str, fn: Callable[[Array], Array], dual: Dual) -> Model:
    return _activation(name, lambda params, x: fn(x), dual)


def _activation(name: str, apply, dual: Dual) -> Model:
    return layer(name, apply, record=lambda x, outputs: (x, x), kernel=activation_rule(name, dual))
