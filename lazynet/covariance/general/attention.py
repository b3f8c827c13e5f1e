"""The rule of attention over positions, with its two scalings, and the covariances of positional embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lazynet.covariance.general.layer_rules import positions_only
from lazynet.covariance.general.positions import Positions
from lazynet.typing import Array

__all__ = ["MECHANISMS", "Embedding", "attention_rule", "distances", "weighted_scores"]

Scale = float | int | Array

MECHANISMS: dict[str, Callable[[Array], Array]] = {
    "SOFTMAX": lambda scores: jax.nn.softmax(scores, axis=-1),
    "IDENTITY": lambda scores: scores,
    "ABS": jnp.abs,
    "RELU": lambda scores: jnp.maximum(scores, 0),
}
"""What is done to scores `[..., queries, keys]` before they weigh values."""


class Embedding(NamedTuple):
    """Positional embeddings, random features of positions with covariances `W_std^2 decay(distance)`.

    Attributes:
        kind: "NONE", "SUM" (added to inputs) or "CONCAT" (beside them).
        W_std: Their standard deviation.
        decay: Function of distances; None for independent embeddings.
        norm: Exponent p of distances `sum_a |i_a - j_a|^p`.
        features: Number of features beside inputs; None for as many as inputs have.
        values: Whether values see them, and not queries and keys alone.
    """

    kind: str = "NONE"
    W_std: Scale = 1.0
    decay: Callable[[Array], Array] | None = None
    norm: float | int = 2
    features: int | None = None
    values: bool = False

    def shares(self, inputs: int) -> tuple[Any, Any]:
        """Weights of the covariances of inputs with so many features and of those of embeddings."""
        if self.kind == "NONE":
            return 1.0, 0.0
        if self.kind == "SUM":
            return 1.0, self.W_std**2
        own = inputs if self.features is None else self.features
        return inputs / (inputs + own), self.W_std**2 * own / (inputs + own)

    def covariance(self, shape: Sequence[int]) -> Array:
        """Covariances of the embeddings of all pairs of positions, `[P, P]`, without their scale."""
        if self.decay is None:
            return jnp.eye(math.prod(shape))
        return self.decay(distances(shape, self.norm))


def distances(shape: Sequence[int], norm: float | int) -> Array:
    """`sum_a |i_a - j_a|^norm` of all pairs of positions, `[P, P]`.

    Example:
        >>> distances((3,), 1)[0].tolist()
        [0.0, 1.0, 2.0]
    """
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, shape), indexing="ij"), -1)
    places = places.reshape(-1, len(shape))
    return jnp.sum(jnp.abs(places[:, None] - places[None, :]).astype(float) ** norm, axis=-1)


def weighted_scores(mechanism: str, scores: Array, missing: Array | None) -> Array:
    """A mechanism on scores `[..., queries, keys]`; keys that are missing `[..., keys]` get no weight.

    Example:
        >>> weighted_scores("SOFTMAX", jnp.zeros((1, 2)), jnp.array([False, True])).tolist()
        [[1.0, 0.0]]
    """
    if missing is not None:
        # Finite: with -inf a query all of whose keys are missing would get NaN.
        nothing = -1e20 if mechanism == "SOFTMAX" else 0.0
        scores = jnp.where(missing[..., None, :], nothing, scores)
    return MECHANISMS[mechanism](scores)


def attention_rule(
    mechanism: str,
    linear_scaling: bool,
    QK_std: Scale,
    OV_std: Scale,
    b_std: Scale | None,
    embedding: Embedding,
) -> Callable[[Any], Positions]:
    """Rule of `softmax(Q K' / scale) V O` over positions, in the limit of many heads.

    With scores divided by the number of key features (and queries equal to keys) they do not
    fluctuate, `G = mechanism(QK_std Sigma)`, and `Sigma' = OV_std^2 G Sigma G' + b_std^2`, `Theta' = OV_std^2
    G Theta G' + 2 (Sigma' - b_std^2) + b_std^2`. With their square root scores are Gaussian, and for
    the identity `Sigma' = (QK_std OV_std)^2 <Sigma, Sigma> Sigma + b_std^2`.

    Raises:
        ValueError: For a mechanism other than the identity with square-root scaling.

    Source: Hron, Bahri, Sohl-Dickstein and Novak (2020), theorems 1 and 3, section 4.1.
    """
    if not linear_scaling and mechanism != "IDENTITY":
        raise ValueError(
            f"attention got the mechanism {mechanism} with square-root scaling, expected IDENTITY: there is no closed "
            "form for others; use linear_scaling=True."
        )
    b2 = 0.0 if b_std is None else b_std**2

    def rule(k: Any) -> Positions:
        positions_only("GlobalSelfAttention", k)
        k.check_pairs("GlobalSelfAttention")
        seen = _embedded(k, embedding)
        valued = seen if embedding.values else k
        if not linear_scaling:
            return _squared(k, seen, valued, (QK_std * OV_std) ** 2, b2)
        size = math.prod(k.shape)

        def weights(i):
            own = seen.own[i]
            if k.whole:  # pairs of examples, of which each attends to itself alone
                own = jnp.moveaxis(jnp.diagonal(own, axis1=0, axis2=1), -1, 0)
            missing = None if k.masks[i] is None else k.masks[i].reshape(-1, size)
            return weighted_scores(mechanism, QK_std * own.reshape(-1, size, size), missing)

        attention = [weights(i) for i in (0, 1)]

        def attend(x, i):
            flat = x.reshape(len(x), size, x.shape[-1])
            return jnp.matmul(attention[i], flat, precision="highest").reshape(x.shape)

        attended = valued.transported("GlobalSelfAttention", attend, lambda mask, _: mask)
        moved = attended.mapped(lambda values, axes: OV_std**2 * values)
        after = moved.mapped(lambda values, axes: values + b2)
        ntk = moved.ntk
        if k.trained:
            # The weights of values and those of outputs add what they compute, each once.
            own = 2 * moved.nngp
            ntk = (own if ntk is None else ntk + own) + b2
        return after.replace(ntk=ntk, gaussian=True, fresh=True, positive=False).masked(k.masks)

    return rule


def _embedded(k, embedding):
    """Covariances of inputs with their embeddings, whose features are trained too."""
    if embedding.kind == "NONE":
        return k
    inputs, places = embedding.shares(k.features)
    pairs = embedding.covariance(k.shape).reshape(*k.shape, *k.shape).astype(k.nngp.dtype)

    def joined(values, axes):
        examples = tuple(range(values.ndim - pairs.ndim))
        return inputs * values + places * jnp.expand_dims(pairs, examples)

    # Embeddings are trained: what they add to the tangent kernel is their covariance, too.
    seen = k.mapped(joined)
    if not k.trained:
        seen = seen.replace(ntk=None if k.ntk is None else inputs * k.ntk)
    elif k.ntk is None:
        seen = seen.replace(ntk=joined(jnp.zeros_like(k.nngp), None))
    return seen.masked(k.masks)


def _squared(k, seen, valued, scale, b2):
    """Square-root scaling with the identity: scores are Gaussian, and their covariance is a sum over positions."""

    def inner(a, b, batch):
        axes = tuple(range(batch, a.ndim))
        return jnp.sum(a * b, axis=axes, keepdims=True)

    batch = 2 if k.whole else 1
    scores = inner(seen.nngp, valued.nngp, 2)

    def own(i):
        variances = seen.own[i]
        return scale * inner(variances, valued.own[i], batch) * variances + b2

    tangent = jnp.zeros_like(seen.nngp) if seen.ntk is None else seen.ntk
    values = jnp.zeros_like(seen.nngp) if valued.ntk is None else valued.ntk
    # By the product rule: scores change with keys and queries, values with their own weights, and
    # each of the four matrices of weights adds what the layer computes, if they are trained.
    moved = inner(seen.nngp, values, 2) + inner(valued.nngp, tangent, 2)
    if k.trained:
        ntk = moved * seen.nngp + scores * (tangent + 4 * seen.nngp)
    elif seen.ntk is None and valued.ntk is None:
        ntk = None
    else:
        ntk = moved * seen.nngp + scores * tangent
    first = own(0)
    after = k.replace(
        nngp=scale * scores * seen.nngp + b2,
        ntk=None if ntk is None else scale * ntk + (b2 if k.trained else 0.0),
        own=(first, first if k.own[0] is k.own[1] else own(1)),
        gaussian=True,
        fresh=True,
        positive=False,
    )
    return after.masked(k.masks)
