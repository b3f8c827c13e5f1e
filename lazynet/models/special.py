"""Activations of the theory of kernels: polynomials, exponentials, steps. Their limits are closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp

from lazynet import guards
from lazynet.covariance.exponentials import (
    correlation_dual,
    exponential_dual,
    gabor_dual,
    gaussian_dual,
)
from lazynet.covariance.layer_rules import activation_rule
from lazynet.covariance.polynomials import (
    hermite_coefficients,
    horner,
    polynomial_dual,
    rectified_power_dual,
    sign_dual,
)
from lazynet.models.activations import Scale, activation
from lazynet.models.model import Model, layer
from lazynet.recipes import recipe

__all__ = [
    "Exp",
    "ExpNormalized",
    "Gabor",
    "Gaussian",
    "Hermite",
    "Monomial",
    "Polynomial",
    "RectifiedMonomial",
    "Sign",
]


@recipe
def Exp(a: Scale = 1.0, b: Scale = 1.0) -> Model:
    """Exponential `phi(x) = a exp(b x)`.

    Args:
        a: Output scale.
        b: Input scale.

    Example:
        >>> float(Exp().apply({}, jnp.zeros((1, 1)))[0, 0])
        1.0
    """
    a = guards.number("a", a)
    b = guards.number("b", b)
    return activation("Exp", lambda x: a * jnp.exp(b * x), exponential_dual(a, b))


@recipe
def Gaussian(a: Scale = 1.0, b: Scale = -1.0) -> Model:
    """Bell `phi(x) = a exp(b x^2)`.

    Args:
        a: Output scale.
        b: Minus the inverse squared width.

    Example:
        >>> float(Gaussian().apply({}, jnp.zeros((1, 1)))[0, 0])
        1.0
    """
    a = guards.number("a", a)
    b = guards.number("b", b)
    return activation("Gaussian", lambda x: a * jnp.exp(b * x**2), gaussian_dual(a, b))


@recipe
def Gabor() -> Model:
    """Wave in a bell `phi(x) = exp(-x^2) sin(x)`.

    Example:
        >>> float(Gabor().apply({}, jnp.zeros((1, 1)))[0, 0])
        0.0
    """
    return activation("Gabor", lambda x: jnp.exp(-(x**2)) * jnp.sin(x), gabor_dual())


@recipe
def ExpNormalized(gamma: Scale = 1.0, shift: Scale = -1.0) -> Model:
    """The kernel map `Sigma' = |x| |x'| exp(gamma (cos t + shift))`, an infinite layer without a finite function.

    Args:
        gamma: How fast correlations decay.
        shift: Correlation of value one.

    Example:
        >>> import lazynet as ln
        >>> model = ln.serial(ln.Dense(1), ExpNormalized())
        >>> kernel = ln.analytic_kernel(model, jnp.eye(2) * 2**0.5).nngp
        >>> [round(float(value), 4) for value in kernel[0]]
        [1.0, 0.3679]

    Source: Shankar et al. (2020), "Neural kernels without tangents".
    """

    def apply(params, x):
        raise NotImplementedError(
            "ExpNormalized got inputs, expected covariances: it is a map of kernels without a finite network; "
            "use its kernel only."
        )

    gamma = guards.number("gamma", gamma)
    shift = guards.number("shift", shift)
    rule = activation_rule("ExpNormalized", correlation_dual(gamma, shift))
    return layer("ExpNormalized", apply, kernel=rule)


@recipe
def Hermite(degree: int) -> Model:
    """Normalized Hermite polynomial `phi(x) = He_d(x) / sqrt(d!)`: `E[phi phi] = s^d` for inputs of variance one.

    Args:
        degree: d >= 0.

    Example:
        >>> float(Hermite(1).apply({}, jnp.full((1, 1), 2.0))[0, 0])
        2.0
    """
    degree = guards.count("degree", degree, at_least=0)
    return _polynomial("Hermite", hermite_coefficients(degree))


@recipe
def Monomial(degree: int) -> Model:
    """Power `phi(x) = x^d`.

    Args:
        degree: d >= 0.

    Example:
        >>> float(Monomial(3).apply({}, jnp.full((1, 1), 2.0))[0, 0])
        8.0
    """
    degree = guards.count("degree", degree, at_least=0)
    return _polynomial("Monomial", [0.0] * degree + [1.0])


@recipe
def Polynomial(coef: Sequence[float | int]) -> Model:
    """Polynomial `phi(x) = sum_k coef_k x^k`.

    Args:
        coef: Coefficients, from the constant on.

    Example:
        >>> float(Polynomial((1.0, 0.0, 2.0)).apply({}, jnp.full((1, 1), 3.0))[0, 0])
        19.0
    """
    coefficients = [guards.number(f"coef[{k}]", c) for k, c in enumerate(coef)]
    return _polynomial("Polynomial", coefficients)


@recipe
def RectifiedMonomial(degree: int) -> Model:
    """Power cut at zero `phi(x) = x^d` for x >= 0 and 0 below.

    Args:
        degree: d >= 0; 0 is a step, of which no gradient passes.

    Example:
        >>> RectifiedMonomial(2).apply({}, jnp.array([[-1.0, 2.0]])).tolist()
        [[0.0, 4.0]]
    """
    degree = guards.count("degree", degree, at_least=0)

    def rectified_power(x):
        # Not max(x, 0)^d, which at d = 0 would be 1 on both sides.
        return jnp.where(x >= 0, x**degree, jnp.zeros_like(x))

    return activation("RectifiedMonomial", rectified_power, rectified_power_dual(degree))


@recipe
def Sign() -> Model:
    """Sign `phi(x) = sign(x)`, of which no gradient passes.

    Example:
        >>> Sign().apply({}, jnp.array([[-3.0, 2.0]])).tolist()
        [[-1.0, 1.0]]
    """
    return activation("Sign", jnp.sign, sign_dual())


def _polynomial(name, coefficients):
    return activation(name, partial(horner, coefficients), polynomial_dual(coefficients))
