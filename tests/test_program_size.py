"""Facts about the size of programs of kernels: it does not grow with layers that repeat, nor with displacements."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import extended

import lazynet as ln

X = np.random.default_rng(0).normal(size=(3, 4))


def equations(jaxpr) -> int:
    """Number of equations of a jaxpr with all its sub-programs."""
    count = 0
    for equation in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in jax.tree.leaves(list(equation.params.values()))]
        count += 1 + sum(equations(program) for program in inner if hasattr(program, "eqns"))
    return count


def _size(model, *inputs) -> int:
    return equations(jax.make_jaxpr(lambda *x: ln.analytic_kernel(model, *x))(*inputs).jaxpr)


def _deep(depth, W_std=1.5, activation=None):
    layers = [part for _ in range(depth) for part in (ln.Dense(1, W_std, 0.1), activation or ln.Relu())]
    return ln.serial(*layers, ln.Dense(1, 1.0))


def _uneven(scales, activation=None):
    parts = [part for w in scales for part in (ln.Dense(1, w, 0.1), activation or ln.Relu())]
    return ln.serial(*parts, ln.Dense(1, 1.0))


def _recursion(x1, x2, scales):
    """NNGP and NTK of a ReLU network by the recursion of Cho and Saul (2009) and Jacot et al. (2018)."""
    d = x1.shape[1]
    s, q1, q2, tangent = x1 @ x2.T / d, np.sum(x1**2, 1) / d, np.sum(x2**2, 1) / d, 0.0
    for w in scales:
        s, q1, q2 = (w**2 * a + 0.01 for a in (s, q1, q2))
        tangent = w**2 * tangent + s
        scale = np.sqrt(np.outer(q1, q2))
        t = np.arccos(np.clip(s / scale, -1, 1))
        s, q1, q2 = scale * (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi), q1 / 2, q2 / 2
        tangent = tangent * (np.pi - t) / (2 * np.pi)
    return s, tangent + s


# Depth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [extended(ln.Relu()), ln.Erf(), extended(ln.elementwise(jnp.tanh, degree=4))])
def test_equal_layers_of_vectors_do_not_lengthen_the_program(activation):
    assert _size(_deep(20, activation=activation), X) == _size(_deep(60, activation=activation), X)


@pytest.mark.extended
def test_equal_residual_blocks_do_not_lengthen_the_program():
    block = ln.residual(ln.Relu(), ln.Dense(1, 0.5))
    sizes = [_size(ln.serial(ln.Dense(1), *[block] * depth, ln.Dense(1)), X) for depth in (14, 28)]
    assert sizes[0] == sizes[1]


@pytest.mark.extended
def test_different_layers_of_vectors_lengthen_the_compiled_program_in_proportion():
    sizes = []
    for depth in (16, 32):
        model = _uneven(np.linspace(1.3, 1.5, depth).tolist())
        compiled = jax.jit(lambda x, model=model: ln.analytic_kernel(model, x)).lower(X).compile()
        sizes.append(len(compiled.as_text().splitlines()))
    assert sizes[1] < 2.2 * sizes[0]


@pytest.mark.parametrize(
    "scales", [[1.5] * 30, extended(np.linspace(1.3, 1.5, 15).tolist())], ids=["equal", "different"]
)
def test_deep_networks_have_the_kernels_of_the_recursion(scales):
    x2 = np.random.default_rng(1).normal(size=(2, 4))
    gram = ln.analytic_kernel(_uneven(scales), X, x2)
    for found, expected in zip(gram, _recursion(X, x2, scales), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_deep_network_of_one_set_is_symmetric_with_an_exact_diagonal():
    gram = ln.analytic_kernel(_deep(30, 2**0.5), X.astype(np.float32))
    q = np.sum(X**2, 1) / 4
    for _ in range(30):
        q = (2 * q + 0.01) / 2
    np.testing.assert_array_equal(gram.ntk, np.asarray(gram.ntk).T)
    np.testing.assert_allclose(np.diag(gram.nngp), q, rtol=2e-6)


@pytest.mark.parametrize("shared", [True, extended(False)], ids=["one scale", "a scale for each layer"])
def test_kernels_of_deep_networks_have_derivatives_in_scales_and_inputs(shared):
    scales = jnp.float64(1.4) if shared else jnp.linspace(1.3, 1.5, 14)

    def value(scales, x):
        gram = ln.analytic_kernel(_uneven([scales] * 14 if shared else list(scales)), x)
        return jnp.sum(jnp.sin(gram.ntk / 50))

    step, direction = 1e-5, jnp.cos(jnp.arange(X.size).reshape(X.shape))
    by_scale, by_input = jax.jit(jax.grad(value, argnums=(0, 1)))(scales, X)
    moved = jax.jit(value)
    slope = (moved(scales + step, X) - moved(scales - step, X)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(by_scale), slope, rtol=1e-6)
    slope = (moved(scales, X + step * direction) - moved(scales, X - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(by_input, direction), slope, rtol=1e-6)


@pytest.mark.extended
def test_kernels_of_deep_networks_map_over_batches_of_sets():
    sets = np.random.default_rng(2).normal(size=(2, 3, 4))
    model = _uneven(np.linspace(1.3, 1.5, 8).tolist())
    mapped = jax.vmap(lambda x: ln.analytic_kernel(model, x).ntk)(sets)
    np.testing.assert_allclose(mapped, [ln.analytic_kernel(model, x).ntk for x in sets], rtol=1e-12)


@pytest.mark.extended
def test_equal_words_with_different_constants_are_different_layers():
    tables = [np.linspace(0, 1, 3), np.linspace(1, 2, 3)]
    parts = [ln.elementwise(lambda x, t=table: jnp.polyval(jnp.asarray(t), jnp.tanh(x)), degree=3) for table in tables]
    layers = [part for k in range(14) for part in (ln.Dense(1), parts[k % 2])]
    whole, piecewise = ln.serial(*layers), ln.serial(*[ln.serial(*layers[k : k + 7]) for k in range(0, 28, 7)])
    found, expected = (ln.analytic_kernel(model, X).ntk for model in (whole, piecewise))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
