"""Reference kernels: float64 outputs of neural-tangents, and the same networks built from lazynet's layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lazynet import activations, layers
from lazynet.models import model

FOLDER = Path(__file__).resolve().parents[1] / "golden"
EXPRESSIONS = json.loads((FOLDER / "neural_tangents.json").read_text())


def _load() -> dict[str, dict[str, np.ndarray]]:
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(FOLDER / "neural_tangents.npz") as arrays:
        for path in arrays.files:
            name, part = path.split("/", 1)
            cases.setdefault(name, {})[part] = arrays[path]
    return {name: parts for name, parts in cases.items() if "ntk" in parts}


def _serial(*layers_):
    return model.serial(*[layer for layer in layers_ if layer is not None])


NAMES = {
    name: getattr(module, name) for module in (layers, activations) for name in module.__all__
} | {
    "serial": _serial,
    "parallel": model.parallel,
    "FanOut": lambda n: None,
    "FanInSum": lambda: None,
}
GOLDEN = _load()


def network(name: str) -> model.Model:
    """The network of a reference case: FanOut and FanInSum are what `parallel` does."""
    return eval(EXPRESSIONS[name], NAMES)


def relative(got, expected) -> float:
    """Relative Frobenius error."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
