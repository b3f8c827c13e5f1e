"""Oracles: NumPy's general solvers, matrices with known spectra, and the documented refusals."""

from __future__ import annotations

from contextlib import nullcontext

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

from lazynet import linalg


def _without_x64():
    return jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64()


def _psd(m, rank=None, seed=0):
    factor = np.random.default_rng(seed).normal(size=(m, rank or m))
    return factor @ factor.T


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_decomposition_reproduces_the_matrix_in_float64(dtype):
    matrix = _psd(6).astype(dtype)
    values, vectors, _ = linalg.eigh(matrix)
    assert values.dtype == vectors.dtype == np.float64
    np.testing.assert_allclose(
        (vectors * values) @ vectors.T, matrix, atol=1e-6 if dtype == np.float32 else 1e-12
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_rank_tolerance_is_the_rounding_of_the_input_dtype(dtype):
    eigen = linalg.eigh(jnp.diag(jnp.array([4.0, 1.0, 1.0, 1.0], dtype)))
    assert eigen.tolerance == 4 * float(jnp.finfo(dtype).eps) * 4.0 * 2.0


def test_a_negative_eigenvalue_tells_of_more_rounding_than_the_dtype():
    assert linalg.psd_eigh(np.diag([1.0, -1e-4])).tolerance == pytest.approx(2e-4)
    assert linalg.eigh(np.diag([1.0, -1e-4]), tolerance=0.5).tolerance == 0.5


def test_the_rank_tolerance_bounds_the_norm_of_the_rounding_of_a_kernel():
    for n in (10, 100, 1000):
        x = np.random.default_rng(n).normal(size=(n, 5))
        kernel = np.exp(-((x[:, None] - x) ** 2).sum(-1) / 10)
        rounding = np.linalg.norm(kernel.astype(np.float32) - kernel, 2)
        assert rounding < linalg.rank_tolerance(kernel.astype(np.float32)) < 300 * rounding


@pytest.mark.parametrize("ridge", [0.0, 1e-7, 1e-3, 1.0])
def test_cholesky_and_eigendecomposition_invert_alike(ridge):
    x = np.random.default_rng(0).normal(size=(80, 2))
    smooth = np.exp(-((x[:, None] - x) ** 2).sum(-1) / 2)
    for matrix in (
        smooth.astype(np.float32),
        smooth + np.diag(np.full(80, 0.1)),
        _psd(80, rank=40),
    ):
        eigen = linalg.ridge_eigh(matrix, ridge)
        expected = eigen.vectors @ (eigen.inverse_values(ridge) * (eigen.vectors.T @ np.ones(80)))
        solved = linalg.solve_psd(matrix, np.ones(80), ridge=ridge)
        np.testing.assert_allclose(solved, expected, atol=1e-5 * np.abs(expected).max())


def test_a_ridge_that_lifts_a_negative_eigenvalue_makes_a_plain_solve():
    matrix = np.diag([1.0, -0.1])
    np.testing.assert_allclose(
        linalg.solve_psd(matrix, np.ones(2), ridge=0.3), [1 / 1.3, 1 / 0.2], rtol=1e-12
    )
    inverse = linalg.ridge_eigh(matrix, 0.3).inverse_values(0.3)
    np.testing.assert_allclose(inverse, [1 / 0.2, 1 / 1.3], rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_inverted_where_its_digits_do_and_refused_where_not(dtype):
    x = np.random.default_rng(0).normal(size=(60, 3))
    kernel = jnp.asarray(np.exp(-((x[:, None] - x) ** 2).sum(-1) / 10), dtype)
    ridge = linalg.rank_tolerance(kernel)
    expected = np.linalg.solve(np.asarray(kernel, np.float64) + ridge * np.eye(60), np.ones(60))
    np.testing.assert_allclose(
        linalg.solve_psd(kernel, np.ones(60), ridge=ridge), expected, rtol=1e-9
    )
    with pytest.raises(ValueError, match=r"below its rounding .*: compute the kernel in float32"):
        linalg.solve_psd(kernel, np.ones(60), ridge=0.0)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e160, 1e300])
