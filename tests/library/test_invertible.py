"""Facts about invertible networks: what comes back, with which error, and what training them keeps in memory."""

from __future__ import annotations

import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from marks import extended_but

import lazynet as ln
from lazynet import diagnostics, zoo
from lazynet.models.model import plain

# Of the many compilations here a plain run would take minutes.
pytestmark = pytest.mark.extended

KEY = jax.random.key(0)
DEPTH = 50


def chain(depth, gain, width=32):
    """Couplings of vectors whose branches have the Lipschitz constant of a random two-layer network, times the gain."""
    branch = ln.serial(ln.Dense(width, 2**0.5), ln.Relu(), ln.Dense(8, gain))
    return ln.repeat(ln.coupling(branch), depth)


def images(depth, gain):
    """Couplings of images of four channels."""
    branch = ln.serial(
        ln.Conv(8, (3, 3), padding="SAME", W_std=2**0.5),
        ln.Relu(),
        ln.Conv(2, (3, 3), padding="SAME", W_std=gain),
    )
    return ln.repeat(ln.coupling(branch), depth)


def error(model, x):
    """`|x - inverse(apply(x))| / |x|`."""
    params = model.init(KEY, x)
    back = ln.inverse(model, params, model.apply(params, x))
    return float(jnp.linalg.norm(back - x) / jnp.linalg.norm(x))


def test_a_coupling_adds_to_one_half_what_the_branch_makes_of_the_other_and_swaps_them():
    branch = ln.serial(ln.Dense(5), ln.Relu(), ln.Dense(3))
    model = ln.coupling(branch)
    x = normal(1, 4, 6)
    params = model.init(KEY, x)
    a, b = x[:, :3], x[:, 3:]
    expected = jnp.concatenate([b, a + branch.apply(params["0_serial"], b)], axis=1)
    np.testing.assert_array_equal(model.apply(params, x), expected)


def test_squeeze_keeps_the_pixels_of_a_channel_together_so_that_each_half_is_squeezed_by_itself():
    x = normal(2, 2, 4, 6, 4)
    squeeze = ln.squeeze()
    y = squeeze.apply({}, x)
    assert y.shape == (2, 2, 3, 16)
    np.testing.assert_array_equal(y[1, 1, 2, 4:8], x[1, 2:4, 4:6, 1].ravel())
    np.testing.assert_array_equal(y[..., :8], squeeze.apply({}, x[..., :2]))
    np.testing.assert_array_equal(ln.inverse(squeeze, {}, y), x)


def test_the_inverse_of_inject_leaves_out_the_new_channels_whatever_they_hold():
    y = normal(3, 2, 4, 4, 5)
    np.testing.assert_array_equal(ln.inverse(ln.inject(2), {}, y), y[..., :3])


def test_inverse_undoes_serials_of_serials():
    x = normal(4, 2, 8, 8, 3)
    model = ln.serial(ln.inject(1), ln.Identity(), zoo.irevnet((1, 2), None, width=4, channels=4))
    params = model.init(KEY, x)
    np.testing.assert_allclose(
        ln.inverse(model, params, model.apply(params, x)), x, rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("make", [chain, images])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(jnp.float32, 1e-5), (jnp.float64, 1e-13)], ids=["float32", "float64"]
)
def test_fifty_couplings_of_gain_one_over_root_depth_come_back_to_rounding(make, dtype, bound):
    x = normal(5, 4, 16) if make is chain else normal(5, 2, 8, 8, 4)
    assert error(make(DEPTH, 1 / math.sqrt(DEPTH)), x.astype(dtype)) < bound


def test_the_error_grows_with_the_gain_of_the_branches_until_nothing_comes_back_in_float32():
    x = normal(5, 4, 16)
    single = [error(chain(DEPTH, gain), x.astype(jnp.float32)) for gain in (0.14, 0.5, 1.0)]
    assert single[0] < 1e-5 and single[1] < 1e-2 and single[2] > 1
    assert error(chain(DEPTH, 0.5), x) < 1e-9


def test_the_error_grows_exponentially_with_depth_at_gain_one_and_hardly_at_one_over_root_depth():
    x = normal(5, 4, 16)
    depths = [10, 20, 40]
    at_one = np.log10([error(chain(depth, 1.0), x) for depth in depths])
    scaled = np.log10([error(chain(depth, depth**-0.5), x) for depth in depths])
    rate = np.polyfit(depths, at_one, 1)[0]
    assert rate > 0.15
    assert abs(np.polyfit(depths, scaled, 1)[0]) < rate / 5


