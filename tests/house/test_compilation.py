"""Facts about compiled programs: how many there are in a sweep, and what sits in them."""

from __future__ import annotations

import logging
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal

import lazynet as ln

KEY = jax.random.key(0)
X = normal(1, 12, 16)
DATA = ln.Data(X, jnp.ones((12, 3)))
MODEL = ln.serial(ln.Dense(32), ln.Erf(), ln.Dense(3))


def _compilations_of_the_step(caplog):
    """How many programs named `_step` were compiled so far in this test."""
    return sum(
        bool(re.match(r"Compiling (jit\()?_step\b", record.getMessage()))
        for record in caplog.records
    )


def _sweep(model, alphas, seeds):
    for seed in seeds:
        params0 = model.init(jax.random.key(seed), X)
        for alpha in alphas:
            goal = ln.objective(ln.lazy(model.apply, params0, alpha), ln.mse)
            ln.train(
                goal,
                None,
                DATA,
                ln.sgd(0.9),
                key=KEY,
                save_at=[2],
                learning_rate=0.01 * (1 + seed),
                batch_size=4,
            )


def test_a_sweep_over_finite_alphas_and_initializations_compiles_the_step_once_and_infinity_once_more(
    caplog,
):
    # A new function object: nothing is cached yet.
    model = ln.serial(ln.Dense(32), ln.Relu(), ln.Dense(3))
    with caplog.at_level(logging.WARNING), jax.log_compiles(True):
        _sweep(model, (0.1, 1.0, 10.0, 100.0, 1000.0), seeds=(0, 1))
        assert _compilations_of_the_step(caplog) == 1
        _sweep(model, (math.inf,), seeds=(0, 1))
        assert _compilations_of_the_step(caplog) == 2


@pytest.mark.parametrize("alpha", [0.1, 1000.0, math.inf])
def test_the_step_holds_no_large_constant_and_no_branch_on_alpha(alpha):
    params0 = MODEL.init(KEY, X)
    goal = ln.objective(ln.lazy(MODEL.apply, params0, alpha), ln.mse)
    jaxpr = jax.make_jaxpr(jax.grad(lambda g, u, d: g.value(u, d), argnums=1))(goal, params0, DATA)
    assert max((np.asarray(c).nbytes for c in jaxpr.consts), default=0) <= 1024
    assert not {"cond", "select_n", "while", "scan"} & _primitives(jaxpr.jaxpr)


@pytest.mark.parametrize(
    "transform",
    [
        lambda apply, p: ln.linearize(apply, p),
        lambda apply, p: ln.center(apply, p),
        lambda apply, p: ln.taylor_expand(apply, p, 2),
        lambda apply, p: ln.scale(apply, 3.0),
        lambda apply, p: ln.lazy(apply, p, 7.0),
    ],
)
def test_transforms_are_pytrees_and_hold_no_constants(transform):
    params0 = MODEL.init(KEY, X)
    function = transform(MODEL.apply, params0)
    moved = jax.tree.map(lambda p: p + 0.1, params0)
    jaxpr = jax.make_jaxpr(lambda f, w, x: f(w, x))(function, moved, X)
    assert not [c for c in jaxpr.consts if np.asarray(c).nbytes > 1024]
    direct = function(moved, X)
    np.testing.assert_allclose(
        jax.jit(lambda f, w, x: f(w, x))(function, moved, X), direct, rtol=1e-12, atol=1e-12
    )


def _primitives(jaxpr):
    """Names of all primitives of a jaxpr, also inside its sub-programs."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names
