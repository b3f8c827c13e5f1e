"""What nobody should pass to a public function is refused by name, or what comes back is declared and right.

A row of `ROWS` is a call with valid arguments, of which the arrays and numbers are replaced one by
one. The outcome is a ValueError or TypeError of lazynet whose message names the argument, or a
value: integers, booleans and objects must give that of the same numbers in floating point,
everything else is a value only where the row declares it, as where NaN goes through. A public name
without a row stands in `EXEMPT` with the reason.
"""

from __future__ import annotations

import functools
import math
import pathlib
import re
import traceback
import warnings
from typing import Any, NamedTuple

import faces
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazynet
from lazynet import scattering
from lazynet.records import Data, Gram, Trajectory

KEY = jax.random.key(0)
X = np.array([[1.0, -2.0, 1.0], [0.0, 1.0, 3.0], [2.0, 2.0, -1.0], [-1.0, 1.0, 1.0]])
Y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
W = np.array([[1.0, 2.0], [-1.0, 1.0], [1.0, 0.0]])
KERNEL = X @ X.T + 5 * np.eye(4)
CROSS = KERNEL[:2] + 1
DATA = Data(X, Y)
IMAGE = np.arange(64.0).reshape(8, 8)
STEPS = [0, 2]


def linear(w, x):
    return x @ w


def square(w, x):
    return x @ (w * w)


MODEL = lazynet.serial(lazynet.Dense(3), lazynet.Relu(), lazynet.Dense(2))
PARAMS = {"0_Dense": {"W": np.ones((3, 3))}, "2_Dense": {"W": np.ones((3, 2))}}
GOAL = lazynet.objective(linear, lazynet.mse)
CURVE = Trajectory(
    np.array([0, 1, 2]), np.array([0.0, 1.0, 2.0]), {"loss": np.array([3.0, 2.0, 1.0])}, None, None
)


def archive():
    """Files of CIFAR-10 in the working directory, with ten images each, of which one is of each class."""
    folder = pathlib.Path("cifar-10-batches-bin")
    folder.mkdir(exist_ok=True)
    records = np.arange(10 * 3073).reshape(10, 3073) % 251
    records[:, 0] = np.arange(10)
    for name in ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]:
        (folder / f"{name}.bin").write_bytes(records.astype(np.uint8).tobytes())
    return "."


def bank():
    return scattering.filter_bank((8, 8), 1, 2)


# ---- what is tried


def _with(array, value):
    changed = np.array(array, float)
    changed.flat[0] = value
    return changed


ARRAYS = {
    "nan": lambda a: _with(a, np.nan),
    "inf": lambda a: _with(a, np.inf),
    "empty": lambda a: a[:0],
    "longer": lambda a: np.concatenate([a, a[:1]]),
    "integer": lambda a: a.astype(int),
    "bool": lambda a: a.astype(bool),
    "object": lambda a: a.astype(object),
    "complex": lambda a: a + 1j,
    "rank": lambda a: a[None],
}
NUMBERS = {
    "nan": math.nan,
    "negative": -1,
    "fraction": 2.5,
    "text": "2",
    "none": None,
    "bool": True,
    "list": [1, 2],
}
KINDS = {
    "count": "nan negative fraction text none bool list",
    "positive": "nan negative text none bool list",
    "number": "nan text none bool list",
    "function": "negative text none list",
    "steps": "nan negative fraction text none bool",
}
"""What is tried in the place of a number of each kind, or of a function."""


class Row(NamedTuple):
    """A call and what of it is tried.

    Attributes:
        valid: The arguments of a call that succeeds, made when they are needed; "*" are the
            positional ones.
        arrays: The arrays among them, and the kinds of which a value is right: `x: nan integer, y`.
            A dot takes a field, as in `data.y`.
        numbers: The numbers and functions with their kind, and what else is right: `steps: count,
            alpha: positive`.
        slow: Whether it compiles for seconds.
        then: What to do with the value, where it is a function.
    """

    valid: Any
    arrays: str = ""
    numbers: str = ""
    slow: bool = False
    then: Any = None


ANY = "nan inf"
"""What goes through a plain formula."""

