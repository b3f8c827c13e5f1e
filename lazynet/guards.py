"""Checks of what comes in, once for all functions: `NAME got VALUE, expected EXPECTATION: FIX`.

A wrong input gives a plausible wrong number, or an error from deep inside of JAX, far from its
cause. So every public function looks at its arguments by the functions of this module before any
long work starts, and uses what they return: a number as a float, a count as an int, steps as a
list. Values that a transformation is tracing are unknown and pass. Nothing here is for use inside a
compiled step: reading a value waits for the device.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.trees import is_traced

__all__ = [
    "array",
    "concrete",
    "count",
    "data",
    "finite",
    "flag",
    "floating",
    "function",
    "inputs",
    "key",
    "momentum",
    "number",
    "numbers",
    "rate",
    "real",
    "real_outputs",
    "same_length",
    "steps",
    "vector",
    "weights",
]

BLOCK = 2**22
"""Values looked at together, which bounds the memory."""


def number(
    name: str,
    value: Any,
    *,
    above: float | int | None = None,
    at_least: float | int | None = None,
    below: float | int | None = None,
    at_most: float | int | None = None,
    or_inf: bool = False,
    fix: str = "",
) -> Any:
    """A finite real number within bounds, as a float; a traced one of one value comes back as it is.

    Args:
        name: What messages call the value.
        value: A Python number, or an array of one value. Booleans and text are no numbers.
        above: It must be greater.
        at_least: It must be greater or equal.
        below: It must be less.
        at_most: It must be less or equal.
        or_inf: Whether infinity is a value too, as for a time or an alpha.
        fix: What to do; may be left out where the bounds say it.

    Raises:
        TypeError: It is no real number.
        ValueError: It is not finite, or outside of the bounds.

    Example:
        >>> number("momentum", np.float32(0.5), at_least=0, below=1)
        0.5
        >>> number("momentum", 1.0, at_least=0, below=1, fix="1 never forgets a gradient")
        Traceback (most recent call last):
        ...
        ValueError: momentum got 1.0, expected a finite number >= 0 and < 1: 1 never forgets a gradient.
    """
    if is_traced(value) and getattr(value, "size", 1) == 1:
        return value
    bounds: list[tuple[str, Any, Any]] = [
        (">", above, operator.gt),
        (">=", at_least, operator.ge),
        ("<", below, operator.lt),
    ]
    bounds = [bound for bound in [*bounds, ("<=", at_most, operator.le)] if bound[1] is not None]
    words = " and ".join(f"{sign} {limit:g}" for sign, limit, _ in bounds)
    expected = f"a {'' if or_inf else 'finite '}number {words}".rstrip() + " or inf" * or_inf
    if not _is_real_scalar(value):
        raise TypeError(_message(name, _shown(value), expected, fix))
    found = float(value)
    if or_inf and found == math.inf:
        return found
    if not math.isfinite(found) or not all(holds(found, limit) for _, limit, holds in bounds):
        raise ValueError(
            _message(name, f"{found:g}" if isinstance(value, np.ndarray) else value, expected, fix)
        )
    return found


def count(
    name: str, value: Any, *, at_least: int = 1, at_most: int | None = None, fix: str = ""
) -> int:
    """A whole number within bounds, as an int: NumPy's integers are, 2.0 and True are not.

    Args:
        name: What messages call the value.
        value: The number.
        at_least: The least one allowed.
        at_most: The greatest one allowed.
        fix: What to do; may be left out where the bounds say it.

    Raises:
        TypeError: It is no integer.
        ValueError: It is outside of the bounds.

    Example:
        >>> count("tile", np.int64(4))
        4
        >>> count("batch_size", 0, at_most=60, fix="None takes all examples")
        Traceback (most recent call last):
        ...
        ValueError: batch_size got 0, expected an integer from 1 to 60: None takes all examples.
    """
    expected = (
        f"an integer >= {at_least}"
        if at_most is None
        else f"an integer from {at_least} to {at_most}"
    )
    # True has an index too, and a float has none.
    if isinstance(value, (bool, np.bool_)) or not hasattr(type(value), "__index__"):
        raise TypeError(_message(name, _shown(value), expected, fix))
    try:
        found = operator.index(value)
    except TypeError:  # an array of floating point, or of several values
        raise TypeError(_message(name, _shown(value), expected, fix)) from None
    if found < at_least or (at_most is not None and found > at_most):
        raise ValueError(_message(name, found, expected, fix))
    return found


def batch_size(value: Any, n: int) -> int:
    """The number of examples in a step, of n that there are: None means all of them.

    Args:
        value: What was given as `batch_size`.
        n: Number of examples.

    Raises:
        TypeError: It is neither None nor an integer.
        ValueError: It is below 1 or above n.

    Example:
        >>> batch_size(None, 60), batch_size(20, 60)
        (60, 20)
    """
    if value is None:
        return n
    return count("batch_size", value, at_most=n, fix="None takes all examples")


def flag(name: str, value: Any) -> bool:
    """Whether something is wanted: a boolean, or 0 or 1.

    Raises:
        TypeError: It is something else, which Python would take for True: a string, a function, an
            array.

    Example:
        >>> flag("progress", "no")
        Traceback (most recent call last):
        ...
        TypeError: progress got 'no', expected True or False.
    """
    if isinstance(value, (bool, np.bool_, int, np.integer)) and value in (0, 1):
        return bool(value)
    raise TypeError(_message(name, _shown(value), "True or False", ""))


def function(name: str, value: Any, fix: str = "") -> Any:
    """What can be called, as it is.

    Raises:
        TypeError: It cannot.

    Example:
        >>> function("loss", "mse", "pass lazynet.mse")
        Traceback (most recent call last):
        ...
        TypeError: loss got 'mse', expected a function: pass lazynet.mse.
    """
    if not callable(value):
        raise TypeError(_message(name, _shown(value), "a function", fix))
    return value


def rate(value: Any, name: str = "learning_rate") -> Any:
    """A learning rate: a finite number > 0.

    Example:
        >>> rate(0.1)
        0.1
    """
    return number(name, value, above=0)


def momentum(value: Any, name: str = "momentum") -> Any:
    """Heavy-ball momentum in [0, 1).

    Example:
        >>> momentum(0.9)
        0.9
    """
    return number(name, value, at_least=0, below=1, fix="1 never forgets a gradient")


def steps(value: Any, name: str = "save_at") -> list[int]:
    """Numbers of steps: strictly increasing integers >= 0, at least one, as a list of ints.

    Raises:
        TypeError: It is no sequence of integers; 2.5 steps cannot be made.
        ValueError: It is empty, negative or does not increase.

    Example:
        >>> steps(np.array([0, 10]))
        [0, 10]
    """
    expected = "strictly increasing integers >= 0, for instance [0, 10, 100]"
    is_list = (
        not isinstance(value, (str, bytes)) and hasattr(value, "__len__") and np.ndim(value) == 1
    )
    if not is_list:
        raise TypeError(f"{name} got {_shown(value)}, expected {expected}.")
    if len(value) == 0:
        raise ValueError(f"{name} got no steps, expected {expected}.")
    found = [count(f"{name}[{i}]", step, at_least=0) for i, step in enumerate(value)]
    for earlier, later in zip(found[:-1], found[1:], strict=True):
        if later <= earlier:
            raise ValueError(f"{name} got {later} after {earlier}, expected {expected}.")
    return found


ADVICE = {
    "DataFrame": "pass x.to_numpy()",
    "Gram": "pass x.ntk or x.nngp",
    "Series": "pass x.to_numpy()",
    "MaskedArray": "fill or drop the masked values",
    "Tensor": "pass x.numpy()",
    "Kernels": "pass x.ntk or x.nngp",
    "Eigen": "pass the matrix itself",
    "BCOO": "pass x.todense()",
    "BCSR": "pass x.todense()",
}
"""What to write instead of values that look like arrays, by the name of their type."""


def array(name: str, value: Any, fix: str = "") -> Any:
    """A NumPy or JAX array of numbers, traced or not, as it is.

    Lists, data frames, sparse and masked arrays are refused with the conversion: each of them means
    something else in another library, and a list may be a tree of several inputs.

    Raises:
        TypeError: It is something else.

    Example:
        >>> array("x", [[1.0]])
        Traceback (most recent call last):
        ...
        TypeError: x got a list, expected an array of numbers: pass np.asarray(x).
    """
    kind = type(value).__name__
    # A masked array is an ndarray, of which JAX would take what the mask hides.
    is_array = isinstance(value, (np.ndarray, jax.Array, np.generic)) and kind != "MaskedArray"
    if is_array and (
        # bfloat16 and its relatives have the kind V of raw bytes, but are inexact numbers.
        getattr(value.dtype, "kind", "O") not in "OSUMmV"
        or jnp.issubdtype(value.dtype, jnp.inexact)
    ):
        return value
    if is_array:
        raise TypeError(
            f"{name} got an array of dtype {value.dtype}, expected an array of numbers."
        )
    advice = (
        "pass x.toarray()" if hasattr(value, "toarray") else ADVICE.get(kind, "pass np.asarray(x)")
    )
    article = "an" if kind[0].lower() in "aeiou" else "a"
    raise TypeError(
        f"{name} got {article} {kind}, expected an array of numbers: {fix or advice.replace('x', name)}."
    )


def inputs(name: str, tree: Any) -> None:
    """Refuses inputs among whose arrays of NumPy one has no numbers: JAX would not say which.

    Raises:
        TypeError: Naming the leaf.

    Example:
        >>> inputs("x", {"left": np.ones(2), "right": np.array(["a"])})
        Traceback (most recent call last):
        ...
        TypeError: x['right'] got an array of dtype <U1, expected an array of numbers.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, np.ndarray):
            array(f"{name}{jax.tree_util.keystr(path)}", leaf)


