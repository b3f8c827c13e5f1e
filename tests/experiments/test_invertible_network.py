"""Facts about `invertible_network`: the smoke run, and the pieces that its questions are made of."""

from __future__ import annotations

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from rich.console import Console

import experiments.invertible_network as experiment
import lazynet as ln
from experiments.harness import bounds
from experiments.invertible_network import cells

CONSOLE = Console(file=io.StringIO())
SMOKE = experiment.PRESETS["smoke"]


@pytest.mark.parametrize("preset", experiment.PRESETS)
def test_the_residual_network_is_the_largest_that_is_no_larger(preset):
    config = experiment.PRESETS[preset]
    x = jnp.ones((1, 8, 8, 1)) if preset == "smoke" else jnp.ones((1, 32, 32, 3))
    sizes = [
        cells.parameters(cells._bodies(config, name, x)(None), x) for name in experiment.NETWORKS
    ]
    assert 0.9 * sizes[0] < sizes[1] <= sizes[0]


@pytest.mark.extended
@pytest.mark.parametrize("name", experiment.NETWORKS)
def test_a_part_of_the_depth_is_what_the_whole_network_computes_on_its_way(name):
    config = replace(SMOKE, blocks=(2, 1), width=4)
    x = normal(1, 2, 8, 8, 1)
    body = cells._bodies(config, name, x)
    whole = body(None)
    params = whole.init(jax.random.key(0), x)
    _, inside = whole.trace(params, x)
    kind = "coupling" if name == "invertible" else "residual"
    for depth, path in ((1, f"1_{kind}"), (2, f"2_{kind}"), (3, f"4_{kind}")):
        y = body(depth).apply(params, x)
        if name == "invertible":
            np.testing.assert_array_equal(y, inside[path][1])
        else:
            branch = inside[f"{path}/1_serial/2_Conv"][1]
            np.testing.assert_allclose(y, inside[f"{path}/1_serial/0_Conv"][0] + branch, rtol=1e-12)
    np.testing.assert_array_equal(body(3).apply(params, x), whole.apply(params, x))


@pytest.mark.extended
def test_singular_values_are_those_of_the_jacobian_also_of_the_tangent_network(monkeypatch):
    monkeypatch.setattr(cells, "CHUNK", 7)
    body = ln.repeat(ln.coupling(ln.serial(ln.Dense(5), ln.Relu(), ln.Dense(2))), 2)
    x = normal(2, 1, 4)
    params, tangent = (body.init(jax.random.key(i), x) for i in range(2))
    linear = ln.linearize(body.apply, params)
    moved = jax.tree.map(jnp.add, params, tangent)
    for function, w, u in ((body.apply, params, None), (linear, moved, tangent)):
        jacobian = jax.jacobian(lambda x, f=function, w=w: f(w, x[None])[0])(x[0])
        expected = np.linalg.svd(jacobian, compute_uv=False)
        found = cells._singular_values(body, params, u, x)
        np.testing.assert_allclose(found[0], expected, rtol=1e-10)
        assert (abs(np.log(found).sum()) < 1e-10) == (u is None)


def test_the_distance_from_affine_outputs_is_that_of_a_parabola_by_hand():
    t = np.linspace(0, 1, cells.PLACES)[:, None, None]
    line, bump = np.array([[1.0, 2.0]]), np.array([[0.0, 1.0]])
    assert cells._from_affine(3 + t * line).max() < 1e-14
    bent = cells._from_affine(3 + t * line + 4 * t * (1 - t) * bump)
    np.testing.assert_allclose(bent, 1 / np.sqrt(5))


def test_more_stages_than_the_images_have_halvings_are_refused():
    with pytest.raises(ValueError, match=r"blocks=\(1, 1, 1, 1\), expected at most 3 stages"):
        bounds.check(replace(SMOKE, blocks=(1, 1, 1, 1)))
    with pytest.raises(ValueError, match="examples=400"):
        bounds.check(replace(SMOKE, examples=400))


@pytest.mark.slow
def test_every_fact_of_the_smoke_run_holds(finished):
    summary, folder = finished
    verdicts = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(verdicts) == 15 and all(verdicts.values()), verdicts
    assert (folder / "figures" / "invertible_network.png").stat().st_size > 10_000
