"""One selector of parameters: the same choice in kernels, training, diagnostics, and for factors of low rank."""

from __future__ import annotations

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from draws import normal

import lazynet as ln
from lazynet import diagnostics, low_rank
from lazynet.parameters import selected
from lazynet.training.optimizers import check_optimizer

KEY = jax.random.key(0)
X = normal(1, 6, 3)
DATA = ln.Data(X, jnp.sin(X[:, :2]))
MODEL = ln.serial(ln.Dense(8, b_std=0.1), ln.Tanh(), ln.Dense(2, b_std=0.1))
PARAMS = MODEL.init(KEY, X)
WAYS = {
    "paths": lambda path: path.startswith("2_Dense"),
    "paths and leaves": lambda path, leaf: path[0] == "2" and leaf.ndim >= 0,
    "a default of its own": lambda path, name="2_Dense": name in path,
    "booleans": {"0_Dense": {"W": False, "b": False}, "2_Dense": {"W": True, "b": True}},
    "booleans above": {"0_Dense": False, "2_Dense": True},
}
LAST = WAYS["paths"]


def rest(path):
    return not LAST(path)


def general(params, x):
    """The same function without what is known of its layers."""
    return MODEL.apply(params, x)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_choose_is_the_same_choice(way):
    assert selected(WAYS[way], PARAMS) == {
        "0_Dense": {"W": False, "b": False},
        "2_Dense": {"W": True, "b": True},
    }


@pytest.mark.parametrize("apply", [MODEL.apply, general])
@pytest.mark.extended
def test_kernels_of_parts_add_up_to_the_whole(apply):
    parts = [ln.empirical_ntk(apply, PARAMS, X, where=where) for where in (LAST, rest)]
    np.testing.assert_allclose(sum(parts), ln.empirical_ntk(apply, PARAMS, X), rtol=1e-10)
    v = normal(2, 6, 2)
    products = [ln.ntk_vector_product(apply, PARAMS, X, where=w)(v) for w in (LAST, rest)]
    np.testing.assert_allclose(products[0], jnp.einsum("ijab,jb->ia", parts[0], v), rtol=1e-9)
    np.testing.assert_allclose(sum(products), ln.ntk_vector_product(apply, PARAMS, X)(v), rtol=1e-9)


def test_a_training_moves_what_is_chosen_as_the_function_of_it_alone_is_trained():
    settings = dict(key=KEY, save_at=[5], learning_rate=0.1, batch_size=4)
    goal = ln.objective(MODEL.apply, ln.mse)
    curve = ln.train(goal, PARAMS, DATA, ln.sgd(0.9), where=LAST, **settings)
    jax.tree.map(np.testing.assert_array_equal, curve.params["0_Dense"], PARAMS["0_Dense"])
    alone = ln.objective(lambda last, x: MODEL.apply({**PARAMS, "2_Dense": last}, x), ln.mse)
    expected = ln.train(alone, PARAMS["2_Dense"], DATA, ln.sgd(0.9), **settings)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
        curve.params["2_Dense"],
        expected.params,
    )
    lazily = ln.objective(ln.lazy(MODEL.apply, PARAMS, float("inf")), ln.mse)
    u = ln.train(lazily, None, DATA, ln.sgd(), where=LAST, **settings).params
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(u["0_Dense"]))
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(u["2_Dense"]))


@pytest.mark.extended
def test_diagnostics_of_chosen_parameters_are_those_of_the_function_of_them():
    last = PARAMS["2_Dense"]

    def alone(last, x):
        return MODEL.apply({**PARAMS, "2_Dense": last}, x)

    settings = dict(key=KEY, iterations=40)
    norm = diagnostics.jacobian_norm(general, PARAMS, X, where=LAST, **settings)
    assert norm == pytest.approx(diagnostics.jacobian_norm(alone, last, X, **settings))
    rate = ln.estimate_max_learning_rate(general, PARAMS, X, key=KEY, where=LAST)
    assert rate == pytest.approx(ln.estimate_max_learning_rate(alone, last, X, key=KEY))
    verdict = ln.is_lazy(general, PARAMS, DATA, where=LAST)  # linear in the last layer
    assert verdict.kappa < 1e-6 and verdict.linearization_gap < 1e-6


def test_what_is_frozen_has_no_part_in_the_kernel():
    frozen = ln.freeze(MODEL, where=LAST)
    np.testing.assert_allclose(
        ln.empirical_ntk(frozen.apply, PARAMS, X),
        ln.empirical_ntk(MODEL.apply, PARAMS, X, where=rest),
        rtol=1e-10,
    )
    assert frozen.kernel is None and ln.freeze(MODEL).kernel is not None


