"""Tangents: what fine-tuning adds to trained weights, as vectors that add, fold back and are stored.

A tangent is a displacement u at weights w0, and the linearized model there, `h(w0) + Dh(w0) u`,
which is trained in u with any loss, optimizer and selection of weights. What it has learned is a
vector: tasks are added, removed and scaled by arithmetic, in the linearized model or, folded back
into the weights, in the network itself.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from lazynet import files, guards, trees
from lazynet.kernels.empirical import empirical_ntk
from lazynet.lazy import LazyFunction, check_displacement, lazy, linearize
from lazynet.programs import PerFunction
from lazynet.signatures import Output, flat, select
from lazynet.typing import Apply, Array, ArrayLike, Params

__all__ = ["Tangent", "disentanglement_error", "load", "save", "tangent_at"]

CHUNK = 1000
"""Examples evaluated at a time."""

PLACE = "displacement/"
"""What the names of the leaves of a displacement begin with in a file."""


@functools.partial(register_dataclass, data_fields=("function", "displacement"), meta_fields=())
@dataclasses.dataclass(frozen=True, eq=False)
class Tangent:
    """A displacement u at weights w_t: the model `h(w_t) + Dh(w_t) u`, and a vector of the tangent space there.

    Tangents of one model at the same weights form a vector space: `a + b`, `a - b`, `-a`, `2 * a`,
    `a / 2`, and `sum(tasks, start)` of many.

    Attributes:
        function: The linearized model as a function of (u, x), which `train` takes.
        displacement: u.

    Example:
        >>> start = tangent_at(lambda w, x: x @ w**2, jnp.array([[3.0]]))
        >>> task, x = start.at(jnp.array([[1.0]])), jnp.ones((1, 1))
        >>> [tangent(x).item() for tangent in (start, task, -task, 2 * task + task)]
        [9.0, 15.0, 3.0, 27.0]
        >>> (2 * task).weights().item()
        5.0
    """

    function: LazyFunction
    displacement: Params

    __array_ufunc__ = None  # numbers of NumPy on the left leave the product to us

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Outputs of the linearized model, `h(w_t, x) + Dh(w_t, x) u`."""
        return self.function(self.displacement, *inputs, **kwargs)

    @property
    def apply(self) -> Apply:
        """The linearized model as a function of the weights, `h(w_t) + Dh(w_t) (w - w_t)`."""
        # The same function of w = w_t + u.
        return linearize(self.function.apply, self.params)

    @property
    def params(self) -> Params:
        """The weights w_t, at which it touches the network."""
        return self.function.params0

    def kernel(self, x1: Any, x2: Any = None, **options: Any) -> ArrayLike:
        """The tangent kernel at w_t, with the options of `empirical_ntk`."""
        return empirical_ntk(self.function.apply, self.params, x1, x2, **options)

    def at(self, displacement: Params) -> Tangent:
        """The tangent of another displacement at the same weights, such as the one that `train` has found."""
        trees.check_same_structure(
            displacement, self.params, name="displacement", expected="the weights"
        )
        return dataclasses.replace(self, displacement=displacement)

    def weights(self) -> Params:
        """The displacement folded back into the weights, `w_t + u`; of factors, see `low_rank.merged`."""
        return _leaf_by_leaf(jnp.add, self.params, self.displacement)

    def __add__(self, other: Any) -> Tangent:
        """The sum `a + b`."""
        if not isinstance(other, Tangent):
            return NotImplemented
        _check_same_weights(self, other)
        return self.at(_leaf_by_leaf(jnp.add, self.displacement, other.displacement))

    def __mul__(self, factor: Any) -> Tangent:
        """The multiple `c a` by a number."""
        if not _is_number(factor):
            return NotImplemented
        weights, _ = trees.differentiable(self.displacement)
        if np.iscomplexobj(factor) and not all(map(trees.is_complex, weights)):
            raise TypeError(
                f"factor got {factor}, expected a real number: weights that are real would lose its imaginary part."
            )
        scaled = _leaf_by_leaf(
            lambda leaf: jnp.asarray(factor).astype(leaf.dtype) * leaf, self.displacement
        )
        return self.at(scaled)

    __rmul__ = __mul__

    def __neg__(self) -> Tangent:
        """The opposite tangent, `-a`."""
        return self * -1

    def __sub__(self, other: Any) -> Tangent:
        """The difference `a - b`."""
        return self + -other if isinstance(other, Tangent) else NotImplemented

    def __truediv__(self, divisor: Any) -> Tangent:
        """The multiple `a / c` by a number."""
        return self * (1 / divisor) if _is_number(divisor) else NotImplemented


