"""Oracle: outputs of neural-tangents 0.6.5 in float64, recorded in golden/predict.npz.

`mse`: gradient_descent_mse, learning rate 0.7. `ce`, `ce_mom`: gradient_descent on the
cross-entropy averaged over examples, learning rate 1, and learning rate 0.1 with momentum 0.9.
`ens`: gradient_descent_mse_ensemble of `serial(Dense(64, 1.4, 0.2), Erf(), Dense(3, 1.1, 0.1))`,
learning rate 0.7, diag_reg 1e-3.
"""

from __future__ import annotations

import collections
import copy
import functools
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazynet import predict
from lazynet.losses import cross_entropy

Kernels = collections.namedtuple("Kernels", "nngp ntk")


@functools.cache
def golden():
    return dict(np.load(Path(__file__).resolve().parents[1] / "golden" / "predict.npz"))


def erf_kernel_fn(x1, x2=None, get=("nngp", "ntk")):
    """Closed-form kernels of the network that `ens` was recorded with."""
    x2 = x1 if x2 is None else x2

    def first(a, b):
        return 1.4**2 * a @ b.T / a.shape[1] + 0.2**2

    q12, q11, q22 = first(x1, x2), np.diag(first(x1, x1))[:, None], np.diag(first(x2, x2))[None, :]
    root = np.sqrt((1 + 2 * q11) * (1 + 2 * q22))
    sigma = 2 / np.pi * np.arcsin(2 * q12 / root)
    slope = 4 / np.pi / np.sqrt(root**2 - 4 * q12**2)
    nngp = 1.1**2 * sigma + 0.1**2
    kernels = Kernels(nngp, nngp + 1.1**2 * slope * q12)
    return (
        getattr(kernels, get)
        if isinstance(get, str)
        else Kernels(*(getattr(kernels, name) for name in get))
    )


def _ensemble_kernels():
    x1, x2 = golden()["ens/x1"], golden()["ens/x2"]
    return erf_kernel_fn(x1), erf_kernel_fn(x2, x1), erf_kernel_fn(x2)


