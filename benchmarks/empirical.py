"""Cost of empirical tangent kernels, side by side with other ways to them in the same run.

    python benchmarks/empirical.py [--jobs fc resnet] [--ways lazynet grad nt1 nt2 nt3 general]

The full kernel `[16, 16, k, k]` in float32 of a 3072-2048-2048-2048-8 network and of a small residual network on
32x32 images, both written with the layers of lazynet. `lazynet` knows them; `general` (on demand; minutes on the first
network) does not. `grad` is `jax.vmap(jax.grad)` and one product of matrices a parameter; `nt1` to `nt3` are the
implementations of neural-tangents (the first is its default), with `vmap_axes=0`, where it can be imported (jax < 0.6).
Prints CPU time and wall time, the smallest of three runs after compilation, their ratio to lazynet, and the memory
beside parameters and inputs that the compiler reserves. On a shared machine trust the ratio of CPU times.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lazynet import zoo
from lazynet.empirical import empirical_ntk
from lazynet.empirical.jacobians import chosen_names
from lazynet.empirical.memory import MEMORY, peak_bytes, plan
from lazynet.losses import as_partial
from lazynet.model import Model

EXAMPLES = 16
WAYS = ("lazynet", "grad", "nt1", "nt2", "nt3", "general")


class Timing(NamedTuple):
    """Seconds and bytes of one way to the kernel."""

    compile_s: float
    cpu: float
    wall: float
    bytes: int
    ntk: np.ndarray


def reference() -> Any:
    """neural-tangents, or None; its implementation 3 reads two names that jax 0.5.3 has no more."""
    sys.modules.setdefault("neural_tangents.experimental", types.ModuleType("neural_tangents.experimental"))
    interpreter = importlib.import_module("jax.interpreters.ad")
    names = importlib.import_module("jax._src.source_info_util")
    for name, value in (("source_info_util", names), ("config", jax.config)):
        if not hasattr(interpreter, name):
            setattr(interpreter, name, value)
    try:
        return importlib.import_module("neural_tangents")
    except (ImportError, AttributeError):
        return None


def fc() -> tuple[Model, tuple[int, ...]]:
    return zoo.mlp((2048, 2048, 2048), 8), (3072,)


def resnet() -> tuple[Model, tuple[int, ...]]:
    return zoo.wide_resnet(1, width=1), (32, 32, 3)


def by_grad(apply: Callable[..., Any], k: int) -> Callable[..., Any]:
    """The kernel from the gradients of every output of every example."""

    def gradients(params, x):
        def output(w, example, a):
            return apply(w, example[None])[0, a]

        of_one = jax.vmap(jax.grad(output), (None, None, 0))
        return jax.vmap(lambda example: of_one(params, example, jnp.arange(k)))(x)

    def ntk(params, x):
        flat = [leaf.reshape(len(x) * k, -1) for leaf in jax.tree.leaves(gradients(params, x))]
        total = sum(leaf @ leaf.T for leaf in flat)
        return total.reshape(len(x), k, len(x), k).transpose(0, 2, 1, 3)

    return ntk


def timed(run: Callable[[], Any], reserved: Callable[[], int]) -> Timing:
    start = time.perf_counter()
    ntk = np.asarray(run())
    compile_s, best = time.perf_counter() - start, (math.inf, math.inf)
    for _ in range(3):
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(run())
        best = min(best, (time.process_time() - cpu, time.perf_counter() - wall))
    return Timing(compile_s, *best, reserved(), ntk)


def ours(apply: Callable[..., Any], params: Any, x: jax.Array) -> Timing:
    def reserved():
        function, names = as_partial(apply), chosen_names(params, None)
        tile, groups = plan(function, params, x, names, "full", MEMORY, None)
        return max(peak_bytes(function, params, x[:tile], group, "full") for group in groups)

    return timed(lambda: empirical_ntk(apply, params, x), reserved)


def compiled(function: Callable[..., Any], params: Any, x: jax.Array) -> Timing:
    program = jax.jit(function).lower(params, x).compile()

    def reserved():
        report: Any = program.memory_analysis()
        return report.temp_size_in_bytes + report.output_size_in_bytes

    return timed(lambda: program(params, x), reserved)


def measure(way: str, model: Model, params: Any, x: jax.Array, peer: Any) -> Timing | None:
    if way == "lazynet":
        return ours(model.apply, params, x)
    if way == "general":
        return ours(lambda w, examples: model.apply(w, examples), params, x)
    if way == "grad":
        return compiled(by_grad(model.apply, model.apply(params, x[:1]).shape[1]), params, x)
    if peer is None:
        return None
    ntk_fn = peer.empirical_ntk_fn(model.apply, trace_axes=(), vmap_axes=0, implementation=int(way[-1]))
    return compiled(lambda w, examples: ntk_fn(examples, None, w), params, x)


def job(name: str, network: Callable[[], tuple[Model, tuple[int, ...]]], ways: list[str], peer: Any) -> None:
    """Prints the table of one network."""
    model, shape = network()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(EXAMPLES, *shape)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), x)
    first = None
    for way in ways:
        found = measure(way, model, params, x, peer)
        if found is None:
            continue
        first = found if first is None else first
        error = np.abs(found.ntk - first.ntk).max() / np.abs(first.ntk).max()
        print(
            f"{name:7s} {way:8s} {1e3 * found.cpu:9.1f} cpu-ms {1e3 * found.wall:9.1f} ms"
            f" | ratio {found.cpu / first.cpu:6.2f} cpu {found.wall / first.wall:6.2f} wall"
            f" | {found.bytes / 2**20:8.1f} MiB | first call {found.compile_s:5.1f} s | differs {error:.0e}",
            flush=True,
        )


def main() -> None:
    jobs = {"fc": fc, "resnet": resnet}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="*", default=list(jobs), choices=list(jobs))
    parser.add_argument("--ways", nargs="*", default=list(WAYS[:-1]), choices=WAYS)
    options = parser.parse_args()
    peer = reference()
    found = "found" if peer else "not importable here"
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, neural-tangents {found}", flush=True)
    for name in options.jobs:
        job(name, jobs[name], options.ways, peer)


if __name__ == "__main__":
    main()
