"""Equal steps in a row: how deep networks become short programs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

__all__ = ["LONGEST", "repetitions"]

LONGEST = 8
"""Steps of the longest block whose repetitions are looked for."""


def repetitions(keys: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    """Lengths of blocks and how often they follow each other, taking the longest repetition at each place.

    Args:
        keys: One for each step, equal for steps that compute the same.

    Example:
        >>> list(repetitions("abcbcbcd"))
        [(1, 1), (2, 3), (1, 1)]
    """
    at = 0
    while at < len(keys):
        blocks = [(length, _times(keys, at, length)) for length in range(1, LONGEST + 1)]
        repeated = [block for block in blocks if block[1] > 1]
        # The most steps; of blocks with equally many the shortest one, which comes first.
        length, times = max(repeated, key=math.prod, default=(1, 1))
        yield length, times
        at += length * times


def _times(keys, at, length):
    """How often the block of a length that starts at a place is there in a row."""
    block = keys[at : at + length]
    times = 1
    while len(block) == length and block == keys[at + times * length : at + (times + 1) * length]:
        times += 1
    return times
