"""Functions that mix the examples of a batch are refused where derivatives are taken example by example."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from marks import extended

import lazynet as ln
from lazynet.kernels.empirical import (
    empirical_nngp,
    empirical_ntk,
    estimate_max_learning_rate,
    ntk_vector_product,
)
from lazynet.kernels.empirical.independence import check_independent

X = normal(0, 4, 3)
W = {"w": normal(1, 3, 2)}


def independent(params, x):
    return jnp.tanh(x @ params["w"])


def centered_over_the_batch(params, x):
    h = independent(params, x)
    return h - jnp.mean(h, axis=0, keepdims=True)


def normalized_over_the_batch(params, x):
    h = x @ params["w"]
    return (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-5)


@contextlib.contextmanager
def flax_terms():
    """Implicit promotion, which the layers of flax rely on."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


MIXED = [centered_over_the_batch, normalized_over_the_batch]


@pytest.mark.parametrize("apply", MIXED)
def test_mixed_examples_are_refused_with_the_way_out(apply):
    with pytest.raises(
        ValueError,
        match="its outputs at one example depend on another one.*use_running_average=True",
    ):
        empirical_ntk(apply, W, X)


@pytest.mark.parametrize(
    "factor", [lambda n: 1 / n, lambda n: jnp.arange(1.0, n + 1)[:, None]], ids=["number", "place"]
)
def test_derivatives_that_depend_on_the_number_or_the_place_of_examples_are_refused(factor):
    with pytest.raises(ValueError, match="the number or the place of the examples"):
        empirical_ntk(lambda params, x: independent(params, x) * factor(len(x)), W, X)


def test_mixed_examples_are_refused_where_outputs_cancel():
    zeros = jax.tree.map(jnp.zeros_like, W)
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(ln.lazy(centered_over_the_batch, W, 10.0), zeros, X)


def test_mixed_examples_are_refused_from_a_batch_of_one():
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(centered_over_the_batch, W, X[:1])


def test_a_layer_that_mixes_examples_is_refused_inside_a_model():
    center = ln.layer("Center", lambda params, x: x - jnp.mean(x, axis=0, keepdims=True))
    model = ln.serial(ln.Dense(4), center, ln.Dense(2))
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(model.apply, model.init(jax.random.key(0), X), X)


def test_tokens_are_compared_with_another_example():
    table, tokens = {"w": jnp.eye(5)}, jnp.array([[0, 1], [2, 3]])
    lookup = lambda params, x: params["w"][x].sum(1)  # noqa: E731
    assert empirical_ntk(lookup, table, tokens, outputs="trace").shape == (2, 2)
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(
            lambda params, x: lookup(params, x) - lookup(params, x).mean(0, keepdims=True),
            table,
            tokens,
        )


def test_outputs_that_are_not_numbers_are_not_blamed_on_the_batch():
    broken = {"w": W["w"] * jnp.nan}
    assert bool(jnp.isnan(empirical_ntk(independent, broken, X)).all())


def test_traced_examples_are_not_checked():
    ntk = jax.jit(lambda x: empirical_ntk(independent, W, x))(X)
    np.testing.assert_allclose(ntk, empirical_ntk(independent, W, X), atol=1e-13)


def test_nan_checks_of_jax_do_not_see_the_probe():
    with jax.debug_nans(True):
        assert empirical_ntk(independent, W, X).shape == (4, 4, 2, 2)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda params, x: (independent(params, x), {"a": 1.0}), r"of shape \(\) for 4 examples"),
        (lambda params, x: jnp.sum(independent(params, x)), "expected one array"),
    ],
)
def test_outputs_without_a_batch_axis_are_refused(apply, message):
    with pytest.raises(ValueError, match=message):
        empirical_ntk(apply, W, X)


