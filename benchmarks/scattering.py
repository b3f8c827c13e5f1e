"""Scattering transforms beside kymatio's: CPU time per image, compile time, filter construction, FFT operations.

    python benchmarks/scattering.py [--rounds 7] [--gradient-at-5] [--all-of-cifar]

kymatio 0.3.0 is measured in the same run if it can be imported; only its 2D frontends are, since other parts of it do
not import with a recent SciPy. The programs take turns and the smallest time of each counts. Processor time is the
measure on a CPU, since the programs use different numbers of threads; on an accelerator it is wall time. Expected on
a CPU, 32 x 32 RGB, J = 2: kymatio's jitted JAX frontend / lazynet at least 1.5, its NumPy frontend / lazynet at least
2.5; compile times at J = 5 / lazynet at least 4 forward and 10 with gradient; filter construction at least 20.
Expected on a recent GPU: at most 5 microseconds per image. `--all-of-cifar` transforms 60,000 images: under 90 s on 2
cores, in half a gigabyte, with progress.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.scattering import filter_bank, scattering2d

clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter


def peers():
    """The 2D frontends of kymatio: {name: class}, empty if it is not installed."""
    try:
        from kymatio.scattering2d.frontend.jax_frontend import ScatteringJax2D
        from kymatio.scattering2d.frontend.numpy_frontend import ScatteringNumPy2D
    except ImportError as error:
        print(f"kymatio is not measured: {error}")
        return {}
    return {"kymatio JAX, jitted": ScatteringJax2D, "kymatio NumPy": ScatteringNumPy2D}


def elapsed(function, *arguments):
    start = clock()
    jax.block_until_ready(function(*arguments))
    return clock() - start


def in_turns(programs, rounds):
    """{name: least time}: every program once to warm up, then all of them in turn."""
    for program in programs.values():
        program()
    times = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            times[name].append(elapsed(program))
    return {name: min(values) for name, values in times.items()}


def report(title, times, unit, scale):
    ours = times["lazynet"]
    print(f"\n{title}")
    for name, value in times.items():
        print(f"  {name:24}{value * scale:12,.2f} {unit}{value / ours:10.2f} of lazynet")


def throughput(size, J, images, rounds, kymatio):
    """Time per RGB image of a warm transform."""
    x = np.random.default_rng(0).standard_normal((images, 3, size, size)).astype(np.float32)
    device_x, filters = jnp.asarray(x), filter_bank((size, size), J)
    programs = {"lazynet": lambda: scattering2d(device_x, filters)}
    for name, peer in kymatio.items():
        transform = peer(J, (size, size)).scattering
        compiled, argument = (jax.jit(transform), device_x) if "JAX" in name else (transform, x)
        programs[name] = lambda compiled=compiled, argument=argument: jax.block_until_ready(compiled(argument))
    times = {name: value / images for name, value in in_turns(programs, rounds).items()}
    report(f"one RGB image {size} x {size}, J = {J} (batch of {images})", times, "us", 1e6)


def construction(size, J, rounds, kymatio):
    """Time to build the filters."""
    programs = {"lazynet": lambda: jax.block_until_ready(filter_bank((size, size), J).psi)}
    if kymatio:
        from kymatio.scattering2d.filter_bank import filter_bank as theirs

        padded = ((size + 2**J) // 2**J + 1) * 2**J
        programs["kymatio"] = lambda: theirs(padded, padded, J) and None
    report(f"filters for {size} x {size}, J = {J}", in_turns(programs, rounds), "ms", 1e3)


def compilation(J, gradient, kymatio):
    """Time to trace and compile, and FFT operations in the compiled program."""
    x, filters = jnp.zeros((1, 32, 32), jnp.float32), filter_bank((32, 32), J)
    transforms = {"lazynet": lambda u: scattering2d(u, filters)}
    if kymatio:
        transforms["kymatio JAX"] = kymatio["kymatio JAX, jitted"](J, (32, 32)).scattering
    times, operations = {}, {}
    for name, transform in transforms.items():
        program = jax.grad(lambda u, f=transform: (f(u) ** 2).sum()) if gradient else transform
        start = clock()
        compiled = jax.jit(program).lower(x).compile()
        times[name], operations[name] = clock() - start, compiled.as_text().count(" fft(")
    report(f"compilation at J = {J}, {'gradient' if gradient else 'forward'}", times, "s ", 1.0)
    print("  FFT operations: " + ", ".join(f"{name} {count}" for name, count in operations.items()))


def all_of_cifar(batch=500):
    """60,000 RGB images, J = 2, order 2, by one thread for each core; the coefficients are summed and dropped."""
    x, filters = np.random.default_rng(0).random((batch, 3, 32, 32), np.float32), filter_bank((32, 32), 2)
    transform = jax.jit(lambda u, f: scattering2d(u, f).sum(0))
    jax.block_until_ready(transform(x, filters))
    start, done, total = time.perf_counter(), 0, 60_000
    with ThreadPoolExecutor(os.cpu_count() if jax.default_backend() == "cpu" else 1) as pool:
        for _ in pool.map(lambda _: jax.block_until_ready(transform(x, filters)), range(total // batch)):
            done += batch
            print(f"\r  {done:6,} of {total:,} images in {time.perf_counter() - start:6.1f} s", end="", flush=True)
    print()


def main():
    """Prints every table; ratios above 1 say how many times less lazynet takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of every program")
    parser.add_argument("--gradient-at-5", action="store_true", help="compile gradients at J = 5 (minutes for kymatio)")
    parser.add_argument("--all-of-cifar", action="store_true", help="transform 60,000 images")
    options = parser.parse_args()
    measure = "processor time" if clock is time.process_time else "wall time"
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind} x {jax.device_count()}, {measure}")
    kymatio = peers()
    for size, J, images in ((32, 2, 32), (32, 4, 8), (256, 4, 1)):
        throughput(size, J, images, options.rounds, kymatio)
    for size, J in ((32, 2), (32, 5), (128, 3)):
        construction(size, J, min(options.rounds, 3), kymatio)
    for J in (2, 5):
        compilation(J, False, kymatio)
    compilation(5 if options.gradient_at_5 else 3, True, kymatio)
    if options.all_of_cifar:
        print("\nall of CIFAR-10, J = 2")
        all_of_cifar()


if __name__ == "__main__":
    main()
