"""Whether every byte of a cohort is what was written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.cohort.columns import Digest
from ketanet.cohort.reading import StoredRows, open_cohort
from ketanet.compute import available_cores
from ketanet.errors import InputError, KetanetWarning, StoreError
from ketanet.kernels.rows import decode
from ketanet.progress import counted

_NORM_TOLERANCE = 1e-3
_NAMED = 3  # people in a warning, chunks in a reason


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a store: whose, which chunk, what."""

    subject: str
    chunk: str
    what: str

    def __str__(self) -> str:
        return f"subject {self.subject}, {self.chunk}: {self.what}"


@dataclass(frozen=True)
class Verification:
    """Outcome of :func:`verify_cohort`: what is wrong, and rows that hold no signal (which is no error), by subject."""

    problems: list[Problem]
    subjects: int
    chunks: int
    flat_rows: dict[str, int]

    def summary(self) -> str:
        """One line for people."""
        flat = (
            f"; {sum(self.flat_rows.values())} rows without signal in {len(self.flat_rows)} subjects"
            if self.flat_rows
            else ""
        )
        found = f"{len(self.problems)} problems" if self.problems else "no problem"
        return f"{self.subjects} subjects, {self.chunks} chunks read: {found}{flat}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def verify_cohort(path: str | os.PathLike[str]) -> Verification:
    """Read every chunk of a store and list what is wrong.

    Checked: presence and checksum of each chunk, NaN, the unit norm of every row and its zero padding, rows of zeros
    against ``bold_norm``, and the digest of each subject's rows: a chunk that is sound and another's is found by it.

    Parameters
    ----------
    path : path of the store

    Returns
    -------
    Verification
        ``problems`` is empty when the store is sound.

    Raises
    ------
    StoreError
        No store, or one whose metadata cannot be read.
    """
    cohort = open_cohort(path)
    rows = StoredRows(cohort.attrs["store"], str(cohort.attrs["content"]))
    names = [str(name) for name in cohort["subject"].values]
    lengths = cohort["n_time"].values
    digests = [bytes(d).hex() for d in cohort["digest"].values] if "digest" in cohort else [None] * len(names)

    def check(row: int) -> tuple[list[Problem], int]:
        return _check_subject(rows, row, names[row], int(lengths[row]), digests[row])

    with ThreadPoolExecutor(available_cores()) as pool:
        found = list(pool.map(check, range(len(names))))
    flat = {name: n for name, (_, n) in zip(names, found, strict=True) if n}
    chunks = len(names) * (len(rows.chunks_of_voxels()) + 1)
    return Verification([p for problems, _ in found for p in problems], len(names), chunks, flat)


def without_damaged(cohort: xr.Dataset) -> tuple[xr.Dataset, dict[str, str]]:
    """Subjects of a cohort whose every stored chunk is there and is what was written.

    Every chunk of these subjects is read once, on threads of this process, and its checksum compared; values are not
    looked at (see :func:`verify_cohort`).

    Parameters
    ----------
    cohort : xarray.Dataset
        As :func:`ketanet.open_cohort` gives it, or a selection of its subjects.

    Returns
    -------
    cohort : xarray.Dataset
        The sound subjects, in their order: a lazy view; the cohort itself when nothing is damaged.
    left_out : dict of str to str
        What is wrong, by subject left out. A :class:`ketanet.KetanetWarning` names the first of them.

    Raises
    ------
    InputError
        The cohort is not an opened store.
    StoreError
        The store was replaced or removed since it was opened.

    Examples
    --------
    >>> cohort, left_out = without_damaged(open_cohort("healthy.zarr"))  # doctest: +SKIP
    >>> left_out  # doctest: +SKIP
    {'sub-03': 'bold 2/0/0: corrupted (its checksum is wrong)'}
    """
    spec.validate(cohort, "cohort")
    if "store" not in cohort.attrs or "row" not in cohort.coords:
        raise InputError("the cohort is not an opened store; open it with ketanet.open_cohort")
    rows = StoredRows(str(cohort.attrs["store"]), str(cohort.attrs["content"]))
    rows.require_same()
    numbers = [int(row) for row in cohort["row"].values]
    damage = []
    with counted("checking", len(numbers)) as step, ThreadPoolExecutor(available_cores()) as pool:
        for found in pool.map(lambda row: _damage(rows, row), numbers):
            damage.append(found)
            step(1, rows.row_bytes)
    names = [str(name) for name in cohort["subject"].values]
    left_out = {name: found for name, found in zip(names, damage, strict=True) if found}
    if not left_out:
        return cohort, {}
    warnings.warn(
        f"{cohort.attrs['store']}: {len(left_out)} of {len(names)} people are left out, their chunks are damaged or "
        f"missing: {_first(list(left_out), ', ')}",
        KetanetWarning,
        stacklevel=2,
    )
    return cohort.isel(subject=[position for position, found in enumerate(damage) if not found]), left_out


