"""Programs of neural-tangents after `import lazynet.dropin as nt`: against its own kernels, and path against path."""

from __future__ import annotations

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dropin_networks import CASES, FIELDS, FILE, inputs, kernels
from marks import extended

import lazynet.dropin as nt
from lazynet.dropin import predict, stax

# Of the many compilations here a plain run would take minutes.
pytestmark = pytest.mark.extended

RNG = np.random.default_rng(0)
X1 = jnp.asarray(RNG.normal(size=(4, 3)))
X2 = jnp.asarray(RNG.normal(size=(2, 3)))
LINES = jnp.asarray(RNG.normal(size=(3, 5, 2)))
KEY = jax.random.key(0)
QUICK = ("line, one set", "examples last", "scalars", "masked pools")
REVERSED = ("transposed, all",)
"""After an odd number of convolutions the original gives axes of positions from last to first."""

FULLY_CONNECTED = stax.serial(stax.Dense(8, 1.3, 0.2), stax.Relu(), stax.Dense(2, 1.1))


@functools.cache
def golden():
    with np.load(FILE) as arrays:
        return {name: arrays[name] for name in arrays.files}


def close(a, b, tolerance=1e-10):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-30)


@pytest.mark.parametrize("name", [n if n in QUICK else extended(n) for n in CASES])
def test_kernels_are_those_of_neural_tangents(name):
    found = kernels(CASES[name], stax)
    for field in FIELDS:
        expected = golden().get(f"{name}/{field}")
        assert (expected is None) == (found.get(field) is None)
        if expected is not None:
            if expected.ndim > found[field].ndim:
                # after two products with constants the original keeps pairs of examples
                expected = np.moveaxis(np.diagonal(expected, axis1=0, axis2=1), -1, 0)
            if name in REVERSED:
                pairs = expected.ndim - 4
                expected = np.moveaxis(expected, (-2, -1), (pairs, pairs + 1))
            # the original takes a cancelling square root where correlations are one
            close(found[field], expected, 1e-6 if field == "ntk" else 1e-9)


def test_get_takes_any_field_in_any_order_and_case():
    kernel_fn = FULLY_CONNECTED[2]
    found = kernel_fn(X1, X2, ("NTK", "cov1", "shape2", "is_gaussian"))
    assert found._fields == ("ntk", "cov1", "shape2", "is_gaussian")
    assert found.shape2 == (2, 2) and found.is_gaussian
    close(found.cov1, jnp.diagonal(kernel_fn(X1, None, "nngp")))
    close(found.ntk, kernel_fn(X1, X2).ntk)


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="cov1, cov2"):
        FULLY_CONNECTED[2](X1, None, "variance")


def test_kernels_of_kernels_are_those_of_the_composition():
    block = stax.serial(stax.Dense(8, 1.3, 0.2), stax.Erf())
    both = stax.serial(block, block)[2]
    for xs in ((X1,), (X1, X2)):
        composed, expected = block[2](block[2](*xs)), both(*xs)
        for field in ("nngp", "ntk", "cov1"):
            close(getattr(composed, field), getattr(expected, field))
        assert composed.shape1 == expected.shape1 and composed.is_gaussian == expected.is_gaussian


@pytest.mark.extended
def test_a_readout_of_a_kernel_of_images_is_the_network():
    block = stax.serial(stax.Conv(4, (2,)), stax.Relu())
    readout = stax.serial(stax.Conv(4, (2,)), stax.GlobalAvgPool(), stax.Dense(1))
    close(readout[2](block[2](LINES)).ntk, stax.serial(block, readout)[2](LINES).ntk)


@pytest.mark.extended
def test_a_pool_refuses_a_kernel_of_equal_positions():
    block = stax.serial(stax.Conv(4, (2,)), stax.Relu())
    with pytest.raises(ValueError, match="diagonal_spatial=False"):
        stax.GlobalAvgPool()[2](block[2](LINES, diagonal_spatial=True))


