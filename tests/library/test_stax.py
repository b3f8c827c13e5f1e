from __future__ import annotations

import importlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_networks import EXPRESSIONS, GOLDEN, relative

import lazynet as ln
from lazynet import predict, stax

ARCHITECTURES = {
    "gelu": "serial(Dense(8, 1.5, 0.1), Gelu(), Dense(8, 1.1, 0.2), Cos(1.2, 0.7, 0.3), Dense(2))",
    "concat": "serial(FanOut(2), parallel(serial(Dense(8), Relu()), serial(Dense(4, 1.4, 0.1), Erf())), "
    "FanInConcat(-1), Dense(1))",
    "repeat": "serial(Dense(8), repeat(serial(LeakyRelu(0.3), Dense(8, 1.5, 0.1)), 3))",
    "standard": "serial(Dense(8, 1.5, 0.1, parameterization='standard', s=(1, 4)), Abs(), "
    "Dense(2, 1.1, None, parameterization='standard', s=(4, 1)))",
    "numerical": "serial(Dense(8, 1.2, 0.1), ElementwiseNumerical(jnp.tanh, 250), Dense(1))",
}
CONVOLUTIONAL = {
    "strided": "serial(Conv(4, (3, 2), (2, 1), 'SAME', 1.4, 0.1), Relu(), Conv(4, (2, 2), None, 'VALID', 1.2), Gelu(), "
    "GlobalSumPool(), Dense(1))",
    "pools": "serial(Conv(4, (3, 3), None, 'SAME', 1.4), Relu(), AvgPool((2, 3), (1, 2), 'SAME'), "
    "Conv(4, (1, 1), None, 'VALID', 1.2, 0.1), ABRelu(-0.3, 1.2), SumPool((2, 2), (2, 2)), Flatten(), Dense(1))",
    "cropped and periodic": "serial(Conv(4, (2, 1), None, 'VALID', 1.3, 0.1), Relu(), "
    "Conv(4, (3, 3), None, 'CIRCULAR', 1.4), Relu(), GlobalAvgPool(), Dense(1))",
    "norms": "serial(Conv(4, (3, 3), None, 'CIRCULAR', 1.4, 0.1), LayerNorm(), Relu(), GlobalAvgPool(), Dense(4), "
    "Erf(), Dense(1))",
    "standard": "serial(Conv(4, (3, 3), None, 'SAME', 1.4, 0.1, None, 'standard'), Relu(), Flatten(), "
    "Dense(1, 1.1, 0.1, parameterization='standard'))",
}


def _network(expression, module=stax):
    return eval(
        expression,
        {name: getattr(module, name) for name in stax.__all__ if hasattr(module, name)}
        | {"jnp": jnp},
    )


