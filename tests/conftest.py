"""Fixtures. Grids never have two equal sizes, so that a swapped axis cannot pass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import nibabel as nib
import numpy as np
import pytest
import xarray as xr

from ketanet.grid import ParcelGrid, VolumeGrid
from ketanet.ingest import NiftiSource, ingest_cohort
from ketanet.seeds.build import Seed, seeds_dataset


def _data_folder() -> Path | None:
    given = os.environ.get("KETANET_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(given) if given else beside
    return folder if (folder / "README.md").is_file() else None


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real data: ``$KETANET_DATA``, or ``shared/data`` beside the checkout."""
    folder = _data_folder()
    if folder is None:
        pytest.skip("real data absent: set KETANET_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


@pytest.fixture(scope="session")
def volume() -> VolumeGrid:
    """A 7 x 8 x 9 lattice of 3 mm voxels, most of it inside the mask; origin on a voxel centre."""
    mask = np.random.default_rng(1).random((7, 8, 9)) < 0.8
    mask[3, 4, 2:7] = True
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = [9, -12, -15]
    return VolumeGrid(mask, affine)


@pytest.fixture(scope="session")
def parcels() -> ParcelGrid:
    """Eleven parcels of unequal size on a 7 x 8 x 9 lattice of 4 mm; label 5 is missing."""
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12], size=(7, 8, 9))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-12, -16, -16]
    return ParcelGrid(labels, affine, [f"region {label}" for label in np.unique(labels) if label])


FRAMES = (40, 52, 75, 64, 41, 58, 60, 47, 66, 55, 71, 49, 43, 62)
"""Ragged on purpose; the longest is neither first nor last."""


@dataclass(frozen=True)
class People:
    """A small 4D cohort as files and as stores, with what is peculiar about it.

    Voxels are positions in the grid. `weights` are those of `seeds`, one dict of voxel to weight for each seed.
    """

    folder: Path
    mask: Path
    grid: VolumeGrid
    names: tuple[str, ...]
    stores: dict[str, Path]
    seeds: xr.Dataset
    weights: tuple[dict[int, float], ...]
    flat: int
    """Constant in everyone."""
    flat_in: tuple[int, tuple[int, ...]]
    """Constant in these people."""
    uncovered: tuple[tuple[int, ...], tuple[int, ...]]
    """These voxels are 0 in these people."""
    covered_in_two: int
    covered_in_one: int

    def series(self, person: int) -> np.ndarray:
        """Original series (voxel, time) of a person in float64, read by nibabel alone."""
        values = nib.load(self.folder / f"{self.names[person]}.nii.gz").get_fdata(dtype=np.float64)
        inside = np.asarray(nib.load(self.mask).dataobj) != 0
        return values[inside]


def _draw_people(grid: VolumeGrid, peculiar: dict[str, Any]) -> list[np.ndarray]:
    """Series (voxel, time) of every person: three courses, one of them opposed, noise, a baseline."""
    rng = np.random.default_rng(42)
    loading = rng.normal(0, 0.5, (grid.n_voxels, 3)) + np.eye(3)[rng.integers(0, 3, grid.n_voxels)]
    drawn = []
    for person, frames in enumerate(FRAMES):
        courses = rng.normal(size=(3, frames))
        courses[1] -= 0.5 * courses[0]
        gain = rng.uniform(0.5, 1.2, (1, 3))
        signal = (loading * gain) @ courses + rng.normal(0, 1.0, (grid.n_voxels, frames))
        series = 900 + rng.uniform(-200, 200, (grid.n_voxels, 1)) + 12 * signal
        series[peculiar["flat"]] = 750.25
        if person in peculiar["flat_in"][1]:
            series[peculiar["flat_in"][0]] = 811.125
        if person in peculiar["uncovered"][1]:
            series[list(peculiar["uncovered"][0])] = 0
        if person not in (3, 8):
            series[peculiar["covered_in_two"]] = 0
        if person != 6:
            series[peculiar["covered_in_one"]] = 0
        drawn.append(series)
    return drawn


def _write_people(folder: Path, grid: VolumeGrid, drawn: list[np.ndarray]) -> tuple[str, ...]:
    """One image per person, of several data types."""
    folder.mkdir()
    names = tuple(f"sub-{chr(ord('a') + person)}{person:02d}" for person in range(len(drawn)))
    for person, (name, series) in enumerate(zip(names, drawn, strict=True)):
        values = np.zeros((*grid.shape, series.shape[1]))
        values[grid.mask] = series
        dtype = (np.float32, np.float64, np.dtype(">f4"))[person % 3]
        image = nib.Nifti1Image(values.astype(dtype), grid.affine)
        image.header.set_zooms((3, 3, 3, 2.0))
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, folder / f"{name}.nii.gz")
    return names


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory, volume: VolumeGrid) -> People:
    """Fourteen people: ragged lengths, voxels that are flat or not covered in some, seeds of many kinds."""
    home = tmp_path_factory.mktemp("people")
    count = volume.n_voxels
    peculiar: dict[str, Any] = {
        "flat": 11,
        "flat_in": (57, (0, 4, 9)),
        "uncovered": ((120, 121, 122, 123, 130, 131), (1, 2)),
        "covered_in_two": 200,
        "covered_in_one": 201,
    }
    names = _write_people(home / "images", volume, _draw_people(volume, peculiar))
    mask = home / "mask.nii.gz"
    nib.save(nib.Nifti1Image(volume.mask.astype(np.uint8), volume.affine), mask)
    weights: tuple[dict[int, float], ...] = (
        {30: 1, 31: 1, 38: 1, 90: 1, 91: 1, 92: 1, 150: 1},
        {77: 1},
        {5: 1, 300: 1, count - 1: 1},
        dict.fromkeys(peculiar["uncovered"][0], 1),
        {121: 1, 122: 1, 240: 1, 241: 1},
        {14: 0.25, 15: 2.0, 16: 1.5, 170: 3.0},
        {57: 1},
        {11: 1, 12: 1},
        {11: 1},
        {200: 1, 260: 1},
    )
    made = [
        Seed(
            f"Study{n // 2}",
            f"contrast {n}",
            ("increase", "decrease")[n % 2],
            np.array(sorted(w)),
            np.array([w[v] for v in sorted(w)], float),
            1,
        )
        for n, w in enumerate(weights)
    ]
    seeds = seeds_dataset(made, volume, radius_mm=None, rule="fcnm")
    source = NiftiSource(home / "images", mask=mask)
    stores = {dtype: ingest_cohort(source, home / f"{dtype}.zarr", dtype=dtype) for dtype in ("int16", "float32")}
    return People(home / "images", mask, volume, names, stores, seeds, weights, **peculiar)


@pytest.fixture
def no_compute() -> Iterator[None]:
    """Any computation by dask raises."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        yield
