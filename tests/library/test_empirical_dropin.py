"""The names of neural-tangents for empirical kernels, against explicit contractions and the library itself."""

from __future__ import annotations

import collections
import importlib
import itertools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

import lazynet as ln
from lazynet import empirical
from lazynet.dropin.batch import batch
from lazynet.dropin.empirical import (
    empirical_kernel_fn,
    empirical_nngp_fn,
    empirical_ntk_fn,
    empirical_ntk_vp_fn,
    monte_carlo_kernel_fn,
)
from lazynet.dropin.keywords import split_keywords
from lazynet.models.foreign.calls import astype

X1, X2 = (
    jnp.asarray(np.random.default_rng(seed).normal(size=(n, 3))) for seed, n in ((0, 4), (1, 2))
)
W = {"a": jnp.asarray(np.random.default_rng(2).normal(size=(3, 5))), "b": jnp.ones((5, 2, 3))}
AXES = [
    ((-1,), ()),
    ((), ()),
    ((1, 2), ()),
    ((), (1, 2)),
    ((), (-1,)),
    ((1,), (2,)),
    ((0,), ()),
    ((), (0,)),
    ((2,), (0,)),
    ((0, 1, 2), ()),
    (1, ()),
]
INITIALIZE, APPLY, KERNEL = ln.stax.serial(
    ln.stax.Dense(16), ln.stax.Relu(), ln.stax.Dense(2, 1.0, 0.1)
)


def f(params, x, gain=1.0, flip=False):
    """Outputs `[n, 2, 3]`."""
    h = jnp.tensordot(jnp.tanh(x @ params["a"]), params["b"], 1) * gain
    return -h if flip else h


def explicit(trace_axes, diagonal_axes, nngp=False):
    """Kernel of a set with itself, by loops over the axes of the dense kernel `[n, 2, 3, n, 2, 3]`."""
    h = f(W, X1)
    if nngp:
        full = np.multiply.outer(h, h)
    else:
        leaves = [
            np.asarray(leaf).reshape(h.size, -1) for leaf in jax.tree.leaves(jax.jacobian(f)(W, X1))
        ]
        full = sum(leaf @ leaf.T for leaf in leaves).reshape(*h.shape, *h.shape)
    traced, diagonal = (
        {axis % 3 for axis in np.atleast_1d(axes).astype(int)}
        for axes in (trace_axes, diagonal_axes)
    )
    kept = [axis for axis in range(3) if axis not in traced]
    shape = [h.shape[axis] for axis in kept for _ in range(1 if axis in diagonal else 2)]
    result = np.zeros(shape)
    for one, two in itertools.product(np.ndindex(*h.shape), np.ndindex(*h.shape)):
        if all(one[axis] == two[axis] for axis in traced | diagonal):
            index = tuple(
                i
                for axis in kept
                for i in ((one[axis],) if axis in diagonal else (one[axis], two[axis]))
            )
            result[index] += full[one + two] / math.prod(h.shape[axis] for axis in traced)
    return result


@pytest.mark.parametrize(("trace_axes", "diagonal_axes"), AXES)
@pytest.mark.extended
def test_axes_are_traced_over_their_size_or_kept_once(trace_axes, diagonal_axes):
    ntk = empirical_ntk_fn(f, trace_axes, diagonal_axes)(X1, None, W)
    np.testing.assert_allclose(ntk, explicit(trace_axes, diagonal_axes), atol=1e-12)
    nngp = empirical_nngp_fn(f, trace_axes, diagonal_axes)(X1, None, W)
    np.testing.assert_allclose(nngp, explicit(trace_axes, diagonal_axes, nngp=True), atol=1e-12)


@pytest.mark.extended
def test_arguments_of_the_function_are_passed_on():
    ntk = empirical_ntk_fn(f, ())(X1, X2, W)
    np.testing.assert_allclose(
        empirical_ntk_fn(f, ())(X1, X2, W, gain=jnp.asarray(2.0), flip=True), 4 * ntk, atol=1e-12
    )


def test_a_string_gives_an_array_and_a_tuple_a_record_in_its_order():
    kernel_fn = empirical_kernel_fn(f)
    both = kernel_fn(X1, X2, ("ntk", "nngp"), W)
    assert both._fields == ("ntk", "nngp") and kernel_fn(X1, X2, None, W)._fields == ("nngp", "ntk")
    np.testing.assert_array_equal(kernel_fn(X1, X2, "ntk", W), both.ntk)


@pytest.mark.parametrize(
    "get", [("nngp", "ntk"), extended(("ntk", "nngp")), extended(("ntk",)), extended(("nngp",))]
)
def test_records_of_kernels_are_one_kind_of_tree_and_pickle(get):
    kernel_fn = empirical_kernel_fn(f)
    first, second = kernel_fn(X1, X2, get, W), kernel_fn(X1, X2, get, W)
    total = jax.tree.map(jnp.add, first, second)
    chosen = jax.lax.cond(True, lambda: first, lambda: second)
    again = pickle.loads(pickle.dumps(first))
    assert type(first) is type(total) is type(chosen) is type(again)
    np.testing.assert_array_equal(again[0], first[0])