@pytest.mark.extended
def test_products_with_vectors_take_functions_that_mix_examples():
    v = jnp.ones((4, 2))
    product = ntk_vector_product(centered_over_the_batch, W, X)(v)
    jacobian = jax.jacobian(centered_over_the_batch)(W, X)["w"].reshape(8, -1)
    np.testing.assert_allclose(product.ravel(), jacobian @ (jacobian.T @ v.ravel()), atol=1e-12)


def normalized(h, axes=0):
    return (h - h.mean(axes, keepdims=True)) / jnp.sqrt(h.var(axes, keepdims=True) + 1e-5)


def centered(h):
    return h - h.mean(0, keepdims=True)


def pooled(params, x, normalize):
    """Convolution, ReLU and the mean over 32 x 32 pixels: what XLA compiles so that NaN is lost."""
    h = jax.lax.conv_general_dilated(
        x, params["K"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = normalized(h, (0, 1, 2)) if normalize else h
    return jax.nn.relu(h).mean((1, 2)) @ params["w"]


IMAGES = normal(3, 5, 32, 32, 3, dtype=jnp.float32)
FILTERS = {"K": normal(4, 3, 3, 3, 2, dtype=jnp.float32), "w": normal(5, 2, 2, dtype=jnp.float32)}
TOKENS = jnp.asarray(np.random.default_rng(6).integers(0, 9, (6, 4)))
TABLE = {"E": normal(7, 9, 3), "w": W["w"]}


def embedded(params, tokens):
    return params["E"][tokens].mean(1) @ params["w"]


@jax.custom_vjp
def clipped(h):
    """The identity, whose backward rule has no transpose."""
    return h


clipped.defvjp(lambda h: (h, None), lambda _, g: (jnp.clip(g, -0.5, 0.5),))

MIXING = {
    "batch norm on images": (jax.jit(lambda p, x: pooled(p, x, True)), FILTERS, IMAGES),
    "batch norm behind a cast": (
        lambda p, x: pooled(p, (9 * x).astype(int).astype(x.dtype), True),
        FILTERS,
        IMAGES,
    ),
    "batch norm on bytes": (
        lambda p, x: pooled(p, x.astype(jnp.float32) / 255, True),
        FILTERS,
        jnp.asarray(np.random.default_rng(8).integers(0, 255, IMAGES.shape), jnp.uint8),
    ),
    "batch norm of tokens": (lambda p, t: normalized(embedded(p, t)), TABLE, TOKENS),
    "a mean over equal tokens": (
        lambda p, t: embedded(p, t) - embedded(p, t).mean(0)[None],
        TABLE,
        0 * TOKENS,
    ),
    "a mean of booleans": (
        lambda p, b: centered(b.astype(float) * p["w"][:1]),
        W,
        normal(9, 8, 1) > 0,
    ),
    "a head of zeros": (
        lambda p, x: normalized(x @ p["w"]) @ p["v"],
        {"w": W["w"], "v": jnp.zeros((2, 1))},
        X,
    ),
    "a tangent": (
        ln.lazy(normalized_over_the_batch, W, np.inf),
        jax.tree.map(jnp.zeros_like, W),
        X,
    ),
    "an even layer and the rms of the batch": (
        lambda p, x: (lambda h: h / jnp.sqrt((h**2).mean(0)[None]))(jnp.abs(x @ p["w"])),
        W,
        X,
    ),
    "saturated units": (lambda p, x: jnp.tanh(1e5 * normalized(x @ p["w"])), W, X),
    "a flip of all axes": (lambda p, x: independent(p, x + jnp.flip(x)), W, X),
    "two halves": (lambda p, x: independent(p, x + jnp.roll(x, len(x) // 2, 0)), W, X),
    "pairs": (lambda p, x: independent(p, x + x.reshape(-1, 2, 3)[:, ::-1].reshape(x.shape)), W, X),
    "weak attention": (lambda p, x: independent(p, x + 1e-3 * jax.nn.softmax(x @ x.T) @ x), W, X),
    "a graph": (lambda p, x: jnp.eye(7, k=1) @ independent(p, x), W, normal(10, 7, 3)),
    "a graph among the inputs": (
        lambda p, x: x["edges"] @ independent(p, x["nodes"]),
        W,
        {"nodes": normal(10, 7, 3), "edges": jnp.eye(7, k=1)},
    ),
    "a dictionary": (
        lambda p, x: independent(p, x["a"]) * x["b"].mean(),
        W,
        {"a": X, "b": X[:, :1]},
    ),
    "bfloat16": (lambda p, x: normalized(x @ p["w"].astype(x.dtype)), W, X.astype(jnp.bfloat16)),
    "a backward rule of one's own": (lambda p, x: clipped(normalized(x @ p["w"])), W, X),
}
INDEPENDENT = {
    "images": (jax.jit(lambda p, x: pooled(p, x, False)), FILTERS, IMAGES),
    "tokens": (embedded, TABLE, TOKENS),
    "booleans": (lambda p, b: b.astype(float) * p["w"][:1], W, normal(9, 8, 1) > 0),
    "a lazy function": (ln.lazy(independent, W, 1e5), jax.tree.map(jnp.zeros_like, W), X),
    "saturated units": (lambda p, x: jnp.tanh(1e5 * x @ p["w"]), W, X),
    "the largest features": (lambda p, x: jax.lax.top_k(x @ p["w"], 1)[0], W, X),
    "the largest logit of the batch": (
        lambda p, x: (lambda h: h - h.max() - jax.nn.logsumexp(h - h.max(), 1, keepdims=True))(
            9 * independent(p, x)
        ),
        W,
        X,
    ),
    "what is not finite elsewhere": (lambda p, x: jnp.log(x) @ p["w"], W, jnp.abs(X)),
    "one size of batches": (lambda p, x: independent(p, x) * jnp.ones((4, 1)), W, X),
    "a dictionary": (lambda p, x: independent(p, x["a"]) * x["b"], W, {"a": X, "b": X[:, :1]}),
    "bfloat16": (lambda p, x: jnp.tanh(x @ p["w"].astype(x.dtype)), W, X.astype(jnp.bfloat16)),
    "a backward rule of one's own": (lambda p, x: clipped(independent(p, x)), W, X),
    "other leaves": (
        lambda p, x: independent(p, x) * jax.random.uniform(p["key"]) * jnp.float64(p["on"]),
        {**W, "key": jax.random.key(0), "on": True},
        X,
    ),
}
QUICK = (
    "batch norm on images",
    "batch norm of tokens",
    "a head of zeros",
    "a graph",
    "images",
    "tokens",
)


@pytest.mark.parametrize("name", [name if name in QUICK else extended(name) for name in MIXING])
def test_examples_mixed_in_any_way_are_found(name):
    apply, params, x = MIXING[name]
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        check_independent(apply, params, x)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else extended(name) for name in INDEPENDENT]
)
def test_examples_that_are_not_mixed_are_not_suspected(name):
    check_independent(*INDEPENDENT[name])


def test_the_largest_learning_rate_asks_whether_examples_are_mixed():
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        estimate_max_learning_rate(normalized_over_the_batch, W, X, key=jax.random.key(0))


def test_the_second_moment_takes_functions_that_mix_examples():
    h = np.asarray(normalized_over_the_batch(W, X))
    np.testing.assert_allclose(
        empirical_nngp(normalized_over_the_batch, W, X), h @ h.T / 2, atol=1e-13
    )


def test_a_function_of_one_size_of_batches_is_refused_where_examples_are_taken_one_by_one():
    with pytest.raises(
        ValueError, match="apply failed at 4 of the 7 examples.*any number of examples"
    ):
        empirical_ntk(lambda p, x: independent(p, x) * jnp.ones((7, 1)), W, normal(10, 7, 3))


def test_the_check_is_made_of_constants_inside_a_compiled_function():
    scaled = jax.jit(lambda s: s * empirical_ntk(independent, W, X, outputs="trace"))
    np.testing.assert_allclose(
        scaled(2.0), 2 * empirical_ntk(independent, W, X, outputs="trace"), atol=1e-12
    )
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        jax.jit(lambda s: s * empirical_ntk(centered_over_the_batch, W, X))(2.0)


def test_the_check_compiles_one_program_for_a_function_and_all_its_parameters():
    counts = []

    def counted(params, x):
        counts.append(len(x))
        return independent(params, x)

    for scale in (1.0, 2.0):
        check_independent(counted, jax.tree.map(lambda w, scale=scale: scale * w, W), X)
    assert counts == [4]


@pytest.mark.extended
def test_a_module_of_nnx_that_keeps_its_statistics_is_refused_by_the_reason():
    nnx = pytest.importorskip("flax.nnx")
    graph, params, rest = nnx.split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Param, ...)
    with (
        flax_terms(),
        pytest.raises(ValueError, match=r"keeps a state of its own.*module.eval\(\)"),
    ):
        check_independent(
            lambda params, x: nnx.merge(graph, params, rest)(x), params, X.astype(jnp.float32)
        )


def linen_network():
    linen = pytest.importorskip("flax.linen")

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            x = linen.Dense(4, param_dtype=jnp.float64)(x)
            x = linen.BatchNorm(use_running_average=not train, param_dtype=jnp.float64)(x)
            return linen.Dense(2, param_dtype=jnp.float64)(jnp.tanh(x))

    module = Network()
    variables = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64), module.init(jax.random.key(0), X, train=False)
    )

    def apply(params, x, train):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        with flax_terms():
            return module.apply(given, x, train=train, mutable=["batch_stats"])[0]

    return apply, variables["params"]


