"""Coordinate tables: files and folders of published coordinates as one checked table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from ketanet.errors import InputError, KetanetWarning
from ketanet.seeds.exchange import read_json, read_sleuth
from ketanet.seeds.folders import read_folder
from ketanet.seeds.names import contrast_label
from ketanet.seeds.sheets import DELIMITED, EXCEL, Row, read_sheet
from ketanet.seeds.values import DIRECTIONS, Given, as_text, coordinate_of, is_empty, name_of

COLUMNS: Final = ("source_study", "contrast", "direction", "space", "x", "y", "z")
"""Columns of a coordinate table; others are kept beside them."""

KEY: Final = ("source_study", "contrast", "direction")
"""What makes a contrast: rows that agree in these make one seed."""

_MISSING = {"n/a", "na", "nan"}


def read_coordinates(
    path: str | os.PathLike[str],
    *,
    directions: Sequence[str] | None = DIRECTIONS,
    direction: str | None = None,
    space: str | None = None,
    studies: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Read published coordinates.

    Parameters
    ----------
    path : path
        One of: a table with a header (.tsv, .csv, .xlsx, .xls; columns source_study, contrast, direction,
        space, x, y, z and any others); a folder with one Excel file per contrast (first sheet; columns x, y,
        z, name; no header) in sub-folders named after the direction, or, with `direction`, directly in it,
        and ``studies.tsv`` (columns file, source_study, space, n, sample) beside them; a GingerALE / Sleuth text file
        (.txt); a NiMARE dataset or NIMADS studyset (.json).
    directions : sequence of str, optional
        Labels of direction allowed; of a folder, the sub-folders read, in this order. None allows any.
    direction, space : str, optional
        What holds where the source states none: a table without the column, an empty cell, a Sleuth or JSON
        file (direction), a contrast whose space is unknown. Space is ``"MNI"`` or ``"Talairach"``.
    studies : path, optional
        Of a folder: the table to take instead of its ``studies.tsv``.

    Returns
    -------
    pandas.DataFrame
        Columns source_study, contrast, direction, space (``"MNI"`` or ``"Talairach"``), x, y, z (mm, as
        given), then the other columns of the source, such as n.

    Raises
    ------
    InputError
        The source cannot be read, lacks a column, or holds a value that is not allowed (a coordinate that is
        empty, no number or beyond 150 mm; another space or direction). The message names file, row, column
        and value.

    Warns
    -----
    KetanetWarning
        A coordinate is given twice within a contrast (it counts once); a folder has no ``studies.tsv``.
    """
    path = Path(path)
    given = Given.checked(directions, direction, space)
    if studies is not None:
        if not path.is_dir():
            raise InputError(f"{path} is no folder; its own column source_study says the studies: leave {studies} out")
        given = replace(given, studies=Path(studies))
    if path.is_dir():
        records = read_folder(path, given)
    elif not path.exists():
        raise InputError(f"{path}: no such file or folder of coordinates")
    else:
        records = _reader_of(path)(path, given)
    table = _as_frame(records)
    _warn_repeated(table, path)
    return table


def check_coordinates(table: pd.DataFrame) -> pd.DataFrame:
    """Check a table in memory as :func:`read_coordinates` does a file; any direction is allowed.

    A coordinate given twice raises no second warning here: reading raised it, and it counts once anyway.
    """
    rows: list[Row] = list(enumerate(table.to_numpy(dtype=object).tolist(), start=1))
    if not rows:
        raise InputError("the coordinate table is empty")
    return _as_frame(_records(list(map(str, table.columns)), rows, Given(), "coordinate table"))


def _reader_of(path: Path) -> Callable[[Path, Given], list[dict[str, Any]]]:
    suffix = path.suffix.lower()
    readers = dict.fromkeys((*DELIMITED, *EXCEL), _read_table) | {".txt": read_sleuth, ".json": read_json}
    if suffix not in readers:
        raise InputError(
            f"{path}: type {suffix or 'without extension'!r} is not known; allowed: a table "
            f"({' '.join((*DELIMITED, *EXCEL))}), Sleuth text (.txt), NiMARE or NIMADS (.json), "
            "a folder of Excel files"
        )
    return readers[suffix]


def _read_table(path: Path, given: Given) -> list[dict[str, Any]]:
    (_, header), *rows = read_sheet(path)
    return _records([as_text(cell) for cell in header], rows, given, str(path))


def _records(header: list[str], rows: list[Row], given: Given, source: str) -> list[dict[str, Any]]:
    """Checked rows of a table with a header, as dictionaries."""
    names = [name.lower() if name.lower() in COLUMNS else name for name in header]
    _check_header(names, given, source)
    if not rows:
        raise InputError(f"{source}: the table has a header but no rows")
    records = []
    for number, cells in rows:
        where = f"{source}, row {number}"
        if not all(map(is_empty, cells[len(names) :])):
            raise InputError(
                f"{where}: {len(cells)} values for {len(names)} columns; quote text that holds the separator"
            )
        cell = dict(zip(names, cells + [None] * (len(names) - len(cells)), strict=False))
        extra = {
            name: None if is_empty(value) or as_text(value).lower() in _MISSING else value
            for name, value in cell.items()
            if name and name not in COLUMNS
        }
        records.append(
            {
                "source_study": name_of(cell["source_study"], f"{where}, column source_study"),
                "contrast": name_of(cell["contrast"], f"{where}, column contrast"),
                "direction": given.direction_of(cell.get("direction"), f"{where}, column direction"),
                "space": given.space_of(cell.get("space"), f"{where}, column space"),
                **{axis: coordinate_of(cell[axis], f"{where}, column {axis}") for axis in "xyz"},
                **extra,
            }
        )
    return records


def _check_header(names: list[str], given: Given, source: str) -> None:
    named = [name for name in names if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise InputError(f"{source}: column {', '.join(twice)} stands twice in the header")
    absent = [name for name in COLUMNS if name not in named]
    absent = [name for name in absent if not (name in ("direction", "space") and getattr(given, name) is not None)]
    if absent:
        raise InputError(
            f"{source}: column {', '.join(absent)} is missing; the header needs {', '.join(COLUMNS)} "
            f"and holds {', '.join(named) or 'nothing'}"
        )


def _as_frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(records).dropna(axis="columns", how="all")
    extra = [column for column in frame.columns if column not in COLUMNS]
    frame = frame[[*COLUMNS, *extra]].copy()
    for column in extra:
        try:
            frame[column] = pd.to_numeric(frame[column])
        except (ValueError, TypeError):
            continue
    return frame


def _warn_repeated(frame: pd.DataFrame, path: Path) -> None:
    again = frame[frame.duplicated([*KEY, "space", "x", "y", "z"])]
    if again.empty:
        return
    shown = [
        f"{contrast_label(str(row.source_study), str(row.contrast))} ({row.x:g}, {row.y:g}, {row.z:g})"
        for row in again.head(5).itertuples()
    ]
    more = f" and {len(again) - 5} more" if len(again) > 5 else ""
    warnings.warn(
        f"{path}: given twice in a contrast, counted once: {', '.join(shown)}{more}",
        KetanetWarning,
        stacklevel=3,
    )
