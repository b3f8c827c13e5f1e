"""Functions of trees as functions of one array: several inputs, a choice of outputs, parameters that are not all real.

What takes derivatives works with a function of real weights and examples that returns one array
`[n, ...]`. Any pure function becomes one by the records of this module; one that is one already
keeps its program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass, register_pytree_with_keys_class

from lazynet import trees
from lazynet.parameters import Where, selected
from lazynet.trees import as_partial
from lazynet.typing import Apply, Array, Params

__all__ = [
    "Complex",
    "Inputs",
    "OfWeights",
    "OneArray",
    "flat",
    "one_array",
    "real_weights",
    "select",
    "with_constants",
]

Output = Hashable | Callable[[Any], Any]
"""A key of the outputs, or a function of them; None for all."""


@register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, init=False, eq=False)
class Inputs:
    """Several inputs of one call `apply(params, *inputs)`, wherever a function takes examples x.

    The examples are the common first axis of all arrays of all inputs. A tuple or a dictionary
    alone is a single input. What is the same for all examples is bound to the function:
    `jax.tree_util.Partial(apply, train=False)`.

    Attributes:
        args: The inputs.

    Example:
        >>> import lazynet as ln
        >>> product = lambda w, x, z: (x * z) @ w
        >>> x = Inputs(jnp.eye(2), 2 * jnp.ones((2, 2)))
        >>> ln.empirical_ntk(product, jnp.ones((2, 1)), x, outputs="trace").tolist()
        [[4.0, 0.0], [0.0, 4.0]]
    """

    args: tuple[Any, ...]

    def __init__(self, *args: Any):
        object.__setattr__(self, "args", args)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], None]:
        """The inputs by their positions."""
        return tuple((jax.tree_util.SequenceKey(i), a) for i, a in enumerate(self.args)), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Inputs:
        """The record of these inputs."""
        return cls(*children)


class Complex(NamedTuple):
    """A complex parameter as two real ones: a real function of it has a derivative by each.

    Example:
        >>> Complex(jnp.ones(2), jnp.zeros(2)).imag.tolist()
        [0.0, 0.0]
    """

    real: Array
    imag: Array


def select(apply: Apply, output: Output = None) -> OneArray:
    """The function of chosen outputs, `h(w, x)[output]`, as one array `[n, ...]`.

    Functions that differentiate take those that return one array. One array passes as it is; of a
    tree all floating-point arrays are flattened and joined, `[n, k]`, in the order of the tree.
    Complex ones become real parts and then imaginary parts.

    Args:
        apply: Function `apply(params, *inputs, **kwargs)` with outputs in a tree.
        output: Key of the output, or a function of all outputs, for instance `lambda h: h[:, -1]`
            for the last token; None for all.

    Raises:
        KeyError: When evaluated, if there is no such output.
        ValueError: When evaluated, if an output has no axis of examples.

    Example:
        >>> net = lambda w, x: {"logits": x @ w, "inside": x}
        >>> select(net, "logits")(jnp.ones((2, 1)), jnp.eye(2)).tolist()
        [[1.0], [1.0]]
        >>> select(net)(jnp.ones((2, 1)), jnp.eye(2)).shape
        (2, 3)
    """
    return OneArray(as_partial(apply), output, False)


def flat(apply: Apply, x: Any, output: Output = None) -> OneArray:
    """The function of examples x, which may be `Inputs`, that returns one array of the chosen outputs.

    Example:
        >>> flat(lambda w, x, z: (x @ w, z), Inputs(jnp.eye(2), jnp.eye(2)), 0).several
        True
    """
    several = isinstance(x, Inputs)
    # Wrapped once more it would be another function, with programs of its own.
    if isinstance(apply, OneArray) and output is None:
        return dataclasses.replace(apply, several=several or apply.several)
    return OneArray(as_partial(apply), output, several)


@partial(register_dataclass, data_fields=("apply",), meta_fields=("output", "several"))
@dataclasses.dataclass(frozen=True)
class OneArray:
    """What `select` and `flat` return.

    Attributes:
        apply: The function.
        output: Which outputs.
        several: Whether it takes `Inputs`.

    Example:
        >>> select(lambda w, x: x @ w, None).output is None
        True
    """

    apply: Apply
    output: Any
    several: bool

    def __call__(self, params: Params, *inputs: Any, **kwargs: Any) -> Array:
        """The chosen outputs as one array."""
        # What differentiates knows one argument x, which may hold several inputs.
        first = inputs[0] if len(inputs) == 1 else None
        args = first.args if isinstance(first, Inputs) else inputs
        outputs = self.apply(params, *args, **kwargs)
        if self.output is not None:
            outputs = self.output(outputs) if callable(self.output) else outputs[self.output]
        return one_array(outputs, args)


def one_array(outputs: Any, inputs: Any) -> Any:
    """Outputs as one array: itself, or the floating-point leaves of a tree, flattened and joined, `[n, k]`.

    Raises:
        ValueError: A leaf has no axis of examples, or there is no leaf to differentiate.

    Example:
        >>> one_array({"a": jnp.ones((2, 3)), "b": jnp.ones(2)}, jnp.eye(2)).shape
        (2, 4)
    """
    if hasattr(outputs, "dtype"):
        is_complex = jnp.issubdtype(outputs.dtype, jnp.complexfloating)
        return jnp.concatenate(_columns(outputs), axis=1) if is_complex else outputs
    n = trees.length(inputs)
    columns = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        if not trees.is_weight(leaf):
            continue
        if jnp.shape(leaf)[:1] != (n,):
            raise ValueError(
                f"apply returned outputs{jax.tree_util.keystr(path)} of shape {jnp.shape(leaf)} for {n} examples, "
                f"expected [{n}, ...]: choose among the outputs by select(apply, key)."
            )
        columns += _columns(leaf)
    if not columns:
        raise ValueError(
            f"apply returned {jax.tree.structure(outputs)}, expected floating-point outputs [{n}, ...] among them."
        )
    dtype = jnp.result_type(*(column.dtype for column in columns))
    return jnp.concatenate([column.astype(dtype) for column in columns], axis=1)


def real_weights(
    function: Apply | None, params: Params, where: Where | None = None
) -> tuple[Any, Params]:
    """The function of its real weights, and these: complex ones are pairs, and constants belong to the function.

    Constants are whole numbers, booleans, keys and what `where` leaves out; None stands in their
    places. A function all of whose parameters are real comes back as it is. Without a function, what
    comes back in its place keeps the constants for `with_constants`.

    Example:
        >>> function, weights = real_weights(lambda p, x: p["w"] * x, {"w": jnp.ones(1), "n": jnp.array(3)})
        >>> weights["n"] is None, function(weights, 2.0).tolist()
        (True, [2.0])
    """
    chosen = selected(where, params)
    if all(jax.tree.leaves(chosen)) and not any(map(trees.is_complex, jax.tree.leaves(params))):
        return function, params

    def weight(leaf, is_chosen):
        if not is_chosen:
            return None
        return Complex(jnp.real(leaf), jnp.imag(leaf)) if trees.is_complex(leaf) else leaf

    constants = jax.tree.map(lambda leaf, is_chosen: None if is_chosen else leaf, params, chosen)
    return OfWeights(function, constants), jax.tree.map(weight, params, chosen)


def with_constants(weights: Params, function: Apply | None) -> Params:
    """The parameters of which these are the real weights, `function` being what `real_weights` returned.

    Example:
        >>> function, weights = real_weights(lambda p, x: x, {"w": jnp.ones(1), "n": jnp.array(3)})
        >>> int(with_constants(weights, function)["n"])
        3
    """
    return _joined(weights, function.constants) if isinstance(function, OfWeights) else weights


@partial(register_dataclass, data_fields=("apply", "constants"), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class OfWeights:
    """A function of the real weights among its parameters; see `real_weights`.

    Attributes:
        apply: The function of all parameters.
        constants: These, with None in the places of weights.

    Example:
        >>> OfWeights(lambda p, x: p["n"] * x, {"n": 3})({"n": None}, 2)
        6
    """

    apply: Any
    constants: Params = dataclasses.field(repr=False)

    def __call__(self, weights: Params, *inputs: Any, **kwargs: Any) -> Any:
        """The value of the function."""
        return self.apply(_joined(weights, self.constants), *inputs, **kwargs)


def _joined(weights: Params, constants: Params) -> Params:
    def joined(weight, constant):
        if isinstance(weight, Complex):
            return jax.lax.complex(weight.real, weight.imag)
        return constant if weight is None else weight

    # None holds a place in either tree, and would be an empty tree otherwise.
    return jax.tree.map(
        joined, weights, constants, is_leaf=lambda node: node is None or isinstance(node, Complex)
    )


def _columns(leaf: Any) -> list[Array]:
    """A leaf `[n, ...]` as `[n, k]`; of a complex one both parts."""
    leaf = jnp.asarray(leaf)
    rows = leaf.reshape(len(leaf), -1)
    return [jnp.real(rows), jnp.imag(rows)] if trees.is_complex(leaf) else [rows]
