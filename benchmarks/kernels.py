"""Infinite-width kernels (NNGP and NTK, float32) beside neural-tangents, per kernel entry.

`gap21` and `flat21` are 21 convolutions with ReLU and global pooling or Flatten, on 32 x 32 images;
`fc4` has 4 hidden layers. neural-tangents gets fewer entries of the networks with pooling, for
which it needs seconds each. The row "arithmetic alone" is a product of matrices of as many
multiply-adds as those 58 that a pair of positions takes in a layer: no program can be cheaper.
Against the number of images N, the cost per entry of the upper triangle should stay.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Case, Program, jitted
from benchmarks.peers import beside, neural_tangents
from lazynet import stax
from lazynet.covariance.cpu import SWITCH
from lazynet.kernels.analytic import analytic_kernel

SQRT2 = math.sqrt(2.0)
OPERATIONS = 58
"""Multiply-adds for a pair of positions in a layer, convolution and ReLU."""

# Pooling needs all pairs of the 1,024 positions, Flatten those of equal ones.
PAIRS = {"gap21": 21 * 1024**2, "flat21": 21 * 1024}
"""Pairs of positions times layers of an entry."""


def cases(quick: bool) -> Iterator[Case]:
    pooled = (2, 16) if quick else (4, 32)
    yield _case("gap21", partial(conv21, head="GlobalAvgPool"), (1, 32), (1, 1), 1 if quick else 3)
    yield _case("flat21", partial(conv21, head="Flatten"), (32, 32), (32, 32), 3)
    yield _case("myrtle5", myrtle5, pooled, (1, 2), 1 if quick else 3)
    yield _case("wide_resnet", wide_resnet, pooled, (1, 1), 1 if quick else 3)
    yield _case("fc4", fc4, *[(1000 if quick else 4000, None)] * 2, 3)
    pooled21 = partial(conv21, head="GlobalAvgPool")
    yield _by_shape("gap21", pooled21, ((2, 2),) if quick else ((4, 4), (16, 16), (1, 32)))
    if not quick:
        yield _by_shape("myrtle5", myrtle5, ((4, 4), (16, 16)))
        yield _against_n("gap21", "GlobalAvgPool", (16, 32, 64))
        yield _against_n("flat21", "Flatten", (64, 128, 256, 512))


def conv21(library: Any, head: str) -> Any:
    body = [
        part
        for _ in range(21)
        for part in (library.Conv(1, (3, 3), (1, 1), "SAME", SQRT2), library.Relu())
    ]
    return library.serial(*body, getattr(library, head)())


def myrtle5(library: Any) -> Any:
    def conv():
        return library.Conv(1, (3, 3), (1, 1), "SAME", SQRT2), library.Relu()

    pool = library.AvgPool((2, 2), (2, 2))
    return library.serial(
        *conv(),
        *conv(),
        pool,
        *conv(),
        pool,
        *conv(),
        pool,
        pool,
        pool,
        library.Flatten(),
        library.Dense(10, SQRT2),
    )


def wide_resnet(library: Any) -> Any:
    def block(strides, shortcut):
        main = library.serial(
            library.Relu(),
            library.Conv(1, (3, 3), strides, "SAME"),
            library.Relu(),
            library.Conv(1, (3, 3), (1, 1), "SAME"),
        )
        return library.serial(
            library.FanOut(2), library.parallel(main, shortcut), library.FanInSum()
        )

    groups = [
        part
        for s in ((1, 1), (2, 2), (2, 2))
        for part in (
            block(s, library.Conv(1, (3, 3), s, "SAME")),
            block((1, 1), library.Identity()),
        )
    ]
    return library.serial(
        library.Conv(1, (3, 3), (1, 1), "SAME"),
        *groups,
        library.AvgPool((8, 8)),
        library.Flatten(),
        library.Dense(10),
    )


def fc4(library: Any) -> Any:
    body = [part for _ in range(4) for part in (library.Dense(512, SQRT2, 0.1), library.Relu())]
    return library.serial(*body, library.Dense(1))


def _case(name, build: Callable[[Any], Any], ours, theirs, rounds) -> Case:
    # The peer has fewer entries: answers are compared on the corner that both have.
    shared = tuple(min(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None)
    corner = (slice(shared[0]), slice(shared[-1]))

    def programs():
        found = {
            "lazynet": _lazynet(name, build, ours),
            "neural-tangents": beside(
                neural_tangents, lambda library: _peer(name, build(library.stax), theirs)
            ),
        }
        return found | ({"arithmetic alone": _arithmetic(name)} if name in PAIRS else {})

    title = f"{name}, {ours[0]:,} x {ours[1] or ours[0]:,} images"
    return Case(title, programs, "entry", rounds, lambda gram: _corner(gram, corner))


def _lazynet(name, build, sizes) -> Program:
    network = build(stax).model
    inputs = _inputs(name, sizes)
    note = (
        (lambda _, cpu_s: f"{1e9 * cpu_s / PAIRS[name]:.2f} ns a pair and layer")
        if name in PAIRS
        else ""
    )
    return Program(lambda: analytic_kernel(network, *inputs), _entries(sizes), note=note)


def _peer(name, network, sizes) -> Program:
    def kernel(x1, x2):
        return network[2](x1, x2, get=("nngp", "ntk"))

    return jitted(
        kernel,
        *_inputs(name, sizes),
        entries=_entries(sizes),
        note=f"{_entries(sizes):,.0f} entries",
    )


def _arithmetic(name, size=1024) -> Program:
    # The size^3 multiply-adds of a product of matrices, in entries of the kernel.
    entries = size**3 / (OPERATIONS * PAIRS[name])
    return jitted(
        lambda a: jnp.matmul(a, a, precision="highest"),
        jnp.ones((size, size), jnp.float32),
        entries=entries,
    )


def _corner(result, corner):
    """The part of the NTK that all programs have; a product of matrices has none."""
    return np.asarray(result.ntk)[corner] if hasattr(result, "ntk") else None


def _by_shape(name: str, build: Callable[[Any], Any], shapes: tuple[tuple[int, int], ...]) -> Case:
    """Sets of several sizes: by the compiled program (if llvmlite is installed) in both precisions, and by JAX."""

    def programs():
        network = build(stax).model
        found = {}
        for n1, n2 in shapes:
            inputs = images(n1, 0), images(n2, 1)
            size = f"{n1} x {n2}"
            found[f"{size}, float32"] = _switched(network, inputs, "1", wide=False)
            found[f"{size}, float64"] = _switched(network, inputs, "1", wide=True)
            found[f"{size}, float32, by JAX"] = _switched(network, inputs, "0", wide=False)
        return found

    return Case(f"{name}, sets of several sizes", programs, "entry", 2)


def _switched(network, inputs, switch: str, *, wide: bool) -> Program:
    def run():
        # Set around each call, since programs of a case take turns in one process.
        chosen = os.environ.get(SWITCH)
        os.environ[SWITCH] = switch
        before = jax.config.jax_enable_x64
        # jax would round float64 inputs to float32 otherwise.
        jax.config.update("jax_enable_x64", wide or before)
        try:
            return analytic_kernel(
                network, *(np.asarray(x, float if wide else None) for x in inputs)
            )
        finally:
            jax.config.update("jax_enable_x64", before)
            if chosen is None:
                del os.environ[SWITCH]
            else:
                os.environ[SWITCH] = chosen

    return Program(run, len(inputs[0]) * len(inputs[1]))


def _against_n(name: str, head: str, counts: tuple[int, ...]) -> Case:
    def programs():
        network = conv21(stax, head).model
        inputs = {n: images(n, 0) for n in counts}
        return {
            f"N = {n}": Program(lambda x=x: analytic_kernel(network, x), n * (n + 1) // 2)
            for n, x in inputs.items()
        }

    title = f"{name}, Gram matrix of N = {', '.join(map(str, counts))}"
    return Case(title, programs, "entry of the upper triangle", 1 if head == "GlobalAvgPool" else 3)


def images(n: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, 32, 32, 3)), jnp.float32)


def _inputs(name, sizes):
    whole = [None if n is None else images(n, seed) for seed, n in enumerate(sizes)]
    # A line of one channel of the image is a vector of 32 entries.
    return [x[:, 0, :, 0] if name == "fc4" and x is not None else x for x in whole]


def _entries(sizes) -> int:
    return sizes[0] * (sizes[0] if sizes[1] is None else sizes[1])
