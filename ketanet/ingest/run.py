"""Taking a source into a cohort store."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ketanet import __version__
from ketanet.cohort import CohortPlan, CohortWriter, Series, Subject, fill
from ketanet.cohort.selection import evaluate
from ketanet.cohort.writing import MIN_FRAMES, RESERVED, as_column
from ketanet.errors import InputError, KetanetWarning, StoreError
from ketanet.ingest.source import Record, Scan, Source
from ketanet.kernels.rows import regress_global


@dataclass(frozen=True)
class _Reader:
    """Reads and cleans one subject; travels to the workers."""

    source: Source
    records: tuple[Record, ...]
    global_signal: bool

    def __call__(self, row: int) -> Series:
        record = self.records[row]
        values = self.source.read(record)
        magnitude = None
        if self.global_signal:
            if not np.isfinite(values).all():
                raise InputError(f"subject {record.subject!r}: NaN or infinite values; the global signal needs numbers")
            magnitude = np.abs(values).max(axis=1).astype(np.float64)
            values = regress_global(values)
        return Series(values, magnitude, self.source.facts(record))


def ingest_cohort(
    source: Source,
    path: str | os.PathLike[str],
    *,
    participants: str | os.PathLike[str] | None = None,
    exclude: str | None = None,
    global_signal: bool = False,
    dtype: str = "int16",
    compress: bool = False,
    skip_bad: bool = False,
) -> Path:
    """Write a cohort store from a source; run again after an interruption, it continues.

    Parameters
    ----------
    source : Source
        Such as :class:`NiftiSource` or :class:`ParcelSource`.
    path : path
        Store to make; must not exist.
    participants : path, optional
        ``participants.tsv``; its columns become columns of the subjects.
    exclude : str, optional
        Expression over those columns; subjects for which it holds are left out.
    global_signal : bool
        Regress the mean time course of the grid out of every row. The published method expects it.
    dtype : {"int16", "float32"}
    compress : bool
        Compress the chunks (Blosc-LZ4).
    skip_bad : bool
        Leave out subjects that cannot be used, and record why. Otherwise the first one stops everything and nothing is
        left behind.

    Returns
    -------
    Path
        The store.

    Raises
    ------
    InputError
        The source cannot be used; nothing is written.
    """
    scan = _long_enough(source.scan())
    if scan.bad and not skip_bad:
        first = next(iter(scan.bad.values()))
        more = f" (and {len(scan.bad) - 1} more subjects)" if len(scan.bad) > 1 else ""
        raise InputError(f"{first}{more}; --skip-bad leaves such subjects out")
    columns = _participants(participants, [r.subject for r in scan.records]) if participants else {}
    records = _without_excluded(scan, columns, exclude)
    subjects = [Subject(r.subject, r.n_time, r.tr, columns.get(r.subject, {})) for r in records]
    plan = CohortPlan(source.grid, subjects, dtype, compress, provenance=_provenance(source, global_signal, exclude))
    writer = CohortWriter(path, plan)
    writer.begin()
    skipped = fill(writer, _Reader(source, tuple(records), global_signal), skip_bad=skip_bad)
    try:
        return writer.finish(skipped=scan.bad | skipped)
    except InputError as error:
        if not isinstance(error, StoreError):
            writer.discard()
        raise


def _long_enough(scan: Scan) -> Scan:
    """The scan with subjects of too few frames among the bad ones."""
    short = {
        r.subject: f"{r.path}: subject {r.subject!r} has {r.n_time} frames; at least {MIN_FRAMES} are needed"
        for r in scan.records
        if r.n_time < MIN_FRAMES
    }
    return Scan([r for r in scan.records if r.subject not in short], scan.bad | short)


def _provenance(source: Source, global_signal: bool, exclude: str | None) -> dict[str, Any]:
    cleaning = "The global signal (mean over the grid) was regressed out of every time series."
    return {
        "sources": source.describe(),
        "exclude": exclude,
        "cleaning": {"global_signal": global_signal},
        "methods": cleaning if global_signal else "Time series were taken as they were, only centred and scaled.",
        "versions": {"ketanet": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def _participants(path: str | os.PathLike[str], subjects: list[str]) -> Mapping[str, dict[str, Any]]:
    """Columns of participants.tsv by subject, with or without ``sub-`` before the names."""
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
        warnings.warn(f"{file}: {len(unknown)} subjects are not in it: {listed}", KetanetWarning, stacklevel=3)
    empty = dict.fromkeys(table.columns)
    return {s: dict(rows.get(s.removeprefix("sub-"), empty)) for s in subjects}


def _check_cells(file: Path) -> None:
    """A row with more cells than the header would shift its columns."""
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    for number, line in enumerate(lines[1:], 2):
        if line.count("\t") > lines[0].count("\t"):
            raise InputError(f"{file}: row {number} has more cells than the header")


def _without_excluded(scan: Scan, columns: Mapping[str, Mapping[str, Any]], exclude: str | None) -> list[Record]:
    if exclude is None:
        return scan.records
    names = list(dict.fromkeys(name for row in columns.values() for name in row))
    table = {name: as_column([columns[r.subject].get(name) for r in scan.records]) for name in names}
    table["n_time"] = np.array([r.n_time for r in scan.records])
    table["subject"] = np.array([r.subject for r in scan.records], object)
    table["tr"] = np.array([r.tr for r in scan.records])
    drop = evaluate(exclude, table)
    return [record for record, out in zip(scan.records, drop, strict=True) if not out]
