"""Triangles of symmetric matrices against the matrix, in memory and in stores that are killed, damaged and resumed."""

from __future__ import annotations

import inspect

import jax
import numpy as np
import pytest

from lazynet.kernels.analytic import analytic_kernel
from lazynet.models.activations import Relu
from lazynet.models.layers import Conv, Dense, GlobalAvgPool
from lazynet.models.model import serial
from lazynet.triangle import Triangle

MODEL = serial(Dense(1, 1.5, 0.1), Relu(), Dense(1))
X = np.random.default_rng(0).normal(size=(23, 6))


def symmetric(n, seed=0):
    matrix = np.random.default_rng(seed).normal(size=(n, n))
    return matrix + matrix.T


@pytest.mark.parametrize(("n", "side"), [(1, 1), (5, 2), (6, 3), (7, 10)])
def test_a_triangle_is_its_matrix(n, side):
    matrix = symmetric(n)
    triangle = Triangle.of(matrix, side=side)
    np.testing.assert_array_equal(np.asarray(triangle), matrix)
    np.testing.assert_array_equal(triangle.diagonal(), np.diag(matrix))
    assert (triangle.shape, triangle.ndim, len(triangle)) == ((n, n), 2, n)
    columns = np.random.default_rng(1).normal(size=(n, 3))
    np.testing.assert_allclose(triangle @ columns, matrix @ columns, atol=1e-13)


def test_rows_and_columns_are_those_of_the_matrix_in_any_order():
    matrix = symmetric(11)
    triangle = Triangle.of(matrix, side=4)
    rows = np.array([10, 0, 5, 5, -2])
    np.testing.assert_array_equal(triangle[rows], matrix[rows])
    np.testing.assert_array_equal(triangle[rows, 3:9], matrix[rows, 3:9])
    np.testing.assert_array_equal(triangle[:7, rows], matrix[:7, rows])
    np.testing.assert_array_equal(triangle[2:2, :], matrix[2:2, :])
    with pytest.raises(TypeError, match=r"rows or columns got 3, expected a slice or an array"):
        triangle[3]


@pytest.mark.parametrize("m", [1, 4, 6, 11])
def test_the_leading_submatrix_shares_the_blocks(m):
    matrix = symmetric(11)
    triangle = Triangle.of(matrix, side=4)
    leading = triangle.leading(m)
    assert leading.blocks is triangle.blocks and leading.shape == (m, m)
    np.testing.assert_array_equal(np.asarray(leading), matrix[:m, :m])
    np.testing.assert_array_equal(np.asarray(leading.leading(1)), matrix[:1, :1])
    np.testing.assert_array_equal(leading.diagonal(), np.diag(matrix)[:m])
    np.testing.assert_allclose(leading @ np.eye(m), matrix[:m, :m], atol=1e-13)
    np.testing.assert_array_equal(leading[:, -1:], matrix[:m, m - 1 : m])


def test_a_leading_submatrix_of_more_rows_is_refused():
    with pytest.raises(ValueError, match="m got 4"):
        Triangle.of(np.eye(3), side=2).leading(4)


def test_products_are_in_double_precision_of_a_matrix_in_single_precision():
    matrix = symmetric(9).astype(np.float32)
    columns = np.random.default_rng(1).normal(size=(9, 2))
    product = Triangle.of(matrix, side=4) @ columns
    np.testing.assert_allclose(product, matrix.astype(np.float64) @ columns, atol=1e-13)


@pytest.mark.parametrize("stored", [False, True])
def test_the_triangle_of_a_kernel_is_the_kernel(stored, tmp_path):
    full = analytic_kernel(MODEL, X, tile=8)
    store = tmp_path / "store" if stored else None
    half = analytic_kernel(MODEL, X, tile=8, store=store, triangle=True)
    for name in full._fields:
        assert isinstance(getattr(half, name), Triangle)
        np.testing.assert_array_equal(getattr(half, name), getattr(full, name))


@pytest.mark.parametrize("triangle", [False, True])
@pytest.mark.parametrize("name", ["nngp", "ntk"])
def test_a_store_may_hold_one_of_the_two_kernels(name, triangle, tmp_path):
    full = analytic_kernel(MODEL, X, tile=8)
    settings = {"tile": 8, "store": tmp_path / "store", "triangle": triangle}
    gram = analytic_kernel(MODEL, X, get=name, **settings)
    assert getattr(gram, {"nngp": "ntk", "ntk": "nngp"}[name]) is None
    np.testing.assert_array_equal(getattr(gram, name), getattr(full, name))
    files = {path.name for path in (tmp_path / "store").iterdir()}
    assert files == {f"{name}.npy", "done.npy", "manifest.json"}
    for changed in ({"get": None}, {"get": name, "triangle": not triangle}):
        with pytest.raises(ValueError, match="belongs to another kernel"):
            analytic_kernel(MODEL, X, **(settings | changed))


