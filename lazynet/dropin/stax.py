"""neural-tangents' `stax` by name and argument order, over lazynet's layers.

A network is the unpackable triple `init_fn(key, input_shape) -> (output_shape, params)`,
`apply_fn(params, x)` and `kernel_fn(x1, x2=None, get=None)`, and scripts written for
neural-tangents run after changing the import. What is different: images are channels last, batches
come first, `do_stabilize` has no effect (kernels are scaled exactly), and what has no
infinite-width limit raises an error where neural-tangents warns. The lazynet model of a triple is
its attribute `model`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lazynet import guards
from lazynet.covariance.duals import Dual, gelu_dual
from lazynet.covariance.rules import activation_rule, concat_rule
from lazynet.covariance.state import Kernel
from lazynet.kernels.analytic import analytic_kernel
from lazynet.models import activations, layers, model
from lazynet.models.layers import Padding, Pair, Parameterization
from lazynet.models.model import Model
from lazynet.typing import ArrayLike

__all__ = [
    "ABRelu",
    "Abs",
    "AvgPool",
    "Conv",
    "Cos",
    "Dense",
    "Elementwise",
    "ElementwiseNumerical",
    "Erf",
    "FanInConcat",
    "FanInSum",
    "FanOut",
    "Flatten",
    "Gelu",
    "GlobalAvgPool",
    "GlobalSumPool",
    "Identity",
    "LayerNorm",
    "LeakyRelu",
    "Rbf",
    "Relu",
    "Sigmoid_like",
    "Sin",
    "SumPool",
    "Triple",
    "parallel",
    "repeat",
    "serial",
]

Shape = Sequence[int]
# Branches pass tuples of arrays, for which `Apply` and `Rule` have no type.
_layer: Callable[..., Model] = model.layer


# Classes of this module, not made anew at each call: pickle finds them, and jax takes two of the
# same for one.
NngpNtk = collections.namedtuple("NngpNtk", ("nngp", "ntk"))
NtkNngp = collections.namedtuple("NtkNngp", ("ntk", "nngp"))
Nngp = collections.namedtuple("Nngp", ("nngp",))
Ntk = collections.namedtuple("Ntk", ("ntk",))
KERNELS = {kind._fields: kind for kind in (NngpNtk, NtkNngp, Nngp, Ntk)}


class Triple(tuple):
    """`(init_fn, apply_fn, kernel_fn)` of a lazynet model, which it keeps as `model`."""

    model: Model

    def __new__(cls, network: Model) -> Triple:
        """The triple of a model."""
        triple = super().__new__(cls, (_init_fn(network), network.apply, _kernel_fn(network)))
        triple.model = network
        return triple

    def __reduce__(self):
        """The model, of which the functions are made again."""
        return Triple, (self.model,)


def serial(*layers: Any) -> Triple:
    """Layers one after the other.

    Example:
        >>> init_fn, apply_fn, kernel_fn = serial(Dense(8, 1.5, 0.1), Relu(), Dense(1))
        >>> init_fn(jax.random.key(0), (-1, 3))[0]
        (-1, 1)
        >>> kernel_fn(jnp.ones((2, 3)), None, "ntk").shape
        (2, 2)
        >>> kernel_fn(jnp.ones((2, 3)), None, ("ntk", "nngp"))._fields
        ('ntk', 'nngp')
    """
    return Triple(model.serial(*_models(layers, "serial")))


def parallel(*layers: Any) -> Triple:
    """Layers side by side: layer i takes element i of its inputs, as given by FanOut."""
    branches = _models(layers, "parallel")
    paths = [model.child_path(i, branch) for i, branch in enumerate(branches)]

    def init(key, xs):
        drawn = [
            b.init(jax.random.fold_in(key, i), x)
            for i, (b, x) in enumerate(zip(branches, xs, strict=True))
        ]
        return {path: own for path, own in zip(paths, drawn, strict=True) if own}

    def apply(params, xs):
        return tuple(
            b.apply(params.get(path, {}), x) for path, b, x in zip(paths, branches, xs, strict=True)
        )

    def kernel(ks):
        return tuple(
            model.propagate(b, k, path) for path, b, k in zip(paths, branches, ks, strict=True)
        )

    return Triple(_layer("parallel", apply, init=init, kernel=kernel))


def repeat(layer: Triple, n: int) -> Triple:
    """`n` copies of a layer, each with its own weights."""
    (one,) = _models([layer], "repeat")
    return Triple(model.repeat(one, n))


def FanOut(num: int) -> Triple:
    """`num` references to the input."""
    num = guards.count("FanOut num", num)
    kernel = lambda k: (k.replace(fresh=False),) * num  # noqa: E731
    return Triple(_layer("FanOut", lambda params, x: (x,) * num, kernel=kernel))


def FanInSum() -> Triple:
    """Sum of the branches; in the limit they must be independent, that is end in their own Dense or Conv."""

    def kernel(ks):
        return Kernel.sum_independent(ks, [f"{i} of parallel" for i in range(len(ks))])

    return Triple(_layer("FanInSum", lambda params, xs: sum(xs[1:], xs[0]), kernel=kernel))


def FanInConcat(axis: int = -1) -> Triple:
    """Features of all branches side by side."""
    _only("FanInConcat", "branches are joined along channels", axis=(axis, -1))
    return Triple(
        _layer("FanInConcat", lambda params, xs: jnp.concatenate(xs, axis=-1), kernel=concat_rule)
    )


def Identity() -> Triple:
    """The identity."""
    return Triple(layers.Identity())


def Dense(
    out_dim: int,
    W_std: float = 1.0,
    b_std: float | None = None,
    batch_axis: int = 0,
    channel_axis: int = -1,
    parameterization: Parameterization = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Triple:
    """Fully connected layer."""
    _only("Dense", batch_axis=(batch_axis, 0), channel_axis=(channel_axis, -1))
    return Triple(layers.Dense(out_dim, W_std, b_std, parameterization=parameterization, s=s))


def Conv(
    out_chan: int,
    filter_shape: Shape,
    strides: Shape | None = None,
    padding: Padding = "VALID",
    W_std: float = 1.0,
    b_std: float | None = None,
    dimension_numbers: tuple[str, str, str] | None = None,
    parameterization: Parameterization = "ntk",
    s: tuple[int, int] = (1, 1),
) -> Triple:
    """Convolution of images `[n, h, w, c]`."""
    if dimension_numbers not in (None, ("NHWC", "HWIO", "NHWC")):
        raise ValueError(
            f"stax.Conv got dimension_numbers={dimension_numbers}, expected None: images are [n, h, w, c], filters "
            "[h, w, in, out]; move the axes of the images by jnp.moveaxis."
        )
    size = _pair("Conv", "filter_shape", filter_shape)
    steps = (1, 1) if strides is None else _pair("Conv", "strides", strides)
    return Triple(
        layers.Conv(
            out_chan, size, steps, padding, W_std, b_std, parameterization=parameterization, s=s
        )
    )


def AvgPool(
    window_shape: Shape,
    strides: Shape | None = None,
    padding: Padding = "VALID",
    normalize_edges: bool = False,
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Triple:
    """Mean over windows; padded entries count as zeros."""
    # Without padding all windows are full, and both values mean the same.
    uneven = normalize_edges and padding == "SAME"
    fix = "padded entries count as zeros; use padding='VALID' or 'CIRCULAR', where there is nothing to normalize"
    _only("AvgPool", fix, normalize_edges=(bool(uneven), False))
    _only("AvgPool", batch_axis=(batch_axis, 0), channel_axis=(channel_axis, -1))
    return Triple(layers.AvgPool(*_windows("AvgPool", window_shape, strides), padding))


def SumPool(
    window_shape: Shape,
    strides: Shape | None = None,
    padding: Padding = "VALID",
    batch_axis: int = 0,
    channel_axis: int = -1,
) -> Triple:
    """Sum over windows."""
    _only("SumPool", batch_axis=(batch_axis, 0), channel_axis=(channel_axis, -1))
    return Triple(layers.SumPool(*_windows("SumPool", window_shape, strides), padding))


def GlobalAvgPool(batch_axis: int = 0, channel_axis: int = -1) -> Triple:
    """Mean over positions."""
    _only("GlobalAvgPool", batch_axis=(batch_axis, 0), channel_axis=(channel_axis, -1))
    return Triple(layers.GlobalAvgPool())


def GlobalSumPool(batch_axis: int = 0, channel_axis: int = -1) -> Triple:
    """Sum over positions."""
    _only("GlobalSumPool", batch_axis=(batch_axis, 0), channel_axis=(channel_axis, -1))
    return Triple(layers.GlobalSumPool())


def Flatten(batch_axis: int = 0, batch_axis_out: int = 0) -> Triple:
    """All positions and channels as one vector."""
    _only("Flatten", batch_axis=(batch_axis, 0), batch_axis_out=(batch_axis_out, 0))
    return Triple(layers.Flatten())


def LayerNorm(
    axis: int | Shape = -1, eps: float = 1e-12, batch_axis: int = 0, channel_axis: int = -1
) -> Triple:
    """Normalization over channels."""
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    fix = "it normalizes over channels; for all axes of an image put Flatten() before it"
    _only("LayerNorm", fix, axis=(axes, (-1,)))
    _only("LayerNorm", batch_axis=(batch_axis, 0), channel_axis=(channel_axis, -1))
    return Triple(layers.LayerNorm(eps))


def Relu(do_stabilize: bool = False) -> Triple:
    """`max(x, 0)`."""
    return Triple(activations.Relu())


def LeakyRelu(alpha: float, do_stabilize: bool = False) -> Triple:
    """`alpha min(x, 0) + max(x, 0)`."""
    return Triple(activations.LeakyRelu(alpha))


def Abs(do_stabilize: bool = False) -> Triple:
    """`|x|`."""
    return Triple(activations.Abs())


def ABRelu(a: float, b: float, do_stabilize: bool = False) -> Triple:
    """`a min(x, 0) + b max(x, 0)`."""
    return Triple(activations.ABRelu(a, b))


def Erf(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Triple:
    """`a erf(b x) + c`."""
    return Triple(activations.Erf(a, b, c))


def Sigmoid_like() -> Triple:
    """`(1 + erf(x / 2.402)) / 2`."""
    return Triple(activations.Sigmoid_like())


def Gelu(approximate: bool = False) -> Triple:
    """`x P(N(0, 1) <= x)`; `approximate` changes `apply_fn` only, as in neural-tangents."""
    if not approximate:
        return Triple(activations.Gelu())
    return Triple(
        model.layer(
            "Gelu",
            lambda params, x: jax.nn.gelu(x),
            record=lambda x, y: (x, x),
            kernel=activation_rule("Gelu", gelu_dual()),
        )
    )


def Sin(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Triple:
    """`a sin(b x + c)`."""
    return Triple(activations.Sin(a, b, c))


def Cos(a: float = 1.0, b: float = 1.0, c: float = 0.0) -> Triple:
    """`a cos(b x + c)`."""
    return Triple(activations.Cos(a, b, c))


def Rbf(gamma: float = 1.0) -> Triple:
    """`sqrt 2 sin(sqrt(2 gamma) x + pi/4)`."""
    return Triple(activations.Rbf(gamma))


def ElementwiseNumerical(
    fn: Callable[[Any], Any], deg: int, df: Callable[[Any], Any] | None = None
) -> Triple:
    """`fn(x)` with its kernel by quadrature of `deg` nodes an axis, or more where these are not accurate.

    Derivatives are automatic: `df` is not needed. Where no number of nodes is enough (kinks, which
    `lazynet.elementwise` takes by name, or growth like that of exp), `kernel_fn` raises an error;
    under jit it is NaN.
    """
    return Triple(activations.elementwise(fn, degree=deg))


def Elementwise(
    fn: Callable[[Any], Any] | None = None,
    nngp_fn: Callable[[Any, Any, Any], Any] | None = None,
    d_nngp_fn: Callable[[Any, Any, Any], Any] | None = None,
) -> Triple:
    """`fn(x)` with a given `nngp_fn(covariance, variance1, variance2) = E[fn fn]`.

    Its derivative in the covariance, which the NTK needs, is `d_nngp_fn`, or automatic.
    """

    def apply(params, x):
        if fn is None:
            raise ValueError(
                "Elementwise got no fn, so the finite network cannot be evaluated: pass fn."
            )
        return fn(x)

    rule = (
        None if nngp_fn is None else activation_rule("Elementwise", _given_dual(nngp_fn, d_nngp_fn))
    )
    return Triple(model.layer("Elementwise", apply, record=lambda x, y: (x, x), kernel=rule))


def _given_dual(nngp_fn, d_nngp_fn):
    slope_fn = jax.grad(nngp_fn) if d_nngp_fn is None else d_nngp_fn

    def both(s, q1, q2):
        s, q1, q2 = jnp.broadcast_arrays(s, q1, q2)
        value, slope = (jax.vmap(f)(s.ravel(), q1.ravel(), q2.ravel()) for f in (nngp_fn, slope_fn))
        return value.reshape(s.shape), slope.reshape(s.shape)

    def pair(side1, side2, s, opening, acute):
        return (*both(s, side1[0], side2[0]), None)

    return Dual(lambda q: (q,), pair, lambda q: both(q, q, q))


def _init_fn(network):
    def init_fn(key, input_shape):
        """Shape of the outputs (-1 for any number of examples) and parameters."""
        batch = input_shape[0]
        x = jax.ShapeDtypeStruct(
            (1 if batch == -1 else batch, *input_shape[1:]), jnp.zeros(()).dtype
        )
        params = network.init(key, x)
        shape = jax.eval_shape(network.apply, params, x).shape
        return (batch, *shape[1:]), params

    return init_fn


def _kernel_fn(network):
    def kernel_fn(
        x1: ArrayLike, x2: ArrayLike | None = None, get: str | Sequence[str] | None = None
    ) -> Any:
        """Kernels "nngp" and "ntk": a string gives an array, a tuple a named tuple in that order, None both."""
        names = _names(get)
        gram = analytic_kernel(network, x1, x2)
        if get is None:
            return gram
        values = [getattr(gram, name) for name in names]
        return values[0] if isinstance(get, str) else KERNELS[names](*values)

    return kernel_fn


def _names(get) -> tuple[str, ...]:
    """The kernels asked for, in order."""
    if get is None:
        return ()
    if not isinstance(get, (str, tuple, list)) or not all(isinstance(name, str) for name in get):
        raise TypeError(
            f"kernel_fn got get={get!r}, expected 'nngp', 'ntk', a tuple of them or None."
        )
    names = tuple(name.lower() for name in ([get] if isinstance(get, str) else get))
    if names in KERNELS:
        return names
    covariances = {"cov1", "cov2"} & set(names)
    own = f"{sorted(covariances)[0]} is the diagonal of kernel_fn(x{sorted(covariances)[0][-1]}, None, 'nngp')"
    fix = (
        own
        if covariances
        else "is_gaussian, shapes and masks of neural-tangents' Kernel have no counterpart"
    )
    raise ValueError(
        f"kernel_fn got get={get!r}, expected 'nngp', 'ntk', a tuple of them or None: {fix}."
    )


def _models(triples, where):
    for i, triple in enumerate(triples):
        if not isinstance(triple, Triple):
            raise TypeError(
                f"stax.{where} got {triple!r} at position {i}, expected a layer of lazynet.stax: call its constructor, "
                "for instance Relu() and not Relu; lazynet's own models go into lazynet.serial."
            )
    return [triple.model for triple in triples]


def _windows(name, window_shape, strides) -> tuple[Pair, Pair | None]:
    window = _pair(name, "window_shape", window_shape)
    return window, None if strides is None else _pair(name, "strides", strides)


def _pair(name, argument, shape: Any) -> Pair:
    is_list = not isinstance(shape, (str, bytes)) and hasattr(shape, "__len__")
    if is_list and len(shape) == 1:
        raise ValueError(
            f"stax.{name} got {argument}={tuple(shape)}, expected (height, width): write (1, {shape[0]}) and give the "
            "inputs [n, w, c] a height of one, x[:, None]."
        )
    if not is_list or len(shape) != 2:
        raise ValueError(
            f"stax.{name} got {argument}={shape!r}, expected (height, width): images are [n, h, w, c]."
        )
    height, width = shape
    pair: Any = (height, width)
    return pair


AXES = "batches come first, channels last; move the axes by jnp.moveaxis"


def _only(name, fix=AXES, **arguments):
    for argument, (value, expected) in arguments.items():
        if value != expected:
            raise ValueError(f"stax.{name} got {argument}={value!r}, expected {expected!r}: {fix}.")
