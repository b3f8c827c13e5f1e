"""The benchmarks measure in turns, say what failed, keep what they measured, and compare equal computations."""

from __future__ import annotations

import importlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import GROUPS, group, history, networks, report, synthetic
from benchmarks import __main__ as command
from benchmarks.measure import Case, Program, Row, in_turns, jitted, measure
from benchmarks.peers import beside
from experiments import loss_vs_scale, population_sgd
from lazynet import zoo

MACHINE = {
    "python": "3.11",
    "device": "cpu: cpu x 1",
    "commit": "0123456789abcdef",
    "packages": {"jax": "0.5.3", "kymatio": None},
    "cpu": "A Fast(R) Processor",
    "cores": 2,
    "date": "2026-01-02",
    "uncommitted": False,
}


def _row(program, cpu_s, wall_s, **more):
    return Row("group", "case", program, cpu_s, wall_s, 1.0, unit="entry", **more)


def _result(*rows, date="2026-01-02"):
    return {
        "quick": True,
        "machine": MACHINE | {"date": date},
        "rows": [row._asdict() for row in rows],
    }


def _measured(programs, **more):
    return {row.program: row for row in measure("group", Case("case", lambda: programs, **more))}


def test_programs_are_called_in_turns():
    calls = []
    in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, least_s=0.0)
    assert "".join(calls) == "ababab"


def test_a_program_is_called_once_before_its_turns():
    calls = []
    _measured({"a": Program(lambda: calls.append("a"))}, rounds=0)
    assert calls == ["a"]


def test_the_times_of_a_program_are_those_of_one_call():
    times = in_turns({"a": lambda: sum(range(1000))}, 2, least_s=0.01)["a"]
    assert 0 < times.wall_s < 0.01


def test_a_program_that_fails_is_a_row_with_its_error_and_the_others_go_on():
    rows = _measured({"good": Program(lambda: 1.0), "bad": Program(lambda: 1 / 0)}, rounds=1)
    assert rows["bad"].error == "ZeroDivisionError: division by zero" and rows["bad"].cpu_s is None
    assert rows["good"].error == "" and rows["good"].cpu_s is not None


def test_a_case_that_cannot_be_built_is_one_row_with_its_error():
    (row,) = measure("group", Case("case", lambda: {}["missing"]))
    assert row.error == "KeyError: 'missing'" and row.case == "case"


def test_a_result_that_differs_is_an_error():
    answers = {"first": 1.0, "near": 1.0 + 1e-6, "far": 2.0, "nan": np.nan}
    programs = {name: Program(lambda value=value: value) for name, value in answers.items()}
    rows = _measured(programs, rounds=1, answer=np.asarray)
    assert [name for name, row in rows.items() if row.error] == ["far", "nan"]
    assert rows["near"].differs == pytest.approx(1e-6)


def test_a_program_without_an_answer_is_not_compared():
    programs = {"first": Program(lambda: 1.0), "other": Program(lambda: None)}
    rows = _measured(programs, rounds=1, answer=lambda result: result)
    assert rows["other"].differs is None and not rows["other"].error


def test_a_peer_that_cannot_be_imported_leaves_its_column_empty_and_says_so():
    peer = beside(
        lambda: importlib.import_module("no_such_library"), lambda library: Program(library.run)
    )
    row = _measured({"ours": Program(lambda: 1), "peer": peer}, rounds=1)["peer"]
    assert row.cpu_s is None and not row.error and "No module named 'no_such_library'" in row.note


def test_the_compiler_tells_the_memory_of_a_jitted_program():
    row = _measured({"sum": jitted(lambda x: jnp.cumsum(x) * 2.0, jnp.ones(1000))}, rounds=1)["sum"]
    assert row.bytes is not None and row.bytes >= 1000 * jnp.ones(()).dtype.itemsize


