"""How far a network is from another answer: adversarial perturbations, gradients, and bounds of both."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from lazynet import guards
from lazynet.insights.layers import checked_chain, lipschitz
from lazynet.models.model import Model
from lazynet.programs import PerFunction, shape_of
from lazynet.trees import as_partial
from lazynet.typing import Apply, Array, ArrayLike, Params

__all__ = ["adversarial_norm", "largest_gradient", "lipschitz_bound"]


def adversarial_norm(
    apply: Apply,
    params: Params,
    x: Float[ArrayLike, "n *inputs"],
    *,
    steps: int = 20,
    overshoot: float | int = 0.02,
) -> Float[np.ndarray, " n"]:
    """Norm of the smallest perturbation r found by DeepFool with `class(h(x + r)) != class(h(x))`.

    Each step goes to the nearest boundary of the network linearized in its input, until the class
    changes: an upper bound of the true distance, exact for linear classifiers. Of one output the
    class is its sign.

    Args:
        apply: The network h itself. The centered model of lazy training is zero at w0, and has no
            classes there: pass `h(w0) +` its outputs.
        params: w.
        x: Inputs.
        steps: Steps at most.
        overshoot: Relative length by which the sum of all steps crosses the boundary.

    Returns:
        Norms, without the overshoot; inf where no step changed the class.

    Raises:
        ValueError: If outputs are not `[n, k]`, or an argument is out of range or not finite.
        TypeError: If an argument is no array of floating point.

    Example:
        >>> w = jnp.array([[3.0], [4.0]])
        >>> adversarial_norm(lambda w, x: x @ w, w, jnp.array([[1.0, 1.0]])).round(3).tolist()
        [1.4]

    Source: Moosavi-Dezfooli, Fawzi and Frossard (2016), DeepFool, algorithm 2.
    """
    function, x = _checked(apply, params, x)
    steps = guards.count("steps", steps)
    factor = 1 + guards.number("overshoot", overshoot, at_least=0)
    scale = jnp.asarray(factor, x.dtype)
    moved = jnp.zeros_like(x)
    classes = _classes(function, params, x)
    crossed = jnp.zeros(len(x), bool)
    for _ in range(steps):
        step = _step(function, params, x + scale * moved, classes)
        # Those across the boundary stay where they are while others go on.
        moved = moved + jnp.where(crossed.reshape(-1, *(1,) * (x.ndim - 1)), 0, step)
        crossed = crossed | (_classes(function, params, x + scale * moved) != classes)
        if bool(crossed.all()):
            break
    norms = np.linalg.norm(np.asarray(moved, np.float64).reshape(len(x), -1), axis=1)
    return np.where(np.asarray(crossed), norms, np.inf)


def largest_gradient(apply: Apply, params: Params, x: Float[ArrayLike, "n *inputs"]) -> float:
    """Largest operator norm of the derivative in the input, `max_i |D_x h(x_i)|`: a Lipschitz bound is above it.

    Args:
        apply: Network.
        params: w.
        x: Inputs.

    Raises:
        ValueError: If outputs are not `[n, k]`, or something is not finite.
        TypeError: If an argument is no array of floating point.

    Example:
        >>> w = jnp.diag(jnp.array([2.0, 1.0]))
        >>> round(largest_gradient(lambda w, x: x @ w, w, jnp.ones((1, 2))), 6)
        2.0
    """
    function, x = _checked(apply, params, x)
    jacobians = np.asarray(_jacobians(function, params, x)[1], np.float64)
    return float(np.linalg.norm(jacobians.reshape(*jacobians.shape[:2], -1), 2, axis=(1, 2)).max())


def lipschitz_bound(model: Model, params: Params, x: Num[ArrayLike, "n *inputs"]) -> float:
    """Bound of the Lipschitz constant, `prod_i rho_i |A_i|` over the layers, in the Euclidean norm.

    Sums of branches have the sum of their bounds, a coupling with branch f that of `[[0, 1], [1,
    Lip f]]`. Operator norms of convolutions and pools are those of the whole linear map, borders
    included, by Lanczos.

    Args:
        model: Network of Dense, Conv, pools, activations with a bounded derivative, and sums.
        params: w.
        x: Inputs, whose shape the norms of convolutions depend on.

    Raises:
        ValueError: If a layer has no known Lipschitz constant, naming it.
        TypeError: If `model` is no Model, or x no array.

    Example:
        >>> import lazynet as ln
        >>> model = ln.serial(ln.Dense(1, 2**0.5), ln.Relu())
        >>> round(lipschitz_bound(model, {"0_Dense": {"W": jnp.ones((2, 1))}}, jnp.ones((1, 2))), 6)
        1.414214

    Source: Szegedy et al. (2014), section 4.3.
    """
    bound = 1.0
    for link in checked_chain("lipschitz_bound", model, params, x):
        bound *= _bound(link)
    return bound


def _bound(link):
    example = jax.ShapeDtypeStruct((1, *link.shape), link.dtype)
    if link.name in ("parallel", "residual"):
        return math.fsum(
            _branch(link, i, branch, example) for i, branch in enumerate(_branches(link))
        )
    if link.name == "coupling":
        half = jax.ShapeDtypeStruct((*example.shape[:-1], example.shape[-1] // 2), link.dtype)
        slope = _branch(link, 0, link.call["f"], half)
        # The larger eigenvalue of [[0, 1], [1, L]], where x^2 = L x + 1.
        return (slope + math.sqrt(slope**2 + 4)) / 2
    return lipschitz(link)


def _branches(link):
    if link.name == "parallel":
        return link.call["branches"]
    from lazynet.models.layers import Identity
    from lazynet.models.model import serial

    return link.call["shortcut"] or Identity(), serial(*link.call["layers"])


def _branch(link, i, branch, example):
    from lazynet.insights.layers import chain
    from lazynet.models.model import child_path

    path = child_path(i, branch)
    links = chain(branch, link.params.get(path, {}), example, f"{link.path}/{path}")
    return math.prod(_bound(inner) for inner in links)


def _checked(apply: Any, params: Any, x: Any) -> tuple[Any, Array]:
    """The function as a pytree and the inputs, after checking them and its outputs."""
    function = as_partial(apply)
    guards.finite("params", params, "train to finite weights")
    x = jnp.asarray(guards.real("x", x))
    guards.same_length(x=x)
    guards.finite("x", np.asarray(x))
    outputs = shape_of(function, params, x)
    if len(outputs.shape) != 2:
        raise ValueError(
            f"apply returned outputs of shape {outputs.shape}, expected [n, k], one column a class."
        )
    return function, x


@PerFunction
def _classes(function: Apply, params: Params, x: Array) -> Array:
    outputs = function(params, x)
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > 0).astype(int)
    return jnp.argmax(outputs, axis=1)


def _jacobian(function, params, x):
    """Outputs and their derivatives in the input, `[n, k, *inputs]`: an output sees its own example alone."""
    outputs, back = jax.vjp(lambda x: function(params, x), x)
    basis = jnp.eye(outputs.shape[1], dtype=outputs.dtype)
    rows = [back(jnp.broadcast_to(row, outputs.shape))[0] for row in basis]
    return outputs, jnp.stack(rows, axis=1)


@PerFunction
def _jacobians(function: Apply, params: Params, x: Array) -> tuple[Array, Array]:
    return _jacobian(function, params, x)


@PerFunction
def _step(function: Apply, params: Params, x: Array, classes: Array) -> Array:
    """The step to the nearest boundary of the linearized network, for each example."""
    outputs, jacobians = _jacobian(function, params, x)
    flat = jacobians.reshape(*jacobians.shape[:2], -1)
    if outputs.shape[1] == 1:
        # one output against zero: two classes
        outputs = jnp.concatenate([jnp.zeros_like(outputs), outputs], axis=1)
        flat = jnp.concatenate([jnp.zeros_like(flat), flat], axis=1)
    # The boundary to class j is at the distance `(h_own - h_j) / |D h_j - D h_own|`.
    own = jnp.take_along_axis(outputs, classes[:, None], axis=1)
    slopes = flat - jnp.take_along_axis(flat, classes[:, None, None], axis=1)
    gaps = own - outputs
    squares = jnp.sum(slopes**2, axis=2)
    # The own class has no slope against itself: its boundary is infinitely far.
    reachable = squares > 0
    lengths = jnp.where(reachable, gaps / jnp.sqrt(jnp.where(reachable, squares, 1)), jnp.inf)
    nearest = jnp.argmin(lengths, axis=1)[:, None]
    direction = jnp.take_along_axis(slopes, nearest[:, :, None], axis=1)[:, 0]
    gap = jnp.take_along_axis(gaps, nearest, axis=1)
    square = jnp.take_along_axis(squares, nearest, axis=1)
    # a point on the boundary moves a little beyond it, as far as rounding goes
    gap = gap + jnp.finfo(gap.dtype).eps * (1 + jnp.abs(own))
    step = jnp.where(square > 0, gap / jnp.where(square > 0, square, 1), 0) * direction
    return step.reshape(x.shape)
