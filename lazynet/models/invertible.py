"""Networks whose inputs come back from their outputs, and whose training memory does not grow with depth.

A state is two halves of the channels `(a, b)`. A coupling adds to one half what a branch makes of
the other, and swaps them, so that any branch gives an invertible layer. `reversible` trains such
networks without keeping activations: its backward pass computes them again from the outputs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from lazynet import guards
from lazynet.covariance.halves import coupling_rule, squeeze_rule
from lazynet.models.model import (
    Evaluation,
    Inverse,
    Model,
    arguments_of,
    child_path,
    evaluation,
    evaluation_of,
    layer,
    nested,
    propagate,
)
from lazynet.recipes import recipe
from lazynet.typing import Array, ArrayLike, Params

__all__ = ["coupling", "inject", "inverse", "reversible", "squeeze"]


@recipe
def coupling(f: Model) -> Model:
    """Additive coupling `(a, b) -> (b, a + f(b))` on the two halves of the channels, with its inverse.

    The inverse is `(y1, y2) -> (y2 - f(y1), y1)`, whatever f is: one evaluation of f, exact up to
    the rounding of the sum. In the infinite-width limit, after a stem, the halves are independent
    and their covariances are `(Sigma_b, Sigma_a + F(Sigma_b))`; f must end in a Dense or Conv.

    Args:
        f: Branch, whose outputs have the shape of its inputs.

    Raises:
        TypeError: If f is no `Model`.
        ValueError: When evaluated, for an odd number of channels, or a branch that changes the
            shape.

    Example:
        >>> import lazynet as ln
        >>> model = coupling(ln.serial(ln.Dense(8), ln.Relu(), ln.Dense(2)))
        >>> x = jnp.ones((1, 4))
        >>> params = model.init(jax.random.key(0), x)
        >>> bool(jnp.allclose(inverse(model, params, model.apply(params, x)), x))
        True

    Source: Gomez et al. (2017); Jacobsen, Smeulders and Oyallon (2018).
    """
    _check_model("coupling", f)
    path = child_path(0, f)

    def init(key, x):
        own = f.init(jax.random.fold_in(key, 0), jax.eval_shape(lambda x: _halves(x)[1], x))
        return {path: own} if own else {}

    def branch(params, b, given=None):
        return f.apply(*arguments_of(path, params, b, given))

    def outputs(params, x, given):
        a, b = _halves(x)
        return _whole(b, _sum(a, branch(params, b, given)))

    def trace(params, x, given=None):
        a, b = _halves(x)
        change, inside = f.trace(*arguments_of(path, params, b, given))
        y = _whole(b, _sum(a, change))
        return y, nested(path, inside) | {"": (x, y)}

    def undo(params, y):
        b, total = _halves(y)
        return _whole(total - branch(params, b), b)

    def pullback(params, y, cotangent):
        # y = (b, a + f(b)): one evaluation of f gives back a, the gradient of the branch, and the
        # second part of the cotangent of b.
        b, total = _halves(y)
        change, back = jax.vjp(branch, params, b)
        of_b, of_total = _halves(cotangent)
        gradient, through_f = back(of_total)
        return _whole(total - change, b), gradient, _whole(of_total, of_b + through_f)

    rule = coupling_rule(lambda k: propagate(f, k, path))
    evaluate = evaluation_of({path: f}, outputs, trace)
    return Model(init, evaluate, trace, rule, "coupling", Inverse(undo, pullback))


@recipe
def squeeze(factor: int = 2) -> Model:
    """Blocks of pixels as channels, from `[n, h, w, c]` to `[n, h/s, w/s, s^2 c]`: down-sampling that loses nothing.

    The pixels of one channel stay together, so that the halves of the channels are squeezed each by
    itself.

    Args:
        factor: Side s of the blocks.

    Raises:
        ValueError: When evaluated, on inputs that are not images, or whose sides are no multiples
            of the factor.

    Example:
        >>> squeeze().apply({}, jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
        [[[[0.0, 1.0, 2.0, 3.0]]]]

    Source: Jacobsen, Smeulders and Oyallon (2018), section 3.2.
    """
    factor = guards.count("squeeze factor", factor)

    def apply(params, x):
        _check_blocks(x.shape, factor)
        n, h, w, c = x.shape
        blocks = x.reshape(n, h // factor, factor, w // factor, factor, c)
        # [n, h / s, w / s, c, s, s], merged with c in front: pixels of a channel are neighbors.
        return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(n, h // factor, w // factor, -1)

    def undo(params, y):
        n, h, w, c = y.shape
        blocks = y.reshape(n, h, w, c // factor**2, factor, factor)
        return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(n, h * factor, w * factor, -1)

    return layer("squeeze", apply, kernel=squeeze_rule(factor), inverse=undo)


@recipe
def inject(channels: int) -> Model:
    """Zero channels after those that are there, `x -> (x, 0)`: width for the couplings that follow.

    Its inverse leaves the new channels out, whatever they hold: outputs that are no image of an
    input get an inverse too. It has no infinite-width limit: half of the features would be zero for
    every width. A Dense or Conv in its place has one, and no inverse.

    Args:
        channels: Number of new channels.

    Example:
        >>> inject(2).apply({}, jnp.ones((1, 2))).tolist()
        [[1.0, 1.0, 0.0, 0.0]]

    Source: Jacobsen, Smeulders and Oyallon (2018), section 3.1, "injective i-RevNet".
    """
    channels = guards.count("inject channels", channels)

    def apply(params, x):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, channels)])

    # A rule that raises, not None: its message names the layer to put in its place.
    def rule(k):
        raise ValueError(
            f"inject({channels}) has no infinite-width limit: its features are no random functions; put a Dense or "
            "Conv in its place, or use empirical_ntk at finite width."
        )

    return layer("inject", apply, kernel=rule, inverse=lambda params, y: y[..., :-channels])


def inverse(model: Model, params: Params, y: Float[ArrayLike, "n *outputs"]) -> Array:
    """The input of given outputs, `x = h(w)^{-1}(y)`, for networks of invertible layers.

    A coupling loses rounding where its branch is large: the error grows with the number of
    couplings like the product of their Lipschitz constants. Branches of gain 1/sqrt(depth) keep it
    at some units in the last place for any depth.

    Args:
        model: Any `serial` of couplings, `squeeze`, `inject` and `Identity`, and of layers made by
            `layer(..., inverse=...)`.
        params: w.
        y: Outputs.

    Raises:
        ValueError: If a layer has no inverse, naming it.
        TypeError: If `model` is no Model, or y no array of floating point.

    Example:
        >>> model = inject(1)
        >>> inverse(model, {}, jnp.array([[3.0, 0.0]])).tolist()
        [[3.0]]
    """
    undo = _checked_inverse("inverse", model)
    return undo(params, jnp.asarray(guards.real("y", y)))


@recipe
def reversible(model: Model) -> Model:
    """The same model, whose backward pass computes activations again from the outputs: memory does not grow with depth.

    Training a network of invertible layers then holds the inside of one layer at a time, for one
    more evaluation of each branch; gradients agree up to the error of the reconstruction. Names of
    parameters are those of `model`. A function with a backward pass of its own has no forward
    derivatives: tangent models (`linearize`, `lazy` at alpha = inf), Hessians and empirical kernels
    take the plain function instead (`model.plain`), and hold its activations.

    Args:
        model: A `serial` of invertible layers, for instance `zoo.irevnet(outputs=None)`; put heads
            without an inverse after it.

    Raises:
        ValueError: If a layer has no inverse, naming it.
        TypeError: If `model` is no Model.

    Example:
        >>> import lazynet as ln
        >>> body = ln.repeat(coupling(ln.serial(ln.Dense(8), ln.Relu(), ln.Dense(1))), 10)
        >>> model = ln.serial(reversible(body), ln.Dense(1))
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 2)))
        >>> model.apply(params, jnp.ones((1, 2))).shape
        (1, 1)

    Source: Gomez et al. (2017), algorithm 1.
    """
    undo = _checked_inverse("reversible", model)
    known = evaluation(model.apply)

    @jax.custom_vjp
    def recomputed(params, x):
        return model.apply(params, x)

    def forward(params, x):
        y = model.apply(params, x)
        return y, (params, y)

    def backward(kept, cotangent):
        # Without x, which the pullback finds on its way.
        return undo.pullback(*kept, cotangent)[1:]

    def outputs(params, x, given):
        # Gates and probes are no arguments of the custom backward pass.
        return model.apply(params, x, given) if given else recomputed(params, x)

    recomputed.defvjp(forward, backward)
    rows = known.rows if known else {}
    independent = known.independent if known else model.kernel is not None
    # The trace is the model's own, which keeps activations and has forward derivatives.
    evaluate = Evaluation(outputs, model.trace, rows, independent, forward=False)
    return model._replace(apply=evaluate)


def _halves(x):
    """The two halves of the channels."""
    channels = x.shape[-1]
    if channels % 2:
        raise ValueError(
            f"coupling got {channels} channels (shape {tuple(x.shape)}), expected an even number: put inject(1), "
            "squeeze(), or a Dense or Conv with an even number of features before it."
        )
    return x[..., : channels // 2], x[..., channels // 2 :]


def _whole(a, b):
    return jnp.concatenate([a, b], axis=-1)


def _sum(a, change):
    if a.shape != change.shape:
        raise ValueError(
            f"coupling got a branch with outputs of shape {change.shape}, expected {a.shape}, that of its inputs: "
            f"end the branch with {a.shape[-1]} features, without strides."
        )
    return a + change


def _check_blocks(shape, factor):
    if len(shape) != 4 or shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"squeeze got an input of shape {tuple(shape)}, expected images [n, h, w, c] whose sides are multiples of "
            f"{factor}: crop or pad the images, or use fewer squeezes."
        )


def _check_model(name, model):
    if not isinstance(model, Model):
        raise TypeError(
            f"{name} got {model!r}, expected a Model: call the layer's constructor, for instance Dense(8)."
        )


def _checked_inverse(name, model) -> Any:
    """The inverse of a model that has one."""
    _check_model(name, model)
    known: Any = model.inverse
    if known is None or known.missing:
        path = model.name if known is None else known.missing
        raise ValueError(
            f"{name} got {model.name}, in which layer {path} has no inverse, expected couplings, squeeze and inject: "
            "take the part before it, or make it with layer(..., inverse=...)."
        )
    return known
