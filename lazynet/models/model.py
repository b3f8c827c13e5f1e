"""A network is a `Model`: five pure functions of the same architecture, and combinators that make models of models.

There is no layer class: a layer is a model, and a network is a layer made of layers. Parameters are
nested dictionaries whose keys are positions and names (`{"0_Dense": {"W": ..., "b": ...},
"2_Dense": ...}`); the same names, joined by slashes, are the paths of `Model.trace`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lazynet import guards
from lazynet.covariance.depth import through
from lazynet.covariance.halves import joined
from lazynet.parameters import Where, selected
from lazynet.recipes import Function, recipe
from lazynet.typing import Array, Params

__all__ = [
    "Evaluation",
    "Inverse",
    "Model",
    "child_path",
    "evaluation",
    "freeze",
    "layer",
    "parallel",
    "plain",
    "propagate",
    "repeat",
    "residual",
    "serial",
    "symmetrize",
]

Rule = Callable[[Any], Any]
Rows = Callable[[Any], Array]
Inside = dict[str, tuple[Array, Array]]
Given = Mapping[str, Array]


class Model(NamedTuple):
    """An architecture: how to draw its weights, evaluate it, look inside it and take its infinite-width limit.

    Attributes:
        init: `init(key, x) -> params`; `x` is an example batch or its `jax.ShapeDtypeStruct` (only
            shape and dtype are used, and the parameters get the dtype of `x`).
        apply: `apply(params, x) -> outputs`, pure, batch first, channels last: an `Evaluation`, which
            has fields, or a plain function.
        trace: `trace(params, x) -> (outputs, {path: (layer input, pre-activation)})`. Dense and
            Conv record their input and their output; an activation records its input twice; MaxPool
            records its input and the window entries `[n, h, w, window, c]` over which it takes the
            maximum.
        kernel: The infinite-width rule, from the covariances of the layer's input to those of its
            output; None for a layer that has no such limit.
        name: Name of the layer in paths and messages.
        inverse: `inverse(params, outputs) -> x`, an `Inverse`; None for a layer that has none.

    Example:
        >>> import lazynet as ln
        >>> model = ln.serial(ln.Dense(32), ln.Relu(), ln.Dense(1))
        >>> x = jnp.ones((4, 3))
        >>> params = model.init(jax.random.key(0), x)
        >>> model.apply(params, x).shape, sorted(params)
        ((4, 1), ['0_Dense', '2_Dense'])
        >>> outputs, inside = model.trace(params, x)
        >>> sorted(inside)
        ['0_Dense', '1_Relu', '2_Dense']
    """

    init: Callable[[Any, Any], Params]
    apply: Callable[..., Array]
    trace: Callable[[Params, Any], tuple[Array, Inside]]
    kernel: Rule | None
    name: str
    inverse: Callable[[Params, Any], Array] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The apply of a model of lazynet's layers: `apply(params, x)`, a function that knows its inside.

    Attributes:
        outputs: `outputs(params, x, given)`, the function.
        trace: `trace(params, x, given=None)`, `Model.trace` of the same model.
        rows: For the path of each Dense and Conv layer `z = m (rows(x) W) + b` the function from its
            input `[n, ...]` to the rows `[n, positions, fan_in]` that its weights multiply.
        independent: Whether every layer has an infinite-width rule, hence treats the examples of a
            batch one by one.
        forward: Whether it has forward derivatives (`jax.jvp`), which a `reversible` model inside
            has not; `trace` always has them, and `plain` takes them from there.

    Example:
        >>> import lazynet as ln
        >>> apply = ln.serial(ln.Conv(8, (3, 3)), ln.Relu()).apply
        >>> apply.rows["0_Conv"](jnp.ones((1, 5, 5, 2))).shape, apply.independent
        ((1, 9, 18), True)
    """

    outputs: Callable[[Params, Any, Given], Array]
    trace: Callable[..., tuple[Array, Inside]]
    rows: dict[str, Rows]
    independent: bool
    forward: bool = True

    # For the names of compiled programs, which objects do not have by themselves.
    __name__ = "apply"

    def __call__(self, params: Params, x: Any, given: Given | None = None) -> Any:
        """Outputs at the weights; a list of them where a branch of drop-in layers ends.

        Args:
            params: Weights.
            x: Examples.
            given: What layers take from outside, by their paths: a Relu, or another layer with two
                slopes, and a MaxPool the pre-activations that decide its gates; a Dense or Conv a
                probe that is added to its products `rows(x) W`.
        """
        return self.outputs(params, x, given or {})