def test_blocks_of_records_made_at_each_call_are_joined():
    def kernel_fn(x1, x2):
        product = x1 @ (x1 if x2 is None else x2).T
        return collections.namedtuple("Kernels", "nngp ntk")(product, 2 * product)

    found = batch(kernel_fn, 3)(X1)
    np.testing.assert_allclose(found.ntk, 2 * X1 @ X1.T, atol=1e-13)


def test_product_with_a_vector_is_that_of_the_kernel():
    ntk = empirical_ntk_fn(f, ())(X1, X2, W)
    v = jnp.asarray(np.random.default_rng(3).normal(size=(2, 2, 3)))
    product = empirical_ntk_vp_fn(f, X1, X2, W)(v)
    np.testing.assert_allclose(
        product, np.einsum("ijakbl,jab->ikl", ntk.transpose(0, 1, 3, 2, 5, 4), v), atol=1e-12
    )


def test_equal_sets_share_their_noise_also_where_entries_are_missing():
    def apply_fn(w, x, rng):
        noise = jax.random.normal(rng, x.shape)
        return jnp.where(jnp.isnan(x), 0.0, x + noise) @ w

    x = X1.at[0, 0].set(jnp.nan)
    nngp_fn = empirical_nngp_fn(apply_fn)
    found = nngp_fn(x, x + 0, jnp.ones((3, 2)), rng=jax.random.key(0))
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("successor", [False, True])
def test_sets_of_whole_numbers_share_their_noise_if_all_are_equal(successor):
    x1 = jnp.full((2, 1), 2**53)
    first, second = split_keywords({"rng": jax.random.key(0)}, x1, x1 + int(successor))
    assert bool(first["rng"] == second["rng"]) != successor


def test_products_give_either_set_its_keyword_arguments():
    v = jnp.asarray(np.random.default_rng(3).normal(size=(2, 2, 3)))
    plain = empirical_ntk_vp_fn(f, X1, X2, W)(v)
    scaled = empirical_ntk_vp_fn(f, X1, X2, W, gain=(2.0, 3.0))(v)
    np.testing.assert_allclose(scaled, 6 * plain, atol=1e-12)


def test_complex_weights_of_a_whole_batch_are_two_real_ones():
    real, imaginary = jnp.eye(2, X1.shape[-1]), jnp.ones((2, X1.shape[-1]))

    def outputs(params, x):
        products = jnp.matmul(x.astype(complex), params.T)
        return jnp.real(products) - jnp.imag(products)

    kernel_fn = jax.jit(empirical_ntk_fn(outputs))
    kernel = kernel_fn(X1, None, jax.lax.complex(real, imaginary))
    np.testing.assert_allclose(kernel, 2 * X1 @ X1.T, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 2}, extended({"batch_size": 3, "store_on_device": False}), {"device_count": 0}],
)
def test_batches_of_any_size_give_the_same_kernel(options):
    kernel_fn = empirical_kernel_fn(f)
    for x2 in (None, X2):
        expected = kernel_fn(X1, x2, ("nngp", "ntk"), W)
        found = batch(kernel_fn, **options)(X1, x2, ("nngp", "ntk"), W)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), found, expected)
    assert isinstance(found.ntk, np.ndarray) == ("store_on_device" in options)


@pytest.mark.extended
def test_monte_carlo_kernel_is_the_mean_over_initializations():
    found = list(monte_carlo_kernel_fn(INITIALIZE, APPLY, jax.random.key(0), [1, 3])(X1, X2, "ntk"))
    one, three = (
        monte_carlo_kernel_fn(INITIALIZE, APPLY, jax.random.key(0), n)(X1, X2, "ntk")
        for n in (1, 3)
    )
    np.testing.assert_allclose(found[0], one, atol=1e-13)
    np.testing.assert_allclose(found[1], three, atol=1e-13)
    assert one.shape == (4, 2) and not np.allclose(one, three)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: empirical_ntk_fn(f, implementation=4), ValueError, "implementation got 4"),
        (lambda: empirical_ntk_fn(f, (3,))(X1, None, W), ValueError, r"trace_axes is \(3,\)"),
        (
            lambda: empirical_ntk_fn(f, (1,), (1,))(X1, None, W),
            ValueError,
            "trace_axes and in diagonal_axes",
        ),
        (lambda: empirical_kernel_fn(f)(X1, None, "cov1", W), ValueError, "get is 'cov1'"),
        (
            lambda: monte_carlo_kernel_fn(INITIALIZE, APPLY, jax.random.key(0), 0),
            ValueError,
            "n_samples got 0",
        ),
        (lambda: batch(f, -1), ValueError, "batch_size got -1"),
        (lambda: batch(f, device_count=10**6), ValueError, "device_count got 1000000"),
        (
            lambda: batch(lambda x1, x2: x1, 2)(X1, None),
            ValueError,
            r"returned shapes \[\(2, 3\)\], expected each",
        ),
    ],
)
def test_unsupported_arguments_are_refused_with_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


