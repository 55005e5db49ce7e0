"""Taking a source into a cohort store."""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np

from ketanet import __version__, storage
from ketanet.cohort import Appending, CohortPlan, CohortWriter, Series, Subject, fill
from ketanet.cohort.writing import MIN_FRAMES
from ketanet.errors import InputError, KetanetWarning, StoreError
from ketanet.ingest.adding import only_new, require_same_settings
from ketanet.ingest.checking import check_tables
from ketanet.ingest.denoise import Denoise, clean_run, join_runs
from ketanet.ingest.people import Exclusion, read_participants, without_excluded
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
    exclusion: Exclusion | None = None
    """By measures of the images."""

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
        quality = subject_quality(measures)
        left_out = "" if self.exclusion is None else self.exclusion.why(record.subject, quality)
        return Series(values, magnitude, facts, run_of_frame, quality, left_out)

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
        Expression over those columns, those that the source has, ``subject``, ``n_time``, ``tr``, and measures of the
        ingestion that are the name of none of them (:data:`~ketanet.ingest.people.OF_TABLES` and ``OF_IMAGES``).
        Subjects for which it holds are left out. Where it needs measures, the provenance says why of each, and a
        subject of which one is not known cannot be used. Images are read only for those that need them.
    denoise : Denoise, optional
        What is done to the series; default nothing.
    global_signal : bool
        Regress the mean time course of the grid out of every row, whatever `denoise` says. The published method
        expects it.
    dtype : {"int16", "float32"}
    compress : bool
        Compress the chunks (Blosc-LZ4).
    skip_bad : bool
        Leave out subjects that cannot be used, and record why. Otherwise the first one stops everything. Those that
        headers and tables tell are named before any image is read; where an image tells, the subjects that are finished
        are kept, and the same call goes on from there, also with `skip_bad`.
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
        that is there differ from the store's; no store is made or changed.
    """
    scan = source.scan()
    denoise = _cleaning(source, denoise, global_signal=global_signal)
    with locked(path):
        store = Appending(path) if append else None
        if store is not None:
            require_same_settings(store, source.grid, denoise, dtype=dtype, max_frames=max_frames)
            compress, max_frames = store.compress, store.n_frames
        held = [r for r in scan.records if store is not None and r.subject in store.subjects]
        new = Scan([r for r in scan.records if store is None or r.subject not in store.subjects], scan.bad)
        chosen = _chosen(
            new,
            source,
            denoise,
            participants=participants,
            exclude=exclude,
            max_frames=max_frames,
            skip_bad=skip_bad,
        )
        if store is not None:
            everybody = [*held, *chosen.records]
            if not only_new(store, source, everybody, lambda some: Reader(source, tuple(some), denoise)):
                _say_nobody_new(store, chosen.skipped)
                return store.path
        provenance = _provenance(source, denoise, exclude, chosen.records)
        reader = Reader(source, chosen.records, denoise, chosen.exclusion)
        if store is None:
            plan = CohortPlan(source.grid, chosen.subjects, dtype, compress, provenance, max_frames)
            writer = CohortWriter(path, plan)
            writer.begin()
            return finish(writer, {**chosen.skipped, **fill(writer, reader, skip_bad=skip_bad)})
        provenance |= store.base
        plan = CohortPlan(source.grid, chosen.subjects, dtype, compress, provenance, max_frames, fewest=1)
        return _add(store, plan, reader, chosen.skipped, skip_bad=skip_bad)


@dataclass(frozen=True)
class Prepared:
    """All that can be settled of an ingestion without an image: the plan of the store, how to read its subjects, and
    why others are not among them."""

    plan: CohortPlan
    reader: Reader
    skipped: dict[str, str]


class Settings(TypedDict, total=False):
    """How a new store is made; see :func:`ingest_cohort`."""

    participants: str | os.PathLike[str] | None
    exclude: str | None
    denoise: Denoise | None
    global_signal: bool
    dtype: str
    compress: bool
    skip_bad: bool
    max_frames: int | None


def prepare(source: Source, settings: Settings) -> Prepared:
    """Look at a source, without reading images; raises as :func:`ingest_cohort`."""
    scan = source.scan()
    denoise = _cleaning(source, settings.get("denoise"), global_signal=settings.get("global_signal", False))
    exclude, max_frames = settings.get("exclude"), settings.get("max_frames")
    chosen = _chosen(
        scan,
        source,
        denoise,
        participants=settings.get("participants"),
        exclude=exclude,
        max_frames=max_frames,
        skip_bad=settings.get("skip_bad", False),
    )
    dtype, compress = settings.get("dtype", "int16"), settings.get("compress", False)
    provenance = _provenance(source, denoise, exclude, chosen.records)
    plan = CohortPlan(source.grid, chosen.subjects, dtype, compress, provenance, max_frames)
    return Prepared(plan, Reader(source, chosen.records, denoise, chosen.exclusion), chosen.skipped)


def _cleaning(source: Source, denoise: Denoise | None, *, global_signal: bool) -> Denoise:
    denoise = denoise or Denoise()
    denoise.check_grid(source.grid)
    return replace(denoise, global_signal=True) if global_signal else denoise


@dataclass(frozen=True)
class _Chosen:
    """Who is to be read, how some of them may be left out then, and why others are not read."""

    records: tuple[Record, ...]
    subjects: tuple[Subject, ...]
    exclusion: Exclusion | None
    skipped: dict[str, str]


def _chosen(
    scan: Scan,
    source: Source,
    denoise: Denoise,
    *,
    participants: str | os.PathLike[str] | None,
    exclude: str | None,
    max_frames: int | None,
    skip_bad: bool,
) -> _Chosen:
    """Everything that can be settled without an image."""
    names = [r.subject for r in scan.records]
    columns = read_participants(participants, names) if participants and names else {}
    records, exclusion = (scan.records, None) if exclude is None else without_excluded(scan.records, columns, exclude)
    scan, left_out = check_tables(_of_usable_length(Scan(records, scan.bad), max_frames), source, denoise, exclusion)
    if scan.bad and not skip_bad:
        first = next(iter(scan.bad.values()))
        more = f" (and {len(scan.bad) - 1} more subjects)" if len(scan.bad) > 1 else ""
        advice = "; --skip-bad leaves such subjects out" if scan.records else "; nobody is left"
        raise InputError(f"{first}{more}{advice}")
    at_reading = exclusion if exclusion is not None and exclusion.needs_images else None
    subjects = tuple(
        Subject(r.subject, r.n_time, r.tr, dict(r.columns) | dict(columns.get(r.subject, {})), _identity(r))
        for r in scan.records
    )
    return _Chosen(tuple(scan.records), subjects, at_reading, {**scan.bad, **left_out})


def finish(writer: CohortWriter, skipped: Mapping[str, str]) -> Path | str:
    """Complete a store; where that cannot be, because too few are left, nothing of it stays."""
    try:
        return writer.finish(skipped=skipped)
    except InputError as error:
        if not isinstance(error, StoreError):
            writer.discard()
        raise


def _add(store: Appending, plan: CohortPlan, reader: Reader, skipped: Mapping[str, str], *, skip_bad: bool) -> Path:
    """Write the new subjects beside a store, then join them to it."""
    store.require_chunks(plan.voxels_per_chunk)
    store.require_columns(plan.subjects)
    writer = CohortWriter(store.added, plan)
    try:
        writer.begin()
        bad = fill(writer, reader, skip_bad=skip_bad)
        without = bad | writer.left_out
        if len(without) == len(plan.subjects):
            writer.discard()
            _say_nobody_new(store, {**skipped, **without})
            return store.path
        finish(writer, {**skipped, **bad})
        return store.join()
    finally:
        store.close()


def _say_nobody_new(store: Appending, skipped: Mapping[str, str]) -> None:
    """Nothing is written, so the provenance cannot tell who was left out."""
    if skipped:
        listed = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:3]) + "; ..." * (len(skipped) > 3)
        words = f"{store.path}: nobody is added, {len(skipped)} subjects are left out: {listed}"
        warnings.warn(words, KetanetWarning, stacklevel=3)


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


def _provenance(source: Source, denoise: Denoise, exclude: str | None, records: Sequence[Record]) -> dict[str, Any]:
    account = source.describe()
    several_runs = any(len(r.runs) > 1 for r in records)
    return {
        "sources": account,
        "exclude": exclude,
        "cleaning": asdict(denoise),
        "methods": denoise.methods(
            several_runs=several_runs, marks_frames=getattr(source, "marks_frames", ""), account=account
        ),
        "versions": {"ketanet": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }
