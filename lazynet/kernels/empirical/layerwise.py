"""The layer-wise way to the features of an empirical kernel, for networks of Dense and Conv layers.

The derivative of an output by the weights of `z = m (R W) + b` is `R^T D`, with R the rows that
enter the layer and D the cotangents of `R W`. One backward pass per output gives the cotangents of
all examples and layers; the products of R and D for two examples then give the kernel without the
derivative itself, which is as large as the weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from lazynet.kernels.empirical.jacobians import Jacobian, Names, Outputs, reduced
from lazynet.models.model import Evaluation, evaluation
from lazynet.programs import PerFunction
from lazynet.signatures import OneArray
from lazynet.typing import Apply, Array, Params


class Pair(NamedTuple):
    """A derivative `sum_p rows[n, p, c] cotangents[n, k, p, f]` by weights `[c, f]`, as its two factors."""

    rows: Array
    cotangents: Array


def layer_names(function: Apply, names: Names) -> Names:
    """Those of the named leaves that are weights or biases of a known layer."""
    model = known_layers(function)
    if model is None:
        return ()
    return tuple(
        name for name in names if _split(name)[0] in model.rows and _split(name)[1] in ("W", "b")
    )


@partial(PerFunction, static_argnames=("names", "outputs"))
def layer_features(
    function: Apply, params: Params, x: Array, names: Names, outputs: Outputs
) -> dict[str, Pair | Jacobian]:
    """Features of the named weights and biases, from one forward pass and one backward pass per output."""
    model = known_layers(function)
    if model is None:
        raise TypeError(f"{function!r} is not the apply of a model.")
    # The input of each layer and its `R W`, as shapes alone.
    inside = jax.eval_shape(model.trace, params, x)[1]
    weights = [name for name in names if _split(name)[1] == "W"]
    biases = [name for name in names if _split(name)[1] == "b"]
    # Probes are added to R W, so that the derivative by them is D; biases are there once for each
    # example, of which each then has a derivative of its own.
    variable = {name: _probe(name, params, inside) for name in weights}
    variable |= {name: _biases_of_examples(name, params, len(x)) for name in biases}

    def value(variable):
        probes = {_split(name)[0]: variable[name] for name in weights}
        changed = params
        for name in biases:
            changed = _inserted(changed, name.split("/"), variable[name])
        h, inside = model.trace(changed, x, probes)
        return reduced(h, outputs), {path: entry[0] for path, entry in inside.items()}

    h, pull_back, inputs = jax.vjp(value, variable, has_aux=True)
    n, k = h.shape
    # Output a of all examples at once, for each a: no example has a part in another one's probes.
    basis = jnp.broadcast_to(jnp.eye(k, dtype=h.dtype)[:, None], (k, n, k))
    cotangents = jax.vmap(lambda row: pull_back(row)[0])(basis)
    return {name: _feature(model, name, inputs, cotangents[name], outputs) for name in names}


def known_layers(function: Apply) -> Evaluation | None:
    """What is known of the layers of a function, if it is the apply of a model, all of whose outputs are wanted."""
    if isinstance(function, OneArray) and function.output is None and not function.several:
        function = function.apply
    if not isinstance(function, Partial) or function.args or function.keywords:
        return None
    return evaluation(function.func)


def _split(name: str) -> tuple[str, str]:
    path, _, own = name.rpartition("/")
    return path, own


def _probe(name: str, params: Params, inside: dict) -> Array:
    """Zeros of the shape of `R W`."""
    path, _ = _split(name)
    return jnp.zeros(inside[path][1].shape, _node(params, path)["W"].dtype)


def _biases_of_examples(name: str, params: Params, n: int) -> Array:
    """The biases once more for each of n examples, by which each has a derivative of its own."""
    b = _node(params, _split(name)[0])["b"]
    return jnp.broadcast_to(b, (n, *b.shape))


def _node(params: Params, path: str) -> Any:
    for key in filter(None, path.split("/")):
        params = params[key]
    return params


def _inserted(node: Any, keys: list[str], value: Array) -> Any:
    return {**node, keys[0]: _inserted(node[keys[0]], keys[1:], value) if keys[1:] else value}


def _feature(
    model: Evaluation, name: str, inputs: dict[str, Array], cotangents: Array, outputs: Outputs
) -> Pair | Jacobian:
    path, own = _split(name)
    k, n = cotangents.shape[:2]
    f = cotangents.shape[-1]
    if own == "b":
        return Jacobian(cotangents.transpose(1, 0, 2))
    rows = model.rows[path](inputs[path])
    cotangents = cotangents.reshape(k, n, -1, f).transpose(1, 0, 2, 3)
    if _stays_factored(rows, cotangents, outputs):
        return Pair(rows, cotangents)
    # `D' R`, the transposed derivative: both sides of a product have the same order of weights.
    by_weights = jnp.einsum("iapf,ipc->iafc", cotangents, rows, precision="highest")
    return Jacobian(by_weights.reshape(n, k, -1))


def _stays_factored(rows: Array, cotangents: Array, outputs: Outputs) -> bool:
    """Whether products of rows and of cotangents are cheaper, for a pair of examples, than those of derivatives.

    With several positions the products must also be multiplied entry by entry, hence the margin of
    2.
    """
    _, positions, fan_in = rows.shape
    _, k, _, features = cotangents.shape
    blocks = k * k if outputs == "full" else k
    factored = positions**2 * (fan_in + blocks * features)
    # With one position, `<r d', s e'> = (r . s) (d . e)` is two numbers for a matrix each.
    return positions == 1 or 2 * factored <= blocks * fan_in * features
