"""Seeds from images (NIfTI; CIFTI-2 on grayordinates): masks and weighted masks, one seed each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import xarray as xr

from ketanet.errors import InputError
from ketanet.grid import Grid
from ketanet.seeds.build import PathLike, Seed, grid_of, seeds_dataset
from ketanet.seeds.folders import files_by_direction, files_in
from ketanet.seeds.sheets import read_sheet
from ketanet.seeds.values import Given, as_text, name_of

NIFTI: Final = (".nii.gz", ".nii")
SEEDS_FILE: Final = "seeds.tsv"


def seeds_from_images(
    images: PathLike | Sequence[PathLike],
    grid: Any,
    *,
    directions: Sequence[str] | None = None,
    direction: str | None = None,
) -> xr.Dataset:
    """Make one seed of each mask or weighted mask.

    Parameters
    ----------
    images : path or sequence of path
        A folder of NIfTI images (``.dscalar.nii`` or ``.dlabel.nii`` on grayordinates), in sub-folders named
        after the direction or directly in it; or single images. A ``seeds.tsv`` in the folder, as
        :func:`write_seeds` leaves it, says source study, contrast and direction; otherwise study and contrast are
        the file's name.
    grid : Grid or xarray.Dataset
        Where the seeds live: a grid, or a cohort. The images must lie on its lattice.
    directions : sequence of str, optional
        Directions allowed; of a folder, the sub-folders read. None allows any.
    direction : str, optional
        Direction of images that state none; otherwise theirs is empty.

    Returns
    -------
    xarray.Dataset
        As :func:`seeds_from_coordinates` gives; n_coordinates and n_outside are 0 unless ``seeds.tsv`` states
        them.

    Raises
    ------
    InputError
        There are no images, or one cannot be read, lies on another lattice or holds nothing on the grid.
    """
    own = grid_of(grid)
    given = Given.checked(directions, direction, None)
    if not isinstance(images, str | os.PathLike):
        about = [_facts(Path(path), direction or "") for path in images]
    elif not Path(images).is_dir():
        about = [_facts(Path(images), direction or "")]
    elif (Path(images) / SEEDS_FILE).is_file():
        about = _listed(Path(images), given)
    else:
        about = _found(Path(images), given)
    if not about:
        raise InputError("no seed images are given")
    _refuse_same_name(about)
    return seeds_dataset([_read_seed(own, facts) for facts in about], own, radius_mm=None, rule="image")


def _facts(file: Path, direction: str) -> dict[str, Any]:
    stem = file.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".dscalar").removesuffix(".dlabel")
    return {"file": file, "source_study": stem, "contrast": stem, "direction": direction}


def _found(folder: Path, given: Given) -> list[dict[str, Any]]:
    """Images of a folder without ``seeds.tsv``."""
    direct = files_in(folder, NIFTI)
    alone = given.directions is None and not any(files_in(sub, NIFTI) for sub in folder.iterdir() if sub.is_dir())
    if direct and (given.direction is not None or alone):
        groups = [(given.direction or "", direct)]
    else:
        groups = files_by_direction(folder, NIFTI, given, "NIfTI image")
    return [_facts(file, direction) for direction, files in groups for file in files]


def _listed(folder: Path, given: Given) -> list[dict[str, Any]]:
    """Images of a folder as its ``seeds.tsv`` lists them."""
    listing = folder / SEEDS_FILE
    (_, header), *rows = read_sheet(listing)
    absent = [name for name in ("file", "source_study", "contrast", "direction") if name not in header]
    if absent:
        raise InputError(f"{listing}: column {', '.join(absent)} is missing; remove the file to read the images alone")
    about = []
    for number, cells in rows:
        where = f"{listing}, row {number}"
        cell = dict(zip(header, cells, strict=False))
        label = as_text(cell.get("direction")) or (given.direction or "")
        facts = {
            "file": folder / name_of(cell.get("file"), f"{where}, column file"),
            "source_study": name_of(cell.get("source_study"), f"{where}, column source_study"),
            "contrast": name_of(cell.get("contrast"), f"{where}, column contrast"),
            "direction": label if given.directions is None else given.direction_of(label, f"{where}, column direction"),
        }
        counts = {name: _count(cell.get(name), f"{where}, column {name}") for name in ("n_coordinates", "n_outside")}
        about.append(facts | counts)
    unlisted = set(files_in(folder, NIFTI)) - {facts["file"] for facts in about}
    if unlisted:
        raise InputError(f"{listing}: no row for {', '.join(sorted(file.name for file in unlisted))}")
    return about


def _count(value: Any, where: str) -> int:
    text = as_text(value) or "0"
    if not text.isdecimal():
        raise InputError(f"{where}: {text!r} is not a whole number")
    return int(text)


def _refuse_same_name(about: Sequence[dict[str, Any]]) -> None:
    seen: dict[tuple[str, str, str], Path] = {}
    for facts in about:
        key = (facts["source_study"], facts["contrast"], facts["direction"])
        if key in seen:
            raise InputError(f"{facts['file']}: the same study, contrast and direction as {seen[key]}; rename one")
        seen[key] = facts["file"]


def _read_seed(grid: Grid, facts: dict[str, Any]) -> Seed:
    index, weight = grid.weights_from_image(facts["file"])
    used = weight != 0
    if not used.any():
        raise InputError(f"{facts['file']}: nothing nonzero lies on the grid ({grid.describe()})")
    return Seed(
        **{name: value for name, value in facts.items() if name != "file"},
        index=index[used],
        weight=weight[used],
    )
