"""Laws that hold for all inputs, and are tried on many: kernels, configurations, lazy functions, scattering."""

from __future__ import annotations

import dataclasses
import json
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import initial
from hypothesis.extra.numpy import arrays

import lazynet as ln
from experiments import lazy_vs_standard
from experiments.harness import config as configuration
from lazynet.kernels.analytic import analytic_kernel
from lazynet.scattering import filter_bank, scattering2d, wavelet_coefficients

pytestmark = pytest.mark.extended
N, FEATURES = 5, 3
LAWS = hypothesis.settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
ROWS = arrays(np.float64, (N, FEATURES), elements=st.floats(-4, 4, width=32))
SCALES = st.floats(0.01, 100.0)
NETWORKS = {
    "relu": ln.serial(ln.Dense(1, 1.4), ln.Relu(), ln.Dense(1, 1.4), ln.Relu(), ln.Dense(1)),
    "relu, biases": ln.serial(ln.Dense(1, 1.4, 0.3), ln.Relu(), ln.Dense(1, 1.0, 0.1)),
    "erf": ln.serial(ln.Dense(1, 1.4, 0.3), ln.Erf(), ln.Dense(1)),
    "residual": ln.serial(
        ln.Dense(1), ln.residual(ln.serial(ln.Relu(), ln.Dense(1))), ln.Relu(), ln.Dense(1)
    ),
}
HOMOGENEOUS = ["relu", "residual"]
ANGLES = 1e-6
"""Relative error where two inputs have one direction: their angle is known up to the root of the precision."""


def laws(**given):
    return lambda test: LAWS(hypothesis.given(**given)(test))


def _close(actual, expected, rtol=1e-9, scale=None):
    scale = np.abs(expected).max() if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * scale / 10 + 1e-300)


# Kernels
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@laws(x=ROWS)
def test_a_kernel_is_exactly_symmetric_and_positive_semidefinite(name, x):
    for kernel in analytic_kernel(NETWORKS[name], x):
        kernel = np.asarray(kernel)
        np.testing.assert_array_equal(kernel, kernel.T)
        values = np.linalg.eigvalsh(kernel)
        assert values[0] >= -1e-6 * values[-1]


@pytest.mark.parametrize("name", NETWORKS)
@laws(x=ROWS, order=st.permutations(range(N)))
def test_a_kernel_of_permuted_inputs_is_the_permuted_kernel(name, x, order):
    plain, permuted = (
        analytic_kernel(NETWORKS[name], x),
        analytic_kernel(NETWORKS[name], x[list(order)]),
    )
    for a, b in zip(plain, permuted, strict=True):
        _close(b, np.asarray(a)[np.ix_(order, order)], ANGLES)


@pytest.mark.parametrize("name", NETWORKS)
@laws(x=ROWS)
def test_a_kernel_between_a_set_and_itself_is_the_kernel_of_the_set(name, x):
    for a, b in zip(
        analytic_kernel(NETWORKS[name], x), analytic_kernel(NETWORKS[name], x, x), strict=True
    ):
        _close(a, np.asarray(b), ANGLES)


@pytest.mark.parametrize("name", HOMOGENEOUS)
@laws(x=ROWS, y=ROWS, c=SCALES, d=SCALES)
def test_a_kernel_without_biases_is_homogeneous_in_each_input(name, x, y, c, d):
    plain, scaled = (
        analytic_kernel(NETWORKS[name], x, y),
        analytic_kernel(NETWORKS[name], c * x, d * y),
    )
    for a, b in zip(plain, scaled, strict=True):
        _close(b, c * d * np.asarray(a), ANGLES)


@pytest.mark.parametrize("name", HOMOGENEOUS)
@pytest.mark.parametrize("ratio", [1e-3, 1e-10, 1e-33, 1e-100])
def test_a_kernel_is_homogeneous_between_inputs_with_norms_of_any_ratio(name, ratio):
    x, y = np.array([[1.0, 0.1, 0.2]]), np.array([[0.3, 1.0, 1.0]])
    both = zip(
        *(analytic_kernel(NETWORKS[name], np.concatenate([x, c * y])) for c in (1.0, ratio)),
        strict=True,
    )
    for plain, scaled in both:
        np.testing.assert_allclose(scaled[0, 1] / ratio, plain[0, 1], rtol=1e-12)


@pytest.mark.parametrize(("W_std", "b_std"), [(1.0, 0.0), (0.03, 20.0)])
@laws(x=ROWS, y=ROWS)
def test_the_kernel_of_one_linear_layer_is_the_scaled_inner_product(W_std, b_std, x, y):
    gram = analytic_kernel(ln.Dense(1, W_std, b_std), x, y)
    expected = W_std**2 * x @ y.T / FEATURES + b_std**2
    scale = W_std**2 * np.abs(x).max() * np.abs(y).max() + b_std**2
    _close(gram.nngp, expected, scale=scale)
    _close(gram.ntk, expected, scale=scale)


