"""One table of users' mistakes: each gets an error that names the value, the expectation and the fix."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial

import lazynet as ln
from experiments import lazy_vs_standard
from experiments.__main__ import run as run_experiment
from experiments.harness import config as configuration
from experiments.harness import store
from lazynet import datasets

KEY = jax.random.key(0)
X, IMAGES = jnp.ones((4, 3)), jnp.ones((2, 8, 8, 3))
MLP = ln.serial(ln.Dense(5), ln.Relu(), ln.Dense(2))
PARAMS = initial(0, MLP, X)
CNN = ln.serial(ln.Conv(4), ln.Relu(), ln.GlobalAvgPool(), ln.Dense(2))
CNN_PARAMS = initial(1, CNN, IMAGES)
DATA = ln.Data(X, jnp.ones((4, 2)))
TRAINING = dict(key=KEY, save_at=[1], learning_rate=0.1)


class Mistake(NamedTuple):
    """What the user does, given a temporary folder, and the three things that the message must hold."""

    name: str
    do: Callable[[Path], object]
    value: str
    expectation: str
    fix: str


class Evil:
    def __reduce__(self):
        return os.system, ("echo evil",)


def _train(**changes):
    settings = (
        dict(
            objective=ln.objective(MLP.apply, ln.mse), params=PARAMS, data=DATA, optimizer=ln.sgd()
        )
        | TRAINING
    )
    return ln.train(**settings | changes)


def _nan_data(_):
    return _train(data=ln.Data(X.at[2, 1].set(jnp.nan), DATA.y))


def _truncated(folder):
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (batches / f"{name}.bin").write_bytes(b"\0" * 3000)
    return datasets.cifar10(folder)


def _wrong_checksum(folder):
    archive = folder / "served.tar.gz"
    archive.write_bytes(b"not the archive")
    wrong = datasets.Archive(
        archive.as_uri(), archive.stat().st_size, hashlib.md5(b"other").hexdigest()
    )
    return datasets.cifar10(folder / "data", download=True, archive=wrong)


def _malicious(folder):
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (batches / name).write_bytes(pickle.dumps({b"data": Evil(), b"labels": [0]}, protocol=2))
    return datasets.cifar10(folder)


def _unwritable(folder):
    (folder / "file").write_text("not a folder")
    return store.open_run("lazy_vs_standard", lazy_vs_standard.PRESETS["smoke"], folder / "file")


def _preset(*items):
    return lambda _: configuration.preset(lazy_vs_standard.PRESETS, "laptop", items)


def _unknown_preset(folder):
    return run_experiment("lazy_vs_standard", preset="huge", out=folder)


LAZY = ln.objective(ln.lazy(MLP.apply, PARAMS, 2.0), ln.mse)
TANGENT = ln.linearize(MLP.apply, CNN_PARAMS)
MISTAKES = [
    Mistake("images into Dense", lambda _: MLP.apply(PARAMS, IMAGES), r"\(2, 8, 8, 3\)", r"\[n, features\]", "Flatten"),
    Mistake("vectors into Conv", lambda _: CNN.apply(CNN_PARAMS, X), r"\(4, 3\)", r"\[n, h, w, c\]", "reshape"),
    Mistake("wrong features", lambda _: MLP.apply(PARAMS, jnp.ones((4, 7))), "7 channels", "expect 3", "fix the input"),
    Mistake("wrong channels", lambda _: CNN.apply(CNN_PARAMS, IMAGES[..., :1]), "1 channels", "expect 3", "fix"),
    Mistake("integer images", lambda _: CNN.apply(CNN_PARAMS, IMAGES.astype(jnp.uint8)), "uint8", "floating", "/ 255"),
    Mistake("integer data", lambda _: _train(data=ln.Data(X.astype(jnp.int32), DATA.y)), "int32", "floating", "astype"),
    Mistake("labels out of range", lambda _: datasets.one_hot([0, 3], 3), "3", "0", "classes"),
    Mistake("NaN in data", _nan_data, "1 NaN", r"\[2, 1\]", "remove or repair"),
    Mistake("targets of rank 1", lambda _: _train(data=ln.Data(X, jnp.ones(4))), r"\(4,\)", r"\[n, k\]", "y"),
    Mistake("broadcast targets", lambda _: ln.mse(jnp.ones((4, 1)), jnp.ones(4)), r"\(4,\)", r"\[n, k\]", "reshape"),
    Mistake("alpha zero", lambda _: ln.lazy(MLP.apply, PARAMS, 0.0), "0.0", "> 0 or inf", "alpha = 1 is standard"),
    Mistake("alpha negative", lambda _: ln.lazy(MLP.apply, PARAMS, -2.0), "-2", "> 0 or inf", "large alpha is lazy"),
    Mistake("alpha NaN", lambda _: ln.lazy(MLP.apply, PARAMS, float("nan")), "nan", "> 0 or inf", "alpha = 1"),
    Mistake("scale by infinity", lambda _: ln.scale(MLP.apply, float("inf")), "inf", "finite number > 0", "alpha = 1"),
    Mistake(
        "params0 of another model",
        lambda _: ln.lazy(MLP.apply, ln.serial(ln.Dense(6), ln.Relu(), ln.Dense(2)).init(KEY, X), 2.0)(PARAMS, X),
        r"\(3, 5\)", r"\(3, 6\)", "same model",
    ),
    Mistake("params0 of a CNN", lambda _: TANGENT(PARAMS, X), "0_Dense", "0_Conv", "same model"),
    Mistake("params0 as u", lambda _: _train(objective=LAZY), "params0", "displacement", "None"),
    Mistake("missing data", lambda f: datasets.cifar10(f / "nowhere"), "nowhere", "cifar-10-batches", "download=True"),
    Mistake("truncated file", _truncated, "3000", "3073", "data_batch_1"),
    Mistake("wrong checksum", _wrong_checksum, "MD5", hashlib.md5(b"other").hexdigest(), "again"),
    Mistake("malicious pickle", _malicious, "system", "data_batch_1", ""),
    Mistake("unknown experiment", lambda f: run_experiment("lazy", out=f), "lazy", "lazy_vs_standard", "expected"),
    Mistake("unknown preset", _unknown_preset, "huge", "laptop, paper, smoke", "expected"),
    Mistake("unknown field", _preset("train.epoch=3"), "epoch", "epochs", "expected"),
    Mistake("value of a wrong type", _preset("seeds=many"), "many", "int", "seeds"),
    Mistake("unwritable output folder", _unwritable, "file", "cannot be written", "--out"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "_"))
def test_a_mistake_gets_an_error_with_the_value_the_expectation_and_the_fix(mistake, tmp_path):
    with pytest.raises((ValueError, TypeError, OSError, pickle.UnpicklingError)) as caught:
        mistake.do(tmp_path)
    message = str(caught.value)
    for part in (mistake.value, mistake.expectation, mistake.fix):
        assert re.search(part, message), f"{part!r} is not in: {message}"


def test_the_malicious_pickle_is_not_executed(tmp_path, capfd):
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        _malicious(tmp_path)
    assert "evil" not in capfd.readouterr().out


def test_a_mistake_on_the_command_line_is_one_line_and_status_two():

    root = Path(__file__).resolve().parents[2]
    words = [
        sys.executable,
        "-m",
        "experiments",
        "run",
        "lazy_vs_standard",
        "--set",
        "train.epoch=3",
    ]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "unknown field 'epoch'" in done.stderr
    )


def test_models_in_the_wrong_place_are_named_where_types_are_not_checked_at_run_time():
    script = """if True:
        import lazynet as ln
        for mistake in (lambda: ln.serial(ln.Dense(3), ln.Relu), lambda: ln.objective(ln.Dense(3), ln.mse)):
            try:
                mistake()
            except TypeError as error:
                print(error)
    """
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    ).stdout
    assert (
        re.search(r"position 1, expected a Model.*Relu\(\)", printed)
        and "pass model.apply" in printed
    )


def test_integer_images_are_not_silently_trained_on():
    with pytest.raises(TypeError, match="uint8"):
        datasets.check_data(ln.Data(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 1))))