def tangent_at(apply: Apply, params: Params, *, output: Output = None) -> Tangent:
    """The tangent `h(w_t) + Dh(w_t) u` at the weights w_t of some time t, with u = 0, and its kernel.

    It is where linearized fine-tuning starts: `curve = train(objective(start.function, loss), None,
    data, optimizer, ...)`, with any optimizer and `where=`, and `start.at(curve.params)` is what has
    been learned.

    How much of what a network learns is in its kernel shows when training goes on from w_t in the
    tangent model instead, or in function space by `gradient_flow(start.kernel(x), data, f0=h(w_t, x),
    ...)`. From the initial weights that is the lazy model; a network that changes its kernel early
    and then trains lazily is told apart from one that never does.

    Args:
        apply: Model h, or a `lazy` function; that of `lora(model, ...)` for factors.
        params: w_t, for instance of a state of `snapshots` (a displacement u_t for a `lazy`
            function).
        output: Which of the outputs of apply, by `select`; None leaves them as they are.

    Raises:
        TypeError: If `params` has no floating-point leaves.
        ValueError: If `apply` is a `lazy` function and `params` its params0, which is no displacement.

    Example:
        >>> import lazynet as ln
        >>> start = tangent_at(lambda w, x: x @ w**2, jnp.array([[1.0]]))
        >>> data = ln.Data(jnp.ones((1, 1)), jnp.array([[5.0]]))
        >>> settings = dict(key=jax.random.key(0), save_at=[50], learning_rate=0.2)
        >>> goal = ln.objective(start.function, ln.mse)
        >>> curve = ln.train(goal, None, data, ln.sgd(), **settings)
        >>> round(start.at(curve.params)(data.x).item(), 3)
        5.0

    Source: Fort et al. (2020), linearized training from a later time.
    """
    guards.weights("params", params)
    check_displacement(apply, params)
    chosen = apply if output is None else select(apply, output)
    function = lazy(chosen, params, math.inf, centered=False)
    return Tangent(function, function.start())


def disentanglement_error(
    a: Tangent,
    b: Tangent,
    x_a: Any,
    x_b: Any,
    *,
    scales: tuple[float | int, float | int] = (1.0, 1.0),
    alpha: float | int = math.inf,
    classes: tuple[Any, Any] | None = None,
) -> float:
    """How two tasks get in each other's way, `xi = sum_t P(class by s_t tau_t != class by s_a tau_a + s_b tau_b)`.

    The probability is over the examples of task t. Zero where the sum of both tangents decides on
    each task's examples as its own tangent alone; at most 2.

    Args:
        a: Tangent tau_a of the first task.
        b: Tangent tau_b of the second, at the same weights.
        x_a: Examples of the first task.
        x_b: Examples of the second.
        scales: Factors s_a and s_b.
        alpha: In which model of the axis: inf is the linearized one, 1 the network with the
            displacements added to its weights.
        classes: Outputs among which each task decides, such as `(range(0, 5), range(5, 10))` where
            one head serves both; None for all of them.

    Raises:
        TypeError: If `a` or `b` is no tangent.
        ValueError: If they are at different weights, or the outputs are no `[n, k]`.

    Example:
        >>> start = tangent_at(lambda w, x: x @ w, jnp.zeros((2, 1)))
        >>> a, b = start.at(jnp.array([[1.0], [0.0]])), start.at(jnp.array([[-2.0], [1.0]]))
        >>> disentanglement_error(a, b, jnp.eye(2)[:1], jnp.eye(2)[1:])
        1.0

    Source: Ortiz-Jimenez, Favero and Frossard (2023), Task arithmetic in the tangent space: improved
    editing of pre-trained models, the weight disentanglement error.
    """
    for name, tangent in (("a", a), ("b", b)):
        if not isinstance(tangent, Tangent):
            raise TypeError(
                f"{name} got {tangent!r}, expected a Tangent: tangent_at(apply, params)."
            )
    a = a * guards.number("scales[0]", scales[0])
    b = b * guards.number("scales[1]", scales[1])
    # Refuses tangents at different weights.
    both = a + b
    function = lazy(a.function.apply, a.params, alpha, centered=False)
    error = 0.0
    heads = (slice(None), slice(None)) if classes is None else map(np.asarray, classes)
    tasks = (("x_a", a, x_a), ("x_b", b, x_b))
    for (name, task, x), head in zip(tasks, heads, strict=True):
        guards.inputs(name, x)
        alone = _classes(function, task.displacement, x, head)
        together = _classes(function, both.displacement, x, head)
        error += float(np.mean(alone != together))
    return error


