"""Facts about the compiled program for displacement planes: it is the kernel that JAX computes layer by layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended, extended_but

import lazynet as ln
from lazynet.covariance import cpu
from lazynet.covariance.duals import rectifier_dual
from lazynet.covariance.elementary import Unsupported, elementary
from lazynet.covariance.expansions import arctangent, exponential
from lazynet.covariance.small_angles import angle
from lazynet.kernels.analytic import analytic_kernel
from lazynet.kernels.blocks import questions_of
from lazynet.models import special

pytestmark = pytest.mark.skipif(not cpu.available(), reason="llvmlite is not installed")


def _conv(padding="SAME", size=(3, 3), strides=(1, 1), W_std=1.4):
    return ln.Conv(4, size, strides=strides, padding=padding, W_std=W_std, b_std=0.1)


def _deep(activation, padding="SAME", size=(3, 3), depth=3):
    return ln.serial(*[layer for _ in range(depth) for layer in (_conv(padding, size), activation)])


def _block(strides, shortcut):
    main = ln.serial(ln.Relu(), _conv(strides=strides), ln.Relu(), _conv())
    return ln.parallel(main, shortcut)


BODIES = {
    "relu": _deep(ln.Relu()),
    "no padding, even windows": _deep(ln.Relu(), "VALID", (2, 2), depth=2),
    "periodic": _deep(ln.Relu(), "CIRCULAR"),
    "leaky relu, flat windows": _deep(ln.LeakyRelu(0.1), "SAME", (1, 3)),
    "large windows": _deep(ln.Relu(), "SAME", (5, 4), depth=2),
    "layer norm": ln.serial(_conv(), ln.LayerNorm(), ln.Relu(), _conv(), ln.Relu()),
    "ending in a convolution": ln.serial(_deep(ln.Abs(), depth=2), _conv()),
    "strides": ln.serial(_conv(strides=(2, 1)), ln.Relu(), _conv(strides=(1, 2)), ln.Relu()),
    "strides and no padding": ln.serial(_conv("VALID", strides=(2, 2)), ln.Relu(), _conv()),
    "residual": ln.serial(_conv(), _block((1, 1), ln.Identity()), _block((1, 1), _conv())),
    "residual with strides": ln.serial(_conv(), _block((2, 2), _conv(strides=(2, 2))), ln.Relu()),
    "branches of branches": ln.serial(
        ln.parallel(_conv(), _conv(size=(1, 2)), ln.serial(_conv(), ln.Relu(), _conv())),
        _block((1, 1), ln.serial(ln.Relu(), _conv(), _block((1, 1), ln.Identity()))),
        ln.Relu(),
    ),
    "frozen after trained": ln.serial(ln.parallel(_conv(), ln.freeze(_conv())), ln.Relu()),
    "trained after frozen": ln.serial(ln.parallel(ln.freeze(_conv()), _conv()), ln.Relu()),
    "doubled after trained": ln.serial(
        _conv(), ln.Relu(), ln.symmetrize(_deep(ln.Relu(), depth=2))
    ),
    "nothing trained": ln.freeze(_deep(ln.Relu(), depth=2)),
    "pixels alone": ln.serial(),
    "one position at a time": ln.serial(_conv(size=(1, 1)), ln.Relu()),
}
HEADS = {
    "pooled": ln.GlobalAvgPool(),
    "flat": ln.Flatten(),
    "flat, then dense": ln.serial(ln.Flatten(), ln.Dense(3, 1.3, 0.2), ln.Relu(), ln.Dense(1)),
}


def _images(seed, n, height=6, width=5, channels=2, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(n, height, width, channels)).astype(dtype)


def _both(monkeypatch, model, *inputs):
    """The kernel by the compiled program, which there must be, and layer by layer."""
    first, second = (*inputs, None)[:2]
    assert questions_of(model, first, second) is not None
    compiled = analytic_kernel(model, *inputs)
    monkeypatch.setenv(cpu.SWITCH, "0")
    assert questions_of(model, first, second) is None
    return compiled, analytic_kernel(model, *inputs)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("body", extended_but(BODIES, "relu"))
def test_kernels_are_those_of_jax(body, head, monkeypatch):
    if body in ("pixels alone", "nothing trained") and head == "flat, then dense":
        pytest.skip("another network")
    if body == "pixels alone" and head == "flat":
        pytest.skip("one matrix product of the pixels, which no planes are asked for")
    model = ln.serial(BODIES[body], HEADS[head])
    for got, expected in zip(*_both(monkeypatch, model, _images(0, 2), _images(1, 3)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


SMOOTH = {
    "erf": ln.Erf(),
    "gelu": ln.Gelu(),
    "sine with a phase": ln.Sin(1.0, 0.7, 0.3),
    "rbf": ln.Rbf(0.5),
    "gabor": special.Gabor(),
    "a correlation's exponential": special.ExpNormalized(),
    "polynomial": special.Polynomial([0.1, 0.2, 0.3]),
    "sign": special.Sign(),
}


@pytest.mark.parametrize("name", extended_but(SMOOTH, "gelu"))
def test_kernels_of_smooth_activations_are_those_of_jax(name, monkeypatch):
    model = ln.serial(_deep(SMOOTH[name], depth=2), ln.GlobalAvgPool())
    for got, expected in zip(*_both(monkeypatch, model, _images(0, 2), _images(1, 3)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "sizes", [(1,), extended((3,)), extended((20,)), extended((3, 21)), extended((20, 1))]
)
@pytest.mark.parametrize("head", ["pooled", "flat, then dense"])
def test_all_pairs_of_images_are_lanes(sizes, head, monkeypatch):
    model = ln.serial(_deep(ln.Relu(), depth=1), HEADS[head])
    inputs = [_images(seed, n, 3, 4) for seed, n in enumerate(sizes)]
    for got, expected in zip(*_both(monkeypatch, model, *inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
        if len(sizes) == 1:
            np.testing.assert_array_equal(got, np.asarray(got).T)


@pytest.mark.parametrize("head", ["pooled", extended("flat")])
@pytest.mark.extended
def test_single_precision_holds_through_21_layers_and_on_the_diagonal(head):
    model = ln.serial(
        *[part for _ in range(21) for part in (_conv(W_std=2**0.5), ln.Relu())], HEADS[head]
    )
    x = _images(0, 3)
    narrow, wide = (analytic_kernel(model, x.astype(t)) for t in (np.float32, np.float64))
    for got, expected in zip(narrow, wide, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.extended
def test_images_that_vanish_or_are_equal_or_opposite_have_the_kernels_of_jax(monkeypatch):
    x = _images(0, 1)
    images = np.concatenate([x, 0 * x, x, -x, 1e-200 * x])
    # angles of equal images are the root of a rounding error
    tolerance = 10 * np.finfo(float).eps ** 0.5
    model = ln.serial(ln.Conv(1, (3, 3), padding="SAME"), ln.Abs(), ln.GlobalAvgPool())
    for got, expected in zip(*_both(monkeypatch, model, images), strict=True):
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=1e-14)


def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    model = ln.serial(_deep(ln.Relu()), ln.GlobalAvgPool())
    x = _images(0, 5, dtype=np.float32)
    found = []
    monkeypatch.setattr(cpu, "SMALL", 0)
    for cores in (1, 3):
        monkeypatch.setattr(cpu, "_cores", lambda cores=cores: cores)
        found.append(analytic_kernel(model, x))
    for one, many in zip(*found, strict=True):
        np.testing.assert_array_equal(one, many)


@pytest.mark.extended
def test_a_processor_with_small_registers_computes_the_same(monkeypatch):
    model = ln.serial(_deep(ln.Relu()), ln.GlobalAvgPool())
    x = _images(0, 3, dtype=np.float32)
    here = analytic_kernel(model, x)
    cpu._compiled.cache_clear()
    monkeypatch.setattr(cpu, "_processor", lambda llvm: ("", ""))
    plain = analytic_kernel(model, x)
    cpu._compiled.cache_clear()
    for got, expected in zip(plain, here, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("activation", [ln.Tanh(), ln.SiLU()])
def test_what_the_program_does_not_know_stays_with_jax(activation):
    x = _images(0, 2)
    model = ln.serial(_deep(activation, depth=1), ln.GlobalAvgPool())
    assert questions_of(model, x, None) is None


@pytest.mark.parametrize(
    "body",
    [
        ln.serial(_deep(ln.Relu(), "CIRCULAR", depth=1), ln.AvgPool((2, 1), (2, 1))),
        ln.serial(_conv(), ln.parallel(_conv(), ln.serial(ln.AvgPool((1, 1)), _conv()))),
        ln.serial(_conv(), ln.Relu(), ln.AvgPool((6, 5)), _conv()),
    ],
)
def test_pools_of_periodic_images_in_branches_and_before_more_layers_stay_with_jax(body):
    model = ln.serial(body, ln.GlobalAvgPool())
    assert questions_of(model, _images(0, 2), None) is None


POOLS = {
    "overlapping, then residual and pooled": ln.serial(
        _deep(ln.Relu(), depth=1),
        ln.AvgPool((3, 2), (2, 1), padding="SAME"),
        _conv(),
        _block((2, 1), _conv(strides=(2, 1))),
        ln.Relu(),
        ln.GlobalAvgPool(),
    ),
    "of pixels and of layers, then flat": ln.serial(
        ln.AvgPool((2, 2), (1, 1)),
        _deep(ln.Relu(), depth=1),
        ln.AvgPool((2, 2), (2, 2)),
        _deep(ln.Relu(), depth=1),
        ln.Flatten(),
    ),
}


@pytest.mark.extended
@pytest.mark.parametrize("name", POOLS)
def test_kernels_with_pools_between_layers_are_those_of_jax(name, monkeypatch):
    for got, expected in zip(*_both(monkeypatch, POOLS[name], _images(0, 3)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(got, np.asarray(got).T)


def test_a_pool_of_single_positions_changes_nothing():
    layer = _deep(ln.Relu(), depth=1)
    inputs = _images(0, 2, 3, 3), _images(1, 16, 3, 3)
    plain, pooled = (
        analytic_kernel(ln.serial(layer, pool, layer, ln.GlobalAvgPool()), *inputs)
        for pool in (ln.Identity(), ln.AvgPool((1, 1)))
    )
    for got, expected in zip(pooled, plain, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.extended
def test_a_pool_of_one_window_is_a_global_pool():
    layer = _deep(ln.Relu(), depth=1)
    one, every = (
        analytic_kernel(ln.serial(layer, *head, ln.Dense(1, 1.2, 0.1), ln.Relu()), _images(0, 3))
        for head in ((ln.AvgPool((6, 5)), ln.Flatten()), (ln.GlobalAvgPool(),))
    )
    for got, expected in zip(one, every, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.extended
def test_single_precision_holds_through_pools_and_on_the_diagonal():
    layer = _deep(ln.Relu(), depth=1)
    model = ln.serial(layer, ln.AvgPool((2, 2), (2, 2)), layer, ln.AvgPool((4, 4)), ln.Flatten())
    x = _images(0, 3, 8, 8)
    narrow, wide = (analytic_kernel(model, x.astype(t)) for t in (np.float32, np.float64))
    for got, expected in zip(narrow, wide, strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.extended
def test_under_transformations_jax_computes_the_kernel():
    model = ln.serial(_deep(ln.Relu(), depth=1), ln.GlobalAvgPool())
    x = jnp.asarray(_images(0, 2, 3, 3))
    text = jax.jit(lambda a: analytic_kernel(model, a).ntk).lower(x).as_text()
    assert "while" in text
    slope = jax.grad(lambda a: analytic_kernel(model, a).ntk.sum())(x)
    assert np.isfinite(slope).all()


# Elementary operations
# -------------------------------------------------------------------------------------


NUMPY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "select_n": lambda which, no, yes: np.where(which, yes, no),
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "power_of_two": np.exp2,
}


def _value(found, inputs):
    values = {**dict(enumerate(inputs)), **{-1 - k: a for k, a in enumerate(found.constants)}}
    for number, (name, operands) in enumerate(found.operations, found.inputs):
        values[number] = NUMPY[name](*[values[k] for k in operands])
    return [values[number] for number in found.outputs]


@pytest.mark.parametrize("acute", [False, True])
def test_a_dual_is_the_list_of_its_elementary_operations(acute):
    dual = rectifier_dual(0.3, 1.0)

    def pair(q1, q2, s):
        value, slope, _ = dual.pair(dual.side(q1), dual.side(q2), s, None, acute)
        return [value, slope]

    found = elementary(pair, 3, jnp.float64)
    inputs = np.array([[1.0, 2.0, 0.5], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]).T
    for got, expected in zip(_value(found, inputs), pair(*jnp.asarray(inputs)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponentials_by_powers_of_two_are_those_of_numpy(dtype):
    x = np.concatenate([np.linspace(-120, 90, 997), np.linspace(-760, 720, 997)]).astype(dtype)
    x = np.append(x, [np.inf, -np.inf, 0, np.nan]).astype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        expected = np.exp(x)
    # XLA takes the smallest numbers, which have lost digits, for zero
    np.testing.assert_allclose(
        exponential(jnp.asarray(x)),
        expected,
        rtol=2 * np.finfo(dtype).eps,
        atol=np.finfo(dtype).tiny,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_angles_of_points_are_those_of_numpy(dtype):
    points = np.random.default_rng(0).normal(size=(2, 500)).astype(dtype)
    borders = np.array([0, 1, -1, np.inf, -np.inf, 1e-30, np.nan], dtype)
    grid = np.array(np.meshgrid(borders, borders)).reshape(2, -1)
    grid = grid[:, ~((grid[0] == 0) & (grid[1] <= 0))]
    y, x = np.concatenate([points, grid], axis=1)
    found = arctangent(jnp.asarray(y), jnp.asarray(x))
    np.testing.assert_allclose(found, np.arctan2(y, x), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_list_of_operations_holds_exponentials_angles_and_signs(dtype):
    def function(y, x):
        return [jnp.exp(y) * jnp.cos(jnp.asarray(2.0, y.dtype)), jnp.arctan2(y, x), jnp.sign(x)]

    found = elementary(function, 2, dtype)
    inputs = np.random.default_rng(0).normal(size=(2, 50)).astype(dtype)
    for got, expected in zip(_value(found, inputs), function(*jnp.asarray(inputs)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=8 * jnp.finfo(dtype).eps)


def test_what_no_output_depends_on_is_not_in_the_list():
    found = elementary(lambda x: [(x + 1, jnp.tanh(x))[0]], 1, jnp.float32)
    assert [operation.name for operation in found.operations] == ["add"]


def test_equal_operations_are_one_and_constants_are_apart():
    one, two = (
        elementary(lambda x, c=c: [c * angle(x) + c * angle(x)], 1, jnp.float32) for c in (2.5, 3.5)
    )
    assert one.operations == two.operations
    assert one.constants != two.constants


@pytest.mark.parametrize("function", [jnp.tanh, jnp.round, lambda x: x * jnp.ones(2, x.dtype)])
def test_what_is_no_elementary_operation_is_refused(function):
    with pytest.raises(Unsupported):
        elementary(lambda x: [function(x)], 1, jnp.float32)


@pytest.mark.extended
def test_networks_whose_last_parts_are_equal_keep_their_own_images(monkeypatch):
    """What comes after the planes has one text for both, in which the images are not used."""
    strided = ln.serial(_conv("VALID", (2, 2), (2, 2)), ln.Relu(), ln.GlobalAvgPool())
    pointwise = ln.serial(_conv("VALID", (1, 1)), ln.Relu(), ln.GlobalAvgPool())
    analytic_kernel(strided, _images(0, 2, 6, 4, 2), _images(1, 2, 6, 4, 2))
    pairs = _images(0, 2, 3, 2, 8), _images(1, 2, 3, 2, 8)
    for got, expected in zip(*_both(monkeypatch, pointwise, *pairs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
