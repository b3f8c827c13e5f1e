"""Images of few channels, or smaller than the filters, are convolved as XLA convolves them, with its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lazynet.models.convolution import convolve

SIZES = [  # positions, taps, strides, zeros before and after
    ((2, 2), (3, 3), (1, 1), [(1, 1), (1, 1)]),
    ((2, 3), (5, 2), (2, 1), [(2, 1), (0, 1)]),
    ((1, 4), (3, 5), (1, 2), [(2, 2), (3, 1)]),
    ((1, 1), (3, 3), (1, 1), [(1, 1), (1, 1)]),
    ((3, 2), (2, 4), (1, 3), [(0, 0), (4, 4)]),
    ((2,), (5,), (2,), [(2, 2)]),
]
FEW_CHANNELS = [  # of which four, two or one output along the last axis are found at once
    ((4, 8), (3, 3), (1, 1), [(1, 1), (1, 1)]),
    ((5, 7), (2, 5), (2, 1), [(0, 1), (3, 0)]),
    ((3, 9), (3, 3), (1, 1), [(0, 0), (1, 1)]),
    ((12,), (5,), (1,), [(0, 0)]),
]


def _by_xla(x, W, strides, pads):
    axes = "HW"[: len(strides)]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return lax.conv_general_dilated(x, W, strides, pads, dimension_numbers=numbers)


@pytest.mark.parametrize(("positions", "taps", "strides", "pads"), SIZES + FEW_CHANNELS)
def test_images_are_convolved_as_xla_does(positions, taps, strides, pads):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, *positions, 3))
    W = jax.random.normal(keys[1], (*taps, 3, 4))
    expected, pullback = jax.vjp(lambda x, W: _by_xla(x, W, strides, pads), x, W)
    found, found_pullback = jax.vjp(lambda x, W: convolve(x, W, strides, pads), x, W)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    cotangent = jnp.cos(jnp.arange(expected.size, dtype=expected.dtype)).reshape(expected.shape)
    for ours, theirs in zip(found_pullback(cotangent), pullback(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13)


def test_few_channels_are_convolved_in_steps_of_several_columns():
    x = jnp.ones((1, 8, 8, 3))
    W = jnp.ones((3, 3, 3, 4))
    program = str(jax.make_jaxpr(convolve, static_argnums=(2, 3))(x, W, (1, 1), ((1, 1), (1, 1))))
    assert "window_strides=(1, 4)" in program


def test_other_images_are_left_to_xla():
    x = jnp.ones((1, 8, 8, 32))
    W = jnp.ones((3, 3, 32, 32))
    program = str(jax.make_jaxpr(convolve, static_argnums=(2, 3))(x, W, (1, 1), ((1, 1), (1, 1))))
    assert program.count("conv_general_dilated") == 1
    assert "window_strides=(1, 1)" in program