def save(path: str | os.PathLike[str], tangent: Tangent) -> None:
    """Writes the displacement of a tangent to one `.npz` file, all or nothing, without the leaves that did not move.

    Args:
        path: The file, in a folder that exists; what it held before is replaced.
        tangent: Of a few weights or factors the file holds these alone.

    Raises:
        OSError: With `path` as its file name, for instance on a full disk.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "task.npz")
        >>> start = tangent_at(lambda w, x: x @ w, jnp.ones((1, 1)))
        >>> save(path, start.at(jnp.full((1, 1), 0.5)))
        >>> load(path, start).weights().tolist()
        [[1.5]]
    """
    leaves = [np.asarray(leaf) for leaf in trees.differentiable(tangent.displacement)[0]]
    moved = {f"{PLACE}{i}": leaf for i, leaf in enumerate(leaves) if leaf.any()}
    # A tangent at other weights means nothing: the file knows at which ones.
    digest = np.frombuffer(_digest(tangent.params), np.uint8)
    files.save_arrays(files.given_path("path", path), {"weights": digest} | moved)


def load(path: str | os.PathLike[str], start: Tangent) -> Tangent:
    """The tangent that `save` wrote, bit for bit, at the weights of `start`, which must be those it was written at.

    Args:
        path: Where `save` wrote.
        start: Any tangent at the same weights, such as `tangent_at(apply, params)`.

    Raises:
        FileNotFoundError: If there is no such file.
        Damaged: If the file is not what was written.
        ValueError: If it holds no tangent, or one at other weights.
    """
    path = files.given_path("path", path)
    stored = files.load_arrays(path)
    if "weights" not in stored:
        raise ValueError(f"{path} holds {', '.join(stored)}, expected what tangents.save wrote.")
    if stored["weights"].tobytes() != _digest(start.params):
        raise ValueError(
            f"{path} holds a tangent at other weights than those of start, expected the same, bit for bit: load the "
            "weights that it was trained from."
        )
    zeros, rebuilt = trees.differentiable(start.function.start())
    leaves = [_stored(stored.get(f"{PLACE}{i}"), leaf) for i, leaf in enumerate(zeros)]
    return start.at(rebuilt(leaves))


def _leaf_by_leaf(function, tree: Params, *others: Params) -> Params:
    """A function of the weights among the leaves; constants stay."""
    return jax.tree.map(
        lambda leaf, *rest: function(leaf, *rest) if trees.is_weight(leaf) else leaf, tree, *others
    )


def _is_number(factor: Any) -> bool:
    return not isinstance(factor, (str, bytes, Tangent)) and jnp.ndim(factor) == 0


def _check_same_weights(a: Tangent, b: Tangent) -> None:
    trees.check_same_structure(b.params, a.params, name="the weights of b", expected="those of a")
    weights, _ = trees.differentiable(a.params)
    others, _ = trees.differentiable(b.params)
    # Tangents of one `start` share their arrays: nothing is compared then.
    pairs = [(x, y) for x, y in zip(weights, others, strict=True) if x is not y]
    if not trees.is_traced(pairs) and not all(np.array_equal(x, y) for x, y in pairs):
        raise ValueError(
            "a and b are tangents at different weights, expected the same: only displacements from one point add up."
        )


@PerFunction
def _outputs(function, displacement, x):
    return flat(function, x)(displacement, x)


def _classes(function: LazyFunction, displacement: Params, x: Any, head: Any) -> np.ndarray:
    """The class of each example among the outputs of a head, the sign of a single output."""
    classes = []
    for start in range(0, trees.length(x), CHUNK):
        chunk = jax.tree.map(lambda leaf, i=start: leaf[i : i + CHUNK], x)
        outputs = np.asarray(_outputs(function, displacement, chunk))
        if outputs.ndim != 2:
            raise ValueError(
                f"apply gave outputs of shape {outputs.shape}, expected [n, k], one row of scores for each example."
            )
        outputs = outputs[:, head]
        classes.append(outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(axis=1))
    return np.concatenate(classes)


def _digest(params: Params) -> bytes:
    """A digest of the weights, their shapes and types."""
    sha = hashlib.sha256()
    for leaf in map(np.asarray, trees.differentiable(params)[0]):
        # The bytes alone are those of a reshaped array, too.
        sha.update(f"{leaf.shape} {leaf.dtype}".encode())
        sha.update(leaf.tobytes())
    return sha.digest()


def _stored(value: np.ndarray | None, zero: Array) -> Array:
    """A stored leaf, in the type of the weight; one that was not stored is zero."""
    if value is None:
        return zero
    # Files have no name for bfloat16 and its relatives, whose bytes they keep.
    return jnp.asarray(value.view(zero.dtype) if value.dtype.kind == "V" else value)
