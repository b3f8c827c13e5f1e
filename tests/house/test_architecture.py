"""Rules about the source that no single module's test can see: what may import what, and what the text may say."""

from __future__ import annotations

import ast
import functools
import graphlib
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lazynet

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (
    {"typing"},
    {
        "signatures",
        "guards",
        "trees",
        "files",
        "linalg",
        "records",
        "tiles",
        "triangle",
        "losses",
        "programs",
        "recipes",
        "parameters",
    },
    {"covariance", "scattering", "datasets"},
    {"models"},
    {"lazy", "precision"},
    {"kernels", "dynamics"},
    {"training", "tangents"},
    {"diagnostics", "insights"},
    {"plots"},
    {"dropin"},
    {"stax", "predict"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = [
    "diffrax",
    "flax",
    "matplotlib",
    "optimistix",
    "orbax",
    "rich",
    "scipy.integrate",
    "scipy.linalg",
    "sklearn",
    "tyro",
]
PRIVATE_JAX = ("jax._src.", "jax.core.", "jax.interpreters.", "jax.util.")
LIBRARY = sorted((ROOT / "lazynet").rglob("*.py"))
SOURCES = LIBRARY + sorted([*(ROOT / "experiments").rglob("*.py"), *(ROOT / "docs").rglob("*.py")])
TEXT_SUFFIXES = {".cff", ".ipynb", ".json", ".md", ".py", ".toml", ".txt", ".yml", ""}


def _label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _module(path: Path) -> str:
    """The name of the design's module that a library file belongs to: `covariance` for `covariance/duals.py`."""
    return path.relative_to(ROOT / "lazynet").parts[0].removesuffix(".py")


@functools.cache
def _nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def _offending(paths: list[Path], names: Callable[[Path], Any]) -> dict[str, Any]:
    """What is wrong with each file with which something is, by its path."""
    found = {_label(path): names(path) for path in paths}
    return {label: wrong for label, wrong in found.items() if wrong}


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if node.level == 0:
        return node.module or ""
    package = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
    return ".".join((*package, *([node.module] if node.module else [])))


def _imports(path: Path) -> set[str]:
    """Full dotted names of everything imported anywhere in a file, also inside functions."""
    names = set()
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{_absolute(node, path)}.{alias.name}" for alias in node.names}
    return names


def _attributes(path: Path) -> set[str]:
    """Dotted names `a.b` of every attribute of a plain name."""
    return {
        f"{n.value.id}.{n.attr}"
        for n in _nodes(path)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }


def _dependencies(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in _imports(path) if name.startswith("lazynet.")}
    return names - {_module(path)}


@functools.cache
def _code_lines(path: Path) -> set[int]:
    """Numbers of the lines that hold code: no blank lines, comments or docstrings."""
    skipped: set[int] = set()
    for node in _nodes(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(
            node, clean=False
        ):
            skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    thin = {
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
        tokenize.COMMENT,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type not in thin and token.start[0] not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines


def test_every_module_stands_in_the_import_order():
    assert not {_module(path) for path in LIBRARY} - LEVEL.keys() - {"__init__"}


def test_imports_point_downwards():
    def upwards(path):
        level = LEVEL[_module(path)]
        return {name for name in _dependencies(path) if LEVEL.get(name, len(LAYERS)) > level}

    assert not _offending([path for path in LIBRARY if _module(path) != "__init__"], upwards)


def test_modules_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in LIBRARY:
        graph.setdefault(_module(path), set()).update(_dependencies(path) & LEVEL.keys())
    graphlib.TopologicalSorter(graph).prepare()


def test_the_library_does_not_import_the_experiments():
    above = {"experiments", "benchmarks", "tests"}
    assert not _offending(LIBRARY, lambda path: {n.split(".")[0] for n in _imports(path)} & above)


def test_no_private_name_of_jax_is_used():
    def private(path):
        names = _imports(path) | _attributes(path)
        return {name for name in names if f"{name}.".startswith(PRIVATE_JAX)}

    assert not _offending(SOURCES, private)


def test_the_library_reads_the_global_settings_of_jax_at_most():
    def settings(path):
        named = set(re.findall(r"jax\.config\b\.?(\w*)", path.read_text()))
        return named - {"values"} | {"jax.config", "jax.config.config"} & _imports(path)

    assert not _offending(LIBRARY, settings)


def test_users_mistakes_do_not_meet_an_assert():
    def asserts(path):
        return [node.lineno for node in _nodes(path) if isinstance(node, ast.Assert)]

    assert not _offending(LIBRARY, asserts)


def test_no_file_has_more_than_300_lines_of_code():
    sizes = {_label(path): len(_code_lines(path)) for path in SOURCES}
    assert not {label: size for label, size in sizes.items() if size > 300}


def test_no_body_of_a_function_has_more_than_40_lines_of_code():
    def long(path):
        functions = [node for node in _nodes(path) if isinstance(node, ast.FunctionDef)]
        sizes = {}
        for node in functions:
            body = range(node.body[0].lineno, node.end_lineno + 1)
            sizes[f"{node.name}, line {node.lineno}"] = len(_code_lines(path) & set(body))
        return {name: size for name, size in sizes.items() if size > 40}

    assert not _offending(SOURCES, long)


def test_importing_lazynet_leaves_the_heavy_packages_unloaded():
    code = "import sys, lazynet; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(HEAVY) & set(done.stdout.split())


def _public_names() -> list[str]:
    """Names of `import lazynet` that are no modules."""
    values = {name: getattr(lazynet, name) for name in dir(lazynet)}
    return sorted(
        name
        for name, value in values.items()
        if getattr(value, "__module__", "").startswith("lazynet")
    )


@pytest.mark.parametrize("name", _public_names())
def test_every_public_name_is_documented_with_an_example(name):
    documentation = getattr(lazynet, name).__doc__ or ""
    assert ">>>" in documentation


def _texts() -> list[Path]:
    folders = [
        ROOT / name
        for name in ("lazynet", "experiments", "tests", "benchmarks", "notebooks", "docs", ".ci")
    ]
    files = [path for folder in folders for path in folder.rglob("*")] + list(ROOT.glob("*"))
    return sorted(
        p
        for p in files
        if p.is_file() and p.suffix in TEXT_SUFFIXES and not {".git", "__pycache__"} & {*p.parts}
    )


def test_no_file_names_a_folder_of_somebodys_machine():
    pattern = re.compile(r"(?<![\w.:/~}-])/(?:home|root|Users|work|tmp)/[\w.]")
    named = {
        _label(path): found.group()
        for path in _texts()
        if (found := pattern.search(path.read_text()))
    }
    assert not named
