"""Facts about tangents: linearized fine-tuning with any loss and optimizer, and arithmetic of what it learned."""

from __future__ import annotations

import copy
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lazynet as ln
from lazynet import low_rank, tangents, trees

KEY = jax.random.key(0)
INF = math.inf
MODEL = ln.serial(ln.Dense(6, b_std=0.1), ln.Erf(), ln.Dense(3, b_std=0.1))
X = jax.random.normal(jax.random.key(1), (12, 4), jnp.float64)
CLASSES = jnp.asarray(np.eye(3)[np.arange(12) % 3])
DATA = ln.Data(X, CLASSES)
WEIGHTS = MODEL.init(jax.random.key(2), X)
START = ln.tangent_at(MODEL.apply, WEIGHTS)
SETTINGS = dict(key=KEY, save_at=[0, 30], batch_size=6)


def drawn(seed: int) -> tangents.Tangent:
    """A tangent with normal displacement."""
    leaves, structure = jax.tree.flatten(WEIGHTS)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    normal = [jax.random.normal(k, w.shape, w.dtype) for k, w in zip(keys, leaves, strict=True)]
    return START.at(jax.tree.unflatten(structure, normal))


def trained(function, params, optimizer, loss=ln.cross_entropy, **settings):
    goal = ln.objective(function, loss)
    with jax.numpy_dtype_promotion("standard"):  # for Adam, which divides whole numbers
        return ln.train(goal, params, DATA, optimizer, **(SETTINGS | settings)).params


def far(a, b) -> float:
    return float(trees.norm(trees.subtract(a, b)) / trees.norm(b))


# ---- training, not centered


def test_it_starts_at_what_the_weights_predict():
    np.testing.assert_allclose(START(X), MODEL.apply(WEIGHTS, X), rtol=1e-14)
    goal = ln.objective(START.function, ln.cross_entropy)
    before = ln.evaluate(ln.objective(MODEL.apply, ln.cross_entropy), WEIGHTS, DATA)["loss"]
    assert ln.evaluate(goal, START.displacement, DATA)["loss"] == pytest.approx(before)
    u = trained(START.function, None, optax.adam(0.1))
    assert ln.evaluate(goal, u, DATA)["loss"] < before - 0.3


@pytest.mark.parametrize("optimizer", [optax.adam(0.05), optax.rmsprop(0.01)])
def test_any_optimizer_trains_the_displacement_as_it_trains_the_weights_of_the_linearized_model(
    optimizer,
):
    u = trained(START.function, None, optimizer)
    w = trained(ln.linearize(MODEL.apply, WEIGHTS), WEIGHTS, optimizer)
    assert far(START.at(u).weights(), w) < 1e-12
    assert far(trees.subtract(w, WEIGHTS), WEIGHTS) > 0.05


@pytest.mark.extended
def test_weight_decay_pulls_towards_the_trained_weights():
    free, decayed = (
        trained(START.function, None, optax.adamw(0.05, weight_decay=decay)) for decay in (0.0, 1.0)
    )
    assert float(trees.norm(decayed)) < 0.9 * float(trees.norm(free))


def test_a_finite_alpha_refuses_what_infinity_takes_and_names_it():
    finite = ln.lazy(MODEL.apply, WEIGHTS, 10.0, centered=False)
    with pytest.raises(ValueError, match=r"alpha = inf, where u is the tangent itself"):
        trained(finite, None, optax.adam(0.1))


def test_alpha_one_without_centering_is_fine_tuning():
    settings = dict(learning_rate=0.2)
    u = trained(ln.lazy(MODEL.apply, WEIGHTS, 1.0, centered=False), None, ln.sgd(0.9), **settings)
    w = trained(MODEL.apply, WEIGHTS, ln.sgd(0.9), **settings)
    assert far(trees.add(WEIGHTS, u), w) < 1e-12


@pytest.mark.parametrize("alpha", [0.5, 30.0, INF])
def test_without_centering_the_first_outputs_are_added(alpha):
    u = drawn(3).displacement
    centered = ln.lazy(MODEL.apply, WEIGHTS, alpha)(u, X)
    whole = ln.lazy(MODEL.apply, WEIGHTS, alpha, centered=False)
    np.testing.assert_allclose(whole(u, X), centered + MODEL.apply(WEIGHTS, X), rtol=1e-13)
    again = jax.tree.unflatten(jax.tree.structure(whole), jax.tree.leaves(whole))
    assert not again.centered and again.is_tangent == (alpha == INF)


