"""Hooks of the site: stored numbers become tables, modules' docstrings become sections, notebooks become pages.

A page asks for generated text by a line of its own, `<!-- generate: NAME ARGUMENTS -->`, where NAME
is a key of `GENERATORS`. Numbers stand in `docs/data/*.json` alone, so that no page can say another
one.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import io
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "docs" / "data"
MARK = re.compile(r"^<!-- generate: (\w+) ?(.*) -->$", flags=re.MULTILINE)

FORMULA = re.compile(r"^```math\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
"""A block of TeX, which code hosts typeset too."""


KINDS = {
    "passed": "pass",
    "failed": "fail",
    "internal": "call functions whose names begin with an underscore",
    "failed_there": "fail on neural-tangents itself",
    "unfinished": "were stopped after their time",
    "skipped": "skip themselves on a CPU",
}
"""Of cases of neural-tangents' tests, as they are stored and as the page says."""


def on_config(config):
    """Fills the empty entry "Notebooks" of the navigation."""
    notebooks = [f"notebooks/{path.name}" for path in _notebooks()]
    config.nav = [
        {"Notebooks": notebooks} if entry == {"Notebooks": []} else entry for entry in config.nav
    ]
    return config


def on_files(files, config):
    """Adds the notebooks, which live outside of `docs`."""
    from mkdocs.structure.files import File

    for path in _notebooks():
        files.append(
            File(f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls)
        )
    return files


on_files.mkdocs_priority = 100  # before the plugin that converts notebooks looks for them


def on_page_markdown(markdown, page, **_):
    """Replaces every mark by the text that its generator writes, and every formula by its MathML."""
    generated = MARK.sub(lambda found: GENERATORS[found[1]](*found[2].split()), markdown)
    return FORMULA.sub(lambda found: typeset(found[1]), generated)


def typeset(formula: str) -> str:
    """A block of TeX as MathML, which browsers draw by themselves: the site loads no scripts from other hosts."""
    from latex2mathml import converter

    mathml = converter.convert(formula, display="block")
    # Long ones scroll by themselves on narrow screens.
    return f'<div class="formula" style="overflow-x: auto">{mathml}</div>'


def read(name: str) -> Any:
    """The stored numbers `docs/data/NAME.json`; None where nothing has been stored yet."""
    path = DATA / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def theory_rows() -> list[list[str]]:
    """What each experiment must find and has found: the table of facts."""
    stored = read("theory")
    rows = []
    last = None
    for row in stored["rows"]:
        name = row["experiment"]
        summary = stored["runs"][name]["summary"]
        measured = ", ".join(f"{summary[key]:.2f}" for key in row["keys"])
        # The name stands in the first of the rows of an experiment.
        shown = "" if name == last else f"`{name}`"
        rows.append([shown, row["fact"], row["expected"], measured])
        last = name
    return rows


def claims(chapter: str) -> str:
    """The claims of one chapter of the lecture: where each is computed, what is expected and what was measured."""
    stored = read("lecture")
    runs = read("theory")["runs"] | stored["runs"]
    rows = []
    for row in stored["rows"]:
        if row["chapter"] != chapter:
            continue
        summary = runs[row["experiment"]]["summary"] if "experiment" in row else {}
        answers = [_fact(summary, name) for name in row.get("facts", [])]
        answers += [_order(summary, *pair) for pair in row.get("order", [])]
        answers += [_least(summary, *pair) for pair in row.get("at_least", {}).items()]
        where = [f"`{name}`" for name in [*row.get("names", []), *row.get("tests", [])]]
        if "experiment" in row:
            where.insert(0, f"[`{row['experiment']}`](experiments.md#{row['experiment']})")
        answers = answers or [("", "held by its test")]
        expected, measured = zip(*answers, strict=True)
        rows.append([row["claim"], *map("<br>".join, (where, expected, measured))])
    return table(["claim", "where it is computed", "expected", "measured"], rows)


def _fact(summary: dict[str, Any], name: str) -> tuple[str, str]:
    """What a fact expects and what was measured."""
    from experiments.harness import facts

    name, measured, predicted, holds = facts.told(summary, name)
    return f"`{name}` {predicted}", measured if holds else f"**{measured}, not found**"


def _order(summary: dict[str, Any], larger: str, smaller: str) -> tuple[str, str]:
    """An expectation that one number is above another, and whether that was found."""
    values = f"{summary[larger]:.4g} and {summary[smaller]:.4g}"
    found = summary[larger] > summary[smaller]
    return f"`{larger}` above `{smaller}`", values if found else f"**{values}, not found**"


