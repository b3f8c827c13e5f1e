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
        inner = [
            getattr(value, "jaxpr", value)
            for value in jax.tree.leaves(list(equation.params.values()))
        ]
        count += 1 + sum(equations(program) for program in inner if hasattr(program, "eqns"))
    return count


def _size(model, *inputs) -> int:
    return equations(jax.make_jaxpr(lambda *x: ln.analytic_kernel(model, *x))(*inputs).jaxpr)


def _deep(depth, W_std=1.5, activation=None):
    layers = [
        part for _ in range(depth) for part in (ln.Dense(1, W_std, 0.1), activation or ln.Relu())
    ]
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


# Depth
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation", [extended(ln.Relu()), ln.Erf(), extended(ln.elementwise(jnp.tanh, degree=4))]
)
@pytest.mark.extended
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
@pytest.mark.extended
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


@pytest.mark.parametrize(
    "shared", [True, extended(False)], ids=["one scale", "a scale for each layer"]
)
@pytest.mark.extended
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


def test_layers_that_call_different_functions_of_python_are_no_equal_layers():
    def called(function):
        # jax prints all functions alike: by their text, these layers would be one loop.
        def on_host(s, q1, q2):
            shape = jax.ShapeDtypeStruct(s.shape, s.dtype)
            return jax.pure_callback(function, shape, s, vmap_method="expand_dims")

        return on_host

    def times(scale):
        slope = called(lambda s: np.full_like(s, scale))
        return ln.stax.Elementwise(None, called(lambda s: np.asarray(scale * s)), slope)

    scales = [2.0, 0.5, 3.0] * 2
    layers = [layer for scale in scales for layer in (ln.stax.Dense(1), times(scale))]
    found = ln.stax.serial(*layers)[2](X, None, "nngp")
    np.testing.assert_allclose(found, np.prod(scales) * (X @ X.T) / 4, rtol=1e-12)


@pytest.mark.extended
def test_kernels_of_deep_networks_map_over_batches_of_sets():
    sets = np.random.default_rng(2).normal(size=(2, 3, 4))
    model = _uneven(np.linspace(1.3, 1.5, 8).tolist())
    mapped = jax.vmap(lambda x: ln.analytic_kernel(model, x).ntk)(sets)
    np.testing.assert_allclose(mapped, [ln.analytic_kernel(model, x).ntk for x in sets], rtol=1e-12)


@pytest.mark.extended
def test_equal_words_with_different_constants_are_different_layers():
    tables = [np.linspace(0, 1, 3), np.linspace(1, 2, 3)]
    parts = [
        ln.elementwise(lambda x, t=table: jnp.polyval(jnp.asarray(t), jnp.tanh(x)), degree=3)
        for table in tables
    ]
    layers = [part for k in range(14) for part in (ln.Dense(1), parts[k % 2])]
    whole, piecewise = (
        ln.serial(*layers),
        ln.serial(*[ln.serial(*layers[k : k + 7]) for k in range(0, 28, 7)]),
    )
    found, expected = (ln.analytic_kernel(model, X).ntk for model in (whole, piecewise))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# Images
# ----------------------------------------------------------------------------------------------------------


def _images(seed, n, height=4, width=4, channels=2):
    return np.random.default_rng(seed).normal(size=(n, height, width, channels))


def _pooled(window, *head):
    return ln.serial(
        ln.Conv(1, padding="SAME"), ln.Relu(), ln.AvgPool((window, window), padding="SAME"), *head
    )


@pytest.mark.extended
def test_programs_do_not_grow_with_images_and_grow_with_the_side_of_windows_alone():
    sides = (6, 5), (7, 5), (7, 7), (7, 9)
    small, same, medium, large = (
        _size(_pooled(k, ln.Flatten()), *[_images(0, 1, n, n)] * 2) for n, k in sides
    )
    assert small == same
    assert large - medium == medium - small


@pytest.mark.parametrize(
    ("pools", "head"),
    [
        ([ln.AvgPool((5, 5), padding="SAME")], ln.Flatten()),
        extended([ln.AvgPool((3, 2), (2, 1), "SAME")], ln.GlobalAvgPool()),
        extended([ln.AvgPool((3, 3), (2, 2))], ln.Flatten()),
        extended([ln.AvgPool((2, 2), (2, 2), "CIRCULAR")], ln.GlobalAvgPool()),
        extended(
            [ln.AvgPool((2, 1), (2, 1)), ln.SumPool((1, 3), (1, 3), "SAME")], ln.GlobalAvgPool()
        ),
        extended([ln.AvgPool((2, 2), (2, 2)), ln.SumPool((3, 3), (3, 3), "SAME")], ln.Flatten()),
    ],
)
def test_a_network_that_begins_with_pools_is_the_rest_on_pooled_images(pools, head):
    x1, x2 = (jnp.asarray(_images(seed, 2, 6, 6)) for seed in (0, 1))
    rest = [ln.Conv(1, padding="SAME"), ln.Relu(), head]
    smaller = [ln.serial(*pools).apply({}, x) for x in (x1, x2)]
    found, expected = (
        ln.analytic_kernel(ln.serial(*pools, *rest), x1, x2),
        ln.analytic_kernel(ln.serial(*rest), *smaller),
    )
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "head", [ln.Flatten(), extended(ln.GlobalAvgPool())], ids=["flat", "pooled"]
)
@pytest.mark.parametrize("same", [False, extended(True)], ids=["two sets", "one set"])
def test_many_channels_are_one_product(head, same):
    x1, x2 = _images(0, 2, 3, 3, 40), _images(1, 3, 3, 3, 40)
    model = ln.serial(ln.Conv(1, padding="SAME"), ln.Relu(), head)
    assert _size(model, x1, x2) < _size(model, x1[..., :16], x2[..., :16])
    gram = ln.analytic_kernel(model, x1) if same else ln.analytic_kernel(model, x1, x2)
    expected = _brute_force(x1, x1 if same else x2, pooled=head.name == "GlobalAvgPool")
    np.testing.assert_allclose(gram.nngp, expected, rtol=1e-10)


def _brute_force(x1, x2, *, pooled):
    """The NNGP of Conv 3x3 and ReLU, with all pairs of patches written out."""
    patches = []
    for x in (x1, x2):
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        height, width = x.shape[1:3]
        shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches.append(np.concatenate(shifts, axis=-1).reshape(len(x), height * width, -1))
    norms = [np.sqrt(np.mean(p**2, axis=-1)) for p in patches]
    scale = norms[0][:, None, :, None] * norms[1][None, :, None, :]
    covariance = np.einsum("npc,mqc->nmpq", *patches) / patches[0].shape[-1]
    t = np.arccos(np.clip(covariance / scale, -1, 1))
    limit = scale * (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi)
    return limit.mean((2, 3)) if pooled else np.einsum("nmpp->nm", limit) / limit.shape[-1]
