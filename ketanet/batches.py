"""Group maps of very many seeds, a batch at a time, each reduced as soon as it is whole.

Null models map tens of thousands of seeds; their maps never exist together. A batch of seeds is the unit of restart.
Its seed signals are computed in one reading of the cohort and kept in a scratch file; then one task per column of
chunks streams all people through sums that stay in memory, and the whole t maps of the batch go to a function of the
caller's. On a grid of a few thousand elements the signals are made from the rows in hand instead.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ketanet import spec
from ketanet.cohort import StoredRows
from ketanet.compute import one_blas_thread, wide_window
from ketanet.connectivity import GROUP, pass_key, rows_of
from ketanet.errors import InputError, StoreError
from ketanet.files import disk_errors
from ketanet.kernels.moments import SEED_BLOCK, Accumulator, Moments, Stored, Subject, Weights, seed_signals
from ketanet.kernels.signals import dense_signals
from ketanet.kernels.statistics import one_sample_t
from ketanet.partials import SUFFIX, is_whole, read_partial, write_partial

SUMS_BYTES = 400 * 2**20
"""Memory of one task's sums: 28 bytes a seed and voxel of its column of chunks."""

SMALL_GRID = 4096
"""Elements of a grid on which seed signals are a dense product."""

_BETWEEN_MERGES = 64
"""People whose z are summed in float32 before they are merged into the moments in float64."""

Reduce = Callable[[NDArray[np.float32], NDArray[np.int32]], Mapping[str, NDArray[Any]]]


