"""Parcel time series of one subject from a file: text tables of several makes, and NumPy arrays."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ketanet.errors import InputError
from ketanet.grid import ParcelGrid

SUFFIXES = (".tsv", ".csv", ".1d", ".txt", ".npy")
"""Kinds of tables; small letters stand for capitals too."""

_DELIMITER = {".tsv": "\t", ".csv": ","}  # the others: white space
_MISSING = frozenset({"", "n/a", "na", "nan"})
_LABEL = re.compile(r"(?:mean_|roi_|parcel )?(\d+)", re.IGNORECASE)
_NO_SERIES = frozenset({"file", "sub-brick"})
"""Columns that AFNI's 3dROIstats writes before those of the parcels."""

_MOST_ABSENT = 0.2
"""Largest share of parcels without a column. 3dROIstats leaves out empty ones (5 % in ADHD-200); a table that lacks
more is rather one of another atlas."""


def read_parcel_table(path: Path, grid: ParcelGrid, atlas: Path) -> NDArray[np.float64]:
    """Series (time, parcel) of a table, in the order of the grid; NaN where a parcel has no column or no value at all.

    Parameters
    ----------
    path : Path
        ``.tsv``, ``.csv``; ``.1D``, ``.txt`` (separated by white space); ``.npy`` (time, parcel). A text table may
        start with comments (``#``) and a header. Where the header gives the labels of the atlas (``#1 #2``,
        ``Mean_1 Mean_2``) or the names of the parcels, columns are taken by them, else in order.
    grid : ParcelGrid
    atlas : Path
        The label image, for messages.

    Raises
    ------
    InputError
        The file is unreadable or empty, a cell is no number, or the columns do not fit the atlas.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: a table is .tsv, .csv, .1D, .txt or .npy; this is {path.suffix or 'without ending'}")
    if suffix == ".npy":
        return _array(path, grid, atlas)
    rows = _rows(path, _DELIMITER.get(suffix))
    header, frames = _split(rows, grid)
    if not frames:
        raise InputError(f"{path}: the table is empty")
    used = [i for i, name in enumerate(header or []) if name.lower() not in _NO_SERIES]
    width = len(header) if header else grid.n_voxels
    for row in frames:
        if len(row) != width:
            raise _wrong_width(path, len(row), width if header and width != grid.n_voxels else None, grid, atlas)
    if header:
        frames = [[row[i] for i in used] for row in frames]
    places = _places([header[i] for i in used], grid, path, atlas) if header else np.arange(grid.n_voxels)
    values = np.full((len(frames), grid.n_voxels), np.nan)
    values[:, places] = _numbers(frames, path)
    return values


def _array(path: Path, grid: ParcelGrid, atlas: Path) -> NDArray[np.float64]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable .npy file ({str(error).splitlines()[0]})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
        found = f"shape {values.shape} and dtype {values.dtype}" if isinstance(values, np.ndarray) else "several arrays"
        raise InputError(f"{path}: {found}; numbers (time, parcel) are needed")
    if len(values) == 0:
        raise InputError(f"{path}: the table is empty")
    if values.shape[1] != grid.n_voxels:
        raise _wrong_width(path, values.shape[1], None, grid, atlas)
    return values.astype(np.float64)


def _rows(path: Path, delimiter: str | None) -> list[list[str]]:
    """Cells of the lines that are not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if delimiter is None:
                return [cells for line in file if (cells := line.split())]
            return [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=delimiter) if row]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: not a readable text table ({error})") from error


def _split(rows: list[list[str]], grid: ParcelGrid) -> tuple[list[str] | None, list[list[str]]]:
    """Header (None: there is none) and frames."""
    start = 0
    while start < len(rows) and rows[start][0].startswith("#"):
        start += 1
    comments, rest = rows[:start], rows[start:]
    if rest and _is_header(rest[0], grid):
        return rest[0], rest[1:]
    if comments:
        names = [name for cell in comments[-1] if (name := cell.lstrip("#").strip())]
        labels = len(names) > 1 and all(_LABEL.fullmatch(name) for name in names)
        if labels or (rest and len(names) == len(rest[0])):
            return names, rest
    return None, rest


def _is_header(row: Sequence[str], grid: ParcelGrid) -> bool:
    """Names; or the labels of the atlas, or the numbers from 0 that pandas writes: no frame happens to be those."""
    if all(cell.isdecimal() for cell in row):
        whole = [int(cell) for cell in row]
        return len(row) > 1 and (whole == list(range(len(row))) or sorted(whole) == grid.labels.tolist())
    return not any(_is_number(cell) for cell in row) and any(cell.lower() not in _MISSING for cell in row)


def _places(header: list[str], grid: ParcelGrid, path: Path, atlas: Path) -> NDArray[np.int64]:
    """Parcel that each column belongs to."""
    by_name = {name: place for place, name in enumerate(grid.names)}
    if len(by_name) == grid.n_voxels and all(name in by_name for name in header):
        places = [by_name[name] for name in header]
    else:
        labels = [int(found[1]) for name in header if (found := _LABEL.fullmatch(name.lstrip("#")))]
        if len(labels) < len(header) or labels == list(range(len(labels))):
            if len(header) != grid.n_voxels:
                raise _wrong_width(path, len(header), None, grid, atlas)
            return np.arange(grid.n_voxels)
        by_label = {int(label): place for place, label in enumerate(grid.labels)}
        unknown = [label for label in labels if label not in by_label]
        if unknown:
            raise InputError(
                f"{path}: the header names the parcel {unknown[0]}, which {atlas} does not hold; give the atlas of "
                "this table, or remove its header to take the columns in order"
            )
        places = [by_label[label] for label in labels]
    if len(set(places)) < len(places):
        raise InputError(f"{path}: the header names a parcel twice")
    if len(places) < (1 - _MOST_ABSENT) * grid.n_voxels:
        raise _wrong_width(path, len(places), None, grid, atlas)
    return np.array(places)


def _numbers(frames: list[list[str]], path: Path) -> NDArray[np.float64]:
    """Cells as numbers; a column that has no value in any frame is NaN."""
    try:
        return np.array(frames, np.float64)
    except ValueError:
        absent = [all(cell.lower() in _MISSING for cell in column) for column in zip(*frames, strict=True)]
        for number, row in enumerate(frames, 1):
            for column, cell in enumerate(row):
                if not absent[column] and not _is_number(cell):
                    raise InputError(f"{path}: frame {number}, column {column + 1}: {cell!r} is not a number") from None
        return np.array([["nan" if absent[i] else c for i, c in enumerate(row)] for row in frames], np.float64)


def _wrong_width(path: Path, found: int, header: int | None, grid: ParcelGrid, atlas: Path) -> InputError:
    if header is not None:
        return InputError(f"{path}: {found} columns under a header of {header}; they must be as many")
    return InputError(f"{path}: {found} columns for the {grid.n_voxels} parcels of {atlas}; one each is needed")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
