"""Facts about `inside_a_network`: its smoke run, whose questions are tested in `tests/library/test_insights.py`."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

import experiments.inside_a_network as experiment

CONSOLE = Console(file=io.StringIO())
SMOKE = experiment.PRESETS["smoke"]


def test_questions_to_more_images_than_are_tested_are_refused():
    with pytest.raises(ValueError, match="examples got 301, expected an integer from 1 to 300"):
        dataclasses.replace(SMOKE, examples=301).check("")


@pytest.mark.slow
def test_every_fact_of_the_smoke_run_holds(finished):
    summary, folder = finished
    verdicts = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(verdicts) == 6 and all(verdicts.values()), verdicts
    assert (folder / "figures" / "inside_a_network.png").stat().st_size > 10_000
