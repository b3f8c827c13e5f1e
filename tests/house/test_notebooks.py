"""Notebooks run from the first cell to the last, as they are stored."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


def _cells(path, kind):
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == kind
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_links_between_notebooks_lead_somewhere(path):
    links = re.findall(r"\]\((\S+?\.ipynb)\)", "\n".join(_cells(path, "markdown")))
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_stored_output_is_an_error_or_a_warning(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_runs(path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    namespace = {"__name__": "__main__"}
    cells = _cells(path, "code")
    # Adam of optax divides whole numbers, which strict promotion refuses.
    promotion = "standard" if "optax.adam" in "".join(cells) else "strict"
    with jax.numpy_dtype_promotion(promotion):
        for i, source in enumerate(cells):
            exec(compile(source, f"{path.name}, code cell {i + 1}", "exec"), namespace)
