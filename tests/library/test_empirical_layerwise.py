"""The layer-wise contraction of networks of Dense and Conv layers against per-example Jacobians."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial, normal
from marks import extended_but

import lazynet as ln
from lazynet.kernels.empirical import empirical_ntk
from lazynet.kernels.empirical.contraction import contract, features
from lazynet.kernels.empirical.jacobians import Jacobian, chosen_names
from lazynet.kernels.empirical.layerwise import Pair, layer_names
from lazynet.trees import as_partial


def gain(key, x):
    return {"gain": jnp.full(x.shape[1:], 0.7, x.dtype)}


SCALE = ln.layer("Scale", lambda params, x: x * params["gain"][None], init=gain)
NETWORKS = {
    "vectors": (
        ln.serial(ln.Dense(8, 1.5, 0.1), ln.Relu(), ln.LayerNorm(), ln.Dense(3, b_std=0.1)),
        (6,),
    ),
    "one layer": (ln.Dense(3, 1.5, 0.1, parameterization="standard"), (6,)),
    "images": (
        ln.serial(
            ln.Conv(4, (3, 3), (2, 2), "CIRCULAR", 1.2, 0.3),
            ln.residual(ln.Erf(), ln.Conv(4, (3, 3), (1, 1), "SAME", b_std=0.2)),
            ln.Conv(16, (2, 2), (2, 1), "VALID", parameterization="standard"),
            ln.Flatten(),
            ln.Dense(2),
        ),
        (6, 6, 3),
    ),
    "doubled": (ln.symmetrize(ln.serial(ln.Dense(8, 1.5, 0.1), ln.Erf(), ln.Dense(3))), (6,)),
    "with a layer of one's own": (
        ln.serial(ln.Dense(8), ln.Erf(), SCALE, ln.parallel(ln.Dense(3), ln.Dense(3))),
        (6,),
    ),
}


def problem(name):
    model, shape = NETWORKS[name]
    x1, x2 = normal(1, 4, *shape), normal(2, 3, *shape)
    return model, initial(0, model, x1), x1, x2


def general(apply):
    """The same function, of whose layers nothing is known."""
    return lambda params, x: apply(params, x)


@pytest.mark.parametrize("name", extended_but(NETWORKS, "vectors"))
@pytest.mark.extended
def test_kernel_is_that_of_the_jacobians(name):
    model, params, x1, x2 = problem(name)
    expected = empirical_ntk(general(model.apply), params, x1, x2)
    np.testing.assert_allclose(
        empirical_ntk(model.apply, params, x1, x2), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.extended
@pytest.mark.parametrize("name", ["vectors", "images"])
def test_other_outputs_are_those_of_the_full_kernel(name):
    model, params, x1, x2 = problem(name)
    full = empirical_ntk(model.apply, params, x1, x2)
    by_kind = {
        kind: empirical_ntk(model.apply, params, x1, x2, outputs=kind)
        for kind in ("trace", "sum", "diagonal")
    }
    np.testing.assert_allclose(
        by_kind["trace"], np.trace(full, axis1=2, axis2=3) / full.shape[2], atol=1e-12
    )
    np.testing.assert_allclose(by_kind["sum"], full.sum((2, 3)) / full.shape[2], atol=1e-12)
    np.testing.assert_allclose(by_kind["diagonal"], np.diagonal(full, axis1=2, axis2=3), atol=1e-12)


@pytest.mark.extended
@pytest.mark.parametrize(
    "where", [lambda path: path.endswith("b"), lambda path: path == "0_Conv/W"]
)
def test_kernel_of_chosen_parameters_is_that_of_the_jacobians(where):
    model, params, x, _ = problem("images")
    expected = empirical_ntk(general(model.apply), params, x, where=where)
    np.testing.assert_allclose(
        empirical_ntk(model.apply, params, x, where=where), expected, atol=1e-12
    )


def test_weights_keep_their_factors_where_these_are_cheaper():
    model, params, x, _ = problem("images")
    found = features(as_partial(model.apply), params, x, chosen_names(params, None), "full")
    kinds = {name: type(feature) for name, feature in found.items()}
    assert (kinds["0_Conv/W"], kinds["2_Conv/W"], kinds["4_Dense/W"]) == (Jacobian, Pair, Pair)


@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_products_of_factors_are_those_of_the_derivatives(outputs):
    rows = [normal(seed, n, 3, 5) for seed, n in enumerate((4, 2))]
    cotangents = [normal(seed, n, 2, 3, 7) for seed, n in enumerate((4, 2), start=2)]
    derivatives = [
        jnp.einsum("npc,nkpf->nkcf", r, d).reshape(len(r), 2, -1)
        for r, d in zip(rows, cotangents, strict=True)
    ]
    factored = contract(
        *({"w": Pair(r, d)} for r, d in zip(rows, cotangents, strict=True)), outputs
    )
    np.testing.assert_allclose(
        factored, contract(*({"w": Jacobian(j)} for j in derivatives), outputs), atol=1e-12
    )


def test_only_the_apply_of_a_model_is_known_by_layers():
    model, params, _, _ = problem("with a layer of one's own")
    names = chosen_names(params, None)
    known = layer_names(as_partial(model.apply), names)
    assert set(names) - set(known) == {"2_Scale/gain"}
    assert layer_names(as_partial(general(model.apply)), names) == ()
    assert layer_names(ln.linearize(model.apply, params), names) == ()


@pytest.mark.extended
def test_kernel_can_be_compiled_and_differentiated():
    model, params, x, _ = problem("vectors")
    ntk = jax.jit(lambda params, x: empirical_ntk(model.apply, params, x, outputs="trace"))(
        params, x
    )
    np.testing.assert_allclose(
        ntk, empirical_ntk(model.apply, params, x, outputs="trace"), atol=1e-12
    )
    slope = jax.grad(lambda params: empirical_ntk(model.apply, params, x, outputs="trace")[0, 1])(
        params
    )
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slope))


@pytest.mark.extended
def test_float32_kernel_stays_float32():
    model, params, x, _ = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if isinstance(leaf, jax.Array) else leaf,
        problem("vectors"),
    )
    ntk = empirical_ntk(model.apply, params, x)
    expected = empirical_ntk(
        model.apply, *jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x))
    )
    assert ntk.dtype == jnp.float32
    np.testing.assert_allclose(ntk, expected, rtol=1e-5, atol=1e-5)