def test_a_kernel_made_by_hand_goes_through_and_is_differentiated():
    kernel_fn = stax.serial(stax.Dense(4, 1.5, 0.3), stax.Erf())[2]

    def correlation(c):
        given = jnp.array([[1.0, c], [c, 1.0]])
        kernel = nt.Kernel(
            nngp=given,
            ntk=None,
            cov1=jnp.diag(given),
            cov2=None,
            x1_is_x2=True,
            is_gaussian=True,
            shape1=(2, 1024),
            shape2=(2, 1024),
        )
        return kernel_fn(kernel).nngp[0, 1]

    def expected(c):
        q, s = 1.5**2 + 0.3**2, 1.5**2 * c + 0.3**2
        return 2 / jnp.pi * jnp.arcsin(2 * s / (1 + 2 * q))

    close(correlation(0.4), expected(0.4))
    close(jax.grad(correlation)(0.4), jax.grad(expected)(0.4))


def test_replace_changes_one_field_and_keeps_the_others():
    kernel = FULLY_CONNECTED[2](X1)
    changed = kernel.replace(ntk=None)
    assert changed.ntk is None and changed.shape1 == kernel.shape1
    np.testing.assert_array_equal(changed.nngp, kernel.nngp)


def test_kernels_pass_through_jit_as_trees():
    kernel_fn = FULLY_CONNECTED[2]
    compiled = jax.jit(kernel_fn, static_argnames="get")
    close(compiled(X1, X2).ntk, kernel_fn(X1, X2).ntk)
    close(compiled(X1, X2, "cov2"), kernel_fn(X1, X2, "cov2"))


@pytest.mark.extended
def test_equal_positions_alone_are_the_diagonal_of_all_pairs():
    kernel_fn = stax.serial(stax.Conv(4, (2,), padding="SAME"), stax.Relu(), stax.Conv(4, (3,)))[2]
    pairs = kernel_fn(LINES)
    alone = kernel_fn(LINES, diagonal_spatial=True)
    close(alone.ntk, jnp.einsum("ijaa->ija", pairs.ntk))
    close(alone.cov1, jnp.einsum("iaa->ia", pairs.cov1))


@pytest.mark.extended
def test_planes_and_positions_give_one_kernel_of_images():
    x = jnp.asarray(RNG.normal(size=(3, 4, 3, 2)))
    network = stax.serial(
        stax.Conv(4, (2, 2), None, "SAME", 1.3, 0.2),
        stax.Relu(),
        stax.GlobalAvgPool(),
        stax.Dense(1),
    )
    planes, positions = network[2](x), network[2](x, diagonal_spatial=False)
    for field in ("nngp", "ntk", "cov1"):
        close(getattr(planes, field), getattr(positions, field))
    assert planes.shape1 == positions.shape1


def test_several_inputs_and_outputs_have_kernels_in_their_order():
    network = stax.serial(
        stax.parallel(stax.Dense(4, 1.3), stax.serial(stax.Dense(4), stax.Relu(), stax.Dense(4))),
        stax.FanInSum(),
        stax.FanOut(2),
        stax.parallel(stax.Dense(1, 2.0), stax.Dense(3)),
    )
    first, second = network[2]((X1, X1[:, :2]), (X2, X2[:, :2]), "nngp")
    close(first, 4 * second)
    branches = [stax.Dense(4, 1.3)[2](X1, X2, "nngp")]
    branches.append(
        stax.serial(stax.Dense(4), stax.Relu(), stax.Dense(4))[2](X1[:, :2], X2[:, :2], "nngp")
    )
    close(second, branches[0] + branches[1])


@pytest.mark.parametrize(
    "join", [stax.FanInProd(), stax.FanInConcat(0), stax.FanInConcat(1)], ids=["prod", "0", "1"]
)
def test_branches_that_share_their_weights_are_refused_where_they_must_be_independent(join):
    images = np.random.default_rng(0).normal(size=(2, 3, 2))
    forked = (stax.Dense(4), stax.FanOut(2))
    shared = stax.serial(*forked, stax.parallel(stax.Identity(), stax.Identity()), join)
    with pytest.raises(ValueError, match="without weights of their own"):
        shared[2](images, None, "nngp", diagonal_spatial=False)
    one_of_its_own = stax.parallel(stax.Identity(), stax.Dense(4))
    stax.serial(*forked, one_of_its_own, join)[2](images, None, "nngp", diagonal_spatial=False)


