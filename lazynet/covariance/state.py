"""What an infinite-width rule transforms: covariances between two sets of inputs and variances of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lazynet.typing import Array

__all__ = ["Kernel", "input_kernel"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kernel:
    """Covariances of one layer's activations between inputs x1 and x2, with the diagonals of each set beside them.

    Each rule maps the pair (x1, x2) and, by the same formula at correlation one, the pairs (x1, x1) and (x2, x2).
    So variances are never read off a rounded matrix, and the diagonal of a Gram matrix is exact.

    Attributes:
        nngp: `[n1, n2]`, E[z(x1) z(x2)] per feature.
        ntk: `[n1, n2]`, tangent kernel of all layers so far.
        nngp1, ntk1: `[n1]`, the same for the pairs (x1[i], x1[i]).
        nngp2, ntk2: `[n2]`, the same for the pairs (x2[j], x2[j]).
        features: Number of features of the finite network here (what `parameterization="standard"` depends on).
        gaussian: Whether the activations are Gaussian in the limit (after Dense or Conv, before a nonlinearity).
        fresh: Whether the last weights are this branch's own, so that sums with other branches are independent.
    """

    nngp: Array
    ntk: Array
    nngp1: Array
    ntk1: Array
    nngp2: Array
    ntk2: Array
    features: int = dataclasses.field(metadata={"static": True})
    gaussian: bool = dataclasses.field(default=False, metadata={"static": True})
    fresh: bool = dataclasses.field(default=False, metadata={"static": True})

    def replace(self, **changes) -> Kernel:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def without_nngp(self) -> Kernel:
        """The same tangent kernel for outputs that vanish at initialization."""
        zeros = {name: jnp.zeros_like(getattr(self, name)) for name in ("nngp", "nngp1", "nngp2")}
        return self.replace(**zeros)

    @staticmethod
    def sum_independent(kernels: Sequence[Kernel], paths: Sequence[str]) -> Kernel:
        """Covariances of a sum of independent branches: they add.

        Raises:
            ValueError: If more than one branch does not end in fresh weights, or one is not Gaussian.
        """
        stale = [path for k, path in zip(kernels, paths, strict=True) if not k.fresh]
        rough = [path for k, path in zip(kernels, paths, strict=True) if not k.gaussian]
        if rough or len(stale) > 1:
            raise ValueError(
                f"branches {rough or stale} do not end in a fresh Dense or Conv: their sum has no closed-form limit; "
                "end every branch in Dense or Conv (one shortcut of a Gaussian pre-activation is allowed)."
            )
        total = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]),
                             *[k.replace(features=0, fresh=True) for k in kernels])
        return total.replace(features=kernels[0].features, fresh=not stale)


def input_kernel(x1: Array, x2: Array) -> Kernel:
    """Covariances of the inputs `x1 x2^T / d`, with no tangents yet.

    Example:
        >>> input_kernel(jnp.eye(2), jnp.eye(2)).nngp.tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    d = x1.shape[-1]
    nngp = jnp.matmul(x1, x2.T, precision="highest") / d
    nngp1, nngp2 = jnp.sum(x1 * x1, -1) / d, jnp.sum(x2 * x2, -1) / d
    zeros = [jnp.zeros_like(value) for value in (nngp, nngp1, nngp2)]
    return Kernel(nngp, zeros[0], nngp1, zeros[1], nngp2, zeros[2], features=d)