@pytest.mark.extended
@pytest.mark.parametrize("make", [chain, images])
def test_gradients_from_reconstructed_activations_are_the_plain_ones(make):
    x = normal(6, 4, 16) if make is chain else normal(6, 2, 8, 8, 4)
    model = make(10, 10**-0.5)
    again = ln.reversible(model)
    params = model.init(KEY, x)

    def loss(apply, params, x):
        return jnp.sum(jnp.sin(apply(params, x)))

    expected = jax.grad(loss, argnums=(1, 2))(model.apply, params, x)
    found = jax.grad(loss, argnums=(1, 2))(again.apply, params, x)
    np.testing.assert_array_equal(again.apply(params, x), model.apply(params, x))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


def memory_of_an_image(model):
    """Bytes that the compiler reserves for an image in a gradient, whatever it reserves for the weights."""
    params = model.init(KEY, jnp.zeros((1, 16, 16, 4), jnp.float32))
    gradient = jax.jit(jax.grad(lambda params, x: jnp.sum(model.apply(params, x) ** 2)))

    def temporary(n):
        batch = jax.ShapeDtypeStruct((n, 16, 16, 4), jnp.float32)
        return gradient.lower(params, batch).compile().memory_analysis().temp_size_in_bytes

    return (temporary(64) - temporary(16)) / (64 - 16)


@pytest.mark.extended
def test_the_memory_of_a_gradient_does_not_grow_with_depth_where_activations_are_computed_again():
    plainly = [memory_of_an_image(images(depth, depth**-0.5)) for depth in (10, 50)]
    again = [memory_of_an_image(ln.reversible(images(depth, depth**-0.5))) for depth in (10, 50)]
    assert again[1] < 1.1 * again[0]
    assert plainly[1] > 4 * plainly[0]


def head(body):
    return ln.serial(body, ln.Dense(2))


BODY = chain(3, 0.5, width=8)
PLAIN, REVERSIBLE = head(BODY), head(ln.reversible(BODY))
X = normal(8, 3, 16)
PARAMS = PLAIN.init(KEY, X)
CHANGED = jax.tree.map(lambda w: 1.1 * w, PARAMS)


def test_a_backward_pass_of_its_own_forbids_forward_derivatives_and_plain_has_them():
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda w: REVERSIBLE.apply(w, X), (PARAMS,), (PARAMS,))
    assert plain(PLAIN.apply) is PLAIN.apply and plain(jnp.sin) is jnp.sin
    assert plain(REVERSIBLE.apply) is plain(REVERSIBLE.apply)
    jax.jvp(lambda w: plain(REVERSIBLE.apply)(w, X), (PARAMS,), (PARAMS,))


TAKEN = {
    "linearize": lambda apply: ln.linearize(apply, PARAMS)(CHANGED, X),
    "taylor_expand": lambda apply: ln.taylor_expand(apply, PARAMS, 2)(CHANGED, X),
    "lazy at inf": lambda apply: ln.lazy(apply, PARAMS, math.inf)(CHANGED, X),
    "lazy at 10": lambda apply: ln.lazy(apply, PARAMS, 10.0)(CHANGED, X),
    "linearize of lazy": lambda apply: ln.linearize(
        ln.lazy(apply, PARAMS, 10.0), jax.tree.map(jnp.zeros_like, PARAMS)
    )(CHANGED, X),
    "in another precision": lambda apply: ln.linearize(ln.compute_in(apply, jnp.float32), PARAMS)(
        CHANGED, X
    ),
    "hessian_norm": lambda apply: diagnostics.hessian_norm(
        apply, PARAMS, X, key=KEY, iterations=2, restarts=1
    ),
    "jacobian_norm": lambda apply: diagnostics.jacobian_norm(apply, PARAMS, X, key=KEY),
    "empirical_ntk": lambda apply: ln.empirical_ntk(apply, PARAMS, X),
    "ntk_vector_product": lambda apply: ln.ntk_vector_product(apply, PARAMS, X)(jnp.ones((3, 2))),
    "tangent_at": lambda apply: diagnostics.tangent_at(apply, PARAMS).kernel(X),
}


@pytest.mark.parametrize("name", extended_but(TAKEN, "linearize", "lazy at inf", "empirical_ntk"))
def test_whoever_needs_forward_derivatives_takes_the_plain_function(name):
    np.testing.assert_allclose(
        TAKEN[name](REVERSIBLE.apply), TAKEN[name](PLAIN.apply), rtol=1e-9, atol=1e-11
    )


