"""The documentation keeps its word: its code runs, its names exist, its numbers are those that were stored."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
import zlib
from functools import partial
from pathlib import Path

import pytest

import lazynet
from experiments.harness import catalog

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
ELSEWHERE = {"lazynet.typing": {"Array", "Key", "Scalar"}}
"""Names that a module passes on from another package, which documents them."""

CODE = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
RENAMED = ("`ln.linearize`", "`ln.taylor_expand`", "`ln.empirical_ntk_vp_fn`")
"""Names whose arguments have the order of neural-tangents and names of their own."""

FILE = re.compile(
    r"`((?:lazynet|experiments|tests|docs|notebooks|benchmarks)/[\w/.]+\.\w+)(?:::\w+)?`"
)


def _hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = _hooks()
MODULES = HOOKS.documented_modules()


def _label(path):
    return path.relative_to(DOCS).as_posix()


def _json(name):
    return json.loads((DOCS / "data" / f"{name}.json").read_text())


def _rows(text):
    """Cells of every line of every table."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def _resolve(name):
    """The object of a dotted name whose first part is a module."""
    found = importlib.import_module({"ln": "lazynet", "nt": "neural_tangents"}[name.split(".")[0]])
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def _public(module):
    names = getattr(importlib.import_module(module), "__all__", [])
    return set(names) - ELSEWHERE.get(module, set())


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in PAGES if CODE.search(path.read_text())], ids=_label
)
def test_the_python_blocks_of_a_page_run_one_after_the_other(path, tmp_path):
    command = [sys.executable, "-c", "\n".join(CODE.findall(path.read_text()))]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("path", PAGES, ids=_label)
def test_every_name_in_the_text_of_a_page_exists(path):
    for name in re.findall(r"`(ln\.\w+(?:\.\w+)*)[`(]", path.read_text()):
        assert _resolve(name) is not None


@pytest.mark.parametrize("path", PAGES, ids=_label)
def test_every_file_named_in_a_page_exists(path):
    names = FILE.findall(path.read_text())
    assert not [name for name in names if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", ["from-neural-tangents.md", "from-kymatio.md"])
def test_a_table_of_names_has_a_name_of_ours_in_every_row(page):
    theirs = "nt." if "tangents" in page else "S"
    rows = [row for row in _rows((DOCS / page).read_text()) if row[0].startswith(f"`{theirs}")]
    assert len(rows) >= 4
    assert all(_resolve(row[1].strip("`")) is not None for row in rows)


def test_every_name_of_the_facades_is_in_the_table_of_neural_tangents_names():
    text = (DOCS / "from-neural-tangents.md").read_text()
    names = {f"ln.stax.{name}" for name in lazynet.stax.__all__} | {
        f"ln.predict.{n}" for n in lazynet.predict.__all__
    }
    assert not {
        name
        for name in names - {"ln.stax.Triple", "ln.predict.Gaussian"}
        if f"`{name}`" not in text
    }


@pytest.mark.oracle
def test_arguments_of_the_names_of_neural_tangents_come_in_its_order():
    rows = [
        row
        for row in _rows((DOCS / "from-neural-tangents.md").read_text())
        if row[0].startswith("`nt.")
    ]
    for theirs, ours, _ in rows:
        there, parameters = (
            inspect.signature(_resolve(name.strip("`"))).parameters for name in (theirs, ours)
        )
        # What predict has beside its original, as the page says, is given by its name only.
        added = {"tolerance", "scale"} & {*parameters}
        here = [name for name in parameters if name not in added]
        for name in added:
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        known = [name for name in there if not name.startswith("_")]
        if theirs == "`nt.predict.max_learning_rate`":
            known.remove("eps")
        assert len(here) == len(known) if ours in RENAMED else here == known


@pytest.mark.oracle
def test_what_is_said_to_be_missing_is_what_neural_tangents_has_and_lazynet_has_not():
    text = (
        (DOCS / "from-neural-tangents.md")
        .read_text()
        .split("## What is missing")[1]
        .split("## What is new")[0]
    )
    layers = re.findall(r"`([A-Z]\w+)`", text)
    assert layers and all(hasattr(_resolve("nt.stax"), name) for name in layers if name != "Kernel")
    assert not set(layers) & set(lazynet.stax.__all__)


def test_every_stored_fact_holds():
    for run in _json("theory")["runs"].values():
        verdicts = [value for key, value in run["summary"].items() if key.startswith("passed/")]
        assert verdicts and all(verdicts)


def test_the_theory_page_shows_every_stored_run():
    shown = set(re.findall(r"<!-- generate: facts (\w+) -->", (DOCS / "theory.md").read_text()))
    assert shown == set(_json("theory")["runs"])


def test_every_test_named_on_the_theory_page_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "theory.md").read_text())
    assert named
    assert not [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]


def test_every_claim_of_the_lecture_is_on_its_page_with_what_computes_it():
    stored = _json("lecture")
    chapters = re.findall(r"<!-- generate: claims (\w+) -->", (DOCS / "lecture.md").read_text())
    assert {row["chapter"] for row in stored["rows"]} == set(chapters)
    lines = sum(len(HOOKS.claims(chapter).splitlines()) - 2 for chapter in chapters)
    assert lines == len(stored["rows"])
    runs = _json("theory")["runs"] | stored["runs"]
    for row in stored["rows"]:
        assert row.get("experiment") in runs or row["tests"]
        for path, name in (test.split("::") for test in row.get("tests", [])):
            assert f"def {name}(" in (ROOT / path).read_text()
        for name in row.get("names", []):
            known = (ROOT / name).exists() or name in catalog.names()
            assert known or _resolve(name) is not None
        missing = {f"passed/{fact}" for fact in row.get("facts", [])}
        assert not missing or not missing - set(runs[row["experiment"]]["summary"])


