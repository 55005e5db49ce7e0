"""Files that a run leaves: images and tables, named after the contract."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from ketanet.files import new_folder, write_table
from ketanet.grid import Grid
from ketanet.labelling import canonical_of_elements

CONTENTS = (
    "dataset_description.json",
    "provenance.json",
    "study.toml",
    "seeds.tsv",
    "coordinates.tsv",
    "report.html",
    "group.zarr",
    "group_*.zarr",
    "networks.zarr",
    "atlas.zarr",
    "subjects_cohort-*.zarr",
    "maps",
    "figures",
    "tables",
    "evidence",
    "draws",
    ".bidsignore",
    "partials",
)
"""What a run leaves in its folder."""


def file_label(name: str) -> str:
    """A name reduced to letters and digits, as BIDS entities want it."""
    return re.sub("[^A-Za-z0-9]", "", name)


def canonical_labels(atlas: xr.Dataset, grid: Grid) -> xr.Dataset:
    """The canonical network of every element, as a dataset to store: ``canonical`` (voxel,), and the names."""
    names, label = canonical_of_elements(atlas)
    return xr.Dataset(
        {"canonical": ("voxel", label, {"long_name": "canonical network, 0 = none", "names": names})},
        attrs={"kind": "canonical", "grid": grid.to_attrs()},
    )


def write_maps(folder: Path, group: xr.Dataset, networks: xr.Dataset, labels: xr.Dataset, grid: Grid) -> None:
    """Write every map of the main analysis as image and JSON sidecar, and the canonical networks, replacing the folder
    ``maps`` as a whole."""
    names = labels["canonical"].attrs["names"]
    with new_folder(folder / "maps") as maps:
        grid.save(maps / f"atlas_dseg{grid.suffix}", labels["canonical"].values)
        write_table(maps / "atlas_dseg.tsv", pd.DataFrame({"index": range(1, len(names) + 1), "name": names}))
        for cohort in group["cohort"].values:
            for seed in group["seed"].values:
                _contrast_images(maps, group.sel(cohort=cohort, seed=seed).compute(), grid)
            for direction in networks["direction"].values:
                _network_images(maps, networks.sel(cohort=cohort, direction=direction).compute(), grid)


def _contrast_images(maps: Path, one: xr.Dataset, grid: Grid) -> None:
    stem = f"cohort-{one['cohort'].item()}_seed-{one['seed'].item()}"
    facts = {
        "SourceStudy": str(one["source_study"].item()),
        "Contrast": str(one["contrast"].item()),
        "Direction": str(one["direction"].item()),
        "Subjects": int(one["n_subjects"].item()),
    }
    test = {k: one.attrs[k] for k in ("tail", "correction", "alpha")}
    _image(maps / f"{stem}_stat-t_statmap", one["t"], grid, facts | {"Meaning": "one-sample t of Fisher z"})
    _image(maps / f"{stem}_stat-meanz_statmap", one["mean_z"], grid, facts | {"Meaning": "mean Fisher z"})
    _image(maps / f"{stem}_desc-significant_mask", one["significant"], grid, facts | {"Test": test})


def _network_images(maps: Path, one: xr.Dataset, grid: Grid) -> None:
    stem = f"cohort-{one['cohort'].item()}_direction-{file_label(str(one['direction'].item()))}"
    facts = {"Direction": str(one["direction"].item()), "Contrasts": int(one["n_contrasts"].item())}
    rule = {"AtLeast": one.attrs["at_least"], "Extent": one.attrs["extent"], "Sign": one.attrs["sign"]}
    meaning = {"Meaning": "fraction of contrasts whose group map covers the voxel"}
    _image(maps / f"{stem}_stat-probability_statmap", one["probability"], grid, facts | meaning)
    _image(maps / f"{stem}_desc-network_mask", one["network"], grid, facts | rule)


def _image(stem: Path, values: xr.DataArray, grid: Grid, facts: Mapping[str, Any]) -> None:
    grid.save(stem.with_name(stem.name + grid.suffix), values.values)
    stem.with_name(stem.name + ".json").write_text(json.dumps(dict(facts), indent=2) + "\n", encoding="utf-8")
