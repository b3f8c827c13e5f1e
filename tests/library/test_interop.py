"""Foreign models: their own library's function, one draw per key, and refusals that name the way out."""

from __future__ import annotations

import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from flax import nnx

import lazynet as ln
from lazynet import trees
from lazynet.models.foreign import from_flax, from_neural_tangents
from lazynet.models.model import serial

KEY = jax.random.key(0)
X = normal(1, 4, 3)


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(jnp.tanh(nn.Dense(8)(x)))
        return nn.Dense(2, name="head")(x)


class LinenCNN(nn.Module):
    normalize: bool = False
    drop: float = 0.0

    @nn.compact
    def __call__(self, x, *, deterministic=False):
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
        if self.normalize:
            x = nn.BatchNorm(use_running_average=False)(x)
        x = nn.Dropout(self.drop, deterministic=deterministic)(x)
        return nn.Dense(2)(x.mean((1, 2)))


class NnxMLP(nnx.Module):
    def __init__(self, width, *, rngs, drop=None, normalize=False):
        self.first = nnx.Linear(3, width, rngs=rngs)
        self.middle = nnx.Sequential(
            nnx.Linear(width, width, rngs=rngs), nnx.relu, nnx.LayerNorm(width, rngs=rngs)
        )
        self.head = nnx.Linear(width, 2, rngs=rngs)
        self.dropout = drop(rngs) if drop else None
        self.norm = nnx.BatchNorm(width, rngs=rngs) if normalize else None

    def __call__(self, x, *, double=False):
        x = self.middle(jnp.tanh(self.first(x)))
        x = self.norm(x) if self.norm else x
        x = self.dropout(x) if self.dropout else x
        return self.head(x) * (2.0 if double else 1.0)


def _nnx_factory(rngs):
    return NnxMLP(8, rngs=rngs)


IMAGES = normal(2, 2, 5, 5, 1)
MODELS = {"linen": (LinenMLP(), X), "linen_cnn": (LinenCNN(), IMAGES), "nnx": (_nnx_factory, X)}


@functools.cache
def _model(name):
    module, x = MODELS[name]
    model = from_flax(module)
    return model, jax.jit(model.init)(KEY, x), x


@pytest.mark.extended
@pytest.mark.parametrize("name", MODELS)
def test_the_transposed_tangent_of_a_flax_model_is_its_gradient_under_jit_and_vmap(name):
    model, params, x = _model(name)
    direction = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def check(params):
        outputs, tangent = jax.jvp(lambda w: model.apply(w, x), (params,), (direction,))
        pulled = jax.vjp(lambda w: model.apply(w, x), params)[1](jnp.ones_like(outputs))[0]
        stacked = jax.tree.map(lambda w: jnp.stack([w, w]), params)
        return (
            outputs,
            jax.vmap(model.apply, (0, None))(stacked, x)[1],
            tangent.sum(),
            trees.dot(pulled, direction),
        )

    outputs, mapped, forward, backward = check(params)
    np.testing.assert_allclose(mapped, outputs, rtol=1e-12)
    np.testing.assert_allclose(backward, forward, rtol=1e-10)
    assert forward != 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.extended