def real_outputs(outputs: Any) -> None:
    """Refuses complex outputs of a function, of which only the shape and the dtype are looked at.

    Raises:
        TypeError: They are complex.

    Example:
        >>> real_outputs(jnp.ones(2))
    """
    if jnp.issubdtype(outputs.dtype, jnp.complexfloating):
        raise TypeError(
            f"apply returned outputs of dtype {outputs.dtype}, expected real ones: stack real and imaginary parts, or "
            "pass x.real."
        )


def real(name: str, value: Any) -> Any:
    """An array of real numbers in floating point: integers and booleans become JAX's default dtype.

    Raises:
        TypeError: It is no array, or complex.

    Example:
        >>> real("y", np.array([True, False])).tolist()
        [1.0, 0.0]
    """
    found = array(name, value)
    if jnp.issubdtype(found.dtype, jnp.complexfloating):
        raise TypeError(f"{name} has dtype {found.dtype}, expected real numbers: pass {name}.real.")
    return (
        found if jnp.issubdtype(found.dtype, jnp.floating) else found.astype(jnp.result_type(float))
    )


def vector(name: str, value: Any, *, at_least: int = 1) -> np.ndarray:
    """Real numbers in a list or an array of one axis, at least so many, in float64 on the host.

    Raises:
        TypeError: They are no real numbers.
        ValueError: There is another number of axes, or too few of them.

    Example:
        >>> vector("times", [0, 1]).tolist()
        [0.0, 1.0]
    """
    expected = f"a list or vector of at least {at_least} numbers"
    is_list = hasattr(value, "__len__") and not isinstance(value, (str, bytes, Mapping))
    if not is_list:
        raise TypeError(_message(name, _shown(value), expected, ""))
    try:
        found = np.asarray(value)
    except ValueError:  # rows of different lengths
        raise ValueError(_message(name, _shown(value), expected, "")) from None
    if found.size and not (jnp.issubdtype(found.dtype, jnp.floating) or found.dtype.kind in "iu"):
        raise TypeError(_message(name, f"values of dtype {found.dtype}", expected, ""))
    if found.ndim != 1 or len(found) < at_least:
        raise ValueError(_message(name, f"an array of shape {found.shape}", expected, ""))
    return found.astype(np.float64)


