"""Folders as laboratories keep them: an Excel file per contrast, in sub-folders named after the direction."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

from ketanet.errors import InputError, KetanetWarning
from ketanet.seeds.sheets import EXCEL, read_sheet
from ketanet.seeds.values import Given, as_text, coordinate_of, name_of

STUDIES_FILE: Final = "studies.tsv"


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of the given endings directly in a folder, by name; hidden and lock files (``~$``) left out."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.name.lower().endswith(suffixes) and entry.is_file() and not entry.name.startswith((".", "~$"))
    )


def files_by_direction(
    folder: Path, suffixes: tuple[str, ...], given: Given, what: str
) -> list[tuple[str, list[Path]]]:
    """Files of each direction's sub-folder: those named by the caller, or all that hold such files.

    `what` names the files in messages.
    """
    holding = [sub.name for sub in sorted(folder.iterdir()) if sub.is_dir() and files_in(sub, suffixes)]
    if holding and given.directions is None and files_in(folder, suffixes):
        raise InputError(
            f"{folder}: {what}s both in the folder and in its sub-folders ({', '.join(holding)}); "
            "directions= names the sub-folders to read, direction= the label of those in the folder itself"
        )
    wanted = holding if given.directions is None else list(given.directions)
    for name in wanted:
        if name in holding:
            continue
        if (folder / name).is_dir():
            raise InputError(f"{folder / name}: the folder holds no {what} ({' '.join(suffixes)})")
        if not holding:
            break
        raise InputError(
            f"{folder}: no sub-folder {name!r} for this direction; directions (--directions) names those "
            "to read, "
            f"sub-folders with {what}s are {', '.join(holding)}"
        )
    if not holding:
        advice = "no direction is stated: put them in sub-folders named after it, or set it with direction="
        raise InputError(
            f"{folder}: {advice}" if files_in(folder, suffixes) else f"{folder}: no {what} ({' '.join(suffixes)}) in it"
        )
    return [(name, files_in(folder / name, suffixes)) for name in wanted]


def read_folder(folder: Path, given: Given) -> list[dict[str, Any]]:
    """Checked coordinates of every Excel file, as dictionaries."""
    direct = files_in(folder, EXCEL)
    if direct and given.direction is not None:
        groups = [(given.direction, direct)]
    else:
        groups = files_by_direction(folder, EXCEL, given, "Excel file")
    about = _about(folder, [file for _, files in groups for file in files], given)
    records = []
    seen: dict[tuple[str, str, str], Path] = {}
    for direction, files in groups:
        for file in files:
            facts = {"contrast": file.stem, "direction": direction} | about[file]
            key = (facts["source_study"], file.stem, direction)
            if key in seen:
                raise InputError(f"{file}: the same contrast as {seen[key].name}; rename or remove one of them")
            seen[key] = file
            records += [facts | row for row in _read_contrast(file)]
    return records


def _read_contrast(file: Path) -> list[dict[str, Any]]:
    rows = read_sheet(file)
    if [as_text(cell).lower() for cell in rows[0][1][:3]] == ["x", "y", "z"]:
        rows = rows[1:]
    if not rows:
        raise InputError(f"{file}: the table has a header but no rows")
    records = []
    for number, cells in rows:
        padded = [*cells, None, None, None, None]
        record: dict[str, Any] = {
            axis: coordinate_of(padded[index], f"{file}, row {number}, column {'ABC'[index]} ({axis})")
            for index, axis in enumerate("xyz")
        }
        records.append(record | {"name": as_text(padded[3]) or None})
    return records


def _about(folder: Path, files: list[Path], given: Given) -> dict[Path, dict[str, Any]]:
    """Source study, space and n of every file."""
    listing = given.studies or folder / STUDIES_FILE
    if given.studies is not None and not listing.is_file():
        raise InputError(f"{listing}: no such file; studies names a table with the columns file, source_study, space")
    if not listing.is_file():
        space = given.space or "MNI"
        warnings.warn(
            f"{folder}: no {STUDIES_FILE}; every file counts as a source study of its own, in {space} space",
            KetanetWarning,
            stacklevel=4,
        )
        return {file: {"source_study": file.stem, "space": space} for file in files}
    listed = _read_studies(folder, listing, given)
    unlisted = [file.relative_to(folder).as_posix() for file in files if file not in listed]
    if unlisted:
        raise InputError(f"{listing}: no row for {', '.join(unlisted)}; every file needs one")
    return listed


def _read_studies(folder: Path, listing: Path, given: Given) -> dict[Path, dict[str, Any]]:
    (_, header), *rows = read_sheet(listing)
    names = [as_text(cell).lower() for cell in header]
    needed = ["file", "source_study"] + ([] if given.space else ["space"])
    absent = [name for name in needed if name not in names]
    if absent:
        raise InputError(
            f"{listing}: column {', '.join(absent)} is missing; it needs file, source_study, space (and n)"
        )
    listed: dict[Path, dict[str, Any]] = {}
    for number, cells in rows:
        where = f"{listing}, row {number}"
        cell = dict(zip(names, cells, strict=False))
        name = name_of(cell.get("file"), f"{where}, column file").replace("\\", "/")
        file = folder / name
        if not file.is_file():
            raise InputError(f"{where}, column file: {name!r} does not exist in {folder}")
        if file in listed:
            raise InputError(f"{where}, column file: {name!r} stands there twice")
        listed[file] = {
            "source_study": name_of(cell.get("source_study"), f"{where}, column source_study"),
            "space": given.space_of(cell.get("space"), f"{where}, column space"),
        }
        listed[file] |= {name: as_text(cell.get(name)) or None for name in ("n", "sample") if name in names}
    return listed
