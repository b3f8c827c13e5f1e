"""Facts about options of training: precision, rematerialization, augmentation and learning rates."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from draws import initial, normal

import lazynet as ln
from lazynet import trees
from lazynet.datasets import crop_and_flip
from lazynet.precision import compute_in, remat

KEY = jax.random.key(0)
X = normal(1, 12, 6, dtype=np.float32)
DATA = ln.Data(X, jnp.asarray(np.sin(np.asarray(X)[:, :2])))
MODEL = ln.serial(ln.Dense(32, 1.5, 0.1), ln.Erf(), ln.Dense(2))
PARAMS = initial(0, MODEL, X)
IMAGES = normal(2, 20, 6, 5, 3)
SETTINGS = dict(key=KEY, learning_rate=0.1)


def _relative(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


@pytest.mark.extended
def test_outputs_in_bfloat16_agree_to_its_rounding_and_have_the_type_of_the_weights():
    outputs = compute_in(MODEL.apply, jnp.bfloat16)(PARAMS, X)
    assert outputs.dtype == jnp.float32
    assert 0 < _relative(outputs, MODEL.apply(PARAMS, X)) < 4 * 2.0**-8


@pytest.mark.extended
def test_the_tangent_model_in_bfloat16_agrees_to_its_rounding():
    u = jax.tree.map(lambda w: 1e-4 * jnp.cos(w), PARAMS)
    exact = ln.lazy(MODEL.apply, PARAMS, math.inf)(u, X)
    rounded = ln.lazy(compute_in(MODEL.apply, jnp.bfloat16), PARAMS, math.inf)(u, X)
    assert rounded.dtype == jnp.float32 and 0 < _relative(rounded, exact) < 8 * 2.0**-8


@pytest.mark.extended
def test_training_in_bfloat16_keeps_float32_weights_and_reaches_the_loss_of_float32():
    goals = [
        ln.objective(apply, ln.mse)
        for apply in (MODEL.apply, compute_in(MODEL.apply, jnp.bfloat16))
    ]
    exact, rounded = (
        ln.train(goal, PARAMS, DATA, ln.sgd(0.9), save_at=[0, 60], **SETTINGS) for goal in goals
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.params)} == {jnp.dtype(jnp.float32)}
    assert rounded.metrics["train_loss"][-1] < 0.05 * rounded.metrics["train_loss"][0]
    np.testing.assert_allclose(
        rounded.metrics["train_loss"][0], exact.metrics["train_loss"][0], rtol=0.02
    )


def test_a_computation_in_integers_is_refused():
    with pytest.raises(TypeError, match=r"dtype=.*int32.*expected a floating-point type"):
        compute_in(MODEL.apply, jnp.int32)


def _deep(wrap):
    block = ln.serial(*[ln.Dense(64), ln.Erf()] * 4)
    return ln.serial(*[wrap(block)] * 8, ln.Dense(1))


@pytest.mark.extended
def test_rematerialized_blocks_have_the_same_values_and_gradients_and_keep_fewer_bytes():
    x = jax.random.normal(KEY, (512, 64), jnp.float32)
    plain, thrifty = _deep(lambda block: block), _deep(remat)
    params = plain.init(KEY, x)
    (value, backward), (same, backward_again) = (
        _mean_square(m, params, x) for m in (plain, thrifty)
    )
    assert value == same
    for a, b in zip(
        *(jax.tree.leaves(g(jnp.ones_like(value))) for g in (backward, backward_again)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert _bytes(backward_again) - _bytes(params) < 0.2 * (_bytes(backward) - _bytes(params))


@pytest.mark.extended
def test_what_is_computed_again_stands_behind_a_barrier_in_the_compiled_program():
    x = jax.random.normal(KEY, (8, 64), jnp.float32)
    model = _deep(remat)
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(model.apply(p, x) ** 2)))
    assert gradient.lower(model.init(KEY, x)).as_text().count("optimization_barrier") >= 8


@pytest.mark.extended
def test_a_rematerialized_block_keeps_its_kernel_and_its_layers_known():
    block = ln.serial(ln.Dense(8), ln.Erf(), ln.Dense(2))
    assert jax.tree.structure(remat(block).init(KEY, X)) == jax.tree.structure(block.init(KEY, X))
    np.testing.assert_array_equal(*(ln.analytic_kernel(m, X).ntk for m in (block, remat(block))))
    np.testing.assert_allclose(
        *(ln.empirical_ntk(m.apply, block.init(KEY, X), X) for m in (block, remat(block))),
        rtol=1e-5,
    )


def _mean_square(model, params, x):
    return jax.vjp(lambda p: jnp.mean(model.apply(p, x) ** 2), params)


def _bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.extended
def test_an_augmented_image_is_a_crop_of_the_padded_image_or_its_mirror():
    augmented = np.asarray(crop_and_flip(KEY, IMAGES, padding=2))
    assert augmented.shape == IMAGES.shape and augmented.dtype == IMAGES.dtype
    padded = np.pad(np.asarray(IMAGES), ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, source in zip(augmented, padded, strict=True):
        crops = {
            (a, b, m): source[a : a + 6, b : b + 5][:, ::m]
            for a in range(5)
            for b in range(5)
            for m in (1, -1)
        }
        found = [name for name, crop in crops.items() if np.array_equal(crop, image)]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 10 and {m for _, _, m in seen} == {1, -1}


@pytest.mark.extended
def test_moves_and_mirrors_are_uniform():
    corner = jnp.zeros((3000, 3, 3, 1)).at[:, 1, 0].set(1.0)
    places = np.argwhere(np.asarray(crop_and_flip(KEY, corner, padding=1))[..., 0])
    counts = np.bincount(places[:, 1] * 3 + places[:, 2], minlength=9)
    expected = 3000 / 3 * np.array([1 / 6 + 0, 1 / 3 * 1, 1 / 6] * 3)
    np.testing.assert_allclose(counts, expected, atol=4 * math.sqrt(3000 / 9))


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding got -1, expected"):
        crop_and_flip(KEY, IMAGES, padding=-1)


def _train_images(**settings):
    data = ln.Data(IMAGES, jnp.ones((20, 1)))
    goal = ln.objective(lambda w, x: jnp.tanh(x.reshape(len(x), -1) @ w), ln.mse)
    start = jnp.zeros((90, 1))
    return ln.train(
        goal, start, data, ln.sgd(0.9), batch_size=4, augment=crop_and_flip, **SETTINGS, **settings
    )


@pytest.mark.extended
def test_augmented_training_resumes_bit_identically():
    saved = {}
    whole = _train_images(
        save_at=[3, 7, 15], on_save=lambda state, curve: saved.update({state.step: (state, curve)})
    )
    resumed = _train_images(save_at=[3, 7, 15], resume=saved[7])
    np.testing.assert_array_equal(whole.params, resumed.params)
    np.testing.assert_array_equal(whole.metrics["train_loss"], resumed.metrics["train_loss"])


@pytest.mark.extended
def test_the_augmentation_gets_another_key_at_every_step_and_sees_no_evaluation():
    keys, data = [], ln.Data(IMAGES, jnp.ones((20, 1)))

    def augment(key, x):
        jax.debug.callback(
            lambda bits: keys.append(tuple(np.asarray(bits).tolist())), jax.random.key_data(key)
        )
        return x

    goal = ln.objective(lambda w, x: x.reshape(len(x), -1) @ w, ln.mse)
    settings = dict(save_at=[0, 6], augment=augment, **SETTINGS)
    curve = ln.train(goal, jnp.zeros((90, 1)), data, ln.sgd(), **settings)
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 6
    plain = ln.train(goal, jnp.zeros((90, 1)), data, ln.sgd(), **settings | {"augment": None})
    np.testing.assert_array_equal(curve.metrics["train_loss"], plain.metrics["train_loss"])


class _Unhashable(list):
    def __call__(self, key, x):
        return x


def test_an_augmentation_that_cannot_be_compiled_once_is_refused():
    goal = ln.objective(MODEL.apply, ln.mse)
    with pytest.raises(
        TypeError, match=r"augment got \[\], expected a function of \(key, x\) that can be hashed"
    ):
        ln.train(goal, PARAMS, DATA, ln.sgd(), save_at=[1], augment=_Unhashable(), **SETTINGS)


def test_the_rate_of_the_paper_decays_once_an_epoch():
    rate = ln.inverse_epoch_decay(0.3, 10)
    np.testing.assert_allclose(
        [rate(step) for step in (0, 9, 10, 29, 30)], 0.3 / np.array([1, 1, 4 / 3, 5 / 3, 2])
    )
    goal = ln.objective(lambda w, x: x @ w, ln.mse)
    settings = dict(
        key=KEY, save_at=[9], batch_size=4, learning_rate=ln.inverse_epoch_decay(0.3, 3)
    )
    curve = ln.train(goal, jnp.zeros((6, 2), jnp.float32), DATA, ln.sgd(), **settings)
    np.testing.assert_allclose(curve.time[-1], 3 * 0.3 * (1 + 3 / 4 + 3 / 5), rtol=1e-12)


@pytest.mark.parametrize(
    ("rate", "steps", "decay", "named"),
    [
        (0.1, 0, 0.3, "steps_per_epoch got 0"),
        (0.1, 5, -1.0, "decay got -1.0"),
        (math.nan, 5, 0.3, "rate got nan"),
    ],
)
def test_impossible_decays_are_refused(rate, steps, decay, named):
    with pytest.raises(ValueError, match=named):
        ln.inverse_epoch_decay(rate, steps, decay=decay)


def test_weights_in_half_precision_stay_so_where_the_optimizer_has_more_digits():
    data = ln.Data(jnp.eye(2, dtype=jnp.bfloat16), jnp.ones((2, 1), jnp.bfloat16))
    goal = ln.objective(lambda w, x: x @ w, ln.mse)
    start = jnp.zeros((2, 1), jnp.bfloat16)
    sum_of = optax.GradientTransformation(
        lambda params: params.astype(jnp.float32),
        lambda grads, state, params: (-grads.astype(jnp.float32), state),
    )
    curve = ln.train(goal, start, data, sum_of, key=KEY, save_at=[1])
    assert curve.params.dtype == jnp.bfloat16 and curve.params.tolist() == [[0.5], [0.5]]
    # 1 + 2^-8 is half way between two numbers of bfloat16, which the update alone is not.
    moved = trees.add_scaled(jnp.ones(1, jnp.bfloat16), 1.0, jnp.full(1, 0.0039064, jnp.float32))
    assert float(moved[0]) == 1 + 2**-7
