"""Inputs and parameters that are not one real array: computed right, or refused by name before anything is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from marks import extended

import lazynet as ln
from lazynet import programs
from lazynet.dropin.batch import batch
from lazynet.dropin.empirical import empirical_ntk_fn, monte_carlo_kernel_fn
from lazynet.kernels.empirical import (
    empirical_nngp,
    empirical_ntk,
    estimate_max_learning_rate,
    jacobians,
    largest_ntk_eigenvalue,
    ntk_vector_product,
)

X = normal(0, 6, 4)
W = {"w": normal(1, 4, 3)}
KEY = jax.random.key(0)


def apply(params, x):
    return jnp.tanh(x @ params["w"])


def of_tree(params, x):
    return apply(params, x["a"]) * x["b"]


def of_pair(params, x):
    return apply(params, x[0]) * x[1]


def explicit(function, params, x):
    """The kernel `[n, n, k, k]` by one dense Jacobian."""
    leaves = jax.tree.leaves(jax.jacobian(function)(params, x))
    n, k = leaves[0].shape[:2]
    flat = np.concatenate([np.asarray(leaf).reshape(n * k, -1) for leaf in leaves], axis=1)
    return (flat @ flat.T).reshape(n, k, n, k).transpose(0, 2, 1, 3)


def largest(ntk):
    n, _, k, _ = ntk.shape
    return np.linalg.eigvalsh(ntk.transpose(0, 2, 1, 3).reshape(n * k, n * k))[-1]


TREES = {"dictionary": (of_tree, {"a": X, "b": X[:, :1]}), "tuple": (of_pair, (X, X[:, :1]))}


@pytest.mark.parametrize("kind", ["dictionary", extended("tuple")])
@pytest.mark.parametrize("tile", [None, extended(4)])
@pytest.mark.extended
def test_kernel_of_a_tree_of_inputs_is_that_of_its_dense_jacobian(kind, tile, tmp_path):
    function, x = TREES[kind]
    expected = explicit(function, W, x)
    np.testing.assert_allclose(empirical_ntk(function, W, x, tile=tile), expected, atol=1e-12)
    stored = empirical_ntk(function, W, x, tile=tile, store=tmp_path / "store")
    np.testing.assert_allclose(stored, expected, atol=1e-12)


def test_learning_rate_of_a_tree_of_inputs_counts_examples():
    function, x = TREES["dictionary"]
    rate = estimate_max_learning_rate(function, W, x, key=KEY, iterations=18)
    assert rate == pytest.approx(2 * 6 / largest(explicit(function, W, x)), rel=1e-6)


@pytest.mark.extended
def test_products_moments_and_blocks_of_a_tree_of_inputs_are_those_of_the_kernel():
    function, x = TREES["dictionary"]
    v = normal(2, 6, 3)
    expected = np.einsum("ijab,jb->ia", explicit(function, W, x), v)
    np.testing.assert_allclose(ntk_vector_product(function, W, x)(v), expected, atol=1e-12)
    h = function(W, x)
    np.testing.assert_allclose(empirical_nngp(function, W, x), h @ h.T / 3, atol=1e-13)
    blocks = batch(lambda x1, x2: empirical_nngp(function, W, x1, x2), 4)(x)
    np.testing.assert_allclose(blocks, h @ h.T / 3, atol=1e-13)


def complex_apply(params, x):
    return jnp.real(jnp.tanh(x @ params["w"]).astype(complex) @ params["c"])


def real_apply(params, x):
    return complex_apply({"w": params["w"], "c": jax.lax.complex(params["re"], params["im"])}, x)


COMPLEX = {"w": W["w"], "c": jax.lax.complex(normal(3, 3, 2), normal(4, 3, 2))}
REAL = {"w": W["w"], "re": COMPLEX["c"].real, "im": COMPLEX["c"].imag}


@pytest.mark.extended
def test_a_complex_leaf_is_two_real_ones():
    expected = explicit(real_apply, REAL, X)
    np.testing.assert_allclose(empirical_ntk(complex_apply, COMPLEX, X), expected, atol=1e-12)
    v = normal(5, 6, 2)
    product = ntk_vector_product(complex_apply, COMPLEX, X)(v)
    np.testing.assert_allclose(product, np.einsum("ijab,jb->ia", expected, v), atol=1e-12)
    value = largest_ntk_eigenvalue(complex_apply, COMPLEX, X, key=KEY)
    assert value == pytest.approx(largest(expected), rel=1e-6)


@pytest.mark.extended
def test_the_parts_of_a_complex_leaf_are_chosen_by_its_path():
    ntk = empirical_ntk(complex_apply, COMPLEX, X, where=lambda path: path == "c")
    rest = {"re": REAL["re"], "im": REAL["im"]}
    expected = explicit(lambda p, x: real_apply({**p, "w": W["w"]}, x), rest, X)
    np.testing.assert_allclose(ntk, expected, atol=1e-12)


CONSTANTS = {
    "steps": jnp.array(3),
    "on": True,
    "key": KEY,
    "old key": jax.random.PRNGKey(1),
    "none": None,
}


def test_integers_booleans_and_keys_among_the_parameters_are_constants(tmp_path):
    params = {**W, **CONSTANTS}
    expected = explicit(apply, W, X)
    np.testing.assert_allclose(
        empirical_ntk(apply, params, X, store=tmp_path / "store"), expected, atol=1e-12
    )
    v = normal(2, 6, 3)
    np.testing.assert_allclose(
        ntk_vector_product(apply, params, X)(v), np.einsum("ijab,jb->ia", expected, v), atol=1e-12
    )
    assert largest_ntk_eigenvalue(apply, params, X, key=KEY) == pytest.approx(
        largest(expected), rel=1e-6
    )


def test_inputs_of_two_precisions_are_promoted():
    single = X.astype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        ntk = empirical_ntk(apply, W, single, X)
        nngp = empirical_nngp(apply, W, np.asarray(single), X)
    assert ntk.dtype == nngp.dtype == jnp.float64
    expected = empirical_ntk(apply, W, single.astype(jnp.float64), X)
    np.testing.assert_allclose(ntk, expected, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-25, 1e12])
def test_the_eigenvalue_of_a_kernel_beyond_the_range_of_float32_is_right(scale):
    single = jax.tree.map(lambda w: w.astype(jnp.float32), (W, X))
    plain = largest_ntk_eigenvalue(apply, *single, key=KEY)
    value = largest_ntk_eigenvalue(lambda w, x: jnp.float32(scale) * apply(w, x), *single, key=KEY)
    assert value == pytest.approx(float(jnp.float32(scale)) ** 2 * plain, rel=2e-6)


VARIABLES = {"params": W, "batch_stats": {"mean": jnp.ones(3)}}


def of_variables(variables, x):
    return apply(variables["params"], x) - variables["batch_stats"]["mean"][None]


def test_running_averages_among_the_parameters_are_refused_unless_they_are_not_chosen():
    for call in (empirical_ntk, ntk_vector_product):
        with pytest.raises(
            ValueError, match="the collection 'batch_stats'.*expected its weights alone"
        ):
            call(of_variables, VARIABLES, X)
    with pytest.raises(
        ValueError, match="the collection 'batch_stats'.*expected its weights alone"
    ):
        estimate_max_learning_rate(of_variables, VARIABLES, X, key=KEY)
    chosen = empirical_ntk(of_variables, VARIABLES, X, where=lambda path: path.startswith("params"))
    np.testing.assert_allclose(chosen, explicit(apply, W, X), atol=1e-12)


@pytest.mark.extended
def test_running_averages_of_nnx_are_refused_by_their_path():
    nnx = pytest.importorskip("flax.nnx")
    graph, state = nnx.split(nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0)))
    x = X.astype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for call in (empirical_ntk, ntk_vector_product):
            with pytest.raises(ValueError, match="BatchStat .*mean"):
                call(lambda state, x: nnx.merge(graph, state)(x), state, x)


class Frame:
    """What has a method `toarray`, as sparse matrices do."""

    def toarray(self):
        return np.asarray(X)


WRONG = {
    "a list": ([[1.0] * 4], TypeError, r"x1 got a list, .*np.asarray\(x1\)"),
    "a sparse matrix": (Frame(), TypeError, r"x1 got a Frame, .*x1.toarray\(\)"),
    "a masked array": (
        np.ma.masked_array(np.asarray(X)),
        TypeError,
        "x1 got a MaskedArray, .*masked values",
    ),
    "objects": (np.asarray(X).astype(object), TypeError, "x1 got an array of dtype object"),
    "nothing": (None, TypeError, "x1 got None"),
    "no examples": (X[:0], ValueError, r"x1 of shape \(0, 4\), expected"),
    "no axis": (X[0, 0], ValueError, r"x1 of shape \(\), expected"),
    "a tree of two lengths": ({"a": X, "b": X[:2]}, ValueError, r"x1\['b'\] of shape \(2, 4\)"),
    "a constant in a tree": ({"a": X, "b": 3}, TypeError, r"x1\['b'\] got an int"),
    "infinity": (
        X.at[1, 2].set(jnp.inf),
        ValueError,
        r"x1 has 0 NaN and 1 infinite.*first at \[1, 2\]",
    ),
    "random keys": (jax.random.split(KEY, 6), TypeError, "x1 got an array of dtype key"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_array_of_examples_is_refused_with_what_to_write(name):
    x, error, message = WRONG[name]
    for call in (empirical_ntk, ntk_vector_product, empirical_nngp):
        with pytest.raises(error, match=message):
            call(apply, W, x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: empirical_ntk(apply, W, X, tile=2.5),
            TypeError,
            "tile got 2.5, expected an integer",
        ),
        (
            lambda: empirical_ntk(apply, W, X, memory=float("nan")),
            ValueError,
            "memory got nan, expected a finite",
        ),
        (
            lambda: empirical_ntk(apply, W, X, outputs=["full"]),
            ValueError,
            r"outputs is \['full'\], expected one of",
        ),
        (
            lambda: empirical_ntk(apply, W, X, where="w"),
            TypeError,
            "where got 'w', expected a function of paths",
        ),
        (
            lambda: empirical_ntk(apply, {"w": jnp.ones((4, 3), int)}, X),
            ValueError,
            "no floating-point arrays",
        ),
        (
            lambda: empirical_ntk(apply, {**W, "name": "tanh"}, X),
            TypeError,
            r"params\['name'\] got 'tanh', expected",
        ),
        (
            lambda: empirical_ntk(apply, W, X, X[:, :2]),
            ValueError,
            r"x1 has shape \(6, 4\) and x2 \(6, 2\)",
        ),
        (
            lambda: empirical_ntk(apply, W, X, {"a": X}),
            ValueError,
            "expected the same but for the first axis",
        ),
        (
            lambda: empirical_ntk(lambda p, x: jnp.argmax(apply(p, x), 1), W, X),
            ValueError,
            "outputs of dtype int",
        ),
        (lambda: ntk_vector_product(apply, W, X)([[1.0] * 3] * 6), TypeError, "v got a list"),
        (
            lambda: ntk_vector_product(lambda p, x: (apply(p, x).sum(),), W, X)(jnp.ones((6, 3))),
            ValueError,
            r"outputs\[0\] of shape \(\) for 6 examples",
        ),
        (
            lambda: empirical_nngp(lambda p, x: apply(p, x).sum(), W, X),
            ValueError,
            "expected one array",
        ),
        (
            lambda: empirical_ntk_fn(apply, trace_axes="x"),
            TypeError,
            "trace_axes got 'x', expected an axis",
        ),
        (
            lambda: empirical_ntk_fn(apply, diagonal_axes=1.5),
            TypeError,
            "diagonal_axes got 1.5, expected an axis",
        ),
        (
            lambda: empirical_ntk_fn(apply, implementation="x"),
            TypeError,
            "implementation got 'x', expected an integer",
        ),
        (
            lambda: empirical_ntk_fn(apply, vmap_axes=np.array([0, 1])),
            ValueError,
            "vmap_axes is array",
        ),
        (lambda: batch(None), TypeError, "kernel_fn got None, expected a function"),
        (lambda: batch(apply, 2.5), TypeError, "batch_size got 2.5"),
        (lambda: batch(lambda x1, x2: x1 @ x1.T, 2)([[1.0]]), TypeError, "x1 got a list"),
        (lambda: batch(lambda x1, x2: x1 @ x1.T, 2)(X[:0]), ValueError, r"x1 of shape \(0, 4\)"),
        (lambda: monte_carlo_kernel_fn(apply, apply, KEY, 2.5), TypeError, "n_samples got 2.5"),
        (
            lambda: monte_carlo_kernel_fn(apply, apply, 0, 2),
            TypeError,
            r"key got 0, .*jax.random.key\(0\)",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(call, error, message, unannotated):
    with pytest.raises(error, match=message):
        call()


def test_a_tile_may_be_an_integer_of_numpy(tmp_path, unannotated):
    ntk = empirical_ntk(apply, W, X, tile=np.int64(4), memory=1e9, store=tmp_path / "store")
    np.testing.assert_allclose(ntk, explicit(apply, W, X), atol=1e-12)


@pytest.mark.extended
def test_programs_of_functions_that_are_made_again_do_not_pile_up():
    def maps():
        with open("/proc/self/maps") as file:
            return len(file.readlines())

    counts = []
    for i in range(2 * programs.LAST):
        empirical_ntk(lambda p, x, i=float(i): jnp.tanh(x @ p["w"] + i), W, X, outputs="trace")
        counts.append(maps())
    assert jacobians.vmapped_jacobian._cache_size() <= programs.LAST
    assert counts[-1] - counts[programs.LAST + 4] < 20


def test_programs_are_kept_for_the_functions_used_last():
    traced = []
    program = programs.PerFunction(lambda function, x: traced.append(1) or function(x))
    functions = [
        jax.tree_util.Partial(lambda x, i=float(i): x + i) for i in range(programs.LAST + 1)
    ]
    for function in (functions[0], functions[1], functions[0]):
        program(function, X)
    assert len(traced) == 2
    for function in (*functions, functions[1]):  # the last one is new, so that the first one goes
        program(function, X)
    assert len(traced) == programs.LAST + 1 and program._cache_size() == programs.LAST
    program(functions[0], X)
    assert len(traced) == programs.LAST + 2


def test_equal_keyword_arguments_share_a_program():
    traced = []

    def function(params, x, flip):
        traced.append(1)
        return -apply(params, x) if flip else apply(params, x)

    for _ in range(2):
        empirical_ntk_fn(function)(X, None, W, flip=True)
        counted = len(traced)
        traced.clear()
    assert counted <= 1  # the shape of the outputs


@pytest.mark.extended
def test_kappa_of_a_dictionary_is_that_of_the_same_array():
    x, y = TREES["dictionary"][1], jnp.zeros((6, 3))
    both = [
        ln.diagnostics.kappa(function, W, ln.Data(inputs, y), key=KEY)
        for function, inputs in ((of_tree, x), (lambda p, a: apply(p, a) * a[:, :1], X))
    ]
    assert both[0] == pytest.approx(both[1], rel=1e-9)
