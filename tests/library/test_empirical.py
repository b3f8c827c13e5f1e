"""Empirical kernels against explicit Jacobians, golden vectors of neural-tangents, and dense eigenvalues."""

from __future__ import annotations

import math
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial, normal
from marks import extended

from lazynet.kernels.empirical import (
    contraction,
    empirical_nngp,
    empirical_ntk,
    estimate_max_learning_rate,
    jacobians,
    largest_ntk_eigenvalue,
    layerwise,
    ntk_vector_product,
    products,
    rows,
)
from lazynet.lazy import lazy, linearize
from lazynet.models.layers import Conv, Dense, GlobalAvgPool
from lazynet.models.model import layer, serial

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "empirical.npz"
TANH = layer("Tanh", lambda params, x: jnp.tanh(x))
MLP = serial(Dense(8, 1.5, 0.1), TANH, Dense(3, b_std=0.1))
CNN = serial(Conv(4, (3, 3), padding="SAME"), TANH, GlobalAvgPool(), Dense(2))
OUTPUTS = ("full", "trace", "sum", "diagonal")


@cache
def problem(network="mlp", n1=6, n2=4, dtype=jnp.float64):
    """A small network with its parameters and two sets of inputs."""
    model, shape = {"mlp": (MLP, (6,)), "cnn": (CNN, (5, 5, 2))}[network]
    x1, x2 = (normal(seed, n, *shape, dtype=dtype) for seed, n in ((1, n1), (2, n2)))
    return model.apply, initial(0, model, x1), x1, x2


def jacobian(apply, params, x):
    """The dense matrix `[n k, parameters]`."""
    leaves = jax.tree.leaves(jax.jit(jax.jacrev(apply))(params, x))
    return np.concatenate(
        [np.asarray(leaf).reshape(math.prod(leaf.shape[:2]), -1) for leaf in leaves], axis=1
    )


def dense_ntk(apply, params, x1, x2):
    """The kernel `[n1, n2, k, k]` by one product of dense Jacobians."""
    k = apply(params, x1).shape[1]
    gram = jacobian(apply, params, x1) @ jacobian(apply, params, x2).T
    return gram.reshape(len(x1), k, len(x2), k).transpose(0, 2, 1, 3)


