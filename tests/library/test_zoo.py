from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazynet import zoo
from lazynet.kernels.analytic import analytic_kernel

IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
NETWORKS = {
    "cnn": zoo.cnn((4, 4), 10),
    "cntk": zoo.cntk(3, 10, width=4),
    "myrtle": zoo.myrtle(5, width=4),
    "wide_resnet": zoo.wide_resnet(1, width=1),
    "vgg11": zoo.vgg11(10, width=1 / 16),
    "hierarchical_cnn": zoo.hierarchical_cnn((4, 4, 4), 10, strides=(2, 2, 2)),
    "resnet18": zoo.resnet18(10, width=1 / 16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_images_give_one_row_of_logits_an_example(name):
    shapes = jax.eval_shape(
        lambda key: NETWORKS[name].apply(NETWORKS[name].init(key, IMAGE), IMAGE), jax.random.key(0)
    )
    assert shapes.shape == (2, 10)


@pytest.mark.parametrize("depth", [5, 7, 10])
def test_myrtle_networks_have_as_many_layers_with_weights_as_their_name_says(depth):
    assert len(jax.eval_shape(zoo.myrtle(depth).init, jax.random.key(0), IMAGE)) == depth


def test_resnet18_has_eighteen_layers_with_weights_besides_its_shortcuts():
    params = jax.eval_shape(zoo.resnet18(10).init, jax.random.key(0), IMAGE)
    kernels = [
        leaf for leaf in jax.tree.leaves(params) if leaf.ndim in (2, 4) and leaf.shape[:2] != (1, 1)
    ]
    assert len(kernels) == 18


@pytest.mark.parametrize(
    "model", [zoo.two_layer(8), zoo.mlp((8, 8), 3, b_std=0.1)], ids=["two_layer", "mlp"]
)
def test_networks_of_vectors_have_a_limit(model):
    assert bool(jnp.all(jnp.isfinite(analytic_kernel(model, jnp.ones((2, 5))).ntk)))


@pytest.mark.extended
@pytest.mark.parametrize("model", [zoo.cntk(3), zoo.myrtle(5)], ids=["cntk", "myrtle"])
def test_pooled_networks_of_images_have_a_limit(model):
    assert float(analytic_kernel(model, jnp.ones((1, 8, 8, 3))).ntk[0, 0]) > 0


@pytest.mark.parametrize(
    ("make", "words"), [(lambda: zoo.cntk(1), "depth got"), (lambda: zoo.myrtle(6), "5, 7 or 10")]
)
def test_impossible_depths_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
