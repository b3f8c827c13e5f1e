"""Figures say what they show (labels, units, slopes, divergence), can be read in grey and are never half written."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from lazynet import plots
from lazynet.records import Gram, Trajectory

STEP = np.array([0, 1, 10, 100])
TIME = 0.1 * STEP


def _run(loss=(1.0, 0.5, 0.2, 0.1), accuracy=(0.1, 0.5, 0.8, 0.9), step=STEP, diverged_at=None):
    metrics = {"train_loss": np.array(loss), "test_accuracy": np.array(accuracy)}
    return Trajectory(step, 0.1 * step, metrics, None, diverged_at)


def _legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def _lightness(rgb):
    """CIE L* of an sRGB color: what is left of it in grey."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    luminance = float(np.dot(linear, [0.2126, 0.7152, 0.0722]))
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


@pytest.mark.parametrize("n", range(1, 8))
def test_curves_differ_in_grey_by_five_steps_of_lightness_and_stay_darker_than_paper(n):
    lightness = [_lightness(style["color"]) for style in plots.curve_styles(n)]
    assert all(np.diff(lightness) >= 5.0) and max(lightness) <= 80.0


def test_seven_curves_differ_in_line_and_marker_as_well():
    styles = plots.curve_styles(7)
    assert len({str(style["linestyle"]) for style in styles}) == 7
    assert len({style["marker"] for style in styles}) == 7


def test_the_panel_names_metric_clock_and_curves():
    ax = plots.plot_trajectories({"alpha=1": _run(), "kernel": _run()}, "train_loss")
    assert ax.get_ylabel() == "train loss" and "gradient-flow time" in ax.get_xlabel()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert _legend(ax) == ["alpha=1", "kernel"]


def test_an_accuracy_has_a_linear_axis_and_steps_can_be_the_clock():
    ax = plots.plot_trajectories({"run": _run()}, "test_accuracy", x="step", xscale="linear")
    assert ax.get_xlabel() == "optimizer steps" and ax.get_yscale() == "linear"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), STEP)


def test_a_logarithmic_clock_leaves_time_zero_out():
    line = plots.plot_trajectories({"run": _run()}, "train_loss").lines[0]
    np.testing.assert_allclose(line.get_xdata(), TIME[1:])
    np.testing.assert_allclose(line.get_ydata(), [0.5, 0.2, 0.1])


def test_the_limit_of_a_flow_at_infinite_time_is_not_drawn():
    flow = _run()._replace(time=np.array([0.0, 1.0, 10.0, np.inf]))
    assert plots.plot_trajectories({"kernel": flow}, "train_loss").lines[
        0
    ].get_xdata().tolist() == [1.0, 10.0]


def test_seeds_become_their_mean_and_a_band_of_one_standard_deviation():
    runs = [_run(accuracy=(0.1, 0.4, 0.7, 0.8)), _run(accuracy=(0.1, 0.6, 0.9, 1.0))]
    ax = plots.plot_trajectories({"two": runs}, "test_accuracy")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.5, 0.8, 0.9])
    (band,) = ax.collections
    edges = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([edges.max(), edges.min()], [0.9 + 0.02**0.5, 0.5 - 0.02**0.5])


def test_one_seed_has_no_band():
    assert not plots.plot_trajectories({"one": [_run()]}, "train_loss").collections


@pytest.mark.parametrize("metric", ["train_loss", "test_accuracy"])
def test_a_diverged_curve_ends_before_its_divergence_with_a_cross(metric):
    run = _run(loss=(1.0, 2.0, np.nan, np.nan), diverged_at=10)
    ax = plots.plot_trajectories({"too fast": run}, metric)
    curve, cross = ax.lines
    np.testing.assert_allclose(curve.get_xdata(), [0.1])
    assert cross.get_marker() == "x" and cross.get_xdata()[0] == pytest.approx(0.1)
    assert _legend(ax) == ["too fast (× 1 of 1 diverged)"]


