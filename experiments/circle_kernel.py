"""The kernel of a wide ReLU layer on the circle: its eigenvalues, their decay, and functions outside its space.

    python -m experiments run circle_kernel                    # about 5 seconds
    python -m experiments run circle_kernel --preset smoke     # about 5 seconds

ReLU units with weights all over the circle give the features relu(cos(s - t)), whose Fourier
coefficients are

    gamma_k = int relu(cos s) exp(-iks) ds = 2 (k = 0), pi/2 (k = 1), 2 (-1)^(p+1) / (k^2 - 1) (k = 2p), 0 (odd k >= 3).

Their kernel k(phi) = (sin phi + (pi - phi) cos phi) / 2 is pi times the library's NNGP of Dense,
Relu, Dense. Expected eigenvalues are gamma_k^2: 4, 2.467, 0.444, 0, 0.0178, 0, 0.00327, then for
even k a decay of slope -4 (fitted from k = 10 on). Both are measured by a discrete Fourier
transform of a few thousand points.

The norm |f|^2 = 1/(2 pi) sum_k |c_k|^2 / gamma_k^2 of the kernel's Hilbert space, c_k the Fourier
coefficients of f, diverges linearly in the cutoff for the Lipschitz function |cos| (slope +1), and
converges for |cos|^3 (slope 0), which has two more derivatives.

Where lecture notes differ: gamma_k is printed with (-1)^p, and with 0 at k = 1; and "Lipschitz
functions are in this space" is false, they are only limits of functions in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import panels
from experiments.harness.bounds import Count, Integer, Values
from experiments.harness.facts import close, power_law

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure"]


@dataclass(frozen=True)
class Config:
    """Points of the Fourier transforms, range of the fit of the decay, and cutoffs of the norms.

    Attributes:
        points: Points of the Fourier transforms.
        decay_from: First frequency of the fitted decay.
        decay_to: Last frequency of the fitted decay.
        cutoffs: Largest frequencies of the partial sums of the norms.
        precision: Of the computation.
    """

    points: Annotated[int, Integer(4)] = 2**14
    decay_from: Count = 10
    decay_to: Count = 200
    cutoffs: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (20, 50, 100, 200, 400)
    # The eigenvalue 4 / k^4 is 1.6e-10 at k = 400, where float32 has rounding only.
    precision: Literal["float32", "float64"] = "float64"

    def check(self, prefix: str) -> None:
        """Refuses frequencies that the points do not resolve, and ranges without a slope."""
        if max(self.decay_to, *self.cutoffs) > self.points // 2:
            fields = f"{prefix}decay_to={self.decay_to}, {prefix}cutoffs={self.cutoffs}"
            raise ValueError(f"{fields}: expected at most half of {prefix}points={self.points}.")
        if self.decay_to < self.decay_from + 4:
            raise ValueError(
                f"{prefix}decay_to got {self.decay_to}, expected at least decay_from + 4 = {self.decay_from + 4}."
            )


PRESETS = {"smoke": Config(points=2**13, decay_to=100), "laptop": Config()}

FIRST = range(7)
# The trapezoidal rule adds gamma_(N-k) and gamma_(N+k) to gamma_k: below 1e-7 at N = 2^13 points.
TOLERANCE = 1e-5


TITLE = "ReLU features on the circle"

FUNCTIONS = {
    "abs_cos": lambda s: np.abs(np.cos(s)),
    "abs_cos_cubed": lambda s: np.abs(np.cos(s)) ** 3,
}


def measure(config: Config, store) -> dict[str, np.ndarray]:
    """Coefficients of the features, eigenvalues of the kernel, and the norms of both functions."""
    with store.status("kernel on the circle"):
        angles = 2 * np.pi * np.arange(config.points) / config.points
        eigenvalues = fourier(kernel(angles, config.precision))
        arrays = {"gamma": fourier(np.maximum(np.cos(angles), 0)), "eigenvalue": eigenvalues}
        for name, function in FUNCTIONS.items():
            arrays[name] = _norms(config, fourier(function(angles)), eigenvalues)
    return arrays


def facts(config: Config, arrays):
    """Coefficients and eigenvalues in closed form, the decay, and which norms diverge."""
    for k in FIRST:
        yield close(f"gamma/k={k}", arrays["gamma"][k], gamma(k), TOLERANCE)
    for k in FIRST:
        yield close(f"eigenvalue/k={k}", arrays["eigenvalue"][k], gamma(k) ** 2, TOLERANCE)
    even = _even(config)
    yield power_law("eigenvalue_decay", even, arrays["eigenvalue"][even], -4, 0.05)
    yield power_law("norm/abs_cos", config.cutoffs, arrays["abs_cos"], 1, 0.05)
    yield power_law("norm/abs_cos_cubed", config.cutoffs, arrays["abs_cos_cubed"], 0, 0.01)


def draw(config: Config, arrays):
    """Coefficients beside both closed forms, decay of the eigenvalues, and partial sums of the norms."""
    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_coefficients(arrays["gamma"], left)
    even = _even(config)
    decay = {r"$\gamma_k^2$, even $k$": arrays["eigenvalue"][even]}
    panels.draw(
        panels.Panel("decay", even, decay, "frequency $k$", "eigenvalue of the kernel"), middle
    )
    sums = {r"$|\cos|$": arrays["abs_cos"], r"$|\cos|^3$": arrays["abs_cos_cubed"]}
    xlabel = "largest frequency in the sum"
    ylabel = "partial sum of the squared norm"
    panels.draw(panels.Panel("norm of two functions", config.cutoffs, sums, xlabel, ylabel), right)
    return figure


def gamma(k: int) -> float:
    """The corrected closed form of `int relu(cos s) exp(-iks) ds`."""
    if k % 2:
        return np.pi / 2 if k == 1 else 0.0
    return 2.0 * (-1) ** (k // 2 + 1) / (k**2 - 1)


def kernel(angles: np.ndarray, precision: str) -> np.ndarray:
    """`int relu(cos s) relu(cos(s - phi)) ds` at the angles, from the library's kernel of an infinitely wide layer."""
    import lazynet as ln

    # The second moment of a pre-activation is one: |x|^2 = 1 and W_std^2 / fan_in = 1.
    layers = ln.Dense(1, W_std=2**0.5), ln.Relu(), ln.Dense(1)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(precision)
    first_row = ln.kernels.analytic_kernel(ln.serial(*layers), x[:1], x).nngp[0]
    return np.pi * np.asarray(first_row, np.float64)


