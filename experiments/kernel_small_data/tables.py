"""Classifiers on tables, every one tuned by the same nested cross-validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from lazynet import datasets
from lazynet.kernels.analytic import analytic_kernel
from lazynet.models.activations import Relu
from lazynet.models.layers import Dense
from lazynet.models.model import Model, freeze, serial
from lazynet.records import Data

__all__ = ["measure", "numbers", "relu_network"]

METHODS = ("ntk", "nngp", "rbf", "forest")
ENTRIES = ("accuracies", "candidates", "seconds", "chosen")


class Candidate(NamedTuple):
    """A setting to be chosen from: its name, and the scores and predictions it gives."""

    name: str
    score: Callable[[np.ndarray, np.ndarray], float]
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray]


@cache
def relu_network(depth: int, frozen: int = 0) -> Model:
    """`depth` hidden ReLU layers without biases and a linear head, the first `frozen` of the layers not trained."""
    # A limit knows nothing of widths; W_std^2 = 2 keeps variances through any depth of ReLU.
    dense = Dense(1, 2**0.5, None)
    layers = [dense, Relu()] * depth + [dense]
    if not frozen:
        return serial(*layers)
    # A hidden layer is a pair of Dense and Relu.
    return serial(freeze(serial(*layers[: 2 * frozen])), *layers[2 * frozen :])


def measure(config, store) -> dict[str, Any]:
    """Accuracies over the outer folds, settings chosen there and CPU seconds, each as `table=.../method=.../name`."""
    arrays: dict[str, Any] = {}
    for table, method in store.track(_cells(config), "tables"):
        name = f"{table},{method}.json"
        cell = store.read(name) or store.write(name, _nested(config, table, method))
        arrays |= {f"table={table}/method={method}/{entry}": cell[entry] for entry in ENTRIES}
    return arrays


def numbers(config, arrays) -> dict[str, Any]:
    """Mean and standard deviation over the outer folds, and the rest as it was measured."""
    summary: dict[str, Any] = {}
    for table, method in _cells(config):
        key = f"table={table}/method={method}"
        accuracies = arrays[f"{key}/accuracies"]
        summary[f"test_accuracy/{key}"] = float(np.mean(accuracies))
        summary[f"test_accuracy_std/{key}"] = float(np.std(accuracies, ddof=1))
        for entry in ENTRIES[1:]:
            summary[f"{entry}/{key}"] = arrays[f"{key}/{entry}"].tolist()
    return summary


def _cells(config) -> list[tuple[str, str]]:
    return [(table, method) for table in config.tables.names for method in METHODS]


def _nested(config, name, method) -> dict[str, Any]:
    """One method on one table: the inner folds choose the setting that predicts the outer one."""
    from sklearn.model_selection import StratifiedKFold

    data = _whole_table(name)
    labels = data.y.argmax(axis=1)
    outer = StratifiedKFold(config.tables.outer, shuffle=True, random_state=config.seed)
    start = time.process_time()
    accuracies = []
    chosen = []
    count = 0
    for train, test in outer.split(data.x, labels):
        # Columns are standardized, and kernels scaled, by the outer training rows alone.
        candidates = list(_candidates(config, method, _standardized(data, train).x, train, labels))
        inner = list(_inner_folds(config, train, labels))
        scores = [_mean_score(candidate, inner) for candidate in candidates]
        best = candidates[int(np.argmax(scores))]
        count = len(candidates)
        accuracies.append(float(np.mean(best.predict(train, test) == labels[test])))
        chosen.append(best.name)
    return {
        "accuracies": accuracies,
        "chosen": chosen,
        "candidates": count,
        "seconds": round(time.process_time() - start, 2),
    }


def _mean_score(candidate, folds) -> float:
    """Mean accuracy of one setting on the held-out parts of the inner folds."""
    return float(np.mean([candidate.score(fit, held_out) for fit, held_out in folds]))


def _inner_folds(config, train, labels) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold

    # Another shuffle than that of the outer folds.
    inner = StratifiedKFold(config.tables.inner, shuffle=True, random_state=config.seed + 1)
    for fit, held_out in inner.split(train, labels[train]):
        yield train[fit], train[held_out]


def _whole_table(name) -> Data:
    parts = datasets.tabular(name)
    return Data(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _standardized(data, train) -> Data:
    """All rows, in units of the standard deviation of each column over the training rows; constant columns dropped."""
    varying = np.ptp(data.x[train], axis=0) > 0
    kept = Data(np.asarray(data.x[:, varying], np.float64), data.y)
    rows = Data(kept.x[train], kept.y[train])
    _, standardized = datasets.standardize(rows, kept, center="feature", scale="feature")
    return standardized


def _candidates(config, method, x, train, labels) -> Iterator[Candidate]:
    if method == "forest":
        yield from _forests(config, x, labels)
        return
    for name, kernel in _kernels(config.tables, method, x, train):
        # The kernel is computed once for all C.
        for C in config.tables.C:
            yield _machine(f"{name}, C={C:g}", kernel, C, labels)


def _kernels(tables, method, x, train) -> Iterator[tuple[str, np.ndarray]]:
    """Kernels between all rows, each scaled by the training rows: to a mean of 1 on the diagonal, or by distances."""
    if method == "rbf":
        # Differences of all pairs are more accurate, where there is room for them.
        if len(x) < 500:
            distances = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
        else:
            distances = _squared_distances(x)
        scale = np.median(distances[np.ix_(train, train)])
        # exp(-gamma |x - x'|^2) at gammas from 2^-7 to 2^7 over the median distance.
        for exponent in np.linspace(-7, 7, tables.gammas):
            yield f"gamma={2**exponent / scale:.3g}", np.exp(-(2**exponent) / scale * distances)
        return
    for depth in range(1, tables.depth + 1):
        # With all hidden layers frozen the head alone is trained: the NTK is then the NNGP kernel.
        for frozen in (depth,) if method == "nngp" else range(depth):
            gram = analytic_kernel(relu_network(depth, frozen), x.astype(np.float32))
            kernel = np.asarray(gram.ntk, np.float64)
            name = f"depth={depth}" + (f", frozen={frozen}" if method == "ntk" else "")
            # C counts in units of the kernel, which grows with the depth: one grid then serves all.
            yield name, kernel / np.mean(np.diag(kernel)[train])


def _squared_distances(x):
    squares = np.sum(x**2, axis=1)
    return np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0.0)


def _machine(name, kernel, C, labels) -> Candidate:
    from sklearn.svm import SVC

    def predict(fit, held_out):
        machine = SVC(C=C, kernel="precomputed").fit(kernel[np.ix_(fit, fit)], labels[fit])
        return machine.predict(kernel[np.ix_(held_out, fit)])

    return _candidate(name, predict, labels)


def _candidate(name, predict, labels) -> Candidate:
    def score(fit, held_out):
        return np.mean(predict(fit, held_out) == labels[held_out])

    return Candidate(name, score, predict)


def _forests(config, x, labels) -> Iterator[Candidate]:
    from sklearn.ensemble import RandomForestClassifier

    def candidate(share, leaf):
        def predict(fit, held_out):
            forest = RandomForestClassifier(
                config.tables.trees,
                max_features=share,
                min_samples_leaf=leaf,
                random_state=config.seed,
            )
            return forest.fit(x[fit], labels[fit]).predict(x[held_out])

        name = f"max_features={share}, min_samples_leaf={leaf}"
        return _candidate(name, predict, labels)

    for share in (0.1, "sqrt", 0.5):
        for leaf in (1, 3, 10):
            yield candidate(share, leaf)
