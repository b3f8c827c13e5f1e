"""The theory as executable facts: every smoke run measures what the theorems predict, and the checks can fail."""

from __future__ import annotations

import dataclasses
import importlib
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended_but
from rich.console import Console

import lazynet as ln
from experiments import kappa_width, width_convergence
from experiments.harness import facts, running
from experiments.shared import flows

QUICK = ("alpha_rates", "circle_kernel", "kappa_width")
SLOW = ("uniform_bound", "width_convergence", "crossover", "mean_field", "coordinate_check")
NAMES = (*QUICK, *SLOW)
REQUIRED = {
    "alpha_rates": [
        f"slope/{quantity}/{variant}"
        for quantity in ("weight_drift", "weight_gap", "output_gap", "ntk_change")
        for variant in ("centered", "symmetrized", "not_centered")
    ],
    "circle_kernel": [*(f"gamma/k={k}" for k in range(7)), "slope/eigenvalue_decay"],
    "kappa_width": [
        f"slope/kappa/{scale}/{init}"
        for scale in ("inv_sqrt", "inv", "one")
        for init in ("iid", "doubled")
    ],
    "width_convergence": [f"slope/ntk_error/depth={depth}" for depth in (1, 2, 3)],
    "uniform_bound": ["error_over_bound/width=100", "error_over_bound/alpha=0.01"],
    "crossover": ["slope/drift/centered", "crossover/centered/width=64"],
    "mean_field": [
        "slope/fluctuation/step=300",
        "slope/ntk_change/mean_field",
        "slope/ntk_change/ntk",
    ],
    "coordinate_check": [
        *(f"slope/{layer}/r=0.5" for layer in ("0_Dense", "2_Dense", "outputs")),
        "slope/outputs/standard",
    ],
}


