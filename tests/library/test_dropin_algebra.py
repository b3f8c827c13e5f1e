"""What `Kernel` of the drop-in names does with its axes, each fact against covariances of finite activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazynet.dropin import stax

RNG = np.random.default_rng(0)
X1, X2 = (jnp.asarray(RNG.normal(size=(2, 3, 4, 5))) for _ in range(2))
KERNEL = stax.Identity()[2](X1, X2)
FACTOR = jnp.asarray(RNG.normal(size=(2, 6)))


def products(y1, y2, expression):
    """Means over five channels of products of activations."""
    return jnp.einsum(expression, y1, y2) / 5


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.extended
def test_reversed_axes_are_those_of_transposed_images_and_come_back():
    turned = KERNEL.reverse()
    expected = products(X1.swapaxes(1, 2), X2.swapaxes(1, 2), "nijc,mklc->nmikjl")
    close(turned.nngp, expected)
    close(KERNEL.transpose((1, 0)).nngp, expected)
    assert turned.is_reversed and not turned.reverse().is_reversed
    assert KERNEL.transpose() is KERNEL
    close(turned.reverse().cov1, KERNEL.cov1)


@pytest.mark.extended
def test_layers_take_a_reversed_kernel_for_what_it_is():
    kernel_fn = stax.GlobalAvgPool()[2]
    close(kernel_fn(KERNEL.reverse()).nngp, kernel_fn(KERNEL).nngp)


@pytest.mark.extended
@pytest.mark.parametrize("is_lhs", [False, True])
def test_a_product_with_a_constant_has_the_covariances_of_the_products(is_lhs):
    axes = ((1,), (0,))
    matrix = jnp.asarray(RNG.normal(size=(3, 6)))
    numbers = (axes[::-1] if is_lhs else axes, ((), ()))

    def product(x):
        return jax.lax.dot_general(*((matrix, x) if is_lhs else (x, matrix)), numbers)

    letters = ("rnwc,smvc->nmrswv", "rnwc,snvc->nrswv")
    if not is_lhs:
        letters = ("nwcr,mvcs->nmwvrs", "nwcr,nvcs->nwvrs")
    k = KERNEL.dot_general(matrix, matrix, is_lhs, numbers)
    close(k.nngp, products(product(X1), product(X2), letters[0]))
    close(k.cov1, products(product(X1), product(X1), letters[1]))
    assert (k.batch_axis, k.channel_axis) == ((1, 3) if is_lhs else (0, 2))


@pytest.mark.extended
def test_a_product_over_examples_has_no_axis_of_them():
    _, apply_fn, kernel_fn = stax.DotGeneral(rhs=FACTOR, dimension_numbers=(((0,), (0,)), ((), ())))
    k = kernel_fn(X1, X2, diagonal_batch=False)
    y1, y2 = apply_fn((), X1), apply_fn((), X2)
    close(k.nngp, products(y1, y2, "hwca,kvcb->hkwvab"))
    close(k.cov2, products(y2, y2, "hwca,kvcb->hkwvab"))
    assert k.shape1 == y1.shape
    with pytest.raises(ValueError, match="mixes examples"):
        kernel_fn(X1, X2, diagonal_batch=True)
    with pytest.raises(ValueError, match="mixes examples"):
        kernel_fn(KERNEL)


def test_one_constant_alone_is_refused():
    with pytest.raises(ValueError, match="one constant"):
        KERNEL.dot_general(FACTOR, None, False, (((0,), (0,)), ((), ())))


@pytest.mark.extended
def test_masked_kernels_are_those_of_masked_inputs():
    masks = [jnp.asarray(RNG.random((2, 3, 4, 1)) < 0.4) for _ in range(2)]
    missing = [jnp.where(mask, 9.0, x) for mask, x in zip(masks, (X1, X2), strict=True)]
    expected = stax.Identity()[2](*missing, mask_constant=9.0)
    found = KERNEL.mask(*masks)
    for name in ("nngp", "cov1", "cov2", "mask2"):
        close(getattr(found, name), getattr(expected, name))


@pytest.mark.extended
def test_one_set_with_two_masks_is_masked_on_either_side():
    masks = [jnp.asarray(RNG.random((2, 3, 4, 1)) < 0.4) for _ in range(2)]
    expected = stax.Identity()[2](X1, X1 + 0).mask(*masks)
    found = stax.Identity()[2](X1).mask(*masks)
    for name in ("nngp", "cov1", "cov2", "mask2"):
        close(getattr(found, name), getattr(expected, name))


@pytest.mark.extended
def test_blocks_beside_the_diagonal_are_of_different_sets():
    vectors = X1.reshape(8, 15)
    kernel = stax.Dense(4)[2](vectors, vectors + 0)
    dropped = stax.serial(stax.Dropout(0.5), stax.Dense(4))[2]
    first, second = slice(0, 2), slice(2, 4)
    close(dropped(kernel.slice(first, second)).nngp, dropped(kernel).nngp[first, second])
    close(dropped(kernel.slice(first, first)).nngp, dropped(kernel).nngp[first, first])


def test_sums_and_quotients_are_those_of_activations():
    shifted = KERNEL / 2 + 3.0
    close(shifted.nngp, KERNEL.nngp / 4 + 9)
    close((-shifted).cov1, KERNEL.cov1 / 4 + 9)
    close((KERNEL - 1.0).nngp, KERNEL.nngp + 1)
