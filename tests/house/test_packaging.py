"""Facts about what is published: the files of the wheel and of the source archive, and a library that works outside."""

from __future__ import annotations

import email
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = sorted(PROJECT["optional-dependencies"])
SOURCES = {str(path.relative_to(ROOT)) for path in (ROOT / "lazynet").rglob("*.py")} | {
    "lazynet/py.typed"
}


def _run(*command, **options) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=1200, **options
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, built from the source archive, and that archive."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("needs the package build: pip install build")
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


@pytest.fixture(scope="module")
def newcomer(built, tmp_path_factory):
    """Python of an environment that holds the wheel and what it depends on, and nothing else."""
    folder = tmp_path_factory.mktemp("newcomer")
    _run(sys.executable, "-m", "venv", folder / "environment")
    python = folder / "environment" / "bin" / "python"
    _run(python, "-m", "pip", "install", "-q", built[0])
    return python


def test_the_library_says_that_it_is_typed():
    assert (ROOT / "lazynet" / "py.typed").read_bytes() == b""


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        described = email.message_from_bytes(wheel.read(metadata))
        licenses = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    assert names == SOURCES
    assert (described["Name"], described["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert sorted(described.get_all("Provides-Extra")) == EXTRAS and licenses


@pytest.mark.slow
def test_the_source_archive_holds_what_its_tests_need_and_no_build_or_data(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert (
        SOURCES <= names
        and {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"} <= names
    )
    assert {name.partition("/")[0] for name in names} <= {
        *("lazynet", "experiments", "benchmarks", "tests"),
        *(
            "pyproject.toml",
            "README.md",
            "LICENSE",
            "CHANGELOG.md",
            "CITATION.cff",
            "Makefile",
            "PKG-INFO",
            ".gitignore",
        ),
    }
    assert not [name for name in names if name.endswith((".pyc", ".png", ".tmp", ".partial"))]


SMOKE = """
import importlib.metadata, pathlib, sys
import numpy as np
import lazynet as ln
home = pathlib.Path(ln.__file__)
assert home.is_relative_to(sys.prefix), home
model = ln.serial(ln.Dense(512), ln.Relu(), ln.Dense(1))
gram = ln.analytic_kernel(model, np.eye(3))
assert gram.ntk.shape == (3, 3) and np.linalg.eigvalsh(gram.ntk)[0] > 0
for name in ln.__all__:
    getattr(ln, name)
for missing in ("experiments", "tests", "hypothesis", "pytest"):
    try:
        __import__(missing)
    except ImportError:
        continue
    raise AssertionError(missing)
print(importlib.metadata.version("lazynet-jax"))
"""


@pytest.mark.slow
def test_the_installed_library_works_outside_of_its_sources(newcomer, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert _run(newcomer, "-c", SMOKE, cwd=tmp_path, env=environment).strip() == PROJECT["version"]


KERNELS = """
import json
import numpy as np
import lazynet as ln
x = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype(np.float32)
conv = ln.Conv(1, (3, 3), padding="SAME", W_std=2**0.5, b_std=0.1)
layers = conv, ln.Relu(), ln.AvgPool((2, 2), (2, 2)), conv, ln.Gelu()
heads = ln.GlobalAvgPool(), ln.Flatten()
grams = [ln.analytic_kernel(ln.serial(*layers, head), x) for head in heads]
print(json.dumps([np.asarray(kernel).tolist() for gram in grams for kernel in gram]))
"""


@pytest.mark.slow
def test_kernels_of_images_are_the_same_without_the_extra_cpu(newcomer, tmp_path):
    assert importlib.util.find_spec("llvmlite") is not None
    lacking = "import importlib.util; assert importlib.util.find_spec('llvmlite') is None"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    without = _run(newcomer, "-c", lacking + KERNELS, cwd=tmp_path, env=environment)
    with_it = _run(sys.executable, "-c", KERNELS, cwd=ROOT)
    np.testing.assert_allclose(json.loads(without), json.loads(with_it), rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_the_dependencies_of_every_extra_can_be_met(extra, newcomer, built):
    if extra == "neural-tangents" and sys.version_info >= (3, 13):
        pytest.skip("scipy < 1.14 has no wheels for Python 3.13")
    printed = _run(newcomer, "-m", "pip", "install", "--dry-run", f"{built[0]}[{extra}]")
    assert "Would install" in printed