@pytest.mark.parametrize(
    "name",
    [
        *extended_but(QUICK, "circle_kernel"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_every_fact_of_the_smoke_run_holds(name, tmp_path):
    module = importlib.import_module(f"experiments.{name}")
    console = Console(file=io.StringIO(), width=140)
    summary = running.compute(module, module.PRESETS["smoke"], tmp_path, console)
    failed = {
        key: value for key, value in summary.items() if key.startswith("passed/") and not value
    }
    assert not failed, summary
    assert set(REQUIRED[name]) <= set(summary)
    assert not [value for value in summary.values() if isinstance(value, dict | list)]
    assert [path.suffix for path in (tmp_path / "figures").iterdir()] == [".png"]
    assert (tmp_path / "measured.npz").exists()
    running.show(module, summary, console)
    printed = console.file.getvalue()
    assert all(key in printed for key in REQUIRED[name]) and "facts hold" in printed


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_how_to_run_it_and_has_a_smoke_and_a_laptop_preset(name):
    module = importlib.import_module(f"experiments.{name}")
    assert module.__doc__.splitlines()[0].endswith(".")
    assert f"python -m experiments run {name}" in module.__doc__ and "xpected" in module.__doc__
    assert set(module.PRESETS) == {"smoke", "laptop"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.PRESETS["smoke"].seeds = 1


def test_a_fact_holds_within_its_tolerance_and_its_bounds_only():
    assert facts.close("a", -1.04, -1, 0.05).passed and not facts.close("a", -1.06, -1, 0.05).passed
    assert facts.within("a", 1, at_most=1).passed and not facts.within("a", 1.01, at_most=1).passed
    assert not facts.within("a", 0.9, at_least=1, at_most=2).passed
    assert not any(facts.close("a", bad, 0, math.inf).passed for bad in (math.nan, math.inf))


def test_a_fact_that_cannot_fail_is_refused():
    with pytest.raises(ValueError, match="fact bound has no bounds"):
        facts.within("bound", 1.0)
    with pytest.raises(ValueError, match="no bounds"):
        facts.power_law("rate", [1.0, 10.0], [1.0, 10.0])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("alpha_rates", {"alphas": (10.0,)}, "alphas got .*at least 2"),
        ("crossover", {"scales": (10.0, 1.0)}, "scales got .*increasing"),
        ("kappa_width", {"seeds": 0}, "seeds got 0"),
        ("width_convergence", {"networks": 0}, "networks got 0"),
    ],
)
def test_a_configuration_without_a_slope_is_refused_before_anything_is_computed(
    name, change, message, tmp_path
):
    module = importlib.import_module(f"experiments.{name}")
    with pytest.raises(ValueError, match=message):
        running.compute(
            module,
            dataclasses.replace(module.PRESETS["smoke"], **change),
            tmp_path,
            Console(file=io.StringIO()),
        )


def test_the_slope_of_a_power_law_is_that_of_the_mean_over_seeds():
    alphas = np.array([10.0, 100.0, 1000.0])
    values = np.array([[1.0], [3.0]]) * alphas**-2
    fact = facts.power_law("gap/centered", alphas, values, -2, 1e-12)
    assert fact.name == "slope/gap/centered" and fact.passed
    assert not facts.power_law("gap/centered", alphas, values, -1, 0.1).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_a_power_law_of_what_is_not_positive_and_finite_is_a_fact_that_fails(bad):
    fact = facts.power_law("gap", [1.0, 10.0], [1.0, bad], at_most=1)
    assert math.isnan(fact.measured) and not fact.passed


def test_a_summary_is_flat_and_names_each_fact_once():
    rate, bound = (
        facts.close("slope/drift/centered", -1.0, -1, 0.1),
        facts.within("ratio", math.nan, at_most=1),
    )
    assert facts.summarize([rate, bound]) == {
        "slope/drift/centered": -1.0,
        "expected/drift/centered": -1.0,
        "tolerance/drift/centered": 0.1,
        "passed/drift/centered": True,
        "ratio": None,
        "at_most/ratio": 1.0,
        "passed/ratio": False,
    }
    with pytest.raises(ValueError, match="two facts are named 'drift/centered'"):
        facts.summarize([rate, rate])


def test_the_table_marks_what_does_not_hold():
    console = Console(file=io.StringIO(), width=100)
    facts.show(
        facts.summarize([facts.close("a", 1, 1, 0.1), facts.close("b", 2, 1, 0.1)]),
        console,
        "title",
    )
    printed = console.file.getvalue()
    assert "NO" in printed and "1 of 2 facts hold" in printed


def test_the_integrator_is_of_fourth_order():
    def error(steps):
        end, _ = flows.integrate(
            lambda s: -s, jnp.ones(()), step=1 / steps, steps=steps, observe=lambda s: s
        )
        return abs(float(end) - math.exp(-1))

    assert 14 < error(8) / error(16) < 18


@pytest.mark.extended
def test_the_integrated_linearized_flow_is_the_kernel_flow_in_closed_form():
    model = ln.serial(ln.Dense(16), ln.elementwise(jnp.tanh), ln.Dense(1))
    x, y = (
        jax.random.normal(jax.random.key(0), (5, 3)),
        jax.random.normal(jax.random.key(1), (5, 1)),
    )
    params0 = model.init(jax.random.key(2), x)
    tangent = ln.lazy(model.apply, params0, math.inf)

    def field(u):
        return flows.descent_direction(lambda u: ln.mse(tangent(u, x), y), u)

    start = ln.trees.zeros_like(params0)
    _, outputs = flows.integrate(field, start, step=0.1, steps=50, observe=lambda u: tangent(u, x))
    ntk = ln.empirical.empirical_ntk(model.apply, params0, x, outputs="trace")
    exact = ln.flow.solve_flow(ntk, y, time=np.linspace(0, 5, 51)).outputs
    np.testing.assert_allclose(outputs, exact, atol=1e-6)


@pytest.mark.extended
def test_the_norms_that_all_scales_share_give_the_kappa_of_the_diagnostics():
    config, width, key = kappa_width.PRESETS["smoke"], 32, jax.random.key(0)
    model, data = kappa_width.network(config, width, "iid"), kappa_width.problem(config, key)
    params0 = model.init(jax.random.fold_in(key, 1), data.x)
    measured = kappa_width.measure_one(config, model, width, key)
    for name, scale in kappa_width.SCALES.items():
        alpha = scale(width) * width**0.5
        expected = ln.diagnostics.kappa(
            model.apply, params0, data, alpha=alpha, key=jax.random.key(1)
        )
        np.testing.assert_allclose(measured[f"kappa/{name}"], expected, rtol=0.1)


def test_outputs_are_drawn_of_as_many_networks_as_are_asked_for():
    config = dataclasses.replace(width_convergence.Config(), networks=1999)
    outputs = width_convergence._draw_outputs(config, 2, jnp.ones((1, 3)))
    assert outputs.shape == (1999, config.outputs)


def test_independent_gaussian_outputs_have_no_kurtosis_and_no_dependence():
    outputs = np.random.default_rng(0).normal(size=(20_000, 16))
    assert abs(width_convergence.excess_kurtosis(outputs)) < 5 * math.sqrt(24 / outputs.size)
    assert abs(width_convergence.squares_covariance(outputs)) < 5e-3