def test_parameters_and_outputs_have_the_dtype_of_the_inputs(name, dtype):
    model, _, x = _model(name)
    example = jax.ShapeDtypeStruct(x.shape, dtype)
    params = jax.eval_shape(lambda key: model.init(key, example), KEY)
    assert {w.dtype for w in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert jax.eval_shape(model.apply, params, example).dtype == dtype


@pytest.mark.parametrize("name", MODELS)
def test_weights_depend_on_the_key_and_on_the_shape_of_the_inputs_alone(name):
    model, params, x = _model(name)
    init = jax.jit(model.init)
    jax.tree.map(np.testing.assert_array_equal, init(jax.random.key(0), 7.0 * x), params)
    assert not jnp.allclose(trees.norm(init(jax.random.key(1), x)), trees.norm(params))


@pytest.mark.parametrize("name", MODELS)
def test_a_flax_model_has_no_infinite_width_rule(name):
    assert _model(name)[0].kernel is None


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_arguments_of_the_program_and_not_constants(name):
    model, params, x = _model(name)
    jaxpr = jax.make_jaxpr(model.apply)(params, x)
    assert sum(np.size(c) for c in jaxpr.consts) <= 16


def test_a_linen_model_computes_what_the_module_computes():
    model, params, x = _model("linen")
    with jax.numpy_dtype_promotion("standard"):
        drawn = jax.jit(LinenMLP().init)(KEY, x.astype(jnp.float32))["params"]
        expected = LinenMLP().apply({"params": params}, x)
    jax.tree.map(
        np.testing.assert_array_equal, params, jax.tree.map(lambda w: w.astype(x.dtype), drawn)
    )
    np.testing.assert_array_equal(model.apply(params, x), expected)


@pytest.mark.extended
def test_an_nnx_model_computes_what_the_module_computes():
    module, x = _nnx_factory(nnx.Rngs(KEY)), X.astype(jnp.float32)
    model, params, _ = _model("nnx")
    with jax.numpy_dtype_promotion("standard"):
        expected = module(x)
    params = jax.tree.map(lambda w: w.astype(x.dtype), params)
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-5)


def test_an_nnx_instance_gives_the_weights_it_holds_for_no_key():
    module, x = _nnx_factory(nnx.Rngs(3)), X.astype(jnp.float32)
    model = from_flax(module)
    with jax.numpy_dtype_promotion("standard"):
        expected = module(x)
    np.testing.assert_array_equal(model.apply(model.init(None, x), x), expected)


def test_an_nnx_instance_refuses_a_key_instead_of_repeating_its_weights():
    with pytest.raises(ValueError, match=r"instance.*init\(None, x\).*lambda rngs: NnxMLP"):
        from_flax(_nnx_factory(nnx.Rngs(0))).init(KEY, X)


def test_using_the_model_leaves_an_nnx_instance_unchanged():
    module = _nnx_factory(nnx.Rngs(3))
    before = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    model = from_flax(module)
    params = jax.tree.map(lambda w: 2.0 * w, model.init(None, X))
    jax.jit(model.apply)(params, X)
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(module, nnx.Param)), before
    )


def test_keyword_arguments_go_to_every_call():
    model, params, _ = _model("nnx")
    np.testing.assert_array_equal(
        from_flax(_nnx_factory, double=True).apply(params, X), 2.0 * model.apply(params, X)
    )


@pytest.mark.extended
def test_tokens_leave_the_parameters_in_their_own_dtype():
    model = from_flax(nn.Sequential([nn.Embed(5, 4), nn.Dense(2)]))
    tokens = jnp.array([[0, 1], [2, 3]])
    params = model.init(KEY, tokens)
    assert {w.dtype for w in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert model.apply(params, tokens).shape == (2, 2, 2)


def test_the_trace_of_a_linen_model_records_affine_layers():
    model, params, _ = _model("linen")
    outputs, inside = model.trace(params, X)
    np.testing.assert_array_equal(outputs, model.apply(params, X))
    assert sorted(inside) == ["Dense_0", "head"]
    x, z = inside["Dense_0"]
    np.testing.assert_array_equal(x, X)
    np.testing.assert_allclose(
        z, X @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None], rtol=1e-12
    )
    np.testing.assert_array_equal(inside["head"][1], outputs)


def test_a_trace_that_is_the_first_call_is_of_these_inputs():
    model = from_flax(nn.Dense(2))
    params = model.init(KEY, X)
    inputs, outputs = from_flax(nn.Dense(2)).trace(params, X)[1][""]
    assert np.array_equal(inputs, X) and np.array_equal(outputs, model.apply(params, X))


