from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazynet.dropin.kymatio import Scattering2D
from lazynet.scattering import filter_bank, scattering2d, scattering_paths


def image(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_arguments_come_in_kymatio_s_order():
    names = list(inspect.signature(Scattering2D).parameters)
    assert names == ["J", "shape", "L", "max_order", "pre_pad", "backend", "out_type", "frontend"]


def test_calling_equals_the_transform_with_kymatio_s_pi():
    x, S = image(2, 3, 16, 16), Scattering2D(2, (16, 16), 4)
    expected = scattering2d(x, filter_bank((16, 16), 2, 4, pi="kymatio"))
    np.testing.assert_array_equal(S(x), expected)
    np.testing.assert_array_equal(S.scattering(x), expected)


@pytest.mark.parametrize(
    ("frontend", "to_numpy", "to_jax"),
    [
        (None, np.ndarray, jax.Array),
        ("numpy", np.ndarray, np.ndarray),
        ("jax", jax.Array, jax.Array),
    ],
)
def test_the_output_has_the_type_of_the_input_unless_the_frontend_fixes_it(
    frontend, to_numpy, to_jax
):
    S = Scattering2D(1, (8, 8), 2, frontend=frontend)
    assert isinstance(S(image(8, 8)), to_numpy)
    assert isinstance(S(jnp.asarray(image(8, 8))), to_jax)


@pytest.mark.extended
def test_jit_and_grad_go_through_the_object():
    x, S = jnp.asarray(image(8, 8)), Scattering2D(1, (8, 8), 2)
    np.testing.assert_allclose(jax.jit(S)(x), S(x), atol=1e-6)
    assert jax.grad(lambda u: S(u).sum())(x).shape == (8, 8)


def test_a_list_carries_the_coefficients_with_their_paths():
    x = image(2, 16, 16)
    array, entries = (Scattering2D(2, (16, 16), 4, out_type=kind)(x) for kind in ("array", "list"))
    assert len(entries) == len(scattering_paths(2, 4))
    assert entries[0]["j"] == entries[0]["n"] == entries[0]["theta"] == ()
    for k, entry in enumerate(entries):
        assert entry["n"] == tuple(
            j * 4 + t for j, t in zip(entry["j"], entry["theta"], strict=True)
        )
        np.testing.assert_array_equal(entry["coef"], array[:, k])


@pytest.mark.extended
def test_images_may_be_padded_by_the_caller():
    x, S = image(16, 20), Scattering2D(2, (16, 20), 4)
    padded = np.pad(x, S.filters.margins, mode="reflect")
    np.testing.assert_allclose(Scattering2D(2, (16, 20), 4, pre_pad=True)(padded), S(x), atol=1e-6)


def test_filters_are_listed_as_kymatio_lists_them():
    S = Scattering2D(3, (16, 16), 4)
    assert [(f["j"], f["theta"]) for f in S.psi] == [(j, t) for j in range(3) for t in range(4)]
    assert [[level.shape for level in f["levels"]] for f in S.psi[::4]] == [
        [(32, 32)],
        *[[(32, 32), (16, 16)]] * 2,
    ]
    assert [level.shape for level in S.phi["levels"]] == [(32, 32), (16, 16), (8, 8)] and S.phi[
        "j"
    ] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(out_type="dict"), "out_type"),
        (dict(frontend="torch"), "frontend"),
        (dict(max_order=3), "max_order"),
        (dict(J=0), "J got 0, expected an integer >= 1"),
        (dict(J=4), "does not fit"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scattering2D(**{"J": 2, "shape": (8, 8), **arguments})


@pytest.mark.extended
def test_a_pipeline_with_a_classifier_can_be_cloned_searched_and_pickled():
    from sklearn.base import clone
    from sklearn.datasets import load_digits
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    x, y = load_digits(return_X_y=True)
    x, y = x[:300].astype(np.float32), y[:300]
    pipeline = clone(make_pipeline(Scattering2D(1, (8, 8), 4), RidgeClassifier(1.0)))
    search = GridSearchCV(pipeline, {"scattering2d__L": [2, 4]}, cv=2).fit(x[:200], y[:200])
    assert search.score(x[200:], y[200:]) > 0.85
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(x[200:]), search.predict(x[200:]))