def _close(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_gradient_descent_mse_agrees_with_neural_tangents():
    z = golden()
    predict_fn = predict.gradient_descent_mse(z["mse/k_train_train"], z["mse/y"], 0.7)
    train, test = predict_fn(z["mse/t"], z["mse/f0"], z["mse/g0"], z["mse/k_test_train"])
    _close(train, z["mse/f_train"], 1e-9)
    _close(test, z["mse/f_test"], 1e-9)
    train, test = predict_fn(None, z["mse/f0"], z["mse/g0"], z["mse/k_test_train"])
    _close(train, z["mse/y"], 1e-9)
    _close(test, z["mse/f_test_inf"], 1e-9)


def test_times_may_have_any_shape_and_order():
    z = golden()
    predict_fn = predict.gradient_descent_mse(z["mse/k_train_train"], z["mse/y"], 0.7)
    order = np.array([[3, 1], [0, 3]])
    train, test = predict_fn(z["mse/t"][order], z["mse/f0"], z["mse/g0"], z["mse/k_test_train"])
    _close(train, z["mse/f_train"][order], 1e-9)
    _close(test, z["mse/f_test"][order], 1e-9)
    assert predict_fn(2.0).shape == (12, 3)


def test_the_full_kernel_of_decoupled_outputs_gives_the_same_predictions():
    z = golden()
    full, cross = (
        z[f"mse/k_{name}_train"][:, :, None, None] * np.eye(3) for name in ("train", "test")
    )
    for ridge in ({}, {"diag_reg": 0.1}, {"diag_reg": 0.1, "diag_reg_absolute_scale": True}):
        small = predict.gradient_descent_mse(z["mse/k_train_train"], z["mse/y"], **ridge)
        large = predict.gradient_descent_mse(full, z["mse/y"], trace_axes=(), **ridge)
        _close(
            large(5.0, None, z["mse/g0"], cross),
            small(5.0, None, z["mse/g0"], z["mse/k_test_train"]),
            1e-9,
        )


def test_the_relative_ridge_is_a_fraction_of_the_mean_diagonal_entry():
    z = golden()
    kernel = z["mse/k_train_train"]
    relative = predict.gradient_descent_mse(kernel, z["mse/y"], diag_reg=0.1)
    absolute = predict.gradient_descent_mse(
        kernel + 0.1 * np.trace(kernel) / 12 * np.eye(12), z["mse/y"]
    )
    _close(relative(5.0), absolute(5.0), 1e-12)


@pytest.mark.extended
@pytest.mark.parametrize(
    ("case", "settings"),
    [("ce", {"learning_rate": 1.0}), ("ce_mom", {"learning_rate": 0.1, "momentum": 0.9})],
)
def test_gradient_descent_agrees_with_neural_tangents(case, settings):
    z = golden()
    y = np.eye(3)[z["ce/labels"]]
    predict_fn = predict.gradient_descent(cross_entropy, z["mse/k_train_train"], y, **settings)
    train, test = predict_fn(z["ce/t"], z["mse/f0"], z["mse/g0"], z["mse/k_test_train"])
    _close(train, z[f"{case}/f_train"], 1e-7)  # neural-tangents integrates to 1.4e-8
    _close(test, z[f"{case}/f_test"], 1e-7)


@pytest.mark.parametrize("t", [None, 5.0])
def test_the_ensemble_agrees_with_neural_tangents(t):
    z = golden()
    predict_fn = predict.gradient_descent_mse_ensemble(
        erf_kernel_fn, z["ens/x1"], z["ens/y"], 0.7, 1e-3
    )
    both = predict_fn(t, z["ens/x2"], compute_cov=True)
    assert both._fields == ("nngp", "ntk")
    for get in ("nngp", "ntk"):
        _close(getattr(both, get).mean, z[f"ens/{get}/{t}/mean"], 1e-9)
        _close(getattr(both, get).covariance, z[f"ens/{get}/{t}/cov"], 1e-9)
        _close(predict_fn(t, z["ens/x2"], get=get), z[f"ens/{get}/{t}/mean"], 1e-9)


def test_the_ensemble_at_time_zero_is_the_prior():
    z = golden()
    predict_fn = predict.gradient_descent_mse_ensemble(erf_kernel_fn, z["ens/x1"], z["ens/y"])
    ensemble = predict_fn(np.array([0.0]), z["ens/x2"], get="ntk", compute_cov=True)
    _close(ensemble.mean, np.zeros((1, 5, 3)), 1e-12)
    _close(ensemble.covariance[0], erf_kernel_fn(z["ens/x2"], get="nngp"), 1e-12)


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_the_training_set_is_the_test_set_at_the_training_inputs(get):
    z = golden()
    predict_fn = predict.gradient_descent_mse_ensemble(erf_kernel_fn, z["ens/x1"], z["ens/y"])
    left_out = predict_fn(5.0, None, get=get, compute_cov=True)
    given = predict_fn(5.0, z["ens/x1"], get=get, compute_cov=True)
    _close(left_out.mean, given.mean, 1e-9)
    _close(left_out.covariance, given.covariance, 1e-9)
    _close(predict_fn(None, None, get=get), z["ens/y"], 1e-8)


def test_gp_inference_is_the_ensemble_at_infinite_time():
    z = golden()
    train, cross, test = _ensemble_kernels()
    predict_fn = predict.gp_inference(train, z["ens/y"], 1e-3)
    both = predict_fn(("ntk", "nngp"), cross, test)
    assert both._fields == ("ntk", "nngp")
    for get in both._fields:
        _close(getattr(both, get).mean, z[f"ens/{get}/None/mean"], 1e-9)
        _close(getattr(both, get).covariance, z[f"ens/{get}/None/cov"], 1e-9)


@pytest.mark.parametrize(("get", "name"), [("nngp", "nngp"), ("ntkgp", "ntk")])
def test_gp_inference_with_a_ridge_is_the_posterior_given_noise(get, name):
    z = golden()
    train, cross, test = _ensemble_kernels()
    posterior = predict.gp_inference(train, z["ens/y"], 0.2, True)(get, cross, test)
    k_dd, k_td, k_tt = (getattr(kernels, name) for kernels in (train, cross, test))
    solved = np.linalg.solve(k_dd + 0.2 * np.eye(12), np.hstack([z["ens/y"], k_td.T]))
    _close(posterior.mean, k_td @ solved[:, :3], 1e-9)
    _close(posterior.covariance, k_tt - k_td @ solved[:, 3:], 1e-9)


def test_the_largest_learning_rate_counts_examples_times_outputs():
    kernel = np.diag([4.0, 1.0])
    assert predict.max_learning_rate(kernel) == 1.0
    assert predict.max_learning_rate(kernel, y_train_size=6, momentum=0.5) == 4.5
    assert predict.max_learning_rate(kernel[:, :, None, None] * np.eye(3)) == pytest.approx(3.0)


def test_a_singular_kernel_has_its_limit_where_the_formula_has_none():
    predict_fn = predict.gradient_descent_mse(np.diag([1.0, 0.0]), np.array([[0.0], [1.0]]))
    _close(predict_fn(3.0, None, 0.0, np.array([[0.0, 1.0]])), [[1.5]], 1e-12)
    assert np.isfinite(predict_fn(None, None, 0.0, np.array([[0.0, 1.0]]))).all()


def test_predictions_have_the_dtype_of_the_targets():
    y = jnp.ones((2, 1), jnp.float32)
    assert predict.gradient_descent_mse(jnp.eye(2, dtype=jnp.float32), y)(1.0).dtype == jnp.float32


@pytest.mark.parametrize("t", [None, 5.0])
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_with_a_ridge_the_training_set_is_still_the_test_set_at_the_training_inputs(get, t):
    z = golden()
    predict_fn = predict.gradient_descent_mse_ensemble(
        erf_kernel_fn, z["ens/x1"], z["ens/y"], 1.0, 0.1
    )
    left_out = predict_fn(t, None, get=get, compute_cov=True)
    given = predict_fn(t, z["ens/x1"], get=get, compute_cov=True)
    _close(left_out.mean, given.mean, 1e-12)
    _close(left_out.covariance, given.covariance, 1e-12)


@pytest.mark.parametrize(("get", "name"), [("nngp", "nngp"), ("ntkgp", "ntk")])
def test_gp_inference_of_the_training_set_is_its_posterior_given_noise(get, name):
    z = golden()
    train, _, _ = _ensemble_kernels()
    predict_fn = predict.gp_inference(train, z["ens/y"], 0.2, True)
    kernel = getattr(train, name)
    gain = kernel @ np.linalg.inv(kernel + 0.2 * np.eye(12))
    _close(predict_fn(get), gain @ z["ens/y"], 1e-9)
    _close(predict_fn(get, None, True).covariance, kernel - gain @ kernel, 1e-9)
    _close(predict_fn("ntk", None, True).mean, predict_fn("ntk", train, train).mean, 1e-12)
    _close(
        predict_fn("ntk", None, True).covariance, predict_fn("ntk", train, train).covariance, 1e-12
    )


def test_targets_that_are_integers_or_booleans_are_computed_in_floating_point():
    for y in (np.array([[3], [4]]), np.array([[True], [False]]), jnp.array([[3], [4]])):
        expected = np.asarray(y, np.float64) * -np.expm1(-0.5)
        _close(predict.gradient_descent_mse(np.eye(2), y)(1.0), expected, 1e-6)
        _close(predict.gp_inference(np.eye(2), y, 1.0, True)("nngp"), np.asarray(y) / 2, 1e-6)


def test_named_tuples_of_predictions_are_one_class_that_pickles():
    z = golden()
    train, cross, test = _ensemble_kernels()
    predict_fn = predict.gp_inference(train, z["ens/y"], 1e-3)
    first, second = (
        predict_fn(("ntk", "nngp"), cross, test),
        predict_fn(("ntk", "nngp"), cross, test),
    )
    assert type(first) is type(second) and first._fields == ("ntk", "nngp")
    for copied in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert type(copied) is type(first)
        np.testing.assert_array_equal(copied.ntk.mean, first.ntk.mean)
    doubled = jax.tree.map(lambda a, b: a + b, first, second)
    _close(doubled.nngp.covariance, 2 * first.nngp.covariance, 1e-12)


def test_the_covariance_of_trained_networks_needs_both_kernels():
    train, cross, test = _ensemble_kernels()
    y = golden()["ens/y"]
    for kernels in ((train.ntk, cross.ntk), (train, cross.ntk), (train.ntk, cross)):
        with pytest.raises(
            ValueError, match=r"expected NNGP and NTK.*pass Gram\(nngp=..., ntk=...\)"
        ):
            predict.gp_inference(kernels[0], y)("ntk", kernels[1], test.nngp)
    _close(
        predict.gp_inference(train.ntk, y)("ntk", cross.ntk),
        predict.gp_inference(train, y)("ntk", cross),
        1e-12,
    )
    predict.gp_inference(train.ntk, y)("ntkgp", cross.ntk, test.ntk)


def test_a_float32_kernel_keeps_its_rounding_and_its_variances_their_sign():
    x = np.linspace(-30, 30, 100)[:, None]
    kernel = np.exp(-((x - x.T) ** 2) / 100).astype(np.float32)
    cross = np.exp(-((x[:-1] + 0.3 - x.T) ** 2) / 100).astype(np.float32)
    prior = np.exp(-((x[:-1] - x[:-1].T) ** 2) / 100).astype(np.float32)
    y = np.sin(x / 5)
    mean, covariance = predict.gp_inference(kernel, y)("nngp", cross, prior)
    _close(mean, np.sin((x[:-1] + 0.3) / 5), 1e-2)
    assert np.diag(covariance).min() >= 0 and np.diag(covariance).max() < 1e-3


@pytest.mark.oracle
@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp"])
def test_predictions_are_those_of_neural_tangents(get):
    from neural_tangents import predict as theirs

    def kernel_fn(x1, x2, get):
        return erf_kernel_fn(x1, x2, get if isinstance(get, str) else ("nngp", "ntk"))

    z = golden()
    train, cross, test = (Kernels(*map(jnp.asarray, kernel)) for kernel in _ensemble_kernels())
    y = jnp.asarray(z["ens/y"])
    for diag_reg in (1e-3, 0.3):
        expected, found = (
            library.gp_inference(train, y, diag_reg) for library in (theirs, predict)
        )
        prior = test.ntk if get == "ntkgp" else test.nngp
        _close(found(get, cross, prior).mean, expected(get, cross, prior).mean, 1e-8)
        _close(found(get, cross, prior).covariance, expected(get, cross, prior).covariance, 1e-8)
        at_training = expected(get, train, train.ntk if get == "ntkgp" else train.nngp)
        _close(found(get, None, True).mean, at_training.mean, 1e-8)
        _close(found(get, None, True).covariance, at_training.covariance, 1e-8)
        if get != "ntkgp":
            own, other = (
                library.gradient_descent_mse_ensemble(
                    kernel_fn, jnp.asarray(z["ens/x1"]), y, 0.7, diag_reg
                )
                for library in (predict, theirs)
            )
            for t in (None, 5.0):
                arguments = dict(t=t, x_test=jnp.asarray(z["ens/x2"]), get=get, compute_cov=True)
                _close(own(**arguments).mean, other(**arguments).mean, 1e-8)
                _close(own(**arguments).covariance, other(**arguments).covariance, 1e-8)


EYE, Y = np.eye(2), np.ones((2, 3))
FULL = EYE[:, :, None, None] * np.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict.gradient_descent_mse(EYE, Y, trace_axes=()), r"trace_axes = \(\)"),
        (
            lambda: predict.gradient_descent_mse(EYE, Y, trace_axes=(0,)),
            r"k_train_train has shape \(2, 2\), expected \(3, 3\)",
        ),
        (
            lambda: predict.gradient_descent_mse(EYE, Y)(1.0, 0.0, 0.0),
            "fx_test_0 without k_test_train",
        ),
        (lambda: predict.gradient_descent_mse(EYE, Y)(-1.0), "times >= 0"),
        (lambda: predict.gradient_descent_mse(EYE, Y)(np.nan), "increasing times"),
        (lambda: predict.gradient_descent_mse(EYE + np.tri(2), Y)(1.0), "not symmetric"),
        (
            lambda: predict.gradient_descent_mse(EYE * np.nan, Y)(1.0),
            "4 entries that are not finite",
        ),
        (lambda: predict.gradient_descent_mse(EYE, Y * np.nan)(1.0), "y has 6 NaN"),
        (lambda: predict.gradient_descent_mse(EYE, Y, diag_reg=-0.1), "diag_reg got -0.1"),
        (lambda: predict.gp_inference(EYE, Y, diag_reg=np.nan)("nngp"), "diag_reg got nan"),
        (lambda: predict.gradient_descent(cross_entropy, EYE + np.tri(2), Y)(1.0), "not symmetric"),
        (lambda: predict.gradient_descent(cross_entropy, EYE, Y)(None), "only mse"),
        (lambda: predict.gradient_descent(cross_entropy, EYE, Y, momentum=1.0), "momentum got 1.0"),
        (lambda: predict.gp_inference(EYE, Y)("cov1"), "get = 'cov1'"),
        (lambda: predict.gradient_descent_mse(EYE, Y)([]), "at least one time"),
        (
            lambda: predict.gradient_descent_mse(EYE, Y)(1.0, np.ones((5, 1))),
            "fx_train_0 has shape",
        ),
        (lambda: predict.gp_inference(EYE, Y, trace_axes=()), r"write kernel\[:, :, None, None\]"),
        (lambda: predict.max_learning_rate(EYE, y_train_size=0), "y_train_size got 0"),
        (lambda: predict.max_learning_rate(EYE, y_train_size=-3), "y_train_size got -3"),
        (lambda: predict.gp_inference(Kernels(EYE, None), Y)("ntk"), "have no ntk"),
        (
            lambda: predict.gradient_descent_mse_ensemble(erf_kernel_fn, EYE, Y)(get="ntkgp"),
            "get = 'ntkgp'",
        ),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda a: predict.gradient_descent(cross_entropy, a * jnp.eye(2), Y),
        lambda a: predict.gradient_descent_mse_ensemble(erf_kernel_fn, a * jnp.eye(2), Y),
        lambda a: predict.gradient_descent_mse_ensemble(erf_kernel_fn, EYE, Y)(
            x_test=a * jnp.eye(2)
        ),
        lambda a: predict.max_learning_rate(a * jnp.eye(2)),
    ],
)
@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_inside_a_transformation_the_way_out_is_named(call, transform):
    with pytest.raises(
        TypeError,
        match=r"got a traced array, .* outside of jit, grad and vmap, or write .*jnp.linalg",
    ):
        transform(lambda a: (call(a), a)[1])(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: predict.gradient_descent_mse(Kernels(EYE, EYE), Y),
            "pass k_train_train.ntk or|Type-check",
        ),
        (lambda: predict.gradient_descent_mse("ntk", Y), "k_train_train got a str|Type-check"),
        (lambda: predict.gradient_descent(EYE, Y, 1.0), "loss got a ndarray|Type-check"),
        (
            lambda: predict.gradient_descent_mse_ensemble(EYE, EYE, Y),
            "kernel_fn got a ndarray|Type-check",
        ),
        (lambda: predict.gradient_descent_mse(EYE, Y * 1j), "y_train has dtype complex128"),
    ],
)
def test_an_argument_of_another_type_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_targets_without_an_axis_of_outputs_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"expected targets \[n, k\]: write y_train\[:, None\]"):
        predict.gradient_descent_mse(EYE, Y[:, 0])
