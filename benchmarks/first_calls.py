"""First calls of infinite-width kernels: what it takes to trace, compile and run the kernel of one pair of inputs.

A person who tries a kernel on a few images meets this before anything else. Networks are those of
`kernels`, on images of several sizes, a small WideResNet with groups of residual blocks, and a deep
network of vectors whose weights are large enough that no factor of its variances is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import conv21, myrtle5, wide_resnet
from benchmarks.measure import Case, Program
from benchmarks.peers import beside, neural_tangents
from lazynet import stax
from lazynet.kernels.analytic import analytic_kernel


def cases(quick: bool) -> Iterator[Case]:
    sizes = (8,) if quick else (4, 8, 32)
    for size in sizes:
        yield _case("gap21", partial(conv21, head="GlobalAvgPool"), _image(size))
        yield _case("flat21", partial(conv21, head="Flatten"), _image(size))
        yield _case("WideResNet of 1 group", partial(small_wide_resnet, groups=1), _image(size))
        yield _case("WideResNet of 3 groups", partial(small_wide_resnet, groups=3), _image(size))
    yield _case("myrtle5", myrtle5, _image(32))
    yield _case("wide_resnet", wide_resnet, _image(32))
    for depth in (40,) if quick else (40, 300):
        yield _case(
            f"ReLU network of depth {depth}",
            partial(deep, depth=depth),
            jnp.ones((1, 4), jnp.float32),
        )


def small_wide_resnet(library: Any, groups: int) -> Any:
    """One block a group, and windows of 8 x 8 that move by one pixel."""

    def conv(strides):
        return library.Conv(1, (3, 3), strides, "SAME")

    def block(strides):
        main = library.serial(library.Relu(), conv(strides), library.Relu(), conv((1, 1)))
        return library.serial(
            library.FanOut(2), library.parallel(main, conv(strides)), library.FanInSum()
        )

    blocks = [block((1, 1) if group == 0 else (2, 2)) for group in range(groups)]
    head = library.AvgPool((8, 8), padding="SAME"), library.Flatten(), library.Dense(1, 1.0, 0.0)
    return library.serial(conv((1, 1)), *blocks, *head)


def deep(library: Any, depth: int) -> Any:
    body = [part for _ in range(depth) for part in (library.Dense(1, 1.5), library.Relu())]
    return library.serial(*body, library.Dense(1))


def _case(name: str, build: Callable[[Any], Any], x: jax.Array) -> Case:
    def programs():
        network = build(stax).model
        peer = beside(neural_tangents, lambda library: Program(_peer(build(library.stax), x)))
        return {
            "lazynet": Program(lambda: analytic_kernel(network, x, 2 * x)),
            "neural-tangents": peer,
        }

    size = "vectors" if x.ndim == 2 else f"images of {x.shape[1]} x {x.shape[2]}"
    # Zero rounds: the first call is what is measured.
    return Case(f"{name}, {size}", programs, "first call", 0, lambda gram: np.asarray(gram.ntk))


def _peer(network: Any, x: jax.Array) -> Callable[[], Any]:
    return lambda: jax.jit(lambda a, b: network[2](a, b, get=("nngp", "ntk")))(x, 2 * x)


def _image(size: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(1, size, size, 3)), jnp.float32)
