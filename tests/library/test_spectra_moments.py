"""Estimates from products against the formed kernel: values, and errors against the scatter over keys."""

from __future__ import annotations

import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazynet import diagnostics, linalg, spectra
from lazynet.kernels.empirical import empirical_ntk, ntk_vector_product
from lazynet.models.activations import Erf
from lazynet.models.layers import Dense
from lazynet.models.model import serial

KEY = jax.random.key(0)
MODEL = serial(Dense(20, b_std=0.4), Erf(), Dense(2))
X = jax.random.normal(jax.random.key(1), (40, 3))
Y = np.asarray(jnp.stack([jnp.sin(X[:, 0]), jnp.cos(X[:, 1])], axis=1))
PARAMS0 = MODEL.init(jax.random.key(2), X[:1])
PARAMS = jax.tree.map(
    lambda w: w + 0.2 * jax.random.normal(jax.random.key(w.size), w.shape), PARAMS0
)
SHAPE = {"shape": (40, 2)}


@functools.cache
def tangent(of_start=False):
    """A product with a tangent kernel, and the formed kernel `[n, n, k, k]`."""
    params = PARAMS0 if of_start else PARAMS
    kernel = np.asarray(empirical_ntk(MODEL.apply, params, X))
    return ntk_vector_product(MODEL.apply, params, X), kernel


