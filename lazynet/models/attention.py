"""Self-attention over all positions, with the two scalings that have infinite-width limits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lazynet import guards
from lazynet.covariance.general.attention import (
    MECHANISMS,
    Embedding,
    attention_rule,
    weighted_scores,
)
from lazynet.models.layers import Scale
from lazynet.models.model import Model, layer
from lazynet.recipes import recipe
from lazynet.typing import Array

__all__ = ["SelfAttention"]


@recipe
def SelfAttention(
    features: int,
    key_features: int,
    value_features: int,
    heads: int,
    *,
    linear_scaling: bool = True,
    W_key_std: Scale = 1.0,
    W_value_std: Scale = 1.0,
    W_query_std: Scale = 1.0,
    W_out_std: Scale = 1.0,
    b_std: Scale | None = None,
    mechanism: str = "SOFTMAX",
    embedding: Embedding = Embedding(),  # noqa: B008
    causal: bool = False,
) -> Model:
    """Attention `sum_h mechanism(Q_h K_h' / scale) V_h O_h` over positions, `[n, *positions, c]`.

    Args:
        features: Number of outputs.
        key_features: Number of features of queries and keys of each head.
        value_features: Number of features of values of each head.
        heads: Number of heads, which the limit takes to infinity.
        linear_scaling: Whether scores are divided by the number of key features (queries are then
            keys), or by its square root.
        W_key_std: Standard deviation of the weights of keys.
        W_value_std: Of values.
        W_query_std: Of queries.
        W_out_std: Of outputs.
        b_std: Of biases; None for none.
        mechanism: "SOFTMAX", "IDENTITY", "ABS" or "RELU".
        embedding: Positional embeddings.
        causal: Whether a position sees itself and those before it alone, which has no rule here; for
            the softmax.

    Raises:
        ValueError: For an unknown mechanism, or a causal one that is not the softmax.

    Example:
        >>> model = SelfAttention(8, 4, 4, 2)
        >>> x = jnp.ones((1, 5, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (1, 5, 8)

    Source: Hron, Bahri, Sohl-Dickstein and Novak (2020), equation 1 and section 3.
    """
    sizes = {
        "features": features,
        "key_features": key_features,
        "value_features": value_features,
        "heads": heads,
    }
    for name, size in sizes.items():
        guards.count(name, size)
    if mechanism not in MECHANISMS:
        raise ValueError(f"mechanism got {mechanism!r}, expected one of {sorted(MECHANISMS)}.")

    # Masked scores are far below all others, which only the softmax takes to no weight.
    if guards.flag("causal", causal) and mechanism != "SOFTMAX":
        raise ValueError(f"mechanism got {mechanism!r}, expected 'SOFTMAX' with causal=True.")
    # Standard deviations enter the function by these two products alone.
    std = W_query_std * W_key_std, W_out_std * W_value_std
    network = _Heads(
        features,
        key_features,
        value_features,
        heads,
        linear_scaling,
        std,
        b_std,
        mechanism,
        embedding,
        bool(causal),
    )
    # scores that fluctuate have no closed form
    if causal or (not linear_scaling and mechanism != "IDENTITY"):
        return layer("SelfAttention", network.outputs, init=network.draw)
    rule = attention_rule(mechanism, linear_scaling, *std, b_std, embedding)
    return layer(
        "SelfAttention",
        network.outputs,
        init=network.draw,
        # The rule sees covariances alone, which do not tell the number of features.
        kernel=lambda k: rule(k).replace(features=features),
    )


class _Heads(NamedTuple):
    """The arguments of `SelfAttention`, of which its weights and outputs are made."""

    features: int
    key_features: int
    value_features: int
    heads: int
    linear_scaling: bool
    W_std: tuple[Scale, Scale]
    b_std: Scale | None
    mechanism: str
    embedding: Embedding
    causal: bool = False

    def draw(self, key, x):
        """Weights for inputs of the shape of x."""
        embedding = self.embedding
        # One key a matrix, also for those that options leave out: the others are drawn the same.
        keys = jax.random.split(key, 6)
        channels = x.shape[-1]
        places = channels if embedding.features is None else embedding.features
        seen = channels + (places if embedding.kind == "CONCAT" else 0)
        valued = seen if embedding.values else channels
        joined = self.heads * self.value_features
        params = {
            "K": jax.random.normal(keys[1], (self.heads, seen, self.key_features), x.dtype),
            "V": jax.random.normal(keys[2], (self.heads, valued, self.value_features), x.dtype),
            "O": jax.random.normal(keys[3], (joined, self.features), x.dtype),
        }
        if not self.linear_scaling:
            params["Q"] = jax.random.normal(keys[0], params["K"].shape, x.dtype)
        if self.b_std is not None:
            params["b"] = jax.random.normal(keys[4], (self.features,), x.dtype)
        if embedding.kind != "NONE":
            width = channels if embedding.kind == "SUM" else places
            params["P"] = jax.random.normal(keys[5], (*x.shape[1:-1], width), x.dtype)
        return params

    def outputs(self, params, x, missing=None):
        """Outputs, with no weight on keys that are missing `[n, *positions]`."""
        embedding = self.embedding
        # [n, P, c]: all axes of positions are one.
        flat = x.reshape(len(x), -1, x.shape[-1])
        gone = None if missing is None else missing.reshape(len(x), -1)
        seen = _seen(params, flat, gone, x.shape[1:-1], embedding)
        valued = seen if embedding.values else flat
        keys = jnp.einsum("npc,hck->nhpk", seen, params["K"])
        queries = keys if self.linear_scaling else jnp.einsum("npc,hck->nhpk", seen, params["Q"])
        values = jnp.einsum("npc,hcv->nhpv", valued, params["V"])
        # 1/sqrt(c) each for queries and keys, and 1/key_features or its root for their product.
        norm = seen.shape[-1] * self.key_features ** (1 if self.linear_scaling else 0.5)
        scores = jnp.matmul(queries, jnp.swapaxes(keys, -1, -2)) * (self.W_std[0] / norm)
        if self.causal:
            positions = jnp.arange(scores.shape[-1])
            later = positions[None, :] > positions[:, None]
            # Finite, since a row of which all keys are left out would be NaN with minus infinity.
            scores = jnp.where(later[None, None], -1e20, scores)
        weights = weighted_scores(self.mechanism, scores, None if gone is None else gone[:, None])
        # [n, h, P, v] to [n, P, h v]: heads side by side, as the rows of O are.
        joined = jnp.swapaxes(jnp.matmul(weights, values), 1, 2)
        joined = joined.reshape(*flat.shape[:2], self.heads * self.value_features)
        # The fan-in of O times the fan-in of V.
        scale = self.W_std[1] / math.sqrt(joined.shape[-1] * valued.shape[-1])
        outputs = (joined @ params["O"]) * scale
        if self.b_std is not None:
            outputs = outputs + self.b_std * params["b"][None, None]
        return outputs.reshape(*x.shape[:-1], self.features)


def _seen(params: Any, flat: Array, missing: Any, shape: Any, embedding: Embedding) -> Array:
    """What queries and keys see: inputs with the embeddings of their positions."""
    if embedding.kind == "NONE":
        return flat
    places = params["P"].reshape(-1, params["P"].shape[-1])
    if embedding.decay is not None:
        # With L L' = C and P of independent entries, L P has the covariances C between positions.
        root = jnp.linalg.cholesky(embedding.covariance(shape)).astype(flat.dtype)
        places = root @ places
    # The same embeddings for all examples, since weights they are.
    places = jnp.broadcast_to(embedding.W_std * places[None], (len(flat), *places.shape))
    if missing is not None:
        places = jnp.where(missing[..., None], 0, places)
    if embedding.kind == "SUM":
        return flat + places
    return jnp.concatenate([flat, places], axis=-1)
