"""Full empirical kernels `[n, n, k, k]` in float32 beside plain JAX and neural-tangents, per kernel.

A 3072-2048-2048-2048-8 network and a small residual network on 32 x 32 images, both written with
the layers of lazynet. "plain JAX" is `jax.vmap(jax.grad)` and one product of matrices a parameter,
"neural-tangents 1" to "3" are its implementations (the first is its default) with `vmap_axes=0`. Of
functions that lazynet does not know it takes Jacobians example by example: the rows "general".
Memory is what the compiler reserves beside parameters and inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Case, Program, jitted
from benchmarks.peers import beside, neural_tangents
from lazynet import zoo
from lazynet.kernels.empirical import empirical_ntk
from lazynet.kernels.empirical.jacobians import chosen_names
from lazynet.kernels.empirical.memory import MEMORY, peak_bytes, plan
from lazynet.models.model import Model
from lazynet.trees import as_partial


def cases(quick: bool) -> Iterator[Case]:
    width, n = (1024, 8) if quick else (2048, 16)
    yield _case(
        f"fc 3072-{width}-{width}-{width}-8, {n} examples",
        lambda: (_fc(width), (3072,)),
        n,
        peers=True,
    )
    yield _case(
        f"resnet, {n} examples", lambda: (zoo.wide_resnet(1, width=1), (32, 32, 3)), n, peers=True
    )
    if not quick:
        yield _case(f"fc of width {width}, general", lambda: (_fc(width), (3072,)), n, peers=False)
        yield _case(
            "resnet, general", lambda: (zoo.wide_resnet(1, width=1), (32, 32, 3)), n, peers=False
        )


def _fc(width) -> Model:
    return zoo.mlp((width, width, width), 8)


def _case(
    name: str, network: Callable[[], tuple[Model, tuple[int, ...]]], n: int, peers: bool
) -> Case:
    def programs():
        model, shape = network()
        x = jnp.asarray(np.random.default_rng(0).normal(size=(n, *shape)), jnp.float32)
        params = jax.jit(model.init)(jax.random.key(0), x)
        k = model.apply(params, x[:1]).shape[1]
        # A lambda hides the layers: it is differentiated as a function that is not known.
        ours = model.apply if peers else lambda w, examples: model.apply(w, examples)
        found = {
            "lazynet": lazynet(ours, params, x),
            "plain JAX": jitted(by_gradients(model.apply, k), params, x),
        }
        return found | (
            {f"neural-tangents {i}": _peer(model.apply, params, x, i) for i in (1, 2, 3)}
            if peers
            else {}
        )

    return Case(name, programs, "kernel", 3 if peers else 1, np.asarray)


def lazynet(apply: Callable[..., Any], params: Any, x: jax.Array) -> Program:
    """The kernel by this library, with the memory that it plans."""

    def reserved():
        function = as_partial(apply)
        names = chosen_names(params, None)
        tile, groups = plan(function, params, x, names, "full", MEMORY, None)
        # Groups of parameters come one after another: the largest one is the peak.
        return max(peak_bytes(function, params, x[:tile], group, "full") for group in groups)

    return Program(lambda: empirical_ntk(apply, params, x), reserved=reserved)


def by_gradients(apply: Callable[..., Any], k: int) -> Callable[..., Any]:
    """The kernel from the gradients of every output of every example."""

    def gradients(params, x):
        def output(w, example, a):
            return apply(w, example[None])[0, a]

        of_one = jax.vmap(jax.grad(output), (None, None, 0))
        return jax.vmap(lambda example: of_one(params, example, jnp.arange(k)))(x)

    def ntk(params, x):
        flat = [leaf.reshape(len(x) * k, -1) for leaf in jax.tree.leaves(gradients(params, x))]
        total = sum(leaf @ leaf.T for leaf in flat)
        # From rows (example, output) to `[n, n, k, k]`.
        return total.reshape(len(x), k, len(x), k).transpose(0, 2, 1, 3)

    return ntk


def _peer(apply, params, x, implementation) -> Program:
    def build(library):
        ntk_fn = library.empirical_ntk_fn(
            apply, trace_axes=(), vmap_axes=0, implementation=implementation
        )
        return jitted(lambda w, examples: ntk_fn(examples, None, w), params, x)

    return beside(neural_tangents, build)
