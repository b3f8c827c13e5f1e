"""neural-tangents' self-attention."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from lazynet.covariance.general.attention import Embedding
from lazynet.dropin.kernels import inside, outside
from lazynet.dropin.masks import of_channels
from lazynet.dropin.networks import Layer, constructor
from lazynet.dropin.primitives import Layout, primitive
from lazynet.dropin.windows import MIXES
from lazynet.models.attention import SelfAttention

__all__ = ["AttentionMechanism", "GlobalSelfAttention", "PositionalEmbedding"]

NAMES = ("Q", "K", "V", "O", "b", "P")
"""Parameters in the order of neural-tangents, by their names in lazynet."""


class PositionalEmbedding(enum.Enum):
    """Where embeddings of positions go: nowhere, into a sum, or beside the channels.

    Example:
        >>> PositionalEmbedding("SUM").name
        'SUM'
    """

    NONE = "NONE"
    SUM = "SUM"
    CONCAT = "CONCAT"


class AttentionMechanism(enum.Enum):
    """What is done to scores.

    Example:
        >>> AttentionMechanism("RELU").name
        'RELU'
    """

    SOFTMAX = "SOFTMAX"
    IDENTITY = "IDENTITY"
    ABS = "ABS"
    RELU = "RELU"


@constructor
def GlobalSelfAttention(
    n_chan_out: int,
    n_chan_key: int,
    n_chan_val: int,
    n_heads: int,
    linear_scaling: bool = True,
    W_key_std: float = 1.0,
    W_value_std: float = 1.0,
    W_query_std: float = 1.0,
    W_out_std: float = 1.0,
    b_std: float | None = None,
    attention_mechanism: Any = "SOFTMAX",
    pos_emb_type: Any = "NONE",
    pos_emb_p_norm: float = 2,
    pos_emb_decay_fn: Callable[[Any], Any] | None = None,
    n_chan_pos_emb: int | None = None,
    W_pos_emb_std: float = 1.0,
    val_pos_emb: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Layer:
    """Attention over all positions."""
    embedding = Embedding(
        PositionalEmbedding(pos_emb_type).value,
        W_pos_emb_std,
        pos_emb_decay_fn,
        pos_emb_p_norm,
        n_chan_pos_emb,
        val_pos_emb,
    )
    core = SelfAttention(
        n_chan_out,
        n_chan_key,
        n_chan_val,
        n_heads,
        linear_scaling=linear_scaling,
        W_key_std=W_key_std,
        W_value_std=W_value_std,
        W_query_std=W_query_std,
        W_out_std=W_out_std,
        b_std=b_std,
        mechanism=AttentionMechanism(attention_mechanism).value,
        embedding=embedding,
    )
    axes = (batch_axis, channel_axis)

    def given_mask(params, x, mask):
        return core.apply(params, x, {"": jnp.all(mask, axis=-1)})

    return primitive(
        core,
        _layout(axes),
        missing=lambda mask: of_channels(mask, -1),
        given_mask=given_mask,
        spatial=MIXES,
        # Scores are covariances of all pairs of positions.
        planar=(),
    )


def _layout(axes):
    """Axes, and parameters in the order of neural-tangents."""
    batch_axis, channel_axis = axes

    def outward(params, ndim):
        values = [params.get(name) for name in NAMES]
        if values[4] is not None:
            shape = [1] * ndim
            shape[channel_axis] = -1
            values[4] = values[4].reshape(shape)
        if values[5] is not None:
            # Embeddings of neural-tangents have an axis of one example.
            values[5] = outside(values[5][None], batch_axis, channel_axis)
        return tuple(values)

    def inward(params):
        own = {name: value for name, value in zip(NAMES, params, strict=True) if value is not None}
        if "b" in own:
            own["b"] = own["b"].reshape(-1)
        if "P" in own:
            own["P"] = inside(own["P"], batch_axis, channel_axis)[0]
        return own

    return Layout(axes, axes, inward=inward, outward=outward)
