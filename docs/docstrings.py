"""Docstrings as griffe expects them, which reads them for the reference pages."""

from __future__ import annotations

from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Tells griffe, whose section is called "Examples", that the doctests under "Example" are code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Renames the section of one docstring before it is parsed."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
