"""What the heads of networks ask images for: means over equal positions, over pairs of positions, and variances."""

from __future__ import annotations

import math
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

from lazynet.covariance import gpu
from lazynet.covariance.loops import guarded, optional
from lazynet.covariance.pairing import Lanes, Request
from lazynet.covariance.planes import Plane, Planes, source, sum_over_pairs

__all__ = ["mean_over_pairs", "mean_over_positions", "summed_on_chip", "variances"]


def mean_over_positions(planes: Planes, lanes: Lanes) -> Plane:
    """`1/(h w) sum_p S[p, p]` of each pair of images, `[groups, lanes]`: the limit of a Flatten head."""
    height, width = planes.shape

    def mean(a):
        return jnp.mean(a[:height, :width], axis=(0, 1))

    def group(g):
        request = _request(planes, lanes, g, single=True)
        plane = planes.build(request)
        done = request.rows(0, 0)
        return guarded(lambda: [optional(mean, a) for a in plane(0, 0, {**done})], g)

    return _map_groups(group, planes, lanes.groups)


def mean_over_pairs(planes: Planes, lanes: Lanes, *, same: bool = False) -> Plane:
    """`1/(h w)^2 sum_{p, p'} S[p, p']` of each pair of images, `[groups, lanes]`: the limit of a pooled head.

    On a GPU, networks that allow it keep each plane on the chip through all layers.
    """
    chip = (
        jax.default_backend() == "gpu" and gpu.available() and gpu.fits(planes.chain, planes.canvas)
    )
    nngp, ntk = (summed_on_chip if chip else _summed)(planes, lanes, same=same)
    area = math.prod(planes.shape)
    return nngp / area**2, optional(lambda a: a / area**2, ntk)


def summed_on_chip(
    planes: Planes, lanes: Lanes, *, same: bool = False, interpret: bool = False
) -> Plane:
    """`sum_{p, p'} S[p, p']` by one GPU program (or step by step anywhere, to test it); derivatives layer by layer."""
    chain = cast(gpu.Chain, planes.chain)

    def by_layers(*arrays):
        return _summed(_restored(chain, *arrays), lanes, same=same)

    def by_program(*arrays):
        every = _restored(chain, *arrays)
        steps = cast(gpu.Chain, every.chain)
        sums = gpu.sum_over_pairs(
            steps, every.shape, every.canvas, lanes, same=same, interpret=interpret
        )
        if not same:
            return sums
        zero = [optional(lambda a: jnp.sum(a, axis=(0, 1))[None], a) for a in variances(every)]
        return tuple(optional(jnp.add, *parts) for parts in zip(sums, zero, strict=True))

    @jax.custom_jvp
    def total(*arrays):
        return (
            by_program(*arrays)
            if interpret
            else lax.platform_dependent(*arrays, cuda=by_program, default=by_layers)
        )

    total.defjvp(lambda primals, tangents: jax.jvp(by_layers, primals, tangents))
    return total(chain.images, chain.moments())


def variances(planes: Planes) -> Plane:
    """Plane d = 0 `[h, w, n]` of images with themselves."""
    request = Request(planes.canvas, lambda a: a, lambda a: a, planes.dtype, same=True).new_loop(
        single=True, zero=True
    )
    plane, (height, width) = planes.build(request), planes.shape
    nngp, ntk = (optional(lambda a: a[:height, :width], a) for a in plane(0, 0, request.rows(0, 0)))
    return nngp, ntk


def _summed(planes, lanes, *, same=False):
    """`sum_{p, p'} S[p, p']`, layer by layer."""
    return _map_groups(
        lambda g: sum_over_pairs(planes, _request(planes, lanes, g, same=same)),
        planes,
        lanes.groups,
    )


def _restored(chain, images, moments):
    """The recipe of a chain on other arrays."""
    planes = source(*images)
    moments = iter(moments)
    for step in chain.steps:
        if isinstance(step, gpu.Swept):
            planes = planes.window(step.window)
        else:
            pairs = next(moments)
            before = [lambda own=own: own for own in pairs]
            after = [lambda own=own, op=step.op: op.diagonal(*own) for own in pairs]
            planes = planes.pointwise(step.op, before, after)
    return planes


def _request(planes, lanes, g, *, single=False, same=False):
    def first(a):
        return lanes.first(a, g)

    def second(a):
        return lanes.second(a, g)

    return Request(planes.canvas, first, second, planes.dtype, same=same).new_loop(
        single=single, zero=single
    )


def _map_groups(group, planes, groups):
    for compute in planes.needs:
        compute()
    nngp, ntk = lax.map(lambda g: tuple(group(g)), jnp.arange(groups))
    return nngp, ntk
