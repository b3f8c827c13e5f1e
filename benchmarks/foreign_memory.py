"""Peak memory of the tangent kernel of a flax ResNet-18 with BatchNorm, above that of one forward pass.

    python -m benchmarks.foreign_memory [--images 32] [--width 64] [--memory 4294967296]

Images have the shape of CIFAR's, 10 outputs; BatchNorm is in evaluation mode. Each measurement runs
in a process of its own, whose largest resident set is read by `resource.getrusage`. Beside it stand
the times of the trace kernel and of plain `jax.vmap(jax.grad)` of one output.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any

__all__ = ["resnet18"]

CASES = ("forward", "trace", "full", "vmap(grad)")


def resnet18(width: int) -> Any:
    """The module: a 3x3 stem, four groups of two blocks, with BatchNorm after every convolution."""
    from flax import linen

    class Block(linen.Module):
        features: int
        stride: int

        @linen.compact
        def __call__(self, x, train=True):
            norm = partial(linen.BatchNorm, use_running_average=not train)
            conv = partial(linen.Conv, self.features, use_bias=False)
            h = linen.relu(norm()(conv((3, 3), strides=(self.stride,) * 2)(x)))
            h = norm()(conv((3, 3))(h))
            if h.shape != x.shape:
                x = norm()(conv((1, 1), strides=(self.stride,) * 2)(x))
            return linen.relu(h + x)

    class ResNet18(linen.Module):
        @linen.compact
        def __call__(self, x, train=True):
            x = linen.Conv(width, (3, 3), use_bias=False)(x)
            x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
            for group in range(4):
                for block in range(2):
                    stride = 2 if group > 0 and block == 0 else 1
                    x = Block(width * 2**group, stride)(x, train)
            return linen.Dense(10)(x.mean((1, 2)))

    return ResNet18()


def _measured(case: str, images: int, width: int, memory: int) -> dict[str, float]:
    """Seconds of the first call and the largest resident set in bytes, in this process."""
    import jax

    import lazynet as ln

    x = jax.random.normal(jax.random.key(0), (images, 32, 32, 3))
    model = ln.from_flax(resnet18(width), train=False)
    params = jax.jit(model.init)(jax.random.key(1), x)
    jax.block_until_ready(jax.jit(model.apply)(params, x))
    start = time.perf_counter()
    if case in ("trace", "full"):
        kernel = ln.empirical_ntk(model.apply, params, x, outputs=case, memory=memory)
        jax.block_until_ready(kernel)
    if case == "vmap(grad)":
        gradient = jax.grad(lambda w, one: model.apply(w, one[None])[0, 0])
        jax.block_until_ready(jax.jit(jax.vmap(gradient, (None, 0)))(params, x))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--memory", type=int, default=2**32)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--case", choices=CASES)
    options = parser.parse_args()
    sizes = (options.images, options.width, options.memory)
    if options.case:
        print(json.dumps(_measured(options.case, *sizes)))
        return
    forward = 0.0
    for case in options.cases:
        arguments = [f"--images={sizes[0]}", f"--width={sizes[1]}", f"--memory={sizes[2]}"]
        command = [sys.executable, "-m", "benchmarks.foreign_memory", "--case", case, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        forward = found["peak"] if case == "forward" else forward
        above = (found["peak"] - forward) / 2**30
        print(f"{case:12s} {found['seconds']:8.1f} s, peak {above:6.2f} GiB above one forward pass")


if __name__ == "__main__":
    main()
