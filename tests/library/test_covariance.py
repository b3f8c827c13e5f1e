from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_networks import GOLDEN, network, relative
from marks import extended

from lazynet.covariance.small_angles import angle, segment
from lazynet.kernels.analytic import analytic_kernel, monte_carlo_kernel
from lazynet.models.activations import Erf, Gelu, Relu
from lazynet.models.layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    GlobalSumPool,
    Identity,
    LayerNorm,
    SumPool,
)
from lazynet.models.model import parallel, residual, serial

QUICK = ["conv_same_gap", "conv_stride_flatten", "conv_avgpool"]
IMAGES = [name for name in GOLDEN if not name.startswith("fc_")]
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in IMAGES]


def _images(seed: int, n: int, height: int = 5, width: int = 4, channels: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, height, width, channels)))


def _deep_conv(depth: int, *head):
    return serial(
        *[part for _ in range(depth) for part in (Conv(1, (3, 3), (1, 1), "SAME", 2**0.5), Relu())],
        *head,
    )


# Angles
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-7), (np.float64, 4e-16)])
def test_angles_keep_their_relative_precision_at_vanishing_angles(dtype, tolerance):
    t = np.concatenate([10.0 ** np.arange(-8, 0), np.linspace(0.1, np.pi, 200)])
    u = jnp.asarray(2 * np.sin(t / 2) ** 2, dtype)
    half = np.arcsin(np.sqrt(np.clip(np.asarray(u, np.float64) / 2, 0, 1)))
    np.testing.assert_allclose(angle(u), 2 * half, rtol=tolerance * 4, atol=tolerance)
    np.testing.assert_allclose(
        segment(u), np.sin(2 * half) - 2 * half * np.cos(2 * half), rtol=0, atol=8 * tolerance
    )
    small = t < 1e-2
    np.testing.assert_allclose(segment(u)[small], np.asarray(half[small] * 2) ** 3 / 3, rtol=1e-4)


def test_acute_angles_may_skip_the_fold():
    u = jnp.linspace(0.0, 1.0, 50)
    np.testing.assert_array_equal(angle(u, True), angle(u))
    np.testing.assert_array_equal(segment(u, True), segment(u))


# Parity with neural-tangents
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKED)
def test_kernels_of_images_equal_those_of_neural_tangents(name):
    x1, x2, nngp, ntk = (GOLDEN[name][part] for part in ("x1", "x2", "nngp", "ntk"))
    gram = analytic_kernel(network(name), jnp.asarray(x1), jnp.asarray(x2))
    assert relative(gram.nngp, nngp) < 1e-13 and relative(gram.ntk, ntk) < 1e-13


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IMAGES if "ntk11" in GOLDEN[name]])
def test_kernels_of_one_set_of_images_equal_those_of_neural_tangents(name):
    x1, nngp, ntk = (GOLDEN[name][part] for part in ("x1", "nngp11", "ntk11"))
    gram = analytic_kernel(network(name), jnp.asarray(x1))
    off = ~np.eye(len(x1), dtype=bool)
    assert relative(gram.nngp, nngp) < 1e-13 and relative(gram.ntk[off], ntk[off]) < 1e-13
    assert relative(np.diag(gram.ntk), np.diag(ntk)) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("head", [GlobalAvgPool(), Flatten()], ids=["pooled", "flat"])
def test_single_precision_is_kept_through_twenty_one_convolutions(head):
    x = _images(0, 2, 8, 8, 3)
    double, single = (
        analytic_kernel(_deep_conv(21, head), x.astype(dtype))
        for dtype in (jnp.float64, jnp.float32)
    )
    for ours, exact in zip(single, double, strict=True):
        assert np.max(np.abs(np.asarray(ours, np.float64) / exact - 1)) < 2e-6


# Monte Carlo: every layer of images, with odd sizes, where canvases are larger than images
# -------------------------