def _damage(rows: StoredRows, row: int) -> str:
    """What is wrong with the chunks of a subject; empty when nothing is."""
    found = []
    buffer = np.empty((1, *rows.buffer_shape[1:]), rows.dtype)
    reads: dict[str, Callable[[], Any]] = {f"bold_norm {row}/0": partial(rows.norm, row)}
    for number, voxels in enumerate(rows.chunks_of_voxels()):
        reads[f"bold {row}/{number}/0"] = partial(rows.bold, row, voxels, out=buffer)
    for chunk, read in reads.items():
        try:
            read()
        except StoreError as error:
            found.append(f"{chunk}: {_reason(error)}")
    return _first(found, "; ")


def _first(words: list[str], separator: str) -> str:
    more = len(words) - _NAMED
    return separator.join(words[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _check_subject(rows: StoredRows, row: int, name: str, n_time: int, digest: str | None) -> tuple[list[Problem], int]:
    problems: list[Problem] = []
    found = Digest()
    norm = None
    try:
        norm = rows.norm(row)
        if not np.isfinite(norm).all() or (norm < 0).any():
            problems.append(Problem(name, f"bold_norm {row}/0", "norms that are NaN, infinite or negative"))
    except StoreError as error:
        problems.append(Problem(name, f"bold_norm {row}/0", _reason(error)))
    for number, voxels in enumerate(rows.chunks_of_voxels()):
        chunk = f"bold {row}/{number}/0"
        try:
            stored = rows.bold(row, voxels)
            found.add(stored)
            values = decode(stored)
        except StoreError as error:
            problems.append(Problem(name, chunk, _reason(error)))
            continue
        problems += [Problem(name, chunk, what) for what in _flaws(values, norm, voxels, n_time)]
    if norm is not None and not problems:
        found.add(norm)
        if digest not in (None, found.text):
            problems.append(Problem(name, f"bold {row}", "rows that are not those that were written for this subject"))
    return problems, 0 if norm is None else int((norm == 0).sum())


def _flaws(values: NDArray[np.float32], norm: NDArray[np.float32] | None, voxels: slice, n_time: int) -> list[str]:
    if not np.isfinite(values).all():
        return [f"NaN or infinite values in {int((~np.isfinite(values)).any(axis=1).sum())} rows"]
    found = []
    if values[:, n_time:].any():
        found.append(f"values beyond the subject's {n_time} frames")
    length = np.sqrt(np.einsum("vt,vt->v", values, values, dtype=np.float64))
    signal = length > 0 if norm is None else norm[voxels] > 0
    off = signal & (np.abs(length - 1) > _NORM_TOLERANCE)
    if off.any():
        found.append(f"{int(off.sum())} rows whose norm is not one")
    if (~signal & (length > 0)).any():
        found.append(f"{int((~signal & (length > 0)).sum())} rows with values where bold_norm says no signal")
    return found


def _reason(error: StoreError) -> str:
    text = str(error).split(" of bold", 1)[-1].removeprefix("_norm").strip()
    return text.split(";")[0].removeprefix("is ")
