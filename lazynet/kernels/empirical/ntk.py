"""The empirical neural tangent kernel, tile by tile."""

from __future__ import annotations

import os
from typing import Any

import jax
from jaxtyping import Float, Int

from lazynet import guards
from lazynet.kernels.empirical.arguments import (
    Examples,
    canonical,
    check_no_statistics,
    check_numbers,
    count_examples,
    is_chosen,
)
from lazynet.kernels.empirical.centered import center_jacobian
from lazynet.kernels.empirical.contraction import MIRROR
from lazynet.kernels.empirical.entries import chosen_entries
from lazynet.kernels.empirical.independence import refuse_mixing
from lazynet.kernels.empirical.jacobians import Outputs, chosen_names, parameter_names
from lazynet.kernels.empirical.memory import MEMORY, plan
from lazynet.kernels.empirical.rows import in_memory, in_store
from lazynet.parameters import Where
from lazynet.signatures import Output, flat
from lazynet.trees import is_traced
from lazynet.typing import Apply, ArrayLike, Params


def empirical_ntk(
    apply: Apply,
    params: Params,
    x1: Examples,
    x2: Examples | None = None,
    *,
    outputs: Outputs | Int[ArrayLike, "n ..."] | tuple[Any, Any] = "full",
    output: Output = None,
    centered: bool = False,
    weights: Float[ArrayLike, " n1"] | None = None,
    where: Where | None = None,
    tile: int | None = None,
    memory: int | float = MEMORY,
    store: str | os.PathLike | None = None,
    progress: bool = False,
) -> Float[ArrayLike, "n1 n2 *k"]:
    """Empirical neural tangent kernel `Theta[i, j, a, b] = <dh_a(x1_i)/dw, dh_b(x2_j)/dw>`.

    It governs gradient descent on the linearized network: with the loss 1/(2n) sum |h - y|^2, its
    outputs follow `dh/dt = -Theta (h - y) / n`.

    The apply of a `Model` knows its Dense and Conv layers, whose Jacobians are then never formed
    where the products of layer inputs and of cotangents are cheaper. Any other function, also a
    lazy or linearized one, goes through per-example Jacobians.

    Args:
        apply: Pure function `apply(params, x)` with outputs `[n, *outputs]`, flattened to k of
            them, or a tree of such, joined. Complex outputs are their real and then their imaginary
            parts.
        params: Where to take the derivative. Integers, booleans and keys are constants; a complex
            leaf counts as two real ones.
        x1: Examples of the rows, `[n1, *inputs]`, or a dictionary or tuple of arrays with a common
            first axis; `Inputs(a, b)` for `apply(params, a, b)`.
        x2: Examples of the columns; None for those of the rows, which makes the result exactly
            symmetric and computes its upper triangle only.
        outputs: `"full"` gives `[n1, n2, k, k]`; `"trace"` the mean `1/k sum_a Theta[i, j, a, a]`
            and `"sum"` the kernel of `1/sqrt(k) sum_a h_a`, k times cheaper, both `[n1, n2]`;
            `"diagonal"` gives `Theta[i, j, a, a]`, `[n1, n2, k]`. Whole numbers choose entries along
            the last axis, from 0, as labels of a classifier `[n]` or of tokens `[n, t]`; a pair of
            them for x1 and x2. Their kernel is `"full"`.
        output: Which of the outputs of apply, by `select`.
        centered: Whether to take derivatives less their mean over x1, `center_jacobian`, which also
            serves rectangular kernels.
        weights: Those of the mean, which sum to one; None for 1/n1 each.
        where: Which parameters to differentiate, a function of their paths such as `"0_Dense/W"`, or
            of path and leaf, or a tree of booleans; None for all. The kernels of disjoint sets of
            parameters add up.
        tile: Number of examples whose Jacobians are held at a time, on each side; None for as many
            as fit the memory. A Jacobian is computed once per row of tiles.
        memory: Bytes that may be held beside parameters, inputs and result, by the compiler's
            account of the programs. Where one example's Jacobian is too much, parameters are taken
            in groups, each in a pass of its own.
        store: Folder for the kernel as a memory-mapped `ntk.npy`, where a killed run continues.
            Rows of tiles are spread over the devices of a process, and over processes that share
            the folder (`jax.distributed`).
        progress: Whether to show a progress bar with the time left.

    Returns:
        The kernel, on the host with a store, a progress bar, or several tiles on several devices.

    Raises:
        TypeError: If inputs or parameters are no arrays of numbers, or an option has the wrong
            type.
        ValueError: If there are no examples or they are not finite, both sets differ in shape,
            `outputs`, `tile` or `memory` is out of range, `where` selects nothing, `apply` mixes
            the examples of a batch, `params` holds running averages of flax, one example and one
            parameter do not fit the memory, or the store belongs to another kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
        >>> linear = lambda params, x: x @ params["w"]
        >>> empirical_ntk(linear, {"w": jnp.ones((2, 1))}, x, outputs="trace").tolist()
        [[1.0, 1.0], [1.0, 2.0]]

    Source: Jacot, Gabriel and Hongler (2018), section 4, for the kernel.
    """
    function = flat(apply, x1, output)
    # Before entries are chosen: x1 holds their numbers afterwards, and the mean is of all outputs.
    if guards.flag("centered", centered):
        function = _centered(function, params, x1, x2, weights)
    elif weights is not None:
        raise ValueError(
            "empirical_ntk got weights, expected centered=True, whose mean they weight."
        )
    if isinstance(outputs, tuple) or hasattr(outputs, "dtype"):
        function, x1, x2 = chosen_entries(function, params, x1, x2, outputs)
        outputs = "full"
    if not isinstance(outputs, str) or outputs not in MIRROR:
        raise ValueError(f"outputs is {outputs!r}, expected one of {sorted(MIRROR)}.")
    tile = None if tile is None else guards.count("tile", tile)
    memory = int(guards.number("memory", memory, at_least=1, fix="it is a number of bytes"))
    check_numbers(params)
    # By the paths that the caller knows: below, a complex leaf is two.
    chosen_paths = chosen_names(params, where)
    function, params, x1, x2 = canonical(function, params, x1, x2)
    names = tuple(name for name in parameter_names(params) if is_chosen(name, chosen_paths))
    check_no_statistics(params, names)
    refuse_mixing(function, params, x1, alone=True)
    largest = x1 if x2 is None or count_examples(x1) >= count_examples(x2) else x2
    chosen = plan(function, params, largest, names, outputs, memory, tile)
    traced = is_traced((function, params, x1, x2))
    if store is not None and traced:
        raise ValueError(
            "empirical_ntk got a store inside a jax transformation: call it outside of jit and vmap."
        )
    # Rows of tiles are dealt to devices by the code of stores, also where there is no folder.
    several = len(jax.local_devices()) > 1 and count_examples(x1) > chosen.tile and not traced
    if store is None and not progress and not several:
        return in_memory(function, params, x1, x2, chosen, outputs)
    return in_store(function, params, x1, x2, chosen, outputs, memory, store, progress)


def _centered(function: Apply, params: Params, x1: Examples, x2: Examples | None, weights: Any):
    if x2 is not None:
        raise ValueError(
            "empirical_ntk got centered=True and x2, expected x1 alone, over which the mean is taken: pass "
            "center_jacobian(apply, params, x) as apply, with the samples x of the mean."
        )
    return center_jacobian(function, params, x1, weights)