def _least(summary: dict[str, Any], name: str, bound: float) -> tuple[str, str]:
    """An expectation that is no fact of the experiment, and whether it was found."""
    value = f"{summary[name]:.4g}"
    return f"`{name}` >= {bound:g}", value if summary[name] >= bound else f"**{value}, not found**"


def facts(name: str) -> str:
    """Every fact of a stored run, as the experiment itself prints them."""
    from experiments.harness import catalog, running

    run = read("theory")["runs"][name]
    shown = printed(lambda console: running.show(catalog.find(name), run["summary"], console))
    conditions = f"Smoke preset, jax {run['jax']}, {run['device']}, {run['seconds']:.0f} s:"
    return f"{conditions}\n\n{shown}"


def printed(show: Callable[[Any], None]) -> str:
    """What `show(console)` prints, as a block of text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=110)
    show(console)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return "\n".join(["```text", *lines, "```"])


def experiment_table() -> str:
    """Name, what it shows and presets of every experiment."""
    rows = [
        [f"[`{name}`](#{name})", _sentence(module), ", ".join(module.PRESETS)]
        for name, module in _experiments()
    ]
    return table(["experiment", "what it shows", "presets"], rows)


def experiment_sections() -> str:
    """Docstring and figures of every experiment."""
    figures = read("figures")
    parts = [
        [f"## {name}", inspect.getdoc(module), *_images(figures.get(name, {}))]
        for name, module in _experiments()
    ]
    return "\n\n".join("\n\n".join(part) for part in parts)


def benchmark_sections() -> str:
    """The docstrings of the benchmarks: command line, then every group."""
    from benchmarks import GROUPS

    return "\n\n".join(
        [_docstring("__main__"), *(f"### {name}\n\n{_docstring(name)}" for name in GROUPS)]
    )


def benchmark_tables() -> str:
    """Of every table of `python -m benchmarks` the newest that is recorded, with its conditions."""
    from benchmarks import history, report

    newest: dict[str, tuple[str, str]] = {}
    for result in history.load():
        shown = report.site(result)
        conditions = "\n".join(f"- {name}: {value}" for name, value in shown["conditions"].items())
        for each in shown["tables"]:
            # what was measured together stays together
            newest.pop(each["title"], None)
            drawn = table(each["columns"], each["rows"])
            newest[each["title"]] = conditions, f"### Measured: {each['title']}\n\n{drawn}"
    sections = ["## Measured"] if newest else []
    for conditions, tables in itertools.groupby(newest.values(), key=lambda item: item[0]):
        sections += [conditions, *(drawn for _, drawn in tables)]
    return "\n\n".join(sections)


def cpu_times(name: str) -> str:
    """CPU times and memory of a stored result of `python -m benchmarks`, of two programs, and its conditions."""
    from benchmarks import report

    result = read(name)
    rows = []
    for case, group in itertools.groupby(report.rows(result), key=lambda row: row.case):
        pair = list(group)
        times = [row.cpu_s / row.entries for row in pair]
        memory = [report.amount(row.bytes) for row in pair]
        ratio = f"{times[1] / times[0]:.2g}"
        rows.append([case, *map(report.seconds, times), ratio, " and ".join(memory)])
    conditions = "; ".join(report.conditions(result).values())
    header = ["case", *(row.program for row in pair), "ratio", "memory"]
    return f"{table(header, rows)}\n\nMeasured: {conditions}."


def their_tests() -> str:
    """What of neural-tangents' own tests passes on `lazynet.dropin`, and what does not, with the reason."""
    found = read("their_tests")
    counts = [[words, str(len(found[kind]))] for kind, words in KINDS.items() if found[kind]]
    reasons = [
        [f"`{case}`", reason] for kind in KINDS for case, reason in found[kind].items() if reason
    ]
    tables = [table(["cases that", "number"], counts), table(["does not pass", "why"], reasons)]
    return "\n\n".join([*tables, found["conditions"]])


def public_names() -> str:
    """Every name of `import lazynet`, its home and its first sentence."""
    import lazynet

    rows = []
    for name in dir(lazynet):
        value = getattr(lazynet, name)
        if getattr(value, "__module__", "").startswith("lazynet"):
            home = _home(value)
            rows.append([f"[`{name}`][{home}.{name}]", f"`{home}`", _sentence(value)])
    return table(["name", "module", "what it is"], rows)