def numbers(name: str, value: Any, fix: str = "") -> np.ndarray:
    """Real numbers as an array of NumPy, in their own dtype: for what is computed on the host.

    Numbers and nested lists are converted. Complex numbers are refused: a conversion to float64
    would drop their imaginary part.

    Raises:
        TypeError: It is no array of real numbers, or traced.

    Example:
        >>> numbers("time", [0, 1.5]).tolist()
        [0.0, 1.5]
    """
    # A named tuple, such as a Gram, is no list of numbers: `array` says what to take of it.
    if isinstance(value, (int, float)) or type(value) in (list, tuple):
        try:
            value = np.asarray(value)
        except ValueError:
            raise TypeError(
                _message(name, "lists of different lengths", "an array of numbers", fix)
            ) from None
    concrete(name, value)
    values = np.asarray(array(name, value, fix))
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} has dtype {values.dtype}, expected real numbers: pass {name}.real, or real inputs."
        )
    return values


def concrete(name: str, *values: Any) -> None:
    """Refuses values that a transformation is tracing, for a function that computes on the host.

    Raises:
        TypeError: A value is traced.

    Example:
        >>> jax.jit(lambda x: concrete("kernel_regression", x))(1.0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        TypeError: kernel_regression got a traced array, expected known values: it computes on the host in float64, ...
    """
    if is_traced(values):
        raise TypeError(
            f"{name} got a traced array, expected known values: it computes on the host in float64, so call it outside "
            "of jit, grad and vmap, or write cross @ jnp.linalg.solve(kernel + ridge * jnp.eye(n), y) inside of them."
        )