def many_seeds(
    cohort: xr.Dataset,
    weights: Weights,
    reduce: Reduce,
    *,
    name: str,
    partials: str | os.PathLike[str],
    voxels: NDArray[np.int64] | None = None,
    signal: str = "mean",
    batch: int | None = None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Map seeds in batches and reduce each batch's whole maps.

    Parameters
    ----------
    cohort : xarray.Dataset
        As :func:`ketanet.open_cohort` gives it, or a selection of its subjects; at least three.
    weights : sparse array (seed, voxel)
        Seeds over all voxels of the grid.
    reduce : callable
        Given t (seed, target) float32, NaN = not tested, and n (seed or 1, target) of one batch, returns named arrays.
        Must pickle where workers are processes.
    name : str
        Names what `reduce` does with which settings: a result kept under another name is not taken.
    partials : path
        Folder for results of finished batches and for scratch files; they are found again after an interruption.
    voxels : int array (target,), optional
        Voxels wanted, in increasing order; default all.
    signal : str
        Seed signal; see :func:`ketanet.seed_maps`.
    batch : int, optional
        Seeds a batch; default from memory (a multiple of 256). Results do not depend on it beyond 1e-6.

    Yields
    ------
    dict of str to array
        What `reduce` returned, batch by batch in the order of the seeds.

    Raises
    ------
    InputError
        Fewer than three subjects, or weights of another grid.
    """
    spec.validate(cohort, "cohort")
    spec.choice(signal, spec.SIGNALS, "signal")
    rows = [int(row) for row in cohort["row"].values]
    if len(rows) < 3:
        raise InputError(f"{len(rows)} subjects are left; a group test needs at least 3")
    if weights.shape[1] != cohort.sizes["voxel"]:
        raise InputError(f"the seeds have {weights.shape[1]} voxels, the cohort {cohort.sizes['voxel']}")
    targets = np.arange(cohort.sizes["voxel"]) if voxels is None else np.asarray(voxels, np.int64)
    if (np.diff(targets) <= 0).any():
        raise InputError("the voxels wanted are not in increasing order; sort them")
    folder = Path(partials).absolute()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stored = rows_of(cohort)
    columns = _columns(stored, targets)
    step = batch or seeds_per_batch(max(len(own) for _, own in columns))
    window = wide_window()
    starts = range(0, weights.shape[0], step)
    for first in range(0, len(starts), window):
        some = [weights[start : start + step] for start in starts[first : first + window]]
        paths = [folder / f"{_key(stored, one, targets, signal, rows, name)}{SUFFIX}" for one in some]
        missing = [(one, path) for one, path in zip(some, paths, strict=True) if not is_whole(path)]
        dask.compute(*[_batch(stored, rows, one, columns, signal, reduce, path) for one, path in missing])
        for path in paths:
            yield read_partial(path)


def _columns(stored: StoredRows, targets: NDArray[np.int64]) -> list[tuple[slice, NDArray[np.int64]]]:
    """Columns of chunks that hold targets, each with its targets counted from its first voxel."""
    found = []
    for column in stored.chunks_of_voxels():
        own = targets[(targets >= column.start) & (targets < column.stop)] - column.start
        if len(own):
            found.append((column, own))
    return found


def seeds_per_batch(targets: int) -> int:
    """Seeds whose sums over so many voxels fit :data:`SUMS_BYTES`."""
    return max(1, SUMS_BYTES // (28 * targets) // SEED_BLOCK) * SEED_BLOCK


def _key(
    stored: StoredRows, weights: Weights, targets: NDArray[np.int64], signal: str, rows: list[int], name: str
) -> str:
    own = pass_key(stored.content, weights, targets, signal)
    return hashlib.sha256(f"{own} {rows} {name}".encode()).hexdigest()[:32]


def _batch(
    stored: StoredRows,
    rows: list[int],
    weights: Weights,
    columns: list[tuple[slice, NDArray[np.int64]]],
    signal: str,
    reduce: Reduce,
    path: Path,
) -> Any:
    """Delayed work of one batch; ends with its result on disk, from when on its tasks have nothing to do: a cluster
    repeats them when it loses the worker that did them."""
    scratch = path.with_suffix(".signals.npy")
    if _is_dense(stored, rows, weights, signal):
        column, own = columns[0]
        part = dask.delayed(_column_t)(stored, rows, weights.shape[0], column, own, (weights, signal), path)
        return dask.delayed(_reduce)([part], reduce, path, scratch)
    signals = dask.delayed(_write_signals)(stored, rows, weights, signal, scratch, path)
    parts = [
        dask.delayed(_column_t)(stored, rows, weights.shape[0], column, own, signals, path) for column, own in columns
    ]
    return dask.delayed(_reduce)(parts, reduce, path, scratch)


def _is_dense(stored: StoredRows, rows: list[int], weights: Weights, signal: str) -> bool:
    """Whether seed signals are made from the rows in hand: a small grid in one chunk a person."""
    if weights.shape[1] > SMALL_GRID or len(stored.chunks_of_voxels()) > 1 or signal == "pc1":
        return False
    return not any(stored.segments(row) for row in rows)


def _write_signals(
    stored: StoredRows, rows: list[int], weights: Weights, signal: str, path: Path, result: Path
) -> Path:
    """Seed signals (subject, seed, time) of a batch, in a scratch file: at 40 seeds a megabyte a person."""
    if result.exists():
        return path
    stored.require_same()
    buffer = stored.buffer()
    shape = (len(rows), weights.shape[0], buffer.shape[2])
    with disk_errors(path), one_blas_thread():
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for position, row in enumerate(rows):
            bold, norm = stored.bold(row, out=buffer), stored.norm(row)
            file[position] = seed_signals(bold, norm, weights, signal, stored.segments(row))
        file.flush()
    stored.require_same()
    return path


def _column_t(
    stored: StoredRows,
    rows: list[int],
    n_seeds: int,
    column: slice,
    targets: NDArray[np.int64],
    given: Path | tuple[Weights, str],
    result: Path,
) -> tuple[NDArray[np.float32], NDArray[np.int32]] | None:
    """t (seed, target) and n of one column of chunks, all people streamed in their order; seed signals from a scratch
    file, or from weights and the rows themselves."""
    if result.exists():
        return None
    stored.require_same()
    signals_of = _signals_in_file(given) if isinstance(given, Path) else _signals_of_rows(*given)
    total = Moments.zeros(n_seeds, len(targets))
    buffers = [np.empty((1, *stored.buffer_shape[1:]), stored.dtype) for _ in rows[:GROUP]]
    with one_blas_thread():
        for start in range(0, len(rows), _BETWEEN_MERGES):
            accumulator = Accumulator(n_seeds, targets)
            last = min(start + _BETWEEN_MERGES, len(rows))
            for first in range(start, last, GROUP):
                group = []
                for position, buffer in zip(range(first, min(first + GROUP, last)), buffers, strict=False):
                    row = rows[position]
                    bold, norm = stored.bold(row, column, out=buffer), stored.norm(row)[column]
                    group.append(Subject(bold, norm, signals_of(position, bold, norm), stored.segments(row)))
                accumulator.add(*group)
            total = accumulator.merge_into(total)
    stored.require_same()
    t, _ = one_sample_t(total.n, total.mean, total.m2)
    return t.astype(np.float32), total.n


_SignalsOf = Callable[[int, Stored, NDArray[np.float32]], NDArray[np.float32]]
"""Position of a subject, its rows and norms -> seed signals (seed, time)."""


def _signals_in_file(path: Path) -> _SignalsOf:
    try:
        signals = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: the scratch file of another worker does not show on {socket.gethostname()}; results must go "
            "where all nodes and this machine write. Finished parts are kept: run the same again"
        ) from error
    return lambda position, bold, norm: np.asarray(signals[position])  # noqa: ARG005


def _signals_of_rows(weights: Weights, signal: str) -> _SignalsOf:
    dense = weights.toarray().astype(np.float32)
    return lambda position, bold, norm: dense_signals(bold, norm, dense, signal)  # noqa: ARG005


def _reduce(
    parts: list[tuple[NDArray[np.float32], NDArray[np.int32]]], reduce: Reduce, path: Path, scratch: Path
) -> None:
    if path.exists():
        return
    t = np.concatenate([part[0] for part in parts], axis=1)
    widest = max(len(part[1]) for part in parts)
    n = np.concatenate([np.broadcast_to(p[1], (widest, p[1].shape[1])) for p in parts], axis=1)
    with disk_errors(path):
        write_partial(path, {key: np.asarray(value) for key, value in reduce(t, n).items()})
    scratch.unlink(missing_ok=True)
