"""Other libraries' names, argument order and conventions, in front of lazynet: no mathematics lives here.

`import lazynet.dropin as nt` is the one line to change in a program written for neural-tangents:
`nt.stax`, `nt.predict`, `nt.batch`, `nt.empirical_ntk_fn`, `nt.Kernel` and the rest are its names.
`lazynet.dropin.kymatio` has the names of kymatio.
"""

from __future__ import annotations

from lazynet.dropin import predict as predict
from lazynet.dropin import stax as stax
from lazynet.dropin.batch import batch
from lazynet.dropin.empirical import (
    NtkImplementation,
    empirical_kernel_fn,
    empirical_nngp_fn,
    empirical_ntk_fn,
    empirical_ntk_vp_fn,
    monte_carlo_kernel_fn,
)
from lazynet.dropin.expansions import linearize, taylor_expand
from lazynet.dropin.kernels import Kernel

__all__ = [
    "Kernel",
    "NtkImplementation",
    "batch",
    "empirical_kernel_fn",
    "empirical_nngp_fn",
    "empirical_ntk_fn",
    "empirical_ntk_vp_fn",
    "linearize",
    "monte_carlo_kernel_fn",
    "taylor_expand",
]


def __getattr__(name: str):
    """Says what to write for a name that is not here."""
    if name.startswith("__") or name in ("batch", "kernels", "kymatio", "masks"):
        raise AttributeError(f"module 'lazynet.dropin' has no attribute {name!r}")
    fix = {
        "experimental": "TensorFlow models are not supported: write the function in JAX",
        "_src": "its internals have no counterpart; nt.Kernel is neural_tangents._src.utils.kernel.Kernel",
    }
    raise AttributeError(
        f"lazynet.dropin has no {name!r}, expected stax, predict, {', '.join(__all__)}: "
        f"{fix.get(name, 'see docs/from-neural-tangents.md for what to write')}."
    )
