"""Seeds from whatever a user names: coordinates or images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from ketanet.errors import InputError
from ketanet.seeds.build import PathLike, seeds_from_coordinates
from ketanet.seeds.folders import files_in
from ketanet.seeds.images import NIFTI, seeds_from_images
from ketanet.seeds.sheets import EXCEL


def load_seeds(
    source: PathLike,
    grid: Any,
    *,
    radius_mm: float = 4.0,
    rule: str = "fcnm",
    directions: Sequence[str] | None = None,
    direction: str | None = None,
    space: str | None = None,
) -> xr.Dataset:
    """Seeds of a coordinate table, a folder of coordinates, an image or a folder of images.

    Parameters
    ----------
    source : path
        What :func:`seeds_from_coordinates` or :func:`seeds_from_images` takes.
    grid : Grid or xarray.Dataset
        Where the seeds live: a grid, or a cohort.
    radius_mm, rule, space
        For coordinates, as in :func:`seeds_from_coordinates`.
    directions : sequence of str, optional
        Directions allowed; of a folder, the sub-folders read. None allows any.
    direction : str, optional
        Direction where the source states none.

    Returns
    -------
    xarray.Dataset
        As :func:`seeds_from_coordinates` gives.

    Raises
    ------
    InputError
        The source is missing, holds neither coordinates nor images or both, or is not usable.
    """
    if holds_images(source):
        return seeds_from_images(source, grid, directions=directions, direction=direction)
    return seeds_from_coordinates(
        source, grid, radius_mm=radius_mm, rule=rule, directions=directions, direction=direction, space=space
    )


def holds_images(source: PathLike) -> bool:
    """Whether a source of seeds is images (or a folder of them), not coordinates.

    Raises
    ------
    InputError
        A folder holds neither images nor coordinates, or both.
    """
    path = Path(source)
    if not path.is_dir():
        return path.name.lower().endswith(NIFTI)
    folders = [path, *(entry for entry in path.iterdir() if entry.is_dir())]
    images, tables = (any(files_in(folder, kind) for folder in folders) for kind in (NIFTI, EXCEL))
    if images == tables:
        state = "both NIfTI images and" if images else "neither NIfTI images nor"
        raise InputError(f"{path}: the folder holds {state} Excel files; one kind is needed")
    return images