ROWS = {
    # -- models
    "layer": Row(lambda: dict(name="a", apply=linear), "", "apply: function"),
    "repeat": Row(lambda: dict(block=lazynet.Relu(), n=2), "", "n: count"),
    "Dense": Row(
        lambda: dict(features=2, W_std=1.0, b_std=1.0),
        "",
        "features: count, W_std: positive, b_std: positive none",
    ),
    "Conv": Row(
        lambda: dict(features=2, W_std=1.0, b_std=1.0),
        "",
        "features: count, W_std: positive, b_std: positive none",
    ),
    "lora": Row(lambda: dict(model=MODEL, rank=1), "", "rank: count"),
    "low_rank.factors": Row(lambda: dict(key=KEY, params=PARAMS, rank=1), "", "rank: count"),
    "LayerNorm": Row(lambda: dict(eps=1e-6), "", "eps: positive"),
    "inject": Row(lambda: dict(channels=1), "", "channels: count"),
    "squeeze": Row(lambda: dict(factor=2), "", "factor: count"),
    "inverse": Row(
        lambda: dict(model=lazynet.inject(1), params={}, y=Y), "y: nan inf empty longer rank"
    ),
    "LeakyRelu": Row(lambda: dict(negative_slope=0.1), "", "negative_slope: number"),
    "special.Exp": Row(lambda: dict(a=0.1, b=1.0), "", "a: number, b: number"),
    "special.ExpNormalized": Row(
        lambda: dict(gamma=0.1, shift=1.0), "", "gamma: number, shift: number"
    ),
    "special.Gaussian": Row(lambda: dict(a=0.1, b=-1.0), "", "a: number, b: number"),
    "special.Hermite": Row(lambda: dict(degree=2), "", "degree: count"),
    "special.Monomial": Row(lambda: dict(degree=2), "", "degree: count"),
    "special.RectifiedMonomial": Row(lambda: dict(degree=2), "", "degree: count"),
    "ABRelu": Row(lambda: dict(a=0.1, b=1.0), "", "a: number, b: number"),
    "Erf": Row(lambda: dict(a=1.0, b=1.0, c=0.0), "", "a: number, b: number, c: number"),
    "Sin": Row(lambda: dict(a=1.0, b=1.0, c=0.0), "", "a: number, b: number, c: number"),
    "Cos": Row(lambda: dict(a=1.0, b=1.0, c=0.0), "", "a: number, b: number, c: number"),
    "Elu": Row(lambda: dict(alpha=1.0), "", "alpha: number"),
    "Rbf": Row(lambda: dict(gamma=1.0), "", "gamma: positive"),
    "elementwise": Row(
        lambda: dict(fn=jnp.tanh, degree=10), "", "fn: function, degree: count none"
    ),
    "zoo.cnn": Row(
        lambda: dict(widths=(2,), outputs=2, W_std=1.0), "", "outputs: count, W_std: positive"
    ),
    "hierarchical.AttributeConv": Row(
        lambda: dict(features=2, W_std=1.0, reach=3, kept=1),
        "",
        "features: count, W_std: positive, reach: count, kept: count",
    ),
    "zoo.cntk": Row(
        lambda: dict(depth=2, outputs=1, width=2), "", "depth: count, outputs: count, width: count"
    ),
    "zoo.hierarchical_cnn": Row(
        lambda: dict(widths=(3, 3), outputs=1, reach=3, W_std=1.0),
        "",
        "outputs: count, reach: count, W_std: positive",
    ),
    "zoo.irevnet": Row(
        lambda: dict(blocks=(1,), outputs=1, width=2, channels=2, injected=0, gain=1.0),
        "",
        "outputs: count none, width: count, channels: count, injected: count, gain: positive none",
    ),
    "zoo.mlp": Row(
        lambda: dict(widths=(2,), outputs=1, W_std=1.0), "", "outputs: count, W_std: positive"
    ),
    "zoo.myrtle": Row(
        lambda: dict(depth=5, outputs=1, width=2), "", "depth: count, outputs: count, width: count"
    ),
    "zoo.resnet18": Row(
        lambda: dict(outputs=1, width=0.1), "", "outputs: count, width: positive bool"
    ),
    "tokens.Embed": Row(
        lambda: dict(vocabulary=3, features=2, W_std=1.0),
        "",
        "vocabulary: count, features: count, W_std: positive",
    ),
    "tokens.Positions": Row(lambda: dict(W_std=1.0), "", "W_std: positive"),
    "zoo.transformer": Row(
        lambda: dict(width=4, outputs=1, depth=1, heads=2),
        "",
        "width: count, outputs: count, depth: count, heads: count",
    ),
    "zoo.two_layer": Row(lambda: dict(width=2, outputs=1), "", "width: count, outputs: count"),
    "zoo.vgg11": Row(
        lambda: dict(outputs=1, width=0.1), "", "outputs: count, width: positive bool"
    ),
    "zoo.wide_resnet": Row(
        lambda: dict(blocks=1, outputs=1, width=1), "", "blocks: count, outputs: count"
    ),
    "initializers.xavier_normal": Row(lambda: dict(model=MODEL, gain=1.0), "", "gain: positive"),
    # -- the alpha axis
    "linearize": Row(lambda: dict(apply=linear, params0=W), "", "apply: function"),
    "taylor_expand": Row(
        lambda: dict(apply=linear, params0=W, degree=1), "", "apply: function, degree: count"
    ),
    "center": Row(lambda: dict(apply=linear, params0=W), "", "apply: function"),
    "scale": Row(lambda: dict(apply=linear, alpha=2.0), "", "apply: function, alpha: positive"),
    "lazy": Row(
        lambda: dict(apply=linear, params0=W, alpha=2.0), "", "apply: function, alpha: positive"
    ),
    "weights": Row(
        lambda: dict(lazy_apply=lazynet.lazy(linear, W, 2.0), u=W), "", "lazy_apply: function"
    ),
    "select": Row(lambda: dict(apply=linear), "", "apply: function"),
    "precision.compute_in": Row(
        lambda: dict(apply=linear, dtype=np.float32), "", "apply: function"
    ),
    # -- losses
    "mse": Row(lambda: dict(outputs=X, targets=X), f"outputs: {ANY}, targets: {ANY}"),
    "cross_entropy": Row(lambda: dict(outputs=Y, targets=Y), f"outputs: {ANY}, targets: {ANY}"),
    "masked_cross_entropy": Row(
        lambda: dict(outputs=X, targets=np.array([0, 1, 2, -1])),
        f"outputs: {ANY}, targets: integer",
    ),
    "logistic": Row(
        lambda: dict(outputs=X[:, :1], targets=np.ones((4, 1))), f"outputs: {ANY}, targets: {ANY}"
    ),
    "accuracy": Row(lambda: dict(outputs=Y, targets=Y), "outputs: nan inf, targets: nan inf"),
    "objective": Row(
        lambda: dict(apply=linear, loss=lazynet.mse, weight=1.0),
        "",
        "apply: function, loss: function, weight: number",
    ),
    # -- kernels
    "analytic_kernel": Row(
        lambda: dict(model=MODEL, x1=X, x2=X[:2], tile=2, memory=1e9),
        "x1: longer, x2: longer",
        "tile: count none, memory: positive",
        True,
    ),
    "analytic_variances": Row(lambda: dict(model=MODEL, x=X), "x: longer", "", True),
    "monte_carlo_kernel": Row(
        lambda: dict(model=MODEL, key=KEY, x1=X, x2=X[:2], n_samples=2),
        "x1: longer, x2: longer",
        "n_samples: count",
        True,
    ),
    "empirical_ntk": Row(
        lambda: dict(apply=linear, params=W, x1=X, x2=X[:2], tile=2, memory=1e9),
        "x1: nan inf complex longer, x2: nan inf complex longer",
        "apply: function, tile: count none, memory: positive",
        True,
    ),
    "empirical.center_jacobian": Row(
        lambda: dict(apply=linear, params=W, x=X, weights=np.full(4, 0.25)),
        "x: longer rank complex, weights: longer",
        "apply: function",
    ),
    "empirical.hermitian": Row(
        lambda: dict(kernel=np.eye(2)[None, None] * KERNEL[:, :, None, None]),
        "kernel: longer empty",
    ),
    "empirical_nngp": Row(
        lambda: dict(apply=linear, params=W, x1=X, x2=X[:2]),
        "x1: nan inf longer complex, x2: nan inf longer complex",
        "apply: function",
        True,
    ),
    "ntk_vector_product": Row(
        lambda: dict(apply=linear, params=W, x1=X, x2=X, tile=2),
        "x1: nan inf longer rank complex, x2: nan inf longer rank complex",
        "apply: function, tile: count none",
    ),
    "estimate_max_learning_rate": Row(
        lambda: dict(apply=linear, params=W, x=X, key=KEY, momentum=0.0, iterations=3),
        "x: longer rank complex",
        "apply: function, momentum: positive, iterations: count",
        True,
    ),
    "empirical.largest_ntk_eigenvalue": Row(
        lambda: dict(apply=linear, params=W, x=X, key=KEY, iterations=3),
        "x: longer rank complex",
        "apply: function, iterations: count",
        True,
    ),
    "batch": Row(
        lambda: dict(kernel_fn=lambda x1, x2: x1 @ x1.T, batch_size=2, device_count=0),
        "",
        "kernel_fn: function, batch_size: count, device_count: count negative",
    ),
    # -- flow
    "gradient_flow": Row(
        lambda: dict(ntk=KERNEL, data=DATA, time=[0.0, 1.0]),
        "ntk, data.y",
        "loss: function, friction: positive none",
        True,
    ),
    "gradient_descent": Row(
        lambda: dict(ntk=KERNEL, data=DATA, learning_rate=0.01, momentum=0.0, save_at=STEPS),
        "ntk, data.y",
        "learning_rate: positive, momentum: positive, save_at: steps, loss: function",
    ),
    "kernel_regression": Row(
        lambda: dict(kernel=KERNEL, data=DATA, cross=CROSS, ridge=0.1),
        "kernel, data.y, cross: empty longer",
        "ridge: positive list",
    ),
    "conjugate_gradient_regression": Row(
        lambda: dict(
            kernel=KERNEL, data=DATA, cross=CROSS, ridge=0.1, rank=2, rtol=1e-6, max_iterations=10
        ),
        "kernel, data.y, cross: empty longer",
        "ridge: positive list, rank: count, rtol: positive, max_iterations: count",
    ),
    "nngp_posterior": Row(
        lambda: dict(nngp=KERNEL, data=DATA, cross=CROSS[:, :4], prior=100 * np.eye(2), ridge=0.1),
        "nngp, data.y, cross, prior",
        "ridge: positive",
    ),
    "dynamics.prior_scale": Row(
        lambda: dict(nngp=KERNEL, data=DATA, ridge=0.1), "nngp, data.y", "ridge: positive"
    ),
    "max_learning_rate": Row(lambda: dict(ntk=KERNEL, momentum=0.0), "ntk", "momentum: positive"),
    "dynamics.kernel_outputs": Row(
        lambda: dict(kernel=CROSS, coefficients=Y),
        f"kernel: {ANY} longer empty, coefficients: {ANY} rank",
    ),
    "dynamics.leave_one_out": Row(
        lambda: dict(kernel=KERNEL, data=DATA, ridge=0.1), "kernel, data.y", "ridge: positive list"
    ),
    "dynamics.linearized_weights": Row(
        lambda: dict(apply=linear, params0=W, x=X, coefficients=Y),
        "x: nan inf, coefficients: nan inf rank",
        "apply: function",
        True,
    ),
    "dynamics.solve_descent": Row(
        lambda: dict(ntk=KERNEL, y=Y, learning_rate=0.01, momentum=0.0, save_at=STEPS),
        "ntk, y",
        "learning_rate: positive, momentum: positive, save_at: steps",
    ),
    "dynamics.solve_flow": Row(
        lambda: dict(ntk=KERNEL, y=Y, time=[0.0, 1.0]), "ntk, y", "friction: positive none"
    ),
    "dynamics.trained_ensemble": Row(
        lambda: dict(
            gram=Gram(KERNEL, KERNEL),
            data=DATA,
            time=[0.0, 1.0],
            cross=Gram(CROSS, CROSS),
            prior=100 * np.eye(2),
        ),
        "data.y, prior",
    ),
    "predict.gp_inference": Row(
        lambda: dict(k_train_train=Gram(KERNEL, KERNEL), y_train=Y, diag_reg=0.1),
        "y_train",
        "diag_reg: positive",
        then=lambda f: f(get="ntk", k_test_train=Gram(CROSS, CROSS)),
    ),
    "predict.gradient_descent": Row(
        lambda: dict(
            loss=lazynet.mse, k_train_train=KERNEL, y_train=Y, learning_rate=1.0, momentum=0.5
        ),
        "k_train_train, y_train",
        "loss: function, learning_rate: positive, momentum: positive none",
        True,
        then=lambda f: f(1.0),
    ),
    "predict.gradient_descent_mse": Row(
        lambda: dict(k_train_train=KERNEL, y_train=Y, learning_rate=1.0, diag_reg=0.1),
        "k_train_train, y_train",
        "learning_rate: positive, diag_reg: positive",
        then=lambda f: f(1.0),
    ),
    "predict.max_learning_rate": Row(
        lambda: dict(ntk_train_train=KERNEL, y_train_size=8, momentum=0.0),
        "ntk_train_train",
        "y_train_size: count none, momentum: positive",
    ),
    # -- linear algebra
    "linalg.blocked_product": Row(
        lambda: dict(kernel=KERNEL, columns=Y), f"kernel: {ANY} longer empty, columns: {ANY}"
    ),
    "linalg.check_positive": Row(lambda: dict(matrix=KERNEL), "matrix"),
    "linalg.check_symmetric": Row(lambda: dict(matrix=KERNEL), "matrix"),
    "linalg.eigh": Row(lambda: dict(matrix=KERNEL), "matrix"),
    "linalg.kernel_matrix": Row(lambda: dict(kernel=KERNEL), f"kernel: {ANY} longer empty"),
    "linalg.largest_eigenvalue": Row(lambda: dict(matrix=KERNEL), "matrix"),
    "linalg.psd_eigh": Row(lambda: dict(matrix=KERNEL), "matrix"),
    "linalg.symmetric": Row(lambda: dict(matrix=KERNEL), "matrix"),
    "linalg.solve_psd": Row(
        lambda: dict(matrix=KERNEL, rhs=Y, ridge=0.1), "matrix, rhs", "ridge: positive"
    ),
    "linalg.ridge_eigh": Row(lambda: dict(matrix=KERNEL, ridge=0.1), "matrix", "ridge: positive"),
    # -- spectra
    "spectra.effective_dimension": Row(
        lambda: dict(kernel=KERNEL, ridge=0.1, key=KEY, steps=3, probes=2),
        "kernel",
        "ridge: positive list, steps: count, probes: count",
        True,
    ),
    "spectra.frobenius_norm": Row(
        lambda: dict(kernel=KERNEL, key=KEY, probes=6), "kernel", "probes: count", True
    ),
    "spectra.effective_rank": Row(
        lambda: dict(kernel=KERNEL, key=KEY, probes=6), "kernel", "probes: count", True
    ),
    "spectra.diagonal": Row(lambda: dict(kernel=KERNEL), "kernel", "", True),
    "spectra.target_alignment": Row(
        lambda: dict(kernel=KERNEL, y=Y, key=KEY, probes=6), "kernel, y", "probes: count", True
    ),
    "spectra.cka": Row(
        lambda: dict(kernel1=KERNEL, kernel2=KERNEL + Y @ Y.T, key=KEY, probes=6),
        "kernel1, kernel2",
        "probes: count",
        True,
    ),
    "spectra.kernel_distances": Row(
        lambda: dict(kernel=KERNEL, kernel0=KERNEL + Y @ Y.T, key=KEY, probes=6),
        "kernel, kernel0",
        "probes: count",
        True,
    ),
    "spectra.top_eigenpairs": Row(
        lambda: dict(kernel=KERNEL, count=1, key=KEY, steps=3),
        "kernel",
        "count: count, steps: count none",
        True,
    ),
    "spectra.extend_eigenvectors": Row(
        lambda: dict(
            cross=CROSS,
            pairs=lazynet.diagnostics.kernel_spectrum(KERNEL, vectors=True),
            count=2,
        ),
        f"cross: {ANY} longer empty",
        "count: count none",
    ),
    "spectra.forward_sketch": Row(
        lambda: dict(apply=linear, params=W, x=X, key=KEY, probes=3),
        "x: longer rank complex",
        "apply: function, probes: count",
        True,
    ),
    "spectra.backward_sketch": Row(
        lambda: dict(apply=linear, params=W, x=X, key=KEY, probes=3),
        "x: longer rank complex",
        "apply: function, probes: count",
        True,
    ),
    "spectra.spectral_density": Row(
        lambda: dict(kernel=KERNEL, key=KEY, steps=3, probes=2, width=0.1, points=5),
        "kernel",
        "steps: count, probes: count, width: positive, points: count",
        True,
    ),
    "spectra.top_eigenvalues": Row(
        lambda: dict(kernel=KERNEL, count=1, key=KEY, steps=3),
        "kernel",
        "count: count, steps: count none",
        True,
    ),
    "spectra.trace": Row(
        lambda: dict(kernel=KERNEL, key=KEY, probes=6), "kernel", "probes: count", True
    ),
    # -- diagnostics
    "diagnostics.activation_stability": Row(
        lambda: dict(model=MODEL, params=PARAMS, params0=PARAMS, x=X), "x: nan inf longer", "", True
    ),
    "diagnostics.coordinate_check": Row(
        lambda: dict(model=MODEL, params=PARAMS, params0=PARAMS, x=X), "x: nan inf longer", "", True
    ),
    "diagnostics.richness": Row(lambda: dict(features=X, outputs=Y[:, :1]), "features, outputs"),
    "diagnostics.loss_weights": Row(
        lambda: dict(residuals={"a": linear}, params=W, x={"a": X}, key=KEY, probes=6),
        "x.a: longer rank complex",
        "probes: count",
        True,
    ),
    "diagnostics.cka": Row(
        lambda: dict(kernel1=KERNEL, kernel2=KERNEL + Y @ Y.T), f"kernel1: {ANY}, kernel2: {ANY}"
    ),
    "diagnostics.fit_slope": Row(
        lambda: dict(x=np.array([1.0, 2.0]), y=np.array([1.0, 3.0])), "x, y"
    ),
    "diagnostics.hessian_norm": Row(
        lambda: dict(apply=square, params=W, x=X, key=KEY, iterations=1, restarts=1),
        "x: longer rank complex",
        "apply: function, iterations: count, restarts: count",
        True,
    ),
    "diagnostics.jacobian_norm": Row(
        lambda: dict(apply=linear, params=W, x=X, key=KEY, iterations=3),
        "x: longer rank complex",
        "apply: function, iterations: count",
        True,
    ),
    "diagnostics.kappa": Row(
        lambda: dict(
            apply=square, params=W, data=DATA, key=KEY, alpha=1.0, iterations=1, restarts=1
        ),
        "data.x, data.y",
        "apply: function, alpha: positive, iterations: count, restarts: count, loss: function none",
        True,
    ),
    "diagnostics.is_lazy": Row(
        lambda: dict(
            apply=square, params=W, data=DATA, steps=1, learning_rate=0.01, iterations=1, restarts=1
        ),
        "data.x, data.y",
        "apply: function, steps: count, learning_rate: positive none, iterations: count, restarts: count",
        True,
    ),
    "diagnostics.kernel_cosine_distance": Row(
        lambda: dict(kernel=KERNEL, kernel0=KERNEL + 1), f"kernel: {ANY}, kernel0: {ANY}"
    ),
    "diagnostics.kernel_distance": Row(
        lambda: dict(kernel=KERNEL, kernel0=KERNEL + 1), f"kernel: {ANY}, kernel0: {ANY}"
    ),
    "diagnostics.kernel_spectrum": Row(lambda: dict(kernel=KERNEL, y=Y), "kernel, y"),
    "diagnostics.kernel_velocity": Row(
        lambda: dict(kernels=np.stack([KERNEL, KERNEL + 1]), times=np.array([0.0, 1.0])),
        f"kernels: {ANY}, times",
    ),
    "diagnostics.layer_drift": Row(
        lambda: dict(params={"a": W}, params0={"a": W + 1}),
        f"params.a: {ANY} complex, params0.a: {ANY} complex",
    ),
    "diagnostics.param_drift": Row(
        lambda: dict(params=W, params0=W + 1), f"params: {ANY} complex, params0: {ANY} complex"
    ),
    "diagnostics.linearization_gap": Row(
        lambda: dict(apply=square, params=W, params0=W + 1, x=X),
        "params: nan inf, params0: nan inf, x: nan inf longer complex rank",
        "apply: function",
        True,
    ),
    "diagnostics.ntk_change": Row(
        lambda: dict(apply=square, params=W, params0=W + 1, x=X, key=KEY, probes=1),
        "params: nan inf, params0: nan inf, x: nan inf longer rank complex",
        "apply: function, probes: count",
        True,
    ),
    "diagnostics.output_gap": Row(
        lambda: dict(outputs=X, reference=X + 1), f"outputs: {ANY}, reference: {ANY}"
    ),
    "diagnostics.tangent_at": Row(
        lambda: dict(apply=square, params=W),
        "params: nan inf longer rank empty complex",
        "apply: function",
    ),
    "diagnostics.target_alignment": Row(
        lambda: dict(kernel=KERNEL, y=Y), f"kernel: {ANY}, y: {ANY}"
    ),
    # -- training
    "train": Row(
        lambda: dict(
            objective=GOAL,
            params=W,
            data=DATA,
            optimizer=lazynet.sgd(),
            key=KEY,
            save_at=STEPS,
            learning_rate=0.01,
            batch_size=2,
        ),
        "data.x, data.y",
        "save_at: steps, learning_rate: positive, batch_size: count none, measure: function none, "
        "on_save: function none, augment: function none",
        True,
    ),
    "snapshots": Row(
        lambda: dict(
            objective=GOAL,
            params=W,
            data=DATA,
            optimizer=lazynet.sgd(),
            key=KEY,
            save_at=STEPS,
            learning_rate=0.01,
            batch_size=2,
        ),
        "data.x, data.y",
        "save_at: steps, learning_rate: positive, batch_size: count none",
        True,
        then=lambda states: [state.params for state in states],
    ),
    "evaluate": Row(
        lambda: dict(objective=GOAL, params=W, data=DATA, batch_size=2),
        "data.x: nan inf, data.y",
        "batch_size: count",
        True,
    ),
    "log_spaced": Row(lambda: dict(n_steps=10, n_points=3), "", "n_steps: count, n_points: count"),
    "sgd": Row(lambda: dict(momentum=0.5), "", "momentum: positive"),
    "inverse_epoch_decay": Row(
        lambda: dict(learning_rate=0.1, steps_per_epoch=3, decay=0.3),
        "",
        "learning_rate: positive, steps_per_epoch: count, decay: positive",
    ),
    "keep_activations": Row(
        lambda: dict(function=lazynet.lazy(square, W, np.inf), x=X, chunk=2),
        "x: longer rank complex",
        "function: function, chunk: count",
    ),
    "train_ensemble": Row(
        lambda: dict(
            apply=linear,
            params=np.stack([W, W + 1]),
            data=DATA,
            optimizer=lazynet.sgd(),
            key=KEY,
            save_at=STEPS,
            learning_rate=0.01,
            x=X,
        ),
        "data.x, data.y, x: nan inf longer",
        "apply: function, save_at: steps, learning_rate: positive, loss: function",
        True,
    ),
    "ensembles.moments": Row(
        lambda: dict(outputs=np.stack([Y, Y + 1])), "outputs: nan inf longer rank"
    ),
    "optimizers.step_sizes": Row(
        lambda: dict(optimizer=lazynet.sgd(), learning_rate=0.1), "", "learning_rate: positive"
    ),
    # -- data sets
    "datasets.balanced_subset": Row(
        lambda: dict(data=DATA, n=2, seed=0),
        "data.x: nan inf rank complex, data.y",
        "n: count, seed: count",
    ),
    "datasets.center_targets": Row(
        lambda: dict(data=DATA),
        "data.x: nan inf empty longer complex rank, data.y: longer empty",
    ),
    "datasets.check_data": Row(lambda: dict(data=DATA), "data.x: rank, data.y"),
    "datasets.crop_and_flip": Row(
        lambda: dict(key=KEY, x=IMAGE[None, :, :, None], padding=1),
        "x: nan inf empty longer complex",
        "padding: count",
        True,
    ),
    "datasets.digits": Row(
        lambda: dict(n_train=10, n_test=10, seed=0),
        "",
        "n_train: count, n_test: count, seed: count",
    ),
    "datasets.one_hot": Row(
        lambda: dict(labels=np.array([0, 1]), classes=2),
        "labels: integer longer empty",
        "classes: count",
    ),
    "datasets.one_hot_centered": Row(
        lambda: dict(labels=np.array([0, 1]), classes=2),
        "labels: integer longer empty",
        "classes: count",
    ),
    "datasets.standardize": Row(
        lambda: dict([("train", DATA)]),
        "train.x: longer rank, train.y: nan inf empty longer complex rank",
    ),
    "datasets.tabular": Row(
        lambda: dict(name="iris", seed=0, test_fraction=0.25),
        "",
        "seed: count, test_fraction: positive",
    ),
    "datasets.teacher_student": Row(
        lambda: dict(key=KEY, n_train=2, n_test=2, d=2, width=2),
        "",
        "n_train: count, n_test: count, d: count, width: count",
        True,
    ),
    "datasets.zca": Row(
        lambda: dict(train=DATA, bias=0.1),
        "train.x: longer rank, train.y: nan inf empty longer complex rank",
        "bias: positive",
    ),
    "datasets.cifar10": Row(
        lambda: dict(root=archive(), n_train=10, n_test=10, records_per_file=10),
        "",
        "n_train: count none, n_test: count none, records_per_file: count",
    ),
    # -- plots and files
    "plots.curve_styles": Row(lambda: dict(n=2), "", "n: count"),
    "plots.plot_kernel": Row(lambda: dict(matrix=KERNEL), "matrix: longer"),
    "plots.plot_power_law": Row(
        lambda: dict(alpha=np.array([1.0, 2.0]), quantities={"a": np.array([1.0, 2.0])}),
        "alpha, quantities.a: rank",
    ),
    "plots.plot_spectrum": Row(
        lambda: dict(spectra={"a": np.array([2.0, 1.0])}), "spectra.a: longer"
    ),
    "writers.write_csv": Row(lambda: dict(path=pathlib.Path("m.csv"), state=None, curve=CURVE)),
    # -- scattering
    "scattering.scattering2d": Row(
        lambda: dict(x=IMAGE, filters=bank(), max_order=1),
        "x: nan inf rank",
        "max_order: count",
        True,
    ),
    "scattering.scattering2d_nhwc": Row(
        lambda: dict(x=IMAGE[None, :, :, None], filters=bank(), max_order=1),
        "x: nan inf empty longer rank",
        "max_order: count",
        True,
    ),
    "scattering.scattering_paths": Row(
        lambda: dict(J=1, L=2, max_order=1), "", "J: count, L: count, max_order: count"
    ),
    "scattering.filter_bank": Row(lambda: dict(shape=(8, 8), J=1, L=2), "", "J: count, L: count"),
    "scattering.angles": Row(lambda: dict(L=2), "", "L: count"),
    "scattering.fast_wavelet_transform": Row(
        lambda: dict(x=IMAGE, levels=1), "x: nan inf rank", "levels: count"
    ),
    "Scattering2D": Row(
        lambda: dict(J=1, shape=(8, 8), L=2, max_order=1),
        "",
        "J: count, L: count, max_order: count",
    ),
    # -- insights
    "insights.intrinsic_dimension": Row(
        lambda: dict(features={"example": X}, discard=0.1),
        "features.example: longer",
        "discard: positive",
    ),
    "insights.nearest_neighbor_error": Row(
        lambda: dict(x=X, y=X[:, 0], x_test=X[:2], y_test=X[:2, 0]), "x, y, x_test, y_test"
    ),
    "insights.local_support_vectors": Row(
        lambda: dict(features={"example": X}, labels=np.array([0, 1, 0, 1]), k=2),
        "features.example, labels: integer",
        "k: count",
    ),
    "insights.separability": Row(
        lambda: dict(
            features={"example": X},
            labels=np.array([0, 1, 0, 1]),
            test_features={"example": X[:2]},
            test_labels=np.array([0, 1]),
            ridge=0.1,
        ),
        "features.example, labels: integer, test_features.example, test_labels: integer",
        "ridge: positive",
    ),
    "insights.flatness": Row(
        lambda: dict(paths={"example": X[None]}, directions=1),
        "paths.example: longer",
        "directions: count",
    ),
    # -- trees
    "trees.as_partial": Row(
        lambda: dict(function=linear, name="function"), "", "function: function"
    ),
    "trees.add": Row(lambda: dict(a=W, b=W), "a: nan inf rank complex, b: nan inf rank complex"),
}