SHARED = nn.Dense(3)
PICKLED = {
    "defaults": lambda: from_flax(nn.Dense(3)),
    "own initializer": lambda: from_flax(
        nn.Dense(3, kernel_init=nn.initializers.zeros, name="own")
    ),
    "nested": lambda: from_flax(
        nn.Sequential([SHARED, jnp.tanh, nn.relu, SHARED, nn.Dense(2, name="out")])
    ),
    "normalized": lambda: from_flax(nn.BatchNorm(), use_running_average=True),
    "bound": lambda: from_flax(nn.Dense(2).bind({"params": from_flax(nn.Dense(2)).init(KEY, X)})),
    "nnx": lambda: from_flax(nnx.Linear(3, 2, rngs=nnx.Rngs(1))),
    "factory": lambda: from_flax(functools.partial(nnx.Linear, 3, 2)),
}


@pytest.mark.parametrize("name", sorted(PICKLED))
def test_models_of_flax_pickle(name):
    model = PICKLED[name]()
    back = pickle.loads(pickle.dumps(model))
    key = None if name in ("bound", "nnx") else KEY
    params, again = model.init(key, X), back.init(key, X)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    assert np.array_equal(back.apply(again, X), model.apply(params, X))
    assert jax.tree.all(jax.tree.map(np.array_equal, back.trace(again, X), model.trace(params, X)))
    lazily = pickle.loads(pickle.dumps(ln.lazy(model.apply, params, 3.0)))
    moved = jax.tree.map(lambda leaf: 0.1 * leaf + 0.1, params)
    assert np.array_equal(lazily(moved, X), ln.lazy(model.apply, params, 3.0)(moved, X))


@pytest.mark.extended
def test_the_trace_goes_through_jit_and_checkpointing():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Dense(3)(x))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.remat(Block)(name="block")(x)

    model = from_flax(Network())
    inside = jax.jit(model.trace)(jax.jit(model.init)(KEY, X), X)[1]
    assert list(inside) == ["block/Dense_0"] and inside["block/Dense_0"][1].shape == (4, 3)


def test_a_shared_layer_is_traced_once_for_every_call():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(3)
            return dense(dense(x))

    model = from_flax(Shared())
    inside = model.trace(model.init(KEY, X), X)[1]
    assert sorted(inside) == ["Dense_0", "Dense_0#1"]
    np.testing.assert_array_equal(inside["Dense_0"][1], inside["Dense_0#1"][0])


def test_the_trace_of_an_nnx_model_records_affine_layers_of_this_call_alone():
    module = _nnx_factory(nnx.Rngs(3))
    model = from_flax(module)
    params = model.init(None, X)
    outputs, inside = jax.jit(model.trace)(params, X)
    assert sorted(inside) == ["first", "head", "middle/layers/0"]
    x, z = inside["first"]
    np.testing.assert_array_equal(x, X)
    np.testing.assert_allclose(z, X @ params["first"]["kernel"] + params["first"]["bias"][None])
    np.testing.assert_allclose(inside["head"][1], outputs, rtol=1e-12)
    assert type(module.first) is nnx.Linear


def test_a_flax_model_is_a_layer_like_any_other():
    model = serial(from_flax(LinenMLP()), from_flax(lambda rngs: nnx.Linear(2, 1, rngs=rngs)))
    params = jax.eval_shape(model.init, KEY, X)
    assert sorted(params) == ["0_LinenMLP", "1_Linear"]
    assert jax.eval_shape(model.apply, params, X).shape == (4, 1)


class LinenNormed(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


@pytest.mark.extended
def test_a_linen_module_in_evaluation_mode_is_the_function_of_its_variables():
    x = jnp.linspace(-1, 1, 15).reshape(5, 3)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        variables = LinenNormed().init(jax.random.key(0), x, train=False)
        statistics = jax.tree.map(lambda value: value + 1.5, variables["batch_stats"])
        variables = {**variables, "batch_stats": statistics}
        expected = LinenNormed().apply(variables, x, train=False)
    model = from_flax(LinenNormed().bind(variables), train=False)
    params = model.init(None, x)
    assert sorted(params) == ["BatchNorm_0", "Dense_0", "Dense_1"]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-5, atol=1e-6)
    new = from_flax(LinenNormed(), train=False)
    assert new.apply(new.init(jax.random.key(1), x), x).shape == (5, 2)


