"""Curves and spectra of the two networks, and the images that come back."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import panels
from experiments.invertible_network import NETWORKS, START, Config, numbers, regime

STYLES = {"invertible": "-", "residual": "--"}


def draw(config: Config, arrays) -> dict[str, Figure]:
    """Accuracies, errors of reconstructions and singular values; reconstructions and lines."""
    images = {"invertible_network_images": _images(config, arrays)}
    return {"invertible_network": _curves(config, arrays), **images}


def _curves(config, arrays):
    figure = Figure(figsize=(14.0, 4.2), layout="constrained")
    accuracy, reconstruction, spectrum = figure.subplots(1, 3)
    regimes = [START, *map(regime, config.alphas)]
    for network in NETWORKS:
        for i, name in enumerate(regimes):
            cell = f"{network}/{name}"
            look = {"ls": STYLES[network], "color": f"C{i}", "label": f"{network}, {name}"}
            if name != START:
                # Step 0 stands a little left of step 1 on the logarithmic axis.
                steps = np.maximum(arrays[f"{cell}/curve/step"], 0.7)
                accuracy.plot(steps, arrays[f"{cell}/curve/metrics/test_accuracy"], **look)
            if f"{cell}/reconstruction" in arrays:
                depth = arrays[f"{cell}/depth"]
                # An error of zero, that of a squeeze alone, has no place on a logarithmic axis.
                errors = np.maximum(arrays[f"{cell}/reconstruction"], 1e-9)
                reconstruction.plot(depth, errors, "o", ms=3, **look)
            if f"{cell}/singular_values" in arrays:
                values = arrays[f"{cell}/singular_values"].mean(axis=0)
                spectrum.plot(np.linspace(0, 1, len(values)), values, **look | {"label": name})
    accuracy.set(xscale="log", xlabel="step", ylabel="test accuracy")
    reconstruction.set(yscale="log", xlabel="blocks", ylabel="|x - back| / |x|")
    reconstruction.set_xticks(range(sum(config.blocks) + 1))
    spectrum.set(yscale="log", xlabel="rank / dimension")
    panels.finish(accuracy, "accuracy")
    panels.finish(reconstruction, "reconstruction from depth")
    panels.finish(spectrum, "singular values of the features' Jacobian, invertible")
    figure.suptitle(numbers(config, arrays)["title"], fontsize=11)
    return figure


def _images(config, arrays):
    """Rows of images: the originals, what comes back from each depth, and points of lines between features."""
    low, high = arrays[f"invertible/{START}/range"]
    rows = {"image": arrays[f"invertible/{START}/images"][:4]}
    for cell in ("invertible/alpha=1", "invertible/alpha=inf", "residual/alpha=1"):
        if f"{cell}/reconstructed" not in arrays:
            continue
        depths = arrays[f"{cell}/depth"]
        network, name = cell.split("/")
        rows[f"{network}, {name}, back from block {depths[-1]}"] = arrays[f"{cell}/reconstructed"][
            -1
        ]
    rows["residual, alpha=1, back from the first convolution"] = arrays[
        "residual/alpha=1/reconstructed"
    ][0]
    lines = {
        f"line {i + 1}, {name}": arrays[f"invertible/{name}/line"][i]
        for i in range(min(2, len(arrays[f"invertible/{START}/line"])))
        for name in (START, "alpha=1")
    }
    figure = Figure(figsize=(12.0, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(4, 5))
    for part, shown, title in (
        (left, rows, "what comes back"),
        (right, lines, "along lines between features"),
    ):
        columns = max(len(row) for row in shown.values())
        axes = part.subplots(len(shown), columns, squeeze=False)
        for line, (label, row) in zip(axes, shown.items(), strict=True):
            line[0].set_title(label, fontsize=8, loc="left")
            for ax, image in zip(line, row, strict=False):
                pixels = np.clip((image - low) / (high - low), 0, 1)
                ax.imshow(
                    pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1
                )
            for ax in line:
                ax.axis("off")
        part.suptitle(title, fontsize=10)
    return figure
