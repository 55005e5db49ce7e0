"""Taking a source into a cohort store."""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ketanet import __version__, storage
from ketanet.cohort import Appending, CohortPlan, CohortWriter, Series, Subject, fill
from ketanet.cohort.columns import RESERVED, as_column
from ketanet.cohort.selection import evaluate
from ketanet.cohort.writing import MIN_FRAMES
from ketanet.errors import InputError, KetanetWarning, StoreError
from ketanet.ingest.adding import only_new, require_same_settings
from ketanet.ingest.denoise import Denoise, clean_run, join_runs
from ketanet.ingest.quality import run_quality, subject_facts, subject_quality
from ketanet.ingest.source import Record, Scan, Source
from ketanet.kernels.cleaning import Float
from ketanet.lock import locked

MOST_EMPTY: Final = 0.5
"""Largest share of the time series of a run that may be NaN throughout, as outside the subject's brain."""


@dataclass(frozen=True)
class Reader:
    """Reads and cleans one subject; travels to the workers."""

    source: Source
    records: tuple[Record, ...]
    denoise: Denoise

    def __call__(self, row: int) -> Series:
        record = self.records[row]
        runs, measures = [], []
        for run in record.runs:
            raw = self._without_empty(self.source.read(run), record.subject)
            nuisance = self.source.nuisance(run, self.denoise.strategy)
            runs.append(clean_run(raw, run, nuisance, self.source.grid, self.denoise))
            measures.append(run_quality(raw, nuisance, runs[-1], self.source.grid))
            del raw
        values, magnitude, run_of_frame = join_runs(runs, subject=record.subject, min_frames=self.denoise.min_frames)
        of_runs = [self.source.facts(run) for run in record.runs]
        facts = (of_runs[0] if len(of_runs) == 1 else {"runs": of_runs}) | subject_facts(measures)
        return Series(values, magnitude, facts, run_of_frame, subject_quality(measures))

    @staticmethod
    def _without_empty(raw: Float, subject: str) -> Float:
        """Series with zeros, which is no signal, where there is NaN in every frame: outside the brain some write it."""
        finite = np.isfinite(raw).all(axis=1)
        if finite.all():
            return raw
        empty = np.isnan(raw).all(axis=1)
        n_bad, n_empty = int((~finite & ~empty).sum()), int(empty.sum())
        if n_bad:
            raise InputError(
                f"subject {subject!r}: NaN or infinite values in {n_bad} of {len(raw)} time series; "
                "mend the file or restrict the mask"
            )
        if n_empty > MOST_EMPTY * len(raw):
            raise InputError(
                f"subject {subject!r}: {n_empty} of {len(raw)} time series are NaN in every frame; at most "
                f"{MOST_EMPTY:.0%} may be: mend the file or restrict the mask"
            )
        if not raw.flags.writeable:
            raw = raw.copy(order="K")
        raw[empty] = 0
        return raw


def ingest_cohort(
    source: Source,
    path: str | os.PathLike[str],
    *,
    participants: str | os.PathLike[str] | None = None,
    exclude: str | None = None,
    denoise: Denoise | None = None,
    global_signal: bool = False,
    dtype: str = "int16",
    compress: bool = False,
    skip_bad: bool = False,
    max_frames: int | None = None,
    append: bool = False,
) -> Path | str:
    """Write a cohort store from a source; run again after an interruption, it continues.

    While it runs, ``<store>.lock`` keeps others from writing the same store.

    Parameters
    ----------
    source : Source
        Such as :class:`NiftiSource` or :class:`ParcelSource`.
    path : path
        Store to make, or its address on an object store such as ``s3://bucket/healthy.zarr``; must not exist, unless
        `append`.
    participants : path, optional
        ``participants.tsv``; its columns become columns of the subjects.
        Where a measure of the ingestion has the name of one of them, the table's column is kept.
    exclude : str, optional
        Expression over those columns; subjects for which it holds are left out.
    denoise : Denoise, optional
        What is done to the series; default nothing.
    global_signal : bool
        Regress the mean time course of the grid out of every row, whatever `denoise` says. The published method
        expects it.
    dtype : {"int16", "float32"}
    compress : bool
        Compress the chunks (Blosc-LZ4).
    skip_bad : bool
        Leave out subjects that cannot be used, and record why. Otherwise the first one stops everything and nothing is
        left behind.
    max_frames : int, optional
        Frames that the store has room for, for longer subjects to be added later; default those of the longest. A
        subject with more cannot be used.
    append : bool
        Add the subjects that a store does not hold yet, behind the others, which are not written again. Grid, cleaning
        and `dtype` must be the store's; its frames are the most that a subject may have. Compression is the store's.
        Subjects that it holds are passed over when the checksums of their files are those of the provenance. An
        interrupted addition is finished by the same call.

    Returns
    -------
    Path or str
        The store: a path, or an address.

    Raises
    ------
    InputError
        The source cannot be used, or somebody else writes the store, or (`append`) settings or the files of a subject
        that is there differ from the store's; nothing is written.
    """
    denoise = denoise or Denoise()
    if global_signal:
        denoise = replace(denoise, global_signal=True)
    scan = source.scan()
    denoise.check_grid(source.grid)
    with locked(path):
        store = Appending(path) if append else None
        if store is not None:
            require_same_settings(store, source.grid, denoise, dtype=dtype, max_frames=max_frames)
            compress, max_frames = store.compress, store.n_frames
        scan = _of_usable_length(scan, max_frames)
        if scan.bad and not skip_bad:
            first = next(iter(scan.bad.values()))
            more = f" (and {len(scan.bad) - 1} more subjects)" if len(scan.bad) > 1 else ""
            raise InputError(f"{first}{more}; --skip-bad leaves such subjects out")
        if store is not None:
            new = only_new(store, source, scan.records, lambda some: Reader(source, tuple(some), denoise))
            if not new:
                return store.path
            scan = Scan(new, scan.bad)
        columns = _participants(participants, [r.subject for r in scan.records]) if participants else {}
        records = _without_excluded(scan, columns, exclude)
        subjects = [
            Subject(r.subject, r.n_time, r.tr, dict(r.columns) | dict(columns.get(r.subject, {})), _identity(r))
            for r in records
        ]
        provenance = _provenance(source, denoise, exclude, several_runs=any(len(r.runs) > 1 for r in records))
        reader = Reader(source, tuple(records), denoise)
        if store is None:
            plan = CohortPlan(source.grid, subjects, dtype, compress, provenance, max_frames)
            return _write(CohortWriter(path, plan), reader, scan.bad, skip_bad=skip_bad)
        plan = CohortPlan(source.grid, subjects, dtype, compress, provenance | store.base, max_frames, fewest=1)
        store.require_chunks(plan.voxels_per_chunk)
        store.require_columns(subjects)
        try:
            _write(CohortWriter(store.added, plan), reader, scan.bad, skip_bad=skip_bad)
            return store.join()
        finally:
            store.close()


