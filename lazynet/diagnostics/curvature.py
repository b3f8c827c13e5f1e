"""First and second derivatives of a network in the norm of its outputs, and their ratio, the laziness kappa.

Outputs have the norm `|f|^2 = 1/n sum_i |f(x_i)|^2` of the empirical measure, weights the Euclidean
one.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lazynet import guards, trees
from lazynet.kernels.empirical import largest_ntk_eigenvalue
from lazynet.kernels.empirical.independence import check_independent
from lazynet.lazy import check_displacement
from lazynet.losses import check_labels
from lazynet.models.model import plain
from lazynet.parameters import Where
from lazynet.programs import PerFunction, shape_of
from lazynet.records import Data
from lazynet.signatures import Output, flat, real_weights
from lazynet.trees import as_partial
from lazynet.typing import Apply, Array, ArrayLike, Key, LossFn, Params

__all__ = ["hessian_norm", "jacobian_norm", "kappa"]


def jacobian_norm(
    apply: Apply,
    params: Params,
    x: Any,
    *,
    key: Key[Array, ""],
    iterations: int = 15,
    output: Output = None,
    where: Where | None = None,
) -> float:
    """Operator norm `|Dh(w)| = max_|u|=1 |Dh(w) u| = sqrt(lambda_max(Theta) / n)`.

    Args:
        apply: Model h.
        params: w.
        x: Inputs of the empirical norm.
        key: Draws the start of the iteration.
        iterations: Products with the tangent kernel; the value approaches the norm from below.
        output: Which of the outputs of apply, by `select`.
        where: Which parameters count, as in `empirical_ntk`.

    Raises:
        TypeError: If `params` has leaves that are not floating point.
        ValueError: If `apply` mixes the examples of a batch, so that the norm says nothing of other
            examples; if there are none, if `iterations` is below 1, or if something is not finite.

    Example:
        >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
        >>> round(jacobian_norm(lambda w, x: x @ w, jnp.ones((2, 1)), x, key=jax.random.key(0)) ** 2, 4)
        4.5
    """
    function, weights, n = _checked(flat(apply, x, output), params, x, where)
    check_independent(function, weights, x)
    iterations = guards.count("iterations", iterations)
    top = largest_ntk_eigenvalue(function, weights, x, key=key, iterations=iterations)
    # |J|^2 = lambda_max(J J'), and the norm of outputs has 1/n in it.
    return math.sqrt(max(top, 0.0) / n)


def hessian_norm(
    apply: Apply,
    params: Params,
    x: Any,
    *,
    key: Key[Array, ""],
    iterations: int = 20,
    restarts: int = 3,
    output: Output = None,
    where: Where | None = None,
) -> float:
    """Operator norm `|D^2h(w)| = max_|u|=|v|=1 |D^2h(w)(u, v)|`, by alternating maximization.

    `<g, D^2h(u, v)>` is maximized over the output direction g, then u, then v, each in closed form,
    with two Hessian-vector products a round. The value never decreases and ends in a local maximum
    (in a wide network, some neuron close to the worst one): it is a lower bound, the best one over
    the restarts.

    Args:
        apply: Model h, twice differentiable almost everywhere.
        params: w.
        x: Inputs of the empirical norm.
        key: Draws the starts.
        iterations: Rounds from each start.
        restarts: Number of starts.
        output: Which of the outputs of apply, by `select`.
        where: Which parameters count, as in `empirical_ntk`.

    Raises:
        TypeError: If `params` has leaves that are not floating point.
        ValueError: If there are no examples, if `iterations` or `restarts` is below 1, or if
            something is not finite.

    Example:
        >>> quadratic = lambda w, x: x @ (w**2) / 2
        >>> x = jnp.array([[3.0]])
        >>> round(hessian_norm(quadratic, jnp.ones((1, 1)), x, key=jax.random.key(0)), 6)
        3.0
    """
    function, weights, _ = _checked(flat(apply, x, output), params, x, where)
    iterations = guards.count("iterations", iterations)
    restarts = guards.count("restarts", restarts)
    # Derivatives are taken forward, which `reversible` models do not have.
    function = plain(function)
    values = []
    for start in jax.random.split(key, restarts):
        key_u, key_v = jax.random.split(start)
        u = _direction(key_u, weights)
        v = _direction(key_v, weights)
        # On the host: one compiled round serves any number of iterations.
        for _ in range(iterations):
            u, v, value = _alternate(function, weights, x, u, v)
        values.append(float(value))
    return max(_finite("hessian_norm", value) for value in values)


def kappa(
    apply: Apply,
    params: Params,
    data: Data,
    *,
    key: Key[Array, ""],
    alpha: float = 1.0,
    loss: LossFn | None = None,
    iterations: int = 20,
    restarts: int = 3,
    output: Output = None,
    where: Where | None = None,
) -> float:
    """Laziness of the scaled model, `kappa = 1/alpha |alpha h(w) - y| |D^2h(w)| / |Dh(w)|^2`: lazy if much below 1.

    It compares how far the weights must move to fit y with how far the differential is constant.
    With h(w0) = 0 it is proportional to 1/alpha. For another loss R, the general form is `R(alpha
    h) / |grad R(alpha h)| |D^2h| / |Dh|`, grad taken in the weights.

    Args:
        apply: Model h, or a `lazy` function at u = 0, which contains alpha already.
        params: Initial parameters w.
        data: Inputs and targets y.
        key: Draws the starts of the iterations.
        alpha: Scale of the model, in (0, inf].
        loss: R, averaged over examples; None for the form of the square loss.
        iterations: Rounds for `hessian_norm`, products for `jacobian_norm`.
        restarts: Starts for `hessian_norm`.
        output: Which of the outputs of apply, by `select`.
        where: Which parameters count, as in `empirical_ntk`.

    Raises:
        TypeError: If `params` has leaves that are not floating point.
        ValueError: If `apply` mixes the examples, or is a `lazy` function and `params` its params0;
            if alpha is not positive, or infinite with a loss; if the targets do not have the shape
            of the outputs, or are none of the loss; if the derivative is zero; if something is not
            finite.

    Example:
        >>> data = Data(jnp.ones((1, 1)), jnp.zeros((1, 1)))
        >>> round(kappa(lambda w, x: x @ w**2, jnp.full((1, 1), 2.0), data, key=jax.random.key(0)), 4)
        0.5

    Source: Chizat, Oyallon and Bach (2019), the relative scale kappa. With `|Dh|` instead of its
        square, as some lecture notes have it, kappa would change when h and y are multiplied by a
        constant.
    """
    fix = "" if loss is None else "without a loss it may be infinite"
    alpha = guards.number("alpha", alpha, above=0, or_inf=loss is None, fix=fix)
    function, weights, _ = _checked(flat(apply, data.x, output), params, data.x, where, data.y)
    if loss is not None:
        check_labels(loss, data.y, "data.y")
    key1, key2 = jax.random.split(key)
    first = jacobian_norm(function, weights, data.x, key=key1, iterations=iterations)
    second = hessian_norm(
        function, weights, data.x, key=key2, iterations=iterations, restarts=restarts
    )
    if first == 0:
        raise ValueError(
            "kappa got params where the derivative of apply is zero, expected weights that can learn."
        )
    if loss is None:
        # |h - y/alpha| / |Dh|: kappa is this times |D^2h| / |Dh|.
        distance = float(_distance(function, weights, data, alpha)) / first
    else:
        distance = float(_relative_value(function, as_partial(loss, "loss"), weights, data, alpha))
    return _finite("kappa", distance * (second / first))


def _checked(
    function: Apply, params: Params, x: Any, where: Where | None, y: ArrayLike | None = None
) -> tuple[Apply, Params, int]:
    """The function of real weights, these, and the number of examples.

    Everything is then known to be finite, and y to have the shape of the outputs.
    """
    guards.weights("params", params)
    check_displacement(function, params)
    guards.finite("params", params, "start from finite weights")
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        guards.array(f"x{jax.tree_util.keystr(path)}", leaf)
    guards.finite("x", x)
    function, params = real_weights(function, params, where)
    outputs = shape_of(function, params, x)
    n = guards.same_length(outputs=outputs)
    if y is None:
        return function, params, n
    guards.real("y", y)
    if y.shape != outputs.shape:
        raise ValueError(
            f"targets have shape {y.shape}, expected {outputs.shape} as the outputs: reshape scalar targets by "
            "y[:, None], or give the model the targets' number of outputs."
        )
    guards.finite("y", y)
    return function, params, n


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(
            f"{name} met {value} at finite weights and inputs: use float64, or smaller weights."
        )
    return value


@PerFunction
def _distance(function: Apply, params: Params, data: Data, alpha: float | Array) -> Array:
    """`1/alpha |alpha h - y|`, finite for alpha = inf."""
    outputs = function(params, data.x)
    return _norm(outputs - jnp.asarray(data.y, outputs.dtype) / jnp.asarray(alpha, outputs.dtype))


@functools.partial(PerFunction, by=(0, 1))
def _relative_value(
    function: Apply, loss: LossFn, params: Params, data: Data, alpha: float | Array
) -> Array:
    """`R / |grad R|` of the scaled model, a distance in the space of weights."""

    def risk(w):
        outputs = function(w, data.x)
        return loss(jnp.asarray(alpha, outputs.dtype) * outputs, data.y)

    value, gradient = jax.value_and_grad(risk)(params)
    return value / trees.norm(gradient)


@PerFunction
def _alternate(
    function: Apply, params: Params, x: Any, u: Params, v: Params
) -> tuple[Params, Params, Array]:
    """One round: the best g for (u, v), the best u for (g, v), the best v for (g, u), and the value that it reaches."""

    def derivative(direction):
        # Dh(w) direction, as a function of w.
        return lambda w: jax.jvp(lambda w: function(w, x), (w,), (direction,))[1]

    # D^2h(u, v), the derivative along v of that along u; a power of two scales without rounding.
    second = trees.widened(jax.jvp(derivative(u), (params,), (v,))[1])
    scaled = second / trees.power_of_two(second)
    # <g, f> = 1/n sum_i g_i f_i: the best g is the direction of D^2h(u, v), and the best u that
    # of the gradient of <g, Dh(w) v> in w, which is the linear form <g, D^2h(., v)>.
    g = _safe_divide(scaled, _norm(scaled)) / len(second)
    u, _ = _unit(jax.grad(lambda w: trees.dot(g, derivative(v)(w)))(params))
    v, value = _unit(jax.grad(lambda w: trees.dot(g, derivative(u)(w)))(params))
    return u, v, value


def _direction(key: Key[Array, ""], params: Params) -> Params:
    """A uniformly distributed unit vector in the space of the parameters."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    pairs = zip(keys, leaves, strict=True)
    normal = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in pairs]
    direction, _ = _unit(jax.tree.unflatten(treedef, normal))
    return direction


def _unit(a: Params) -> tuple[Params, Array]:
    scale = trees.power_of_two(a)
    scaled = trees.divide(a, scale)
    size = trees.norm(scaled)
    unit = jax.tree.map(lambda leaf: _safe_divide(leaf, size.astype(leaf.dtype)), scaled)
    return unit, trees.widened(scale) * size


def _safe_divide(a: Array, size: Array) -> Array:
    """`a / size`, and zero for a zero vector: the second derivative of a linear model."""
    return a / jnp.where(size == 0, 1, size)


def _norm(outputs: Float[Array, "n *k"]) -> Array:
    """Norm of the empirical measure."""
    # Squares of float32 lose their digits below entries of 1e-19 and are infinite above 2e19.
    outputs = trees.widened(outputs)
    scale = trees.power_of_two(outputs)
    return scale * jnp.sqrt(jnp.sum((outputs / scale) ** 2) / len(outputs))
