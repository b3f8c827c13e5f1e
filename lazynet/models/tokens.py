"""What comes before the blocks of a transformer: vectors of tokens and of positions, both learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import guards
from lazynet.models.layers import Scale
from lazynet.models.model import Model, layer
from lazynet.recipes import recipe
from lazynet.trees import is_traced

__all__ = ["Embed", "Positions"]


@recipe
def Embed(vocabulary: int, features: int, W_std: Scale = 1.0) -> Model:
    """A vector for each token, `z_p = W_std W[x_p]`, whole numbers `[n, *positions]` to `[n, *positions, features]`.

    Args:
        vocabulary: Number of tokens, 0 to vocabulary - 1.
        features: Number of outputs.
        W_std: Standard deviation of the vectors' entries.

    Raises:
        ValueError: If a number is below 1, or, outside of transformations, on tokens that are not
            in the vocabulary.
        TypeError: On inputs that are no whole numbers.

    Example:
        >>> model = Embed(5, 3)
        >>> tokens = jnp.array([[0, 4]])
        >>> model.apply(model.init(jax.random.key(0), tokens), tokens).shape
        (1, 2, 3)
    """
    vocabulary = guards.count("vocabulary", vocabulary)
    features = guards.count("features", features)
    W_std = guards.number("W_std", W_std, at_least=0)

    def init(key, x):
        _check_tokens(x)
        return {"W": jax.random.normal(key, (vocabulary, features))}

    def apply(params, x):
        _check_tokens(x)
        _check_range(x, len(params["W"]))
        # A traced W_std has a dtype of its own, by which the outputs would be promoted.
        return params["W"][x] * jnp.asarray(W_std, params["W"].dtype)

    return layer("Embed", apply, init=init)


@recipe
def Positions(W_std: Scale = 1.0) -> Model:
    """Adds a vector of its own to each position, `z_p = x_p + W_std P_p`, on inputs `[n, *positions, c]` of one size.

    Args:
        W_std: Standard deviation of the vectors' entries.

    Example:
        >>> model = Positions()
        >>> x = jnp.ones((2, 5, 3))
        >>> model.init(jax.random.key(0), x)["P"].shape
        (5, 3)
    """
    W_std = guards.number("W_std", W_std, at_least=0)

    def init(key, x):
        return {"P": jax.random.normal(key, x.shape[1:], x.dtype)}

    def apply(params, x):
        if x.shape[1:] != params["P"].shape:
            raise ValueError(
                f"Positions got inputs of shape {x.shape}, expected [n, *{params['P'].shape}]: each position has a "
                "vector of its own."
            )
        return x + (params["P"] * jnp.asarray(W_std, x.dtype))[None]

    return layer("Positions", apply, init=init)


def _check_range(x, vocabulary):
    """Refuses tokens without a vector, in the place of which indexing takes that of another one."""
    if is_traced(x):
        return
    tokens = np.asarray(x)
    if not ((tokens >= 0) & (tokens < vocabulary)).all():
        raise ValueError(
            f"Embed got tokens from {tokens.min()} to {tokens.max()}, expected 0 to {vocabulary - 1}: give it a larger "
            "vocabulary, or count tokens from 0."
        )


def _check_tokens(x):
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"Embed got inputs of dtype {x.dtype}, expected whole numbers, tokens: use x.astype(int)."
        )
