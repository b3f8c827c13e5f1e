"""What the heads of networks ask images for: means over equal positions, over pairs of positions, and variances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

from lazynet.covariance import gpu
from lazynet.covariance.chains import Chain, Swept
from lazynet.covariance.loops import guarded
from lazynet.covariance.pairing import Lanes, Request, each_with_itself
from lazynet.covariance.planes import Planes, source, sum_over_pairs
from lazynet.covariance.pointwise import Covariance, total

__all__ = ["mean_over_pairs", "mean_over_positions", "summed_on_chip", "variances"]


def mean_over_positions(planes: Planes, lanes: Lanes) -> Covariance:
    """`1/(h w) sum_p S[p, p]` of each pair of images, `[groups, lanes]`: the limit of a Flatten head."""
    height, width = planes.shape
    if lanes.elsewhere is not None:
        return _elsewhere(planes, lanes, zero=True).map(lambda a: a / (height * width))

    def mean(a):
        return jnp.mean(a[:height, :width], axis=(0, 1))

    def group(g):
        request = _request(planes, lanes, g, single=True)
        plane = planes.build(request)
        at = request.at(0, 0)
        return guarded(lambda: plane(at.fresh()).map(mean), g)

    return _map_groups(group, planes, lanes.groups)


def mean_over_pairs(planes: Planes, lanes: Lanes, *, same: bool = False) -> Covariance:
    """`1/(h w)^2 sum_{p, p'} S[p, p']` of each pair of images, `[groups, lanes]`: the limit of a pooled head.

    On a GPU, networks that allow it keep each plane on the chip through all layers; on a CPU the
    compiled program of `cpu` may do it elsewhere.
    """
    on_gpu = jax.default_backend() == "gpu" and gpu.available()
    if lanes.elsewhere is not None:
        sums = _elsewhere(planes, lanes, same=same)
    elif on_gpu and gpu.fits(planes.chain, planes.canvas):
        sums = summed_on_chip(planes, lanes, same=same)
    else:
        sums = _summed(planes, lanes, same=same)
    area = math.prod(planes.shape)
    return sums.map(lambda a: a / area**2)


def summed_on_chip(
    planes: Planes, lanes: Lanes, *, same: bool = False, interpret: bool = False
) -> Covariance:
    """`sum_{p, p'} S[p, p']` by one GPU program (or step by step anywhere, to test it); derivatives layer by layer."""
    chain = cast(Chain, planes.chain)

    def by_layers(*arrays):
        return _summed(_restored(chain, *arrays), lanes, same=same)

    def by_program(*arrays):
        every = _restored(chain, *arrays)
        steps = cast(Chain, every.chain)
        sums = gpu.sum_over_pairs(
            steps, every.shape, every.canvas, lanes, same=same, interpret=interpret
        )
        # The program leaves out equal positions of images with themselves, which have exact values.
        return total([sums, _at_zero(every)]) if same else sums

    @jax.custom_jvp
    def summed(*arrays):
        if interpret:
            return by_program(*arrays)
        return lax.platform_dependent(*arrays, cuda=by_program, default=by_layers)

    summed.defjvp(lambda primals, tangents: jax.jvp(by_layers, primals, tangents))
    return summed(chain.images, chain.moments())


def _elsewhere(planes, lanes, *, zero=False, same=False):
    """`sum S[p, p']` over equal or all positions of each pair of images, by what evaluates it elsewhere."""
    if planes.covered is not None:
        # One position is left, whose covariance is a sum over all pairs of those before it.
        every, scale = planes.covered
        return _elsewhere(every, lanes, same=same).map(lambda a: scale**2 * a)
    evaluate = cast(Callable[..., Covariance], lanes.elsewhere)
    return evaluate(planes.chain, zero=zero, exact=_at_zero(planes) if same else None)


def _at_zero(planes):
    """The sums over equal positions of images with themselves, `[1, n]`."""
    return variances(planes).map(lambda a: jnp.sum(a, axis=(0, 1))[None])


def variances(planes: Planes, elsewhere: Callable[..., Covariance] | None = None) -> Covariance:
    """Plane d = 0 `[h, w, n]` of images with themselves; where it needs all others, by what evaluates them."""
    if planes.covered is not None and elsewhere is not None:
        each = each_with_itself()._replace(elsewhere=elsewhere)
        return _elsewhere(planes, each, same=True).map(lambda a: a[None])
    request = Request(
        planes.canvas, lambda a: a, lambda a: a, planes.dtype, same=True, single=True, zero=True
    )
    height, width = planes.shape
    plane = planes.build(request)
    return plane(request.at(0, 0)).map(lambda a: a[:height, :width])


def _summed(planes, lanes, *, same=False):
    """`sum_{p, p'} S[p, p']`, layer by layer."""

    def group(g):
        return sum_over_pairs(planes, _request(planes, lanes, g, same=same))

    return _map_groups(group, planes, lanes.groups)


def _restored(chain, images, moments):
    """The recipe of a chain on other arrays."""
    planes = source(*images)
    moments = iter(moments)
    for step in chain.steps:
        # A chain that fits the program has windows and pointwise steps alone.
        if isinstance(step, Swept):
            planes = planes.window(step.window)
        else:
            pairs = next(moments)
            before = [lambda own=own: own for own in pairs]
            after = [lambda own=own, op=step.op: op.exact(own) for own in pairs]
            planes = planes.pointwise(step.op, before, after)
    return planes


def _request(planes, lanes, g, *, single=False, same=False):
    def first(a):
        return lanes.first(a, g)

    def second(a):
        return lanes.second(a, g)

    return Request(
        planes.canvas, first, second, planes.dtype, same=same, single=single, zero=single
    )


def _map_groups(group, planes, groups):
    # Values are cached: first computed inside of the loop, they would be tracers of it.
    for compute in planes.needs:
        compute()
    return lax.map(group, jnp.arange(groups))
