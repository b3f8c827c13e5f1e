"""The heads: ridge and logistic regression, kernels, and multilayer perceptrons trained from standard to linearized."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lazynet as ln
from experiments.shared import ridge
from lazynet import datasets, dynamics, empirical, kernels, linalg, zoo
from lazynet.records import Data

__all__ = ["Problem", "all_images", "head", "head_names", "principal_components"]

MOMENTUM = 0.9


class Problem(NamedTuple):
    """Principal components as rows of mean squared length one, with centered one-hot targets."""

    train: Data
    test: Data


def head_names(config) -> list[str]:
    """Rows of the table: without prior features, on them, and with training on top."""
    trained = [f"mlp/alpha={alpha:g}" for alpha in config.mlp.alphas]
    return ["pixels/ridge", "pixels/ntk", "ridge", "logistic", "rbf", "ntk", *trained]


def head(config, name: str, problem: Problem, key) -> dict[str, Any]:
    """Test accuracy of one head, and what was chosen for it on the training set."""
    if name == "logistic":
        return _logistic(config, problem)
    if name.startswith("mlp/"):
        return _perceptron(config, float(name.partition("=")[2]), problem, key)
    return _kernel_ridge(config, problem, *KERNELS[name.removeprefix("pixels/")](config, problem))


def principal_components(config, train: Data, test: Data) -> Problem:
    """Features minus their mean over the training set, on its leading principal components.

    All components that n training examples have are kept, up to a limit, so that small sets lose
    nothing.
    """
    rows = np.asarray(train.x, np.float32).reshape(len(train.x), -1)
    others = np.asarray(test.x, np.float32).reshape(len(test.x), -1)
    center = rows.mean(0)
    rows = rows - center
    others = others - center
    # Centered rows of n examples span n - 1 dimensions; the Gram matrix has the same components as
    # the covariance, which is larger.
    values, vectors = _leading(rows @ rows.T, min(config.components, len(rows) - 1))
    scale = np.sqrt(values)
    unit = math.sqrt(np.square(scale).sum() / len(rows))
    x = vectors * scale / unit
    # With rows = V S U' the directions are U = rows' V / S, which are not formed.
    x_test = (others @ rows.T) @ vectors / scale / unit
    centered = map(datasets.center_targets, (Data(x, train.y), Data(x_test, test.y)))
    return Problem(*jax.tree.map(lambda a: np.asarray(a, np.float32), tuple(centered)))


def _leading(gram: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues with their vectors, from a random range if they are few."""
    if len(gram) > 2 * count:
        from sklearn.utils.extmath import randomized_svd

        vectors, values, _ = randomized_svd(gram, count, n_iter=3, random_state=0)
        return values, vectors
    eigen = linalg.psd_eigh(gram)
    count = min(count, int((eigen.values > eigen.tolerance).sum()))
    # Eigenvalues ascend: the last ones, the largest first.
    return eigen.values[: -1 - count : -1], eigen.vectors[:, : -1 - count : -1]


def _linear(config, problem: Problem):
    """`x . x' + 1`; without a constant, leaving one out of centered rows would be no test: they sum to zero."""
    x = problem.train.x
    x_test = problem.test.x
    return x @ x.T + 1, x_test @ x.T + 1


def _rbf(config, problem: Problem):
    """`exp(-|x - x'|^2 / (2 median))`, median of the squared distances of training examples."""
    squares = _squared_distances(problem.train.x, problem.train.x)
    across = _squared_distances(problem.test.x, problem.train.x)
    # Each pair once, without the zeros of the diagonal.
    scale = 2 * np.median(squares[np.triu_indices(len(squares), 1)])
    return np.exp(-squares / scale), np.exp(-across / scale)


def _squared_distances(a, b):
    norms = np.square(a).sum(1)[:, None] + np.square(b).sum(1)
    # Rounding makes the distance of equal rows negative.
    return np.maximum(norms - 2 * a @ b.T, 0)


def _ntk(config, problem: Problem):
    """The tangent kernel of the infinitely wide perceptron."""
    x = jnp.asarray(_unit_pixels(problem.train.x))
    x_test = jnp.asarray(_unit_pixels(problem.test.x))
    model = _model(config)
    return kernels.analytic_kernel(model, x).ntk, kernels.analytic_kernel(model, x_test, x).ntk


KERNELS = {"ridge": _linear, "rbf": _rbf, "ntk": _ntk}


def _kernel_ridge(config, problem: Problem, kernel, cross) -> dict[str, Any]:
    """Kernel ridge regression; the ridge, relative to the mean diagonal, has the best leave-one-out accuracy."""
    kernel = np.asarray(kernel, np.float64)
    ridges = np.mean(np.diag(kernel)) * np.asarray(config.ridges)
    # One decomposition serves all ridges and the predictions.
    eigen = linalg.psd_eigh(kernel)
    best = _best(ridge.left_out_accuracies(eigen, problem.train, ridges))
    outputs = dynamics.kernel_regression(
        eigen, problem.train, cross=np.asarray(cross), ridge=float(ridges[best])
    )
    accuracy = ridge.accuracy(outputs, problem.test.y)
    return ridge.chosen(config.ridges, best) | {"accuracy": accuracy}


def _logistic(config, problem: Problem) -> dict[str, Any]:
    """Multinomial logistic regression; its penalty is the best of the same ridges on a fifth of the training set."""
    from sklearn.linear_model import LogisticRegression

    x = problem.train.x
    y = problem.train.y.argmax(1)
    x_test = problem.test.x
    y_test = problem.test.y.argmax(1)
    held = len(x) // 5

    def fitted(penalty, x, y):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=Warning, module="sklearn")
            return LogisticRegression(C=1 / penalty, max_iter=100, tol=1e-3).fit(x, y)

    grid = _coarse(config.ridges)
    # Balanced draws are nested: the first fifth is balanced too.
    best = _best([fitted(each, x[held:], y[held:]).score(x[:held], y[:held]) for each in grid])
    return ridge.chosen(grid, best) | {"accuracy": fitted(grid[best], x, y).score(x_test, y_test)}


