"""What the tests of faults kill: each task writes into a folder, and goes on there when it is started again."""

from __future__ import annotations

import contextlib
import io
import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.figure as matplotlib_figure
import numpy as np
import sklearn.datasets as sklearn_datasets
from rich.console import Console

import lazynet as ln
from experiments import __main__ as command_line
from experiments import lazy_vs_standard, trajectories_2d
from experiments.harness import config as configuration
from experiments.harness import running, store
from experiments.shared import training as training_module
from experiments.shared.training import cell_arrays, checkpointed
from lazynet import plots
from lazynet.datasets import Archive, cifar10
from lazynet.kernels.analytic import analytic_kernel

LOADED_ONCE = matplotlib_figure, sklearn_datasets
"""What an experiment imports late."""

IMAGES = 400
"""In each of the six files of the archive that is downloaded."""


TINY = """data.n_train=100 data.n_test=50 network.widths=8 seeds=1 alphas=1,inf train.epochs=4 train.records=6
ntk_examples=10 lr_examples=20 kernel_images=10""".split()


def tiny_config():
    """A configuration of `lazy_vs_standard` that takes some seconds."""
    return configuration.preset(lazy_vs_standard.PRESETS, "smoke", TINY)


def experiment(folder: Path) -> None:
    """An experiment from its configuration to its summary, with a checkpoint at every record."""
    with _run_folder(folder) as run:
        summary = running.compute(lazy_vs_standard, tiny_config(), run, Console(file=io.StringIO()))
        store.write_json(folder / "summary.json", summary)


def training(folder: Path) -> None:
    """One training in a run folder, with a checkpoint at every record."""
    jax.config.update("jax_enable_x64", True)
    x = jnp.linspace(-1.0, 1.0, 24).reshape(12, 2)
    data, optimizer = ln.Data(x, jnp.sin(3 * x[:, :1])), ln.sgd(0.9)
    model = ln.serial(ln.Dense(8), ln.Erf(), ln.Dense(1))
    goal = ln.objective(ln.lazy(model.apply, model.init(jax.random.key(0), x), 2.0), ln.mse)
    settings = dict(
        key=jax.random.key(1), save_at=range(0, 240, 3), learning_rate=0.1, batch_size=4
    )

    def train(checkpoint):
        start = goal.apply.start()
        curve = checkpointed(
            checkpoint, goal, start, data, optimizer, lambda step: None, **settings
        )
        end = {"loss": curve.metrics["train_loss"][-1]}
        return cell_arrays(curve, end, model.apply(curve.params, x))

    with _run_folder(folder) as run:
        parts = store.Store(run)
        cell = parts.read("one") or parts.write("one", train(parts.checkpoint("one")))
        store.save_arrays(run / "measured.npz", cell)
        store.write_json(folder / "summary.json", {"loss": float(cell["final/loss"])})


@contextlib.contextmanager
def _run_folder(folder: Path):
    jax.config.update("jax_enable_x64", True)
    training_module.CHECKPOINT_SECONDS = 0.0
    run = store.run_folder("lazy_vs_standard", tiny_config(), folder)
    with store.alone(run):
        yield store.open_run("lazy_vs_standard", tiny_config(), folder)


def drawn(folder: Path) -> None:
    """A run of the command line with two cells and two figures, each drawn slowly."""
    jax.config.update("jax_enable_x64", True)

    def measure(config, parts):
        cells = [parts.read(f"{i}") or parts.write(f"{i}", {"x": np.full(9, i)}) for i in range(2)]
        return {name: cell["x"] for name, cell in zip("ab", cells, strict=True)}

    def draw(config, arrays):
        return {name: plots.plot_kernel(np.outer(x, x)) for name, x in arrays.items()}

    trajectories_2d.measure = measure
    trajectories_2d.draw = draw
    trajectories_2d.facts = lambda config, arrays: ()
    trajectories_2d.numbers = lambda config, arrays: {
        "sum": float(arrays["a"].sum() + arrays["b"].sum())
    }
    command_line._set_precision = lambda config: None
    with contextlib.redirect_stdout(io.StringIO()):
        command_line.run("trajectories_2d", "smoke", (), folder, True)


def tiles(folder: Path) -> None:
    """A kernel of 136 tiles."""
    jax.config.update("jax_enable_x64", True)
    folder.mkdir(exist_ok=True)
    x = np.random.default_rng(0).normal(size=(32, 6))
    model = ln.serial(ln.Dense(1, 1.5, 0.1), ln.Relu(), ln.Dense(1))
    analytic_kernel(model, x, tile=2, store=folder / "store")


def triangle(folder: Path) -> None:
    """One kernel of 136 tiles, of which the upper triangle is kept."""
    jax.config.update("jax_enable_x64", True)
    folder.mkdir(exist_ok=True)
    x = np.random.default_rng(0).normal(size=(32, 6))
    model = ln.serial(ln.Dense(1, 1.5, 0.1), ln.Relu(), ln.Dense(1))
    analytic_kernel(model, x, tile=2, store=folder / "store", get="ntk", triangle=True)


def download(folder: Path, archive: Archive) -> None:
    """The archive, received slowly, and unpacked."""
    cifar10(
        folder,
        download=True,
        archive=archive,
        records_per_file=IMAGES,
        progress=lambda *_: time.sleep(0.004),
    )


def hold(folder: Path) -> None:
    """Computes in a run folder until it is killed."""
    with store.alone(folder):
        (folder / "computing").touch()
        time.sleep(600)


def on_a_full_disk(task, limit: int, pipe, *arguments) -> None:
    """Runs a task that may write no file longer than a limit, and sends what it says."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    # Its programs would be cut off in the cache that the suite shares.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        task(*arguments)
    except (OSError, ValueError) as error:
        pipe.send(str(error))
