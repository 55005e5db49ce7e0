"""What may be added to a store that is there: subjects of the same grid and settings that it does not hold yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import dask

from ketanet.cohort import Appending, Series
from ketanet.cohort.writing import stored_form
from ketanet.compute import available_cores, one_blas_thread
from ketanet.errors import InputError
from ketanet.grid import Grid, grid_from_attrs, require_same_grid
from ketanet.ingest.denoise import Denoise, with_option
from ketanet.ingest.source import Record, Source


def require_same_settings(
    store: Appending, grid: Grid, denoise: Denoise, *, dtype: str, max_frames: int | None
) -> None:
    """Raise an InputError that names what differs between a store and what is to be added to it."""
    kept = store.cohort.attrs["provenance"]
    require_same_grid(grid_from_attrs(store.cohort.attrs["grid"]), grid, f"{store.path}", "the source")
    if dtype != store.dtype:
        raise InputError(
            f"{store.path} holds rows as {store.dtype}, {dtype} is asked for; give --dtype {store.dtype} to add to it"
        )
    if max_frames not in (None, store.n_frames):
        raise InputError(
            f"{store.path} has room for {store.n_frames} frames of a subject, which is fixed when a store is made; "
            f"leave out --max-frames {max_frames}, or ingest the cohort again with it"
        )
    before, now = kept.get("cleaning", {}), json.loads(json.dumps(asdict(denoise)))
    for name in (*before, *now):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{store.path} was cleaned otherwise: {with_option(name)} is {before.get(name)!r} there and "
                f"{now.get(name)!r} here; clean what is added as the others were, or ingest the cohort again"
            )


def only_new(
    store: Appending, source: Source, records: Sequence[Record], reader: Callable[[Sequence[Record]], Reading]
) -> list[Record]:
    """Records of the subjects that a store does not hold yet.

    Those it holds are left out where their files have the checksums they had. Where a source has no file of its own
    for a subject, the subject is read again, and the digests of what would be stored are compared.

    Parameters
    ----------
    store : Appending
    source : Source
    records : sequence of Record
    reader : callable
        Records -> callable from position to Series.

    Raises
    ------
    InputError
        A subject that the store holds has changed.
    """
    held = set(map(str, store.cohort["subject"].values))
    there = [record for record in records if record.subject in held]
    facts = store.cohort.attrs["provenance"]["subjects"]
    with ThreadPoolExecutor(available_cores()) as pool:
        now = list(pool.map(lambda record: checksums([source.facts(run) for run in record.runs]), there))
    without = []
    for record, found in zip(there, now, strict=True):
        before = checksums(facts.get(record.subject, {}))
        if not before or not found:
            without.append(record)
        elif before != found:
            raise _changed(store, record)
    _require_same_rows(store, without, reader(without))
    return [record for record in records if record.subject not in held]


Reading = Callable[[int], Series]


def _require_same_rows(store: Appending, records: Sequence[Record], read: Reading) -> None:
    shared = dask.delayed((read, store.dtype, store.n_frames), pure=False)
    one = dask.delayed(_digest, pure=False)
    found = dask.compute(*[one(shared, position) for position in range(len(records))])
    rows = {str(name): row for row, name in enumerate(store.cohort["subject"].values)}
    for record, digest in zip(records, found, strict=True):
        if bytes(store.cohort["digest"].values[rows[record.subject]]).hex() != digest:
            raise _changed(store, record)


def _digest(shared: tuple[Reading, str, int], position: int) -> str:
    read, dtype, n_frames = shared
    with one_blas_thread():
        series = read(position)
        return stored_form(series.values, series.magnitude, dtype, n_frames)[2]


def _changed(store: Appending, record: Record) -> InputError:
    return InputError(
        f"{record.runs[0].path}: subject {record.subject!r} is in {store.path} already, and its files have changed "
        "since; leave it out of what is added, or ingest the cohort again"
    )


def checksums(facts: Any) -> list[str]:
    """Every SHA-256 in the facts about files, in order."""
    return sorted(_checksums(facts))


def _checksums(facts: Any) -> Iterator[str]:
    if isinstance(facts, Mapping):
        for name, value in facts.items():
            if name.endswith("sha256") and isinstance(value, str):
                yield value
            else:
                yield from _checksums(value)
    elif isinstance(facts, list | tuple):
        for value in facts:
            yield from _checksums(value)