@functools.cache
def decaying(power=1.5, n=200, seed=0):
    """A kernel with eigenvalues `1/i^power`."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return (q / np.arange(1, n + 1.0) ** power) @ q.T


def product_of(matrix):
    return lambda v: (matrix @ np.asarray(v).ravel()).reshape(v.shape)


FORMED = {
    "trace": lambda k: np.trace(linalg.kernel_matrix(k)),
    "frobenius_norm": np.linalg.norm,
    "effective_rank": lambda k: diagnostics.kernel_spectrum(k).effective_rank,
    "diagonal": lambda k: np.diagonal(linalg.kernel_matrix(k)),
}


# ------------------------------------------------------------------------------------------------------
# against the formed kernel


@pytest.mark.parametrize("name", FORMED)
def test_what_products_say_of_a_tangent_kernel_is_what_the_formed_one_says(name):
    product, kernel = tangent()
    exact = FORMED[name](kernel)
    value, error = getattr(spectra, name)(product, key=KEY, **SHAPE)
    # The largest of 80 draws of a Student distribution, with much of a row beside its diagonal entry.
    sigmas, share = (6, 0.5) if name == "diagonal" else (3.5, 0.05)
    assert np.all(np.abs(value - exact) < sigmas * error)
    assert np.mean(error) < share * np.mean(exact)
    product = ntk_vector_product(MODEL.apply, PARAMS, X[:10])
    value, error = getattr(spectra, name)(product, key=KEY, shape=(10, 2))
    np.testing.assert_allclose(value, FORMED[name](kernel[:10, :10]), rtol=1e-9)
    assert np.all(error == 0)


@pytest.mark.parametrize("centered", [False, True])
def test_alignment_with_targets_is_that_of_the_formed_kernel(centered):
    product, kernel = tangent()
    value, error = spectra.target_alignment(product, Y, key=KEY, centered=centered, **SHAPE)
    exact = float(diagnostics.target_alignment(kernel, Y, centered=centered))
    assert abs(value - exact) < 3.5 * error < 0.1 * exact
    decoupled = kernel[:, :, 0, 0]
    value, error = spectra.target_alignment(
        product_of(decoupled), Y, key=KEY, centered=centered, shape=(40,)
    )
    exact = float(diagnostics.target_alignment(decoupled, Y, centered=centered))
    assert abs(value - exact) < 3.5 * error < 0.1 * exact


@pytest.mark.parametrize("centered", [False, True])
def test_alignment_of_two_kernels_is_that_of_the_formed_ones(centered):
    (product, kernel), (product0, kernel0) = tangent(), tangent(of_start=True)
    value, error = spectra.cka(product, product0, key=KEY, centered=centered, **SHAPE)
    exact = float(diagnostics.cka(kernel, kernel0, centered=centered))
    assert abs(value - exact) < 3.5 * error < 0.5 * (1 - exact)


def test_distances_of_two_kernels_are_those_of_the_formed_ones():
    (product, kernel), (product0, kernel0) = tangent(), tangent(of_start=True)
    relative, cosine = spectra.kernel_distances(product, product0, key=KEY, **SHAPE)
    exact = float(diagnostics.kernel_distance(kernel, kernel0))
    assert abs(relative.value - exact) < 3.5 * relative.standard_error < 0.2 * exact
    exact = float(diagnostics.kernel_cosine_distance(kernel, kernel0))
    assert abs(cosine.value - exact) < 3.5 * cosine.standard_error < 0.3 * exact


def test_distances_of_close_kernels_keep_their_digits():
    matrix = decaying()
    change = 1e-7 * decaying(0.7, seed=1)
    relative, cosine = spectra.kernel_distances(
        product_of(matrix + change), product_of(matrix), key=KEY, shape=(200,)
    )
    exact = np.linalg.norm(change) / np.linalg.norm(matrix)
    assert abs(relative.value - exact) < 3.5 * relative.standard_error < exact
    assert 0 < cosine.value < exact**2


def test_the_norm_of_a_difference_of_products_is_that_of_the_difference():
    (product, kernel), (product0, kernel0) = tangent(), tangent(of_start=True)
    value, error = spectra.frobenius_norm(lambda v: product(v) - product0(v), key=KEY, **SHAPE)
    assert abs(value - np.linalg.norm(kernel - kernel0)) < 3.5 * error < 0.3 * value


def test_one_sketch_answers_all_questions_as_single_calls_do():
    product, _ = tangent()
    parts = spectra.sketch(product, key=KEY, **SHAPE)
    for name in FORMED:
        single = getattr(spectra, name)(product, key=KEY, **SHAPE)
        np.testing.assert_array_equal(getattr(spectra, name)(parts)[0], single[0])
    single = spectra.target_alignment(product, Y, key=KEY, **SHAPE)
    assert spectra.target_alignment(parts, Y) == single


def test_a_kernel_of_low_rank_is_seen_as_a_whole():
    factor = np.random.default_rng(0).normal(size=(100, 4))
    kernel = factor @ factor.T
    value, error = spectra.frobenius_norm(product_of(kernel), key=KEY, shape=(100,))
    assert value == pytest.approx(np.linalg.norm(kernel), rel=1e-12) and error < 1e-12 * value


# ------------------------------------------------------------------------------------------------------
# errors and scatter

OTHER = decaying() + 0.1 * decaying(0.7, seed=1)
TARGETS = np.sign(np.random.default_rng(3).normal(size=(200, 1)))
FLAT = {"shape": (200,), "probes": 60}
SCATTER = {
    "trace": (lambda k, key: spectra.trace(k, key=key, **FLAT), FORMED["trace"]),
    "frobenius_norm": (
        lambda k, key: spectra.frobenius_norm(k, key=key, **FLAT),
        FORMED["frobenius_norm"],
    ),
    "effective_rank": (
        lambda k, key: spectra.effective_rank(k, key=key, **FLAT),
        FORMED["effective_rank"],
    ),
    "target_alignment": (
        lambda k, key: spectra.target_alignment(k, TARGETS, key=key, **FLAT),
        lambda k: diagnostics.target_alignment(k, TARGETS),
    ),
    "cka": (
        lambda k, key: spectra.cka(k, product_of(OTHER), key=key, **FLAT),
        lambda k: diagnostics.cka(k, OTHER),
    ),
    "relative": (
        lambda k, key: spectra.kernel_distances(k, product_of(OTHER), key=key, **FLAT)[0],
        lambda k: diagnostics.kernel_distance(k, OTHER),
    ),
    "cosine": (
        lambda k, key: spectra.kernel_distances(k, product_of(OTHER), key=key, **FLAT)[1],
        lambda k: diagnostics.kernel_cosine_distance(k, OTHER),
    ),
    "effective_dimension": (
        lambda k, key: spectra.effective_dimension(
            k, 0.01, key=key, shape=(200,), steps=30, probes=20
        ),
        lambda k: np.sum(np.linalg.eigvalsh(k) / (np.linalg.eigvalsh(k) + 0.01)),
    ),
}


def check_scatter(estimates, exact, keys=40):
    """`z = (value - exact) / error` over keys: mean 0 and spread 1, within three of their own errors."""
    value, error = np.array(estimates).T
    z = (value - exact) / error
    assert len(z) == keys
    assert abs(z.mean()) < 3 / np.sqrt(keys)
    assert abs(z.std(ddof=1) - 1) < 3 / np.sqrt(2 * (keys - 1))


@pytest.mark.extended
@pytest.mark.parametrize("name", SCATTER)
def test_estimates_of_40_keys_scatter_as_their_errors_say(name):
    estimate, formed = SCATTER[name]
    matrix = decaying()
    keys = jax.random.split(jax.random.key(7), 40)
    check_scatter([estimate(product_of(matrix), key) for key in keys], float(formed(matrix)))


@pytest.mark.extended
def test_entries_of_a_diagonal_scatter_as_their_errors_say():
    matrix = decaying()
    exact = np.diagonal(matrix)
    for key in jax.random.split(jax.random.key(7), 4):
        value, error = spectra.diagonal(product_of(matrix), key=key, **FLAT)
        z = (value - exact) / error
        assert abs(z.mean()) < 0.3 and abs(z.std() - 1) < 0.3
        assert error.mean() < 0.5 * exact.mean()


# ------------------------------------------------------------------------------------------------------
# one derivative alone


@pytest.mark.extended
@pytest.mark.parametrize("sketch", [spectra.forward_sketch, spectra.backward_sketch])
def test_one_derivative_is_enough_for_moments_and_alignments(sketch):
    _, kernel = tangent()
    parts = sketch(MODEL.apply, PARAMS, X, key=KEY, probes=300)
    for name in ("trace", "frobenius_norm", "effective_rank"):
        value, error = getattr(spectra, name)(parts)
        exact = FORMED[name](kernel)
        assert abs(value - exact) < 3.5 * error < 0.6 * exact
    value, error = spectra.target_alignment(parts, Y)
    exact = float(diagnostics.target_alignment(kernel, Y))
    assert abs(value - exact) < 3.5 * error < 0.6 * exact


def test_a_squared_distance_that_comes_out_negative_is_zero_with_an_error():
    found = []
    for keys in jax.random.split(KEY, (8, 2)):
        pair = [spectra.forward_sketch(MODEL.apply, PARAMS, X, key=key, probes=5) for key in keys]
        found.append(spectra.kernel_distances(*pair).relative)
    values, errors = np.array(found).T
    assert np.isfinite(values).all() and (errors > 0).all()
    assert 0 < np.count_nonzero(values == 0) < 8


@pytest.mark.extended
@pytest.mark.parametrize("sketch", [spectra.forward_sketch, spectra.backward_sketch])
def test_one_derivative_is_enough_to_compare_kernels(sketch):
    kernel, kernel0 = tangent()[1], tangent(of_start=True)[1]
    centered = [
        sketch(MODEL.apply, w, X, key=KEY, probes=300, centered=True) for w in (PARAMS, PARAMS0)
    ]
    value, error = spectra.cka(*centered)
    assert abs(value - float(diagnostics.cka(kernel, kernel0))) < 3.5 * error < 0.3
    plain = [sketch(MODEL.apply, w, X, key=KEY, probes=300) for w in (PARAMS, PARAMS0)]
    relative, cosine = spectra.kernel_distances(*plain)
    exact = float(diagnostics.kernel_distance(kernel, kernel0))
    assert abs(relative.value - exact) < 3.5 * relative.standard_error < 0.5 * exact
    exact = float(diagnostics.kernel_cosine_distance(kernel, kernel0))
    assert abs(cosine.value - exact) < 3.5 * cosine.standard_error < exact


def test_forward_derivatives_give_the_diagonal():
    exact = FORMED["diagonal"](tangent()[1])
    parts = spectra.forward_sketch(MODEL.apply, PARAMS, X, key=KEY, probes=300)
    value, error = spectra.diagonal(parts)
    assert np.abs((value - exact) / error).max() < 4.5 and np.all(error < 0.2 * exact)


@pytest.mark.extended
@pytest.mark.parametrize("sketch", [spectra.forward_sketch, spectra.backward_sketch])
@pytest.mark.parametrize("name", ["trace", "frobenius_norm"])
def test_one_sided_estimates_of_40_keys_scatter_as_their_errors_say(sketch, name):
    features = np.linalg.cholesky(decaying(0.7, n=60) + 1e-9 * np.eye(60))
    function = lambda w, x: x @ w  # noqa: E731
    x = jnp.asarray(features)
    # Of norms the mean of z over 600 keys is -0.17: an estimate that is low has a low error too.
    keys = jax.random.split(jax.random.key(9), 40)
    estimates = [
        getattr(spectra, name)(sketch(function, jnp.zeros((60, 1)), x, key=key, probes=120))
        for key in keys
    ]
    check_scatter(estimates, float(FORMED[name](features @ features.T)))


@pytest.mark.extended
def test_a_function_without_one_derivative_is_taken_by_the_other():
    def looped(w, x):
        grow = lambda c: (c[0] + 1, jnp.sin(c[1] * w[None]))  # noqa: E731
        return jax.lax.while_loop(lambda c: c[0] < 3, grow, (0, x))[1]

    @jax.custom_vjp
    def product(w, x):
        return x * w[None]

    product.defvjp(
        lambda w, x: (x * w[None], (w, x)),
        lambda kept, g: ((g * kept[1]).sum(0), g * kept[0][None]),
    )
    x = jnp.linspace(0.0, 1.0, 9)[:, None]
    w = jnp.ones(1)
    forward = spectra.forward_sketch(looped, w, x, key=KEY, probes=200)
    slopes = jax.jacfwd(looped)(w, x).ravel()
    value, error = spectra.trace(forward)
    assert abs(value - float(slopes @ slopes)) < 3.5 * error
    value, error = spectra.trace(spectra.backward_sketch(product, w, x, key=KEY, probes=200))
    assert abs(value - float(jnp.sum(x**2))) < 3.5 * error
    with pytest.raises(ValueError, match="while_loop"):
        spectra.backward_sketch(looped, w, x, key=KEY)
    with pytest.raises(TypeError, match="no forward derivative"):
        spectra.forward_sketch(product, w, x, key=KEY)


# ------------------------------------------------------------------------------------------------------
# memory


def peak(call):
    tracemalloc.start()
    call()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_sketches_hold_vectors_and_nothing_of_the_size_of_the_matrix():
    """Nine numbers at most for each row and probe, far below the square of the rows."""

    def product(v):
        return jnp.flip(v) + 2 * v

    for rows in (2_000, 8_000):
        held = peak(lambda rows=rows: spectra.sketch(product, key=KEY, shape=(rows,), probes=12))
        assert held < 8 * 9 * 12 * rows < 8 * rows**2 / 8


def test_a_product_holds_activations_of_the_examples_and_no_jacobian():
    """By the compiler's account: each further example takes less than a tenth of what its gradient would."""
    model = serial(Dense(64), Erf(), Dense(64), Erf(), Dense(1))
    params = model.init(KEY, jnp.ones((1, 64), jnp.float32))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    def account(n):
        x = jnp.ones((n, 64), jnp.float32)
        product = ntk_vector_product(model.apply, params, x)
        compiled = (
            jax.jit(lambda f, v: f(v)).lower(product, jnp.ones((n, 1), jnp.float32)).compile()
        )
        return compiled.memory_analysis().temp_size_in_bytes

    few, many, more = (account(n) for n in (256, 512, 1024))
    assert many - few < 256 * size / 10
    assert more - many < 2.2 * (many - few)  # linear