def test_a_product_is_that_of_branches_whose_own_weights_lie_before_a_nonlinearity():
    branches = [stax.serial(stax.Dense(4, std), stax.Relu()) for std in (1.3, 0.7)]
    product = stax.serial(stax.FanOut(2), stax.parallel(*branches), stax.FanInProd())
    alone = [branch[2](X1, X2, "nngp") for branch in branches]
    close(product[2](X1, X2, "nngp"), alone[0] * alone[1])


def test_finite_networks_have_the_shapes_that_they_say():
    network = stax.serial(
        stax.FanOut(2),
        stax.parallel(stax.Dense(4), stax.Dense(4)),
        stax.FanInConcat(),
        stax.Dense(3),
    )
    shape, params = network[0](KEY, (-1, 3))
    assert shape == (-1, 3) and network[1](params, X1).shape == (4, 3)


def test_parameters_are_weights_and_biases_in_the_order_of_layers():
    _, params = FULLY_CONNECTED[0](KEY, (-1, 3))
    (W, b), nothing, (V, none) = params
    outputs = jnp.maximum(X1 @ W * (1.3 / 3**0.5) + 0.2 * b, 0) @ V * (1.1 / 8**0.5)
    assert nothing == () and none is None
    close(FULLY_CONNECTED[1](params, X1), outputs)


@pytest.mark.extended
@pytest.mark.parametrize("layer", ["Conv", "ConvTranspose", "ConvLocal"])
def test_dimension_numbers_move_the_axes_of_the_same_layer(layer):
    build = getattr(stax, layer)
    last = build(4, (2, 3), (1, 2), "SAME", 1.2, 0.3)
    first = build(4, (2, 3), (1, 2), "SAME", 1.2, 0.3, ("NCHW", "OIHW", "NCHW"))
    x = jnp.asarray(RNG.normal(size=(2, 4, 3, 2)))
    params, moved = last[0](KEY, x.shape)[1], first[0](KEY, (2, 2, 4, 3))[1]
    outputs = first[1](moved, jnp.moveaxis(x, 3, 1))
    close(jnp.moveaxis(outputs, 1, 3), last[1](params, x))


@pytest.mark.extended
def test_dropout_keeps_the_mean_and_needs_a_key():
    _, apply_fn, _ = stax.Dropout(0.6)
    with pytest.raises(ValueError, match="rng"):
        apply_fn((), X1)
    draws = jax.vmap(lambda key: apply_fn((), X1, rng=key))(jax.random.split(KEY, 4000))
    error = np.std(draws, axis=0, ddof=1) / 4000**0.5
    assert np.all(np.abs(np.mean(draws, axis=0) - X1) < 5 * error)
    np.testing.assert_array_equal(stax.Dropout(0.6, "test")[1]((), X1), X1)


def test_masked_outputs_say_what_is_missing():
    x = jnp.where(jnp.arange(5)[None, :, None] > 2, 7.0, LINES)
    _, apply_fn, _ = stax.serial(stax.Dense(4), stax.Relu())
    params = stax.serial(stax.Dense(4), stax.Relu())[0](KEY, x.shape)[1]
    outputs = apply_fn(params, x, mask_constant=7.0)
    assert outputs.mask.shape == (3, 5, 1) and bool(outputs.mask[0, 3, 0])
    np.testing.assert_array_equal(stax.unmask_fn(apply_fn)(params, x, mask_constant=7.0)[:, 3:], 0)


