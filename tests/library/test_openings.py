"""Single precision against double: neighbors, duplicates and opposite inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended, extended_but

import lazynet as ln
from lazynet.covariance.openings import between
from lazynet.kernels.analytic import analytic_kernel

LINE = np.linspace(-30, 30, 100, dtype=np.float32)[:, None]


def _network(activation, depth: int, W_std: float = 2**0.5, b_std: float | None = 0.1):
    layers = [part for _ in range(depth) for part in (ln.Dense(1, W_std, b_std), activation)]
    return ln.serial(*layers, ln.Dense(1, W_std, b_std))


def _single(function, *inputs):
    """The value where jax has no float64."""
    with jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64():
        return function(*(np.asarray(x, np.float32) for x in inputs))


def _both(model, *sets):
    """Kernels in single and in double precision."""
    double = analytic_kernel(model, *(np.asarray(x, np.float64) for x in sets))
    single = _single(lambda *sets: analytic_kernel(model, *sets), *sets)
    return [(np.asarray(a, np.float64), np.asarray(b)) for a, b in zip(single, double, strict=True)]


def _floors(single, double):
    """The error as a matrix, in units of the rounding of a kernel."""
    floor = np.finfo(np.float32).eps * np.abs(double).max() * max(double.shape) ** 0.5
    return np.linalg.norm(single - double, 2) / floor


@pytest.mark.parametrize("b_std", [0.1, extended(1.0)])
@pytest.mark.parametrize("depth", [extended(1), 3, extended(8), extended(20)])
def test_single_precision_is_kept_on_a_line(depth, b_std):
    (nngp, exact_nngp), (ntk, exact) = _both(_network(ln.Relu(), depth, b_std=b_std), LINE)
    assert _floors(nngp, exact_nngp) < 10
    assert _floors(ntk, exact) < 10
    smallest = [np.linalg.eigvalsh(matrix)[0] for matrix in (ntk, exact)]
    assert smallest[0] == pytest.approx(smallest[1], rel=0.03)


ACTIVATIONS = {
    "LeakyRelu": ln.LeakyRelu(0.2),
    "Abs": ln.Abs(),
    "Erf": ln.Erf(),
    "Gelu": ln.Gelu(),
    "Sin": ln.Sin(),
    "Rbf": ln.Rbf(0.5),
}


@pytest.mark.parametrize("depth", [1, extended(3)])
@pytest.mark.parametrize("activation", extended_but(ACTIVATIONS, "Sin"))
def test_single_precision_is_kept_on_a_line_by_other_activations(activation, depth):
    for single, double in _both(_network(ACTIVATIONS[activation], depth, 1.2, 1.0), LINE):
        assert _floors(single, double) < 30


def _near_duplicates(n, features, distance):
    draws = np.random.default_rng(0)
    x = draws.standard_normal((n, features)).astype(np.float32)
    return np.concatenate([x, x + distance * draws.standard_normal(x.shape).astype(np.float32)])


@pytest.mark.parametrize(
    ("features", "distance"), [(50, 1e-3), extended(3, 1e-3), extended(500, 1e-4)]
)
@pytest.mark.extended
def test_single_precision_is_kept_by_near_duplicates(features, distance):
    (_, _), (ntk, exact) = _both(_network(ln.Relu(), 3), _near_duplicates(20, features, distance))
    assert _floors(ntk, exact) < 5
    smallest = [np.linalg.eigvalsh(matrix)[0] for matrix in (ntk, exact)]
    assert smallest[0] == pytest.approx(smallest[1], rel=0.03)


@pytest.mark.extended
def test_single_precision_is_kept_by_inputs_around_a_far_center():
    x = 100 + np.random.default_rng(0).standard_normal((20, 50)).astype(np.float32)
    (_, _), (ntk, exact) = _both(_network(ln.Relu(), 3), x, x[::-1] + np.float32(0.01))
    assert _floors(ntk, exact) < 5


@pytest.mark.parametrize("depth", [extended(1), extended(3)])
def test_ridgeless_regression_on_a_line_is_that_of_double_precision(depth):
    x, between_them = LINE[::2], LINE[1:-1:2] + np.float32(0.1)
    targets = np.sin(x[:, 0] / 4)
    model = _network(ln.Relu(), depth)
    predictions = []
    for cross, train in zip(_both(model, between_them, x)[1], _both(model, x)[1], strict=True):
        predictions.append(cross @ np.linalg.solve(train, targets))
    np.testing.assert_allclose(*predictions, atol=0.01)


@pytest.mark.parametrize("features", [1, extended(3), extended(50)])
@pytest.mark.extended
def test_derivatives_in_single_precision_are_right_at_neighbors(features):
    draws = np.random.default_rng(0)
    x = draws.standard_normal((6, features)) + 2
    neighbors = x * (1 + 1e-3 * draws.standard_normal((6, 1))) + 1e-3
    x, neighbors = x.astype(np.float32), neighbors.astype(np.float32)
    model = _network(ln.Relu(), 2)

    def slope(x, neighbors):
        pairs = lambda x: jnp.diagonal(analytic_kernel(model, x, neighbors).ntk)  # noqa: E731
        return np.asarray(jax.grad(lambda x: jnp.sum(pairs(x)))(jnp.asarray(x)))

    exact = slope(x.astype(np.float64), neighbors.astype(np.float64))
    assert np.abs(_single(slope, x, neighbors) / exact - 1).max() < 1e-3


@pytest.mark.extended
def test_derivatives_in_single_precision_are_finite_at_coincident_and_opposite_inputs():
    x = np.concatenate([_near_duplicates(2, 3, 0.0), -_near_duplicates(2, 3, 0.0)])

    def slope(x):
        total = lambda x: jnp.sum(analytic_kernel(_network(ln.Relu(), 3), x).ntk)  # noqa: E731
        return np.asarray(jax.grad(total)(jnp.asarray(x)))

    assert np.isfinite(_single(slope, x)).all()


@pytest.mark.parametrize("features", [1, 17])
def test_openings_of_inputs_are_exact_at_equal_opposite_and_vanishing_ones(features):
    x = np.random.default_rng(0).standard_normal((1, features))
    one, two = jnp.asarray(np.concatenate([x, x])), jnp.asarray(np.concatenate([x, -x, 0 * x]))
    _, opening = between(one, two)
    np.testing.assert_allclose(opening.u[0], [0, 2, 1], atol=1e-15)
    np.testing.assert_allclose(opening.rest[0], [2, 0, 1], atol=1e-15)
    assert opening.u[0, 0] == opening.rest[0, 1] == 0


@pytest.mark.parametrize("n", [5, extended(20)])
@pytest.mark.extended
def test_flat_images_have_the_kernels_of_their_vectors(n):
    x = _near_duplicates(n, 27, 1e-3)
    model = _network(ln.Relu(), 1)
    images = x.reshape(-1, 3, 3, 3)
    deep = ln.serial(ln.Flatten(), model)
    for sets in ((slice(None),), (slice(n), slice(n, None))):
        flat = _single(lambda *x: analytic_kernel(model, *x), *(x[part] for part in sets)).ntk
        gram = _single(lambda *x: analytic_kernel(deep, *x), *(images[part] for part in sets)).ntk
        np.testing.assert_allclose(gram, flat, rtol=1e-5, atol=1e-5)