def nnx_network():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 4, rngs=rngs, param_dtype=jnp.float64)
            self.norm = nnx.BatchNorm(4, rngs=rngs, param_dtype=jnp.float64)

        def __call__(self, x):
            return self.norm(self.first(x))

    graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)

    def apply(params, x, train):
        network = nnx.merge(
            graph, params, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), rest)
        )
        if not train:
            network.eval()
        with flax_terms():
            return network(x)

    return apply, params


@pytest.mark.extended
@pytest.mark.parametrize("network", [linen_network, nnx_network])
def test_batch_norm_of_flax_is_refused_in_training_and_taken_with_running_averages(network):
    with flax_terms():
        apply, params = network()
    with pytest.raises(ValueError, match="mixes the examples of a batch"):
        empirical_ntk(lambda params, x: apply(params, x, train=True), params, X)
    ntk = empirical_ntk(lambda params, x: apply(params, x, train=False), params, X)
    jacobian = jax.tree.leaves(jax.jacobian(lambda params: apply(params, X, train=False))(params))
    flat = np.concatenate(
        [np.asarray(leaf).reshape(4, ntk.shape[2], -1) for leaf in jacobian], axis=2
    )
    np.testing.assert_allclose(ntk, np.einsum("iap,jbp->ijab", flat, flat), atol=1e-12)


@pytest.mark.extended
def test_questions_to_a_module_of_nnx_that_keeps_its_statistics_are_answered_by_the_reason():
    nnx = pytest.importorskip("flax.nnx")
    graph, params, rest = nnx.split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Param, ...)
    apply, x = (lambda params, x: nnx.merge(graph, params, rest)(x)), X.astype(jnp.float32)
    data = ln.Data(x, jnp.ones_like(x))
    with flax_terms():
        for ask in (
            lambda: ln.diagnostics.kappa(apply, params, data, key=jax.random.key(0)),
            lambda: ln.is_lazy(apply, params, data),
            lambda: ln.empirical_ntk_fn(apply)(x, None, params),
            lambda: ln.evaluate(ln.objective(apply, ln.mse), params, data),
        ):
            with pytest.raises(ValueError, match=r"keeps a state of its own.*module.eval\(\)"):
                ask()