def networks(library):
    """Two networks of neural-tangents' stax: of vectors, and of images."""
    vectors = library.serial(library.Dense(32, 1.5, 0.1), library.Erf(), library.Dense(3, 1.2, 0.1))
    images = library.serial(
        library.Conv(4, (3, 3), (2, 2), "SAME", 1.5, 0.1),
        library.Relu(),
        library.GlobalAvgPool(),
        library.Dense(2),
    )
    return {"vectors": vectors, "images": images}


@pytest.mark.oracle
@pytest.mark.parametrize("axes", [((-1,), ()), ((), ()), ((), (-1,)), ((0,), ()), ((-1,), (0,))])
@pytest.mark.parametrize("name", ["vectors", "images"])
def test_kernels_are_those_of_neural_tangents(name, axes):
    import neural_tangents as nt

    init_fn, apply_fn, _ = networks(nt.stax)[name]
    shape = {"vectors": (6,), "images": (5, 5, 2)}[name]
    x1, x2 = (jnp.asarray(np.random.default_rng(seed).normal(size=(3, *shape))) for seed in (4, 5))
    params = jax.tree.map(
        lambda w: w.astype(jnp.float64), init_fn(jax.random.PRNGKey(0), x1.shape)[1]
    )
    for other in (None, x2):
        expected = nt.empirical_kernel_fn(apply_fn, *axes)(x1, other, ("nngp", "ntk"), params)
        found = empirical_kernel_fn(apply_fn, *axes)(x1, other, ("nngp", "ntk"), params)
        np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize(("trace_axes", "diagonal_axes"), AXES[:-1])
def test_axes_mean_what_they_mean_in_neural_tangents(trace_axes, diagonal_axes):
    import neural_tangents as nt

    axes = (trace_axes, diagonal_axes)
    expected = nt.empirical_ntk_fn(f, *axes)(X1, None, W)
    np.testing.assert_allclose(empirical_ntk_fn(f, *axes)(X1, None, W), expected, atol=1e-12)
    expected = nt.empirical_nngp_fn(f, *axes)(X1, None, W)
    np.testing.assert_allclose(empirical_nngp_fn(f, *axes)(X1, None, W), expected, atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("implementation", [1, 2, 3])
def test_layerwise_kernel_of_a_model_is_that_of_every_implementation(implementation, monkeypatch):
    import neural_tangents as nt

    # jax 0.5.3 lost two names that implementation 3 reads.
    interpreter = importlib.import_module("jax.interpreters.ad")
    monkeypatch.setattr(interpreter, "config", jax.config, raising=False)
    names = importlib.import_module("jax._src.source_info_util")
    monkeypatch.setattr(interpreter, "source_info_util", names, raising=False)
    for init_fn, apply_fn, shape in (
        (INITIALIZE, APPLY, (3,)),
        (*networks(ln.stax)["images"][:2], (5, 5, 2)),
    ):
        x1, x2 = (
            jnp.asarray(np.random.default_rng(seed).normal(size=(3, *shape))) for seed in (4, 5)
        )
        params = astype(init_fn(jax.random.key(0), (-1, *shape))[1], x1)
        reference = nt.empirical_ntk_fn(apply_fn, (), (), 0, implementation)(x1, x2, params)
        np.testing.assert_allclose(
            empirical.empirical_ntk(apply_fn, params, x1, x2), reference, rtol=1e-9, atol=1e-12
        )


@pytest.mark.oracle
def test_products_and_means_are_those_of_neural_tangents():
    import neural_tangents as nt

    v = jnp.asarray(np.random.default_rng(3).normal(size=(2, 2, 3)))
    expected = nt.empirical_ntk_vp_fn(f, X1, X2, W)(v)
    np.testing.assert_allclose(empirical_ntk_vp_fn(f, X1, X2, W)(v), expected, atol=1e-12)
    init_fn, apply_fn, _ = networks(nt.stax)["vectors"]
    arguments = (init_fn, apply_fn, jax.random.PRNGKey(1), 3)
    reference = nt.monte_carlo_kernel_fn(*arguments, batch_size=2)(X1, X2, ("nngp", "ntk"))
    found = monte_carlo_kernel_fn(*arguments, batch_size=2)(X1, X2, ("nngp", "ntk"))
    np.testing.assert_allclose(found.nngp, reference.nngp, rtol=1e-9)
    np.testing.assert_allclose(found.ntk, reference.ntk, rtol=1e-9)


@pytest.mark.oracle
def test_batches_are_those_of_neural_tangents():
    import neural_tangents as nt

    kernel_fn = nt.empirical_ntk_fn(f)
    expected = nt.batch(kernel_fn, batch_size=2, device_count=0)(X1, X2, W)
    np.testing.assert_allclose(batch(empirical_ntk_fn(f), 2, 0)(X1, X2, W), expected, atol=1e-12)
