"""neural-tangents' `Kernel` in front of the states of lazynet, and what of it `get` asks for."""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from lazynet.covariance.general.positions import Positions
from lazynet.dropin.kernel_algebra import KernelAlgebra
from lazynet.typing import Array

__all__ = ["Kernel"]


def _known(default: Any = dataclasses.MISSING) -> Any:
    """A field that is no array: part of the structure of a kernel, as its metadata tell users of neural-tangents."""
    return dataclasses.field(default=default, metadata={"pytree_node": False})


@dataclasses.dataclass(frozen=True)
class Kernel(KernelAlgebra):
    """Covariances of two sets of inputs after a layer, with the fields of neural-tangents' `Kernel`.

    Attributes:
        nngp: `[n1, n2, h, h, w, w, ...]`, or `[n1, n2, h, w, ...]` if `diagonal_spatial`.
        ntk: The tangent kernel of the same shape; 0 before the first weights; None if not computed.
        cov1: Covariances within the first set, `[n1, ...]`, or `[n1, n1, ...]` unless
            `diagonal_batch`.
        cov2: Within the second set; None if it is the first.
        x1_is_x2: Whether both sets are equal.
        is_gaussian: Whether activations are Gaussian.
        is_reversed: Whether axes of positions are in the opposite order; layers here never leave them so.
        is_input: Not used.
        diagonal_batch: Whether `cov1` and `cov2` are of each example by itself.
        diagonal_spatial: Whether only equal positions are kept.
        shape1: Shape of the activations of the first set.
        shape2: Of the second.
        batch_axis: Where their examples are.
        channel_axis: Where their channels are.
        mask1: What is missing in the first set, with an axis of size one for channels.
        mask2: In the second.

    Example:
        >>> from lazynet.dropin import stax
        >>> kernel = stax.serial(stax.Dense(4), stax.Relu())[2](jnp.eye(2))
        >>> kernel.replace(ntk=None).shape1
        (2, 4)
    """

    nngp: Any
    ntk: Any
    cov1: Any
    cov2: Any
    x1_is_x2: Any
    is_gaussian: bool = _known(False)
    is_reversed: bool = _known(False)
    is_input: bool = _known(False)
    diagonal_batch: bool = _known(True)
    diagonal_spatial: bool = _known(False)
    shape1: Any = _known(None)
    shape2: Any = _known(None)
    batch_axis: int = _known(0)
    channel_axis: int = _known(1)
    mask1: Any = None
    mask2: Any = None

    # whether what an example has with itself is exact; no field, since kernels made by hand are not
    _exact = False

    def replace(self, **changes: Any) -> Kernel:
        """A copy with the given fields changed."""
        changed = dataclasses.replace(self, **changes)
        kept = self._exact and not changes.keys() & {"nngp", "ntk", "cov1", "cov2"}
        return _marked(changed, kept)

    def asdict(self) -> dict[str, Any]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def astuple(self) -> tuple[Any, ...]:
        """The fields in order."""
        return tuple(self.asdict().values())

    def slice(self, n1_slice: slice, n2_slice: slice) -> Kernel:
        """The covariances of some of the examples."""
        own = self.cov1 if self.cov2 is None else self.cov2
        both = (n1_slice, n2_slice)
        within = [(part,) if self.diagonal_batch else (part, part) for part in both]
        known = self.ntk is not None and jnp.ndim(self.ntk) > 0
        mask2 = self.mask1 if self.cov2 is None else self.mask2
        # Different parts of one set are two sets.
        one = self.cov2 is None and n1_slice == n2_slice
        part = self.replace(
            x1_is_x2=self.x1_is_x2 if n1_slice == n2_slice else jnp.asarray(False),
            nngp=self.nngp[both],
            ntk=self.ntk[both] if known else self.ntk,  # pyright: ignore[reportOptionalSubscript]
            cov1=self.cov1[within[0]],
            cov2=None if one else own[within[1]],
            mask1=_cut(self.mask1, self.batch_axis, n1_slice),
            mask2=None if one else _cut(mask2, self.batch_axis, n2_slice),
        )
        n1, n2 = part.nngp.shape[:2]
        sized = part.replace(
            shape1=_sized(self.shape1, self.batch_axis, n1),
            shape2=_sized(self.shape2, self.batch_axis, n2),
        )
        return _marked(sized, self._exact and one)

    def mask(self, mask1: Any, mask2: Any) -> Kernel:
        """Zeros where a position of either partner is missing; for one set None is the mask of the first side."""
        masked = self.replace(mask1=mask1, mask2=mask2)
        if self.cov2 is None and mask2 is not None and mask2 is not mask1:
            # Two masks make two sets of one, which is known by identity: so a copy.
            masked = masked.replace(cov2=jnp.array(self.cov1))
        k = state_of(masked)
        return kernel_of(k.masked(k.masks)).replace(x1_is_x2=self.x1_is_x2)