def test_a_seed_that_stopped_at_its_divergence_ends_the_mean_of_all():
    short = Trajectory(STEP[:3], TIME[:3], {"train_loss": np.array([1.0, 2.0, np.inf])}, None, 10)
    ax = plots.plot_trajectories({"two": [short, _run()]}, "train_loss")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [1.25])
    assert _legend(ax) == ["two (× 1 of 2 diverged)"]


def test_seeds_with_their_own_learning_rates_stand_at_their_mean_time():
    slow, fast = _run(), _run()._replace(time=3 * TIME)
    line = plots.plot_trajectories({"two": [slow, fast]}, "train_loss").lines[0]
    np.testing.assert_allclose(line.get_xdata(), 2 * TIME[1:])


def test_a_power_law_is_fitted_in_its_range_and_named_in_the_legend():
    alpha = np.array([0.1, 1.0, 10.0, 100.0, 1000.0])
    values = np.where(alpha < 10, 1.0, 3.0 / alpha)
    ax = plots.plot_power_law(
        alpha, {"weight drift": values}, fit_range=(10, 1000), ylabel="relative drift"
    )
    assert _legend(ax) == ["weight drift: slope −1.00"]
    assert ax.get_ylabel() == "relative drift" and "alpha" in ax.get_xlabel()
    (law,) = [line for line in ax.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(law.get_ydata(), [0.3, 0.003])


def test_the_fit_range_is_shaded():
    ax = plots.plot_power_law([1.0, 10.0, 100.0], {"drift": [1.0, 0.1, 0.01]}, fit_range=(10, 100))
    shade = ax.patches[0]
    assert (shade.get_x(), shade.get_width()) == (10, 90)


def test_alpha_infinity_stands_on_the_right_and_takes_no_part_in_the_fit():
    ax = plots.plot_power_law(
        [1.0, 10.0, np.inf], {"gap": [1.0, 0.1, 7.0], "drift": [1.0, 0.1, 0.0]}
    )
    assert _legend(ax) == ["gap: slope −1.00", "drift: slope −1.00"]
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "$10^{0}$",
        "$10^{1}$",
        r"$\infty$",
    ]
    marks = [
        line.get_xdata()
        for line in ax.lines
        if line.get_linestyle() == "None" and line.get_marker() in "os"
    ]
    assert [mark.tolist() for mark in marks] == [[1, 10, 100], [1, 10]]


def test_seeds_of_a_quantity_become_error_bars_of_one_standard_deviation():
    ax = plots.plot_power_law([1.0, 10.0], {"drift": [[0.9, 0.09], [1.1, 0.11]]})
    (segments,) = [collection.get_segments() for collection in ax.collections]
    np.testing.assert_allclose(segments[0][:, 1], [1 - 0.02**0.5, 1 + 0.02**0.5])


def test_a_kernel_is_sorted_by_class_and_the_classes_are_named():
    matrix = np.arange(16.0).reshape(4, 4)
    ax = plots.plot_kernel(matrix, labels=[1, 0, 1, 0], name="NTK")
    np.testing.assert_array_equal(
        ax.images[0].get_array(), matrix[np.ix_([1, 3, 0, 2], [1, 3, 0, 2])]
    )
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1"]
    np.testing.assert_allclose(ax.get_xticks(), [0.5, 2.5])
    assert ax.figure.axes[1].get_ylabel() == "NTK"


def test_a_kernel_without_labels_is_drawn_as_it_is():
    ax = plots.plot_kernel(np.ones((2, 3)))
    assert ax.images[0].get_array().shape == (2, 3) and "example" in ax.get_xlabel()


def test_the_lightness_of_the_kernel_map_grows_with_the_value():
    cmap = plots.plot_kernel(np.eye(2)).images[0].get_cmap()
    assert all(np.diff([_lightness(cmap(value)[:3]) for value in np.linspace(0, 1, 9)]) > 3)