def evaluation(apply: Any) -> Evaluation | None:
    """The evaluation of a model of lazynet's layers, whose fields tell its inside; None for any other function.

    Example:
        >>> evaluation(jnp.sin) is None
        True
    """
    # `recipe` wraps what it makes, to compare and to pickle it.
    function = apply.function if isinstance(apply, Function) else apply
    return function if isinstance(function, Evaluation) else None


def plain(apply: Any) -> Any:
    """The same function with derivatives of every kind: without the backward pass of `reversible` models in it.

    A function with a backward pass of its own has no forward derivatives, which tangent models,
    Hessians and empirical kernels take: they call this first.

    Args:
        apply: Any function, or a record that holds one as `apply`, such as a lazy function.

    Example:
        >>> plain(jnp.sin) is jnp.sin
        True
    """
    if isinstance(apply, jax.tree_util.Partial) and not apply.args and not apply.keywords:
        function = plain(apply.func)
        return apply if function is apply.func else jax.tree_util.Partial(function)
    if dataclasses.is_dataclass(apply) and hasattr(apply, "apply"):
        record: Any = apply
        function = plain(record.apply)
        return apply if function is record.apply else dataclasses.replace(record, apply=function)
    known = evaluation(apply)
    return apply if known is None or known.forward else _traced(apply)


@recipe
def _traced(apply: Any) -> Callable[..., Array]:
    """The outputs of an evaluation's trace, as an evaluation."""
    known: Any = evaluation(apply)

    def outputs(params, x, given):
        return known.trace(params, x, given)[0]

    return Evaluation(outputs, known.trace, known.rows, known.independent)


@dataclasses.dataclass(frozen=True, eq=False)
class Inverse:
    """The inverse of a model, `x = inverse(params, outputs)`, and its use in a backward pass.

    Attributes:
        undo: `undo(params, outputs) -> x`, the function.
        pullback: `pullback(params, outputs, cotangent) -> (x, gradient, cotangent of x)`: the
            derivatives from the outputs alone, one layer's inside at a time.
        missing: Path of a layer without an inverse, on which both fail; empty if there is none.

    Example:
        >>> import lazynet as ln
        >>> undo = ln.coupling(ln.Dense(1)).inverse
        >>> undo({"0_Dense": {"W": jnp.ones((1, 1))}}, jnp.array([[2.0, 5.0]])).tolist()
        [[3.0, 2.0]]
    """

    undo: Callable[[Params, Any], Array]
    pullback: Callable[[Params, Any, Any], tuple[Array, Params, Array]]
    missing: str = ""

    __name__ = "inverse"

    def __call__(self, params: Params, outputs: Any) -> Array:
        """Inputs at the weights."""
        return self.undo(params, outputs)