def test_ritz_values_are_found_at_any_scale(scale):
    matrix = _psd(6)
    values, _ = linalg.ritz_values(*linalg.lanczos(lambda v: (matrix * scale) @ v, np.ones(6), 6))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix) * scale, rtol=1e-9)


def test_the_decomposition_is_in_float64_when_x64_is_off():
    with _without_x64():
        values, vectors, _ = linalg.eigh(np.diag([1.0, 1e-12]))
        assert linalg.largest_eigenvalue(jnp.eye(2)) == 1.0
    assert values.dtype == vectors.dtype == np.float64
    assert values[0] == pytest.approx(1e-12, rel=1e-12)


def test_a_slightly_negative_eigenvalue_becomes_zero_and_keeps_its_direction():
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    eigen = linalg.psd_eigh((vectors * np.array([-1e-6, 1.0, 2.0])) @ vectors.T)
    assert eigen.values[0] == 0.0
    assert abs(eigen.vectors[:, 0] @ vectors[:, 0]) == pytest.approx(1.0, abs=1e-12)


def test_inverse_values_make_the_pseudo_inverse_of_a_singular_matrix():
    matrix = _psd(5, rank=3)
    eigen = linalg.psd_eigh(matrix)
    inverse = (eigen.vectors * eigen.inverse_values()) @ eigen.vectors.T
    np.testing.assert_allclose(
        inverse, np.linalg.pinv(matrix, hermitian=True), rtol=1e-10, atol=1e-12
    )


def test_inverse_values_with_a_ridge_make_the_inverse():
    matrix = _psd(5, rank=3)
    eigen = linalg.psd_eigh(matrix)
    inverse = (eigen.vectors * eigen.inverse_values(0.5)) @ eigen.vectors.T
    np.testing.assert_allclose(
        inverse, np.linalg.inv(matrix + 0.5 * np.eye(5)), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("columns", [(), (1,), (3,), (6, 2)])
def test_solve_psd_agrees_with_a_general_solver(columns):
    matrix, rhs = _psd(6), np.random.default_rng(1).normal(size=(6, *columns))
    inverse = np.linalg.inv(matrix + 0.1 * np.eye(6))
    expected = np.tensordot(inverse, rhs, 1)
    np.testing.assert_allclose(linalg.solve_psd(matrix, rhs, ridge=0.1), expected, rtol=1e-9)
    mean = np.full((6, 6), 1 / 6)
    solved = linalg.solve_psd(mean, rhs, ridge=0.0)
    np.testing.assert_allclose(solved, np.tensordot(mean, rhs, 1), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_solve_psd_gives_duplicate_rows_the_pseudo_inverse_even_when_rounding_lets_cholesky_pass(
    dtype,
):
    matrix = _psd(5)[np.ix_([0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 4])].astype(dtype)
    expected = np.linalg.pinv(matrix.astype(np.float64), rtol=1e-6, hermitian=True) @ np.ones(6)
    np.testing.assert_allclose(linalg.solve_psd(matrix, np.ones(6), ridge=0.0), expected, rtol=1e-8)


def test_solve_psd_refuses_a_matrix_that_is_no_kernel():
    with pytest.raises(ValueError, match="not positive semi-definite"):
        linalg.solve_psd(np.diag([1.0, -0.1]), np.ones(2), ridge=0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_by_blocks_of_a_mapped_file_is_that_of_the_matrix(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(linalg, "BLOCK_BYTES", 8 * 7 * 3)
    matrix, columns = _psd(7).astype(dtype), np.random.default_rng(1).normal(size=(7, 2))
    mapped = np.memmap(tmp_path / "kernel", dtype, "w+", shape=(7, 7))
    mapped[:] = matrix
    np.testing.assert_allclose(
        linalg.blocked_product(mapped, columns), matrix.astype(np.float64) @ columns, rtol=1e-12
    )
    full = _psd(6).reshape(3, 2, 3, 2).transpose(0, 2, 1, 3).astype(dtype)
    expected = linalg.kernel_matrix(full).astype(np.float64) @ columns[:6]
    np.testing.assert_allclose(linalg.blocked_product(full, columns[:6]), expected, rtol=1e-12)


@pytest.mark.parametrize("place", [(0, 6), (6, 0), (5, 6)])
def test_an_asymmetry_or_a_nan_is_found_in_any_block(monkeypatch, place):
    monkeypatch.setattr(linalg, "BLOCK_BYTES", 8 * 7 * 2)
    for value, message in ((1e3, "not symmetric"), (np.nan, "1 entries that are not finite")):
        matrix = _psd(7)
        matrix[place] = value
        with pytest.raises(ValueError, match=message):
            linalg.check_symmetric(matrix)


def test_the_full_kernel_of_decoupled_outputs_is_a_kronecker_product():
    gram, outputs = _psd(3)[:, :2], _psd(4, seed=1)
    full = gram[:, :, None, None] * outputs
    np.testing.assert_array_equal(linalg.kernel_matrix(full), np.kron(gram, outputs))


def test_the_largest_eigenvalue_is_that_of_the_decomposition():
    matrix = _psd(6)
    assert linalg.largest_eigenvalue(matrix) == pytest.approx(
        linalg.eigh(matrix).values[-1], rel=1e-12
    )


def test_rounding_asymmetry_of_float32_is_averaged_away():
    matrix = _psd(6) * (1 + 1e-6 * np.random.default_rng(1).normal(size=(6, 6)))
    symmetric = linalg.symmetric(matrix)
    np.testing.assert_array_equal(symmetric, symmetric.T)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\), expected \[m, m\]"),
        (np.ones((0, 0)), "m >= 1"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), "2 entries that are not finite"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "largest asymmetry is 0.5"),
    ],
)
@pytest.mark.parametrize("function", [linalg.eigh, linalg.psd_eigh, linalg.largest_eigenvalue])
def test_a_matrix_that_is_not_symmetric_and_finite_is_refused(function, matrix, message):
    with pytest.raises(ValueError, match=message):
        function(matrix)


