"""What a study stands on, opened and checked before anything is computed."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import labelling, storage
from ketanet.cohort import open_cohort, select, without_damaged
from ketanet.errors import InputError, KetanetWarning
from ketanet.grid import Grid, grid_from_attrs, require_same_grid
from ketanet.group import MIN_SUBJECTS
from ketanet.seeds import holds_images, load_seeds, read_coordinates, seeds_from_coordinates, seeds_from_images
from ketanet.study.settings import Study

MAIN = "main"
"""Name of the variant that is the study itself."""


@dataclass(frozen=True)
class Variant:
    """Seeds, and the signal taken of them."""

    seeds: xr.Dataset
    signal: str


@dataclass(frozen=True)
class Inputs:
    """Everything a run stands on, opened and checked before anything is computed.

    `variants` are mapped in the cohorts: the study itself first (:data:`MAIN`), then those of the robustness analysis
    (``radius-1``, ``signal-pc1``) and the contrasts of other conditions (``control-pain``). `mask` is where the group
    test is made, `grey` where places are drawn, both bool (voxel,) or None for the whole grid.
    """

    study: Study
    cohorts: dict[str, xr.Dataset]
    grid: Grid
    variants: dict[str, Variant]
    atlas: xr.Dataset
    mask: NDArray[np.bool_] | None = None
    grey: NDArray[np.bool_] | None = None
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    """By cohort looked through for damage: people left out, and what is wrong with their chunks."""

    @property
    def main(self) -> xr.Dataset:
        return self.variants[MAIN].seeds

    @property
    def directions(self) -> list[str]:
        """Directions of the study that have a contrast, in the study's order."""
        present = set(self.main["direction"].values)
        return [d for d in self.study.directions if d in present]

    @property
    def overlap_settings(self) -> dict[str, Any]:
        return self.study.network.model_dump() | {"directions": self.directions}

    def without_damaged(self) -> Inputs:
        """The same without people whose stored chunks are damaged or missing; reads every chunk."""
        cohorts: dict[str, xr.Dataset] = {}
        left_out: dict[str, dict[str, str]] = {}
        for name, cohort in self.cohorts.items():
            cohorts[name], left_out[name] = without_damaged(cohort)
            _require_enough(name, cohorts[name])
        return replace(self, cohorts=cohorts, left_out=left_out)


def open_inputs(study: Study) -> Inputs:
    """Open and check what a study names; nothing but metadata is read.

    Raises
    ------
    InputError
        Something cannot be used.
    """
    cohorts: dict[str, xr.Dataset] = {}
    grid: Grid | None = None
    # the discovery cohort first: the others are compared with it
    for name, settings in sorted(study.cohorts.items(), key=lambda item: item[1].role == "replication"):
        cohort = open_cohort(settings.store)
        own = grid_from_attrs(cohort.attrs["grid"])
        if grid is None:
            grid, first = own, name
        require_same_grid(grid, own, f"cohort {first!r}", f"cohort {name!r}")
        cohorts[name] = select(cohort, settings.where)
        _require_enough(name, cohorts[name])
    assert grid is not None
    _warn_shared_people(cohorts)
    mask = None if study.group.mask is None else grid.read_mask(study.group.mask)
    grey = mask if study.null is None or study.null.mask is None else grid.read_mask(study.null.mask)
    atlas = labelling.atlas(study.labels.atlas, grid)
    return Inputs(study, cohorts, grid, _variants(study, grid), atlas, mask, grey)


def _require_enough(name: str, cohort: xr.Dataset) -> None:
    if cohort.sizes["subject"] < MIN_SUBJECTS:
        raise InputError(
            f"cohort {name!r} has {cohort.sizes['subject']} subjects; a group test needs at least {MIN_SUBJECTS}"
        )


def _warn_shared_people(cohorts: Mapping[str, xr.Dataset]) -> None:
    """A second cohort of the same people replicates nothing."""
    for (a, first), (b, second) in itertools.combinations(cohorts.items(), 2):
        shared = set(map(str, first["subject"].values)) & set(map(str, second["subject"].values))
        if first.attrs["content"] == second.attrs["content"] and shared:
            warnings.warn(
                f"cohorts {a!r} and {b!r} share {len(shared)} people; agreement between them is no replication",
                KetanetWarning,
                stacklevel=2,
            )


def refuse_inputs_inside(study: Study, source: Path, folder: Path) -> None:
    """Results never go where an input lies."""
    atlas = study.labels.atlas if isinstance(study.labels.atlas, list) else [study.labels.atlas]
    files = [str(source), study.coordinates, study.studies, study.group.mask, study.null and study.null.mask]
    files += [c.store for c in study.cohorts.values()] + [c.coordinates for c in study.specificity.values()]
    files += [] if study.maps is None else list(study.maps.files.values())
    files += [entry.get("file") if isinstance(entry, dict) else entry for entry in atlas]
    for file in files:
        if (
            file
            and not storage.is_remote(file)
            and folder.absolute() in (Path(file).absolute(), *Path(file).absolute().parents)
        ):
            raise InputError(f"{file} lies inside the results folder {folder}; choose another folder")


def _variants(study: Study, grid: Grid) -> dict[str, Variant]:
    settings = study.seeds
    main = _seeds(study, grid, settings.radius_mm)
    found = {MAIN: Variant(main, settings.signal)}
    if not holds_images(study.coordinates):
        for radius in study.robustness.radii_mm:
            if radius == settings.radius_mm:
                continue
            with warnings.catch_warnings():
                # said once, for the main radius
                warnings.simplefilter("ignore", KetanetWarning)
                other = _seeds(study, grid, radius, drop_empty=True)
            if lost := main.sizes["seed"] - other.sizes["seed"]:
                warnings.warn(
                    f"at {radius:g} mm (robustness.radii_mm) {lost} contrasts reach no voxel; that variant is without "
                    "them",
                    KetanetWarning,
                    stacklevel=2,
                )
            found[f"radius-{radius:g}"] = Variant(other, settings.signal)
    found |= {f"signal-{s}": Variant(main, s) for s in study.robustness.signals if s != settings.signal}
    for name, control in study.specificity.items():
        seeds = load_seeds(
            control.coordinates,
            grid,
            radius_mm=settings.radius_mm,
            rule=settings.rule,
            directions=control.directions,
            direction=name,
        )
        found[f"control-{name}"] = Variant(seeds, settings.signal)
    return found


def _seeds(study: Study, grid: Grid, radius_mm: float, *, drop_empty: bool = False) -> xr.Dataset:
    if holds_images(study.coordinates):
        return seeds_from_images(study.coordinates, grid, directions=study.directions)
    return seeds_from_coordinates(
        read_coordinates(study.coordinates, directions=study.directions, studies=study.studies),
        grid,
        radius_mm=radius_mm,
        rule=study.seeds.rule,
        directions=study.directions,
        drop_empty=drop_empty,
    )
