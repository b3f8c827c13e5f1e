"""Kernel regression at sizes where a decomposition takes a minute, minutes, or does not fit.

    python benchmarks/regression.py [--direct 5000 10000] [--conjugate 20000] [--rank 300] [--eigh 2000]

`--direct N`: 20 ridges and 50 times of the gradient flow, for training and 1,000 test examples, from one float64
eigendecomposition; expected: about a minute for N = 5,000 on 2 cores. `--conjugate N`: one ridge, by conjugate gradient
with a pivoted-Cholesky preconditioner on the kernel in float32; prints the iterations and by how much of the kernel's
size the resident memory grows beyond it (expected: at most 0.10). `--eigh N`: the eigendecomposition by NumPy, SciPy
and JAX. The kernel is the NTK of a ReLU network with 4 hidden layers, between noisy copies of the 1,797 digits.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from sklearn.datasets import load_digits

from lazynet import flow, linalg
from lazynet.records import Data

RIDGES = np.geomspace(1e-4, 1e2, 20)
TIMES = np.geomspace(1, 1e6, 50)


def digits(n, seed):
    """Noisy copies of digits on the unit sphere, and centered one-hot labels."""
    rng, (x, labels) = np.random.default_rng(seed), load_digits(return_X_y=True)
    rows = rng.integers(0, len(x), n)
    noisy = (x[rows] + rng.normal(size=(n, 64))).astype(np.float32)
    return noisy / np.linalg.norm(noisy, axis=1, keepdims=True), np.eye(10)[labels[rows]] - 0.1


def relu_ntk(x1, x2, depth=4, rows=50):
    """The NTK in float32, computed by blocks of rows, so that nothing of its size is held beside it."""
    kernel = np.empty((len(x1), len(x2)), np.float32)
    for start in range(0, len(x1), rows):
        nngp = x1[start : start + rows] @ x2.T
        ntk = nngp.copy()
        for _ in range(depth):
            cosine = np.clip(nngp, -1, 1)
            angle = np.pi - np.arccos(cosine)
            nngp = (np.sqrt(1 - cosine**2) + angle * cosine) / np.pi
            ntk = ntk * angle / np.pi + nngp
        kernel[start : start + rows] = ntk
    return kernel


def problem(n, m=1000):
    """Kernels of n training and m test examples, and their labels."""
    (x, y), (x_test, y_test) = digits(n, 0), digits(m, 1)
    return relu_ntk(x, x), relu_ntk(x_test, x), Data(x, y), Data(x_test, y_test)


def accuracy(outputs, y):
    return np.mean(outputs.argmax(-1) == y.argmax(-1), axis=-1)


def peak():
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident():
    """Resident memory of this process now, in bytes; its peak where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return peak()


def timed(name, run):
    """What `run` returns, after a line with its wall time and the processor time of all its threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    jax.block_until_ready(result)
    print(f"  {name:36}{time.perf_counter() - wall:8.1f} s {time.process_time() - cpu:8.1f} cpu-s", flush=True)
    return result


def direct(n):
    kernel, cross, data, test = problem(n)
    print(f"\nN = {n:,}, from one eigendecomposition", flush=True)
    eigen = timed("eigendecomposition", lambda: linalg.psd_eigh(kernel))
    outputs = timed("20 ridges", lambda: flow.kernel_regression(eigen, data, cross=cross, ridge=RIDGES))
    curve = timed("50 times", lambda: flow.gradient_flow(eigen, data, time=TIMES, cross=cross, test=test))
    timed("one ridge, by Cholesky", lambda: flow.kernel_regression(kernel, data, cross=cross, ridge=1e-2))
    print(
        f"  peak of resident memory {peak() / kernel.nbytes / 2:.1f} kernels in float64; best test accuracy "
        f"{accuracy(outputs, test.y).max():.3f} (ridges), {curve.metrics['test_accuracy'].max():.3f} (times)",
        flush=True,
    )


def conjugate(n, rank, ridge):
    kernel, cross, data, test = problem(n)
    flow.conjugate_gradient_regression(np.eye(2), Data(data.x[:2], data.y[:2]), cross=np.eye(2), ridge=1.0)
    print(f"\nN = {n:,}, float32, 10 outputs, ridge {ridge:g}, rank {rank}", flush=True)
    before = resident()
    fit = timed(
        "conjugate gradient",
        lambda: flow.conjugate_gradient_regression(kernel, data, cross=cross, ridge=ridge, rank=rank),
    )
    print(
        f"  {fit.iterations} iterations, residual {fit.residual:.1e}, test accuracy "
        f"{accuracy(fit.predictions, test.y):.3f}; resident memory grew by {(peak() - before) / kernel.nbytes:.3f} of "
        f"the kernel's {kernel.nbytes / 1e9:.2f} GB, to {peak() / 1e9:.2f} GB",
        flush=True,
    )


def eigendecompositions(n):
    matrix = problem(n, 1)[0].astype(np.float64)
    print(f"\nN = {n:,}, eigenvalues and vectors, or values alone", flush=True)
    for name, run in (
        ("numpy", lambda: np.linalg.eigh(matrix)),
        ("scipy, divide and conquer", lambda: scipy.linalg.eigh(matrix, driver="evd")),
        ("jax", lambda: jnp.linalg.eigh(jnp.asarray(matrix))),
        ("numpy, values", lambda: np.linalg.eigvalsh(matrix)),
        ("jax, values", lambda: jnp.linalg.eigvalsh(jnp.asarray(matrix))),
    ):
        timed(name, run)


def main():
    """Prints one line for every size asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--direct", type=int, nargs="*", default=[], help="sizes for the eigendecomposition")
    parser.add_argument("--conjugate", type=int, nargs="*", default=[], help="sizes for conjugate gradient")
    parser.add_argument("--eigh", type=int, nargs="*", default=[], help="sizes for the comparison of libraries")
    parser.add_argument("--rank", type=int, default=300, help="rank of the preconditioner")
    parser.add_argument("--ridge", type=float, default=1e-2, help="ridge of conjugate gradient")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"numpy {np.__version__}, jax {jax.__version__}, {jax.devices()[0].device_kind}", flush=True)
    nothing = not (options.direct or options.conjugate or options.eigh)
    for n in options.conjugate:
        conjugate(n, options.rank, options.ridge)
    for n in options.direct or ([5000] if nothing else []):
        direct(n)
    for n in options.eigh:
        eigendecompositions(n)


if __name__ == "__main__":
    main()