@pytest.mark.parametrize("matrix", [np.diag([1.0, -0.1]), -np.eye(2)])
@pytest.mark.parametrize("function", [linalg.psd_eigh, linalg.check_positive])
def test_a_matrix_that_is_no_kernel_is_refused(function, matrix):
    with pytest.raises(ValueError, match=r"not positive semi-definite: lambda_min = -.*float64"):
        function(matrix)


@pytest.mark.parametrize("negative, refused", [(-1e-2, True), (-1e-4, False)])
def test_few_products_show_one_negative_eigenvalue_of_hundreds(negative, refused):
    orthogonal, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(300, 300)))
    values = np.append(np.arange(1.0, 300) ** -1.5, negative)
    matrix = orthogonal * values @ orthogonal.T
    expected = pytest.raises(ValueError, match="lambda_min = -0.0") if refused else nullcontext()
    with expected:
        linalg.check_positive(matrix)


@pytest.mark.parametrize("ridge", [-1e-3, np.nan, np.inf])
def test_a_ridge_that_is_not_a_number_from_zero_on_is_refused(ridge):
    with pytest.raises(ValueError, match=r"ridge got .*, expected a finite number >= 0"):
        linalg.solve_psd(np.eye(2), np.ones(2), ridge=ridge)


def test_a_right_hand_side_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"rhs of shape \(3,\), expected 2 rows"):
        linalg.solve_psd(np.eye(2), np.ones(3), ridge=0.0)


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 2, 3, 4)])
def test_a_kernel_with_other_axes_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected \[n1, n2\], or \[n1, n2, k, k\]"):
        linalg.kernel_matrix(np.ones(shape))


def test_decomposition_runs_on_device_arrays():
    assert linalg.eigh(jax.device_put(jnp.eye(3))).values.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.usefixtures("unannotated")
def test_a_blocked_product_refuses_columns_that_do_not_fit_and_has_no_rows_for_no_rows():
    kernel = np.arange(6.0).reshape(2, 3)
    with pytest.raises(ValueError, match=r"columns of shape \(4, 1\), expected \[3, c\]"):
        linalg.blocked_product(kernel, np.ones((4, 1)))
    with pytest.raises(TypeError, match="columns has dtype complex128"):
        linalg.blocked_product(kernel, np.ones((3, 1)) + 1j)
    assert linalg.blocked_product(kernel[:0], np.ones((3, 2))).shape == (0, 2)
