"""`from_neural_tangents`: the triples that its stax returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lazynet.models.foreign.calls import astype, foreign_terms
from lazynet.models.model import Model, layer
from lazynet.recipes import recipe

__all__ = ["from_neural_tangents"]


def from_neural_tangents(triple: Any) -> Model:
    """The finite-width model of `(init_fn, apply_fn, kernel_fn)`, as every layer of neural-tangents' stax returns it.

    Parameters keep their structure (lists and tuples) and get the dtype of `x`. `kernel_fn` is a
    closed function of inputs, not a rule that could be composed with other layers, so the model has
    no `kernel`: call `kernel_fn(x1, x2)` itself, or write the network with `lazynet.stax`.

    Args:
        triple: `init_fn(key, input_shape) -> (output_shape, params)`, `apply_fn(params, x)` and
            `kernel_fn`.

    Raises:
        TypeError: If it is not three values that begin with two functions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def init_fn(key, input_shape):
        ...     return (-1, 2), (jax.random.normal(key, (input_shape[-1], 2)),)
        >>> model = from_neural_tangents((init_fn, lambda params, x: x @ params[0], None))
        >>> x = jnp.ones((4, 3))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (4, 2)
    """
    if not (
        isinstance(triple, tuple)
        and len(triple) == 3
        and callable(triple[0])
        and callable(triple[1])
    ):
        raise TypeError(
            f"from_neural_tangents got {triple!r}, expected the triple (init_fn, apply_fn, kernel_fn), "
            "for instance stax.serial(...) with its call."
        )
    init_fn, apply_fn, _ = triple
    init, apply = _triple_functions(init_fn, apply_fn)
    return layer("neural_tangents", apply, init=init)


@recipe
def _triple_functions(init_fn: Callable[..., Any], apply_fn: Callable[..., Any]):
    def init(key, x):
        # neural-tangents writes -1 for the size of the batch.
        _, params = init_fn(key, (-1, *x.shape[1:]))
        return astype(params, x)

    def apply(params, x):
        with foreign_terms():
            return apply_fn(params, x)

    return init, apply
