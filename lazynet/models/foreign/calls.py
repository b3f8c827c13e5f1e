"""What the ways to other libraries' modules have in common: constants, dtypes, and what a call must return."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from lazynet.models.model import Model
from lazynet.recipes import found, named
from lazynet.typing import Params


class Constants(NamedTuple):
    """What a module's function takes beside parameters and inputs, as arrays.

    Attributes:
        state: Statistics, random keys, buffers; None if the module's own are still to be drawn.
        call: Keyword arguments of every call that hold arrays.
    """

    state: Any
    call: dict[str, Any]


def parted(call: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments that hold arrays, which programs take as arguments, and the others."""
    arrays = {name: value for name, value in call.items() if any(map(is_array, leaves_of(value)))}
    return arrays, {name: value for name, value in call.items() if name not in arrays}


def leaves_of(tree: Any) -> list[Any]:
    """Leaves of a tree."""
    return jax.tree.leaves(tree)


def is_array(leaf: Any) -> bool:
    """Whether it is an array, a key among them, of NumPy or JAX."""
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def is_weight(leaf: Any) -> bool:
    """Whether it is an array with a derivative: real or complex floating point."""
    return is_array(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def model_of(
    name: str,
    functions: tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]],
    constants: Constants,
) -> Model:
    """The model of `init(key, *inputs)`, and of apply and trace that take the constants before the parameters."""
    init, apply, trace = functions
    # A Partial is a tree: its constants are arguments of programs, and not built into them.
    return Model(init, Partial(apply, constants), Partial(trace, constants), None, name)


def one_example(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Zeros in the shape of one example, of which only shape and dtype matter."""
    return jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype), inputs)


def astype(params: Params, inputs: Any) -> Params:
    """Parameters in the dtype of the inputs; as they were drawn where these are whole numbers (tokens)."""
    dtypes = [leaf.dtype for leaf in leaves_of(inputs)]
    # The first floating input decides; tokens beside it have no say.
    real = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    if not real:
        return params
    return jax.tree.map(
        lambda w: w.astype(real[0]) if jnp.issubdtype(w.dtype, jnp.floating) else w, params
    )


def check_no_key(name: str, key: Any, source: str, factory: str) -> None:
    """Refuses a key for weights that a module holds already."""
    if key is not None:
        raise ValueError(
            f"init got a key, but {name} was given to {source} as an instance, which holds one set "
            f"of weights: call init(None, x) for these, or {source}({factory}) to draw new ones by key."
        )


def check_factory(factory: Callable[..., Any], source: str, argument: str, expected: str) -> None:
    """Refuses a function that cannot be called with this one argument by its name."""
    is_class = isinstance(factory, type)
    # Classes of nnx have the signature of their metaclass, (*args, **kwargs).
    signature = inspect.signature(partial(factory.__init__, None) if is_class else factory)
    try:
        signature.bind(**{argument: None})
    except TypeError as error:
        raise TypeError(
            f"{source} got a function with the signature {signature}, which cannot be called with {argument} "
            f"alone ({error}); {expected}."
        ) from error


def check_output(name: str, outputs: Any, inputs: tuple[Any, ...]) -> None:
    """Refuses outputs without examples: one array with a row for each, or a tree with such arrays among its leaves."""
    n = leaves_of(inputs)[0].shape[0]
    if not any(is_array(leaf) and leaf.shape[:1] == (n,) for leaf in leaves_of(outputs)):
        raise ValueError(
            f"{name} returned {outputs!r}, expected an array with the batch axis first, [{n}, ...], or a tree with "
            "such an array in it: wrap the module in one that returns its outputs."
        )


class NamingPickler(pickle.Pickler):
    """Keeps functions that jax has wrapped by their names, which pickle itself does not find."""

    def reducer_override(self, obj: Any) -> Any:
        """The name of such a function; other objects pickle as they do."""
        name = named(obj)
        # NotImplemented tells pickle to go on as it would without this method.
        return NotImplemented if name is obj else (found, (name,))


@contextlib.contextmanager
def foreign_terms() -> Iterator[None]:
    """Foreign layers rely on implicit promotion, also where the caller's own code forbids it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
