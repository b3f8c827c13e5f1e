"""Kernel regression in float64 beside scikit-learn, SciPy, NumPy and neural-tangents, per fit.

20 ridges or 50 times of the gradient flow from one eigendecomposition, one ridge by Cholesky, with
10 outputs and predictions of 1,000 test examples; the eigendecompositions themselves. BLAS has one
thread, lest waiting threads count as work. A run that is not quick also solves N = 20,000 in
float32 by conjugate gradient with a pivoted-Cholesky preconditioner, and remarks the iterations and
by how much of the kernel's size the resident memory grows beyond it (expected: at most 0.10). The
kernel is the NTK of a ReLU network with 4 hidden layers, between noisy copies of the 1,797 digits.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from functools import partial

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from sklearn.datasets import load_digits
from sklearn.kernel_ridge import KernelRidge

from benchmarks.measure import Case, Program
from benchmarks.peers import beside, neural_tangents
from lazynet import dynamics, linalg
from lazynet.records import Data

ENVIRONMENT = {"JAX_ENABLE_X64": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

RIDGES = np.geomspace(1e-4, 1e2, 20)
TIMES = np.geomspace(1, 1e6, 50)
RIDGE = 1e-2


def cases(quick: bool) -> Iterator[Case]:
    # First, while the largest resident memory of the process is its own.
    if not quick:
        yield Case("conjugate gradient, N = 20,000, rank 300", _conjugate, "fit", rounds=0)
    n, rounds = (1000, 2) if quick else (5000, 1)
    yield Case(f"20 ridges, N = {n:,}", partial(_ridges, n), "fit", rounds, np.asarray)
    yield Case(f"one ridge, N = {n:,}", partial(_one_ridge, n), "fit", rounds, np.asarray)
    yield Case(
        f"50 times of gradient flow, N = {n:,}", partial(_times, n), "fit", rounds, np.asarray
    )
    n = 1000 if quick else 2000
    yield Case(f"eigendecomposition, N = {n:,}", partial(_eigh, n), "matrix", rounds, _values)
    yield Case(
        f"eigenvalues alone, N = {n:,}", partial(_eigenvalues, n), "matrix", rounds, np.asarray
    )


def digits(n, seed):
    """Noisy copies of digits on the unit sphere, and centered one-hot labels."""
    rng, (x, labels) = np.random.default_rng(seed), load_digits(return_X_y=True)
    rows = rng.integers(0, len(x), n)
    noisy = x[rows] + rng.normal(size=(n, 64))
    return noisy / np.linalg.norm(noisy, axis=1, keepdims=True), np.eye(10)[labels[rows]] - 0.1


def relu_ntk(x1, x2, depth=4, rows=50):
    """The NTK, computed by blocks of rows, so that nothing of its size is held beside it."""
    kernel = np.empty((len(x1), len(x2)), x1.dtype)
    for start in range(0, len(x1), rows):
        nngp = x1[start : start + rows] @ x2.T
        ntk = nngp.copy()
        for _ in range(depth):
            # Inputs of norm one, and W_std^2 = 2: variances stay one, entries are cosines c.
            cosine = np.clip(nngp, -1, 1)
            angle = np.pi - np.arccos(cosine)
            # Sigma' = (sqrt(1 - c^2) + (pi - arccos c) c) / pi,
            # Theta' = Theta (pi - arccos c) / pi + Sigma'.
            nngp = (np.sqrt(1 - cosine**2) + angle * cosine) / np.pi
            ntk = ntk * angle / np.pi + nngp
        kernel[start : start + rows] = ntk
    return kernel


def problem(n, m=1000, dtype=np.float64):
    """Kernels of n training and m test examples, and their labels."""
    (x, y), (x_test, y_test) = digits(n, 0), digits(m, 1)
    x = x.astype(dtype)
    x_test = x_test.astype(dtype)
    return relu_ntk(x, x), relu_ntk(x_test, x), Data(x, y), Data(x_test, y_test)


def _ridges(n) -> dict[str, Program]:
    kernel, cross, data, _ = problem(n)

    def by_numpy():
        values, vectors = np.linalg.eigh(kernel)
        # All ridges from one decomposition, as in the first program.
        weights = 1 / (values[:, None] + RIDGES)
        inside = vectors.T @ data.y
        outside = cross @ vectors
        return np.stack([outside @ (weight[:, None] * inside) for weight in weights.T])

    return {
        "lazynet": Program(
            lambda: dynamics.kernel_regression(kernel, data, cross=cross, ridge=RIDGES)
        ),
        "scikit-learn": Program(
            lambda: np.stack([_scikit(kernel, cross, data.y, ridge) for ridge in RIDGES])
        ),
        "NumPy": Program(by_numpy),
    }


def _one_ridge(n) -> dict[str, Program]:
    kernel, cross, data, _ = problem(n)

    def by_scipy():
        factor = scipy.linalg.cho_factor(kernel + RIDGE * np.eye(n), lower=True)
        return cross @ scipy.linalg.cho_solve(factor, data.y)

    return {
        "lazynet": Program(
            lambda: dynamics.kernel_regression(kernel, data, cross=cross, ridge=RIDGE)
        ),
        "scikit-learn": Program(lambda: _scikit(kernel, cross, data.y, RIDGE)),
        "SciPy": Program(by_scipy),
        "NumPy": Program(lambda: cross @ np.linalg.solve(kernel + RIDGE * np.eye(n), data.y)),
    }


def _scikit(kernel, cross, y, ridge):
    return KernelRidge(alpha=ridge, kernel="precomputed").fit(kernel, y).predict(cross)


def _times(n) -> dict[str, Program]:
    kernel, cross, data, test = problem(n)

    def test_loss(outputs):
        return [np.mean(np.sum((np.asarray(now) - test.y) ** 2, axis=1)) / 2 for now in outputs]

    def ours():
        return dynamics.gradient_flow(kernel, data, time=TIMES, cross=cross, test=test).metrics[
            "test_loss"
        ]

    def by_numpy():
        values, vectors = np.linalg.eigh(kernel)
        inside = vectors.T @ data.y
        outside = cross @ vectors
        # (1 - exp(-lambda t / n)) / lambda, by expm1 for small lambda t.
        weights = -np.expm1(-np.maximum(values, 0) * TIMES[:, None] / n) / values
        return test_loss(outside @ (weight[:, None] * inside) for weight in weights)

    def theirs(library):
        def run():
            # The decomposition is done where the predictor is made.
            predict_fn = library.predict.gradient_descent_mse(
                jnp.asarray(kernel), jnp.asarray(data.y)
            )
            # Its loss is a mean over the k outputs too: k times the time does the same.
            return test_loss(predict_fn(data.y.shape[1] * TIMES, 0.0, 0.0, jnp.asarray(cross))[1])

        return Program(run)

    peer = beside(neural_tangents, theirs)
    return {"lazynet": Program(ours), "NumPy": Program(by_numpy), "neural-tangents": peer}


def _eigh(n) -> dict[str, Program]:
    matrix = problem(n, 1)[0]
    return {
        "lazynet": Program(lambda: linalg.psd_eigh(matrix)),
        "NumPy": Program(lambda: np.linalg.eigh(matrix)),
        "SciPy, divide and conquer": Program(lambda: scipy.linalg.eigh(matrix, driver="evd")),
        "plain JAX": Program(lambda: jnp.linalg.eigh(jnp.asarray(matrix))),
    }


def _eigenvalues(n) -> dict[str, Program]:
    matrix = problem(n, 1)[0]
    return {
        "NumPy": Program(lambda: np.linalg.eigvalsh(matrix)),
        "plain JAX": Program(lambda: jnp.linalg.eigvalsh(jnp.asarray(matrix))),
    }


def _values(decomposition):
    return np.sort(np.asarray(decomposition[0]))


def _conjugate(n=20_000, rank=300) -> dict[str, Program]:
    kernel, cross, data, test = problem(n, dtype=np.float32)
    # Loads and compiles what the solver needs, which is no growth by the kernel.
    dynamics.conjugate_gradient_regression(
        np.eye(2), Data(data.x[:2], data.y[:2]), cross=np.eye(2), ridge=1.0
    )
    # With kernel and data in memory: only what the solver adds is counted.
    before = _resident()

    def note(fit, _):
        grown = (_peak() - before) / kernel.nbytes
        accuracy = np.mean(fit.predictions.argmax(-1) == test.y.argmax(-1))
        return f"{fit.iterations} iterations, test accuracy {accuracy:.3f}, memory grew by {grown:.3f} of the kernel"

    def run():
        return dynamics.conjugate_gradient_regression(
            kernel, data, cross=cross, ridge=RIDGE, rank=rank
        )

    return {"lazynet": Program(run, note=note)}


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _resident() -> int:
    """Resident memory of this process now, in bytes; its peak where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak()