def fourier(values: np.ndarray) -> np.ndarray:
    """`int f(s) exp(-iks) ds` for k = 0, 1, ... of an even function, by the trapezoidal rule."""
    return np.fft.rfft(values).real * 2 * np.pi / len(values)


def _norms(config, coefficients, eigenvalues):
    """Partial sums of the squared norm at the cutoffs; frequencies that the kernel does not have are left out."""
    # gamma_k = 0 for odd k >= 3: their terms would be 0 / 0.
    k = np.array([1, *range(2, max(config.cutoffs) + 1, 2)])
    # Twice: k and -k have the same coefficient, as the functions are even.
    terms = 2 * coefficients[k] ** 2 / eigenvalues[k]
    first = coefficients[0] ** 2 / eigenvalues[0]
    return np.array([first + terms[k <= cutoff].sum() for cutoff in config.cutoffs]) / (2 * np.pi)


def _even(config):
    return np.arange(config.decay_from + config.decay_from % 2, config.decay_to + 1, 2)


def _draw_coefficients(features, ax):
    k = np.arange(11)
    # With the sign (-1)^p, and without gamma_1 = pi/2.
    printed = [0.0 if i % 2 else 2.0 * (-1) ** (i // 2) / (i**2 - 1) for i in k]
    ax.axhline(0, color="0.7", linewidth=0.8)
    ax.bar(k, features[k], color="0.75", label="measured (Fourier transform)")
    ax.plot(
        k, [gamma(i) for i in k], "o", color="black", markersize=5, label="corrected closed form"
    )
    ax.plot(k, printed, "x", color="tab:red", markersize=7, label="form printed in lecture notes")
    ax.set(xlabel="frequency $k$", ylabel=r"Fourier coefficient $\gamma_k$", xticks=k)
    ax.set_title("features relu(cos)", fontsize=11)
    ax.legend(fontsize="small", frameon=False)