@pytest.mark.extended
def test_reversible_models_train_like_plain_ones():
    data = ln.Data(X, jnp.asarray(np.eye(3, 2)))
    ends = [
        ln.train(
            ln.objective(ln.lazy(model.apply, PARAMS, 2.0), ln.mse),
            jax.tree.map(jnp.zeros_like, PARAMS),
            data,
            ln.sgd(momentum=0.9),
            key=KEY,
            save_at=[0, 5],
            learning_rate=0.01,
        ).metrics["train_loss"]
        for model in (PLAIN, REVERSIBLE)
    ]
    np.testing.assert_allclose(*ends, rtol=1e-12)


def test_reversible_models_pickle_and_equal_ones_are_one():
    assert pickle.loads(pickle.dumps(REVERSIBLE)) == REVERSIBLE == head(ln.reversible(BODY))
    linear = ln.linearize(REVERSIBLE.apply, {})
    assert pickle.loads(pickle.dumps(linear)).apply.func is linear.apply.func


def test_the_linearized_network_is_not_inverted_by_the_network_s_inverse():
    params = BODY.init(KEY, X)
    moved = jax.tree.map(lambda w, v: w + 0.3 * v, params, BODY.init(jax.random.key(1), X))
    tangent = ln.linearize(BODY.apply, params)(moved, X)
    exact = BODY.apply(moved, X)
    assert jnp.linalg.norm(ln.inverse(BODY, moved, exact) - X) < 1e-12
    assert jnp.linalg.norm(ln.inverse(BODY, moved, tangent) - X) > 0.1 * jnp.linalg.norm(X)


def test_a_frozen_member_has_an_inverse_and_no_gradient():
    model = ln.reversible(ln.serial(ln.freeze(chain(2, 0.5)), ln.coupling(ln.Dense(8))))
    params = model.init(KEY, X)
    gradient = jax.grad(lambda w: jnp.sum(model.apply(w, X) ** 2))(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["0_repeat"]))
    assert gradient["1_coupling"]["0_Dense"]["W"].any()
    np.testing.assert_allclose(ln.inverse(model, params, model.apply(params, X)), X, atol=1e-13)


def test_the_trace_of_a_coupling_holds_its_input_and_output_and_the_inside_of_its_branch():
    y, inside = BODY.trace(BODY.init(KEY, X), X)
    assert "2_coupling/0_serial/1_Relu" in inside
    np.testing.assert_array_equal(inside["2_coupling"][1], y)
    np.testing.assert_array_equal(inside["1_coupling"][1], inside["2_coupling"][0])


# ---- the infinite-width limit


def limit(width, last=1.0):
    """Stem, couplings of every kind of branch, and a head on vectors."""
    branches = [
        ln.serial(ln.Dense(width, 1.5), ln.Relu(), ln.Dense(width, 0.7, 0.3)),
        ln.serial(ln.Relu(), ln.Dense(width, 1.2)),
        ln.Dense(width, 0.8),
    ]
    return ln.serial(
        ln.Dense(2 * width, 1.1, 0.2), *map(ln.coupling, branches), ln.coupling(branches[0]),
        ln.Dense(8, last),
    )  # fmt: skip


def convolutions(width):
    """Stem, couplings and squeezes of images, and a pooled head."""

    def branch(c):
        return ln.serial(
            ln.Conv(width, padding="SAME", W_std=1.5), ln.Relu(), ln.Conv(c, padding="SAME")
        )

    return ln.serial(
        ln.squeeze(),
        ln.Conv(2 * width, padding="SAME", W_std=1.2, b_std=0.1),
        ln.coupling(branch(width)),
        ln.coupling(branch(width)),
        ln.squeeze(),
        ln.coupling(branch(4 * width)),
        ln.coupling(branch(4 * width)),
        ln.GlobalAvgPool(),
        ln.Dense(8),
    )


def distance(model, x, samples):
    """Largest distance of the limit from the mean over finite networks, in standard errors, and relative."""
    exact = ln.analytic_kernel(model, x)
    mean, deviation = ln.monte_carlo_kernel(model, KEY, x, n_samples=samples)
    return [
        (float((abs(a - b) / s).max()), float((abs(a - b) / abs(a).max()).max()))
        for a, b, s in zip(exact, mean, deviation, strict=True)
    ]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("model", "x", "samples"),
    [
        (limit(256), normal(9, 3, 5), 60),
        (convolutions(48), normal(10, 2, 8, 8, 2), 24),
    ],
    ids=["vectors", "images"],
)
def test_the_limit_of_couplings_is_the_mean_over_wide_networks(model, x, samples):
    for errors, relative in distance(model, x, samples):
        # four standard errors, and the bias of finite width
        assert errors < 4 or relative < 0.02