def report(name: str) -> str:
    """What the experiment printed of each stored run of `docs/data/NAME.json`, with its conditions."""
    from experiments.harness import catalog, running

    stored = read(name)
    experiment = catalog.find(stored["experiment"])
    parts = []
    for run in stored["runs"].values():
        show = functools.partial(running.show, experiment, run["summary"])
        environment = run["environment"]
        version = environment["packages"]["jax"]
        conditions = f"Preset {stored['preset']}, jax {version}, {environment['device']}:"
        parts.append(f"{conditions}\n\n{printed(show)}")
    return "\n\n".join(parts)


def accuracies(name: str) -> str:
    """Train and test accuracy against epochs of the stored runs `docs/data/NAME.json`, one pair of columns a scale."""
    runs = read(name)["runs"]
    curves = {alpha: _by_epoch(run, f"alpha={alpha}") for alpha, run in runs.items()}
    header = ["epoch", *(f"alpha = {alpha}, train (test) %" for alpha in runs)]
    rows = []
    for epoch in sorted(set().union(*curves.values())):
        values = [curve.get(epoch, "-") for curve in curves.values()]
        rows.append([str(epoch), *values])
    return table(header, rows)


def final_numbers(name: str) -> str:
    """What the experiment prints of all stored runs of `docs/data/NAME.json` together, one row a scale."""
    from experiments.harness import catalog, docs_data

    runs = read(name)
    experiment = catalog.find(runs["experiment"])
    summary = experiment.numbers(docs_data.whole(runs), docs_data.arrays_of(runs))
    return printed(lambda console: [console.print(part) for part in experiment.report(summary)])


def _by_epoch(run: dict[str, Any], name: str) -> dict[int, str]:
    """Train and test accuracy in percent after each recorded epoch."""
    curve = run["curves"][name]
    config = run["config"]
    per_epoch = config["data"]["n_train"] // config["train"]["batch_size"]
    epochs = [int(step) // per_epoch for step in curve["step"]]
    shares = zip(curve["train_accuracy"], curve["test_accuracy"], strict=True)
    shown = [f"{100 * train:.1f} ({100 * test:.1f})" for train, test in shares]
    return dict(zip(epochs, shown, strict=True))


def exact_kernels() -> str:
    """The stored rows of `kernels_cifar10`."""
    header = ["kernel", "n", "test images", "test accuracy %", "ridge", "iterations"]
    header += ["CPU min: kernels", "choice of the ridge", "solution", "disk, GB"]
    rows = []
    for row in read("kernels_cifar10")["rows"]:
        accuracy = row["test_accuracy"]
        error = (accuracy * (1 - accuracy) / row["n_test"]) ** 0.5
        seconds = row["features_seconds"] + row["kernel_seconds"] + row["cross_seconds"]
        rows.append(
            [
                row["row"],
                f"{row['n']:,}",
                f"{row['n_test']:,}",
                f"{100 * accuracy:.1f} ± {100 * error:.1f}",
                f"{row['ridge']:g}",
                str(row["iterations"]),
                f"{seconds / 60:.1f}",
                f"{row['choice_seconds'] / 60:.1f}",
                f"{row['solution_seconds'] / 60:.1f}",
                f"{row['disk_gb']:.2f}",
            ]
        )
    return table(header, rows)


def documented_modules() -> list[str]:
    """The modules whose names the reference pages show."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    return [
        name
        for page in pages
        for name in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.MULTILINE)
    ]


def _home(value):
    """The documented module of a function or class: its own, or the package that passes it on."""
    documented = documented_modules()
    module = value.__module__
    while module not in documented:
        module = module.rpartition(".")[0]
    return module


def _notebooks():
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def _experiments():
    from experiments.harness import catalog

    return [(name, importlib.import_module(f"experiments.{name}")) for name in catalog.names()]


def _docstring(benchmark):
    return ast.get_docstring(ast.parse((ROOT / "benchmarks" / f"{benchmark}.py").read_text()))


def _sentence(thing):
    return " ".join(inspect.getdoc(thing).split("\n\n")[0].split())


def _images(captions):
    return [f"![{caption}](figures/{file})\n*{caption}*" for file, caption in captions.items()]


GENERATORS = {
    "theory_table": lambda: table(["experiment", "fact", "expected", "measured"], theory_rows()),
    **{
        each.__name__: each
        for each in (
            accuracies,
            claims,
            exact_kernels,
            final_numbers,
            report,
            facts,
            experiment_table,
            experiment_sections,
            public_names,
        )
    },
    **{
        each.__name__: each
        for each in (benchmark_sections, benchmark_tables, cpu_times, their_tests)
    },
}