@pytest.mark.parametrize(("dtype", "kept"), [("float64", 3), ("float32", 2)])
def test_eigenvalues_below_the_rounding_of_their_dtype_are_counted_and_not_drawn(dtype, kept):
    ax = plots.plot_spectrum({"NTK": np.array([1e-8, -1e-17, 0.5, 1.0], dtype)})
    assert len(ax.lines[0].get_xdata()) == kept and ax.lines[0].get_ydata()[0] == 1.0
    assert _legend(ax) == [f"NTK ({4 - kept} of 4 below rounding)"]


def test_figures_go_into_axes_that_are_given():
    left, right = Figure().subplots(1, 2)
    assert plots.plot_trajectories({"run": _run()}, "train_loss", ax=left) is left
    assert plots.plot_spectrum({"NTK": np.ones(2)}, ax=right) is right


@pytest.mark.extended
def test_pyplot_is_never_loaded():
    code = (
        "import sys, numpy, lazynet.plots as p; p.plot_kernel(numpy.eye(2)); "
        "p.plot_spectrum({'a': numpy.ones(2)}); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_png_has_150_dots_per_inch_and_leaves_no_other_file(tmp_path):
    path = plots.save(plots.plot_kernel(np.eye(2)), tmp_path / "kernel.png")
    assert [file.name for file in tmp_path.iterdir()] == ["kernel.png"]
    header = path.read_bytes()[:24]
    assert header[:4] == b"\x89PNG" and int.from_bytes(header[16:20], "big") == 4.6 * 150


def test_a_failed_save_keeps_the_old_figure(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def half(self, target, **kwargs):
        target.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(KeyboardInterrupt):
        plots.save(Figure(), path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_saving_into_a_missing_folder_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        plots.save(Figure(), tmp_path / "absent" / "figure.png")


RUNS = {"run": _run()}
MISTAKES = {
    "unknown metric": (
        lambda: plots.plot_trajectories(RUNS, "loss"),
        r"'loss'.*\['test_accuracy', 'train_loss'\]",
    ),
    "no curves": (lambda: plots.plot_trajectories({}, "train_loss"), "at least one entry"),
    "no seeds": (
        lambda: plots.plot_trajectories({"run": []}, "train_loss"),
        "expected a Trajectory or a list",
    ),
    "other steps": (
        lambda: plots.plot_trajectories({"two": [_run(), _run(step=2 * STEP)]}, "train_loss"),
        "different steps.*save_at",
    ),
    "nothing finite": (
        lambda: plots.plot_trajectories({"run": _run(loss=[np.nan] * 4)}, "train_loss"),
        "no finite record of 'train_loss'",
    ),
    "no quantities": (lambda: plots.plot_power_law([1.0, 2.0], {}), "at least one entry"),
    "other length": (
        lambda: plots.plot_power_law([1.0, 2.0], {"gap": [1.0]}),
        r"shape \(1, 1\).*a=2",
    ),
    "negative alpha": (
        lambda: plots.plot_power_law([-1.0, 2.0], {"gap": [1.0, 1.0]}),
        r"\[-1.0, 2.0\].*positive",
    ),
    "only infinity": (
        lambda: plots.plot_power_law([np.inf], {"gap": [1.0]}),
        "at least two of them finite",
    ),
    "one point": (
        lambda: plots.plot_power_law([1.0, 10.0], {"gap": [1.0, 0.0]}),
        "'gap' has 1 positive values.*widen fit_range",
    ),
    "gram": (
        lambda: plots.plot_kernel(np.stack(Gram(np.eye(2), np.eye(2)))),
        "gram.ntk or gram.nngp",
    ),
    "kernel with nan": (lambda: plots.plot_kernel(np.full((2, 2), np.nan)), "4 non-finite entries"),
    "one-hot labels": (lambda: plots.plot_kernel(np.eye(2), np.eye(2)), r"argmax\(1\)"),
    "labels of a rectangle": (lambda: plots.plot_kernel(np.ones((2, 3)), [0, 1]), "square matrix"),
    "matrix as spectrum": (lambda: plots.plot_spectrum({"NTK": np.eye(2)}), "eigvalsh"),
    "no spectra": (lambda: plots.plot_spectrum({}), "at least one entry"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_what_was_expected(name):
    attempt, message = MISTAKES[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        attempt()