EXEMPT = {
    "records, which hold what they are given": (
        "Inputs low_rank.Lora signatures.Complex signatures.OfWeights signatures.OneArray "
        "Model Objective Data Gram Trajectory TrainState precision.ComputeIn datasets.Archive "
        "diagnostics.Laziness diagnostics.Spectrum diagnostics.Stability diagnostics.Tangent "
        "insights.Dimension insights.Flatness insights.GaborFit insights.Inversion insights.Separability "
        "ensembles.EnsembleCurve dynamics.ConjugateGradient dynamics.Gaussian dynamics.Solution linalg.Eigen "
        "kept_activations.KeptActivations "
        "LazyFunction model.Evaluation model.Inverse optimizers.SGD optimizers.UnitRate scattering.Filters "
        "scattering.LittlewoodPaley scattering.Path spectra.Estimate spectra.SpectralDensity "
        "spectra.Distances spectra.Eigenpairs spectra.OneSided spectra.Sketch "
        "stax.Triple stax.MaskedArray stax.Diagonal predict.ODEState triangle.Triangle "
        "dropin.Kernel"
    ),
    "constants and types": (
        "stax.Bool stax.Padding stax.PositionalEmbedding stax.AttentionMechanism "
        "stax.AggregateImplementation stax.Slice dropin.NtkImplementation "
        "optimizers.Schedule parameters.Where datasets.CIFAR10_ARCHIVE linalg.ASYMMETRY_LIMIT linalg.NEGATIVE_LIMIT"
    ),
    "layers without numbers, or with windows of which their own tests try what is wrong": (
        "AvgPool SumPool MaxPool GlobalAvgPool GlobalSumPool Flatten Identity Relu Abs Gelu Sigmoid_like "
        "SiLU Softplus Swish Tanh special.Gabor special.Polynomial special.Sign"
    ),
    "combinators of models and functions, which refuse what is none in their own tests": (
        "serial parallel residual symmetrize freeze remat gated coupling reversible"
    ),
    "it takes any number of kernels, which tests of its own try": ("spectra.sketch"),
    "names of neural-tangents around functions that have rows": (
        "empirical_ntk_fn empirical_nngp_fn empirical_ntk_vp_fn empirical_kernel_fn "
        "monte_carlo_kernel_fn predict.gradient_descent_mse_ensemble stax.ABRelu stax.Abs "
        "stax.AvgPool stax.Conv stax.Cos stax.Dense stax.Elementwise stax.ElementwiseNumerical "
        "stax.Erf stax.FanInConcat stax.FanInSum stax.FanOut stax.Flatten stax.Gelu "
        "stax.GlobalAvgPool stax.GlobalSumPool stax.Identity stax.LayerNorm stax.LeakyRelu "
        "stax.Rbf stax.Relu stax.Sigmoid_like stax.Sin stax.SumPool stax.parallel stax.repeat "
        "stax.serial stax.Aggregate stax.ConvLocal stax.ConvTranspose stax.DotGeneral stax.Dropout "
        "stax.Exp stax.ExpNormalized stax.FanInProd stax.Gabor stax.Gaussian stax.GlobalSelfAttention "
        "stax.Hermite stax.ImageResize stax.Index stax.Monomial stax.Polynomial stax.RectifiedMonomial "
        "dropin.linearize dropin.taylor_expand stax.Sign stax.layer stax.requires stax.supports_masking stax.unmask_fn"
    ),
    "questions to networks and images, of which tests of their own try what is wrong": (
        "insights.inside insights.gabor_fit insights.invert insights.adversarial_norm "
        "insights.largest_gradient insights.lipschitz_bound insights.transformed "
        "insights.total_variation"
    ),
    "of tangents, of which tests of its own try what is wrong": ("tangents.disentanglement_error"),
    "they take objects of other libraries, which tests of their own try": (
        "from_flax from_equinox from_neural_tangents unit_rate"
    ),
    "devices and shardings": (
        "data_parallel sharding.first_shards sharding.place sharding.replicated"
    ),
    "files and folders, whose damage tests of their own try": (
        "checkpoints.load checkpoints.load_curve checkpoints.load_sharded checkpoints.save "
        "checkpoints.save_curve checkpoints.save_sharded datasets.data_root plots.save tangents.load tangents.save "
        "writers.tensorboard writers.write_jsonl"
    ),
    "curves by name, which tests of plots try": ("plots.plot_trajectories"),
    "checks themselves": (
        "losses.check_labels optimizers.check_optimizer precision.carried_scale "
        "precision.largest_alpha trees.check_same_structure trees.is_traced"
    ),
    "the ground of others, whose callers check": (
        "linalg.lanczos linalg.lanczos_basis linalg.ritz_vectors linalg.check_digits "
        "linalg.power_of_two linalg.rank_tolerance "
        "linalg.ritz_values linalg.spectrum_tolerance "
        "trees.add_scaled trees.divide trees.dot trees.norm trees.power_of_two "
        "trees.subtract trees.zeros_like trees.differentiable trees.is_complex trees.is_key trees.is_weight "
        "trees.length trees.widened "
        "parameters.selected low_rank.merged signatures.flat signatures.one_array signatures.real_weights "
        "signatures.with_constants checkpoints.curve_arrays checkpoints.curve_from "
        "model.child_path model.propagate model.evaluation "
        "model.plain"
    ),
    "transforms between wavelets of filters that were made by functions with rows": (
        "scattering.cascade_aliasing scattering.dual_frame_inverse "
        "scattering.fast_wavelet_inverse scattering.frame_bounds scattering.gabor "
        "scattering.lipschitz_bound scattering.littlewood_paley scattering.morlet "
        "scattering.rototranslation_scattering scattering.scattering_moments "
        "scattering.undecimated_coefficients scattering.wavelet_coefficients"
    ),
}