def test_missing_positions_count_neither_in_means_nor_in_their_kernels():
    x = jnp.where(jnp.arange(5)[None, :, None] > 2, 7.0, LINES)
    network = stax.serial(stax.Dense(4, 1.3, 0.2), stax.Relu(), stax.GlobalAvgPool())
    close(network[2](x, None, "ntk", mask_constant=7.0), network[2](LINES[:, :3], None, "ntk"))
    _, params = network[0](KEY, x.shape)
    outputs = stax.unmask_fn(network[1])(params, x, mask_constant=7.0)
    close(outputs, network[1](params, LINES[:, :3]))


def test_nan_may_stand_for_missing():
    x = jnp.where(jnp.arange(5)[None, :, None] > 2, jnp.nan, LINES)
    network = stax.serial(stax.Dense(4), stax.GlobalSumPool())
    close(
        network[2](x, None, "nngp", mask_constant=jnp.nan), network[2](LINES[:, :3], None, "nngp")
    )
    dropped = stax.serial(stax.Dropout(0.5), stax.Dense(4), stax.Flatten())
    one, two = (dropped[2](x, y, "nngp", mask_constant=jnp.nan) for y in (None, x + 0))
    close(one, two)


@pytest.mark.parametrize(
    "name",
    [
        # These two take a minute or two; golden values hold them too.
        pytest.param("masked, strided", marks=pytest.mark.slow),
        pytest.param("masked norm", marks=pytest.mark.slow),
        "graph",
        "channels of branches",
    ],
)
def test_kernels_are_means_over_finite_networks(name):
    case = CASES[name]
    expression = case.expression.replace("(4,", "(64,").replace("(6,", "(96,")
    network = eval(
        f"serial({expression}, Dense(1))", {n: getattr(stax, n) for n in stax.__all__} | {"np": np}
    )
    (x, _), told = inputs(case)
    if "pattern" in told:
        told["pattern"] = (told["pattern"][0],) * 2
    exact = network[2](jnp.asarray(x), None, ("nngp", "ntk"), **told)
    samples = []
    for i in range(60):
        kernel_fn = nt.monte_carlo_kernel_fn(
            network[0], stax.unmask_fn(network[1]), jax.random.key(i), 1
        )
        samples.append(kernel_fn(jnp.asarray(x), None, ("nngp", "ntk"), **told))
    for field in ("nngp", "ntk"):
        values = np.stack([getattr(sample, field) for sample in samples])
        error = np.std(values, 0, ddof=1) / 60**0.5
        expected = np.asarray(getattr(exact, field))
        assert np.all(
            np.abs(values.mean(0) - expected) < 5 * error + 0.12 * np.max(np.abs(expected))
        )


def test_lists_of_edges_and_matrices_are_one_graph():
    edges = jnp.array([[[0, 1], [3, 2], [0, 1], [-1, -1]]] * 3)
    matrix = jnp.zeros((3, 5, 5)).at[:, 0, 1].set(2.0).at[:, 3, 2].set(1.0)
    dense, sparse = stax.Aggregate(), stax.Aggregate(implementation="SPARSE")
    close(dense[1]((), LINES, pattern=matrix), sparse[1]((), LINES, pattern=edges))
    close(
        dense[2](LINES, None, "nngp", pattern=(matrix, matrix)),
        sparse[2](LINES, None, "nngp", pattern=(edges, edges)),
    )


def test_a_kernel_that_needs_more_memory_is_refused_with_the_number():
    kernel_fn = stax.serial(stax.Dense(4), stax.Relu())[2]
    with pytest.raises(ValueError, match="memory is 1,000 bytes, expected at least 7,200"):
        kernel_fn(LINES, memory=1000)


def test_axes_that_do_not_fit_each_other_are_refused():
    network = stax.serial(stax.Dense(4, channel_axis=1), stax.Dense(4))
    with pytest.raises(ValueError, match="channel_axis"):
        network[2](LINES)


def test_a_custom_layer_maps_kernels_to_kernels():
    @stax.layer
    def Doubled():
        def apply_fn(params, x, **kwargs):
            return 2.0 * x

        return (lambda rng, shape: (shape, ())), apply_fn, (lambda k, **kwargs: 2.0 * k)

    doubled = stax.serial(stax.Dense(4, 1.3), Doubled(), stax.Dense(1))
    close(
        doubled[2](X1, None, "ntk"),
        stax.serial(stax.Dense(4, 1.3), stax.Dense(1, 2.0))[2](X1, None, "ntk"),
    )
    assert Doubled()[2].__name__ == "Doubled"


