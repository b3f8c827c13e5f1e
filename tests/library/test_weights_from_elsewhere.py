"""Weights of torch, of public collections and of haiku, by the recipes of the docs and from small files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from flax import linen, nnx
from jax.tree_util import Partial

import lazynet as ln

KEY = jax.random.key(0)
X = normal(1, 4, 3)
IMAGES = normal(2, 3, 4, 5, 2)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "model.md"


def _recipe(name):
    """A function of the page."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if f"def {name}(" in block]
    namespace = {"np": np}
    exec(block, namespace)
    return namespace[name]


def _trace_by_jacobian(apply, params, x):
    """The mean over outputs of the tangent kernel, by the plain Jacobian."""
    jacobian = jax.jacobian(lambda w: apply(w, x))(params)
    rows = [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobian)]
    whole = np.concatenate(rows, axis=2)
    return np.einsum("iap,jap->ij", whole, whole) / whole.shape[1]


def _write_safetensors(path, arrays):
    header = {"__metadata__": {"format": "pt"}}
    buffer = b""
    for name, array in arrays.items():
        last = len(buffer) + array.nbytes
        kind = {"float32": "F32", "float64": "F64", "int64": "I64"}[str(array.dtype)]
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(buffer), last],
        }
        buffer += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + buffer)


TORCH = {
    "conv.weight": np.asarray(normal(3, 6, 2, 3, 3)),
    "norm.weight": np.asarray(normal(4, 6)),
    "norm.bias": np.asarray(normal(5, 6)),
    "norm.running_mean": np.asarray(normal(6, 6)),
    "norm.running_var": np.asarray(normal(7, 6)) ** 2 + 0.5,
    "norm.num_batches_tracked": np.array(7),
    "head.weight": np.asarray(normal(8, 2, 6 * 4 * 5)),
    "head.bias": np.asarray(normal(9, 2)),
}


def _in_torch(weights, x):
    """Conv2d(2, 6, 3, padding=1, bias=False), BatchNorm2d in evaluation, ReLU, Flatten, Linear, on channels first."""
    x = x.transpose(0, 3, 1, 2)
    dimensions = ("NCHW", "OIHW", "NCHW")
    h = jax.lax.conv_general_dilated(
        x, weights["conv.weight"], (1, 1), "SAME", dimension_numbers=dimensions
    )
    scale = weights["norm.weight"] / np.sqrt(weights["norm.running_var"] + 1e-5)
    shift = weights["norm.bias"] - scale * weights["norm.running_mean"]
    h = np.maximum(np.asarray(h) * scale[:, None, None] + shift[:, None, None], 0)
    return h.reshape(len(h), -1) @ weights["head.weight"].T + weights["head.bias"]


class OfTorch(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(6, (3, 3), use_bias=False, name="conv")(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True, name="norm")(x))
        return linen.Dense(2, name="head")(x.reshape(len(x), -1))


def test_weights_of_torch_by_safetensors_give_what_torch_computes(tmp_path):
    _write_safetensors(tmp_path / "net.safetensors", TORCH)
    arrays = _recipe("read_safetensors")(tmp_path / "net.safetensors")
    assert arrays.keys() == TORCH.keys()
    to_flax = _recipe("to_flax")
    head = to_flax(arrays["head.weight"], image=(6, 4, 5))
    params = {
        "conv": {"kernel": to_flax(arrays["conv.weight"])},
        "norm": {"scale": arrays["norm.weight"], "bias": arrays["norm.bias"]},
        "head": {"kernel": head, "bias": arrays["head.bias"]},
    }
    averages = {"mean": arrays["norm.running_mean"], "var": arrays["norm.running_var"]}
    model = ln.from_flax(OfTorch(), {"params": params, "batch_stats": {"norm": averages}})
    outputs = model.apply(model.init(None, IMAGES), IMAGES)
    np.testing.assert_allclose(outputs, _in_torch(TORCH, IMAGES), rtol=1e-5, atol=1e-5)


