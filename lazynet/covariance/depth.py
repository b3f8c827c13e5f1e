"""Deep networks of vectors as short programs: equal layers become a loop, others are compiled a few at a time.

The state of vectors is a few arrays, and a layer maps them to arrays again. Written out layer by
layer, a program is as long as the network is deep, and takes a time to compile that grows as the
square of the depth: XLA fuses the chain of variances that leads to a layer into all that the layer
computes. Here layers whose programs read the same become one loop, and what does not repeat is cut
into pieces that XLA does not look through.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lazynet.covariance.pointwise import Covariance
from lazynet.covariance.repeats import repetitions
from lazynet.covariance.state import Kernel, Side
from lazynet.programs import constants
from lazynet.trees import is_traced

__all__ = ["DEEP", "PIECE", "through"]

DEEP = 12
"""Layers in a row from which on their programs are compared: a shallower network compiles soon as it is."""

PIECE = 8
"""Layers that are compiled together where they do not repeat."""

Rule = Callable[[Any], Any]


class _Step(NamedTuple):
    """A layer, the state after it, and what it computes: equal for layers of which one may stand for the other."""

    rule: Rule
    after: Any
    key: Hashable


def through(rules: Sequence[Rule], k: Any) -> Any:
    """The state after rules, one after the other, in a program that does not grow with layers that repeat.

    Example:
        >>> import lazynet as ln
        >>> from lazynet.covariance.state import input_kernel
        >>> rules = [ln.Dense(1, 2**0.5).kernel, ln.Relu().kernel] * 100
        >>> deep = through(rules, input_kernel(jnp.eye(2), jnp.eye(2)))
        >>> round(float(deep.nngp[0, 0]), 4), bool(deep.nngp[0, 1] > 0.49)
        (0.5, True)
    """
    for index, rule in enumerate(rules):
        if _is_vectors(k) and len(rules) - index >= DEEP:
            return _through_vectors(rules[index:], k)
        k = rule(k)
    return k


def _through_vectors(rules, k):
    for block, times in _blocks(_steps(rules, k)):
        last = block[-1].after
        # `_facts` are in the keys: what k knows beside its arrays is the same at every turn.
        run = functools.partial(_run, [step.rule for step in block], k)
        if times > 1:
            arrays = lax.fori_loop(0, times, lambda _, arrays, run=run: run(arrays), _arrays(k))
        else:
            arrays = _fenced(run, _arrays(k))
        k = _restored(last, arrays)
    return k


def _run(rules, k, arrays):
    """What rules make of the arrays of a state."""
    k = _restored(k, arrays)
    for rule in rules:
        k = rule(k)
    return _arrays(k)


def _fenced(run, arrays):
    """`run(arrays)`, which XLA neither merges with what comes before nor with what comes after.

    The condition is always true (a variance, or not a number), but XLA does not know, and does not
    look into branches.
    """
    variance = jnp.ravel(jax.tree.leaves(arrays)[0])[0]
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(run, arrays))
    return lax.cond(jnp.logical_not(variance < 0), run, lambda _: nothing, arrays)


def _blocks(steps) -> Iterator[tuple[list[_Step], int]]:
    """Blocks that repeat with how often they do, and pieces of what does not."""
    start = 0
    piece = []
    for length, times in repetitions([step.key for step in steps]):
        block = list(steps[start : start + length])
        start += length * times
        if times == 1:
            piece += block
        if piece and (times > 1 or len(piece) >= PIECE):
            yield piece, 1
            piece = []
        if times > 1:
            yield block, times
    if piece:
        yield piece, 1


def _steps(rules, k):
    """The steps through vectors, whose programs are compared by text, constants, and what else a state knows."""
    steps = []
    programs = []
    numbers = {}
    for rule in rules:
        # A program returns arrays alone: what else the state after the rule knows is kept beside it.
        states = [k]

        def mapped(arrays, rule=rule, states=states):
            states.append(rule(_restored(states[0], arrays)))
            return _arrays(states[1])

        program, shapes = jax.make_jaxpr(mapped, return_shape=True)(_arrays(k))
        after = _restored(states[1], shapes)
        key = _text(program), _constants(program), _facts(k), _facts(after)
        # Texts are long, and blocks are compared many times: equal ones get one number.
        steps.append(_Step(rule, after, numbers.setdefault(key, len(numbers))))
        programs.append(program)  # kept until here, since traced constants are compared by identity
        k = after
    return steps


def _text(program) -> Hashable:
    """What a program computes; the addresses of functions in it are those of this process."""
    text = re.sub("0x[0-9a-f]+", "", str(program.jaxpr))
    # A Python function that is called back shows in the text by its name at most: such a program equals no other.
    return object() if "callback" in text else text


def _constants(program) -> tuple[Hashable, ...]:
    """Arrays by their values, and traced ones by their identity."""
    arrays = constants(program)
    return tuple(id(a) if is_traced(a) else np.asarray(a).tobytes() for a in arrays)


def _is_vectors(k):
    return all(isinstance(own, Kernel) and own.vectors for own in jax.tree.leaves(k))


def _arrays(k):
    """The arrays of a state of vectors, or of the states of branches, variances first."""
    return jax.tree.map(lambda branch: (branch.own.moments(), branch.cross[:3]), k)


def _restored(k, arrays):
    """The state with other arrays."""
    leaves, tree = jax.tree.flatten(k)
    restored = []
    for branch, (moments, cross) in zip(leaves, tree.flatten_up_to(arrays), strict=True):
        nngp, ntk, opening = cross
        vectors = branch.cross._replace(nngp=nngp, ntk=ntk, opening=opening)
        own = Side(lambda moments=moments: Covariance(*moments))
        restored.append(branch.replace(cross=vectors, own=own))
    return tree.unflatten(restored)


def _facts(k) -> tuple[Hashable, ...]:
    """What a state knows beside its arrays, and which arrays it has."""
    leaves, tree = jax.tree.flatten(k)
    own = [(k.features, k.gaussian, k.fresh, k.positive, k.trained, k.cross.spread) for k in leaves]
    return tree, jax.tree.structure(_arrays(k)), tuple(own)