@pytest.mark.parametrize("W_std", [0.03, 20.0])
@laws(x=ROWS)
def test_the_last_layer_scales_the_kernel_by_the_square_of_its_weights(W_std, x):
    body = (ln.Dense(1, 1.4, 0.3), ln.Erf())
    plain, scaled = (analytic_kernel(ln.serial(*body, ln.Dense(1, w)), x) for w in (1.0, W_std))
    for a, b in zip(plain, scaled, strict=True):
        _close(b, W_std**2 * np.asarray(a))


# Configurations
# ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inner:
    """A group of fields."""

    rate: float = 0.1
    widths: tuple[int, ...] = (8,)
    root: str | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    """A configuration with every type of field that experiments use."""

    inner: Inner = dataclasses.field(default_factory=Inner)
    alphas: tuple[float, ...] = (1.0, math.inf)
    steps: int = 3
    center: bool = True
    name: str = "digits"


FLOATS = st.floats(allow_nan=False).map(lambda value: value + 0.0)
WORDS = st.text("abcdefgh/._-", min_size=1, max_size=8).filter(
    lambda word: not word.startswith("-")
)
CONFIGS = st.builds(
    Outer,
    inner=st.builds(
        Inner,
        rate=FLOATS,
        widths=st.lists(st.integers(0, 10**6), min_size=1, max_size=4).map(tuple),
        root=WORDS.filter(lambda word: word != "None"),
    ),
    alphas=st.lists(FLOATS, min_size=1, max_size=4).map(tuple),
    steps=st.integers(-(10**9), 10**9),
    center=st.booleans(),
    name=WORDS,
)


