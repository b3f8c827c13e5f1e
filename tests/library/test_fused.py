"""Facts about the program that takes a displacement plane through all layers: it is the layer-by-layer sum."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended, extended_but

import lazynet as ln
from lazynet.covariance import cpu, gpu, readouts
from lazynet.covariance.pairing import all_pairs, each_with_itself, ring
from lazynet.covariance.state import input_kernel
from lazynet.models.model import propagate

X1 = jax.random.normal(jax.random.key(0), (2, 4, 5, 2), jnp.float32)
X2 = jax.random.normal(jax.random.key(1), (3, 4, 5, 2), jnp.float32)


def _conv(padding="SAME", size=(3, 3), strides=(1, 1), W_std=1.4):
    return ln.Conv(4, size, strides=strides, padding=padding, W_std=W_std, b_std=0.1)


def _deep(activation, padding="SAME", size=(3, 3), depth=3):
    return ln.serial(*[layer for _ in range(depth) for layer in (_conv(padding, size), activation)])


NETWORKS = {
    "relu": _deep(ln.Relu()),
    "relu, no padding, even windows": _deep(ln.Relu(), "VALID", (2, 2)),
    "relu, periodic": _deep(ln.Relu(), "CIRCULAR"),
    "relu, periodic windows wider than the image": _deep(ln.Relu(), "CIRCULAR", (5, 7)),
    "leaky relu, flat windows": _deep(ln.LeakyRelu(0.1), "SAME", (1, 3)),
    "erf": _deep(ln.Erf()),
    "gelu, ending in a convolution": ln.serial(_deep(ln.Gelu(), depth=2), _conv()),
    "layer norm": ln.serial(_conv(), ln.LayerNorm(), ln.Relu(), _conv(), ln.Relu()),
    "nothing trained": ln.freeze(_deep(ln.Relu(), depth=2)),
    "pixels alone": ln.serial(),
}


def _on_host(s, q1, q2):
    shape = jax.ShapeDtypeStruct(s.shape, s.dtype)
    return jax.pure_callback(np.positive, shape, s, vmap_method="expand_dims")


def _planes(model, x1, x2, lanes):
    return propagate(model, input_kernel(x1, x2, lanes), model.name)


def _sums(model, x1, x2, *, same, interpret):
    k = _planes(model, x1, x2, all_pairs(len(x1)))
    planes, lanes = (k.first.pairs, each_with_itself()) if same else (k.cross, k.lanes)
    assert gpu.fits(planes.chain, planes.canvas)
    if interpret:
        return readouts.summed_on_chip(planes, lanes, same=same, interpret=True)
    area = math.prod(planes.shape) ** 2
    return tuple(
        None if a is None else a * area for a in readouts.mean_over_pairs(planes, lanes, same=same)
    )


@pytest.mark.parametrize("same", [False, extended(True)], ids=["pairs", "each with itself"])
@pytest.mark.parametrize("name", extended_but(NETWORKS, "relu"))
@pytest.mark.extended
def test_the_program_sums_what_the_layers_sum(name, same):
    found, expected = (
        jax.jit(lambda x1, x2, way=way: _sums(NETWORKS[name], x1, x2, same=same, interpret=way))(
            X1, X2
        )
        for way in (True, False)
    )
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=5e-7 * float(jnp.max(jnp.abs(b))))


@pytest.mark.extended
def test_its_derivatives_are_those_of_the_layers():
    def value(x1, interpret):
        return jnp.sum(
            jnp.sin(_sums(NETWORKS["relu"], x1, X2, same=False, interpret=interpret)[1] / 1000)
        )

    found, expected = (
        jax.jit(jax.grad(lambda x, way=way: value(x, way)))(X1) for way in (True, False)
    )
    np.testing.assert_allclose(found, expected, atol=2e-6 * float(jnp.max(jnp.abs(expected))))


def test_equal_layers_become_a_loop():
    chain = _planes(NETWORKS["relu"], X1, X2, None).cross.chain
    plan = gpu._plan(chain.steps, (4, 5), (4, 5))
    # the first ReLU meets obtuse angles, the others do not; the first convolution has no tangents
    # yet
    assert [(len(steps), times) for steps, times in plan.segments] == [
        (1, 1),
        (1, 1),
        (1, 1),
        (3, 2),
    ]


def test_a_plane_is_exactly_the_sum_of_three_bfloat16_arrays():
    x = jax.random.normal(jax.random.key(2), (1000,), jnp.float32) * 10.0 ** jnp.arange(
        -3, 7, 0.01, jnp.float32
    )
    parts = [np.asarray(part, np.float64) for part in gpu._parts(x)]
    np.testing.assert_array_equal(sum(parts), np.asarray(x, np.float64))


@pytest.mark.parametrize(
    "model",
    [
        ln.serial(_conv(strides=(2, 2)), ln.Relu()),
        ln.serial(_conv(), ln.AvgPool((2, 2)), _conv()),
        ln.serial(_conv(), ln.residual(_conv())),
        ln.serial(_conv(), ln.stax.Elementwise(None, _on_host, _on_host).model),
    ],
    ids=["strides", "pooling", "branches", "calls to python"],
)
def test_other_networks_go_layer_by_layer(model):
    planes = _planes(model, X1, X2, None).cross
    assert not gpu.fits(planes.chain, planes.canvas)


def test_scales_that_are_traced_go_layer_by_layer():
    fits = []

    def scaled(W_std):
        planes = _planes(ln.serial(_conv(W_std=W_std), ln.Relu()), X1, X2, None).cross
        fits.append(gpu.fits(planes.chain, planes.canvas))
        return W_std

    jax.eval_shape(scaled, jnp.float32(1.0))
    assert fits == [False]


@pytest.mark.parametrize(
    "x", [X1.astype(jnp.float64), jnp.ones((1, 33, 4, 1), jnp.float32)], ids=["float64", "large"]
)
def test_other_images_go_layer_by_layer(x):
    planes = _planes(NETWORKS["relu"], x, x, None).cross
    assert not gpu.fits(planes.chain, planes.canvas)


NEEDS_PALLAS = pytest.mark.skipif(
    not gpu.available(), reason="this jax does not compile Pallas programs by Triton"
)


@NEEDS_PALLAS
@pytest.mark.extended
def test_a_kernel_for_a_gpu_holds_the_program_and_one_for_a_cpu_does_not(monkeypatch):
    monkeypatch.setenv(cpu.SWITCH, "0")  # both are computed layer by layer
    model = ln.serial(NETWORKS["relu"], ln.GlobalAvgPool(), ln.Dense(1))
    x, y = np.asarray(X1), np.asarray(X2)

    def program():
        return str(jax.make_jaxpr(lambda x1, x2: ln.analytic_kernel(model, x1, x2))(x, y))

    assert "pallas_call" not in program()
    expected = ln.analytic_kernel(model, x, y)
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "pallas_call" in program()
    found = ln.analytic_kernel(model, x, y)  # computed here, layer by layer
    np.testing.assert_array_equal(found.ntk, expected.ntk)
    jax.clear_caches()


@NEEDS_PALLAS
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_the_program_is_lowered_for_a_gpu():
    def sums(x1, x2):
        k = _planes(NETWORKS["relu"], x1, x2, ring(len(x1)))
        return gpu.sum_over_pairs(k.cross.chain, k.cross.shape, k.cross.canvas, k.lanes)

    x = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    try:
        lowered = jax.jit(sums).trace(x, x).lower(lowering_platforms=("cuda",))
    except RuntimeError as error:
        if "No supported GPU" not in str(error):
            raise
        pytest.skip("this jax lowers Pallas programs only where it sees a GPU")
    assert "triton" in lowered.as_text()
