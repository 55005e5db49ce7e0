"""Seeds as files: an image for each, and a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import xarray as xr

from ketanet import spec
from ketanet.errors import InputError
from ketanet.files import new_folder
from ketanet.grid import Grid
from ketanet.seeds.build import PathLike, grid_of, seed_weights
from ketanet.seeds.images import SEEDS_FILE

TABLE_COLUMNS: Final = (
    "seed",
    "source_study",
    "contrast",
    "direction",
    "n_coordinates",
    "n_outside",
    "n_voxels",
    "file",
)

_IMAGE = re.compile(r"seed-[0-9A-Za-z]+_mask\.(nii\.gz|dscalar\.nii)")


def seeds_table(seeds: xr.Dataset) -> pd.DataFrame:
    """Table of the seeds, one row each; `file` is the image that :func:`write_seeds` writes.

    Parameters
    ----------
    seeds : xarray.Dataset
        From :func:`seeds_from_coordinates` or :func:`seeds_from_images`.

    Returns
    -------
    pandas.DataFrame
        Columns seed, source_study, contrast, direction, n_coordinates, n_outside, n_voxels, file.
    """
    spec.validate(seeds, "seeds")
    table = pd.DataFrame({name: seeds[name].to_numpy() for name in TABLE_COLUMNS[:-1]})
    suffix = grid_of(seeds).suffix
    table["file"] = [f"seed-{name}_mask{suffix}" for name in table["seed"]]
    return table


def coordinates_table(seeds: xr.Dataset) -> pd.DataFrame:
    """Table of the coordinates that seeds were made of, one row each, as they were used.

    Parameters
    ----------
    seeds : xarray.Dataset
        From :func:`seeds_from_coordinates`; seeds made of images have none.

    Returns
    -------
    pandas.DataFrame
        Columns seed, source_study, contrast, direction; x, y, z in mm of MNI space; given_space (``Talairach``: brought
        to MNI space); outside (whether it lies off the grid's mask).
    """
    spec.validate(seeds, "seeds")
    rows = seeds["coordinate_seed"].to_numpy()
    table = pd.DataFrame({name: seeds[name].to_numpy()[rows] for name in TABLE_COLUMNS[:4]})
    for axis in "xyz":
        table[axis] = seeds[axis].to_numpy()
    return table.assign(
        given_space=seeds["coordinate_space"].to_numpy(), outside=seeds["coordinate_outside"].to_numpy().astype(bool)
    )


def write_seeds(seeds: xr.Dataset, out_dir: PathLike) -> Path:
    """Write an image for each seed, ``seed-<name>_mask.nii.gz`` (``.dscalar.nii`` on grayordinates), and ``seeds.tsv``.

    Everything is made in a folder beside and then renamed, so an error leaves nothing. A folder that an
    earlier call wrote is replaced.

    Parameters
    ----------
    seeds : xarray.Dataset
    out_dir : path
        Folder to make. :func:`seeds_from_images` reads it back.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    InputError
        `out_dir` is a file, or a folder that holds something else, or cannot be written.

    Notes
    -----
    A weight is spread over the image voxels of its element, so that reading an image sums to the same weight:
    1 in a voxel, and in a parcel the fraction of it that the spheres cover.
    """
    table, weights, grid = seeds_table(seeds), seed_weights(seeds), grid_of(seeds)
    out = Path(out_dir).resolve()
    _refuse_other(out)
    with new_folder(out) as folder:
        for position, file in enumerate(table["file"]):
            _write_image(grid, weights[[position]].toarray()[0], folder / file)
        table.to_csv(folder / SEEDS_FILE, sep="\t", index=False)
    return out


def _write_image(grid: Grid, weights: np.ndarray, path: Path) -> None:
    values = weights / grid.painted
    is_mask = np.isin(values, (0.0, 1.0)).all()
    grid.save(path, values.astype(bool if is_mask else np.float32))


def _refuse_other(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder to write the seeds to")
    names = [entry.name for entry in out.iterdir()]
    other = sorted(name for name in names if name != SEEDS_FILE and not _IMAGE.fullmatch(name))
    if names and (other or SEEDS_FILE not in names):
        raise InputError(
            f"{out}: the folder holds something else ({', '.join(other[:3] or names[:3])}); name a new folder"
        )