def test_a_remark_may_depend_on_the_result_and_the_time():
    program = Program(lambda: 7, note=lambda result, cpu_s: f"{result} in {cpu_s >= 0}")
    assert _measured({"a": program}, rounds=1)["a"].note == "7 in True"


def test_rows_survive_json(tmp_path):
    rows = [_row("a", 1.0, 2.0, bytes=3, note="b | c"), _row("b", None, None, error="broken")]
    for row in rows:
        group.write(tmp_path / "rows.jsonl", row)
    assert group.read(tmp_path / "rows.jsonl") == rows
    command.write(_result(*rows), tmp_path)
    assert report.rows(json.loads((tmp_path / "benchmarks.json").read_text())) == rows


def test_a_torn_last_line_of_rows_is_left_out(tmp_path):
    group.write(tmp_path / "rows.jsonl", _row("a", 1.0, 2.0))
    with (tmp_path / "rows.jsonl").open("a") as stream:
        stream.write('{"group": "gr')
    assert [row.program for row in group.read(tmp_path / "rows.jsonl")] == ["a"]


def test_ratios_are_per_unit_and_to_the_first_program():
    page = report.markdown(
        _result(_row("ours", 2.0, 4.0, entries=10.0), _row("peer", 1.0, 1.0, note="a | b"))
    )
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert lines[0] == "| case, per entry | ours | 200 ms | 400 ms | 1.00 | 1.00 | 1 s |  |  |"
    assert lines[1] == "|  | peer | 1 s | 1 s | 5.00 | 2.50 | 1 s |  | a \\| b |"


def test_rows_without_times_have_no_ratios():
    rows = [
        _row("ours", None, None, error="broken"),
        _row("peer", 1.0, 1.0),
        _row("absent", None, None, note="why"),
    ]
    assert [ratio for _, ratio in report.ratios(rows)] == [(None, None)] * 3
    shown = report.tables(rows)[0]["rows"]
    assert [cells[-1] for cells in shown] == ["FAILED: broken", "", "why"]


@pytest.mark.parametrize(
    "value, shown",
    [(1234.0, "1,234 s"), (1.5, "1.5 s"), (0.0125, "12.5 ms"), (2e-5, "20 us"), (3e-9, "3 ns")],
)
def test_times_are_shown_with_a_fitting_unit(value, shown):
    assert report.seconds(value) == shown


def test_recorded_runs_are_loaded_by_date_and_drawn(tmp_path):
    for date, cost in (("2026-02-01", 3.0), ("2026-01-02", 5.0)):
        path = history.record(
            _result(_row("ours", 1.0, 1.0), _row("peer", cost, 1.0), date=date), tmp_path
        )
    assert path.name == "2026-01-02-012345678-a-fast-processor-2-cores-jax-0.5.3-quick.json"
    results = history.load(tmp_path)
    (curve,) = history.curves(results).values()
    assert [(str(day), ratio) for day, ratio in curve] == [("2026-01-02", 5.0), ("2026-02-01", 3.0)]
    assert history.plot(results, tmp_path / "history.png").stat().st_size > 0


def test_recorded_runs_of_one_day_are_in_one_order_wherever_files_are_listed(tmp_path):
    for commit in ("b" * 40, "a" * 40):
        result = _result(_row("ours", 1.0, 1.0), date="2026-01-02")
        result["machine"]["commit"] = commit
        history.record(result, tmp_path)
    for backwards in (False, True):
        files = sorted(tmp_path.glob("*.json"), reverse=backwards)
        results = history.load(types.SimpleNamespace(glob=lambda pattern, files=files: files))
        assert [result["machine"]["commit"][0] for result in results] == ["a", "b"]


def test_a_history_without_ratios_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="--record"):
        history.plot(history.load(tmp_path), tmp_path / "history.png")