def _inputs(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("name", ["fc_relu_3", "fc_residual", "fc_standard"])
def test_expressions_of_neural_tangents_give_its_kernels(name):
    case = GOLDEN[name]
    _, _, kernel_fn = _network(EXPRESSIONS[name])
    kernels = kernel_fn(case["x1"], case["x2"], ("nngp", "ntk"))
    assert (
        relative(kernels.nngp, case["nngp"]) < 1e-13 and relative(kernels.ntk, case["ntk"]) < 1e-13
    )


@pytest.mark.extended
def test_the_script_of_kernel_regression_runs_after_changing_its_import():
    x_train, x_test = _inputs((20, 6)), _inputs((5, 6), 1)
    y_train = jnp.sin(x_train[:, :1])
    init_fn, apply_fn, kernel_fn = stax.serial(
        stax.Dense(512, W_std=1.5, b_std=0.05),
        stax.Erf(),
        stax.Dense(512, W_std=1.5, b_std=0.05),
        stax.Erf(),
        stax.Dense(1, W_std=1.5, b_std=0.05),
    )
    _, params = init_fn(jax.random.key(0), (-1, 6))
    assert apply_fn(params, x_test).shape == (5, 1)
    predict_fn = predict.gradient_descent_mse_ensemble(kernel_fn, x_train, y_train, diag_reg=1e-6)
    ntk_mean = predict_fn(x_test=x_test, get="ntk")
    k_train, k_test = kernel_fn(x_train, None, "ntk"), kernel_fn(x_test, x_train, "ntk")
    ridge = 1e-6 * jnp.trace(k_train) / 20 * jnp.eye(20)
    np.testing.assert_allclose(
        ntk_mean, k_test @ jnp.linalg.solve(k_train + ridge, y_train), rtol=1e-6, atol=1e-9
    )


@pytest.mark.extended
def test_the_script_of_gradient_descent_over_time_runs_after_changing_its_import():
    x_train, x_test, y_train = _inputs((8, 4)), _inputs((3, 4), 1), _inputs((8, 2), 2)
    _, _, kernel_fn = stax.serial(stax.Dense(16, 1.4, 0.1), stax.Relu(), stax.Dense(2))
    k_train_train, k_test_train = kernel_fn(x_train, None, "ntk"), kernel_fn(x_test, x_train, "ntk")
    predict_fn = predict.gradient_descent_mse(k_train_train, y_train, learning_rate=0.1)
    f_train, f_test = predict_fn(t=1e6, fx_train_0=0.0, fx_test_0=0.0, k_test_train=k_test_train)
    np.testing.assert_allclose(f_train, y_train, atol=1e-6)
    np.testing.assert_allclose(
        f_test, k_test_train @ jnp.linalg.solve(k_train_train, y_train), atol=1e-6
    )


def _wide_resnet(block_size, k):
    """The network of neural-tangents' readme, with its names."""

    def block(channels, strides=(1, 1), channel_mismatch=False):
        main = stax.serial(
            stax.Relu(),
            stax.Conv(channels, (3, 3), strides, padding="SAME"),
            stax.Relu(),
            stax.Conv(channels, (3, 3), padding="SAME"),
        )
        shortcut = (
            stax.Identity()
            if not channel_mismatch
            else stax.Conv(channels, (3, 3), strides, padding="SAME")
        )
        return stax.serial(stax.FanOut(2), stax.parallel(main, shortcut), stax.FanInSum())

    def group(n, channels, strides=(1, 1)):
        return stax.serial(
            block(channels, strides, channel_mismatch=True),
            *[block(channels) for _ in range(n - 1)],
        )

    return stax.serial(
        stax.Conv(16, (3, 3), padding="SAME"),
        group(block_size, 16 * k),
        group(block_size, 32 * k, (2, 2)),
        group(block_size, 64 * k, (2, 2)),
        stax.AvgPool((2, 2)),
        stax.Flatten(),
        stax.Dense(10, 1.0, 0.0),
    )


@pytest.mark.slow
def test_the_script_of_a_wide_resnet_runs_after_changing_its_import():
    init_fn, apply_fn, kernel_fn = _wide_resnet(block_size=2, k=1)
    shape, params = init_fn(jax.random.key(0), (-1, 8, 8, 3))
    assert shape == (-1, 10) and apply_fn(params, jnp.ones((2, 8, 8, 3))).shape == (2, 10)
    x1, x2 = GOLDEN["wideresnet"]["x1"], GOLDEN["wideresnet"]["x2"]
    kernel = kernel_fn(x1, x2)
    again = ln.analytic_kernel(ln.zoo.wide_resnet(2), jnp.asarray(x1), jnp.asarray(x2))
    np.testing.assert_allclose(kernel.nngp, again.nngp, rtol=1e-10)
    np.testing.assert_allclose(kernel.ntk, again.ntk, rtol=1e-10)


def test_a_given_dual_is_used_with_its_automatic_derivative():
    def nngp_fn(cov12, var1, var2):
        return jnp.arcsin(2 * cov12 / jnp.sqrt((1 + 2 * var1) * (1 + 2 * var2))) * 2 / jnp.pi

    x1, x2 = _inputs((3, 4)), _inputs((2, 4), 1)
    given = stax.serial(
        stax.Dense(4, 1.3, 0.1), stax.Elementwise(jax.scipy.special.erf, nngp_fn), stax.Dense(1)
    )
    known = stax.serial(stax.Dense(4, 1.3, 0.1), stax.Erf(), stax.Dense(1))
    both = ("nngp", "ntk")
    for ours, expected in zip(given[2](x1, x2, both), known[2](x1, x2, both), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: stax.serial(stax.Dense(1), stax.Relu), TypeError, "call its constructor"),
        (lambda: stax.serial(ln.Dense(1)), TypeError, "lazynet.serial"),
        (lambda: stax.Dense(1)[2](jnp.ones((1, 2)), None, "variance"), ValueError, "cov1"),
    ],
)
def test_what_lazynet_does_not_offer_is_refused(build, error, words):
    with pytest.raises(error, match=words):
        build()


