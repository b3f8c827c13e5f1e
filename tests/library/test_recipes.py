"""Facts about what is sent to other processes: models, transforms, objectives and records pickle, copy and compare."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial, normal

import lazynet as ln
from lazynet import ensembles, optimizers, stax, zoo
from lazynet.lazy import LazyFunction
from lazynet.models.initializers import xavier_normal
from lazynet.precision import compute_in, remat
from lazynet.recipes import _FUNCTIONS

X, IMAGES = normal(1, 5, 3), normal(2, 2, 8, 8, 3)
KEY = jax.random.key(0)


def own_function(x):
    return x**3


def own_layer(params, x):
    return params["w"] * x


def own_init(key, x):
    return {"w": jnp.asarray(0.7, x.dtype)}


@jax.jit
def own_program(x):
    return x**3


POOLS = (ln.AvgPool((2, 2)), ln.SumPool((2, 2)), ln.MaxPool((2, 2), (2, 2)), ln.GlobalAvgPool())
ACTIVATIONS = (
    ln.Relu(),
    ln.LeakyRelu(0.1),
    ln.Abs(),
    ln.ABRelu(0.2, 1.0),
    ln.Erf(),
    ln.Gelu(),
    ln.Sin(),
    ln.Cos(),
)
MODELS = {
    "serial": lambda: ln.serial(
        ln.Dense(6, 1.5, 0.1), ln.LayerNorm(), ln.Dense(2, parameterization="standard")
    ),
    "residual": lambda: ln.serial(
        ln.residual(ln.Identity(), ln.Dense(3)), ln.residual(ln.Dense(3), shortcut=ln.Dense(3))
    ),
    "parallel": lambda: ln.parallel(ln.Dense(2), ln.serial(ln.Dense(3), ln.Dense(2))),
    "repeat": lambda: ln.repeat(ln.serial(ln.Dense(3)), 3),
    "symmetrize": lambda: ln.symmetrize(ln.serial(ln.Dense(3), ln.Dense(1))),
    "freeze": lambda: ln.serial(ln.freeze(ln.Dense(3)), ln.Dense(1)),
    "remat": lambda: remat(ln.serial(ln.Dense(3), ln.Dense(2))),
    "own layer": lambda: ln.layer("Own", own_layer, init=own_init),
    "pools": lambda: ln.serial(
        ln.Conv(4, (3, 3), padding="SAME"), *POOLS[:3], ln.Conv(3), POOLS[3]
    ),
    "sum": lambda: ln.serial(ln.Conv(4), ln.GlobalSumPool(), ln.Dense(2)),
    "activations": lambda: ln.serial(
        ln.Dense(3), *ACTIVATIONS, ln.elementwise(own_function), ln.Dense(1)
    ),
    "wrapped functions": lambda: ln.serial(
        *map(ln.elementwise, (jnp.tanh, jax.nn.relu, jax.nn.silu, own_program))
    ),
    "flat": lambda: ln.serial(ln.Conv(4, W_std=np.float64(1.5)), ln.Flatten(), ln.Dense(2)),
}


def _inputs(name):
    return IMAGES if name in ("pools", "sum", "flat") else X


@functools.cache
def _params(name):
    return initial(3, MODELS[name](), _inputs(name))


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_pickle_as_the_same_functions(name, protocol):
    model = MODELS[name]()
    again = pickle.loads(pickle.dumps(model, protocol))
    assert again == model and hash(again) == hash(model)
    assert again.apply is model.apply
    np.testing.assert_array_equal(
        again.apply(_params(name), _inputs(name)), model.apply(_params(name), _inputs(name))
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_same_network_built_again_is_equal_and_copies_are_too(name):
    model = MODELS[name]()
    assert model == MODELS[name]() == copy.deepcopy(model) == copy.copy(model)


def test_models_of_different_numbers_differ():
    models = [
        *(ln.Dense(2, W_std) for W_std in (1, 1.0, np.float64(1.0), 1.5, -0.0, 0.0)),
        *(ln.Dense(2, 1.0, b_std) for b_std in (0.0, 0.1)),
        *(ln.Dense(2, jnp.asarray(1.0)) for _ in range(2)),
        ln.Dense(3),
        ln.AvgPool((2, 2)),
        ln.AvgPool((2, 1)),
        ln.SumPool((2, 2)),
        ln.serial(ln.Dense(2)),
        ln.serial(ln.Dense(2), name="mlp"),
    ]
    assert len({model.apply for model in models}) == len(models)
    assert ln.Dense(2) == ln.Dense(2, 1.0) == ln.Dense(features=2, W_std=1.0)


def test_equal_networks_share_one_compiled_program():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(model, params, x):
        traced.append(model)
        return model.apply(params, x)

    for _ in range(3):
        outputs(MODELS["serial"](), _params("serial"), X)
    assert len(traced) == 1


def test_functions_that_nobody_holds_are_forgotten():
    before = len(_FUNCTIONS)
    held = [ln.serial(ln.Dense(1, 1 + i / 1e5), ln.Dense(2)) for i in range(50)]
    assert len(_FUNCTIONS) >= before + 50
    del held
    assert len(_FUNCTIONS) <= before


def test_one_function_serves_layers_of_different_rows():
    first, second = (
        ln.layer("Own", own_layer, init=own_init, rows=rows, kernel=own_function)
        for rows in (jnp.sin, jnp.cos)
    )
    assert first.apply.rows[""] is jnp.sin
    assert second.apply.rows[""] is jnp.cos


MODEL = ln.serial(ln.Dense(6, 1.5), ln.Dense(2))
PARAMS = initial(4, MODEL, X)
MOVED = jax.tree.map(lambda leaf: 0.9 * leaf, PARAMS)
FUNCTIONS = {
    "apply": MODEL.apply,
    "linearize": ln.linearize(MODEL.apply, PARAMS),
    "taylor_expand": ln.taylor_expand(MODEL.apply, PARAMS, 2),
    "center": ln.center(MODEL.apply, PARAMS),
    "scale": ln.scale(MODEL.apply, 3.0),
    "lazy": ln.lazy(MODEL.apply, PARAMS, 10.0),
    "tangent": ln.lazy(MODEL.apply, PARAMS, math.inf),
    "compute_in": compute_in(MODEL.apply, jnp.float32),
}


@pytest.mark.parametrize("copied", [lambda f: pickle.loads(pickle.dumps(f)), copy.deepcopy])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_come_back_as_functions_of_the_same_values(name, copied):
    again = copied(FUNCTIONS[name])
    np.testing.assert_array_equal(again(MOVED, X), FUNCTIONS[name](MOVED, X))
    assert isinstance(again, LazyFunction) == (name in ("lazy", "tangent"))


GOAL = ln.objective(ln.lazy(MODEL.apply, PARAMS, 10.0), ln.mse)
DATA = ln.Data(X, jnp.ones((5, 2)))
CURVE = ln.train(GOAL, None, DATA, ln.sgd(0.9), key=KEY, save_at=[1], learning_rate=0.1)
RECORDS = {
    "Data": DATA,
    "Gram": ln.Gram(X, X),
    "Trajectory": CURVE,
    "TrainState": ln.TrainState(1, 0.1, PARAMS, ()),
    "EnsembleCurve": ensembles.EnsembleCurve(
        np.arange(1), np.arange(1.0), np.zeros((1, 1, 1, 1)), PARAMS
    ),
    "SGD": ln.sgd(0.9),
    "schedule": ln.inverse_epoch_decay(0.1, 7),
    "own schedule": optimizers.step_sizes(ln.sgd(), ln.inverse_epoch_decay(0.1, 7)),
}


@pytest.mark.parametrize("copied", [lambda f: pickle.loads(pickle.dumps(f)), copy.deepcopy])
@pytest.mark.parametrize("name", RECORDS)
def test_records_come_back_equal(name, copied):
    again = copied(RECORDS[name])
    assert type(again) is type(RECORDS[name])
    assert jax.tree.structure(again) == jax.tree.structure(RECORDS[name])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b) if hasattr(a, "shape") else a == b,
        again,
        RECORDS[name],
    )


def test_an_objective_that_was_pickled_trains_to_the_same_bits():
    goal, data, optimizer = pickle.loads(pickle.dumps((GOAL, DATA, ln.sgd(0.9))))
    curve = ln.train(goal, None, data, optimizer, key=KEY, save_at=[1], learning_rate=0.1)
    jax.tree.map(np.testing.assert_array_equal, curve.params, CURVE.params)


@pytest.mark.extended
def test_a_spawned_process_trains_what_it_is_sent(tmp_path):
    script = """
        import multiprocessing, jax, jax.numpy as jnp, lazynet as ln
        def loss(goal):
            data = ln.Data(jnp.ones((2, 3)), jnp.ones((2, 1)))
            curve = ln.train(goal, None, data, ln.sgd(), key=jax.random.key(0), save_at=[3], learning_rate=0.1)
            return float(curve.metrics["train_loss"][-1])
        if __name__ == "__main__":
            model = ln.serial(ln.Dense(4), ln.Dense(1))
            params = model.init(jax.random.key(0), jnp.ones((1, 3)))
            goals = [ln.objective(ln.lazy(model.apply, params, alpha), ln.mse) for alpha in (1.0, 10.0)]
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(loss, goals) == [loss(goal) for goal in goals])
    """
    path = tmp_path / "sweep.py"
    path.write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_networks_of_the_zoo_and_other_draws_pickle():
    mlp = zoo.mlp((4, 4))
    for model in (mlp, zoo.two_layer(5), zoo.cnn((4, 8)), xavier_normal(mlp)):
        assert pickle.loads(pickle.dumps(model)) == model


def test_a_triple_of_stax_pickles_with_its_kernel():
    triple = stax.serial(stax.Dense(4), stax.Relu(), stax.Dense(1))
    again = pickle.loads(pickle.dumps(triple))
    np.testing.assert_array_equal(again[2](X, None, "ntk"), triple[2](X, None, "ntk"))


def test_a_kernel_of_a_network_that_was_pickled_is_the_same():
    model = ln.serial(ln.Dense(1, 1.5, 0.1), ln.Erf(), ln.Dense(1))
    gram, again = (ln.analytic_kernel(m, X) for m in (model, pickle.loads(pickle.dumps(model))))
    np.testing.assert_array_equal(gram.ntk, again.ntk)
