"""Figures of `scattering_properties`: the filters, their Littlewood-Paley sum, and the measured laws."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import panels
from lazynet import plots
from lazynet.scattering import filter_bank, littlewood_paley

__all__ = ["draw"]


def draw(config, measured: dict) -> dict[str, Figure]:
    """All figures by name."""
    filters = filter_bank((config.size, config.size), max(config.scales), padding="periodic")
    return {
        "filters": _wavelets(filters),
        "littlewood_paley": _fourier(filters),
        "stability": _laws(config, measured),
    }


def _wavelets(filters):
    """Real parts in space, a row for each scale, around the origin."""
    figure = Figure(figsize=(1.1 * filters.L, 1.15 * filters.J + 0.4), layout="constrained")
    axes = figure.subplots(filters.J, filters.L, squeeze=False)
    for j, waves in filters.psi[0].items():
        maps = np.fft.fftshift(np.fft.ifft2(np.asarray(waves)).real, axes=(-2, -1))
        middle = len(maps[0]) // 2
        half = min(len(maps[0]) // 2, 3 * 2**filters.J // 2)
        for t, ax in enumerate(axes[j]):
            shown = maps[t, middle - half : middle + half, middle - half : middle + half]
            limit = np.abs(maps[t]).max()
            ax.imshow(shown, cmap="gray", vmin=-limit, vmax=limit)
            ax.set(xticks=[], yticks=[])
        axes[j, 0].set_ylabel(f"$j$ = {j}", fontsize=10)
    figure.suptitle(f"Morlet wavelets, real part, {2 * half} x {2 * half} pixels", fontsize=11)
    return figure


def _fourier(filters):
    """Half-height contours of the wavelets, and the Littlewood-Paley sum on the same plane."""
    figure = Figure(figsize=(9.2, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    size = filters.phi[0].size
    w = np.fft.fftshift(2 * np.pi * np.fft.fftfreq(size))
    for style, (j, waves) in zip(
        plots.curve_styles(filters.J), filters.psi[0].items(), strict=True
    ):
        for wave in np.fft.fftshift(np.asarray(waves), axes=(-2, -1)):
            left.contour(
                w, w, wave, levels=[wave.max() / 2], colors=[style["color"]], linewidths=1.2
            )
        left.plot([], [], color=style["color"], label=f"$j$ = {j}")
    left.set_title("wavelets at half of their maximum", fontsize=11)
    left.legend(fontsize="small", frameon=False, loc="lower left")
    report = littlewood_paley(filters)
    image = right.pcolormesh(
        w, w, np.fft.fftshift(report.sum), cmap="gray", vmin=0, rasterized=True
    )
    figure.colorbar(image, ax=right, shrink=0.85)
    circle = np.linspace(0, 2 * np.pi, 200)
    right.plot(np.pi * np.cos(circle), np.pi * np.sin(circle), color="tab:red", linewidth=0.8)
    right.set_title(
        rf"Littlewood-Paley sum, {report.lower:.2f} to {report.upper:.2f} in the disc", fontsize=11
    )
    for ax in (left, right):
        ax.set(aspect="equal", xlabel=r"$\omega_1$ (rad/pixel)", ylabel=r"$\omega_0$ (rad/pixel)")
    return figure


def _laws(config, measured):
    figure = Figure(figsize=(13.5, 7.6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    change = r"$\|S L x - S x\| / \|x\|$"
    panel = panels.Panel
    drawn = (
        panel("translations", config.offsets, _of("translation", config.scales, measured), "offset / $2^J$", change),
        panel(
            "deformations", config.gradients, _of("deformation", config.scales, measured),
            r"$\max |\nabla\tau|$", change,
        ),
        panel(
            r"commutator $[W_J, L_\tau]$", config.gradients, _of("commutator", config.operator_scales, measured),
            r"$\max |\nabla\tau|$", "operator norm",
        ),
        panel(
            r"$L_\tau A_J - A_J$", config.amplitudes, _of("averaging", config.operator_scales, measured),
            r"$\max |\tau|$ (pixels)", "operator norm",
        ),
    )  # fmt: skip
    for of, ax in zip(drawn, axes, strict=False):
        panels.draw(of, ax)
    _over_scales(config, measured, axes[4])
    _atoms(config, measured, axes[5])
    return figure


def _of(name, scales, measured):
    return {f"J = {J}": measured[f"{name}/J={J}"] for J in scales}


def _over_scales(config, measured, ax):
    """Both operator norms against J: one does not change, the other halves with every scale."""
    scales = list(config.operator_scales)
    curves = {
        rf"$[W_J, L_\tau]$, $\max|\nabla\tau|$ = {config.gradients[-1]:g}": "commutator",
        rf"$L_\tau A_J - A_J$, $\max|\tau|$ = {config.amplitudes[-1]:g}": "averaging",
    }
    for style, (label, name) in zip(plots.curve_styles(2), curves.items(), strict=True):
        ax.plot(scales, [measured[f"{name}/J={J}"][-1] for J in scales], label=label, **style)
    ax.set(xlabel="scale $J$", ylabel="operator norm", yscale="log", xticks=scales)
    panels.finish(ax, "operators against the scale")


def _atoms(config, measured, ax):
    labels = {"fourier": "Fourier modulus", "scattering": "scattering"}
    for style, (name, label) in zip(plots.curve_styles(2), labels.items(), strict=True):
        ax.plot(
            config.frequencies, measured[f"atom/{name}"], label=label, **style | {"markevery": None}
        )
    ax.set(xlabel="frequency of the atom (rad/pixel)", ylabel="relative change", ylim=(0, None))
    panels.finish(ax, f"Gabor atom dilated by {100 * config.dilation:g} %")
