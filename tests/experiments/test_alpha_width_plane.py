"""Facts about the plane of alpha and the width: its two limits, and the smoke run."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import lazynet as ln
from experiments import alpha_width_plane as plane
from experiments.harness import running
from experiments.harness.facts import summarize
from lazynet import dynamics

pytestmark = pytest.mark.extended
CONFIG = plane.Config(
    widths=(4, 8),
    alphas=(0.1, 1.0, 10.0, 100.0, math.inf),
    seeds=2,
    n_train=20,
    n_test=30,
    steps=40,
)


def test_linearized_networks_follow_the_exact_descent_of_their_empirical_kernels():
    train, test = plane.load_data(CONFIG)
    outputs = plane.train_cell(CONFIG, train, test, 0.05, 8, math.inf)
    model = plane.build(CONFIG, 8)
    for key, found in zip(jax.random.split(jax.random.key(0), 2), outputs, strict=True):
        params = model.init(key, train.x)
        ntk, cross = (
            ln.empirical_ntk(model.apply, params, *x) for x in ((train.x,), (test.x, train.x))
        )
        settings = dict(learning_rate=0.05, momentum=CONFIG.momentum, save_at=[CONFIG.steps])
        solution = dynamics.solve_descent(ntk, train.y, **settings)
        np.testing.assert_allclose(
            found, dynamics.kernel_outputs(cross, solution.coefficients)[-1], rtol=1e-9, atol=1e-11
        )


def test_the_distance_to_the_linearized_model_vanishes_there_and_falls_like_one_over_alpha():
    train, test = plane.load_data(CONFIG)
    limit, rate = plane.infinite_width(CONFIG, train, test)
    cells = [(width, alpha) for width in CONFIG.widths for alpha in CONFIG.alphas]
    outputs = {cell: plane.train_cell(CONFIG, train, test, rate, *cell) for cell in cells}
    measured = plane.distances(CONFIG, outputs, limit, test)
    assert (measured["to_linearized"][:, :, -1] == 0).all() and (measured["to_kernel"] > 0).all()
    summary = summarize(list(plane.facts(CONFIG, measured)))
    slopes = [value for key, value in summary.items() if key.startswith("slope/to_linearized")]
    np.testing.assert_allclose(slopes, -1, atol=0.15)


def test_networks_that_all_diverged_are_drawn_and_their_facts_fail():
    shape = (CONFIG.seeds, len(CONFIG.widths), len(CONFIG.alphas))
    arrays = {name: np.full(shape, math.nan) for name in ("to_linearized", "to_kernel")}
    arrays |= {"accuracy": np.full(shape, 0.1), "kernel_accuracy": 0.1}
    plane.draw(CONFIG, arrays).draw_without_rendering()
    assert not any(fact.passed for fact in plane.facts(CONFIG, arrays))
    json.dumps(plane.numbers(CONFIG, arrays), allow_nan=False)
    list(plane.report(plane.numbers(CONFIG, arrays)))


def test_the_fact_of_columns_at_alpha_1_is_that_of_alpha_1():
    config = dataclasses.replace(CONFIG, alphas=(0.1, 10.0, math.inf))
    measured = {name: np.ones((2, 2, 3)) for name in plane.MEASURES}
    assert not [fact for fact in plane.facts(config, measured) if "alpha=1" in fact.name]


def test_one_alpha_from_1_on_has_no_neighbor():
    config = dataclasses.replace(CONFIG, alphas=(0.1, 0.3, math.inf))
    measured = {name: np.ones((2, 2, 3)) for name in plane.MEASURES}
    assert not [fact for fact in plane.facts(config, measured) if "neighbors" in fact.name]


def test_a_run_computes_a_cell_once(tmp_path, monkeypatch):
    from rich.console import Console

    first = running.compute(plane, CONFIG, tmp_path, Console(quiet=True))
    monkeypatch.setattr(
        plane, "train_cell", lambda *cell: pytest.fail(f"{cell[-2:]} is computed again")
    )
    assert running.compute(plane, CONFIG, tmp_path, Console(quiet=True)) == first
    assert (tmp_path / "figures" / "alpha_width_plane.png").stat().st_size > 10_000