def test_custom_layers_leave_branches_as_dependent_as_they_come():
    @stax.layer
    def Doubled():
        def apply_fn(params, x, **kwargs):
            return 2.0 * x

        return (lambda rng, shape: (shape, ())), apply_fn, (lambda k, **kwargs: 2.0 * k)

    @stax.layer
    def Residual():
        branches = stax.parallel(stax.Dense(4), stax.Identity())
        return stax.serial(stax.FanOut(2), branches, stax.FanInSum())

    def forked(*branches):
        return stax.serial(
            stax.Dense(4), stax.FanOut(2), stax.parallel(*branches), stax.FanInSum()
        )[2](X1, None, "nngp")

    for custom in (Doubled(), Residual()):
        with pytest.raises(ValueError, match="closed-form limit"):
            forked(custom, stax.Identity())
    one = stax.Dense(4)[2](X1, None, "nngp")
    close(forked(Doubled(), stax.Dense(4)), 5 * one)


@pytest.mark.parametrize("compiled", [False, True], ids=["as it is", "compiled"])
def test_an_unpacked_network_is_the_network(compiled):
    def unpacked(network):
        init_fn, apply_fn, kernel_fn = network
        if compiled:
            return init_fn, jax.jit(apply_fn), jax.jit(kernel_fn, static_argnames="get")
        return init_fn, apply_fn, kernel_fn

    def twice(branch):
        branches = stax.parallel(branch, branch)
        return stax.serial(stax.Dense(4), stax.FanOut(2), branches, stax.FanInSum())

    shortcut = stax.parallel(stax.Dense(4), stax.Identity())
    residual = stax.serial(stax.FanOut(2), shortcut, stax.FanInSum())
    # Every branch draws weights of its own, but both shortcuts are the same pre-activation.
    with pytest.raises(ValueError, match="closed-form limit"):
        twice(unpacked(residual))[2](X1)
    dense = stax.serial(stax.Relu(), stax.Dense(4))
    found = twice(unpacked(dense))[2](X1, None, "ntk")
    np.testing.assert_array_equal(found, twice(dense)[2](X1, None, "ntk"))


def test_a_custom_layer_may_take_masks():
    @stax.layer
    @stax.supports_masking(remask_kernel=True)
    def Shifted():
        def apply_fn(params, x, mask=None, **kwargs):
            return x + 1.0

        return (lambda rng, shape: (shape, ())), apply_fn, (lambda k, **kwargs: k)

    x = jnp.where(jnp.arange(5)[None, :, None] > 2, 7.0, LINES[..., :1])
    outputs = stax.serial(Shifted(), stax.GlobalAvgPool())[1]([(), ()], x, mask_constant=7.0)
    close(outputs.masked_value, jnp.mean(LINES[:, :3, :1], axis=1) + 1.0)
    assert stax.serial(Shifted(), stax.GlobalAvgPool())[2](
        x, None, "nngp", mask_constant=7.0
    ).shape == (3, 3)


@pytest.mark.parametrize("composed", [False, True])
def test_blocks_of_a_kernel_are_the_kernel(composed):
    kernel_fn = stax.serial(stax.Dense(4, 1.3, 0.2), stax.Relu())[2]
    batched = nt.batch(kernel_fn, batch_size=3)
    for xs in ((X1,), (X1, X2)):
        expected, found = kernel_fn(*xs), batched(*xs)
        if composed:
            expected, found = kernel_fn(expected), batched(found)
        for field in ("nngp", "ntk", "cov1", "cov2"):
            value = getattr(expected, field)
            assert value is None or np.allclose(getattr(found, field), value, rtol=1e-10)
        assert found.shape2 == expected.shape2 and bool(found.x1_is_x2) == bool(expected.x1_is_x2)


