"""Distances between two states of one network: of weights, of tangent kernels, of outputs from the linearization."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from lazynet import guards, trees
from lazynet.kernels.empirical import ntk_vector_product
from lazynet.lazy import check_displacement, linearize
from lazynet.parameters import Where
from lazynet.programs import PerFunction, shape_of
from lazynet.signatures import Output, flat
from lazynet.typing import Apply, Array, ArrayLike, Key, Params, Scalar

__all__ = ["layer_drift", "linearization_gap", "ntk_change", "output_gap", "param_drift"]


def param_drift(params: Params, params0: Params, *, relative: bool = True) -> Float[Scalar, ""]:
    """Drift of the weights `|w - w0| / |w0|`, Euclidean norms over all leaves.

    The first sign of lazy training: it falls like 1/alpha. For a `lazy` function, pass
    `weights(lazy_apply, u)`, or `u` and zeros with `relative=False` for the norm of the
    displacement u.

    Args:
        params: w.
        params0: w0.
        relative: Whether to divide by `|w0|`.

    Raises:
        TypeError: If a leaf is no array of numbers.
        ValueError: If the trees differ in structure or shapes, or have no entries.

    Example:
        >>> float(param_drift({"w": jnp.array([3.0, 5.0])}, {"w": jnp.array([3.0, 4.0])}))
        0.2...

    Source: Chizat, Oyallon and Bach (2019), theorem 2.2, for the rate.
    """
    _check_weights(params, params0)
    weights, weights0 = _weights_of_both(params, params0)
    drift = trees.norm(trees.subtract(weights, weights0))
    return drift / trees.norm(weights0) if relative else drift


def layer_drift(
    params: Params, params0: Params, *, relative: bool = True
) -> dict[str, Float[Scalar, ""]]:
    """Drift `|w_l - w0_l| / |w0_l|` of each layer l.

    In the NTK parameterization, hidden layers of a wide network drift less than the first and the
    last.

    Args:
        params: w.
        params0: w0.
        relative: Whether to divide by the norm of the layer's initial weights (infinite where that
            is zero, NaN where the layer has not moved from zero).

    Returns:
        The drift by the path of the layer, such as `"0_Dense"`, the names of `Model.trace`.

    Raises:
        TypeError: If a leaf is no array of numbers.
        ValueError: If the trees differ in structure or shapes, or have no entries.

    Example:
        >>> start = {"0_Dense": {"W": jnp.ones(4)}, "2_Dense": {"W": jnp.ones(1)}}
        >>> end = {"0_Dense": {"W": jnp.ones(4)}, "2_Dense": {"W": jnp.array([3.0])}}
        >>> {layer: float(drift) for layer, drift in layer_drift(end, start).items()}
        {'0_Dense': 0.0, '2_Dense': 2.0}
    """
    _check_weights(params, params0)
    layers = _by_layer(params)
    layers0 = _by_layer(params0)
    return {
        name: param_drift(leaves, layers0[name], relative=relative)
        for name, leaves in layers.items()
    }


def output_gap(
    outputs: Num[ArrayLike, "..."], reference: Num[ArrayLike, "..."]
) -> Float[Scalar, ""]:
    """Gap between outputs, `rms(f - g) / rms(g)` over examples and outputs.

    With f the outputs of a network trained for some time and g those of its linearization trained
    in the same way, this is the linearization gap at own weights.

    Args:
        outputs: f.
        reference: g.

    Raises:
        TypeError: If they are no arrays of real numbers.
        ValueError: If the shapes differ, or if there is no output.

    Example:
        >>> float(output_gap(jnp.array([[1.0], [3.0]]), jnp.array([[2.0], [2.0]])))
        0.5

    Source: Chizat, Oyallon and Bach (2019), theorem 2.2, for its rate 1/alpha.
    """
    outputs = guards.real("outputs", outputs)
    reference = guards.real("reference", reference)
    if outputs.shape != reference.shape or outputs.size == 0:
        raise ValueError(
            f"outputs of shape {outputs.shape} and reference of shape {reference.shape}, expected the "
            "same, not empty: evaluate both on the same inputs."
        )
    return trees.norm(outputs - reference) / trees.norm(reference)


def linearization_gap(
    apply: Apply, params: Params, params0: Params, x: Any, *, output: Output = None
) -> Float[Scalar, ""]:
    """Gap at the same weights, `rms(h(w) - hbar(w)) / rms(hbar(w))`, with `hbar(w) = h(w0) + Dh(w0) (w - w0)`.

    It measures what the tangent at w0 misses on the way to w. For a model that is not zero at
    initialization, `center(apply, params0)` makes the gap relative to the change of the outputs.

    Args:
        apply: Model h, or a `lazy` function, whose params0 is zero.
        params: w.
        params0: w0.
        x: Inputs.
        output: Which of the outputs of apply, by `select`.

    Raises:
        TypeError: If the weights are not floating point.
        ValueError: If the trees differ in structure or shapes, or if there is no example.

    Example:
        >>> float(linearization_gap(lambda w, x: x * w**2, jnp.array(1.5), jnp.array(1.0), jnp.ones((1, 1))))
        0.125
    """
    _check_weights(params, params0)
    guards.weights("params", params)
    guards.weights("params0", params0)
    _check_kinds(params, params0)
    check_displacement(apply, params0, "params0")
    guards.inputs("x", x)
    function = flat(apply, x, output)
    guards.same_length(outputs=shape_of(function, params, x))
    return _gap(function, params, params0, x)


def ntk_change(
    apply: Apply,
    params: Params,
    params0: Params,
    x: Any,
    *,
    key: Key[Array, ""],
    probes: int = 20,
    output: Output = None,
    where: Where | None = None,
) -> Float[Scalar, ""]:
    """Relative change of the tangent kernel `|Theta(w) - Theta(w0)|_F / |Theta(w0)|_F`, without forming it.

    Both squared norms are means of `|A v|^2` over the same Gaussian vectors v, which have the
    expectation `|A|_F^2`: two products with kernels a probe, whatever their size. For small
    kernels, `kernel_distance` is exact.

    Args:
        apply: Model h, or a `lazy` function.
        params: w.
        params0: w0.
        x: Examples of the kernel.
        key: Draws the probes.
        probes: Number of vectors v; the relative error is of the order of `1 / sqrt(probes)`, often
            less.
        output: Which of the outputs of apply, by `select`.
        where: The kernel of which parameters, as in `empirical_ntk`.

    Raises:
        TypeError: If the weights are not floating point.
        ValueError: If the trees differ in structure or shapes, if there is no example, or if
            `probes` is below 1.

    Example:
        >>> square = lambda w, x: x * w**2
        >>> round(float(ntk_change(square, jnp.array(2.0), jnp.array(1.0), jnp.ones((3, 1)), key=jax.random.key(0))), 4)
        3.0

    Source: Hutchinson (1990), the stochastic trace estimator, for `tr A'A`.
    """
    _check_weights(params, params0)
    guards.weights("params", params)
    guards.weights("params0", params0)
    _check_kinds(params, params0)
    probes = guards.count("probes", probes)
    function = flat(apply, x, output)
    product = ntk_vector_product(function, params, x, where=where)
    product0 = ntk_vector_product(function, params0, x, where=where)
    outputs = shape_of(function, params, x)
    guards.same_length(outputs=outputs)
    changes = []
    sizes = []
    # |A|_F^2 is the mean of |A v|^2 over normal vectors v.
    for probe in jax.random.split(key, probes):
        v = jax.random.normal(probe, outputs.shape, outputs.dtype)
        before = product0(v)
        # The difference acts on v: that of two estimates would lose small changes in their errors.
        changes.append(trees.norm(product(v) - before))
        sizes.append(trees.norm(before))
    return trees.norm(jnp.stack(changes)) / trees.norm(jnp.stack(sizes))


def _check_weights(params: Params, params0: Params) -> None:
    """Two trees of numbers of one structure, with entries; their values may be anything, which the norms pass on."""
    for name, tree in (("params", params), ("params0", params0)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not isinstance(leaf, (int, float)) and not trees.is_key(leaf):
                guards.array(f"{name}{jax.tree_util.keystr(path)}", leaf)
    trees.check_same_structure(params, params0, name="params", expected="params0")
    if not sum(jnp.size(leaf) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            "params got no arrays with entries, expected weights: of a Model pass model.init(key, x)."
        )


def _check_kinds(params: Params, params0: Params) -> None:
    """Refuses complex weights beside real ones, of which there is no displacement within the same space."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(params0), strict=True)
    for (path, leaf), other in pairs:
        if trees.is_complex(leaf) != trees.is_complex(other):
            place = jax.tree_util.keystr(path)
            raise TypeError(
                f"params{place} has dtype {jnp.result_type(leaf)} and params0{place} {jnp.result_type(other)}, "
                "expected real ones both, or complex ones: take both of one model."
            )


def _weights_of_both(params: Params, params0: Params) -> tuple[list[Any], list[Any]]:
    """Leaves that are weights in one of the trees; of whole numbers alone, all of them."""
    pairs = list(zip(jax.tree.leaves(params), jax.tree.leaves(params0), strict=True))
    weights = [pair for pair in pairs if any(map(trees.is_weight, pair))]
    chosen = weights or [pair for pair in pairs if not trees.is_key(pair[0])]
    return [a for a, _ in chosen], [b for _, b in chosen]


@PerFunction
def _gap(function: Apply, params: Params, params0: Params, x: Any) -> Array:
    return output_gap(function(params, x), linearize(function, params0)(params, x))


def _by_layer(params: Params) -> dict[str, list[Array]]:
    """Leaves grouped by the path of the node that holds them."""
    layers: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        # Without the last key, the name of the weight in its layer.
        name = jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        layers.setdefault(name, []).append(leaf)
    return layers