@pytest.mark.oracle
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_of_vectors_agree_with_neural_tangents(name):
    _agree(ARCHITECTURES[name], _inputs((4, 5)), _inputs((3, 5), 1))


@pytest.mark.oracle
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_networks_of_images_agree_with_neural_tangents(name):
    _agree(CONVOLUTIONAL[name], _inputs((3, 6, 5, 2)), _inputs((2, 6, 5, 2), 1))


def _agree(expression, x1, x2, tolerance=1e-9):
    from neural_tangents import stax as reference

    ours, theirs = _network(expression)[2], _network(expression, reference)[2]
    for pair in ((x1, x2), (x1, None)):
        got, expected = ours(*pair, ("nngp", "ntk")), theirs(*pair, ("nngp", "ntk"))
        assert relative(got.nngp, expected.nngp) < tolerance
        # The reference takes the diagonal of the tangent kernel of kinked activations from a
        # cancelling square root.
        assert relative(got.ntk, expected.ntk) < (
            tolerance if pair[1] is not None else max(tolerance, 1e-7)
        )


@pytest.mark.oracle
def test_single_precision_kernels_of_near_duplicates_are_as_positive_as_rounding_allows():
    from jax.experimental import disable_x64
    from neural_tangents import stax as reference

    rng, smallest = np.random.default_rng(0), []
    x = rng.normal(size=(12, 50))
    x = np.concatenate([x, x + 1e-4 * rng.normal(size=x.shape)]).astype(np.float32)
    expression = f"serial({'Dense(1, 1.5, 0.1), Relu(), ' * 10}Dense(1, 1.5, 0.1))"
    with disable_x64():
        for module in (stax, reference):
            ntk = _network(expression, module)[2](jnp.asarray(x), None, "ntk")
            values = np.linalg.eigvalsh(np.asarray(ntk, np.float64))
            smallest.append(values[0] / values[-1])
    ours, theirs = (
        smallest  # the reference's depends on the processor: -6e-5 on some, -3e-8 on others
    )
    assert ours > -1e-7 and ours > theirs - 1e-7


def test_tuples_of_kernels_are_of_one_class_that_pickle_finds():
    kernel_fn = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1))[2]
    x = _inputs((3, 4))
    for get in (("nngp", "ntk"), ("ntk", "nngp"), ("ntk",)):
        first, second = kernel_fn(x, None, get), kernel_fn(2.0 * x, None, get)
        assert type(first) is type(second) and first._fields == get
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(first)).ntk, first.ntk)
        chosen = jax.lax.cond(True, lambda a, b: a, lambda a, b: b, first, second)
        np.testing.assert_array_equal(
            jax.tree.map(jnp.subtract, chosen, first).ntk, jnp.zeros((3, 3))
        )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stax.Conv(4, (3,), (1, 1)), "strides"),
        (lambda: stax.FanOut(0), "num got 0"),
    ],
)
def test_arguments_that_do_not_fit_say_what_to_write(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


@pytest.mark.parametrize("name", ["stax", "predict"])
def test_the_facades_are_modules_of_lazynet_for_an_import_statement(name):
    facade = importlib.import_module(f"lazynet.{name}")
    core = importlib.import_module(f"lazynet.dropin.{name}")
    assert {key: getattr(facade, key) for key in core.__all__} == {
        key: getattr(core, key) for key in core.__all__
    }
