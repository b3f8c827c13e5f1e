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
from typing import Annotated, Any, Literal

import numpy as np

from experiments.harness.bounds import Count, Integer, Positive, Values
from experiments.harness.facts import close, power_law, within

__all__ = ["PRESETS", "TITLE", "Config", "draw", "facts", "measure"]


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


TITLE = "properties of scattering coefficients"


def measure(config: Config, store) -> dict[str, Any]:
    """All arrays, named after what they measure and the scale J."""
    from experiments.scattering_properties import measures
    from lazynet.scattering import filter_bank, littlewood_paley

    arrays: dict[str, Any] = {}
    with store.status("scattering coefficients and operators"):
        x = measures.photographs(config.size)
        for J in config.scales:
            filters = filter_bank((config.size, config.size), J, padding="periodic")
            frame = littlewood_paley(filters)
            arrays[f"littlewood_paley/J={J}"] = np.array([frame.lower, frame.upper])
            arrays[f"exact_shift/J={J}"] = measures.exact_shift(x, J)
            arrays[f"translation/J={J}"] = measures.translations(x, J, config.offsets)
            arrays[f"deformation/J={J}"] = measures.deformations(x, J, config.gradients)
        size = config.operator_size
        shift = size / 6
        for J in config.operator_scales:
            commutator = partial(measures.commutator_norm, J, size)
            averaging = partial(measures.averaging_norm, J, size)
            arrays[f"commutator/J={J}"] = [commutator(gradient) for gradient in config.gradients]
            arrays[f"commutator_shifted/J={J}"] = commutator(config.gradients[-1], shift)
            arrays[f"commutator_translation/J={J}"] = commutator(0.0, shift)
            arrays[f"averaging/J={J}"] = [averaging(amplitude) for amplitude in config.amplitudes]
        fourier, scattering = measures.dilated_atoms(
            max(config.scales), config.size, config.frequencies, config.dilation
        )
    return arrays | {"atom/fourier": fourier, "atom/scattering": scattering}


def facts(config: Config, arrays):
    """Bounds and proportionalities of coefficients, operators and atoms."""
    for J in config.scales:
        lower, upper = arrays[f"littlewood_paley/J={J}"]
        yield within(f"littlewood_paley_lower/J={J}", lower, at_least=0.3, at_most=1)
        yield within(f"littlewood_paley_upper/J={J}", upper, at_least=1, at_most=1.05)
        yield within(f"exact_shift/J={J}", arrays[f"exact_shift/J={J}"], at_most=1e-12)
        for name, sweep, constant in (
            ("translation", config.offsets, 1.25),
            ("deformation", config.gradients, 2.0),
        ):
            changes = arrays[f"{name}/J={J}"]
            yield power_law(f"{name}_change/J={J}", sweep, changes, 1, 0.05)
            yield within(f"{name}/J={J}", np.max(changes / np.asarray(sweep)), at_most=constant)
    for J in config.operator_scales:
        yield from _operator_facts(config, arrays, J)
    across = np.array([arrays[f"commutator/J={J}"][-1] for J in config.operator_scales])
    spread = np.ptp(across) / np.max(across)
    yield within("commutator_spread_over_scales", spread, at_most=0.01)
    across = [arrays[f"averaging/J={J}"][0] for J in config.operator_scales]
    sides = [2**J for J in config.operator_scales]
    yield power_law("averaging_over_scales", sides, across, at_most=-0.9)
    fourier = arrays["atom/fourier"]
    scattering = arrays["atom/scattering"]
    yield within("dilated_atom/fourier_growth", fourier[-1] / fourier[0], at_least=4)
    spread = np.max(scattering) / np.min(scattering)
    yield within("dilated_atom/scattering_spread", spread, at_most=1.5)


def draw(config: Config, arrays):
    """The filters, their Littlewood-Paley sum, and the measured laws."""
    from experiments.scattering_properties import figures

    return figures.draw(config, arrays)


def _operator_facts(config, arrays, J):
    commutator = arrays[f"commutator/J={J}"]
    yield power_law(f"commutator/J={J}", config.gradients, commutator, 1, 0.05)
    shifted = arrays[f"commutator_shifted/J={J}"] / commutator[-1]
    yield close(f"commutator_shifted/J={J}", shifted, 1, 0.05)
    of_translation = arrays[f"commutator_translation/J={J}"]
    yield within(f"commutator_of_translation/J={J}", of_translation, at_most=1e-12)
    averaging = arrays[f"averaging/J={J}"]
    yield power_law(f"averaging/J={J}", config.amplitudes, averaging, 1, 0.05)
    scaled = 2**J * np.max(averaging / np.asarray(config.amplitudes))
    bound = math.sqrt(2) * math.exp(-0.5) / 0.4
    yield within(f"averaging_constant/J={J}", scaled, at_most=bound)
