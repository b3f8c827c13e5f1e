"""Facts about `tangent_fine_tuning`: its smoke run, its data, where its methods start, and how tasks are scored."""

from __future__ import annotations

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import experiments.tangent_fine_tuning as experiment
import lazynet as ln
from experiments.tangent_fine_tuning import arithmetic, trainings
from lazynet import trees

CONSOLE = Console(file=io.StringIO())
SMOKE = experiment.PRESETS["smoke"]


def test_old_and_new_classes_share_no_image_and_few_are_the_first_new_ones():
    problem = trainings.load(SMOKE)
    classes = [set(np.asarray(part.y).argmax(axis=1).tolist()) for part in problem]
    assert classes == [{0, 1, 2, 3, 4}] * 2 + [{5, 6, 7, 8, 9}] * 2
    assert len(problem.few.y) == SMOKE.few
    assert abs(float(problem.old.x.mean())) < 0.1


def test_more_images_of_the_new_classes_than_there_are_are_refused():
    with pytest.raises(
        ValueError, match=r"few got 5000, expected an integer from 1 to 400: .*n_train"
    ):
        trainings.load(dataclasses.replace(SMOKE, few=5000))


def test_every_method_starts_at_the_function_of_the_weights_and_moves_what_it_selects():
    problem = trainings.load(SMOKE)
    model = trainings.network(SMOKE)
    params = model.init(jax.random.key(0), problem.few.x)
    x = problem.few.x[:5]
    expected = model.apply(params, x)
    chosen = {}
    every = dataclasses.replace(SMOKE, methods=trainings.METHODS)
    for name, method in trainings.methods(every, model, params, problem).items():
        np.testing.assert_allclose(method.apply(method.params, x), expected, rtol=1e-5, atol=1e-5)
        selected = ln.parameters.selected(method.where, method.params)
        leaves = zip(jax.tree.leaves(selected), jax.tree.leaves(method.params), strict=True)
        chosen[name] = sum(leaf.size for is_chosen, leaf in leaves if is_chosen)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert chosen["all weights"] == chosen["linearized"] == size
    assert chosen["last layer"] == 10 * SMOKE.widths[-1] + 10
    assert 0 < chosen["LoRA"] == chosen["linearized LoRA"] < size


def test_a_task_is_scored_among_its_own_classes():
    # the outputs are the pixels: classes 5 and 6 are told apart, whatever class 0 says
    start = ln.tangent_at(lambda w, x: x @ w, jnp.eye(10))
    x = np.zeros((4, 10))
    x[:, 0] = 9.0
    x[[0, 1, 2, 3], [5, 6, 6, 5]] = 1.0
    y = np.eye(10)[[5, 6, 5, 5]]
    parts = {"two classes": ln.Data(jnp.asarray(x), jnp.asarray(y))}
    found = arithmetic._accuracies("m", start.function, start, parts)
    assert found == {"m/two classes": 0.75}
    turned = start.at(trees.zeros_like(jnp.eye(10)) - 2 * jnp.eye(10))
    assert arithmetic._accuracies("m", start.function, turned, parts) == {"m/two classes": 0.25}


def test_both_models_that_are_compared_are_asked_for():
    with pytest.raises(ValueError, match="expected 'all weights' and 'linearized'"):
        experiment.Config(methods=("linearized", "LoRA")).check("")


@pytest.mark.slow
def test_every_fact_of_the_smoke_run_holds(finished):
    summary, folder = finished
    verdicts = {key: value for key, value in summary.items() if key.startswith("passed/")}
    assert len(verdicts) == 11 and all(verdicts.values()), verdicts
    assert (folder / "figures" / "tangent_fine_tuning.png").stat().st_size > 10_000