def _items(config, prefix=""):
    """A configuration as overrides: what one would type behind `--set`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _items(value, f"{prefix}{field.name}.")
        else:
            text = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
            yield f"{prefix}{field.name}={text}"


@laws(config=CONFIGS)
def test_every_configuration_can_be_typed_as_overrides(config):
    assert configuration.preset({"smoke": Outer()}, "smoke", list(_items(config))) == config


@laws(config=CONFIGS)
def test_a_configuration_is_the_same_after_a_round_trip_through_its_file(config):
    described = configuration.as_dictionary(config)
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert _rebuilt(Outer, described) == config


def _rebuilt(kind, described):
    """A configuration from its dictionary, with the infinite as the word that stands for it."""
    values = {}
    for field in dataclasses.fields(kind):
        value = described[field.name]
        if field.name == "inner":
            values[field.name] = _rebuilt(Inner, value)
        elif isinstance(value, list):
            values[field.name] = tuple(float(v) if v in ("inf", "-inf") else v for v in value)
        else:
            values[field.name] = float(value) if field.name == "rate" else value
    return kind(**values)


@laws(
    alphas=st.lists(
        st.floats(0.01, 1e6), min_size=1, max_size=5, unique_by=lambda alpha: f"{alpha:g}"
    ),
    epochs=st.integers(1, 1000),
    widths=st.lists(st.integers(1, 999), min_size=1, max_size=3),
)
def test_overrides_of_an_experiment_are_parsed_by_type_and_leave_the_rest(alphas, epochs, widths):
    items = [f"alphas={','.join(map(str, [*alphas, 'inf']))}", f"train.epochs={epochs}"]
    items.append(f"network.widths={','.join(map(str, widths))}")
    base = lazy_vs_standard.PRESETS["laptop"]
    config = configuration.preset(lazy_vs_standard.PRESETS, "laptop", items)
    assert config.alphas == (*alphas, math.inf)
    assert config == dataclasses.replace(
        base,
        alphas=config.alphas,
        train=dataclasses.replace(base.train, epochs=epochs),
        network=dataclasses.replace(base.network, widths=tuple(widths)),
    )


@laws(word=st.text(min_size=1, max_size=12))
def test_a_word_that_is_no_number_is_refused_by_name(word):
    try:
        int(word)
    except ValueError:
        with pytest.raises(ValueError, match="--set train.epochs="):
            configuration.preset(lazy_vs_standard.PRESETS, "smoke", [f"train.epochs={word}"])


# Lazy
# -------------------------------------------------------------------------------------------------------------

MLP = ln.serial(ln.Dense(6, 1.2, 0.2), ln.Erf(), ln.Dense(2))
PARAMS = initial(0, MLP, jnp.ones((1, FEATURES)))
SIZE = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
STEPS = arrays(np.float64, SIZE, elements=st.floats(-2, 2, width=32))


def _step(flat):
    leaves, treedef = jax.tree.flatten(PARAMS)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = np.split(flat, ends[:-1])
    return treedef.unflatten(
        [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def _moved(flat):
    return jax.tree.map(lambda weight, step: np.asarray(weight) + step, PARAMS, _step(flat))


@jax.jit
def _call(function, u, x):
    return function(u, x)


def _outputs(params, x):
    return np.asarray(_call(jax.tree_util.Partial(MLP.apply), params, x))


@laws(x=ROWS, flat=STEPS)
def test_at_alpha_one_a_lazy_function_is_the_model_minus_its_start(x, flat):
    u = _step(flat)
    lazy = _call(ln.lazy(MLP.apply, PARAMS, 1.0), u, x)
    expected = _outputs(_moved(flat), x) - _outputs(PARAMS, x)
    np.testing.assert_allclose(lazy, expected, rtol=1e-10, atol=1e-12)


@laws(x=ROWS, flat=STEPS, alpha=st.floats(0.1, 1e3))
def test_at_every_alpha_a_lazy_function_is_the_scaled_displacement_of_the_model(x, flat, alpha):
    u = _step(flat)
    f = ln.lazy(MLP.apply, PARAMS, alpha)
    moved = _moved(flat / alpha)
    expected = alpha * (_outputs(moved, x) - _outputs(PARAMS, x))
    np.testing.assert_allclose(_call(f, u, x), expected, rtol=1e-9, atol=1e-11 * alpha + 1e-12)
    np.testing.assert_allclose(_call(f, _step(0 * flat), x), 0 * expected, atol=1e-14 * alpha)


@laws(x=ROWS, flat=STEPS, other=STEPS, scale=st.floats(-3, 3))
def test_at_alpha_infinity_a_lazy_function_is_linear(x, flat, other, scale):
    f = ln.lazy(MLP.apply, PARAMS, math.inf)
    mixed, u, v = (
        np.asarray(_call(f, _step(step), x)) for step in (flat + scale * other, flat, other)
    )
    np.testing.assert_allclose(mixed, u + scale * v, rtol=1e-9, atol=1e-10)


# Scattering
# -------------------------------------------------------------------------------------------------------

SIDE = 16
IMAGES = arrays(np.float64, (SIDE, SIDE), elements=st.floats(-1, 1, width=32))
BANK, PERIODIC = (
    filter_bank((SIDE, SIDE), J=2, L=4, padding=padding) for padding in ("reflect", "periodic")
)


@laws(x=IMAGES, c=SCALES)
def test_scattering_is_homogeneous(x, c):
    scaled, plain = scattering2d(jnp.asarray(c * x), BANK), scattering2d(jnp.asarray(x), BANK)
    np.testing.assert_allclose(scaled, c * plain, rtol=1e-9, atol=1e-12 * c)


@laws(x=IMAGES)
def test_scattering_coefficients_of_moduli_do_not_see_the_sign(x):
    plain, flipped = (scattering2d(jnp.asarray(sign * x), BANK) for sign in (1, -1))
    np.testing.assert_allclose(flipped[0], -plain[0], atol=1e-12)
    np.testing.assert_allclose(flipped[1:], plain[1:], atol=1e-12)


@laws(x=IMAGES, shift=st.tuples(st.integers(-3, 3), st.integers(-3, 3)))
def test_a_shift_of_a_periodic_image_by_whole_blocks_shifts_its_coefficients_and_keeps_their_energy(
    x, shift
):
    moved = np.roll(x, [4 * s for s in shift], axis=(0, 1))
    plain, after = (np.asarray(scattering2d(jnp.asarray(image), PERIODIC)) for image in (x, moved))
    np.testing.assert_allclose(after, np.roll(plain, shift, axis=(1, 2)), atol=1e-12)
    np.testing.assert_allclose(np.sum(after**2), np.sum(plain**2), rtol=1e-9, atol=1e-20)


@laws(x=IMAGES, shift=st.tuples(st.integers(0, 15), st.integers(0, 15)))
def test_the_energy_of_the_finest_moduli_of_a_periodic_image_does_not_see_any_shift(x, shift):
    images = jnp.asarray(np.stack([x, np.roll(x, shift, axis=(0, 1))]))
    moduli = np.abs(wavelet_coefficients(images, PERIODIC)[0])
    np.testing.assert_allclose(moduli[1], np.roll(moduli[0], shift, axis=(1, 2)), atol=1e-12)
    plain, after = np.sum(moduli**2, axis=(2, 3))
    np.testing.assert_allclose(after, plain, rtol=1e-9, atol=1e-20)
