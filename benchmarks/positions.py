"""Kernels by covariances of all pairs of positions (NNGP and NTK, float32) beside neural-tangents, per kernel entry.

What the engine for images does not cover: lines, transposed convolutions, graphs, attention, masks,
and kernels that are images. Both sides are one compiled program of the same `stax` network, and
hold the same covariances, so that ratios near one are what to expect.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Case, Program, jitted
from benchmarks.peers import beside, neural_tangents
from lazynet import stax

MISSING = 100.0
"""What stands for a missing entry."""


def cases(quick: bool) -> Iterator[Case]:
    n, length = (4, 32) if quick else (16, 64)
    side = 6 if quick else 12
    yield _case("4 convolutions over a line, global pooling", line, (n, length, 3))
    yield _case("2 transposed convolutions, global pooling", transposed, (n, length // 4, 3))
    yield _case("2 sums over a graph, global pooling", graph, (n, length, 3), graphs=True)
    yield _case("2 layers of attention, global pooling", attention, (n, length // 2, 3))
    yield _case("4 convolutions over a masked line", line, (n, length, 3), masks=True)
    yield _case("2 convolutions, a kernel that is an image", image, (n // 2, side, side, 3))


def line(library: Any) -> Any:
    body = [
        part
        for _ in range(4)
        for part in (library.Conv(1, (3,), None, "SAME", 1.4), library.Relu())
    ]
    return library.serial(*body, library.GlobalAvgPool(), library.Dense(1))


def transposed(library: Any) -> Any:
    body = [
        part
        for _ in range(2)
        for part in (library.ConvTranspose(1, (3,), (2,), "SAME", 1.4), library.Relu())
    ]
    return library.serial(*body, library.GlobalAvgPool(), library.Dense(1))


def graph(library: Any) -> Any:
    body = [
        part
        for _ in range(2)
        for part in (library.Dense(1, 1.4), library.Relu(), library.Aggregate())
    ]
    return library.serial(*body, library.GlobalAvgPool(), library.Dense(1))


def attention(library: Any) -> Any:
    def block():
        return library.GlobalSelfAttention(
            8, n_chan_key=8, n_chan_val=8, n_heads=2, linear_scaling=True, W_key_std=1.0
        )

    return library.serial(
        library.Dense(1),
        block(),
        library.Relu(),
        block(),
        library.GlobalAvgPool(),
        library.Dense(1),
    )


def image(library: Any) -> Any:
    body = [
        part
        for _ in range(2)
        for part in (library.Relu(), library.Conv(1, (3, 3), None, "SAME", 1.4))
    ]
    return library.serial(library.Dense(1), *body)


def _case(name: str, build: Callable[[Any], Any], shape, *, masks=False, graphs=False) -> Case:
    def programs():
        measured = functools.partial(_program, shape=shape, masks=masks, graphs=graphs)
        return {
            "lazynet": measured(build(stax)),
            "neural-tangents": beside(
                neural_tangents, lambda library: measured(build(library.stax))
            ),
        }

    sizes = " x ".join(map(str, shape[1:-1]))
    title = f"{name}, {shape[0]} x {shape[0]} inputs of {sizes} positions"
    return Case(title, programs, "entry", 5, lambda gram: np.asarray(gram.ntk))


def _program(network: Any, shape, masks, graphs) -> Program:
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=shape) for _ in range(2)]
    if masks:
        for x in inputs:
            # Whole positions, with all their channels.
            x[rng.random(shape[:2]) < 0.2] = MISSING
    patterns = [rng.random((*shape[:2], shape[1])) < 0.1 for _ in range(2)] if graphs else []
    known = {"mask_constant": MISSING} if masks else {}

    def kernel(x1, x2, *pattern):
        told = {"pattern": pattern} if pattern else {}
        return network[2](x1, x2, ("nngp", "ntk"), **known, **told)

    arrays = [jnp.asarray(x, jnp.float32) for x in (*inputs, *patterns)]
    return jitted(kernel, *arrays, entries=shape[0] ** 2)