def test_an_nnx_module_in_evaluation_mode_is_its_own_function():
    module = NnxMLP(
        8, rngs=nnx.Rngs(1), drop=lambda rngs: nnx.Dropout(0.5, rngs=rngs), normalize=True
    )
    module.eval()
    x = jnp.ones((4, 3), jnp.float32)
    model = from_flax(module)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(model.apply(model.init(None, x), x), module(x), rtol=1e-6)


def test_dropout_that_is_switched_off_is_accepted():
    linen = from_flax(LinenCNN(drop=0.5), deterministic=True)
    nnx_model = from_flax(
        functools.partial(NnxMLP, 8, drop=lambda rngs: nnx.Dropout(0.5, deterministic=True))
    )
    for model, x in [(linen, IMAGES), (nnx_model, X)]:
        assert jax.eval_shape(lambda: model.apply(model.init(KEY, x), x)).shape == (len(x), 2)  # noqa: B023


def _linen_init(module):
    return jax.eval_shape(lambda: from_flax(module).init(KEY, IMAGES))


class NnxWithState(nnx.Module):
    """Running averages, a generator that nobody uses, a variable of its own kind and a note of what was inside."""

    def __init__(self, rngs):
        self.rngs = rngs
        self.scale = nnx.Variable(jnp.array(3.0, jnp.float32))
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        h = self.norm(self.linear(x))
        self.inside = nnx.Intermediate(h)
        return self.scale[...] * h


def _carried(model, params, x):
    """Arrays that a program of the model takes from outside instead of as arguments."""
    traced = jax.make_jaxpr(lambda apply, params, x: apply(params, x))(model.apply, params, x)
    return [array for array in traced.consts if np.size(array) > 1]


def test_state_that_a_call_leaves_alone_is_an_argument_of_the_program():
    model = from_flax(NnxWithState(nnx.Rngs(0)))
    params = model.init(None, X)
    assert sorted(params) == ["linear", "norm"]
    x = X.astype(jnp.float32)
    expected = 3 * (x @ params["linear"]["kernel"].astype(x.dtype)) / (1 + 1e-5) ** 0.5
    np.testing.assert_allclose(model.apply(model.init(None, x), x), expected, rtol=1e-5)
    assert not _carried(model, params, X)
    assert ln.empirical_ntk(model.apply, params, X, outputs="trace").shape == (4, 4)


def test_variables_of_linen_are_weights_and_constants_that_no_program_holds():
    x = X.astype(jnp.float32)
    variables = LinenNormed().init(KEY, x, train=False)
    variables = {
        **variables,
        "batch_stats": jax.tree.map(lambda a: a + 1.5, variables["batch_stats"]),
    }
    model = from_flax(LinenNormed(), variables, train=False)
    params = model.init(None, x)
    expected = LinenNormed().apply(variables, x, train=False)
    np.testing.assert_array_equal(model.apply(params, x), expected)
    assert not _carried(model, params, x) and not _carried(
        from_flax(LinenNormed(), train=False), params, x
    )
    of_statistics = from_flax(LinenNormed(), {"batch_stats": variables["batch_stats"]}, train=False)
    drawn = of_statistics.init(KEY, x)
    np.testing.assert_array_equal(
        of_statistics.apply(drawn, x),
        LinenNormed().apply({**variables, "params": drawn}, x, train=False),
    )


def test_an_nnx_call_that_changes_state_is_refused_wherever_it_is_made():
    module = NnxMLP(8, rngs=nnx.Rngs(1), drop=lambda rngs: nnx.Dropout(0.5, rngs=rngs))
    module.eval()
    model = from_flax(module)
    params = model.init(None, X)
    training = from_flax(module, double=True)
    module.train()
    again = from_flax(module, double=True)
    assert training.apply(params, X).shape == (4, 2)
    with pytest.raises(ValueError, match="NnxMLP, whose call changes state.*module.eval"):
        again.apply(params, X)


