"""How a network changes with the settings, the source studies and the cohort."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ketanet.grid import Grid, grid_from_attrs
from ketanet.inference.comparison import compare_maps
from ketanet.networks import network_arrays

COLUMNS = ["cohort", "direction", "analysis", "parameter", "voxels", "dice", "spatial_r"]


def robustness_table(
    group: xr.Dataset,
    networks: xr.Dataset,
    settings: Mapping[str, Any],
    *,
    radii: Mapping[float, xr.Dataset] | None = None,
    at_least: Sequence[float] = (),
    leave_one_study_out: bool = True,
) -> pd.DataFrame:
    """Variants of each network against the main one.

    Parameters
    ----------
    group : xarray.Dataset
        Group maps (cohort, seed, voxel) of the main analysis.
    networks : xarray.Dataset
        Its networks (cohort, direction, voxel). The first cohort is the discovery cohort, the others replicate it.
    settings : mapping
        Keyword arguments of :func:`ketanet.overlap` used for the main networks.
    radii : mapping of float to Dataset, optional
        Group maps of other sphere radii, by radius in mm.
    at_least : sequence of float
        Other overlap thresholds.
    leave_one_study_out : bool
        Networks without each source study, from the stored contrast maps.

    Returns
    -------
    DataFrame
        Columns cohort, direction, analysis (``radius``, ``at_least``, ``leave_one_study_out``, ``cohort``), parameter,
        voxels (image voxels of the variant), dice, spatial_r (of the unthresholded probability).
    """
    grid = grid_from_attrs(group.attrs["grid"])
    networks = networks.compute()
    rows: list[dict[str, Any]] = []
    for cohort in networks["cohort"].values:
        main = networks.sel(cohort=cohort)
        own = _in_memory(group, cohort)
        variants: list[tuple[str, str, xr.Dataset, dict[str, Any]]]
        variants = [("radius", f"{radius:g}", _in_memory(maps, cohort), {}) for radius, maps in (radii or {}).items()]
        variants += [("at_least", f"{share:g}", own, {"at_least": share}) for share in at_least]
        if leave_one_study_out:
            for study, maps, contributes in _without_each_study(own):
                # without a study that has no such contrast nothing changes: no row
                changed = {"directions": [d for d in settings["directions"] if d in contributes]}
                variants.append(("leave_one_study_out", study, maps, changed))
        for analysis, parameter, maps, changed in variants:
            variant = _networks(maps, grid, {**settings, **changed})
            rows += _compare(str(cohort), analysis, parameter, _arrays(main), variant, grid)
    discovery = networks.isel(cohort=0)
    for cohort in networks["cohort"].values[1:]:
        other = _arrays(networks.sel(cohort=cohort))
        rows += _compare(str(discovery["cohort"].item()), "cohort", str(cohort), _arrays(discovery), other, grid)
    return pd.DataFrame(rows, columns=COLUMNS)


_Networks = dict[str, dict[str, NDArray[Any]]]


def _in_memory(group: xr.Dataset, cohort: Any) -> xr.Dataset:
    """What every variant reads again: 5 bytes a contrast and voxel."""
    return group[["t", "significant"]].sel(cohort=cohort).compute()


def _arrays(networks: xr.Dataset) -> _Networks:
    """Arrays of each direction, by name."""
    return {
        str(d): {name: networks[name].sel(direction=d).values for name in ("probability", "network")}
        for d in networks["direction"].values
    }


def _networks(maps: xr.Dataset, grid: Grid, settings: Mapping[str, Any]) -> _Networks:
    """Networks of one variant, of the directions that have a contrast left."""
    options = {k: v for k, v in settings.items() if k != "directions"}
    found: _Networks = {}
    for direction in settings["directions"]:
        chosen = np.flatnonzero(maps["direction"].values == direction)
        if len(chosen):
            t, significant = maps["t"].values[chosen], maps["significant"].values[chosen]
            found[direction] = network_arrays(t, significant, grid, **options)
    return found


def _without_each_study(group: xr.Dataset) -> Iterator[tuple[str, xr.Dataset, set[str]]]:
    """Each source study, the maps of the others, and the directions that it contributes to."""
    studies = group["source_study"].values
    names = list(dict.fromkeys(map(str, studies)))
    if len(names) > 1:
        for name in names:
            own = {str(d) for d in group["direction"].values[studies == name]}
            yield name, group.isel(seed=np.flatnonzero(studies != name)), own


def _compare(
    cohort: str, analysis: str, parameter: str, main: _Networks, variant: _Networks, grid: Grid
) -> Iterator[dict[str, Any]]:
    for direction, b in variant.items():
        a = main[direction]
        found = compare_maps(a["network"], b["network"], a["probability"], b["probability"], grid.painted)
        yield {
            "cohort": cohort,
            "direction": direction,
            "analysis": analysis,
            "parameter": parameter,
            "voxels": found.voxels_b,
            "dice": found.dice,
            "spatial_r": found.spatial_r,
        }
