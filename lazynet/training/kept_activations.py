"""The linearized model on examples that it sees again and again: their activations at w0, computed once.

A step of the linearized model costs five products of matrices for the three of the network: two
forward for the activations at w0 and the tangent, and three backward as any step. The activations
are the same at every step, as long as the examples are, which they are not under augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from lazynet import guards, trees
from lazynet.kernels.empirical.independence import check_independent
from lazynet.lazy import LazyFunction
from lazynet.programs import PerFunction
from lazynet.typing import Apply

__all__ = ["KeptActivations", "keep_activations"]

CALLS = ("jit", "pjit", "checkpoint", "custom_jvp_call", "custom_vjp_call")
"""Operations whose arguments and results are those of the program inside."""


class KeptActivations(NamedTuple):
    """The linearized model as a function of what is kept of the examples, and what is kept.

    Attributes:
        apply: `apply(u, x)` with rows of `x` below is the linearized model on these examples.
        x: For each example what the linearized model needs of it, a tuple of arrays `[n, ...]`.

    Example:
        >>> from lazynet import lazy
        >>> f = lazy(lambda w, x: jnp.tanh(x @ w), jnp.ones((1, 1)), jnp.inf)
        >>> kept = keep_activations(f, jnp.zeros((3, 1)))
        >>> {len(leaf) for leaf in kept.x}
        {3}
    """

    apply: Apply
    x: tuple[Any, ...]


def keep_activations(function: LazyFunction, x: Any, *, chunk: int = 256) -> KeptActivations:
    """The linearized model `f(u) = Dh(w0) u` on the examples of x, with all that depends on w0 and x computed once.

    What one example needs is `jax.linearize`'s: inputs of the layers and derivatives of the
    activations at w0. A training step then costs what one of the network costs (`docs/performance.md`),
    not 1.4 to 1.5 times as much, for memory: 20 kB an example for an MLP of two layers of 512, 0.2 MB
    for VGG-11 with an eighth of its channels. Train on `Data(kept.x, y)` by the rules of any other
    data, without augmentation; `function` evaluates the displacement that was found.

    Args:
        function: From `lazy` at alpha = inf, or `tangent_at(...).function`.
        x: Inputs, an array or a tree of arrays; examples do not mix.
        chunk: Examples that go through the network at a time.

    Returns:
        The function of what is kept, and that.

    Raises:
        ValueError: If alpha is finite, so that activations move with the weights; if outputs are
            whole numbers; if the outputs of an example depend on the others.
        TypeError: If `function` is not what `lazy` returns.

    Example:
        >>> from lazynet import Data, lazy, mse, objective, sgd, train
        >>> f = lazy(lambda w, x: jnp.tanh(x @ w), jnp.ones((2, 1)), jnp.inf)
        >>> data = Data(jnp.eye(2), jnp.ones((2, 1)))
        >>> kept = keep_activations(f, data.x)
        >>> settings = dict(key=jax.random.key(0), save_at=[99], learning_rate=1.0)
        >>> goal = objective(kept.apply, mse)
        >>> curve = train(goal, f.start(), data._replace(x=kept.x), sgd(), **settings)
        >>> bool(curve.metrics["train_loss"][-1] < 1e-6), f(curve.params, data.x).round(2).tolist()
        (True, [[1.0], [1.0]])
    """
    chunk = guards.count("chunk", chunk, at_least=1)
    guards.inputs("x", x)
    guards.finite("x", x)
    if trees.length(x) == 0:
        raise ValueError("x got no examples, expected at least one.")
    _check(function, x)
    check_independent(function.apply, function.params0, x)
    structure, own = _form(function, x)
    leaves = _at_all_examples(function, x, own, chunk)
    shared = [leaf for leaf, is_own in zip(leaves, own, strict=True) if not is_own]
    rows = tuple(leaf for leaf, is_own in zip(leaves, own, strict=True) if is_own)
    if not rows:
        raise ValueError("function gave outputs that do not depend on x: nothing is to be kept.")
    return KeptActivations(_Affine(shared, structure, own), rows)


@partial(register_dataclass, data_fields=("shared",), meta_fields=("structure", "own"))
@dataclass(frozen=True)
class _Affine:
    """`u -> f(0) + Df(0) u` of each example, from the arrays that all share and those of its own."""

    shared: list[Any]
    structure: Any
    own: tuple[bool, ...]

    def __call__(self, u, x):
        shared, rows = iter(self.shared), iter(x)
        # Back in the order of `linearize`, which its structure needs.
        leaves = [next(rows) if is_own else next(shared) for is_own in self.own]
        weights, _ = trees.differentiable(u)

        def outputs(leaves):
            start, derivative = jax.tree.unflatten(self.structure, leaves)
            return jax.tree.map(jnp.add, start, derivative(weights))

        return jax.vmap(outputs, ([0 if is_own else None for is_own in self.own],))(leaves)


def _at_start(function, example):
    """The value at u = 0 for one example, and the linear map from u to the change of the outputs."""
    weights, rebuilt = trees.differentiable(function.start())

    def outputs(weights):
        # A batch of one: examples do not mix, and all that is kept belongs to this one.
        one = function(rebuilt(weights), jax.tree.map(lambda leaf: leaf[None], example))
        return jax.tree.map(lambda leaf: leaf[0], one)

    # The linear map is a tree, whose leaves are what it keeps of the forward pass.
    return jax.linearize(outputs, weights)


def _form(function, x):
    """The structure of `_at_start`, and which of its arrays depend on the example, in their order."""
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    # Shapes alone: nothing is computed.
    program, shapes = jax.make_jaxpr(_at_start, return_shape=True)(function, example)
    of_function = [False] * len(jax.tree.leaves(function))
    of_example = [True] * len(jax.tree.leaves(example))
    own = _depending(program.jaxpr, of_function + of_example)
    return jax.tree.structure(shapes), tuple(own)


def _depending(jaxpr, of_example: list[bool]) -> list[bool]:
    """Which results of a program depend on the arguments that are marked.

    `jax.vmap` would copy what does not, such as the weights, for each example.
    """
    known = dict(zip(jaxpr.invars, of_example, strict=True))
    for equation in jaxpr.eqns:
        # Numbers written into the program (literals) and its constants depend on nothing.
        marked = [known.get(v, False) for v in equation.invars if not hasattr(v, "val")]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        # Other operations, and calls with literals, are taken to mix all their arguments.
        if equation.primitive.name in CALLS and len(marked) == len(equation.invars):
            results = _depending(getattr(inner, "jaxpr", inner), marked)
        else:
            results = [any(marked)] * len(equation.outvars)
        known |= dict(zip(equation.outvars, results, strict=True))
    return [not hasattr(v, "val") and known.get(v, False) for v in jaxpr.outvars]


@partial(PerFunction, static_argnums=(2,))
def _at_examples(function, x, own):
    """The arrays of `_at_start` for some examples: `[n, ...]` those that depend on them."""
    # None is for what is the same for all examples, which vmap checks.
    axes = [0 if is_own else None for is_own in own]
    return jax.vmap(lambda one: jax.tree.leaves(_at_start(function, one)), out_axes=axes)(x)


def _at_all_examples(function, x, own, chunk):
    """The same for all examples, a chunk at a time, so that no more is held than what is kept."""
    n = trees.length(x)
    chunk = min(chunk, n)
    arrays: list[np.ndarray] = []
    for start in range(0, n, chunk):
        # the last chunk is as long as the others, for the same program: it begins earlier
        first = min(start, n - chunk)
        part = jax.tree.map(lambda leaf, first=first: leaf[first : first + chunk], x)
        leaves = _at_examples(function, part, own)
        if not arrays:
            arrays = [
                np.empty((n, *leaf.shape[1:]), leaf.dtype) if is_own else leaf
                for leaf, is_own in zip(leaves, own, strict=True)
            ]
        for array, leaf, is_own in zip(arrays, leaves, own, strict=True):
            if is_own:
                array[first : first + chunk] = leaf
    return [jnp.asarray(array) for array in arrays]


def _check(function, x) -> None:
    if not isinstance(function, LazyFunction):
        raise TypeError(
            f"function got {type(function).__name__}, expected what `lazy` returns at alpha = inf."
        )
    if not function.is_tangent:
        raise ValueError(
            "function got a finite alpha, expected alpha = inf: below it activations move with the weights."
        )
    for leaf in jax.tree.leaves(jax.eval_shape(function, function.start(), x)):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"function gave outputs of {leaf.dtype}, expected floating-point numbers: choose them by "
                "`select(apply, output)`."
            )
