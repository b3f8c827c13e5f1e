"""Scattering transforms beside kymatio's: time of an RGB image, construction of the filters, and compilation.

Only kymatio's 2D frontends are measured, its JAX frontend jitted. Expected on a CPU, 32 x 32 RGB, J
= 2: kymatio's JAX frontend / lazynet at least 1.5, its NumPy frontend / lazynet at least 2.5;
compilation at J = 5 / lazynet at least 4 forward and 10 with gradient; filters at least 20. A run
that is not quick also transforms 60,000 images by one thread for each core: under 90 s on 2 cores;
kymatio's gradient at J = 5 takes minutes to compile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Case, Program, jitted
from benchmarks.peers import beside, kymatio
from lazynet.scattering import filter_bank, scattering2d


def cases(quick: bool) -> Iterator[Case]:
    for size, J, n in (
        ((32, 2, 32), (128, 2, 1)) if quick else ((32, 2, 32), (32, 4, 8), (256, 4, 1))
    ):
        name = f"{size} x {size} RGB, J = {J}, batch of {n}"
        yield Case(name, partial(_images, size, J, n), "image", 3 if quick else 7, np.asarray)
    for size, J in ((32, 2), (32, 4)) if quick else ((32, 2), (32, 5), (128, 3)):
        yield Case(
            f"filters for {size} x {size}, J = {J}", partial(_construction, size, J), "filter bank"
        )
    for J, gradient in ((2, False), (2, True)) if quick else ((2, False), (5, False), (5, True)):
        name = f"compilation at J = {J}, {'gradient' if gradient else 'forward'}"
        yield Case(name, partial(_compilation, J, gradient), "program", rounds=0)
    if not quick:
        yield Case("60,000 RGB images 32 x 32, J = 2, order 2", _all_of_cifar, "image", rounds=0)


def _images(size, J, n) -> dict[str, Program]:
    x = np.random.default_rng(0).standard_normal((n, 3, size, size)).astype(np.float32)
    device_x = jnp.asarray(x)
    filters = filter_bank((size, size), J)

    def compiled(library):
        return jitted(library.ScatteringJax2D(J, (size, size)).scattering, device_x, entries=n)

    def on_host(library):
        transform = library.ScatteringNumPy2D(J, (size, size)).scattering
        return Program(lambda: transform(x), n)

    return {
        "lazynet": Program(lambda: scattering2d(device_x, filters), n),
        "kymatio, JAX": beside(partial(kymatio, "frontend.jax_frontend"), compiled),
        "kymatio, NumPy": beside(partial(kymatio, "frontend.numpy_frontend"), on_host),
    }


def _construction(size, J) -> dict[str, Program]:
    # The size to which kymatio pads images.
    padded = ((size + 2**J) // 2**J + 1) * 2**J

    def theirs(library):
        return Program(lambda: library.filter_bank(padded, padded, J) and None)

    ours = Program(lambda: filter_bank((size, size), J).psi)
    return {"lazynet": ours, "kymatio": beside(partial(kymatio, "filter_bank"), theirs)}


def _compilation(J, gradient) -> dict[str, Program]:
    # Values do not matter to a compiler.
    x = jnp.zeros((1, 32, 32), jnp.float32)
    filters = filter_bank((32, 32), J)

    def program(transform):
        function = jax.grad(lambda u: (transform(u) ** 2).sum()) if gradient else transform
        # Compiled at every call, and never run.
        return Program(lambda: jax.jit(function).lower(x).compile(), note=_fft_operations)

    def theirs(library):
        return program(library.ScatteringJax2D(J, (32, 32)).scattering)

    ours = program(lambda u: scattering2d(u, filters))
    return {
        "lazynet": ours,
        "kymatio, JAX": beside(partial(kymatio, "frontend.jax_frontend"), theirs),
    }


def _fft_operations(compiled, _) -> str:
    return f"{compiled.as_text().count(' fft(')} FFT operations"


def _all_of_cifar(batch=500, total=60_000) -> dict[str, Program]:
    """The coefficients are summed and dropped."""
    x = np.random.default_rng(0).random((batch, 3, 32, 32), np.float32)
    filters = filter_bank((32, 32), 2)
    transform = jax.jit(lambda u, f: scattering2d(u, f).sum(0))
    workers = os.cpu_count() if jax.default_backend() == "cpu" else 1

    def run():
        with ThreadPoolExecutor(workers) as pool:
            return list(
                pool.map(
                    lambda _: jax.block_until_ready(transform(x, filters)), range(total // batch)
                )
            )[-1]

    return {"lazynet": Program(run, total)}
