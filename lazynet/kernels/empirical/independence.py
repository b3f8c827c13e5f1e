"""Refusal of functions that mix the examples of a batch, of which per-example derivatives would be wrong.

Some examples are replaced by others and the rest is looked at: its outputs and their derivative
along a direction of the parameters must stay the same. The derivative sees what outputs hide, as
those of a lazy function at u = 0 or of a head of zeros. Everything is finite, because compilers
drop NaN, and so do casts to integers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import trees
from lazynet.kernels.empirical.arguments import (
    Examples,
    canonical,
    check_outputs,
    count_examples,
)
from lazynet.kernels.empirical.layerwise import known_layers
from lazynet.programs import PerFunction, first_line, refuse_state, shape_of
from lazynet.signatures import flat
from lazynet.trees import is_traced
from lazynet.typing import Apply, Array, Params

EXAMPLES = 4
"""Examples of the probe."""

CHANGED = ((0, 3), (1, 2), (0, 1), (2, 3))
"""Examples replaced together. For any two one of the sets has the first and not the second, so that neighbours, halves
and mirror images of a batch are told apart; half of them, so that a mean over the batch moves as
much as one example.
"""

ADVICE = (
    "Use the running averages of BatchNorm (use_running_average=True in linen, module.eval() in nnx), or GroupNorm or "
    "LayerNorm; subtract outputs at initialization (lazynet.center) instead of the mean over a batch. "
    "ntk_vector_product takes such functions."
)


def check_independent(apply: Apply, params: Params, x: Examples) -> None:
    """Refuses a function whose outputs or derivatives at one example depend on the other examples of the batch.

    Whatever takes derivatives example by example, or speaks of more examples than it looks at,
    relies on it. The check costs five passes over four examples, outputs and one derivative, by one
    compiled program for each function. Models of which every layer is known to treat examples one
    by one pass without, and so do traced values.

    Args:
        apply: `apply(params, x)`.
        params: Parameters, integers and booleans among them as constants.
        x: Examples of any dtype, or a dictionary or tuple of arrays with a common first axis.

    Raises:
        ValueError: It mixes the examples, does not return one array with as many rows, or keeps a
            state of its own.

    Example:
        >>> check_independent(lambda w, x: x @ w, jnp.ones((3, 1)), jnp.ones((8, 3)))
        >>> check_independent(lambda w, x: x @ w - jnp.mean(x @ w), jnp.ones((3, 1)), jnp.ones((8, 3)))
        Traceback (most recent call last):
        ...
        ValueError: apply mixes the examples of a batch: its outputs at one example depend on another one, expected ...
    """
    refuse_mixing(*canonical(flat(apply, x), params, x, name="x")[:3])


def refuse_mixing(function: Apply, params: Params, x: Examples, alone: bool = False) -> None:
    """The check of arguments that are `canonical`; `alone` if the function is evaluated at single examples."""
    known = known_layers(function)
    if (known and known.independent) or is_traced((function, params, x)):
        return
    # Evaluated also inside an outer jit; others in the place of examples may have no finite
    # outputs.
    with jax.ensure_compile_time_eval(), jax.debug_nans(False), jax.debug_infs(False):
        try:
            mixed = _mixed(function, params, _sample(x))
        except Exception as error:  # a function of one size of batches, a graph for instance, or one that is broken
            mixed = _mixed_as_it_is(function, params, x, error)
            if alone and not mixed:
                raise ValueError(
                    f"apply failed at {EXAMPLES} of the {count_examples(x)} examples ({first_line(error)}), expected a "
                    "function of any number of examples, whose derivatives are taken one example at a time: "
                    "ntk_vector_product takes functions of one size of batches."
                ) from error
        placed = alone and not mixed and _placed(function, params, _sample(x))
    if placed:
        raise ValueError(
            "apply has other derivatives at an example that is alone than in a batch: they depend on the number or the "
            "place of the examples, expected outputs [n, ...] of which row i depends on x[i] alone: divide by len(x) "
            "in the loss, and pass what belongs to an example with it, as Inputs(x, weights)."
        )
    if mixed:
        raise ValueError(
            f"apply mixes the examples of a batch: its {mixed} at one example depend on another one, expected outputs "
            f"[n, ...] of which row i depends on x[i] alone. {ADVICE}"
        )


def _placed(function: Apply, params: Params, x: Examples) -> bool:
    """Whether the last example has other derivatives by itself: its place is the first there, their number one."""
    last = jax.tree.map(lambda leaf: leaf[-1:], x)
    is_last = np.arange(EXAMPLES) == EXAMPLES - 1
    try:
        direction = _direction(trees.differentiable(params)[0])
        evaluate = functools.partial(_tangents, function, direction=direction)
        by_itself = evaluate(params, last, is_last[-1:])["derivatives"]
        rows = slice(-1, None)
    except TypeError as error:  # a function with a backward rule of its own
        if "custom_vjp" not in str(error):
            raise
        direction = _direction([shape_of(function, params, x)])
        evaluate = functools.partial(_gradients, function, direction=direction)
        alone = functools.partial(_gradients, function, direction=[direction[0][-1:]])
        by_itself = alone(params, last, is_last[-1:])["derivatives"]
        rows = slice(None)
    in_batch = evaluate(params, x, is_last)["derivatives"]
    rounded = evaluate(_shaken(params), x, is_last)["derivatives"]
    for batch, single, again in zip(in_batch, by_itself, rounded, strict=True):
        if _differ(batch[rows], single, again[rows], slice(None), same_size=False):
            return True
    return False


def _mixed_as_it_is(function: Apply, params: Params, x: Examples, error: Exception) -> str:
    """The same with all examples, for a function that fails at a few of them."""
    try:
        return _mixed(function, params, jax.tree.map(np.asarray, x))
    except Exception as same:
        refuse_state(same)
        raise same from None


def _mixed(function: Apply, params: Params, x: Examples) -> str:
    """What depends on other examples, `"outputs"`, `"derivatives"` or nothing."""
    # Four groups where all examples are needed.
    group = np.arange(count_examples(x)) % EXAMPLES
    forward = True
    direction = _direction(trees.differentiable(params)[0])
    evaluate = functools.partial(_tangents, function, direction=direction)
    try:
        before = evaluate(params, x, group >= 0)
    except TypeError as error:  # a function with a backward rule of its own
        if "custom_vjp" not in str(error):
            raise
        forward = False
        direction = _direction([shape_of(function, params, x)])
        evaluate = functools.partial(_gradients, function, direction=direction)
    for draw, changed in enumerate(CHANGED):
        kept = ~np.isin(group, changed)
        other = jax.tree.map(lambda leaf, kept=kept, draw=draw: _replaced(leaf, ~kept, draw), x)
        # A gradient adds up examples: those that are replaced must stay out of it, draw by draw.
        if not forward:
            before = evaluate(params, x, kept)
        after = evaluate(params, other, kept)
        for what in ("outputs", "derivatives"):
            # Gradients have entries of parameters, not rows of examples.
            rows = kept if forward or what == "outputs" else slice(None)
            pairs = list(zip(before[what], after[what], strict=True))
            if not any(_differ(one, two, one, rows) for one, two in pairs):
                continue
            # They differ: by more than what rounding alone makes of the same numbers?
            again = evaluate(_shaken(params), x, kept)[what]
            known = zip(pairs, again, strict=True)
            if any(_differ(one, two, rounded, rows) for (one, two), rounded in known):
                return what
    return ""


@PerFunction
def _tangents(
    function: Apply, params: Params, x: Examples, kept: Array, direction: list[Array]
) -> dict[str, list[Array]]:
    """Outputs, and their derivative along a fixed direction of the parameters."""
    weights, rebuilt = trees.differentiable(params)
    h, tangent = jax.jvp(lambda w: _outputs(function, rebuilt(w), x), (weights,), (direction,))
    return {"outputs": [h], "derivatives": [tangent]}


@PerFunction
def _gradients(
    function: Apply, params: Params, x: Examples, kept: Array, direction: list[Array]
) -> dict[str, list[Array]]:
    """Outputs, and the gradient of a combination of those of the examples that are kept."""
    weights, rebuilt = trees.differentiable(params)
    h, pull_back = jax.vjp(lambda w: _outputs(function, rebuilt(w), x), weights)
    own = kept.reshape(-1, *[1] * (h.ndim - 1))
    return {
        "outputs": [h],
        "derivatives": pull_back(jnp.where(own, direction[0], jnp.zeros_like(h)))[0],
    }


def _outputs(function: Apply, params: Params, x: Examples) -> Array:
    h = function(params, x)
    check_outputs(h, count_examples(x))
    return h


def _direction(leaves: list[Any]) -> list[Array]:
    """Numbers in [-1, 1) without a pattern, for every leaf.

    A multiplicative hash on the host: operations of JAX would be compiled one by one for each shape.
    """
    return [_hashed(leaf, i) for i, leaf in enumerate(leaves)]


def _hashed(leaf: Any, seed: int) -> Array:
    # Primes of xxHash; the first one is Knuth's, close to 2^32 over the golden ratio.
    bits = np.arange(leaf.size, dtype=np.uint32) + np.uint32(seed * 40503 + 1)
    bits *= np.uint32(2654435761)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(2246822519)
    bits ^= bits >> np.uint32(13)
    numbers = bits.astype(np.float32) / np.float32(2.0**31) - np.float32(1)
    return jnp.asarray(numbers.astype(leaf.dtype).reshape(leaf.shape))


def _shaken(params: Params) -> Params:
    """Parameters a few units in their last place away, at which everything is rounded anew."""
    weights, rebuilt = trees.differentiable(params)
    return rebuilt([w * (1 + 8 * jnp.finfo(w.dtype).eps) for w in weights])


def _differ(
    before: Array, after: Array, again: Array | np.ndarray, rows: Any, same_size: bool = True
) -> bool:
    """Whether values differ by more than rounding: 256 units of the largest, or 16 times what another rounding makes.

    Programs and shapes are equal, so that most values stay equal bit by bit. What is subtracted and
    added again, as the largest logit of a batch in a softmax, leaves a few units, and many where
    little is left of large terms. Programs for another number of examples may take other products,
    on a GPU of three digits: there a quarter of the digits is enough.
    """
    one = np.asarray(before).astype(np.float64)
    two = np.asarray(after).astype(np.float64)
    rounded = np.asarray(again).astype(np.float64)
    eps = float(jnp.finfo(before.dtype).eps)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(one[np.isfinite(one)]).max(initial=0.0)
        rounding = np.abs(one - rounded)
        noise = rounding[np.isfinite(rounding)].max(initial=0.0)
        # 256 units of half precision are of the order of the values: there it is half of the digits.
        share = min(256 * eps, eps**0.5) if same_size else eps**0.25
        allowed = max(share * size, 16 * noise)
        close = np.abs(one - two) <= allowed
    same = close | (one == two) | (np.isnan(one) & np.isnan(two))
    return not same[rows].all()


def _sample(x: Examples) -> Examples:
    """Four examples from the whole range, the missing ones made up."""
    n = count_examples(x)
    rows = np.arange(EXAMPLES) % n
    if n >= EXAMPLES:
        rows = np.linspace(0, n - 1, EXAMPLES).astype(int)
    made_up = np.arange(EXAMPLES) >= n

    def sampled(leaf: Any) -> np.ndarray:
        own = np.asarray(leaf[rows])
        return _replaced(own, made_up, len(CHANGED)) if made_up.any() else own

    return jax.tree.map(sampled, x)


def _replaced(leaf: np.ndarray, changed: np.ndarray, draw: int) -> np.ndarray:
    """Others in the place of the changed examples, within the range of the values.

    Real ones are drawn with more weight on small values, which moves sums and squares alike, also
    sums over many pixels. Whole numbers go to the other end of the range, each as far as it is from
    this one, or to the ends alone.
    """
    if leaf.dtype == bool:
        other = ~leaf
    elif np.issubdtype(leaf.dtype, np.integer):
        low = leaf.min()
        high = leaf.max()
        mirrored = low + (high - leaf) if draw % 2 else np.where(leaf == low, high, low)
        constant = np.where(leaf == 0, 1, 0).astype(leaf.dtype)
        moved = np.where(mirrored == leaf, low, mirrored).astype(leaf.dtype)
        other = constant if low == high else moved
    elif jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        drawn = _drawn(np.real(leaf), draw) + 1j * _drawn(np.imag(leaf), draw + 10)
        other = drawn.astype(leaf.dtype)
    else:
        other = _drawn(leaf, draw).astype(leaf.dtype)
    return np.where(changed.reshape(-1, *[1] * (leaf.ndim - 1)), other, leaf)


def _drawn(leaf: np.ndarray, draw: int) -> np.ndarray:
    values = leaf.astype(np.float64)
    low = values.min()
    high = values.max()
    span = high - low or abs(high) or 1.0
    return low + span * np.random.default_rng(draw).random(leaf.shape) ** 2