WIDTH = 96
SAME = ((3, 3), (1, 1), "SAME", 1.4, 0.2)
BODIES = {
    "Conv 3x2, stride 2": [
        Conv(WIDTH, (3, 2), (2, 1), "SAME", 1.4, 0.2),
        Relu(),
        Conv(WIDTH, *SAME),
        Relu(),
        Flatten(),
    ],
    "VALID after SAME": [
        Conv(WIDTH, *SAME),
        Relu(),
        Conv(WIDTH, (3, 2), (2, 2), "VALID", 1.4),
        Relu(),
        GlobalAvgPool(),
    ],
    "CIRCULAR": [Conv(WIDTH, (3, 3), (1, 1), "CIRCULAR", 1.4, 0.2), Relu(), GlobalSumPool()],
    "CIRCULAR, stride 2 on odd sizes": [
        Conv(WIDTH, (3, 3), (2, 2), "CIRCULAR", 1.4, 0.2),
        Relu(),
        AvgPool((2, 2), (2, 1), "CIRCULAR"),
        Conv(WIDTH, *SAME),
        Relu(),
        GlobalAvgPool(),
    ],
    "AvgPool 3x2, stride 2, SAME": [
        Conv(WIDTH, *SAME),
        Relu(),
        AvgPool((3, 2), (2, 2), "SAME"),
        Conv(WIDTH, *SAME),
        Relu(),
        GlobalAvgPool(),
    ],
    "SumPool 2x2, stride 1, Flatten": [
        Conv(WIDTH, *SAME),
        Relu(),
        SumPool((2, 2)),
        Conv(WIDTH, *SAME),
        Erf(),
        Flatten(),
    ],
    "pooled vectors": [Conv(WIDTH, *SAME), Relu(), GlobalAvgPool(), Dense(WIDTH, 1.4), Relu()],
    "LayerNorm": [Conv(WIDTH, *SAME), LayerNorm(), Gelu(), Flatten()],
    "residual": [Conv(WIDTH, *SAME), residual(Relu(), Conv(WIDTH, *SAME)), Relu(), GlobalAvgPool()],
    "strided shortcut": [
        Conv(WIDTH, *SAME),
        residual(
            Relu(),
            Conv(WIDTH, (3, 3), (2, 2), "SAME"),
            shortcut=Conv(WIDTH, (1, 1), (2, 2), "SAME"),
        ),
        Relu(),
        GlobalAvgPool(),
    ],
    "standard": [
        Conv(WIDTH, (3, 3), (1, 1), "SAME", 1.4, 0.2, parameterization="standard"),
        Relu(),
        Flatten(),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES)
def test_wide_convolutional_networks_agree_with_their_limit(body):
    model = serial(*BODIES[body], Dense(1, 1.1, 0.2))
    x1, x2 = _images(0, 2), _images(1, 2)
    mean, error = monte_carlo_kernel(model, jax.random.key(0), x1, x2, n_samples=48)
    limit = analytic_kernel(model, x1, x2)
    for got, standard_error, exact in zip(mean, error, limit, strict=True):
        assert np.all(
            np.abs(got - exact) < 4.5 * standard_error + 4 / WIDTH * np.max(np.abs(exact))
        )


# Symmetries and layouts
# ------------------------------------------------------------------------------------------


def _brute_force(x1, x2, depth):
    """The pooled kernel of `_deep_conv` with all pairs of positions in one array."""
    height, width = x1.shape[1:3]
    pairs = {}
    for name, (a, b) in {"11": (x1, x1), "22": (x2, x2), "12": (x1, x2)}.items():
        pairs[name] = np.einsum("nijc,mklc->nmijkl", a, b) / a.shape[-1]
    tangent = np.zeros_like(pairs["12"])

    def conv(s):
        padded = np.pad(s, [(0, 0), (0, 0)] + [(1, 1)] * 4)
        shifts = [(d, e) for d in range(3) for e in range(3)]
        return (
            2
            / 9
            * sum(
                padded[:, :, d : d + height, e : e + width, d : d + height, e : e + width]
                for d, e in shifts
            )
        )

    for _ in range(depth):
        pairs = {name: conv(s) for name, s in pairs.items()}
        tangent = conv(tangent) + pairs["12"]
        one, two = (np.einsum("nnijij->nij", pairs[name]) for name in ("11", "22"))
        norms = {"11": (one, one), "22": (two, two), "12": (one, two)}
        for name, (a, b) in norms.items():
            scale = np.sqrt(a[:, None, :, :, None, None] * b[None, :, None, None])
            t = np.arccos(np.clip(pairs[name] / scale, -1, 1))
            pairs[name] = scale * (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi)
            if name == "12":
                tangent = tangent * (np.pi - t) / (2 * np.pi)
    return pairs["12"].mean((2, 3, 4, 5)), tangent.mean((2, 3, 4, 5))


@pytest.mark.parametrize("n2", [3, extended(17)])
def test_planes_give_the_kernel_of_all_pairs_of_positions(n2):
    x1, x2 = _images(0, 2, 5, 3), _images(1, n2, 5, 3)
    gram = analytic_kernel(_deep_conv(3, GlobalAvgPool()), x1, x2)
    for got, expected in zip(gram, _brute_force(np.asarray(x1), np.asarray(x2), 3), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 4, 5, 17])