def test_rectifiers_after_a_pattern_take_opposite_signs():
    pattern = jnp.broadcast_to(jnp.eye(5), (3, 5, 5))
    rectified = stax.serial(stax.Dense(4), stax.Relu())
    network = stax.serial(rectified, stax.Aggregate(), rectified, stax.Flatten())
    found = network[2](LINES, LINES + 1e-9, "nngp", pattern=(pattern, -pattern))
    assert jnp.max(jnp.abs(jnp.diagonal(found))) < 1e-9


def test_one_set_with_two_patterns_has_two_variances():
    kernel_fn = stax.serial(stax.Aggregate(), stax.Dense(4), stax.Relu(), stax.GlobalAvgPool())[2]
    patterns = tuple(jnp.asarray(RNG.normal(size=(2, 3, 5, 5))))
    expected = kernel_fn(LINES, LINES + 0, "nngp", pattern=patterns)
    close(kernel_fn(LINES, None, "nngp", pattern=patterns), expected)


def test_blocks_of_a_kernel_take_get_in_its_place():
    kernel_fn = stax.serial(stax.Relu(), stax.Dense(1))[2]
    kernel = stax.Dense(4)[2](X1)
    close(nt.batch(kernel_fn, 3)(kernel, None, "nngp"), kernel_fn(kernel, None, "nngp"))


def test_examples_are_the_same_where_they_are_in_every_branch():
    merged = stax.serial(stax.parallel(stax.Dense(4), stax.Dense(4)), stax.FanInSum())
    dropped = stax.serial(merged, stax.Dropout(0.5))[2]
    a, b, c = LINES[:, 0], LINES[:, 1], LINES[:, 2]
    close(dropped((a, b), (a, c), "nngp"), merged[2]((a, b), (a, c), "nngp"))


def test_strips_of_devices_know_that_their_examples_are_the_same(monkeypatch):
    module = importlib.import_module("lazynet.dropin.batch")
    monkeypatch.setattr(module, "_devices", lambda count: jax.devices()[:1] * 2)
    kernel_fn = stax.serial(stax.Dense(4), stax.Dropout(0.5), stax.Dense(4), stax.Relu())[2]
    for sets in ((X1, None), (X1, X1 + 0)):
        close(nt.batch(kernel_fn)(*sets, "nngp"), kernel_fn(X1, None, "nngp"))


@pytest.mark.extended
def test_blocks_get_their_part_of_a_pair_of_arguments():
    kernel_fn = stax.serial(stax.Dense(4), stax.Relu(), stax.Aggregate(), stax.GlobalAvgPool())[2]
    pattern = jnp.asarray(RNG.normal(size=(3, 5, 5)))
    expected = kernel_fn(LINES, LINES[:2], "ntk", pattern=(pattern, pattern[1:]))
    found = nt.batch(kernel_fn, 2)(LINES, LINES[:2], "ntk", pattern=(pattern, pattern[1:]))
    close(found, expected)


def mixed(params, x):
    h = jnp.tanh(x @ params["a"]) @ params["b"]
    return h - jnp.mean(h, axis=0, keepdims=True)


PARAMS = {"a": jnp.asarray(RNG.normal(size=(3, 4))), "b": jnp.asarray(RNG.normal(size=(4, 2)))}


def jacobian_kernel(f, x1, x2):
    rows, columns = (
        np.concatenate(
            [
                np.asarray(leaf).reshape(f(PARAMS, x).size, -1)
                for leaf in jax.tree.leaves(jax.jacobian(f)(PARAMS, x))
            ],
            1,
        )
        for x in (x1, x2)
    )
    return (rows @ columns.T).reshape(*f(PARAMS, x1).shape, *f(PARAMS, x2).shape)


@pytest.mark.parametrize("jit", [False, True])
def test_the_kernel_of_examples_that_depend_on_each_other_is_that_of_the_whole_batch(jit):
    ntk_fn = nt.empirical_ntk_fn(mixed, ())
    ntk = (jax.jit(ntk_fn) if jit else ntk_fn)(X1, X2, PARAMS)
    close(ntk, jacobian_kernel(mixed, X1, X2).transpose(0, 2, 1, 3))