@pytest.mark.extended
def test_full_kernel_is_that_of_neural_tangents():
    golden = np.load(GOLDEN)

    def apply(weights, x):
        *hidden, last = weights
        for w in hidden:
            x = jax.nn.relu(x @ w * math.sqrt(2 / len(w)))
        return x @ last / math.sqrt(len(last))

    weights = [jnp.asarray(golden[f"w{i}"]) for i in range(3)]
    ntk = empirical_ntk(apply, weights, golden["x1"], golden["x2"])
    np.testing.assert_allclose(ntk, golden["ntk_full"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("network", ["mlp", "cnn"])
@pytest.mark.parametrize("tile", [None, extended(2)])
def test_full_kernel_is_the_product_of_explicit_jacobians(network, tile):
    apply, params, x1, x2 = problem(network)
    ntk = empirical_ntk(apply, params, x1, x2, tile=tile)
    np.testing.assert_allclose(ntk, dense_ntk(apply, params, x1, x2), atol=1e-12)


def general(apply):
    """The same function, of whose layers nothing is known."""
    return lambda params, x: apply(params, x)


@pytest.mark.extended
def test_convolutions_give_the_same_kernel_in_the_loop_and_vmapped(monkeypatch):
    apply, params, x, _ = problem("cnn")
    loop = empirical_ntk(general(apply), params, x)
    monkeypatch.setattr(jacobians, "loops", lambda *arguments: False)
    np.testing.assert_allclose(empirical_ntk(general(apply), params, x), loop, atol=1e-12)


def test_trace_is_the_mean_of_the_diagonal_blocks():
    apply, params, x1, x2 = problem()
    full = empirical_ntk(apply, params, x1, x2)
    expected = np.trace(full, axis1=2, axis2=3) / full.shape[2]
    np.testing.assert_allclose(
        empirical_ntk(apply, params, x1, x2, outputs="trace"), expected, atol=1e-12
    )


def test_sum_is_the_sum_of_all_blocks_over_the_number_of_outputs():
    apply, params, x1, x2 = problem()
    full = empirical_ntk(apply, params, x1, x2)
    expected = full.sum((2, 3)) / full.shape[2]
    np.testing.assert_allclose(
        empirical_ntk(apply, params, x1, x2, outputs="sum"), expected, atol=1e-12
    )


def test_diagonal_is_the_diagonal_of_the_full_kernel():
    apply, params, x1, x2 = problem()
    expected = np.diagonal(empirical_ntk(apply, params, x1, x2), axis1=2, axis2=3)
    np.testing.assert_allclose(
        empirical_ntk(apply, params, x1, x2, outputs="diagonal"), expected, atol=1e-12
    )


@pytest.mark.parametrize(
    ("outputs", "tile"),
    [extended("full", 1), ("full", 4), ("trace", 2), extended("sum", 2), extended("diagonal", 2)],
)
def test_kernel_does_not_depend_on_the_tile(outputs, tile):
    apply, params, x1, x2 = problem()
    whole = empirical_ntk(apply, params, x1, x2, outputs=outputs)
    np.testing.assert_allclose(
        empirical_ntk(apply, params, x1, x2, outputs=outputs, tile=tile), whole, atol=1e-13
    )


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_kernel_of_one_set_is_that_of_the_set_with_itself(outputs):
    apply, params, x, _ = problem()
    expected = empirical_ntk(apply, params, x, x, outputs=outputs)
    np.testing.assert_allclose(
        empirical_ntk(apply, params, x, outputs=outputs, tile=2), expected, atol=1e-13
    )


@pytest.mark.parametrize(
    ("outputs", "tile"),
    [
        ("full", 2),
        *(extended(*case) for case in (("full", None), ("trace", 2), ("sum", 2), ("diagonal", 2))),
    ],
)
def test_kernel_of_one_set_is_exactly_symmetric(outputs, tile):
    apply, params, x, _ = problem(dtype=jnp.float32)
    ntk = empirical_ntk(apply, params, x, outputs=outputs, tile=tile)
    mirrored = ntk.swapaxes(0, 1)
    np.testing.assert_array_equal(ntk, mirrored.swapaxes(2, 3) if outputs == "full" else mirrored)


def test_each_row_of_tiles_computes_its_jacobian_once(monkeypatch):
    apply, params, x1, x2 = problem()
    sizes, original = [], rows.features

    def counted(function, params, x, *options):
        sizes.append(len(x))
        return original(function, params, x, *options)

    monkeypatch.setattr(rows, "features", counted)
    empirical_ntk(apply, params, x1, x2, tile=2)
    assert len(sizes) == 3 + 3 * 2


def test_kernel_of_a_linear_model_is_the_gram_matrix_of_its_inputs():
    x = jax.random.normal(jax.random.key(1), (6, 3))
    ntk = empirical_ntk(lambda w, x: x @ w, jnp.ones((3, 1)), x, outputs="trace")
    np.testing.assert_allclose(ntk, x @ x.T, atol=1e-13)


@pytest.mark.parametrize("alpha", [extended(1.0), 100.0, extended(math.inf)])
def test_lazy_function_has_the_kernel_of_the_model_at_initialization(alpha):
    apply, params, x1, x2 = problem()
    zeros = jax.tree.map(jnp.zeros_like, params)
    ntk = empirical_ntk(lazy(apply, params, alpha), zeros, x1, x2)
    np.testing.assert_allclose(ntk, empirical_ntk(apply, params, x1, x2), rtol=1e-9, atol=1e-10)


@pytest.mark.extended
def test_linearized_model_keeps_its_kernel_wherever_it_is_taken():
    apply, params, x1, x2 = problem()
    moved = jax.tree.map(lambda w: w + 1.0, params)
    ntk = empirical_ntk(linearize(apply, params), moved, x1, x2)
    np.testing.assert_allclose(ntk, dense_ntk(apply, params, x1, x2), atol=1e-12)


def test_kernels_of_disjoint_sets_of_parameters_add_up():
    apply, params, x1, x2 = problem()
    first = empirical_ntk(apply, params, x1, x2, where=lambda path: path.startswith("0_Dense"))
    second = empirical_ntk(
        apply, params, x1, x2, where=lambda path: path in ("2_Dense/W", "2_Dense/b")
    )
    np.testing.assert_allclose(first + second, empirical_ntk(apply, params, x1, x2), atol=1e-12)


def test_integer_leaves_are_not_differentiated():
    params = {"w": jnp.ones((2, 1)), "step": jnp.array(3)}
    x = jnp.eye(2)
    np.testing.assert_array_equal(
        empirical_ntk(lambda p, x: x @ p["w"], params, x, outputs="trace"), x
    )


@pytest.mark.parametrize("network", ["mlp", extended("cnn")])
def test_new_parameters_and_new_initializations_compile_nothing(network):
    apply, params, x1, x2 = problem(network)
    zeros = jax.tree.map(jnp.zeros_like, params)
    compiled = (
        jacobians.vmapped_jacobian,
        jacobians.example_jacobian,
        layerwise.layer_features,
        contraction.contract,
        products._product,
    )

    def everything(params0, alpha, u):
        empirical_ntk(lazy(apply, params0, alpha), u, x1, x2)
        empirical_ntk(apply, params0, x1, x2)
        ntk_vector_product(lazy(apply, params0, alpha), u, x1, x2)(
            jnp.ones((4, apply(params0, x2).shape[1]))
        )

    everything(params, 2.0, zeros)
    before = [function._cache_size() for function in compiled]
    everything(jax.tree.map(lambda w: w + 0.1, params), 5.0, jax.tree.map(jnp.ones_like, params))
    assert [function._cache_size() for function in compiled] == before


def test_float32_kernel_agrees_with_float64_to_its_precision():
    apply, params, x1, x2 = problem()
    single = jax.tree.map(lambda w: w.astype(jnp.float32), (params, x1, x2))
    ntk = empirical_ntk(apply, *single)
    assert ntk.dtype == jnp.float32
    np.testing.assert_allclose(ntk, empirical_ntk(apply, params, x1, x2), rtol=2e-6, atol=2e-6)


@pytest.mark.extended
def test_flax_module_has_the_kernel_of_the_same_plain_function():
    linen = pytest.importorskip("flax.linen")
    dense = partial(linen.Dense, param_dtype=jnp.float64)
    module = linen.Sequential([dense(8), jnp.tanh, dense(3)])
    x = jax.random.normal(jax.random.key(2), (4, 6))
    variables = module.init(jax.random.key(3), x)

    def plain(layers, x):
        first, last = (layers["params"][f"layers_{i}"] for i in (0, 2))
        return (
            jnp.tanh(x @ first["kernel"] + first["bias"][None]) @ last["kernel"]
            + last["bias"][None]
        )

    with jax.numpy_rank_promotion("allow"):
        ntk = empirical_ntk(module.apply, variables, x)
    np.testing.assert_allclose(ntk, dense_ntk(plain, variables, x, x), atol=1e-12)


@pytest.mark.parametrize("network", ["mlp", extended("cnn")])
def test_product_is_that_of_the_full_kernel(network):
    apply, params, x1, x2 = problem(network)
    ntk = empirical_ntk(apply, params, x1, x2)
    v = jax.random.normal(jax.random.key(4), (4, ntk.shape[2]))
    product = ntk_vector_product(apply, params, x1, x2)(v)
    np.testing.assert_allclose(product, np.einsum("ijab,jb->ia", ntk, v), atol=1e-12)


def test_product_without_second_inputs_is_that_of_the_symmetric_kernel():
    apply, params, x, _ = problem()
    v = jax.random.normal(jax.random.key(4), (6, 3))
    product = ntk_vector_product(apply, params, x)(v)
    np.testing.assert_allclose(
        product, np.einsum("ijab,jb->ia", dense_ntk(apply, params, x, x), v), atol=1e-12
    )


def test_product_holds_no_array_as_a_constant_of_the_compiled_code():
    apply, params, x, _ = problem()
    product = ntk_vector_product(lazy(apply, params, 2.0), jax.tree.map(jnp.zeros_like, params), x)
    jaxpr = jax.make_jaxpr(lambda product, v: product(v))(product, jnp.ones((6, 3)))
    assert sum(np.asarray(constant).nbytes for constant in jaxpr.consts) < 1000


@pytest.mark.parametrize("network", ["mlp", extended("cnn")])
def test_largest_eigenvalue_is_that_of_the_dense_kernel(network):
    apply, params, x, _ = problem(network)
    dense = dense_ntk(apply, params, x, x).transpose(0, 2, 1, 3)
    size = dense.shape[0] * dense.shape[1]
    expected = np.linalg.eigvalsh(dense.reshape(size, size))[-1]
    assert largest_ntk_eigenvalue(apply, params, x, key=jax.random.key(5)) == pytest.approx(
        expected, rel=1e-6
    )


def test_estimates_of_the_largest_eigenvalue_increase_towards_it():
    apply, params, x, _ = problem()
    key = jax.random.key(5)
    estimates = [
        largest_ntk_eigenvalue(apply, params, x, key=key, iterations=i) for i in (1, 2, 3, 5, 18)
    ]
    assert estimates == sorted(estimates)


def test_lanczos_is_at_least_as_good_as_power_iteration_from_the_same_start():
    apply, params, x, _ = problem()
    product = ntk_vector_product(apply, params, x)
    v = jax.random.normal(jax.random.key(5), (6, 3))
    for _ in range(4):
        v = product(v)
    power = float(jnp.vdot(v, product(v)) / jnp.vdot(v, v))
    assert largest_ntk_eigenvalue(apply, params, x, key=jax.random.key(5), iterations=5) >= power


def test_float32_eigenvalue_agrees_with_float64_beyond_the_dimension_of_the_krylov_space():
    x = jnp.eye(3, dtype=jnp.float32)
    value = largest_ntk_eigenvalue(
        lambda w, x: x @ w, jnp.ones((3, 1), jnp.float32), x, key=jax.random.key(0)
    )
    assert value == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_descent_on_a_linear_model_diverges_just_above_the_maximal_learning_rate(momentum):
    x, params = np.random.default_rng(6).normal(size=(5, 3)), jnp.ones((3, 1))
    bound = estimate_max_learning_rate(
        lambda w, x: x @ w, params, x, key=jax.random.key(7), momentum=momentum
    )

    def grows(learning_rate):
        w, velocity = np.ones((3, 1)), np.zeros((3, 1))
        for _ in range(1000):
            velocity = momentum * velocity - learning_rate * x.T @ (x @ w) / len(x)
            w = w + velocity
        return np.linalg.norm(w) > 10

    assert (grows(0.99 * bound), grows(1.01 * bound)) == (False, True)


def test_maximal_learning_rate_of_a_constant_function_is_infinite():
    rate = estimate_max_learning_rate(
        lambda w, x: x + 0 * w, jnp.ones(()), jnp.ones((2, 1)), key=jax.random.key(0)
    )
    assert rate == math.inf


def test_nngp_is_the_mean_over_outputs_of_products():
    apply, params, x1, x2 = problem()
    expected = apply(params, x1) @ apply(params, x2).T / 3
    np.testing.assert_allclose(empirical_nngp(apply, params, x1, x2), expected, atol=1e-14)


def test_nngp_of_one_set_is_exactly_symmetric():
    apply, params, x, _ = problem(dtype=jnp.float32)
    nngp = empirical_nngp(apply, params, x)
    np.testing.assert_array_equal(nngp, nngp.T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a, p, x: empirical_ntk(a, p, x, outputs="trace", memory=0),
            "memory got 0, expected",
        ),
        (lambda a, p, x: empirical_ntk(a, p, x, tile=0), "tile got 0, expected"),
        (
            lambda a, p, x: empirical_ntk(a, p, x, where=lambda path: False),
            "where selects none of the parameters",
        ),
        (
            lambda a, p, x: ntk_vector_product(a, p, x)(jnp.ones((6, 2))),
            r"v has shape \(6, 2\).*, expected .*\(6, 3\)",
        ),
        (
            lambda a, p, x: largest_ntk_eigenvalue(a, p, x, key=jax.random.key(0), iterations=0),
            "iterations got 0",
        ),
        (
            lambda a, p, x: largest_ntk_eigenvalue(a, p, x * jnp.nan, key=jax.random.key(0)),
            "x has 36 NaN",
        ),
        (
            lambda a, p, x: estimate_max_learning_rate(
                a, p, x, key=jax.random.key(0), momentum=1.0
            ),
            "momentum got 1.0",
        ),
    ],
)
def test_bad_input_is_named_with_what_was_expected(call, message):
    apply, params, x, _ = problem()
    with pytest.raises(ValueError, match=message):
        call(apply, params, x)