ARRAYS = ("nngp", "ntk", "cov1", "cov2", "x1_is_x2", "mask1", "mask2")
KNOWN = tuple(f.name for f in dataclasses.fields(Kernel) if f.name not in ARRAYS)


def _flattened(kernel):
    arrays = [getattr(kernel, name) for name in ARRAYS]
    return arrays, (*(getattr(kernel, name) for name in KNOWN), kernel._exact)


def _rebuilt(known, arrays):
    *known, exact = known
    fields = dict(zip((*ARRAYS, *KNOWN), (*arrays, *known), strict=True))
    return _marked(Kernel(**fields), exact)


def _marked(kernel, exact):
    # The record is frozen, and this is no field of it.
    object.__setattr__(kernel, "_exact", exact)
    return kernel


jax.tree_util.register_pytree_node(Kernel, _flattened, _rebuilt)


def is_kernel(value: Any) -> bool:
    """Whether a leaf of a tree of kernels.

    Example:
        >>> is_kernel(jnp.eye(2))
        False
    """
    return isinstance(value, (Kernel, Positions))


def kernel_of(k: Positions | Kernel) -> Kernel:
    """The kernel of a state, or of a kernel itself.

    Example:
        >>> from lazynet.covariance.general.positions import position_kernel
        >>> kernel_of(position_kernel(jnp.ones((2, 3)), axes=(0, 1))).shape1
        (2, 3)
    """
    if isinstance(k, Kernel):
        return k
    batch, channel = k.context["axes"]
    rank = len(k.shape)
    one = k.own[0] is k.own[1]
    lead = 2 if k.whole else 1

    def outward(values, lead):
        return values if values is None or k.diagonal else interleaved(values, lead, rank)

    def mask(missing):
        return None if missing is None else outside(missing[..., None], batch, channel)

    tangent = outward(k.ntk, 2)
    # Before the first weights the tangent kernel of neural-tangents is a zero without axes.
    if tangent is None and k.trained:
        tangent = jnp.zeros((), k.nngp.dtype)
    n1, n2 = k.nngp.shape[:2]
    kernel = Kernel(
        nngp=outward(k.nngp, 2),
        ntk=tangent,
        cov1=outward(k.own[0], lead),
        cov2=None if one else outward(k.own[1], lead),
        x1_is_x2=jnp.asarray(one or k.context.get("equal", False)),
        is_gaussian=k.gaussian,
        diagonal_batch=not k.whole,
        diagonal_spatial=k.diagonal,
        shape1=laid((n1, *k.shape, k.features), batch, channel),
        shape2=laid((n2, *k.shape, k.features), batch, channel),
        batch_axis=batch,
        channel_axis=channel,
        mask1=mask(k.masks[0]),
        mask2=None if one else mask(k.masks[1]),
    )
    return _marked(kernel, k.same)


def state_of(kernel: Kernel, **context: Any) -> Positions:
    """The state that a kernel shows, however it was made.

    Example:
        >>> kernel = Kernel(jnp.eye(2), None, jnp.ones(2), None, True, True, shape1=(2, 9), shape2=(2, 9))
        >>> state_of(kernel).features
        9
    """
    kernel = kernel.reverse() if kernel.is_reversed else kernel
    shape = tuple(kernel.shape1)
    rank = len(shape) - 2
    axes = kernel.batch_axis % len(shape), kernel.channel_axis % len(shape)
    lead = 1 if kernel.diagonal_batch else 2

    def inward(values, lead):
        if values is None or kernel.diagonal_spatial:
            return values
        return interleaved(values, lead, rank, back=True)

    def mask(missing):
        return None if missing is None else jnp.all(jnp.moveaxis(missing, axes, (0, -1)), axis=-1)

    first = inward(kernel.cov1, lead)
    tangent = kernel.ntk
    if tangent is not None and jnp.ndim(tangent) == 0:
        tangent = None
    one = kernel.cov2 is None
    return Positions(
        nngp=inward(kernel.nngp, 2),  # pyright: ignore[reportArgumentType]
        ntk=inward(tangent, 2),
        own=(first, first if one else inward(kernel.cov2, lead)),  # pyright: ignore[reportArgumentType]
        features=shape[axes[1]],
        masks=(mask(kernel.mask1), mask(kernel.mask1 if one else kernel.mask2)),
        diagonal=kernel.diagonal_spatial,
        whole=not kernel.diagonal_batch,
        same=kernel._exact,
        gaussian=kernel.is_gaussian,
        # Branches that were computed apart have weights of their own.
        fresh=True,
        trained=kernel.ntk is not None,
        # The kernel says where its axes are, whatever the context did before.
        context={"equal": kernel.x1_is_x2, **context, "axes": axes},
    )


