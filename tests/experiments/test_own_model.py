"""A network of one's own in an experiment: every kind of file that builds one, and what is none."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from experiments import lazy_vs_standard as experiment
from experiments.harness import running, store
from experiments.shared.own import digest, own_model

X = jnp.ones((2, 3))
FILES = {
    "lazynet": "import lazynet as ln\ndef build():\n    return ln.zoo.mlp((4,), 2)",
    "linen": "from flax import linen\ndef build():\n    return linen.Dense(2)",
    "nnx": "from flax import nnx\ndef build(rngs):\n    return nnx.Linear(3, 2, rngs=rngs)",
    "nnx instance": "from flax import nnx\ndef build():\n    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))",
    "equinox": "import equinox as eqx\ndef build(key):\n    return eqx.nn.Linear(3, 2, key=key)",
    "equinox instance": (
        "import equinox as eqx, jax\ndef build():\n    return eqx.nn.Linear(3, 2, key=jax.random.key(0))"
    ),
    "functions": (
        "import jax\n"
        "def build():\n"
        "    init = lambda key, x: jax.random.normal(key, (x.shape[1], 2), x.dtype)\n"
        "    return init, lambda w, x: x @ w"
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_builds_a_network_of_any_kind(kind, tmp_path):
    file = tmp_path / "my_net.py"
    file.write_text(FILES[kind])
    model = own_model(f"{file}:build")
    params = model.init(jax.random.key(0), X)
    assert model.apply(params, X).shape == (2, 2)
    before = digest(f"{file}:build")
    file.write_text(FILES[kind] + "\n# changed")
    assert digest(f"{file}:build") != before


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("my_net.py:build", ValueError, "with a file that exists"),
        ("my_net.py", ValueError, "expected FILE.py:FUNCTION"),
        ("{file}:other", ValueError, "none of this name"),
        ("{file}:nothing", TypeError, "returned int"),
    ],
)
def test_what_is_no_network_is_refused(place, error, message, tmp_path):
    file = tmp_path / "net.py"
    file.write_text("def nothing():\n    return 3")
    with pytest.raises(error, match=message):
        own_model(place.format(file=file))


def test_a_network_whose_file_was_changed_has_a_run_folder_of_its_own(tmp_path):
    file = tmp_path / "my_net.py"
    file.write_text(FILES["lazynet"])
    config = dataclasses.replace(experiment.PRESETS["smoke"], model=f"{file}:build")
    folder = store.open_run("lazy_vs_standard", config, tmp_path)
    assert running.configuration(folder) == config
    file.write_text(FILES["lazynet"] + "\n# changed")
    assert store.run_folder("lazy_vs_standard", config, tmp_path) != folder


@pytest.mark.extended
def test_an_experiment_trains_a_network_of_ones_own(tmp_path):
    file = tmp_path / "my_net.py"
    file.write_text(
        "from flax import linen\n"
        "def build():\n"
        "    return linen.Sequential([linen.Dense(8), linen.tanh, linen.Dense(10)])"
    )
    base = experiment.PRESETS["smoke"]
    config = dataclasses.replace(
        base,
        model=f"{file}:build",
        alphas=(1.0, float("inf")),
        train=dataclasses.replace(base.train, epochs=2),
        ntk_examples=10,
    )
    summary = running.compute(experiment, config, tmp_path / "run", Console(quiet=True))
    assert summary["kernel_left_out"] and summary["test_accuracy/alpha=1"] > 0.2
