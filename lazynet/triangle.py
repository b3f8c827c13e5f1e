"""Symmetric matrices of which only the upper triangle is held, as square blocks, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lazynet import guards
from lazynet.typing import ArrayLike

__all__ = ["Triangle"]


def _trusted(index: int) -> None:
    """Nothing: blocks in memory are what was put there."""


@dataclass(frozen=True, eq=False)
class Triangle:
    """A symmetric matrix `K [n, n]` as the blocks of its upper triangle, row by row: half of its memory.

    Every block is one piece of memory, so that a block of a mapped file is read and written as a
    whole: a product with K reads the file once, from its start to its end. `np.asarray` gives the
    whole matrix, where there is room for it.

    Attributes:
        blocks: Blocks (I, J) with I <= J, `[t, side, side]`; those at the edge are filled up with
            zeros.
        n: Rows of the matrix.
        check: Called with the number of a block before it is read, raises an error where the block
            is damaged.
        covered: Rows that the blocks cover, where they are more than those of the matrix.

    Example:
        >>> K = Triangle.of(np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]]), side=2)
        >>> K.shape, K.blocks.shape
        ((3, 3), (3, 2, 2))
        >>> (K @ np.ones((3, 1)))[:, 0].tolist(), K.diagonal().tolist()
        ([3.0, 4.0, 3.0], [2.0, 2.0, 2.0])
        >>> K[np.array([2]), :2].tolist()
        [[0.0, 1.0]]
    """

    blocks: Float[np.ndarray, "t side side"]
    n: int
    check: Callable[[int], None] = _trusted
    covered: int | None = None

    @classmethod
    def of(cls, matrix: Float[ArrayLike, "n n"], *, side: int) -> Triangle:
        """The triangle of a matrix in memory, whose lower half is not looked at.

        Args:
            matrix: K.
            side: Of the blocks.

        Example:
            >>> np.asarray(Triangle.of(np.eye(3), side=2)).tolist()
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        """
        array = guards.numbers("matrix", matrix)
        parts = range(0, len(array), guards.count("side", side))
        blocks = []
        for i in parts:
            for j in parts[i // side :]:
                block = array[i : i + side, j : j + side]
                missing = [(0, side - length) for length in block.shape]
                blocks.append(np.pad(block, missing))
        return cls(np.stack(blocks), len(array))

    def leading(self, m: int) -> Triangle:
        """The leading submatrix `K[:m, :m]`, of the same blocks and without a copy.

        Args:
            m: Rows.

        Example:
            >>> np.asarray(Triangle.of(np.diag([1.0, 2.0, 3.0]), side=2).leading(2)).tolist()
            [[1.0, 0.0], [0.0, 2.0]]
        """
        rows = guards.count("m", m, at_most=self.n)
        return Triangle(self.blocks, rows, self.check, self.covered or self.n)

    @property
    def shape(self) -> tuple[int, int]:
        """That of the matrix, `(n, n)`."""
        return self.n, self.n

    @property
    def ndim(self) -> int:
        """2, as that of every matrix."""
        return 2

    @property
    def dtype(self) -> np.dtype:
        """That of the blocks."""
        return self.blocks.dtype

    def __len__(self) -> int:
        return self.n

    def __matmul__(self, columns: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
        """`K V` in float64, whatever the dtype of the blocks, by reading each of them once."""
        # Columns as rows, and a block converted in place: twice as fast as the plain form.
        across_rows = np.ascontiguousarray(np.asarray(columns, np.float64).T)
        product = np.zeros_like(across_rows)
        converted = np.empty(self.blocks.shape[1:])
        for index, rows, across in self._places():
            values = self._read(index, rows, across)
            block = converted[: values.shape[0], : values.shape[1]]
            np.copyto(block, values)
            # (K V)' = V' K, and the blocks below the diagonal are K[J, I] = K[I, J]'.
            product[:, across] += across_rows[:, rows] @ block
            if rows != across:
                product[:, rows] += across_rows[:, across] @ block.T
        return product.T

    def __getitem__(self, key: Any) -> Float[np.ndarray, "r c"]:
        """Rows of the matrix by their numbers, `K[rows]`, or a part of its columns too, `K[rows, columns]`.

        Both may be slices or arrays of integers; the result is a copy in the dtype of the blocks.
        """
        chosen = key if isinstance(key, tuple) else (key, slice(None))
        rows, columns = (_numbers(part, self.n) for part in chosen)
        part = np.empty((len(rows), len(columns)), self.dtype)
        for index, upper, right in self._places():
            inside = _within(rows, upper), _within(columns, right)
            # Rows and columns below the diagonal are in the transposed block.
            mirrored = _within(rows, right), _within(columns, upper)
            if inside[0].size and inside[1].size:
                block = self._read(index, upper, right)
                local = np.ix_(rows[inside[0]] - upper.start, columns[inside[1]] - right.start)
                part[np.ix_(*inside)] = block[local]
            if upper != right and mirrored[0].size and mirrored[1].size:
                block = self._read(index, upper, right).T
                local = np.ix_(rows[mirrored[0]] - right.start, columns[mirrored[1]] - upper.start)
                part[np.ix_(*mirrored)] = block[local]
        return part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole matrix, a copy of it."""
        if copy is False:
            raise ValueError(
                "a Triangle holds half of its matrix, which is always a copy: leave out copy=False."
            )
        matrix = np.empty(self.shape, dtype or self.dtype)
        for index, rows, across in self._places():
            block = self._read(index, rows, across)
            # The block after its mirror image, which it replaces on the diagonal.
            matrix[across, rows] = block.T
            matrix[rows, across] = block
        return matrix

    def diagonal(self) -> Float[np.ndarray, " n"]:
        """`K_ii`, from the blocks on the diagonal alone."""
        diagonal = np.empty(self.n, self.dtype)
        for index, rows, across in self._places():
            if rows == across:
                diagonal[rows] = self._read(index, rows, across).diagonal()
        return diagonal

    def _places(self) -> list[tuple[int, slice, slice]]:
        """Number, rows and columns of each block that has a part in the matrix."""
        side = self.blocks.shape[1]
        parts = -(-(self.covered or self.n) // side)
        # Numbers are those of the file, which has blocks outside of the matrix, too.
        pairs = [(i, j) for i in range(parts) for j in range(i, parts)]
        places = []

        def part(k):
            return slice(k * side, min((k + 1) * side, self.n))

        for index, (i, j) in enumerate(pairs):
            if j * side < self.n:
                places.append((index, part(i), part(j)))
        return places

    def _read(self, index: int, rows: slice, across: slice) -> np.ndarray:
        self.check(index)
        return self.blocks[index, : rows.stop - rows.start, : across.stop - across.start]


def _numbers(part: Any, n: int) -> Int[np.ndarray, " r"]:
    """A slice, or an array of integers, as numbers of rows from 0 on."""
    if isinstance(part, slice):
        return np.arange(n)[part]
    numbers = np.asarray(part)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise TypeError(
            f"rows or columns got {part!r:.60}, expected a slice or an array [r] of integers: a single row "
            "is K[np.array([i])]."
        )
    return np.arange(n)[numbers]


def _within(numbers, part: slice) -> Int[np.ndarray, " r"]:
    return np.flatnonzero((numbers >= part.start) & (numbers < part.stop))