INTERNAL = {
    "covariance": "the engine under analytic_kernel",
    "typing": "names of types",
}
"""Public modules whose names are not tried one by one."""


def public() -> dict[str, Any]:
    """Every public object once, by `name` at the top or `module.name`."""
    found, seen = {}, set()
    found |= faces.values()
    seen = {id(value) for value in found.values()}
    for module, own in faces.modules().items():
        for name in own.__all__ if module not in INTERNAL else ():
            value = getattr(own, name)
            if id(value) not in seen:
                seen.add(id(value))
                found[f"{module}.{name}"] = value
    return found


PUBLIC = public()


def test_every_public_name_has_a_row_or_a_reason():
    exempt = [name for names in EXEMPT.values() for name in names.split()]
    aliases = {"diagnostics.is_lazy": lazynet.is_lazy}
    assert len(exempt) == len(set(exempt)) and not set(exempt) & set(ROWS)
    known = {id(resolve(name)) for name in [*exempt, *ROWS]} | {
        id(value) for value in aliases.values()
    }
    missing = [name for name, value in PUBLIC.items() if id(value) not in known]
    assert not missing, f"no row in ROWS and no reason in EXEMPT: {missing}"


def resolve(name: str) -> Any:
    return functools.reduce(getattr, name.split("."), lazynet)


