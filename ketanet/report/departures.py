"""Where a study departs from its preset and from the published analysis."""

from __future__ import annotations

from typing import Any

import numpy as np

from ketanet import spec
from ketanet.report.evidence import LOCATION
from ketanet.report.results import Results
from ketanet.report.words import listed

_PUBLISHED_VOXEL_MM = 3.0
PUBLISHED_DRAWS = 1000


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
    if covariates := results.group.attrs.get("covariates"):
        names = listed(covariate["name"] for covariate in covariates)
        lines.append(f"Covariates of the people were regressed out ({names}); published: none.")
    if not results.settings["group"].get("mask"):
        lines.append("No mask for the group test beside the grid of the cohort; published: a grey-matter mask.")
    for name, facts in results.provenance["cohorts"].items():
        if facts.get("provenance", {}).get("cleaning", {}).get("global_signal") is not True:
            lines.append(
                f"Cohort {name}: the global signal was not regressed out by ketanet (it may have been before); "
                "published: regressed out."
            )
    return [*lines, *_validation(results)]


def _validation(results: Results) -> list[str]:
    """How draws of random coordinates differ from the published validation; nothing where they do not."""
    published = f"published: {PUBLISHED_DRAWS:,} draws from the grey matter"
    null = results.evidence.nulls.get(LOCATION[0])
    if null is None:
        return [f"No validation with random coordinates; {published}."]
    made = sorted({int(one.attrs["n"]) for one in null.values()})
    few = made != [PUBLISHED_DRAWS]
    mask = (results.settings.get("null") or {}).get("mask") or results.settings["group"].get("mask")
    if not few and mask:
        return []
    where = "" if mask else " from the whole grid"
    return [f"Validation with random coordinates: {listed(f'{n:,}' for n in made)} draws{where}; {published}."]
