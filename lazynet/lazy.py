"""The plane's horizontal axis: from the standard model (alpha = 1) to the tangent model (alpha = inf).

Each transform returns a function that is a record: a pytree with the initialization and the scale
among its leaves. Passed as an argument to a compiled step, all finite alphas and all
initializations share one compilation; captured by a closure, each would become a constant of its
own program.

A model is any pure function `apply(params, *inputs, **kwargs)`, and so is what comes back: inputs
and outputs are arrays or trees of them. Whole numbers, booleans and keys among the parameters are
constants, those among the outputs stay as they are; complex weights move in real and imaginary
part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, register_dataclass, register_pytree_with_keys_class

from lazynet import guards, trees
from lazynet.models.low_rank import Lora
from lazynet.models.model import Model, evaluation, plain
from lazynet.precision import ComputeIn, carried_scale
from lazynet.programs import refuse_backward_only
from lazynet.signatures import OneArray
from lazynet.trees import as_partial
from lazynet.typing import Apply, Array, Params

__all__ = [
    "GATES",
    "LazyFunction",
    "center",
    "check_displacement",
    "gated",
    "layer_name",
    "lazy",
    "lazy_below",
    "lazy_part",
    "linearize",
    "scale",
    "taylor_expand",
    "weights",
]

GATES = ("Relu", "LeakyRelu", "Abs", "ABRelu")
"""Layers that are linear on both sides of zero."""

SCALES = "alpha = 1 is standard training, large alpha is lazy"


def linearize(apply: Apply, params0: Params) -> Apply:
    """Tangent model `hbar(w) = h(w0) + Dh(w0) (w - w0)`, by one `jax.jvp` per evaluation.

    Args:
        apply: Model h.
        params0: w0, where the tangent is taken.

    Returns:
        A function of (params, x), linear in params up to a constant.

    Example:
        >>> tangent = linearize(lambda w, x: x @ w**2, jnp.ones((1, 1)))
        >>> tangent(3.0 * jnp.ones((1, 1)), jnp.ones((1, 1))).tolist()
        [[5.0]]

    Source: Chizat, Oyallon and Bach (2019), equation 4; Lee et al. (2019), equation 5.
    """
    check_displacement(apply, params0, "params0")
    return _Linearized(plain(as_partial(apply)), params0)


def taylor_expand(apply: Apply, params0: Params, degree: int) -> Apply:
    """Taylor polynomial `sum_{j <= degree} D^j h(w0) (w - w0)^j / j!`, by nested `jax.jvp`.

    Args:
        apply: Model h.
        params0: w0, where the expansion is taken.
        degree: Highest order, at least 0; 1 is `linearize`.

    Raises:
        ValueError: If `degree` is negative.
        TypeError: If `degree` is not an integer.

    Example:
        >>> quadratic = taylor_expand(lambda w, x: x @ w**3, jnp.zeros((1, 1)), 3)
        >>> quadratic(2.0 * jnp.ones((1, 1)), jnp.ones((1, 1))).tolist()
        [[8.0]]
    """
    degree = guards.count("degree", degree, at_least=0)
    check_displacement(apply, params0, "params0")
    return _Taylor(plain(as_partial(apply)), _on_device(params0), degree)


def center(apply: Apply, params0: Params) -> Apply:
    """Centered model `h(w) - h(w0)`: zero at initialization, which laziness needs.

    Args:
        apply: Model h.
        params0: w0.

    Example:
        >>> centered = center(lambda w, x: x @ w, jnp.ones((1, 1)))
        >>> centered(jnp.ones((1, 1)), jnp.ones((1, 1))).tolist()
        [[0.0]]

    Source: Chizat, Oyallon and Bach (2019), section 1.2.
    """
    check_displacement(apply, params0, "params0")
    return _Centered(as_partial(apply), _on_device(params0))


def scale(apply: Apply, alpha: float | int | Array) -> Apply:
    """Scaled model `alpha h(w)`, a function of the weights w themselves.

    Trained on the loss times 1/alpha^2 it is the paper's definition of lazy training. In float32 it
    loses all digits of w - w0 for large alpha: train `lazy` instead, which is the same dynamics in
    the variable u = alpha (w - w0).

    Args:
        apply: Model h.
        alpha: Scale, positive and finite.

    Raises:
        ValueError: If alpha is not in (0, inf), or above the largest number of the dtype.

    Example:
        >>> scale(lambda w, x: x @ w, 3.0)(jnp.ones((1, 1)), jnp.ones((1, 1))).tolist()
        [[3.0]]

    Source: Chizat, Oyallon and Bach (2019), equation 2.
    """
    function = as_partial(apply)
    largest = float(jnp.finfo(jnp.result_type(float)).max)
    alpha = guards.number("alpha", alpha, above=0, at_most=largest, fix=SCALES)
    return _Scaled(function, alpha)


def lazy(
    apply: Apply, params0: Params, alpha: float | int | Array, *, centered: bool = True
) -> LazyFunction:
    """Lazy function `f(u) = alpha [h(w0 + u/alpha) - h(w0)]`, and `f(u) = Dh(w0) u` at alpha = inf.

    Its variable is the displacement u = alpha (w - w0), which starts at zero (`train` does that by
    itself). SGD with momentum on the plain loss of f is SGD with momentum on the paper's objective
    (1/alpha^2) R(alpha (h(w) - h(w0))), so one learning rate serves every alpha and float32 stays
    usable. `weights` maps u back to w.

    At finite alpha the products of h have full precision, because alpha multiplies their rounding:
    with the three digits (TF32) that recent GPUs keep by default, VGG-11 is 40 % off at alpha =
    100. At alpha = 1 they are enough: `jax.default_matmul_precision("default")` around the call
    that compiles asks for them.

    Weights of a dtype with n binary digits carry an alpha up to 2^(n - 6),
    `precision.largest_alpha`: beyond it u / alpha is lost in the rounding of w0, and f is noise or
    zero where it should be the tangent model. A larger number is refused. Where alpha is traced its
    value is unknown: one that turns out to be larger is replaced by the scale at which f is closest
    to the tangent model, from which the exact f is then no further than the rounding.

    What h predicts at trained weights is worth keeping: `centered=False` adds `h(w0)` to f at every
    alpha, so that alpha = 1 is fine-tuning, `h(w0 + u)`, and inf its linearization.

    At finite alpha only SGD trains u as it would train w. At alpha = inf, u is the tangent itself,
    and any optimizer will do; weight decay then pulls towards w0.

    Args:
        apply: Model h.
        params0: w0, the initialization.
        alpha: Scale in (0, inf]; 1 is standard (centered) training, inf the tangent model.
        centered: Whether f vanishes at u = 0; otherwise it is h(w0) there.

    Returns:
        A function of (u, x) with the fields `apply`, `params0` and `alpha`, of which `f.weights(u)`
        are the weights and `f.start()` is u = 0. It is a pytree with `params0` and a finite alpha
        as leaves: passed as an argument to a compiled function, all finite alphas share one
        compilation and inf has another.

    Raises:
        ValueError: If alpha is not in (0, inf], or more than the dtype of the weights carries; when
            evaluated, if u does not have the shapes of `params0`, or is `params0` itself.

    Example:
        >>> h = lambda w, x: x @ w**2
        >>> w0 = jnp.ones((1, 1))
        >>> u = jnp.ones((1, 1))
        >>> [round(float(lazy(h, w0, alpha)(u, w0)[0, 0]), 3) for alpha in (1.0, 10.0, float("inf"))]
        [3.0, 2.1, 2.0]

    Source: Chizat, Oyallon and Bach (2019), equations 2 and 4, in the variable u.
    """
    apply = as_partial(apply)
    alpha = guards.number("alpha", alpha, above=0, or_inf=True, fix=SCALES)
    centered = guards.flag("centered", centered)
    if _is_infinite(alpha):
        # Only the tangent needs forward derivatives, which `reversible` models have not.
        return LazyFunction(plain(apply), params0, alpha, centered)
    return LazyFunction(apply, params0, carried_scale(alpha, apply, params0), centered)


@register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class LazyFunction:
    """What `lazy` returns: `f(u) = alpha [h(w0 + u/alpha) - h(w0)]`, and `f(u) = Dh(w0) u` at alpha = inf.

    Attributes:
        apply: Model h.
        params0: w0, the initialization.
        alpha: Scale in (0, inf]. A finite one is a leaf, inf is structure.
        centered: Whether f(0) = 0; otherwise h(w0) is added.

    Example:
        >>> f = lazy(lambda w, x: x @ w, jnp.ones((1, 1)), 10.0)
        >>> f.alpha, f.start().tolist(), f.weights(f.start()).tolist()
        (10.0, [[0.0]], [[1.0]])
    """

    apply: Apply
    params0: Params = dataclasses.field(repr=False)
    alpha: Any
    centered: bool = True

    def __call__(self, u: Params, *inputs: Any, **kwargs: Any) -> Any:
        """Outputs at the displacement u on the examples in the inputs; those of whole numbers are those of h."""
        _check_displacement(u, self.params0)

        def h(w):
            return self.apply(w, *inputs, **kwargs)

        if self.is_tangent:
            start, derivative = _derivative(h, self.params0, u)
            # The tangent of whole numbers has the dtype float0, with which nothing can be computed.
            change = _of_floating(lambda h, derivative: derivative, start, derivative)
        else:
            with _full_products():
                start = h(self.params0)
                difference = _of_floating(jnp.subtract, h(self.weights(u)), start)
            change = _of_floating(lambda leaf: _as(self.alpha, leaf) * leaf, difference)
        return change if self.centered else _of_floating(jnp.add, change, start)

    @property
    def is_tangent(self) -> bool:
        """Whether alpha is inf, which is known also where a finite alpha is traced."""
        return _is_infinite(self.alpha)

    def weights(self, u: Params) -> Params:
        """Weights `w = w0 + u / alpha`; w0 at alpha = inf."""
        if self.is_tangent:
            return self.params0

        # In float32 u / alpha falls below the rounding of w0 from alpha = 2.6e5 on: `lazy` refuses it.
        def moved(w0, v):
            return w0 + v / _as(self.alpha, w0) if trees.is_weight(w0) else w0

        return jax.tree.map(moved, self.params0, u)

    def start(self) -> Params:
        """The displacement u = 0, at which the weights are w0."""
        return trees.zeros_like(self.params0)

    def tree_flatten_with_keys(
        self,
    ) -> tuple[tuple[tuple[Any, Any], ...], tuple[float | None, bool]]:
        """Leaves by name; centering, and the scale where it is structure."""
        # An infinite alpha is structure: a program cannot branch on the value of a leaf.
        known = (GetAttrKey("apply"), self.apply), (GetAttrKey("params0"), self.params0)
        if self.is_tangent:
            return known, (math.inf, self.centered)
        return (*known, (GetAttrKey("alpha"), self.alpha)), (None, self.centered)

    @classmethod
    def tree_unflatten(cls, structure: tuple[float | None, bool], children: Any) -> LazyFunction:
        """The record of these leaves."""
        infinity, centered = structure
        apply, params0, alpha = children if infinity is None else (*children, infinity)
        return cls(apply, params0, alpha, centered)


def weights(lazy_apply: LazyFunction, u: Params) -> Params:
    """Weights `w = w0 + u / alpha` of a lazy function at u, `lazy_apply.weights(u)`; w0 at alpha = inf.

    Args:
        lazy_apply: What `lazy` returned.
        u: Displacement.

    Raises:
        TypeError: If `lazy_apply` was not made by `lazy`.

    Example:
        >>> f = lazy(lambda w, x: x @ w, jnp.ones((1, 1)), 10.0)
        >>> round(float(weights(f, jnp.ones((1, 1)))[0, 0]), 6)
        1.1
    """
    if not isinstance(lazy_apply, LazyFunction):
        raise TypeError(
            f"weights got {lazy_apply!r}, expected what lazy(apply, params0, alpha) returned."
        )
    return lazy_apply.weights(u)


def gated(model: Model, params0: Params) -> Apply:
    """Gated network `g(w; x)`: the weights are w, but ReLU gates and max-pooling winners are those of w0 on x.

    `phi(z)` becomes `1[z0 > 0] z`, z0 the pre-activation at w0, and a max-pool passes on the entry
    that was largest at w0. So g(w0) = h(w0), with the same tangent, and g is linear in the weights
    of every single layer: between the tangent model, which is linear in all of them together, and
    the network. Where gates are stable, g is h.

    Args:
        model: Network of lazynet's layers; its activations must be linear on both sides of zero
            (Relu, LeakyRelu, Abs, ABRelu). Layers without gates, LayerNorm included, are evaluated
            at w.
        params0: w0, which fixes the gates.

    Returns:
        A function of (params, x), which `lazy` takes like any other.

    Raises:
        ValueError: When evaluated, if the network has a smooth activation, or no gates at all.
        TypeError: If `model` was not made of lazynet's layers.

    Example:
        >>> import lazynet as ln
        >>> model = ln.serial(ln.Dense(1), ln.Relu())
        >>> w = {"0_Dense": {"W": jnp.ones((1, 1))}}
        >>> open_gates = gated(model, w)
        >>> float(open_gates(jax.tree.map(jnp.negative, w), jnp.ones((1, 1)))[0, 0])
        -1.0

    Source: Chizat, Oyallon and Bach (2019), appendix C, whose activations it freezes.
    """
    if not isinstance(model, Model) or evaluation(model.apply) is None:
        raise TypeError(
            f"gated got {model!r}, expected a Model of lazynet's layers, for instance zoo.vgg11(): gates are theirs."
        )
    return _Gated(model, params0)


def layer_name(path: str) -> str:
    """The layer at the end of a path of `Model.trace`, without its position.

    Example:
        >>> layer_name("3_residual/1_Relu")
        'Relu'
    """
    return path.rsplit("/", 1)[-1].split("_", 1)[-1]


def check_displacement(apply: Apply, u: Params, name: str = "params") -> None:
    """Refuses params0 as the variable u of a lazy function, the one mistake that everybody makes once.

    The lazy function itself sees it by identity only, and not at all where both are arguments of a
    compiled function: so every function that takes a model and its parameters calls this at its
    entrance, before it compiles. Values that are being traced are unknown and pass; so do other
    functions than lazy ones, and a params0 of zeros, which is the right start. Beside factors of low
    rank the displacement has the place of the weights.

    Args:
        apply: Any model, or a transform of a lazy function in the same variable, as `center` is.
        u: Its parameters.
        name: What messages call them.

    Raises:
        ValueError: If `apply` is lazy and u has other shapes than its params0, or its values.

    Example:
        >>> w0 = jnp.ones((1, 1))
        >>> check_displacement(lazy(lambda w, x: x @ w, w0, 2.0), jnp.zeros((1, 1)))
        >>> check_displacement(lazy(lambda w, x: x @ w, w0, 2.0), jnp.ones((1, 1)))
        Traceback (most recent call last):
        ...
        ValueError: params is params0, expected the displacement u = alpha (w - w0) of a lazy function, which starts ...
    """
    function = _within(apply)
    if isinstance(function, Lora) and isinstance(u, dict) and "weights" in u:
        # Factors beside a lazy function are added to its displacement, in the place of weights.
        check_displacement(function.apply, u["weights"], f"{name}['weights']")
    if not isinstance(function, LazyFunction):
        return
    params0 = function.params0
    trees.check_same_structure(u, params0, name=name, expected="params0")
    if not trees.is_traced((u, params0)) and _equal(u, params0):
        raise ValueError(_mistaken(name))


def lazy_part(function: object) -> LazyFunction | None:
    """The lazy function in whose variable u a function is written: itself, or what transforms of it were made of.

    Example:
        >>> f = lazy(lambda w, x: x @ w, jnp.ones((1, 1)), 2.0)
        >>> lazy_part(center(f, jnp.zeros((1, 1)))) is f, lazy_part(jnp.sin) is None
        (True, True)
    """
    function = _within(function)
    return function if isinstance(function, LazyFunction) else None


def lazy_below(function: object) -> LazyFunction | None:
    """`lazy_part`, also below factors of low rank, which are added to the displacement.

    Example:
        >>> f = lazy(lambda w, x: x @ w, jnp.ones((1, 1)), 2.0)
        >>> lazy_below(Lora(f)) is f, lazy_part(Lora(f)) is None
        (True, True)
    """
    function = _within(function)
    return lazy_below(function.apply) if isinstance(function, Lora) else lazy_part(function)


def _within(function):
    """The function of the same variable of which transforms were made."""
    while isinstance(function, TRANSFORMS) or (isinstance(function, partial) and not function.args):
        # A partial function without positional arguments is one of the same variable.
        function = function.func if isinstance(function, partial) else function.apply
    return function


def _on_device(params0):
    """Arrays of NumPy as those of JAX: traced whole numbers, such as tokens, index these only."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, params0
    )


