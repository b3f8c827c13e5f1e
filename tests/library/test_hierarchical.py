"""Facts about convolutions along attributes, and the network whose outputs do not see shifts along them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal

import lazynet as ln
from lazynet import zoo
from lazynet.models import spatial
from lazynet.models.hierarchical import AttributeConv

KEY = jax.random.key(0)


@pytest.mark.parametrize("attributes", [(4,), (3, 5)], ids=["one", "two"])
def test_it_is_the_periodic_convolution_over_all_axes(attributes):
    x = normal(1, 2, 4, 4, *attributes)
    own = AttributeConv(2, padding="CIRCULAR", W_std=1.3, b_std=0.5)
    params = own.init(KEY, x)
    size = (3, 3, *(3 for _ in attributes))
    general = spatial.Conv(2, size, padding="CIRCULAR", W_std=1.3, b_std=0.5)
    weights = params | {"W": params["W"].reshape(*size, 1, 2)}
    np.testing.assert_allclose(
        own.apply(params, x), general.apply(weights, x[..., None]), rtol=1e-12, atol=1e-13
    )


def test_the_oldest_attributes_are_averaged_and_strides_are_those_of_positions():
    x = normal(2, 1, 4, 4, 5, 3, 4)
    layer = AttributeConv(2, strides=(2, 2))
    params = layer.init(KEY, x)
    z = layer.apply(params, x)
    assert z.shape == (1, 2, 2, 3, 4, 2)
    np.testing.assert_allclose(z, layer.apply(params, x.mean(3)), rtol=1e-13)


@pytest.mark.parametrize("axis", [3, 4])
def test_a_shift_along_an_attribute_shifts_the_outputs(axis):
    x = normal(3, 2, 4, 4, 4, 5)
    layer = AttributeConv(3)
    params = layer.init(KEY, x)
    shifted = layer.apply(params, jnp.roll(x, 2, axis))
    np.testing.assert_array_equal(shifted, jnp.roll(layer.apply(params, x), 2, axis))


def moved(params, path):
    """The channels of one layer on by one place of the circle."""
    return params | {path: jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=-1), params[path])}


@pytest.mark.extended
@pytest.mark.parametrize("regime", ["trained", "linearized"])
def test_the_network_does_not_see_shifts_along_any_attribute_but_the_last(regime):
    x = normal(4, 2, 6, 6, 3)
    model = zoo.hierarchical_cnn((4, 3, 5, 4), 2, strides=(1, 2, 1, 1), b_std=0.3)
    params, tangent = (model.init(jax.random.key(i), x) for i in range(2))

    def outputs(change):
        if regime == "trained":
            return model.apply(change(params), x)
        return ln.lazy(model.apply, change(params), np.inf)(change(tangent), x)

    expected = outputs(lambda w: w)
    for path in ("0_Conv", "2_AttributeConv", "4_AttributeConv"):
        found = outputs(lambda w, path=path: moved(w, path))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    last = outputs(lambda w: moved(w, "6_AttributeConv"))
    assert jnp.abs(last - expected).max() > 1e-2 * jnp.abs(expected).max()
    ordinary = zoo.cnn((4, 4), 2)
    weights = ordinary.init(KEY, x)
    change = ordinary.apply(moved(weights, "0_Conv"), x) - ordinary.apply(weights, x)
    assert jnp.abs(change).max() > 1e-2


REFUSED = {
    "an even reach": (lambda: AttributeConv(2, reach=2), "reach=2, expected an odd number"),
    "vectors": (
        lambda: AttributeConv(2).init(KEY, jnp.ones((2, 3))),
        r"shape \(2, 3\), expected \[n, h, w, \*attributes\]",
    ),
    "an attribute of few channels": (
        lambda: AttributeConv(2, reach=5).init(KEY, jnp.ones((1, 4, 4, 3))),
        r"sizes \(3,\), expected at least reach=5",
    ),
    "one layer": (lambda: zoo.hierarchical_cnn((4,)), "1 widths .* at least two widths"),
    "strides of another number": (
        lambda: zoo.hierarchical_cnn((4, 4), strides=(1,)),
        "2 widths and 1 strides",
    ),
    "a kernel of infinite width": (
        lambda: ln.analytic_kernel(zoo.hierarchical_cnn((4, 4), 1), jnp.ones((1, 4, 4, 1))),
        "has no infinite-width limit",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused(what):
    call, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        call()