def test_every_implementation_gives_the_same_kernel():
    _, params = FULLY_CONNECTED[0](KEY, (-1, 3))
    found = [
        nt.empirical_ntk_fn(FULLY_CONNECTED[1], implementation=i)(X1, None, params)
        for i in nt.NtkImplementation
    ]
    assert len(found) == 4
    for other in found[1:]:
        close(other, found[0])


def test_examples_on_another_axis_have_the_kernel_of_the_first():
    def turned(params, x):
        return jnp.tanh(x.T @ params["a"] @ params["b"]).T

    ntk = nt.empirical_ntk_fn(turned, (0,), vmap_axes=(1, 1))(X1.T, X2.T, PARAMS)
    close(ntk, nt.empirical_ntk_fn(lambda p, x: turned(p, x.T).T)(X1, X2, PARAMS))


def test_trees_of_inputs_and_outputs_have_a_kernel_for_each_output():
    def both(params, xs):
        return {"one": xs[0] @ params["a"], "two": [jnp.tanh(xs[1] @ params["a"])]}

    found = nt.empirical_kernel_fn(both)((X1, 2.0 * X1), None, "ntk", PARAMS)
    close(found["one"], X1 @ X1.T)
    single = nt.empirical_ntk_fn(lambda p, x: jnp.tanh(x @ p["a"]))(2.0 * X1, None, PARAMS)
    close(found["two"][0], single)


def test_pairs_of_keyword_arguments_go_to_either_set():
    def scaled(params, x, gain=1.0):
        return gain * (x @ params["a"])

    found = nt.empirical_ntk_fn(scaled)(X1, X2, PARAMS, gain=(2.0, 3.0))
    close(found, 6.0 * X1 @ X2.T)


def test_linearize_and_taylor_expand_take_any_further_arguments():
    def f(p, x, shift, scale=1.0):
        return {"y": scale * x * p**3 + shift}

    tangent = nt.linearize(f, 2.0)(3.0, 5.0, 1.0, scale=2.0)["y"]
    close(tangent, 2 * 5 * (8 + 12) + 1)
    cubic = nt.taylor_expand(f, 2.0, 3)(3.0, 5.0, 1.0, scale=2.0)["y"]
    close(cubic, 2 * 5 * 27 + 1)


def kernel_of(n, seed=3):
    a = np.random.default_rng(seed).normal(size=(n, n + 2))
    return jnp.asarray(a @ a.T / n)


@pytest.mark.parametrize("trace_axes", [(-1,), (1, 2), (), (-2,)])
def test_targets_of_several_axes_are_those_of_their_matrix(trace_axes):
    y = jnp.asarray(RNG.normal(size=(3, 2, 2)))
    traced = {axis % 3 for axis in trace_axes}
    kept = [axis for axis in range(3) if axis not in traced]
    m = int(np.prod([y.shape[axis] for axis in kept]))
    matrix = kernel_of(m)
    sizes = [y.shape[axis] for axis in kept]
    pairs = [i + len(kept) * j for i in range(len(kept)) for j in (0, 1)]
    kernel = jnp.transpose(matrix.reshape(*sizes, *sizes), pairs)
    order = [*kept, *sorted(traced)]
    flat = jnp.transpose(y, order).reshape(m, -1)
    found = predict.gradient_descent_mse(kernel, y, trace_axes=trace_axes)(2.0)
    expected = flat - jax.scipy.linalg.expm(-matrix * 2.0 / y.size) @ flat
    close(jnp.transpose(found, order).reshape(m, -1), expected, 1e-9)


