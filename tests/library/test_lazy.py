"""Facts about the alpha axis: limits, equivalences, rates of the expansion, and the misuse that must be refused."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial, normal
from jax.tree_util import Partial

import lazynet as ln
from lazynet import diagnostics, dynamics, tangents, trees
from lazynet.lazy import check_displacement, lazy_part
from lazynet.precision import compute_in, largest_alpha

X = normal(1, 7, 5)
MODEL = ln.serial(ln.Dense(16, 1.5, 0.1), ln.Erf(), ln.Dense(3))
PARAMS = initial(0, MODEL, X)


def _direction(seed, scale=1.0):
    leaves, treedef = jax.tree.flatten(PARAMS)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(
        [scale * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    )


def test_alpha_infinity_is_exactly_jvp():
    u = _direction(2)
    expected = jax.jvp(lambda w: MODEL.apply(w, X), (PARAMS,), (u,))[1]
    assert jnp.array_equal(ln.lazy(MODEL.apply, PARAMS, math.inf)(u, X), expected)


def test_alpha_one_is_the_centered_model():
    u = _direction(3)
    expected = MODEL.apply(trees.add(PARAMS, u), X) - MODEL.apply(PARAMS, X)
    np.testing.assert_allclose(
        ln.lazy(MODEL.apply, PARAMS, 1.0)(u, X), expected, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_displacement_form_equals_the_scaled_centered_model_of_the_weights(alpha):
    u = _direction(4)
    f = ln.lazy(MODEL.apply, PARAMS, alpha)
    expected = ln.scale(ln.center(MODEL.apply, PARAMS), alpha)(ln.weights(f, u), X)
    np.testing.assert_allclose(f(u, X), expected, rtol=1e-11, atol=1e-11)


def test_the_gap_to_the_tangent_model_falls_like_one_over_alpha():
    u = _direction(5)
    tangent = ln.lazy(MODEL.apply, PARAMS, math.inf)(u, X)
    gaps = [
        float(jnp.linalg.norm(ln.lazy(MODEL.apply, PARAMS, a)(u, X) - tangent))
        for a in (1e2, 1e3, 1e4)
    ]
    np.testing.assert_allclose(np.diff(np.log10(gaps)), -1.0, atol=0.02)


def test_a_doubled_model_is_zero_at_initialization_and_its_gap_falls_like_one_over_alpha_squared():
    doubled = ln.symmetrize(MODEL)
    params = jax.jit(doubled.init)(jax.random.key(0), X)
    assert float(jnp.abs(doubled.apply(params, X)).max()) == 0.0
    half = _direction(5)
    u = {"plus": half, "minus": jax.tree.map(jnp.negative, half)}
    tangent = ln.lazy(doubled.apply, params, math.inf)(u, X)
    gaps = [
        float(jnp.linalg.norm(ln.lazy(doubled.apply, params, a)(u, X) - tangent))
        for a in (10.0, 100.0, 1000.0)
    ]
    np.testing.assert_allclose(np.diff(np.log10(gaps)), -2.0, atol=0.05)


def test_linearize_is_affine_in_the_weights_and_tangent_at_the_start():
    tangent = ln.linearize(MODEL.apply, PARAMS)
    a, b = trees.add(PARAMS, _direction(6)), trees.add(PARAMS, _direction(7))
    middle = trees.divide(trees.add(a, b), 2.0)
    np.testing.assert_allclose(
        tangent(middle, X), (tangent(a, X) + tangent(b, X)) / 2, rtol=1e-11, atol=1e-12
    )
    np.testing.assert_array_equal(tangent(PARAMS, X), MODEL.apply(PARAMS, X))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_taylor_expansion_error_has_the_order_after_its_degree(degree):
    def error(size):
        params = trees.add_scaled(PARAMS, size, _direction(8))
        return float(
            jnp.abs(
                ln.taylor_expand(MODEL.apply, PARAMS, degree)(params, X) - MODEL.apply(params, X)
            ).max()
        )

    order = math.log2(error(2e-2) / error(1e-2))
    assert abs(order - (degree + 1)) < 0.25


def test_first_order_taylor_expansion_is_linearize():
    params = trees.add(PARAMS, _direction(9))
    a, b = (
        ln.taylor_expand(MODEL.apply, PARAMS, 1)(params, X),
        ln.linearize(MODEL.apply, PARAMS)(params, X),
    )
    np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("alpha", "expected"), [(10.0, 0.1), (math.inf, 0.0)])
def test_weights_move_by_u_over_alpha(alpha, expected):
    u = _direction(10)
    moved = trees.subtract(ln.weights(ln.lazy(MODEL.apply, PARAMS, alpha), u), PARAMS)
    np.testing.assert_allclose(trees.norm(moved), expected * trees.norm(u), rtol=1e-12)


def test_float32_displacement_keeps_its_digits_where_the_scaled_weights_lose_them():
    single = jax.tree.map(lambda p: p.astype(jnp.float32), PARAMS)
    u = jax.tree.map(lambda p: p.astype(jnp.float32), _direction(11))
    x = X.astype(jnp.float32)
    exact = ln.lazy(MODEL.apply, PARAMS, math.inf)(_direction(11), X)
    tangent = ln.lazy(MODEL.apply, single, math.inf)(u, x)
    assert tangent.dtype == jnp.float32
    np.testing.assert_allclose(tangent, exact, atol=2e-5)


def test_params0_as_u_is_refused():
    with pytest.raises(ValueError, match="u is params0.*starts at zero"):
        ln.lazy(MODEL.apply, PARAMS, 10.0)(PARAMS, X)


@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, lambda f: ln.center(f, trees.zeros_like(PARAMS)), lambda f: ln.scale(f, 2.0)],
)
@pytest.mark.parametrize("alpha", [10.0, math.inf])
def test_values_of_params0_are_refused_as_u_at_the_entrance_of_what_compiles(wrap, alpha):
    function, again = wrap(ln.lazy(MODEL.apply, PARAMS, alpha)), jax.tree.map(np.array, PARAMS)
    with pytest.raises(ValueError, match="params is params0.*starts at zero"):
        check_displacement(function, again)
    with pytest.raises(ValueError, match="params is params0"):
        jax.jit(lambda scale: check_displacement(function, PARAMS) or scale)(1.0)


@pytest.mark.parametrize(
    "measure",
    [
        lambda f: ln.empirical_ntk(f, PARAMS, X),
        lambda f: ln.empirical_nngp(f, PARAMS, X),
        lambda f: ln.ntk_vector_product(f, PARAMS, X),
        lambda f: ln.estimate_max_learning_rate(f, PARAMS, X, key=jax.random.key(0)),
        lambda f: ln.is_lazy(f, PARAMS, ln.Data(X, X[:, :3])),
        lambda f: ln.diagnostics.kappa(f, PARAMS, ln.Data(X, X[:, :3]), key=jax.random.key(0)),
    ],
)
def test_kernels_and_diagnostics_refuse_params0_as_u(measure):
    with pytest.raises(ValueError, match="params is params0"):
        measure(ln.lazy(MODEL.apply, jax.tree.map(jnp.copy, PARAMS), 10.0))


def test_other_displacements_other_functions_and_traced_ones_pass():
    function = ln.lazy(MODEL.apply, PARAMS, 10.0)
    check_displacement(function, _direction(2))
    check_displacement(MODEL.apply, PARAMS)
    check_displacement(ln.linearize(MODEL.apply, PARAMS), PARAMS)
    jax.jit(lambda u: check_displacement(function, u) or 1.0)(PARAMS)


def test_an_initialization_of_zeros_is_a_displacement_too():
    zeros = trees.zeros_like(PARAMS)
    function = ln.lazy(MODEL.apply, zeros, 10.0)
    check_displacement(function, zeros)
    np.testing.assert_array_equal(function(zeros, X), 0.0)


def test_a_displacement_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match="u.*structure"):
        check_displacement(ln.lazy(MODEL.apply, PARAMS, 10.0), {"w": X}, "u")


@pytest.mark.parametrize(
    ("dtype", "digits"),
    [(jnp.bfloat16, 8), (jnp.float16, 11), (jnp.float32, 24), (jnp.float64, 53)],
)
def test_a_dtype_of_n_binary_digits_carries_alpha_up_to_two_to_the_n_minus_six(dtype, digits):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    largest = largest_alpha(MODEL.apply, params)
    assert largest == 2.0 ** (digits - 6)
    ln.lazy(MODEL.apply, params, largest)
    with pytest.raises(
        ValueError, match="alpha got .* expected at most .* use alpha=inf.* or float64"
    ):
        ln.lazy(MODEL.apply, params, 1.001 * largest)


def test_the_type_of_the_computation_counts_as_that_of_the_weights_does():
    half = compute_in(MODEL.apply, jnp.bfloat16)
    assert largest_alpha(half, PARAMS) == largest_alpha(ln.center(half, PARAMS), PARAMS) == 4.0


@pytest.mark.parametrize("alpha", [1e6, 1e8, 1e30, 1e39])
def test_scales_that_float32_cannot_carry_are_refused_where_known_and_close_to_the_tangent_where_traced(
    alpha,
):
    single, u = (
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
        for tree in (PARAMS, _direction(11))
    )
    x = X.astype(jnp.float32)
    with pytest.raises(ValueError, match=re.escape(f"alpha got {alpha:g}")):
        ln.lazy(MODEL.apply, single, alpha)
    traced = jax.jit(lambda alpha: ln.lazy(MODEL.apply, single, alpha)(u, x))(alpha)
    tangent = np.asarray(ln.lazy(MODEL.apply, PARAMS, math.inf)(_direction(11), X))
    assert np.linalg.norm(np.asarray(traced) - tangent) < 0.01 * np.linalg.norm(tangent)


@pytest.mark.parametrize("alpha", ["10", True, None, 1j, math.nan, 1e-320])
def test_what_is_no_scale_is_refused(alpha):
    with pytest.raises((TypeError, ValueError), match="alpha"):
        ln.lazy(MODEL.apply, PARAMS, alpha)


@pytest.mark.extended
def test_alpha_may_be_traced():
    u = _direction(12)
    values = jax.vmap(lambda alpha: ln.lazy(MODEL.apply, PARAMS, alpha)(u, X))(
        jnp.array([1.0, 5.0])
    )
    np.testing.assert_allclose(values[1], ln.lazy(MODEL.apply, PARAMS, 5.0)(u, X), rtol=1e-12)


GATED = ln.serial(
    ln.Conv(6, (3, 3), (1, 1), "SAME", 1.4, 0.1),
    ln.Relu(),
    ln.MaxPool((2, 2), (2, 2)),
    ln.residual(ln.LeakyRelu(0.2), ln.Conv(6, (3, 3), (1, 1), "SAME")),
    ln.Flatten(),
    ln.Dense(3),
)
IMAGES = normal(2, 4, 6, 6, 2)
GATED_PARAMS = initial(3, GATED, IMAGES)
OTHER_PARAMS = initial(4, GATED, IMAGES)


@pytest.mark.extended
def test_gated_network_is_the_network_at_initialization_with_the_same_tangent():
    g = ln.gated(GATED, GATED_PARAMS)
    values, tangent = jax.jvp(lambda w: g(w, IMAGES), (GATED_PARAMS,), (OTHER_PARAMS,))
    expected = jax.jvp(lambda w: GATED.apply(w, IMAGES), (GATED_PARAMS,), (OTHER_PARAMS,))
    np.testing.assert_allclose(values, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(tangent, expected[1], rtol=1e-12, atol=1e-12)


def test_gated_network_is_linear_in_each_layer_and_not_in_all_of_them():
    g = ln.gated(GATED, GATED_PARAMS)
    for name in OTHER_PARAMS:
        first, second = (
            g(OTHER_PARAMS, IMAGES),
            g(OTHER_PARAMS | {name: GATED_PARAMS[name]}, IMAGES),
        )
        middle = jax.tree.map(lambda a, b: (a + b) / 2, OTHER_PARAMS[name], GATED_PARAMS[name])
        np.testing.assert_allclose(
            g(OTHER_PARAMS | {name: middle}, IMAGES), (first + second) / 2, rtol=1e-11
        )
    halves = jax.tree.map(lambda a, b: (a + b) / 2, OTHER_PARAMS, GATED_PARAMS)
    assert not np.allclose(
        g(halves, IMAGES), (g(OTHER_PARAMS, IMAGES) + g(GATED_PARAMS, IMAGES)) / 2, rtol=1e-3
    )


def test_gated_network_differs_from_the_network_by_the_gates_that_flipped():
    near = jax.tree.map(lambda w, v: w + 1e-9 * v, GATED_PARAMS, OTHER_PARAMS)
    g = ln.gated(GATED, GATED_PARAMS)
    np.testing.assert_allclose(g(near, IMAGES), GATED.apply(near, IMAGES), rtol=1e-12, atol=1e-12)
    assert not np.allclose(g(OTHER_PARAMS, IMAGES), GATED.apply(OTHER_PARAMS, IMAGES), rtol=1e-2)


def test_a_symmetrized_gated_network_has_the_gates_of_both_halves():
    model = ln.symmetrize(GATED)
    params0 = {"plus": GATED_PARAMS, "minus": GATED_PARAMS}
    np.testing.assert_array_equal(ln.gated(model, params0)(params0, IMAGES), 0.0)


def test_a_gated_layer_alone_needs_no_path():
    np.testing.assert_array_equal(ln.gated(ln.Relu(), {})({}, X), jnp.maximum(X, 0))


@pytest.mark.parametrize(
    ("model", "message"), [(MODEL, "1_Erf"), (ln.serial(ln.Dense(3)), "no layer with gates")]
)
def test_gates_of_a_network_without_gates_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        ln.gated(model, initial(0, model, X))(initial(1, model, X), X)


def test_gates_of_something_that_is_not_a_model_are_refused():
    with pytest.raises(TypeError, match="Model"):
        ln.gated(jnp.sin, PARAMS)


def test_weights_of_numpy_can_be_indexed_by_tokens_that_are_traced():
    table, tokens = np.arange(6.0).reshape(3, 2), jnp.array([0, 2])
    for function in (ln.center, lambda f, w: ln.taylor_expand(f, w, 2)):
        outputs = jax.jit(function(lambda w, x: w[x], table))(table + 1, tokens)
        expected = np.ones((2, 2)) if function is ln.center else table[[0, 2]] + 1
        np.testing.assert_allclose(outputs, expected, rtol=1e-12)


def test_a_lazy_function_is_a_record_whose_finite_scale_is_a_leaf_and_whose_infinite_one_is_structure():
    finite = [ln.lazy(MODEL.apply, PARAMS, alpha) for alpha in (2.0, 300.0)]
    tangent = ln.lazy(MODEL.apply, PARAMS, math.inf)
    assert jax.tree.structure(finite[0]) == jax.tree.structure(finite[1])
    assert jax.tree.structure(finite[0]) != jax.tree.structure(tangent)
    assert len(jax.tree.leaves(finite[0])) == len(jax.tree.leaves(tangent)) + 1
    assert jax.tree.map(lambda leaf: leaf, tangent).alpha == math.inf
    assert finite[1].apply.func is MODEL.apply and finite[1].alpha == 300.0


def test_a_lazy_function_starts_at_its_initialization_and_prints_in_one_line():
    f = ln.lazy(MODEL.apply, PARAMS, 10.0)
    jax.tree.map(np.testing.assert_array_equal, f.weights(f.start()), PARAMS)
    assert not np.any(f(f.start(), X))
    assert "alpha=10.0" in repr(f) and len(repr(f)) < 200


def test_a_layer_takes_its_gate_and_its_probe_as_arguments_by_path():
    x = jnp.array([[1.0, -2.0]])
    model = ln.serial(ln.Relu(), ln.Dense(1))
    params = {"1_Dense": {"W": jnp.ones((2, 1))}}
    closed = model.apply(params, x, {"0_Relu": -x})
    np.testing.assert_allclose(closed, [[-2.0 / math.sqrt(2)]], rtol=1e-6)
    probed = model.apply(params, x, {"1_Dense": jnp.ones((1, 1))})
    np.testing.assert_allclose(probed, [[2.0 / math.sqrt(2)]], rtol=1e-6)
    assert set(params["1_Dense"]) == {"W"} and set(model.apply.rows) == {"1_Dense"}


def test_a_partial_function_hides_neither_a_lazy_function_nor_the_type_of_a_computation():
    f = ln.lazy(MODEL.apply, PARAMS, 10.0)
    assert lazy_part(Partial(f)) is f and lazy_part(functools.partial(f, train=False)) is f
    # With its parameters bound it is a function of other variables.
    assert lazy_part(Partial(f, f.start())) is None
    half = Partial(compute_in(lambda w, x, train: MODEL.apply(w, x), jnp.bfloat16), train=False)
    assert largest_alpha(half, PARAMS) == 4
    with pytest.raises(ValueError, match="expected at most 4"):
        ln.lazy(half, PARAMS, 1e3)


@pytest.mark.parametrize(
    "call",
    [
        lambda f, w: ln.linearize(f, w),
        lambda f, w: ln.center(f, w),
        lambda f, w: ln.taylor_expand(f, w, 2),
        lambda f, w: tangents.tangent_at(f, w),
        lambda f, w: diagnostics.linearization_gap(f, w, w, X),
        lambda f, w: dynamics.linearized_weights(f, w, X, np.ones((len(X), 2))),
    ],
)
def test_the_initialization_of_a_lazy_function_is_no_place_to_expand_it(call):
    f = ln.lazy(MODEL.apply, PARAMS, 10.0)
    with pytest.raises(ValueError, match="is params0, expected the displacement"):
        call(f, jax.tree.map(jnp.copy, PARAMS))
