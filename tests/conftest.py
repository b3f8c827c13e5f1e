"""Settings that hold for every test: float64 available, no implicit promotion, no display, and the oracle's terms."""

from __future__ import annotations

import os
import sys
import types

os.environ.setdefault("MPLBACKEND", "Agg")
# The suite compiles far more than it computes: LLVM's lowest useful effort takes 40 % off its time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Else errors under a transformation end in a note of jax, which doctest before Python 3.11.4 takes for the message.
jax.config.update("jax_traceback_filtering", "off")

# neural-tangents imports TensorFlow only through this module, which none of the comparisons use.
sys.modules.setdefault(
    "neural_tangents.experimental", types.ModuleType("neural_tangents.experimental")
)


def pytest_configure(config):
    """Programs compiled by one worker or an earlier run are not compiled again: half of the time of a second run.

    They lie with pytest's own cache, which `pytest --cache-clear` empties.
    """
    cache = getattr(config, "cache", None)
    if cache is None:
        return
    settings = {
        "jax_compilation_cache_dir": str(cache.mkdir("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        # Processes that tests start compile the same programs.
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory):
    """Summary and folder of a finished run of a module's `experiment`, with its configuration `SMOKE`."""
    module, folder = request.module, tmp_path_factory.mktemp("run")
    from experiments.harness import running

    return running.compute(module.experiment, module.SMOKE, folder, module.CONSOLE), folder


@pytest.fixture
def unannotated():
    """Calls without a check of annotations, as users make them: what is wrong meets the library's own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _oracle_terms(request):
    """Fails an oracle test on a jax that neural-tangents cannot be imported on, and relaxes promotion inside it."""
    if request.node.get_closest_marker("oracle") is None:
        yield
        return
    if tuple(int(part) for part in jax.__version__.split(".")[:2]) >= (0, 6):
        pytest.fail(
            f"oracle tests compare with neural-tangents 0.6.5, which imports on jax < 0.6; this is jax "
            f"{jax.__version__}: run `make oracle`, which builds an environment for them",
            pytrace=False,
        )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