def test_one_kernel_without_a_store_and_under_jit_is_the_kernel():
    full = analytic_kernel(MODEL, X)
    for one in (analytic_kernel, jax.jit(analytic_kernel, static_argnums=0, static_argnames="get")):
        gram = one(MODEL, X, get="ntk")
        assert gram.nngp is None
        np.testing.assert_allclose(gram.ntk, full.ntk, rtol=1e-6)


def test_a_stored_triangle_takes_half_of_the_disk(tmp_path):
    sizes = []
    for triangle in (False, True):
        store = tmp_path / str(triangle)
        analytic_kernel(MODEL, X, tile=1, store=store, get="ntk", triangle=triangle)
        sizes.append((store / "ntk.npy").stat().st_size - 128)
    assert sizes[1] / sizes[0] == pytest.approx(24 / 46)


def _damage(store, tile):
    values = np.load(store / "ntk.npy", mmap_mode="r+")
    values[tile, 1, 1] += 1e-6
    values.flush()


def test_tiles_are_compared_with_their_checksums_when_they_are_first_read(tmp_path):
    settings = {"tile": 8, "store": tmp_path / "store", "get": "ntk", "triangle": True}
    expected = np.array(analytic_kernel(MODEL, X, **settings).ntk)
    _damage(tmp_path / "store", 4)
    kernel = analytic_kernel(MODEL, X, **settings).ntk
    np.testing.assert_array_equal(kernel[:8], expected[:8])  # the damaged tile is none of these
    with pytest.raises(ValueError, match=r"tile 4 of '.*store' is damaged.* computes this tile"):
        kernel @ np.ones((23, 1))
    np.testing.assert_array_equal(analytic_kernel(MODEL, X, **settings).ntk, expected)


def test_a_finished_triangle_is_opened_without_a_look_at_its_tiles(tmp_path, monkeypatch):
    settings = {"tile": 8, "store": tmp_path / "store", "triangle": True}
    analytic_kernel(MODEL, X, **settings)
    for name in ("_write", "_packed_checksum"):
        monkeypatch.delattr(f"lazynet.tiles.{name}")
    analytic_kernel(MODEL, X, **settings)


def test_missing_tiles_are_computed_before_those_that_are_there_are_read(tmp_path, monkeypatch):
    from lazynet import tiles

    settings = {"tile": 8, "store": tmp_path / "store"}
    expected = np.array(analytic_kernel(MODEL, X, **settings).ntk)
    done = np.load(tmp_path / "store" / "done.npy", mmap_mode="r+")
    done[3] = 0
    done.flush()
    order = []
    for name in ("_write", "_intact"):
        step = getattr(tiles, name)
        monkeypatch.setattr(
            tiles, name, lambda *rest, n=name, s=step: (order.append(n), s(*rest))[1]
        )
    np.testing.assert_array_equal(analytic_kernel(MODEL, X, **settings).ntk, expected)
    assert order == ["_write", *["_intact"] * 5]


def test_a_store_keeps_the_tile_with_which_it_was_begun(tmp_path):
    expected = np.array(analytic_kernel(MODEL, X, tile=7, store=tmp_path / "store").ntk)
    np.testing.assert_array_equal(analytic_kernel(MODEL, X, store=tmp_path / "store").ntk, expected)


def test_a_triangle_of_two_sets_and_an_unknown_kernel_are_refused():
    with pytest.raises(ValueError, match="triangle=True got two sets of inputs"):
        analytic_kernel(MODEL, X, X, triangle=True)
    with pytest.raises(ValueError, match=r"get got 'both', expected 'nngp', 'ntk' or None"):
        inspect.unwrap(analytic_kernel)(MODEL, X, get="both")
    with pytest.raises(ValueError, match="inside a jax transformation"):
        jax.jit(lambda x: analytic_kernel(MODEL, x, triangle=True).ntk)(X)


@pytest.mark.parametrize(
    ("n", "ndim", "side"), [(50_000, 2, 1021), (300, 2, 300), (5000, 4, 32), (50_000, 4, 256)]
)
def test_a_stored_kernel_of_any_size_has_thousands_of_tiles_at_most(n, ndim, side):
    from lazynet.kernels import analytic

    one = np.zeros((1, 4, 4, 1)[:ndim], np.float32)
    layers = (Dense(1),) if ndim == 2 else (Conv(1, (3, 3)), Relu(), GlobalAvgPool())
    assert analytic._balanced(serial(*layers), one, n, stored=True) == side
