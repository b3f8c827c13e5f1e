"""lazynet: is my network lazy, what is its kernel, what would the linearized model do?

Every object of study is a point in the plane (alpha, width): one model definition (`Model`: init, apply, trace,
kernel), one transform (`lazy(apply, params0, alpha)`, alpha in (0, inf]) and one record (`Trajectory`) that finite
training and infinite-width kernel flow both return. Names load on first use.
"""

from __future__ import annotations

import importlib

# A function that shares its module's name is bound here, after the import that bound the module.
from lazynet.lazy import lazy as lazy
from lazynet.train import train as train

_PUBLIC = {
    "model": "Model layer serial parallel residual repeat symmetrize freeze",
    "layers": "Dense Conv AvgPool SumPool MaxPool GlobalAvgPool GlobalSumPool Flatten LayerNorm Identity",
    "activations": "Relu LeakyRelu Abs ABRelu Elu Erf Gelu SiLU Swish Softplus Tanh Sin Cos Rbf Sigmoid_like "
    "elementwise",
    "lazy": "linearize taylor_expand center scale lazy weights gated",
    "losses": "mse cross_entropy logistic accuracy Objective objective",
    "records": "Data Gram Trajectory",
    "kernels": "analytic_kernel monte_carlo_kernel",
    "empirical": "empirical_ntk empirical_nngp ntk_vector_product estimate_max_learning_rate batch empirical_ntk_fn "
    "empirical_nngp_fn empirical_ntk_vp_fn empirical_kernel_fn monte_carlo_kernel_fn",
    "flow": "gradient_flow gradient_descent kernel_regression conjugate_gradient_regression nngp_posterior "
    "max_learning_rate",
    "diagnostics": "is_lazy",
    "interop": "from_flax from_neural_tangents",
    "train": "train snapshots evaluate log_spaced TrainState",
    "optimizers": "sgd unit_rate inverse_epoch_decay",
    "sharding": "data_parallel",
    "compute": "compute_in remat",
    "ensembles": "train_ensemble",
}
_MODULES = (
    "activations checkpoints compute covariance datasets diagnostics empirical ensembles flow initializers interop "
    "kernels layers linalg losses model optimizers plots predict records scattering sharding spectra stax trees typing "
    "writers zoo"
).split()
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    """Loads a public name or a module when it is first asked for."""
    if name in _HOME:
        value = getattr(importlib.import_module(f"lazynet.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"lazynet.{name}")
    raise AttributeError(f"module 'lazynet' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    """Public names and modules."""
    return sorted([*__all__, *_MODULES])
