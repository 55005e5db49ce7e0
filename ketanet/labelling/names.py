"""Names of the labels of an atlas image, from the kinds of file they come in."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ketanet.errors import InputError

_COLOUR_LUT = re.compile(r"\s*(\d+)\s+(\S+)(?:\s+\d+){4}\s*")
_COLOUR_LINE = re.compile(r"\s*(\d+)(?:\s+\d+){4}\s*")


class Name(NamedTuple):
    """Name of a label, and the canonical network that its table gives, if any."""

    name: str
    network: str | None = None


def find_names(image: Path) -> Path:
    """Names file beside an atlas image: its stem with .tsv, .csv, .txt or _label.txt.

    Raises
    ------
    InputError
        None of them is there.
    """
    stem = image.name.removesuffix(".gz").removesuffix(".nii")
    candidates = [image.with_name(stem + end) for end in (".tsv", ".csv", ".txt", "_label.txt")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{image}: no names for its labels; put a table with the columns index, name[, network] beside it as "
        f"{stem}.tsv, or give one in the study file: atlas = {{file = ..., names = ...}}"
    )


def inline_names(names: Sequence[str]) -> dict[int, Name]:
    """Names given one by one for the labels 1, 2, ..."""
    return {label: Name(str(name)) for label, name in enumerate(names, start=1)}


def read_names(path: Path) -> dict[int, Name]:
    """Read the names of labels; label 0, the background, is left out.

    Parameters
    ----------
    path : Path
        A TSV or CSV table with the columns ``index``, ``name`` and freely ``network``; a FreeSurfer colour
        table (``index name R G B A``); a label list of two lines each (``name``, then ``index R G B A``); or
        plain text with one name a line for the labels 1, 2, ...

    Returns
    -------
    dict
        Label to :class:`Name`.

    Raises
    ------
    InputError
        The file is missing, empty or not text; a column is missing; an index is not a whole number or stands
        twice; a name is empty.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table of names")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: a table of names is text; this file is not") from None
    if not lines:
        raise InputError(f"{path}: the table of names is empty")
    columns = [cell.strip().casefold() for cell in re.split(r"[\t,]", lines[0])]
    if path.suffix.casefold() in (".tsv", ".csv") or {"index", "name"} <= set(columns):
        return _from_table(path, lines)
    return _from_text(path, lines)


def _from_table(path: Path, lines: list[str]) -> dict[int, Name]:
    delimiter = "\t" if "\t" in lines[0] else ","
    reader = csv.DictReader(lines, delimiter=delimiter)
    columns = [str(column).strip().casefold() for column in reader.fieldnames or []]
    reader.fieldnames = columns
    for needed in ("index", "name"):
        if needed not in columns:
            raise InputError(
                f"{path}: column '{needed}' is missing; the columns are {', '.join(columns)}, "
                "needed are index, name and, if wanted, network"
            )
    found: dict[int, Name] = {}
    for row in reader:
        network = (row.get("network") or "").strip()
        _add(found, path, reader.line_num, row["index"] or "", row["name"] or "", network or None)
    return found


def _from_text(path: Path, lines: list[str]) -> dict[int, Name]:
    found: dict[int, Name] = {}
    kept = [(n, line) for n, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    if all(_COLOUR_LUT.fullmatch(line) for _, line in kept):
        for number, line in kept:
            index, name = line.split()[:2]
            _add(found, path, number, index, name)
    elif len(kept) % 2 == 0 and all(_COLOUR_LINE.fullmatch(line) for _, line in kept[1::2]):
        for (number, name), (_, colours) in zip(kept[::2], kept[1::2], strict=True):
            _add(found, path, number, colours.split()[0], name)
    else:
        for number, name in enumerate(lines, start=1):
            _add(found, path, number, str(number), name)
    return found


def _add(found: dict[int, Name], path: Path, line: int, index: str, name: str, network: str | None = None) -> None:
    try:
        label = int(index)
    except ValueError:
        raise InputError(f"{path}, line {line}: index is {index!r}; a whole number is needed") from None
    if label in found:
        raise InputError(f"{path}, line {line}: index {label} stands twice; give each label one name")
    if not name.strip():
        raise InputError(f"{path}, line {line}: the name of label {label} is empty")
    if label != 0:
        found[label] = Name(name.strip(), network)
