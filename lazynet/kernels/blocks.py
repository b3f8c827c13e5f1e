"""One block of an analytic kernel: which images meet in which lanes, and which program takes their planes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lazynet.covariance import cpu
from lazynet.covariance.general.positions import BeyondPlanes, position_kernel
from lazynet.covariance.halves import joined
from lazynet.covariance.pairing import pairs_in_lanes, ring
from lazynet.covariance.state import input_kernel
from lazynet.covariance.tasks import Answered, Asked, Unsupported
from lazynet.models.model import propagate
from lazynet.programs import program
from lazynet.records import Gram
from lazynet.trees import is_traced

__all__ = [
    "LANES",
    "block",
    "block_by",
    "compute_block",
    "plans_of",
    "questions_of",
    "row_by_row",
    "symmetric",
]

LANES = 16, 8
"""The smallest number of lanes that fill a vector register in single precision, and the step of larger ones."""

FEW = 4
"""Lanes up to which fewer of them cost less than a whole register."""


def compute_block(model, x1, x2):
    """The kernels of two sets, or of one with itself: planes by the compiled program where it takes them."""
    # Three programs: up to what heads ask of planes, the planes themselves, and what comes after.
    questions = questions_of(model, x1, x2)
    if questions is not None:
        tasks = questions(x1, x2)
        pairs = _pairs(x1, x2)
        answers = [task.answer(*pairs) for task in tasks]
        return program(_after, model, x1, x2, answers)(x1, x2, answers)
    if x2 is None:
        return program(symmetric, model, x1)(x1)
    return program(block, model, x1, x2)(x1, x2)


def questions_of(model, x1, x2):
    """The program that finds the tasks of the compiled one for planes; None if that one is not for this kernel."""
    if x1.ndim != 4 or is_traced((x1, x2)) or not cpu.available():
        return None
    found = program(_before, model, x1, x2)
    # Known from the trace, before anything is computed: no tasks are a list without leaves.
    return found if found.outputs[0].num_leaves else None


def plans_of(questions):
    """The plans of the tasks that a program finds."""
    structure = questions.outputs[0]
    # Plans are in the structure of the tasks, whatever their arrays.
    tasks = jax.tree.unflatten(structure, [jnp.zeros(())] * structure.num_leaves)
    return [task.plan for task in tasks]


def _before(model, x1, x2):
    """The tasks of a kernel, none if there is one that the compiled program does not take."""
    asked = Asked(len(_pairs(x1, x2)[0]))
    try:
        _with_planes_elsewhere(model, x1, x2, asked)
    except (Unsupported, BeyondPlanes):
        return []
    return asked.tasks


def _after(model, x1, x2, answers):
    return _with_planes_elsewhere(model, x1, x2, Answered(answers))


def _with_planes_elsewhere(model, x1, x2, elsewhere):
    if x2 is None:
        return _symmetric_by_planes(model, x1, elsewhere)
    return _block_by_planes(model, x1, x2, elsewhere)


def _pairs(x1, x2):
    """The images that meet: all of two sets, or those of one set with later ones."""
    if x2 is None:
        return np.triu_indices(len(x1), 1)
    return np.divmod(np.arange(len(x1) * len(x2)), len(x2))


def block(model, x1, x2):
    """The kernels of two sets, in one program."""
    return block_by(_block_by_planes, model, x1, x2)


def block_by(planes, model, x1, x2):
    """The same by a function for planes, or by all pairs of positions where planes do not suffice."""
    try:
        return planes(model, x1, x2)
    except BeyondPlanes:
        k = _end(model, position_kernel(x1, x2))
        return _gram(k.nngp, k.ntk)


def _block_by_planes(model, x1, x2, elsewhere=None):
    # Enough second images fill registers themselves; of fewer ones, pairs are the lanes.
    if x1.ndim != 4 or (len(x2) >= LANES[0] and elsewhere is None):
        return row_by_row(model, x1, x2)
    _, pairs = _each_pair(model, x1, x2, _pairs(x1, x2), elsewhere)
    return Gram(*(values.reshape(len(x1), len(x2)) for values in pairs))


def row_by_row(model, x1, x2):
    """Lanes are the images of the second set, in whole vector registers."""
    k = _limit(model, x1, _padded(x2, few=0))
    return Gram(*(values[:, : len(x2)] for values in _gram(k.nngp, k.ntk)))


def symmetric(model, x):
    """Kernel of a set with itself: every pair once, the diagonal by its own formulas."""
    try:
        return _symmetric_by_planes(model, x)
    except BeyondPlanes:
        k = _end(model, position_kernel(x))
        return _gram(k.nngp, k.ntk)


def _symmetric_by_planes(model, x, elsewhere=None):
    n = len(x)
    # Covariances of vectors are one product of matrices, with no pairs to choose.
    if x.ndim != 4 or (n == 1 and elsewhere is None):
        k = _limit(model, x, x)
        full = _gram(k.nngp, k.ntk)
    elif n < LANES[0] or elsewhere is not None:
        # Too few images for lanes, or a program that takes any pairs: those above the diagonal.
        rows, columns = _pairs(x, None)
        images = _padded(x) if elsewhere is None else x
        k, pairs = _each_pair(model, images, images, (rows, columns), elsewhere)
        full = [jnp.zeros((n, n), x.dtype).at[rows, columns].set(values) for values in pairs]
    else:
        # Image i meets i + g + 1 modulo n: half of the groups that all pairs would take.
        padded = _padded(x)
        k = _limit(model, padded, padded, ring(len(padded)))
        full = [_unrolled(values)[:n, :n] for values in _gram(k.nngp, k.ntk)]
    # Variances of images that only fill lanes up come last.
    own = [values[:n] for values in _gram(*k.first.moments())]
    if n == 1:  # nothing else is needed
        return Gram(*(values[:, None] for values in own))
    return Gram(*map(_mirrored, full, own))


def _padded(x, few=FEW):
    """Images repeated up to a number of lanes: odd numbers cost several times as much."""
    return x[_in_lanes(len(x), few)] if x.ndim == 4 else x


def _in_lanes(count, few=FEW):
    """Indices `[lanes]` of pairs or images, the last one repeated up to a number of lanes that is fast."""
    if count <= few:
        lanes = 1 << (count - 1).bit_length()
    else:
        lanes = max(LANES[0], -(-count // LANES[1]) * LANES[1])
    return np.minimum(np.arange(lanes), count - 1)


def _each_pair(model, x1, x2, pairs, elsewhere):
    """The limit of images of which some pairs meet, and the kernels of these, which are lanes."""
    count = len(pairs[0])
    # The compiled program divides one group of all pairs by itself.
    groups = np.arange(count)[None]
    if elsewhere is None:
        lanes = len(_in_lanes(min(count, LANES[0])))
        padded = np.arange(-(-count // lanes) * lanes).reshape(-1, lanes)
        groups = np.minimum(padded, count - 1)
    rows, columns = (images[groups] for images in pairs)
    meeting = pairs_in_lanes(rows, columns)._replace(elsewhere=elsewhere)
    k = _limit(model, x1, x2, meeting)
    return k, [values.ravel()[:count] for values in _gram(k.nngp, k.ntk)]


def _unrolled(values):
    """The matrix of kernels between i and i + g + 1 modulo n, `[groups, n]`, of which one triangle may be taken."""
    n = values.shape[1]
    rows = np.broadcast_to(np.arange(n), values.shape)
    columns = (rows + np.arange(len(values))[:, None] + 1) % n
    # For odd n each pair is known in one of its two orders, and its mirror image has the other.
    known = np.zeros((n, n), bool)
    known[rows, columns] = True
    full = jnp.zeros((n, n), values.dtype).at[rows, columns].set(values)
    return jnp.where(known, full, full.T)


def _gram(nngp, ntk):
    return Gram(nngp, jnp.zeros_like(nngp) if ntk is None else ntk)


def _limit(model, x1, x2, lanes=None):
    if x1.ndim not in (2, 4):
        raise BeyondPlanes("planes are for vectors and images.")
    return _end(model, input_kernel(x1, x2, lanes))


def _end(model, start):
    k = joined(propagate(model, start, model.name))
    if not k.vectors:
        raise ValueError(
            f"{model.name} ends in an image, expected vectors: end it in Flatten() or GlobalAvgPool()."
        )
    return k


def _mirrored(full, diagonal):
    """The symmetric matrix of an upper triangle and an exact diagonal.

    The diagonal is written, not added: XLA would otherwise fuse all that the entries are made of
    into the transpose and compute it twice, column by column, which is ten times slower on a CPU.
    """
    own = jnp.arange(len(diagonal))
    whole = full.at[own, own].set(diagonal)
    return jnp.triu(whole) + jnp.triu(whole, 1).T