@recipe
def layer(
    name: str,
    apply: Callable[..., Array],
    *,
    init: Callable[[Any, Any], Params] | None = None,
    record: Callable[[Any, Array], tuple[Array, Array]] | None = None,
    kernel: Rule | None = None,
    rows: Rows | None = None,
    inverse: Callable[[Params, Any], Array] | None = None,
) -> Model:
    """A model from a single function: how every layer of lazynet is made, and how to add your own.

    Args:
        name: Name in paths and messages.
        apply: `apply(params, x) -> outputs`.
        init: `init(key, x) -> params`; None for a layer without parameters.
        record: `record(x, outputs) -> (layer input, pre-activation)`; None for a layer that `trace`
            passes over.
        kernel: Infinite-width rule, None if there is none, or if `apply` mixes the examples of a
            batch.
        rows: For a layer `z = m (rows(x) W) + b` the function of `Evaluation`. Its apply must then
            take a third argument, a probe to add to `rows(x) W`, and biases `[n, features]` of each
            example: derivatives by the probe give those by W for one example at a time.
        inverse: `inverse(params, outputs) -> x`, None if there is none. After couplings the rule of
            an invertible layer is given the pair of covariances `covariance.halves.Halves`.

    Raises:
        TypeError: If something other than the name cannot be called.

    Example:
        >>> double = layer("Double", lambda params, x: 2.0 * x)
        >>> double.apply({}, jnp.ones((1, 2))).tolist()
        [[2.0, 2.0]]
    """
    guards.function("apply", apply, "pass lambda params, x: ...")
    parts = {"init": init, "record": record, "kernel": kernel, "rows": rows, "inverse": inverse}
    for part, function in parts.items():
        if function is not None:
            guards.function(part, function, "None leaves it out")

    def outputs(params, x, given):
        # What is given to this very layer has the empty path, all parents being stripped off.
        return apply(params, x, given[""]) if given else apply(params, x)

    def trace(params, x, given=None):
        h = outputs(params, x, given)
        return h, {} if record is None else {"": record(x, h)}

    def pullback(params, y, cotangent):
        x = back(params, y)
        # One layer is evaluated once more: a plain inverse says nothing about derivatives.
        return x, *jax.vjp(apply, params, x)[1](cotangent)

    # For type checkers: the pullback is used only if there is an inverse.
    back: Any = inverse
    own_rows = {} if rows is None else {"": rows}
    evaluate = Evaluation(outputs, trace, own_rows, kernel is not None)
    undone = None if inverse is None else Inverse(inverse, pullback)
    return Model(init or (lambda key, x: {}), evaluate, trace, kernel, name, undone)


@recipe
def serial(*layers: Model, name: str = "serial") -> Model:
    """Composition `h = h_L o ... o h_1`.

    Shapes come from `jax.eval_shape` and layer i draws with `fold_in(key, i)`: appending a layer
    does not change the weights of the earlier ones.

    Args:
        *layers: Models applied from left to right.
        name: Name in paths and messages.

    Raises:
        TypeError: If something that is not a `Model` is passed, for instance a layer constructor
            without its call.

    Example:
        >>> import lazynet as ln
        >>> model = serial(ln.Dense(8), ln.Erf(), ln.Dense(2))
        >>> jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 3)))["0_Dense"]["W"].shape
        (3, 8)
    """
    _check_models(layers, "serial")

    members = _by_path(layers)

    def init(key, x):
        params = {}
        for i, (path, member) in enumerate(members.items()):
            own = member.init(jax.random.fold_in(key, i), x)
            if own:
                params[path] = own
            # Shapes alone: the first batch is not sent through the network.
            x = jax.eval_shape(member.apply, own, x)
        return params

    def outputs(params, x, given):
        for path, member in members.items():
            x = member.apply(*arguments_of(path, params, x, given))
        return x

    def trace(params, x, given=None):
        inside = {}
        for path, member in members.items():
            x, below = member.trace(*arguments_of(path, params, x, given))
            inside |= nested(path, below)
        return x, inside

    def kernel(k):
        rules = [functools.partial(propagate, m, path=path) for path, m in members.items()]
        return through(rules, k)

    evaluate = evaluation_of(members, outputs, trace)
    return Model(init, evaluate, trace, kernel, name, _inverse_of(members))


