"""neural-tangents' decorators for layers of one's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lazynet.dropin.kernels import Kernel, inside, interleaved
from lazynet.dropin.masks import is_masked, parts, whole, with_constant

__all__ = ["requires", "supports_masking"]


def requires(**static_reqs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks a `kernel_fn` with the axes and covariances that it needs.

    Args:
        **static_reqs: `batch_axis`, `channel_axis`, `diagonal_batch` and `diagonal_spatial`.

    Example:
        >>> requires(channel_axis=-1)(lambda k, **kwargs: k).required
        {'channel_axis': -1}
    """

    def mark(kernel_fn):
        @functools.wraps(kernel_fn)
        def marked(k, **kwargs):
            return kernel_fn(k, **kwargs)

        marked.required = static_reqs  # pyright: ignore[reportAttributeAccessIssue]
        return marked

    return mark


def supports_masking(remask_kernel: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a layer of one's own, with `apply_fn(params, x, mask=None, **kwargs)`, one of masked arrays.

    It may return a fourth function, `mask_fn(mask, input_shape)`, with the mask of the outputs.

    Args:
        remask_kernel: Whether covariances of missing positions are set to zero after it.
    """

    def decorate(layer_fn):
        @functools.wraps(layer_fn)
        def make(*args, **kwargs):
            init_fn, apply_fn, kernel_fn, *rest = layer_fn(*args, **kwargs)
            mask_fn = rest[0] if rest else lambda mask, shape: mask

            def masked_apply(params, inputs, *, mask_constant=None, **told):
                given = jax.tree.map(
                    lambda x: with_constant(x, mask_constant), inputs, is_leaf=is_masked
                )
                values = jax.tree.map(lambda x: parts(x)[0], given, is_leaf=is_masked)
                mask = jax.tree.map(lambda x: parts(x)[1], given, is_leaf=is_masked)
                outputs = apply_fn(params, values, mask=mask, **told)
                if not jax.tree.leaves(mask):
                    return outputs
                return whole(outputs, mask_fn(mask, jax.tree.map(jnp.shape, values)))

            def masked_kernel(k, **told):
                after = kernel_fn(k, **told)
                if not isinstance(k, Kernel) or (k.mask1 is None and k.mask2 is None):
                    return after
                masks = [
                    None if mask is None else mask_fn(mask, shape)
                    for mask, shape in ((k.mask1, k.shape1), (k.mask2, k.shape2))
                ]
                after = after.replace(mask1=masks[0], mask2=masks[1])
                return _zeroed(after) if remask_kernel else after

            # Says that missing entries need not be filled with zeros before.
            masked_apply.takes_masks = True  # pyright: ignore[reportFunctionMemberAccess]
            masked_kernel.required = getattr(kernel_fn, "required", {})  # pyright: ignore[reportFunctionMemberAccess]
            return init_fn, masked_apply, masked_kernel

        return make

    return decorate


def _zeroed(kernel):
    """The kernel with zeros where a position of either partner is missing."""
    masks = [kernel.mask1, kernel.mask1 if kernel.cov2 is None else kernel.mask2]
    rank = len(kernel.shape1) - 2
    present = []
    for mask, n in zip(masks, kernel.nngp.shape[:2], strict=True):
        there = jnp.ones((n,), bool) if mask is None else _present(mask, kernel)
        present.append(there)

    def kept(values, i, j, lead):
        if values is None or not jnp.ndim(values):
            return values
        ones = (1,) * rank
        first = present[i].reshape(present[i].shape[:1] + (present[i].shape[1:] or ones))
        second = present[j].reshape(present[j].shape[:1] + (present[j].shape[1:] or ones))
        if lead == 2:
            first, second = first[:, None], second[None]
        if kernel.diagonal_spatial:
            return jnp.where(first & second, values, 0)
        # `[..., h, w, 1, 1]` of the first partner beside `[..., 1, 1, h, w]` of the second.
        wide = first.reshape(*first.shape, *ones) & second.reshape(
            *second.shape[:lead], *ones, *second.shape[lead:]
        )
        return jnp.where(interleaved(wide, lead, rank), values, 0)

    own = 1 if kernel.diagonal_batch else 2
    return kernel.replace(
        nngp=kept(kernel.nngp, 0, 1, 2),
        ntk=kept(kernel.ntk, 0, 1, 2),
        cov1=kept(kernel.cov1, 0, 0, own),
        cov2=kept(kernel.cov2, 1, 1, own),
    )


def _present(mask, kernel):
    return ~jnp.all(inside(mask, kernel.batch_axis, kernel.channel_axis), axis=-1)
