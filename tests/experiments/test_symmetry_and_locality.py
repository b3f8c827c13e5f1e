"""Facts about `symmetry_and_locality`: the smoke run, and what its networks are."""

from __future__ import annotations

import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from rich.console import Console

import experiments.symmetry_and_locality as experiment
from experiments.harness import bounds
from experiments.shared.sizes import parameters

CONSOLE = Console(file=io.StringIO())
SMOKE = experiment.PRESETS["smoke"]


def test_the_ordinary_network_has_nearly_as_many_parameters():
    x = jnp.ones((1, 8, 8, 1))
    networks = experiment.networks(SMOKE, x)
    sizes = [parameters(networks[name], x) for name in ("hierarchical", "ordinary")]
    assert 0.85 * sizes[0] < sizes[1] <= sizes[0]


@pytest.mark.extended
@pytest.mark.parametrize("side", [2, 5])
def test_the_evidence_of_a_field_is_that_of_its_pixels_alone(side):
    config = replace(SMOKE, width=4, stride=2)
    x = normal(1, 2, 8, 8, 1)
    model = experiment.local(config, side)
    params = model.init(jax.random.key(0), x)
    evidence = model.apply(params, x)
    places = range(0, 8 - side + 1, 2)
    assert evidence.shape == (2, len(places), len(places), 10)
    for i, top in enumerate(places):
        cut = x[:, top : top + side, 2 : 2 + side]
        np.testing.assert_allclose(model.apply(params, cut)[:, 0, 0], evidence[:, i, 1], rtol=1e-12)


def test_fields_beyond_the_image_and_strides_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"fields=\(2, 9\), expected at most 8 pixels"):
        bounds.check(replace(SMOKE, fields=(2, 9)))
    with pytest.raises(ValueError, match=r"strides=\(1, 1, 1\), expected 2"):
        bounds.check(replace(SMOKE, strides=(1, 1, 1)))


@pytest.mark.slow
def test_every_fact_of_the_smoke_run_holds(finished):
    summary, folder = finished
    verdicts = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(verdicts) == 14 and all(verdicts.values()), verdicts
    assert (folder / "figures" / "symmetry_and_locality.png").stat().st_size > 10_000