# ---- how the outcome is judged


def _entries(text: str) -> dict[str, list[str]]:
    """`x: nan integer, y` as `{"x": ["nan", "integer"], "y": []}`."""
    parts = (part.partition(":") for part in text.split(",") if part.strip())
    return {name.strip(): kinds.split() for name, _, kinds in parts}


def _get(arguments, place):
    name, _, field = place.partition(".")
    value = arguments[name]
    return (
        value if not field else value[field] if isinstance(value, dict) else getattr(value, field)
    )


def _put(arguments, place, value):
    name, _, field = place.partition(".")
    if field:
        whole = arguments[name]
        value = (
            {**whole, field: value} if isinstance(whole, dict) else whole._replace(**{field: value})
        )
    return arguments | {name: value}


def _call(name, arguments):
    positional = [arguments["train"]] if "train" in arguments else []
    value = resolve(name)(
        *positional, **{key: given for key, given in arguments.items() if key != "train"}
    )
    return ROWS[name].then(value) if ROWS[name].then else value


def _attempt(name, arguments):
    """The value, or the error and whether it is one of ours that names the place."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            try:
                return _call(name, arguments), None
            except Exception as error:
                return None, error


ALSO = {
    "x": "inputs?|outputs?|apply returned|Dense got",
    "x1": "inputs?|x|apply returned",
    "x2": "inputs?|x|apply returned",
    "data": "train|inputs?|targets?|x|y",
    "train": "data|inputs?",
    "y": "targets?|training examples",
    "y_train": "y|targets?|training examples",
    "coefficients": "training examples",
    "columns": "kernel",
    "labels": "label",
    "lazy_apply": "weights got",
    "outputs": "features",
    "width": "features",
    "params": "entries|leaves",
}
"""Other words of messages for an argument."""
MATRICES = (
    "kernel",
    "kernel0",
    "kernel1",
    "kernel2",
    "kernels",
    "matrix",
    "ntk",
    "nngp",
    "cross",
    "prior",
)
MATRICES = (*MATRICES, "k_train_train", "ntk_train_train")


def _words(place) -> str:
    """What a message may call an argument: matrices by any of their names."""
    last = place.split(".")[-1]
    if last in MATRICES:
        return "|".join((*MATRICES, "kernels", "entries", "matrices"))
    return "|".join(filter(None, (re.escape(last), ALSO.get(last, ""))))


def _is_ours(place, error) -> bool:
    """Raised by a line of lazynet, with the name of the argument and what was expected or what to do."""
    if not isinstance(error, (TypeError, ValueError)) or type(error).__module__ != "builtins":
        return False
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    text = str(error)
    return (
        "/lazynet/" in last
        and bool(re.search(rf"\b({_words(place)})", text))
        and ("expected" in text or ": " in text)
    )


def _equal(value, expected) -> bool:
    found, right = jax.tree.leaves(value), jax.tree.leaves(expected)
    return len(found) == len(right) and all(
        np.allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=1e-6, equal_nan=True
        )
        for a, b in zip(found, right, strict=True)
        if np.asarray(b).dtype.kind in "fiub"
    )


def _judge(name, place, kind, arguments, allowed) -> str | None:
    """What is wrong with the outcome, None if nothing is."""
    value, error = _attempt(name, arguments)
    if error is not None:
        return None if _is_ours(place, error) else f"{type(error).__name__}: {str(error)[:160]}"
    if isinstance(_get(arguments, place), np.ndarray) and kind in ("integer", "bool", "object"):
        expected, refused = _attempt(
            name, _put(arguments, place, _get(arguments, place).astype(float))
        )
        if refused is not None:
            return None if kind in allowed else "was accepted, which the same numbers are not"
        return None if _equal(value, expected) else "gives another value than the same numbers"
    return None if kind in allowed else "was accepted"


def failures(name: str) -> list[str]:
    row = ROWS[name]
    found = []
    for place, allowed in _entries(row.arrays).items():
        for kind, change in ARRAYS.items():
            arguments = row.valid()
            arguments = _put(arguments, place, change(_get(arguments, place)))
            found.append((f"{place} {kind}", _judge(name, place, kind, arguments, allowed)))
    for place, (sort, *allowed) in _entries(row.numbers).items():
        for kind in KINDS[sort].split():
            arguments = row.valid() | {place: NUMBERS[kind]}
            found.append((f"{place} {kind}", _judge(name, place, kind, arguments, allowed)))
    return [f"{what}: {wrong}" for what, wrong in found if wrong]


def _cases():
    return [
        pytest.param(name, marks=pytest.mark.extended) if row.slow else name
        for name, row in ROWS.items()
    ]


@pytest.mark.usefixtures("unannotated")
@pytest.mark.parametrize("name", _cases())
def test_what_nobody_should_pass_is_refused_by_name_or_right(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = failures(name)
    assert not wrong, "\n".join(wrong)


@pytest.mark.extended
@pytest.mark.usefixtures("unannotated")
@pytest.mark.parametrize("name", list(ROWS))
def test_the_arguments_of_a_row_are_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, error = _attempt(name, ROWS[name].valid())
    assert error is None
