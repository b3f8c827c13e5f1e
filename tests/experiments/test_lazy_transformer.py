"""Facts about `lazy_transformer`: its smoke run, its task, and the attention that it shows."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import experiments.lazy_transformer as experiment

CONSOLE = Console(file=io.StringIO())
SMOKE = experiment.PRESETS["smoke"]


def test_the_sums_are_all_there_once_with_their_answers():
    p = SMOKE.modulus
    parts = experiment.sums(SMOKE)
    tokens = np.concatenate([part.x for part in parts])
    answers = np.concatenate([part.y for part in parts]).argmax(axis=1)
    assert len(parts[0].x) == SMOKE.train_fraction * p * p
    assert len({(a, b) for a, b, _ in tokens.tolist()}) == p * p and set(tokens[:, 2]) == {p}
    np.testing.assert_array_equal(tokens[:, :2].sum(axis=1) % p, answers)


@pytest.mark.extended
def test_the_attention_shown_is_that_of_the_layer():
    model = experiment.transformer(SMOKE)
    train, _ = experiment.sums(SMOKE)
    params = jax.jit(model.init)(jax.random.key(0), train.x)
    layer = params["2_residual"]["1_serial"]["1_SelfAttention"]
    # what `=` adds to itself is linear in the values of the three positions, weighted by attention
    hidden = params["0_Embed"]["W"][train.x] + params["1_Positions"]["P"][None]
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / hidden.std(-1, keepdims=True)
    values = jnp.einsum("npc,hcv->nhpv", hidden, layer["V"])
    weights = experiment.attention(SMOKE, params)[:, train.x[:, 0], train.x[:, 1]]
    joined = jnp.einsum("hnp,nhpv->nhv", weights, values).reshape(len(hidden), -1)
    expected = joined @ layer["O"] / (joined.shape[1] * hidden.shape[-1]) ** 0.5
    outputs = experiment.ln.models.attention.SelfAttention(
        SMOKE.width,
        SMOKE.width // SMOKE.heads,
        SMOKE.width // SMOKE.heads,
        SMOKE.heads,
        causal=True,
    ).apply(layer, hidden)
    np.testing.assert_allclose(outputs[:, -1], expected, rtol=1e-3, atol=1e-4)


def test_only_the_linearization_ends_the_scales():
    config = experiment.Config(alphas=(0.3, 1.0, 10.0))
    with pytest.raises(ValueError, match="expected inf last"):
        config.check("")


@pytest.mark.extended
def test_every_fact_of_the_smoke_run_holds(finished):
    summary, folder = finished
    verdicts = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(verdicts) == 4 and all(verdicts.values()), verdicts
    assert (folder / "figures" / "lazy_transformer.png").stat().st_size > 10_000