def chosen(kernel: Any, get: Any) -> Any:
    """What `get` asks for: all, one field, or a named tuple of fields in its order.

    Example:
        >>> kernel = Kernel(jnp.eye(2), None, jnp.ones(2), None, True)
        >>> chosen(kernel, ("cov1", "NNGP"))._fields
        ('cov1', 'nngp')
    """
    if get is None:
        return kernel
    names = names_of(get)
    values = [getattr(kernel, name) for name in names]
    return values[0] if isinstance(get, str) else named(names)(*values)


def names_of(get: Any) -> tuple[str, ...]:
    """The fields asked for, in order and in lower case; all for None.

    Example:
        >>> names_of(("NTK", "cov1"))
        ('ntk', 'cov1')
    """
    known = tuple(field.name for field in dataclasses.fields(Kernel))
    if get is None:
        return known
    several = isinstance(get, (tuple, list))
    if not isinstance(get, str) and not (several and all(isinstance(name, str) for name in get)):
        raise TypeError(
            f"kernel_fn got get={get!r}, expected 'nngp', 'ntk', a tuple of them or None."
        )
    names = tuple(name.lower() for name in (get if several else (get,)))
    if not names or not set(names) <= set(known):
        raise ValueError(
            f"kernel_fn got get={get!r}, expected 'nngp', 'ntk', another field of Kernel "
            f"({', '.join(known)}), a tuple of them or None."
        )
    return names


# Classes of this module, not made anew at each call: pickle finds them, and jax takes two of the
# same for one.
NngpNtk = collections.namedtuple("NngpNtk", ("nngp", "ntk"))
NtkNngp = collections.namedtuple("NtkNngp", ("ntk", "nngp"))
Nngp = collections.namedtuple("Nngp", ("nngp",))
Ntk = collections.namedtuple("Ntk", ("ntk",))
RECORDS = {kind._fields: kind for kind in (NngpNtk, NtkNngp, Nngp, Ntk)}


@functools.cache
def named(names: tuple[str, ...]) -> Any:
    """The class of named tuples with these fields, one for each order.

    Example:
        >>> named(("cov1", "ntk"))(1, 2)
        Analytic(cov1=1, ntk=2)
    """
    return RECORDS.get(names) or collections.namedtuple("Analytic", names)


def inside(x: Any, batch: int, channel: int) -> Any:
    """An array of the user's layout with examples first and channels last.

    Example:
        >>> inside(jnp.ones((3, 2, 5)), 1, 0).shape
        (2, 5, 3)
    """
    return jnp.moveaxis(x, (batch, channel), (0, -1))


def outside(x: Any, batch: int, channel: int) -> Any:
    """The inverse of `inside`.

    Example:
        >>> outside(jnp.ones((2, 5, 3)), 1, 0).shape
        (3, 2, 5)
    """
    return jnp.moveaxis(x, (0, -1), (batch, channel))


def laid(shape: tuple[int, ...], batch: int, channel: int) -> tuple[int, ...]:
    """The shape of `outside` of an array.

    Example:
        >>> laid((2, 5, 3), 1, 0)
        (3, 2, 5)
    """
    n, *rest, features = shape
    ends = sorted(((batch % len(shape), n), (channel % len(shape), features)))
    for axis, size in ends:
        rest.insert(axis, size)
    return tuple(rest)


def interleaved(values: Array, lead: int, rank: int, back: bool = False) -> Array:
    """Axes of positions `h, w, h', w'` as `h, h', w, w'`, or back.

    Example:
        >>> interleaved(jnp.ones((1, 2, 3, 2, 3)), 1, 2).shape
        (1, 2, 2, 3, 3)
    """
    order = [lead + i + rank * j for i in range(rank) for j in (0, 1)]
    if back:
        order = [lead + 2 * i + j for j in (0, 1) for i in range(rank)]
    return jnp.transpose(values, (*range(lead), *order))


def _cut(mask, axis, part):
    return None if mask is None else jnp.moveaxis(jnp.moveaxis(mask, axis, 0)[part], 0, axis)


def _sized(shape, axis, n):
    return None if shape is None else (*shape[:axis], n, *shape[axis + 1 :])
