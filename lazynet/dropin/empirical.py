"""neural-tangents' names and argument order for empirical kernels.

A kernel has the axes of `f(x1)` and `f(x2)` in pairs, `[n1, n2, k, k]` for outputs `[n, k]`, except
that `trace_axes` are traced and divided by their size and `diagonal_axes` appear once. Inputs and
outputs may be trees of arrays, of which each output has a kernel of its own.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lazynet import guards
from lazynet.dropin.batch import batch
from lazynet.dropin.keywords import bound, split_keywords, takes_key
from lazynet.kernels.empirical.arguments import canonical, check_outputs
from lazynet.kernels.empirical.independence import refuse_mixing
from lazynet.kernels.empirical.ntk import empirical_ntk
from lazynet.kernels.empirical.products import (
    ntk_vector_product,
    pulled_back,
    pushed_forward,
)
from lazynet.kernels.empirical.whole import whole_ntk
from lazynet.models.model import evaluation
from lazynet.programs import shape_of
from lazynet.signatures import flat
from lazynet.trees import as_partial, is_traced
from lazynet.typing import Array, ArrayLike, Params

__all__ = [
    "empirical_kernel_fn",
    "empirical_nngp_fn",
    "empirical_ntk_fn",
    "empirical_ntk_vp_fn",
    "monte_carlo_kernel_fn",
    "NtkImplementation",
]

Axes = int | tuple[int, ...] | list[int]
Get = str | tuple[str, ...] | None


class EmpiricalKernel(NamedTuple):
    """Both kernels, in the order of `get=None`.

    Example:
        >>> EmpiricalKernel(nngp=jnp.eye(2), ntk=jnp.eye(2))._fields
        ('nngp', 'ntk')
    """

    nngp: Any
    ntk: Any


class EmpiricalKernelNtkFirst(NamedTuple):
    """Both kernels, for `get=("ntk", "nngp")`.

    Example:
        >>> EmpiricalKernelNtkFirst(ntk=jnp.eye(2), nngp=jnp.eye(2))._fields
        ('ntk', 'nngp')
    """

    ntk: Any
    nngp: Any


class EmpiricalNngp(NamedTuple):
    """For `get=("nngp",)`.

    Example:
        >>> EmpiricalNngp(jnp.eye(2))._fields
        ('nngp',)
    """

    nngp: Any


class EmpiricalNtk(NamedTuple):
    """For `get=("ntk",)`.

    Example:
        >>> EmpiricalNtk(jnp.eye(2))._fields
        ('ntk',)
    """

    ntk: Any


RECORDS: dict[tuple[str, ...], Any] = {
    record._fields: record
    for record in (EmpiricalKernel, EmpiricalKernelNtkFirst, EmpiricalNngp, EmpiricalNtk)
}
"""One class for each order of names: a class made at a call is no pytree of the same kind, and does not pickle."""


class NtkImplementation(enum.IntEnum):
    """How neural-tangents computes tangent kernels. All give the same; the way to it is chosen here.

    Example:
        >>> NtkImplementation(2).name
        'NTK_VECTOR_PRODUCTS'
    """

    AUTO = 0
    JACOBIAN_CONTRACTION = 1
    NTK_VECTOR_PRODUCTS = 2
    STRUCTURED_DERIVATIVES = 3


def empirical_ntk_fn(
    f: Callable[..., Any],
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: Any = None,
    implementation: int = 1,
) -> Callable[..., Any]:
    """`ntk_fn(x1, x2, params)`, the empirical tangent kernel `<df(x1)/dw, df(x2)/dw>`.

    The default is the mean over the last axis of outputs, `[n1, n2]`; `trace_axes=()` gives all,
    `[n1, n2, k, k]`. Functions of one array that treat its examples one by one, first axis first,
    go through `empirical_ntk`; all others (trees of inputs or outputs, examples on other axes,
    examples that depend on each other, keyword arguments in pairs) through `whole_ntk`, a backward
    and a forward derivative of the whole batch for each output.

    Args:
        f: `f(params, x, **kwargs)`.
        trace_axes: Axes of the outputs to trace over; the trace is divided by their size.
        diagonal_axes: Axes of the outputs of which only equal indices are wanted.
        vmap_axes: 0 says that examples are the first axis of inputs and outputs and treated one by
            one; None has this checked, and is slow under jit, where it cannot be; others, and trees
            of them, are only checked for their form.
        implementation: 0 to 3, see `NtkImplementation`.

    Returns:
        A function of `x1`, `x2` (None for `x1`), `params` and keyword arguments of `f`: a pair of
        two holds those for x1 and for x2.

    Raises:
        ValueError: For another `implementation`; when called, for axes that do not exist or are
            both traced and diagonal, and as `empirical_ntk`.
        TypeError: For axes that are no integers.

    Example:
        >>> ntk_fn = empirical_ntk_fn(lambda params, x: x @ params)
        >>> ntk_fn(jnp.eye(2), None, jnp.ones((2, 3))).tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source: Novak, Sohl-Dickstein and Schoenholz (2022) describe the implementations of
    neural-tangents.
    """
    guards.count(
        "implementation", implementation, at_least=0, at_most=3, fix="all give the same kernel"
    )
    trace_axes = _axes("trace_axes", trace_axes)
    diagonal_axes = _axes("diagonal_axes", diagonal_axes)
    unknown = [axis for axis in jax.tree.leaves(vmap_axes) if not isinstance(axis, int)]
    if unknown:
        raise ValueError(
            f"vmap_axes is {unknown[0]!r:.60}, expected None, an axis, or a tree of axes: integers."
        )

    def ntk_fn(x1: Any, x2: Any, params: Params, **kwargs: Any) -> Any:
        # A tree of None for the second set stands for the first one, too.
        x2 = None if not jax.tree.leaves(x2) else x2
        first, second = split_keywords(kwargs, x1, x2)
        function, params = _known(f, first, params)
        # Keyword arguments with a row for each example do not fit a batch of one.
        alone = first is second and not _of_examples(first, x1)
        outputs = _outputs_by_example(function, params, x1, vmap_axes) if alone else None
        if outputs is not None:
            return _by_example(function, params, x1, x2, outputs, trace_axes, diagonal_axes)
        other = function if first is second else bound(f, second)
        full = whole_ntk(function, other, params, x1, x1 if x2 is None else x2)

        def reduced(kernel):
            ndim = kernel.ndim // 2
            traced, diagonal = _canonical(trace_axes, diagonal_axes, ndim)
            own, other, result = _letters(ndim, traced, diagonal)
            return jnp.einsum(f"{own}{other}->{result}", kernel) / _size(kernel.shape, traced)

        return jax.tree.map(reduced, full)

    return ntk_fn


def _of_examples(kwargs, x):
    """Whether a keyword argument has a row for each example."""
    n = np.shape(x)[:1] if isinstance(x, ArrayLike) else ()
    return any(n and np.shape(leaf)[:1] == n for leaf in jax.tree.leaves(kwargs))


def _by_example(function, params, x1, x2, outputs, trace_axes, diagonal_axes):
    """The kernel by the Jacobians of single examples."""
    guards.array("x1", x1)
    guards.same_length(x1=x1)
    check_outputs(outputs, len(x1), derivative=False)
    shape = outputs.shape
    traced, diagonal = _canonical(trace_axes, diagonal_axes, len(shape))
    inner = set(range(1, len(shape)))
    ntk_of = functools.partial(empirical_ntk, function, params, x1, x2)
    # Where these suffice the full kernel is not formed.
    if traced == inner and not diagonal:
        return ntk_of(outputs="trace")
    if diagonal == inner and not traced:
        ntk = ntk_of(outputs="diagonal")
        return ntk.reshape(*ntk.shape[:2], *shape[1:])
    full = jnp.asarray(ntk_of(outputs="full"))
    full = full.reshape(*full.shape[:2], *shape[1:], *shape[1:])
    own, other, result = _letters(len(shape), traced, diagonal)
    # Axes of `empirical_ntk` are `[n1, n2, *outputs1, *outputs2]`.
    paired = own[0] + other[0] + own[1:] + other[1:]
    return jnp.einsum(f"{paired}->{result}", full) / _size(shape, traced)


def _outputs_by_example(function, params, x, vmap_axes):
    """Shape and dtype of the outputs if the kernel may be taken example by example: known, said, or found out."""
    if not isinstance(x, ArrayLike):
        return None
    h = shape_of(function, params, x)
    one = hasattr(h, "shape") and h.shape[:1] == x.shape[:1] and len(h.shape) > 1
    if not one or not jnp.issubdtype(h.dtype, jnp.floating):
        return None
    if vmap_axes is not None:
        return h if all(axis == 0 for axis in jax.tree.leaves(vmap_axes)) else None
    known = evaluation(function.func if isinstance(function, Partial) else function)
    if known is not None and known.independent:
        return h
    # Independence is found out by values, which are not known here.
    if is_traced((function, params, x)):
        return None
    try:
        refuse_mixing(*canonical(function, params, x)[:3], alone=True)
    except ValueError:
        return None
    return h


def _known(f, kwargs, params):
    """The function with its keyword arguments, a layer of `stax` as the model that it is."""
    twin = getattr(f, "twin", None)
    # A model knows its layers, and with them a way without Jacobians.
    if twin is not None and not kwargs:
        return as_partial(twin.model.apply, "f"), twin.inward(params)
    return bound(f, kwargs), params


def empirical_nngp_fn(
    f: Callable[..., Any], trace_axes: Axes = (-1,), diagonal_axes: Axes = ()
) -> Callable[..., Any]:
    """`nngp_fn(x1, x2, params)`, products of outputs `f(x1) f(x2)`, by default their mean over the last axis.

    Args:
        f: `f(params, x, **kwargs)`, an array or a tree of them.
        trace_axes: Axes of the outputs to trace over; the trace is divided by their size.
        diagonal_axes: Axes of the outputs of which only equal indices are wanted.

    Returns:
        A function of `x1`, `x2` (None for `x1`), `params` and keyword arguments of `f`: a pair of
        two holds those for x1 and for x2.

    Raises:
        ValueError: When called, for axes that do not exist or are both traced and diagonal.
        TypeError: For axes that are no integers.

    Example:
        >>> nngp_fn = empirical_nngp_fn(lambda params, x: x @ params)
        >>> nngp_fn(jnp.eye(2), None, jnp.ones((2, 3))).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    trace_axes = _axes("trace_axes", trace_axes)
    diagonal_axes = _axes("diagonal_axes", diagonal_axes)

    def nngp_fn(x1: Any, x2: Any, params: Params, **kwargs: Any) -> Any:
        x2 = None if not jax.tree.leaves(x2) else x2
        first, second = split_keywords(kwargs, x1, x2)
        rows = bound(f, first)(params, x1)
        alike = x2 is None and first is second
        columns = rows if alike else bound(f, second)(params, x1 if x2 is None else x2)

        def products(row, column):
            traced, diagonal = _canonical(trace_axes, diagonal_axes, row.ndim)
            own, other, result = _letters(row.ndim, traced, diagonal)
            product = jnp.einsum(f"{own},{other}->{result}", row, column, precision="highest")
            return product / _size(row.shape, traced)

        return jax.tree.map(products, rows, columns)

    return nngp_fn


