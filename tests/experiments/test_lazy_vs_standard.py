"""Rates of the lazy regime on digits, in float64 and for alpha from 10 to 1000, as `lazy_vs_standard` has them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from marks import extended
from rich.console import Console

from experiments import lazy_vs_standard as experiment
from experiments.harness import running
from experiments.lazy_vs_standard import cells

RATES = ("param_drift", "linearization_gap", "ntk_change")


def _slopes(tmp_path, activation, doubled=False, epochs=20):
    base = experiment.PRESETS["smoke"]
    config = dataclasses.replace(
        base,
        network=dataclasses.replace(base.network, activation=activation),
        train=dataclasses.replace(base.train, epochs=epochs, records=4),
        alphas=(10.0, 100.0, 1000.0, math.inf),
        doubled=doubled,
    )
    summary = running.compute(experiment, config, tmp_path, Console(quiet=True))
    return [summary[f"slope/{name}"] for name in RATES]


@pytest.mark.parametrize(
    "activation", [extended("erf"), pytest.param("gelu", marks=pytest.mark.slow)]
)
def test_with_a_smooth_activation_drift_gap_and_kernel_change_fall_like_one_over_alpha(
    tmp_path, activation
):
    drift, gap, ntk = _slopes(tmp_path, activation)
    assert abs(drift + 1) < 0.05 and abs(gap + 1) < 0.1 and abs(ntk + 1) < 0.1


@pytest.mark.parametrize(
    "activation", [extended("erf"), pytest.param("gelu", marks=pytest.mark.slow)]
)
def test_the_doubling_trick_makes_gap_and_kernel_change_fall_like_one_over_alpha_squared(
    tmp_path, activation
):
    drift, gap, ntk = _slopes(tmp_path, activation, doubled=True)
    assert abs(drift + 1) < 0.05 and abs(gap + 2) < 0.1 and abs(ntk + 2) < 0.1


@pytest.mark.parametrize(
    ("diverged", "compared"), [(None, {1.0, 10.0}), (10.0, {1.0}), (math.inf, set())]
)
def test_what_diverged_is_not_compared_with_the_linearized_training(diverged, compared):
    trainings = {
        alpha: {"outputs": np.eye(3), "curve/diverged_at": 5 if alpha == diverged else -1}
        for alpha in (1.0, 10.0, math.inf)
    }
    found = cells._compared_with_linearized(trainings)
    assert {alpha for alpha, cell in found.items() if "final/agreement" in cell} == compared


@pytest.mark.slow
def test_with_relu_gates_flip_and_the_gap_falls_more_slowly_than_the_drift(tmp_path):
    drift, gap, _ = _slopes(tmp_path, "relu")
    assert abs(drift + 1) < 0.05 and -0.8 < gap < -0.3
