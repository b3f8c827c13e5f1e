"""Curves, rates, kernels and spectra as matplotlib figures that can be read in grey and by the color-blind.

Every function draws into `ax`, or into a figure of its own, and returns the Axes; none touches the
global state of pyplot. Curves differ in lightness, line style and marker at once, so that color
carries no information alone.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from jaxtyping import Num, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lazynet import files, guards
from lazynet.diagnostics import fit_slope
from lazynet.linalg import spectrum_tolerance
from lazynet.records import Trajectory
from lazynet.typing import ArrayLike

__all__ = [
    "curve_styles",
    "plot_kernel",
    "plot_power_law",
    "plot_spectrum",
    "plot_trajectories",
    "save",
]

LINES = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (9, 3)),
    (0, (1, 2.5)),
)
MARKERS = ("o", "s", "^", "D", "v", "p", ">", "h", "<")
X_LABELS = {"time": r"gradient-flow time $t = \sum \eta\,/\,(1 - m)$", "step": "optimizer steps"}


def plot_trajectories(
    curves: Mapping[str, Trajectory | Sequence[Trajectory]],
    metric: str,
    *,
    x: Literal["time", "step"] = "time",
    xscale: Literal["log", "linear"] = "log",
    yscale: Literal["log", "linear"] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Curves `metric(x)` of several runs in one panel, mean ± standard deviation over seeds.

    Runs of any regime can share the panel on the common clock `time`, the sum of the learning rates
    eta over one minus the momentum m. Where a seed diverges or is not finite, the curve ends at the
    last record before with a cross, and the legend says how many seeds did.

    Args:
        curves: `{label: trajectory}` or `{label: [one trajectory for each seed]}`, in the order of
            the legend. The band is the sample standard deviation (divisor s - 1); seeds must have
            been recorded at the same steps.
        metric: A name in `Trajectory.metrics`.
        x: `"time"` or `"step"`.
        xscale: `"log"` leaves records at x = 0 out; the record at infinite time of a kernel flow is
            left out by both.
        yscale: By default `"log"` for losses, `"linear"` otherwise.
        ax: Axes to draw into; by default those of a new figure, `ax.figure`.

    Raises:
        ValueError: If there are no curves, the metric is unknown (the message lists the known
            ones), a trajectory has no records that can be drawn, or seeds were recorded at
            different steps.

    Example:
        >>> time = np.array([0.1, 1.0, 10.0])
        >>> run = Trajectory(np.array([1, 10, 100]), time, {"train_loss": np.exp(-time)}, None, None)
        >>> ax = plot_trajectories({"alpha=1": run}, "train_loss")
        >>> ax.get_legend_handles_labels()[1], ax.get_ylabel()
        (['alpha=1'], 'train loss')
    """
    if x not in X_LABELS:
        raise ValueError(f"x is {x!r}, expected one of {sorted(X_LABELS)}.")
    _check_named(curves, "curves", "trajectory")
    ax = _axes(ax)
    yscale = yscale or ("log" if metric.endswith("loss") else "linear")
    for style, (label, runs) in zip(curve_styles(len(curves)), curves.items(), strict=True):
        seeds = [runs] if isinstance(runs, Trajectory) else list(runs)
        where, values, n_ended = _seeds(label, seeds, metric, x)
        drawn = np.isfinite(where) & ((where > 0) | (xscale == "linear"))
        if not drawn.any():
            raise ValueError(
                f"curve {label!r} has no finite record of {metric!r} with {x} > 0, expected at least one "
                "on a logarithmic axis: pass xscale='linear'."
            )
        suffix = f" (× {n_ended} of {len(seeds)} diverged)" if n_ended else ""
        _band(ax, where[drawn], values[:, drawn], label + suffix, style, ended=bool(n_ended))
    ax.set(xlabel=X_LABELS[x], ylabel=metric.replace("_", " "), xscale=xscale, yscale=yscale)
    return _finish(ax)


