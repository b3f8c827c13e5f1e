"""What training does inside: how far layers move, and how little the last one keeps besides the outputs."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float, Num

from lazynet import guards, trees
from lazynet.models.model import Model
from lazynet.programs import PerFunction
from lazynet.typing import Array, ArrayLike, Params, Scalar

__all__ = ["coordinate_check", "richness"]


def coordinate_check(
    model: Model, params: Params, params0: Params, x: Num[ArrayLike, "n *inputs"]
) -> dict[str, Float[Scalar, ""]]:
    """Change of an entry of each layer's output `rms(z_l(w) - z_l(w0))` over examples and units.

    Against the width m, after a few steps, its slope tells the scaling: of hidden layers at
    `alpha = m^-r` in the NTK parameterization it is `r - 1/2`, -1/2 for NTK scaling (lazy), 0 for
    mean field and muP (features are learned at every width). A slope above 0 is one that explodes.

    Args:
        model: Network; its `trace` has the layers.
        params: w, such as `weights(f, u)` of a lazy function.
        params0: w0.
        x: Inputs.

    Returns:
        By the path in `Model.trace`, of layers with weights; of the last one it is the change of the
        outputs.

    Raises:
        TypeError: If `model` is no Model, or x no array.
        ValueError: If the weights differ in structure or shapes, there is no example, or no layer
            has weights.

    Example:
        >>> import lazynet as ln
        >>> model = ln.serial(ln.Dense(4), ln.Relu(), ln.Dense(1))
        >>> params0 = model.init(jax.random.key(0), jnp.ones((1, 3)))
        >>> {path: float(moved) for path, moved in coordinate_check(model, params0, params0, jnp.ones((1, 3))).items()}
        {'0_Dense': 0.0, '2_Dense': 0.0}

    Source: Yang, Hu et al. (2022), Tensor programs V, for the check.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"coordinate_check got {model!r}, expected a Model: a check needs its layers."
        )
    guards.same_length(x=guards.array("x", x))
    trees.check_same_structure(params, params0, name="params", expected="params0")
    # One program for both, so that what has not moved is zero.
    trace = Partial(model.trace)
    after = _preactivations(trace, params, x)
    before = _preactivations(trace, params0, x)
    if not after:
        raise ValueError(f"{model.name} has no layer with weights, expected one that can move.")
    # A single layer has the empty path in its own trace.
    return {
        path or model.name: jnp.sqrt(jnp.mean((z - before[path]) ** 2)) for path, z in after.items()
    }


@PerFunction
def _preactivations(trace: Partial, params: Params, x: Array) -> dict[str, Array]:
    _, inside = trace(params, x)
    preactivations = {path: z for path, (_, z) in inside.items() if _has_weights(params, path)}
    # Squares of float16 begin at 6e-8 and end at 65,504.
    return trees.widened(preactivations)


def _has_weights(params: Params, path: str) -> bool:
    """Whether a layer of `Model.trace` has weights: their names are the parts of its path."""
    node = params
    for name in path.split("/") if path else ():
        if not isinstance(node, Mapping) or name not in node:
            return False
        node = node[name]
    return bool(jax.tree.leaves(node))


def richness(features: Num[ArrayLike, "n w"], outputs: Num[ArrayLike, "n k"]) -> float:
    """How much of the last layer's inputs is what the outputs need, `CKA(F F', P)`, P the projection on the outputs.

    P projects on the span of the centered outputs over examples. In the rich regime the features F
    of the last hidden layer keep these directions, equally, and lose all others: 1. Lazy features
    stay as they were drawn, with many directions that no output uses: far below. It needs one
    forward pass, and does not ask how well the network predicts; neural collapse is the case of 1.
    Compare networks of one number of outputs.

    The paper's measure is `D_LR = 1 - CKA(F F', a_1 11' + a_2 Q)`, Q the projection on the span of
    the outputs as they are. CKA does not see the constants, and this is 1 minus it where outputs
    have mean zero, or constants are in their span, as of probabilities. Elsewhere Q would weigh one
    direction by the mean of the outputs, which no bias of a last layer should change.

    Args:
        features: F, inputs of the last layer: of layers, `model.trace(params, x)[1][path][0]`.
        outputs: Of the network, on the same examples.

    Returns:
        Between 0 and 1.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If they differ in the number of examples, are not finite, or constant over them.

    Example:
        >>> outputs = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(richness(outputs @ np.ones((2, 4)) + outputs[:, :1], outputs), 6)
        1.0

    Source: Nam et al. (2024), decoupling dynamical richness from representation learning,
    arXiv 2410.04264, definition 1 and the measure after it; compared with two published summaries of
    them, not with the paper's own code.
    """
    features = _centered("features", features)
    outputs = _centered("outputs", outputs)
    guards.same_length(features=features, outputs=outputs)
    basis, sizes, _ = np.linalg.svd(outputs, full_matrices=False)
    # Outputs mostly come from float32, whose rounding would count as directions.
    rounding = np.finfo(np.float32).eps * max(outputs.shape)
    basis = basis[:, sizes > rounding * sizes[0]]
    # P = U U' and |P|_F^2 is the number of its directions, so that <F F', P> = |U' F|^2.
    inside = np.sum((basis.T @ features) ** 2)
    # |F F'|_F by the smaller of the two Gram matrices.
    wide = features.shape[1] > len(features)
    gram = features @ features.T if wide else features.T @ features
    return float(inside / np.linalg.norm(gram) / np.sqrt(basis.shape[1]))


def _centered(name: str, values: ArrayLike) -> np.ndarray:
    """In float64, without the means over examples, of a size around one."""
    array = np.asarray(guards.numbers(name, values), np.float64)
    guards.finite(name, array)
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"{name} has shape {array.shape}, expected [n, ...] as a matrix, not empty."
        )
    largest = np.abs(array).max()
    centered = (array - array.mean(axis=0)) / (largest or 1.0)
    # Of a constant, the rounding of its mean is left.
    if np.linalg.norm(centered) <= 1e-12:
        raise ValueError(f"{name} is constant over the examples, expected one that varies.")
    return centered