def key(name: str, value: Any) -> Any:
    """A single random key, of the typed kind or the old one, as it is.

    Raises:
        TypeError: It is something else, for instance the number that a key is made of.

    Example:
        >>> key("key", 0)
        Traceback (most recent call last):
        ...
        TypeError: key got 0, expected one random key: pass jax.random.key(0).
    """
    if (
        isinstance(value, jax.Array)
        and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        and value.ndim == 0
    ):
        return value
    if isinstance(value, (jax.Array, np.ndarray)) and value.dtype == np.uint32 and value.ndim == 1:
        return value
    # Most often the seed was passed: the message makes a key of it.
    seed = value if isinstance(value, (int, np.integer)) else 0
    raise TypeError(
        f"{name} got {_shown(value)}, expected one random key: pass jax.random.key({seed})."
    )


def floating(name: str, values: Any, fix: str | None = None) -> None:
    """Refuses integer, boolean, complex and object arrays, with the conversion that was forgotten.

    Raises:
        TypeError: The values are not floating point.

    Example:
        >>> floating("x", np.zeros((1, 8, 8, 3), np.uint8))
        Traceback (most recent call last):
        ...
        TypeError: x has dtype uint8, expected floating point: use x.astype(float) / 255
    """
    if not jnp.issubdtype(values.dtype, jnp.floating):
        # Bytes, and whatever has four axes, are taken for images in 0 to 255.
        is_image = values.ndim == 4 or values.dtype == np.uint8
        forgotten = "x.astype(float) / 255" if is_image else "x.astype(float)"
        raise TypeError(
            f"{name} has dtype {values.dtype}, expected floating point: use {fix or forgotten}"
        )


def data(name: str, value: Any) -> None:
    """Refuses what has no inputs x and targets y, such as an array alone.

    Raises:
        TypeError: It is no `Data`.

    Example:
        >>> data("train", np.ones((3, 2)))
        Traceback (most recent call last):
        ...
        TypeError: train got an array of shape (3, 2), expected inputs and targets: pass Data(x, y).
    """
    if not (hasattr(value, "x") and hasattr(value, "y")):
        raise TypeError(_message(name, _shown(value), "inputs and targets", "pass Data(x, y)"))


def same_length(**arrays: Any) -> int:
    """The number of examples, the common length >= 1 of the first axes of arrays; None is left out.

    Raises:
        ValueError: The lengths differ, one is zero, or an array has no axis.

    Example:
        >>> same_length(x=np.zeros((3, 2)), y=np.zeros((3, 1)))
        3
        >>> same_length(x=np.zeros((3, 2)), y=np.zeros((4, 1)))
        Traceback (most recent call last):
        ...
        ValueError: got x of shape (3, 2), y of shape (4, 1), expected the same number of examples >= 1 as first axis.
    """
    shapes = {name: np.shape(value) for name, value in arrays.items() if value is not None}
    lengths = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(lengths) != 1 or 0 in lengths:
        found = ", ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"got {found}, expected the same number of examples >= 1 as first axis.")
    return lengths.pop()


def finite(name: str, tree: Any, fix: str = "remove or repair these examples") -> None:
    """Refuses NaN and infinity, naming the array, how many there are and where the first one is.

    One NaN makes everything that depends on it NaN: the cause is far from the symptom. All values
    are read, except those that are being traced by a transformation, which are let pass.

    Args:
        name: What messages call the tree.
        tree: Arrays, of which those of a floating-point or complex type are looked at.
        fix: What to do.

    Raises:
        ValueError: There is one.

    Example:
        >>> finite("params", {"w": jnp.array([1.0, jnp.nan])}, "start again from finite weights")
        Traceback (most recent call last):
        ...
        ValueError: params['w'] has 1 NaN and 0 infinite of 2 values, first at [1]: start again from finite weights
    """
    if is_traced(tree):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if (
            hasattr(leaf, "dtype")
            and jnp.issubdtype(leaf.dtype, jnp.inexact)
            and not _all_finite(leaf)
        ):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has {_not_finite(np.asarray(leaf))}: {fix}"
            )


