"""Who is taken in: columns of a participants table, and an expression that leaves people out."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ketanet.cohort.columns import RESERVED, as_column
from ketanet.cohort.selection import evaluate
from ketanet.errors import InputError, KetanetWarning
from ketanet.ingest.source import Record

OF_TABLES: Final = ("frames_total", "frames_kept", "mean_fd", "fd_over_05", "dvars")
"""Measures of :func:`ketanet.ingest.quality.subject_quality` that follow from tables and settings, without an image."""

OF_IMAGES: Final = ("tsnr", "gs_share", "coverage", "n_flat", "template_r", "left_right")
"""The other measures."""

Columns = Mapping[str, Mapping[str, Any]]


def read_participants(path: str | os.PathLike[str], subjects: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Columns of participants.tsv by subject, with or without ``sub-`` before the names.

    Parameters
    ----------
    path : path
    subjects : sequence of str
        At least one. Those who are not in the table have empty columns.

    Raises
    ------
    InputError
        The table cannot be read or holds none of the subjects.
    """
    import pandas as pd

    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such participants table")
    try:
        ids = {"participant_id": str}
        _check_cells(file)
        table = pd.read_csv(file, sep="\t", dtype=ids, na_values=["n/a"], keep_default_na=False, index_col=False)
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: not a readable table ({error})") from error
    if "participant_id" not in table.columns:
        raise InputError(f"{file}: column 'participant_id' is missing (it has: {', '.join(table.columns)})")
    names = table.pop("participant_id").astype(str).str.removeprefix("sub-")
    if names.duplicated().any():
        raise InputError(f"{file}: participant {names[names.duplicated()].iloc[0]!r} is there twice")
    taken = RESERVED & set(table.columns)
    table = table.rename(columns={name: f"participant_{name}" for name in taken})
    rows = {
        name: {k: None if pd.isna(v) else v for k, v in row.items()}
        for name, row in zip(names, table.to_dict("records"), strict=True)
    }
    unknown = [s for s in subjects if s.removeprefix("sub-") not in rows]
    if len(unknown) == len(subjects):
        raise InputError(f"{file}: none of the {len(subjects)} subjects is in it (such as {subjects[0]!r})")
    if unknown:
        listed = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        warnings.warn(f"{file}: {len(unknown)} subjects are not in it: {listed}", KetanetWarning, stacklevel=4)
    empty = dict.fromkeys(table.columns)
    return {s: dict(rows.get(s.removeprefix("sub-"), empty)) for s in subjects}


def _check_cells(file: Path) -> None:
    """A row with more cells than the header would shift its columns."""
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    for number, line in enumerate(lines[1:], 2):
        if line.count("\t") > lines[0].count("\t"):
            raise InputError(f"{file}: row {number} has more cells than the header")


@dataclass(frozen=True)
class Exclusion:
    """An expression over columns and measures: subjects for which it holds are left out.

    Attributes
    ----------
    expression : str
    measures : tuple of str
        Names in it that ingestion finds out itself.
    rows : mapping of subject to mapping of str to array (1,)
        Columns that it needs besides.
    """

    expression: str
    measures: tuple[str, ...]
    rows: Mapping[str, Mapping[str, NDArray[Any]]]

    @property
    def needs_images(self) -> bool:
        """Whether a subject must be read before it can be judged."""
        return not set(self.measures) <= set(OF_TABLES)

    def why(self, subject: str, measured: Mapping[str, float]) -> str:
        """Why a subject is left out; empty where it is not.

        Parameters
        ----------
        subject : str
        measured : mapping of str to float
            At least :attr:`measures`; NaN = not known.

        Raises
        ------
        InputError
            A measure is not known, so that the subject cannot be judged.
        """
        own = {name: measured[name] for name in self.measures}
        for name, value in own.items():
            if np.isnan(value):
                tells = (
                    "a table of motion (--confounds)" if name in OF_TABLES else "a series with its mean, in MNI space,"
                )
                raise InputError(
                    f"subject {subject!r}: {name} is not known, by which --exclude {self.expression!r} judges; {tells} "
                    "would tell it: give it, or leave the measure out"
                )
        columns = {name: np.array([value]) for name, value in own.items()}
        if not evaluate(self.expression, {**self.rows[subject], **columns})[0]:
            return ""
        return f"excluded by {self.expression!r}: " + ", ".join(f"{name} is {value:.4g}" for name, value in own.items())


def without_excluded(
    records: Sequence[Record], columns: Columns, expression: str
) -> tuple[list[Record], Exclusion | None]:
    """Records that an expression leaves, where columns suffice to tell; otherwise all, and what is to be judged later.

    Parameters
    ----------
    records : sequence of Record
        Their own columns, ``subject``, ``n_time`` and ``tr`` may be used, and
    columns : mapping of subject to mapping
        those of a participants table, and any measure of the ingestion that is the name of none of them.
    expression : str

    Raises
    ------
    InputError
        As :func:`ketanet.cohort.selection.evaluate`; a name is neither a column nor a measure.
    """
    given = [dict(r.columns) | dict(columns.get(r.subject, {})) for r in records]
    names = dict.fromkeys(name for row in given for name in row)
    table: dict[str, NDArray[Any]] = {name: as_column([row.get(name) for row in given]) for name in names}
    table["n_time"] = np.array([r.n_time for r in records])
    table["subject"] = np.array([r.subject for r in records], object)
    table["tr"] = np.array([r.tr for r in records])
    later = {name: np.full(len(records), np.nan) for name in (*OF_TABLES, *OF_IMAGES) if name not in table}
    drop = evaluate(expression, {**table, **later})
    parsed = [node for node in ast.walk(ast.parse(expression.strip(), mode="eval")) if isinstance(node, ast.Name)]
    used = dict.fromkeys(node.id for node in sorted(parsed, key=lambda node: (node.lineno, node.col_offset)))
    measures = tuple(name for name in used if name in later)
    if not measures:
        return [record for record, out in zip(records, drop, strict=True) if not out], None
    needed = [name for name in used if name in table]
    rows = {r.subject: {name: table[name][row : row + 1] for name in needed} for row, r in enumerate(records)}
    return list(records), Exclusion(expression, measures, rows)