def _perceptron(config, alpha: float, problem: Problem, key) -> dict[str, Any]:
    """One hidden layer trained by SGD on the squared loss, from the same initial weights for every alpha."""
    train, test = (Data(jnp.asarray(_unit_pixels(part.x)), jnp.asarray(part.y)) for part in problem)
    model = _model(config)
    settings = config.mlp
    params0 = model.init(jax.random.fold_in(key, 0), train.x)
    bound = empirical.estimate_max_learning_rate(
        model.apply,
        params0,
        train.x[: settings.lr_examples],
        momentum=MOMENTUM,
        key=jax.random.fold_in(key, 1),
    )
    batch = min(settings.batch_size, len(train.x))
    curve = ln.train(
        ln.objective(ln.lazy(model.apply, params0, alpha), ln.mse),
        None,
        train,
        ln.sgd(MOMENTUM),
        key=jax.random.fold_in(key, 2),
        save_at=[settings.epochs * (len(train.x) // batch)],
        learning_rate=settings.lr_fraction * bound,
        batch_size=batch,
        test=test,
    )
    last = {name: float(values[-1]) for name, values in curve.metrics.items()}
    return {
        "accuracy": last["test_accuracy"],
        "train_loss": last["train_loss"],
        "diverged": curve.diverged_at is not None,
    }


def _model(config) -> ln.Model:
    return zoo.mlp((config.mlp.width,), 10)


def _unit_pixels(x: np.ndarray) -> np.ndarray:
    """Rows of mean square one, which the NTK parameterization expects: times the square root of their length."""
    return x * np.float32(math.sqrt(x.shape[1]))


def all_images(config, train: Data, test: Data, advance) -> dict[str, Any]:
    """Ridge regression in its primal form on all training images; the ridge is the best on the last fifth of them."""

    def centered(part):
        return datasets.center_targets(part._replace(x=part.x.reshape(len(part.x), -1)))

    train = centered(train)
    test = centered(test)
    rows = train.x
    y = np.asarray(train.y, np.float32)
    split = len(rows) - len(rows) // 5
    center = _mean(rows)
    # The sums of both parts are those of all examples: features are read once.
    first = _normal_equations(rows[:split], y[:split], center, advance)
    last = _normal_equations(rows[split:], y[split:], center, advance)
    # tr X'X = tr XX': ridges are relative to the mean of the kernel's diagonal, as for other heads.
    mean = float(np.trace(first[0]) + np.trace(last[0])) / len(rows)
    held = Data(rows[split:], y[split:])
    grid = _coarse(config.ridges)
    best = _best([_primal_accuracies(*first, each * mean, center, held)[0] for each in grid])
    both = first[0] + last[0], first[1] + last[1]
    own, accuracy = _primal_accuracies(*both, grid[best] * mean, center, train, test)
    return ridge.chosen(grid, best) | {"accuracy": accuracy, "train_accuracy": own}


def _mean(rows):
    # In blocks, since one sum of 50,000 numbers in float32 loses digits.
    sums = [rows[i : i + 1000].sum(0, dtype=np.float32) for i in range(0, len(rows), 1000)]
    return sum(sums) / np.float32(len(rows))


def _normal_equations(rows, y, center, advance):
    """`X'X` and `X'Y` of centered rows, 1000 rows at a time."""
    from scipy.linalg.blas import ssyrk

    gram = np.zeros((rows.shape[1],) * 2, np.float32, order="F")
    moment = np.zeros((rows.shape[1], y.shape[1]), np.float32)
    for i in range(0, len(rows), 1000):
        block = rows[i : i + 1000].astype(np.float32) - center
        # Half of the multiplications: one triangle of a symmetric matrix. A transposed block is
        # in the order of BLAS, so that nothing is copied.
        gram = ssyrk(1.0, block.T, beta=1.0, c=gram, overwrite_c=True, lower=True)
        moment += block.T @ y[i : i + 1000]
        advance(len(block))
    return gram, moment


def _primal_accuracies(gram, moment, shift, center, *parts: Data) -> list[float]:
    """Accuracies of one regression on several sets."""
    import scipy.linalg

    shifted = gram.copy(order="F")
    shifted[np.diag_indices_from(shifted)] += np.float32(shift)
    try:
        # The lower triangle is the only one that `ssyrk` has filled.
        factor = scipy.linalg.cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        # The shift is below the rounding of the matrix.
        return [0.0] * len(parts)
    weights = scipy.linalg.cho_solve(factor, moment, check_finite=False)
    return [ridge.accuracy(_primal_outputs(part.x, weights, center), part.y) for part in parts]


def _primal_outputs(rows, weights, center):
    blocks = [rows[i : i + 1000].astype(np.float32) - center for i in range(0, len(rows), 1000)]
    return np.concatenate([block @ weights for block in blocks])


def _best(scores: list[float]) -> int:
    """The index of the largest score; of the middle one if several are equal."""
    ties = np.flatnonzero(np.asarray(scores) == max(scores))
    return int(ties[len(ties) // 2])


def _coarse(ridges: tuple[float, ...]) -> tuple[float, ...]:
    """Every other ridge of a long grid, for heads that are fitted anew for each."""
    return ridges[:: 2 if len(ridges) > 6 else 1]
