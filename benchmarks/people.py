"""Cohorts to measure on: a few distinct people, and as many more as wanted who are copies of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ketanet.cohort import CohortPlan, CohortWriter, Subject
from ketanet.grid import Grid, VolumeGrid
from ketanet.seeds import seeds_from_coordinates

_LATTICE = (61, 73, 61)
_AFFINE = np.array([[-3.0, 0, 0, 90], [0, 3, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]])
_SPARE = 1.3
"""Free disk wanted, as a multiple of what will be written."""


class DiskTooSmallError(RuntimeError):
    """The disk does not hold what a benchmark would write."""


def ball(n_voxels: int) -> VolumeGrid:
    """Grid of 3 mm whose mask is the `n_voxels` innermost voxels of the MNI lattice of 61 x 73 x 61."""
    places = np.indices(_LATTICE).reshape(3, -1).T
    centre = (np.array(_LATTICE) - 1) / 2
    distance = np.linalg.norm((places - centre) / centre, axis=1)
    mask = np.zeros(int(np.prod(_LATTICE)), bool)
    mask[np.argsort(distance, kind="stable")[:n_voxels]] = True
    return VolumeGrid(mask.reshape(_LATTICE), _AFFINE)


def series_of(person: int, n_voxels: int, n_frames: int) -> NDArray[np.float32]:
    """Series (voxel, time) of a made-up person: noise and a course that all voxels share."""
    rng = np.random.default_rng(person)
    noise = rng.standard_normal((n_voxels, n_frames), dtype=np.float32)
    return noise + np.float32(0.5) * rng.standard_normal(n_frames, dtype=np.float32)


def write_cohort(
    path: Path,
    grid: Grid,
    people: int,
    series: Callable[[int], NDArray[np.float32]],
    lengths: Sequence[int],
    *,
    link: bool = False,
) -> Path:
    """Write a cohort of whom only the first few are computed: the files of the others are theirs again.

    Parameters
    ----------
    path : Path
        Store to make.
    grid : Grid
    people : int
    series : callable
        Position of a distinct person -> series (voxel, time).
    lengths : sequence of int
        Frames of each distinct person.
    link : bool
        Hard links, which take no disk: the cohort is then read from the page cache. Otherwise true copies.

    Raises
    ------
    DiskTooSmallError
        The disk lacks 1.3 times the bytes of the store.
    """
    distinct = min(len(lengths), people)
    plan = CohortPlan(grid, [Subject(f"sub-{row:05d}", lengths[row % distinct], 2.0) for row in range(people)])
    require_disk(path.parent, (distinct if link else people) * _stored_bytes(plan))
    writer = CohortWriter(path, plan)
    writer.begin()
    for row in range(distinct):
        writer.write(row, series(row))
    _repeat(path.with_name(f"{path.name}.partial"), distinct, people, os.link if link else shutil.copyfile)
    return Path(writer.finish())


def _repeat(partial: Path, distinct: int, people: int, take: Callable[[Path, Path], object]) -> None:
    """Give every further person the chunks, and the record of being written, of one who was written."""
    records = partial / "state" / "subjects"
    for row in range(distinct, people):
        for name in ("bold", "bold_norm"):
            chunks = partial / "store" / name / "c"
            for source in (chunks / str(row % distinct)).rglob("*"):
                target = chunks / str(row) / source.relative_to(chunks / str(row % distinct))
                if source.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    take(source, target)
        shutil.copyfile(records / f"{row % distinct}.json", records / f"{row}.json")


def _stored_bytes(plan: CohortPlan) -> int:
    """Bytes of one person: whole chunks, and the norms."""
    step = plan.voxels_per_chunk
    voxels = -(-plan.grid.n_voxels // step) * step
    return voxels * plan.n_frames * np.dtype(plan.dtype).itemsize + plan.grid.n_voxels * 4


def require_disk(folder: Path, size: int) -> None:
    """Raise a DiskTooSmallError unless 1.3 times `size` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < _SPARE * size:
        raise DiskTooSmallError(
            f"the disk of the scratch folder has {free / 1e9:.1f} GB free; {_SPARE * size / 1e9:.1f} GB are needed "
            f"(1.3 times the {size / 1e9:.1f} GB to be written); choose another with --folder, or fewer people"
        )


def leave_page_cache(store: Path) -> None:
    """Have the system write a store to disk and forget its pages, so that the next reading comes from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in store.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def seeds_on(grid: Grid, count: int, *, radius_mm: float = 4.0) -> xr.Dataset:
    """Seeds of three coordinates each, anywhere on the grid."""
    xyz = grid.centres[np.random.default_rng(0).choice(grid.n_voxels, 3 * count)]
    names = np.repeat([f"study {n}" for n in range(count)], 3)
    fixed = {"direction": "increase", "space": "MNI"}
    table = pd.DataFrame({"source_study": names, "contrast": names, **fixed, **dict(zip("xyz", xyz.T, strict=True))})
    return seeds_from_coordinates(table, grid, radius_mm=radius_mm)