def test_rows_of_pixels_become_rows_of_coefficients():
    x, S = image(5, 64), Scattering2D(1, (8, 8), 2)
    np.testing.assert_array_equal(S.transform(x), S(x.reshape(5, 8, 8)).reshape(5, -1))
    np.testing.assert_array_equal(S.fit(x).predict(x), S.fit_transform(x))


def test_importing_it_does_not_import_scikit_learn_or_kymatio():
    code = "import sys, lazynet.scattering; print(sorted({'sklearn', 'kymatio', 'scipy.fft'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("shape", "J", "L", "max_order"),
    [
        ((32, 32), 2, 8, 2),
        ((28, 28), 3, 8, 2),
        ((33, 45), 2, 8, 2),
        ((31, 30), 2, 6, 2),
        ((32, 32), 5, 8, 2),
        ((32, 32), 2, 4, 2),
        ((32, 32), 2, 16, 2),
        ((16, 16), 1, 8, 2),
        ((8, 8), 3, 8, 1),
        ((64, 32), 4, 8, 1),
    ],
)
def test_kymatio_gives_the_same_numbers_metadata_and_filters(shape, J, L, max_order):
    from kymatio.scattering2d.frontend import numpy_frontend as frontend

    x = image(2, *shape, seed=1)
    theirs = frontend.ScatteringNumPy2D(J, shape, L, max_order, out_type="list")
    ours = Scattering2D(J, shape, L, max_order, out_type="list")
    expected, got = theirs(x), ours(x)
    assert [{k: e[k] for k in ("j", "n", "theta")} for e in got] == [
        {k: e[k] for k in ("j", "n", "theta")} for e in expected
    ]
    error = np.stack([e["coef"] for e in got]) - np.stack([e["coef"] for e in expected])
    assert np.linalg.norm(error) <= 1e-6 * np.linalg.norm(np.stack([e["coef"] for e in expected]))
    for ours_psi, theirs_psi in zip([*ours.psi, ours.phi], [*theirs.psi, theirs.phi], strict=True):
        assert (ours_psi["j"], ours_psi.get("theta")) == (theirs_psi["j"], theirs_psi.get("theta"))
        for a, b in zip(ours_psi["levels"], theirs_psi["levels"], strict=True):
            np.testing.assert_allclose(a, b, atol=5e-7)


def test_rows_of_another_width_are_refused_instead_of_mixed():
    S = Scattering2D(1, (8, 8), 2)
    for rows in (image(4, 32), image(4, 96), image(64), image(4, 0)):
        with pytest.raises(ValueError, match=r"transform got rows.*expected \[n, 64\]"):
            S.transform(rows)
    channels = image(3, 128)
    expected = S(channels.reshape(3, 2, 8, 8)).reshape(3, -1)
    np.testing.assert_array_equal(S.transform(channels), expected)


def test_parameters_that_are_refused_change_nothing():
    S = Scattering2D(1, (8, 8), 2)
    before, filters = S.get_params(), S.filters
    for wrong in ({"L": 3, "J": 9}, {"L": 0}, {"max_order": 3}, {"scale": 1}):
        with pytest.raises(ValueError):
            S.set_params(**wrong)
        assert S.get_params() == before and S.filters is filters
    assert S.set_params(L=3).filters.L == 3


def test_the_class_has_its_old_name_too():
    from lazynet import scattering

    assert scattering.Scattering2D is Scattering2D
    with pytest.raises(AttributeError, match="no attribute 'Scattering3D'"):
        _ = scattering.Scattering3D