def test_predictors_under_jit_are_those_outside():
    kernel, y = kernel_of(4), jnp.asarray(RNG.normal(size=(4, 2)))
    start, cross = jnp.asarray(RNG.normal(size=(4, 2))), jnp.asarray(RNG.normal(size=(3, 4)))
    predict_fn = predict.gradient_descent_mse(kernel, y)
    for t in (0.0, 3.0, np.inf, None, jnp.array([[0.0, 2.0]])):
        outside = predict_fn(t, start, jnp.zeros((3, 2)), cross)
        inside = jax.jit(predict_fn)(t, start, jnp.zeros((3, 2)), cross)
        for a, b in zip(inside, outside, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def half(f, y):
    return 0.5 * jnp.mean((f - y) ** 2)


@pytest.mark.extended
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_descent_under_jit_is_that_outside(momentum):
    kernel, y = kernel_of(4), jnp.asarray(RNG.normal(size=(4, 2)))
    predict_fn = predict.gradient_descent(half, kernel, y, 0.1, momentum)
    t, cross = jnp.array([0.0, 1.0, 4.0]), kernel[:2]
    outside = predict_fn(t, 0.0, 0.0, cross)
    inside = jax.jit(lambda t: predict_fn(t, 0.0, 0.0, cross))(t)
    for a, b in zip(inside, outside, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(inside[1], inside[0][:, :2], rtol=1e-5, atol=1e-6)


@pytest.mark.extended
def test_a_state_goes_on_where_it_stopped():
    kernel, y = kernel_of(4), jnp.asarray(RNG.normal(size=(4, 2)))
    predict_fn = predict.gradient_descent(half, kernel, y, 0.1, 0.9)
    start = predict.ODEState(jnp.zeros((4, 2)), jnp.zeros((2, 2)))
    once = predict_fn(5.0, start, None, kernel[:2])
    twice = predict_fn(3.0, predict_fn(2.0, start, None, kernel[:2]), None, kernel[:2])
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.extended
def test_ensembles_give_either_set_its_keyword_arguments():
    network = stax.serial(stax.Dense(4), stax.Relu(), stax.Aggregate(), stax.GlobalAvgPool())
    train, test = (jnp.asarray(RNG.normal(size=(n, 5, 5))) for n in (3, 2))
    y = jnp.asarray(RNG.normal(size=(3, 1)))
    predict_fn = predict.gradient_descent_mse_ensemble(
        network[2], LINES, y, diag_reg=1e-3, pattern=(train, train)
    )
    found = predict_fn(x_test=LINES[:2] + 0.1, get="NTK", pattern=(test, test))
    k_dd = network[2](LINES, None, "ntk", pattern=(train, train))
    k_td = network[2](LINES[:2] + 0.1, LINES, "ntk", pattern=(test, train))
    close(found, predict.gp_inference(k_dd, y, diag_reg=1e-3)("ntk", k_td), 1e-8)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: nt.maximal_update, AttributeError, "expected stax, predict, Kernel"),
        (lambda: nt.experimental, AttributeError, "TensorFlow"),
        (lambda: stax.MaxPool, AttributeError, "ElementwiseNumerical"),
        (lambda: stax.Index(stax.Slice[0])[2](LINES), NotImplementedError, "one example"),
        (lambda: stax.DotGeneral(lhs=1.0, rhs=2.0), ValueError, "lhs and rhs"),
        (lambda: stax.Dropout(0.0), ValueError, "rate=0.0"),
        (lambda: stax.LayerNorm(1)[2](LINES), ValueError, "channels"),
        (
            lambda: stax.Aggregate()[2](LINES, LINES, pattern=(LINES, None)),
            ValueError,
            "one pattern",
        ),
        (lambda: stax.Dropout(0.5).model, ValueError, "has no model"),
        (lambda: stax.Dense(1)[2](LINES, LINES[:, :3]), ValueError, r"\(3, 5, 2\) and \(3, 3, 2\)"),
        (lambda: stax.Dense(1)[2](LINES, LINES[..., :1]), ValueError, "one shape"),
        (lambda: stax.Dense(1)[2](LINES.astype(complex)), TypeError, "complex128, expected real"),
    ],
)
def test_what_is_missing_says_what_to_do(call, error, words):
    with pytest.raises(error, match=words):
        call()
