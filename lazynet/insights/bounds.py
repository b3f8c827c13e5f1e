"""Bounds of the generalization gap, and estimators of the test error, of trained, lazy and linearized networks.

Bounds hold for all distributions, and are far above any gap that is measured; what is compared is
how they order data sets and regimes. `kare`, and `dynamics.leave_one_out`, are estimates instead.
Distances of a lazy model are those of its variable `u = alpha (w - w0)`, so that the bounds of
`alpha h` have a limit for the linearized network.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Num

from lazynet import guards, trees
from lazynet.insights.layers import (
    WEIGHTS,
    Link,
    checked_chain,
    lipschitz,
    operator_norm,
    product,
    row_norms,
)
from lazynet.linalg import check_symmetric, psd_eigh, ridge_eigh
from lazynet.models.model import Model
from lazynet.typing import Array, ArrayLike, Key, Params

__all__ = [
    "NormProducts",
    "Rademacher",
    "kare",
    "kernel_complexity",
    "margins",
    "norm_products",
    "normalized_margins",
    "rademacher_ball",
    "spectral_complexity",
    "vc_bound",
]

EXACT = 12
"""Number of examples up to which all signs are gone through."""


class NormProducts(NamedTuple):
    """Products of norms over layers, divided by the squared margin: capacities, up to constants and logarithms over n.

    Attributes:
        l1_inf: `prod |A_i|_{1,inf}^2`, the largest sum of absolute values of a row.
        frobenius: `prod |A_i|_F^2`.
        spectral_l12: `prod |A_i|^2 (sum_i (|A_i'|_{2,1} / |A_i|)^{2/3})^3`.
        spectral_frobenius: `prod |A_i|^2 sum_i |A_i|_F^2 / |A_i|^2`.

    Example:
        >>> NormProducts(1.0, 2.0, 3.0, 4.0).frobenius
        2.0
    """

    l1_inf: float
    frobenius: float
    spectral_l12: float
    spectral_frobenius: float


class Rademacher(NamedTuple):
    """Empirical Rademacher complexity of a ball.

    Attributes:
        value: `B/n E sqrt(s' K s)` over signs s.
        standard_error: Of the value; 0 where all signs were gone through.
        bound: `B sqrt(tr K) / n`, which it never exceeds.

    Example:
        >>> Rademacher(0.9, 0.0, 1.0).bound
        1.0
    """

    value: float
    standard_error: float
    bound: float


def spectral_complexity(
    model: Model,
    params0: Params,
    displacement: Params,
    x: Num[ArrayLike, "n *inputs"],
    *,
    alpha: float | int = 1.0,
) -> float:
    """Spectral complexity `R = prod_i rho_i |A_i| (sum_i (|U_i'|_{2,1} / |A_i|)^{2/3})^{3/2}` of the model `alpha h`.

    A_i are the layers at `w0 + u/alpha` with operator norm |A_i|, rho_i the Lipschitz constants of
    activations and pools, U_i the layers' displacement u and `|U'|_{2,1}` the sum of the norms of
    its rows. At alpha = 1 this is the complexity of a network relative to w0; for a lazy model the
    factor alpha of the outputs cancels the 1/alpha of its displacement, and at alpha = inf what is
    left is the complexity of the layers at w0, of which u alone is trained.

    Args:
        model: Chain of Dense, Conv, pools and activations, without biases.
        params0: w0, the reference.
        displacement: u; the difference `w - w0` for a network, and w itself with a params0 of zeros
            for the complexity relative to zero.
        x: Inputs, whose shape the norms of convolutions depend on.
        alpha: Scale, in (0, inf].

    Raises:
        ValueError: If a layer has no known norm or a bias, weights differ in shape, alpha is not
            positive, or a layer is zero.
        TypeError: If `model` is no Model, or an argument no array.

    Example:
        >>> import jax.numpy as jnp
        >>> import lazynet as ln
        >>> w, zero = {"W": jnp.eye(2)}, {"W": jnp.zeros((2, 2))}
        >>> round(spectral_complexity(ln.Dense(2), zero, w, jnp.ones((1, 2))), 6)
        1.414214

    Source: Bartlett, Foster and Telgarsky (2017).
    """
    alpha = guards.number("alpha", alpha, above=0, or_inf=True)
    trees.check_same_structure(displacement, params0, name="displacement", expected="params0")
    guards.finite("displacement", displacement, "train to finite weights")
    weights = jax.tree.map(lambda w, u: _moved(w, u, alpha), params0, displacement)
    links = checked_chain("spectral_complexity", model, weights, x)
    moved = checked_chain("spectral_complexity", model, displacement, x)
    norms = [_size(link) for link in links]
    ratios = []
    for link, change, norm in zip(links, moved, norms, strict=True):
        if link.name in WEIGHTS:
            _check_no_biases(change)
            rows = np.sqrt(row_norms(link, change.params["W"], 2))
            ratios.append(rows.sum() / norm)
    return product(norms) * math.fsum(ratio ** (2 / 3) for ratio in ratios) ** 1.5


def margins(
    outputs: Float[ArrayLike, "n k"], labels: Int[ArrayLike, " n"]
) -> Float[np.ndarray, " n"]:
    """Margins `f(x)_y - max_{j != y} f(x)_j`: positive where the example is classified correctly.

    Args:
        outputs: Outputs, one column a class.
        labels: Classes from 0 to k - 1.

    Raises:
        ValueError: If there is one class only, or labels do not fit the outputs.
        TypeError: If an argument is no array of numbers.

    Example:
        >>> margins(np.array([[1.0, 0.5], [0.0, 2.0]]), np.array([0, 0])).tolist()
        [0.5, -2.0]
    """
    values = np.asarray(guards.numbers("outputs", outputs), np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(
            f"outputs has shape {values.shape}, expected [n, k] with k >= 2 classes: a margin is between two of them; "
            "of one output f with labels +-1 pass np.stack([-f, f], axis=1) / 2."
        )
    guards.finite("outputs", values)
    classes = checked_labels(labels, len(values), values.shape[1])
    rows = np.arange(len(values))
    others = values.copy()
    others[rows, classes] = -np.inf
    return values[rows, classes] - others.max(axis=1)


def normalized_margins(
    outputs: Float[ArrayLike, "n k"],
    labels: Int[ArrayLike, " n"],
    complexity: float | int,
    x: Num[ArrayLike, "n *inputs"],
) -> Float[np.ndarray, " n"]:
    """Margins over the complexity of the network and the size of the data, `m_i / (R |X| / n)`, |X|^2 = sum_i |x_i|^2.

    Their distribution orders data sets by difficulty, where margins by themselves grow with the
    norms of the weights.

    Args:
        outputs: Outputs, one column a class.
        labels: Classes.
        complexity: R, from `spectral_complexity`.
        x: The inputs.

    Raises:
        ValueError: If there is one class only, lengths differ, or the complexity or all inputs are
            zero.
        TypeError: If an argument is no array of numbers.

    Example:
        >>> normalized_margins(np.array([[1.0, 0.0]]), np.array([0]), 2.0, np.array([[3.0, 4.0]])).tolist()
        [0.1]

    Source: Bartlett, Foster and Telgarsky (2017).
    """
    complexity = guards.number(
        "complexity", complexity, above=0, fix="a network that did not move has none"
    )
    values = margins(outputs, labels)
    inputs = np.asarray(guards.numbers("x", x), np.float64)
    guards.same_length(outputs=np.asarray(outputs), x=inputs)
    guards.finite("x", inputs)
    size = float(np.linalg.norm(inputs.ravel()))
    if size == 0:
        raise ValueError(
            "x is zero, expected inputs of a positive norm: margins are divided by it."
        )
    return values * len(inputs) / (complexity * size)


def norm_products(
    model: Model, params: Params, x: Num[ArrayLike, "n *inputs"], margin: float | int
) -> NormProducts:
    """The products of norms that bounds are made of, side by side, each over the squared margin.

    Args:
        model: Chain of Dense, Conv, pools and activations, without biases.
        params: w.
        x: Inputs, whose shape the norms of convolutions depend on.
        margin: The margin that the training examples have.

    Raises:
        ValueError: If the margin is not positive, or a layer has no known norm, a bias, or is zero.
        TypeError: If `model` is no Model, or x no array.

    Example:
        >>> import jax.numpy as jnp
        >>> import lazynet as ln
        >>> products = norm_products(ln.Dense(2, 2**0.5), {"W": jnp.eye(2)}, jnp.ones((1, 2)), 1.0)
        >>> [round(value, 6) for value in products]
        [1.0, 2.0, 4.0, 2.0]

    Source: Arora, Ge, Neyshabur and Zhang (2018), section 5, where they are compared; Bartlett,
        Foster and Telgarsky (2017); Neyshabur, Bhojanapalli and Srebro (2018).
    """
    margin = guards.number(
        "margin", margin, above=0, fix="examples that are not separated have no bound"
    )
    links = checked_chain("norm_products", model, params, x)
    sizes = [_size(link) for link in links]
    spectral = product(sizes) ** 2
    sized = list(zip(links, sizes, strict=True))
    others = product(size for link, size in sized if link.name not in WEIGHTS)
    layers = [link for link in links if link.name in WEIGHTS]
    norms = [size for link, size in sized if link.name in WEIGHTS]
    rows = [row_norms(link, link.params["W"], 2) for link in layers]
    sums = [row_norms(link, link.params["W"], 1).max() for link in layers]
    frobenius = [float(row.sum()) for row in rows]
    # |A'|_{2,1} / |A|, and the stable rank |A|_F^2 / |A|^2.
    mixed = [np.sqrt(row).sum() / size for row, size in zip(rows, norms, strict=True)]
    stable = [value / size**2 for value, size in zip(frobenius, norms, strict=True)]
    l1_inf = product(float(value) ** 2 for value in sums) * others**2
    l12 = math.fsum(ratio ** (2 / 3) for ratio in mixed) ** 3
    return NormProducts(
        l1_inf=l1_inf / margin**2,
        frobenius=product(frobenius) * others**2 / margin**2,
        spectral_l12=spectral * l12 / margin**2,
        spectral_frobenius=spectral * math.fsum(stable) / margin**2,
    )


def rademacher_ball(
    kernel: Float[ArrayLike, "n1 n2"],
    radius: float | int,
    *,
    key: Key[Array, ""] | None = None,
    samples: int = 1000,
) -> Rademacher:
    """Empirical Rademacher complexity `B/n E sqrt(s' K s)` of an RKHS ball of radius B, s independent signs.

    How well functions of the ball fit random labels, which bounds the gap of all of them. All signs
    are gone through for up to 12 examples; more are drawn.

    Args:
        kernel: K, of the training inputs.
        radius: B >= 0.
        key: Draws the signs of more than 12 examples.
        samples: Number of draws, at least 2.

    Raises:
        ValueError: If the kernel is not symmetric and positive semi-definite, the radius is
            negative, or a key is missing.
        TypeError: If the kernel is no array of numbers.

    Example:
        >>> rademacher_ball(np.eye(4), 2.0)
        Rademacher(value=1.0, standard_error=0.0, bound=1.0)

    Source: Bartlett and Mendelson (2002).
    """
    radius = guards.number("radius", radius, at_least=0)
    samples = guards.count("samples", samples, at_least=2)
    matrix = np.asarray(guards.numbers("kernel", kernel), np.float64)
    eigen = psd_eigh(matrix)
    n = len(matrix)
    if n > EXACT and key is None:
        raise ValueError(
            f"rademacher_ball got {n} examples without key, expected the key that draws signs of more than {EXACT}."
        )
    if n <= EXACT:
        # Opposite signs have the same form: the first one stays.
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n - 1))).reshape(
            2 ** (n - 1), n - 1
        )
        signs = np.concatenate([np.ones((len(signs), 1)), signs], axis=1)
    else:
        draws = jax.random.rademacher(guards.key("key", key), (samples, n))
        signs = np.asarray(draws, np.float64)
    # s' K s = sum_i lambda_i (v_i . s)^2, which cannot be negative.
    forms = np.square(signs @ eigen.vectors) @ eigen.values
    values = radius / n * np.sqrt(forms)
    error = 0.0 if n <= EXACT else float(values.std(ddof=1) / math.sqrt(samples))
    bound = radius * math.sqrt(max(float(np.trace(matrix)), 0.0)) / n
    return Rademacher(float(values.mean()), error, bound)


def kernel_complexity(kernel: Float[ArrayLike, "n1 n2"], y: Float[ArrayLike, "n k"]) -> float:
    """Complexity of labels under a kernel, `sqrt(2 tr(Y' K^{-1} Y) / n)`, which bounds the error of two-layer networks.

    The theorem is that of two-layer ReLU networks with one output, inputs of norm one and trained
    first weights. For other networks and kernels the number is a score: it says how far functions
    of the RKHS must go to fit the labels.

    Args:
        kernel: K, of the training inputs, definite in its precision (float64 as a rule).
        y: Targets `[n, k]`.

    Raises:
        ValueError: If shapes do not fit, or the kernel is singular or no kernel.
        TypeError: If an argument is no array of numbers.

    Example:
        >>> kernel_complexity(2 * np.eye(2), np.array([[1.0], [1.0]]))
        1.0

    Source: Arora, Du, Hu, Li and Wang (2019).
    """
    targets = _checked_targets(y, kernel)
    eigen = ridge_eigh(kernel, 0.0)
    inverse = _inverse(eigen, 0.0)
    # `tr Y' K^{-1} Y = sum_i 1/lambda_i sum_k (v_i . y_k)^2`.
    return math.sqrt(2 * float(inverse @ _energies(eigen, targets)) / len(targets))


def kare(
    kernel: Float[ArrayLike, "n1 n2"], y: Float[ArrayLike, "n k"], *, ridge: float | int
) -> float:
    """Kernel alignment risk estimator, `1/n |G Y|^2 / (1/n tr G)^2` with `G = n (K + r I)^{-1}`, of the test error.

    Of the mean squared error `E |f - y|^2` of `dynamics.kernel_regression` with this ridge, from
    training data alone. It equals generalized cross-validation, and is no bound.

    Args:
        kernel: K, of the training inputs.
        y: Targets `[n, k]`.
        ridge: Absolute ridge r >= 0, as in `kernel_regression`.

    Raises:
        ValueError: If shapes do not fit, a ridge is negative, or K + ridge I is singular.
        TypeError: If an argument is no array of numbers.

    Example:
        >>> round(kare(np.eye(2), np.array([[1.0], [3.0]]), ridge=1.0), 6)
        5.0

    Source: Jacot, Simsek, Spadaro, Hongler and Gabriel (2020).
    """
    ridge = guards.number("ridge", ridge, at_least=0)
    targets = _checked_targets(y, kernel)
    eigen = ridge_eigh(kernel, ridge)
    inverse = _inverse(eigen, ridge)
    # The factors n of G cancel in the quotient.
    residual = float(np.square(inverse) @ _energies(eigen, targets))
    return residual / len(targets) / float(inverse.mean() ** 2)


def vc_bound(depth: int, weights: int) -> float:
    """The order of the VC dimension of ReLU networks, `W L log2 W`, for W weights in L layers; constants are left out.

    A network says something by it with more examples than that only, which none has: it is the
    bound that random labels make vacuous.

    Args:
        depth: L >= 1.
        weights: W >= 1.

    Raises:
        ValueError: If a number is below 1.
        TypeError: If it is no integer.

    Example:
        >>> vc_bound(2, 1024)
        20480.0

    Source: Bartlett, Harvey, Liaw and Mehrabian (2019).
    """
    depth = guards.count("depth", depth)
    weights = guards.count("weights", weights)
    return depth * weights * math.log2(weights)


def _moved(w, u, alpha):
    """`w0 + u / alpha` in the dtype of w0, rounded once."""
    return np.asarray(np.asarray(w, np.float64) + np.asarray(u, np.float64) / alpha, w.dtype)


def _size(link: Link) -> float:
    """Operator norm of a layer, or Lipschitz constant of what has no weights."""
    if link.name in ("parallel", "residual", "coupling", "symmetrize"):
        raise ValueError(
            f"layer {link.path} ({link.name}) is no link of a chain, expected Dense, Conv, pools and activations one "
            "after the other: the bounds are for products of matrices."
        )
    if link.name not in WEIGHTS:
        return lipschitz(link)
    _check_no_biases(link)
    norm = operator_norm(link)
    if norm == 0:
        raise ValueError(
            f"layer {link.path} ({link.name}) is zero, expected weights of a positive norm."
        )
    return norm


def _check_no_biases(link: Link) -> None:
    # In the standard parameterization those that start at zero, b_std=0, are trained nevertheless.
    trained = link.call["parameterization"] == "standard" and np.any(link.params.get("b", 0))
    if link.call["b_std"] or trained:
        raise ValueError(
            f"layer {link.path} ({link.name}) got b_std={link.call['b_std']}, expected None: the bounds are "
            "for networks without biases."
        )


def _inverse(eigen, ridge):
    """Eigenvalues of the inverse, after refusing a singular kernel."""
    fix = "compute it in float64, drop duplicate inputs, or pass a ridge where there is one"
    return eigen.regular_inverse_values(ridge, fix=fix)


def _energies(eigen, targets):
    """`sum_k (v_i . y_k)^2` of each eigenvector."""
    return np.square(eigen.vectors.T @ targets).sum(axis=1)


def _checked_targets(y: Any, kernel: Any) -> np.ndarray:
    check_symmetric(kernel)
    targets = np.asarray(guards.numbers("y", y), np.float64)
    if targets.ndim != 2 or len(targets) != len(kernel) or not targets.size:
        raise ValueError(
            f"y has shape {targets.shape}, expected [{len(kernel)}, k] for a kernel of {len(kernel)} examples: reshape "
            "scalar targets by y[:, None]."
        )
    guards.finite("y", targets)
    return targets


def checked_labels(
    labels: Any, n: int, classes: int | None = None, name: str = "labels"
) -> np.ndarray:
    """Labels as integers, after checking that there are n of them, within the classes where these are known."""
    values = guards.numbers(name, labels)
    if values.shape != (n,):
        raise ValueError(
            f"{name} has shape {values.shape}, expected ({n},), one class for each example."
        )
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(
            f"{name} has dtype {values.dtype}, expected integers: pass y.argmax(axis=1)."
        )
    if classes is not None and not ((values >= 0) & (values < classes)).all():
        raise ValueError(
            f"{name} has classes from {values.min()} to {values.max()}, expected 0 to {classes - 1}, one for each "
            "output."
        )
    return values
