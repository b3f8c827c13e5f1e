"""The way from pixels to a layer as a list of steps, for programs that take a plane through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lazynet.covariance.pointwise import Covariance, Pointwise
from lazynet.covariance.windows import Size, Window
from lazynet.typing import Array

__all__ = ["Chain", "Joined", "Pointed", "Pooled", "Step", "Swept", "walked"]


class Pointed(NamedTuple):
    """A step that maps each pair of positions by itself, with the moments of both sets of images before it."""

    op: Pointwise
    before: Sequence[Callable[[], Covariance]]


class Swept(NamedTuple):
    """A step that averages over windows which move together, on images of a shape."""

    window: Window
    shape: Size


class Pooled(NamedTuple):
    """A step that sums over windows which move apart, times a scale for each of the two, on images of a shape.

    `own` are the moments before it of images that meet themselves; None where no image does.
    """

    window: Window
    shape: Size
    scale: float
    own: Callable[[], Covariance] | None


class Joined(NamedTuple):
    """A step that adds what several lists of steps make of the same planes."""

    branches: tuple[tuple[Step, ...], ...]


Step = Pointed | Swept | Pooled | Joined


class Chain(NamedTuple):
    """Steps from the pixels of two sets of images `[n, h, w, c]` to a layer.

    Example:
        >>> import jax.numpy as jnp
        >>> chain = Chain((jnp.ones((1, 2, 2, 3)),) * 2).window(Window((3, 3), (2, 2), "SAME"), (2, 2))
        >>> chain.steps[0].window.strides
        (2, 2)
    """

    images: tuple[Array, Array]
    steps: tuple[Step, ...] = ()

    def pointwise(self, op: Pointwise, before: Sequence[Callable[[], Covariance]]) -> Chain:
        """With one more step that maps each pair of positions by itself."""
        return self._replace(steps=(*self.steps, Pointed(op, tuple(before))))

    def window(self, window: Window, shape: Size) -> Chain:
        """With means over windows of images of a shape."""
        return self._replace(steps=(*self.steps, Swept(window, shape)))

    def pool(
        self, window: Window, shape: Size, scale: float, own: Callable[[], Covariance] | None
    ) -> Chain:
        """With sums over windows that move apart."""
        return self._replace(steps=(*self.steps, Pooled(window, shape, scale, own)))

    def join(self, others: Sequence[Chain | None]) -> Chain | None:
        """The sum with other chains from the same images, which share their first steps; None if one is None."""
        every = [self, *(other for other in others if other is not None)]
        # Chains that are None were left out above; moments in steps belong to these images.
        if len(every) <= len(others) or any(chain.images is not self.images for chain in every):
            return None
        # Steps that were taken before the branches divided are the same objects in all of them.
        shared = 0
        for step, *same in zip(*(chain.steps for chain in every), strict=False):
            if any(other is not step for other in same):
                break
            shared += 1
        tails = tuple(chain.steps[shared:] for chain in every)
        return self._replace(steps=(*self.steps[:shared], Joined(tails)))

    def moments(self) -> list[tuple]:
        """The moments of both sets before each step that maps pairs of positions."""
        pointed = [step for step in self.steps if isinstance(step, Pointed)]
        return [tuple(moments() for moments in step.before) for step in pointed]


def walked(steps: Sequence[Step]) -> Iterator[Pointed | Swept | Pooled]:
    """All steps, those of branches too.

    Example:
        >>> list(walked([Joined(((), ()))]))
        []
    """
    for step in steps:
        if isinstance(step, Joined):
            for branch in step.branches:
                yield from walked(branch)
        else:
            yield step