# ---- selections and factors of low rank


def test_the_last_layer_is_its_own_linearization():
    last = dict(where=lambda path: path.startswith("2_Dense"), learning_rate=0.3)
    u = trained(START.function, None, ln.sgd(0.5), **last)
    w = trained(MODEL.apply, WEIGHTS, ln.sgd(0.5), **last)
    assert far(START.at(u).weights(), w) < 1e-12
    assert not jnp.any(u["0_Dense"]["W"]) and jnp.any(u["2_Dense"]["W"])


@pytest.mark.extended
def test_linearized_factors_are_the_tangent_along_their_first_products():
    model = ln.lora(MODEL, rank=2)
    params = {**model.init(jax.random.key(3), X), "weights": WEIGHTS}
    start = ln.tangent_at(model.apply, params)
    where = dict(where=lambda path: path.startswith("factors"))
    u = trained(start.function, None, optax.adam(0.05), **where)
    assert far(start.at(u).weights()["weights"], WEIGHTS) == 0
    moved = {"factors": {}, "weights": trees.zeros_like(WEIGHTS)}
    for path, factor in params["factors"].items():
        moved["factors"][path] = {"A": factor["A"], "B": u["factors"][path]["B"]}
    displacement = low_rank.merged(moved)
    np.testing.assert_allclose(start.at(u)(X), START.at(displacement)(X), rtol=1e-12)
    folded = low_rank.merged(start.at(u).weights())
    assert far(trees.subtract(folded, WEIGHTS), displacement) < 1e-12


# ---- a vector space


def test_outputs_are_linear_in_the_tangent():
    a, b = drawn(4), drawn(5)
    h = MODEL.apply(WEIGHTS, X)
    expected = h + 2 * (a(X) - h) - (b(X) - h) / 4
    for mixed in (
        2 * a - b / 4,
        np.float64(2) * a + -b * jnp.asarray(0.25),
        sum([a, a, -b / 4], START),
    ):
        np.testing.assert_allclose(mixed(X), expected, rtol=1e-12)


def test_folded_weights_are_those_of_the_displacement():
    a = drawn(6)
    expected = jax.tree.map(lambda w, u: w - 3 * u, WEIGHTS, a.displacement)
    assert far((-3 * a).weights(), expected) < 1e-15


def test_constants_among_the_parameters_stay():
    params = {"w": jnp.ones(2), "n": jnp.array(3), "key": jax.random.key(7)}
    start = ln.tangent_at(lambda p, x: x * p["w"] ** p["n"], params)
    task = 2 * start.at(params | {"w": jnp.array([1.0, -1.0])})
    weights = (task + task).weights()
    assert weights["w"].tolist() == [5.0, -3.0] and int(weights["n"]) == 3
    assert weights["key"] == params["key"]


def test_tangents_at_different_weights_do_not_add_up():
    other = ln.tangent_at(MODEL.apply, trees.add(WEIGHTS, WEIGHTS))
    with pytest.raises(ValueError, match="different weights"):
        START + other
    with pytest.raises(ValueError, match="as in those of a"):
        START + ln.tangent_at(jnp.multiply, jnp.ones(2))


@pytest.mark.parametrize(
    "wrong", [lambda a: a + 1, lambda a: a * a, lambda a: 2 / a, lambda a: a * "2"]
)
def test_what_is_no_operation_of_vectors_is_refused(wrong):
    with pytest.raises(TypeError):
        wrong(START)


def test_a_tangent_is_a_tree_and_pickles():
    a = drawn(8)
    compiled = jax.jit(lambda tangent, x: (2 * tangent + tangent)(x))(a, X)
    np.testing.assert_allclose(compiled, (3 * a)(X), rtol=1e-12)
    for copied in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)):
        np.testing.assert_array_equal(
            (a + copied).displacement["0_Dense"]["W"], 2 * a.displacement["0_Dense"]["W"]
        )