def _write(writer: CohortWriter, reader: Reader, bad: Mapping[str, str], *, skip_bad: bool) -> Path | str:
    writer.begin()
    skipped = fill(writer, reader, skip_bad=skip_bad)
    try:
        return writer.finish(skipped={**bad, **skipped})
    except InputError as error:
        if not isinstance(error, StoreError):
            writer.discard()
        raise


def _identity(record: Record) -> str:
    """Digest of where the files of a subject lie, their sizes and times: those of another folder, or mended ones, are
    not taken for these."""
    digest = hashlib.sha256()
    for run in record.runs:
        if storage.is_remote(run.path):
            digest.update(repr((run.path, run.extra)).encode())
            continue
        home = Path(run.path)
        others = [home / word if (home / word).exists() else Path(word) for word in run.extra if isinstance(word, str)]
        for path in (home, *([Path(run.confounds)] if run.confounds else []), *others):
            known = path.stat() if path.is_file() else None
            digest.update(f"{path.absolute()} {known and (known.st_size, known.st_mtime_ns)} ".encode())
        digest.update(repr([word for word in run.extra if not isinstance(word, str)]).encode())
    return digest.hexdigest()[:32]


def _of_usable_length(scan: Scan, max_frames: int | None) -> Scan:
    """The scan with subjects of too few or too many frames among the bad ones."""
    if max_frames is not None and max_frames < MIN_FRAMES:
        raise InputError(
            f"a store with room for {max_frames} frames is asked for; at least {MIN_FRAMES} (--max-frames)"
        )
    bad = {}
    for r in scan.records:
        words = f"{r.runs[0].path}: subject {r.subject!r} has {r.n_time} frames"
        if r.n_time < MIN_FRAMES:
            bad[r.subject] = f"{words}; at least {MIN_FRAMES} are needed"
        elif max_frames is not None and r.n_time > max_frames:
            bad[r.subject] = f"{words}; the store has room for {max_frames} (--max-frames, when it is made)"
    return Scan([r for r in scan.records if r.subject not in bad], scan.bad | bad)


def _provenance(source: Source, denoise: Denoise, exclude: str | None, *, several_runs: bool) -> dict[str, Any]:
    account = source.describe()
    return {
        "sources": account,
        "exclude": exclude,
        "cleaning": asdict(denoise),
        "methods": denoise.methods(
            several_runs=several_runs, marks_frames=getattr(source, "marks_frames", ""), account=account
        ),
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
    rows = [dict(r.columns) | dict(columns.get(r.subject, {})) for r in scan.records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: as_column([row.get(name) for row in rows]) for name in names}
    table["n_time"] = np.array([r.n_time for r in scan.records])
    table["subject"] = np.array([r.subject for r in scan.records], object)
    table["tr"] = np.array([r.tr for r in scan.records])
    drop = evaluate(exclude, table)
    return [record for record, out in zip(scan.records, drop, strict=True) if not out]
