"""The one way in which everything is timed: programs take turns, and the least time of each counts.

A case builds its programs, they are called once each (which compiles), then in turn, round after
round, so that a machine that slows down slows all of them. Processor time adds up all threads of
the process and hardly depends on what else a machine does; on an accelerator, where the processor
only waits, read wall times.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lazynet.tiles import reserved

__all__ = [
    "Case",
    "Failure",
    "Program",
    "Row",
    "Times",
    "absent",
    "first_call",
    "in_turns",
    "jitted",
    "measure",
]

LEAST_S = 0.05
"""Short programs are called several times a turn, for about this long."""


class Times(NamedTuple):
    """Seconds of one call: of the processor, and of the clock."""

    cpu_s: float
    wall_s: float


class Program(NamedTuple):
    """One way to a result.

    Attributes:
        run: Does the work and returns the result; None for a program that cannot run here, `note`
            then says why.
        entries: How many units of the case one call does.
        reserved: Bytes that it needs beside its arguments, None where no compiler tells; called
            after the first call.
        note: A remark, or what to remark on the first result and the CPU seconds of a unit.
    """

    run: Callable[[], Any] | None
    entries: float = 1.0
    reserved: Callable[[], int | None] = lambda: None
    note: str | Callable[[Any, float], str] = ""


class Case(NamedTuple):
    """Programs to compare; ratios are to the first of them.

    Attributes:
        name: With everything in it that the times depend on.
        build: The programs by name; called when the case is measured, so that its memory is free
            before and after.
        unit: What is counted.
        rounds: Timed turns of every program; 0 where the first call is what is measured, for
            instance compilation.
        answer: What of a result must agree between the programs; None, or an answer of None,
            compares nothing.
        tolerance: Largest difference between answers, relative to the largest entry, that counts as
            agreement.
    """

    name: str
    build: Callable[[], Mapping[str, Program]]
    unit: str = "call"
    rounds: int = 3
    answer: Callable[[Any], Any] | None = None
    tolerance: float = 1e-3


class Row(NamedTuple):
    """What one program took: seconds of a call that does `entries` units, or why there is nothing (`note`, `error`)."""

    group: str
    case: str
    program: str
    cpu_s: float | None = None
    wall_s: float | None = None
    first_s: float | None = None
    bytes: int | None = None
    entries: float = 1.0
    unit: str = "call"
    differs: float | None = None
    note: str = ""
    error: str = ""


class Failure(NamedTuple):
    """What a first call raised."""

    error: str


class First(NamedTuple):
    """A first call."""

    times: Times
    result: Any


def absent(reason: str) -> Program:
    """A program that cannot run here: its column stays empty, with the reason."""
    return Program(None, note=reason)


def jitted(
    function: Callable[..., Any], *arguments: Any, entries: float = 1.0, **more: Any
) -> Program:
    """A program of one compiled function; its first call compiles, and the compiler tells the memory."""
    # Compiled at the first call and not before, as its time is reported.
    compiled = functools.cache(lambda: jax.jit(function).lower(*arguments).compile())
    return Program(
        lambda: compiled()(*arguments), entries, lambda: reserved(compiled()) or None, **more
    )


def first_call(run: Callable[[], Any]) -> First | Failure:
    """Times and result of the first call, or what it raised."""
    try:
        cpu = time.process_time()
        wall = time.perf_counter()
        result = jax.block_until_ready(run())
        return First(Times(time.process_time() - cpu, time.perf_counter() - wall), result)
    # Whatever a program raises is its row: the others of the case go on.
    except Exception as error:
        return Failure(_described(error))


def in_turns(
    runs: Mapping[str, Callable[[], Any]], rounds: int, least_s: float = LEAST_S
) -> dict[str, Times]:
    """`{name: least times of a call}` of `rounds` turns; every program has been called before."""
    # The first turn tells how often a short program is called in the next ones.
    calls = dict.fromkeys(runs, 1)
    best = dict.fromkeys(runs, Times(math.inf, math.inf))
    for turn in range(rounds):
        for name, run in runs.items():
            spent = _timed(run, calls[name])
            # The least CPU and the least wall time, each by itself: disturbances only add.
            best[name] = Times(*map(min, best[name], spent))
            if turn == 0:
                calls[name] = max(1, min(1000, int(least_s / max(spent.wall_s, 1e-9))))
    return best


def measure(group: str, case: Case) -> list[Row]:
    """The rows of a case; what fails is a row with its error, and the rest goes on."""
    try:
        programs = case.build()
        firsts = {
            name: first_call(program.run)
            for name, program in programs.items()
            if program.run is not None
        }
        fine = {name: first for name, first in firsts.items() if isinstance(first, First)}
        times = (
            in_turns({name: programs[name].run for name in fine}, case.rounds)
            if case.rounds
            else {}
        )
        # Without rounds the first call, compilation included, is the measurement.
        times = times or {name: first.times for name, first in fine.items()}
        differences = dict(_differences(case, fine))
        return [
            _row(
                group, case, name, program, firsts.get(name), times.get(name), differences.get(name)
            )
            for name, program in programs.items()
        ]
    except Exception as error:
        return [Row(group, case.name, "", unit=case.unit, error=_described(error))]


def _timed(run, calls) -> Times:
    cpu = time.process_time()
    wall = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(run())
    return Times((time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls)


def _differences(case: Case, firsts: Mapping[str, First]) -> Iterator[tuple[str, float]]:
    if case.answer is None or len(firsts) < 2:
        return
    reference, *others = firsts
    # Every program is compared with the first one of its case.
    expected = np.asarray(case.answer(firsts[reference].result), np.float64)
    for name in others:
        if (found := case.answer(firsts[name].result)) is not None:
            yield (
                name,
                float(
                    np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()
                ),
            )


def _row(group, case, name, program, first, times, differs) -> Row:
    row = Row(group, case.name, name, entries=program.entries, unit=case.unit)
    if first is None:
        return row._replace(note=program.note)
    if isinstance(first, Failure):
        return row._replace(error=first.error)
    note = (
        program.note
        if isinstance(program.note, str)
        else program.note(first.result, times.cpu_s / program.entries)
    )
    # `not <=`, so that a NaN does not agree with anything.
    error = (
        f"differs by {differs:.1e}" if differs is not None and not differs <= case.tolerance else ""
    )
    measured = dict(
        cpu_s=times.cpu_s, wall_s=times.wall_s, first_s=first.times.wall_s, bytes=program.reserved()
    )
    return row._replace(**measured, differs=differs, note=note, error=error)


def _described(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
