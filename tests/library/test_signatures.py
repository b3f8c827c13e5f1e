"""Trees in, trees out: every function of a model of trees is that of the same model flattened to one array."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from draws import normal
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from marks import extended

import lazynet as ln
from lazynet import diagnostics, dynamics, trees
from lazynet.kernels import empirical
from lazynet.signatures import Inputs, real_weights, select

KEY = jax.random.key(0)
N = 6
TOKENS = np.arange(N) % 3
X = {"a": np.asarray(normal(1, N, 2)), "b": np.asarray(normal(2, N, 2, 2))}
PARAMS = {
    "W": normal(3, 2, 3),
    "c": jax.lax.complex(normal(4, 4, 3), normal(5, 4, 3)),
    "embedding": normal(6, 3, 3),
    "flag": jnp.array(True),
    "key": KEY,
    "order": jnp.array([2, 0, 1]),
}


def model(params, x, tokens, *, factor=1.0):
    """Two floating-point outputs, one of them of two axes, and a whole number."""
    b = jnp.asarray(x["b"]).reshape(len(tokens), -1)
    c = params["c"]
    phase = b.astype(c.dtype) @ c
    inside = jnp.tanh(x["a"] @ params["W"] + params["embedding"][tokens])[:, params["order"]]
    wave = factor * inside * jnp.real(phase) + jnp.where(params["flag"], jnp.abs(phase) ** 2, 0.0)
    return {"out": wave, "rest": (jnp.stack([inside, wave], axis=1), tokens)}


TREE, VECTOR = real_weights(model, PARAMS)
W0, RAVELED = ravel_pytree(VECTOR)
EXAMPLES = Inputs(X, TOKENS)
ROWS = np.concatenate([X["a"], X["b"].reshape(N, 4), TOKENS[:, None]], axis=1)


def one_array(w, rows, **kwargs):
    """The same model of one vector of weights and rows of numbers."""
    x = {"a": rows[:, :2], "b": rows[:, 2:6].reshape(-1, 2, 2)}
    outputs = TREE(RAVELED(w), x, jnp.round(rows[:, 6]).astype(int), **kwargs)
    stacked = outputs["rest"][0].reshape(len(rows), -1)
    return jnp.concatenate([outputs["out"], stacked], axis=1)


def near(scale, seed=7):
    """Parameters a little away from the first ones, as a tree and as a vector."""
    w = W0 + scale * normal(seed, W0.size)
    weights = RAVELED(w)
    return jax.tree.map(
        lambda own, moved: moved if trees.is_weight(own) else own,
        PARAMS,
        {**PARAMS, **{name: _whole(leaf) for name, leaf in weights.items() if leaf is not None}},
    ), w


def _whole(leaf):
    return jax.lax.complex(*leaf) if isinstance(leaf, tuple) else leaf


Y = np.asarray(normal(8, N, 9))
TREES = (model, PARAMS, EXAMPLES, ln.Data(EXAMPLES, Y))
ARRAYS = (one_array, W0, ROWS, ln.Data(jnp.asarray(ROWS), Y))


def _vector(params):
    return ravel_pytree(real_weights(None, params)[1])[0] if isinstance(params, dict) else params


def _joined(outputs):
    return ln.signatures.one_array(outputs, TOKENS)


def transformed(transform):
    def value(apply, params, x, data):
        moved = near(0.3)[0 if isinstance(params, dict) else 1]
        args = x.args if isinstance(x, Inputs) else (x,)
        return _joined(transform(apply, params, moved)(moved, *args, factor=2.0))

    return value


def lazily(alpha):
    def value(apply, params, x, data):
        f = ln.lazy(apply, params, alpha)
        moved = near(0.3)[0 if isinstance(params, dict) else 1]
        u = trees.zeros_like(params)
        start = jax.tree.map(
            lambda u, w, w0: u + w - w0 if trees.is_weight(w) else u, u, moved, params
        )
        args = x.args if isinstance(x, Inputs) else (x,)
        return _joined(f(start, *args, factor=2.0)), _vector(f.weights(start))

    return value


def trained(apply, params, x, data):
    curve = ln.train(
        ln.objective(apply, ln.mse), params, data, ln.sgd(0.5), key=KEY, save_at=[0, 3],
        learning_rate=0.01, batch_size=4, test=data,
        measure=lambda params: {"norm": trees.norm(_vector(params))},
    )  # fmt: skip
    return _vector(curve.params), curve.metrics


def microbatched(apply, params, x, data):
    curve = ln.train(
        ln.objective(ln.lazy(apply, params, 3.0), ln.mse), None, data, ln.sgd(), key=KEY,
        save_at=[2], learning_rate=0.01, microbatches=2,
    )  # fmt: skip
    return _vector(curve.params), curve.metrics


def states(apply, params, x, data):
    goal = ln.objective(apply, ln.mse)
    pairs = []
    settings = dict(key=KEY, save_at=[1, 2], learning_rate=0.01)
    optimizer = ln.unit_rate(optax.sgd(1.0, 0.9))
    seen = [_vector(s.params) for s in ln.snapshots(goal, params, data, optimizer, **settings)]
    whole = ln.train(
        goal, params, data, optimizer, on_save=lambda *pair: pairs.append(pair), **settings
    )
    resumed = ln.train(goal, params, data, optimizer, resume=pairs[0], **settings)
    np.testing.assert_array_equal(_vector(resumed.params), _vector(whole.params))
    return seen, ln.evaluate(goal, params, data, batch_size=4)


def ensemble(apply, params, x, data):
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    curve = ln.train_ensemble(
        apply, stacked, data, ln.sgd(), key=KEY, save_at=[0, 2], learning_rate=0.01, x=x,
        batch_size=3,
    )  # fmt: skip
    return curve.outputs, _vector(jax.tree.map(lambda leaf: leaf[0], curve.params))


def first_outputs(outputs):
    """What the model of trees calls "out"."""
    return outputs[:, :3]


def tangent(apply, params, x, data):
    is_tree = isinstance(params, dict)
    start = diagnostics.tangent_at(apply, params, output="out" if is_tree else first_outputs)
    moved = near(0.3)[0 if is_tree else 1]
    args = x.args if is_tree else (x,)
    return start.kernel(x, outputs="trace"), start.apply(moved, *args, factor=2.0)


def moved_weights(apply, params, x, data):
    """Weights of the linearized model after a time of its flow."""
    output = "out" if isinstance(params, dict) else first_outputs
    kernel = ln.empirical_ntk(apply, params, x, output=output)
    end = dynamics.solve_flow(kernel, Y[:, :3], time=[2.0]).coefficients[0]
    return _vector(dynamics.linearized_weights(apply, params, x, end, output=output))


def product(apply, params, x, data):
    return ln.ntk_vector_product(apply, params, x)(jnp.asarray(Y))


TABLE = {
    "linearize": transformed(lambda h, w0, w: ln.linearize(h, w0)),
    "taylor_expand": transformed(lambda h, w0, w: ln.taylor_expand(h, w0, 2)),
    "center": transformed(lambda h, w0, w: ln.center(h, w0)),
    "scale": transformed(lambda h, w0, w: ln.scale(h, 3.0)),
    "lazy": lazily(5.0),
    "lazy at inf": lazily(float("inf")),
    "empirical_ntk": lambda h, w, x, data: ln.empirical_ntk(h, w, x),
    "empirical_ntk, trace": lambda h, w, x, data: ln.empirical_ntk(h, w, x, outputs="trace"),
    "empirical_ntk, tiles": lambda h, w, x, data: ln.empirical_ntk(h, w, x, tile=4, outputs="sum"),
    "empirical_ntk, labels": lambda h, w, x, data: ln.empirical_ntk(
        select(h), w, x, outputs=np.arange(N)
    ),
    "empirical_ntk, centered": lambda h, w, x, data: ln.empirical_ntk(h, w, x, centered=True),
    "empirical_nngp": lambda h, w, x, data: ln.empirical_nngp(h, w, x),
    "ntk_vector_product": product,
    "estimate_max_learning_rate": lambda h, w, x, data: ln.estimate_max_learning_rate(
        h, w, x, key=KEY
    ),
    "jacobian_norm": lambda h, w, x, data: diagnostics.jacobian_norm(h, w, x, key=KEY),
    "ntk_change": lambda h, w, x, data: diagnostics.ntk_change(
        h, near(0.1)[0 if isinstance(w, dict) else 1], w, x, key=KEY
    ),
    "linearization_gap": lambda h, w, x, data: diagnostics.linearization_gap(
        h, near(0.1)[0 if isinstance(w, dict) else 1], w, x
    ),
    "tangent_at": lambda h, w, x, data: diagnostics.tangent_at(h, w).kernel(x, outputs="trace"),
    "tangent_at, output": tangent,
    "linearized_weights": moved_weights,
    "train": trained,
    "train, microbatches": microbatched,
    "snapshots and evaluate": states,
    "train_ensemble": ensemble,
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.extended
def test_a_model_of_trees_gives_what_the_same_model_of_one_array_gives(name):
    ours, flat = TABLE[name](*TREES), TABLE[name](*ARRAYS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, flat)


@pytest.mark.extended
def test_kappa_and_the_verdict_of_a_model_of_trees_are_those_of_the_model_of_one_array():
    settings = dict(iterations=60, restarts=4, key=KEY)
    ours = ln.is_lazy(*TREES[:2], TREES[3], **settings)
    flat = ln.is_lazy(*ARRAYS[:2], ARRAYS[3], **settings)
    for name in ("kappa", "ntk_change", "linearization_gap"):
        np.testing.assert_allclose(getattr(ours, name), getattr(flat, name), rtol=1e-3)
    lazily = ln.is_lazy(ln.lazy(model, PARAMS, 100.0), trees.zeros_like(PARAMS), TREES[3])
    assert lazily.linearization_gap < ours.linearization_gap


@pytest.mark.parametrize("outputs", ["full", "trace", extended("sum"), extended("diagonal")])
@pytest.mark.extended
def test_the_kernel_is_that_of_the_plain_jacobian(outputs):
    jacobian = np.asarray(jax.jacobian(one_array)(W0, jnp.asarray(ROWS)))
    full = np.einsum("iap,jbp->ijab", jacobian, jacobian)
    expected = {
        "full": full,
        "trace": np.einsum("ijaa->ij", full) / 9,
        "sum": full.sum((2, 3)) / 9,
        "diagonal": np.einsum("ijaa->ija", full),
    }
    found = ln.empirical_ntk(model, PARAMS, EXAMPLES, outputs=outputs)
    np.testing.assert_allclose(found, expected[outputs], rtol=1e-10, atol=1e-10)


@pytest.mark.extended
def test_an_output_is_chosen_by_its_key_or_by_a_function():
    whole = ln.empirical_ntk(model, PARAMS, EXAMPLES)
    by_key = ln.empirical_ntk(model, PARAMS, EXAMPLES, output="out")
    np.testing.assert_allclose(by_key, whole[:, :, :3, :3], rtol=1e-12)
    last = ln.empirical_ntk(model, PARAMS, EXAMPLES, output=lambda h: h["rest"][0][:, -1])
    np.testing.assert_allclose(last, by_key, rtol=1e-12)
    bound = Partial(model, factor=0.0)
    assert not np.allclose(ln.empirical_ntk(bound, PARAMS, EXAMPLES, output="out"), by_key)


def test_entries_chosen_by_labels_have_their_block_of_the_full_kernel():
    def tokens(w, x):
        return jnp.tanh(x @ w).reshape(len(x), 2, 3)

    w, x = normal(9, 2, 6), X["a"]
    labels = np.array([[0, 2], [1, 1], [2, 0], [0, 0], [1, 2], [2, 2]])
    full = np.asarray(ln.empirical_ntk(tokens, w, x)).reshape(N, N, 2, 3, 2, 3)
    found = ln.empirical_ntk(tokens, w, x, outputs=labels)
    for i in range(N):
        for j in range(N):
            for s in range(2):
                for t in range(2):
                    expected = full[i, j, s, labels[i, s], t, labels[j, t]]
                    np.testing.assert_allclose(found[i, j, s, t], expected, rtol=1e-12)
    cross = ln.empirical_ntk(tokens, w, x[:2], x, outputs=(labels[:2], labels))
    np.testing.assert_allclose(cross, found[:2], rtol=1e-12)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_entry_of_the_outputs_are_refused(label):
    labels = np.array([0, 1, 2, 0, 1, label])
    with pytest.raises(ValueError, match=r"entries from .*expected 0 to 2"):
        ln.empirical_ntk(lambda w, x: x @ w, normal(9, 2, 3), X["a"], outputs=labels)


@pytest.mark.extended
def test_a_complex_function_has_the_kernel_of_its_parts_by_finite_differences():
    def psi(w, x):
        return jnp.exp(x @ w["c"]) * w["r"][None].astype(complex)

    params = {"c": jax.lax.complex(normal(1, 2, 2), normal(2, 2, 2)) * 0.3, "r": normal(3, 2)}
    x = jax.lax.complex(normal(4, 3, 2), normal(5, 3, 2))
    raveled, unravel = ravel_pytree({"c": (params["c"].real, params["c"].imag), "r": params["r"]})

    def parts(w):
        own = unravel(w)
        h = psi({"c": jax.lax.complex(*own["c"]), "r": own["r"]}, x)
        return np.concatenate([h.real, h.imag], axis=1)

    steps = 1e-5 * np.eye(raveled.size)
    columns = [(parts(raveled + step) - parts(raveled - step)) / 2e-5 for step in steps]
    jacobian = np.stack(columns, axis=-1)
    expected = np.einsum("iap,jbp->ijab", jacobian, jacobian)
    np.testing.assert_allclose(ln.empirical_ntk(psi, params, x), expected, rtol=1e-6, atol=1e-6)
    direction = normal(6, raveled.size)
    moved = unravel(raveled + direction)
    whole = {"c": jax.lax.complex(*moved["c"]), "r": moved["r"]}
    change = ln.linearize(psi, params)(whole, x) - psi(params, x)
    np.testing.assert_allclose(
        np.concatenate([change.real, change.imag], 1), jacobian @ direction, rtol=1e-6, atol=1e-6
    )


@pytest.mark.extended
def test_centered_derivatives_are_those_less_their_weighted_mean():
    p = np.array([0.1, 0.2, 0.3, 0.2, 0.1, 0.1])
    jacobian = np.asarray(jax.jacobian(one_array)(W0, jnp.asarray(ROWS)))
    centered = jacobian - np.einsum("i,iap->ap", p, jacobian)[None]
    expected = np.einsum("iap,jbp->ijab", centered, centered)
    found = ln.empirical_ntk(model, PARAMS, EXAMPLES, centered=True, weights=p, tile=4)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    function = empirical.center_jacobian(model, PARAMS, EXAMPLES, p)
    few = Inputs({name: leaf[:2] for name, leaf in X.items()}, TOKENS[:2])
    cross = ln.empirical_ntk(function, PARAMS, few, EXAMPLES)
    np.testing.assert_allclose(cross, expected[:2], rtol=1e-9, atol=1e-9)
    product = ln.ntk_vector_product(function, PARAMS, EXAMPLES)(jnp.asarray(Y))
    np.testing.assert_allclose(product, np.einsum("ijab,jb->ia", expected, Y), rtol=1e-9, atol=1e-9)


@pytest.mark.extended
def test_the_hermitian_kernel_is_that_of_the_complex_jacobian_and_of_no_other_function():
    def log_psi(w, x):
        return jnp.tanh(x @ w["W"]) @ w["a"]

    params = {
        "W": jax.lax.complex(normal(1, 2, 3), normal(2, 2, 3)) * 0.3,
        "a": jax.lax.complex(normal(3, 3, 1), normal(4, 3, 1)),
    }
    x = X["a"].astype(complex)
    jacobian = jax.jacobian(log_psi, holomorphic=True)(params, x)
    rows = np.concatenate([np.asarray(j).reshape(N, -1) for j in jax.tree.leaves(jacobian)], axis=1)
    found = empirical.hermitian(ln.empirical_ntk(log_psi, params, x))
    np.testing.assert_allclose(found, rows @ rows.conj().T, rtol=1e-10, atol=1e-10)
    modulus = ln.empirical_ntk(
        lambda w, x: log_psi(w, x) * jnp.abs(w["a"][0, 0]).astype(complex), params, x
    )
    with pytest.raises(ValueError, match="holomorphic function, expected"):
        empirical.hermitian(modulus)


def test_token_models_learn_by_masked_cross_entropy():
    def apply(w, tokens):
        return w["embedding"][tokens] @ w["head"]

    tokens = np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]])
    labels = np.array([[1, 2, -1], [2, -1, -1], [-1, -1, -1]])
    params = {"embedding": normal(1, 3, 4), "head": normal(2, 4, 3)}
    logits = np.asarray(apply(params, tokens))
    rows = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -((rows[0, 0, 1] + rows[0, 1, 2]) / 2 + rows[1, 0, 2]) / 3
    loss = ln.masked_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    goal = ln.objective(apply, ln.masked_cross_entropy)
    curve = ln.train(
        goal, params, ln.Data(tokens, labels), ln.sgd(), key=KEY, save_at=[0, 200],
        learning_rate=1.0,
    )  # fmt: skip
    assert curve.metrics["train_loss"][-1] < 0.05
    np.testing.assert_allclose(curve.metrics["train_accuracy"][-1], 2 / 3)


REFUSALS = {
    "a leaf of another length": (
        lambda: ln.empirical_ntk(model, PARAMS, Inputs(X, TOKENS[:3])),
        r"x1\[1\] of shape \(3,\)",
    ),
    "an output without examples": (
        lambda: ln.empirical_ntk(
            lambda w, x: {"h": x @ w, "loss": jnp.sum(x @ w)}, W0[:2, None], X["a"]
        ),
        r"outputs\['loss'\] of shape \(\).*select\(apply, key\)",
    ),
    "no output to differentiate": (
        lambda: ln.empirical_ntk(lambda w, x: {"n": jnp.zeros(len(x), int)}, W0, X["a"]),
        "expected floating-point outputs",
    ),
    "a mean over other samples": (
        lambda: ln.empirical_ntk(model, PARAMS, EXAMPLES, EXAMPLES, centered=True),
        "center_jacobian",
    ),
    "weights of another sum": (
        lambda: empirical.center_jacobian(model, PARAMS, EXAMPLES, np.ones(N)),
        "sum to one",
    ),
    "one set of labels for two sets": (
        lambda: ln.empirical_ntk(select(model), PARAMS, EXAMPLES, EXAMPLES, outputs=np.arange(N)),
        r"\(outputs1, outputs2\)",
    ),
    "labels of another shape": (
        lambda: ln.empirical_ntk(select(model), PARAMS, EXAMPLES, outputs=np.zeros((N, 2), int)),
        r"outputs has shape \(6, 2\)",
    ),
    "data of another length": (
        lambda: trained(model, PARAMS, EXAMPLES, ln.Data(Inputs(X, TOKENS[:3]), Y)),
        r"3 inputs \[1\] and 6 targets",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_has_no_meaning_is_refused_by_name(name):
    attempt, message = REFUSALS[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        attempt()


def test_weights_that_are_one_complex_array_have_both_of_their_parts_in_the_kernel():
    w = jax.lax.complex(normal(1, 2, 3), normal(2, 2, 3))
    x = jnp.asarray(X["a"])
    parted = ln.empirical_ntk(lambda w, x: jnp.abs(x.astype(w.dtype) @ w), w, x)
    whole = ln.empirical_ntk(
        lambda w, x: jnp.sqrt((x @ w["re"]) ** 2 + (x @ w["im"]) ** 2),
        {"re": w.real, "im": w.imag},
        x,
    )
    np.testing.assert_allclose(parted, whole, rtol=1e-10)