@recipe
def parallel(*branches: Model, name: str = "parallel") -> Model:
    """Sum of branches `h(x) = h_1(x) + ... + h_B(x)`, each with its own weights.

    In the infinite-width limit the covariances of independent branches add, which needs every
    branch to end in a fresh Dense or Conv; at most one may be a shortcut that passes a Gaussian
    pre-activation through.

    Args:
        *branches: Models of the same output shape.
        name: Name in paths and messages.

    Raises:
        TypeError: If something that is not a `Model` is passed.
        ValueError: When evaluated, if the output shapes differ; in the limit, if branches are
            dependent.

    Example:
        >>> import lazynet as ln
        >>> model = parallel(ln.Dense(4), ln.Dense(4))
        >>> x = jnp.ones((2, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (2, 4)
    """
    _check_models(branches, "parallel")
    members = _by_path(branches)

    def init(key, x):
        params = {}
        for i, (path, branch) in enumerate(members.items()):
            own = branch.init(jax.random.fold_in(key, i), x)
            if own:
                params[path] = own
        return params

    def outputs(params, x, given):
        summands = {}
        for path, branch in members.items():
            summands[path] = branch.apply(*arguments_of(path, params, x, given))
        return _sum(summands)

    def trace(params, x, given=None):
        outputs = {}
        inside = {}
        for path, branch in members.items():
            outputs[path], below = branch.trace(*arguments_of(path, params, x, given))
            inside |= nested(path, below)
        return _sum(outputs), inside

    def kernel(k):
        # What came before is common to all: only weights inside a branch make it independent.
        start = k.replace(fresh=False)
        covariances = [propagate(branch, start, path) for path, branch in members.items()]
        return type(covariances[0]).sum_independent(covariances, list(members))

    return Model(init, evaluation_of(members, outputs, trace), trace, kernel, name)


@recipe
def residual(*layers: Model, shortcut: Model | None = None) -> Model:
    """Residual block `h(x) = s(x) + h_L o ... o h_1(x)`, with `s` the identity by default.

    Args:
        *layers: The body; it must end in a Dense or Conv for the infinite-width limit to exist.
        shortcut: Model of the other branch, for instance a strided 1x1 Conv.

    Example:
        >>> import lazynet as ln
        >>> block = residual(ln.Relu(), ln.Dense(3))
        >>> x = jnp.ones((2, 3))
        >>> block.apply(block.init(jax.random.key(0), x), x).shape
        (2, 3)
    """
    identity = layer("Identity", lambda params, x: x, kernel=lambda k: k)
    return parallel(identity if shortcut is None else shortcut, serial(*layers), name="residual")


@recipe
def repeat(block: Model, n: int) -> Model:
    """`n` copies of a block in a row, each with its own weights.

    Args:
        block: Model whose output can be its input.
        n: Number of copies, at least 0.

    Raises:
        ValueError: If `n` is negative.
        TypeError: If `n` is no integer.

    Example:
        >>> import lazynet as ln
        >>> model = repeat(serial(ln.Dense(3), ln.Relu()), 2)
        >>> sorted(model.init(jax.random.key(0), jnp.ones((1, 3))))
        ['0_serial', '1_serial']
    """
    _check_models((block,), "repeat")
    n = guards.count("repeat n", n, at_least=0)
    return serial(*[block] * n, name="repeat")


@recipe
def symmetrize(model: Model) -> Model:
    """Doubling trick `h(w1, w2; x) = (h(w1; x) - h(w2; x)) / sqrt 2`, with w1 = w2 at initialization.

    The output is exactly zero at initialization while the tangent kernel is that of `model`, to
    which layers before it add nothing; the second-order term of the expansion cancels too, which is
    why output gap and kernel change then decay like 1/alpha^2.

    Args:
        model: The model to double.

    Example:
        >>> import lazynet as ln
        >>> doubled = symmetrize(ln.serial(ln.Dense(8), ln.Erf(), ln.Dense(1)))
        >>> x = jnp.ones((2, 3))
        >>> doubled.apply(doubled.init(jax.random.key(0), x), x).tolist()
        [[0.0], [0.0]]

    Source: Chizat, Oyallon and Bach (2019), section 1.2 ("unbiased initialization" by doubling).
    """
    _check_models((model,), "symmetrize")

    def init(key, x):
        params = model.init(key, x)
        # A copy: training donates its state, and no buffer can be donated twice.
        return {"minus": params, "plus": jax.tree.map(jnp.copy, params)}

    def outputs(params, x, given):
        plus = model.apply(*arguments_of("plus", params, x, given))
        minus = model.apply(*arguments_of("minus", params, x, given))
        return (plus - minus) / math.sqrt(2.0)

    def trace(params, x, given=None):
        plus, inside_plus = model.trace(*arguments_of("plus", params, x, given))
        minus, inside_minus = model.trace(*arguments_of("minus", params, x, given))
        inside = nested("plus", inside_plus) | nested("minus", inside_minus)
        return (plus - minus) / math.sqrt(2.0), inside

    def kernel(k):
        # Weights before it move both halves alike, which cancels.
        own = propagate(model, k.without_ntk(), model.name)
        # (Theta + Theta) / 2 by the factor 1/sqrt 2; outputs cancel, and with them Sigma.
        return joined(own).without_nngp()

    evaluate = evaluation_of({"plus": model, "minus": model}, outputs, trace)
    return Model(init, evaluate, trace, kernel, f"symmetrize({model.name})")