def empirical_kernel_fn(
    f: Callable[..., Any],
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: Any = None,
    implementation: int = 1,
) -> Callable[..., Any]:
    """`kernel_fn(x1, x2, get, params)`, either empirical kernel or both.

    Args:
        f: `f(params, x, **kwargs)`.
        trace_axes: See `empirical_ntk_fn`.
        diagonal_axes: See `empirical_ntk_fn`.
        vmap_axes: See `empirical_ntk_fn`.
        implementation: See `empirical_ntk_fn`.

    Returns:
        A function of `x1`, `x2`, `get` and `params`: `"nngp"` or `"ntk"` gives an array, a tuple of
        them a namedtuple in that order, None both.

    Raises:
        ValueError: When called, for another `get`.

    Example:
        >>> kernel_fn = empirical_kernel_fn(lambda params, x: x @ params)
        >>> kernel_fn(jnp.eye(2), None, ("ntk", "nngp"), jnp.ones((2, 3)))._fields
        ('ntk', 'nngp')
    """
    kinds = {
        "nngp": empirical_nngp_fn(f, trace_axes, diagonal_axes),
        "ntk": empirical_ntk_fn(f, trace_axes, diagonal_axes, vmap_axes, implementation),
    }

    def kernel_fn(x1: Any, x2: Any, get: Get, params: Params, **kwargs: Any) -> Any:
        names = _names(get)
        found = [kinds[name](x1, x2, params, **kwargs) for name in names]
        if isinstance(get, str):
            return found[0]
        if not all(isinstance(kernel, ArrayLike) for kernel in found):
            # of several outputs each has its record
            return jax.tree.map(lambda *kernels: RECORDS[names](*kernels), *found)
        return RECORDS[names](*found)

    return kernel_fn