# ---- files


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_tangent_comes_back_bit_for_bit_and_only_at_its_weights(tmp_path, dtype):
    weights = jax.tree.map(lambda leaf: leaf.astype(dtype), WEIGHTS)
    start = ln.tangent_at(MODEL.apply, weights)
    u = start.function.start()
    u["2_Dense"]["W"] = jax.random.normal(KEY, u["2_Dense"]["W"].shape, dtype)
    tangents.save(tmp_path / "task.npz", start.at(u))
    back = tangents.load(tmp_path / "task.npz", start)
    for found, expected in zip(jax.tree.leaves(back), jax.tree.leaves(start.at(u)), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    moved = ln.tangent_at(MODEL.apply, jax.tree.map(lambda leaf: 2 * leaf, weights))
    with pytest.raises(ValueError, match="at other weights"):
        tangents.load(tmp_path / "task.npz", moved)


def test_leaves_that_did_not_move_are_not_stored(tmp_path):
    u = START.function.start()
    u["2_Dense"]["b"] = u["2_Dense"]["b"] + 1
    tangents.save(tmp_path / "task.npz", START.at(u))
    with np.load(tmp_path / "task.npz") as stored:
        assert len([name for name in stored if name.startswith("displacement")]) == 1


def test_another_file_is_no_tangent(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.ones(2))
    with pytest.raises(ValueError, match=r"other\.npz"):
        tangents.load(tmp_path / "other.npz", START)


# ---- two tasks


@pytest.mark.parametrize("alpha", [1.0, INF])
def test_the_disentanglement_error_is_the_share_of_changed_classes(alpha):
    a, b = drawn(9), drawn(10)
    x_a, x_b = X[:5], X[5:]

    def classes(displacement, x):
        if alpha == 1:
            return MODEL.apply(trees.add(WEIGHTS, displacement), x).argmax(1)
        tangent = jax.jvp(lambda w: MODEL.apply(w, x), (WEIGHTS,), (displacement,))
        return (tangent[0] + tangent[1]).argmax(1)

    u_a, u_b = (
        jax.tree.map(lambda leaf, s=s: s * leaf, t.displacement) for t, s in ((a, 0.5), (b, 2.0))
    )
    both = trees.add(u_a, u_b)
    expected = np.mean(classes(u_a, x_a) != classes(both, x_a))
    expected += np.mean(classes(u_b, x_b) != classes(both, x_b))
    found = tangents.disentanglement_error(a, b, x_a, x_b, scales=(0.5, 2.0), alpha=alpha)
    assert found == pytest.approx(expected) and found > 0


def test_a_task_decides_among_its_own_classes():
    start = ln.tangent_at(lambda w, x: x @ w, jnp.zeros((2, 4)))
    a = start.at(jnp.array([[2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    b = start.at(jnp.array([[0.0, 0.0, 0.0, 9.0], [0.0, 0.0, 1.0, 0.0]]))
    x_a, x_b = jnp.eye(2)[:1], jnp.eye(2)[1:]
    assert tangents.disentanglement_error(a, b, x_a, x_b) == 1
    heads = (range(0, 2), range(2, 4))
    assert tangents.disentanglement_error(a, b, x_a, x_b, classes=heads) == 0


def test_tasks_on_features_of_their_own_are_disentangled():
    start = ln.tangent_at(lambda w, x: x @ w, jnp.zeros((4, 3)))
    a = start.at(jnp.zeros((4, 3)).at[:2].set(jax.random.normal(KEY, (2, 3))))
    b = start.at(jnp.zeros((4, 3)).at[2:].set(jax.random.normal(KEY, (2, 3))))
    x_a, x_b = X.at[:, 2:].set(0), X.at[:, :2].set(0)
    assert tangents.disentanglement_error(a, b, x_a, x_b) == 0
    assert tangents.disentanglement_error(a, b, x_b, x_a) > 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (dict(scales=(math.nan, 1.0)), ValueError),
        (dict(alpha=-1.0), ValueError),
        (dict(b=ln.tangent_at(MODEL.apply, trees.add(WEIGHTS, WEIGHTS))), ValueError),
        (dict(x_a=np.array(["a"])), TypeError),
    ],
)
def test_what_has_no_disentanglement_error_is_refused(change, error):
    with pytest.raises(error, match=rf"(?i){next(iter(change))}"):
        tangents.disentanglement_error(**(dict(a=START, b=START, x_a=X, x_b=X) | change))


def test_real_weights_refuse_complex_factors():
    task = tangents.tangent_at(lambda w, x: x @ w, jnp.ones((2, 1)))
    with pytest.raises(TypeError, match="factor got 1j, expected a real number"):
        1j * task
    start = tangents.tangent_at(lambda w, x: x @ w, jnp.full((2, 1), 1j))
    rotated = 1j * start.at(jnp.ones((2, 1), complex))
    assert rotated.displacement.tolist() == [[1j], [1j]]
