"""Two-layer ReLU students of a ReLU teacher, many scales at a time: the engine of the synthetic figures.

A student is `h(w; x) = sum_j a_j max(0, <w_j, x>)` and trains the displacement u = alpha (w - w0)
of

    f(u, x) = f0(x) + alpha [h(w0 + u/alpha; x) - h(w0; x)]

by gradient descent on 1/(2n) sum (f - y)^2. Samples stand last, `[units, n]`, so that the units of
scales that draw fresh samples at every step form one matrix product with the samples they share.
The difference is not taken between two rounded outputs: neuron by neuron,

    alpha [max(0, z0 + v/alpha) - max(0, z0)] = max(v, -alpha z0) if z0 > 0, else max(v + alpha z0, 0),

which is exact in float32 for every alpha.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
    "Student",
    "Weights",
    "descend",
    "doubled",
    "draw_examples",
    "draw_normal",
    "draw_teacher",
    "gradients",
    "measurements",
    "on_sphere",
    "outputs",
    "relu_net",
    "step",
]


class Weights(NamedTuple):
    """Hidden weights `[..., m, d]` and output weights `[..., m]`."""

    hidden: Any
    out: Any


class Student(NamedTuple):
    """What stays fixed in training: initial weights, scales `alpha [s]`, rates `rate [s]` and `hidden_factor`.

    `offset [s]` multiplies the outputs at initialization: 0 for a centered or doubled student,
    alpha otherwise. The learning rate of the hidden weights is `hidden_factor` times that of the
    output weights.
    """

    start: Weights
    alpha: Any
    rate: Any
    offset: Any
    hidden_factor: float = 1.0


def on_sphere(key, n: int, d: int, dtype=None):
    """N points, uniform on the unit sphere of R^d, one a column: `[d, n]`."""
    normal = jax.random.normal(key, (d, n), dtype or jnp.result_type(float))
    return normal / jnp.linalg.norm(normal, axis=0, keepdims=True)


def draw_teacher(keys, width: int, d: int, factor: float = 1.0) -> Weights:
    """`width` neurons of unit norm whose outputs are `factor` times a random sign; takes two keys."""
    hidden = on_sphere(keys[0], width, d).T
    return Weights(hidden, factor * jax.random.rademacher(keys[1], (width,), hidden.dtype))


def draw_normal(keys, width: int, d: int) -> Weights:
    """Standard normal weights; takes two keys."""
    return Weights(jax.random.normal(keys[0], (width, d)), jax.random.normal(keys[1], (width,)))


def draw_examples(keys, teacher: Weights, n_train: int, n_test: int) -> tuple[Any, Any, Any, Any]:
    """Inputs `[d, n]` on the sphere and targets `[1, n]` of the teacher, for training and test; takes two keys."""
    # `datasets.teacher_student` draws the same task with one example a row. Columns are filled in
    # another order from a key, and the results stored so far depend on these draws: neither can be
    # made from the other, bit for bit.
    d = teacher.hidden.shape[1]
    x = on_sphere(keys[0], n_train, d)
    x_test = on_sphere(keys[1], n_test, d)
    return x, relu_net(teacher, x)[None], x_test, relu_net(teacher, x_test)[None]


def doubled(weights: Weights) -> Weights:
    """The weights twice, the copy with negated outputs: the student vanishes at initialization."""
    hidden = jnp.concatenate([weights.hidden] * 2)
    return Weights(hidden, jnp.concatenate([weights.out, -weights.out]))


def relu_net(weights: Weights, x):
    """`h(w; x)`, `[n]`, for inputs `[d, n]`."""
    return _dot(weights.out, jnp.maximum(_dot(weights.hidden, x), 0))


def outputs(student: Student, u: Weights, x):
    """`f(u, x)`, `[s, n]`."""
    return _forward(student, _dot(student.start.hidden, x), u, x)[0]


def gradients(student: Student, z0, u: Weights, x, y) -> tuple[Any, Weights]:
    """Residuals `[s, n]` and the gradient of the loss in u; `z0` are the pre-activations at initialization."""
    f, active, now = _forward(student, z0, u, x)
    # The alpha of f cancels the 1/alpha of its weights: df/du = Dh(w0 + u/alpha).
    residual = f - y
    pull = residual / y.shape[-1]
    out = student.start.out[None] + u.out / student.alpha[:, None]
    back = jnp.where(now > 0, out[:, :, None] * pull[:, None, :], 0)
    # `[s, m, n]` by `[d, n]` over the samples: `[s, m, d]`.
    hidden = lax.dot_general(back, x, (((2,), (1,)), ((), ())), precision="highest")
    return residual, Weights(hidden, jnp.einsum("smn,sn->sm", active, pull, precision="highest"))


def descend(student: Student, u: Weights, x, y, steps) -> Weights:
    """`steps` steps of full-batch gradient descent.

    Scales share no random draws here and are trained one after another: a CPU takes 1.5 times
    longer for the matrix-vector products of several scales batched together.
    """
    weights = []
    for i in range(len(student.alpha)):
        # A slice keeps the axis of scales, over which everything is written.
        own = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], u)
        weights.append(_descend(_scale(student, i), own, x, y, steps))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *weights)


# The number of steps is traced: any of them is the same program.
@jax.jit
def _descend(student, u, x, y, steps):
    # Once for all steps, since samples and initial weights stay.
    z0 = _dot(student.start.hidden, x)

    def advance(_, u):
        _, gradient = gradients(student, z0, u, x, y)
        return step(student, u, gradient)

    return lax.fori_loop(0, steps, advance, u)


def _scale(student, i):
    """The students of one scale alone."""
    alone = {name: getattr(student, name)[i : i + 1] for name in ("alpha", "rate", "offset")}
    return student._replace(**alone)


def step(student: Student, u: Weights, gradient: Weights) -> Weights:
    """One step of gradient descent."""
    rate = student.rate[:, None]
    hidden = u.hidden - student.hidden_factor * rate[:, :, None] * gradient.hidden
    return Weights(hidden, u.out - rate * gradient.out)


@jax.jit
def measurements(student: Student, u: Weights, x, y, x_test, y_test) -> dict[str, Any]:
    """Training and test loss, share of ReLU gates as at initialization, and relative drift of the weights, `[s]`."""
    z0 = _dot(student.start.hidden, x)
    f, _, now = _forward(student, z0, u, x)
    norm0 = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in student.start))
    squares = jnp.sum(u.hidden**2, axis=(1, 2)) + jnp.sum(u.out**2, axis=1)
    moved = jnp.sqrt(squares) / student.alpha
    return {
        "train_loss": _loss(f, y),
        "test_loss": _loss(outputs(student, u, x_test), y_test),
        # The mean of booleans would be float32 whatever the precision.
        "stability": jnp.mean((now > 0) == (z0 > 0)[None], axis=(1, 2), dtype=f.dtype),
        "drift": moved / norm0,
    }


def _forward(student, z0, u, x):
    """Outputs, activations now, and pre-activations now."""
    alpha = student.alpha[:, None, None]
    # `[s, m, d]` by `[d, n]`: `[s, m, n]`, one product for the units of all scales.
    moved = lax.dot_general(u.hidden, x, (((2,), (0,)), ((), ())), precision="highest")
    scaled = alpha * z0[None]
    now = z0[None] + moved / alpha
    active = jnp.maximum(now, 0)
    # alpha [relu(z0 + moved / alpha) - relu(z0)] without the difference, which loses its digits at large alpha.
    change = jnp.where(z0[None] > 0, jnp.maximum(moved, -scaled), jnp.maximum(moved + scaled, 0))
    # alpha [(a0 + v/alpha) relu(z) - a0 relu(z0)] = v relu(z) + a0 alpha [relu(z) - relu(z0)].
    f = jnp.einsum("sm,smn->sn", u.out, active, precision="highest")
    f = f + jnp.einsum("m,smn->sn", student.start.out, change, precision="highest")
    start = _dot(student.start.out, jnp.maximum(z0, 0))
    return f + student.offset[:, None] * start[None], active, now


def _loss(f, y):
    return jnp.mean((f - y) ** 2, axis=-1) / 2


# GPUs would keep three digits of a float32 product.
_dot = functools.partial(jnp.matmul, precision="highest")