@recipe
def freeze(model: Model, where: Where | None = None) -> Model:
    """The same function with weights that are not trained: `dh/dw = 0`, `Theta' = (prod of W_std^2 phi') Theta`.

    What came before a frozen layer is still trained through it. With all but the last layer frozen,
    the tangent kernel is the NNGP kernel (of the last layer's inputs); with the first k layers
    frozen, features are learned, to first order, in the later ones only.

    Args:
        model: A layer or a network.
        where: Which of its parameters are frozen, a function of their paths, or of path and leaf, or
            a tree of booleans. A part of a layer has no infinite-width rule; None freezes all.

    Example:
        >>> import lazynet as ln
        >>> model = serial(freeze(serial(ln.Dense(1), ln.Relu())), ln.Dense(1))
        >>> gram = ln.analytic_kernel(model, jnp.eye(2))
        >>> bool(jnp.array_equal(gram.ntk, gram.nngp))
        True

    Source: Arora et al. (2020), "Harnessing the power of infinitely wide deep nets on small-data
    tasks", section 3.
    """
    _check_models((model,), "freeze")

    def rule(k):
        # Layers after it are trained again: the flag goes back to that of the surroundings.
        return propagate(model, k.replace(trained=False), model.name).replace(trained=k.trained)

    def held(params):
        if where is None:
            return lax.stop_gradient(params)

        def leaf_held(leaf, is_frozen):
            return lax.stop_gradient(leaf) if is_frozen else leaf

        return jax.tree.map(leaf_held, params, selected(where, params))

    def outputs(params, x, given):
        return model.apply(held(params), x, *([given] if given else []))

    def trace(params, x, given=None):
        return model.trace(held(params), x, *([given] if given else []))

    # without the rows of its layers, by which kernels would differentiate what is frozen
    known = evaluation(model.apply)
    independent = known.independent if known else model.kernel is not None
    evaluate = Evaluation(outputs, trace, {}, independent, known is None or known.forward)
    rules = None if model.kernel is None or where is not None else rule
    return Model(model.init, evaluate, trace, rules, model.name, _without_gradient(model.inverse))


def propagate(member: Model, k: Any, path: str) -> Any:
    """Covariances after `member`; raises, naming the layer and the way out, if it has no infinite-width rule.

    Example:
        >>> import lazynet as ln
        >>> from lazynet.covariance.state import input_kernel
        >>> propagate(ln.Dense(1), input_kernel(jnp.eye(2), jnp.eye(2)), "0_Dense").nngp.shape
        (2, 2)
    """
    if member.kernel is None:
        raise ValueError(
            f"layer {path} ({member.name}) has no infinite-width limit: replace it (AvgPool instead of MaxPool) or "
            "use empirical_ntk at finite width, averaged over initializations by monte_carlo_kernel."
        )
    # Only invertible layers know pairs of halves; all others see the mean of both.
    return member.kernel(k if member.inverse is not None else joined(k))


def child_path(i: int, member: Model) -> str:
    """Key of member `i` in parameters and traces: its position and its name.

    Example:
        >>> import lazynet as ln
        >>> child_path(2, ln.Dense(10))
        '2_Dense'
    """
    return f"{i}_{member.name}"


