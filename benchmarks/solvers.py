"""Kernel regression against the number of examples: conjugate gradient beside Cholesky and eigendecompositions.

A path of 5 ridges on the float32 NTK of a ReLU network with 4 hidden layers between noisy copies of
the 1,797 digits, with 10 outputs and predictions of 1,000 test examples, to a residual of 1e-6: by
conjugate gradient from the matrix, and from the triangle of the matrix in a file, with ranks 300
and 1,000; by one eigendecomposition (lazynet); by one Cholesky factor a ridge in float64 (SciPy,
scikit-learn). N = 2,000, 5,000, 10,000 and 20,000; the direct solvers stop at 10,000, where one fit
takes minutes. Remarks give iterations. BLAS has one thread, lest waiting threads count as work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import scipy.linalg
from sklearn.kernel_ridge import KernelRidge

from benchmarks.measure import Case, Program
from benchmarks.regression import problem
from lazynet import dynamics
from lazynet.triangle import Triangle

ENVIRONMENT = {"JAX_ENABLE_X64": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

RIDGES = np.geomspace(1e-2, 1.0, 5)
"""Absolute, for a mean of the diagonal of 5; as small as float32 kernels allow at these numbers of examples."""

SIDE = 1024
RTOL = 1e-6
DIRECT = 10_000
"""The most examples that are solved directly."""


def cases(quick: bool) -> Iterator[Case]:
    for n in (500, 1000) if quick else (2000, 5000, 10_000, 20_000):
        # Residuals of the direct solvers are those of float64, of ours the one asked for.
        yield Case(
            f"5 ridges, N = {n:,}", partial(_path, n), "fit", 1, lambda fit: fit.predictions, 1e-3
        )


def _path(n) -> dict[str, Program]:
    kernel, cross, data, _ = problem(n, dtype=np.float32)
    folder = tempfile.TemporaryDirectory()
    triangle = _on_disk(Triangle.of(kernel, side=min(SIDE, n)), Path(folder.name))
    programs = {}
    for rank in (300, 1000):
        for name, form in (("matrix", kernel), ("triangle in a file", triangle)):
            run = partial(_ours, form, cross, data, min(rank, n // 2), folder)
            programs[f"conjugate gradient, rank {rank}, {name}"] = Program(run, note=_iterations)
    if n <= DIRECT:
        programs["one eigendecomposition"] = Program(partial(_eigen, kernel, cross, data))
        programs["SciPy, Cholesky"] = Program(partial(_scipy, kernel, cross, data))
        programs["scikit-learn"] = Program(partial(_scikit, kernel, cross, data))
    return programs


def _ours(kernel, cross, data, rank, folder) -> dynamics.ConjugateGradient:
    """The folder is an argument lest it be deleted before."""
    return dynamics.conjugate_gradient_regression(
        kernel, data, cross=cross, ridge=RIDGES, rank=rank, rtol=RTOL
    )


def _eigen(kernel, cross, data) -> dynamics.ConjugateGradient:
    return _directly(dynamics.kernel_regression(kernel, data, cross=cross, ridge=RIDGES))


def _scipy(kernel, cross, data) -> dynamics.ConjugateGradient:
    predictions = []
    for ridge in RIDGES:
        shifted = kernel.astype(np.float64)
        # Every n + 1 entries of a flat matrix is the diagonal.
        shifted.flat[:: len(shifted) + 1] += ridge
        factor = scipy.linalg.cho_factor(shifted, lower=True, overwrite_a=True)
        predictions.append(cross @ scipy.linalg.cho_solve(factor, data.y))
    return _directly(np.stack(predictions))


def _scikit(kernel, cross, data) -> dynamics.ConjugateGradient:
    wide = kernel.astype(np.float64)
    fits = [KernelRidge(alpha=ridge, kernel="precomputed").fit(wide, data.y) for ridge in RIDGES]
    return _directly(np.stack([fit.predict(cross) for fit in fits]))


def _directly(predictions) -> dynamics.ConjugateGradient:
    # In the record of the first program, so that one function reads all answers.
    return dynamics.ConjugateGradient(predictions, np.zeros(0), 0, 0.0)


def _iterations(fit, _) -> str:
    return f"{fit.iterations} iterations, residual {np.max(fit.residual):.1e}"


def _on_disk(triangle: Triangle, folder: Path) -> Triangle:
    """The same triangle, its blocks mapped from a file."""
    np.save(folder / "blocks.npy", triangle.blocks)
    mapped = np.load(folder / "blocks.npy", mmap_mode="r", allow_pickle=False)
    return Triangle(mapped, triangle.n)