def empirical_ntk_vp_fn(
    f: Callable[..., Any], x1: ArrayLike, x2: ArrayLike | None, params: Params, **kwargs: Any
) -> Callable[[Array], Array]:
    """The linear map `v -> Theta(x1, x2) v` of the kernel of `empirical_ntk_fn`, by `ntk_vector_product`.

    Args:
        f: `f(params, x, **kwargs)`.
        x1: Examples of the rows.
        x2: Examples of the columns; None for those of the rows.
        params: Where to take the derivative.
        **kwargs: Keyword arguments of `f`; a pair of two holds those for x1 and for x2.

    Returns:
        A function of an array of the shape of `f(params, x2)`, with values of that of `f(params,
        x1)`.

    Example:
        >>> product = empirical_ntk_vp_fn(lambda params, x: x @ params, jnp.eye(2), None, jnp.ones((2, 1)))
        >>> product(jnp.array([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
    """
    first, second = split_keywords(kwargs, x1, x2)
    rows = bound(f, first)
    if first is second:
        return ntk_vector_product(rows, params, x1, x2)
    x2 = x1 if x2 is None else x2
    function, weights, x1, _ = canonical(flat(rows, x1), params, x1)
    other, _, x2, _ = canonical(flat(bound(f, second), x2), params, x2)
    return Partial(_product_of_two, function, other, weights, x1, x2)


