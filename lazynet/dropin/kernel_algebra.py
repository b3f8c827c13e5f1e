"""Operations of neural-tangents' `Kernel` on the axes of its covariances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

__all__ = ["KernelAlgebra"]

COVARIANCES = ("nngp", "ntk", "cov1", "cov2")


class KernelAlgebra:
    """What a `Kernel` does with its covariances `[n1, n2, h, h, w, w, ...]`."""

    nngp: Any
    ntk: Any
    cov1: Any
    cov2: Any
    shape1: Any
    batch_axis: int
    channel_axis: int
    diagonal_batch: bool
    diagonal_spatial: bool
    is_reversed: bool
    replace: Callable[..., Any]

    def reverse(self) -> Any:
        """Axes of positions in the opposite order."""
        order = tuple(reversed(range(len(self.shape1) - 2)))
        return self.transpose(order).replace(is_reversed=not self.is_reversed)

    def transpose(self, axes: Sequence[int] | None = None) -> Any:
        """Axes of positions in another order, `axes` of the covariances' own."""
        if axes is None:
            return self
        each = 1 if self.diagonal_spatial else 2

        def moved(values, lead):
            places = [lead + each * axis + side for axis in axes for side in range(each)]
            return jnp.transpose(values, (*range(lead), *places))

        return self._mapped(moved)

    def dot_general(
        self, other1: Any, other2: Any, is_lhs: bool, dimension_numbers: lax.DotDimensionNumbers
    ) -> Any:
        """Covariances of `lax.dot_general` of the two sets of activations with constants.

        Args:
            other1: The constant for the first set.
            other2: For the second; both None for no product.
            is_lhs: Whether they stand on the left.
            dimension_numbers: Of the product. Where examples are contracted the covariances have no
                axes of them, and no layer can follow.

        Raises:
            ValueError: If one constant is None, since axes of the two sets would differ.
        """
        if other1 is None and other2 is None:
            return self
        if other1 is None or other2 is None:
            raise ValueError(
                "Kernel.dot_general got one constant, expected two or none: the two sets would have different axes."
            )
        kernel = self.reverse() if self.is_reversed else self
        product = _Product(kernel, other1.ndim, is_lhs, dimension_numbers)
        # `A1 S A2'` between the sets, and the same constant on both sides within each.
        others = {"nngp": (other1, other2), "ntk": (other1, other2)}
        others |= {"cov1": (other1, other1), "cov2": (other2, other2)}
        changes = {}
        for name, pair in others.items():
            values = getattr(kernel, name)
            if values is not None and jnp.ndim(values) > 0:
                lead = 1 if name.startswith("cov") and self.diagonal_batch else 2
                changes[name] = product(values, lead, *pair)
        axes = {name: product.after(getattr(self, name)) for name in ("batch_axis", "channel_axis")}
        return kernel.replace(**changes, **axes)

    def _mapped(self, function, names=COVARIANCES):
        """A function of covariances and the number of their axes of examples."""
        changes = {}
        for name in names:
            values = getattr(self, name)
            if values is not None and jnp.ndim(values) > 0:
                lead = 1 if name.startswith("cov") and self.diagonal_batch else 2
                changes[name] = function(values, lead)
        return self.replace(**changes)

    def __add__(self, other: Any) -> Any:
        """Covariances of activations plus an independent centered number of this deviation."""
        return self._mapped(lambda values, lead: values + other**2, ("nngp", "cov1", "cov2"))

    __sub__ = __add__

    def __mul__(self, scale: Any) -> Any:
        """Covariances of activations times a number."""
        return self._mapped(lambda values, lead: scale**2 * values)

    __rmul__ = __mul__

    def __truediv__(self, scale: Any) -> Any:
        """Covariances of activations divided by a number."""
        return self * (1 / scale)

    def __neg__(self) -> Any:
        """Covariances of activations of the other sign, which are the same."""
        return self

    __pos__ = __neg__


class _Product:
    """Subscripts of `A S B'` for a product with constants.

    Every axis of activations but that of channels has a subscript for each of the two partners, one
    and the same where only equal examples or positions are kept; so have the axes of the constants.
    """

    def __init__(self, kernel, other_ndim, is_lhs, numbers):
        self.kernel = kernel
        ndim = len(kernel.shape1)
        own = int(is_lhs)
        sizes = (other_ndim, ndim) if is_lhs else (ndim, other_ndim)
        contracted, batched = (
            [[axis % n for axis in axes] for axes, n in zip(both, sizes, strict=True)]
            for both in numbers
        )
        self.taken = [*batched[own], *contracted[own]]
        self.partners = dict(
            zip([*batched[1 - own], *contracted[1 - own]], self.taken, strict=True)
        )
        free = [("x", axis) for axis in range(ndim) if axis not in self.taken]
        others = [("other", axis) for axis in range(other_ndim) if axis not in self.partners]
        # The order of `dot_general`: batched axes, free ones of the left factor, of the right one.
        self.axes = [("x", axis) for axis in batched[own]]
        self.axes += [*others, *free] if is_lhs else [*free, *others]
        self.other_ndim = other_ndim

    def __call__(self, values, lead, other1, other2):
        """`A S B'` for covariances with so many axes of examples."""
        operands = [values, self._of_values(lead)]
        for side, other in enumerate((other1, other2)):
            own = [self._of_axis(("other", axis), side, lead) for axis in range(other.ndim)]
            operands += [other.astype(values.dtype), own]
        return jnp.einsum(*operands, self._of_outputs(lead), precision="highest")

    def after(self, axis):
        """Where an axis of activations is in the product, -1 if nowhere."""
        place = ("x", axis % len(self.kernel.shape1))
        return self.axes.index(place) if place in self.axes else -1

    def _of_values(self, lead):
        ends = (self.kernel.batch_axis, self.kernel.channel_axis)
        ends = [axis % len(self.kernel.shape1) for axis in ends]
        places = [("x", axis) for axis in range(len(self.kernel.shape1)) if axis not in ends]
        return self._in_pairs([("x", ends[0])], places, lead)

    def _of_outputs(self, lead):
        ends = (self.kernel.batch_axis, self.kernel.channel_axis)
        batch, channel = (("x", axis % len(self.kernel.shape1)) for axis in ends)
        places = [axis for axis in self.axes if axis not in (batch, channel)]
        return self._in_pairs([batch] if batch in self.axes else [], places, lead)

    def _in_pairs(self, examples, places, lead):
        subscripts = []
        for axis in (*examples, *places):
            for side in (0, 1):
                subscript = self._of_axis(axis, side, lead)
                # Where both partners have one subscript, the covariances have one axis.
                if subscript not in subscripts:
                    subscripts.append(subscript)
        return subscripts

    def _of_axis(self, axis, side, lead):
        """The subscript of an axis for the first or the second partner."""
        kind, number = axis
        if kind == "other" and number in self.partners:
            kind, number = "x", self.partners[number]
        is_batch = kind == "x" and number == self.kernel.batch_axis % len(self.kernel.shape1)
        alone = lead == 1 if is_batch else self.kernel.diagonal_spatial
        ndim = len(self.kernel.shape1)
        # Even for the first partner and odd for the second; even for both where they are equal.
        return 2 * (number if kind == "x" else ndim + number) + (0 if alone else side)
