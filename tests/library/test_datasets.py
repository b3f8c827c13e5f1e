"""Small data sets, balanced draws and preprocessing, against closed forms and direct counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazynet.datasets import (
    balanced_subset,
    center_targets,
    check_data,
    crop_and_flip,
    digits,
    one_hot,
    one_hot_centered,
    standardize,
    tabular,
    teacher_student,
    zca,
)
from lazynet.datasets.sampling import round_robin
from lazynet.records import Data


def counts(data: Data) -> np.ndarray:
    return np.asarray(data.y).sum(axis=0).astype(int)


def rows(data: Data) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(data.x)}


def images(n: int = 12, dtype=np.float64) -> Data:
    x = np.random.default_rng(0).normal(size=(n, 4, 5, 3)) * [1.0, 2.0, 3.0] + [5.0, -1.0, 0.3]
    return Data(x.astype(dtype), np.ones((n, 1), dtype))


# --- values at the edges

UNITS = [1e300, 1e-300, 5e307]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("statistic", ["feature", "channel", "global"])
def test_standardized_inputs_do_not_depend_on_the_unit_of_float64(unit, statistic):
    data = Data(np.random.default_rng(1).uniform(-1, 1, (6, 2, 2, 3)), np.ones((6, 1)))
    there = data._replace(x=data.x * unit)
    scaled = standardize(there, there, center=statistic, scale=statistic)
    expected = standardize(data, center=statistic, scale=statistic)[0].x
    for found in scaled:
        np.testing.assert_allclose(found.x, expected, atol=1e-14)
    np.testing.assert_allclose(zca(there)[0].x, zca(data)[0].x, rtol=1e-9)


@pytest.mark.parametrize("unit", UNITS)
def test_centering_alone_keeps_the_unit(unit):
    x = np.random.default_rng(1).uniform(-1, 1, (6, 3))
    (centered,) = standardize(Data(unit * x, np.ones((6, 1))), scale=None)
    np.testing.assert_allclose(centered.x / unit, x - x.mean(axis=0), atol=1e-14)


def test_columns_of_any_units_are_standardized_one_by_one():
    x = np.random.default_rng(1).normal(size=(6, 4)) * [1e300, 1.0, 1e-300, 1e-3]
    (scaled,) = standardize(Data(x, np.ones((6, 1))), scale="feature")
    np.testing.assert_allclose(scaled.x.std(axis=0), 1)


def test_standardized_float32_inputs_do_not_depend_on_their_unit():
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    (scaled,) = standardize(Data(x * np.float32(1e25), np.ones((6, 1))))
    np.testing.assert_allclose(scaled.x, standardize(Data(x, np.ones((6, 1))))[0].x, atol=1e-6)


def test_integer_one_hot_rows_are_centered_as_numbers():
    centered = center_targets(Data(np.ones((2, 1)), np.eye(2, dtype=int)))
    assert centered.y.tolist() == [[0.5, -0.5], [-0.5, 0.5]]


NAN, KEY = Data(np.ones((2, 1)), np.full((2, 2), np.nan)), jax.random.key(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: center_targets(NAN), ValueError, "y has 4 NaN"),
        (lambda: center_targets(Data(np.ones((2, 1)), np.ones((2, 1)))), ValueError, "k >= 2"),
        (lambda: one_hot([0], 0), ValueError, "classes got 0, expected an integer >= 1"),
        (lambda: one_hot([0], 2.0), TypeError, "classes got 2.0, expected an integer >= 1"),
        (
            lambda: one_hot(np.ma.array([0, 1], mask=[0, 1]), 2),
            TypeError,
            "labels got a MaskedArray",
        ),
        (lambda: one_hot([[0], [1, 2]], 3), ValueError, "labels are no array"),
        (
            lambda: one_hot_centered([0], 2, int),
            TypeError,
            "dtype is int64, expected floating point",
        ),
        (lambda: check_data(Data([[1.0]], [[1.0]])), TypeError, "data.x got a list"),
        (lambda: check_data(np.ones((2, 2))), TypeError, r"data got .*pass Data\(x, y\)"),
        (
            lambda: standardize(Data(np.ones((0, 2)), np.ones((0, 1)))),
            ValueError,
            "at least one example",
        ),
        (
            lambda: standardize(images(), center="pixel"),
            ValueError,
            "unknown statistic center='pixel'",
        ),
        (lambda: zca(images(), bias=np.nan), ValueError, "bias got nan"),
        (lambda: balanced_subset(NAN, 1, seed=0), ValueError, "y has 4 NaN"),
        (
            lambda: balanced_subset(Data(np.ones((2, 1)), np.eye(2)), 1.0, seed=0),
            TypeError,
            "n got 1.0, expected an integer",
        ),
        (lambda: digits(0), ValueError, "n_train got 0, expected an integer >= 1"),
        (lambda: digits(10.0), TypeError, "n_train got 10.0"),
        (lambda: digits(10, -1), ValueError, "n_test got -1"),
        (lambda: digits(10, 10, seed=None), TypeError, "seed got None"),
        (lambda: tabular("iris", test_fraction=np.nan), ValueError, "test_fraction got nan"),
        (
            lambda: tabular("iris", test_fraction=1e-9),
            ValueError,
            "expected one that leaves every class",
        ),
        (lambda: teacher_student(KEY, n_train=2.0), TypeError, "n_train got 2.0"),
        (
            lambda: crop_and_flip(KEY, jnp.ones((2, 3))),
            ValueError,
            r"x has shape \(2, 3\), expected \[n, height",
        ),
        (
            lambda: crop_and_flip(KEY, jnp.ones((1, 2, 2, 1)), padding=1.0),
            TypeError,
            "padding got 1.0",
        ),
    ],
)
@pytest.mark.usefixtures("unannotated")
def test_what_a_data_set_cannot_be_made_of_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- digits and tables


def test_digits_have_the_requested_sizes_and_pixels_between_zero_and_one():
    train, test = digits()
    assert train.x.shape == (1000, 64) and test.x.shape == (797, 64) and test.y.shape == (797, 10)
    assert train.x.min() == 0 and train.x.max() == 1
    assert train.x.dtype == train.y.dtype == np.float64


@pytest.mark.parametrize("n_train", [500, 995, 1000])
def test_digits_training_classes_differ_by_at_most_one(n_train):
    train, _ = digits(n_train)
    assert np.ptp(counts(train)) <= 1


def test_digits_test_classes_differ_by_at_most_one_where_images_suffice():
    _, test = digits(500, 500)
    assert np.ptp(counts(test)) <= 1


def test_digits_train_and_test_images_together_are_the_whole_collection():
    train, test = digits()
    x = jnp.asarray(np.concatenate([train.x, test.x]))
    whole, _ = tabular("digits")
    assert counts(train).sum() + counts(test).sum() == len(x) == 1797
    assert rows(whole._replace(x=np.asarray(whole.x) / 16)) <= rows(train) | rows(test)


def test_digits_test_set_is_the_same_for_every_smaller_training_set():
    assert all(np.array_equal(digits(n)[1].x, digits(1000)[1].x) for n in (10, 500))


def test_digits_training_sets_of_one_seed_are_nested():
    assert np.array_equal(digits(100)[0].x, digits(1000)[0].x[:100])


def test_digits_of_another_seed_are_another_draw():
    assert not np.array_equal(digits(100, seed=0)[0].x, digits(100, seed=1)[0].x)


def test_digits_take_the_default_dtype_when_x64_is_off(monkeypatch):
    monkeypatch.setattr(jnp, "result_type", lambda *_: np.dtype(np.float32))
    train, _ = digits(10, 10)
    assert train.x.dtype == train.y.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "n", "columns", "classes"),
    [
        ("iris", 150, 4, 3),
        ("wine", 178, 13, 3),
        ("breast_cancer", 569, 30, 2),
        ("digits", 1797, 64, 10),
    ],
)
def test_tables_split_all_rows_with_the_share_of_every_class(name, n, columns, classes):
    train, test = tabular(name, test_fraction=0.2)
    assert (
        train.x.shape[1] == columns
        and train.y.shape[1] == classes
        and len(train.x) + len(test.x) == n
    )
    assert np.abs(counts(test) - 0.2 * (counts(train) + counts(test))).max() <= 1


# --- teacher


@pytest.mark.extended
def test_a_teacher_with_one_neuron_is_recovered_with_unit_weight_by_least_squares():
    train, test = teacher_student(jax.random.key(3), n_train=50, n_test=50, d=4, width=1)
    active = train.y[:, 0] != 0
    weight, *_ = np.linalg.lstsq(train.x[active], np.abs(train.y[active, 0]))
    assert np.linalg.norm(weight) == pytest.approx(1, rel=1e-12)
    assert np.abs(test.y[:, 0]) == pytest.approx(np.maximum(test.x @ weight, 0), abs=1e-12)


@pytest.fixture(scope="module")
def teachers() -> list[Data]:
    """Test sets of 60 teachers with 3 neurons in R^8, 500 inputs each."""
    keys = jax.random.split(jax.random.key(1), 60)
    return [teacher_student(key, n_train=1, n_test=500, d=8, width=3)[1] for key in keys]


def test_teacher_inputs_have_unit_norm(teachers):
    assert np.linalg.norm(teachers[0].x, axis=1) == pytest.approx(np.ones(500), rel=1e-14)


def test_teacher_inputs_are_isotropic(teachers):
    x = np.concatenate([data.x for data in teachers])
    variance = 3 / (8 * 10) - 1 / 8**2
    assert (x**2).mean(axis=0) == pytest.approx(
        np.full(8, 1 / 8), abs=5 * np.sqrt(variance / len(x))
    )


def test_squared_teacher_outputs_average_width_over_twice_the_dimension(teachers):
    squares = [np.mean(data.y**2) for data in teachers]
    assert np.mean(squares) == pytest.approx(
        3 / (2 * 8), abs=4 * np.std(squares) / np.sqrt(len(squares))
    )


# --- labels


def test_one_hot_rows_have_a_one_at_the_label():
    assert one_hot(jnp.array([1, 0, 2]), 3).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_centered_one_hot_rows_sum_to_zero():
    assert one_hot_centered([0, 3], 4).sum(axis=1) == pytest.approx(np.zeros(2), abs=1e-15)


def test_centering_one_hot_targets_gives_centered_one_hot_targets():
    data = Data(np.ones((2, 1)), one_hot([2, 1], 3))
    assert np.array_equal(center_targets(data).y, one_hot_centered([2, 1], 3))


@pytest.mark.parametrize("make", [one_hot, one_hot_centered])
def test_one_hot_targets_take_the_dtype_asked_for(make):
    assert make([0], 2, np.float32).dtype == np.float32 and make([0], 2).dtype == np.float64


# --- balanced subsets


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_any_part_of_the_rounds_is_balanced_among_classes_that_still_have_examples(labels, draw):
    labels = np.array(labels)
    order = round_robin(labels, 4, seed=draw.draw(st.integers(0, 9)))
    assert sorted(order) == list(range(len(labels)))
    complete = 4 * np.bincount(labels, minlength=4).min()
    start, stop = sorted(draw.draw(st.tuples(st.integers(0, complete), st.integers(0, complete))))
    assert np.ptp(np.bincount(labels[order[start:stop]], minlength=4)) <= 1


def test_a_balanced_subset_draws_each_example_at_most_once():
    data = Data(np.arange(40.0)[:, None], np.tile(np.eye(4), (10, 1)))
    subset = balanced_subset(data, 39, seed=5)
    assert len(rows(subset)) == 39 and np.ptp(counts(subset)) <= 1


def test_a_balanced_subset_keeps_inputs_and_targets_together():
    labels = np.random.default_rng(0).integers(0, 3, 50)
    subset = balanced_subset(
        Data(labels[:, None].astype(float), one_hot_centered(labels, 3)), 20, seed=0
    )
    assert np.array_equal(subset.y.argmax(axis=1), subset.x[:, 0])


# --- standardization


@pytest.mark.parametrize(
    ("axis", "over"), [("feature", (0,)), ("channel", (0, 1, 2)), ("global", (0, 1, 2, 3))]
)
def test_standardizing_leaves_mean_zero_and_deviation_one_over_the_named_axes(axis, over):
    (scaled,) = standardize(images(), center=axis, scale=axis)
    assert scaled.x.mean(axis=over) == pytest.approx(0, abs=1e-13)
    assert scaled.x.std(axis=over) == pytest.approx(1, rel=1e-13)


@pytest.mark.parametrize("center", [None, "feature", "channel", "global"])
@pytest.mark.parametrize("scale", [None, "feature", "channel", "global"])
def test_standardizing_equals_the_formula_with_numpy_statistics(center, scale):
    over = {"feature": (0,), "channel": (0, 1, 2), "global": None}
    train, test = images(), images(5)
    mean = train.x.mean(over[center], keepdims=True) if center else 0.0
    std = (train.x - mean).std(over[scale], keepdims=True) if scale else 1.0
    done = standardize(train, test, center=center, scale=scale)
    for before, after in zip((train, test), done, strict=True):
        np.testing.assert_allclose(after.x, (before.x - mean) / std, rtol=1e-12, atol=1e-13)


def test_the_default_divides_all_pixels_by_one_number():
    train, _ = digits(200)
    (scaled,) = standardize(train)
    assert scaled.x.std() == pytest.approx(1, rel=1e-12)
    centered = train.x - train.x.mean(axis=0)
    assert np.ptp(centered[scaled.x != 0] / scaled.x[scaled.x != 0]) < 1e-12


@pytest.mark.parametrize("transform", [standardize, zca])
def test_transformations_keep_dtype_and_targets_and_leave_the_original_alone(transform):
    data = images(dtype=np.float32)
    before = data.x.copy()
    (after,) = transform(data)
    assert after.x.dtype == np.float32 and after.x.shape == data.x.shape
    assert np.array_equal(after.y, data.y) and np.array_equal(before, data.x)


def test_float32_statistics_are_accumulated_in_float64():
    x = np.random.default_rng(0).normal(1000, 1, size=(2000, 50)).astype(np.float32)
    (scaled,) = standardize(Data(x, np.ones((2000, 1))), scale="feature")
    assert scaled.x.std(axis=0, dtype=np.float64) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("transform", [standardize, zca])
def test_transformations_accept_arrays_of_jax(transform):
    data = jax.tree.map(jnp.asarray, images())
    np.testing.assert_array_equal(transform(data)[0].x, transform(images())[0].x)


# --- whitening


def test_whitened_second_moment_is_c_over_c_plus_bias():
    x, bias = np.random.default_rng(1).normal(size=(40, 6)), 0.01
    z = x - x.mean(axis=1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    moment = z.T @ z / 40
    (white,) = zca(Data(x, np.ones((40, 1))), bias=bias)
    expected = moment @ np.linalg.inv(moment + bias * np.eye(6))
    np.testing.assert_allclose(white.x.T @ white.x / 40, expected, atol=1e-12)


def test_whitening_applies_one_symmetric_positive_matrix_to_the_normalized_examples():
    x = np.random.default_rng(2).normal(size=(30, 5))
    z = x - x.mean(axis=1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    train, test = zca(Data(x[:20], np.ones((20, 1))), Data(x[20:], np.ones((10, 1))), bias=0.1)
    matrix = np.linalg.solve(z[:20].T @ z[:20] + 1e-9 * np.eye(5), z[:20].T @ train.x)
    np.testing.assert_allclose(z[20:] @ matrix, test.x, atol=1e-6)
    # The direction of ones is in the kernel of z, where W is unseen.
    projector = np.eye(5) - 0.2
    seen = projector @ matrix @ projector
    np.testing.assert_allclose(seen, seen.T, atol=1e-6)
    assert np.linalg.eigvalsh(seen)[1] > 0


def test_whitening_ignores_the_brightness_and_contrast_of_an_image():
    data = images()
    brighter = data._replace(x=3.0 * data.x + 2.0)
    np.testing.assert_allclose(zca(data, brighter)[1].x, zca(data)[0].x, atol=1e-11)


# --- checks and bad input


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray, lambda a: jnp.asarray(a, jnp.bfloat16)])
def test_good_data_pass_the_check(array):
    assert check_data(Data(array(np.ones((3, 4, 4, 1))), array(np.ones((3, 2))))) is None


def _x(value: float = 0.0, dtype=np.float64, shape=(3, 2)) -> np.ndarray:
    x = np.ones(shape)
    x.flat[-1] = value
    return x.astype(dtype)


BAD = {
    "NaN": (
        lambda: check_data(Data(_x(np.nan), _x()), "train"),
        ValueError,
        r"train\.x has 1 NaN and 0 .*at \[2, 1\]",
    ),
    "infinity": (
        lambda: check_data(Data(_x(), _x(np.inf))),
        ValueError,
        r"data\.y has 0 NaN and 1 inf",
    ),
    "byte images": (
        lambda: check_data(Data(_x(dtype=np.uint8), _x())),
        TypeError,
        r"uint8.*x\.astype\(float\) / 255",
    ),
    "complex table": (
        lambda: check_data(Data(_x(dtype=complex), _x())),
        TypeError,
        r"complex128.*x\.astype\(float\)$",
    ),
    "integer targets": (
        lambda: check_data(Data(_x(), _x(dtype=int))),
        TypeError,
        r"data\.y .*one_hot\(labels, classes\)",
    ),
    "scalar inputs": (
        lambda: check_data(Data(_x(shape=(3,)), _x())),
        ValueError,
        r"shape \(3,\).*x\[:, None\]",
    ),
    "flat targets": (
        lambda: check_data(Data(_x(), _x(shape=(3,)))),
        ValueError,
        r"shape \(3,\).*y\[:, None\]",
    ),
    "unequal numbers": (
        lambda: check_data(Data(_x(), _x(shape=(4, 2)))),
        ValueError,
        "3 inputs and 4 targets",
    ),
    "no examples": (
        lambda: check_data(Data(np.ones((0, 2)), np.ones((0, 1)))),
        ValueError,
        "0 inputs and 0 targets",
    ),
    "large label": (
        lambda: one_hot([0, 7], 3),
        ValueError,
        r"labels\[1\] = 7.*integers from 0 to 2",
    ),
    "negative label": (lambda: one_hot([-1, 0], 3), ValueError, r"labels\[0\] = -1"),
    "fractional labels": (
        lambda: one_hot([0.0, 1.0], 2),
        TypeError,
        r"float64.*labels\.astype\(int\)",
    ),
    "column of labels": (
        lambda: one_hot([[0], [1]], 2),
        ValueError,
        r"shape \(2, 1\).*reshape\(-1\)",
    ),
    "targets centered twice": (
        lambda: center_targets(Data(_x(), one_hot_centered([0, 1, 1], 2))),
        ValueError,
        "row 0 sums to 0, expected 1",
    ),
    "subset larger than a class": (
        lambda: balanced_subset(Data(_x(), one_hot([0, 1, 1], 2)), 4, seed=0),
        ValueError,
        "class 0 has only 1 of 3.*at most 2",
    ),
    "empty subset": (
        lambda: balanced_subset(Data(_x(), one_hot([0, 1, 1], 2)), 0, seed=0),
        ValueError,
        "n got 0",
    ),
    "subset of a regression": (
        lambda: balanced_subset(Data(_x(), _x(shape=(3, 1))), 2, seed=0),
        ValueError,
        r"shape \(3, 1\).*k >= 2",
    ),
    "too many digits": (
        lambda: digits(1500, 500),
        ValueError,
        r"1500 \+ 500, expected at most 1797",
    ),
    "no test digits": (lambda: digits(10, 0), ValueError, "n_test got 0"),
    "unbalanced digits": (
        lambda: digits(1790, 5),
        ValueError,
        "class 8 has only 174 of 1797: ask for at most 1740",
    ),
    "unknown table": (
        lambda: tabular("mnist"),
        ValueError,
        "'mnist', expected one of breast_cancer, digits, iris, wine",
    ),
    "whole table as test": (
        lambda: tabular("iris", test_fraction=1.0),
        ValueError,
        "test_fraction got 1.0",
    ),
    "teacher without neurons": (
        lambda: teacher_student(jax.random.key(0), width=0),
        ValueError,
        "width got 0",
    ),
    "unknown statistic": (
        lambda: standardize(images(), scale="pixel"),
        ValueError,
        "'pixel', expected one of 'feature'",
    ),
    "constant pixel": (
        lambda: standardize(digits(100)[0], scale="feature"),
        ValueError,
        "of 64 inputs.*scale='global'",
    ),
    "constant data": (
        lambda: standardize(Data(np.full((7, 3), 0.1), _x())),
        ValueError,
        "3 of 3 inputs.*scale=None",
    ),
    "other shape": (
        lambda: standardize(images(), Data(_x(), _x())),
        ValueError,
        r"shape \(2,\), but \(4, 5, 3\)",
    ),
    "integers to standardize": (
        lambda: standardize(Data(_x(dtype=int), _x())),
        TypeError,
        r"x\.astype\(float\)",
    ),
    "scalars to standardize": (
        lambda: standardize(Data(_x(shape=(3,)), _x())),
        ValueError,
        r"x\[:, None\]",
    ),
    "zero bias": (
        lambda: zca(images(), bias=0.0),
        ValueError,
        "bias got 0.0, expected a finite number > 0",
    ),
    "constant image": (
        lambda: zca(Data(np.array([[1.0, 2], [0.1, 0.1]]), _x())),
        ValueError,
        "1 of 2 .*first number 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_value_expectation_and_fix(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_inputs_with_nan_are_refused_beside_labels_too():
    x = np.ones((2, 3, 4))
    x[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="x has 1 NaN"):
        check_data(Data(x, np.zeros((2, 3), np.int32)), labels=True)
