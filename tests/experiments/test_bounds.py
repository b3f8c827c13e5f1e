"""Facts about the values of configurations: those that cannot run are refused by name before anything is computed."""

from __future__ import annotations

import dataclasses
import importlib
import math
import typing
from pathlib import Path

import pytest

from experiments import cifar10_alpha_sweep, lazy_vs_standard
from experiments.harness import bounds, catalog
from experiments.harness.config import preset
from experiments.harness.fields import fields_of, meanings

MODULES = {name: importlib.import_module(f"experiments.{name}") for name in catalog.names()}


def _classes(config):
    yield type(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, field.name)):
            yield from _classes(getattr(config, field.name))


@pytest.mark.parametrize("name", MODULES)
def test_every_number_of_every_configuration_has_bounds_and_every_field_a_meaning(name):
    for config in MODULES[name].PRESETS.values():
        for kind in _classes(config):
            hints = typing.get_type_hints(kind, include_extras=True)
            assert list(meanings(kind)) == list(hints)
            for field, hint in hints.items():
                inner, found = bounds.unwrap(hint)
                entries = typing.get_args(inner) if typing.get_origin(inner) is tuple else (hint,)
                assert (
                    found or inner not in (int, float) and typing.get_origin(inner) is not tuple
                ), (kind, field)
                assert all(
                    bounds.unwrap(e)[1] or bounds.unwrap(e)[0] not in (int, float) for e in entries
                )


@pytest.mark.parametrize("name", MODULES)
def test_every_preset_is_within_its_bounds(name):
    for config in MODULES[name].PRESETS.values():
        bounds.check(config)


def _bad(annotation):
    """Words that no field of this type may hold."""
    kind, found = bounds.unwrap(annotation)
    if typing.get_origin(kind) is tuple:
        entry = typing.get_args(kind)[0]
        return (
            [f"{word}," for word in _bad(entry)]
            + ["1,abc"]
            + ([""] if found and found[0].at_least else [])
        )
    if kind is int:
        return ["-1", "2.5", "nan", str(2**70)]
    return (
        ["nan", "-inf", "x"]
        if kind is float
        else ["?"]
        if typing.get_origin(kind) is typing.Literal
        else []
    )


@pytest.mark.parametrize("name", MODULES)
def test_impossible_values_of_every_field_are_refused_by_its_name(name):
    presets = MODULES[name].PRESETS
    for path, annotation, _, _ in fields_of(presets["smoke"]):
        for word in _bad(annotation):
            with pytest.raises((ValueError, TypeError)) as said:
                preset(presets, "smoke", [f"{path}={word}"])
            assert path.split(".")[-1] in str(said.value) and "\n" not in str(said.value), (
                path,
                word,
            )


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (
            ["train.batch_size=1000", "data.n_train=100"],
            "train.batch_size got 1000, expected an integer from 1 to 100",
        ),
        (["data.n_test=60"], "ntk_examples got 100, expected an integer from 1 to 60: .* test"),
        (["alphas=1,1"], "alphas got .1.0, 1.0., expected at least 1, all different"),
        (["alphas=1,1.0000001"], "differ in their first six digits"),
        (["data.n_train=1700", "data.n_test=98"], "together at most the 1797 digits"),
        (
            ["data.name=cifar10", "data.root=/nowhere"],
            "data.root got /nowhere, expected the folder of CIFAR-10",
        ),
        (["data.name=cifar10", "data.n_train=50001"], "data.n_train got 50001"),
        (["network.name=cnn"], "needs images"),
        (["train.momentum=1"], "train.momentum got 1.0, expected a finite number >= 0 and < 1"),
        (["alphas=1,abc"], "^--set alphas=1,abc: 'abc' is not a float.$"),
        (["alphas=1,,2"], "^--set alphas=1,,2: '' is not a float.$"),
    ],
)
def test_what_is_refused_is_named_with_what_is_expected(items, words):
    with pytest.raises(ValueError, match=words):
        preset(lazy_vs_standard.PRESETS, "smoke", items)


def test_a_list_may_end_with_a_comma_and_may_have_one_value():
    assert preset(lazy_vs_standard.PRESETS, "smoke", ["alphas=1,"]).alphas == (1.0,)
    assert preset(lazy_vs_standard.PRESETS, "smoke", ["alphas=inf"]).alphas == (math.inf,)
    config = preset(MODULES["kernel_small_data"].PRESETS, "smoke", ["tables.names="])
    assert (
        config.tables.names == ()
        and preset(lazy_vs_standard.PRESETS, "smoke", ["data.root=None"]).data.root is None
    )


def test_every_sound_scale_is_accepted_by_the_alpha_sweep():
    config = preset(cifar10_alpha_sweep.PRESETS, "smoke", ["alphas=0.001,1,1e4,1e7,inf"])
    assert config.alphas == (0.001, 1.0, 1e4, 1e7, math.inf)


def test_a_sweep_over_a_bad_value_is_refused_before_the_first_run(tmp_path):
    from experiments.harness.grid import grid

    with pytest.raises(ValueError, match="train.epochs got 0"):
        grid(
            "lazy_vs_standard",
            lazy_vs_standard.PRESETS,
            "smoke",
            ["train.epochs=1,0"],
            (),
            Path(tmp_path),
        )
    assert not list(tmp_path.iterdir())
