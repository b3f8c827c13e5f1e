"""How a network is computed, not what it is: in which precision, and what is kept for the backward pass."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from lazynet import guards, trees
from lazynet.models.model import Model, evaluation
from lazynet.recipes import recipe
from lazynet.trees import as_partial
from lazynet.typing import Apply, Params

__all__ = ["ComputeIn", "carried_scale", "compute_in", "largest_alpha", "remat"]


def compute_in(apply: Apply, dtype: Any) -> ComputeIn:
    """The function `round(h(round(w), round(x)))`: weights and inputs cast to `dtype`, outputs back to that of w.

    With `jnp.bfloat16` activations take half the memory and matrix products run on the fast units
    of an accelerator, while the weights that an optimizer updates stay float32, and so do
    gradients. Wrap the network before its transforms: `lazy(compute_in(apply, jnp.bfloat16),
    params0, alpha)`. Displacements below the rounding of the weights, 2^-9 of them in bfloat16,
    then vanish at large finite alpha; the tangent model at alpha = inf has no such limit, since u
    is rounded by itself.

    Args:
        apply: Model h.
        dtype: Floating-point type of the computation.

    Raises:
        TypeError: If `dtype` is not a floating-point type.

    Example:
        >>> half = compute_in(lambda w, x: x @ w, jnp.bfloat16)
        >>> half(jnp.full((1, 1), 1.001, jnp.float32), jnp.ones((1, 1), jnp.float32))
        Array([[1.]], dtype=float32)
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"compute_in got dtype={dtype!r}, expected a floating-point type such as jnp.bfloat16."
        )
    return ComputeIn(as_partial(apply), jnp.dtype(dtype))


@recipe
def remat(model: Model) -> Model:
    """The same model, whose inside is computed again in the backward pass: only its input is kept.

    A network of B blocks `serial(*[remat(block) for block in blocks])` holds B inputs and the
    inside of one block at a time, for one more forward pass. The parameters' names are those of
    `model`. On a CPU, XLA merges the second computation with the first (it drops the optimization
    barrier between them): it costs and saves nothing there.

    Args:
        model: A block of several layers; a single layer saves nothing.

    Example:
        >>> import lazynet as ln
        >>> block = remat(ln.serial(ln.Dense(3), ln.Relu()))
        >>> params = block.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> block.apply(params, jnp.ones((1, 3))).shape
        (1, 3)
    """
    if isinstance(model.apply, Partial):
        # The arrays that a Partial carries stay arguments, outside of what is computed again.
        function = _checkpointed(model.apply.func)
        return model._replace(apply=Partial(function, *model.apply.args, **model.apply.keywords))
    checkpointed = jax.checkpoint(model.apply)
    known = evaluation(model.apply)
    if known is None:
        return model._replace(apply=lambda params, x: checkpointed(params, x))

    def outputs(params, x, given):
        return checkpointed(params, x, given)

    return model._replace(apply=dataclasses.replace(known, outputs=outputs))


@recipe
def _checkpointed(function):
    return jax.checkpoint(function)


def largest_alpha(apply: Apply, params0: Params) -> float:
    """The largest finite alpha `1 / (32 eps)` of a lazy function, eps the rounding of its weights and its computation.

    It is 2.6e5 in float32, 1.4e14 in float64, 32 in float16 and 4 in bfloat16. There the
    displacement of a unit u is 32 times the spacing of numbers around a unit weight, and outputs
    after training are 5 to 30 % off; the error grows in proportion to alpha.

    Args:
        apply: Model h; of `compute_in` the type counts too.
        params0: w0.

    Example:
        >>> largest_alpha(lambda w, x: x @ w, jnp.ones((1, 1), jnp.float32))
        262144.0
    """
    return 1 / (32 * max(float(jnp.finfo(dtype).eps) for dtype in _dtypes(apply, params0)))


def carried_scale(alpha, apply, params0):
    """The scale itself if the dtype carries it; a traced one that it does not carry becomes the most accurate one.

    At alpha the exact function is O(1 / alpha) from the tangent model and rounding costs O(alpha
    eps): their sum is smallest at `1 / sqrt(eps)`, and no larger alpha is evaluated more closely
    anywhere else.

    Raises:
        ValueError: If it is above `largest_alpha`, or zero in the dtype.

    Example:
        >>> carried_scale(100.0, lambda w, x: x @ w, jnp.ones((1, 1)))
        100.0
    """
    largest = largest_alpha(apply, params0)
    if trees.is_traced(alpha):
        # A traced whole number cannot hold the scale that may replace it.
        scale = alpha if jnp.issubdtype(alpha.dtype, jnp.floating) else alpha.astype(float)
        # largest = 1 / (32 eps), hence sqrt(32 largest) = 1 / sqrt(eps).
        return jnp.where(scale > largest, jnp.asarray(math.sqrt(32 * largest), scale.dtype), scale)
    smallest = max(float(jnp.finfo(dtype).tiny) for dtype in _dtypes(apply, params0))
    if alpha > largest:
        raise ValueError(
            f"alpha got {alpha:g}, expected at most {largest:.3g}, all that the dtype of the weights carries, since "
            "u / alpha is lost in their rounding: use alpha=inf, the tangent model, or float64 weights and inputs."
        )
    return guards.number(
        "alpha", alpha, at_least=smallest, fix="a smaller one is zero in the dtype of the weights"
    )


@partial(jax.tree_util.register_dataclass, data_fields=("apply",), meta_fields=("dtype",))
@dataclasses.dataclass(frozen=True, eq=False)
class ComputeIn:
    """What `compute_in` returns: a function in another precision.

    Attributes:
        apply: The function.
        dtype: Type of the computation. It is structure, no leaf: each type has its own compilation.

    Example:
        >>> compute_in(lambda w, x: x @ w, jnp.bfloat16).dtype
        dtype(bfloat16)
    """

    apply: Apply
    dtype: Any

    def __call__(self, params: Params, *inputs: Any, **kwargs: Any) -> Any:
        """Outputs of the function on rounded weights and inputs, in the type of the weights."""
        # Tokens, masks and keys keep their types.
        rounded = _cast((params, inputs), self.dtype)
        outputs = self.apply(rounded[0], *rounded[1], **kwargs)
        return _cast(outputs, _dtype_of(params, outputs))


def _cast(tree, dtype):
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def _dtype_of(params, outputs):
    """Type of the first floating-point weight; that of the outputs if there is none."""
    leaves = jax.tree.leaves((params, outputs))
    found = (leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
    return next(found, jnp.result_type(float))


def _dtypes(apply, params0):
    """Floating-point types of the weights, and those in which the transforms behind a function compute."""
    leaves = filter(trees.is_weight, jax.tree.leaves(params0))
    dtypes = [jnp.result_type(leaf) for leaf in leaves]
    # Transforms are records that hold the function below as `apply`, partial functions as `func`.
    while apply is not None:
        if isinstance(apply, ComputeIn):
            dtypes.append(apply.dtype)
        apply = getattr(apply, "func" if isinstance(apply, partial) else "apply", None)
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    return floating or [jnp.result_type(float)]
