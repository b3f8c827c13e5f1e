"""One process of a data-parallel training: started by the tests of data parallelism, prints its curve as JSON."""

from __future__ import annotations

import inspect
import json
import sys
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)


def join(port: str, index: str) -> None:
    """Joins two processes on this machine, with a heartbeat of 10 s where this jax lets one choose it."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    known = inspect.signature(jax.distributed.initialize).parameters
    heartbeat = {"heartbeat_timeout_seconds": 10} if "heartbeat_timeout_seconds" in known else {}
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index), **heartbeat)


def training(sharding, *, batch_size=16, microbatches=1, save_at=(0, 1, 5, 12), **settings):
    """A curve of a small lazy network on random examples."""
    import jax.numpy as jnp

    import lazynet as ln

    x = jax.random.normal(jax.random.key(1), (40, 6))
    y = jnp.sin(x @ jnp.ones((6, 2)))
    model = ln.serial(ln.Dense(16, 1.5, 0.1), ln.Erf(), ln.Dense(2))
    goal = ln.objective(ln.lazy(model.apply, model.init(jax.random.key(0), x), 3.0), ln.mse)
    data, test = ln.Data(x, y), ln.Data(x[:7], y[:7])
    return ln.train(
        goal,
        None,
        data,
        ln.sgd(0.9),
        key=jax.random.key(2),
        save_at=save_at,
        learning_rate=0.05,
        batch_size=batch_size,
        microbatches=microbatches,
        augment=_jitter,
        sharding=sharding,
        test=test,
        measure=lambda u: {"norm": ln.trees.norm(u)},
        **settings,
    )


def _jitter(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape, x.dtype)


def refusal(sharding) -> str:
    """What is said of a batch with one example more than there are devices."""
    try:
        training(sharding, batch_size=jax.device_count() + 1)
    except ValueError as error:
        return str(error)
    return ""


def as_lists(curve) -> dict:
    """Metrics and final parameters of a curve."""
    import numpy as np

    metrics = {name: np.asarray(values).tolist() for name, values in curve.metrics.items()}
    leaves = {
        f"leaf {i}": np.asarray(leaf).tolist()
        for i, leaf in enumerate(jax.tree.leaves(curve.params))
    }
    return metrics | leaves


def long_training(sharding, folder: Path, *, save_at, pause: float):
    """A training that takes long enough to be killed, with a checkpoint at every record."""
    import lazynet as ln
    from experiments.harness import store

    path = folder / "checkpoint.npz"
    example = training(None, save_at=[0])

    def on_save(state, curve):
        if jax.process_index() == 0:
            store.save_checkpoint(path, state, curve)
        (folder / f"step={state.step},process={jax.process_index()}").touch()
        time.sleep(pause)

    resume = None
    if path.exists():
        start = ln.TrainState(0, 0.0, example.params, ln.sgd(0.9).init(example.params))
        resume = store.load_checkpoint(path, start)
        (folder / f"resumed at {resume[0].step}").touch()
    return training(sharding, save_at=save_at, on_save=on_save, resume=resume)


def gram_tiles(folder: Path | None, *, pause: float) -> dict:
    """A kernel of 136 tiles, slow enough to be killed, and how many tiles this process computed."""
    import numpy as np

    import lazynet as ln
    from lazynet import tiles

    x = np.random.default_rng(0).normal(size=(32, 6))
    model = ln.serial(ln.Dense(1, 1.5, 0.1), ln.Relu(), ln.Dense(1))
    every, computed = tiles.tiles(32, 32, 2, symmetric=True), []
    store = tiles.open_store(
        folder, {"ntk": (32, 32)}, np.float64, len(every), {"kernel": "a test"}
    )

    def compute(_, tile):
        computed.append(tile)
        time.sleep(pause)
        return {"ntk": ln.analytic_kernel(model, *(x[part.start : part.stop] for part in tile)).ntk}

    matrices = tiles.assemble(compute, every, store, mirror={"ntk": (1, 0)})
    return {"ntk": matrices["ntk"].tolist(), "computed": len(computed)}


def sharded_checkpoint(sharding, folder: Path) -> dict:
    """Saves arrays divided over all processes and reads them divided, and whole on every device."""
    import numpy as np

    import lazynet as ln
    from lazynet.training.checkpoints import load_sharded, save_sharded
    from lazynet.training.sharding import place, replicated

    host = {"w": np.arange(48.0).reshape(16, 3) / 7}
    divided, whole = place(host, sharding), place(host, replicated(sharding))
    save_sharded(folder, ln.TrainState(4, 0.25, divided, ()))
    loaded = [
        load_sharded(folder, ln.TrainState(0, 0.0, like, ())).params["w"]
        for like in (divided, whole)
    ]
    return {
        "divided": loaded[0].sharding.is_equivalent_to(sharding, 2),
        "rows here": [np.asarray(shard.data).tolist() for shard in loaded[0].addressable_shards],
        "whole": np.asarray(loaded[1]).tolist(),
    }


if __name__ == "__main__":
    task, *words = sys.argv[1:]
    if task in ("two", "long", "orbax", "tiles"):
        join(words[0], words[1])
    from lazynet.training.sharding import data_parallel

    if task == "long":
        curve = long_training(data_parallel(), Path(words[2]), save_at=range(0, 100, 2), pause=0.1)
        result = as_lists(curve)
    elif task == "alone":
        result = as_lists(
            long_training(None, Path(words[0]), save_at=range(int(words[1])), pause=0.0)
        )
    elif task == "tiles":
        result = gram_tiles(Path(words[2]), pause=0.05)
    elif task == "orbax":
        result = sharded_checkpoint(data_parallel(), Path(words[2]))
    else:
        cases = [word.split(",") for word in words[2 if task == "two" else 0 :]]
        settings = [
            dict(batch_size=None if b == "None" else int(b), microbatches=int(m)) for b, m in cases
        ]
        result = {"curves": [as_lists(training(data_parallel(), **each)) for each in settings]}
        result["refused"] = refusal(data_parallel())
    print(json.dumps(result | {"devices": jax.device_count()}))
