"""Low-rank factors beside the weights of any model."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from lazynet import guards
from lazynet.models.model import Model
from lazynet.parameters import Where, selected
from lazynet.recipes import recipe
from lazynet.trees import as_partial
from lazynet.typing import Apply, Array, Key, Params

__all__ = ["Lora", "factors", "lora", "merged"]


def lora(model: Model, *, rank: int, where: Where | None = None) -> Model:
    """The model `h(W + A B; x)` with factors A and B of small rank beside chosen weights W.

    Parameters are `{"factors": {path: {"A", "B"}}, "weights": those of the model}`; pretrained
    weights take their place there. B is zero at the start. Training with `where=lambda path:
    path.startswith("factors")` moves the factors alone, and so does every kernel and diagnostic with
    this selector. There is no infinite-width rule.

    Args:
        model: Any model, also a foreign one.
        rank: Columns of A and rows of B.
        where: Which weights get factors, matrices and convolutions; None for all of them.

    Raises:
        TypeError: If `model` is none.
        ValueError: If the rank is below 1; in `init`, if no weight of at least two axes is chosen.

    Example:
        >>> import lazynet as ln
        >>> model = lora(ln.serial(ln.Dense(8), ln.Relu(), ln.Dense(2)), rank=1)
        >>> x = jnp.ones((4, 3))
        >>> params = model.init(jax.random.key(0), x)
        >>> sorted(params["factors"]), params["factors"]["0_Dense/W"]["B"].shape
        (['0_Dense/W', '2_Dense/W'], (1, 8))

    Source: Hu et al. (2022), LoRA: low-rank adaptation of large language models, section 4.1.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"lora got {model!r}, expected a Model: of a function apply(params, x) use Lora(apply) and factors(key, "
            "params, rank=rank)."
        )
    rank = guards.count("rank", rank)
    init = _drawn(model.init, rank, where)
    return Model(init, Lora(as_partial(model.apply)), Lora(as_partial(model.trace)), None, "lora")


@recipe
def _drawn(init: Any, rank: int, where: Where | None):
    def with_factors(key, *inputs):
        # A foreign model with weights of its own takes no key, but its factors need one.
        own, low_rank = (None, jax.random.key(0)) if key is None else jax.random.split(key)
        weights = init(own, *inputs)
        return {"factors": factors(low_rank, weights, rank=rank, where=where), "weights": weights}

    return with_factors


def factors(
    key: Key[Array, ""], params: Params, *, rank: int, where: Where | None = None
) -> dict[str, dict[str, Array]]:
    """Factors `A ~ N(0, 1/rank)`, `[..., m, rank]` as a matrix, and `B = 0`, `[rank, n]`, for weights `[..., m, n]`.

    All axes of a weight but the last are rows. With this variance the tangent kernel of the factors
    at the start has the kernel of the weights themselves as its mean over A.

    Args:
        key: Draws A.
        params: The weights.
        rank: Columns of A.
        where: Which weights; None for all of at least two axes.

    Raises:
        ValueError: If none of at least two axes is chosen, or the rank is below 1.

    Example:
        >>> low_rank = factors(jax.random.key(0), {"W": jnp.ones((5, 3)), "b": jnp.ones(3)}, rank=2)
        >>> low_rank["W"]["A"].shape, float(low_rank["W"]["B"].sum())
        ((5, 2), 0.0)
    """
    rank = guards.count("rank", rank)
    chosen = jax.tree.leaves(selected(where, params))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    found = {}
    for i, ((path, leaf), is_chosen) in enumerate(zip(leaves, chosen, strict=True)):
        if not is_chosen or jnp.ndim(leaf) < 2:
            continue
        rows = math.prod(leaf.shape[:-1])
        # i counts all leaves: the draw of one weight does not depend on which others are chosen.
        normal = jax.random.normal(jax.random.fold_in(key, i), (rows, rank), leaf.dtype)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found[name] = {
            # E[A A'] = I, so that the kernel of B has that of W as its mean.
            "A": normal / math.sqrt(rank),
            "B": jnp.zeros((rank, leaf.shape[-1]), leaf.dtype),
        }
    if not found:
        raise ValueError(
            "factors got no weight of two or more axes among the chosen ones, expected a matrix or a convolution."
        )
    return found


@functools.partial(register_dataclass, data_fields=("apply",), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class Lora:
    """The function `h(W + A B)` of `{"factors": ..., "weights": W}`, of any function h.

    Attributes:
        apply: h.

    Example:
        >>> adapted = Lora(lambda w, x: x @ w["W"])
        >>> w = {"W": jnp.zeros((1, 1))}
        >>> low_rank = {"W": {"A": jnp.ones((1, 1)), "B": 2 * jnp.ones((1, 1))}}
        >>> adapted({"factors": low_rank, "weights": w}, jnp.ones((1, 1))).tolist()
        [[2.0]]
    """

    apply: Apply

    def __call__(self, params: Params, *inputs: Any, **kwargs: Any) -> Any:
        """The function at the weights with their factors."""
        return self.apply(merged(params), *inputs, **kwargs)


def merged(params: Params) -> Params:
    """The weights `W + A B` with which the model itself computes the same.

    Example:
        >>> low_rank = {"W": {"A": jnp.ones((1, 1)), "B": 2 * jnp.ones((1, 1))}}
        >>> merged({"factors": low_rank, "weights": {"W": jnp.zeros((1, 1))}})["W"].tolist()
        [[2.0]]
    """
    low_rank = params["factors"]

    def added(path, leaf):
        own = low_rank.get(jax.tree_util.keystr(path, simple=True, separator="/"))
        if own is None:
            return leaf
        # TF32 would round the change of the weights to three digits.
        product = jnp.matmul(own["A"], own["B"], precision="highest")
        return leaf + product.reshape(jnp.shape(leaf))

    return jax.tree_util.tree_map_with_path(added, params["weights"])
