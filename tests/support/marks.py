"""Marks for single cases of a parametrized test."""

from __future__ import annotations

import functools

import pytest

extended = functools.partial(pytest.param, marks=pytest.mark.extended)
"""A case of seconds, which a plain run leaves out: `extended(3.0)`, or `extended(3.0, "a")` for two names."""


def extended_but(names, *quick: str) -> list:
    """All names, of which only the quick ones belong to a plain run."""
    return [name if name in quick else extended(name) for name in names]
