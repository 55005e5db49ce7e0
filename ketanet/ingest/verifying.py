"""Whether a store still holds what its sources say: read again, cleaned again, compared value by value."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet.cohort import Problem, Series, StoredRows, open_cohort
from ketanet.compute import one_blas_thread, workers_share_disk
from ketanet.errors import InputError, StoreError
from ketanet.grid import grid_from_attrs, require_same_grid
from ketanet.ingest.adding import checksums
from ketanet.ingest.denoise import Denoise
from ketanet.ingest.run import Reader
from ketanet.ingest.source import Record, Source
from ketanet.kernels.rows import decode, unit_rows

_TOLERANCE = {"int16": 2 / 32767, "float32": 1e-5}
"""Of an entry of a unit row. int16: half a unit of rounding, and one by which some entries move to keep the norm."""

_NORM_TOLERANCE = 1e-5  # relative: float32, and least squares on another machine
_NAMED = 3


@dataclass(frozen=True)
class SourceVerification:
    """Outcome of :func:`verify_sources`.

    Attributes
    ----------
    problems : list of Problem
        Empty when the store holds what the source says.
    compared : list of str
        Subjects compared.
    absent : list of str
        Subjects of the store that the source does not have.
    subjects : int
        Subjects of the store.
    largest : float
        Largest difference between an entry of a stored unit row and of the fresh one.
    """

    problems: list[Problem]
    compared: list[str]
    absent: list[str]
    subjects: int
    largest: float

    def summary(self) -> str:
        """One line for people."""
        found = f"{len(self.problems)} problems" if self.problems else "no problem"
        more = ", ..." if len(self.absent) > _NAMED else ""
        absent = f"; not in this source: {', '.join(self.absent[:_NAMED])}{more}" if self.absent else ""
        return (
            f"{len(self.compared)} of {self.subjects} subjects read again and compared: {found}, entries differ by at "
            f"most {self.largest:.1e}{absent}"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def verify_sources(
    path: str | os.PathLike[str],
    source: Source,
    *,
    subjects: int | Sequence[str] | None = None,
    seed: int = 0,
) -> SourceVerification:
    """Read the sources of a cohort again and compare them with the store, value by value.

    The series are cleaned as the provenance of the store says. Compared are frames, runs, norms, and every entry of
    every row, within what the stored type can hold; and the checksums of the files.

    Parameters
    ----------
    path : path
        Cohort store.
    source : Source
        Made with the settings of the ingestion.
    subjects : int or sequence of str, optional
        So many subjects, drawn at random, or those named; default all that the source has.
    seed : int
        Of the drawing.

    Returns
    -------
    SourceVerification

    Raises
    ------
    InputError
        Another grid, no subject in common, or a subject named that store or source does not have.
    StoreError
        The store cannot be opened.
    """
    cohort = open_cohort(path)
    kept = cohort.attrs["provenance"]
    require_same_grid(grid_from_attrs(cohort.attrs["grid"]), source.grid, str(path), "the source")
    try:
        denoise = Denoise(**kept["cleaning"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: its provenance does not say how it was cleaned, as this ketanet does it") from error
    scan = source.scan()
    names = [str(name) for name in cohort["subject"].values]
    records = {record.subject: record for record in scan.records}
    chosen = _chosen(path, [name for name in names if name in records or name in scan.bad], subjects, seed)
    problems = _problems_of_common_files(source, kept)
    problems += [Problem(name, "source", scan.bad[name]) for name in chosen if name not in records]
    readable = [name for name in chosen if name in records]
    reader = Reader(source, tuple(records[name] for name in readable), denoise)
    comparison = _Comparison(
        reader,
        StoredRows(str(cohort.attrs["store"]), str(cohort.attrs["content"])),
        tuple(checksums(kept["subjects"].get(name, {})) for name in readable),
    )
    shared, one = dask.delayed(comparison, pure=False), dask.delayed(_compare, pure=False)
    rows = {name: row for row, name in enumerate(names)}
    asked = [(position, rows[name], _frames_of_runs(cohort, rows[name])) for position, name in enumerate(readable)]
    found = dask.compute(*[one(shared, *of_one) for of_one in asked])
    if not workers_share_disk():
        for of_one, (words, _) in zip(asked, found, strict=True):
            if words and _compare(comparison, *of_one)[0] != words:
                raise StoreError(
                    f"a worker finds what this machine does not ({words[0]}); put store and source where all nodes see "
                    "them, and name them as they are called there"
                )
    return SourceVerification(
        problems
        + [Problem(name, "source", w) for name, (words, _) in zip(readable, found, strict=True) for w in words],
        chosen,
        [name for name in names if name not in records and name not in scan.bad],
        len(names),
        max((largest for _, largest in found), default=0.0),
    )


def _chosen(
    path: str | os.PathLike[str], common: list[str], subjects: int | Sequence[str] | None, seed: int
) -> list[str]:
    if not common:
        raise InputError(f"{path}: none of its subjects is in this source")
    if subjects is None:
        return common
    if isinstance(subjects, int):
        if subjects < 1:
            raise InputError(f"{subjects} subjects are to be compared; at least one")
        drawn = np.random.default_rng(seed).choice(len(common), min(subjects, len(common)), replace=False)
        return [common[position] for position in sorted(drawn)]
    for name in subjects:
        if name not in common:
            raise InputError(f"{path}: subject {name!r} is not both in the store and in this source")
    return list(subjects)


def _problems_of_common_files(source: Source, kept: dict[str, Any]) -> list[Problem]:
    """Files that belong to no subject, such as the mask: they must be those of one of the ingestions."""
    accounts = [kept.get("sources", {}), *(addition.get("sources", {}) for addition in kept.get("appended", []))]
    now, known = checksums(source.describe()), [checksums(account) for account in accounts]
    if not now or now in known or [] in known:  # what was read in parts has no checksum
        return []
    what = "the files that it has for all (mask, label image, packed series) are not those that were taken in"
    return [Problem("(all)", "source", what)]


def _frames_of_runs(cohort: xr.Dataset, row: int) -> NDArray[np.int8]:
    return np.asarray(cohort["run"].values[row, : int(cohort["n_time"].values[row])])


@dataclass(frozen=True)
class _Comparison:
    """What a task needs; `checksums` are those of the provenance, by position."""

    reader: Reader
    rows: StoredRows
    checksums: tuple[list[str], ...]


def _compare(comparison: _Comparison, position: int, row: int, run: NDArray[np.int8]) -> tuple[list[str], float]:
    """What is wrong with a subject, and the largest difference of an entry."""
    record = comparison.reader.records[position]
    words, largest = [], 0.0
    try:
        if _checksums_now(comparison.reader.source, record) != comparison.checksums[position]:
            words.append("the checksums of its files are not those that were taken in")
        with one_blas_thread():
            series = comparison.reader(position)
            more, largest = _differences(series, comparison.rows, row, run)
            words += more
    except StoreError as error:
        words.append(f"the store cannot be read ({error})")
    except InputError as error:
        words.append(str(error))
    except OSError as error:
        words.append(f"{error.filename} cannot be read ({error.strerror})")
    return words, largest


def _checksums_now(source: Source, record: Record) -> list[str]:
    return checksums([source.facts(run) for run in record.runs])


def _differences(series: Series, rows: StoredRows, row: int, run: NDArray[np.int8]) -> tuple[list[str], float]:
    n_time = series.values.shape[1]
    if n_time != len(run):
        return [f"{n_time} frames, {len(run)} in the store"], 0.0
    words = []
    if series.run is not None and not np.array_equal(series.run, run):
        words.append("its runs are cut otherwise than in the store")
    norm, tolerance = rows.norm(row), _TOLERANCE[str(rows.dtype)]
    off, scaled, largest = 0, 0, 0.0
    for voxels in rows.chunks_of_voxels():
        magnitude = None if series.magnitude is None else series.magnitude[voxels]
        fresh, length = unit_rows(series.values[voxels], magnitude=magnitude)
        apart = np.abs(decode(rows.bold(row, voxels))[:, :n_time] - fresh).max(axis=1)
        largest = max(largest, float(apart.max()))
        off += int((apart > tolerance).sum())
        scaled += int((np.abs(norm[voxels] - length) > _NORM_TOLERANCE * length).sum())
    if off:
        words.append(f"{off} of {len(norm)} time series differ, in an entry of their unit row by up to {largest:.2g}")
    if scaled:
        words.append(f"{scaled} of {len(norm)} time series have another norm")
    return words, largest
