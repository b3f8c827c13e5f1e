"""lazynet: is my network lazy, what is its kernel, what would the linearized model do?

Every object of study is a point in the plane (alpha, width): one model definition (`Model`: init,
apply, trace, kernel), one transform (`lazy(apply, params0, alpha)`, alpha in (0, inf]) and one
record (`Trajectory`) that finite training and infinite-width kernel flow both return.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from lazynet import covariance as covariance
from lazynet import datasets as datasets
from lazynet import diagnostics as diagnostics
from lazynet import dynamics as dynamics
from lazynet import insights as insights
from lazynet import kernels as kernels
from lazynet import linalg as linalg
from lazynet import losses as losses
from lazynet import models as models
from lazynet import parameters as parameters
from lazynet import precision as precision
from lazynet import records as records
from lazynet import scattering as scattering
from lazynet import signatures as signatures
from lazynet import tangents as tangents
from lazynet import training as training
from lazynet import trees as trees
from lazynet import typing as typing
from lazynet.diagnostics import is_lazy as is_lazy
from lazynet.dynamics import conjugate_gradient_regression as conjugate_gradient_regression
from lazynet.dynamics import gradient_descent as gradient_descent
from lazynet.dynamics import gradient_flow as gradient_flow
from lazynet.dynamics import kernel_regression as kernel_regression
from lazynet.dynamics import max_learning_rate as max_learning_rate
from lazynet.dynamics import nngp_posterior as nngp_posterior
from lazynet.kernels import empirical as empirical
from lazynet.kernels import spectra as spectra
from lazynet.kernels.analytic import analytic_kernel as analytic_kernel
from lazynet.kernels.analytic import monte_carlo_kernel as monte_carlo_kernel
from lazynet.kernels.empirical import empirical_nngp as empirical_nngp
from lazynet.kernels.empirical import empirical_ntk as empirical_ntk
from lazynet.kernels.empirical import estimate_max_learning_rate as estimate_max_learning_rate
from lazynet.kernels.empirical import ntk_vector_product as ntk_vector_product
from lazynet.kernels.variances import analytic_variances as analytic_variances
from lazynet.lazy import LazyFunction as LazyFunction
from lazynet.lazy import center as center
from lazynet.lazy import gated as gated
from lazynet.lazy import lazy as lazy
from lazynet.lazy import linearize as linearize
from lazynet.lazy import scale as scale
from lazynet.lazy import taylor_expand as taylor_expand
from lazynet.lazy import weights as weights
from lazynet.losses import Objective as Objective
from lazynet.losses import accuracy as accuracy
from lazynet.losses import cross_entropy as cross_entropy
from lazynet.losses import logistic as logistic
from lazynet.losses import masked_cross_entropy as masked_cross_entropy
from lazynet.losses import mse as mse
from lazynet.losses import objective as objective
from lazynet.models import activations as activations
from lazynet.models import foreign as foreign
from lazynet.models import hierarchical as hierarchical
from lazynet.models import initializers as initializers
from lazynet.models import invertible as invertible
from lazynet.models import layers as layers
from lazynet.models import low_rank as low_rank
from lazynet.models import model as model
from lazynet.models import special as special
from lazynet.models import tokens as tokens
from lazynet.models import zoo as zoo
from lazynet.models.activations import ABRelu as ABRelu
from lazynet.models.activations import Abs as Abs
from lazynet.models.activations import Cos as Cos
from lazynet.models.activations import Elu as Elu
from lazynet.models.activations import Erf as Erf
from lazynet.models.activations import Gelu as Gelu
from lazynet.models.activations import LeakyRelu as LeakyRelu
from lazynet.models.activations import Rbf as Rbf
from lazynet.models.activations import Relu as Relu
from lazynet.models.activations import Sigmoid_like as Sigmoid_like
from lazynet.models.activations import SiLU as SiLU
from lazynet.models.activations import Sin as Sin
from lazynet.models.activations import Softplus as Softplus
from lazynet.models.activations import Swish as Swish
from lazynet.models.activations import Tanh as Tanh
from lazynet.models.activations import elementwise as elementwise
from lazynet.models.foreign import from_equinox as from_equinox
from lazynet.models.foreign import from_flax as from_flax
from lazynet.models.foreign import from_neural_tangents as from_neural_tangents
from lazynet.models.invertible import coupling as coupling
from lazynet.models.invertible import inject as inject
from lazynet.models.invertible import inverse as inverse
from lazynet.models.invertible import reversible as reversible
from lazynet.models.invertible import squeeze as squeeze
from lazynet.models.layers import AvgPool as AvgPool
from lazynet.models.layers import Conv as Conv
from lazynet.models.layers import Dense as Dense
from lazynet.models.layers import Flatten as Flatten
from lazynet.models.layers import GlobalAvgPool as GlobalAvgPool
from lazynet.models.layers import GlobalSumPool as GlobalSumPool
from lazynet.models.layers import Identity as Identity
from lazynet.models.layers import LayerNorm as LayerNorm
from lazynet.models.layers import MaxPool as MaxPool
from lazynet.models.layers import SumPool as SumPool
from lazynet.models.low_rank import lora as lora
from lazynet.models.model import Model as Model
from lazynet.models.model import freeze as freeze
from lazynet.models.model import layer as layer
from lazynet.models.model import parallel as parallel
from lazynet.models.model import repeat as repeat
from lazynet.models.model import residual as residual
from lazynet.models.model import serial as serial
from lazynet.models.model import symmetrize as symmetrize
from lazynet.precision import compute_in as compute_in
from lazynet.precision import remat as remat
from lazynet.records import Data as Data
from lazynet.records import Gram as Gram
from lazynet.records import Trajectory as Trajectory
from lazynet.signatures import Inputs as Inputs
from lazynet.signatures import select as select
from lazynet.tangents import tangent_at as tangent_at
from lazynet.training import checkpoints as checkpoints
from lazynet.training import ensembles as ensembles
from lazynet.training import kept_activations as kept_activations
from lazynet.training import optimizers as optimizers
from lazynet.training import sharding as sharding
from lazynet.training import writers as writers
from lazynet.training.ensembles import train_ensemble as train_ensemble
from lazynet.training.kept_activations import keep_activations as keep_activations
from lazynet.training.loop import TrainState as TrainState
from lazynet.training.loop import evaluate as evaluate
from lazynet.training.loop import log_spaced as log_spaced
from lazynet.training.loop import snapshots as snapshots
from lazynet.training.loop import train as train
from lazynet.training.optimizers import inverse_epoch_decay as inverse_epoch_decay
from lazynet.training.optimizers import sgd as sgd
from lazynet.training.optimizers import unit_rate as unit_rate
from lazynet.training.sharding import data_parallel as data_parallel

__version__ = "0.1.0"

# Names that other libraries gave, and figures, are loaded when they are first used.
if TYPE_CHECKING:
    from lazynet import dropin as dropin
    from lazynet import plots as plots
    from lazynet.dropin import predict as predict
    from lazynet.dropin import stax as stax
    from lazynet.dropin.batch import batch as batch
    from lazynet.dropin.empirical import empirical_kernel_fn as empirical_kernel_fn
    from lazynet.dropin.empirical import empirical_nngp_fn as empirical_nngp_fn
    from lazynet.dropin.empirical import empirical_ntk_fn as empirical_ntk_fn
    from lazynet.dropin.empirical import empirical_ntk_vp_fn as empirical_ntk_vp_fn
    from lazynet.dropin.empirical import monte_carlo_kernel_fn as monte_carlo_kernel_fn
    from lazynet.dropin.kymatio import Scattering2D as Scattering2D
else:
    _LATER = {
        "dropin": "lazynet.dropin",
        "plots": "lazynet.plots",
        "predict": "lazynet.dropin.predict",
        "stax": "lazynet.dropin.stax",
        "batch": "lazynet.dropin.batch:batch",
        "empirical_kernel_fn": "lazynet.dropin.empirical:empirical_kernel_fn",
        "empirical_nngp_fn": "lazynet.dropin.empirical:empirical_nngp_fn",
        "empirical_ntk_fn": "lazynet.dropin.empirical:empirical_ntk_fn",
        "empirical_ntk_vp_fn": "lazynet.dropin.empirical:empirical_ntk_vp_fn",
        "monte_carlo_kernel_fn": "lazynet.dropin.empirical:monte_carlo_kernel_fn",
        "Scattering2D": "lazynet.dropin.kymatio:Scattering2D",
        # their names in 0.1
        "flow": "lazynet.dynamics",
        "interop": "lazynet.models.foreign",
        "compute": "lazynet.precision",
    }

    def __getattr__(name: str):
        """Loads a name of another library, or figures, when it is first asked for."""
        if name not in _LATER:
            raise AttributeError(f"module 'lazynet' has no attribute {name!r}; see dir(lazynet)")
        module, _, member = _LATER[name].partition(":")
        value = _import_module(module)
        if member:
            value = getattr(value, member)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Public names and modules; the ground below them is for nobody outside."""
        inner = {"TYPE_CHECKING", "annotations", "files", "guards", "programs", "recipes", "tiles"}
        return sorted(
            {name for name in globals() if not name.startswith("_")} - inner | _LATER.keys()
        )