def test_the_reader_reads_what_the_library_of_safetensors_writes(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the package safetensors")
    safetensors.save_file(TORCH, tmp_path / "net.safetensors")
    arrays = _recipe("read_safetensors")(tmp_path / "net.safetensors")
    jax.tree.map(np.testing.assert_array_equal, arrays, TORCH)


def test_an_equinox_layer_has_the_layout_of_torch():
    layer = eqx.nn.Linear(3, 2, key=KEY)
    weight = np.asarray(normal(3, 2, 3))
    bias = np.asarray(normal(4, 2))
    layer = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, bias))
    model = ln.from_equinox(layer)
    expected = np.asarray(X) @ weight.T + bias
    np.testing.assert_allclose(model.apply(model.init(None, X), X), expected, rtol=1e-12)


class Collected(nnx.Module):
    """As public collections have them: statistics, dropout with a generator of its own, several outputs."""

    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(3, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        features = self.drop(jnp.tanh(self.norm(self.hidden(x))))
        return {"logits": self.head(features), "features": features}


def _without_generators(module):
    """Weights and statistics by their paths."""
    state = nnx.state(module, nnx.Not(nnx.RngState))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return state, {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def test_a_file_of_weights_goes_into_an_nnx_module_with_state(tmp_path):
    x = normal(1, 4, 3, dtype=np.float32)
    trained = Collected(rngs=nnx.Rngs(1))
    with jax.numpy_rank_promotion("allow"):
        trained(x)  # which moves the running averages
        trained.eval()
        expected = trained(x)
    np.savez(tmp_path / "weights.npz", **_without_generators(trained)[1])

    module = Collected(rngs=nnx.Rngs(2))
    state, leaves = _without_generators(module)
    with np.load(tmp_path / "weights.npz") as file:
        stored = [jnp.asarray(file[path]) for path in leaves]
    nnx.update(module, jax.tree.unflatten(jax.tree.structure(state), stored))
    module.eval()
    model = ln.from_flax(module)
    params = model.init(None, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), model.apply(params, x), expected
    )
    kernel = ln.empirical_ntk(model.apply, params, x, outputs="trace", output="logits")
    logits = ln.select(model.apply, "logits")
    np.testing.assert_allclose(kernel, _trace_by_jacobian(logits, params, x), rtol=1e-5)


def test_a_file_of_weights_goes_into_an_equinox_module(tmp_path):
    def built(key):
        return eqx.nn.Sequential(
            [eqx.nn.Linear(3, 2, key=key), eqx.nn.Lambda(jnp.tanh), eqx.nn.Dropout(0.5)]
        )

    trained = built(jax.random.key(1))
    eqx.tree_serialise_leaves(tmp_path / "net.eqx", trained)
    module = eqx.tree_deserialise_leaves(tmp_path / "net.eqx", built(jax.random.key(2)))
    model = ln.from_equinox(eqx.nn.inference_mode(module))
    expected = jnp.tanh(X @ trained.layers[0].weight.T + trained.layers[0].bias[None])
    np.testing.assert_allclose(model.apply(model.init(None, X), X), expected, rtol=1e-6)


def _haiku_network():
    hk = pytest.importorskip("haiku", reason="needs the package dm-haiku")

    def forward(x, is_training=False):
        normalize = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
        return hk.Linear(2)(jnp.tanh(normalize(hk.Linear(5)(x), is_training)))

    return hk.transform_with_state(forward)


def test_a_haiku_network_is_a_function_by_its_own_transform():
    net = _haiku_network()
    params, state = net.init(KEY, X, is_training=True)
    state = jax.tree.map(lambda leaf: leaf + 1, state)

    def evaluated(state, params, x):
        return net.apply(params, state, None, x)[0]

    apply = Partial(evaluated, state)
    kernel = ln.empirical_ntk(apply, params, X, outputs="trace")
    np.testing.assert_allclose(kernel, _trace_by_jacobian(apply, params, X), rtol=1e-6)
    data = ln.Data(X, normal(5, 4, 2))
    f = ln.lazy(apply, params, 10.0)
    settings = dict(key=KEY, save_at=[0, 5], learning_rate=0.1)
    losses = ln.train(ln.objective(f, ln.mse), None, data, ln.sgd(), **settings).metrics[
        "train_loss"
    ]
    np.testing.assert_allclose(losses[0], jnp.sum(data.y**2) / 8, rtol=1e-6)
    assert losses[1] < losses[0]
