"""How a run fails without the command line being wrong."""

from __future__ import annotations

__all__ = ["RunError"]


class RunError(ValueError):
    """A run that was asked for correctly and did not succeed: exit status 1, where a mistake in the command has 2."""
