"""`from_flax`: linen modules, nnx modules and factories of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lazynet.models.foreign.calls import check_factory
from lazynet.models.foreign.linen import from_linen
from lazynet.models.foreign.nnx import from_nnx
from lazynet.models.model import Model

__all__ = ["from_flax"]

EXPECTED = "expected a linen module, an nnx module or a factory of nnx modules, lambda rngs: MLP(..., rngs=rngs)"


def from_flax(module: Any, variables: Mapping[str, Any] | None = None, **call: Any) -> Model:
    """The finite-width model `h(w, x) = module(x)` of a flax module: linen, or nnx through a factory.

    Everything that takes a function `apply(params, x)` then works on a network you already have:
    `linearize`, `lazy`, `empirical_ntk`, `is_lazy`. `params` is a plain nested dictionary in the
    dtype of `x`: the `"params"` collection of linen, `nnx.to_pure_dict(nnx.state(module,
    nnx.Param))` of nnx. There is no infinite-width rule.

    BatchNorm in evaluation mode and Dropout in deterministic mode are taken as they are: running
    statistics and random state are constants of the model, which `apply`, a
    `jax.tree_util.Partial`, carries as arrays. So they are arguments of compiled programs (as a
    layer inside `serial` they become constants of these).

    Args:
        module: One of

            - a linen module, `MLP(features=64)`; or one with its variables, `MLP(64).bind(variables)`;
            - a factory of nnx modules, called as `module(rngs=nnx.Rngs(key))`: `lambda rngs: MLP(64, rngs=rngs)` or
              `functools.partial(MLP, 64)`, so that `init` draws new weights for every key;
            - an nnx module that exists already, for instance a trained one, with whatever state it has. It holds one
              set of weights, which `init(None, x)` returns; with a key, `init` raises instead of returning the same
              weights again.
        variables: Of a linen module, what its `init` returned or training left: its `"params"`, if there are any, are
            what `init(None, x)` returns, all other collections are constants. Without them constants are those of the
            module's own `init` by the key 0.
        **call: Keyword arguments of every call of the module, for instance `train=False`; `apply` takes more.

    Returns:
        A model. Its `trace` records input and output of every Dense, DenseGeneral, Conv and
        ConvTranspose of linen, Linear, LinearGeneral, Conv and ConvTranspose of nnx (path `name#1`
        for the second call of a shared layer).

    Raises:
        TypeError: If `module` is none of the above.
        ValueError: If the module changes state besides its parameters (BatchNorm in training) or
            draws random numbers in a call (Dropout in training): where layers of nnx say so at
            once, else in `init`, which sees the shapes, or in `apply`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen, nnx
        >>> x = jnp.ones((4, 3))
        >>> model = from_flax(linen.Sequential([linen.Dense(8), jnp.tanh, linen.Dense(2)]))
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (4, 2)
        >>> model = from_flax(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
        >>> sorted(model.init(jax.random.key(0), x))
        ['bias', 'kernel']
    """
    from flax import linen, nnx

    if isinstance(module, linen.Module):
        return from_linen(module, variables, call)
    if variables is not None:
        raise TypeError(
            "from_flax got variables of a module that is not one of linen, expected None: a module of nnx holds "
            "its own, nnx.update(module, state) changes them."
        )
    if isinstance(module, nnx.Module):
        return from_nnx(module, call)
    if not callable(module):
        raise TypeError(f"from_flax got {module!r}, {EXPECTED}.")
    if isinstance(module, type) and issubclass(module, linen.Module):
        name = module.__name__
        raise TypeError(f"from_flax got the class {name}, {EXPECTED}: call it, {name}(...).")
    check_factory(module, "from_flax", "rngs", EXPECTED)
    made = nnx.eval_shape(lambda: module(rngs=nnx.Rngs(0)))
    if not isinstance(made, nnx.Module):
        raise TypeError(
            f"from_flax called the factory and got {type(made).__name__}, expected an nnx.Module."
        )
    return from_nnx(module, call)