@pytest.mark.extended
def test_a_set_of_images_with_itself_needs_each_pair_once(n):
    x, model = _images(0, n, 3, 3), _deep_conv(1, GlobalAvgPool())
    gram, cross = analytic_kernel(model, x), analytic_kernel(model, x, x + 0)
    tiled = analytic_kernel(model, x, tile=3)
    for ours, expected, pieces in zip(gram, cross, tiled, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        np.testing.assert_allclose(ours, pieces, rtol=1e-13)
        np.testing.assert_array_equal(ours, np.asarray(ours).T)


@pytest.mark.extended
def test_pooled_kernels_do_not_see_flips_and_flat_ones_do():
    x1, x2 = _images(0, 2), _images(1, 2)
    for head, same in ((GlobalAvgPool(), True), (Flatten(), False)):
        model = serial(Conv(1, (3, 3), (1, 1), "CIRCULAR"), Relu(), head)
        shifted = jnp.roll(x2, 1, axis=1)
        close = np.allclose(
            analytic_kernel(model, x1, x2).ntk, analytic_kernel(model, x1, shifted).ntk, rtol=1e-12
        )
        assert close == same


@pytest.mark.extended
def test_a_strided_convolution_is_a_subsampled_one():
    x1, x2 = _images(0, 2, 6, 4), _images(1, 2, 6, 4)
    strided = serial(Conv(1, (2, 2), (2, 2), "VALID", 1.3, 0.1), Relu(), GlobalAvgPool())
    patches = [
        jnp.reshape(
            jnp.transpose(jnp.reshape(x, (2, 3, 2, 2, 2, 2)), (0, 1, 3, 2, 4, 5)), (2, 3, 2, 8)
        )
        for x in (x1, x2)
    ]
    pointwise = serial(Conv(1, (1, 1), (1, 1), "VALID", 1.3, 0.1), Relu(), GlobalAvgPool())
    got, expected = analytic_kernel(strided, x1, x2), analytic_kernel(pointwise, *patches)
    np.testing.assert_allclose(got.ntk, expected.ntk, rtol=1e-12)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("strides", "head"),
    [
        ((2, 2), [Flatten()]),
        ((1, 1), [GlobalAvgPool()]),
        ((2, 2), [AvgPool((2, 2), (2, 2), "CIRCULAR"), Flatten()]),
    ],
)
def test_periodic_layers_on_a_cropped_image_are_those_on_a_smaller_one(strides, head):
    """A 2x1 VALID convolution crops a row; on images whose channels hold both rows of its window it is pointwise."""
    x1, x2 = _images(0, 3, 9, 4), _images(1, 2, 9, 4)
    stacked = [jnp.concatenate([x[:, :-1], x[:, 1:]], axis=-1) for x in (x1, x2)]
    rest = (Relu(), Conv(1, (3, 3), strides, "CIRCULAR", 1.3, 0.2), Relu(), *head, Dense(1))
    cropped = serial(Conv(1, (2, 1), (1, 1), "VALID", 1.2, 0.1), *rest)
    pointwise = serial(Conv(1, (1, 1), (1, 1), "VALID", 1.2, 0.1), *rest)
    got, expected = analytic_kernel(cropped, x1, x2), analytic_kernel(pointwise, *stacked)
    np.testing.assert_allclose(got.nngp, expected.nngp, rtol=1e-12)
    np.testing.assert_allclose(got.ntk, expected.ntk, rtol=1e-12)
    own, same = analytic_kernel(cropped, x1), analytic_kernel(pointwise, stacked[0])
    np.testing.assert_allclose(own.ntk, same.ntk, rtol=1e-12)


@pytest.mark.extended
def test_derivatives_of_pooled_kernels_are_finite_at_equal_images():
    x = _images(0, 1, 3, 3)
    model = serial(
        Conv(1, (3, 3), (1, 1), "SAME"),
        Relu(),
        AvgPool((2, 2), (1, 1)),
        Conv(1, (1, 1)),
        Relu(),
        GlobalAvgPool(),
    )

    def total(x1):
        return jnp.sum(analytic_kernel(model, x1, x).ntk)

    gradient = jax.grad(total)(x)
    direction = _images(1, 1, 3, 3)
    assert bool(jnp.all(jnp.isfinite(gradient)))
    np.testing.assert_allclose(
        jax.jvp(total, (x,), (direction,))[1], jnp.vdot(gradient, direction), rtol=1e-6
    )


# Refusals
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (serial(Conv(4)), "ends in an image.*Flatten"),
        (serial(Conv(4), Relu(), Dense(3)), "Dense got images.*Flatten"),
        (serial(Flatten(), Conv(4)), "Conv got vectors"),
        (serial(Flatten(), AvgPool((2, 2))), "AvgPool got vectors"),
        (serial(Flatten(), GlobalAvgPool()), "GlobalAvgPool got vectors"),
        (serial(Conv(4, (6, 6)), Flatten()), "does not fit"),
        (serial(Conv(4), Flatten(), Relu()), "Relu.*put a Dense or Conv"),
        (serial(Conv(4), parallel(Identity(), Identity()), Flatten()), "fresh Dense or Conv"),
    ],
)
def test_networks_of_images_without_a_limit_are_refused(model, words):
    with pytest.raises(ValueError, match=words):
        analytic_kernel(model, jnp.ones((1, 5, 5, 2)))


@pytest.mark.extended
def test_a_window_that_covers_the_images_is_a_global_pool():
    x1, x2 = _images(0, 2), _images(1, 2)
    grams = [
        analytic_kernel(serial(Conv(1, (3, 3), (1, 1), "SAME"), Relu(), *head, Dense(1)), x1, x2)
        for head in ([GlobalAvgPool()], [AvgPool((5, 4)), Flatten()])
    ]
    for pooled, covered in zip(*grams, strict=True):
        np.testing.assert_allclose(pooled, covered, rtol=1e-13)
