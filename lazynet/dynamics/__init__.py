"""Training in function space: kernel gradient flow, exact discrete gradient descent, and kernel regression.

For a model that is linear in its parameters, every training curve follows from the kernel alone.
With the losses of `lazynet.losses`, averaged over n examples, the outputs obey `df/dt = -Theta
grad_f L(f)`; for `mse`, `df/dt = -Theta (f - y) / n`. All dynamics are written in *dual
coefficients* a(t), with

    f(t, x) = f(0, x) + Theta(x, X) a(t),      da/dt = -grad_f L(f(t, X)),      a(0) = 0,

so that outputs on any further inputs cost one matrix product, and a singular kernel needs no
special care: in a null direction a(t) has the limit t/n (y - f0), where a formula with the inverse
of the kernel has none.

`gradient_flow` and `gradient_descent` give curves of losses and accuracies, `solve_flow` and
`solve_descent` the functions behind them, `linearized_weights` the weights that belong to dual
coefficients. Kernels are `[n, n]` where outputs decouple (analytic kernels, or `outputs="trace"`),
or `[n, n, k, k]` (the full empirical kernel). Closed forms are evaluated in float64 on the host,
whatever the dtype of the kernel; slightly negative eigenvalues are taken as zero (see
`lazynet.linalg`). Under jit, grad and vmap those with a ridge, and the flow at finite times, are
evaluated in `jax.numpy` and the dtype at hand (see `lazynet.dynamics.traced`). A decomposition that
is needed more than once can be made once, `linalg.psd_eigh(linalg.kernel_matrix(kernel))`, and
passed for the kernel. Kernels too large for it are inverted by `conjugate_gradient_regression`.
"""

from lazynet.dynamics.conjugate import ConjugateGradient, conjugate_gradient_regression
from lazynet.dynamics.descent import solve_descent
from lazynet.dynamics.flow import Solution, kernel_outputs, solve_flow
from lazynet.dynamics.gaussian_processes import (
    Gaussian,
    nngp_posterior,
    prior_scale,
    trained_ensemble,
)
from lazynet.dynamics.learning_rate import max_learning_rate
from lazynet.dynamics.regression import kernel_regression, leave_one_out
from lazynet.dynamics.trajectories import gradient_descent, gradient_flow
from lazynet.dynamics.weights import linearized_weights

__all__ = [
    "ConjugateGradient",
    "Gaussian",
    "Solution",
    "conjugate_gradient_regression",
    "gradient_descent",
    "gradient_flow",
    "kernel_outputs",
    "kernel_regression",
    "leave_one_out",
    "linearized_weights",
    "max_learning_rate",
    "nngp_posterior",
    "prior_scale",
    "solve_descent",
    "solve_flow",
    "trained_ensemble",
]
