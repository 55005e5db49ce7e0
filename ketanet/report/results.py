"""What a results folder holds, read for the report."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.compute import open_results
from ketanet.errors import InputError
from ketanet.grid import Grid, grid_from_attrs
from ketanet.report.evidence import Evidence, load_evidence
from ketanet.report.reading import read_parsed, read_table

_COUNTS: Final = ("n_coordinates", "n_outside", "n_voxels")
_PLACES: Final = tuple(f"{what}_{axis}" for what in ("peak", "com") for axis in "xyz")

_SETTINGS: Final = ("name", "preset", "coordinates", "directions", *spec.PRESETS["fcnm"])
_FACTS: Final = ("ketanet", "python", "packages", "study_file", "grid", "cohorts", "seeds", "atlas")

_TABLES: Final[Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    "seeds": ("seeds.tsv", ("seed", "source_study", "contrast", "direction"), _COUNTS),
    "canonical": (
        "tables/canonical.tsv",
        ("cohort", "direction", "network"),
        ("overlap_voxels", "network_voxels", "network_voxels_tested", "share"),
    ),
    "clusters": (
        "tables/clusters.tsv",
        ("cohort", "direction", "region"),
        ("cluster", "voxels", "volume_mm3", "peak_value", *_PLACES),
    ),
    "robustness": (
        "tables/robustness.tsv",
        ("cohort", "direction", "analysis", "parameter"),
        ("voxels", "dice", "spatial_r"),
    ),
}


@dataclass(frozen=True)
class Network:
    """One network: probability, network and count, each (voxel,), and its sizes."""

    cohort: str
    direction: str
    probability: NDArray[np.float32]
    inside: NDArray[np.bool_]
    count: NDArray[np.int32]
    n_contrasts: int
    voxels: int
    tested_voxels: int
    covered_voxels: int
    volume_cm3: float

    @property
    def title(self) -> str:
        return f"{self.direction} in {self.cohort}"


@dataclass(frozen=True)
class Results:
    """A finished results folder: settings, facts of the run, tables and stores, and what evidence there is."""

    folder: Path
    settings: dict[str, Any]
    provenance: dict[str, Any]
    grid: Grid
    group: xr.Dataset
    networks: list[Network]
    rule: dict[str, Any]
    people: dict[str, int]
    seeds: pd.DataFrame
    canonical: pd.DataFrame
    clusters: pd.DataFrame
    robustness: pd.DataFrame
    evidence: Evidence

    @property
    def cohorts(self) -> list[str]:
        """Names of the cohorts; the first one is that of the main analysis."""
        return list(self.people)

    @property
    def directions(self) -> list[str]:
        """Directions that have a contrast, in the study's order."""
        return list(dict.fromkeys(network.direction for network in self.networks))

    @property
    def on_parcels(self) -> bool:
        return self.grid.element == "parcel"

    @property
    def element(self) -> str:
        """What a value of a map belongs to, in words."""
        return self.grid.element

    @property
    def place(self) -> str:
        """What the sizes of networks are counted in, in words."""
        return self.grid.place

    @property
    def part(self) -> str:
        """What a row of the table of clusters is, in words."""
        if self.grid.has_extent:
            return "cluster"
        return "parcel" if self.on_parcels else "structure"

    @property
    def from_coordinates(self) -> bool:
        """Whether seeds were made of coordinates, rather than given as images."""
        return self.group.attrs.get("radius_mm") is not None

    def of(self, cohort: str, direction: str) -> Network:
        """The network of a cohort and direction."""
        return next(n for n in self.networks if (n.cohort, n.direction) == (cohort, direction))


def load_results(folder: str | os.PathLike[str]) -> Results:
    """Open what a run of a study left.

    Raises
    ------
    InputError
        The folder does not hold finished results, or a file in it is damaged.
    """
    root = Path(folder)
    settings = read_parsed(root / "study.toml", tomllib.loads, _SETTINGS)
    spec.choice(settings["preset"], spec.PRESETS, f"{root / 'study.toml'}: preset")
    provenance = read_parsed(root / "provenance.json", json.loads, _FACTS)
    if not provenance.get("complete", True):
        raise InputError(f"{root}: the last run did not finish, so settings and maps may not fit; run the study again")
    tables = {name: read_table(root / file, text, numbers) for name, (file, text, numbers) in _TABLES.items()}
    group, stored = (open_results(root / f"{name}.zarr") for name in ("group", "networks"))
    spec.validate(group, "group", extra_dims=("cohort",))
    spec.validate(stored, "networks", extra_dims=("cohort",))
    grid = grid_from_attrs(group.attrs["grid"])
    stored = stored.compute()
    people = {str(c): int(n) for c, n in zip(stored["cohort"].values, stored["n_subjects"].values, strict=True)}
    networks = [
        _network(stored.sel(cohort=cohort, direction=direction), grid, float(stored.attrs["at_least"]))
        for direction in stored["direction"].values
        for cohort in stored["cohort"].values
    ]
    evidence = load_evidence(root, settings, stored)
    return Results(
        root, settings, provenance, grid, group, networks, dict(stored.attrs), people, **tables, evidence=evidence
    )


def _network(one: xr.Dataset, grid: Grid, at_least: float) -> Network:
    probability, inside, count = (one[name].values for name in ("probability", "network", "count"))
    voxels = int(grid.painted[inside].sum())
    with np.errstate(invalid="ignore"):
        covered = probability >= at_least - 1e-6
    return Network(
        cohort=str(one["cohort"].item()),
        direction=str(one["direction"].item()),
        probability=probability,
        inside=inside,
        count=count,
        n_contrasts=int(one["n_contrasts"].item()),
        voxels=voxels,
        tested_voxels=int(grid.painted[count >= 0].sum()),
        covered_voxels=int(grid.painted[covered].sum()),
        volume_cm3=grid.volume_of(inside) / 1000,
    )


def rows_of(table: pd.DataFrame, network: Network) -> pd.DataFrame:
    """Rows of a table that belong to a network."""
    return table[(table["cohort"] == network.cohort) & (table["direction"] == network.direction)]
