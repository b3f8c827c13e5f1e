"""Losses `loss(outputs, targets)`, averaged over examples, and the objective they make with a model.

Outputs of half precision are compared in float32, which losses then have: sums and numbers of
examples overflow float16. Gradients come back in the dtypes of the weights.

Every loss refuses shapes that differ: `[n]` against `[n, 1]` would broadcast to `[n, n]` and train
nonsense silently.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Num

from lazynet import guards, trees
from lazynet.records import Data
from lazynet.signatures import Inputs, Output, one_array, select
from lazynet.trees import as_partial
from lazynet.typing import Apply, Array, ArrayLike, LossFn, Params, Scalar

__all__ = [
    "Objective",
    "accuracy",
    "check_labels",
    "cross_entropy",
    "logistic",
    "masked_cross_entropy",
    "mse",
    "objective",
]

Values = Num[ArrayLike, "..."] | Bool[ArrayLike, "..."]


def mse(outputs: Values, targets: Values) -> Float[Scalar, ""]:
    """Square loss `1/(2n) sum_i |f_i - y_i|^2`, n the number of examples.

    With this normalization the gradient flow in function space is `df/dt = -Theta (f - y) / n`, and
    the largest stable full-batch learning rate is `2 n / lambda_max(Theta)`.

    Args:
        outputs: f, `[n, k]`.
        targets: y, `[n, k]`.

    Raises:
        ValueError: If the shapes differ or are not `[n, k]`.

    Example:
        >>> float(mse(jnp.array([[1.0], [3.0]]), jnp.array([[0.0], [0.0]])))
        2.5
    """
    outputs, targets = _compared("mse", outputs, targets)
    return jnp.sum((outputs - targets) ** 2) / (2 * outputs.shape[0])


def cross_entropy(outputs: Values, targets: Values) -> Float[Scalar, ""]:
    """Cross-entropy `-1/n sum_i sum_c y_ic log softmax(f_i)_c`; the targets are one-hot rows or probabilities.

    A class of probability zero adds nothing, also where its logit is -inf: `0 log 0 = 0`.

    Args:
        outputs: Logits f, `[n, k]` with k >= 2.
        targets: y, `[n, k]`.

    Raises:
        ValueError: If the shapes differ, are not `[n, k]`, k = 1 (use `logistic`), or targets whose
            values are known are no probabilities.

    Example:
        >>> round(float(cross_entropy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))), 6)
        0.693147
    """
    outputs, targets = _compared("cross_entropy", outputs, targets)
    if outputs.shape[1] < 2:
        raise ValueError(
            "cross_entropy got k=1 output, for which it is constant: use logistic with targets -1 and 1."
        )
    check_labels(cross_entropy, targets, "targets")
    # A class of probability zero counts nothing, also where its logit is -inf.
    terms = jnp.where(targets == 0, 0, targets * jax.nn.log_softmax(outputs, axis=-1))
    return -jnp.sum(terms) / outputs.shape[0]


def logistic(outputs: Values, targets: Values) -> Float[Scalar, ""]:
    """Logistic loss `1/n sum_i log(1 + exp(-y_i f_i))` for targets -1 and 1.

    Args:
        outputs: f, `[n, 1]`.
        targets: y, `[n, 1]`, each -1 or 1.

    Raises:
        ValueError: If the shapes differ, are not `[n, 1]`, or targets whose values are known are no
            signs.

    Example:
        >>> round(float(logistic(jnp.zeros((1, 1)), jnp.ones((1, 1)))), 6)
        0.693147
    """
    outputs, targets = _compared("logistic", outputs, targets)
    if outputs.shape[1] != 1:
        raise ValueError(
            f"logistic got k={outputs.shape[1]} outputs, expected 1: use cross_entropy for classes."
        )
    check_labels(logistic, targets, "targets")
    return jnp.sum(jax.nn.softplus(-targets * outputs)) / outputs.shape[0]


def masked_cross_entropy(outputs: Values, targets: Values) -> Float[Scalar, ""]:
    """Cross-entropy of tokens `-1/n sum_i 1/|M_i| sum_{t in M_i} log softmax(f_it)_{y_it}`, M_i those with y_it >= 0.

    Each example has the mean over its tokens; of one without any it is zero.

    Args:
        outputs: Logits f, `[n, t, v]`, or `[n, v]` for one token each.
        targets: Labels y, whole numbers `[n, t]`, or `[n]`; negative ones are masked.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If the labels are no whole numbers.

    Example:
        >>> logits = jnp.zeros((1, 3, 2))
        >>> round(float(masked_cross_entropy(logits, jnp.array([[0, 1, -1]]))), 6)
        0.693147
    """
    outputs, targets, mask = _tokens("masked_cross_entropy", outputs, targets)
    logits = jax.nn.log_softmax(outputs)
    # Masked labels are negative and would count from the end; what they choose is masked below.
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return -_mean_of_tokens(chosen, mask)


def accuracy(outputs: Values, targets: Values) -> Float[Scalar, ""]:
    """Fraction of examples with `argmax f = argmax y`, or `sign f = sign y` for a single output.

    The sign of 0 counts as negative, so that targets may be 0 and 1 too. An example with NaN among
    its outputs is a miss.

    Args:
        outputs: f, `[n, k]`, or those of tokens `[n, t, v]`.
        targets: y, `[n, k]`: one-hot, centered one-hot, or signs; labels as those of
            `masked_cross_entropy`.

    Raises:
        ValueError: If the shapes differ or are not `[n, k]`.

    Example:
        >>> float(accuracy(jnp.array([[0.2, 0.1], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])))
        0.5
    """
    if is_labels(outputs, targets):
        outputs, targets, mask = _tokens("accuracy", outputs, targets)
        right = (outputs.argmax(-1) == targets) & ~jnp.isnan(outputs).any(-1)
        return _mean_of_tokens(right.astype(outputs.dtype), mask)
    outputs, targets = _compared("accuracy", outputs, targets)
    return _share_of_hits(outputs, targets)


@jax.jit
def _share_of_hits(outputs, targets):
    if outputs.shape[1] == 1:
        hit = ((outputs > 0) == (targets > 0))[:, 0]
    else:
        hit = outputs.argmax(-1) == targets.argmax(-1)
    # The largest of outputs that are not numbers means nothing.
    return jnp.mean(hit & ~jnp.isnan(outputs).any(-1), dtype=outputs.dtype)


class Objective(NamedTuple):
    """`weight * loss(apply(params, x), y)`: a pytree, so that it is an argument of a compiled step, not a constant.

    Attributes:
        apply: The model, as a pytree of the arrays that it carries.
        loss: The loss, as such a pytree.
        weight: Factor of the loss, for instance 1/alpha^2.

    Example:
        >>> goal = objective(lambda params, x: x * params, mse)
        >>> float(goal.value(jnp.asarray(2.0), Data(jnp.ones((1, 1)), jnp.zeros((1, 1)))))
        2.0
    """

    apply: Apply
    loss: LossFn
    weight: float | Array

    def outputs(self, params: Params, x: Any) -> Any:
        """Outputs of the model as the loss gets them: one array, of a tree all floating-point arrays joined."""
        args = x.args if isinstance(x, Inputs) else (x,)
        return one_array(self.apply(params, *args), args)

    def value(self, params: Params, data: Data) -> Float[Scalar, ""]:
        """The objective at `params` on `data`."""
        return self.loss(self.outputs(params, data.x), data.y) * self.weight


def objective(
    apply: Apply, loss: LossFn, weight: float | Array = 1.0, *, output: Output = None
) -> Objective:
    """The objective `R(w) = weight * loss(apply(w, x), y)`.

    For a function scaled by alpha, weight = 1/alpha^2 gives the objective of Chizat, Oyallon and
    Bach (2019), equation 2; with `lazy` the same dynamics need weight 1.

    Args:
        apply: Model `apply(params, x)`, or of several inputs where `data.x` is `Inputs`.
        loss: Loss averaged over examples, such as `mse`.
        weight: Factor of the loss.
        output: Which of the outputs of apply the loss is of, by `select`.

    Raises:
        TypeError: If `apply` or `loss` cannot be called.
        ValueError: If the weight is not a finite number > 0.

    Example:
        >>> objective(lambda params, x: x, mse, 0.25).weight
        0.25
    """
    guards.number("weight", weight, above=0, fix="a negative one climbs where training descends")
    function = as_partial(apply, "apply") if output is None else select(apply, output)
    return Objective(function, as_partial(loss, "loss"), weight)


def check_labels(loss: LossFn, targets: Any, name: str = "y") -> None:
    """Refuses targets of another kind than the loss is made for, of which it would make a number without a meaning.

    Cross-entropy is one of probabilities: rows >= 0 that sum to one. The logistic loss is one of
    signs. Any values do for the square loss, and for other functions nothing is known. Reads all
    values; traced ones pass.

    Args:
        loss: A loss, also as a `Partial`.
        targets: y, `[n, k]`.
        name: What messages call them.

    Raises:
        ValueError: Naming the first row that is of another kind.

    Example:
        >>> check_labels(cross_entropy, np.eye(2))
        >>> check_labels(logistic, np.array([[1.0], [0.0]]))
        Traceback (most recent call last):
        ...
        ValueError: y[1] is [0.0], expected -1 or 1 for logistic: use 2 y - 1 for targets 0 and 1.
    """
    # `as_partial` wraps losses.
    function = getattr(loss, "func", loss)
    if function not in (cross_entropy, logistic) or trees.is_traced(targets):
        return
    y = np.asarray(targets)
    is_floating = jnp.issubdtype(y.dtype, jnp.floating)
    # A row of k rounded probabilities sums to 1 up to k roundings.
    rounding = y.shape[-1] * float(jnp.finfo(y.dtype).eps) if is_floating else 0.0
    limit = max(1e-4, rounding)
    y = y.astype(np.float64)
    if function is logistic:
        right = (np.abs(np.abs(y) - 1) < 1e-4).all(-1)
        expected = "-1 or 1 for logistic: use 2 y - 1 for targets 0 and 1"
    else:
        right = (y >= -1e-4).all(-1) & (np.abs(y.sum(-1) - 1) < limit)
        expected = (
            "one-hot or probability targets for cross_entropy, a row >= 0 that sums to 1: use "
            "one_hot(labels, classes), not centered targets"
        )
    if not right.all():
        row = int(np.argmin(right))
        raise ValueError(f"{name}[{row}] is {y[row].tolist()}, expected {expected}.")


def is_labels(outputs: Any, targets: Any) -> bool:
    """Whether targets are whole numbers, one for each row of outputs."""
    return (
        hasattr(targets, "dtype")
        and jnp.issubdtype(targets.dtype, jnp.integer)
        and targets.ndim == outputs.ndim - 1
    )


def _tokens(name, outputs, targets):
    """Logits, labels and where these are not masked."""
    outputs = guards.real("outputs", outputs)
    targets = guards.array("targets", targets)
    if outputs.ndim < 2 or targets.shape != outputs.shape[:-1]:
        raise ValueError(
            f"{name} got outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}, expected "
            "logits [n, t, v] and labels [n, t]: whole numbers, negative where there is nothing to predict."
        )
    if not jnp.issubdtype(targets.dtype, jnp.signedinteger):
        raise TypeError(
            f"{name} got targets of dtype {targets.dtype}, expected labels: use y.astype(np.int32)."
        )
    return trees.widened(outputs), targets, targets >= 0


def _mean_of_tokens(values, mask):
    """Mean over examples of the mean over the tokens of each."""
    values = jnp.where(mask, values, 0).reshape(len(mask), -1)
    counts = jnp.sum(mask.reshape(len(mask), -1), axis=1, dtype=values.dtype)
    # An example without tokens is 0, not 0 / 0.
    return jnp.mean(jnp.sum(values, axis=1) / jnp.maximum(counts, 1))


def _compared(name, outputs, targets):
    """Outputs and targets of the same shape `[n, k]`, as real numbers: differences of bytes would wrap around."""
    outputs = guards.array("outputs", outputs)
    targets = guards.array("targets", targets)
    if outputs.shape != targets.shape or outputs.ndim != 2:
        raise ValueError(
            f"{name} got outputs of shape {tuple(outputs.shape)} and targets of shape "
            f"{tuple(targets.shape)}, expected the same [n, k] for both: "
            "reshape scalar targets by y[:, None], or give the model the targets' number of outputs."
        )
    for kind, values in (("outputs", outputs), ("targets", targets)):
        if jnp.issubdtype(values.dtype, jnp.complexfloating):
            raise TypeError(
                f"{name} got complex {kind}, expected real ones: stack real and imaginary parts."
            )
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        outputs = jnp.asarray(outputs).astype(float)
    if not jnp.issubdtype(targets.dtype, jnp.floating):
        targets = jnp.asarray(targets, outputs.dtype)
    return trees.widened(outputs), trees.widened(targets)
