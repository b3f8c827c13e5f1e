"""Rules of layers that need covariances of all pairs of positions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from lazynet.covariance.general.positions import BeyondPlanes, Positions, joint_masks
from lazynet.typing import Array

__all__ = [
    "axes_norm_rule",
    "dropout_rule",
    "fixed_rule",
    "join_rule",
    "local_rule",
    "permute_rule",
    "pick_rule",
    "product_rule",
    "routed_rule",
    "stack_rule",
]

Rule = Callable[[Any], Any]


def positions_only(name: str, k: Any) -> None:
    """Asks callers to begin again with `Positions` where a rule has got planes.

    Example:
        >>> from lazynet.covariance.general.positions import position_kernel
        >>> positions_only("Resize", position_kernel(jnp.ones((2, 5, 3))))
    """
    if not isinstance(k, Positions):
        raise BeyondPlanes(f"{name} needs covariances of all pairs of positions.")


def fixed_rule(
    name: str,
    layer: Callable[[Array], Array],
    *,
    missing: Callable[[Array], Array] | None = None,
    on_equal: Callable[[Array], Array] | None = None,
) -> Rule:
    """`Sigma' = A Sigma A'` and the same for Theta, for a layer without weights whose own function is A.

    Args:
        name: Of the layer.
        layer: `layer(x)` on `[n, *shape, c]`, linear, and the same for every channel.
        missing: Which outputs are missing, a function of the mask `[n, *shape, 1]`; by default
            those for which all that they are made of is.
        on_equal: What the layer does to variances, `[n, *shape, 1]`, if it does not mix positions.
    """

    def rule(k: Any) -> Positions:
        positions_only(name, k)
        # A may have negative entries, and covariances become negative then.
        k = k.replace(positive=False)

        def unseen(mask, _):
            if missing is not None:
                return missing(mask[..., None])[..., 0]
            # Missing where nothing that is there has a part in the output.
            return layer((~mask)[..., None].astype(k.nngp.dtype))[..., 0] == 0

        if k.diagonal and on_equal is not None:
            moved = k.mapped(lambda values, axes: _on_positions(on_equal, values, k.shape))
            return moved.masked(k.each_mask(unseen))
        return k.transported(name, lambda x, _: layer(x), unseen)

    return rule


def local_rule(rule: Rule) -> Rule:
    """The rule of a convolution with weights of its own at each position: different positions are independent."""

    def local(k: Any) -> Positions:
        positions_only("ConvLocal", k)
        shared = rule(k)
        if shared.diagonal:
            return shared
        size = math.prod(shared.shape)
        equal = jnp.eye(size, dtype=shared.nngp.dtype).reshape(*shared.shape, *shared.shape)

        def kept(values, axes):
            return values * jnp.expand_dims(equal, tuple(range(values.ndim - equal.ndim)))

        return shared.mapped(kept)

    return local


def axes_norm_rule(axes: Sequence[int], eps: float, *, across: bool = False) -> Rule:
    """`Sigma' = Sigma / sqrt(q q')` with variances plus eps averaged over axes of positions (and over examples).

    Args:
        axes: Axes of the positions, from 0 on.
        eps: Added to variances.
        across: Whether the mean is over examples too.
    """

    def rule(k: Any) -> Positions:
        positions_only("LayerNorm", k)
        if not k.gaussian:
            raise ValueError(
                "LayerNorm got activations that are not Gaussian in the infinite-width limit, expected "
                "pre-activations: put a Dense or Conv directly before LayerNorm."
            )
        over = (*((0,) if across else ()), *(1 + axis for axis in axes))
        present = [1.0 if mask is None else (~mask).astype(k.nngp.dtype) for mask in k.masks]

        def inverse(i):
            weights = jnp.broadcast_to(present[i], k.variances[i].shape)
            total = jnp.sum((k.variances[i] + eps) * weights, axis=over, keepdims=True)
            count = jnp.sum(weights, axis=over, keepdims=True)
            # One where nothing is there: the root of zero would make derivatives NaN.
            some = jnp.where(count > 0, total / jnp.maximum(count, 1), 1)
            return jnp.broadcast_to(jnp.where(count > 0, lax.rsqrt(some), 0), weights.shape)

        factors = [inverse(i) for i in (0, 1)]
        return k.with_sides(factors, lambda values, rows, columns: values * rows * columns)

    return rule


def dropout_rule(keep: float) -> Rule:
    """What an example has with itself at equal positions times 1/keep; inputs are kept with that probability."""

    def rule(k: Any) -> Positions:
        positions_only("Dropout", k)
        # `E (m / keep)^2 = 1 / keep` for a mask m; those of different entries are independent.
        return k.with_equal_scaled(1 / keep).replace(gaussian=False)

    return rule


def product_rule(kernels: Sequence[Any]) -> Positions:
    """`Sigma' = prod_b Sigma_b`, `Theta' = sum_b Theta_b prod_{c != b} Sigma_c` for independent branches."""
    positions_only("FanInProd", kernels[0])
    _check_own("FanInProd", kernels)
    head = kernels[0]
    tangents = []
    for i, k in enumerate(kernels):
        if k.ntk is not None:
            others = [other.nngp for j, other in enumerate(kernels) if j != i]
            tangents.append(functools.reduce(jnp.multiply, others, k.ntk))

    def own(i):
        return functools.reduce(jnp.multiply, [k.own[i] for k in kernels])

    first = own(0)
    product = head.replace(
        nngp=functools.reduce(jnp.multiply, [k.nngp for k in kernels]),
        ntk=functools.reduce(jnp.add, tangents) if tangents else None,
        own=(first, first if head.own[0] is head.own[1] else own(1)),
        gaussian=len(kernels) == 1 and head.gaussian,
        fresh=all(k.fresh for k in kernels),
        positive=all(k.positive for k in kernels),
    )
    return product.masked(joint_masks(kernels))


def join_rule(kernels: Sequence[Any], axis: int) -> Positions:
    """`Sigma' = sum_b E_b Sigma_b E_b'` for independent branches one behind the other along an axis of positions.

    E_b puts the positions of branch b at their place among zeros.
    """
    positions_only("FanInConcat", kernels[0])
    _check_gaussian(kernels, "an axis of positions")
    _check_own("FanInConcat", kernels)
    sizes = [k.shape[axis] for k in kernels]
    some_missing = any(mask is not None for k in kernels for mask in k.masks)
    placed = []
    for i, k in enumerate(kernels):
        widths = [(0, 0)] * (2 + len(k.shape))
        widths[1 + axis] = (sum(sizes[:i]), sum(sizes[i + 1 :]))
        put = functools.partial(jnp.pad, pad_width=widths)
        unseen = functools.partial(put, constant_values=True)
        if some_missing:
            # None stands for all there, and has no place for what lies beyond a branch.
            none = [jnp.zeros(variance.shape, bool) for variance in k.variances]
            k = k.replace(masks=tuple(none[j] if m is None else m for j, m in enumerate(k.masks)))
        moved = fixed_rule("FanInConcat", put, missing=unseen)(k)
        placed.append(moved.replace(fresh=True))
    joined = type(placed[0]).sum_independent(placed, [""] * len(placed))
    return joined.replace(
        fresh=all(k.fresh for k in kernels), positive=all(k.positive for k in kernels)
    )


def _check_gaussian(kernels, along):
    """Refuses branches that cannot be joined along anything but channels."""
    rough = [i for i, k in enumerate(kernels) if not k.gaussian]
    if rough:
        raise ValueError(
            f"FanInConcat got branches {rough} that are not Gaussian along {along}, expected all to end in Dense or "
            "Conv: end them so, or join channels (axis=-1)."
        )


def _check_own(name, kernels):
    """Refuses branches that depend on each other by what they share."""
    shared = [i for i, k in enumerate(kernels) if not k.fresh]
    if len(shared) > 1:
        raise ValueError(
            f"{name} got branches {shared} without weights of their own, expected at most one such branch: what "
            "they share makes them depend on each other, and the rule is for independent ones. Begin each branch with "
            "a Dense or Conv, and end it with one where it forks again."
        )


def stack_rule(kernels: Sequence[Any]) -> Positions:
    """Covariances of the examples of independent branches one behind the other: blocks on the diagonal."""
    positions_only("FanInConcat", kernels[0])
    _check_gaussian(kernels, "the examples")
    _check_own("FanInConcat", kernels)

    def blocks(values):
        rows = []
        for i, value in enumerate(values):
            others = [jnp.zeros((len(value), v.shape[1], *v.shape[2:]), v.dtype) for v in values]
            rows.append(jnp.concatenate([*others[:i], value, *others[i + 1 :]], axis=1))
        return jnp.concatenate(rows)

    head = kernels[0]
    # Branches without trained weights beside others with them.
    zeros = [jnp.zeros_like(k.nngp) if k.ntk is None else k.ntk for k in kernels]

    def own(i):
        values = [k.own[i] for k in kernels]
        return blocks(values) if head.whole else jnp.concatenate(values)

    def mask(i):
        masks = [k.masks[i] for k in kernels]
        if all(m is None for m in masks):
            return None
        none = [jnp.zeros(k.variances[i].shape, bool) for k in kernels]
        return jnp.concatenate([n if m is None else m for m, n in zip(masks, none, strict=True)])

    first = own(0)
    return head.replace(
        nngp=blocks([k.nngp for k in kernels]),
        ntk=None if all(k.ntk is None for k in kernels) else blocks(zeros),
        own=(first, first if head.own[0] is head.own[1] else own(1)),
        masks=(mask(0), mask(1)),
        fresh=all(k.fresh for k in kernels),
        positive=all(k.positive for k in kernels),
    ).checked()


def permute_rule(order: Sequence[int]) -> Rule:
    """Covariances with the axes of positions in another order."""

    def rule(k: Any) -> Positions:
        positions_only("Conv", k)

        def moved(values, axes):
            # All axes of the first partner, and then all of the second.
            groups = list(zip(*axes, strict=True))
            lead = range(groups[0][0])
            return jnp.transpose(values, (*lead, *(group[i] for group in groups for i in order)))

        masks = k.each_mask(lambda mask, _: jnp.transpose(mask, (0, *(1 + i for i in order))))
        return k.mapped(moved).replace(masks=masks)

    return rule


def routed_rule(name: str, layer: Callable[[Array, Any], Array]) -> Rule:
    """`Sigma' = A Sigma B'` for a layer that is another one for each example, told by `pattern`.

    Args:
        name: Of the layer.
        layer: `layer(x, pattern)` on `[n, *shape, c]`, linear, and the same for every channel.
    """

    def rule(k: Any) -> Positions:
        positions_only(name, k)
        patterns = k.context.get("pattern") or (None, None)
        if not isinstance(patterns, (tuple, list)) or len(patterns) != 2:
            raise ValueError(
                f"{name} got a pattern of type {type(patterns).__name__}, expected a pair, one for each set of inputs."
            )
        if patterns[0] is None and patterns[1] is None:
            return k
        if any(pattern is None for pattern in patterns):
            raise ValueError(
                f"{name} got one pattern, expected two or none: give the second set of inputs one too."
            )
        if patterns[0] is not patterns[1]:
            # Two patterns make two sets of one, which is known by identity: so a copy.
            k = k.replace(same=False, own=(k.own[0], jnp.array(k.own[1])))
        moved = k.transported(name, lambda x, i: layer(x, patterns[i]), lambda mask, _: mask)
        # Weights of edges may be negative.
        return moved.replace(positive=False)

    return rule


def pick_rule(examples: Any, positions: Callable[[Array], Array]) -> Rule:
    """Covariances of chosen examples and positions: `Sigma' = A Sigma A'` with rows of the identity."""
    rule = fixed_rule("Index", positions, missing=positions, on_equal=positions)

    def chosen(k: Any) -> Positions:
        positions_only("Index", k)
        return rule(k.of_examples(examples)).replace(positive=k.positive)

    return chosen


def _on_positions(function, values, shape):
    """A function of `[n, *shape, 1]` on the last axes of an array."""
    flat = values.reshape(-1, *shape, 1)
    done = function(flat)[..., 0]
    return done.reshape(*values.shape[: values.ndim - len(shape)], *done.shape[1:])
