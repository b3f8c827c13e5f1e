"""Settings of XLA for the suite, which compiles far more than it computes: a program is cheap, not fast."""

from __future__ import annotations

import importlib.metadata

__all__ = ["FLAGS"]

NO_OPTIMIZATION = "--xla_backend_optimization_level=0"

PLAIN_LOOPS = "--xla_cpu_use_fusion_emitters=false"
"""The plainer of XLA's two ways to write loops: a third off the time of the suite."""

MINOR = int(importlib.metadata.version("jaxlib").split(".")[1])

# A flag that a later XLA has dropped would end the process.
FLAGS = f"{NO_OPTIMIZATION} {PLAIN_LOOPS}" if 5 <= MINOR <= 10 else NO_OPTIMIZATION
