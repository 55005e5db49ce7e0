"""How a network changes with the settings, the source studies and the cohort."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ketanet import spec
from ketanet.errors import InputError
from ketanet.grid import Grid, grid_from_attrs
from ketanet.group import threshold
from ketanet.inference.comparison import compare_maps
from ketanet.inference.resampling import NetworkArrays, count_studies
from ketanet.networks import network_arrays

_RETESTS = tuple(name for name in spec.CORRECTIONS if name != "fwe_max")
"""Corrections that follow from stored t."""

COLUMNS = ["cohort", "direction", "analysis", "parameter", "voxels", "dice", "spatial_r"]

_Networks = dict[str, NetworkArrays]
_Variant = tuple[str, str, _Networks]
"""Analysis, parameter, and the networks by direction."""


def robustness_table(
    group: xr.Dataset,
    networks: xr.Dataset,
    settings: Mapping[str, Any],
    *,
    radii: Mapping[float, xr.Dataset] | None = None,
    at_least: Sequence[float] = (),
    connectivity: Sequence[int] = (),
    corrections: Sequence[str] = (),
    signals: Mapping[str, xr.Dataset] | None = None,
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
    connectivity : sequence of {6, 18, 26}
        Other connectivities of clusters. No row where clusters are not looked at: on parcels and grayordinates, or with
        ``min_cluster`` up to 1.
    corrections : sequence of str
        Corrections that the stored t are tested with again, at the same alpha, each with every tail that fits it and
        the sign: see :func:`ketanet.threshold`.
    signals : mapping of str to Dataset, optional
        Group maps of other seed signals, by name.
    leave_one_study_out : bool
        Networks without each source study, from the stored contrast maps. Source studies that share people (coordinate
        ``sample``) are left out together.

    Returns
    -------
    DataFrame
        Columns cohort, direction, analysis (``radius``, ``at_least``, ``connectivity``, ``correction``, ``signal``,
        ``leave_one_study_out``, ``cohort``), parameter (of ``correction``: correction and tail), voxels (image voxels
        of the variant), dice, spatial_r (of the unthresholded probability). A variant with the settings of the main
        analysis has no row.

    Raises
    ------
    InputError
        A correction or connectivity is not known, or the group maps do not say how they were tested.
    """
    for value in connectivity:
        spec.choice(value, spec.CONNECTIVITIES, "connectivity")
    tests = _other_tests(group, corrections, settings["sign"])
    grid = grid_from_attrs(group.attrs["grid"])
    networks = networks.compute()
    rows: list[dict[str, Any]] = []
    for cohort in networks["cohort"].values:
        main = _arrays(networks.sel(cohort=cohort))
        own = _in_memory(group, cohort)
        variants = chain(
            _of_maps("radius", {f"{radius:g}": maps for radius, maps in (radii or {}).items()}, cohort, settings, grid),
            _of_rules(own, at_least, connectivity, settings, grid),
            _of_tests(group.sel(cohort=cohort), tests, settings, grid),
            _of_maps("signal", signals or {}, cohort, settings, grid),
            _without_each_study(own, settings, grid) if leave_one_study_out else (),
        )
        for analysis, parameter, variant in variants:
            rows += _compare(str(cohort), analysis, parameter, main, variant, grid)
    discovery = networks.isel(cohort=0)
    for cohort in networks["cohort"].values[1:]:
        other = _arrays(networks.sel(cohort=cohort))
        rows += _compare(str(discovery["cohort"].item()), "cohort", str(cohort), _arrays(discovery), other, grid)
    return pd.DataFrame(rows, columns=COLUMNS)


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
    """Networks of one variant, of the directions that have a contrast."""
    options = {k: v for k, v in settings.items() if k != "directions"}
    found: _Networks = {}
    for direction in settings["directions"]:
        chosen = np.flatnonzero(maps["direction"].values == direction)
        if len(chosen):
            t, significant = maps["t"].values[chosen], maps["significant"].values[chosen]
            found[direction] = network_arrays(t, significant, grid, **options)
    return found


def _of_maps(
    analysis: str, maps: Mapping[str, xr.Dataset], cohort: Any, settings: Mapping[str, Any], grid: Grid
) -> Iterator[_Variant]:
    """Networks of other group maps."""
    for name, group in maps.items():
        yield analysis, name, _networks(_in_memory(group, cohort), grid, settings)


def _of_rules(
    own: xr.Dataset,
    at_least: Sequence[float],
    connectivity: Sequence[int],
    settings: Mapping[str, Any],
    grid: Grid,
) -> Iterator[_Variant]:
    """Networks of other overlap thresholds, then of other connectivities."""
    for share in at_least:
        if share != settings["at_least"]:
            yield "at_least", f"{share:g}", _networks(own, grid, {**settings, "at_least": share})
    if grid.has_extent and settings["min_cluster"] > 1:
        for value in connectivity:
            if value != settings["connectivity"]:
                yield "connectivity", str(value), _networks(own, grid, {**settings, "connectivity": value})


def _other_tests(group: xr.Dataset, corrections: Sequence[str], sign: str) -> list[dict[str, Any]]:
    """Settings of :func:`ketanet.threshold` other than those of the group maps."""
    if not corrections:
        return []
    missing = [name for name in ("tail", "correction", "alpha") if name not in group.attrs]
    if missing:
        raise InputError(f"the group maps do not say how they were tested: attribute '{missing[0]}' is missing")
    found = []
    for correction in corrections:
        spec.choice(correction, _RETESTS, "correction")
        for tail in spec.TAILS:
            unfit = tail == "two-sided" and correction == "fdr_bh_positive"
            unseen = tail == "positive" and sign != "positive"  # nothing but t > 0 is significant there
            main = (correction, tail) == (group.attrs["correction"], group.attrs["tail"])
            if not (unfit or unseen or main):
                found.append({"correction": correction, "tail": tail, "alpha": group.attrs["alpha"]})
    return found


def _of_tests(
    group: xr.Dataset, tests: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], grid: Grid
) -> Iterator[_Variant]:
    """Networks of the stored t of one cohort, tested again."""
    for test in tests:
        maps = threshold(group, **test)[["t", "significant"]].compute()
        yield "correction", f"{test['correction']} {test['tail']}", _networks(maps, grid, settings)


def _without_each_study(own: xr.Dataset, settings: Mapping[str, Any], grid: Grid) -> Iterator[_Variant]:
    """Networks without each block of source studies, of the directions that it contributes to with others."""
    counts = count_studies(own, settings["directions"], settings["sign"])
    rule = {name: settings[name] for name in ("at_least", "min_cluster", "connectivity")}
    blocks = {p: name for one in counts.values() for p, name in zip(one.position.tolist(), one.names, strict=True)}
    for block in sorted(blocks):
        found = {}
        for direction, one in counts.items():
            times = (one.position != block).astype(np.int64)
            # without a study that has no such contrast nothing changes, without the only one nothing is left: no row
            if 0 < times.sum() < len(times):
                found[direction] = one.network(times, grid, **rule)
        yield "leave_one_study_out", blocks[block], found


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