def test_factors_of_full_rank_have_the_kernel_of_the_weights_as_their_mean():
    def kernel(key):
        own = low_rank.factors(key, PARAMS, rank=2, where=LAST)
        params = {"factors": own, "weights": PARAMS}
        function = low_rank.Lora(MODEL.apply)
        return ln.empirical_ntk(function, params, X, where=lambda path: path.startswith("factors"))

    draws = jnp.stack([kernel(key) for key in jax.random.split(KEY, 100)])
    expected = ln.empirical_ntk(MODEL.apply, PARAMS, X, where=lambda path: path == "2_Dense/W")
    error = draws.std(0) / 10
    assert jnp.mean(jnp.abs(draws.mean(0) - expected) > 3 * error + 1e-12) < 0.05


def test_a_model_with_factors_starts_as_the_model_and_ends_with_the_weights_merged():
    model = ln.lora(MODEL, rank=2, where=lambda path, leaf: leaf.ndim == 2)
    params = model.init(KEY, X)
    np.testing.assert_array_equal(model.apply(params, X), MODEL.apply(params["weights"], X))
    trained = ln.train(
        ln.objective(model.apply, ln.mse), params, DATA, ln.sgd(), key=KEY, save_at=[3],
        learning_rate=0.1, where=lambda path: path.startswith("factors"),
    ).params  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, trained["weights"], params["weights"])
    outputs, inside = model.trace(trained, X)
    np.testing.assert_allclose(outputs, MODEL.apply(low_rank.merged(trained), X), rtol=1e-12)
    assert sorted(inside) == ["0_Dense", "1_Tanh", "2_Dense"]
    assert not np.allclose(outputs, MODEL.apply(params["weights"], X))
    convolution = ln.lora(ln.Conv(4, (3, 3)), rank=1)
    images = normal(3, 2, 5, 5, 2)
    factors = convolution.init(KEY, images)["factors"]["W"]
    assert factors["A"].shape == (18, 1) and factors["B"].shape == (1, 4)


def test_factors_beside_a_lazy_function_are_added_to_its_displacement():
    function = low_rank.Lora(ln.lazy(MODEL.apply, PARAMS, 3.0))
    own = low_rank.factors(KEY, PARAMS, rank=1)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    settings = dict(key=KEY, save_at=[1], learning_rate=0.1)
    goal = ln.objective(ln.center(function, {"factors": own, "weights": zero}), ln.mse)
    ln.train(goal, {"factors": own, "weights": zero}, DATA, ln.sgd(), **settings)
    with pytest.raises(
        ValueError, match=r"params\['weights'\] is params0, expected the displacement"
    ):
        ln.train(goal, {"factors": own, "weights": PARAMS}, DATA, ln.sgd(), **settings)


def test_factors_beside_a_lazy_function_move_its_weights():
    function = low_rank.Lora(ln.lazy(MODEL.apply, PARAMS, 1e8))
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    start = {"factors": low_rank.factors(KEY, PARAMS, rank=1), "weights": zero}
    with pytest.raises(ValueError, match="moved weights of norm"):
        diagnostics.is_lazy(function, start, DATA, steps=1, learning_rate=1e-6, iterations=1)
    with pytest.raises(ValueError, match="cannot train a lazy function"):
        check_optimizer(ln.objective(function, ln.mse), optax.adam(1.0))


def test_a_model_with_factors_pickles():
    model = ln.lora(MODEL, rank=1, where=functools.partial(str.endswith, "W"))
    back = pickle.loads(pickle.dumps(ln.lora(MODEL, rank=1)))
    params = back.init(KEY, X)
    np.testing.assert_array_equal(back.apply(params, X), model.apply(params, X))


REFUSALS = {
    "nothing": (
        lambda: selected(lambda path: False, PARAMS),
        ValueError,
        "selects none.*0_Dense/W",
    ),
    "text": (
        lambda: selected("W", PARAMS),
        TypeError,
        "where got 'W', expected a function of paths",
    ),
    "another tree": (lambda: selected({"a": True}, PARAMS), ValueError, "where has the structure"),
    "no matrix": (
        lambda: low_rank.factors(KEY, PARAMS, rank=1, where=lambda path: path.endswith("b")),
        ValueError,
        "no weight of two or more axes",
    ),
    "no model": (lambda: ln.lora(general, rank=1), TypeError, "expected a Model.*Lora"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_choice_is_refused(name, unannotated):
    attempt, error, message = REFUSALS[name]
    with pytest.raises(error, match=f"(?s){message}"):
        attempt()