def plot_power_law(
    alpha: Num[ArrayLike, "..."] | Sequence[float | int],
    quantities: Mapping[str, Any],
    *,
    fit_range: tuple[float | int, float | int] | None = None,
    xlabel: str = r"scale $\alpha$",
    ylabel: str = "relative change",
    ax: Axes | None = None,
) -> Axes:
    r"""Quantities against alpha in log-log, with the fitted law `q = c alpha^slope` drawn and named.

    In the lazy regime weights, kernel and outputs change by powers of 1/alpha; the slope is the
    claim, so the figure shows the range it was fitted on (shaded) and its value (legend). Values at
    alpha = inf stand to the right of a gap and take no part in the fit.

    Args:
        alpha: Scales, inf allowed.
        quantities: `{label: values}`, each `[a]` or `[seeds, a]`, drawn as mean ± sample standard
            deviation. Zeros, such as the gap of the linearized model to itself, have no place on a
            logarithmic axis and are left out.
        fit_range: Smallest and largest alpha of the fit; all finite ones by default.
        xlabel: Label of the horizontal axis.
        ylabel: Label of the vertical axis, with the unit.
        ax: Axes to draw into; by default those of a new figure.

    Raises:
        ValueError: If there are no quantities, shapes differ from alpha's, an alpha is not
            positive, or fewer than two positive values lie in the fit range.

    Example:
        >>> alpha = np.array([1.0, 10.0, 100.0, np.inf])
        >>> ax = plot_power_law(alpha, {"weight drift": np.array([0.5, 0.05, 0.005, 0.0])})
        >>> ax.get_legend_handles_labels()[1]
        ['weight drift: slope −1.00']
    """
    _check_named(quantities, "quantities", "array")
    alpha = guards.vector("alpha", alpha)
    finite, low, high = _fit_range(alpha, fit_range)
    # A decade behind the last finite scale, with a gap between.
    infinity = 10.0 * alpha[finite].max()
    ax = _axes(ax)
    for style, (label, values) in zip(
        curve_styles(len(quantities)), quantities.items(), strict=True
    ):
        mean, spread = _mean_and_spread(label, values, alpha)
        shown = mean > 0
        used = shown & (alpha >= low) & (alpha <= high)
        slope, factor = _fit(label, alpha[used], mean[used], (low, high))
        at = np.where(finite, alpha, infinity)
        bars = None if spread is None else spread[shown]
        name = f"{label}: slope " + f"{slope:.2f}".replace("-", "−")
        # Points without a line, a law without points, and both in one entry of the legend.
        points: dict[str, Any] = {**style, "linestyle": "", "markevery": None}
        law: dict[str, Any] = {**style, "marker": ""}
        ax.errorbar(at[shown], mean[shown], bars, capsize=2, elinewidth=0.8, **points)
        ax.plot([low, high], factor * np.array([low, high]) ** slope, **law)
        ax.plot([], [], label=name, **style)
    ax.axvspan(low, high, color="0.93", linewidth=0, zorder=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    _finish(ax)
    if not finite.all():
        _mark_infinity(ax, alpha[finite], infinity)
    return ax


def plot_kernel(
    matrix: Num[ArrayLike, "..."],
    labels: Shaped[ArrayLike, "..."] | Sequence[Any] | None = None,
    *,
    name: str = r"$\Theta(x, x')$",
    ax: Axes | None = None,
) -> Axes:
    r"""A kernel matrix as an image; with labels, sorted by class, so that class structure shows as blocks.

    Args:
        matrix: `[n1, n2]`, for instance `gram.ntk`, or `empirical_ntk(..., outputs="trace")`.
        labels: Class of every example of a square matrix; rows and columns are sorted by it
            (stable) and the classes are named on the axes.
        name: Label of the color bar.
        ax: Axes to draw into; by default those of a new figure.

    Raises:
        ValueError: If the matrix is not two-dimensional or not finite, or there is not one label
            for every row of a square matrix.

    Example:
        >>> ax = plot_kernel(np.eye(4), labels=[1, 0, 1, 0])
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['0', '1']
    """
    matrix = _checked_matrix(matrix)
    ax = _axes(ax, (4.6, 3.8))
    classes = None
    counts = None
    if labels is not None:
        labels = _checked_labels(labels, matrix)
        # Stable, so that examples of a class keep the order of the data.
        order = np.argsort(labels, kind="stable")
        classes, counts = np.unique(labels, return_counts=True)
        matrix = matrix[np.ix_(order, order)]
    image = ax.imshow(matrix, cmap="cividis", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=name, shrink=0.9)
    ax.set(xlabel="example $x'$", ylabel="example $x$")
    if classes is not None:
        _mark_classes(ax, classes, counts)
    return ax


def plot_spectrum(
    spectra: Mapping[str, Any], *, ylabel: str = r"eigenvalue $\lambda_i$", ax: Axes | None = None
) -> Axes:
    r"""Eigenvalues `lambda_1 >= lambda_2 >= ...` against their rank in log-log.

    The decay says how many directions a kernel learns in a given time: direction i needs about
    1/lambda_i.

    Args:
        spectra: `{label: eigenvalues}` in any order. Values below the rounding of the kernel
            (`linalg.spectrum_tolerance`) are left out; the legend counts them.
        ylabel: Label of the vertical axis.
        ax: Axes to draw into; by default those of a new figure.

    Raises:
        ValueError: If there are no spectra, or one is not a vector of finite numbers with a
            positive one.

    Example:
        >>> ax = plot_spectrum({"NTK": np.array([1e-3, 1.0, -1e-17])})
        >>> ax.get_legend_handles_labels()[1]
        ['NTK (1 of 3 below rounding)']
    """
    _check_named(spectra, "spectra", "array of eigenvalues")
    ax = _axes(ax)
    for style, (label, values) in zip(curve_styles(len(spectra)), spectra.items(), strict=True):
        kept, n = _above_rounding(label, _numbers(f"spectra[{label!r}]", values))
        suffix = f" ({n - len(kept)} of {n} below rounding)" if len(kept) < n else ""
        ax.plot(np.arange(1, len(kept) + 1), kept, label=label + suffix, **style)
    ax.set(xlabel="rank $i$", ylabel=ylabel, xscale="log", yscale="log")
    return _finish(ax)


def save(figure: Figure | Axes, path: str | os.PathLike[str]) -> Path:
    """Writes a figure under a temporary name and renames it, so that `path` never holds half a figure.

    Args:
        figure: A figure, or Axes whose figure is meant.
        path: Where to; the ending (.png, .pdf, .svg) is the format, PNG has 150 dots per inch.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If it cannot be written, with its name, for instance on a full disk.
        ValueError: If the ending is not a format of matplotlib.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> save(plot_spectrum({"NTK": np.ones(3)}), folder / "spectrum.png").name
        'spectrum.png'
    """
    path = files.given_path("path", path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"save got {path}, but the folder {path.parent} does not exist: make it first."
        )
    whole: Any = figure.figure if isinstance(figure, Axes) else figure
    kind = path.suffix.removeprefix(".") or "png"
    drawing = io.BytesIO()
    # Drawn into memory first: what matplotlib says of a full disk names no file, or is no error of
    # the system at all.
    whole.savefig(drawing, dpi=150, format=kind)
    files.atomically(path, lambda file: file.write(drawing.getbuffer()))
    return path


def curve_styles(n: int) -> list[dict[str, Any]]:
    """Line styles of `n` curves, from dark to light, as keyword arguments of `Axes.plot`.

    The colors sample viridis, whose lightness is monotone: the order of the curves survives
    printing in grey. The markers of different curves stand at different places (`markevery`), so
    that curves which coincide both show.

    Args:
        n: Number of curves.

    Example:
        >>> [style["marker"] for style in curve_styles(3)]
        ['o', 's', '^']
    """
    n = guards.count("n", n, at_least=0)
    # Not up to 1, where viridis is yellow and too light on white; few curves stay far from it.
    colors = matplotlib.colormaps["viridis"](np.linspace(0.0, min(0.8, 0.35 + 0.1 * n), n))
    styles = []
    for i, color in enumerate(colors):
        style = {
            "color": tuple(map(float, color[:3])),
            "linestyle": LINES[i % len(LINES)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 5.0,
            "markeredgecolor": "white",
            "markeredgewidth": 0.4,
            # Markers of curves that lie on each other do not: each begins a bit later.
            "markevery": (0.14 * i / n, 0.14),
            "linewidth": 1.5,
        }
        styles.append(style)
    return styles


def _seeds(label, seeds, metric, x):
    """Abscissas `[s]` and values `[seeds, s]` up to the first end of a seed, and how many seeds ended early."""
    if not seeds or not all(isinstance(run, Trajectory) for run in seeds):
        raise ValueError(
            f"curve {label!r} is {seeds!r}, expected a Trajectory or a list of them, one for each seed."
        )
    columns = [_column(label, run, metric) for run in seeds]
    ends = [_end(run, column) for run, column in zip(seeds, columns, strict=True)]
    n_ended = sum(end < len(run.step) for run, end in zip(seeds, ends, strict=True))
    steps = np.stack([np.asarray(run.step)[: min(ends)] for run in seeds])
    if (steps != steps[0]).any():
        raise ValueError(
            f"the seeds of curve {label!r} were recorded at different steps, {steps[:, :4].tolist()}...: "
            "use the same save_at for every seed, or draw them as curves of their own."
        )
    where = np.mean([np.asarray(getattr(run, x), float)[: min(ends)] for run in seeds], axis=0)
    return where, np.stack([column[: min(ends)] for column in columns]), n_ended


def _column(label, run, metric):
    if metric not in run.metrics:
        raise ValueError(
            f"curve {label!r} has no metric {metric!r}, expected one of {sorted(run.metrics)}."
        )
    return np.asarray(run.metrics[metric], float)


def _end(run, column):
    """Number of records before a run diverged or its metric ceased to be finite."""
    bad = ~np.isfinite(column)
    if run.diverged_at is not None:
        bad |= np.asarray(run.step) >= run.diverged_at
    return int(bad.argmax()) if bad.any() else len(bad)


def _band(ax, where, values, label, style, *, ended):
    mean = values.mean(0)
    ax.plot(where, mean, label=label, **style)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        ax.fill_between(
            where, mean - spread, mean + spread, color=style["color"], alpha=0.18, linewidth=0
        )
    if ended:
        ax.plot(where[-1:], mean[-1:], "x", color=style["color"], markersize=9, markeredgewidth=2)


def _above_rounding(label, values):
    """Eigenvalues in decreasing order that exceed the rounding of their kernel, and the number of all."""
    if values.ndim != 1 or not np.isfinite(values).all() or not (values > 0).any():
        raise ValueError(
            f"spectrum {label!r} has shape {values.shape}, expected a vector of finite eigenvalues, "
            "at least one of them positive: pass numpy.linalg.eigvalsh(kernel)."
        )
    kept = values[values > spectrum_tolerance(values)]
    return np.sort(kept.astype(float))[::-1], len(values)


def _fit_range(alpha, fit_range):
    if alpha.ndim != 1 or not (alpha > 0).all() or not np.isfinite(alpha).any():
        raise ValueError(
            f"alpha is {alpha.tolist()}, expected a vector of positive scales, at least two of them "
            "finite: alpha = inf alone has no slope."
        )
    finite = np.isfinite(alpha)
    low, high = fit_range or (alpha[finite].min(), alpha[finite].max())
    return finite, float(low), float(high)


def _numbers(name, values):
    """Lists and arrays of real numbers as an array, in its own dtype where that is floating point."""
    return np.asarray(
        guards.real(name, np.asarray(values) if isinstance(values, (list, tuple)) else values)
    )


def _mean_and_spread(label, values, alpha):
    values = np.atleast_2d(_numbers(f"quantities[{label!r}]", values))
    if values.ndim != 2 or values.shape[1] != len(alpha):
        raise ValueError(
            f"quantity {label!r} has shape {values.shape}, expected [a] or [seeds, a] with "
            f"a={len(alpha)}: one value for every alpha."
        )
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else None


def _fit(label, alpha, values, fit_range):
    """Slope and factor of `values = factor alpha^slope` by least squares in the logarithms."""
    if len(alpha) < 2:
        raise ValueError(
            f"quantity {label!r} has {len(alpha)} positive values for alpha in {fit_range}, expected at "
            "least 2 for a slope: widen fit_range."
        )
    slope = fit_slope(alpha, values)
    # The intercept of least squares: the mean of log y - slope log x.
    return slope, float(np.exp(np.mean(np.log(values) - slope * np.log(alpha))))


def _mark_infinity(ax, finite, infinity):
    """Ticks at the decades of the finite scales, and at infinity behind a gap."""
    ax.axvline(infinity / 10**0.5, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    decades = 10.0 ** np.arange(
        np.floor(np.log10(finite.min())), np.floor(np.log10(finite.max())) + 1
    )
    names = [f"$10^{{{round(np.log10(decade))}}}$" for decade in decades]
    ax.set_xticks([*decades, infinity], [*names, r"$\infty$"])
    ax.set_xticks([], minor=True)
    ax.set_xlim(finite.min() / 2, infinity * 2)


def _checked_matrix(matrix):
    matrix = _numbers("matrix", matrix)
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise ValueError(
            f"matrix has shape {matrix.shape} and {int((~np.isfinite(matrix)).sum())} non-finite entries, "
            "expected finite [n1, n2], not empty: of a Gram take gram.ntk or gram.nngp, of a kernel [n1, n2, k, k] "
            'the outputs="trace".'
        )
    return matrix


def _checked_labels(labels, matrix):
    labels = np.asarray(labels)
    if matrix.shape[0] != matrix.shape[1] or labels.shape != matrix.shape[:1]:
        raise ValueError(
            f"labels has shape {labels.shape}, the matrix {matrix.shape}, expected one label for every "
            "row of a square matrix; one-hot targets give labels by y.argmax(1)."
        )
    return labels


def _mark_classes(ax, classes, counts):
    ends = np.cumsum(counts)
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="white", linewidth=0.6)
        ax.axvline(end - 0.5, color="white", linewidth=0.6)
    centers = ends - counts / 2 - 0.5
    ax.set_xticks(centers, [str(c) for c in classes])
    ax.set_yticks(centers, [str(c) for c in classes])
    ax.tick_params(length=0)
    ax.set(xlabel="class of $x'$", ylabel="class of $x$")


def _axes(ax, size=(5.2, 3.4)):
    return Figure(figsize=size, layout="constrained").add_subplot() if ax is None else ax


def _finish(ax):
    ax.grid(True, color="0.88", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    outside = len(ax.get_legend_handles_labels()[1]) > 4
    where = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if outside else {"loc": "best"}
    ax.legend(fontsize="small", frameon=False, handlelength=3.2, **where)
    return ax


def _check_named(entries, name, kind):
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(
            f"{name} is {entries!r}, expected a dictionary {{label: {kind}}} with at least one entry."
        )