REFUSALS = {
    "linen batch norm": (
        lambda: _linen_init(LinenCNN(normalize=True)),
        ValueError,
        "LinenCNN.*batch_stats.*BatchNorm_0.*GroupNorm.*freeze",
    ),
    "linen dropout": (
        lambda: _linen_init(LinenCNN(drop=0.5)),
        ValueError,
        "LinenCNN.*Dropout_0.*deterministic=True",
    ),
    "linen class": (
        lambda: from_flax(LinenMLP),
        TypeError,
        r"class LinenMLP.*call it, LinenMLP\(\.\.\.\)",
    ),
    "linen outputs": (
        lambda: from_flax(nn.Sequential([lambda x: {"loss": x.sum()}])).init(KEY, X),
        ValueError,
        "Sequential returned.*'loss'.*batch axis first",
    ),
    "nnx batch norm": (
        lambda: from_flax(functools.partial(NnxMLP, 8, normalize=True)),
        ValueError,
        r"NnxMLP.*norm/mean \(BatchStat\).*GroupNorm.*freeze",
    ),
    "nnx dropout": (
        lambda: from_flax(
            functools.partial(NnxMLP, 8, drop=lambda rngs: nnx.Dropout(0.5, rngs=rngs))
        ),
        ValueError,
        "NnxMLP.*generators at dropout/rngs.*deterministic=True",
    ),
    "nnx instance with batch norm": (
        lambda: from_flax(nnx.BatchNorm(3, rngs=nnx.Rngs(0))),
        ValueError,
        "BatchNorm.*mean.*BatchStat",
    ),
    "nnx class": (
        lambda: from_flax(NnxMLP),
        TypeError,
        r"signature \(width.*missing.*width.*lambda rngs",
    ),
    "factory of something else": (
        lambda: from_flax(lambda rngs: 3),
        TypeError,
        "got .*, expected an nnx.Module",
    ),
    "factory without rngs": (
        lambda: from_flax(lambda key: nnx.Linear(3, 2, rngs=key)),
        TypeError,
        "rngs alone",
    ),
    "no function": (
        lambda: from_flax({"W": 1}),
        TypeError,
        r"got \{'W': 1\}, expected a linen module",
    ),
    "no triple": (lambda: from_neural_tangents((len, len)), TypeError, "expected the triple"),
    "no functions": (lambda: from_neural_tangents((1, 2, 3)), TypeError, "expected the triple"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_a_pure_function_is_refused_with_the_way_out(name):
    attempt, error, message = REFUSALS[name]
    with pytest.raises(error, match=f"(?s){message}"):
        attempt()


def _triple():
    def init_fn(key, input_shape):
        assert input_shape == (-1, 3)
        return (-1, 2), [(jax.random.normal(key, (3, 2)), jnp.zeros(2)), ()]

    def apply_fn(params, x, **kwargs):
        (weights, bias), _ = params
        return x @ weights / 3**0.5 + bias

    return init_fn, apply_fn, None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_neural_tangents_triple_becomes_a_model_in_the_dtype_of_the_inputs(dtype):
    model, x = from_neural_tangents(_triple()), X.astype(dtype)
    params = model.init(KEY, x)
    expected = x @ jax.random.normal(KEY, (3, 2)).astype(dtype) / jnp.asarray(3**0.5, dtype)
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=20 * jnp.finfo(dtype).eps)
    assert model.apply(params, x).dtype == dtype and model.kernel is None


@pytest.mark.oracle
def test_a_network_of_neural_tangents_computes_the_same_as_a_model():
    from neural_tangents import stax

    triple = stax.serial(stax.Dense(8, W_std=1.5, b_std=0.1), stax.Erf(), stax.Dense(2))
    model = from_neural_tangents(triple)
    params = triple[0](KEY, (-1, 3))[1]
    np.testing.assert_array_equal(model.apply(params, X), triple[1](params, X))
    jax.tree.map(np.testing.assert_array_equal, model.init(KEY, X), params)