def _product_of_two(function, other, weights, x1, x2, v):
    """`Df(x1) Dg(x2)' v` of two functions of the same weights."""
    return pushed_forward(function, weights, x1, pulled_back(other, weights, x2, v))


def monte_carlo_kernel_fn(
    init_fn: Callable[..., Any],
    apply_fn: Callable[..., Any],
    key: Any,
    n_samples: int | Iterable[int],
    batch_size: int = 0,
    device_count: int = -1,
    store_on_device: bool = True,
    trace_axes: Axes = (-1,),
    diagonal_axes: Axes = (),
    vmap_axes: Any = None,
    implementation: int = 1,
) -> Callable[..., Any]:
    """`kernel_fn(x1, x2, get)`, the mean over initializations of the empirical kernels.

    `lazynet.monte_carlo_kernel` gives the standard error of the mean too.

    Args:
        init_fn: `init_fn(key, input_shape) -> (output_shape, params)`.
        apply_fn: `apply_fn(params, x, **kwargs)`.
        key: Random key, from which samples are drawn in the order of neural-tangents.
        n_samples: Number of initializations, or several, for a generator of the mean after each.
        batch_size: See `batch`.
        device_count: See `batch`.
        store_on_device: See `batch`.
        trace_axes: See `empirical_ntk_fn`.
        diagonal_axes: See `empirical_ntk_fn`.
        vmap_axes: See `empirical_ntk_fn`.
        implementation: See `empirical_ntk_fn`.

    Returns:
        A function of `x1`, `x2` (None for `x1`) and `get`: `"nngp"` or `"ntk"` gives an array, a
        tuple of them a namedtuple in that order, None both.

    Raises:
        ValueError: If a number of samples is below 1.

    Example:
        >>> import lazynet as ln
        >>> init_fn, apply_fn, _ = ln.stax.serial(ln.stax.Dense(512), ln.stax.Relu(), ln.stax.Dense(1))
        >>> kernel_fn = monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(0), n_samples=16)
        >>> bool(abs(kernel_fn(jnp.ones((1, 4)), None, "ntk")[0, 0] - 1) < 0.2)
        True
    """
    guards.key("key", key)
    several = isinstance(n_samples, Iterable) and not isinstance(n_samples, str)
    numbers: Any = n_samples if several else [n_samples]
    counts = {guards.count("n_samples", number) for number in numbers}
    if not counts:
        raise ValueError("n_samples got no number, expected an integer >= 1 or several of them.")
    empirical = empirical_kernel_fn(apply_fn, trace_axes, diagonal_axes, vmap_axes, implementation)
    sample = batch(empirical, batch_size, device_count, store_on_device)

    def means(x1: Any, x2: Any, get: Get, **kwargs: Any) -> Iterator[Any]:
        rest = key
        total = None
        for count in range(1, max(counts) + 1):
            rest, own = jax.random.split(rest)
            of_params, of_outputs = jax.random.split(own)
            _, params = init_fn(of_params, jax.tree.map(jnp.shape, x1))
            # A model has no noise, and a key would hide from `_known` that it is one.
            if getattr(apply_fn, "twin", None) is None and takes_key(apply_fn):
                kwargs["rng"] = of_outputs
            found = sample(x1, x2, get, params, **kwargs)
            total = found if total is None else jax.tree.map(lambda a, b: a + b, total, found)
            if count in counts:
                yield jax.tree.map(lambda value, count=count: value / count, total)

    def kernel_fn(x1: Any, x2: Any = None, get: Get = None, **kwargs: Any) -> Any:
        _names(get)
        found = means(x1, x2, get, **kwargs)
        return found if several else next(found)

    return kernel_fn