def _by_path(layers: tuple[Model, ...]) -> dict[str, Model]:
    return {child_path(i, member): member for i, member in enumerate(layers)}


def arguments_of(path: str, params: Params, x: Any, given: Given | None) -> tuple:
    """Those of the member at a path: its weights, x, and what is given to its layers, if anything is.

    Example:
        >>> arguments_of("0_Dense", {"0_Dense": {"W": 2.0}}, 3.0, None)
        ({'W': 2.0}, 3.0)
    """
    own = params.get(path, {})
    below = {}
    for name, value in (given or {}).items():
        if name == path or name.startswith(f"{path}/"):
            below[name[len(path) + 1 :]] = value
    # A member may be a plain function of two arguments: the third is passed only if it is needed.
    return (own, x, below) if below else (own, x)


def evaluation_of(members: dict[str, Model], outputs: Callable, trace: Callable) -> Evaluation:
    """The evaluation of a model that is made of members, with what is known of theirs.

    Example:
        >>> evaluation_of({}, jnp.add, jnp.add).independent
        True
    """
    rows = {}
    independent = True
    forward = True
    for path, member in members.items():
        known = evaluation(member.apply)
        rows |= nested(path, known.rows if known else {})
        independent &= known.independent if known else member.kernel is not None
        forward &= known.forward if known else True
    return Evaluation(outputs, trace, rows, independent, forward)


def _inverse_of(members: dict[str, Model]) -> Inverse:
    """The inverse of a composition: that of each member, from the last to the first."""
    inverses: dict[str, Any] = {path: member.inverse for path, member in members.items()}
    lacking = []
    for path, inverse in inverses.items():
        if inverse is None or inverse.missing:
            lacking.append("/".join(filter(None, (path, getattr(inverse, "missing", "")))))

    def undo(params, y):
        for path, inverse in reversed(inverses.items()):
            y = inverse(params.get(path, {}), y)
        return y

    def pullback(params, y, cotangent):
        gradients = {}
        for path, inverse in reversed(inverses.items()):
            own = params.get(path, {})
            # activations come back as the gradient passes, not all of them ahead of it: a dependence
            # that XLA keeps on every device, where a CPU drops optimization barriers
            y = jnp.where(jnp.isnan(cotangent), jnp.nan, y)
            y, gradients[path], cotangent = inverse.pullback(own, y, cotangent)
        return y, {path: gradients[path] for path in params}, cotangent

    return Inverse(undo, pullback, lacking[-1] if lacking else "")


def _without_gradient(inverse: Any) -> Inverse | None:
    """The inverse of a model whose weights are not trained."""
    if inverse is None:
        return None

    def pullback(params, y, cotangent):
        x, gradient, cotangent = inverse.pullback(params, y, cotangent)
        # Zeros in the tree of the parameters: a custom backward pass has to return all of it.
        return x, jax.tree.map(jnp.zeros_like, gradient), cotangent

    return Inverse(inverse.undo, pullback, inverse.missing)


def nested(path: str, below: dict) -> dict:
    """Entries of a member under its path.

    Example:
        >>> nested("0_serial", {"1_Relu": 3, "": 4})
        {'0_serial/1_Relu': 3, '0_serial': 4}
    """
    return {"/".join(filter(None, (path, sub))): entry for sub, entry in below.items()}


def _sum(outputs: dict[str, Array]) -> Array:
    shapes = {path: value.shape for path, value in outputs.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(
            f"parallel adds its branches, but their output shapes differ: {shapes}; "
            "give each branch the same number of features (and strides)."
        )
    return functools.reduce(jnp.add, outputs.values())


def _check_models(members: tuple, where: str) -> None:
    if where == "parallel" and not members:
        raise TypeError("parallel got no branches, expected at least one model.")
    for i, member in enumerate(members):
        if not isinstance(member, Model):
            raise TypeError(
                f"{where} got {member!r} at position {i}, expected a Model: "
                "call the layer's constructor, for instance Relu() and not Relu."
            )
