"""What a results folder holds of evidence: null models, degree, bootstrap, curves, replication; any of it may be
missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ketanet.compute import open_results
from ketanet.report.reading import read_table

LEVEL: Final = 0.05
"""Family-wise p up to which a voxel survives."""

_SLACK: Final = 1e-6  # a stored float32 p of .05 is .0500000007

STABLE_DICE: Final = 0.8
"""Median Dice from which a network of fewer people or studies counts as that of all."""

LOCATION: Final = ("location-uniform", "location-strength")
DIRECTION: Final = "direction"
SPECIFICITY: Final = "specificity-"

_STATISTICS: Final = ("observed", "null_mean", "null_p95", "p", "p_fwe", "n")

# Columns of text, then of numbers.
_TABLES: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "null": (("cohort", "direction", "null", "statistic"), _STATISTICS),
    "maps": (("cohort", "direction", "map"), ("r", "p", "n", "voxels")),
    "people": (("direction",), ("people", "repeat", "dice", "spatial_r", "voxels")),
    "enough_people": (("direction",), ("people", "dice")),
    "fewer_studies": (
        ("direction", "stable"),
        ("studies", "subsets", "dice_q25", "dice_median", "dice_q75"),
    ),
    "replication": (
        ("cohort", "direction"),
        (
            "voxels_discovery",
            "voxels",
            "dice",
            "spatial_r",
            "recovered",
            "contrasts",
            "contrast_r",
            "contrast_dice",
        ),
    ),
    "cohort_difference": (
        ("cohort", "direction", "seed", "source_study", "contrast"),
        ("voxels_tested", "voxels_stronger", "voxels_weaker", "largest_t", "smallest_q"),
    ),
    "contrast_agreement": (
        ("cohort", "direction", "seed", "source_study", "contrast"),
        ("spatial_r", "dice"),
    ),
}


@dataclass(frozen=True)
class Evidence:
    """Evidence that was computed.

    Attributes
    ----------
    nulls : dict
        Null models by name (``location-uniform``, ``direction``, ``specificity-pain``), then by cohort.
    beside : xarray.Dataset
        What stands beside the networks (cohort, direction, voxel).
    degree : xarray.Dataset, optional
        Degree control (cohort, direction).
    degree_maps : dict
        Degree (cohort, voxel) by kind.
    bootstrap : xarray.Dataset, optional
    tables : dict of DataFrame
        By name, those that there are.
    """

    nulls: dict[str, dict[str, xr.Dataset]]
    beside: xr.Dataset
    degree: xr.Dataset | None
    degree_maps: dict[str, xr.Dataset]
    bootstrap: xr.Dataset | None
    tables: dict[str, pd.DataFrame]

    @property
    def location(self) -> list[str]:
        """Names of the location nulls."""
        return [name for name in self.nulls if name in LOCATION]

    @property
    def specificity(self) -> list[str]:
        """Names of the comparisons with other conditions."""
        return [name for name in self.nulls if name.startswith(SPECIFICITY)]

    def table(self, name: str) -> pd.DataFrame | None:
        return self.tables.get(name)

    def map(self, name: str, cohort: str, direction: str) -> NDArray[np.float32] | None:
        """A variable beside the networks (voxel,), or None."""
        if name not in self.beside:
            return None
        return np.asarray(self.beside[name].sel(cohort=cohort, direction=direction).values)

    def survives(self, null: str, cohort: str, direction: str, over: str = "") -> NDArray[np.bool_] | None:
        """Where a null leaves a map (voxel,), family-wise at .05; None where that was not computed.

        `over`: voxels of one direction and cohort, or also of all ``"directions"``, or also of ``"all"`` cohorts.
        """
        if over == "directions" and null == DIRECTION:
            over = "both"
        p = self.map("_".join(filter(None, ["p_fwe", over, label(null)])), cohort, direction)
        if p is None:
            return None
        with np.errstate(invalid="ignore"):
            return np.asarray(p <= LEVEL + _SLACK)

    def statistic(self, null: str, cohort: str, direction: str, statistic: str) -> dict[str, float] | None:
        """Row of the table of nulls, or None."""
        table = self.tables.get("null")
        if table is None:
            return None
        wanted = {"cohort": cohort, "direction": direction, "null": null, "statistic": statistic}
        found = table[np.logical_and.reduce([table[key] == value for key, value in wanted.items()])]
        return {name: float(found.iloc[0][name]) for name in _STATISTICS} if len(found) else None


def label(null: str) -> str:
    """How variables beside the networks call a null."""
    return null.replace("-", "_")


def load_evidence(folder: Path, settings: Mapping[str, Any], networks: xr.Dataset) -> Evidence:
    """Read what evidence there is.

    Parameters
    ----------
    folder : Path
        Results of a study.
    settings : mapping
        The study file.
    networks : xarray.Dataset
        The networks with what stands beside them, in memory.

    Raises
    ------
    InputError
        A store or table of it is damaged.
    """
    cohorts = [str(c) for c in networks["cohort"].values]
    tables = {
        name: read_table(folder / "tables" / f"{name}.tsv", *columns)
        for name, columns in _TABLES.items()
        if (folder / "tables" / f"{name}.tsv").is_file()
    }

    def store(name: str) -> xr.Dataset | None:
        path = folder / "evidence" / f"{name}.zarr"
        return open_results(path).compute() if path.is_dir() else None

    names = (
        [*LOCATION, DIRECTION, *(f"{SPECIFICITY}{name}" for name in settings.get("specificity", {}))]
        if "null" in tables
        else []
    )
    nulls = {}
    for name in names:
        own = {cohort: found for cohort in cohorts if (found := store(f"{name}_cohort-{cohort}")) is not None}
        if len(own) == len(cohorts):
            nulls[name] = own
    kinds = {kind: found for kind in ("positive", "signed", "fisher_z") if (found := store(f"degree-{kind}"))}
    return Evidence(nulls, networks, store("degree-control"), kinds, store("bootstrap"), tables)