@partial(register_dataclass, data_fields=("apply", "params0"), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class _Linearized:
    apply: Apply
    params0: Params = dataclasses.field(repr=False)

    def __call__(self, params, *inputs, **kwargs):
        trees.check_same_structure(params, self.params0, name="params", expected="params0")
        displacement = _displacement(params, self.params0)
        h, change = _derivative(
            lambda w: self.apply(w, *inputs, **kwargs), self.params0, displacement
        )
        return _of_floating(jnp.add, h, change)


@partial(register_dataclass, data_fields=("apply", "params0"), meta_fields=("degree",))
@dataclasses.dataclass(frozen=True, eq=False)
class _Taylor:
    apply: Apply
    params0: Params = dataclasses.field(repr=False)
    degree: int

    def __call__(self, params, *inputs, **kwargs):
        trees.check_same_structure(params, self.params0, name="params", expected="params0")
        direction = _displacement(params, self.params0)

        def derivative(order):
            if order == 0:
                return lambda w: self.apply(w, *inputs, **kwargs)
            # D^j h[v, ..., v] is the derivative of D^{j-1} h[v, ..., v] along v.
            return lambda w: _derivative(derivative(order - 1), w, direction)[1]

        derivatives = [derivative(j)(self.params0) for j in range(1, self.degree + 1)]
        return _of_floating(_polynomial, derivative(0)(self.params0), *derivatives)


@partial(register_dataclass, data_fields=("apply", "params0"), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class _Centered:
    apply: Apply
    params0: Params = dataclasses.field(repr=False)

    def __call__(self, params, *inputs, **kwargs):
        trees.check_same_structure(params, self.params0, name="params", expected="params0")
        outputs = self.apply(params, *inputs, **kwargs)
        return _of_floating(jnp.subtract, outputs, self.apply(self.params0, *inputs, **kwargs))


@partial(register_dataclass, data_fields=("apply", "alpha"), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class _Scaled:
    apply: Apply
    alpha: Any

    def __call__(self, params, *inputs, **kwargs):
        outputs = self.apply(params, *inputs, **kwargs)
        return _of_floating(lambda h: _as(self.alpha, h) * h, outputs)


@partial(register_dataclass, data_fields=("params0",), meta_fields=("model",))
@dataclasses.dataclass(frozen=True, eq=False)
class _Gated:
    """The gated network of a model, which is structure: equal models share compilations."""

    model: Model
    params0: Params = dataclasses.field(repr=False)

    def __call__(self, params, x):
        known = evaluation(self.model.apply)
        # A trace has pre-activations of Dense and Conv too, which are no gates.
        affine = known.rows if known else {}
        inside = self.model.trace(self.params0, x)[1]
        gates = {path: z for path, (_, z) in inside.items() if path not in affine}
        # A single layer has the empty path in its own trace.
        names = {path: layer_name(path or self.model.name) for path in gates}
        smooth = [path for path, name in names.items() if name not in (*GATES, "MaxPool")]
        if smooth or not gates:
            found = f"layer {smooth[0]}, which has no gates" if smooth else "no layer with gates"
            raise ValueError(
                f"gated got a network with {found}, expected {', '.join(GATES)} or MaxPool."
            )
        return self.model.apply(params, x, gates)


TRANSFORMS = (_Linearized, _Taylor, _Centered, _Scaled, ComputeIn, OneArray)
"""Records around a function `apply` of the same variable."""


def _displacement(params, params0):
    """The weights less those of params0; constants are those of params0."""
    return jax.tree.map(
        lambda w, w0: jnp.subtract(w, w0) if trees.is_weight(w0) else w0, params, params0
    )


def _derivative(function, params, direction):
    """Value and derivative along a direction of the weights; constants among the parameters have none."""
    weights, rebuilt = trees.differentiable(params)
    tangents = trees.differentiable(direction)[0]
    try:
        return jax.jvp(lambda w: function(rebuilt(w)), (weights,), (tangents,))
    except TypeError as error:
        refuse_backward_only(error)
        raise


def _of_floating(function, outputs, *others):
    """A function of outputs leaf by leaf; whole numbers, which have no derivative, are those of the first."""
    return jax.tree.map(
        lambda h, *rest: function(h, *rest) if trees.is_weight(h) else h, outputs, *others
    )


def _polynomial(h, *derivatives):
    """`sum_j D^j / j!`, the constant term last."""
    return sum(d / math.factorial(j) for j, d in enumerate(derivatives, start=1)) + h


def _full_products():
    """Products of full precision inside, unless the user has set one: alpha multiplies what they round."""
    # A `with jax.default_matmul_precision(...)` around the call is a choice of the user too.
    chosen = jax.config.values["jax_default_matmul_precision"] is not None
    return contextlib.nullcontext() if chosen else jax.default_matmul_precision("highest")


def _is_infinite(alpha):
    """Whether this is the tangent model, whose scale is no array."""
    return isinstance(alpha, float) and math.isinf(alpha)


def _as(alpha, array):
    # A traced alpha has a dtype, which would promote what it multiplies.
    return jnp.asarray(alpha, array.dtype)


def _check_displacement(u, params0):
    """Shapes agree and u is not the very arrays of params0; values are looked at by `check_displacement`."""
    trees.check_same_structure(u, params0, name="u", expected="params0")
    pairs = _pairs(u, params0)
    # By identity first: looking at values at every call would wait for the device. A params0 of
    # zeros is the right start.
    if pairs and all(a is b for a, b in pairs) and (trees.is_traced(u) or _equal(u, params0)):
        raise ValueError(_mistaken("u"))


def _mistaken(name):
    return (
        f"{name} is params0, expected the displacement u = alpha (w - w0) of a lazy function, which starts "
        "at zero: pass trees.zeros_like(params0) (to train, pass params=None); weights(lazy_apply, u) are the weights."
    )


def _equal(u, params0):
    """Whether all values agree and not all are zero; known also where other arrays are traced."""
    # Inside of jit even known arrays would be traced by an operation, and their values unknown.
    with jax.ensure_compile_time_eval():
        pairs = _pairs(u, params0)
        is_zero = not any(bool(jnp.any(jnp.asarray(leaf) != 0)) for _, leaf in pairs)
        return not is_zero and all(
            a is b or bool(np.all(np.asarray(a) == np.asarray(b))) for a, b in pairs
        )


def _pairs(u, params0):
    """Weights of two trees side by side."""
    pairs = zip(jax.tree.leaves(u), jax.tree.leaves(params0), strict=True)
    return [(a, b) for a, b in pairs if trees.is_weight(b)]
