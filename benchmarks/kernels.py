"""Cost of infinite-width kernels, side by side with neural-tangents where it can be imported.

    python benchmarks/kernels.py [--jobs gap21 flat21 myrtle5 wide_resnet fc4] [--sizes]

Prints CPU time and wall time per kernel entry (NNGP and NTK, float32) of both libraries in the same run, their ratio,
and for the 21-layer networks the time per pair of positions and layer beside the arithmetic bound of one core
(58 operations). With `--sizes`, the cost per entry of the upper triangle of a Gram matrix against the number of images,
which should not depend on it. neural-tangents imports on jax < 0.6 only; elsewhere its column is empty. Times are the
smallest of three runs after compilation; on a shared machine trust the ratio of CPU times.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import stax
from lazynet.kernels import analytic_kernel

SQRT2 = math.sqrt(2.0)


class Timing(NamedTuple):
    """Milliseconds per entry."""

    compile_s: float
    cpu: float
    wall: float


def reference() -> Any:
    """neural-tangents' stax, or None."""
    sys.modules.setdefault("neural_tangents.experimental", types.ModuleType("neural_tangents.experimental"))
    try:
        from neural_tangents import stax as found
    except ImportError:
        return None
    return found


def conv21(library: Any, head: str) -> Any:
    body = [part for _ in range(21) for part in (library.Conv(1, (3, 3), (1, 1), "SAME", SQRT2), library.Relu())]
    return library.serial(*body, getattr(library, head)())


def myrtle5(library: Any) -> Any:
    def conv():
        return library.Conv(1, (3, 3), (1, 1), "SAME", SQRT2), library.Relu()

    pool = library.AvgPool((2, 2), (2, 2))
    return library.serial(
        *conv(), *conv(), pool, *conv(), pool, *conv(), pool, pool, pool, library.Flatten(), library.Dense(10, SQRT2)
    )


def wide_resnet(library: Any) -> Any:
    def block(strides, shortcut):
        main = library.serial(
            library.Relu(),
            library.Conv(1, (3, 3), strides, "SAME"),
            library.Relu(),
            library.Conv(1, (3, 3), (1, 1), "SAME"),
        )
        return library.serial(library.FanOut(2), library.parallel(main, shortcut), library.FanInSum())

    groups = [
        part
        for s in ((1, 1), (2, 2), (2, 2))
        for part in (block(s, library.Conv(1, (3, 3), s, "SAME")), block((1, 1), library.Identity()))
    ]
    return library.serial(
        library.Conv(1, (3, 3), (1, 1), "SAME"), *groups, library.AvgPool((8, 8)), library.Flatten(), library.Dense(10)
    )


def fc4(library: Any) -> Any:
    body = [part for _ in range(4) for part in (library.Dense(512, SQRT2, 0.1), library.Relu())]
    return library.serial(*body, library.Dense(1))


def timed(run: Callable[[], Any], entries: int, repeats: int = 3) -> Timing:
    start = time.perf_counter()
    jax.block_until_ready(run())
    compile_s, best = time.perf_counter() - start, (math.inf, math.inf)
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(run())
        best = min(best, (time.process_time() - cpu, time.perf_counter() - wall))
    return Timing(compile_s, *(1e3 * t / entries for t in best))


def images(n: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, 32, 32, 3)), jnp.float32)


def job(
    name: str, build: Callable[[Any], Any], ours: tuple[int, int | None], theirs: tuple[int, int | None], peer: Any
) -> None:
    """Prints one line of the table."""

    def inputs(sizes):
        make = images if name != "fc4" else lambda n, seed: images(n, seed)[:, 0, :, 0]
        return make(sizes[0], 0), None if sizes[1] is None else make(sizes[1], 1)

    def entries(sizes):
        return sizes[0] * (sizes[0] if sizes[1] is None else sizes[1])

    x1, x2 = inputs(ours)
    network = build(stax).model
    mine = timed(lambda: analytic_kernel(network, x1, x2), entries(ours))
    line = f"{name:12s} lazynet {mine.cpu:10.4f} cpu-ms {mine.wall:10.4f} ms  first call {mine.compile_s:5.1f} s"
    if peer is not None:
        kernel_fn = jax.jit(build(peer)[2], static_argnames="get")
        z1, z2 = inputs(theirs)
        other = timed(lambda: kernel_fn(z1, z2, get=("nngp", "ntk")), entries(theirs))
        line += f" | neural-tangents {other.cpu:10.4f} cpu-ms {other.wall:10.4f} ms"
        line += f" | ratio {other.cpu / mine.cpu:6.1f} cpu {other.wall / mine.wall:6.1f} wall"
    if name.endswith("21"):
        pairs = 21 * (1024**2 if name == "gap21" else 1024)
        line += f" | {1e6 * mine.cpu / pairs:.2f} ns per pair of positions and layer"
    print(line, flush=True)


def sizes(name: str, head: str, counts: tuple[int, ...]) -> None:
    """Prints the cost per unique entry for Gram matrices of several sizes, and the largest deviation."""
    network, costs = conv21(stax, head).model, []
    for n in counts:
        x = images(n, 0)
        costs.append(timed(lambda x=x: analytic_kernel(network, x), n * (n + 1) // 2, repeats=1 if n > 32 else 2))
    spread = max(cost.cpu for cost in costs) / min(cost.cpu for cost in costs) - 1
    line = ", ".join(f"N={n} {cost.cpu:.4f}" for n, cost in zip(counts, costs, strict=True))
    print(f"{name} cpu-ms per entry of the upper triangle: {line}; spread {100 * spread:.0f} %", flush=True)


def main() -> None:
    jobs = {
        "gap21": (lambda library: conv21(library, "GlobalAvgPool"), (1, 32), (1, 1)),
        "flat21": (lambda library: conv21(library, "Flatten"), (32, 32), (32, 32)),
        "myrtle5": (myrtle5, (4, 32), (1, 2)),
        "wide_resnet": (wide_resnet, (4, 32), (1, 1)),
        "fc4": (fc4, (4000, None), (4000, None)),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="*", default=list(jobs), choices=list(jobs))
    parser.add_argument("--sizes", action="store_true", help="also the cost per entry against the number of images")
    arguments = parser.parse_args()
    peer = reference()
    found = "found" if peer else "not importable here"
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, neural-tangents {found}", flush=True)
    for name in arguments.jobs:
        job(name, *jobs[name], peer)
    if arguments.sizes:
        sizes("gap21", "GlobalAvgPool", (16, 32, 64))
        sizes("flat21", "Flatten", (64, 128, 256, 512))


if __name__ == "__main__":
    main()
