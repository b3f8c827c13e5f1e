"""Processes for the tests of faults: forked from a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing import forkserver

import pytest

CONTEXT = multiprocessing.get_context("forkserver")


def serve() -> None:
    """Starts the server where it finds `faults_worker`, so that no process has to import jax."""
    CONTEXT.set_forkserver_preload(["faults_worker"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    finish(time.sleep, 0)


def start(task, *arguments):
    """A process that computes `task(*arguments)`."""
    process = CONTEXT.Process(target=task, args=arguments, daemon=True)
    process.start()
    return process


def finish(task, *arguments) -> float:
    """Runs a task to its end and returns the seconds it took."""
    begun = time.monotonic()
    process = start(task, *arguments)
    process.join(300)
    assert process.exitcode == 0, "the task failed or hangs"
    return time.monotonic() - begun