def test_an_expectation_that_is_not_met_is_printed_in_bold():
    summary = {"a": 1.0, "b": 2.0, "at_most/a": 0.5, "passed/a": False}
    assert HOOKS._fact(summary, "a")[1] == "**1, not found**"
    assert HOOKS._order(summary, "a", "b")[1] == "**1 and 2, not found**"
    assert HOOKS._order(summary, "b", "a")[1] == "2 and 1"
    assert HOOKS._least(summary, "b", 3)[1] == "**2, not found**"


def test_every_public_module_is_on_a_reference_page():
    modules = [
        value for value in map(partial(getattr, lazynet), dir(lazynet)) if inspect.ismodule(value)
    ]
    named = {module.__name__ for module in modules if hasattr(module, "__all__")} - {
        "lazynet.kernels",
        # The facades by their short names, where something has imported them so.
        "lazynet.stax",
        "lazynet.predict",
    }
    assert named and not named - set(MODULES)


def test_every_public_name_is_in_the_list_of_its_module():
    values = {name: getattr(lazynet, name) for name in dir(lazynet)}
    ours = {
        name: value
        for name, value in values.items()
        if getattr(value, "__module__", "").startswith("lazynet")
    }
    assert not {name for name, value in ours.items() if name not in _public(HOOKS._home(value))}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module):
    found = importlib.import_module(module)
    described = {
        name
        for name in _public(module)
        if callable(getattr(found, name)) and getattr(found, name).__doc__
    }
    assert not _public(module) - described - _described_constants(found)


def _described_constants(module):
    """Names whose assignment is followed by a string, in any file of a module or package."""
    path = Path(module.__file__)
    files = path.parent.rglob("*.py") if path.name == "__init__.py" else [path]
    names = set()
    for body in (ast.parse(file.read_text()).body for file in files):
        for node, following in zip(body, body[1:], strict=False):
            if isinstance(node, ast.Assign) and isinstance(following, ast.Expr):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("name", catalog.names())
def test_an_experiment_says_its_command_its_time_and_what_to_expect(name):
    documentation = importlib.import_module(f"experiments.{name}").__doc__
    assert f"python -m experiments run {name}" in documentation
    assert re.search(r"second|minute|hour|GPU", documentation) and "xpected" in documentation


def test_memory_and_times_of_a_foreign_kernel_are_those_that_were_measured():
    text = (DOCS / "howto" / "gram.md").read_text()
    for row in _json("foreign_kernel")["rows"]:
        measured = [row[name] for name in ("peak_gib", "cpu_s") if name in row]
        assert measured and all(f"{value:g}" in text for value in measured)


def test_every_figure_belongs_to_an_experiment_and_has_a_caption():
    listed = [
        (name, *item) for name, figures in _json("figures").items() for item in figures.items()
    ]
    assert {file for _, file, _ in listed} == {path.name for path in (DOCS / "figures").iterdir()}
    assert {name for name, _, _ in listed} <= set(catalog.names())
    assert all(caption for _, _, caption in listed)


@pytest.mark.parametrize(
    "path", [path for path in PAGES if path.name != "changelog.md"], ids=_label
)
def test_a_page_needs_no_other_host(path):
    assert not re.findall(r"https?://", path.read_text())


def test_the_wheel_holds_the_library_alone():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]["wheel"]
    assert wheel == {"packages": ["lazynet"]}
    assert not [
        path for path in (ROOT / "lazynet").rglob("*") if path.suffix in {".md", ".png", ".ipynb"}
    ]


def test_ci_builds_the_site_strictly():
    assert "-m mkdocs build --strict\n" in (ROOT / ".ci" / "run").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly."""
    pytest.importorskip("mkdocs", reason="the site needs the extra docs; CI's step docs has it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_documents_every_public_name(site):
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    documented = {line.split()[0] for line in inventory.splitlines()}
    assert not {f"{m}.{name}" for m in MODULES for name in _public(m)} - documented


@pytest.mark.slow
def test_the_site_loads_nothing_from_other_hosts(site):
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|<link(?![^>]*canonical)[^>]*href=\"?https?://"
    )
    assert not [page for page in site.rglob("*.html") if loads.search(page.read_text())]


@pytest.mark.slow
def test_nothing_is_left_to_generate(site):
    left = re.compile(r"<!-- generate|&gt;&gt;&gt; [^<]*</p>")
    assert not [page for page in site.rglob("*.html") if left.search(page.read_text())]


@pytest.mark.parametrize("page", ["plane.md", "theory.md"])
def test_every_formula_becomes_mathml_without_a_command_that_is_left(page):
    pytest.importorskip("latex2mathml")
    text = (DOCS / page).read_text()
    formulas = HOOKS.FORMULA.findall(text)
    assert formulas and len(formulas) == text.count("```math")
    for formula in formulas:
        assert "<math" in HOOKS.typeset(formula) and "\\" not in HOOKS.typeset(formula)
