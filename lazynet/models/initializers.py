"""Other draws of the initial weights of a network, with the same function of weights and inputs."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lazynet import guards
from lazynet.models.model import Model
from lazynet.recipes import recipe
from lazynet.typing import Params

__all__ = ["xavier_normal"]


@recipe
def xavier_normal(model: Model, gain: float | int = 1.0) -> Model:
    """The same network with weights drawn from `N(0, 2 gain^2 / (n_in + n_out))` and zero biases.

    `n_in` and `n_out` are the fan-in and the fan-out: channels times the entries of the filter. The
    weights themselves have this variance and layers compute `W x + b`, as most training codes do:
    make the model with `parameterization="standard"`. In the NTK parameterization the layers
    multiply by W_std / sqrt(n_in) once more, and these draws would belong to no known network.

    Args:
        model: Network of Dense and Conv layers in the standard parameterization, for instance
            `zoo.vgg11(parameterization="standard")`; its W_std and b_std no longer matter.
        gain: Factor of all standard deviations.

    Returns:
        The model with another `init` and no infinite-width rule: the rules of its layers are those
        of W_std.

    Raises:
        ValueError: If the gain is not positive; when drawn, if a layer has parameters other than W
            and b, or the two halves of a doubled model would be drawn apart.

    Example:
        >>> import lazynet as ln
        >>> model = xavier_normal(ln.Dense(600, b_std=0.0, parameterization="standard"))
        >>> params = model.init(jax.random.key(0), jnp.ones((1, 200)))
        >>> round(float(jnp.std(params["W"])), 3), float(jnp.max(jnp.abs(params["b"])))
        (0.05, 0.0)

    Source: Glorot and Bengio (2010), equation 16, with normal draws.
    """
    gain = guards.number("xavier_normal gain", gain, above=0)

    def init(key: Any, x: Any) -> Params:
        shapes, tree = jax.tree_util.tree_flatten_with_path(jax.eval_shape(model.init, key, x))
        _check_not_doubled([path for path, _ in shapes])
        leaves = []
        for i, (path, shape) in enumerate(shapes):
            leaves.append(_drawn(jax.random.fold_in(key, i), path, shape, gain))
        return tree.unflatten(leaves)

    return model._replace(init=init, kernel=None)


def _check_not_doubled(paths):
    names = [f"/{jax.tree_util.keystr(path, simple=True, separator='/')}" for path in paths]
    for name in names:
        if "/plus/" in name and name.replace("/plus/", "/minus/") in names:
            raise ValueError(
                f"xavier_normal got {name[1:]} and its copy in minus, expected one network, of which a doubled one has "
                "two equal halves: use symmetrize(xavier_normal(model))."
            )


def _drawn(key, path, shape, gain):
    name = getattr(path[-1], "key", None)
    if name == "b":
        return jnp.zeros(shape.shape, shape.dtype)
    if name != "W":
        raise ValueError(
            f"xavier_normal got the parameter {jax.tree_util.keystr(path)}, expected only W and b: "
            "draw the weights of other layers by their own init."
        )
    # Entries of the filter times (c_in + c_out): n_in + n_out.
    fans = math.prod(shape.shape[:-2]) * sum(shape.shape[-2:])
    return jax.random.normal(key, shape.shape, shape.dtype) * (gain * math.sqrt(2 / fans))
