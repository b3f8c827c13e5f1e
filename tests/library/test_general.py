"""Covariances of all pairs of positions: against planes, against other dimensions, and against finite networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazynet as ln
from lazynet.covariance.general.attention import Embedding
from lazynet.covariance.general.positions import position_kernel
from lazynet.models import spatial
from lazynet.models.attention import SelfAttention
from lazynet.models.model import propagate

# Of the many compilations here a plain run would take minutes.
pytestmark = pytest.mark.extended

RNG = np.random.default_rng(0)
X1 = jnp.asarray(RNG.normal(size=(3, 6, 5, 2)))
X2 = jnp.asarray(RNG.normal(size=(2, 6, 5, 2)))
HEADS = {"flatten": ln.Flatten, "mean": ln.GlobalAvgPool, "sum": ln.GlobalSumPool}


def general(model, *xs, **options):
    return propagate(model, position_kernel(*xs, **options), model.name)


def close(a, b, tolerance=1e-12):
    a, b = np.asarray(a), np.asarray(b)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.extended
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sets", [1, 2])
def test_all_pairs_of_positions_agree_with_planes(padding, head, sets):
    model = ln.serial(
        ln.Conv(4, (3, 2), (1, 1), padding, 1.3, 0.2),
        ln.Relu(),
        ln.Conv(4, (2, 2), (2, 1), padding, 1.1),
        ln.LayerNorm(),
        ln.Gelu(),
        ln.AvgPool((2, 2), padding=padding),
        HEADS[head](),
        ln.Dense(1, 1.2, 0.1),
    )
    xs = (X1, X2)[:sets]
    planes = ln.analytic_kernel(model, *xs)
    positions = general(model, *xs)
    close(positions.nngp, planes.nngp)
    close(positions.ntk, planes.ntk)


@pytest.mark.extended
def test_a_window_of_one_dimension_is_one_of_two_with_a_height_of_one():
    line = ln.serial(
        spatial.Conv(4, (3,), None, "SAME", 1.2, 0.1), ln.Relu(), spatial.GlobalAvgPool()
    )
    image = ln.serial(ln.Conv(4, (1, 3), (1, 1), "SAME", 1.2, 0.1), ln.Relu(), ln.GlobalAvgPool())
    x = X1[:, 0]
    for ours, known in zip(
        ln.analytic_kernel(line, x), ln.analytic_kernel(image, x[:, None]), strict=True
    ):
        close(ours, known)


@pytest.mark.extended
def test_three_dimensions_with_one_of_size_one_are_two():
    solid = ln.serial(
        spatial.Conv(4, (3, 1, 2), None, "CIRCULAR", 1.2),
        ln.Erf(),
        spatial.AvgPool((2, 1, 2)),
        ln.Flatten(),
    )
    image = ln.serial(
        ln.Conv(4, (3, 2), (1, 1), "CIRCULAR", 1.2), ln.Erf(), ln.AvgPool((2, 2)), ln.Flatten()
    )
    ours = ln.analytic_kernel(solid, X1[:, :, None], X2[:, :, None])
    close(ours.ntk, ln.analytic_kernel(image, X1, X2).ntk)


def test_equal_positions_alone_are_the_diagonal_of_all_pairs():
    model = ln.serial(spatial.Conv(4, (3, 2), None, "SAME", 1.2, 0.1), ln.Relu(), spatial.Dense(3))
    alone = general(model, X1[:, :3, :3], diagonal=True)
    pairs = general(model, X1[:, :3, :3])
    close(alone.ntk, jnp.einsum("ijabab->ijab", pairs.ntk))
    close(alone.own[0], jnp.einsum("iabab->iab", pairs.own[0]))


def test_pairs_of_examples_within_a_set_are_its_kernel():
    model = ln.serial(spatial.Conv(4, (2, 2)), ln.Relu())
    whole = general(model, X1[:, :3, :3], X2[:, :3, :3], whole=True)
    close(whole.own[0], general(model, X1[:, :3, :3]).nngp)


def test_covariances_that_take_too_much_memory_are_refused_with_the_number():
    with pytest.raises(ValueError, match=r"memory is 1,000 bytes, expected at least 259,200"):
        position_kernel(X1, memory=1000)


CONVOLUTIONS = {
    "transposed same": lambda: spatial.ConvTranspose(512, (3, 2), (2, 1), "SAME", 1.2, 0.3),
    "transposed valid": lambda: spatial.ConvTranspose(512, (2, 3), (1, 2), "VALID", 1.2),
    "transposed circular": lambda: spatial.ConvTranspose(512, (3, 3), (2, 2), "CIRCULAR", 1.2, 0.3),
    "local": lambda: spatial.ConvLocal(512, (2, 2), None, "SAME", 1.2, 0.3),
    "solid": lambda: spatial.Conv(512, (2, 2, 1), None, "SAME", 1.2, 0.3),
    "resized": lambda: ln.serial(spatial.Dense(512), spatial.Resize((4, 5))),
    "edges": lambda: ln.serial(spatial.Dense(512), spatial.AvgPool((2, 2), padding="SAME", normalize_edges=True)),
}  # fmt: skip


@pytest.mark.extended
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_linear_layers_have_the_covariances_of_finite_ones(name):
    model = CONVOLUTIONS[name]()
    x = X1[:2, :3, :3]
    x = x[:, :, :, None, :] if name == "solid" else x
    limit = general(model, x)
    samples = []
    for i in range(12):
        params = model.init(jax.random.key(i), x)
        outputs = model.apply(params, x)
        flat = outputs.reshape(2, -1, outputs.shape[-1])
        samples.append(np.einsum("iac,jbc->ijab", flat, flat) / outputs.shape[-1])
    mean, error = np.mean(samples, 0), np.std(samples, 0, ddof=1) / len(samples) ** 0.5
    expected = np.asarray(limit.nngp).reshape(mean.shape)
    assert np.mean(np.abs(mean - expected) < 4 * error + 1e-12) > 0.97
    assert np.linalg.norm(mean - expected) < 0.05 * np.linalg.norm(expected)


ATTENTION = {
    "softmax": dict(),
    "relu with embeddings": dict(mechanism="RELU", embedding=Embedding("SUM", 0.7, lambda d: jnp.exp(-d))),
    "identity, concatenated": dict(mechanism="IDENTITY", embedding=Embedding("CONCAT", 0.7, values=True)),
    "square root": dict(linear_scaling=False, mechanism="IDENTITY", b_std=0.3),
}  # fmt: skip


@pytest.mark.extended
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_has_the_kernels_of_finite_attention(name):
    model = ln.serial(SelfAttention(4, 256, 8, 256, **ATTENTION[name]), ln.Flatten())
    x = X1[:2, :3, 0]
    limit = ln.analytic_kernel(model, x)
    mean, error = ln.monte_carlo_kernel(model, jax.random.key(0), x, n_samples=24)
    for got, expected, deviation in zip(mean, limit, error, strict=True):
        assert np.all(np.abs(got - expected) < 5 * deviation + 0.08 * np.max(expected))


WAVES = Embedding("SUM", 3.0, lambda d: jnp.cos(jnp.sqrt(d)), values=True)
SIGNED = {
    "resized": spatial.Resize((9,), "cubic"),
    "attention": SelfAttention(4, 8, 8, 8, mechanism="IDENTITY", embedding=WAVES),
    "square root": SelfAttention(4, 8, 8, 8, linear_scaling=False, mechanism="IDENTITY", embedding=WAVES),
}  # fmt: skip


@pytest.mark.extended
@pytest.mark.parametrize("name", SIGNED)
def test_negative_covariances_are_not_taken_for_positive(name):
    k = general(ln.serial(spatial.Dense(8), ln.Relu(), SIGNED[name]), X1[..., 0, :])
    assert jnp.min(k.nngp) < 0 and not k.positive


@pytest.mark.extended
@pytest.mark.parametrize("name", ATTENTION)
def test_tangent_kernels_of_attention_and_of_the_layer_before_it_add_up(name):
    dense = spatial.Dense(8)
    attention = SelfAttention(4, 8, 8, 8, **ATTENTION[name])
    x = X1[:2, :3, 0]

    def ntk(first, second):
        return ln.analytic_kernel(ln.serial(first, second, ln.Flatten()), x).ntk

    before = ntk(dense, ln.freeze(attention))
    assert np.min(np.diagonal(before)) > 0
    close(before + ntk(ln.freeze(dense), attention), ntk(dense, attention), 1e-9)


@pytest.mark.extended
def test_a_transformer_has_the_kernels_of_wide_ones():
    model = ln.zoo.transformer(256, depth=1, heads=32, W_std=1.2, b_std=0.2)
    x = X1[:2, :3, 0]
    limit = ln.analytic_kernel(model, x)
    mean, error = ln.monte_carlo_kernel(model, jax.random.key(0), x, n_samples=24)
    for got, expected, deviation in zip(mean, limit, error, strict=True):
        assert np.all(np.abs(got - expected) < 5 * deviation + 0.08 * np.max(expected))


@pytest.mark.extended
def test_a_transformer_without_embeddings_does_not_see_the_order_of_positions():
    x = X1[:, :, 0]
    model = ln.zoo.transformer(8, heads=4)
    close(ln.analytic_kernel(model, x[:, ::-1], x).ntk, ln.analytic_kernel(model, x, x).ntk, 1e-9)
    placed = ln.zoo.transformer(8, heads=4, embedding=Embedding("SUM", values=True))
    seen = ln.analytic_kernel(placed, x[:, ::-1], x).ntk
    assert np.max(np.abs(seen - ln.analytic_kernel(placed, x, x).ntk)) > 1e-3


def test_variances_are_the_diagonal_of_the_kernel():
    for model, x in (
        (ln.serial(ln.Conv(4, (2, 2)), ln.Relu(), ln.GlobalAvgPool(), ln.Dense(1)), X1[:, :3, :3]),
        (ln.serial(spatial.Conv(4, (2,)), ln.Relu(), spatial.GlobalAvgPool()), X1[:, :3, 0]),
        (ln.serial(ln.Dense(4), ln.coupling(ln.Dense(2))), X1[:, 0, 0]),
    ):
        kernel, own = ln.analytic_kernel(model, x), ln.analytic_variances(model, x)
        close(own.nngp, jnp.diagonal(kernel.nngp))
        close(own.ntk, jnp.diagonal(kernel.ntk))
