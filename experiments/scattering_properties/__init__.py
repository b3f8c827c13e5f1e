"""What scattering coefficients do to translations, deformations and dilations, and the commutators behind it.

    python -m experiments run scattering_properties                    # about a minute
    python -m experiments run scattering_properties --preset smoke     # about 15 seconds

On photographs that vanish at their borders, on the periodic grid, in float64. Expected:

- the Littlewood-Paley sum of the Morlet bank lies between 0.3 and 1.05 on the disc |w| <= pi: not
  an isometry;
- a shift by 2^J pixels shifts the maps exactly; a smaller one, by a pixels, changes coefficients by
  less than 1.25 (a / 2^J) |x|, in proportion to a;
- a deformation tau changes them in proportion to max |grad tau|, by less than 2 max |grad tau| |x|;
- the norm of [W_J, L_tau] is proportional to max |grad tau|; it is the same for all J, and a
  translation added to tau does not change it: that is why scattering, which interleaves W_J with
  moduli that commute with L_tau, is stable;
- the norm of L_tau A_J - A_J is proportional to max |tau|, falls like 2^-J or faster, and is at
  most (e^(-1/2) sqrt(2) / 0.4) 2^-J max |tau| (the largest |w phi_J(w)|; sqrt(2) for the two
  components of tau);
- a Gabor atom dilated by 10 % moves away from itself in Fourier modulus, the more the higher its
  frequency, while its scattering coefficients change by the same small amount at all frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from experiments.harness import bounds, facts
from experiments.harness.bounds import Count, Integer, Positive, Values

__all__ = ["PRESETS", "Config", "run", "show"]


@dataclass(frozen=True)
class Config:
    """Image sizes, scales, and the sweeps: shifts in units of 2^J, gradients, amplitudes in pixels, frequencies.

    Attributes:
        size: Side of the images in pixels.
        scales: Scales J.
        offsets: Shifts in units of 2^J.
        gradients: Of the deformations.
        operator_size: Side of the images whose operators are formed.
        operator_scales: Their scales J.
        amplitudes: Of the deformations, in pixels.
        frequencies: Of the dilated atoms.
        dilation: Of the atoms.
        precision: Of the computation.
    """

    size: Annotated[int, Integer(8)] = 64
    scales: Annotated[tuple[Count, ...], Values(1, increasing=True)] = (2, 3)
    offsets: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (
        1 / 64,
        1 / 32,
        1 / 16,
        1 / 8,
    )
    gradients: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (0.025, 0.05, 0.1)
    operator_size: Annotated[int, Integer(8)] = 32
    operator_scales: Annotated[tuple[Count, ...], Values(2, increasing=True)] = (1, 2, 3)
    amplitudes: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (0.1, 0.2, 0.4)
    frequencies: Annotated[tuple[Positive, ...], Values(2, increasing=True)] = (
        0.3,
        0.6,
        1.2,
        1.8,
        2.4,
    )
    dilation: Positive = 0.1
    precision: Literal["float64"] = "float64"

    def check(self, prefix: str) -> None:
        """Refuses scales that are larger than the images."""
        for name in ("", "operator_"):
            scales = getattr(self, f"{name}scales")
            size = getattr(self, f"{name}size")
            if 2 ** max(scales) > size:
                raise ValueError(
                    f"{prefix}{name}scales={scales}, expected 2^J at most {prefix}{name}size={size}."
                )


PRESETS = {
    "smoke": Config(
        scales=(2,),
        offsets=(1 / 32, 1 / 8),
        gradients=(0.05, 0.1),
        operator_size=16,
        operator_scales=(1, 2),
        amplitudes=(0.2, 0.4),
        frequencies=(0.3, 1.2, 2.4),
    ),
    "laptop": Config(),
    "paper": Config(scales=(2, 3, 4), operator_size=48, operator_scales=(1, 2, 3, 4)),
}


def run(config: Config, folder: Path, console) -> dict[str, Any]:
    """Measures every property, draws the figures and returns the facts."""
    from experiments.harness.store import save_arrays
    from experiments.scattering_properties.figures import draw

    bounds.check(config)
    with console.status("scattering coefficients and operators"):
        measured = measure(config)
    save_arrays(folder / "measured.npz", measured)
    draw(config, measured, folder / "figures")
    return facts.summarize(list(_facts(config, measured)))


def show(summary: dict[str, Any], console) -> None:
    """Prints the table of facts."""
    facts.show(summary, console, "properties of scattering coefficients")


def measure(config: Config) -> dict[str, np.ndarray]:
    """All arrays, named after what they measure and the scale J."""
    from experiments.scattering_properties import measures
    from lazynet.scattering import filter_bank, littlewood_paley

    x = measures.photographs(config.size)
    measured = {}
    for J in config.scales:
        report = littlewood_paley(filter_bank((config.size, config.size), J, padding="periodic"))
        measured[f"littlewood_paley/J={J}"] = np.array([report.lower, report.upper])
        measured[f"exact_shift/J={J}"] = measures.exact_shift(x, J)
        measured[f"translation/J={J}"] = measures.translations(x, J, config.offsets)
        measured[f"deformation/J={J}"] = measures.deformations(x, J, config.gradients)
    for J in config.operator_scales:
        norm = partial(measures.commutator_norm, J, config.operator_size)
        shift = config.operator_size / 6
        measured[f"commutator/J={J}"] = [norm(epsilon) for epsilon in config.gradients]
        measured[f"commutator_shifted/J={J}"] = norm(config.gradients[-1], shift)
        measured[f"commutator_translation/J={J}"] = norm(0.0, shift)
        measured[f"averaging/J={J}"] = [
            measures.averaging_norm(J, config.operator_size, a) for a in config.amplitudes
        ]
    atoms = measures.dilated_atoms(
        max(config.scales), config.size, config.frequencies, config.dilation
    )
    return measured | dict(zip(("atom/fourier", "atom/scattering"), atoms, strict=True))


def _facts(config: Config, measured: dict[str, Any]):
    for J in config.scales:
        lower, upper = measured[f"littlewood_paley/J={J}"]
        yield facts.within(f"littlewood_paley_lower/J={J}", lower, at_least=0.3, at_most=1)
        yield facts.within(f"littlewood_paley_upper/J={J}", upper, at_least=1, at_most=1.05)
        yield facts.within(f"exact_shift/J={J}", measured[f"exact_shift/J={J}"], at_most=1e-12)
        for name, sweep, constant in (
            ("translation", config.offsets, 1.25),
            ("deformation", config.gradients, 2.0),
        ):
            changes = measured[f"{name}/J={J}"]
            yield facts.power_law(f"{name}_change/J={J}", sweep, changes, 1, 0.05)
            yield facts.within(
                f"{name}/J={J}", np.max(changes / np.asarray(sweep)), at_most=constant
            )
    yield from _operator_facts(config, measured)
    fourier = measured["atom/fourier"]
    scattering = measured["atom/scattering"]
    yield facts.within("dilated_atom/fourier_growth", fourier[-1] / fourier[0], at_least=4)
    yield facts.within(
        "dilated_atom/scattering_spread", np.max(scattering) / np.min(scattering), at_most=1.5
    )


def _operator_facts(config, measured):
    bound = math.sqrt(2) * math.exp(-0.5) / 0.4
    last = np.array([measured[f"commutator/J={J}"][-1] for J in config.operator_scales])
    for J in config.operator_scales:
        commutator, averaging = (measured[f"{name}/J={J}"] for name in ("commutator", "averaging"))
        yield facts.power_law(f"commutator/J={J}", config.gradients, commutator, 1, 0.05)
        yield facts.close(
            f"commutator_shifted/J={J}",
            measured[f"commutator_shifted/J={J}"] / commutator[-1],
            1,
            0.05,
        )
        yield facts.within(
            f"commutator_of_translation/J={J}",
            measured[f"commutator_translation/J={J}"],
            at_most=1e-12,
        )
        yield facts.power_law(f"averaging/J={J}", config.amplitudes, averaging, 1, 0.05)
        scaled = 2**J * np.max(np.divide(averaging, config.amplitudes))
        yield facts.within(f"averaging_constant/J={J}", scaled, at_most=bound)
    yield facts.within("commutator_spread_over_scales", np.ptp(last) / np.max(last), at_most=0.01)
    across = [measured[f"averaging/J={J}"][0] for J in config.operator_scales]
    yield facts.power_law(
        "averaging_over_scales", [2**J for J in config.operator_scales], across, at_most=-0.9
    )
