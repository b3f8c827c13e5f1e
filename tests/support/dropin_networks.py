"""Networks in the words of neural-tangents' `stax`, with inputs and options, and its own float64 kernels of each.

`python tests/support/dropin_networks.py` computes them again, where neural-tangents is installed.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FILE = Path(__file__).resolve().parents[1] / "golden" / "dropin.npz"
FIELDS = ("nngp", "ntk", "cov1", "cov2")


class Case(NamedTuple):
    """A network and its inputs.

    Attributes:
        expression: The network, in names of `stax`.
        shapes: Shapes of both sets of inputs; one for a set with itself.
        options: Keyword arguments of `kernel_fn`.
        missing: Probability of missing positions, which are set to 10.
        pattern: Shapes of random weights of edges; "edges" for lists of them.
    """

    expression: str
    shapes: Any
    options: dict[str, Any] = {}
    missing: float = 0.0
    pattern: Any = None


CASES = {
    name: Case(**case) for name, case in json.loads(FILE.with_suffix(".json").read_text()).items()
}


def inputs(case: Case) -> tuple[list[Any], dict[str, Any]]:
    """Both sets, and what `kernel_fn` is told."""
    rng = np.random.RandomState(0)
    sets: list[Any] = []
    told = dict(case.options)
    for shape in case.shapes:
        x = rng.normal(size=shape)
        if case.missing:
            x = np.where(rng.uniform(size=(*shape[:-1], 1)) < case.missing, 10.0, x)
            told["mask_constant"] = 10.0
        sets.append(x)
    if case.pattern == "edges":
        told["pattern"] = tuple(
            rng.randint(-1, shape[1], (shape[0], 6, 1, 2)) for shape in case.shapes
        )
        told["pattern"] = tuple(
            np.where(p.min(-1, keepdims=True) < 0, -1, p) for p in told["pattern"]
        )
    elif case.pattern:
        told["pattern"] = tuple(rng.normal(size=shape) for shape in case.pattern)
    return sets if len(sets) == 2 else [*sets, None], told


def kernels(case: Case, stax: Any) -> dict[str, np.ndarray]:
    """The kernels of a case by a `stax`."""
    names = {name: getattr(stax, name) for name in dir(stax) if not name.startswith("_")}
    kernel_fn = eval(case.expression, {**names, "np": np})[2]
    sets, told = inputs(case)
    found = kernel_fn(*sets, **told)
    values = {name: getattr(found, name) for name in FIELDS}
    return {name: np.asarray(value) for name, value in values.items() if value is not None}


def main() -> None:
    """Writes the kernels of neural-tangents."""
    sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    found = {}
    for name, case in CASES.items():
        for field, value in kernels(case, stax).items():
            found[f"{name}/{field}"] = value
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
