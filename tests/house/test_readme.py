"""The README keeps its word: its example runs as a reader would run it, and CI runs its commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.extended
def test_the_python_blocks_of_the_readme_run_one_after_the_other(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "\n".join(blocks)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_test_command_of_the_readme_word_for_word():
    command = next(line.strip() for line in README.splitlines() if line.endswith("-m pytest"))
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_readme_fits_on_a_screen_or_two():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1000


def test_every_page_and_picture_that_the_readme_links_exists():
    links = re.findall(r"\]\(((?:docs|notebooks|LICENSE)[^)#]*)", README)
    assert len(links) > 15
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_accuracies_of_the_one_result_are_those_of_the_stored_runs():
    path = ROOT / "docs" / "data" / "cifar10_alpha_sweep_full.json"
    runs = json.loads(path.read_text())["runs"]
    result = README.split("## One result")[1].split("\n## ")[0]
    page = (ROOT / "docs" / "results.md").read_text()
    for alpha, run in runs.items():
        assert f"{100 * run['summary'][f'test_accuracy/alpha={alpha}']:.1f} %" in result
    assert "<!-- generate: final_numbers cifar10_alpha_sweep_full -->" in page
