"""Checks of arguments: what they let pass, in which type, and what they say of the rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazynet import guards


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), jnp.asarray(2.0)]
)
def test_a_number_comes_back_as_a_float(value):
    found = guards.number("rate", value, above=0)
    assert type(found) is float and found == 2.0


@pytest.mark.parametrize(
    "value", [True, "2", None, 2j, [2.0], np.ones(1), np.bool_(True)], ids=repr
)
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match=r"rate got .*, expected a finite number > 0"):
        guards.number("rate", value, above=0)


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, -np.inf])
def test_a_number_outside_of_its_bounds_is_refused(value):
    with pytest.raises(ValueError, match=r"rate got .*, expected a finite number > 0 and <= 1"):
        guards.number("rate", value, above=0, at_most=1)


def test_a_traced_number_passes():
    assert float(jax.jit(lambda value: guards.number("rate", value, above=0) * 2)(-1.0)) == -2.0


@pytest.mark.parametrize("value", [3, np.int32(3), np.array(3), jnp.asarray(3)])
def test_a_count_comes_back_as_an_int(value):
    found = guards.count("tile", value)
    assert type(found) is int and found == 3


@pytest.mark.parametrize(
    "value", [True, 3.0, "3", None, np.array(3.0), np.ones(2, int), jnp.asarray(3.0)], ids=repr
)
def test_what_is_no_count_is_named(value):
    with pytest.raises(TypeError, match=r"tile got .*, expected an integer >= 1"):
        guards.count("tile", value)


def test_a_count_outside_of_its_bounds_is_refused():
    with pytest.raises(
        ValueError, match="tile got 0, expected an integer from 1 to 5: take fewer."
    ):
        guards.count("tile", 0, at_most=5, fix="take fewer")


@pytest.mark.parametrize(
    "value", [[0, 2], (0, 2), range(0, 4, 2), np.array([0, 2]), jnp.array([0, 2])]
)
def test_steps_come_back_as_ints(value):
    found = guards.steps(value)
    assert found == [0, 2] and all(type(step) is int for step in found)


@pytest.mark.parametrize(
    "value", ["12", 3, [0.5, 1.7], None, [True, 2], np.array([1.0, 2.0])], ids=repr
)
def test_steps_that_are_no_integers_are_refused(value):
    with pytest.raises(TypeError, match=r"save_at.* got .*, expected"):
        guards.steps(value)


@pytest.mark.parametrize("value", [[], [-1, 2], [2, 2], [3, 1]], ids=repr)
def test_steps_that_do_not_increase_are_refused(value):
    with pytest.raises(ValueError, match=r"save_at.* got .*, expected"):
        guards.steps(value)


@pytest.mark.parametrize(
    "value", [np.ones(2), jnp.ones(2), np.float64(1), np.ones(2, bool), jnp.ones(2, jnp.bfloat16)]
)
def test_an_array_passes_as_it_is(value):
    assert guards.array("x", value) is value


class DataFrame(list):
    """Named like that of pandas."""


OTHERS = {
    "list": ([1.0], r"np\.asarray\(x\)"),
    "None": (None, r"np\.asarray\(x\)"),
    "frame": (DataFrame(), r"x\.to_numpy\(\)"),
    "masked": (np.ma.masked_array([1.0], [True]), "masked values"),
    "text": (np.array(["a"]), "dtype <U1"),
    "objects": (np.array([{}]), "dtype object"),
}


@pytest.mark.parametrize(("value", "advice"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_array_is_refused_with_what_to_write(value, advice):
    with pytest.raises(
        TypeError, match=f"x got an?.*, expected an array of numbers.*{advice}|{advice}.*expected"
    ):
        guards.array("x", value)


def test_a_sparse_matrix_is_refused_with_what_to_write():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"x\.toarray\(\)"):
        guards.array("x", sparse.csr_matrix(np.eye(2)))


@pytest.mark.parametrize("shapes", [((3, 1), (4, 1)), ((0, 1), (0, 1)), ((3, 1), ())])
def test_unequal_numbers_of_examples_are_refused(shapes):
    with pytest.raises(ValueError, match="same number of examples >= 1"):
        guards.same_length(x=np.zeros(shapes[0]), y=np.zeros(shapes[1]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("library", [np, jnp])
def test_nan_is_found_in_every_inexact_dtype(dtype, library):
    values = library.asarray([1.0, np.nan], dtype)
    with pytest.raises(ValueError, match=r"x has 1 NaN and 0 infinite of 2 values, first at \[1\]"):
        guards.finite("x", values)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere the device counts")
def test_values_on_a_cpu_are_read_without_a_program_for_their_shape():
    values = jnp.ones((7, 11, 3))
    with jax.no_tracing():
        guards.finite("x", values)
