"""The tangent kernel of a flax ResNet-18 with BatchNorm: its memory above that of one forward pass, and its time.

    python -m benchmarks.foreign_memory [--images 32] [--width 64] [--memory 4294967296]

Images have the shape of CIFAR's, 10 outputs; BatchNorm is in evaluation mode. Each measurement runs
in a process of its own, whose largest resident set is read by `resource.getrusage`. Times are CPU
seconds of a call after the first, of the kernel of the sum of the outputs, which needs one gradient
for each example: ours, plain `jax.vmap(jax.grad)`, and `torch.func` where torch can be imported, or
by the interpreter of another environment, `--torch /path/to/python`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["resnet18"]

KERNELS = ("trace", "full", "sum")
CASES = ("forward", *KERNELS, "vmap(grad)", "torch.func")
TIMED = ("sum", "vmap(grad)", "torch.func")
"""Cases that are called twice: the second call compiles nothing."""


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


def torch_resnet18(width: int) -> Any:
    """The same module in torch, channels first."""
    from torch import nn

    def conv(inputs, outputs, size, stride=1):
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.first = conv(inputs, outputs, 3, stride)
            self.second = conv(outputs, outputs, 3)
            same = inputs == outputs and stride == 1
            self.short = nn.Identity() if same else conv(inputs, outputs, 1, stride)

        def forward(self, x):
            return nn.functional.relu(
                self.second(nn.functional.relu(self.first(x))) + self.short(x)
            )

    blocks = [conv(3, width, 3), nn.ReLU()]
    inputs = width
    for group in range(4):
        for block in range(2):
            blocks.append(Block(inputs, width * 2**group, 2 if group > 0 and block == 0 else 1))
            inputs = width * 2**group
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def _torch_kernel(images: int, width: int) -> Callable[[], Any]:
    """The kernel of the sum of the outputs by per-example gradients of `torch.func`."""
    import torch
    from torch.func import functional_call, grad, vmap

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = torch_resnet18(width).eval()
    params = {name: leaf.detach() for name, leaf in network.named_parameters()}
    buffers = dict(network.named_buffers())
    x = torch.randn(images, 3, 32, 32)

    def total(params, one):
        # `outputs="sum"` is the kernel of 1/sqrt(k) sum_a h_a.
        return functional_call(network, {**params, **buffers}, (one[None],)).sum() / 10**0.5

    def kernel():
        rows = [g.flatten(1) for g in vmap(grad(total), (None, 0))(params, x).values()]
        return sum(leaf @ leaf.T for leaf in rows)

    return kernel


def _jax_kernel(case: str, images: int, width: int, memory: int) -> Callable[[], Any]:
    """The kernel of one of our cases, or by plain per-example gradients; after one forward pass."""
    import jax
    import jax.numpy as jnp

    import lazynet as ln

    x = jax.random.normal(jax.random.key(0), (images, 32, 32, 3))
    model = ln.from_flax(resnet18(width), train=False)
    params = jax.jit(model.init)(jax.random.key(1), x)
    forward = jax.jit(model.apply)
    # Part of every case of JAX, so that the memory of a forward pass can be subtracted.
    jax.block_until_ready(forward(params, x))

    @jax.jit
    def plain(params, x):
        # The same function as in torch: k = 10 outputs, summed over sqrt(k).
        gradient = jax.grad(lambda w, one: jnp.sum(model.apply(w, one[None])) / 10**0.5)
        rows = [
            g.reshape(images, -1) for g in jax.tree.leaves(jax.vmap(gradient, (None, 0))(params, x))
        ]
        return sum(jnp.matmul(leaf, leaf.T, precision="highest") for leaf in rows)

    if case in KERNELS:
        return lambda: jax.block_until_ready(
            ln.empirical_ntk(model.apply, params, x, outputs=case, memory=memory)
        )
    return lambda: jax.block_until_ready((plain if case == "vmap(grad)" else forward)(params, x))


def _measured(case: str, images: int, width: int, memory: int) -> dict[str, float]:
    """CPU seconds of the last call and the largest resident set in bytes, in this process."""
    if case == "torch.func":
        kernel = _torch_kernel(images, width)
    else:
        kernel = _jax_kernel(case, images, width, memory)
    # Cases that are measured for their memory alone are called once.
    for _ in range(2 if case in TIMED else 1):
        start = time.process_time()
        kernel()
        seconds = time.process_time() - start
    # macOS counts in bytes, Linux in KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"seconds": seconds, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--memory", type=int, default=2**32)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--torch", default=sys.executable, help="a Python that has torch")
    options = parser.parse_args()
    sizes = (options.images, options.width, options.memory)
    if options.case:
        print(json.dumps(_measured(options.case, *sizes)))
        return
    forward = 0.0
    for case in options.cases:
        arguments = [f"--images={sizes[0]}", f"--width={sizes[1]}", f"--memory={sizes[2]}"]
        python = options.torch if case == "torch.func" else sys.executable
        command = [python, "-m", "benchmarks.foreign_memory", "--case", case, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{case:12s} {done.stderr.splitlines()[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        # The first of the cases, with which the others are compared.
        forward = found["peak"] if case == "forward" else forward
        above = (found["peak"] - forward) / 2**30
        print(
            f"{case:12s} {found['seconds']:8.1f} CPU s, peak {above:6.2f} GiB above one forward pass"
        )


if __name__ == "__main__":
    main()