COLLECTIONS = {"batch_stats", "cache", "intermediates"}
"""Names under which flax keeps what a network carries beside its weights."""


def weights(name: str, params: Any) -> None:
    """Refuses parameters without weights, with leaves that are no numbers, or with flax's running statistics.

    Real and complex floating-point arrays are weights; whole numbers, booleans and keys are
    constants. Statistics trained as weights are another network.

    Raises:
        TypeError: A leaf is no array of numbers, or none is floating point.
        ValueError: They are flax's variables of several collections, or there is none.

    Example:
        >>> weights("params", {"w": jnp.ones(2), "steps": jnp.array(3, jnp.int32)})
        >>> weights("params", {"steps": jnp.array(3, jnp.int32)})
        Traceback (most recent call last):
        ...
        TypeError: params['steps'] has dtype int32, expected floating-point weights: whole numbers are constants.
    """
    # flax's variables {"params": ..., "batch_stats": ...} look like a tree of weights.
    beside = (
        sorted(COLLECTIONS & set(params))
        if isinstance(params, Mapping) and "params" in params
        else []
    )
    if beside:
        raise ValueError(
            f"{name} got flax's variables with {', '.join(map(repr, beside))}, expected the weights alone: pass "
            "model.init(None, x) and model.apply of model = from_flax(module, variables)."
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(np.size(leaf) for _, leaf in leaves):
        raise ValueError(
            f"{name} got no arrays with entries, expected weights: of a Model pass model.init(key, x)."
        )
    # By dtype, not by value: parameters may be traced.
    dtypes = {jax.tree_util.keystr(path): _dtype_of(leaf) for path, leaf in leaves}
    for path, dtype in dtypes.items():
        if dtype == np.dtype(object):
            raise TypeError(
                f"{name}{path} has dtype object, expected arrays of numbers: keep it in the function."
            )
    if not any(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes.values()):
        path, dtype = next(iter(dtypes.items()))
        raise TypeError(
            f"{name}{path} has dtype {dtype}, expected floating-point weights: whole numbers are constants."
        )


def _dtype_of(leaf: Any) -> Any:
    is_number = isinstance(leaf, (int, float, complex))
    return getattr(leaf, "dtype", np.dtype(type(leaf) if is_number else object))


def _is_real_scalar(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_, str, bytes, list, tuple, Mapping)) or np.ndim(value) != 0:
        return False
    # By dtype: every array has __float__, also one of text or of complex numbers.
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    return hasattr(value, "__float__") and not isinstance(value, complex)


def _message(name: str, value: Any, expected: str, fix: str) -> str:
    return f"{name} got {value}, expected {expected}{f': {fix}' if fix else ''}."


def _shown(value: Any) -> str:
    """The value in one short line."""
    shape = np.shape(value) if isinstance(value, (np.ndarray, jax.Array)) else ()
    if shape:
        return f"an array of shape {shape}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _all_finite(values: Any) -> bool:
    """On the device of a jax array, also while others are traced; others, maybe memory-mapped, block by block.

    The arrays of a single CPU are read where they are: two programs for each new shape would take
    longer than what they check.
    """
    if isinstance(values, jax.Array):
        if {device.platform for device in values.devices()} != {"cpu"} or len(values.devices()) > 1:
            with jax.ensure_compile_time_eval():
                return bool(jnp.isfinite(values).all())
        values = np.asarray(values)
    if not values.ndim:
        return bool(np.isfinite(values))
    # So many rows have BLOCK values.
    rows = max(1, BLOCK * len(values) // max(1, values.size))
    return all(np.isfinite(values[i : i + rows]).all() for i in range(0, len(values), rows))


def _not_finite(values: np.ndarray) -> str:
    is_finite = np.isfinite(values)
    nans = int(np.isnan(values).sum())
    infinite = int(values.size - is_finite.sum()) - nans
    first = [int(i) for i in np.argwhere(~is_finite)[0]]
    return f"{nans} NaN and {infinite} infinite of {values.size} values, first at {first}"
