"""Where a study departs from its preset and from the published analysis, and what its text cites."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ketanet import spec
from ketanet.report.results import Results
from ketanet.report.words import listed

_PUBLISHED_VOXEL_MM = 3.0


@dataclass(frozen=True)
class Reference:
    """A publication and its DOI."""

    text: str
    doi: str


METHOD: Final = Reference("Ma et al. 2026, European Psychiatry (the method)", "10.1192/j.eurpsy.2026.10164")
SPECIFICITY: Final = Reference(
    "van den Heuvel et al., Nature Neuroscience (what such maps do not show)", "10.1038/s41593-025-02196-7"
)
_LANCASTER = Reference("Lancaster et al. 2007, Human Brain Mapping 28:1194-1205 (icbm2tal)", "10.1002/hbm.20345")
_BH = Reference(
    "Benjamini and Hochberg 1995, Journal of the Royal Statistical Society B 57:289-300",
    "10.1111/j.2517-6161.1995.tb02031.x",
)
_BY = Reference("Benjamini and Yekutieli 2001, Annals of Statistics 29:1165-1188", "10.1214/aos/1013699998")
_DICE = Reference("Dice 1945, Ecology 26:297-302", "10.2307/1932409")
_TEMPLATE = Reference("Fonov et al. 2011, NeuroImage 54:313-327 (template)", "10.1016/j.neuroimage.2010.07.033")


def departures(results: Results) -> list[str]:
    """Settings that differ from those of the preset, one line each.

    A setting without effect is left out: the radius where seeds are images, the extent where there are no clusters.
    """
    lines = []
    for block, values in spec.PRESETS[results.settings["preset"]].items():
        for key, preset in values.items():
            used = results.settings[block].get(key)
            if used != preset and f"{block}.{key}" not in _without_effect(results):
                lines.append(f"{block}.{key} = {_value(used)} (preset: {_value(preset)})")
    return lines


def _without_effect(results: Results) -> set[str]:
    keys: set[str] = set()
    if not results.from_coordinates:
        keys |= {"seeds.radius_mm", "seeds.rule", "robustness.radii_mm"}
    if not results.grid.has_extent:
        keys |= {"network.min_cluster", "network.connectivity"}
    return keys


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return str(value.get("file", value)).rsplit("/", 1)[-1]
    if isinstance(value, list):
        return listed(_value(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_differences(results: Results) -> list[str]:
    """Where the data differ from those of the published analysis, one line each."""
    lines = []
    sizes = np.linalg.norm(results.grid.affine[:3, :3], axis=0)
    if results.on_parcels:
        lines.append(
            f"Time series of {results.grid.n_voxels:,} parcels, not of voxels: seeds are weights on parcels, every map "
            "is constant within a parcel, and the extent threshold is off."
        )
    elif not results.grid.has_extent:
        lines.append(
            f"Time series of {results.provenance['grid']['description']}, not of voxels alone, and the extent "
            "threshold is off."
        )
    elif not np.allclose(sizes, _PUBLISHED_VOXEL_MM, atol=0.01):
        words = " × ".join(f"{s:g}" for s in np.round(sizes, 2))
        lines.append(f"Voxels of {words} mm; published: 3 × 3 × 3 mm.")
    if not results.from_coordinates:
        lines.append("Seeds given as images; published: spheres around coordinates.")
    if not results.settings["group"].get("mask"):
        lines.append("No mask for the group test beside the grid of the cohort; published: a grey-matter mask.")
    for name, facts in results.provenance["cohorts"].items():
        if facts.get("provenance", {}).get("cleaning", {}).get("global_signal") is not True:
            lines.append(
                f"Cohort {name}: the global signal was not regressed out by ketanet (it may have been before); "
                "published: regressed out."
            )
    lines.append(
        "The published validation with random coordinates (1,000 draws) is not part of this version of ketanet."
    )
    return lines


def references(results: Results) -> list[Reference]:
    """Publications that the methods text names, those of the atlas included."""
    found = [METHOD]
    if results.provenance["talairach_coordinates"]:
        found.append(_LANCASTER)
    correction = results.settings["group"]["correction"]
    if correction.startswith("fdr_bh"):
        found.append(_BH)
    elif correction == "fdr_by":
        found.append(_BY)
    for source in results.provenance["atlas"]["sources"]:
        match = re.fullmatch(r"(.*\S),? doi (10\.\S+)", source.get("reference", ""))
        if match:
            found.append(Reference(f"{match[1].rstrip(',')} (atlas)", match[2]))
    if len(results.robustness):
        found.append(_DICE)
    return [*found, _TEMPLATE, SPECIFICITY]