def test_one_linear_coupling_after_a_stem_has_its_limit_by_hand():
    x = normal(11, 2, 3)
    s = x @ x.T / 3
    model = ln.serial(ln.Dense(4), ln.coupling(ln.Dense(2, 0.5)), ln.Dense(1))
    gram = ln.analytic_kernel(model, x)
    a, b = s, s + 0.25 * s
    np.testing.assert_allclose(gram.nngp, (a + b) / 2, rtol=1e-12)
    tangent_a, tangent_b = s, s + 0.25 * s + 0.25 * s
    np.testing.assert_allclose(gram.ntk, (tangent_a + tangent_b) / 2 + gram.nngp, rtol=1e-12)


@pytest.mark.extended
def test_a_deep_network_of_couplings_is_a_loop_with_the_result_of_its_layers():
    x = normal(12, 3, 4)
    branch = ln.serial(ln.Dense(2, 1.2), ln.Relu(), ln.Dense(2, 0.3))
    body = [ln.coupling(branch) for _ in range(20)]
    deep = ln.serial(ln.Dense(4), *body, ln.Dense(1))
    shallow = ln.serial(
        ln.Dense(4), *(ln.serial(*body[i : i + 5]) for i in (0, 5, 10, 15)), ln.Dense(1)
    )
    for one, other in zip(ln.analytic_kernel(deep, x), ln.analytic_kernel(shallow, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


@pytest.mark.extended
def test_irevnet_has_a_limit_with_a_stem_and_none_with_injected_zeros():
    x = jnp.ones((2, 4, 4, 3))
    gram = ln.analytic_kernel(zoo.irevnet((1, 1), stem=True, injected=1), x)
    assert float(gram.ntk[0, 1]) > 0
    with pytest.raises(ValueError, match=r"inject\(1\) has no infinite-width limit"):
        ln.analytic_kernel(zoo.irevnet((1,), injected=1), x)
    with pytest.raises(ValueError, match="before the first coupling"):
        ln.analytic_kernel(zoo.irevnet((1,)), x)


# ---- what is refused


REFUSED = {
    "an odd number of channels": (
        lambda: ln.coupling(ln.Dense(1)).init(KEY, jnp.ones((2, 3))),
        "3 channels .* expected an even number",
    ),
    "a branch that changes the shape": (
        lambda: jax.eval_shape(
            lambda x: ln.coupling(ln.Dense(2)).apply(
                ln.coupling(ln.Dense(2)).init(KEY, x), x
            ),
            jnp.ones((2, 6)),
        ),
        r"shape \(2, 2\), expected \(2, 3\)",
    ),
    "an image that is no whole number of blocks": (
        lambda: ln.squeeze().apply({}, jnp.ones((1, 3, 4, 1))),
        "multiples of 2",
    ),
    "vectors to squeeze": (lambda: ln.squeeze().apply({}, jnp.ones((1, 4))), "expected images"),
    "a layer without an inverse": (
        lambda: ln.inverse(ln.serial(ln.serial(ln.squeeze(), ln.Relu())), {}, X),
        "layer 0_serial/1_Relu has no inverse",
    ),
    "a head within reversible": (
        lambda: ln.reversible(zoo.irevnet((1,), 10)),
        "layer 2_Dense has no inverse",
    ),
    "a branch that ends in an activation, in the limit": (
        lambda: ln.analytic_kernel(
            ln.serial(ln.Dense(4), ln.coupling(ln.Relu()), ln.Dense(1)), jnp.ones((1, 2))
        ),
        "end the branch in Dense or Conv",
    ),
    "an activation after couplings, in the limit": (
        lambda: ln.analytic_kernel(
            ln.serial(ln.Dense(4), ln.coupling(ln.Dense(2)), ln.Relu(), ln.Dense(1)),
            jnp.ones((1, 2)),
        ),
        "Relu got activations that are not Gaussian",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_inverse_or_no_limit_is_refused(what):
    call, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("make", [ln.coupling, ln.reversible, lambda f: ln.inverse(f, {}, X)])
def test_what_is_no_model_is_refused(make, unannotated):
    with pytest.raises(TypeError, match="expected a Model"):
        make(ln.Relu)