def _axes(name: str, axes: Any) -> tuple[int, ...]:
    """Axes of outputs as a tuple of integers."""
    try:
        return (operator.index(axes),)
    except TypeError:  # several
        with contextlib.suppress(TypeError):
            return tuple(map(operator.index, axes))
    raise TypeError(
        f"{name} got {axes!r}, expected an axis of the outputs or several: -1, (1, 2), or () for none."
    )


def _canonical(
    trace_axes: tuple[int, ...], diagonal_axes: tuple[int, ...], ndim: int
) -> tuple[set[int], set[int]]:
    both = []
    for name, axes in (("trace_axes", trace_axes), ("diagonal_axes", diagonal_axes)):
        if any(not -ndim <= axis < ndim for axis in axes):
            raise ValueError(
                f"{name} is {axes}, expected axes of outputs of {ndim} dimensions, batch included."
            )
        both.append({axis % ndim for axis in axes})
    traced, diagonal = both
    if traced & diagonal:
        raise ValueError(
            f"axes {sorted(traced & diagonal)} are in trace_axes and in diagonal_axes, expected in one."
        )
    return traced, diagonal


def _letters(ndim: int, traced: set[int], diagonal: set[int]) -> tuple[str, str, str]:
    """Subscripts of einsum for the outputs at x1, those at x2, and the kernel."""
    # A letter of both factors is summed where the result lacks it, and else taken once.
    own = "abcdefghijkl"[:ndim]
    other = "".join(c if i in traced | diagonal else c.upper() for i, c in enumerate(own))
    pairs = [
        "" if i in traced else c if i in diagonal else c + c.upper() for i, c in enumerate(own)
    ]
    return own, other, "".join(pairs)


def _size(shape: tuple[int, ...], axes: set[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _names(get: Get) -> tuple[str, ...]:
    several = isinstance(get, (tuple, list))
    names = ("nngp", "ntk") if get is None else tuple(get) if several else (get,)
    if not all(isinstance(name, str) for name in names) or names not in RECORDS:
        raise ValueError(
            f"get is {get!r}, expected 'nngp', 'ntk', a tuple of them, or None for both."
        )
    return names