def test_tiles_of_examples_do_not_change_a_product():
    whole = ntk_vector_product(MODEL.apply, PARAMS, X[:7], X)
    tiled = ntk_vector_product(MODEL.apply, PARAMS, X[:7], X, tile=16)
    v = jnp.asarray(Y)
    np.testing.assert_allclose(tiled(v), whole(v), rtol=1e-10)
    np.testing.assert_allclose(jax.jit(tiled)(v), whole(v), rtol=1e-10)
    with pytest.raises(ValueError, match="v has shape"):
        tiled(v[:3])
    with pytest.raises(ValueError, match="mixes the examples"):
        ntk_vector_product(lambda w, x: x @ w - jnp.mean(x @ w), jnp.ones((3, 1)), X, tile=16)


@pytest.mark.extended
def test_spectra_take_tiled_products_and_sketches_tiles():
    product = ntk_vector_product(MODEL.apply, PARAMS, X, tile=16)
    whole, _ = tangent()
    top = [spectra.top_eigenvalues(p, 2, key=KEY, steps=20, **SHAPE) for p in (product, whole)]
    np.testing.assert_allclose(*top, rtol=1e-8)
    for make in (spectra.forward_sketch, spectra.backward_sketch):
        grams = [make(MODEL.apply, PARAMS, X, key=KEY, probes=4, tile=t).gram for t in (None, 16)]
        np.testing.assert_allclose(*grams, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------
# eigenvectors


def test_top_eigenpairs_are_those_of_the_formed_kernel_and_say_how_good_they_are():
    product, kernel = tangent()
    spectrum = diagnostics.kernel_spectrum(kernel, vectors=True)
    pairs = spectra.top_eigenpairs(product, 4, key=KEY, steps=40, **SHAPE)
    np.testing.assert_allclose(pairs.values, spectrum.values[:4], rtol=1e-8)
    overlaps = np.abs(np.sum(pairs.vectors * spectrum.vectors[:, :4], axis=0))
    np.testing.assert_allclose(overlaps, 1, rtol=1e-6)
    few = spectra.top_eigenpairs(product, 4, key=KEY, steps=6, **SHAPE)
    matrix = linalg.kernel_matrix(kernel)
    misses = np.linalg.norm(matrix @ few.vectors - few.values * few.vectors, axis=0)
    np.testing.assert_allclose(few.residuals, misses, rtol=1e-4, atol=1e-9)


def test_eigenvectors_at_other_inputs_are_those_of_the_definition():
    product, kernel = tangent()
    pairs = spectra.top_eigenpairs(product, 3, key=KEY, steps=40, **SHAPE)
    x = X[:5] + 0.1
    cross = ntk_vector_product(MODEL.apply, PARAMS, x, X)
    found = spectra.extend_eigenvectors(cross, pairs, **SHAPE)
    formed = np.asarray(empirical_ntk(MODEL.apply, PARAMS, x, X))
    spectrum = diagnostics.kernel_spectrum(kernel, vectors=True)
    expected = spectra.extend_eigenvectors(formed, spectrum, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-4, atol=1e-6)
    again = spectra.extend_eigenvectors(product, pairs, **SHAPE)
    np.testing.assert_allclose(again, pairs.vectors, atol=1e-6)


# ------------------------------------------------------------------------------------------------------
# errors

GRADIENTS = {"apply": MODEL.apply, "params": PARAMS, "x": X, "probes": 3}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectra.frobenius_norm(np.eye(3)), "key got None"),
        (lambda: spectra.sketch(key=KEY), "expected one, or two"),
        (lambda: spectra.sketch(np.eye(3), np.eye(2), key=KEY), r"kernels of sizes \[2, 3\]"),
        (lambda: spectra.effective_rank(np.zeros((3, 3)), key=KEY), "kernel is zero"),
        (
            lambda: spectra.target_alignment(np.eye(3), np.ones((2, 1)), key=KEY),
            r"y of shape \(2, 1\) with a kernel of 3 rows",
        ),
        (
            lambda: spectra.target_alignment(np.eye(3), np.ones((3, 1)), key=KEY, centered=True),
            "y is zero, or constant",
        ),
        (
            lambda: spectra.target_alignment(
                spectra.sketch(np.eye(3), key=KEY), np.ones((3, 1)), centered=True
            ),
            "expected False as in the sketch",
        ),
        (
            lambda: spectra.cka(spectra.backward_sketch(key=KEY, **GRADIENTS), np.eye(80)),
            "expected two kernels and a key, or two",
        ),
        (
            lambda: spectra.diagonal(spectra.backward_sketch(key=KEY, **GRADIENTS)),
            "take forward_sketch",
        ),
        (
            lambda: spectra.cka(
                *(spectra.backward_sketch(key=jax.random.key(i), **GRADIENTS) for i in (0, 1)),
                centered=False,
            ),
            "different vectors",
        ),
        (
            lambda: spectra.extend_eigenvectors(np.eye(2), diagnostics.kernel_spectrum(np.eye(2))),
            "pairs have no vectors",
        ),
        (
            lambda: spectra.extend_eigenvectors(
                np.eye(2), diagnostics.kernel_spectrum(np.diag([1.0, 0.0]), vectors=True)
            ),
            "count got 2, expected at most 1",
        ),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
