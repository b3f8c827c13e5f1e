"""Per-example Jacobians of any function: the general way to the features of an empirical kernel."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from lazynet import trees
from lazynet.kernels.empirical.arguments import Examples, one_example
from lazynet.parameters import Where, selected
from lazynet.programs import PerFunction
from lazynet.typing import Apply, Array, Params

Outputs = Literal["full", "trace", "sum", "diagonal"]
Names = tuple[str, ...]


class Jacobian(NamedTuple):
    """Derivatives `[n, k, p]` of k outputs by the p entries of one parameter."""

    values: Array


def parameter_names(params: Params) -> list[str]:
    """Paths of all leaves, such as `"0_Dense/W"`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def chosen_names(params: Params, where: Where | None) -> tuple[str, ...]:
    """Paths of the leaves to differentiate; integer leaves (counters, indices) never are."""
    if not any(map(trees.is_weight, jax.tree.leaves(params))):
        raise ValueError(
            f"params has no floating-point arrays ({parameter_names(params)}), expected weights: integers are "
            "constants."
        )
    chosen = jax.tree.leaves(selected(where, params))
    return tuple(
        name for name, is_chosen in zip(parameter_names(params), chosen, strict=True) if is_chosen
    )


def jacobian_features(
    function: Apply, params: Params, x: Examples, names: Names, outputs: Outputs
) -> dict[str, Jacobian]:
    """Jacobians of every example by the named leaves.

    A vmapped weight gradient of a convolution is a grouped convolution, which is an order of
    magnitude slower on a CPU than a loop over examples.
    """
    if loops(function, params, x):
        leaves, treedef = jax.tree.flatten(x)
        jacobians = []
        for of_one in zip(*leaves, strict=True):
            example = jax.tree.unflatten(treedef, of_one)
            jacobians.append(example_jacobian(function, params, example, names, outputs))
        return stacked(jacobians)
    return vmapped_jacobian(function, params, x, names, outputs)


def loops(function: Apply, params: Params, x: Examples) -> bool:
    """Whether the Jacobians of examples are computed one by one."""
    if jax.default_backend() != "cpu":
        return False
    return "conv_general_dilated" in str(call.trace(function, params, one_example(x)).jaxpr)


@partial(PerFunction, static_argnames=("names", "outputs"))
def example_jacobian(
    function: Apply, params: Params, x: Examples, names: Names, outputs: Outputs
) -> dict[str, Jacobian]:
    """Jacobians `[1, k, p]` at one example (k = 1 for `outputs="sum"`)."""
    leaves, treedef = jax.tree.flatten(params)
    named = dict(zip(parameter_names(params), leaves, strict=True))

    def value(variable):
        # A dictionary keeps the places of keys that are overwritten: the order is that of the
        # leaves.
        merged = jax.tree.unflatten(treedef, list({**named, **variable}.values()))
        return reduced(function(merged, jax.tree.map(lambda leaf: leaf[None], x)), outputs)[0]

    by_name = jax.jacrev(value)({name: named[name] for name in names})
    return {name: Jacobian(leaf.reshape(1, len(leaf), -1)) for name, leaf in by_name.items()}


@partial(PerFunction, static_argnames=("names", "outputs"))
def vmapped_jacobian(
    function: Apply, params: Params, x: Examples, names: Names, outputs: Outputs
) -> dict[str, Jacobian]:
    """Jacobians `[n, k, p]` of all examples at once."""
    every = jax.vmap(lambda example: example_jacobian(function, params, example, names, outputs))(x)
    # Every example is a batch of one, `[n, 1, k, p]`.
    return {name: Jacobian(own.values[:, 0]) for name, own in every.items()}


@jax.jit
def stacked(examples: list[dict[str, Jacobian]]) -> dict[str, Jacobian]:
    """One dictionary for all examples."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *examples)


def reduced(h: Array, outputs: Outputs) -> Array:
    """Outputs `[n, k]`, or their sum over sqrt(k), `[n, 1]`."""
    h = h.reshape(len(h), -1)
    return jnp.sum(h, axis=1, keepdims=True) / math.sqrt(h.shape[1]) if outputs == "sum" else h


@PerFunction
def call(function: Apply, params: Params, x: Any) -> Any:
    """The function itself, compiled."""
    return function(params, x)