def test_a_group_whose_process_dies_keeps_its_rows_and_fails(tmp_path, monkeypatch):
    def dies(arguments, **_):
        group.write(command.Path(arguments[4]), _row("ours", 1.0, 1.0))
        return type("Done", (), {"returncode": -9})

    monkeypatch.setattr(command.subprocess, "run", dies)
    kept, died = command.run_group("kernels", True, tmp_path)
    assert kept.program == "ours" and died.error == "its process ended with status -9"


@pytest.mark.parametrize("failing", [False, True])
def test_the_exit_status_says_whether_everything_ran(failing, tmp_path, monkeypatch, capsys):
    row = _row("ours", 1.0, 1.0, error="broken" if failing else "")
    monkeypatch.setattr(command, "run_group", lambda *_: [row])
    assert command.main(["--quick", "--only", "kernels", "--out", str(tmp_path)]) == int(failing)
    assert ("broken" in capsys.readouterr().err) == failing
    assert json.loads((tmp_path / "benchmarks.json").read_text())["rows"] == [row._asdict()]


def test_the_list_names_every_group(capsys):
    assert command.main(["--list", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in GROUPS)


FAST = ("kernels", "scattering", "regression", "training")
"""Groups whose first case is built in a second."""


def _cases(quick):
    for name in GROUPS:
        for i, case in enumerate(importlib.import_module(f"benchmarks.{name}").cases(quick)):
            marks = [] if i == 0 and name in FAST else [pytest.mark.slow]
            yield pytest.param(name, case, id=f"{name}: {case.name}", marks=marks)


@pytest.mark.parametrize(
    "name, case", [param for param in _cases(True) if param.values[0] != "devices"]
)
def test_every_quick_case_can_be_built(name, case):
    programs = case.build()
    assert all(program.run is not None or program.note for program in programs.values())
    assert next(iter(programs.values())).run is not None


def test_cases_have_names_of_their_own_with_all_sizes():
    for quick in (True, False):
        named = [param.id for param in _cases(quick)]
        assert len(named) == len(set(named))


def test_one_device_is_refused_where_two_are_compared():
    from benchmarks import devices

    with pytest.raises(RuntimeError, match="expected two"):
        next(devices.cases(True)).build()


def _answers(programs):
    return {name: np.asarray(program.run()) for name, program in programs.items()}


@pytest.mark.extended
def test_the_engine_of_figure_1c_trains_as_autodiff_the_host_loop_and_numpy_do():
    config = loss_vs_scale.Config(d=6, n=20, width=8)
    expected, *others = _answers(synthetic.full_batch(config, (0.1, 2.0), 15)).values()
    start = _answers(synthetic.full_batch(config, (0.1, 2.0), 1))["NumPy"]
    assert len(others) == 3 and np.abs(expected - start).max() > 1e-3
    for found in others:
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.extended
def test_the_engine_of_figure_2b_trains_as_one_scale_at_a_time_autodiff_and_numpy_do():
    config = population_sgd.Config(
        taus=(0.1, 0.5, 2.0), d=6, width=8, batch_size=10, steps=12, last=4
    )
    expected, *others = _answers(synthetic.fresh_batches(config)).values()
    assert len(others) == 3 and expected.shape == (3,)
    for found in others:
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.extended
def test_the_networks_of_flax_are_those_of_lazynet_before_the_first_step():
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    pairs = (
        (zoo.mlp((8, 8), 10, b_std=0.1), networks.mlp((8, 8), 10), x.reshape(2, -1)),
        (zoo.cnn((4, 8), 10, strides=(2, 1)), networks.cnn((4, 8), 10, (2, 1)), x),
        (zoo.vgg11(10, width=1 / 16, b_std=0.1), networks.vgg11(10, 1 / 16), x),
    )
    for model, module, inputs in pairs:
        params = model.init(jax.random.key(0), inputs)
        weights = networks.flax_weights(params, W_std=2**0.5, b_std=0.1)
        expected = model.apply(params, inputs)
        np.testing.assert_allclose(module.apply(weights, inputs), expected, rtol=1e-4, atol=1e-5)
